"""The phantoms: what a caller may rely on, and whether each diagnosis looks as the textbooks say."""

import itertools

import cv2
import numpy as np
import pytest

from helpers.data.phantoms import CLASSES, render

LESIONS = 30  # of every class, for the statistics below
MEL, NV, BCC, AKIEC, BKL, DF, VASC = range(7)


# ---------------------------------------------------------------- measuring a picture


def _spread(values: np.ndarray) -> float:
    """How far the colours of pixels (n, 3) scatter around their mean."""
    return float(np.sqrt(values.var(axis=0).sum()))


def _asymmetry(mask: np.ndarray) -> float:
    """Share of the mask that its mirror images along both main axes do not cover (A of the ABCD rule)."""
    y, x = np.nonzero(mask)
    _, axes = np.linalg.eigh(np.cov(x, y))
    turned = np.column_stack([x - x.mean(), y - y.mean()]) @ axes
    half, reach = 48, np.abs(turned).max()
    grid, _, _ = np.histogram2d(*turned.T, bins=half, range=[[-reach, reach]] * 2)
    grid = grid > 0
    return float(np.mean([(grid ^ mirror).sum() / grid.sum() for mirror in (grid[::-1], grid[:, ::-1])]))


def _spots(grey: np.ndarray, inner: np.ndarray, sign: int) -> float:
    """Strongest bright (`sign` 1) or dark (-1) spots against their surroundings, in grey levels."""
    around = cv2.medianBlur(grey, 9).astype(float)
    return float(np.percentile((sign * (cv2.GaussianBlur(grey, (0, 0), 0.8) - around))[inner], 99))


