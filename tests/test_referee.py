"""Our figures against those of the ISIC challenges' own program, `isic-challenge-scoring`.

Optional: `pip install isic-challenge-scoring` needs a C compiler; without the package these tests are skipped.
"""

import numpy as np
import pandas as pd
import pytest

from helpers.metrics.classification import auc, average_precision, balanced_accuracy
from helpers.metrics.overlap import THRESHOLD, scores

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


@pytest.fixture(scope="module")
def referee():
    return pytest.importorskip("isic_challenge_scoring.metrics")


def ellipse(center: tuple[float, float], axes: tuple[float, float], shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    """A filled ellipse as a mask `(H, W)` in {0, 1}."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (((y - center[0]) / axes[0]) ** 2 + ((x - center[1]) / axes[1]) ** 2 < 1).astype(np.uint8)


def mask_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """40 predicted and target masks of Jaccard indices on both sides of the threshold; then empty and full ones."""
    rng, pairs = np.random.default_rng(0), []
    for k in range(40):
        target = ellipse((30, 40), (12 + k % 9, 20))
        pairs.append((ellipse(rng.normal((30, 40), 3), tuple(rng.uniform(10, 24, 2))), target))
    empty, full, target = np.zeros((60, 80), np.uint8), np.ones((60, 80), np.uint8), ellipse((30, 40), (12, 20))
    return [*pairs, (empty, empty), (empty, target), (target, empty), (full, target), (target, target)]


def test_scores_of_masks_equal_the_challenges(referee):
    confusion = pytest.importorskip("isic_challenge_scoring.confusion")
    names = {"jaccard": "jaccard", "thresholded_jaccard": "threshold_jaccard", "dice": "dice",
             "sensitivity": "sensitivity", "specificity": "specificity"}  # fmt: skip
    jaccard = []
    for pred, target in mask_pairs():
        ours = scores(pred, target)
        matrix = confusion.create_binary_confusion_matrix(target > 0, pred > 0)
        for name, theirs in names.items():
            assert ours[name] == pytest.approx(getattr(referee, f"binary_{theirs}")(matrix), abs=1e-12), name
        jaccard.append(ours["jaccard"])
    assert min(np.mean(np.array(jaccard) < THRESHOLD), np.mean(np.array(jaccard) >= THRESHOLD)) > 0.2


def test_scores_of_a_jaccard_index_at_the_threshold_equal_the_challenges(referee):
    confusion = pytest.importorskip("isic_challenge_scoring.confusion")
    target = np.zeros((10, 20), np.uint8)
    target[:, :10] = 1
    for num_pixels, expected in ((65, 0.65), (64, 0.0)):
        pred = np.zeros(200, np.uint8)
        pred[np.flatnonzero(target)[:num_pixels]] = 1
        pred = pred.reshape(10, 20)
        matrix = confusion.create_binary_confusion_matrix(target > 0, pred > 0)
        assert scores(pred, target)["thresholded_jaccard"] == expected == referee.binary_threshold_jaccard(matrix)


def predictions(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(300, 7)` that know something, rounded to a tenth if `ties`, and labels `(300,)` of unequal
    frequency. With `ties` no image has two highest probabilities, which the challenges count as an error."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(7), rng.choice(7, 293, p=[0.1, 0.6, 0.05, 0.05, 0.1, 0.05, 0.05])])
    p = rng.dirichlet(np.ones(7), 300) + 0.3 * np.eye(7)[labels]
    p /= p.sum(axis=1, keepdims=True)
    if ties:
        p = np.minimum(np.floor(10 * p) / 10 + 0.01 * (p == p.max(axis=1, keepdims=True)), 1)
    return p, labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_of_probabilities_equal_the_challenges(referee, seed, ties):
    p, labels = predictions(seed, ties)
    truth, predicted = (pd.DataFrame(array, columns=CLASSES) for array in (np.eye(7)[labels], p))
    weights = pd.Series(np.ones(300))
    once = np.ones((1, 300))
    theirs = referee.balanced_multiclass_accuracy(truth, predicted, weights)
    assert balanced_accuracy(p, labels, once).item() == pytest.approx(theirs, abs=1e-12) and 0.3 < theirs < 0.95
    for ours, name in ((auc, "auc"), (average_precision, "average_precision")):
        by_class = [getattr(referee, name)(truth[k], predicted[k], weights) for k in CLASSES]
        assert ours(p, labels, once).item() == pytest.approx(np.mean(by_class), abs=1e-12), name


def test_score_of_a_submission_equals_the_challenges(referee):
    """The whole program on two CSV files, as a participant sends them."""
    from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore
    from isic_challenge_scoring.load_csv import sort_rows

    p, labels = predictions(2, ties=False)
    index = pd.Index([f"ISIC_{k:07d}" for k in range(300)], name="image")
    truth, predicted = (pd.DataFrame(array, index, CLASSES) for array in (np.eye(7)[labels], p))
    weights = pd.DataFrame({"score_weight": 1.0, "validation_weight": 1.0}, index)
    sort_rows(predicted)
    score = ClassificationScore(truth, predicted, weights, ClassificationMetric.BALANCED_ACCURACY)
    once = np.ones((1, 300))
    assert balanced_accuracy(p, labels, once).item() == pytest.approx(score.overall, abs=1e-12)
    assert auc(p, labels, once).item() == pytest.approx(score.macro_average["auc"], abs=1e-12)
