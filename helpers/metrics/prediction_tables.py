"""Predicted class probabilities of real images as a table with a row per image, and the scores of such tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import confusion_matrix
from torch import nn

from helpers.data.diagnoses import our_class
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.metrics import classification
from helpers.models.classifier import Classifier, hide_surroundings, predict_logits, predict_proba


def predict_table(classifier: Classifier, store: Store, rows: np.ndarray) -> pd.DataFrame:
    """Calibrated probabilities for `rows` of a store: columns `image_id group label`, then `p_<class>`. `group` is the
    lesion id, or the image id if it is not known.

    Raises `DataError` if classifier and store differ in their classes, if the classifier was trained on one of these
    images or lesions, or if a label is missing.
    """
    if tuple(classifier.classes) != tuple(store.classes):
        raise DataError(f"classifier and {store.name} must have the same classes, got {' '.join(classifier.classes)} "
                        f"and {' '.join(store.classes)}")  # fmt: skip
    check_test_rows(classifier, store, rows)
    p = predict_proba(classifier, classifier_inputs(classifier, store, rows))
    return _as_table(store, rows, store.labels[rows], p, store.classes)


@dataclass(frozen=True)
class SharedClasses:
    """Classes that a classifier and a data set both have, by `our_class`: `names` (S of them), the index of the name of
    each of the classifier's classes in `columns`, and of each of the data set's in `labels`, -1 where it is not shared.
    A class that several names mean, such as NV by common and atypical nevus, has the name of `our_class`."""

    names: list[str]
    columns: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, classifier_classes: Sequence[str], store_classes: Sequence[str]) -> "SharedClasses":
        ours, theirs = [our_class(c) for c in classifier_classes], [our_class(c) for c in store_classes]
        shared = [name for name in dict.fromkeys(ours) if name in theirs]
        columns, labels = (np.array([shared.index(c) if c in shared else -1 for c in x], int) for x in (ours, theirs))
        own = {name: c for c, name in zip(classifier_classes, ours, strict=True) if ours.count(name) == 1}
        return cls([own.get(name, name) for name in shared], columns, labels)


def predict_cross_dataset(classifier: Classifier, store: Store, rows: np.ndarray) -> pd.DataFrame:
    """Calibrated probabilities for `rows` of a data set with other classes, in the columns of `predict_table`.

    Only the `SharedClasses` are used: images of other classes are left out, and probabilities sum to 1 over the shared
    ones.

    Raises `DataError` if fewer than two classes are shared, if the classifier was trained on one of these images or
    lesions, or if a label is missing.
    """
    check_test_rows(classifier, store, rows)
    shared = SharedClasses.of(classifier.classes, store.classes)
    if len(shared.names) < 2:
        raise DataError(f"classifier and {store.name} must share at least two classes, got "
                        f"{' '.join(classifier.classes)} and {' '.join(store.classes)}")  # fmt: skip
    labels = shared.labels[store.labels[rows]]
    rows, labels = rows[labels >= 0], labels[labels >= 0]
    logits = predict_logits(classifier, classifier_inputs(classifier, store, rows))[:, shared.columns >= 0]
    p = softmax(logits / classifier.temperature, axis=1)  # (N, shared columns), of which some may be of one class
    p = p @ np.eye(len(shared.names))[shared.columns[shared.columns >= 0]]  # (N, S)
    return _as_table(store, rows, labels, p, shared.names)


def classifier_inputs(classifier: Classifier, store: Store, rows: np.ndarray) -> np.ndarray:
    """The images at `rows` of a store, `uint8 (N, S, S, 3)`; with gray surroundings for a classifier that was trained
    on such images, which needs rows that have a mask."""
    images = store.images[rows]
    return hide_surroundings(images, store.masks[rows]) if classifier.lesion_only else images


def _as_table(store: Store, rows: np.ndarray, labels: np.ndarray, p: np.ndarray, classes: Sequence[str]):
    ids = store.table["image_id"].iloc[rows].reset_index(drop=True)
    probs = {f"p_{name}": p[:, k] for k, name in enumerate(classes)}
    return pd.DataFrame({"image_id": ids, "group": store.lesions[rows], "label": labels} | probs)


def check_not_trained_on(network: nn.Module, store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` if a loaded network was trained on one of these images or on another image of their lesions."""
    leaked = store.rows_in(network.trained_on, rows)
    if len(leaked):
        examples, name = ", ".join(store.table["image_id"].iloc[leaked[:5]]), type(network).__name__.lower()
        raise DataError(f"the lesions of {len(leaked)} test images are in the {name}'s training set ({examples}): "
                        "test it on others")  # fmt: skip


