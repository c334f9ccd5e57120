from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from helpers.data.duplicates import Fingerprint, fingerprint, near_pairs, same_lesion
from helpers.phantoms.render import render


def save(path, image):
    cv2.imwrite(str(path), image[..., ::-1])
    return fingerprint(str(path))


@pytest.fixture(scope="module")
def lesion():
    return render(label=0, seed=11, size=256)[0]


@pytest.fixture(scope="module")
def other_lesions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    return [save(folder / f"{i}.png", render(1, i, 256)[0]) for i in range(20)]


@pytest.mark.parametrize("change", ["brighter", "recompressed", "shifted", "rotated", "scaled", "smaller"])
def test_near_pairs_changed_copy_is_found_among_others(tmp_path, lesion, other_lesions, change):
    matrix = {
        "shifted": np.float32([[1, 0, 9], [0, 1, -6]]),
        "rotated": cv2.getRotationMatrix2D((128, 128), 8, 1),
        "scaled": cv2.getRotationMatrix2D((128, 128), 0, 1.1),
    }.get(change)
    copy = lesion if matrix is None else cv2.warpAffine(lesion, matrix, (256, 256), borderMode=cv2.BORDER_REFLECT)
    if change == "brighter":
        copy = np.clip(copy * 1.15 + 8, 0, 255).astype(np.uint8)
    if change == "smaller":
        copy = cv2.resize(copy, (180, 180), interpolation=cv2.INTER_AREA)
    name = "copy.jpg" if change == "recompressed" else "copy.png"
    prints = [save(tmp_path / "original.png", lesion), *other_lesions, save(tmp_path / name, copy)]
    with ThreadPoolExecutor(2) as pool:
        assert near_pairs(prints, pool) == [(0, 21)]


def keypoints(points: np.ndarray) -> Fingerprint:
    """A synthetic fingerprint: point i has the same descriptor in every image."""
    descriptors = np.random.default_rng(1).integers(0, 256, (len(points), 32), dtype=np.uint8)
    return Fingerprint(points=points.astype(np.float32), descriptors=descriptors)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("shifted and rotated", True),
        ("scaled by 1.8", True),
        ("scaled by 3", False),
        ("on one point", False),
        ("a ruler", False),
        ("20 of 60 agree", False),
        ("30 of 60 agree", True),
        ("20 points in total", False),
    ],
)
def test_same_lesion_needs_enough_spread_inliers_of_one_transform(case, expected):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 150, (60, 2))
    points[:, 1] = 140 + rng.uniform(-3, 3, 60) if case == "a ruler" else points[:, 1]
    rotation = np.array([[0.98, -0.2], [0.2, 0.98]])
    scale = {"scaled by 1.8": 1.8, "scaled by 3": 3, "on one point": 0}.get(case, 1)
    transformed = points @ rotation * scale + 7
    if "agree" in case:
        num_inliers = int(case[:2])
        transformed[num_inliers:] = rng.uniform(0, 150, (60 - num_inliers, 2))
    count = 20 if case == "20 points in total" else 60
    assert same_lesion(keypoints(points[:count]), keypoints(transformed[:count])) == expected


def test_near_pairs_uniform_images_have_no_pairs(tmp_path):
    uniform = [save(tmp_path / f"{v}.png", np.full((64, 64, 3), v, np.uint8)) for v in (90, 91)]
    assert not same_lesion(*uniform)
    with ThreadPoolExecutor(1) as pool:
        for prints in (uniform, uniform[:1], []):
            assert near_pairs(prints, pool) == []
