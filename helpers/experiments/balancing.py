"""Do class weights, oversampling or synthetic images raise the recall of rare classes?

Rare classes have so few lesions that a test split of 10 % says nothing about them. Hence cross-validation, split by
lesion: every lesion is tested once, by a classifier (and generators) that was not trained on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from helpers.data.batches import ImageSource
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.runner import fingerprint_of, fit_configs, run_grid, seconds_of
from helpers.experiments.synthetic import blended_images, cgan_images, dcgan_images, small_lesions
from helpers.metrics.classification import recalls
from helpers.metrics.prediction_tables import predict_table, probabilities
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
    labels, lesions = store.labels[rows], store.table["lesion_id"].fillna(store.table["image_id"]).to_numpy(str)[rows]
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
    store: Store, experiment: BalancingExperiment, out: str | Path, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Train a classifier per arm, seed and fold, and test it on the fold's test rows. All arms use augmentation.

    Arms (or those named in `only`): "unbalanced"; "class-weighted" (loss); "oversampled" (classes sampled equally); and
    oversampled with synthetic images of the rare classes, from a DCGAN, a CGAN or blending, see `synthetic_arms`. Every
    fold trains its generators on its own training rows; seeds share folds and generators.

    Without masks of rare classes there is no blending. Returns the columns `arm fraction seed`, those of
    `predict_table`, `fold init seconds`. Raises `DataError` if labels are missing, `ValueError` for an unknown arm.
    """
    experiment, folds = fit_configs(experiment, store), lesion_folds(store, experiment.folds)

    def run_one(balance: str, method: str | None, ratio: int, _: float, seed: int, work: Path) -> pd.DataFrame:
        def sources_of(fold: int) -> list[ImageSource]:
            train, folder = folds[fold][0], Path(out) / f"fold-{fold}"
            # Every source that has a class is equally likely, so repeating the real one sets the ratio.
            sources = ratio * [ImageSource(store.images, train, labels=store.labels)]
            return sources + ([synthetic_source(method, store, experiment, train, folder, seed)] if method else [])

        config, train_config = replace(experiment.classifier, balance=balance), replace(experiment.train, seed=seed)
        return cross_validate(store, folds, sources_of, config, train_config, work)

    arms = {"unbalanced": ("none", None, 1), "class-weighted": ("loss", None, 1), "oversampled": ("sampling", None, 1)}
    synthetic = synthetic_arms(experiment.real_per_synthetic).items()
    arms |= {name: ("sampling", *arm) for name, arm in synthetic if arm[0] != "blended" or can_blend(store)}
    arms = {name: partial(run_one, *arm) for name, arm in arms.items()}
    return run_grid(arms, [1.0], experiment.seeds, out, fingerprint_of(experiment, data=store.folder.name), only)


def cross_validate(
    store: Store,
    folds: list[tuple[np.ndarray, np.ndarray]],
    sources_of: Callable[[int], list[ImageSource]],
    config: ClassifierConfig,
    train_config: TrainConfig,
    work: Path,
) -> pd.DataFrame:
    """Train a classifier on the sources of every fold: predictions of all test rows, with `fold init seconds`."""
    tables, seconds = [], 0.0
    for fold, (train, test) in enumerate(folds):
        data, folder = training_data(store, train), work / f"{fold}"
        seconds += seconds_of(fit_classifier, sources_of(fold), config, folder, train_config, data)
        classifier, _ = load_classifier(folder / "checkpoint.pt")
        tables.append(predict_table(classifier, store, test).assign(fold=fold, init=classifier.backbone.init))
    return pd.concat(tables).assign(seconds=round(seconds, 1))


def synthetic_source(
    method: str, store: Store, experiment: BalancingExperiment, train: np.ndarray, folder: Path, seed: int
) -> ImageSource:
    """Images of the rare classes by "DCGAN", "CGAN" (trained in `folder`) or "blended", from the rows `train` only."""
    needs = {"DCGAN": ["label"], "CGAN": ["label", "sketch"], "blended": BLENDED}[method]
    rows, count = np.intersect1d(train, store.rows(needs=needs)), experiment.num_synthetic
    rare_rows = np.intersect1d(rows, store.rows(classes=rare_classes(store)))
    checkpoint = folder / method / "checkpoint.pt"
    if method == "DCGAN":
        train_gan(store, experiment.dcgan, folder / method, experiment.dcgan_train, train)
        return dcgan_images(checkpoint, store, rare_rows, count, seed)
    if method == "CGAN":
        train_gan(store, experiment.cgan, folder / method, experiment.gan_train, rows)
        return cgan_images(checkpoint, store, rare_rows, count, seed, balanced=True)
    return blended_images(store, rare_rows, count, small_lesions(store, rows), seed)


def rare_recall(classes: list[str], rare: list[str]) -> Callable[[pd.DataFrame, np.ndarray], np.ndarray]:
    """A `Measure` of tables of `predict_table`: mean recall of the `rare` classes, over all folds together."""
    columns = [classes.index(name) for name in rare]

    def mean_recall_of_rare_classes(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        return recalls(probabilities(table), table["label"].to_numpy(), weights)[:, columns].mean(axis=1)

    return mean_recall_of_rare_classes
