import numpy as np
import pytest

from helpers.metrics import stats
from helpers.metrics.stats import (
    bootstrap_ci,
    bootstrap_weights,
    bootstrap_with_original,
    ci_over_seeds,
    paired_difference,
    percentile_ci,
    verdict,
)


def estimates_of_means(values: np.ndarray) -> np.ndarray:
    """Estimate and bootstrap replicates, `(S, 1 + R)`, of the mean of `values (S, N)`: N cases after S trainings."""
    weights = bootstrap_with_original(values.shape[1])
    return values @ weights.T / weights.sum(axis=1)


def test_bootstrap_ci_normal_values_equals_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_ci(values)
    half_width = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half_width, abs=0.03)
    assert high == pytest.approx(values.mean() + half_width, abs=0.03)
    assert bootstrap_ci(values) == (low, high), "repeatable"


def test_bootstrap_ci_200_samples_covers_true_mean_in_about_95_percent(monkeypatch):
    monkeypatch.setattr(stats, "NUM_ROUNDS", 400)
    rng = np.random.default_rng(1)
    intervals = [bootstrap_ci(rng.normal(size=50)) for _ in range(200)]
    assert 180 <= sum(low <= 0 <= high for low, high in intervals) <= 199


def test_bootstrap_ci_equal_values_within_groups_widens_by_root_of_group_size():
    rng = np.random.default_rng(2)
    lesions = np.repeat(np.arange(40), 5)
    values = rng.normal(size=40)[lesions]
    ungrouped, grouped = (np.ptp(bootstrap_ci(values, groups)) for groups in (None, lesions))
    assert grouped == pytest.approx(ungrouped * 5**0.5, rel=0.15)


def test_bootstrap_ci_one_value_raises():
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        bootstrap_ci([0.5])


def test_bootstrap_weights_groups_are_resampled_as_a_whole():
    weights = bootstrap_weights(6, 50, np.random.default_rng(0), ["a", "a", "b", "b", "b", "c"])
    assert weights.shape == (50, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 4]).all()
    assert (bootstrap_weights(6, 50, np.random.default_rng(0)).sum(axis=1) == 6).all()


def test_bootstrap_with_original_first_row_is_ones():
    groups = [1, 1, 2, 2, 2]
    weights = bootstrap_with_original(5, groups)
    assert weights.shape == (2001, 5) and (weights[0] == 1).all()
    assert np.array_equal(weights[1:], bootstrap_weights(5, 2000, np.random.default_rng(0), groups))


def test_paired_difference_small_constant_shift_is_detected():
    rng = np.random.default_rng(3)
    difficulty = rng.normal(0, 5, 100)
    difference, low, high = paired_difference(difficulty + 0.3 + rng.normal(0, 0.2, 100), difficulty)
    assert difference == pytest.approx(0.3, abs=0.1) and low > 0 and high - low < 0.2


def test_paired_difference_unequal_lengths_raises():
    with pytest.raises(ValueError, match="equally many, got 3 and 2"):
        paired_difference([1, 2, 3], [1, 2])


def test_percentile_ci_nan_is_left_out():
    expected = pytest.approx((2.5, 97.5))
    assert percentile_ci(np.arange(101)) == expected
    assert percentile_ci(np.array([np.nan, *np.arange(101)])) == expected


def test_verdict_depends_on_interval_only():
    assert verdict(0.01, 0.2) == "helps" and verdict(-0.2, -0.01) == "hurts"
    assert verdict(-0.01, 0.2) == verdict(0, 0.1) == verdict(-0.1, 0) == "no difference seen"


def test_ci_over_seeds_equal_trainings_equals_bootstrap_ci():
    cases = np.random.default_rng(4).normal(size=100)
    expected = pytest.approx(bootstrap_ci(cases))
    assert ci_over_seeds(estimates_of_means(cases[None])) == expected
    assert ci_over_seeds(estimates_of_means(np.stack([cases] * 3))) == expected


def test_ci_over_seeds_different_trainings_adds_student_t_in_quadrature():
    cases = np.random.default_rng(4).normal(size=100)
    low, high = ci_over_seeds(estimates_of_means(cases + np.array([[-1.0], [0.0], [1.0]])))
    assert high - low == pytest.approx(2 * np.hypot(4.303 / 3**0.5, np.ptp(bootstrap_ci(cases)) / 2), rel=0.05)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_ci_over_seeds_no_true_difference_gives_verdict_in_about_5_percent(seeds, monkeypatch):
    monkeypatch.setattr(stats, "NUM_ROUNDS", 200)
    rng = np.random.default_rng(5)
    trials = (rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 1, (seeds, 60)) for _ in range(200))
    verdicts = [verdict(*ci_over_seeds(estimates_of_means(values))) for values in trials]
    assert 1 <= sum(v != "no difference seen" for v in verdicts) <= 20
