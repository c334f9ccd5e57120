"""Uncertainty of results: bootstrap confidence intervals, paired differences, and a verdict on an interval."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student_t

LEVEL = 0.95  # confidence level of every interval
NUM_ROUNDS = 2000  # bootstrap rounds


def bootstrap_weights(n: int, rounds: int, rng: np.random.Generator, groups: Sequence | None = None) -> np.ndarray:
    """Weights `(rounds, n)`: how often each of `n` values is sampled in each bootstrap round.

    With `groups`, one id per value, whole groups are resampled: images of one lesion are not independent (cluster
    bootstrap, Davison and Hinkley, Bootstrap Methods and Their Application, 1997).
    """
    if groups is None:
        return rng.multinomial(n, np.full(n, 1 / n), size=rounds)
    _, group_index = np.unique(np.asarray(groups), return_inverse=True)
    num_groups = group_index.max() + 1
    return rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=rounds)[:, group_index]


def bootstrap_ci(values: Sequence[float], groups: Sequence | None = None) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values (N,)`; `groups` as in `bootstrap_weights`.

    Raises `ValueError` for fewer than two values.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(values)}")
    weights = bootstrap_weights(len(values), NUM_ROUNDS, np.random.default_rng(0), groups)
    return percentile_ci(weights @ values / weights.sum(axis=1))


def bootstrap_with_original(n: int, groups: Sequence | None = None) -> np.ndarray:
    """Bootstrap weights `(1 + NUM_ROUNDS, n)` whose first row is ones: a measure computed with them has the estimate
    itself as its first entry, then the bootstrap replicates."""
    return np.vstack([np.ones((1, n)), bootstrap_weights(n, NUM_ROUNDS, np.random.default_rng(0), groups)])


def ci_over_seeds(estimates: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of a measure over S trainings that differ in the seed.

    `estimates (S, 1 + R)`: per training the estimate and its R bootstrap replicates (see `bootstrap_with_original`),
    from the same resamples for every training. Cases are bootstrapped. Seeds use Student's t, because a bootstrap of
    two or three seeds would be far too narrow. The two half widths are added in quadrature. With one seed the interval
    covers the variation of the cases, not that of training.
    """
    means, case_interval = estimates[:, 0], percentile_ci(estimates[:, 1:].mean(axis=0))
    if len(means) == 1:
        return case_interval
    mean = means.mean()
    low, high = (np.hypot(end - mean, seed_half_width(means)) for end in case_interval)
    return float(mean - low), float(mean + high)


def seed_half_width(values: np.ndarray) -> float:
    """Half width of the 95 % interval of the mean of `values (S,)`, S >= 2 trainings, by Student's t."""
    return float(student_t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], groups: Sequence | None = None
) -> tuple[float, float, float]:
    """Mean of `values - baseline`, both `(N,)` and measured on the same cases, and the ends of its 95 % interval.

    Raises `ValueError` for unequal lengths, or fewer than two pairs.
    """
    if len(values) != len(baseline):
        raise ValueError(f"paired values must be equally many, got {len(values)} and {len(baseline)}")
    difference = np.asarray(values, float) - np.asarray(baseline, float)
    return float(difference.mean()), *bootstrap_ci(difference, groups)


def percentile_ci(replicates: np.ndarray) -> tuple[float, float]:
    """Central 95 % of bootstrap replicates `(R,)`; rounds without a result (NaN) are left out."""
    low, high = np.nanquantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def verdict(low: float, high: float) -> str:
    """Verdict on a difference from its interval: "helps" above 0, "hurts" below 0, else "no difference seen"."""
    return "helps" if low > 0 else "hurts" if high < 0 else "no difference seen"
