"""Class-conditional GAN without a sketch: label + latent z -> image. Named after Radford et al., arXiv 1511.06434, with
a recipe for small data.

Stable on a few thousand images by differentiable augmentation (Zhao et al., arXiv 2006.10738), R1, EMA, class-balanced
sampling and label projection. With these alone the generator collapsed to one image per class (HAM10000, 8,000 images).
Therefore, for half of each batch, an encoder predicts z from the real image, whose tone and layout the generator must
reconstruct (VAE-GAN: Larsen et al., arXiv 1512.09300). Reuses the CGAN's discriminator with a blank sketch.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.config import display_path
from helpers.data.batches import ImageSource, labeled_batches
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.models.checkpoint import read_checkpoint
from helpers.models.gan import CGAN, R1_GAMMA, save_grid, to_uint8
from helpers.models.networks import MIN_SIZE, Encoder, LatentStats, StyledConvBlock, conv
from helpers.models.trainer import Backward, Batch, TrainConfig, best_device, train


@dataclass(frozen=True)
class DCGANConfig:
    """Settings of the networks and of one step, as in `GANConfig`. Raises `ValueError` for a size that is not in
    `R1_GAMMA`."""

    size: int  # pixels per side
    classes: tuple[str, ...]
    base_channels: int = 32  # channels at half the resolution; doubled per halving, up to 8 times
    z_dim: int = 32
    lr: float = 2e-4  # of all networks, see `set_gan_lr`
    r1_gamma: float = 0.1
    d_reg_interval: int = 8  # steps between R1 penalties
    lambda_gan: float = 1.0
    lambda_l1: float = 10.0  # fake against the real image whose z was encoded, at 1/4 resolution
    l1_floor: float = 1.0  # 1: the weight of L1 stays the same during the run
    lambda_texture: float = 1.0
    lambda_kl: float = 0.1
    lambda_feat: float = 2.0  # feature matching (arXiv 1606.03498)
    color_jitter: float = 0.1  # augmentation strength, see `augment`
    translate: float = 0.1
    d4_augment: bool = False  # random 90-degree rotations and flips
    projected: bool = False  # adds four heads on pretrained features to the discriminator, see `projected.py`
    artifacts: ClassVar[bool] = False  # not conditioned on artifact flags
    num_artifacts: ClassVar[int] = 0
    code_channels: ClassVar[int] = 0

    def __post_init__(self):
        if self.size not in R1_GAMMA:
            raise ValueError(f"size must be one of {', '.join(map(str, R1_GAMMA))}, got {self.size}")

    def channels(self) -> list[int]:
        """Channels at 1/2, 1/4, ... of the size, down to `MIN_SIZE` pixels."""
        halvings = (self.size // 2 // MIN_SIZE).bit_length() - 1
        return [self.base_channels * min(2**k, 8) for k in range(halvings + 1)]

    def generator(self) -> "LatentGenerator":
        """A new generator."""
        return LatentGenerator(self.channels(), len(self.classes), self.z_dim)

    def encoder(self) -> Encoder:
        """A new encoder."""
        return Encoder(len(self.classes), self.z_dim)


class LatentGenerator(LatentStats):
    """label (B,), z (B, Z) -> image (B, 3, H, W) in [-1, 1]; H = W = `size`.

    Label and z are projected to an 8 x 8 map and modulate the block of every resolution. Training mode does not clamp.
    """

    def __init__(self, channels: list[int], num_classes: int, z_dim: int, w_dim: int = 128):
        super().__init__(z_dim)
        self.size = MIN_SIZE * 2 ** len(channels)
        self.class_embed = nn.Embedding(num_classes, 64)
        self.mapping = nn.Sequential(
            nn.Linear(64 + z_dim, w_dim), nn.LeakyReLU(0.2), nn.Linear(w_dim, w_dim), nn.LeakyReLU(0.2)
        )
        self.stem = nn.Linear(64 + z_dim, channels[-1] * MIN_SIZE**2)
        self.const_noise_strength = nn.Parameter(torch.ones(channels[-1], 1, 1))
        self.bottleneck = StyledConvBlock(channels[-1], w_dim)
        self.reduce = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(list(pairwise(channels))))
        self.up = nn.ModuleList(StyledConvBlock(a, w_dim) for a in channels[-2::-1])
        self.to_rgb = conv(channels[0], 12, 3)
        with torch.no_grad():  # ICNR init (Aitken et al., arXiv 1707.02937): avoids checkerboard artifacts
            self.to_rgb.weight.copy_(self.to_rgb.weight[::4].repeat_interleave(4, dim=0))
            self.to_rgb.bias.zero_()

    def forward(self, label: Tensor, z: Tensor) -> Tensor:
        embedding = torch.cat([self.class_embed(label), self.match_stats(z)], dim=1)  # (B, 64 + Z)
        w = self.mapping(embedding)  # (B, W_DIM)
        x = self.stem(embedding).unflatten(1, (-1, MIN_SIZE, MIN_SIZE))  # (B, C, 8, 8)
        # Per-pixel noise at the coarsest scale lets details that z does not encode (hair) change position.
        x = self.bottleneck(x + self.const_noise_strength * torch.randn_like(x), w)
        for reduce, up in zip(self.reduce, self.up, strict=True):
            x = F.interpolate(reduce(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = up(x, w)  # (B, C, 16, 16), and so on, to (B, C0, H/2, W/2)
        image = F.pixel_shuffle(self.to_rgb(x), 2)  # (B, 12, H/2, W/2) -> (B, 3, H, W)
        return image if self.training else image.clamp(-1, 1)


class DCGAN(CGAN):
    """The CGAN's updates with a generator that gets no sketch."""

    config: DCGANConfig

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        """Update D with blank sketches, then G and the encoder; see `CGAN.training_step`."""
        return super().training_step(batch | {"sketches": torch.zeros_like(batch["images"][:, :1])}, step, backward)

    def generate(self, batch: Batch, latents: Tensor) -> Tensor:
        """Fake images (B, 3, H, W) for the batch's labels and z (B, Z)."""
        return self.networks["generator"](batch["labels"], latents)

    @torch.no_grad()
    def on_checkpoint(self, ema_models: dict[str, nn.Module], folder: Path, step: int) -> None:
        """Save `grid-<step>.png`: every label (rows) with 6 z (columns) through the EMA generator."""
        generator = ema_models["generator"]
        torch.manual_seed(0)  # the same z and per-pixel noise in every grid
        z = torch.randn(6, self.config.z_dim).repeat(len(self.config.classes), 1)
        labels = torch.arange(len(self.config.classes)).repeat_interleave(6)
        device = next(generator.parameters()).device
        save_grid(generator(labels.to(device), z.to(device)), folder / f"grid-{step:06d}.png", columns=6)


