"""Blending a lesion onto the skin of another image: a generator without training.

Poisson blending copies gradients and adapts colors (Pérez et al., *Poisson image editing*, 2003). DermSynth3D (Sinha et
al., arXiv 2305.12621) blends lesions onto the skin of 3D body meshes.
"""

import cv2
import numpy as np

from helpers.data.deform import deformation


def blend(
    lesion: np.ndarray, mask: np.ndarray, skin: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend the lesion of one image, under a random `deformation`, onto another image.

    lesion, skin: `(H, W, 3) uint8`; mask: `(H, W)` in {0, 1} of the lesion. Returns the new image `(H, W, 3) uint8` and
    its mask `(H, W) uint8` in {0, 1}. Raises `ValueError` if the sizes differ.
    """
    if not lesion.shape[:2] == mask.shape == skin.shape[:2]:
        raise ValueError(
            f"lesion, mask and skin must have the same size, got {lesion.shape[:2]}, {mask.shape}, {skin.shape[:2]}"
        )
    grid = deformation(mask, rng)
    deformed = cv2.remap(lesion, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    region = cv2.remap(mask.astype(np.uint8), grid, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return poisson_blend(deformed, dilate(region, 1 / 24), skin), region


def poisson_blend(source: np.ndarray, region: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`target (H, W, 3) uint8` with the gradients of `source (H, W, 3) uint8` where `region (H, W)` is 1.

    Where the region touches the image border there is no target skin to adapt to; the source keeps its color there,
    shifted by the mean color difference of the two skins.
    """
    if not region.any():
        return target.copy()
    skin = region == 0
    shift = target[skin].mean(axis=0) - source[skin].mean(axis=0) if skin.any() else np.zeros(3)
    border = np.where(skin[..., None], target, np.clip(source + shift, 0, 255)).astype(np.uint8)
    source, padded, region = (cv2.copyMakeBorder(x, *[8] * 4, cv2.BORDER_REPLICATE) for x in (source, border, region))
    padded[8:-8, 8:-8] = target
    region = cv2.dilate(region, np.ones((7, 7), np.uint8))  # seamlessClone erodes the region by 3 pixels
    region[[0, -1]], region[:, [0, -1]] = 0, 0  # seamlessClone needs a free border
    left, top, width, height = cv2.boundingRect(region)
    center = (left + width // 2, top + height // 2)  # where seamlessClone puts the bounding box: nothing moves
    return cv2.seamlessClone(source, padded, 255 * region, center, cv2.NORMAL_CLONE)[8:-8, 8:-8]


def remove_lesion(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`image (H, W, 3) uint8` with the lesion under `mask (H, W)` in {0, 1} replaced by skin.

    The color is inpainted from around the lesion, the fine texture is copied from skin elsewhere in the image. Returns
    a copy of the image if the mask is empty or leaves no skin.
    """
    hole = dilate(mask, 1 / 16)
    if not hole.any() or hole.all():
        return image.copy()
    side, low_size = min(mask.shape), (32, 32)
    low = cv2.inpaint(cv2.resize(image, low_size, interpolation=cv2.INTER_AREA),
                      (cv2.resize(hole, low_size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8), 3,
                      cv2.INPAINT_TELEA)  # fmt: skip
    color = cv2.resize(low, mask.shape[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
    texture = image.astype(np.float32) - cv2.GaussianBlur(image, (0, 0), side / 24)
    texture[hole == 1] = 0
    skin = np.argwhere(hole == 0)
    # Shift the texture to a random skin pixel, mirrored at the image border: the hole gets that of skin elsewhere.
    row, column = skin[rng.integers(len(skin))]
    rows, columns = np.indices(mask.shape)
    texture = texture[np.abs(rows - row), np.abs(columns - column)]
    alpha = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), side / 48)[..., None]
    inpainted = np.clip(color + texture, 0, 255)
    return (image * (1 - alpha) + inpainted * alpha).round().astype(np.uint8)


def dilate(mask: np.ndarray, fraction: float) -> np.ndarray:
    """The mask `(H, W)` in {0, 1} dilated by a fraction of the shorter image side, at least 1 pixel."""
    radius = max(1, round(fraction * min(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), disc)
