"""Do synthetic images help a classifier? The arms are compared on real images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from helpers.data.store import Store
from helpers.experiments.runner import (
    check_fractions,
    check_rows,
    fingerprint_of,
    fit_configs,
    fraction_of_rows,
    run_grid,
    seconds_of,
)
from helpers.experiments.synthetic import ArmConfig, training_sources
from helpers.metrics.prediction_tables import predict_table
from helpers.models.checkpoint import training_data
from helpers.models.classifier import ClassifierConfig, fit_classifier, load_classifier
from helpers.models.gan import GANConfig
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


ARMS = {
    "real": ArmConfig(real=True),
    "real + augmentation": ArmConfig(real=True, augmented=True),
    "class-weighted": ArmConfig(real=True, augmented=True, balance="loss"),
    "real + synthetic": ArmConfig(real=True, synthetic=True),
    "real + synthetic + augmentation": ArmConfig(real=True, synthetic=True, augmented=True),
    "synthetic only": ArmConfig(synthetic=True),
}
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

    Arms (or those named in `only`): real images and synthetic ones, together or alone, with and without augmentation,
    classes sampled equally; "class-weighted" samples real images uniformly and weights the loss instead. The generator
    of a fraction is trained on that fraction's images only. Seeds share fractions and generators, and decide synthetic
    images, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `predict_table`, `init` (initial weights) and `seconds`. Raises
    `DataError` if masks or labels are missing, `ValueError` for fractions outside (0, 1] or an unknown arm.
    """
    experiment, test_rows = fit_configs(experiment, store), store.rows(split, needs=["label"])
    check_fractions(experiment.fractions)
    check_rows(store, test_rows, split)
    sources_of = training_sources(store, experiment, out, experiment.num_synthetic, balanced=True)

    def run_one(arm: ArmConfig, fraction: float, seed: int, work: Path) -> pd.DataFrame:
        sources = sources_of(arm, fraction, seed)
        config = replace(arm.apply(experiment.classifier), balance=arm.balance)
        train_config = replace(experiment.train, seed=seed)
        data = training_data(store, fraction_of_rows(store, fraction))
        seconds = seconds_of(fit_classifier, sources, config, work, train_config, data)
        classifier, _ = load_classifier(work / "checkpoint.pt")
        predictions = predict_table(classifier, store, test_rows)
        return predictions.assign(init=classifier.backbone.init, seconds=round(seconds, 1))

    arms = {name: partial(run_one, arm) for name, arm in ARMS.items()}
    fingerprint = fingerprint_of(experiment, split=split, data=store.folder.name)
    return run_grid(arms, experiment.fractions, experiment.seeds, out, fingerprint, only)
