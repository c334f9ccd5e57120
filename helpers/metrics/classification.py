"""How well do probabilities name the diagnosis? Balanced accuracy, AUC and average precision, resampled in one go.

Each measure takes probabilities `(N, K)`, labels `(N,)` and `weights (R, N)`, how often each case counts in each of R
bootstrap rounds (see `stats.resamples`), and gives `(R,)`. scikit-learn has the same ones, a round at a time.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from helpers.metrics.stats import bootstrap_with_original, percentile_ci

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def recalls(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of each class that is named right, `(R, K)`; NaN in rounds where none of the class was drawn."""
    of_class = np.eye(probabilities.shape[1])[labels]
    right = probabilities.argmax(axis=1) == labels
    with np.errstate(invalid="ignore"):
        return (weights @ (of_class * right[:, None])) / (weights @ of_class)


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the recalls: every class counts alike, however rare."""
    return np.nanmean(recalls(probabilities, labels, weights), axis=1)


def accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the cases that are named right."""
    return weights @ (probabilities.argmax(axis=1) == labels) / weights.sum(axis=1)


def auc(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the curve of sensitivity against 1 - specificity, each class against the rest, mean over classes."""
    return _over_classes(binary_auc, probabilities, labels, weights)


def average_precision(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean precision over the cases of a class as the threshold falls, each class against the rest, mean over classes;
    a score that knows nothing has the class's share."""
    return _over_classes(binary_average_precision, probabilities, labels, weights)


def _over_classes(measure: Callable, probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    classes = range(probabilities.shape[1])
    found = np.array([measure(probabilities[:, k], labels == k, weights) for k in classes])
    with np.errstate(invalid="ignore"):
        return np.nansum(found, axis=0) / (~np.isnan(found)).sum(axis=0)


def binary_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How often a positive case has a higher score than a negative one, `(R,)`; ties count half."""
    yes, no = _sorted_weights(scores, positive, weights)
    below = np.cumsum(no, axis=1) - no
    with np.errstate(invalid="ignore"):
        return (yes * (below + no / 2)).sum(axis=1) / (yes.sum(axis=1) * no.sum(axis=1))


def binary_average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of one class, `(R,)`."""
    yes, no = (part[:, ::-1] for part in _sorted_weights(scores, positive, weights))
    found = np.cumsum(yes, axis=1)
    with np.errstate(invalid="ignore"):
        return (yes * found / np.maximum(found + np.cumsum(no, axis=1), 1)).sum(axis=1) / found[:, -1]


def _sorted_weights(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positive and of negative cases, `(R, S)`: added up over equal scores, from the lowest score up."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    weights, positive = weights[:, order], positive[order]
    return tuple(np.add.reduceat(weights * part, starts, axis=1) for part in (positive, ~positive))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): how far confidence and accuracy are apart, mean over the cases."""
    table = reliability(probabilities, labels, bins)
    return float((table["N"] * (table["confidence"] - table["accuracy"]).abs()).sum() / table["N"].sum())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Cases by the probability of the class they are given, in equal steps: mean `confidence`, `accuracy` and `N`."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    cases = pd.DataFrame({"confidence": confidence, "accuracy": right, "bin": np.ceil(bins * confidence)})
    return cases.groupby("bin").agg(confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), N=("bin", "size"))


def with_intervals(measures: list[Measure], probabilities: np.ndarray, labels: np.ndarray, groups=None) -> pd.DataFrame:
    """A row per measure, and one per class with its recall: value, ends of its 95 % interval, N. Cases of one group, a
    lesion say, are resampled together; where all of a class agree, a bootstrap would see no chance at all, and the
    interval is that of Clopper and Pearson (1934) for as many groups."""
    drawn = bootstrap_with_original(len(labels), groups)
    found = {measure.__name__.replace("_", " "): (measure(probabilities, labels, drawn), len(labels))
             for measure in measures}  # fmt: skip
    by_class = recalls(probabilities, labels, drawn)
    found |= {f"recall {k}": (by_class[:, k], int((labels == k).sum())) for k in np.unique(labels)}
    rows = {name: [values[0], *percentile_ci(values[1:]), count] for name, (values, count) in found.items()}
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    for k in np.unique(labels):
        row, reach = rows[f"recall {k}"], 0.025 ** (1 / len(np.unique(groups[labels == k])))
        if row[0] in (0, 1):
            row[1:3] = (0, 1 - reach) if row[0] == 0 else (reach, 1)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "from", "to", "N"])
