"""A set of images to evaluate: a folder, or an array."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median_low

import cv2
import numpy as np

from helpers.config import cpu_count, display_path
from helpers.data.class_folders import MASK_NAME, is_mask_folder, subfolders
from helpers.data.files import DataError, center_crop, list_images, read_header, read_image, report_skipped
from helpers.data.labels import report_ids

MAX_UNREADABLE = 0.2  # fraction of the files
BLUR = 1 / 64  # standard deviation of the blurred ceiling, as a fraction of the image size


@dataclass
class ImageSet:
    """Images to evaluate: files, or `uint8 (N, H, W, 3)` in memory."""

    name: str
    items: list[Path] | np.ndarray
    class_names: list[str]  # one per image, or empty
    image_size: int  # pixels per side of most central squares, to which all are resized
    warnings: list[str] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)  # files left out so far
    blur: float = 0.0  # standard deviation of a Gaussian blur, as a fraction of the image size

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ImageSet":
        """Images directly in `folder`, or in its subfolders, whose names are then the class names.

        The common size is that of most images; images under half of the median size are left out with a warning. Raises
        `DataError` if the folder does not exist, has no images, has both images and subfolders with images, or if more
        than 20 % of the files are unreadable.
        """
        folder = Path(folder)
        paths, class_names = _list_images_by_class(folder, warnings := [])
        with ThreadPoolExecutor(cpu_count()) as pool:
            headers = list(pool.map(_read_header, paths))
        images = cls(folder.name, paths, class_names, image_size=0, warnings=warnings)
        images.drop([path for path, header in zip(paths, headers, strict=True) if header is None])
        sides = [min(header[0]) if header else None for header in headers]
        smallest = median_low([side for side in sides if side]) / 2
        readable = [k for k, side in enumerate(sides) if side and side >= smallest]
        images.items = [paths[k] for k in readable]
        images.class_names = [class_names[k] for k in readable] if class_names else []
        counts = Counter(sides[k] for k in readable)
        images.image_size = max(counts, key=lambda side: (counts[side], -side))
        if small := [k for k, side in enumerate(sides) if side and side < smallest]:
            names = ", ".join(f"{paths[k].name} of {sides[k]} pixels" for k in small[:5])
            images.warnings.append(f"{folder.name}: {len(small)} images are far smaller and left out ({names})")
        if len(counts) > 1:
            span = f"images of {min(counts)} to {max(counts)} pixels"
            images.warnings.append(f"{folder.name}: {span}, all resized to {images.image_size}, the size of most")
        if num_gray := sum(headers[k][1] in ("1", "L", "LA", "I;16") for k in readable):
            images.warnings.append(f"{folder.name}: {num_gray} of {len(readable)} images are gray, used as they are")
        return images

    @classmethod
    def from_array(cls, images: np.ndarray, class_names: list[str] | None = None, name: str = "array") -> "ImageSet":
        """Images in memory, `uint8 (N, H, W, 3)`, with one class name each or none.

        Raises `ValueError` for another shape or type, no images, or another number of class names.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
            raise ValueError(f"images must be uint8 (N, H, W, 3) with N >= 1, got {images.dtype} {images.shape}")
        if class_names and len(class_names) != len(images):
            raise ValueError(f"need one class name per image, got {len(images)} images, {len(class_names)} class names")
        return cls(name, images, list(class_names or []), min(images.shape[1:3]))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def problems(self) -> list[str]:
        """Warnings about the set, one sentence each, unreadable files first."""
        if not self.unreadable:
            return self.warnings
        names = ", ".join(sorted(path.name for path in self.unreadable)[:5])
        return [f"{self.name}: {len(self.unreadable)} images are unreadable and left out ({names})", *self.warnings]

    def drop(self, unreadable: list[Path]) -> None:
        """Record unreadable files. Raises `DataError` if they are now more than 20 % of all files."""
        self.unreadable.update(unreadable)
        if unreadable and len(self.unreadable) > MAX_UNREADABLE * (total := len(self.unreadable.union(self.items))):
            raise DataError(f"{len(self.unreadable)} of {total} images of {self.name} are unreadable, at most "
                            f"{MAX_UNREADABLE:.0%} may be; one of them is {unreadable[0].name}")  # fmt: skip

    def crop(self, index: int, image_size: int) -> np.ndarray:
        """Central square of one image as `uint8 (image_size, image_size, 3)`. Raises `DataError` for a bad file."""
        item = self.items[index]
        image = center_crop(item if isinstance(item, np.ndarray) else read_image(item))
        if len(image) != image_size:
            interpolation = cv2.INTER_AREA if len(image) > image_size else cv2.INTER_CUBIC
            image = cv2.resize(image, (image_size, image_size), interpolation=interpolation)
        return cv2.GaussianBlur(image, (0, 0), self.blur * image_size) if self.blur else image

    def blurred(self, rows: np.ndarray) -> "ImageSet":
        """The images of these rows, blurred by `BLUR`, without class names."""
        items = self.items[rows] if isinstance(self.items, np.ndarray) else [self.items[k] for k in rows]
        return ImageSet(f"{self.name}, blurred", items, [], self.image_size, blur=BLUR)

    @cached_property
    def key(self) -> str:
        """Content hash: of the pixels of an array or the bytes of the files, and the blur; not of file names."""
        digest = hashlib.blake2b(str(self.blur).encode(), digest_size=12)
        if isinstance(self.items, np.ndarray):
            digest.update(str(self.items.shape).encode())
            digest.update(np.ascontiguousarray(self.items).data)
        else:
            for path in self.items:
                digest.update(hashlib.blake2b(path.read_bytes(), digest_size=12).digest())
        return digest.hexdigest()


def _list_images_by_class(folder: Path, warnings: list[str]) -> tuple[list[Path], list[str]]:
    """Image files of a folder without class names, or of its subfolders with the subfolders' names. Masks, by the name
    of their file or folder, and skipped files go to `warnings`."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {display_path(folder)}")
    paths, by_class = list_images(folder), [path for sub in subfolders(folder) for path in list_images(sub)]
    if paths and by_class:
        raise DataError(f"{display_path(folder)} must hold either images or folders of images, got both: the image "
                        f"{paths[0].name} and the folder {by_class[0].parent.name}")  # fmt: skip
    listed = paths or by_class
    report_skipped(folder, listed, warnings)
    masks = [p for p in listed if MASK_NAME.search(p.stem) or (by_class and is_mask_folder(p.parent.name))]
    report_ids(warnings, "have names of masks and are left out", [p.relative_to(folder).as_posix() for p in masks])
    images = [path for path in listed if path not in set(masks)]
    if not images:
        raise DataError("; ".join([f"{display_path(folder)} holds no images, nor do its subfolders", *warnings]))
    return images, [path.parent.name for path in images] if by_class else []


def _read_header(path: Path) -> tuple[tuple[int, int], str] | None:
    """Size (width, height) and mode from the file header, None if it is unreadable."""
    try:
        return read_header(path)
    except DataError:
        return None
