import cv2
import numpy as np
import pytest

from helpers.data.poisson import blend, dilate, poisson_blend, remove_lesion

LIGHT = (220, 170, 150)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def disc(size: int = 64, radius: int = 12) -> np.ndarray:
    return cv2.circle(np.zeros((size, size), np.uint8), (size // 2, size // 2), radius, 1, -1)


def skin(color: tuple[int, int, int], size: int = 64, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 4, (size, size, 1))
    return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


def add_lesion(image: np.ndarray, mask: np.ndarray, darker: int = 80) -> np.ndarray:
    return np.clip(image - darker * mask[..., None].astype(int), 0, 255).astype(np.uint8)


def test_blend_adapts_the_lesion_to_the_color_of_the_skin(rng):
    mask, target = disc(), skin(LIGHT)
    image, new_mask = blend(add_lesion(skin((150, 120, 90), seed=1), mask), mask, target, rng)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and set(np.unique(new_mask)) == {0, 1}
    far = dilate(new_mask, 1 / 10) == 0
    difference = np.abs(image[far].astype(int) - target[far])
    assert difference.max() <= 2 and difference.mean() < 0.5, "skin away from the lesion is unchanged"
    inside = cv2.erode(new_mask, np.ones((5, 5), np.uint8)) == 1
    contrast = target[far].mean(axis=0) - image[inside].mean(axis=0)
    assert contrast == pytest.approx([80, 80, 80], abs=12), "the contrast of the source"


def test_blend_with_an_empty_mask_returns_the_skin(rng):
    target = skin(LIGHT)
    image, new_mask = blend(target // 2, np.zeros((64, 64), np.uint8), target, rng)
    assert np.array_equal(image, target) and not new_mask.any()


@pytest.mark.parametrize("mask", [np.ones((32, 32), np.uint8), np.eye(32, dtype=np.uint8)])
def test_blend_full_or_thin_mask_darkens_the_region(mask, rng):
    target = skin(LIGHT, 32)
    image, new_mask = blend(add_lesion(skin((150, 120, 90), 32, seed=1), mask), mask, target, rng)
    assert image.shape == (32, 32, 3) and new_mask.any()
    assert image[new_mask == 1].mean() < target.mean() - 5


def test_blend_sizes_differ_raises(rng):
    with pytest.raises(ValueError, match=r"same size, got \(64, 64\), \(64, 64\), \(32, 32\)"):
        blend(skin((1, 1, 1)), disc(), skin((1, 1, 1), 32), rng)


def test_poisson_blend_keeps_the_contrast_at_the_image_border():
    half = np.zeros((64, 64), np.uint8)
    half[:, :30] = 1
    target = skin(LIGHT)
    image = poisson_blend(add_lesion(skin((200, 160, 140), seed=2), half), dilate(half, 1 / 24), target)
    assert target[:, 0].mean() - image[:, 0].mean() > 60 and target[:, 10].mean() - image[:, 10].mean() > 60


def test_remove_lesion_leaves_textured_skin(rng):
    mask, clean = disc(), skin(LIGHT)
    image = remove_lesion(add_lesion(clean, mask), mask, rng)
    inside = mask == 1
    assert image[inside].mean(axis=0) == pytest.approx(clean[inside].mean(axis=0), abs=6)
    assert image[inside].std(axis=0) == pytest.approx(clean[inside].std(axis=0), rel=0.5)
    far = dilate(mask, 1 / 6) == 0
    assert np.abs(image[far].astype(int) - clean[far]).max() <= 1


def test_remove_lesion_empty_or_full_mask_returns_the_image(rng):
    image = skin(LIGHT)
    for mask in (np.zeros((64, 64), np.uint8), np.ones((64, 64), np.uint8)):
        assert np.array_equal(remove_lesion(image, mask, rng), image)
