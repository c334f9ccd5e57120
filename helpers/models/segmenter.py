"""Image -> mask: U-Net, DeepLabV3+ and others of segmentation-models-pytorch, with any of its encoders.

Cross-entropy judges pixels, Jaccard the region, which is what the challenge scores. What is used afterwards is the
average of the weights, from the moment when it did best on the val split.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from helpers.config import display_path
from helpers.data.files import DataError
from helpers.data.sketches import fill
from helpers.data.store import ImageSource, Store, StoreConfig, pair_batches, resize, to_tensors
from helpers.models.augment import augment
from helpers.models.checkpoint import read_checkpoint
from helpers.models.classifier import IMAGENET_MEAN, IMAGENET_STD, download_timeout, imagenet_weights
from helpers.models.trainer import Backward, Batch, TrainConfig, TrainTask, best_device, set_warmup_cosine_lr, train

# Networks of the library, and what of them `width` decides; at 256 they are as the library has them.
ARCHS = {
    "Unet": lambda width: {"decoder_channels": [width >> k for k in range(5)]},
    "UnetPlusPlus": lambda width: {"decoder_channels": [width >> k for k in range(5)]},
    "MAnet": lambda width: {"decoder_channels": [width >> k for k in range(5)]},
    "FPN": lambda width: {"decoder_pyramid_channels": width, "decoder_segmentation_channels": width // 2},
    "DeepLabV3": lambda width: {"decoder_channels": width},
    "DeepLabV3Plus": lambda width: {"decoder_channels": width},
}
SIZE_MULTIPLE = 32  # sides are multiples of this: encoders halve five times


@dataclass(frozen=True)
class SegmenterConfig:
    """Everything that shapes the network or a step."""

    size: int  # pixels of a side; the whole image is squeezed into it
    arch: str = "Unet"  # one of `NETWORKS`
    encoder_name: str = "mobilenet_v2"  # any name the library knows
    decoder_channels: int = 128  # channels of the decoder where it is widest
    pretrained: bool = True  # start the encoder from ImageNet where its weights can be had
    lr: float = 1e-3  # at its highest, see `warm_then_cosine`
    lambda_jaccard: float = 1.0  # weight of the Jaccard loss beside cross-entropy
    color_jitter: float = 0.2  # strength of the augmentation, see `augment`; 0 switches each off
    translate: float = 0.1
    scale: float = 0.2
    tta: bool = True  # average over mirror images when used

    def __post_init__(self):
        if self.arch not in ARCHS:
            raise ValueError(f"network {self.arch!r} is not one of {', '.join(ARCHS)}")
        if self.decoder_channels < 32:
            raise ValueError(f"width {self.decoder_channels} is below 32")
        if self.size % SIZE_MULTIPLE or self.size < 64:
            raise ValueError(f"size {self.size} is not a multiple of {SIZE_MULTIPLE} from 64 up")


def baseline_config(config: SegmenterConfig) -> SegmenterConfig:
    """The usual recipe to compare with: the library's own width, random start, cross-entropy alone, no augmentation, no
    mirror images. (Its `Run` should not average either: `ema_nimg=1`.)"""
    changes = {
        "pretrained": False,
        "lambda_jaccard": 0.0,
        "color_jitter": 0.0,
        "translate": 0.0,
        "scale": 0.0,
        "tta": False,
    }
    return replace(config, decoder_channels=256, **changes)


class Segmenter(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> logits (B, 1, H, W) of being lesion. `start` says where the encoder began.

    Raises `ValueError` for an encoder that the library does not know.
    """

    def __init__(self, config: SegmenterConfig, pretrained: bool = True):
        super().__init__()
        self.size, self.tta = config.size, config.tta
        build, decoder = getattr(smp, config.arch), ARCHS[config.arch](config.decoder_channels)
        try:
            self.network = build(config.encoder_name, encoder_weights=None, in_channels=3, classes=1, **decoder)
        except KeyError as error:
            raise ValueError(f"there is no encoder {config.encoder_name!r} ({str(error)[:200]} ...)") from error
        self.init = "random init"
        if pretrained and config.pretrained and load_encoder_weights(self.network.encoder, config.encoder_name):
            self.init = "ImageNet"
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(((image + 1) / 2 - self.mean) / self.std)


def load_encoder_weights(encoder: nn.Module, name: str) -> bool:
    """Load ImageNet weights into an encoder: torchvision's where it has such a network, else the library's own.
    False where they cannot be had."""
    if name in torchvision.models.list_models(module=torchvision.models):
        if (weights := imagenet_weights(name)) is not None:
            encoder.load_state_dict(weights)
        return weights is not None
    try:
        with download_timeout():
            encoder.load_state_dict(smp.encoders.get_encoder(name, weights="imagenet").state_dict())
    except Exception:  # no connection, which its client says in many ways, or no weights of that name
        return False
    return True


# ------------------------------------------------------------------------------------------------------------ losses


