"""Do synthetic images help a classifier? Scores on real images, the arms of the experiment, other data sets."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.special import softmax

from helpers.data.batches import ImageSource
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.runner import (
    NO_AUGMENTATION,
    Arm,
    check_fractions,
    check_rows,
    fraction_of_rows,
    plan_fingerprint,
    run_grid,
)
from helpers.experiments.synthetic import cgan_images
from helpers.metrics import classification
from helpers.models.classifier import (
    Classifier,
    ClassifierConfig,
    fit_classifier,
    ids_of,
    load_classifier,
    predict_logits,
    predict_proba,
)
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig

# ------------------------------------------------------------------------------------------------------------ scoring


def predict_table(classifier: Classifier, store: Store, rows: np.ndarray) -> pd.DataFrame:
    """Calibrated probabilities for `rows` of a store: columns `image_id group label`, then `p_<class>`. `group` is the
    lesion id, or the image id if it is not known.

    Raises `DataError` if classifier and store differ in their classes, if the classifier was trained on one of these
    images or lesions, or if a label is missing.
    """
    if tuple(classifier.classes) != tuple(store.classes):
        raise DataError(f"classifier and {store.name} must have the same classes, got {' '.join(classifier.classes)} "
                        f"and {' '.join(store.classes)}")  # fmt: skip
    check_not_trained_on(classifier, store, rows)
    check_labeled(store, rows)
    return _as_table(store, rows, store.labels[rows], predict_proba(classifier, store.images[rows]), store.classes)


def predict_cross_dataset(
    classifier: Classifier, store: Store, rows: np.ndarray, class_map: dict[str, str] | None = None
) -> pd.DataFrame:
    """Calibrated probabilities for `rows` of a data set with other classes, in the columns of `predict_table`.

    Only the classes that both have are used: images of other classes are left out, and probabilities sum to 1 over the
    shared ones. `class_map` renames the store's classes, such as {"SK": "BKL"}.

    Raises `DataError` if fewer than two classes are shared, if the classifier was trained on one of these images or
    lesions, or if a label is missing.
    """
    check_not_trained_on(classifier, store, rows)
    check_labeled(store, rows)
    names = [(class_map or {}).get(name, name) for name in store.classes]
    shared = [name for name in classifier.classes if name in names]
    if len(shared) < 2:
        raise DataError(f"classifier and {store.name} must share at least two classes, got "
                        f"{' '.join(classifier.classes)} and {' '.join(names)}")  # fmt: skip
    labels = np.array([shared.index(name) if name in shared else -1 for name in names])[store.labels[rows]]
    rows, labels = rows[labels >= 0], labels[labels >= 0]
    logits = predict_logits(classifier, store.images[rows])[:, [classifier.classes.index(name) for name in shared]]
    return _as_table(store, rows, labels, softmax(logits / classifier.temperature, axis=1), shared)


def _as_table(store: Store, rows: np.ndarray, labels: np.ndarray, p: np.ndarray, classes: Sequence[str]):
    table = store.table.iloc[rows]
    metadata = {"image_id": table["image_id"], "group": table["lesion_id"].fillna(table["image_id"]), "label": labels}
    columns = metadata | {f"p_{name}": p[:, k] for k, name in enumerate(classes)}
    return pd.DataFrame(columns).reset_index(drop=True)


def check_not_trained_on(classifier: Classifier, store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` if the classifier was trained on one of these images or on another image of their lesions."""
    if leaked := sorted(set(ids_of(store.table.iloc[rows])) & set(classifier.trained_on)):
        raise DataError(f"{len(leaked)} test images or lesions are in the classifier's training set "
                        f"({', '.join(leaked[:5])}): test it on others")  # fmt: skip


