import cv2
import numpy as np
import pytest

from helpers.data.poisson import blend, dilate, poisson_blend, remove_lesion


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def disc(size: int = 64, radius: int = 12) -> np.ndarray:
    return cv2.circle(np.zeros((size, size), np.uint8), (size // 2, size // 2), radius, 1, -1)


def skin(tone: tuple[int, int, int], size: int = 64, seed: int = 0) -> np.ndarray:
    grain = np.random.default_rng(seed).normal(0, 4, (size, size, 1))
    return np.clip(np.array(tone) + grain, 0, 255).astype(np.uint8)


def with_lesion(image: np.ndarray, mask: np.ndarray, darker: int = 80) -> np.ndarray:
    return np.clip(image - darker * mask[..., None].astype(int), 0, 255).astype(np.uint8)


def test_a_lesion_moves_to_other_skin_and_takes_its_tone(rng):
    mask, pale = disc(), skin((220, 170, 150))
    image, moved = blend(with_lesion(skin((150, 120, 90), seed=1), mask), mask, pale, rng)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and set(np.unique(moved)) == {0, 1}
    far = dilate(moved, 1 / 10) == 0
    away = np.abs(image[far].astype(int) - pale[far])
    assert away.max() <= 2 and away.mean() < 0.5, "skin away from the lesion is the skin it was put on"
    inside = cv2.erode(moved, np.ones((5, 5), np.uint8)) == 1
    step = pale[far].mean(axis=0) - image[inside].mean(axis=0)
    assert step == pytest.approx([80, 80, 80], abs=12), "as much darker as it was, on a skin of another tone"


def test_nothing_to_blend_leaves_the_skin(rng):
    pale = skin((220, 170, 150))
    image, moved = blend(pale // 2, np.zeros((64, 64), np.uint8), pale, rng)
    assert np.array_equal(image, pale) and not moved.any()


def test_a_lesion_that_leaves_the_frame_keeps_its_tone_there():
    half = np.zeros((64, 64), np.uint8)
    half[:, :30] = 1
    pale = skin((220, 170, 150))
    image = poisson_blend(with_lesion(skin((200, 160, 140), seed=2), half), dilate(half, 1 / 24), pale)
    assert pale[:, 0].mean() - image[:, 0].mean() > 60 and pale[:, 10].mean() - image[:, 10].mean() > 60


@pytest.mark.parametrize("mask", [np.ones((32, 32), np.uint8), np.eye(32, dtype=np.uint8)])
def test_masks_of_any_shape_are_blended(mask, rng):
    image, _ = blend(skin((90, 60, 50), 32), mask, skin((220, 170, 150), 32), rng)
    assert image.shape == (32, 32, 3)


def test_without_its_lesion_a_picture_is_skin(rng):
    mask, pale = disc(), skin((220, 170, 150))
    bare = remove_lesion(with_lesion(pale, mask), mask, rng)
    inside = mask == 1
    assert bare[inside].mean(axis=0) == pytest.approx(pale[inside].mean(axis=0), abs=6)
    assert bare[inside].std(axis=0) == pytest.approx(pale[inside].std(axis=0), rel=0.5), "with grain of its own"
    far = dilate(mask, 1 / 6) == 0
    assert np.abs(bare[far].astype(int) - pale[far]).max() <= 1


def test_nothing_to_take_away_leaves_the_picture(rng):
    pale = skin((220, 170, 150))
    for mask in (np.zeros((64, 64), np.uint8), np.ones((64, 64), np.uint8)):
        assert np.array_equal(remove_lesion(pale, mask, rng), pale)


def test_pictures_of_unequal_size_are_refused(rng):
    with pytest.raises(ValueError, match=r"unequal size: \(64, 64\), \(64, 64\), \(32, 32\)"):
        blend(skin((1, 1, 1)), disc(), skin((1, 1, 1), 32), rng)
