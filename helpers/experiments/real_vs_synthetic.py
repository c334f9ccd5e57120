"""Do synthetic images help a classifier? The arms are compared on real images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from helpers.data.store import Store
from helpers.experiments.arms import (
    AUGMENTED,
    EQUAL_ARTIFACTS,
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
from helpers.experiments.runner import ARMS_DECIDED, fit_configs, fraction_of_rows
from helpers.metrics.prediction_tables import confusion_counts, is_collapsed, predict_cross_dataset, predict_table
from helpers.models.checkpoint import training_data
from helpers.models.classifier import Classifier, ClassifierConfig, fit_classifier, load_classifier
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
    no_effect: ClassVar = ARMS_DECIDED


BOTH = "real + synthetic + augmentation"
ARMS = {
    REAL: ArmConfig(real=True),
    AUGMENTED: ArmConfig(real=True, augmented=True),
    "class-weighted": ArmConfig(real=True, augmented=True, balance="loss"),
    "real + synthetic": ArmConfig(real=True, synthetic=True),
    BOTH: ArmConfig(real=True, synthetic=True, augmented=True),
    "synthetic only": ArmConfig(synthetic=True),
    **NEW_ARMS,
    EQUAL_ARTIFACTS: ArmConfig(real=True, synthetic=True, augmented=True, selection="equal artifacts"),
}
NOTEBOOK_ARMS = RunOptions(only=tuple(name for name in ARMS if name not in (PRETRAINED, FILTERED, EQUAL_ARTIFACTS)))
COMPARISON_PAIRS = [
    (AUGMENTED, REAL),
    ("class-weighted", AUGMENTED),
    ("real + synthetic", REAL),
    ("synthetic only", REAL),
    (BOTH, AUGMENTED),
    *((arm, AUGMENTED) for arm in (PRETRAINED, FILTERED, EQUAL_ARTIFACTS)),
    (FILTERED, BOTH),
    (EQUAL_ARTIFACTS, BOTH),
]


def real_vs_synthetic_experiment(
    store: Store, experiment: RealVsSyntheticExperiment, out: str | Path, options: RunOptions = NOTEBOOK_ARMS
) -> pd.DataFrame:
    """Train a classifier per arm, fraction and seed, and test it once on the real images of `options.split`.

    Arms: those of `ARMS` that `options.only` names, by default those of the notebook; see `ArmConfig`. Classes are
    sampled equally; "class-weighted" samples images uniformly and weights the loss instead. The generator of a fraction
    is trained on that fraction's images only, see `prepare_generator`. Seeds share fractions and generators, and decide
    synthetic images, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `predict_table`, `collapsed` (see `is_collapsed`), `init` (initial
    weights), `generator` and `seconds`; with `options.also` also `data`, and rows for the test images of that data set,
    see `predict_cross_dataset` and `of_data`. Raises `DataError` if masks or labels are missing, or a file of a
    generator was trained on other lesions; `ValueError` for fractions outside (0, 1], an unknown arm, or
    the same data set twice.
    """
    experiment, test_rows = fit_configs(experiment, store), store.rows(options.split, needs=["label"])
    if options.also and options.also.name == store.name:
        raise ValueError(f"the data set to score on as well must be another one, got {store.name} twice")
    sources_of = ArmSources(store, experiment, out, options, experiment.num_synthetic, balanced=True)

    def fit_of(arm: ArmConfig, fraction: float) -> Fit:
        config = replace(arm.apply(experiment.classifier), balance=arm.balance)
        data = training_data(store, fraction_of_rows(store, fraction))
        return lambda sources, work, train_config, start: fit_classifier(
            sources, config, work, train_config, data, start
        )

    def score(checkpoint: Path) -> pd.DataFrame:
        classifier, _ = load_classifier(checkpoint)
        predictions = predict_table(classifier, store, test_rows)
        predictions = predictions.assign(collapsed=is_collapsed(predictions))
        if options.also:
            others = predict_also(classifier, options.also)
            predictions = pd.concat([predictions.assign(data=store.name), others], ignore_index=True)
        return predictions

    return run_arms(ARMS, sources_of, test_rows, fit_of, score)


def predict_also(classifier: Classifier, store: Store) -> pd.DataFrame:
    """Predictions for the test images of another data set by the shared classes, with `data` and `collapsed`."""
    table = predict_cross_dataset(classifier, store, store.rows("test", needs=["label"]))
    return table.assign(data=store.name, collapsed=is_collapsed(table))


def of_data(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The results by data set, each with the probabilities of its own classes only; "" if there is only one."""
    if "data" not in results:
        return {"": results}
    parts = {name: part.drop(columns="data") for name, part in results.groupby("data", sort=False)}
    return {name: part.dropna(axis=1, how="all").reset_index(drop=True) for name, part in parts.items()}


def confusion_matrices(results: pd.DataFrame) -> dict[str, np.ndarray]:
    """Confusion matrices `(K, K)` by title: without and with generated images, both with augmentation, at the largest
    fraction with the first seed of each; arms that were not run are left out."""
    part, matrices = results[results["fraction"] == results["fraction"].max()], {}
    for arm in (AUGMENTED, BOTH):
        runs = part[part["arm"] == arm]
        if len(runs):
            run = runs[runs["seed"] == runs["seed"].iloc[0]]
            matrices[f"{arm}\nseed {run['seed'].iloc[0]}" + ", collapsed" * bool(run["collapsed"].iloc[0])] = (
                confusion_counts(run)
            )
    return matrices
