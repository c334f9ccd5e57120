"""Sketch + label -> image by the recipe that most projects start from, to compare with: pix2pix.

Isola et al., *Image-to-Image Translation with Conditional Adversarial Networks*, 2017: a U-Net to one pixel whose only
noise is dropout, a discriminator of patches, cross-entropy and a hundred times the absolute difference, batches of one
picture, mirrored and shifted a little, a rate that falls to nothing over the second half. The paper knows no labels;
here each is a plane of ones beside the sketch, for both networks.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.data.store import Store, balanced_batches
from helpers.models.augment import augment
from helpers.models.trainer import Backward, Batch, TrainConfig, TrainTask, best_device, train


@dataclass(frozen=True)
class Pix2PixConfig:
    """Everything that shapes the networks or a step."""

    size: int  # a power of 2, 32 at least
    classes: tuple[str, ...]
    base_channels: int = 64
    lr: float = 2e-4
    lambda_l1: float = 100.0  # weight of the absolute difference
    translate: float = 0.1  # of the pictures, see `augment`


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """By the statistics of what it sees, in drawing too: with batches of one there are no others."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


class SkipConnection(nn.Module):
    """x -> x beside what the inner levels make of it."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], dim=1)


class UNet(nn.Module):
    """sketch (B, 1, S, S) in [0, 1], label (B,) -> image (B, 3, S, S) in [-1, 1]; halved down to one pixel, dropout in
    the inner layers. `noise` is there for `draw` alone."""

    z_dim = 1

    def __init__(self, size: int, num_classes: int, base_channels: int = 64):
        super().__init__()
        self.size, self.num_classes = size, num_classes

        def level(outer: int, inner: int, within: nn.Module | None, dropout: bool = False) -> nn.Module:
            down = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1)] + ([batch_norm(inner)] if within else [])
            up = [nn.ReLU(), nn.ConvTranspose2d(inner * (2 if within else 1), outer, 4, 2, 1), batch_norm(outer)]
            return nn.Sequential(
                *down, *([SkipConnection(within)] if within else []), *up, *([Dropout()] if dropout else [])
            )

        net, halvings = level(8 * base_channels, 8 * base_channels, None), size.bit_length() - 1
        for _ in range(halvings - 5):
            net = level(8 * base_channels, 8 * base_channels, net, dropout=True)
        for factor in (4, 2, 1):
            net = level(factor * base_channels, 2 * factor * base_channels, net)
        first, last = (
            nn.Conv2d(1 + num_classes, base_channels, 4, 2, 1),
            nn.ConvTranspose2d(2 * base_channels, 3, 4, 2, 1),
        )
        self.layers = nn.Sequential(first, SkipConnection(net), nn.ReLU(), last, nn.Tanh())

    def forward(self, sketch: Tensor, label: Tensor, z: Tensor | None = None) -> Tensor:
        return self.layers(concat_label(sketch, label, self.num_classes))


class Dropout(nn.Module):
    """In drawing too, for it is the only noise there is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class PatchGAN(nn.Module):
    """image, sketch, label -> logits, each of 70 x 70 pixels."""

    def __init__(self, num_classes: int, base_channels: int = 64):
        super().__init__()
        self.num_classes = num_classes
        layers = [nn.Conv2d(4 + num_classes, base_channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for in_mult, out_mult, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [
                nn.Conv2d(in_mult * base_channels, out_mult * base_channels, 4, stride, 1),
                batch_norm(out_mult * base_channels),
            ]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * base_channels, 1, 4, 1, 1))

    def forward(self, image: Tensor, sketch: Tensor, label: Tensor) -> Tensor:
        return self.layers(torch.cat([concat_label(sketch, label, self.num_classes), image], dim=1))


def concat_label(sketch: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """(B, 1, H, W) and (B,) -> (B, 1 + classes, H, W)"""
    planes = F.one_hot(label, num_classes).to(sketch.dtype)[:, :, None, None]
    return torch.cat([sketch, planes.expand(-1, -1, *sketch.shape[2:])], dim=1)


class Pix2Pix(TrainTask):
    """The two networks and how they are updated in turn."""

    ema_names = ("generator",)

    def __init__(self, config: Pix2PixConfig, steps: int):
        self.config, self.steps = config, steps
        num_classes = len(config.classes)
        self.networks = {
            "generator": UNet(config.size, num_classes, config.base_channels),
            "discriminator": PatchGAN(num_classes, config.base_channels),
        }
        for network in self.networks.values():
            network.apply(init_normal)
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), config.lr, betas=(0.5, 0.999), fused=True)
            for name, network in self.networks.items()
        }

    def config_dict(self) -> dict:
        """The config with the number of steps, which the learning rate depends on."""
        return super().config_dict() | {"steps": self.steps}

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * min(1.0, 2 * (1 - step / self.steps))
        real, sketches = augment(batch["images"], batch["sketches"], color_jitter=0.0, translate=self.config.translate)
        labels = batch["labels"]
        discriminator = self.networks["discriminator"]
        fake = self.networks["generator"](sketches, labels)
        pred_real, pred_fake = (discriminator(images, sketches, labels) for images in (real, fake.detach()))
        loss_d = (F.softplus(-pred_real).mean() + F.softplus(pred_fake).mean()) / 2
        self._optimizer_step("discriminator", loss_d, backward)
        discriminator.requires_grad_(False)
        loss_g, l1 = F.softplus(-discriminator(fake, sketches, labels)).mean(), (fake - real).abs().mean()
        self._optimizer_step("generator", loss_g + self.config.lambda_l1 * l1, backward)
        discriminator.requires_grad_(True)
        return {"loss_d": loss_d, "loss_g": loss_g, "l1": l1}


def init_normal(module: nn.Module) -> None:
    """The paper's start: weights from a normal distribution of deviation 0.02."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)


def train_pix2pix(
    store: Store, config: Pix2PixConfig, out: str | Path, train_config: TrainConfig, rows: np.ndarray | None = None
) -> dict[str, list[float]]:
    """Train on the store's training split, or on these `rows` of any, every class equally often. Returns the history.
    Raises `ValueError` when the settings are not those of the store."""
    if (config.size, config.classes) != (store.config.size, tuple(store.classes)):
        raise ValueError(f"the store has {store.config.size} px and {store.classes}, the settings say otherwise")
    torch.manual_seed(train_config.seed)
    return train(
        Pix2Pix(config, train_config.steps),
        balanced_batches(store, train_config.batch_size, train_config.seed, rows=rows),
        out,
        train_config,
    )


def load_pix2pix(path: str | Path) -> UNet:
    """The generator of a checkpoint; `draw` with `batch=1`, as it was trained."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    generator = UNet(saved["config"]["size"], len(saved["config"]["classes"]), saved["config"]["base_channels"])
    generator.load_state_dict(saved["ema_models"]["generator"])
    return generator.to(best_device()).eval().requires_grad_(False)
