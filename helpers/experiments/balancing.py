"""Rare classes: weighted, seen more often, or filled up with images that nobody photographed. What gains recall?

Rare classes have so few lesions that a test split of a tenth says nothing about them. So five folds, split by lesion,
take turns: every lesion is tested once, by a classifier (and generators) that never saw it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from helpers.data.files import DataError
from helpers.data.store import ImageSource, Store
from helpers.experiments.real_vs_synthetic import predict_table, probabilities
from helpers.experiments.runner import Arm, run_grid
from helpers.experiments.synthetic import blended_images, cgan_images, dcgan_images, small_lesions
from helpers.metrics.classification import recalls
from helpers.models.cgan import CGANConfig, train_cgan
from helpers.models.classifier import ClassifierConfig, fit_classifier, ids_of, load_classifier
from helpers.models.dcgan import DCGANConfig, train_dcgan
from helpers.models.trainer import TrainConfig

RARE = 0.05  # of all labelled images, at most


def rare_classes(store: Store) -> list[str]:
    """Classes with at most a twentieth of the labelled images; the rarest alone where none is so rare."""
    counts = np.bincount(store.labels[store.rows(needs=["label"])], minlength=len(store.classes))
    rare = [name for name, count in zip(store.classes, counts, strict=True) if 0 < count <= RARE * counts.sum()]
    return rare or [store.classes[int(np.where(counts > 0, counts, counts.max()).argmin())]]


def lesion_folds(store: Store, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of each fold, from all splits together: whole lesions, classes in equal shares. Raises
    `DataError` when a class has fewer lesions than there are folds."""
    rows = store.rows(needs=["label"])
    labels, lesions = store.labels[rows], store.table["lesion_id"].fillna(store.table["image_id"]).to_numpy(str)[rows]
    few = [name for k, name in enumerate(store.classes) if 0 < len(set(lesions[labels == k])) < count]
    if few:
        raise DataError(f"{', '.join(few)}: fewer lesions than the {count} folds, so some fold would have none")
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=0).split(rows, labels, lesions)
    return [(rows[train], rows[test]) for train, test in folds]


@dataclass(frozen=True)
class BalancingPlan:
    """Sizes of the experiment; all arms take the same number of optimiser steps."""

    classifier: ClassifierConfig
    cgan: CGANConfig
    dcgan: DCGANConfig
    train_config: TrainConfig
    gan_train_config: TrainConfig  # of the CGAN
    dcgan_train_config: TrainConfig  # of the DCGAN
    num_synthetic: int  # images, of all rare classes together, in each fold
    folds: int
    seeds: tuple[int, ...]
    real_per_synthetic: tuple[int, ...] = (
        1,
    )  # how many real images of a rare class are seen for each made one; an arm for each


def balancing_plan(cfg: SimpleNamespace, store: Store) -> BalancingPlan:
    """From `get_config("balancing")` or `("folds")`."""
    classes = tuple(store.classes)
    return BalancingPlan(
        classifier=ClassifierConfig(cfg.size, classes, cfg.arch),
        cgan=CGANConfig(cfg.size, classes, store.config.style, cfg.base_channels, projected=cfg.projected),
        dcgan=DCGANConfig(cfg.size, classes, cfg.base_channels, projected=cfg.projected),
        train_config=TrainConfig(cfg.steps, cfg.batch_size),
        gan_train_config=TrainConfig(cfg.gan_steps, cfg.gan_batch_size),
        dcgan_train_config=TrainConfig(cfg.dcgan_steps, cfg.dcgan_batch_size),
        num_synthetic=cfg.num_synthetic,
        folds=cfg.folds,
        seeds=cfg.seeds,
        real_per_synthetic=cfg.real_per_synthetic,
    )


def synthetic_arms(real_per_synthetic: tuple[int, ...] = (1,)) -> dict[str, tuple[str, int]]:
    """Arms with images that nobody photographed: how they are made, and how many real ones are seen for each."""
    return {
        how if n == 1 else f"{how}, one in {n + 1}": (how, n)
        for n in real_per_synthetic
        for how in ("DCGAN", "CGAN", "blended")
    }


