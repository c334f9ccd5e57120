import numpy as np
import pytest

from helpers.metrics.fidelity import label_accuracy, mean_pairwise_distance, sketch_dice, ssim


def segment_dark(images: np.ndarray) -> np.ndarray:
    return (images.mean(axis=3) < 128).astype(np.uint8)


def test_sketch_dice_known_regions_are_known_values():
    masks = np.zeros((4, 10, 10), np.uint8)
    masks[:3, :, :5] = 1
    images = np.full((4, 10, 10, 3), 255, np.uint8)
    images[0, :, :5] = 0
    images[1, :, 5:] = 0
    images[2, :5] = 0
    assert sketch_dice(images, masks, segment_dark).tolist() == [1, 0, 0.5, 1], "the last has two empty masks"


def test_label_accuracy_is_one_per_correct_image():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    assert label_accuracy(probabilities, np.array([0, 1, 1])).tolist() == [1, 1, 0]


def test_mean_pairwise_distance_three_points_is_known_value():
    assert mean_pairwise_distance(np.array([[0, 0], [3, 4], [0, 0]])) == pytest.approx(10 / 3)
    assert mean_pairwise_distance(np.zeros((5, 2))) == 0


def test_mean_pairwise_distance_one_image_raises():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        mean_pairwise_distance(np.zeros((1, 2)))


def test_ssim_uniform_images_is_closed_form():
    darker, lighter = (np.full((32, 32), value, np.uint8) for value in (100, 150))
    c1 = 2.55**2
    assert ssim(darker, lighter) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-6)


def test_ssim_equal_noisy_and_unrelated_images_decreases_from_one_to_zero():
    rng = np.random.default_rng(0)
    image, unrelated = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    noisy = np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    assert ssim(image, image) == pytest.approx(1)
    assert 0.7 < ssim(image, noisy) < 1 and ssim(image, noisy) == pytest.approx(ssim(noisy, image))
    assert abs(ssim(image, unrelated)) < 0.05


def test_ssim_different_sizes_are_compared_at_the_smaller():
    small = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (16, 20), dtype=np.uint8), 2, 0), 2, 1)
    large = np.repeat(np.repeat(small, 2, 0), 2, 1)
    assert ssim(small, large) == pytest.approx(1) and ssim(large, small) == pytest.approx(1)


def test_ssim_color_and_gray_raises():
    with pytest.raises(ValueError, match="both be color or both gray"):
        ssim(np.zeros((32, 40), np.uint8), np.zeros((32, 40, 3), np.uint8))
