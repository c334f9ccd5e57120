"""Pictures and folders on disk: read strictly, written whole or not at all."""

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

# OpenCV's own threads fight with our thread pools; each worker is one thread.
cv2.setNumThreads(1)
# Whole-slide sized pictures are not dermoscopy, but ISIC holds some of 60 megapixels.
Image.MAX_IMAGE_PIXELS = 400_000_000


class DataError(ValueError):
    """Data that cannot be used. The message is one sentence for the person who holds the data."""


def list_images(folder: Path) -> list[Path]:
    """Picture files directly in `folder`, sorted by name; hidden and resource-fork files are skipped."""
    if not Path(folder).is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".")]
    return [Path(folder) / n for n in sorted(names) if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES]


def read_image(path: str | Path, min_size: int | None = None, upright: bool = False) -> np.ndarray:
    """Read a picture as RGB `uint8 (H, W, 3)`; transparency is shown on white.

    `at_least` lets the JPEG decoder skip detail: the result has both sides of at least that many pixels
    where the file does, but may be 2, 4 or 8 times smaller than the file says, which is much faster.
    Orientation flags are ignored, for masks fit the pixels as they are stored, unless it shall stand `upright`.
    Raises `DataError` naming the file when it is missing, truncated or no picture.
    """

    def reduced(picture: Image.Image) -> np.ndarray:
        if min_size:
            picture.draft("RGB", (min_size, min_size))
        return to_rgb(ImageOps.exif_transpose(picture) if upright else picture)

    return _decode(path, reduced)


def to_rgb(image: Image.Image) -> np.ndarray:
    """A picture of any mode as RGB `uint8 (H, W, 3)`; transparency is shown on white."""
    if image.mode.startswith(("I", "F")):  # 16 bits and more, which convert() would clip to white
        deep = np.asarray(image, np.float32)
        image = Image.fromarray((deep * (255 / max(deep.max(), 255))).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _decode(path: str | Path, values: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return values(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is missing, damaged or not a picture ({error})") from error


def image_shape(path: str | Path) -> tuple[int, int]:
    """Height and width of a picture as its file states them, without decoding it."""
    with Image.open(path) as picture:
        return picture.size[::-1]


def read_mask(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a lesion mask as `uint8 (H, W)` in {0, 1}, whatever it was written as: 0/1, 0/255, grey or RGB.

    With `shape` (H, W of its image) a mask of another size raises `DataError` with both sizes.
    """
    mask = _decode(path, _mask_values)
    if shape is not None and mask.shape != tuple(shape):
        raise DataError(size_mismatch_message(path, mask.shape, shape))
    peak = int(mask.max())
    if 1 < peak < 32:  # what compression leaves of an empty mask
        return np.zeros_like(mask)
    return (mask > peak / 2).astype(np.uint8)


def size_mismatch_message(path: str | Path, found: tuple[int, int], image: tuple[int, int]) -> str:
    """The sentence on a mask or sketch of shape `found` (H, W) that does not fit its image."""
    return f"{path} is {found[1]} x {found[0]} pixels but its image is {image[1]} x {image[0]}"


def read_sketch(path: str | Path) -> np.ndarray:
    """Read a drawing as `uint8 (H, W)`, white lines on black, see `lines_of`."""
    return extract_lines(read_image(path))


def extract_lines(drawing: np.ndarray) -> np.ndarray:
    """Lines of any colour on light paper, or light ones on dark, `uint8 (H, W, 3)` -> white on black `uint8 (H, W)`;
    the tone of the paper or board is taken away."""
    light = np.median(cv2.cvtColor(drawing, cv2.COLOR_RGB2GRAY)) > 127
    lines = 255 - drawing.min(axis=2) if light else drawing.max(axis=2)
    return cv2.subtract(lines, np.full_like(lines, int(np.median(lines))))


def center_crop(image: np.ndarray) -> np.ndarray:
    """The largest centred square of `picture (H, W[, C])`, as a view."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _mask_values(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    return np.asarray(picture.convert("RGB")).max(axis=2)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty sibling of `folder` to write into; it takes the name `folder` only if the block succeeds.

    An earlier `folder` stays as it was until then, so a full disk or a killed process loses nothing.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield fresh
        fresh.chmod(0o755)  # mkdtemp gives 0700, which a shared course folder cannot use
        _replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(fresh: Path, folder: Path) -> None:
    """Rename `fresh` to `folder`, an earlier one set aside first and put back if that fails."""
    if not folder.exists():
        fresh.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = folder.rename(aside / "old")
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
