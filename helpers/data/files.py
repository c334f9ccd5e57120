"""Images and folders on disk: strict reading, atomic writing."""

import ctypes
import errno
import os
import platform
import re
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from helpers.config import display_path

# The only formats that are ever opened. Pillow knows others, among them PostScript, which starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}  # photos of telephones
if features.check("avif"):  # a part of most builds of Pillow since 11.3
    FORMATS += ("AVIF",)
    IMAGE_SUFFIXES |= {".avif"}
with suppress(ImportError):  # optional
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)
    IMAGE_SUFFIXES |= HEIF_SUFFIXES
# Folders of operating systems, network storage (@eaDir, #recycle) and archives, never data.
HIDDEN_FOLDER = re.compile(r"[.@#$~].*|__MACOSX|lost\+found|System Volume Information|thumb(nail)?s?", re.IGNORECASE)
NOT_REPORTED = {".csv", ".tab", ".tsv", ".txt", ".json", ".md", ".xlsx", ".xls", ".db", ".ini"}  # next to images
MAX_DEPTH = 3  # folders below a data set or a folder of images in which unread files are looked for
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_LEFTOVER = re.compile(r"\.part-([0-9a-f]{8})-(\d+)-(old-)?.*")  # machine, process
MAX_AGE = 24 * 3600  # seconds after which unfinished files of another machine are removed
MIN_FREE = 2**16  # bytes; a disk with less is full

