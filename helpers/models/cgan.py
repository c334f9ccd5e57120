"""Sketch + label + noise -> image: networks, losses, and the two updates of a conditional GAN.

The generator reads the sketch into ever coarser features (a U-Net, Ronneberger et al. 2015, so lines stay where they
are), then paints back up. Label and a noise vector say *what* is painted, by scaling and shifting features (FiLM,
Perez et al. 2018); a noise picture at every resolution gives skin its texture (StyleGAN, Karras et al. 2019). The
discriminator sees a picture with its sketch and answers twice: patch by patch, and for the whole with its label by
projection (Miyato and Koyama 2018). Loss: non-saturating logistic with an R1 penalty (Mescheder et al. 2018).

Both work on blocks of 2 x 2 pixels as channels (pixel shuffle, Shi et al. 2016): at full resolution a step would spend
most of its time moving memory.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import save_image

from helpers.data.store import Store, to_tensors
from helpers.models.augment import augment
from helpers.models.training import Batch, Method, Run, train

SIZES = (64, 128, 256)
COARSEST = 8  # pixels of a side where the generator turns round


@dataclass(frozen=True)
class CGANSettings:
    """Everything that shapes the networks or a step. `width` is the channels at half the resolution, doubled at each
    further halving up to eight times that."""

    size: int
    classes: tuple[str, ...]
    width: int = 32
    noise: int = 64
    rate: float = 2e-4  # of the generator; the discriminator learns twice as fast (Heusel et al. 2017)
    penalty: float = 0.05  # weight of R1 per picture; applied every `penalty_every` steps
    penalty_every: int = 8
    rebuild: float = 2.0  # weight of the difference to the real picture at low resolution
    matching: float = 2.0  # weight of the difference of mean discriminator features
    colour: float = 0.2
    shift: float = 0.1

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"size {self.size} is not one of {', '.join(map(str, SIZES))}")

    def channels(self) -> list[int]:
        """Channels at half the resolution, at a quarter, ... down to `COARSEST` pixels."""
        halvings = (self.size // 2 // COARSEST).bit_length() - 1
        return [self.width * min(2**k, 8) for k in range(halvings + 1)]


# --------------------------------------------------------------------------------------------------------- generator


class Painter(nn.Module):
    """3x3 convolution, noise picture, normalisation, then scale and shift by the style.

    x: (B, C, H, W), style: (B, S) -> (B, D, H, W)
    """

    def __init__(self, inside: int, outside: int, style: int):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, padding=1)
        self.grain = nn.Parameter(torch.full((outside, 1, 1), 0.1))
        self.norm = nn.GroupNorm(max(1, outside // 16), outside, affine=False)
        self.film = nn.Linear(style, 2 * outside)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = x + self.grain * torch.randn(len(x), 1, *x.shape[2:], device=x.device, dtype=x.dtype)
        scale, shift = self.film(style)[:, :, None, None].chunk(2, dim=1)
        return F.leaky_relu(x * (1 + scale) + shift, 0.2)


class Generator(nn.Module):
    """sketch (B, 1, H, W) in [0, 1], label (B,), noise (B, Z) -> image (B, 3, H, W) in [-1, 1]."""

    def __init__(self, settings: CGANSettings):
        super().__init__()
        widths, style = settings.channels(), 128
        self.label = nn.Embedding(len(settings.classes), 64)
        self.style = nn.Sequential(
            nn.Linear(64 + settings.noise, style), nn.LeakyReLU(0.2), nn.Linear(style, style), nn.LeakyReLU(0.2)
        )
        self.first = nn.Conv2d(4, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.turn = nn.ModuleList([Painter(widths[-1], widths[-1], style), Painter(widths[-1], widths[-1], style)])
        self.up = nn.ModuleList(
            nn.ModuleList([Painter(b + a, a, style), Painter(a, a, style)])
            for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.paint = nn.Conv2d(widths[0], 12, 3, padding=1)
        with torch.no_grad():  # all four pixels of a block begin alike, else a screen pattern has to be unlearnt
            self.paint.weight.copy_(self.paint.weight[::4].repeat_interleave(4, dim=0))
            self.paint.bias.zero_()

    def forward(self, sketch: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        style = self.style(torch.cat([self.label(label), noise], dim=1))
        x = self.first(F.pixel_unshuffle(2 * sketch - 1, 2))
        seen = []
        for down in self.down:
            seen.append(x)
            x = down(F.leaky_relu(x, 0.2))
        for painter in self.turn:
            x = painter(x, style)
        for (join, refine), lines in zip(self.up, reversed(seen), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = refine(join(torch.cat([x, lines], dim=1), style), style)
        return torch.tanh(F.pixel_shuffle(self.paint(x), 2))


# ----------------------------------------------------------------------------------------------------- discriminator


def keep_scale(module: nn.Module) -> None:
    """He et al. 2015: without normalisation PyTorch's own start shrinks signals at every layer, down to nothing."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Halve(nn.Module):
    """Two 3x3 convolutions and an average over 2 x 2, with a shortcut. x: (B, C, H, W) -> (B, D, H/2, W/2)"""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(inside, inside, 3, padding=1), nn.Conv2d(inside, outside, 3, padding=1)
        self.short = nn.Conv2d(inside, outside, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))
        return (F.avg_pool2d(y, 2) + self.short(F.avg_pool2d(x, 2))) * 0.5**0.5


