import numpy as np
import pytest

from helpers.metrics.fidelity import label_accuracy, mean_pairwise_distance, sketch_dice, ssim


def dark(images: np.ndarray) -> np.ndarray:
    return (images.mean(axis=3) < 128).astype(np.uint8)


def test_dice_of_known_regions():
    masks = np.zeros((4, 10, 10), np.uint8)
    masks[:3, :, :5] = 1
    drawn = np.full((4, 10, 10, 3), 255, np.uint8)
    drawn[0, :, :5] = 0
    drawn[1, :, 5:] = 0
    drawn[2, :5] = 0
    assert sketch_dice(drawn, masks, dark).tolist() == [1, 0, 0.5, 1], "an empty sketch and nothing drawn agree"


def test_labels_named():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    assert label_accuracy(probabilities, np.array([0, 1, 1])).tolist() == [1, 1, 0]


def test_spread_is_the_mean_distance_of_pairs():
    assert mean_pairwise_distance(np.array([[0, 0], [3, 4], [0, 0]])) == pytest.approx(10 / 3)
    assert mean_pairwise_distance(np.zeros((5, 2))) == 0
    with pytest.raises(ValueError, match="1 images"):
        mean_pairwise_distance(np.zeros((1, 2)))


def test_ssim_of_known_pictures():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert ssim(picture, picture) == pytest.approx(1)
    flat, other = (np.full((32, 32), value, np.uint8) for value in (100, 150))
    tiny = 2.55**2
    assert ssim(flat, other) == pytest.approx((2 * 100 * 150 + tiny) / (100**2 + 150**2 + tiny), rel=1e-6)
    assert abs(ssim(picture, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))) < 0.05
    noisy = np.clip(picture + rng.normal(0, 20, picture.shape), 0, 255).astype(np.uint8)
    assert 0.7 < ssim(picture, noisy) < 1 and ssim(picture, noisy) == pytest.approx(ssim(noisy, picture))


def test_ssim_brings_unequal_sizes_to_one():
    small = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (16, 20), dtype=np.uint8), 2, 0), 2, 1)
    large = np.repeat(np.repeat(small, 2, 0), 2, 1)
    assert ssim(small, large) == pytest.approx(1) and ssim(large, small) == pytest.approx(1)
    with pytest.raises(ValueError, match="one has colours"):
        ssim(small, np.zeros((32, 40, 3), np.uint8))