# OpenCV's own threads compete with our thread pools; each worker is one thread.
cv2.setNumThreads(1)
# Above any dermoscopic image (ISIC has some of 60 megapixels), below decompression bombs.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS = 80_000_000
STRIP = 2**20  # pixels that are converted at a time
MAX_PARALLEL = 32_000_000  # pixels of an image that may be decoded while others are; Pillow needs 4 bytes per pixel
_ONE_LARGE = Lock()  # held while a larger one is decoded
MIN_DECODED = 1024  # pixels per side that a JPEG keeps when it is decoded at reduced size
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_pixels` raises instead


class DataError(ValueError):
    """Unusable data. The message is one sentence addressed to the user."""


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name, without hidden and resource-fork files."""
    if not Path(folder).is_dir():
        return []
    with os.scandir(folder) as entries:  # a pipe or a device is no file: reading it would never end
        names = [e.name for e in entries if not e.name.startswith(".") and (e.is_file() or _is_broken_link(e))]
    return [Path(folder) / n for n in sorted(names) if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES]


def _is_broken_link(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def report_skipped(folder: str | Path, used: Iterable[Path], problems: list[str]) -> None:
    """Add to `problems` the files below `folder` that are not in `used`: those of other formats, and images in folders
    that are not read. Hidden entries and tables are not reported."""
    used, formats, images = set(used), [], []
    for inner, folders, names in os.walk(folder):
        depth = len(Path(inner).relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if depth < MAX_DEPTH and not HIDDEN_FOLDER.fullmatch(f))
        paths = [Path(inner, name) for name in sorted(names) if not name.startswith(".")]
        unused = [p for p in paths if p not in used and p.suffix.lower() not in NOT_REPORTED]
        formats += [p for p in unused if p.suffix.lower() not in IMAGE_SUFFIXES or not p.is_file()]
        images += [p for p in unused if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    for paths, text in ((formats, "of formats that are not read"), (images, "in folders that are not read")):
        if paths:
            examples = ", ".join(path.relative_to(folder).as_posix() for path in paths[:5])
            suffixes = " ".join(sorted({path.suffix.lower() or "no ending" for path in paths}))
            places = " ".join(sorted({path.parent.relative_to(folder).as_posix() for path in paths})[:5])
            what = suffixes if paths is formats else places
            hint = "; HEIC is read after `pip install pillow-heif`" if HEIF_SUFFIXES & set(what.split()) else ""
            problems.append(f"{len(paths)} files {text} ({what}) are left out: {examples}{hint}")


def no_images_error(folder: str | Path, problems: list[str]) -> DataError:
    """The error for a folder of which no image can be read, with the first of the `problems`."""
    reasons = "".join(f"; {problem}" for problem in problems[:3])
    return DataError(f"{display_path(folder)} needs at least one readable image, got none{reasons}")


@contextmanager
def open_image(source: str | Path | bytes) -> Iterator[Image.Image]:
    """Open an image file, or its content, if it has one of `FORMATS`; every image is opened here.

    Raises `DataError` if the file is missing, no regular file or not such an image, and for whatever Pillow raises in
    the block: on damaged files also `struct.error`, `TypeError`, `IndexError` and others.
    """
    try:
        if not isinstance(source, bytes) and not os.path.isfile(source):  # a pipe would never end
            raise OSError("no such file")
        # A stream, because of a path Pillow maps gray TIFFs into memory, and then rotates them wrongly (12.3).
        with (
            BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream,
            Image.open(stream, formats=FORMATS) as image,
        ):
            yield image
    except Exception as error:
        name = "the image" if isinstance(source, bytes) else source
        reason = f"expected {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} is missing, damaged or not an image ({reason})") from error


def read_header(source: str | Path | bytes) -> tuple[tuple[int, int], str]:
    """(width, height) as stored, and Pillow's mode, without decoding. Raises `DataError` as `open_image` does."""
    with open_image(source) as image:
        return image.size, image.mode


def image_shape(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file as a viewer shows it. Raises `DataError` as `open_image` does."""
    with open_image(path) as image:
        # Pillow rotates a TIFF itself, and gives its rotated size.
        orientation = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation)
        return image.size if orientation in (5, 6, 7, 8) else image.size[::-1]


def read_image(path: str | Path, size: int | None = None) -> np.ndarray:
    """Read an image as a viewer shows it: RGB `uint8 (H, W, 3)`, transparency on white, EXIF rotation applied.

    `size`: pixels per side that it will be resized to. A JPEG may then be decoded 2, 4 or 8 times smaller, which is
    faster; both sides keep at least `MIN_DECODED` and twice `size` pixels, so that the resized image is the same for
    every reader and, within a gray level, that of the full decoding. Raises `DataError` if the file is
    missing, damaged, not an image of `FORMATS`, or has over `MAX_PIXELS` pixels.
    """
    with open_image(path) as image:
        _check_pixels(image)
        if size and image.format in ("JPEG", "MPO"):  # HEIC would give a thumbnail
            side = max(2 * size, MIN_DECODED)
            image.draft("RGB", (side, side))
        with _decoding(image):
            return to_rgb(image)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} in all are read")


@contextmanager
def _decoding(image: Image.Image) -> Iterator[None]:
    """Decode a large image in the block, while no other thread does, and return its memory to the system at the end."""
    if image.width * image.height <= MAX_PARALLEL:
        yield
        return
    with _ONE_LARGE:
        try:
            yield
        finally:
            image.close()
            if malloc_trim := getattr(ctypes.CDLL(None) if os.name == "posix" else None, "malloc_trim", None):
                malloc_trim(0)  # glibc keeps what Pillow frees


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode to RGB `uint8 (H, W, 3)`, transparency on white, EXIF rotation applied. Raises
    `ValueError` for pixel values without a meaning as tones (`_to_8_bits`)."""
    image = _to_8_bits(_upright(image))
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for rows, strip in _crops(image):
        if _has_alpha(strip):
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        rgb[rows] = strip.convert("RGB")
    return rgb


def _upright(image: Image.Image) -> Image.Image:
    """The image with its EXIF rotation applied; it is no copy if there is none."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image


def strips(height: int, width: int) -> Iterator[slice]:
    """The rows of an image in parts of about `STRIP` pixels: an operation on all of a large image at once would need
    several times its memory."""
    step = max(1, STRIP // width)
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _crops(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The `strips` of an image, each with its rows."""
    for rows in strips(image.height, image.width):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _to_8_bits(image: Image.Image) -> Image.Image:
    """An image of 12, 16 or 32 bits or floats, which `convert` would clip to white, as 8 bits; others unchanged.

    White is the first of 1, 255, 4095 (12 bits) and 65535 that no pixel exceeds. Raises `ValueError` for negative,
    infinite and larger values.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = [np.float32([np.min(strip), np.max(strip)]) for _, strip in _crops(image)]  # NaN stays NaN
    low, high = np.min(values), np.max(values)
    white = next((white for white in (1, 255, 4095, 65535) if high <= white), 0)
    if not white or not low >= 0:
        raise ValueError(f"expected pixel values of 0 to 1, 255, 4095 or 65535, got {low:g} to {high:g}")
    tones = np.empty((image.height, image.width), np.uint8)
    for rows, strip in _crops(image):
        tones[rows] = (np.asarray(strip, np.float32) * (255 / white)).round()
    return Image.fromarray(tones)


def is_mask(image: np.ndarray) -> bool:
    """Whether `image uint8 (H, W, 3)` has two tones of gray only, apart from soft edges: a mask or a line drawing."""
    for rows in strips(*image.shape[:2]):
        r, g, b = cv2.split(image[rows])
        if (cv2.max(cv2.max(r, g), b) - cv2.min(cv2.min(r, g), b)).max() > 24:  # the colors of JPEG noise
            return False
    counts = cv2.calcHist([image], [1], None, [256], [0, 256]).ravel()
    tones = np.flatnonzero(counts)
    low, contrast = tones[0], np.ptp(tones)
    if contrast < 16:  # 0/1 or 0/2; else an image of one color with noise
        return bool(low == 0 and len(tones) == 2)
    extreme = np.abs(tones - low - contrast / 2) > contrast * 7 / 16
    return bool(counts[tones[extreme]].sum() > 0.95 * counts.sum())


def read_mask(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a lesion mask as a viewer shows it, as `uint8 (H, W)` in {0, 1}.

    Allowed are 0/1, 0/2, 0/255, gray, 16 bits, floats, palettes, RGB, a lesion that alone is opaque, soft and JPEG
    edges. A dark area on a light frame is an inverted mask. Raises `DataError` if the file is not readable or has
    equally bright colors, or if `shape` (H, W of the image) is given and the mask's differs.
    """
    with open_image(path) as image:
        _check_pixels(image)
        with _decoding(image):
            mask = _mask_values(_to_8_bits(_upright(image)))
    if shape is not None and mask.shape != tuple(shape):
        raise DataError(size_mismatch_message(path, mask.shape, shape))
    peak = int(mask.max())
    if 1 < peak < 32 and not (mask.min() == 0 and len(np.unique(mask)) == 2):  # compression noise in an empty mask
        return np.zeros_like(mask)
    mask = (mask > peak / 2).astype(np.uint8)
    return 1 - mask if _is_inverted(mask) else mask


def _mask_values(image: Image.Image) -> np.ndarray:
    """Brightness `uint8 (H, W)`; opacity where all that is opaque has one brightness."""
    if image.mode in ("1", "L") and not _has_alpha(image):
        return np.asarray(image.convert("L"))
    tones, alpha = np.empty((2, image.height, image.width), np.uint8)
    extremes = []  # of the three colors
    for rows, strip in _crops(image):
        *colors, alpha[rows] = np.moveaxis(np.asarray(strip.convert("RGBA")), 2, 0)
        tones[rows] = np.max(colors, axis=0)
        extremes += [np.min(colors, axis=(1, 2)), np.max(colors, axis=(1, 2))]
    opaque = alpha > 127
    if not opaque.all() and opaque.any():
        return alpha if np.ptp(tones[opaque]) == 0 else tones * opaque
    if tones.min() == tones.max() and np.ptp(extremes, axis=0).any():
        raise ValueError("its colors are equally bright: which of them is the lesion?")
    return tones


def _is_inverted(mask: np.ndarray) -> bool:
    """Whether `mask (H, W)` in {0, 1} has a frame of ones around zeros that are over 1 % of the image."""
    frame = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(frame.mean() > 0.99 and mask.mean() < 0.99)


def size_mismatch_message(path: str | Path, shape: tuple[int, int], expected: tuple[int, int]) -> str:
    """Error message for a mask or sketch of `shape` (H, W) whose image has the shape `expected`."""
    return f"{path} is {shape[1]} x {shape[0]} pixels but its image is {expected[1]} x {expected[0]}"


def center_crop(image: np.ndarray) -> np.ndarray:
    """The largest centered square of `image (H, W[, C])`, as a view."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


@contextmanager
def atomic_file(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path` with the same ending, which is renamed to `path` if the block succeeds and
    removed if not: a full disk or a killed process leaves the previous file whole.

    `sync`: wait until the disk has the content, so that a power failure loses nothing either. Raises `OSError` that
    names `path` if the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f"{_part()}-{path.name[-40:]}")  # names have at most 255 bytes
    try:
        with _name_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            yield temporary
            if sync:
                _sync(temporary)
            temporary.replace(path)
            if sync:
                with suppress(OSError):  # Windows and some network drives do not know this of folders
                    _sync(path.parent)
    finally:
        with suppress(OSError):  # it is renamed, or was never there
            temporary.unlink()


