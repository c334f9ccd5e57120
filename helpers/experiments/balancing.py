"""Do class weights, oversampling or synthetic images raise the recall of rare classes?

Rare classes have so few lesions that a test split of 10 % says nothing about them. Hence cross-validation, split by
lesion: every lesion is tested once, by a classifier (and generators) that was not trained on it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from helpers.data.batches import ImageSource
from helpers.data.files import DataError
from helpers.data.store import Store, fit_config
from helpers.experiments.runner import Arm, fingerprint_of, run_grid
from helpers.experiments.synthetic import blended_images, cgan_images, dcgan_images, small_lesions
from helpers.metrics.classification import recalls
from helpers.metrics.prediction_tables import predict_table, probabilities
from helpers.models.classifier import ClassifierConfig, fit_classifier, ids_of, load_classifier
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig

RARE_FRACTION = 0.05  # of the labeled images, at most


def rare_classes(store: Store) -> list[str]:
    """Classes with at most `RARE_FRACTION` of the labeled images; if there are none, the rarest class."""
    counts = np.bincount(store.labels[store.rows(needs=["label"])], minlength=len(store.classes))
    limit = RARE_FRACTION * counts.sum()
    rare = [name for name, count in zip(store.classes, counts, strict=True) if 0 < count <= limit]
    return rare or [store.classes[int(np.where(counts > 0, counts, counts.max()).argmin())]]


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

    def fit(self, store: Store) -> "BalancingExperiment":
        """With the classes of the store. Raises `ValueError` if a config does not fit the store."""
        configs = {name: fit_config(getattr(self, name), store) for name in ("classifier", "cgan", "dcgan")}
        return replace(self, **configs)


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

    Arms: "unbalanced"; "class-weighted" (loss); "oversampled" (classes sampled equally); and oversampled with synthetic
    images of the rare classes, from a DCGAN, a CGAN or blending, see `synthetic_arms`. `only`: names of the arms to
    run. Every fold trains its generators on its own training rows; seeds share folds and generators.

    Returns the columns `arm fraction seed`, those of `predict_table`, `fold init seconds`. Raises `DataError` if masks
    or labels are missing, `ValueError` for an unknown arm.
    """
    experiment = experiment.fit(store)
    out, folds = Path(out), lesion_folds(store, experiment.folds)
    rare = [store.classes.index(name) for name in rare_classes(store)]
    with_mask = store.rows(needs=["mask", "label", "sketch"])
    if not np.isin(store.labels[with_mask], rare).any():
        names = " ".join(store.classes[k] for k in rare)
        raise DataError(f"{store.name} needs masks of its rare classes ({names}) to generate or blend them, got none")

    def synthetic_source(method: str, fold: int, seed: int) -> ImageSource:
        train, folder = folds[fold][0], out / f"fold-{fold}" / method
        masked = np.intersect1d(train, with_mask)
        rare_rows = train if method == "DCGAN" else masked
        rare_rows = rare_rows[np.isin(store.labels[rare_rows], rare)]
        if method == "DCGAN":
            train_gan(store, experiment.dcgan, folder, experiment.dcgan_train, train)
            return dcgan_images(folder / "checkpoint.pt", store, rare_rows, experiment.num_synthetic, seed)
        if method == "CGAN":
            train_gan(store, experiment.cgan, folder, experiment.gan_train, masked)
            return cgan_images(
                folder / "checkpoint.pt", store, rare_rows, experiment.num_synthetic, seed, balanced=True
            )
        return blended_images(store, rare_rows, experiment.num_synthetic, small_lesions(store, masked), seed)

    def arm(balance: str, method: str | None = None, real_per_synthetic: int = 1) -> Arm:
        config = replace(experiment.classifier, balance=balance)

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            tables, seconds = [], 0.0
            for fold, (train, test) in enumerate(folds):
                # Every source that has a class is equally likely, so repeating the real one sets the ratio.
                sources = real_per_synthetic * [ImageSource(store.images, train, labels=store.labels)]
                sources += [synthetic_source(method, fold, seed)] if method else []
                start, folder = time.perf_counter(), work / f"{fold}"
                ids = ids_of(store.table.iloc[train])
                fit_classifier(sources, config, folder, replace(experiment.train, seed=seed), ids)
                seconds += time.perf_counter() - start
                classifier, _ = load_classifier(folder / "checkpoint.pt")
                tables.append(predict_table(classifier, store, test).assign(fold=fold, init=classifier.backbone.init))
            return pd.concat(tables).assign(seconds=round(seconds, 1))

        return run_one

    arms = {"unbalanced": arm("none"), "class-weighted": arm("loss"), "oversampled": arm("sampling")}
    arms |= {
        name: arm("sampling", method, n) for name, (method, n) in synthetic_arms(experiment.real_per_synthetic).items()
    }
    return run_grid(arms, [1.0], experiment.seeds, out, fingerprint_of(experiment, data=store.folder.name), only)


def rare_recall(classes: list[str], rare: list[str]) -> Callable[[pd.DataFrame, np.ndarray], np.ndarray]:
    """A `Measure` of tables of `predict_table`: mean recall of the `rare` classes, over all folds together."""
    chosen = [classes.index(name) for name in rare]

    def mean_recall_of_rare_classes(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        return recalls(probabilities(table), table["label"].to_numpy(), weights)[:, chosen].mean(axis=1)

    return mean_recall_of_rare_classes
