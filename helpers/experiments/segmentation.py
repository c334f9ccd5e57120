"""Do synthetic pairs of image and mask help to segment real lesions?"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.arms import (
    AUGMENTED,
    FILTERED,
    NEW_ARMS,
    PRETRAINED,
    REAL,
    ArmConfig,
    ArmSources,
    Fit,
    run_arms,
)
from helpers.experiments.generators import RunOptions
from helpers.experiments.runner import SEED_DECIDED, fit_configs
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
    no_effect: ClassVar = SEED_DECIDED


BOTH = "real + synthetic + augmentation"
ARMS = {
    REAL: ArmConfig(real=True),
    AUGMENTED: ArmConfig(real=True, augmented=True),
    "real + synthetic": ArmConfig(real=True, synthetic=True),
    BOTH: ArmConfig(real=True, synthetic=True, augmented=True),
    "synthetic only": ArmConfig(synthetic=True),
    **NEW_ARMS,
}
NOTEBOOK_ARMS = RunOptions(only=tuple(name for name in ARMS if name not in (PRETRAINED, FILTERED)))
# Synthetic pairs against no augmentation, and against augmentation, which costs nothing.
COMPARISON_PAIRS = [
    (AUGMENTED, REAL),
    ("real + synthetic", REAL),
    ("synthetic only", REAL),
    ("real + synthetic", AUGMENTED),
    *((arm, AUGMENTED) for arm in (BOTH, PRETRAINED, FILTERED)),
    (FILTERED, BOTH),
]


def segmentation_experiment(
    store: Store, experiment: SegmentationExperiment, out: str | Path, options: RunOptions = NOTEBOOK_ARMS
) -> pd.DataFrame:
    """Train a segmenter per arm, fraction and seed, and test it once on the real images of `options.split`.

    Arms: those of `ARMS` that `options.only` names, by default those of the notebook; see `ArmConfig`. The generator of
    a fraction is trained on that fraction's images only, see `prepare_generator`. Seeds share fractions and generators,
    and decide synthetic pairs, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `score_images`, `init` (initial weights), `generator` and
    `seconds`. Raises `DataError` if masks or labels are missing, or a file of a generator was trained on other lesions;
    `ValueError` for fractions outside (0, 1] or an unknown arm.
    """
    if not store.has_mask.any():
        raise DataError(f"{store.name} has no masks: segmentation needs them")
    experiment, test_rows = fit_configs(experiment, store), store.rows(options.split, needs=["mask"])
    sources_of = ArmSources(store, experiment, out, options, experiment.num_pairs, balanced=False)

    def fit_of(arm: ArmConfig, fraction: float) -> Fit:
        config = arm.apply(experiment.segmenter)
        return lambda sources, *args: fit_segmenter(sources, config, *args)

    def score(checkpoint: Path) -> pd.DataFrame:
        return score_images(load_segmenter(checkpoint)[0], store.table.iloc[test_rows])

    return run_arms(ARMS, sources_of, test_rows, fit_of, score)
