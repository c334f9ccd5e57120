import cv2
import numpy as np

from helpers.data.deform import deform, deform_sketch, deformation, hand_drawn
from helpers.data.sketches import contour
from helpers.phantoms.render import render


def disc(size: int = 128, radius: float = 0.3) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] / size
    return (np.hypot(rows - 0.5, columns - 0.5) < radius).astype(np.uint8)


def turning_angles(lines: np.ndarray, step: int = 5) -> np.ndarray:
    """Absolute angles in degrees between successive chords of `step` pixels along the outer outline."""
    closed = cv2.morphologyEx(lines, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    outline = max(cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)[::step, 0]
    x, y = np.diff(outline, axis=0).T
    return np.abs(np.angle(np.exp(1j * np.diff(np.arctan2(y, x))), deg=True))


def test_hand_drawn_displaces_and_breaks_lines_reproducibly():
    lines = contour(disc())
    sketches = [hand_drawn(lines, np.random.default_rng(seed)) for seed in range(30)]
    assert (hand_drawn(lines, np.random.default_rng(1)) == sketches[1]).all() and (sketches[1] != sketches[2]).any()
    assert set(np.unique(sketches)) == {0, 255}
    assert max(cv2.connectedComponents(s)[0] - 1 for s in sketches) > 1, "some lines have gaps"
    distance = cv2.distanceTransform((lines == 0).astype(np.uint8), cv2.DIST_L2, 3)
    max_distances = [distance[s > 0].max() for s in sketches]
    assert 1 < np.median(max_distances) < 0.1 * 128, "displaced, but close to the original"
    assert 0.6 < np.mean([(s > 0).sum() for s in sketches]) / (lines > 0).sum() < 1.6


def test_hand_drawn_strength_scales_the_displacement():
    lines = contour(disc())
    distance = cv2.distanceTransform((lines == 0).astype(np.uint8), cv2.DIST_L2, 3)
    moved = [distance[hand_drawn(lines, np.random.default_rng(0), strength=s) > 0].max() for s in (0.5, 3)]
    assert moved[1] > 2 * moved[0]
    assert (hand_drawn(lines, np.random.default_rng(0), strength=0) == lines).all()


def test_hand_drawn_is_smoother_than_a_ragged_mask():
    angles, radii = np.linspace(0, 2 * np.pi, 60), 38 * (1 + 0.1 * np.random.default_rng(0).standard_normal(60))
    points = np.stack([64 + radii * np.cos(angles), 64 + radii * np.sin(angles)], axis=1).astype(np.int32)
    ragged = contour(cv2.fillPoly(np.zeros((128, 128), np.uint8), [points], 1))
    drawn = [hand_drawn(ragged, np.random.default_rng(seed), strength=0.5) for seed in range(10)]
    before, after = turning_angles(ragged), np.concatenate([turning_angles(lines) for lines in drawn])
    assert np.percentile(before, 90) > 60 and np.percentile(after, 90) < 40


def test_hand_drawn_displaces_lines_that_enclose_nothing():
    lines = np.zeros((128, 128), np.uint8)
    cv2.line(lines, (20, 30), (100, 90), 255, 2)
    drawn = hand_drawn(lines, np.random.default_rng(3), strength=2)
    assert (drawn != lines).any() and 0.6 < (drawn > 0).sum() / (lines > 0).sum() < 1.4
    assert not hand_drawn(np.zeros_like(lines), np.random.default_rng(0)).any()


def test_deform_gives_new_shapes_of_similar_area():
    mask = render(0, 3, 128)[1]
    shapes = [deform(mask, np.random.default_rng(seed)) for seed in range(30)]
    assert all(set(np.unique(s)) == {0, 1} for s in shapes)
    areas = np.array([s.sum() for s in shapes]) / mask.sum()
    assert 0.6 < np.median(areas) < 1.5 and areas.min() > 0.2
    jaccard = [(s & mask).sum() / (s | mask).sum() for s in shapes]
    assert np.mean(jaccard) < 0.9
    assert (deform(mask, np.random.default_rng(4)) == shapes[4]).all()
    assert deform(np.zeros((64, 64), np.uint8), np.random.default_rng(0)).max() == 0


def test_deformation_maps_the_image_the_same_way_as_the_mask():
    mask = render(0, 3, 128)[1]
    grid = deformation(mask, np.random.default_rng(4))
    assert grid.shape == (128, 128, 2) and grid.dtype == np.float32
    image = cv2.remap(255 * mask, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    shape = deform(mask, np.random.default_rng(4))
    assert ((image > 127) != shape).mean() < 0.005 < (mask != shape).mean()


def test_deform_sketch_moves_lines_and_mask_together():
    mask = render(0, 3, 128)[1]
    for seed in range(5):
        lines, shape = deform_sketch(contour(mask), mask, np.random.default_rng(seed))
        assert (shape == deform(mask, np.random.default_rng(seed))).all() and set(np.unique(lines)) == {0, 255}
        near = cv2.dilate(contour(shape), np.ones((5, 5), np.uint8)) > 0
        assert near[lines > 0].mean() > 0.95 and (lines > 0).sum() > 0.5 * (contour(shape) > 0).sum()
    lines, shape = deform_sketch(contour(mask), np.zeros_like(mask), np.random.default_rng(0))
    assert lines.any() and not shape.any(), "without a mask about the center of the image"
