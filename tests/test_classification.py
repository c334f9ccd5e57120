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
    """Probabilities (with ties), labels and weights of 60 cases in three unbalanced classes."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 60, p=[0.6, 0.3, 0.1])
    scores = np.round(rng.uniform(size=(60, 3)) + 0.6 * np.eye(3)[labels], 1)
    return scores / scores.sum(axis=1, keepdims=True), labels, bootstrap_with_original(60)[:21]


@pytest.fixture(scope="module")
def calibrated():
    """Probabilities of two classes and labels sampled from them."""
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1, 20_000)
    labels = (rng.uniform(size=20_000) > confidence).astype(int)
    return np.stack([confidence, 1 - confidence], axis=1), labels


def by_round(function, weights):
    """A function of one row of weights, for every row."""
    return pytest.approx([function(row) for row in weights])


def test_accuracies_weighted_equal_scikit_learn(cases):
    p, labels, weights = cases
    pred = p.argmax(axis=1)
    assert accuracy(p, labels, weights) == by_round(lambda w: np.average(pred == labels, weights=w), weights)
    expected = by_round(lambda w: balanced_accuracy_score(labels, pred, sample_weight=w), weights)
    assert balanced_accuracy(p, labels, weights) == expected


@pytest.mark.parametrize(
    ("measure", "reference"),
    [(binary_auc, roc_auc_score), (binary_average_precision, average_precision_score)],
)
def test_binary_measures_weighted_equal_scikit_learn(cases, measure, reference):
    p, labels, weights = cases
    for k in range(3):
        expected = by_round(lambda w, k=k: reference(labels == k, p[:, k], sample_weight=w), weights)
        assert measure(p[:, k], labels == k, weights) == expected


def test_auc_and_average_precision_multiclass_equal_scikit_learn(cases):
    p, labels, weights = cases
    assert auc(p, labels, weights)[0] == pytest.approx(roc_auc_score(labels, p, multi_class="ovr"))
    assert average_precision(p, labels, weights)[0] == pytest.approx(average_precision_score(np.eye(3)[labels], p))


@pytest.mark.parametrize("measure", [accuracy, balanced_accuracy, auc, average_precision])
def test_measures_perfect_scores_are_one(measure):
    labels = np.array([0, 0, 0, 1])
    assert measure(np.eye(2)[labels], labels, np.ones((1, 4))).item() == 1


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (accuracy, 0.75),  # ties go to the first class, here the majority
        (balanced_accuracy, 0.5),
        (auc, 0.5),
        (average_precision, (0.75 + 0.25) / 2),
    ],
)
def test_measures_uninformative_scores_are_baseline(measure, expected):
    labels = np.array([0, 0, 0, 1])
    assert measure(np.full((4, 2), 0.5), labels, np.ones((1, 4))).item() == pytest.approx(expected)


def test_recalls_class_missing_from_a_round_is_nan_and_left_out():
    labels, p = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])
    weights = np.array([[1, 1, 1], [1, 1, 0]])
    by_class = recalls(p, labels, weights)
    assert by_class[0] == pytest.approx([0.5, 1]) and by_class[1, 0] == 0.5 and np.isnan(by_class[1, 1])
    assert balanced_accuracy(p, labels, weights) == pytest.approx([0.75, 0.5])
    assert np.isnan(binary_auc(p[:, 1], labels == 1, weights)[1])


def test_calibration_error_calibrated_is_zero_and_overconfident_is_the_excess(calibrated):
    p, labels = calibrated
    assert calibration_error(p, labels) < 0.01
    confidence = np.clip(p[:, 0] + 0.2, 0, 1)
    overconfident = np.stack([confidence, 1 - confidence], axis=1)
    assert calibration_error(overconfident, labels) == pytest.approx((confidence - p[:, 0]).mean(), abs=0.02)


def test_reliability_calibrated_accuracy_equals_confidence(calibrated):
    table = reliability(*calibrated, bins=10)
    assert table["N"].sum() == 20_000 and len(table) == 5
    assert table["accuracy"].to_numpy() == pytest.approx(table["confidence"].to_numpy(), abs=0.03)


def test_with_intervals_contain_the_value_and_count_cases(cases):
    p, labels, _ = cases
    table = with_intervals([balanced_accuracy, auc], p, labels)
    assert list(table.index) == ["balanced accuracy", "auc", "recall 0", "recall 1", "recall 2"]
    assert (table["from"] <= table["value"]).all() and (table["value"] <= table["to"]).all()
    assert (table["from"] < table["to"]).all()
    assert table.loc["auc", "N"] == 60 and table.loc["recall 2", "N"] == (labels == 2).sum()


def test_with_intervals_repeated_cases_in_groups_do_not_narrow_the_interval(cases):
    p, labels, _ = cases
    table = with_intervals([auc], p, labels)
    repeated = with_intervals([auc], np.repeat(p, 4, axis=0), np.repeat(labels, 4), groups=np.repeat(np.arange(60), 4))
    width, repeated_width = (np.ptp(t.loc["auc", ["from", "to"]]) for t in (table, repeated))
    assert repeated_width == pytest.approx(width, rel=0.1)


def test_with_intervals_recall_of_0_or_1_has_clopper_pearson_interval():
    perfect = with_intervals([auc], np.eye(3)[[0, 0, 1, 0]], np.array([0, 0, 1, 1]), groups=[1, 1, 2, 3])
    assert perfect.loc["recall 0", ["from", "to"]].to_list() == [0.025, 1], "two images of one lesion: one success"
    zero = with_intervals([auc], np.eye(3)[[0, 0, 0]], np.array([0, 1, 1]))
    assert zero.loc["recall 1", ["from", "to"]].to_list() == pytest.approx([0, 0.842], abs=1e-3)


def test_with_intervals_class_without_cases_has_no_row(cases):
    p, labels, _ = cases
    table = with_intervals([auc], p[labels < 2], labels[labels < 2])
    assert list(table.index) == ["auc", "recall 0", "recall 1"]
