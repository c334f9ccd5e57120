import cv2
import numpy as np
import pytest

from helpers.data import files
from helpers.data.sketches import (
    contour,
    extract_lines,
    hair_mask,
    median_color,
    remove_hair,
    sketch,
    stroke_width,
    structure,
)
from helpers.phantoms.render import render


def disc(size: int = 128, radius: float = 0.3, center: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] / size
    return (np.hypot(rows - center[0], columns - center[1]) < radius).astype(np.uint8)


def skin(size: int = 128, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 2, (size, size, 1))
    return np.clip(np.array([220, 170, 150]) + noise, 0, 255).astype(np.uint8)


def add_hairs(image: np.ndarray, seed: int = 0, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The image with thin dark straight hairs, and their mask in {0, 1}."""
    rng, size = np.random.default_rng(seed), image.shape[0]
    lines = np.zeros(image.shape[:2], np.uint8)
    for _ in range(count):
        angle, middle = rng.uniform(0, np.pi), rng.uniform(0.3, 0.7, 2) * size
        reach = 0.35 * size * np.array([np.cos(angle), np.sin(angle)])
        a, b = (tuple(int(v) for v in middle + sign * reach) for sign in (-1, 1))
        cv2.line(lines, a, b, 255, max(1, size // 100), cv2.LINE_AA)
    alpha = lines[..., None] / 255
    return (image * (1 - alpha) + 45 * alpha).astype(np.uint8), (lines > 127).astype(np.uint8)


def enclosed(lines: np.ndarray) -> np.ndarray:
    """Pixels that a flood fill from the corner does not reach."""
    flooded = lines.copy()
    cv2.floodFill(flooded, None, (0, 0), 128)
    return flooded != 128


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_contour_of_a_disc_is_its_circle(size):
    lines = contour(disc(size))
    assert lines.dtype == np.uint8 and set(np.unique(lines)) == {0, 255}
    rows, columns = np.nonzero(lines)
    radius = np.hypot(rows - size / 2, columns - size / 2)
    assert np.abs(radius - 0.3 * size).max() <= stroke_width(lines.shape) + 1
    assert (lines > 0).sum() == pytest.approx(2 * np.pi * 0.3 * size * stroke_width(lines.shape), rel=0.25)


def test_contour_of_a_cut_off_lesion_is_closed_along_the_border():
    mask = disc(center=(0.5, 1.0))
    lines = contour(mask)
    assert (lines[mask[:, -1] == 1, -1] == 255).all()
    assert (enclosed(lines) & (mask == 0)).mean() < 0.03 and enclosed(lines)[mask == 1].all()


def test_contour_ignores_specks_but_not_a_second_lesion():
    specks, pair = disc(), disc(radius=0.15, center=(0.3, 0.3)) | disc(radius=0.15, center=(0.7, 0.7))
    specks[2, 2] = 1
    assert (contour(specks) == contour(disc())).all()
    assert cv2.connectedComponents(contour(pair))[0] == 3


def test_contour_of_empty_and_full_masks():
    assert contour(np.zeros((64, 64), np.uint8)).max() == 0
    lines = contour(np.ones((64, 64), np.uint8))
    assert lines[0].min() == lines[:, -1].min() == 255 and lines[10:-10, 10:-10].max() == 0


def test_hair_mask_and_remove_hair_on_hairs():
    clean = skin()
    image, hairs = add_hairs(clean)
    pred = hair_mask(image)
    dilated = cv2.dilate(hairs, np.ones((3, 3), np.uint8))
    assert pred[hairs == 1].mean() > 0.85, "recall"
    assert dilated[pred == 1].mean() > 0.9, "precision"
    before, after = (np.abs(x.astype(float) - clean).mean() for x in (image, remove_hair(image)))
    assert after < 0.25 * before


@pytest.mark.parametrize("size", [64, 128, 256])
def test_hair_mask_leaves_out_dots_and_lesions(size):
    image = skin(size)
    image[disc(size, 0.2) == 1] = (110, 60, 40)
    for row in np.linspace(0.35, 0.65, 4):
        for column in np.linspace(0.35, 0.65, 4):
            image[disc(size, 0.02, (row, column)) == 1] = (50, 25, 20)
    assert hair_mask(image).mean() < 0.005
    assert (remove_hair(skin(size)) == skin(size)).all(), "an image without hair is unchanged"


@pytest.mark.parametrize("method", ["xdog", "canny"])
def test_structure_contains_inner_edges_and_the_contour(method):
    image, mask = skin(), disc()
    image[mask == 1] = (150, 100, 80)
    image[disc(radius=0.05, center=(0.45, 0.55)) == 1] = (60, 30, 30)
    lines = structure(image, mask, method)
    assert set(np.unique(lines)) == {0, 255}
    assert (lines[contour(mask) == 255] == 255).all()
    assert lines[disc(radius=0.09, center=(0.45, 0.55)) == 1].any(), "edges of the dark nest"
    assert not lines[(mask == 0) & (contour(mask) == 0)].any(), "no edges on skin"


@pytest.mark.parametrize("method", ["xdog", "canny"])
def test_structure_of_noisy_skin_is_nearly_empty(method):
    for seed in range(5):
        assert structure(skin(seed=seed), None, method).mean() < 2


def test_structure_without_a_mask_contains_the_lesion_border():
    image = skin()
    image[disc() == 1] = (120, 70, 50)
    lines = structure(image)
    assert lines[contour(disc()) == 255].mean() > 0.3 * 255
    assert lines[cv2.dilate(disc(radius=0.36), np.ones((3, 3), np.uint8)) == 0].max() == 0


def test_structure_leaves_out_hair():
    image, mask = skin(), disc()
    image[mask == 1] = (150, 100, 80)
    clean, hairy = structure(image, mask), structure(add_hairs(image)[0], mask)
    assert ((hairy > 0) & (clean == 0)).sum() < 0.05 * mask.sum()


def test_sketch_selects_the_style():
    image, mask = render(0, 1, 64)
    assert (sketch(image, mask, "contour") == contour(mask)).all()
    assert (sketch(image, mask, "structure") == structure(image, mask)).all()
    assert (sketch(image, None, "structure") == structure(image)).all()


def test_sketch_without_mask_or_of_unknown_style_raises():
    image, mask = render(0, 1, 64)
    with pytest.raises(ValueError, match="'contour' needs a mask, got None"):
        sketch(image, None, "contour")
    with pytest.raises(ValueError, match="must be one of contour, structure, got 'watercolor'"):
        sketch(image, mask, "watercolor")


def test_median_color_and_lines_in_strips_equal_those_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, high, (*shape, 3)).astype(np.uint8) for high in (2, 256) for shape in ((1, 1), (9, 7), (8, 6))
    ]
    images += [255 - image for image in images]
    at_once = [extract_lines(image) for image in images]
    monkeypatch.setattr(files, "STRIP", 10)
    for image, lines in zip(images, at_once, strict=True):
        assert np.array_equal(median_color(image), np.median(image, axis=(0, 1)))
        assert np.array_equal(extract_lines(image), lines)
        assert np.array_equal(extract_lines(image, np.full_like(image, median_color(image))), lines)
