"""Do class weights, oversampling or synthetic images raise the recall of rare classes?

Rare classes have so few lesions that a test split of 10 % says nothing about them. Hence cross-validation, split by
lesion: every lesion is tested once, by a classifier (and generators) that was not trained on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from helpers.data.batches import ImageSource
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.generators import ALL_ARMS, RunOptions, check_generators, prepare_generator
from helpers.experiments.runner import ARMS_DECIDED, fingerprint_of, fit_configs, run_grid, training_seconds
from helpers.experiments.synthetic import blended_images, cgan_images, dcgan_images, small_lesions
from helpers.metrics.classification import recalls
from helpers.metrics.prediction_tables import is_collapsed, predict_table, probabilities
from helpers.models.checkpoint import training_data
from helpers.models.classifier import ClassifierConfig, fit_classifier, load_classifier
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig

RARE_FRACTION = 0.05  # of the labeled images, at most
BLENDED = ("mask", "label", "sketch")  # what images need to be blended; the sketch of an empty mask is empty
NOT_BLENDED = "no masks of rare classes in this data set: blending is skipped"


def rare_classes(store: Store) -> list[str]:
    """Classes with at most `RARE_FRACTION` of the labeled images; if there are none, the rarest class."""
    counts = np.bincount(store.labels[store.rows(needs=["label"])], minlength=len(store.classes))
    limit = RARE_FRACTION * counts.sum()
    rare = [name for name, count in zip(store.classes, counts, strict=True) if 0 < count <= limit]
    return rare or [store.classes[int(np.where(counts > 0, counts, counts.max()).argmin())]]


def can_blend(store: Store) -> bool:
    """Whether an image of a rare class has a mask that is not empty."""
    return len(store.rows(needs=BLENDED, classes=rare_classes(store))) > 0


def lesion_folds(store: Store, num_folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of each fold, from the labeled images of all splits: lesions stay whole, folds have equal
    class proportions. Raises `DataError` if a class has fewer lesions than there are folds."""
    rows = store.rows(needs=["label"])
    labels, lesions = store.labels[rows], store.lesions[rows]
    counts = {name: len(set(lesions[labels == k])) for k, name in enumerate(store.classes)}
    if too_few := [f"{count} of {name}" for name, count in counts.items() if 0 < count < num_folds]:
        raise DataError(f"{num_folds} folds need at least {num_folds} lesions per class, got {', '.join(too_few)}")
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0).split(rows, labels, lesions)
    return [(rows[train], rows[test]) for train, test in folds]


@dataclass(frozen=True)
class BalancingExperiment:
    """Settings of the experiment; all arms take the same number of optimizer steps."""

    classifier: ClassifierConfig
    cgan: GANConfig
    dcgan: GANConfig
    train: TrainConfig  # of the classifiers
    gan_train: TrainConfig  # of the CGANs
    dcgan_train: TrainConfig
    num_synthetic: int = 1_500  # images of all rare classes together, per fold
    folds: int = 5  # of the cross-validation, by lesion
    seeds: tuple[int, ...] = (0, 1, 2)  # of the trainings
    real_per_synthetic: tuple[int, ...] = (1,)  # real images of a rare class per synthetic one; one arm per value
    no_effect: ClassVar = ARMS_DECIDED

    def __post_init__(self):
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")


def synthetic_arms(real_per_synthetic: tuple[int, ...]) -> dict[str, tuple[str, int]]:
    """Arms with synthetic images: name -> (method, real images of a rare class per synthetic one)."""
    return {
        method if n == 1 else f"{method}, one in {n + 1}": (method, n)
        for n in real_per_synthetic
        for method in ("DCGAN", "CGAN", "blended")
    }


def comparison_pairs(best: str, real_per_synthetic: tuple[int, ...] = (1,)) -> list[tuple[str, str]]:
    """Pairs of arms to compare: the baselines with "unbalanced", synthetic arms with the `best` baseline."""
    baselines = [(arm, "unbalanced") for arm in ("class-weighted", "oversampled")]
    return baselines + [(arm, best) for arm in synthetic_arms(real_per_synthetic)]


def best_baseline(summary: pd.DataFrame) -> str:
    """The one of the arms "class-weighted" and "oversampled" with the higher measure in a table of `runner.summary`;
    "oversampled" if the table has neither."""
    baselines = summary.xs(summary.index[0][0])[lambda table: table.index.isin(["class-weighted", "oversampled"])]
    return str(baselines.iloc[:, 2].idxmax()) if len(baselines) else "oversampled"


