import cv2
import numpy as np
import pytest

from helpers.data.phantoms import render
from helpers.data.sketches import (
    contour,
    deform,
    hair_mask,
    hand_drawn,
    remove_hair,
    sketch,
    stroke_width,
    structure,
)


def disc(size: int = 128, radius: float = 0.3, centre: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] / size
    return (np.hypot(rows - centre[0], columns - centre[1]) < radius).astype(np.uint8)


def skin(size: int = 128, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 2, (size, size, 1))
    return np.clip(np.array([220, 170, 150]) + noise, 0, 255).astype(np.uint8)


def hairy(image: np.ndarray, seed: int = 0, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Thin dark straight hairs across a picture, and where they are."""
    rng, size = np.random.default_rng(seed), image.shape[0]
    drawn = np.zeros(image.shape[:2], np.uint8)
    for _ in range(count):
        angle, middle = rng.uniform(0, np.pi), rng.uniform(0.3, 0.7, 2) * size
        reach = 0.35 * size * np.array([np.cos(angle), np.sin(angle)])
        a, b = (tuple(int(v) for v in middle + sign * reach) for sign in (-1, 1))
        cv2.line(drawn, a, b, 255, max(1, size // 100), cv2.LINE_AA)
    share = drawn[..., None] / 255
    return (image * (1 - share) + 45 * share).astype(np.uint8), (drawn > 127).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_contour_of_a_disc_is_its_circle(size):
    drawing = contour(disc(size))
    assert drawing.dtype == np.uint8 and set(np.unique(drawing)) == {0, 255}
    rows, columns = np.nonzero(drawing)
    radius = np.hypot(rows - size / 2, columns - size / 2)
    assert np.abs(radius - 0.3 * size).max() <= stroke_width(drawing.shape) + 1
    assert (drawing > 0).sum() == pytest.approx(2 * np.pi * 0.3 * size * stroke_width(drawing.shape), rel=0.25)


def filled(drawing: np.ndarray) -> np.ndarray:
    """What a line encloses: what cannot be reached from a corner."""
    reached = drawing.copy()
    cv2.floodFill(reached, None, (0, 0), 128)
    return reached != 128


def test_contour_is_closed_along_the_frame():
    mask = disc(centre=(0.5, 1.0))
    drawing = contour(mask)
    on_frame = mask[:, -1] == 1
    assert (drawing[on_frame, -1] == 255).all()
    assert (filled(drawing) & (mask == 0)).mean() < 0.03 and filled(drawing)[mask == 1].all()


def test_contour_ignores_crumbs_but_not_a_second_lesion():
    crumbs, pair = disc(), disc(radius=0.15, centre=(0.3, 0.3)) | disc(radius=0.15, centre=(0.7, 0.7))
    crumbs[2, 2] = 1
    assert (contour(crumbs) == contour(disc())).all()
    assert cv2.connectedComponents(contour(pair))[0] == 3


def test_empty_and_full_masks():
    assert contour(np.zeros((64, 64), np.uint8)).max() == 0
    frame = contour(np.ones((64, 64), np.uint8))
    assert frame[0].min() == frame[:, -1].min() == 255 and frame[10:-10, 10:-10].max() == 0


def test_hairs_are_found_and_painted_over():
    clean = skin()
    image, where = hairy(clean)
    found = hair_mask(image)
    near = cv2.dilate(where, np.ones((3, 3), np.uint8))
    assert found[where == 1].mean() > 0.85, "most of every hair"
    assert near[found == 1].mean() > 0.9, "and little else"
    before, after = (np.abs(picture.astype(float) - clean).mean() for picture in (image, remove_hair(image)))
    assert after < 0.25 * before


@pytest.mark.parametrize("size", [64, 128, 256])
def test_dots_and_lesions_are_no_hair(size):
    image = skin(size)
    image[disc(size, 0.2) == 1] = (110, 60, 40)
    for row in np.linspace(0.35, 0.65, 4):
        for column in np.linspace(0.35, 0.65, 4):
            image[disc(size, 0.02, (row, column)) == 1] = (50, 25, 20)
    assert hair_mask(image).mean() < 0.005
    assert (remove_hair(skin(size)) == skin(size)).all(), "a picture without hair stays as it is"


@pytest.mark.parametrize("method", ["xdog", "canny"])
def test_structure_shows_inner_edges_and_the_contour(method):
    image, mask = skin(), disc()
    image[mask == 1] = (150, 100, 80)
    image[disc(radius=0.05, centre=(0.45, 0.55)) == 1] = (60, 30, 30)
    drawing = structure(image, mask, method)
    assert set(np.unique(drawing)) == {0, 255}
    assert (drawing[contour(mask) == 255] == 255).all()
    inner = disc(radius=0.09, centre=(0.45, 0.55)) == 1
    assert drawing[inner].any(), "the dark nest is drawn"
    assert not drawing[mask == 0][contour(mask)[mask == 0] == 0].any(), "and no skin"


@pytest.mark.parametrize("method", ["xdog", "canny"])
def test_noise_on_flat_skin_draws_nothing(method):
    for seed in range(5):
        assert structure(skin(seed=seed), None, method).mean() < 2


def test_structure_without_a_mask_finds_the_lesion():
    image = skin()
    image[disc() == 1] = (120, 70, 50)
    drawing = structure(image)
    assert drawing[contour(disc()) == 255].mean() > 0.3 * 255
    assert drawing[cv2.dilate(disc(radius=0.36), np.ones((3, 3), np.uint8)) == 0].max() == 0


def test_hair_does_not_get_into_the_sketch():
    image, mask = skin(), disc()
    image[mask == 1] = (150, 100, 80)
    clean, with_hair = structure(image, mask), structure(hairy(image)[0], mask)
    assert ((with_hair > 0) & (clean == 0)).sum() < 0.05 * (mask.sum())


def test_hand_wanders_breaks_and_is_reproducible():
    drawing = contour(disc())
    first, again, other = (hand_drawn(drawing, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert set(np.unique(first)) == {0, 255}
    assert (hand_drawn(drawing, np.random.default_rng(0), strength=0) == drawing).all()
    gaps = [cv2.connectedComponents(hand_drawn(drawing, np.random.default_rng(s)))[0] - 1 for s in range(30)]
    assert max(gaps) > 1, "some lines are broken"
    distance = cv2.distanceTransform((drawing == 0).astype(np.uint8), cv2.DIST_L2, 3)
    strays = [distance[hand_drawn(drawing, np.random.default_rng(s)) > 0].max() for s in range(30)]
    assert 1 < np.median(strays) < 0.1 * 128, "it wanders, and stays the same drawing"
    ink = [(hand_drawn(drawing, np.random.default_rng(s)) > 0).sum() / (drawing > 0).sum() for s in range(30)]
    assert 0.6 < np.mean(ink) < 1.6


def test_deform_makes_new_shapes_of_about_the_same_size():
    mask = render(0, 3, 128)[1]
    shapes = [deform(mask, np.random.default_rng(seed)) for seed in range(30)]
    assert all(set(np.unique(s)) == {0, 1} for s in shapes)
    areas = np.array([s.sum() for s in shapes]) / mask.sum()
    assert 0.6 < np.median(areas) < 1.5 and areas.min() > 0.2
    overlap = [(s & mask).sum() / (s | mask).sum() for s in shapes]
    assert np.mean(overlap) < 0.9
    assert (deform(mask, np.random.default_rng(4)) == shapes[4]).all()
    assert (deform(mask, np.random.default_rng(0), strength=0) == mask).all()
    assert deform(np.zeros((64, 64), np.uint8), np.random.default_rng(0)).max() == 0


def test_one_door_for_all_styles():
    image, mask = render(0, 1, 64)
    rng = np.random.default_rng(0)
    assert (sketch(image, mask, "contour") == contour(mask)).all()
    assert (sketch(image, mask, "structure") == structure(image, mask)).all()
    assert sketch(image, mask, "hand", rng).any()
    assert sketch(image, None, "structure").shape == (64, 64)
    with pytest.raises(ValueError, match="has none"):
        sketch(image, None, "contour")
    with pytest.raises(ValueError, match="watercolour"):
        sketch(image, mask, "watercolour")
