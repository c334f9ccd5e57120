"""Does a drawing do as it was told: follow its sketch, look like its label, change with the noise?"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from scipy.spatial.distance import pdist


def sketch_dice(
    images: np.ndarray, masks: np.ndarray, segment: Callable[[np.ndarray], Sequence[np.ndarray]]
) -> np.ndarray:
    """Dice of the region that each sketch encloses, `masks (N, H, W)` in {0, 1}, and the lesion that `segment` finds in
    what was drawn from it, `drawn uint8 (N, H, W, 3)` -> `(N,)` in [0, 1]; 1 where both are empty."""
    found = np.stack(segment(images))
    both = (found * masks).sum(axis=(1, 2), dtype=float)
    sizes = found.sum(axis=(1, 2), dtype=float) + masks.sum(axis=(1, 2), dtype=float)
    return np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0)


def label_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether a classifier, trained on real images, names the label: probabilities `(N, K)`, labels `(N,)` -> `(N,)` in
    {0, 1}."""
    return (probabilities.argmax(axis=1) == labels).astype(float)


def mean_pairwise_distance(features: np.ndarray) -> float:
    """Mean distance of all pairs among features `(N, D)`: of drawings from one sketch under several noises, say, or of
    real images of a class. Raises `ValueError` for fewer than two."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} images have no distance from each other")
    return float(pdist(features).mean())


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004; Gaussian of 1.5 pixels) of two pictures `uint8 (H, W[, 3])`, mean over
    pixels and colours: 1 for the same picture. Pictures of unequal size are both brought to the smaller height and
    width. Raises `ValueError` when one has colours and the other none."""
    if one.ndim != other.ndim:
        raise ValueError(f"pictures of {one.shape} and {other.shape}: one has colours, the other none")
    height, width = np.minimum(one.shape[:2], other.shape[:2])
    x, y = (cv2.resize(p, (int(width), int(height)), interpolation=cv2.INTER_AREA).astype(float) for p in (one, other))

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)

    small, tiny = (0.03 * 255) ** 2, (0.01 * 255) ** 2
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + tiny) * (2 * covariance + small)
    return float((alike / ((mean_x**2 + mean_y**2 + tiny) * (variances + small))).mean())
