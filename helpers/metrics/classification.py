"""Measures of predicted class probabilities: accuracy, balanced accuracy, AUC, average precision, calibration.

The resampled measures take `probabilities (N, K)`, `labels (N,)` and `weights (R, N)`, how often each case counts in
each of R bootstrap rounds (see `stats.bootstrap_with_original`), and return `(R,)`. They equal scikit-learn's, which
compute one round per call.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from helpers.metrics.stats import bootstrap_with_original, percentile_ci

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
NUM_BINS = 15  # of the calibration error


def recalls(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Recall of each class, `(R, K)` in [0, 1]; NaN in rounds without a case of the class."""
    one_hot = np.eye(probabilities.shape[1])[labels]
    correct = probabilities.argmax(axis=1) == labels
    with np.errstate(invalid="ignore"):
        return (weights @ (one_hot * correct[:, None])) / (weights @ one_hot)


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur, `(R,)` in [0, 1]."""
    return np.nanmean(recalls(probabilities, labels, weights), axis=1)


def accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fraction of correctly classified cases, `(R,)` in [0, 1]."""
    return weights @ (probabilities.argmax(axis=1) == labels) / weights.sum(axis=1)


def auc(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, one class against the rest, mean over classes, `(R,)` in [0, 1]; 0.5 for uninformative
    scores."""
    return _mean_over_classes(binary_auc, probabilities, labels, weights)


def average_precision(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision, one class against the rest, mean over classes, `(R,)` in [0, 1]; for uninformative scores the
    mean frequency of the classes."""
    return _mean_over_classes(binary_average_precision, probabilities, labels, weights)


def _mean_over_classes(
    measure: Measure, probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean of a one-against-rest measure over the classes, without those that give NaN, `(R,)`."""
    classes = range(probabilities.shape[1])
    by_class = np.array([measure(probabilities[:, k], labels == k, weights) for k in classes])  # (K, R)
    with np.errstate(invalid="ignore"):
        return np.nansum(by_class, axis=0) / (~np.isnan(by_class)).sum(axis=0)


def binary_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of one class, `(R,)`: how often a positive case has a higher score than a negative one,
    ties counting half. `scores (N,)`; `positive` bool `(N,)`; NaN in rounds without a positive or a negative case."""
    pos, neg = _sorted_weights(scores, positive, weights)
    neg_below = np.cumsum(neg, axis=1) - neg
    with np.errstate(invalid="ignore"):
        return (pos * (neg_below + neg / 2)).sum(axis=1) / (pos.sum(axis=1) * neg.sum(axis=1))


def binary_average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of one class, `(R,)`: mean precision at the scores of the positive cases. `scores (N,)`;
    `positive` bool `(N,)`; NaN in rounds without a positive case."""
    pos, neg = (w[:, ::-1] for w in _sorted_weights(scores, positive, weights))
    true_pos = np.cumsum(pos, axis=1)
    with np.errstate(invalid="ignore"):
        return (pos * true_pos / np.maximum(true_pos + np.cumsum(neg, axis=1), 1)).sum(axis=1) / true_pos[:, -1]


def _sorted_weights(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positive and of negative cases, `(R, S)` each, summed over equal scores; scores ascend."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    weights, positive = weights[:, order], positive[order]
    return tuple(np.add.reduceat(weights * members, starts, axis=1) for members in (positive, ~positive))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error in [0, 1]: mean absolute difference of confidence and accuracy over `NUM_BINS` bins,
    weighted by the number of cases (Guo et al., arXiv 1706.04599). `probabilities (N, K)`, `labels (N,)`."""
    table = reliability(probabilities, labels)
    return float((table["N"] * (table["confidence"] - table["accuracy"]).abs()).sum() / table["N"].sum())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = NUM_BINS) -> pd.DataFrame:
    """Reliability diagram as a table: cases binned by the probability of the predicted class, in `bins` equal steps of
    [0, 1]. Columns: mean `confidence`, `accuracy`, `N`; empty bins have no row."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    cases = pd.DataFrame({"confidence": confidence, "accuracy": correct, "bin": np.ceil(bins * confidence)})
    return cases.groupby("bin").agg(confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), N=("bin", "size"))


def with_intervals(
    measures: Sequence[Measure], probabilities: np.ndarray, labels: np.ndarray, groups: Sequence | None = None
) -> pd.DataFrame:
    """Table of measures and of the recall of each class that occurs: `value`, the ends `from` and `to` of its 95 %
    bootstrap interval, and `N`.

    `groups`, one id per case (a lesion, say), are resampled as a whole. A recall of 0 or 1 gets the interval of Clopper
    and Pearson (1934) for the number of groups, because its bootstrap interval would have no width.
    """
    weights = bootstrap_with_original(len(labels), groups)
    names = [measure.__name__.replace("_", " ") for measure in measures]
    replicates = {k: (f(probabilities, labels, weights), len(labels)) for k, f in zip(names, measures, strict=True)}
    by_class = recalls(probabilities, labels, weights)
    replicates |= {f"recall {k}": (by_class[:, k], int((labels == k).sum())) for k in np.unique(labels)}
    rows = {name: [values[0], *percentile_ci(values[1:]), count] for name, (values, count) in replicates.items()}
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    for k in np.unique(labels):
        row, bound = rows[f"recall {k}"], 0.025 ** (1 / len(np.unique(groups[labels == k])))
        if row[0] in (0, 1):
            row[1:3] = (0, 1 - bound) if row[0] == 0 else (bound, 1)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "from", "to", "N"])