def check_test_rows(classifier: Classifier, store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` as `check_not_trained_on` does, if there are no rows, or if a label is missing."""
    check_not_trained_on(classifier, store, rows)
    if not len(rows) or (store.labels[rows] < 0).any():
        unlabeled = int((store.labels[rows] < 0).sum())
        raise DataError(f"{store.name}: need labeled test images, got {len(rows)} images, {unlabeled} without label")


def probabilities(table: pd.DataFrame) -> np.ndarray:
    """The probabilities `(N, K)` in a table of `predict_table`."""
    return table.filter(regex="^p_").to_numpy()


def _of_table(measure: classification.Measure) -> Callable[[pd.DataFrame, np.ndarray], np.ndarray]:
    """`measure` as a function of a table of `predict_table` and bootstrap `weights (R, N)`, `(R,)` in [0, 1]."""

    @wraps(measure)
    def measure_table(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        return measure(probabilities(table), table["label"].to_numpy(), weights)

    return measure_table


accuracy = _of_table(classification.accuracy)
balanced_accuracy = _of_table(classification.balanced_accuracy)
auc = _of_table(classification.auc)
average_precision = _of_table(classification.average_precision)
MIN_COLLAPSE_N = 30  # images of a class; fewer do not show a collapse
MEASURES = (classification.balanced_accuracy, classification.accuracy, classification.auc,
            classification.average_precision)  # fmt: skip


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Scores of a table of `predict_table`: a row per measure and per class's recall, with `value`, 95 % interval
    (bootstrap over lesions), N, and the score of always predicting the `majority` class."""
    p, labels = probabilities(table), table["label"].to_numpy()
    scores = classification.with_intervals(MEASURES, p, labels, table["group"])
    names = {f"recall {k}": f"recall {name}" for k, name in enumerate(classes_of(table))}
    majority_p = np.zeros_like(p)
    majority_p[:, np.bincount(labels).argmax()] = 1
    majority = [measure(majority_p, labels, np.ones((1, len(labels)))).item() for measure in MEASURES]
    return scores.rename(index=names).assign(majority=[*majority, *[np.nan] * (len(scores) - len(MEASURES))])


def confusion_counts(table: pd.DataFrame) -> np.ndarray:
    """Confusion matrix `(K, K)` of a table of `predict_table`: counts, rows true and columns predicted classes."""
    classes = range(len(classes_of(table)))
    return confusion_matrix(table["label"], probabilities(table).argmax(axis=1), labels=classes)


def is_collapsed(table: pd.DataFrame) -> bool:
    """Whether a training collapsed: among the classes with `MIN_COLLAPSE_N` or more images in a table of
    `predict_table`, more than half of one class's images are predicted to be of one other class."""
    counts = confusion_counts(table)
    large = np.flatnonzero(counts.sum(axis=1) >= MIN_COLLAPSE_N)
    fractions = counts[np.ix_(large, large)] / np.maximum(counts[large].sum(axis=1, keepdims=True), 1)
    return bool((fractions[~np.eye(len(large), dtype=bool)] > 0.5).any())


def recall_of(classes: Sequence[str], name: str) -> Callable[[pd.DataFrame, np.ndarray], np.ndarray]:
    """A measure of tables of `predict_table`: the recall of one class, whose index is its attribute `label`."""
    column = list(classes).index(name)

    def recall(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        return classification.recalls(probabilities(table), table["label"].to_numpy(), weights)[:, column]

    recall.__name__, recall.label = f"recall_{name}", column
    return recall


def recalls_by_arm(results: pd.DataFrame) -> pd.DataFrame:
    """Recall per class (columns), mean over seeds, and balanced accuracy: a row per fraction and arm, below the number
    of images N and the recalls of always predicting the majority class."""
    classes = classes_of(results)
    images = results[results["seed"] == results["seed"].iloc[0]].drop_duplicates("image_id")
    counts = np.bincount(images["label"], minlength=len(classes))
    rows = {("", "N"): counts, ("", "majority"): (counts == counts.max()).astype(float)}
    for (fraction, arm), runs in results.groupby(["fraction", "arm"], sort=False):
        weights = np.ones((1, len(runs)))
        collapsed = runs.loc[runs["collapsed"].astype(bool), "seed"].nunique() if "collapsed" in runs else 0
        arm += f" ({collapsed} of {runs['seed'].nunique()} runs collapsed)" if collapsed else ""
        rows[f"{fraction:.0%}", arm] = classification.recalls(probabilities(runs), runs["label"].to_numpy(), weights)[0]
    table = pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["fraction", "arm"]), classes)
    accuracies = table.loc[:, counts > 0].mean(axis=1)
    accuracies.iloc[0] = counts.sum()
    return table.assign(**{"balanced accuracy": accuracies})


def classes_of(table: pd.DataFrame) -> list[str]:
    """Class names in a table of `predict_table`."""
    return [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]
