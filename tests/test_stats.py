import numpy as np
import pytest

from helpers.metrics.stats import (
    bootstrap_ci,
    bootstrap_weights,
    bootstrap_with_original,
    ci_over_seeds,
    paired_difference,
    percentile_ci,
    verdict,
)


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_ci(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap_ci(values) == (low, high), "the same seed, the same interval"


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_ci(rng.normal(size=50), rounds=400)
        hits += low <= 0 <= high
    assert 180 <= hits <= 199


def test_photographs_of_one_lesion_do_not_count_as_independent():
    rng = np.random.default_rng(2)
    lesions = np.repeat(np.arange(40), 5)
    values = rng.normal(size=40)[lesions]
    alone, grouped = (np.ptp(bootstrap_ci(values, groups)) for groups in (None, lesions))
    assert grouped == pytest.approx(alone * 5**0.5, rel=0.15)


def test_weights_draw_as_many_as_there_are_and_groups_whole():
    drawn = bootstrap_weights(6, 50, np.random.default_rng(0), ["a", "a", "b", "b", "b", "c"])
    assert drawn.shape == (50, 6) and (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 2] == drawn[:, 4]).all()
    assert (bootstrap_weights(6, 50, np.random.default_rng(0)).sum(axis=1) == 6).all()


def test_pairs_see_a_difference_that_separate_samples_would_not():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 5, 100)
    difference, low, high = paired_difference(hard + 0.3 + rng.normal(0, 0.2, 100), hard)
    assert difference == pytest.approx(0.3, abs=0.1) and low > 0 and high - low < 0.2
    with pytest.raises(ValueError, match="3 and 2 values are not pairs"):
        paired_difference([1, 2, 3], [1, 2])


def test_verdict_follows_the_interval_alone():
    assert verdict(0.01, 0.2) == "helps" and verdict(-0.2, -0.01) == "hurts"
    assert verdict(-0.01, 0.2) == verdict(0, 0.1) == "no difference seen"
    assert verdict(0.1, 0.2, ("worse", "same", "better")) == "better"


def test_too_few_values_are_refused():
    with pytest.raises(ValueError, match="1 values: an interval needs two"):
        bootstrap_ci([0.5])


def test_percentiles():
    assert percentile_ci(np.arange(101), 0.9) == pytest.approx((5, 95))


def estimates(values: np.ndarray, rounds: int = 2000) -> np.ndarray:
    """Of means: `values (S, N)`, cases measured after S trainings."""
    drawn = bootstrap_with_original(values.shape[1], rounds=rounds)
    return values @ drawn.T / drawn.sum(axis=1)


def test_resamples_begin_with_the_cases_themselves():
    drawn = bootstrap_with_original(5, [1, 1, 2, 2, 2], rounds=30)
    assert drawn.shape == (31, 5) and (drawn[0] == 1).all()
    assert np.array_equal(drawn[1:], bootstrap_weights(5, 30, np.random.default_rng(0), [1, 1, 2, 2, 2]))


def test_rounds_without_a_result_are_left_out():
    assert percentile_ci(np.array([np.nan, *np.arange(101)]), 0.9) == pytest.approx((5, 95))


def test_seeds_that_disagree_widen_the_interval():
    cases = np.random.default_rng(4).normal(size=100)
    agreeing = np.stack([cases, cases, cases])
    alone = ci_over_seeds(estimates(cases[None]))
    assert ci_over_seeds(estimates(agreeing)) == pytest.approx(bootstrap_ci(cases)) and alone == pytest.approx(
        bootstrap_ci(cases)
    )
    low, high = ci_over_seeds(estimates(agreeing + np.array([[-1.0], [0.0], [1.0]])))
    assert high - low == pytest.approx(2 * np.hypot(4.303 / 3**0.5, np.ptp(bootstrap_ci(cases)) / 2), rel=0.05)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_alone_seldom_make_a_verdict(seeds):
    rng = np.random.default_rng(5)
    trials = (rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 1, (seeds, 60)) for _ in range(200))
    found = [verdict(*ci_over_seeds(estimates(values, rounds=200))) for values in trials]
    assert 1 <= sum(word != "no difference seen" for word in found) <= 20, "about 5 % of 200, by definition"