def check_labeled(store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` if there are no rows, or a label is missing."""
    if not len(rows) or (store.labels[rows] < 0).any():
        unlabeled = int((store.labels[rows] < 0).sum())
        raise DataError(f"{store.name}: need labeled test images, got {len(rows)} images, {unlabeled} without label")


def probabilities(table: pd.DataFrame) -> np.ndarray:
    """The probabilities `(N, K)` in a table of `predict_table`."""
    return table.filter(regex="^p_").to_numpy()


def balanced_accuracy(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Mean recall over classes `(R,)` of a table of `predict_table`, for bootstrap `weights (R, N)`."""
    return classification.balanced_accuracy(probabilities(table), table["label"].to_numpy(), weights)


def auc(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Mean one-vs-rest ROC AUC `(R,)` of a table of `predict_table`, for bootstrap `weights (R, N)`."""
    return classification.auc(probabilities(table), table["label"].to_numpy(), weights)


def average_precision(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Mean one-vs-rest average precision `(R,)` of a table of `predict_table`, for bootstrap `weights (R, N)`."""
    return classification.average_precision(probabilities(table), table["label"].to_numpy(), weights)


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Scores of a table of `predict_table`: a row per measure and per class's recall, with `value`, 95 % interval
    (bootstrap over lesions), N, and the score of always predicting the `majority` class."""
    p, labels = probabilities(table), table["label"].to_numpy()
    measures = [
        classification.balanced_accuracy,
        classification.accuracy,
        classification.auc,
        classification.average_precision,
    ]
    scores = classification.with_intervals(measures, p, labels, table["group"])
    names = {f"recall {k}": f"recall {name}" for k, name in enumerate(classes_of(table))}
    majority_p = np.zeros_like(p)
    majority_p[:, np.bincount(labels).argmax()] = 1
    majority = [measure(majority_p, labels, np.ones((1, len(labels)))).item() for measure in measures]
    return scores.rename(index=names).assign(majority=[*majority, *[np.nan] * (len(scores) - len(measures))])


def recalls_by_arm(results: pd.DataFrame) -> pd.DataFrame:
    """Recall per class (columns), mean over seeds: a row per fraction and arm, below the number of images N and the
    recalls of always predicting the majority class."""
    classes = classes_of(results)
    images = results[results["seed"] == results["seed"].iloc[0]].drop_duplicates("image_id")
    counts = np.bincount(images["label"], minlength=len(classes))
    rows = {("", "N"): counts, ("", "majority"): (counts == counts.max()).astype(float)}
    for (fraction, arm), runs in results.groupby(["fraction", "arm"], sort=False):
        weights = np.ones((1, len(runs)))
        rows[f"{fraction:.0%}", arm] = classification.recalls(probabilities(runs), runs["label"].to_numpy(), weights)[0]
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["fraction", "arm"]), classes)


def classes_of(table: pd.DataFrame) -> list[str]:
    """Class names in a table of `predict_table`."""
    return [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]


# --------------------------------------------------------------------------------------------------------- experiment


@dataclass(frozen=True)
class RealVsSyntheticPlan:
    """Sizes of the experiment; all arms take the same number of optimizer steps."""

    classifier: ClassifierConfig
    generator: GANConfig
    train_config: TrainConfig  # of the classifiers
    gan_train_config: TrainConfig
    num_synthetic: int
    fractions: tuple[float, ...]  # of the real training images
    seeds: tuple[int, ...]


def real_vs_synthetic_plan(cfg: SimpleNamespace, store: Store) -> RealVsSyntheticPlan:
    """The plan of `get_config("real_vs_synthetic")` or `get_config("real_vs_synthetic_notebook")`."""
    classes = tuple(store.classes)
    return RealVsSyntheticPlan(
        classifier=ClassifierConfig(cfg.size, classes, cfg.arch),
        generator=GANConfig(cfg.size, classes, store.config.style, cfg.base_channels, projected=cfg.projected),
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
    """Train a classifier per arm, fraction and seed, and test it once on the real images of `split`.

    Arms: real images and synthetic ones, together or alone, with and without augmentation, classes sampled equally;
    "class-weighted" samples real images uniformly and weights the loss instead. `only`: names of the arms to run. The
    generator of a fraction is trained on that fraction's images only. Seeds share fractions and generators, and decide
    synthetic images, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `predict_table`, `init` (initial weights) and `seconds`. Raises
    `DataError` if masks or labels are missing, `ValueError` for fractions outside (0, 1] or an unknown arm.
    """
    out, test_rows = Path(out), store.rows(split, needs=["label"])
    check_fractions(plan.fractions)
    check_rows(store, test_rows, split)

    @lru_cache(maxsize=len(plan.seeds))  # all arms of a fraction use the same images
    def synthetic_source(fraction: float, seed: int) -> ImageSource:
        rows, folder = fraction_of_rows(store, fraction), out / f"generator-{fraction:g}"
        train_gan(store, plan.generator, folder, plan.gan_train_config, rows)
        return cgan_images(folder / "checkpoint.pt", store, rows, plan.num_synthetic, seed, balanced=True)

    def arm(real: bool = False, synthetic: bool = False, augmented: bool = False, balance: str = "sampling") -> Arm:
        config = replace(plan.classifier, balance=balance, **({} if augmented else NO_AUGMENTATION))

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            rows = fraction_of_rows(store, fraction)
            sources = [ImageSource(store.images, rows, labels=store.labels)] if real else []
            sources += [synthetic_source(fraction, seed)] if synthetic else []
            start = time.perf_counter()
            fit_classifier(sources, config, work, replace(plan.train_config, seed=seed), ids_of(store.table.iloc[rows]))
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
    fingerprint = plan_fingerprint(plan, split=split, data=store.folder.name)
    return run_grid(arms, plan.fractions, plan.seeds, out, fingerprint, only)
