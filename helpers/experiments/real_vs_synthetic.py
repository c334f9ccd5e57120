"""Do drawn images help a classifier? Arms, scores on real images, and what another data set says."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.special import softmax

from helpers.data.files import DataError
from helpers.data.store import ImageSource, Store
from helpers.experiments.runner import Arm, fraction_of_rows, run_grid
from helpers.experiments.synthetic import cgan_images
from helpers.metrics import classification
from helpers.models.cgan import CGANConfig, train_cgan
from helpers.models.classifier import (
    Classifier,
    ClassifierConfig,
    fit_classifier,
    ids_of,
    load_classifier,
    predict_logits,
    predict_proba,
)
from helpers.models.trainer import TrainConfig

# ------------------------------------------------------------------------------------------------------------ scoring


def predict_table(classifier: Classifier, store: Store, rows: np.ndarray) -> pd.DataFrame:
    """Calibrated probabilities of these rows of a store: `image_id group label`, then `p_<class>` each. `group` is the
    lesion. Raises `DataError` when the classifier knows other classes, when it was trained on one of these images or
    lesions, or when one has no label."""
    if tuple(classifier.classes) != tuple(store.classes):
        there = " ".join(store.classes)
        raise DataError(f"the classifier knows {' '.join(classifier.classes)}, {store.name} has {there}")
    check_not_trained_on(classifier, store, rows)
    check_labeled(store, rows)
    return _as_table(store, rows, store.labels[rows], predict_proba(classifier, store.images[rows]), store.classes)


def predict_cross_dataset(
    classifier: Classifier, store: Store, rows: np.ndarray, same: dict[str, str] | None = None
) -> pd.DataFrame:
    """The same on a set with other classes, for those that both know: probabilities add up to 1 over them, pictures of
    other classes are left out. `same` renames the store's classes, such as {"SK": "BKL"}.

    Raises `DataError` when they share fewer than two classes.
    """
    check_not_trained_on(classifier, store, rows)
    check_labeled(store, rows)
    names = [(same or {}).get(name, name) for name in store.classes]
    shared = [name for name in classifier.classes if name in names]
    if len(shared) < 2:
        raise DataError(f"the classifier knows {' '.join(classifier.classes)}, {store.name} has {' '.join(names)}")
    label = np.array([shared.index(name) if name in shared else -1 for name in names])[store.labels[rows]]
    rows, label = rows[label >= 0], label[label >= 0]
    logits = predict_logits(classifier, store.images[rows])[:, [classifier.classes.index(name) for name in shared]]
    return _as_table(store, rows, label, softmax(logits / classifier.temperature, axis=1), shared)


def _as_table(store: Store, rows: np.ndarray, labels: np.ndarray, p: np.ndarray, classes: Sequence[str]):
    table = store.table.iloc[rows]
    about = {"image_id": table["image_id"], "group": table["lesion_id"].fillna(table["image_id"]), "label": labels}
    return pd.DataFrame({**about, **{f"p_{name}": p[:, k] for k, name in enumerate(classes)}}).reset_index(drop=True)


def check_not_trained_on(classifier: Classifier, store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` with the names of images or lesions that the classifier was trained on."""
    if known := sorted(set(ids_of(store.table.iloc[rows])) & set(classifier.trained_on)):
        names = ", ".join(known[:5])
        raise DataError(f"{len(known)} images or lesions to be tested on were trained on ({names}): not a test")


