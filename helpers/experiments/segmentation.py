"""Do synthetic pairs of image and mask help to segment real lesions?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from helpers.data.batches import ImageSource
from helpers.data.store import Store, fit_config
from helpers.experiments.runner import (
    NO_AUGMENTATION,
    Arm,
    check_fractions,
    check_rows,
    fingerprint_of,
    fraction_of_rows,
    run_grid,
)
from helpers.experiments.synthetic import cgan_images
from helpers.metrics.segmentation import score_images
from helpers.models.gan import GANConfig, train_gan
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

    def fit(self, store: Store) -> "SegmentationExperiment":
        """With the classes of the store. Raises `ValueError` if a config does not fit the store."""
        return replace(self, segmenter=fit_config(self.segmenter, store), generator=fit_config(self.generator, store))


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

    Arms: real pairs and synthetic ones, together or alone, with and without augmentation. `only`: names of the arms to
    run. The generator of a fraction is trained on that fraction's images only. Seeds share fractions and generators,
    and decide synthetic pairs, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `score_images`, `init` (initial weights) and `seconds`. Raises
    `DataError` if masks or labels are missing, `ValueError` for fractions outside (0, 1] or an unknown arm.
    """
    experiment = experiment.fit(store)
    out, test_rows = Path(out), store.rows(split, needs=["mask"])
    check_fractions(experiment.fractions)
    check_rows(store, test_rows, split)
    test_table = store.table.iloc[test_rows]

    @lru_cache(maxsize=len(experiment.seeds))  # all arms of a fraction use the same pairs
    def synthetic_source(fraction: float, seed: int) -> ImageSource:
        rows, folder = fraction_of_rows(store, fraction), out / f"generator-{fraction:g}"
        train_gan(store, experiment.generator, folder, experiment.gan_train, rows)
        return cgan_images(folder / "checkpoint.pt", store, rows, experiment.num_pairs, seed)

    def arm(real: bool = False, synthetic: bool = False, augmented: bool = False) -> Arm:
        config = experiment.segmenter if augmented else replace(experiment.segmenter, **NO_AUGMENTATION)

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            sources = [ImageSource(store.images, fraction_of_rows(store, fraction), masks=store.masks)] if real else []
            sources += [synthetic_source(fraction, seed)] if synthetic else []
            start = time.perf_counter()
            fit_segmenter(sources, config, work, replace(experiment.train, seed=seed))
            seconds = time.perf_counter() - start
            segmenter, _ = load_segmenter(work / "checkpoint.pt")
            return score_images(segmenter, test_table).assign(init=segmenter.init, seconds=round(seconds, 1))

        return run_one

    arms = {
        "real": arm(real=True),
        "real + augmentation": arm(real=True, augmented=True),
        "real + synthetic": arm(real=True, synthetic=True),
        "real + synthetic + augmentation": arm(real=True, synthetic=True, augmented=True),
        "synthetic only": arm(synthetic=True),
    }
    fingerprint = fingerprint_of(experiment, split=split, data=store.folder.name)
    return run_grid(arms, experiment.fractions, experiment.seeds, out, fingerprint, only)
