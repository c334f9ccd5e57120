"""Image -> mask: U-Net, DeepLabV3+ and others of segmentation-models-pytorch, with any of its encoders.

Cross-entropy judges pixels, Jaccard the region, which is what the challenge scores. What is used afterwards is the
average of the weights, from the moment when it did best on the val split.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from helpers.config import shown
from helpers.data.files import DataError
from helpers.data.sketches import filled
from helpers.data.store import Part, Store, StoreSettings, fit, pair_batches, to_tensors
from helpers.models.augment import augment
from helpers.models.classifier import DEVIATION, MEAN, imagenet_weights, patience
from helpers.models.released import read_checkpoint
from helpers.models.training import Batch, Method, Run, best_device, train, warm_then_cosine

# Networks of the library, and what of them `width` decides; at 256 they are as the library has them.
NETWORKS = {
    "Unet": lambda width: {"decoder_channels": [width >> k for k in range(5)]},
    "UnetPlusPlus": lambda width: {"decoder_channels": [width >> k for k in range(5)]},
    "MAnet": lambda width: {"decoder_channels": [width >> k for k in range(5)]},
    "FPN": lambda width: {"decoder_pyramid_channels": width, "decoder_segmentation_channels": width // 2},
    "DeepLabV3": lambda width: {"decoder_channels": width},
    "DeepLabV3Plus": lambda width: {"decoder_channels": width},
}
COARSEST = 32  # sides are multiples of this: encoders halve five times


@dataclass(frozen=True)
class SegmenterSettings:
    """Everything that shapes the network or a step."""

    size: int  # pixels of a side; the whole image is squeezed into it
    network: str = "Unet"  # one of `NETWORKS`
    encoder: str = "mobilenet_v2"  # any name the library knows
    width: int = 128  # channels of the decoder where it is widest
    pretrained: bool = True  # start the encoder from ImageNet where its weights can be had
    rate: float = 1e-3  # at its highest, see `warm_then_cosine`
    overlap: float = 1.0  # weight of the Jaccard loss beside cross-entropy
    colour: float = 0.2  # strength of the augmentation, see `augment`; 0 switches each off
    shift: float = 0.1
    zoom: float = 0.2
    flips: bool = True  # average over mirror images when used

    def __post_init__(self):
        if self.network not in NETWORKS:
            raise ValueError(f"network {self.network!r} is not one of {', '.join(NETWORKS)}")
        if self.width < 32:
            raise ValueError(f"width {self.width} is below 32")
        if self.size % COARSEST or self.size < 64:
            raise ValueError(f"size {self.size} is not a multiple of {COARSEST} from 64 up")


def plain(settings: SegmenterSettings) -> SegmenterSettings:
    """The usual recipe to compare with: the library's own width, random start, cross-entropy alone, no augmentation, no
    mirror images. (Its `Run` should not average either: `average_over=1`.)"""
    without = {"pretrained": False, "overlap": 0.0, "colour": 0.0, "shift": 0.0, "zoom": 0.0, "flips": False}
    return replace(settings, width=256, **without)


class Segmenter(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> logits (B, 1, H, W) of being lesion. `start` says where the encoder began.

    Raises `ValueError` for an encoder that the library does not know.
    """

    def __init__(self, settings: SegmenterSettings, pretrained: bool = True):
        super().__init__()
        self.size, self.flips = settings.size, settings.flips
        build, decoder = getattr(smp, settings.network), NETWORKS[settings.network](settings.width)
        try:
            self.network = build(settings.encoder, encoder_weights=None, in_channels=3, classes=1, **decoder)
        except KeyError as error:
            raise ValueError(f"there is no encoder {settings.encoder!r} ({str(error)[:200]} ...)") from error
        self.start = "random init"
        if pretrained and settings.pretrained and start_encoder(self.network.encoder, settings.encoder):
            self.start = "ImageNet"
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(((image + 1) / 2 - self.mean) / self.deviation)


def start_encoder(encoder: nn.Module, name: str) -> bool:
    """Load ImageNet weights into an encoder: torchvision's where it has such a network, else the library's own.
    False where they cannot be had."""
    if name in torchvision.models.list_models(module=torchvision.models):
        if (weights := imagenet_weights(name)) is not None:
            encoder.load_state_dict(weights)
        return weights is not None
    try:
        with patience():
            encoder.load_state_dict(smp.encoders.get_encoder(name, weights="imagenet").state_dict())
    except Exception:  # no connection, which its client says in many ways, or no weights of that name
        return False
    return True


# ------------------------------------------------------------------------------------------------------------ losses


