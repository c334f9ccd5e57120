"""Do synthetic images help a classifier? The arms are compared on real images."""

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
from helpers.metrics.prediction_tables import (  # noqa: F401, the command line takes the measures from here
    auc,
    average_precision,
    balanced_accuracy,
    predict_table,
    recalls_by_arm,
)
from helpers.models.classifier import ClassifierConfig, fit_classifier, ids_of, load_classifier
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig


@dataclass(frozen=True)
class RealVsSyntheticExperiment:
    """Settings of the experiment; all arms take the same number of optimizer steps."""

    classifier: ClassifierConfig
    generator: GANConfig
    train: TrainConfig  # of the classifiers
    gan_train: TrainConfig
    num_synthetic: int = 3_500  # images
    fractions: tuple[float, ...] = (0.1, 1.0)  # of the real training images, in (0, 1]
    seeds: tuple[int, ...] = (0, 1, 2)  # of the trainings

    def fit(self, store: Store) -> "RealVsSyntheticExperiment":
        """With the classes of the store. Raises `ValueError` if a config does not fit the store."""
        return replace(self, classifier=fit_config(self.classifier, store), generator=fit_config(self.generator, store))


COMPARISON_PAIRS = [
    ("real + augmentation", "real"),
    ("class-weighted", "real + augmentation"),
    ("real + synthetic", "real"),
    ("synthetic only", "real"),
    ("real + synthetic + augmentation", "real + augmentation"),
]


def real_vs_synthetic_experiment(
    store: Store,
    experiment: RealVsSyntheticExperiment,
    out: str | Path,
    split: str = "test",
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Train a classifier per arm, fraction and seed, and test it once on the real images of `split`.

    Arms: real images and synthetic ones, together or alone, with and without augmentation, classes sampled equally;
    "class-weighted" samples real images uniformly and weights the loss instead. `only`: names of the arms to run. The
    generator of a fraction is trained on that fraction's images only. Seeds share fractions and generators, and decide
    synthetic images, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `predict_table`, `init` (initial weights) and `seconds`. Raises
    `DataError` if masks or labels are missing, `ValueError` for fractions outside (0, 1] or an unknown arm.
    """
    experiment = experiment.fit(store)
    out, test_rows = Path(out), store.rows(split, needs=["label"])
    check_fractions(experiment.fractions)
    check_rows(store, test_rows, split)

    @lru_cache(maxsize=len(experiment.seeds))  # all arms of a fraction use the same images
    def synthetic_source(fraction: float, seed: int) -> ImageSource:
        rows, folder = fraction_of_rows(store, fraction), out / f"generator-{fraction:g}"
        train_gan(store, experiment.generator, folder, experiment.gan_train, rows)
        return cgan_images(folder / "checkpoint.pt", store, rows, experiment.num_synthetic, seed, balanced=True)

    def arm(real: bool = False, synthetic: bool = False, augmented: bool = False, balance: str = "sampling") -> Arm:
        config = replace(experiment.classifier, balance=balance, **({} if augmented else NO_AUGMENTATION))

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            rows = fraction_of_rows(store, fraction)
            sources = [ImageSource(store.images, rows, labels=store.labels)] if real else []
            sources += [synthetic_source(fraction, seed)] if synthetic else []
            start = time.perf_counter()
            fit_classifier(sources, config, work, replace(experiment.train, seed=seed), ids_of(store.table.iloc[rows]))
            seconds = time.perf_counter() - start
            classifier, _ = load_classifier(work / "checkpoint.pt")
            table = predict_table(classifier, store, test_rows)
            return table.assign(init=classifier.backbone.init, seconds=round(seconds, 1))

        return run_one

    arms = {
        "real": arm(real=True),
        "real + augmentation": arm(real=True, augmented=True),
        "class-weighted": arm(real=True, augmented=True, balance="loss"),
        "real + synthetic": arm(real=True, synthetic=True),
        "real + synthetic + augmentation": arm(real=True, synthetic=True, augmented=True),
        "synthetic only": arm(synthetic=True),
    }
    fingerprint = fingerprint_of(experiment, split=split, data=store.folder.name)
    return run_grid(arms, experiment.fractions, experiment.seeds, out, fingerprint, only)
