"""Artifact detector: which of seven artifacts (ruler, hair, ...) does a dermoscopic image contain?

A multi-label classifier, one sigmoid per flag of `ARTIFACTS`, on the first blocks of EfficientNet-Lite0 (Tan and Le,
arXiv 1905.11946) pretrained on ImageNet. The deeper blocks are left out: the detector needs local texture at 1/16
resolution. Artifacts correlate with the diagnosis in the public sets (Bissoto et al., arXiv 2004.11457), so a generator
that is not conditioned on them learns rulers as part of a class.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from helpers import config as project
from helpers.config import display_path
from helpers.data.batches import to_tensors
from helpers.data.files import DataError, atomic_file
from helpers.data.labels import clean_id, read_table
from helpers.data.layouts import ARTIFACTS
from helpers.data.store import UNKNOWN, Store, fit_config
from helpers.models.augment import augment
from helpers.models.checkpoint import read_network
from helpers.models.checks import MAX_SIZE, check_settings
from helpers.models.early_stopping import ValidatedTask
from helpers.models.initialize import start_from
from helpers.models.trainer import Backward, Batch, TrainConfig, set_warmup_cosine_lr, train
from helpers.models.weights import lite_network

BLOCKS = 5  # of EfficientNet-Lite0: up to 1/16 of the side, 112 channels
INFERENCE_BATCH_SIZE = 64


@dataclass(frozen=True)
class ArtifactConfig:
    """Settings of the detector and of one training step."""

    size: int  # pixels per side
    pretrained: bool = True
    lr: float = 1e-3  # peak, see `set_warmup_cosine_lr`
    color_jitter: float = 0.1  # augmentation strengths, see `augment`
    translate: float = 0.06

    def __post_init__(self):
        check_settings(self, size=(16, MAX_SIZE))


class ArtifactDetector(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> logits (B, 7) in the order of `ARTIFACTS`."""

    def __init__(self, config: ArtifactConfig, pretrained: bool = True):
        super().__init__()
        self.size = config.size
        network = lite_network("efficientnet_lite0", pretrained and config.pretrained)
        self.features = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:BLOCKS])
        self.head = nn.Linear(2 * 112, len(ARTIFACTS))

    def forward(self, image: Tensor) -> Tensor:
        x = self.features(image)  # (B, 112, H/16, W/16)
        # The mean for large artifacts, the maximum for small ones.
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # (B, 224)
        return self.head(pooled)  # (B, 7)


class ArtifactTask(ValidatedTask):
    """Binary cross-entropy per flag; keeps the EMA weights with the best mean average precision on val."""

    ema_names = ("detector",)
    score_name = "val_ap"
    patience = math.inf  # trains all steps

    def __init__(self, config: ArtifactConfig, steps: int, val: dict[str, np.ndarray] | None = None):
        """`val`: `images uint8 (N, S, S, 3)` and `artifacts (N, 7)` in [0, 1], see `ValidatedTask`."""
        super().__init__(config, steps, val, ArtifactDetector(config))
        self.extra_state["init_from"] = "ImageNet" if config.pretrained else "random init"

    def init_from(self, checkpoint: str | Path) -> None:
        """Initialize with the weights of another detector's checkpoint or released file."""
        detector, _ = load_artifacts(checkpoint)
        self.networks["detector"].load_state_dict(detector.state_dict())
        self.extra_state |= {"init_from": display_path(checkpoint), "trained_on": detector.trained_on}

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        """One step on augmented images (B, 3, H, W) and flags (B, 7), which may be probabilities."""
        set_warmup_cosine_lr(self.optimizers["detector"], self.config.lr, self.progress)
        images, _ = augment(batch["images"], batch["images"][:, :1], self.config.color_jitter, self.config.translate)
        loss = F.binary_cross_entropy_with_logits(self.networks["detector"](images), batch["artifacts"])
        self._optimizer_step("detector", loss, backward)
        return {"loss": loss}

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Mean average precision on val."""
        probs = predict_artifacts(network, self.val["images"])
        return {"val_ap": float(np.nanmean(average_precisions(probs, self.val["artifacts"] > 0.5)))}


def average_precisions(probs: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Average precision of each flag, `(7,)`, from `probs (N, 7)` and `flags bool (N, 7)`; NaN for a flag that all
    images have, or none."""
    pairs = zip(probs.T, flags.T, strict=True)
    return np.array([average_precision_score(f, p) if 0 < f.sum() < len(f) else np.nan for p, f in pairs])


def read_flags(path: str | Path) -> pd.DataFrame:
    """Artifact annotations: a CSV with ids and the seven flags as 0, 1 or probabilities (`read_table`)
    -> float32 columns `ARTIFACTS`, indexed by id. Any separator; file endings of ids are dropped; the first of repeated
    ids counts. Raises `DataError` for a missing column or a value outside [0, 1]."""
    table = read_table(path, list(ARTIFACTS))
    flags = table[list(ARTIFACTS)].astype(object).apply(pd.to_numeric, errors="coerce").astype(np.float32)
    flags.index = table["image_id"].map(clean_id).astype(str)
    if not ((flags >= 0) & (flags <= 1)).all(axis=None):  # NaN fails too
        raise DataError(f"{display_path(path)}: flags must be numbers in [0, 1]")
    return flags[~flags.index.duplicated()]


