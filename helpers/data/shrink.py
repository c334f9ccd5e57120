"""A copy of HAM10000 as small JPEGs, 31 MiB at 128 px, to carry to another machine or to Drive.

HAM10000 is licensed CC BY-NC 4.0.
"""

import shutil
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

from helpers.config import Config
from helpers.data.files import DataError, atomic_file, center_crop, read_image, read_mask, write_image
from helpers.data.layouts import ham_metadata, open_dataset

JPEG_QUALITY = 80


def shrink_ham10000(out: str | Path, size: int, cfg: Config) -> int:
    """Write the central squares of HAM10000 at `size` pixels to the folder `out`, in the published layout: images as
    JPEG, masks as PNG, and the metadata. Returns the bytes in `out`.

    A network of `size` pixels is trained on the copy as on the original, except for the JPEG artifacts. Raises
    `DataError` if the config's data set is another one, unreadable, without metadata or in `out`.
    """
    if cfg.dataset != "ham10000":
        raise DataError(f"only ham10000 can be shrunk, got {cfg.dataset}")
    out, dataset = Path(out), open_dataset(cfg)
    if out.resolve() == dataset.root.resolve():
        raise DataError(f"--out must not be the data set's folder {out}: its images would be overwritten")
    if (metadata := ham_metadata(dataset.root)) is None:
        raise DataError(f"{dataset.root} has no HAM10000_metadata.csv, without which the copy cannot be read")
    images, masks = out / "HAM10000_images_part_1", out / "HAM10000_segmentations_lesion_tschandl"
    for row in tqdm(dataset.table.itertuples(), unit="images"):
        image = _square(read_image(row.path), size, cv2.INTER_AREA)
        write_image(images / f"{row.image_id}.jpg", image, quality=JPEG_QUALITY)
        if isinstance(row.mask_path, str):
            mask = _square(read_mask(row.mask_path), size, cv2.INTER_NEAREST)
            write_image(masks / f"{row.image_id}_segmentation.png", mask.astype(bool))  # one bit per pixel
    with atomic_file(out / metadata.name) as temporary:
        shutil.copy(metadata, temporary)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _square(image: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    """The central square of `image (H, W[, C])`, resized to `size` pixels."""
    return cv2.resize(center_crop(image), (size, size), interpolation=interpolation)
