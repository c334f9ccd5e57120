"""Overlap of a predicted and a target mask, `pred` and `target (H, W)` in {0, 1}, of one image.

The ISIC challenges report the mean Jaccard index over images, at each image's own size. The thresholded Jaccard index
(ISIC 2018, arXiv 1902.03368) counts an image below 0.65, roughly the agreement between experts, as 0.
"""

import cv2
import numpy as np

THRESHOLD = 0.65


def scores(pred: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Measures of one image: `jaccard thresholded_jaccard dice sensitivity specificity` in [0, 1], `hd95` in pixels.

    Raises `ValueError` for unequal shapes.
    """
    if pred.shape != target.shape:
        raise ValueError(f"masks must have the same shape, got {pred.shape} and {target.shape}")
    pred, target = pred.astype(bool), target.astype(bool)
    intersection, union = np.sum(pred & target), np.sum(pred | target)
    jaccard = safe_ratio(intersection, union)
    return {
        "jaccard": jaccard,
        "thresholded_jaccard": jaccard if jaccard >= THRESHOLD else 0.0,
        "dice": safe_ratio(2 * intersection, intersection + union),
        "sensitivity": safe_ratio(intersection, np.sum(target)),
        "specificity": safe_ratio(np.sum(~(pred | target)), np.sum(~target)),
        "hd95": boundary_distance(pred, target),
    }


def safe_ratio(numerator: float, denominator: float) -> float:
    """`numerator / denominator`; 1 for a denominator of 0, where there was nothing to find and nothing was missed."""
    return float(numerator / denominator) if denominator else 1.0


def boundary_distance(pred: np.ndarray, target: np.ndarray) -> float:
    """95th percentile Hausdorff distance in pixels: 95 % of the pixels of both borders are at most this far from the
    other border (Huttenlocher et al., Comparing Images Using the Hausdorff Distance, 1993).

    `pred`, `target`: bool `(H, W)`. 0 if both are empty, the diagonal of the image if only one is.
    """
    if not pred.any() or not target.any():
        return 0.0 if pred.any() == target.any() else float(np.hypot(*pred.shape))
    borders = [mask & ~erode(mask) for mask in (pred, target)]
    to_border = [cv2.distanceTransform((~b).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for b in borders]
    return float(np.quantile(np.concatenate([to_border[1][borders[0]], to_border[0][borders[1]]]), 0.95))


def erode(mask: np.ndarray) -> np.ndarray:
    """Erosion of a bool mask `(H, W)` by a 3 x 3 cross; pixels beyond the frame count as background."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=0).astype(bool)
