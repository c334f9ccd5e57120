"""Phantoms: shapes, ranges and errors of `render`, artifacts and their flags, and whether each class looks as
dermoscopy textbooks describe it."""

import itertools

import cv2
import numpy as np
import pytest

from helpers.phantoms.classes import CLASSES
from helpers.phantoms.render import ARTIFACTS, _hairs, _light, render, render_with_flags

LESIONS = 30  # per class, for the statistics below
MEL, NV, BCC, AKIEC, BKL, DF, VASC = range(7)


# ---------------------------------------------------------------- features of an image


def _spread(values: np.ndarray) -> float:
    """Standard deviation of the colors of pixels (n, 3), over all channels."""
    return float(np.sqrt(values.var(axis=0).sum()))


def _asymmetry(mask: np.ndarray) -> float:
    """Fraction of the mask outside its mirror images along both main axes (A of the ABCD rule)."""
    y, x = np.nonzero(mask)
    _, axes = np.linalg.eigh(np.cov(x, y))
    aligned = np.column_stack([x - x.mean(), y - y.mean()]) @ axes
    bins, reach = 48, np.abs(aligned).max()
    grid, _, _ = np.histogram2d(*aligned.T, bins=bins, range=[[-reach, reach]] * 2)
    grid = grid > 0
    return float(np.mean([(grid ^ mirror).sum() / grid.sum() for mirror in (grid[::-1], grid[:, ::-1])]))


def _spots(gray: np.ndarray, inner: np.ndarray, sign: int) -> float:
    """Contrast of the strongest bright (`sign` 1) or dark (-1) spots with their surroundings, in gray levels."""
    background = cv2.medianBlur(gray, 9).astype(float)
    return float(np.percentile((sign * (cv2.GaussianBlur(gray, (0, 0), 0.8) - background))[inner], 99))


