"""How well does one mask cover another? Each measure takes `found` and `true`, `(H, W)` in {0, 1}, of one image.

The ISIC challenges score the mean over images of Jaccard, at the image's own size; an image below 0.65, about what
experts reach among themselves, counts 0 in the thresholded one (ISIC 2018).
"""

import cv2
import numpy as np

THRESHOLD = 0.65


def scores(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """`jaccard thresholded dice sensitivity specificity hd95` of one image. Raises `ValueError` for unequal shapes."""
    if found.shape != true.shape:
        raise ValueError(f"masks of {found.shape} and {true.shape} cannot be compared")
    found, true = found.astype(bool), true.astype(bool)
    both, either = np.sum(found & true), np.sum(found | true)
    jaccard = share(both, either)
    return {
        "jaccard": jaccard,
        "thresholded": jaccard if jaccard >= THRESHOLD else 0.0,
        "dice": share(2 * both, both + either),
        "sensitivity": share(both, np.sum(true)),
        "specificity": share(np.sum(~(found | true)), np.sum(~true)),
        "hd95": boundary_distance(found, true),
    }


def share(part: float, whole: float) -> float:
    """`part / whole`; 1 where there was nothing to find, and nothing was missed."""
    return float(part / whole) if whole else 1.0


def boundary_distance(found: np.ndarray, true: np.ndarray, level: float = 0.95) -> float:
    """Hausdorff distance at 95 % in pixels: most of each border is nearer than this to the other (Huttenlocher et al.
    1993). 0 when both are empty, the diagonal of the picture when only one is."""
    if not found.any() or not true.any():
        return 0.0 if found.any() == true.any() else float(np.hypot(*found.shape))
    borders = [mask & ~eroded(mask) for mask in (found, true)]
    to = [cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for border in borders]
    return float(np.quantile(np.concatenate([to[1][borders[0]], to[0][borders[1]]]), level))


def eroded(mask: np.ndarray) -> np.ndarray:
    """Without the pixels that touch, along a row or column, what is not mask; beyond the frame nothing is."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=0).astype(bool)
