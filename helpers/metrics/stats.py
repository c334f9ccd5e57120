"""How sure is a number? Bootstrap intervals, paired comparisons, and the rule that turns them into a verdict."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student


def bootstrap_weights(n: int, rounds: int, rng: np.random.Generator, groups: Sequence | None = None) -> np.ndarray:
    """How often each of `n` values is drawn in each bootstrap round, `(rounds, n)`. With `groups` (a lesion id per
    value, say) whole groups are drawn: photographs of one lesion are not independent (Davison and Hinkley 1997)."""
    if groups is None:
        return rng.multinomial(n, np.full(n, 1 / n), size=rounds)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = member.max() + 1
    return rng.multinomial(count, np.full(count, 1 / count), size=rounds)[:, member]


def bootstrap_ci(
    values: Sequence[float], groups: Sequence | None = None, rounds: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`. Raises `ValueError` for fewer than two of them."""
    values = np.asarray(values, float)
    if len(values) < 2:
        raise ValueError(f"{len(values)} values: an interval needs two at least")
    drawn = bootstrap_weights(len(values), rounds, np.random.default_rng(seed), groups)
    return percentile_ci(drawn @ values / drawn.sum(axis=1), level)


def bootstrap_with_original(n: int, groups: Sequence | None = None, rounds: int = 2000, seed: int = 0) -> np.ndarray:
    """`weights` with a row of ones before them, `(1 + rounds, n)`: a measure of these gives first itself, then what
    chance would have made of it."""
    return np.vstack([np.ones((1, n)), bootstrap_weights(n, rounds, np.random.default_rng(seed), groups)])


def ci_over_seeds(estimates: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of a measure that was taken after each of S trainings with other seeds: `estimates (S, 1 + R)`, first on
    the cases themselves, then on R resamples of them (see `resamples`), the same for every training.

    Cases are bootstrapped, seeds get Student's t, for a bootstrap of two or three would be far too sure; the two half
    widths are added as squares. With one seed the interval is that of the cases alone and says nothing of training.
    """
    means, ends = estimates[:, 0], percentile_ci(estimates[:, 1:].mean(axis=0), level)
    if len(means) == 1:
        return ends
    by_chance = student.ppf((1 + level) / 2, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
    return tuple(
        float(means.mean() + s * np.hypot(e - means.mean(), by_chance)) for s, e in zip((-1, 1), ends, strict=True)
    )


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence | None = None, **how
) -> tuple[float, float, float]:
    """Mean of the differences `ours - theirs`, both measured on the same cases, and its interval."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values are not pairs")
    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    return float(difference.mean()), *bootstrap_ci(difference, groups, **how)


def percentile_ci(found: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap results; rounds without one (NaN) are left out."""
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(low: float, high: float, words: tuple[str, str, str] = ("hurts", "no difference seen", "helps")) -> str:
    """One rule for all comparisons: an interval of differences above 0 helps, below 0 hurts, around 0 shows nothing."""
    return words[2] if low > 0 else words[0] if high < 0 else words[1]