def jaccard_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the overlap, soft and image by image, as the challenge scores (Rahman and Wang 2016).

    logits, masks in [0, 1]: (B, 1, H, W)
    """
    pred = logits.sigmoid()
    intersection = (pred * masks).sum(dim=(1, 2, 3))
    union = (pred + masks - pred * masks).sum(dim=(1, 2, 3))
    return (1 - (intersection + 1) / (union + 1)).mean()


def jaccard(pred: Tensor, masks: Tensor) -> Tensor:
    """Overlap of regions `(B, 1, H, W)` in {0, 1}, per image `(B,)`; 1 where both are empty."""
    intersection, union = (pred * masks).sum(dim=(1, 2, 3)), torch.maximum(pred, masks).sum(dim=(1, 2, 3))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


# ---------------------------------------------------------------------------------------------------------- training


class SegmenterTask(TrainTask):
    """Cross-entropy and overlap on augmented pairs; val chooses the weights."""

    ema_names = ("segmenter",)

    def __init__(
        self, config: SegmenterConfig, steps: int, val: dict[str, np.ndarray] | None = None, patience: int = 8
    ):
        """`val`: images and masks; training stops once `wait` checks in a row did not beat the best on them. Without
        them it goes to its end, and its last average counts."""
        self.config, self.steps = config, steps
        self.val, self.patience = val, patience
        self.networks = {"segmenter": Segmenter(config)}
        weights = self.networks["segmenter"].parameters()
        self.optimizers = {"segmenter": torch.optim.AdamW(weights, config.lr, weight_decay=1e-2, fused=True)}
        self.extra_state = {"checked_at": [], "val_jaccard": [], "best_state_dict": {}}
        self.extra_state |= {"init_from": self.networks["segmenter"].init, "trained_on": []}

    def init_from(self, checkpoint: str | Path) -> None:
        """Take the weights of another training. Raises `ValueError` when its network is another."""
        segmenter, config = load_segmenter(checkpoint)
        for name in ("arch", "encoder_name", "decoder_channels"):
            if getattr(config, name) != getattr(self.config, name):
                here, there = getattr(self.config, name), getattr(config, name)
                raise ValueError(f"{display_path(checkpoint)} has {name} {there!r}, the settings say {here!r}")
        self.networks["segmenter"].load_state_dict(segmenter.state_dict())
        self.extra_state |= {"init_from": display_path(checkpoint), "trained_on": segmenter.trained_on}

    def config_dict(self) -> dict:
        """The config with the number of steps, which the learning rate depends on."""
        return super().config_dict() | {"steps": self.steps}

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        set_warmup_cosine_lr(self.optimizers["segmenter"], self.config.lr, step, self.steps)
        images, masks = augment(
            batch["images"], batch["masks"], self.config.color_jitter, self.config.translate, self.config.scale
        )
        logits = self.networks["segmenter"](images)
        losses = {"bce": F.binary_cross_entropy_with_logits(logits, masks), "jaccard": jaccard_loss(logits, masks)}
        self.optimizers["segmenter"].zero_grad(set_to_none=True)
        backward(losses["bce"] + self.config.lambda_jaccard * losses["jaccard"])
        self.optimizers["segmenter"].step()
        return losses

    def validate(self, ema_models: dict[str, nn.Module], step: int) -> bool:
        """Score the average on val and keep it if it is the best so far; True when it has not been for too long."""
        if self.val is None:
            self.extra_state["best_state_dict"] = ema_models["segmenter"].state_dict()
            return False
        score = val_jaccard(ema_models["segmenter"], self.val)
        scores = self.extra_state["val_jaccard"]
        if score > max(scores, default=-1):
            weights = ema_models["segmenter"].state_dict()
            self.extra_state["best_state_dict"] = {name: value.cpu().clone() for name, value in weights.items()}
        self.extra_state["checked_at"].append(step)
        scores.append(score)
        return len(scores) - 1 - int(np.argmax(scores)) >= self.patience


@torch.no_grad()
def val_jaccard(segmenter: Segmenter, val: dict[str, np.ndarray], batch_size: int = 16) -> float:
    """Mean Jaccard over images and masks as stored (at the network's size)."""
    device, found = next(segmenter.parameters()).device, []
    for start in range(0, len(val["images"]), batch_size):
        tensors = to_tensors({name: val[name][start : start + batch_size] for name in ("images", "masks")}, device)
        found.append(jaccard((probabilities(segmenter, tensors["images"]) > 0.5).float(), tensors["masks"]))
    return float(torch.cat(found).mean())


def train_segmenter(
    store: Store,
    config: SegmenterConfig,
    out: str | Path,
    train_config: TrainConfig,
    patience: int = 8,
    init_from: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train on the store's training split; returns the history, with `checked_at` and `val_jaccard`. Stops early once
    `wait` checks (one every `run.save_every` steps) brought nothing better on val. `start`: a checkpoint, of other data
    say, whose weights are the first ones.

    Raises `ValueError` when settings and store differ in size, `DataError` when the store has no masks to learn from or
    the start was trained on pictures that are held out here.
    """
    if config.size != store.config.size:
        raise ValueError(f"the store has {store.config.size} px, the settings say {config.size}")
    rows = store.rows("train", needs=["mask"])
    if not len(rows):
        raise DataError(f"{store.name} has no training picture with a mask: there is nothing to learn from")
    torch.manual_seed(train_config.seed)
    checked = np.random.default_rng(0).permutation(store.rows("val", needs=["mask"]))[:500]
    val = store.batch(np.sort(checked), ("images", "masks")) if len(checked) else None
    task = SegmenterTask(config, train_config.steps, val, patience)
    if init_from:
        task.init_from(init_from)
        held_out = store.table["image_id"][store.table["split"] != "train"]
        if known := set(held_out) & set(task.extra_state["trained_on"]):
            raise DataError(
                f"{display_path(init_from)} was trained on {len(known)} pictures that are held out in {store.name}"
            )
    task.extra_state["trained_on"] = sorted({*task.extra_state["trained_on"], *store.table["image_id"].iloc[rows]})
    print(f"{config.encoder_name} starts from: {task.extra_state['start']}")
    history = train(
        task,
        pair_batches([ImageSource(store.images, rows, masks=store.masks)], train_config.batch_size, train_config.seed),
        out,
        train_config,
    )
    return history | {name: task.extra_state[name] for name in ("checked_at", "val_jaccard")}


def fit_segmenter(
    sources: Sequence[ImageSource], config: SegmenterConfig, out: str | Path, train_config: TrainConfig
) -> dict[str, list[float]]:
    """Train on `parts`, each equally likely, for exactly `run.steps`: no val split has a say. Returns the history."""
    torch.manual_seed(train_config.seed)
    return train(
        SegmenterTask(config, train_config.steps),
        pair_batches(sources, train_config.batch_size, train_config.seed),
        out,
        train_config,
    )


# ------------------------------------------------------------------------------------------------------------- using


def load_segmenter(path: str | Path) -> tuple[Segmenter, SegmenterConfig]:
    """The segmenter of a checkpoint as it did best on val, and its settings. Raises `DataError` for another file."""
    try:
        saved = read_checkpoint(path)
        config = SegmenterConfig(**{k: v for k, v in saved["config"].items() if k != "steps"})
        segmenter = Segmenter(config, pretrained=False)
        segmenter.load_state_dict(saved["extra_state"]["best_state_dict"])
        segmenter.init, segmenter.trained_on = saved["extra_state"]["init_from"], saved["extra_state"]["trained_on"]
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{display_path(path)} is not a checkpoint of a segmenter of this version ({error})"[:400]
        ) from error
    segmenter = segmenter.to(best_device(), memory_format=torch.channels_last)  # a fifth faster, on processors too
    return segmenter.eval().requires_grad_(False), config


@torch.no_grad()
def probabilities(segmenter: Segmenter, images: Tensor) -> Tensor:
    """images (B, 3, H, W) in [-1, 1] -> (B, 1, H, W) in [0, 1]: mean over the mirror images if the settings say so."""
    images = images.to(memory_format=torch.channels_last)
    views = [(), (2,), (3,), (2, 3)] if segmenter.tta else [()]
    return sum(segmenter(images.flip(view)).sigmoid().flip(view) for view in views) / len(views)


def segment(
    segmenter: Segmenter,
    images: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, int]] | None = None,
    batch_size: int = 16,
) -> list[np.ndarray]:
    """Images `uint8 (H, W, 3)` of any sizes -> a mask `uint8` in {0, 1} of each, `(H, W)` or as `shapes` say; empty for
    an image of one colour."""
    device, store_config, masks = next(segmenter.parameters()).device, StoreConfig(segmenter.size, crop="none"), []
    shapes = [image.shape[:2] for image in images] if shapes is None else shapes
    for start in range(0, len(images), batch_size):
        resized = np.stack([resize(image, store_config) for image in images[start : start + batch_size]])
        probs = probabilities(segmenter, to_tensors({"images": resized}, device)["images"])[:, 0].cpu().numpy()
        for image, prob, (height, width) in zip(resized, probs, shapes[start : start + batch_size], strict=True):
            prob = np.zeros_like(prob) if is_uniform(image) else prob
            mask = cv2.resize(prob, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
            masks.append(clean_mask(mask.astype(np.uint8)))
    return masks


def clean_mask(mask: np.ndarray, min_area: float = 0.2) -> np.ndarray:
    """A mask `(H, W)` in {0, 1} without holes, and without pieces smaller than `least` of the largest: a lesion is
    seldom in several pieces, shadows and rulers are."""
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count > 2:
        mask = np.isin(components, 1 + np.flatnonzero(areas >= min_area * areas.max())).astype(np.uint8)
    return fill(mask)


def is_uniform(image: np.ndarray, tolerance: int = 8) -> bool:
    """Whether an image `uint8 (H, W, 3)` shows nothing; compression leaves an empty picture some levels apart."""
    return bool(np.ptp(image, axis=(0, 1)).max() < tolerance)
