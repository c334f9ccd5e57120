"""Copies of images: fingerprints, pairs with identical pixels, and pairs of images that show the same lesion."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local

import cv2
import numpy as np
import pandas as pd

from helpers.data.content import pixel_hash
from helpers.data.files import DataError, read_image, read_mask, size_mismatch_message

COMPARE_SIZE = 150  # pixels of the shorter side at which images are compared
KEYPOINTS = 200
NEIGHBORS = 3  # candidates per image
MIN_SIMILARITY = 0.4  # correlation of signatures; no candidate below it was ever confirmed
CHUNK = 1024  # rows of the similarity matrix at a time
BEST_MATCHES = 60
# Of the best matches at least `MIN_INLIERS` must fit one similarity transform and have a standard deviation of
# `MIN_SPREAD` pixels around their main axis. Chosen by inspecting pairs of HAM10000 (26,000 candidates) and ISIC 2017:
# fewer inliers occur by chance, a smaller spread is the same ruler in two images.
MIN_INLIERS = 21
MIN_SPREAD = 5.0


@dataclass
class Fingerprint:
    """What the audit keeps of one image, its mask and its sketch: about 10 kB instead of the pixels."""

    content: str = ""  # `pixel_hash`
    shape: tuple[int, int] = (0, 0)
    signature: np.ndarray | None = None  # (512,) float32
    points: np.ndarray | None = None  # (K, 2) float32
    descriptors: np.ndarray | None = None  # (K, 32) uint8
    foreground: float | None = None  # fraction of the image that the mask covers, None without a mask
    error: str = ""  # error messages, empty if there is no error
    mask_error: str = ""
    sketch_error: str = ""
    size_mismatch: str = ""  # of a mask or sketch that does not belong to this image


_thread_local = local()  # an ORB detector cannot be shared between threads


def fingerprint(path: str, mask_path: str | None = None, sketch_path: str | None = None) -> Fingerprint:
    """Read an image, its mask and its sketch (None or `<NA>`: there is none); errors are recorded, not raised."""
    try:
        image = read_image(path)
    except DataError as error:
        return Fingerprint(error=str(error))
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = COMPARE_SIZE / min(gray.shape)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if not hasattr(_thread_local, "orb"):
        _thread_local.orb = cv2.ORB_create(KEYPOINTS, 1.2, 4, 10, 0, 2, cv2.ORB_HARRIS_SCORE, 21, 5)
    keypoints, descriptors = _thread_local.orb.detectAndCompute(gray, None)
    result = Fingerprint(
        pixel_hash(image), image.shape[:2], signature(gray), np.float32([k.pt for k in keypoints]), descriptors
    )
    mask, result.mask_error = _read_beside(read_mask, mask_path)
    sketch, result.sketch_error = _read_beside(read_image, sketch_path)
    if mask is not None:
        result.foreground = float(mask.mean())
        if mask.shape != result.shape:
            result.size_mismatch = size_mismatch_message(mask_path, mask.shape, result.shape)
    # A sketch may have another size than its image, but not another aspect ratio.
    if sketch is not None and abs(sketch.shape[1] * result.shape[0] / (sketch.shape[0] * result.shape[1]) - 1) > 0.02:
        result.size_mismatch = size_mismatch_message(sketch_path, sketch.shape, result.shape)
    return result


def _read_beside(read: Callable, path: str | None) -> tuple[np.ndarray | None, str]:
    """What `read` gives for the mask or sketch of an image, None without a path, and its error message, "" if none."""
    try:
        return (None if pd.isna(path) else read(path)), ""
    except DataError as error:
        return None, str(error)


def signature(gray: np.ndarray) -> np.ndarray:
    """Perceptual hash of `gray uint8 (H, W)`: gradients in 8 directions over 8 x 8 cells, `float32 (512,)`.

    Gradients are divided by the local gradient magnitude, which cancels exposure and white balance; a small shift stays
    within a cell.
    """
    small = cv2.GaussianBlur(cv2.resize(gray, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32), (0, 0), 1)
    dx, dy = cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1)
    local_magnitude = cv2.GaussianBlur(np.hypot(dx, dy), (0, 0), 8) + 2
    angles = np.arange(8, dtype=np.float32)[:, None, None] * np.float32(np.pi / 4)
    gradients = np.maximum(dx * np.cos(angles) + dy * np.sin(angles), 0) / local_magnitude  # (8, 64, 64)
    return np.sqrt(gradients.reshape(8, 8, 8, 8, 8).mean(axis=(2, 4)).ravel())


def exact_pairs(prints: list[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Pairs of rows with identical pixels: the first row of each content with every copy of it."""
    first: dict[str, int] = {}
    for row, content in enumerate(p.content for p in prints):
        if content and first.setdefault(content, row) != row:
            yield first[content], row


def near_pairs(prints: list[Fingerprint], pool: ThreadPoolExecutor) -> list[tuple[int, int]]:
    """Pairs of rows (a < b) that show the same lesion, without exact copies: similar by signature, then confirmed by
    `same_lesion`."""
    rows = [row for row, p in enumerate(prints) if p.signature is not None]
    if len(rows) < 2:
        return []
    pairs = [(rows[a], rows[b]) for a, b in _candidates(np.stack([prints[row].signature for row in rows]))]
    pairs = [(a, b) for a, b in pairs if prints[a].content != prints[b].content]
    confirmed = pool.map(lambda pair: same_lesion(prints[pair[0]], prints[pair[1]]), pairs)
    return [pair for pair, is_same in zip(pairs, confirmed, strict=True) if is_same]


def _candidates(signatures: np.ndarray) -> list[tuple[int, int]]:
    """Each row's nearest neighbors by correlation, as sorted unique pairs (a < b). signatures: (N, 512)."""
    centered = signatures - signatures.mean(axis=0)
    centered /= np.linalg.norm(centered, axis=1, keepdims=True) + 1e-9
    pairs = set()
    for start in range(0, len(centered), CHUNK):
        similarity = centered[start : start + CHUNK] @ centered.T  # (rows of the chunk, N)
        np.fill_diagonal(similarity[:, start:], -1)
        nearest = np.argpartition(-similarity, min(NEIGHBORS, len(centered) - 1) - 1, axis=1)[:, :NEIGHBORS]
        similar = np.take_along_axis(similarity, nearest, 1) > MIN_SIMILARITY
        for row, column in zip(*np.nonzero(similar), strict=True):
            a, b = start + int(row), int(nearest[row, column])
            pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def same_lesion(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether the ORB keypoints (Rublee et al., ICCV 2011) of two images fit one shift, rotation and scale.

    Lesions look alike as dark blobs on pale skin, but the arrangement of freckles, hairs and pigment is unique.
    """
    if a.descriptors is None or b.descriptors is None:
        return False
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(a.descriptors, b.descriptors)
    if len(matches) < MIN_INLIERS:
        return False
    best = sorted(matches, key=lambda match: match.distance)[:BEST_MATCHES]
    points_a, points_b = a.points[[m.queryIdx for m in best]], b.points[[m.trainIdx for m in best]]
    cv2.setRNGSeed(0)  # RANSAC samples at random; the audit must be reproducible
    transform, inliers = cv2.estimateAffinePartial2D(points_a, points_b, ransacReprojThreshold=3, maxIters=300)
    if transform is None or inliers.sum() < MIN_INLIERS:
        return False
    scale = np.hypot(transform[0, 0], transform[1, 0])
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(points_a[inliers.ravel() > 0].T))[0])
    # Inliers also arise if all points map to one point (scale near 0) or lie in one small spot or on a ruler.
    return 0.5 < scale < 2 and spread > MIN_SPREAD
