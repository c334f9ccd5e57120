"""Images and folders on disk: strict reading, atomic writing."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}

# OpenCV's own threads compete with our thread pools; each worker is one thread.
cv2.setNumThreads(1)
# Far above any dermoscopic image (ISIC has some of 60 megapixels), below decompression bombs.
Image.MAX_IMAGE_PIXELS = 400_000_000


class DataError(ValueError):
    """Unusable data. The message is one sentence addressed to the user."""


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name, without hidden and resource-fork files."""
    if not Path(folder).is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".")]
    return [Path(folder) / n for n in sorted(names) if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES]


def read_image(path: str | Path, min_size: int | None = None, upright: bool = False) -> np.ndarray:
    """Read an image as RGB `uint8 (H, W, 3)`, transparency on white.

    `min_size` allows reduced JPEG decoding, which is much faster: the result may be 2, 4 or 8 times smaller than the
    file, but both sides keep at least `min_size` pixels if the file has them. EXIF orientation is ignored because masks
    match the stored pixels; `upright=True` applies it. Raises `DataError` if the file is missing, truncated or not an
    image.
    """

    def to_array(image: Image.Image) -> np.ndarray:
        if min_size:
            image.draft("RGB", (min_size, min_size))
        return to_rgb(ImageOps.exif_transpose(image) if upright else image)

    return _decode(path, to_array)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode to RGB `uint8 (H, W, 3)`, transparency on white."""
    if image.mode.startswith(("I", "F")):  # 16 bits and more, which convert() would clip to white
        deep = np.asarray(image, np.float32)
        image = Image.fromarray((deep * (255 / max(deep.max(), 255))).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _decode(path: str | Path, to_array: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return to_array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is missing, damaged or not an image ({error})") from error


def image_shape(path: str | Path) -> tuple[int, int]:
    """Height and width from the header of an image file, without decoding it."""
    with Image.open(path) as image:
        return image.size[::-1]


def read_mask(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a lesion mask stored as 0/1, 0/255, gray or RGB as `uint8 (H, W)` in {0, 1}.

    Raises `DataError` if the file is not readable, or if `shape` (H, W of the image) is given and the mask's differs.
    """
    mask = _decode(path, _mask_values)
    if shape is not None and mask.shape != tuple(shape):
        raise DataError(size_mismatch_message(path, mask.shape, shape))
    peak = int(mask.max())
    if 1 < peak < 32:  # compression noise in an empty mask
        return np.zeros_like(mask)
    return (mask > peak / 2).astype(np.uint8)


def size_mismatch_message(path: str | Path, shape: tuple[int, int], expected: tuple[int, int]) -> str:
    """Error message for a mask or sketch of `shape` (H, W) whose image has the shape `expected`."""
    return f"{path} is {shape[1]} x {shape[0]} pixels but its image is {expected[1]} x {expected[0]}"


def center_crop(image: np.ndarray) -> np.ndarray:
    """The largest centered square of `image (H, W[, C])`, as a view."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _mask_values(image: Image.Image) -> np.ndarray:
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB")).max(axis=2)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `folder` that is renamed to `folder` if the block succeeds.

    Until then an existing `folder` stays unchanged, so a full disk or a killed process loses nothing.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp gives 0700, not readable by others in a shared course folder
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`. An existing `folder` is moved aside first and restored if renaming fails."""
    if not folder.exists():
        temporary.rename(folder)
        return
    backup = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = folder.rename(backup / "old")
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    finally:
        shutil.rmtree(backup, ignore_errors=True)
