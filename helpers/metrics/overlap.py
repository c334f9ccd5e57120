"""How well does one mask cover another? Each measure takes `found` and `true`, `(H, W)` in {0, 1}, of one image.

The ISIC challenges score the mean over images of Jaccard, at the image's own size; an image below 0.65, about what
experts reach among themselves, counts 0 in the thresholded one (ISIC 2018).
"""

import cv2
import numpy as np

THRESHOLD = 0.65


def scores(pred: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """`jaccard thresholded dice sensitivity specificity hd95` of one image. Raises `ValueError` for unequal shapes."""
    if pred.shape != target.shape:
        raise ValueError(f"masks of {pred.shape} and {target.shape} cannot be compared")
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
    """`part / whole`; 1 where there was nothing to find, and nothing was missed."""
    return float(numerator / denominator) if denominator else 1.0


def boundary_distance(pred: np.ndarray, target: np.ndarray, level: float = 0.95) -> float:
    """Hausdorff distance at 95 % in pixels: most of each border is nearer than this to the other (Huttenlocher et al.
    1993). 0 when both are empty, the diagonal of the picture when only one is."""
    if not pred.any() or not target.any():
        return 0.0 if pred.any() == target.any() else float(np.hypot(*pred.shape))
    borders = [mask & ~eroded(mask) for mask in (pred, target)]
    to = [cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for border in borders]
    return float(np.quantile(np.concatenate([to[1][borders[0]], to[0][borders[1]]]), level))


def eroded(mask: np.ndarray) -> np.ndarray:
    """Without the pixels that touch, along a row or column, what is not mask; beyond the frame nothing is."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=0).astype(bool)
