"""Do synthetic pairs of image and mask help to segment real lesions?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.runner import check_fractions, check_rows, fingerprint_of, fit_configs, run_grid, seconds_of
from helpers.experiments.synthetic import ArmConfig, training_sources
from helpers.metrics.segmentation_scores import score_images
from helpers.models.gan import GANConfig
from helpers.models.segmenter import SegmenterConfig, fit_segmenter, load_segmenter
from helpers.models.trainer import TrainConfig


@dataclass(frozen=True)
class SegmentationExperiment:
    """Settings of the experiment; all arms take the same number of optimizer steps."""

    segmenter: SegmenterConfig
    generator: GANConfig
    train: TrainConfig  # of the segmenters
    gan_train: TrainConfig
    num_pairs: int = 2_000  # synthetic pairs of image and mask
    fractions: tuple[float, ...] = (0.1, 1.0)  # of the real training images, in (0, 1]
    seeds: tuple[int, ...] = (0, 1, 2)  # of the trainings


ARMS = {
    "real": ArmConfig(real=True),
    "real + augmentation": ArmConfig(real=True, augmented=True),
    "real + synthetic": ArmConfig(real=True, synthetic=True),
    "real + synthetic + augmentation": ArmConfig(real=True, synthetic=True, augmented=True),
    "synthetic only": ArmConfig(synthetic=True),
}
# Synthetic pairs against no augmentation, and against augmentation, which costs nothing.
COMPARISON_PAIRS = [
    ("real + augmentation", "real"),
    ("real + synthetic", "real"),
    ("synthetic only", "real"),
    ("real + synthetic", "real + augmentation"),
    ("real + synthetic + augmentation", "real + augmentation"),
]


def segmentation_experiment(
    store: Store,
    experiment: SegmentationExperiment,
    out: str | Path,
    split: str = "test",
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Train a segmenter per arm, fraction and seed, and test it once on the real images of `split`.

    Arms (or those named in `only`): real pairs and synthetic ones, together or alone, with and without augmentation.
    The generator of a fraction is trained on that fraction's images only. Seeds share fractions and generators, and
    decide synthetic pairs, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `score_images`, `init` (initial weights) and `seconds`. Raises
    `DataError` if masks or labels are missing, `ValueError` for fractions outside (0, 1] or an unknown arm.
    """
    if not store.has_mask.any():
        raise DataError(f"{store.name} has no masks: segmentation needs them")
    experiment, test_rows = fit_configs(experiment, store), store.rows(split, needs=["mask"])
    check_fractions(experiment.fractions)
    check_rows(store, test_rows, split)
    sources_of = training_sources(store, experiment, out, experiment.num_pairs)

    def run_one(arm: ArmConfig, fraction: float, seed: int, work: Path) -> pd.DataFrame:
        sources, config = sources_of(arm, fraction, seed), arm.apply(experiment.segmenter)
        seconds = seconds_of(fit_segmenter, sources, config, work, replace(experiment.train, seed=seed))
        segmenter, _ = load_segmenter(work / "checkpoint.pt")
        scores = score_images(segmenter, store.table.iloc[test_rows])
        return scores.assign(init=segmenter.init, seconds=round(seconds, 1))

    arms = {name: partial(run_one, arm) for name, arm in ARMS.items()}
    fingerprint = fingerprint_of(experiment, split=split, data=store.folder.name)
    return run_grid(arms, experiment.fractions, experiment.seeds, out, fingerprint, only)