def read_ids(path: str | Path) -> set[str]:
    """Image ids in the first column of a CSV, with or without header; file endings are dropped. Raises `DataError`."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{display_path(path)} cannot be read as CSV ({error})"[:300]) from error
    return {clean_id(re.split(r"[,;\t]", line)[0].strip(" '\"")) for line in lines if line.strip()}


def train_artifacts(
    store: Store,
    config: ArtifactConfig,
    out: str | Path,
    train_config: TrainConfig,
    flags: pd.DataFrame | None = None,
    exclude: set[str] = frozenset(),
    init_from: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train on the training split, choose the weights on val; returns the history with `checked_at` and `val_ap`.

    `flags`: annotations by image id, see `read_flags`; without them those that the data set came with. Ids in `exclude`
    are not used, for example official test images of another set. `init_from`: see `start_from`. Raises `ValueError` if
    config and store differ in size, `DataError` without annotated training images, and both as `start_from` does.
    """
    config = fit_config(config, store)
    ids = store.table["image_id"].to_numpy(str)
    if flags is None:
        targets, known = store.artifacts.astype(np.float32), np.array(store.artifacts_known)
    else:
        targets = flags.reindex(ids).to_numpy(np.float32)
        known = ~np.isnan(targets).any(axis=1)
    known &= ~np.isin(ids, list(exclude))
    rows, val_rows = (split_rows[known[split_rows]] for split_rows in (store.rows("train"), store.rows("val")))
    if not len(rows):
        raise DataError(f"{store.name} needs training images with artifact flags, got none: name a file with --flags")
    torch.manual_seed(train_config.seed)
    varies = (targets[val_rows] > 0.5).any(axis=0) & (targets[val_rows] <= 0.5).any(axis=0)  # else no precision
    val = {"images": np.array(store.images[val_rows]), "artifacts": targets[val_rows]} if varies.any() else None
    task = ArtifactTask(config, train_config.steps, val)
    start_from(task, init_from, store, rows)
    get_batch = artifact_batches(store, targets, rows, train_config.batch_size, train_config.seed)
    return train(task, get_batch, out, train_config) | task.scores()


def artifact_batches(
    store: Store, targets: np.ndarray, rows: np.ndarray, batch_size: int, seed: int
) -> Callable[[int, int], dict]:
    """`get_batch(step, rank)` for the training loop, with images and flags; all rows are equally likely."""

    def get_batch(step: int, rank: int) -> dict:
        sampled = np.random.default_rng([seed, step, rank]).choice(rows, batch_size)
        return to_tensors({"images": np.array(store.images[sampled]), "artifacts": targets[sampled]})

    return get_batch


def load_artifacts(path: str | Path) -> tuple[ArtifactDetector, ArtifactConfig]:
    """The detector of a checkpoint, in eval mode on the best device, and its config. Raises `DataError` if the file is
    not a detector's."""

    def build(saved: dict, config: ArtifactConfig) -> ArtifactDetector:
        detector = ArtifactDetector(config, pretrained=False)
        detector.load_state_dict(saved["extra_state"]["best_state_dict"])
        detector.trained_on = saved["extra_state"]["trained_on"]
        return detector

    return read_network(path, "an artifact detector", ArtifactConfig, build)


@torch.no_grad()
def predict_artifacts(detector: ArtifactDetector, images: np.ndarray) -> np.ndarray:
    """Probabilities `float32 (N, 7)` of the flags in `images uint8 (N, H, W, 3)`; images of another size than the
    detector's are resized."""
    device, probs = next(detector.parameters()).device, [np.zeros((0, len(ARTIFACTS)), np.float32)]
    for start in range(0, len(images), INFERENCE_BATCH_SIZE):
        batch = to_tensors({"images": np.array(images[start : start + INFERENCE_BATCH_SIZE])}, device)["images"]
        if batch.shape[-1] != detector.size:
            batch = F.interpolate(batch, (detector.size, detector.size), mode="bilinear", antialias=True)
        probs.append(detector(batch).sigmoid().float().cpu().numpy())
    return np.concatenate(probs)


def fill_artifacts(store: Store, checkpoint: str | Path) -> int:
    """Set the flags of images that have none to the detector's (probability above 0.5), in memory and on disk; returns
    their number. A second call does nothing."""
    unknown = np.flatnonzero((store.artifacts == UNKNOWN).any(axis=1))
    if not len(unknown):
        return 0
    detector, _ = load_artifacts(checkpoint)
    flags = np.array(store.artifacts)
    for start in range(0, len(unknown), INFERENCE_BATCH_SIZE):
        rows = unknown[start : start + INFERENCE_BATCH_SIZE]
        flags[rows] = predict_artifacts(detector, store.images[rows]) > 0.5
    with atomic_file(store.folder / "artifacts.npy") as temporary:
        np.save(temporary, flags)
    store.artifacts = flags
    return len(unknown)


def ensure_artifacts(store: Store) -> None:
    """Fill the flags that the store lacks, if any, by the released detector, and say so. Raises `DataError` without
    it."""
    if not (store.artifacts == UNKNOWN).any():
        return
    detector = project.ROOT / "data" / "released" / "artifacts.safetensors"
    if not detector.is_file():
        raise DataError(f"{store.name} has images with unknown artifact flags: they need {display_path(detector)}, "
                        "or train with --no-artifacts")  # fmt: skip
    print(f"artifact flags of {fill_artifacts(store, detector):,} images by {display_path(detector)}")
