import numpy as np
import pytest

from helpers.metrics.overlap import boundary_distance, scores


def square(top: int, left: int, side: int = 10, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_scores_half_overlapping_squares_are_known_values():
    result = scores(square(10, 10), square(10, 15))
    assert result["jaccard"] == pytest.approx(50 / 150) and result["dice"] == pytest.approx(0.5)
    assert result["sensitivity"] == 0.5 and result["specificity"] == pytest.approx(1450 / 1500)
    assert result["thresholded_jaccard"] == 0 and result["hd95"] == pytest.approx(5)


def test_scores_equal_masks_are_perfect():
    perfect = dict.fromkeys(("jaccard", "thresholded_jaccard", "dice", "sensitivity", "specificity"), 1)
    assert scores(square(5, 5), square(5, 5)) == perfect | {"hd95": 0}


@pytest.mark.parametrize(("rows_missing", "expected"), [(3, 0.7), (4, 0.0)])  # 70 and 60 of 100 pixels
def test_scores_jaccard_below_threshold_counts_zero(rows_missing, expected):
    pred = square(10, 10)
    pred[10 : 10 + rows_missing] = 0
    assert scores(pred, square(10, 10))["thresholded_jaccard"] == pytest.approx(expected)


def test_scores_both_empty_are_perfect():
    empty = np.zeros((30, 40), np.uint8)
    assert scores(empty, empty)["jaccard"] == scores(empty, empty)["dice"] == 1 and scores(empty, empty)["hd95"] == 0


def test_scores_empty_prediction_of_full_target_are_zero():
    result = scores(np.zeros((30, 40), np.uint8), np.ones((30, 40), np.uint8))
    assert result["jaccard"] == result["dice"] == result["sensitivity"] == 0 and result["hd95"] == 50
    assert result["specificity"] == 1, "no background pixel, so none is misclassified"


def test_scores_different_shapes_raises():
    with pytest.raises(ValueError, match=r"\(10, 10\) and \(10, 12\)"):
        scores(np.zeros((10, 10)), np.zeros((10, 12)))


def test_boundary_distance_is_symmetric():
    mask, shifted = square(5, 5, 20).astype(bool), square(5, 8, 20).astype(bool)
    assert boundary_distance(mask, shifted) == boundary_distance(shifted, mask) == 3


def test_boundary_distance_single_pixel_outlier_is_ignored():
    mask = square(5, 5, 20).astype(bool)
    with_outlier = mask.copy()
    with_outlier[38, 38] = True
    assert boundary_distance(with_outlier, mask) == 0, "one of about 80 border pixels is less than 5 %"
