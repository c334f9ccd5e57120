"""A lesion of one photograph on the skin of another: the generator that nobody has to train.

Gradients are copied and colours follow (Pérez et al., *Poisson Image Editing*, 2003); DermSynth3D (Sinha et al. 2024)
blends lesions onto skin in the same spirit.
"""

import cv2
import numpy as np

from helpers.data.sketches import deformation


def blend(
    lesion: np.ndarray, mask: np.ndarray, skin: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The lesion under `mask (H, W)` in {0, 1} of one image, deformed, on the image `skin`; both `uint8 (H, W, 3)`.
    Returns the new image and its mask. Raises `ValueError` for pictures of unequal size."""
    if not lesion.shape[:2] == mask.shape == skin.shape[:2]:
        raise ValueError(f"pictures of unequal size: {lesion.shape[:2]}, {mask.shape}, {skin.shape[:2]}")
    grid = deformation(mask, rng)
    moved = cv2.remap(lesion, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    region = cv2.remap(mask.astype(np.uint8), grid, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return poisson_blend(moved, dilate(region, 1 / 24), skin), region


def poisson_blend(source: np.ndarray, region: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`target` with the gradients of `source` where `region (H, W)` is 1. Where the region leaves the frame the source
    keeps its tone, shifted as the two skins differ, or it would have to take the colour of skin there."""
    if not region.any():
        return target.copy()
    outside = region == 0
    shift = target[outside].mean(axis=0) - source[outside].mean(axis=0) if outside.any() else np.zeros(3)
    beyond = np.where(outside[..., None], target, np.clip(source + shift, 0, 255)).astype(np.uint8)
    source, framed, wide = (cv2.copyMakeBorder(x, *[8] * 4, cv2.BORDER_REPLICATE) for x in (source, beyond, region))
    framed[8:-8, 8:-8] = target
    wide = cv2.dilate(
        wide, np.ones((7, 7), np.uint8)
    )  # OpenCV takes three pixels away, and the lesion's edge with them
    wide[[0, -1]], wide[:, [0, -1]] = 0, 0  # it wants a frame
    left, top, width, height = cv2.boundingRect(wide)
    where = (left + width // 2, top + height // 2)  # it puts the middle of the region's box there: nothing moves
    return cv2.seamlessClone(source, framed, 255 * wide, where, cv2.NORMAL_CLONE)[8:-8, 8:-8]


def remove_lesion(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image as if it were all skin: tone from around the lesion, texture from skin elsewhere in the picture."""
    hole = dilate(mask, 1 / 16)
    if not hole.any() or hole.all():
        return image.copy()
    side, small = min(mask.shape), (32, 32)
    rough = cv2.inpaint(cv2.resize(image, small, interpolation=cv2.INTER_AREA),
                        (cv2.resize(hole, small, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8), 3,
                        cv2.INPAINT_TELEA)  # fmt: skip
    tone = cv2.resize(rough, mask.shape[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
    grain = image.astype(np.float32) - cv2.GaussianBlur(image, (0, 0), side / 24)
    grain[hole == 1] = 0
    skin = np.argwhere(hole == 0)
    # Each pixel of the hole takes the grain of one as far away as its row and column are from a random corner's.
    shift = skin[rng.integers(len(skin))]
    rows, columns = np.indices(mask.shape)
    grain = grain[np.abs(rows - shift[0]), np.abs(columns - shift[1])]
    soft = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), side / 48)[..., None]
    inpainted = np.clip(tone + grain, 0, 255)
    return (image * (1 - soft) + inpainted * soft).round().astype(np.uint8)


def dilate(mask: np.ndarray, by: float) -> np.ndarray:
    """The mask `(H, W)` in {0, 1}, wider by a share of the side."""
    reach = max(1, round(by * min(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(mask.astype(np.uint8), disc)
