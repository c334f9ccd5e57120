import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from helpers.metrics.classification import (
    accuracy,
    auc,
    average_precision,
    balanced_accuracy,
    binary_auc,
    binary_average_precision,
    calibration_error,
    recalls,
    reliability,
    with_intervals,
)
from helpers.metrics.stats import bootstrap_with_original


@pytest.fixture
def cases():
    """Sixty cases of three classes, unequally many; probabilities know something, with ties."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 60, p=[0.6, 0.3, 0.1])
    scores = np.round(rng.uniform(size=(60, 3)) + 0.6 * np.eye(3)[labels], 1)
    return scores / scores.sum(axis=1, keepdims=True), labels, bootstrap_with_original(60, rounds=20)


def by_round(function, weights):
    """A function of one row of weights, for every row."""
    return [function(row) for row in weights]


def test_measures_are_those_of_scikit_learn(cases):
    p, labels, weights = cases
    named = p.argmax(axis=1)
    wanted = by_round(lambda w: balanced_accuracy_score(labels, named, sample_weight=w), weights)
    assert balanced_accuracy(p, labels, weights) == pytest.approx(wanted)
    wanted = by_round(lambda w: np.average(named == labels, weights=w), weights)
    assert accuracy(p, labels, weights) == pytest.approx(wanted)
    for k in range(3):
        wanted = by_round(lambda w, k=k: roc_auc_score(labels == k, p[:, k], sample_weight=w), weights)
        assert binary_auc(p[:, k], labels == k, weights) == pytest.approx(wanted)
        wanted = by_round(lambda w, k=k: average_precision_score(labels == k, p[:, k], sample_weight=w), weights)
        assert binary_average_precision(p[:, k], labels == k, weights) == pytest.approx(wanted)
    assert auc(p, labels, weights)[0] == pytest.approx(roc_auc_score(labels, p, multi_class="ovr"))
    assert average_precision(p, labels, weights)[0] == pytest.approx(average_precision_score(np.eye(3)[labels], p))


def test_scores_that_know_everything_or_nothing():
    labels, one = np.array([0, 0, 0, 1]), np.ones((1, 4))
    perfect, nothing = np.eye(2)[labels], np.full((4, 2), 0.5)
    for measure in (accuracy, balanced_accuracy, auc, average_precision):
        assert measure(perfect, labels, one).item() == 1
    assert accuracy(nothing, labels, one).item() == 0.75, "ties go to the first class: the majority baseline"
    assert balanced_accuracy(nothing, labels, one).item() == 0.5
    assert auc(nothing, labels, one).item() == 0.5
    assert average_precision(nothing, labels, one).item() == pytest.approx((0.75 + 0.25) / 2)


def test_a_class_that_was_not_drawn_is_left_out():
    labels, p = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])
    weights = np.array([[1, 1, 1], [1, 1, 0]])
    found = recalls(p, labels, weights)
    assert found[0] == pytest.approx([0.5, 1]) and found[1, 0] == 0.5 and np.isnan(found[1, 1])
    assert balanced_accuracy(p, labels, weights) == pytest.approx([0.75, 0.5])
    assert np.isnan(binary_auc(p[:, 1], labels == 1, weights)[1])


def test_calibration_is_known_where_it_is_made():
    rng = np.random.default_rng(1)
    sure = rng.uniform(0.5, 1, 20_000)
    p, labels = np.stack([sure, 1 - sure], axis=1), (rng.uniform(size=20_000) > sure).astype(int)
    assert calibration_error(p, labels) < 0.01
    too_sure = np.clip(sure + 0.2, 0, 1)
    wanted = (too_sure - sure).mean()
    assert calibration_error(np.stack([too_sure, 1 - too_sure], axis=1), labels) == pytest.approx(wanted, abs=0.02)
    table = reliability(p, labels, bins=10)
    assert table["N"].sum() == 20_000 and len(table) == 5
    assert table["accuracy"].to_numpy() == pytest.approx(table["confidence"].to_numpy(), abs=0.03)


def test_intervals_hold_the_value_and_know_their_cases(cases):
    p, labels, _ = cases
    table = with_intervals([balanced_accuracy, auc], p, labels)
    assert list(table.index) == ["balanced accuracy", "auc", "recall 0", "recall 1", "recall 2"]
    assert (table["from"] <= table["value"]).all() and (table["value"] <= table["to"]).all()
    assert table.loc["auc", "N"] == 60 and table.loc["recall 2", "N"] == (labels == 2).sum()
    twice = with_intervals([auc], np.repeat(p, 4, axis=0), np.repeat(labels, 4), groups=np.repeat(np.arange(60), 4))
    assert np.ptp(twice.loc["auc", ["from", "to"]]) == pytest.approx(np.ptp(table.loc["auc", ["from", "to"]]), rel=0.1)
    certain = with_intervals([auc], np.eye(3)[[0, 0, 1, 0]], np.array([0, 0, 1, 1]), groups=[1, 1, 2, 3])
    assert certain.loc["recall 0", ["from", "to"]].to_list() == [0.025, 1], "two photographs of one lesion: one success"
    never = with_intervals([auc], np.eye(3)[[0, 0, 0]], np.array([0, 1, 1]))
    assert never.loc["recall 1", ["from", "to"]].to_list() == pytest.approx([0, 0.842], abs=1e-3), "none of two"
    assert len(with_intervals([auc], p[labels < 2], labels[labels < 2])) == 3, "a class without cases has no row"
