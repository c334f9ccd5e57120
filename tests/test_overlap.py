import numpy as np
import pytest

from helpers.metrics.overlap import boundary_distance, scores


def square(top: int, left: int, side: int = 10, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_scores_of_two_squares_that_share_half():
    told = scores(square(10, 10), square(10, 15))
    assert told["jaccard"] == pytest.approx(50 / 150) and told["dice"] == pytest.approx(0.5)
    assert told["sensitivity"] == 0.5 and told["specificity"] == pytest.approx(1450 / 1500)
    assert told["thresholded_jaccard"] == 0 and told["hd95"] == pytest.approx(5)


def test_scores_of_the_same_mask():
    told = scores(square(5, 5), square(5, 5))
    assert told == {
        "jaccard": 1,
        "thresholded_jaccard": 1,
        "dice": 1,
        "sensitivity": 1,
        "specificity": 1,
        "hd95": 0,
    }


def test_the_threshold_is_that_of_the_challenge():
    for cut, kept in ((3, 0.7), (4, 0.0)):  # 70 or 60 of 100 pixels
        found = square(10, 10)
        found[10 : 10 + cut] = 0
        assert scores(found, square(10, 10))["thresholded_jaccard"] == pytest.approx(kept)


def test_empty_masks():
    empty, full = np.zeros((30, 40), np.uint8), np.ones((30, 40), np.uint8)
    assert scores(empty, empty)["jaccard"] == scores(empty, empty)["dice"] == 1 and scores(empty, empty)["hd95"] == 0
    told = scores(empty, full)
    assert told["jaccard"] == told["dice"] == told["sensitivity"] == 0 and told["hd95"] == 50
    assert told["specificity"] == 1, "no background, none mistaken"


def test_boundary_distance_is_symmetric_and_ignores_a_speck():
    one, other = square(5, 5, 20).astype(bool), square(5, 8, 20).astype(bool)
    assert boundary_distance(one, other) == boundary_distance(other, one) == 3
    speck = one.copy()
    speck[38, 38] = True
    assert boundary_distance(speck, one) == 0, "one pixel of some 80 on a border is less than 5 %"


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 10\) and \(10, 12\)"):
        scores(np.zeros((10, 10)), np.zeros((10, 12)))