def comparison_pairs(best: str, real_per_synthetic: tuple[int, ...] = (1,)) -> list[tuple[str, str]]:
    """What is compared: the usual remedies with none, images that nobody photographed with the better of these."""
    baselines = [(arm, "unbalanced") for arm in ("class-weighted", "oversampled")]
    return baselines + [(arm, best) for arm in synthetic_arms(real_per_synthetic)]


def best_baseline(summary: pd.DataFrame) -> str:
    """Class weights or oversampling, whichever has the higher measure in a `summary`; oversampling where neither was
    asked."""
    baselines = summary.xs(summary.index[0][0])[lambda table: table.index.isin(["class-weighted", "oversampled"])]
    return str(baselines.iloc[:, 2].idxmax()) if len(baselines) else "oversampled"


def balancing_experiment(
    store: Store, plan: BalancingPlan, out: str | Path, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Images as they are; every class with equal weight; every class equally often; the same with half (or less, see
    `often`) of the rare classes' images drawn from noise, from deformed sketches, or blended onto other skin; or of
    these arms `only` some. All are augmented.

    Every fold trains its generators on its own training rows. Folds and generators are the same for all seeds. Raises
    `DataError` where masks or labels are missing, `ValueError` for an arm that does not exist.
    """
    out, folds = Path(out), lesion_folds(store, plan.folds)
    rare = [store.classes.index(name) for name in rare_classes(store)]
    with_mask = store.rows(needs=["mask", "label", "sketch"])
    if not np.isin(store.labels[with_mask], rare).any():
        raise DataError(f"{store.name} has no masks of its rare classes: nothing to draw or to blend them from")

    def synthetic_source(how: str, fold: int, seed: int) -> ImageSource:
        train, folder = folds[fold][0], out / f"fold-{fold}" / how
        outlined = np.intersect1d(train, with_mask)
        rare_rows = train if how == "DCGAN" else outlined
        rare_rows = rare_rows[np.isin(store.labels[rare_rows], rare)]
        if how == "DCGAN":
            train_dcgan(store, plan.dcgan, folder, plan.dcgan_train_config, train)
            return dcgan_images(folder / "checkpoint.pt", store, rare_rows, plan.num_synthetic, seed)
        if how == "CGAN":
            train_cgan(store, plan.cgan, folder, plan.gan_train_config, outlined)
            return cgan_images(folder / "checkpoint.pt", store, rare_rows, plan.num_synthetic, seed, balanced=True)
        return blended_images(store, rare_rows, plan.num_synthetic, small_lesions(store, outlined), seed)

    def arm(balance: str, how: str | None = None, real_per_synthetic: int = 1) -> Arm:
        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            tables, seconds = [], 0.0
            for fold, (train, test) in enumerate(folds):
                sources = real_per_synthetic * [ImageSource(store.images, train, labels=store.labels)] + (
                    [synthetic_source(how, fold, seed)] if how else []
                )
                settings, names = replace(plan.classifier, balance=balance), ids_of(store.table.iloc[train])
                start = time.perf_counter()
                fit_classifier(sources, settings, work / f"{fold}", replace(plan.train_config, seed=seed), names)
                seconds += time.perf_counter() - start
                classifier, _ = load_classifier(work / f"{fold}" / "checkpoint.pt")
                tables.append(predict_table(classifier, store, test).assign(fold=fold, init=classifier.backbone.init))
            return pd.concat(tables).assign(seconds=round(seconds, 1))

        return run_one

    arms = {
        "unbalanced": arm("none"),
        "class-weighted": arm("loss"),
        "oversampled": arm("sampling"),
    } | {name: arm("sampling", how, often) for name, (how, often) in synthetic_arms(plan.real_per_synthetic).items()}
    facts = asdict(plan) | {"data": store.folder.name}
    decides = {name: value for name, value in facts.items() if name not in ("seeds", "often")}
    return run_grid(arms, [1.0], plan.seeds, out, decides, only)


def rare_recall(classes: list[str], rare: list[str]) -> Callable[[pd.DataFrame, np.ndarray], np.ndarray]:
    """A measure: mean recall of the `rare` classes, over all folds together."""
    chosen = [classes.index(name) for name in rare]

    def mean_recall_of_rare_classes(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        return recalls(probabilities(table), table["label"].to_numpy(), weights)[:, chosen].mean(axis=1)

    return mean_recall_of_rare_classes