def measure(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Color, pattern and shape features of a lesion whose mask leaves some skin around it."""
    inside, skin = image[mask > 0].astype(float) + 1, image[mask == 0].astype(float) + 1
    contrast = np.log(skin.mean(0) / inside.mean(0))  # density of the lesion in R, G, B
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    depth /= depth.max()
    gray, inner = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), depth > 0.2
    fine = gray - cv2.GaussianBlur(gray.astype(np.float32), (0, 0), 2)
    density = -np.log((image.astype(np.float32) + 1) / 256)
    outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    return {
        "red": contrast[0],
        "green": contrast[1],
        "blue": contrast[2],
        "redness": contrast[1] - 0.5 * (contrast[0] + contrast[2]),  # blood absorbs mostly green
        "spread": _spread(density[mask > 0]),
        "asymmetry": _asymmetry(mask),
        "area": float(mask.mean()),
        "roundness": 4 * np.pi * mask.sum() / cv2.arcLength(outline, True) ** 2,
        "center_lighter": float(gray[depth > 0.7].mean() - gray[(depth > 0.15) & (depth < 0.5)].mean()),
        "bright_spots": _spots(gray, inner, 1),
        "dark_spots": _spots(gray, inner, -1),
        "texture": float(fine[inner].std()),
        "blue_gray": float(np.percentile((density[..., 0] - density[..., 2])[mask > 0], 95)),
        "border": float(gray[(depth > 0) & (depth < 0.15)].mean() - gray[depth > 0.3].mean()),
    }


@pytest.fixture(scope="module")
def lesions() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """`LESIONS` images with masks of every class."""
    return [[render(label, seed) for seed in range(LESIONS)] for label in range(len(CLASSES))]


@pytest.fixture(scope="module")
def features(lesions) -> list[list[dict[str, float]]]:
    """Features of every lesion; lesions that fill the image are left out, because they have no skin to compare with."""
    return [[measure(*pair) for pair in of_class if pair[1].mean() < 0.9] for of_class in lesions]


def median(features, label: int, name: str) -> float:
    return float(np.median([f[name] for f in features[label]]))


# ---------------------------------------------------------------- render


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_render_returns_image_and_mask(label):
    image, mask = render(label, seed=3)
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert mask.shape == (128, 128) and mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1} and mask.any()
    assert image.std() > 3


def test_render_same_arguments_give_the_same_image():
    first = render(MEL, 11, view=2)
    render(NV, 5)  # there is no state between calls
    second = render(MEL, 11, view=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_render_another_seed_label_or_view_gives_another_image():
    images = [render(*arguments)[0] for arguments in ((MEL, 1), (MEL, 2), (NV, 1), (MEL, 1, 128, 1))]
    for a, b in itertools.combinations(images, 2):
        assert np.abs(a.astype(int) - b).mean() > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": 7, "seed": 0}, "label must be 0 to 6 .*, got 7"),
        ({"label": -1, "seed": 0}, "label must be 0 to 6 .*, got -1"),
        ({"label": 0, "seed": 0, "size": 63}, "size must be 64 to 512 pixels, got 63"),
        ({"label": 0, "seed": 0, "size": 513}, "size must be 64 to 512 pixels, got 513"),
        ({"label": 0, "seed": -1}, "must not be negative, got seed -1"),
        ({"label": 0, "seed": 0, "view": -1}, "must not be negative, got seed 0, view -1"),
    ],
)
def test_render_argument_out_of_range_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        render(**arguments)


@pytest.mark.parametrize("label", [MEL, BKL, VASC])
def test_render_every_size_shows_the_same_scene(label):
    reference, reference_mask = render(label, 4, size=128)
    for size in (64, 256, 512):
        image, mask = render(label, 4, size=size)
        assert image.shape == (size, size, 3) and mask.shape == (size, size)
        small, large = (reference, image) if size > 128 else (image, reference)
        shrunk = cv2.resize(large, small.shape[:2], interpolation=cv2.INTER_AREA)
        # Thin ruler marks are hardly visible at 64 px.
        assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.92, size
        assert abs(mask.mean() - reference_mask.mean()) < 0.02


def test_render_mask_is_one_component_without_holes_of_plausible_area(lesions):
    areas = [mask.mean() for of_class in lesions for _, mask in of_class]
    assert np.mean([0.04 < area < 0.65 for area in areas]) > 0.85
    for of_class in lesions:
        for _, mask in of_class:
            components = cv2.connectedComponents(mask)[0] - 1
            holes = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1))[0] - 2
            assert components == 1 and holes == 0


def test_render_few_lesions_touch_the_image_border(lesions):
    cut = [bool(np.concatenate([m[0], m[-1], m[:, 0], m[:, -1]]).any()) for of_class in lesions for _, m in of_class]
    assert 0.05 < np.mean(cut) < 0.5


def test_render_color_changes_at_the_outline_of_the_mask(features, lesions):
    assert np.mean([f["green"] > 0.05 for of_class in features for f in of_class]) > 0.9, "darker than the skin"
    at_outline, outside = [], []
    for image, mask in itertools.chain.from_iterable(lesions):
        green = cv2.GaussianBlur(image[..., 1], (0, 0), 1.5).astype(float)
        ring = cv2.dilate(mask, np.ones((9, 9))) - mask
        inner_ring = mask - cv2.erode(mask, np.ones((9, 9)))
        outer_ring = cv2.dilate(mask, np.ones((17, 17))) - mask - ring
        if ring.any() and outer_ring.any():
            at_outline.append(green[ring > 0].mean() - green[inner_ring > 0].mean())
            outside.append(green[outer_ring > 0].mean() - green[ring > 0].mean())
    assert np.mean(at_outline) > 2 * abs(np.mean(outside))


@pytest.mark.parametrize("label", [NV, BKL, DF])
def test_render_views_show_the_same_lesion(label):
    """Aligned masks of two views of a lesion overlap, and more than those of two lesions."""
    same, different = [], []
    for seed in range(6):
        masks = [_centered(render(label, seed, view=view)[1]) for view in range(2)]
        same.append(_max_jaccard(*masks))
        different.append(_max_jaccard(masks[0], _centered(render(label, seed + 100)[1])))
    assert np.median(same) > 0.88 and np.median(same) > np.median(different)


def _centered(mask: np.ndarray) -> np.ndarray:
    """The mask moved to the center and scaled to 20 % of the image: float32 (128, 128)."""
    m = cv2.moments(mask, binaryImage=True)
    scale = np.sqrt(0.2 / mask.mean())
    affine = np.array([[scale, 0, 64 - scale * m["m10"] / m["m00"]], [0, scale, 64 - scale * m["m01"] / m["m00"]]])
    return cv2.warpAffine(mask.astype(np.float32), affine, (128, 128))


def _max_jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Largest Jaccard index over all rotations of `b`."""
    best = 0.0
    for angle in range(0, 360, 6):
        rotated = cv2.warpAffine(b, cv2.getRotationMatrix2D((64, 64), angle, 1), (128, 128)) > 0.5
        best = max(best, np.sum((a > 0.5) & rotated) / np.sum((a > 0.5) | rotated))
    return best


# ---------------------------------------------------------------- artifacts

NUM_FLAGGED = 100  # seeds per class


@pytest.fixture(scope="module")
def flags() -> np.ndarray:
    """Artifact flags by class and seed: (7, NUM_FLAGGED, 7)."""
    return np.array([[render_with_flags(k, seed, 64)[2] for seed in range(NUM_FLAGGED)] for k in range(len(CLASSES))])


def examples(flags, name: str, count: int = 8) -> list[tuple[int, int]]:
    """The first phantoms (label, seed) that show an artifact, of all classes."""
    seeds, labels = np.nonzero(flags[..., ARTIFACTS.index(name)].T)
    return list(zip(labels.tolist(), seeds.tolist(), strict=True))[:count]


def change(label: int, seed: int, name: str) -> np.ndarray:
    """What an artifact adds to the image of a phantom: int (128, 128, 3)."""
    others = [other for other in ARTIFACTS if other != name]
    return render(label, seed)[0].astype(int) - render_with_flags(label, seed, artifacts=others)[0]


def test_render_with_flags_order_is_that_of_the_vocabulary():
    assert ARTIFACTS == ("dark_corner", "hair", "gel_border", "gel_bubble", "ruler", "ink", "patches")


@pytest.mark.parametrize("size", [64, 200])
def test_render_with_flags_agrees_with_render_and_has_the_same_flags_at_every_size(size):
    for seed in range(12):
        image, mask, flags = render_with_flags(MEL, seed, size, view=1)
        assert flags.shape == (7,) and flags.dtype == np.uint8 and set(flags) <= {0, 1}
        assert np.array_equal(flags, render_with_flags(MEL, seed, 64, view=1)[2])
        assert all(np.array_equal(a, b) for a, b in zip((image, mask), render(MEL, seed, size, 1), strict=True))


@pytest.mark.parametrize(
    ("name", "frequency"),
    [
        ("dark_corner", 0.045), ("hair", 0.245), ("gel_border", 0.1), ("gel_bubble", 0.08), ("ruler", 0.07),
        ("ink", 0.08), ("patches", 0.04),
    ],
)  # fmt: skip
def test_render_with_flags_frequency_is_the_intended_one_in_all_classes(flags, name, frequency):
    of_class = flags[..., ARTIFACTS.index(name)].mean(1)
    assert of_class.mean() == pytest.approx(frequency, abs=max(0.02, 0.15 * frequency))
    assert np.abs(of_class - frequency).max() < 4 * np.sqrt(frequency / NUM_FLAGGED)


def test_render_with_flags_differ_between_views():
    assert len({tuple(render_with_flags(NV, 2, 64, view)[2]) for view in range(12)}) > 2


@pytest.mark.parametrize("name", ARTIFACTS)
def test_render_with_flags_a_flagged_artifact_is_visible_and_can_be_left_out(flags, name):
    for label, seed in examples(flags, name):
        assert np.abs(change(label, seed, name)).max() > 20, (label, seed)
        others = [other for other in ARTIFACTS if other != name]
        left = render_with_flags(label, seed, artifacts=others)[2]
        expected = flags[label, seed].copy()
        expected[ARTIFACTS.index(name)] = 0
        assert np.array_equal(left, expected)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_render_with_flags_an_image_without_the_flag_does_not_show_the_artifact(flags, name):
    seeds, labels = np.nonzero(flags[..., ARTIFACTS.index(name)].T == 0)
    for label, seed in list(zip(labels, seeds, strict=True))[::20]:
        visible = np.abs(change(label, seed, name)).max(2) > 20
        # Tips of hairs and of dark corners that are too small to be flagged.
        assert visible.mean() <= (0.003 if name in ("hair", "dark_corner") else 0), (label, seed)


def test_render_with_flags_hair_outside_the_frame_is_not_flagged():
    visible, changed = [], []
    for seed in range(600):
        image = np.full((64, 64, 3), 130, np.float32)
        visible.append(_hairs(np.random.default_rng(seed), image))
        changed.append((np.abs(image - 130).max(2) > 20).mean())
    visible, changed = np.array(visible), np.array(changed)
    assert 0 < (~visible).sum() < 30
    assert changed[~visible].max() < 0.003 < np.quantile(changed[visible], 0.05)


def test_render_with_flags_dark_corner_of_few_pixels_is_not_flagged():
    found = [_light(np.random.default_rng(seed), 128) for seed in range(1500)]
    dark = np.array([(light > 0.6).mean() for light, _ in found])
    visible = np.array([visible for _, visible in found])
    assert visible.any() and dark[visible].min() > 0.0025
    assert ((dark > 0) & ~visible).any() and dark[~visible].max() < 0.003


def test_artifacts_lie_where_they_belong(flags):
    """Dark corners in the corners, ruler marks along one edge, patches at the border and off the lesion."""
    x = (2 * np.arange(128) + 1) / 128 - 1
    radius, to_edge = np.hypot(x, x[:, None]), 1 - np.maximum(np.abs(x), np.abs(x[:, None]))
    for label, seed in examples(flags, "dark_corner"):
        assert radius[np.abs(change(label, seed, "dark_corner")).max(2) > 12].min() > 1.05
    for label, seed in examples(flags, "ruler"):
        assert to_edge[np.abs(change(label, seed, "ruler")).max(2) > 12].max() < 0.25
    for label, seed in examples(flags, "patches"):
        changed, mask = np.abs(change(label, seed, "patches")).max(2) > 12, render(label, seed)[1]
        full_mask = render_with_flags(label, seed, artifacts=())[1]
        assert changed[to_edge < 0.02].any() and 0.01 < changed.mean() < 0.4
        assert (changed & (mask > 0)).sum() < 0.1 * mask.sum()
        assert not (mask & ~full_mask).any() and mask.sum() > 0.8 * full_mask.sum()


@pytest.mark.parametrize("name", ["gel_border", "ink", "patches"])
def test_artifacts_are_at_the_same_place_at_every_size(flags, name):
    for label, seed in examples(flags, name, 4):
        others, shrunk = [other for other in ARTIFACTS if other != name], []
        for size in (128, 256):
            without = render_with_flags(label, seed, size, artifacts=others)[0]
            changed = np.abs(render(label, seed, size)[0].astype(np.float32) - without).max(2)
            shrunk.append(cv2.resize(changed, (64, 64), interpolation=cv2.INTER_AREA).ravel())
        assert np.corrcoef(*shrunk)[0, 1] > 0.9, (label, seed)


def test_ink_is_violet_or_blue_and_around_the_lesion(flags):
    inside, marked = 0, 0
    for label, seed in examples(flags, "ink", 20):
        mask = render(label, seed)[1]
        ink = change(label, seed, "ink")
        pixels = ink.min(2) < -30
        assert 0.001 < pixels.mean() < 0.12
        red, green, blue = ink[pixels].mean(0)
        assert blue > 0.6 * min(red, green), "ink absorbs blue the least"
        inside, marked = inside + (pixels & (mask > 0)).sum(), marked + pixels.sum()
    assert inside < 0.5 * marked


def test_gel_border_splits_the_image_in_two_sides(flags):
    for label, seed in examples(flags, "gel_border"):
        changed = cv2.GaussianBlur(np.abs(change(label, seed, "gel_border")).max(2).astype(np.float32), (0, 0), 2)
        dry = changed > 6
        assert 0.01 < dry.mean() < 0.95
        assert np.concatenate([dry[0], dry[-1], dry[:, 0], dry[:, -1]]).any()
        assert changed[60:68, 60:68].mean() < 6, "the middle is in the gel"


# ---------------------------------------------------------------- classes as the textbooks describe them


def test_vascular_lesions_are_the_reddest(features):
    others = [median(features, label, "redness") for label in range(len(CLASSES)) if label != VASC]
    assert median(features, VASC, "redness") > max(others) + 0.1


def test_melanoma_is_more_asymmetric_rough_and_multicolored_than_nevus(features):
    for name in ("asymmetry", "spread", "red"):
        assert median(features, MEL, name) > 1.15 * median(features, NV, name), name
    assert median(features, MEL, "roundness") < median(features, NV, "roundness")


def test_dermatofibroma_is_lighter_in_its_center(features):
    assert median(features, DF, "center_lighter") > 0 > median(features, NV, "center_lighter")


def test_seborrheic_keratosis_has_bright_dots_and_a_sharp_border(features):
    assert median(features, BKL, "bright_spots") > 1.15 * median(features, NV, "bright_spots")
    assert median(features, BKL, "border") < 0.6 * median(features, NV, "border")  # the border of nevi fades


def test_carcinoma_and_actinic_keratosis_are_paler_than_nevus(features):
    for label in (BCC, AKIEC):
        assert median(features, label, "green") < 0.7 * median(features, NV, "green")


def test_classes_overlap_but_are_separable(features):
    """A nearest-centroid classifier on standardized features is far better than chance, but not perfect."""
    vectors = [[np.array(list(f.values())) for f in of_class] for of_class in features]
    train, test = [v[:20] for v in vectors], [v[20:] for v in vectors]
    all_train = np.concatenate(train)
    mean, std = all_train.mean(0), all_train.std(0)
    centroids = np.stack([((np.stack(v) - mean) / std).mean(0) for v in train])
    recalls = []
    for label, of_class in enumerate(test):
        distances = np.linalg.norm((np.stack(of_class)[:, None] - mean) / std - centroids, axis=2)
        recalls.append(np.mean(distances.argmin(1) == label))
    assert 0.45 < np.mean(recalls) < 0.98


def test_skin_tones_are_mostly_light_and_some_dark():
    brightness = []
    for seed in range(80):
        image, mask = render(VASC, seed, size=64)
        brightness.append(np.median(image[mask == 0].mean(1)))
    assert np.min(brightness) < 100 and np.median(brightness) > 150