def train_dcgan(
    store: Store, config: DCGANConfig, out: str | Path, train_config: TrainConfig, rows: np.ndarray | None = None
) -> dict[str, list[float]]:
    """Train on the store's training split, or on these `rows` of any split, every class equally often; checkpoint,
    history and grids go to `out`. Returns the history. Raises `ValueError` if the config does not fit the store,
    `DataError` if there are no training images."""
    if (config.size, config.classes) != (store.config.size, tuple(store.classes)):
        has = f"{store.config.size} px and {tuple(store.classes)}"
        raise ValueError(f"the store has {has}, the config {config.size} px and {config.classes}")
    rows = store.rows("train", needs=["label"]) if rows is None else rows
    if not len(rows):
        raise DataError(f"{store.name} needs at least one training image with a label, got none")
    torch.manual_seed(train_config.seed)
    source = ImageSource(store.images, rows, labels=store.labels)
    task = DCGAN(config)
    task.extra_state["trained_on"] = sorted(store.table["image_id"].iloc[rows])
    return train(task, labeled_batches([source], train_config.batch_size, train_config.seed), out, train_config)


def load_dcgan(path: str | Path) -> tuple[LatentGenerator, DCGANConfig]:
    """The EMA generator of a checkpoint, in eval mode on the best device, and its config. Raises `DataError` if the
    file is not a DCGAN's."""
    try:
        saved = read_checkpoint(path)
        config = DCGANConfig(**saved["config"] | {"classes": tuple(saved["config"]["classes"])})
        generator = config.generator()
        generator.load_state_dict(saved["ema_models"]["generator"])
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{display_path(path)} is not a checkpoint of a DCGAN of this version ({error})"[:400]
        ) from error
    return generator.to(best_device()).eval().requires_grad_(False), config


@torch.no_grad()
def sample_dcgan(
    generator: LatentGenerator,
    labels: Sequence[int] | np.ndarray,
    seed: int = 0,
    latent: Tensor | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Generate `uint8 (N, H, W, 3)` from `labels (N,)`. The same seed gives the same images.

    By default every image has its own z and per-pixel noise. With `latent (N, Z)` all images share the per-pixel noise
    of `seed`, so that they differ only in label and z. Raises `ValueError` if labels and latents differ in number.
    """
    if latent is not None and len(latent) != len(labels):
        raise ValueError(f"need one latent per label, got {len(labels)} labels, {len(latent)} latents")
    device, images, batch_size = next(generator.parameters()).device, [], batch_size if latent is None else 1
    labels = torch.as_tensor(np.asarray(labels, np.int64))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        latents = torch.randn(len(labels), generator.z_dim) if latent is None else latent
        for start in range(0, len(labels), batch_size):
            if latent is not None:
                torch.manual_seed(seed)
            rows = slice(start, start + batch_size)
            images.append(to_uint8(generator(labels[rows].to(device), latents[rows].to(device))))
    return np.concatenate(images)


def slerp(z0: Tensor, z1: Tensor, steps: int) -> Tensor:
    """Spherical interpolation (White, arXiv 1609.04468): `steps` latents (steps, Z) from `z0` to `z1`, both (Z,).

    Linear interpolation would pass through latents that are shorter than those of training.
    """
    t = torch.linspace(0, 1, steps)[:, None]
    angle = torch.arccos(torch.clamp(F.cosine_similarity(z0, z1, dim=0), -0.9999, 0.9999))
    return (torch.sin((1 - t) * angle) * z0 + torch.sin(t * angle) * z1) / torch.sin(angle)
