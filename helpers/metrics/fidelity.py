"""How well generated images match their conditions (sketch, label, latent z), and what recurs in all of them."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch.nn.functional as F
from scipy.spatial.distance import pdist

from helpers.data.batches import to_tensors
from helpers.models.networks import soft_fill
from helpers.models.unpaired import otsu_separability

MIN_POSITION_IMAGES = 100
STRUCTURE_SIZE = 128  # pixels per side at which position and structure are measured


def sketch_dice(
    images: np.ndarray, masks: np.ndarray, segment: Callable[[np.ndarray], Sequence[np.ndarray]]
) -> np.ndarray:
    """Dice `(N,)` in [0, 1] between the region that each sketch encloses and the lesion segmented in its image.

    `images uint8 (N, H, W, 3)`; `masks (N, H, W)` in {0, 1} are the enclosed regions; `segment` returns the lesion mask
    of each image, `(H, W)` in {0, 1}. 1 where both masks are empty.
    """
    pred = np.stack(segment(images))
    intersection = (pred * masks).sum(axis=(1, 2), dtype=float)
    total = pred.sum(axis=(1, 2), dtype=float) + masks.sum(axis=(1, 2), dtype=float)
    return np.where(total > 0, 2 * intersection / np.maximum(total, 1), 1.0)


def label_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy per image, `(N,)` in {0, 1}: whether a classifier trained on real images predicts the label, from its
    `probabilities (N, K)` and `labels (N,)`."""
    return (probabilities.argmax(axis=1) == labels).astype(float)


def mean_pairwise_distance(features: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of `features (N, D)`, a measure of diversity: of images of one sketch with
    several z, or of real images of one class.

    Raises `ValueError` for fewer than two images.
    """
    if len(features) < 2:
        raise ValueError(f"a pairwise distance needs at least 2 images, got {len(features)}")
    return float(pdist(features).mean())


def position_score(images: np.ndarray) -> float:
    """How much detail recurs at fixed positions, such as a ruler in the same corner of every image; 1 if none does.

    The high-pass magnitude |x - G_2(x)| is averaged over the images; its 99.9th percentile over pixels is divided by
    its median. x is the mean of R, G, B, G_s a Gaussian blur of sigma s. `images uint8 (N, 128, 128, 3)`; other sizes
    are resized. The score falls with N: compare sets of the same N. Raises `ValueError` for fewer than
    `MIN_POSITION_IMAGES`.
    """
    if len(images) < MIN_POSITION_IMAGES:
        raise ValueError(f"a position score needs at least {MIN_POSITION_IMAGES} images, got {len(images)}")
    detail = np.mean([np.abs(x - cv2.GaussianBlur(x, (0, 0), 2)) for x in map(_gray128, images)], axis=0)
    return float(np.quantile(detail, 0.999) / np.median(detail))


def structure_correlation(images1: np.ndarray, images2: np.ndarray) -> float:
    """Mean correlation of inner structure between pairs of images; 1: the same structure, 0: unrelated.

    Structure is the band pass G_1.5(x) - G_6(x) over the central 35 % x 35 %, with x and G_s as in `position_score`.
    `images1`, `images2` `uint8 (N, 128, 128, 3)`: the same sketches and labels under two z; other sizes are resized. A
    generator whose z changes the tone only scores near 1. Raises `ValueError` if the sets differ in number.
    """
    if len(images1) != len(images2) or not len(images1):
        raise ValueError(f"structure correlation needs pairs of images, got {len(images1)} and {len(images2)}")
    margin = round(0.325 * STRUCTURE_SIZE)
    center = slice(margin, STRUCTURE_SIZE - margin)

    def structure(image: np.ndarray) -> np.ndarray:
        x = _gray128(image)
        return (cv2.GaussianBlur(x, (0, 0), 1.5) - cv2.GaussianBlur(x, (0, 0), 6))[center, center].ravel()

    pairs = zip(images1, images2, strict=True)
    return float(np.mean([np.corrcoef(structure(a), structure(b))[0, 1] for a, b in pairs]))


def layout_scores(images: np.ndarray, other_images: np.ndarray) -> dict[str, float]:
    """`position`: position score of images `uint8 (N, S, S, 3)`, NaN for fewer than 100. `structure`: structure
    correlation with `other_images` of the same sketches and other latents."""
    position = position_score(images) if len(images) >= MIN_POSITION_IMAGES else float("nan")
    return {"position": position, "structure": structure_correlation(images, other_images)}


def sketch_separability(images: np.ndarray, sketches: np.ndarray) -> float:
    """Fraction of the color variance that the sketch's region explains, in [0, 1]: mean `otsu_separability` of images
    `uint8 (N, S, S, 3)` and sketches `uint8 (N, S, S)` in {0, 255}, on block means of 32 x 32."""
    batch = to_tensors({"images": images, "sketches": sketches})
    block = images.shape[1] // 32
    region = soft_fill(F.max_pool2d(batch["sketches"], block))
    return float(otsu_separability(F.avg_pool2d(batch["images"], block), region).mean())


def _gray128(image: np.ndarray) -> np.ndarray:
    """`uint8 (H, W, 3)` -> mean of R, G, B, `float32 (128, 128)`."""
    if image.shape[:2] != (STRUCTURE_SIZE, STRUCTURE_SIZE):
        interpolation = cv2.INTER_AREA if len(image) > STRUCTURE_SIZE else cv2.INTER_CUBIC
        image = cv2.resize(image, (STRUCTURE_SIZE, STRUCTURE_SIZE), interpolation=interpolation)
    return image.astype(np.float32).mean(axis=2)


def ssim(image1: np.ndarray, image2: np.ndarray) -> float:
    """Structural similarity of two images `uint8 (H, W[, 3])`, mean over pixels and channels; 1 for equal images (Wang
    et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004; Gaussian of 1.5 pixels).

    Images of different sizes are both resized to the smaller height and width. Raises `ValueError` if only one of them
    has color channels.
    """
    if image1.ndim != image2.ndim:
        raise ValueError(f"images must both be color or both gray, got shapes {image1.shape} and {image2.shape}")
    height, width = (int(side) for side in np.minimum(image1.shape[:2], image2.shape[:2]))
    x, y = (cv2.resize(i, (width, height), interpolation=cv2.INTER_AREA).astype(float) for i in (image1, image2))

    def local_mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = local_mean(x), local_mean(y)
    variances = local_mean(x * x) - mean_x**2 + local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean())