def detail(image: Tensor, gain: float = 10.0) -> Tensor:
    """What a 5 x 5 average takes away, made strong. In skin it is a hundredth of the range, so a fresh discriminator
    does not tell a photograph from its blurred self, and nothing would teach the generator texture."""
    smooth = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    return gain * (image - smooth)


class Discriminator(nn.Module):
    """image (B, 3, H, W), sketch (B, 1, H, W), label (B,)
    -> patch logits (B, P), logits of the whole (B,), features (B, C)."""

    def __init__(self, settings: CGANSettings):
        super().__init__()
        widths = settings.channels()
        self.first = nn.Conv2d(28, widths[0], 3, padding=1)
        self.halves = nn.ModuleList(Halve(a, b) for a, b in pairwise(widths))
        self.patch = nn.Conv2d(widths[-2], 1, 3, padding=1)
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.whole = nn.Linear(widths[-1], 1)
        self.label = nn.Embedding(len(settings.classes), widths[-1])
        self.apply(keep_scale)

    def forward(self, image: Tensor, sketch: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.first(F.pixel_unshuffle(torch.cat([image, detail(image), sketch], dim=1), 2))
        for half in self.halves[:-1]:
            x = half(x)
        patches = self.patch(F.leaky_relu(x, 0.2)).flatten(1)
        x = self.halves[-1](x)
        # How much the pictures of a batch differ: a generator that always paints the same is found out by it.
        spread = x.std(dim=0, unbiased=False).mean().expand(len(x), 1, *x.shape[2:])
        features = F.leaky_relu(self.last(torch.cat([x, spread], dim=1)), 0.2).mean(dim=(2, 3))
        whole = self.whole(features).squeeze(1) + (self.label(label) * features).sum(dim=1) / features.shape[1] ** 0.5
        return patches, whole, features


# ------------------------------------------------------------------------------------------------------------ losses


def d_loss(real: tuple[Tensor, Tensor], drawn: tuple[Tensor, Tensor]) -> Tensor:
    """Logistic: real logits up, drawn logits down; patches and whole count alike."""
    return sum(F.softplus(-r).mean() + F.softplus(d).mean() for r, d in zip(real, drawn, strict=True))


def g_loss(drawn: tuple[Tensor, Tensor]) -> Tensor:
    """Non-saturating: drawn logits up."""
    return sum(F.softplus(-d).mean() for d in drawn)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the squared gradient of the logits of real pictures: a flat discriminator near the data is a stable one."""
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * slope.square().sum(dim=(1, 2, 3)).mean()


def coarse_difference(drawn: Tensor, real: Tensor, side: int = 8) -> Tensor:
    """Mean absolute difference of pictures shrunk to `side` pixels: the layout of colours, not the texture."""
    return (F.adaptive_avg_pool2d(drawn, side) - F.adaptive_avg_pool2d(real, side)).abs().mean()


# ---------------------------------------------------------------------------------------------------------- training


class CGAN(Method):
    """The two networks and how they are updated in turn."""

    averaged = ("generator",)

    def __init__(self, settings: CGANSettings, preview: dict[str, Tensor] | None = None):
        """`preview`: sketches, labels and noises that are drawn with every checkpoint."""
        self.s, self.preview = settings, preview
        self.settings = asdict(settings) | {"classes": list(settings.classes)}
        self.networks = {"generator": Generator(settings), "discriminator": Discriminator(settings)}
        # Beta1 0: momentum makes two networks that chase one another swing (Gulrajani et al. 2017).
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.99))
            for (name, network), rate in zip(self.networks.items(), (settings.rate, 2 * settings.rate), strict=True)
        }

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        noise = torch.randn(len(batch["labels"]), self.s.noise).to(batch["labels"].device)
        drawn = self.networks["generator"](batch["sketches"], batch["labels"], noise)
        told = self.update_d(batch, drawn.detach(), number, backward)
        return told | self.update_g(batch, drawn, backward)

    def judge(self, images: Tensor, batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Logits and features of pictures, seen through augmentation."""
        images, sketches = augment(images, batch["sketches"], self.s.colour, self.s.shift)
        patches, whole, features = self.networks["discriminator"](images, sketches, batch["labels"])
        return (patches, whole), features

    def update_d(
        self, batch: Batch, drawn: Tensor, number: int, backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        real = batch["images"].requires_grad_(number % self.s.penalty_every == 0)
        on_real, features = self.judge(real, batch)
        on_drawn, _ = self.judge(drawn, batch)
        loss = d_loss(on_real, on_drawn)
        told = {"d": loss, "on_real": on_real[1].mean(), "on_drawn": on_drawn[1].mean()}
        if real.requires_grad:
            # Applied seldom and weighted up in turn: the same pull for less work (Karras et al. 2020).
            slope = r1_penalty(on_real[1] + on_real[0].mean(dim=1), real)
            loss = loss + self.s.penalty * self.s.penalty_every * slope
        self._apply("discriminator", loss, backward)
        self.real_features = features.detach().mean(dim=0)
        return told

    def update_g(self, batch: Batch, drawn: Tensor, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        on_drawn, features = self.judge(drawn, batch)
        rebuilt = coarse_difference(drawn, batch["images"].detach())
        matched = (features.mean(dim=0) - self.real_features).abs().mean()
        loss = g_loss(on_drawn) + self.s.rebuild * rebuilt + self.s.matching * matched
        self._apply("generator", loss, backward)
        return {"g": g_loss(on_drawn), "rebuilt": rebuilt, "matched": matched}

    def _apply(self, name: str, loss: Tensor, backward: Callable[[Tensor], None]) -> None:
        self.optimisers[name].zero_grad(set_to_none=True)
        backward(loss)
        self.optimisers[name].step()

    @torch.no_grad()
    def show(self, averages: dict[str, nn.Module], folder: Path, number: int) -> None:
        """`grid-<step>.png`: the preview, drawn by the averaged generator."""
        if self.preview is not None:
            torch.manual_seed(0)  # the grain too is the same in every grid
            generator = averages["generator"]
            device = next(generator.parameters()).device
            images = generator(*(self.preview[k].to(device) for k in ("sketches", "labels", "noises")))
            save_image(
                images,
                folder / f"grid-{number:06d}.png",
                nrow=self.preview["columns"],
                value_range=(-1, 1),
                normalize=True,
            )


def balanced_batches(store: Store, batch: int, seed: int, split: str = "train") -> Callable[[int, int], Batch]:
    """`draw(step, process)` for the loop: every class equally likely, within it every picture; random by the step."""
    rows = store.rows(split, needs=["sketch", "label"])
    by_class = [rows[store.labels[rows] == label] for label in range(len(store.classes))]
    by_class = [members for members in by_class if len(members)]

    def draw(step: int, process: int) -> Batch:
        rng = np.random.default_rng([seed, step, process])
        chosen = [by_class[k][rng.integers(len(by_class[k]))] for k in rng.integers(len(by_class), size=batch)]
        return to_tensors(store.batch(np.array(chosen), ("images", "sketches", "labels")))

    return draw


def train_cgan(store: Store, settings: CGANSettings, out: str | Path, run: Run) -> dict[str, list[float]]:
    """Train on the store's training split; checkpoint, history and grids go to `out`. Returns the history."""
    torch.manual_seed(run.seed)
    method = CGAN(settings, preview_of(store, settings, run.seed))
    return train(method, balanced_batches(store, run.batch, run.seed), out, run)


def load_cgan(path: str | Path) -> tuple[Generator, CGANSettings]:
    """The averaged generator of a checkpoint, ready to draw, and its settings."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    settings = CGANSettings(**saved["settings"] | {"classes": tuple(saved["settings"]["classes"])})
    generator = Generator(settings)
    generator.load_state_dict(saved["averages"]["generator"])
    return generator.eval().requires_grad_(False), settings


def preview_of(store: Store, settings: CGANSettings, seed: int, sketches: int = 4) -> dict[str, Tensor]:
    """Sketches of the val split (rows) under every label (columns), and the same sketch under two more noises."""
    rows = np.random.default_rng(seed).permutation(store.rows("val", needs=["sketch", "label"]))[:sketches]
    batch = to_tensors(store.batch(rows, ("sketches", "labels")))
    classes = len(settings.classes)
    noise = torch.randn(3, settings.noise, generator=torch.Generator().manual_seed(seed))
    labels = [torch.cat([torch.arange(classes), label.repeat(2)]) for label in batch["labels"]]
    which = torch.tensor([0] * classes + [1, 2]).repeat(len(rows))
    columns = classes + 2
    return {
        "sketches": batch["sketches"].repeat_interleave(columns, dim=0),
        "labels": torch.cat(labels),
        "noises": noise[which],
        "columns": columns,
    }
