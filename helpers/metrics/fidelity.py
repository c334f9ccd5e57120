"""How well generated images match their conditions: the sketch, the label, the latent z."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from scipy.spatial.distance import pdist


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