def jaccard_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the overlap, soft and image by image, as the challenge scores (Rahman and Wang 2016).

    logits, masks in [0, 1]: (B, 1, H, W)
    """
    found = logits.sigmoid()
    both = (found * masks).sum(dim=(1, 2, 3))
    either = (found + masks - found * masks).sum(dim=(1, 2, 3))
    return (1 - (both + 1) / (either + 1)).mean()


def jaccard(found: Tensor, masks: Tensor) -> Tensor:
    """Overlap of regions `(B, 1, H, W)` in {0, 1}, per image `(B,)`; 1 where both are empty."""
    both, either = (found * masks).sum(dim=(1, 2, 3)), torch.maximum(found, masks).sum(dim=(1, 2, 3))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


# ---------------------------------------------------------------------------------------------------------- training


class SegmenterTraining(Method):
    """Cross-entropy and overlap on augmented pairs; val chooses the weights."""

    averaged = ("segmenter",)

    def __init__(
        self, settings: SegmenterSettings, steps: int, val: dict[str, np.ndarray] | None = None, wait: int = 8
    ):
        """`val`: images and masks; training stops once `wait` checks in a row did not beat the best on them. Without
        them it goes to its end, and its last average counts."""
        self.s, self.settings, self.steps = settings, asdict(settings) | {"steps": steps}, steps
        self.val, self.wait = val, wait
        self.networks = {"segmenter": Segmenter(settings)}
        weights = self.networks["segmenter"].parameters()
        self.optimisers = {"segmenter": torch.optim.AdamW(weights, settings.rate, weight_decay=1e-2, fused=True)}
        self.kept = {"checked_at": [], "val_jaccard": [], "best": {}}
        self.kept |= {"start": self.networks["segmenter"].start, "trained_on": []}

    def begin_with(self, checkpoint: str | Path) -> None:
        """Take the weights of another training. Raises `ValueError` when its network is another."""
        segmenter, settings = load_segmenter(checkpoint)
        for name in ("network", "encoder", "width"):
            if getattr(settings, name) != getattr(self.s, name):
                here, there = getattr(self.s, name), getattr(settings, name)
                raise ValueError(f"{shown(checkpoint)} has {name} {there!r}, the settings say {here!r}")
        self.networks["segmenter"].load_state_dict(segmenter.state_dict())
        self.kept |= {"start": shown(checkpoint), "trained_on": segmenter.trained_on}

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        warm_then_cosine(self.optimisers["segmenter"], self.s.rate, number, self.steps)
        images, masks = augment(batch["images"], batch["masks"], self.s.colour, self.s.shift, self.s.zoom)
        logits = self.networks["segmenter"](images)
        parts = {"pixels": F.binary_cross_entropy_with_logits(logits, masks), "region": jaccard_loss(logits, masks)}
        self.optimisers["segmenter"].zero_grad(set_to_none=True)
        backward(parts["pixels"] + self.s.overlap * parts["region"])
        self.optimisers["segmenter"].step()
        return parts

    def show(self, averages: dict[str, nn.Module], folder: Path, number: int) -> bool:
        """Score the average on val and keep it if it is the best so far; True when it has not been for too long."""
        if self.val is None:
            self.kept["best"] = averages["segmenter"].state_dict()
            return False
        score = val_jaccard(averages["segmenter"], self.val)
        earlier = self.kept["val_jaccard"]
        if score > max(earlier, default=-1):
            weights = averages["segmenter"].state_dict()
            self.kept["best"] = {name: value.cpu().clone() for name, value in weights.items()}
        self.kept["checked_at"].append(number)
        earlier.append(score)
        return len(earlier) - 1 - int(np.argmax(earlier)) >= self.wait


@torch.no_grad()
def val_jaccard(segmenter: Segmenter, val: dict[str, np.ndarray], batch: int = 16) -> float:
    """Mean Jaccard over images and masks as stored (at the network's size)."""
    device, found = next(segmenter.parameters()).device, []
    for start in range(0, len(val["images"]), batch):
        part = to_tensors({name: val[name][start : start + batch] for name in ("images", "masks")}, device)
        found.append(jaccard((probabilities(segmenter, part["images"]) > 0.5).float(), part["masks"]))
    return float(torch.cat(found).mean())


def train_segmenter(
    store: Store,
    settings: SegmenterSettings,
    out: str | Path,
    run: Run,
    wait: int = 8,
    start: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train on the store's training split; returns the history, with `checked_at` and `val_jaccard`. Stops early once
    `wait` checks (one every `run.save_every` steps) brought nothing better on val. `start`: a checkpoint, of other data
    say, whose weights are the first ones.

    Raises `ValueError` when settings and store differ in size, `DataError` when the store has no masks to learn from or
    the start was trained on pictures that are held out here.
    """
    if settings.size != store.settings.size:
        raise ValueError(f"the store has {store.settings.size} px, the settings say {settings.size}")
    rows = store.rows("train", needs=["mask"])
    if not len(rows):
        raise DataError(f"{store.name} has no training picture with a mask: there is nothing to learn from")
    torch.manual_seed(run.seed)
    checked = np.random.default_rng(0).permutation(store.rows("val", needs=["mask"]))[:500]
    val = store.batch(np.sort(checked), ("images", "masks")) if len(checked) else None
    method = SegmenterTraining(settings, run.steps, val, wait)
    if start:
        method.begin_with(start)
        held_out = store.table["image_id"][store.table["split"] != "train"]
        if known := set(held_out) & set(method.kept["trained_on"]):
            raise DataError(f"{shown(start)} was trained on {len(known)} pictures that are held out in {store.name}")
    method.kept["trained_on"] = sorted({*method.kept["trained_on"], *store.table["image_id"].iloc[rows]})
    print(f"{settings.encoder} starts from: {method.kept['start']}")
    history = train(method, pair_batches([Part(store.images, rows, masks=store.masks)], run.batch, run.seed), out, run)
    return history | {name: method.kept[name] for name in ("checked_at", "val_jaccard")}


def train_on_pairs(
    parts: Sequence[Part], settings: SegmenterSettings, out: str | Path, run: Run
) -> dict[str, list[float]]:
    """Train on `parts`, each equally likely, for exactly `run.steps`: no val split has a say. Returns the history."""
    torch.manual_seed(run.seed)
    return train(SegmenterTraining(settings, run.steps), pair_batches(parts, run.batch, run.seed), out, run)


# ------------------------------------------------------------------------------------------------------------- using


def load_segmenter(path: str | Path) -> tuple[Segmenter, SegmenterSettings]:
    """The segmenter of a checkpoint as it did best on val, and its settings. Raises `DataError` for another file."""
    try:
        saved = read_checkpoint(path)
        settings = SegmenterSettings(**{k: v for k, v in saved["settings"].items() if k != "steps"})
        segmenter = Segmenter(settings, pretrained=False)
        segmenter.load_state_dict(saved["kept"]["best"])
        segmenter.start, segmenter.trained_on = saved["kept"]["start"], saved["kept"]["trained_on"]
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{shown(path)} is not a checkpoint of a segmenter of this version ({error})"[:400]) from error
    segmenter = segmenter.to(best_device(), memory_format=torch.channels_last)  # a fifth faster, on processors too
    return segmenter.eval().requires_grad_(False), settings


@torch.no_grad()
def probabilities(segmenter: Segmenter, images: Tensor) -> Tensor:
    """images (B, 3, H, W) in [-1, 1] -> (B, 1, H, W) in [0, 1]: mean over the mirror images if the settings say so."""
    images = images.to(memory_format=torch.channels_last)
    views = [(), (2,), (3,), (2, 3)] if segmenter.flips else [()]
    return sum(segmenter(images.flip(view)).sigmoid().flip(view) for view in views) / len(views)


def segment(
    segmenter: Segmenter, images: Sequence[np.ndarray], shapes: Sequence[tuple[int, int]] | None = None, batch: int = 16
) -> list[np.ndarray]:
    """Images `uint8 (H, W, 3)` of any sizes -> a mask `uint8` in {0, 1} of each, `(H, W)` or as `shapes` say; empty for
    an image of one colour."""
    device, whole, masks = next(segmenter.parameters()).device, StoreSettings(segmenter.size, geometry="whole"), []
    shapes = [image.shape[:2] for image in images] if shapes is None else shapes
    for start in range(0, len(images), batch):
        part = np.stack([fit(image, whole) for image in images[start : start + batch]])
        found = probabilities(segmenter, to_tensors({"images": part}, device)["images"])[:, 0].cpu().numpy()
        for image, one, (height, width) in zip(part, found, shapes[start : start + batch], strict=True):
            one = np.zeros_like(one) if one_colour(image) else one
            mask = cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
            masks.append(tidied(mask.astype(np.uint8)))
    return masks


def tidied(mask: np.ndarray, least: float = 0.2) -> np.ndarray:
    """A mask `(H, W)` in {0, 1} without holes, and without pieces smaller than `least` of the largest: a lesion is
    seldom in several pieces, shadows and rulers are."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count > 2:
        mask = np.isin(pieces, 1 + np.flatnonzero(areas >= least * areas.max())).astype(np.uint8)
    return filled(mask)


def one_colour(image: np.ndarray, tolerance: int = 8) -> bool:
    """Whether an image `uint8 (H, W, 3)` shows nothing; compression leaves an empty picture some levels apart."""
    return bool(np.ptp(image, axis=(0, 1)).max() < tolerance)