def balancing_experiment(
    store: Store, experiment: BalancingExperiment, out: str | Path, options: RunOptions = ALL_ARMS
) -> pd.DataFrame:
    """Train a classifier per arm, seed and fold, and test it on the fold's test rows. All arms use augmentation.

    Arms (or those named in `options.only`): "unbalanced"; "class-weighted" (loss); "oversampled" (classes sampled
    equally); and oversampled with synthetic images of the rare classes, from a DCGAN, a CGAN or blending, see
    `synthetic_arms`. Every fold trains its generators on its own training rows, the CGAN from
    `options.generator_init_from` if given; seeds share folds and generators.

    Without masks of rare classes there is no blending. Returns the columns `arm fraction seed`, those of
    `predict_table`, `fold collapsed init generator seconds`. Raises `DataError` if labels are missing or the file of a
    generator was trained on lesions outside of a fold's training rows, `ValueError` for an unknown arm.
    """
    experiment, folds = fit_configs(experiment, store), lesion_folds(store, experiment.folds)
    check_generators(options, store, (train for train, _ in folds), experiment.cgan)
    runs = FoldRuns(store, experiment, Path(out), options, folds)
    arms = {"unbalanced": ("none", None, 1), "class-weighted": ("loss", None, 1), "oversampled": ("sampling", None, 1)}
    synthetic = synthetic_arms(experiment.real_per_synthetic).items()
    arms |= {name: ("sampling", *arm) for name, arm in synthetic if arm[0] != "blended" or can_blend(store)}
    arms = {name: partial(runs.run_one, *arm) for name, arm in arms.items()}
    start = options.context()["generator_init_from"]
    fingerprint = fingerprint_of(experiment, data=store.folder.name, generator_init_from=start)
    return run_grid(arms, [1.0], experiment.seeds, out, fingerprint, options.only)


@dataclass(frozen=True)
class FoldRuns:
    """The runs of the experiment; `folds`: see `lesion_folds`."""

    store: Store
    experiment: BalancingExperiment
    out: Path
    options: RunOptions
    folds: list[tuple[np.ndarray, np.ndarray]]

    def run_one(self, balance: str, method: str | None, ratio: int, _: float, seed: int, work: Path) -> pd.DataFrame:
        """Train a classifier per fold: predictions of all test rows. `collapsed` is set for all if one fold's are."""
        config = replace(self.experiment.classifier, balance=balance)
        train_config, tables = replace(self.experiment.train, seed=seed), []
        for fold, (train, test) in enumerate(self.folds):
            folder = work / f"{fold}"
            # Every source that has a class is equally likely, so repeating the real one sets the ratio.
            sources, generator = ratio * [ImageSource(self.store.images, train, labels=self.store.labels)], "none"
            if method:
                synthetic, generator = self.synthetic(method, fold, seed)
                sources = [*sources, synthetic]
            fit_classifier(sources, config, folder, train_config, training_data(self.store, train))
            classifier, _ = load_classifier(folder / "checkpoint.pt")
            table = predict_table(classifier, self.store, test)
            facts = {"init": classifier.backbone.init, "seconds": training_seconds(folder / "checkpoint.pt")}
            tables.append(table.assign(fold=fold, collapsed=is_collapsed(table), generator=generator, **facts))
        seconds = round(sum(table["seconds"].iloc[0] for table in tables), 1)
        results = pd.concat(tables)
        return results.assign(collapsed=results["collapsed"].any(), seconds=seconds)

    def synthetic(self, method: str, fold: int, seed: int) -> tuple[ImageSource, str]:
        """Images of the rare classes by "DCGAN", "CGAN" or "blended", from the training rows of a fold only; and the
        generator's name."""
        store, experiment, train = self.store, self.experiment, self.folds[fold][0]
        needs = {"DCGAN": ["label"], "CGAN": ["label", "sketch"], "blended": BLENDED}[method]
        rows, count = np.intersect1d(train, store.rows(needs=needs)), experiment.num_synthetic
        rare_rows = np.intersect1d(rows, store.rows(classes=rare_classes(store)))
        folder = self.out / f"fold-{fold}" / method
        if method == "blended":
            return blended_images(store, rare_rows, count, small_lesions(store, rows), seed), "none"
        if method == "CGAN":
            args = (experiment.cgan, experiment.gan_train, self.options, rows, folder)
            checkpoint, name = prepare_generator(store, *args)
            return cgan_images(checkpoint, store, rare_rows, count, seed, balanced=True), name
        train_gan(store, experiment.dcgan, folder, experiment.dcgan_train, train)
        images = dcgan_images(folder / "checkpoint.pt", store, rare_rows, count, seed)
        return images, f"trained here, {len(train):,} images"


def rare_recall(classes: list[str], rare: list[str]) -> Callable[[pd.DataFrame, np.ndarray], np.ndarray]:
    """A `Measure` of tables of `predict_table`: mean recall of the `rare` classes, over all folds together."""
    columns = [classes.index(name) for name in rare]

    def mean_recall_of_rare_classes(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        return recalls(probabilities(table), table["label"].to_numpy(), weights)[:, columns].mean(axis=1)

    return mean_recall_of_rare_classes