def _sync(path: Path) -> None:
    """Wait until the disk has the file, or the names of the files in the folder."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_image(path: str | Path, image: np.ndarray, **options) -> None:
    """Write `image uint8 (H, W[, 3])` or `bool (H, W)` by `atomic_file`, in the format of the ending; `options` are
    those of Pillow."""
    with atomic_file(path) as temporary:
        Image.fromarray(image).save(temporary, **options)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `folder` that is renamed to `folder` if the block succeeds.

    Until then an existing `folder` stays unchanged, so a full disk or a killed process loses nothing. Raises `OSError`
    that names `folder` if the disk is full.
    """
    folder = Path(folder)
    with _name_full_disk(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_part()}-new-", dir=folder.parent))
    try:
        with _name_full_disk(folder):
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
    backup = Path(tempfile.mkdtemp(prefix=f"{_part()}-old-", dir=folder.parent))
    old = folder.rename(backup / folder.name)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    finally:
        shutil.rmtree(backup, ignore_errors=True)


@contextmanager
def _name_full_disk(path: Path) -> Iterator[None]:
    """Turn what the block raises on a full disk into an `OSError` that says so and names `path`."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error, path.parent):
            raise
        kept = "; the previous one is kept" if path.exists() else ""
        raise OSError(f"{display_path(path)} cannot be written: the disk is full{kept}") from error


def _is_full_disk(error: Exception, folder: Path) -> bool:
    """Whether a full disk caused the error. NumPy and PyTorch do not say so in theirs: look whether space is left."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return True
    unknown = isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None)
    return unknown and folder.is_dir() and shutil.disk_usage(folder).free < MIN_FREE


def _part() -> str:
    """Start of the names of unfinished files and folders: which process of which machine writes them."""
    return f".part-{_MACHINE}-{os.getpid()}"


@cache
def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_file` and `atomic_folder` left in `folder` when their process was killed, once per folder. A
    folder that was moved aside and not yet replaced is restored."""
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            match = _LEFTOVER.fullmatch(path.name)
            if match and _is_abandoned(path, machine=match[1], process=int(match[2])):
                _remove(path, moved_aside=bool(match[3]))


def _is_abandoned(path: Path, machine: str, process: int) -> bool:
    """Whether the process has ended; if that cannot be looked up, whether file or folder are older than a day."""
    if machine != _MACHINE or os.name != "posix":  # on Windows `os.kill` would end the process
        return time.time() - path.stat().st_mtime > MAX_AGE
    return not is_running(process)


def is_running(process: int) -> bool:
    """Whether a process of this machine exists, of whatever user. Not for Windows, where `os.kill` would end it."""
    try:
        with suppress(PermissionError):  # a process of another user
            os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _remove(path: Path, moved_aside: bool) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for old in path.iterdir() if moved_aside else ():
        if not (folder := path.parent / old.name).exists():
            old.rename(folder)
    shutil.rmtree(path, ignore_errors=True)