def measure(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Colour, pattern and shape of a lesion (mask with some skin around it), each one number."""
    inside, skin = image[mask > 0].astype(float) + 1, image[mask == 0].astype(float) + 1
    lost = np.log(skin.mean(0) / inside.mean(0))  # density of the lesion in R, G, B
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    depth /= depth.max()
    grey, inner = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), depth > 0.2
    fine = grey - cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 2)
    density = -np.log((image.astype(np.float32) + 1) / 256)
    outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    return {
        "red": lost[0],
        "green": lost[1],
        "blue": lost[2],
        "redness": lost[1] - 0.5 * (lost[0] + lost[2]),  # blood takes green above all
        "spread": _spread(density[mask > 0]),
        "asymmetry": _asymmetry(mask),
        "area": float(mask.mean()),
        "roundness": 4 * np.pi * mask.sum() / cv2.arcLength(outline, True) ** 2,
        "centre_lighter": float(grey[depth > 0.7].mean() - grey[(depth > 0.15) & (depth < 0.5)].mean()),
        "bright_spots": _spots(grey, inner, 1),
        "dark_spots": _spots(grey, inner, -1),
        "texture": float(fine[inner].std()),
        "blue_grey": float(np.percentile((density[..., 0] - density[..., 2])[mask > 0], 95)),
        "border": float(grey[(depth > 0) & (depth < 0.15)].mean() - grey[depth > 0.3].mean()),
    }


@pytest.fixture(scope="module")
def lesions() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """LESIONS pictures of every class."""
    return [[render(label, seed) for seed in range(LESIONS)] for label in range(len(CLASSES))]


@pytest.fixture(scope="module")
def features(lesions) -> list[list[dict[str, float]]]:
    """What `measure` says of each; lesions that fill the frame have no skin to compare with and are left out."""
    return [[measure(*pair) for pair in of_class if pair[1].mean() < 0.9] for of_class in lesions]


def median(features, label: int, name: str) -> float:
    return float(np.median([f[name] for f in features[label]]))


# ---------------------------------------------------------------- one picture


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_shapes_and_ranges(label):
    image, mask = render(label, seed=3)
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert mask.shape == (128, 128) and mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1} and mask.any()
    assert image.std() > 3


def test_same_arguments_same_bytes():
    first = render(MEL, 11, photograph=2)
    render(NV, 5)  # what was drawn in between must not matter
    again = render(MEL, 11, photograph=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_another_seed_label_or_photograph_is_another_picture():
    pictures = [render(*arguments)[0] for arguments in ((MEL, 1), (MEL, 2), (NV, 1), (MEL, 1, 128, 1))]
    for a, b in itertools.combinations(pictures, 2):
        assert np.abs(a.astype(int) - b).mean() > 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label": 7, "seed": 0}, "label 7"),
        ({"label": -1, "seed": 0}, "label -1"),
        ({"label": 0, "seed": 0, "size": 63}, "size 63"),
        ({"label": 0, "seed": 0, "size": 513}, "size 513"),
        ({"label": 0, "seed": -1}, "negative"),
        ({"label": 0, "seed": 0, "photograph": -1}, "negative"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        render(**arguments)


@pytest.mark.parametrize("label", [MEL, BKL, VASC])
def test_every_size_shows_the_same_scene(label):
    small_image, small_mask = render(label, 4, size=128)
    for size in (64, 256, 512):
        image, mask = render(label, 4, size=size)
        assert image.shape == (size, size, 3) and mask.shape == (size, size)
        low, high = (128, size) if size > 128 else (size, 128)
        scenes = (small_image, image) if size > 128 else (image, small_image)
        shrunk = cv2.resize(scenes[1], (low, low), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(shrunk.ravel(), scenes[0].ravel())[0, 1] > 0.92, (
            low,
            high,
        )  # thin ruler marks are hardly there at 64 px
        assert abs(mask.mean() - small_mask.mean()) < 0.02


def test_mask_is_one_piece_of_plausible_area(lesions):
    areas = [mask.mean() for of_class in lesions for _, mask in of_class]
    assert np.mean([0.04 < area < 0.65 for area in areas]) > 0.85
    for of_class in lesions:
        for _, mask in of_class:
            parts = cv2.connectedComponents(mask)[0] - 1
            holes = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1))[0] - 2
            assert parts == 1 and holes == 0


def test_few_lesions_reach_the_frame(lesions):
    cut = [bool(np.concatenate([m[0], m[-1], m[:, 0], m[:, -1]]).any()) for of_class in lesions for _, m in of_class]
    assert 0.05 < np.mean(cut) < 0.5


def test_mask_agrees_with_the_picture(features, lesions):
    """Lesions are darker than their skin, and the change of colour lies at the outline of the mask."""
    assert np.mean([f["green"] > 0.05 for of_class in features for f in of_class]) > 0.9
    steps, elsewhere = [], []
    for image, mask in itertools.chain.from_iterable(lesions):
        green = cv2.GaussianBlur(image[..., 1], (0, 0), 1.5).astype(float)
        ring = cv2.dilate(mask, np.ones((9, 9))) - mask
        core = mask - cv2.erode(mask, np.ones((9, 9)))
        outside = cv2.dilate(mask, np.ones((17, 17))) - mask - ring
        if ring.any() and outside.any():
            steps.append(green[ring > 0].mean() - green[core > 0].mean())
            elsewhere.append(green[outside > 0].mean() - green[ring > 0].mean())
    assert np.mean(steps) > 2 * abs(np.mean(elsewhere))


@pytest.mark.parametrize("label", [NV, BKL, DF])
def test_photographs_of_a_lesion_share_the_lesion(label):
    """Turned back, the masks of two photographs cover each other; masks of other lesions do so less."""
    own, other = [], []
    for seed in range(6):
        masks = [_upright(render(label, seed, photograph=n)[1]) for n in range(2)]
        stranger = _upright(render(label, seed + 100)[1])
        own.append(_best_overlap(*masks))
        other.append(_best_overlap(masks[0], stranger))
    assert np.median(own) > 0.88 and np.median(own) > np.median(other)


def _upright(mask: np.ndarray) -> np.ndarray:
    """The mask moved to the middle and scaled to a fifth of the picture: float32 (128, 128)."""
    m = cv2.moments(mask, binaryImage=True)
    scale = np.sqrt(0.2 / mask.mean())
    move = np.array([[scale, 0, 64 - scale * m["m10"] / m["m00"]], [0, scale, 64 - scale * m["m01"] / m["m00"]]])
    return cv2.warpAffine(mask.astype(np.float32), move, (128, 128))


def _best_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest Jaccard index over all turns of `b`."""
    best = 0.0
    for angle in range(0, 360, 6):
        turned = cv2.warpAffine(b, cv2.getRotationMatrix2D((64, 64), angle, 1), (128, 128)) > 0.5
        best = max(best, np.sum((a > 0.5) & turned) / np.sum((a > 0.5) | turned))
    return best


# ---------------------------------------------------------------- diagnoses, as the textbooks describe them


def test_vascular_lesions_are_the_red_ones(features):
    others = [median(features, label, "redness") for label in range(len(CLASSES)) if label != VASC]
    assert median(features, VASC, "redness") > max(others) + 0.1


def test_melanoma_is_asymmetric_rough_and_many_coloured(features):
    for name in ("asymmetry", "spread", "red"):
        assert median(features, MEL, name) > 1.15 * median(features, NV, name), name
    assert median(features, MEL, "roundness") < median(features, NV, "roundness")


def test_dermatofibroma_is_lightest_in_its_centre(features):
    assert median(features, DF, "centre_lighter") > 0 > median(features, NV, "centre_lighter")


def test_seborrhoeic_keratosis_has_bright_dots_and_a_sharp_border(features):
    assert median(features, BKL, "bright_spots") > 1.15 * median(features, NV, "bright_spots")
    assert median(features, BKL, "border") < 0.6 * median(features, NV, "border")  # naevi fade out


def test_carcinoma_and_keratosis_are_pale(features):
    for label in (BCC, AKIEC):
        assert median(features, label, "green") < 0.7 * median(features, NV, "green")


def test_classes_overlap_but_can_be_told_apart(features):
    """The nearest class centre in standardised features is right far more often than by chance, not always."""
    rows = [[np.array(list(f.values())) for f in of_class] for of_class in features]
    learn, test = [r[:20] for r in rows], [r[20:] for r in rows]
    everything = np.concatenate(learn)
    centre, scale = everything.mean(0), everything.std(0)
    centres = np.stack([((np.stack(r) - centre) / scale).mean(0) for r in learn])
    recalls = []
    for label, of_class in enumerate(test):
        far = np.linalg.norm((np.stack(of_class)[:, None] - centre) / scale - centres, axis=2)
        recalls.append(np.mean(far.argmin(1) == label))
    assert 0.45 < np.mean(recalls) < 0.98


def test_all_skin_tones_are_there():
    """Luminance of the skin over many patients: mostly light, some dark."""
    skin = []
    for seed in range(80):
        image, mask = render(VASC, seed, size=64)
        skin.append(np.median(image[mask == 0].mean(1)))
    assert np.min(skin) < 100 and np.median(skin) > 150
