import numpy as np
import pytest

from helpers.metrics.fidelity import (
    label_accuracy,
    mean_pairwise_distance,
    position_score,
    sketch_dice,
    ssim,
    structure_correlation,
)


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


def noise_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(96, 160, (count, 128, 128, 3), dtype=np.uint8)


def test_position_score_a_line_at_one_place_raises_it_and_moving_lines_do_not():
    images = noise_images(120)
    base = position_score(images)
    fixed, moving = images.copy(), images.copy()
    fixed[:, 100:101, 20:100] = 0
    for k in range(len(moving)):
        moving[k, (7 * k) % 128, :80] = 0
    assert 1 < base < 1.3
    assert position_score(fixed) > 3 * base and position_score(moving) < 1.5 * base


def test_position_score_is_independent_of_contrast():
    images = noise_images(100).astype(float)
    halved = (128 + (images - 128) / 2).round().astype(np.uint8)
    assert position_score(halved) == pytest.approx(position_score(images.astype(np.uint8)), rel=0.05)


def test_position_score_few_images_raises():
    with pytest.raises(ValueError, match="at least 100 images, got 99"):
        position_score(noise_images(99))


def test_structure_correlation_same_structure_other_tone_is_one_and_unrelated_is_zero():
    images, unrelated = noise_images(40), noise_images(40, seed=1)
    darker = (images * 0.5 + 10).astype(np.uint8)
    inverted = 255 - images
    assert structure_correlation(images, images) == pytest.approx(1)
    assert structure_correlation(images, darker) > 0.95
    assert structure_correlation(images, inverted) == pytest.approx(-1, abs=1e-4)
    assert abs(structure_correlation(images, unrelated)) < 0.1


def test_structure_correlation_ignores_the_surroundings():
    images = noise_images(10)
    other = images.copy()
    other[:, :20] = 0
    assert structure_correlation(images, other) == pytest.approx(1, abs=1e-3)


def test_structure_correlation_unequal_numbers_raises():
    with pytest.raises(ValueError, match="pairs of images, got 3 and 2"):
        structure_correlation(noise_images(3), noise_images(2))


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