def check_labeled(store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` when there is nothing to test on, or no label to compare with."""
    if not len(rows) or (store.labels[rows] < 0).any():
        raise DataError(
            f"{store.name}: {len(rows)} pictures, {int((store.labels[rows] < 0).sum())} of them without label"
        )


def probabilities(table: pd.DataFrame) -> np.ndarray:
    """`(N, K)` of a table of `diagnose`."""
    return table.filter(regex="^p_").to_numpy()


def balanced_accuracy(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    return classification.balanced_accuracy(probabilities(table), table["label"].to_numpy(), weights)


def auc(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    return classification.auc(probabilities(table), table["label"].to_numpy(), weights)


def average_precision(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    return classification.average_precision(probabilities(table), table["label"].to_numpy(), weights)


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `diagnose` as measures with intervals (lesions resampled whole), below them what always naming the
    commonest class would reach."""
    p, labels = probabilities(table), table["label"].to_numpy()
    measures = [
        classification.balanced_accuracy,
        classification.accuracy,
        classification.auc,
        classification.average_precision,
    ]
    found = classification.with_intervals(measures, p, labels, table["group"])
    names = {f"recall {k}": f"recall {name}" for k, name in enumerate(classes_of(table))}
    majority = np.zeros_like(p)
    majority[:, np.bincount(labels).argmax()] = 1
    one = np.ones((1, len(labels)))
    return found.rename(index=names).assign(
        majority=[*(measure(majority, labels, one).item() for measure in measures), *[np.nan] * (len(found) - 4)]
    )


def recalls_by_arm(results: pd.DataFrame) -> pd.DataFrame:
    """Recall of every class, mean over seeds, a row per share and arm, above them how many images there are (N) and
    what always naming the commonest class would reach."""
    classes = classes_of(results)
    one = results[results["seed"] == results["seed"].iloc[0]].drop_duplicates("image_id")
    counts = np.bincount(one["label"], minlength=len(classes))
    rows = {("", "N"): counts, ("", "majority"): (counts == counts.max()).astype(float)}
    for (share, arm), cell in results.groupby(["fraction", "arm"], sort=False):
        drawn = np.ones((1, len(cell)))
        rows[f"{share:.0%}", arm] = classification.recalls(probabilities(cell), cell["label"].to_numpy(), drawn)[0]
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["fraction", "arm"]), classes)


def classes_of(table: pd.DataFrame) -> list[str]:
    return [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]


# --------------------------------------------------------------------------------------------------------- experiment


@dataclass(frozen=True)
class RealVsSyntheticPlan:
    """Sizes of the experiment; all arms take the same number of optimiser steps."""

    classifier: ClassifierConfig
    generator: CGANConfig
    train_config: TrainConfig
    gan_train_config: TrainConfig  # of the generator
    num_synthetic: int
    fractions: tuple[float, ...]  # of the real training images
    seeds: tuple[int, ...]


def real_vs_synthetic_plan(cfg: SimpleNamespace, store: Store) -> RealVsSyntheticPlan:
    """From `get_config("real_vs_synthetic_notebook")` or `("real_vs_synthetic")`."""
    classes = tuple(store.classes)
    return RealVsSyntheticPlan(
        classifier=ClassifierConfig(cfg.size, classes, cfg.arch),
        generator=CGANConfig(cfg.size, classes, store.config.style, cfg.base_channels, projected=cfg.projected),
        train_config=TrainConfig(cfg.steps, cfg.batch_size),
        gan_train_config=TrainConfig(cfg.gan_steps, cfg.gan_batch_size),
        num_synthetic=cfg.num_synthetic,
        fractions=cfg.fractions,
        seeds=cfg.seeds,
    )


COMPARISON_PAIRS = [
    ("real + augmentation", "real"),
    ("class-weighted", "real + augmentation"),
    ("real + synthetic", "real"),
    ("synthetic only", "real"),
    ("real + synthetic + augmentation", "real + augmentation"),
]


def real_vs_synthetic_experiment(
    store: Store, plan: RealVsSyntheticPlan, out: str | Path, split: str = "test", only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Real images, every class equally often; with classical augmentation; augmented, drawn as they come and weighted
    in the loss instead; with as many drawn images, without and with augmentation; drawn images alone; or of these arms
    `only` some.

    Of each share of the training images, the generator too sees no others. Share and generator are the same for all
    seeds, which decide the drawings, the first weights and the batches. Scored, once, on the real images of `split`.
    Raises `DataError` where labels are missing, `ValueError` for shares outside (0, 1]
    and for an arm that does not exist.
    """
    out, measured = Path(out), store.rows(split, needs=["label"])
    if out_of_range := [share for share in plan.fractions if not 0 < share <= 1]:
        raise ValueError(f"shares {out_of_range} of the training images are not in (0, 1]")
    if not len(measured) or not len(fraction_of_rows(store, 1.0)):
        raise DataError(f"{store.name} lacks masks or labels in train or {split}: nothing to compare classifiers on")

    @lru_cache(maxsize=len(plan.seeds))  # arms of one share use the same
    def synthetic_source(share: float, seed: int) -> ImageSource:
        rows, folder = fraction_of_rows(store, share), out / f"generator-{share:g}"
        train_cgan(store, plan.generator, folder, plan.gan_train_config, rows)
        return cgan_images(folder / "checkpoint.pt", store, rows, plan.num_synthetic, seed, balanced=True)

    def arm(real: bool, augmented: bool, synthetic: bool, balance: str = "sampling") -> Arm:
        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            rows = fraction_of_rows(store, fraction)
            sources = [ImageSource(store.images, rows, labels=store.labels)] if real else []
            sources += [synthetic_source(fraction, seed)] if synthetic else []
            config = (
                plan.classifier if augmented else replace(plan.classifier, color_jitter=0.0, translate=0.0, scale=0.0)
            )
            config, start = replace(config, balance=balance), time.perf_counter()
            fit_classifier(sources, config, work, replace(plan.train_config, seed=seed), ids_of(store.table.iloc[rows]))
            seconds = time.perf_counter() - start
            classifier, _ = load_classifier(work / "checkpoint.pt")
            table = predict_table(classifier, store, measured)
            return table.assign(init=classifier.backbone.init, seconds=round(seconds, 1))

        return run_one

    arms = {
        "real": arm(True, False, False),
        "real + augmentation": arm(True, True, False),
        "class-weighted": arm(True, True, False, "loss"),
        "real + synthetic": arm(True, False, True),
        "real + synthetic + augmentation": arm(True, True, True),
        "synthetic only": arm(False, False, True),
    }
    facts = asdict(plan) | {"split": split, "data": store.folder.name}
    decides = {name: value for name, value in facts.items() if name not in ("fractions", "seeds")}
    return run_grid(arms, plan.fractions, plan.seeds, out, decides, only)
