"""Features of skin learned without labels by SimCLR (Chen et al., arXiv 2002.05709): the extractor `skin`.

Two random views of an image (crop, rotation, color, blur) must have similar features, those of different images not.
Neither ImageNet nor a diagnosis takes part, and nothing is shared with a discriminator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.data.batches import ImageSource, image_batches
from helpers.data.files import DataError
from helpers.data.store import Store, fit_config
from helpers.models.augment import jitter_color, random_blur, random_crop, random_d4_translate
from helpers.models.checkpoint import read_network, training_data
from helpers.models.checks import MAX_CHANNELS, MAX_SIZE, check_settings
from helpers.models.early_stopping import ValidatedTask
from helpers.models.trainer import Backward, Batch, TrainConfig, set_warmup_cosine_lr, train

PROJECTION = 128  # dimensions in which views are compared
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class SkinConfig:
    """Settings of the network and of one step. Raises `ValueError` for values out of range."""

    size: int  # pixels per side
    base_channels: int = 32  # of the first of four stages; each has twice as many as the one before
    temperature: float = 0.2  # of the contrastive loss
    lr: float = 1e-3  # peak, see `set_warmup_cosine_lr`
    crop: float = 0.5  # smallest side of a view, as a fraction of the image
    color_jitter: float = 0.3  # see `jitter_color`
    blur: float = 0.3  # probability of a blurred view

    def __post_init__(self):
        check_settings(self, size=(32, MAX_SIZE), base_channels=(1, MAX_CHANNELS // 8))
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        for name in ("crop", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {getattr(self, name)}")


class ResidualBlock(nn.Module):
    """x (B, C, H, W) -> (B, D, H / stride, W / stride) (He et al., arXiv 1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))  # (B, D, H / stride, W / stride)
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class SkinEncoder(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> features (B, 15 C), C = `base_channels`: the averages of four stages of C, 2C,
    4C and 8C channels, a convolution and three residual blocks. The first ones describe texture, which the last one
    may ignore."""

    def __init__(self, config: SkinConfig):
        super().__init__()
        channels = [config.base_channels * 2**k for k in range(4)]
        self.num_features = sum(channels)
        stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        self.stages = nn.ModuleList([stem, *(ResidualBlock(a, b, stride=2) for a, b in pairwise(channels))])

    def forward(self, image: Tensor) -> Tensor:
        x, pooled = image, []
        for stage in self.stages:
            x = stage(x)  # (B, C, H / 2, W / 2), (B, 2C, H / 4, W / 4), ...
            pooled.append(x.mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1)  # (B, 15 C)


def projection_head(num_features: int) -> nn.Sequential:
    """features (B, D) -> (B, `PROJECTION`). Only the loss uses it: it removes what the views do not share."""
    return nn.Sequential(
        nn.Linear(num_features, num_features, bias=False),
        nn.BatchNorm1d(num_features),
        nn.ReLU(),
        nn.Linear(num_features, PROJECTION),
    )


def random_view(images: Tensor, config: SkinConfig) -> Tensor:
    """Images (B, 3, S, S) after a random crop, one of the eight rotations and flips, color jitter and blur, each
    sampled per image. A lesion stays a lesion of its kind."""
    images = random_d4_translate(random_crop(images, config.crop), translate=0)
    return random_blur(jitter_color(images, config.color_jitter), config.blur)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalized temperature-scaled cross-entropy of projections `z1`, `z2` (B, D) of two views: each row must find the
    other view of its image among the 2B - 1 other rows, by cosine similarity."""
    z = F.normalize(torch.cat([z1, z2]).float(), dim=1)  # (2B, D)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)  # (2B, 2B)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z1)))


class SkinTask(ValidatedTask):
    """SimCLR: encoder and projection head; keeps the EMA encoder. Each process contrasts its own images."""

    ema_names = ("encoder",)
    score_name = "val_score"  # never set: a choice on val would need labels

    def __init__(self, config: SkinConfig, steps: int):
        super().__init__(config, steps, val=None, network=SkinEncoder(config))
        self.networks["head"] = projection_head(self.networks["encoder"].num_features)
        params = [p for network in self.networks.values() for p in network.parameters()]
        self.optimizers = {"simclr": torch.optim.AdamW(params, config.lr, weight_decay=WEIGHT_DECAY, fused=True)}

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        """One step on images (B, 3, S, S); returns the `loss`."""
        set_warmup_cosine_lr(self.optimizers["simclr"], self.config.lr, self.progress)
        views = torch.cat([random_view(batch["images"], self.config) for _ in range(2)])  # (2B, 3, S, S)
        projections = self.networks["head"](self.networks["encoder"](views))
        loss = nt_xent(*projections.chunk(2), self.config.temperature)
        self._optimizer_step("simclr", loss, backward)
        return {"loss": loss}


def train_skin(
    stores: Sequence[Store], config: SkinConfig, out: str | Path, train_config: TrainConfig
) -> dict[str, list[float]]:
    """Train on the training images of all stores; checkpoint and history go to `out`. Returns the history.

    Images whose lesion is held out in another store are left out. Raises `ValueError` if the config does not fit a
    store or for a batch of one image, `DataError` with fewer than two images.
    """
    if train_config.batch_size < 2:
        raise ValueError(f"batch_size must be at least 2 to contrast images, got {train_config.batch_size}")
    for store in stores:
        fit_config(config, store)
    torch.manual_seed(train_config.seed)
    rows, task = training_rows(stores), SkinTask(config, train_config.steps)
    if (count := sum(map(len, rows))) < 2:
        raise DataError(f"{stores[0].name} needs at least 2 training images, got {count}")
    fingerprints = []
    for store, chosen in zip(stores, rows, strict=True):
        task.extra_state |= training_data(store, chosen, task.extra_state)
        fingerprints.append(task.extra_state["data"])
    task.extra_state["data"] = " ".join(fingerprints)
    sources = [ImageSource(store.images, chosen) for store, chosen in zip(stores, rows, strict=True)]
    return train(task, image_batches(sources, train_config.batch_size, train_config.seed), out, train_config)


def training_rows(stores: Sequence[Store]) -> list[np.ndarray]:
    """Rows (M,) of the training split of each store, without lesions that any store holds out for val or test."""
    held_out = set()
    for store in stores:
        held_out.update(*(store.identities[row] for split in ("val", "test") for row in store.rows(split)))
    return [np.setdiff1d(rows := store.rows("train"), store.rows_in(held_out, rows)) for store in stores]


def load_skin(path: str | Path) -> tuple[SkinEncoder, SkinConfig]:
    """The encoder of a checkpoint, in eval mode on the best device, and its config. Raises `DataError` if the file is
    not of `train skin`."""

    def build(saved: dict, config: SkinConfig) -> SkinEncoder:
        encoder = SkinEncoder(config)
        encoder.load_state_dict(saved["extra_state"]["best_state_dict"])
        encoder.trained_on = saved["extra_state"]["trained_on"]
        return encoder

    return read_network(path, "an encoder of `train skin`", SkinConfig, build)
