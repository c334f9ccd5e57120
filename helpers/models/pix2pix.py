"""Sketch + label -> image by the recipe that most projects start from, to compare with: pix2pix.

Isola et al., *Image-to-Image Translation with Conditional Adversarial Networks*, 2017: a U-Net to one pixel whose only
noise is dropout, a discriminator of patches, cross-entropy and a hundred times the absolute difference, batches of one
picture, mirrored and shifted a little, a rate that falls to nothing over the second half. The paper knows no labels;
here each is a plane of ones beside the sketch, for both networks.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.data.store import Store, balanced_batches
from helpers.models.augment import augment
from helpers.models.training import Batch, Method, Run, best_device, train


@dataclass(frozen=True)
class Pix2PixSettings:
    """Everything that shapes the networks or a step."""

    size: int  # a power of 2, 32 at least
    classes: tuple[str, ...]
    width: int = 64
    rate: float = 2e-4
    difference: float = 100.0  # weight of the absolute difference
    shift: float = 0.1  # of the pictures, see `augment`


def norm(channels: int) -> nn.BatchNorm2d:
    """By the statistics of what it sees, in drawing too: with batches of one there are no others."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Skip(nn.Module):
    """x -> x beside what the inner levels make of it."""

    def __init__(self, within: nn.Module):
        super().__init__()
        self.within = within

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.within(x)], dim=1)


class UNet(nn.Module):
    """sketch (B, 1, S, S) in [0, 1], label (B,) -> image (B, 3, S, S) in [-1, 1]; halved down to one pixel, dropout in
    the inner layers. `noise` is there for `draw` alone."""

    noise = 1

    def __init__(self, size: int, classes: int, width: int = 64):
        super().__init__()
        self.size, self.classes = size, classes

        def level(outer: int, inner: int, within: nn.Module | None, dropout: bool = False) -> nn.Module:
            down = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1)] + ([norm(inner)] if within else [])
            up = [nn.ReLU(), nn.ConvTranspose2d(inner * (2 if within else 1), outer, 4, 2, 1), norm(outer)]
            return nn.Sequential(*down, *([Skip(within)] if within else []), *up, *([Dropout()] if dropout else []))

        net, halvings = level(8 * width, 8 * width, None), size.bit_length() - 1
        for _ in range(halvings - 5):
            net = level(8 * width, 8 * width, net, dropout=True)
        for factor in (4, 2, 1):
            net = level(factor * width, 2 * factor * width, net)
        first, last = nn.Conv2d(1 + classes, width, 4, 2, 1), nn.ConvTranspose2d(2 * width, 3, 4, 2, 1)
        self.layers = nn.Sequential(first, Skip(net), nn.ReLU(), last, nn.Tanh())

    def forward(self, sketch: Tensor, label: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.layers(with_label(sketch, label, self.classes))


class Dropout(nn.Module):
    """In drawing too, for it is the only noise there is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class PatchGAN(nn.Module):
    """image, sketch, label -> logits, each of 70 x 70 pixels."""

    def __init__(self, classes: int, width: int = 64):
        super().__init__()
        self.classes = classes
        layers = [nn.Conv2d(4 + classes, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for inside, outside, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [nn.Conv2d(inside * width, outside * width, 4, stride, 1), norm(outside * width)]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))

    def forward(self, image: Tensor, sketch: Tensor, label: Tensor) -> Tensor:
        return self.layers(torch.cat([with_label(sketch, label, self.classes), image], dim=1))


def with_label(sketch: Tensor, label: Tensor, classes: int) -> Tensor:
    """(B, 1, H, W) and (B,) -> (B, 1 + classes, H, W)"""
    planes = F.one_hot(label, classes).to(sketch.dtype)[:, :, None, None]
    return torch.cat([sketch, planes.expand(-1, -1, *sketch.shape[2:])], dim=1)


class Pix2Pix(Method):
    """The two networks and how they are updated in turn."""

    averaged = ("generator",)

    def __init__(self, settings: Pix2PixSettings, steps: int):
        self.s, self.steps = settings, steps
        self.settings = asdict(settings) | {"classes": list(settings.classes), "steps": steps}
        classes = len(settings.classes)
        self.networks = {
            "generator": UNet(settings.size, classes, settings.width),
            "discriminator": PatchGAN(classes, settings.width),
        }
        for network in self.networks.values():
            network.apply(start_small)
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), settings.rate, betas=(0.5, 0.999), fused=True)
            for name, network in self.networks.items()
        }

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = self.s.rate * min(1.0, 2 * (1 - number / self.steps))
        real, sketches = augment(batch["images"], batch["sketches"], colour=0.0, shift=self.s.shift)
        labels = batch["labels"]
        judge = self.networks["discriminator"]
        drawn = self.networks["generator"](sketches, labels)
        on_real, on_drawn = (judge(images, sketches, labels) for images in (real, drawn.detach()))
        d = (F.softplus(-on_real).mean() + F.softplus(on_drawn).mean()) / 2
        self._apply("discriminator", d, backward)
        judge.requires_grad_(False)
        g, difference = F.softplus(-judge(drawn, sketches, labels)).mean(), (drawn - real).abs().mean()
        self._apply("generator", g + self.s.difference * difference, backward)
        judge.requires_grad_(True)
        return {"d": d, "g": g, "difference": difference}


def start_small(module: nn.Module) -> None:
    """The paper's start: weights from a normal distribution of deviation 0.02."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)


def train_pix2pix(
    store: Store, settings: Pix2PixSettings, out: str | Path, run: Run, rows: np.ndarray | None = None
) -> dict[str, list[float]]:
    """Train on the store's training split, or on these `rows` of any, every class equally often. Returns the history.
    Raises `ValueError` when the settings are not those of the store."""
    if (settings.size, settings.classes) != (store.settings.size, tuple(store.classes)):
        raise ValueError(f"the store has {store.settings.size} px and {store.classes}, the settings say otherwise")
    torch.manual_seed(run.seed)
    return train(Pix2Pix(settings, run.steps), balanced_batches(store, run.batch, run.seed, rows=rows), out, run)


def load_pix2pix(path: str | Path) -> UNet:
    """The generator of a checkpoint; `draw` with `batch=1`, as it was trained."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    generator = UNet(saved["settings"]["size"], len(saved["settings"]["classes"]), saved["settings"]["width"])
    generator.load_state_dict(saved["averages"]["generator"])
    return generator.to(best_device()).eval().requires_grad_(False)
