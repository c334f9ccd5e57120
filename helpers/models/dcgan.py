"""Label + noise -> image: a conditional DCGAN (Radford et al. 2016) by today's recipe for small data.

What keeps it stable on a few thousand pictures: a discriminator that sees everything through the same random changes
(Zhao et al. 2020), R1, averaged weights, classes drawn equally often, projection of the label. Without more it painted
one picture per class whatever the noise (HAM10000, 8,000 pictures). So for half of each batch an encoder reads the
noise off a photograph, which then has to come out again in tone and layout (VAE/GAN, Larsen et al. 2016). The
discriminator is the CGAN's before an empty sheet of paper.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import save_image

from helpers.config import shown
from helpers.data.files import DataError
from helpers.data.store import Part, Store, labelled_batches
from helpers.models.cgan import CGAN, PENALTIES, as_images
from helpers.models.networks import COARSEST, Noisy, Paint, conv
from helpers.models.released import read_checkpoint
from helpers.models.training import Batch, Run, best_device, train


@dataclass(frozen=True)
class DCGANSettings:
    """Everything that shapes the networks or a step; `width` as in `CGANSettings`."""

    size: int
    classes: tuple[str, ...]
    width: int = 32
    noise: int = 32
    rate: float = 2e-4  # of the generator; the discriminator learns twice as fast (Heusel et al. 2017)
    penalty: float = 0.1  # weight of R1 per picture
    penalty_every: int = 8  # steps
    adversary: float = 1.0  # weight of what the discriminator says
    rebuild: float = 10.0  # weight of the difference in tone and layout to a photograph whose noise is known
    texture: float = 1.0  # weight of the difference of its texture
    prior: float = 0.1  # weight of what keeps the noises of photographs normally distributed
    matching: float = 2.0  # weight of the difference of mean discriminator features
    colour: float = 0.1  # strength of the augmentation, see `augment`
    shift: float = 0.1
    turned: bool = False  # pictures come in all eight positions
    projected: bool = False  # the discriminator also looks through a pretrained network: three more kinds of logits

    def __post_init__(self):
        if self.size not in PENALTIES:
            raise ValueError(f"size {self.size} is not one of {', '.join(map(str, PENALTIES))}")

    def channels(self) -> list[int]:
        """Channels at half the resolution, at a quarter, ... down to `COARSEST` pixels."""
        halvings = (self.size // 2 // COARSEST).bit_length() - 1
        return [self.width * min(2**k, 8) for k in range(halvings + 1)]

    def generator(self) -> "NoiseGenerator":
        return NoiseGenerator(self.channels(), len(self.classes), self.noise)


class NoiseGenerator(Noisy):
    """label (B,), noise (B, Z) -> image (B, 3, H, W) in [-1, 1]. Noise is unfolded to a coarse picture, which is
    painted ever finer; noise and label style it at every scale."""

    def __init__(self, widths: list[int], classes: int, noise: int, style: int = 128):
        super().__init__(noise)
        self.size = COARSEST * 2 ** len(widths)
        self.label = nn.Embedding(classes, 64)
        self.style = nn.Sequential(
            nn.Linear(64 + noise, style), nn.LeakyReLU(0.2), nn.Linear(style, style), nn.LeakyReLU(0.2)
        )
        self.first = nn.Linear(64 + noise, widths[-1] * COARSEST**2)
        self.chance = nn.Parameter(torch.ones(widths[-1], 1, 1))
        self.turn = Paint(widths[-1], style)
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(list(pairwise(widths))))
        self.up = nn.ModuleList(Paint(a, style) for a in widths[-2::-1])
        self.paint = conv(widths[0], 12, 3)
        with torch.no_grad():  # all four pixels of a block begin alike, else a screen pattern has to be unlearnt
            self.paint.weight.copy_(self.paint.weight[::4].repeat_interleave(4, dim=0))
            self.paint.bias.zero_()

    def forward(self, label: Tensor, noise: Tensor) -> Tensor:
        given = torch.cat([self.label(label), self.as_known(noise)], dim=1)
        style = self.style(given)
        x = self.first(given).unflatten(1, (-1, COARSEST, COARSEST))
        # A hair lies anywhere: what no noise number tells needs a coarse chance, or it would lie in one place for ever.
        x = self.turn(x + self.chance * torch.randn_like(x), style)
        for narrow, up in zip(self.narrow, self.up, strict=True):
            x = up(F.interpolate(narrow(x), scale_factor=2, mode="bilinear", align_corners=False), style)
        image = F.pixel_shuffle(self.paint(x), 2)
        return image if self.training else image.clamp(-1, 1)


class DCGAN(CGAN):
    """The same two networks in turn, before an empty sheet of paper."""

    defaults: ClassVar[dict] = {f.name: f.default for f in fields(DCGANSettings)}

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        return super().step(batch | {"sketches": torch.zeros_like(batch["images"][:, :1])}, number, backward)

    def paint(self, batch: Batch, noise: Tensor) -> Tensor:
        return self.networks["generator"](batch["labels"], noise)

    def difference(self, drawn: Tensor, real: Tensor) -> Tensor:
        """In tone and layout: without a sketch no noise tells where every line was."""
        return (F.avg_pool2d(drawn, 4) - F.avg_pool2d(real, 4)).abs().mean()

    @torch.no_grad()
    def show(self, averages: dict[str, nn.Module], folder: Path, number: int) -> None:
        """`grid-<step>.png`: six noises (columns) under every label (rows), drawn by the averaged generator."""
        generator = averages["generator"]
        torch.manual_seed(0)  # noise and grain are the same in every grid
        noise = torch.randn(6, self.s.noise).repeat(len(self.s.classes), 1)
        labels = torch.arange(len(self.s.classes)).repeat_interleave(6)
        device = next(generator.parameters()).device
        images = generator(labels.to(device), noise.to(device))
        save_image(images, folder / f"grid-{number:06d}.png", nrow=6, value_range=(-1, 1), normalize=True)


def train_dcgan(
    store: Store, settings: DCGANSettings, out: str | Path, run: Run, rows: np.ndarray | None = None
) -> dict[str, list[float]]:
    """Train on the store's training split, or on these `rows` of any, every class equally often; checkpoint, history
    and grids go to `out`. Returns the history. Raises `ValueError` when the settings are not those of the store,
    `DataError` when nothing in it has a label."""
    if (settings.size, settings.classes) != (store.settings.size, tuple(store.classes)):
        raise ValueError(f"the store has {store.settings.size} px and {store.classes}, the settings say otherwise")
    rows = store.rows("train", needs=["label"]) if rows is None else rows
    if not len(rows):
        raise DataError(f"{store.name} has no training picture with a label: there is nothing to learn from")
    torch.manual_seed(run.seed)
    draw = labelled_batches([Part(store.images, rows, labels=store.labels)], run.batch, run.seed)
    method = DCGAN(settings)
    method.kept["trained_on"] = sorted(store.table["image_id"].iloc[rows])
    return train(method, draw, out, run)


def load_dcgan(path: str | Path) -> tuple[NoiseGenerator, DCGANSettings]:
    """The averaged generator of a checkpoint, ready to draw, and its settings. Raises `DataError` for another file."""
    try:
        saved = read_checkpoint(path)
        settings = DCGANSettings(**saved["settings"] | {"classes": tuple(saved["settings"]["classes"])})
        generator = settings.generator()
        generator.load_state_dict(saved["averages"]["generator"])
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{shown(path)} is not a checkpoint of a DCGAN of this version ({error})"[:400]) from error
    return generator.to(best_device()).eval().requires_grad_(False), settings


@torch.no_grad()
def draw_dcgan(
    generator: NoiseGenerator,
    labels: Sequence[int] | np.ndarray,
    seed: int = 0,
    noise: Tensor | None = None,
    batch: int = 32,
) -> np.ndarray:
    """Labels `(N,)` -> images `uint8 (N, H, W, 3)`, the same for the same seed. Each gets its own noise and grain; with
    `noise (N, Z)` given, all have the seed's grain, so that pictures differ in what was asked for and in nothing else.
    Raises `ValueError` when there are not as many noises as labels."""
    if noise is not None and len(noise) != len(labels):
        raise ValueError(f"{len(labels)} labels, {len(noise)} noises")
    device, images, batch = next(generator.parameters()).device, [], batch if noise is None else 1
    labels = torch.as_tensor(np.asarray(labels, np.int64))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        noises = torch.randn(len(labels), generator.noise) if noise is None else noise
        for start in range(0, len(labels), batch):
            if noise is not None:
                torch.manual_seed(seed)
            part = slice(start, start + batch)
            images.append(as_images(generator(labels[part].to(device), noises[part].to(device))))
    return np.concatenate(images)


def between(one: Tensor, other: Tensor, steps: int) -> Tensor:
    """`steps` noises (steps, Z) from `one` to `other`, both (Z,), along the sphere: half way on a straight line a noise
    would be shorter than any the generator has seen (White 2016)."""
    where = torch.linspace(0, 1, steps)[:, None]
    angle = torch.arccos(torch.clamp(F.cosine_similarity(one, other, dim=0), -0.9999, 0.9999))
    return (torch.sin((1 - where) * angle) * one + torch.sin(where * angle) * other) / torch.sin(angle)
