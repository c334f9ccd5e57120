"""A copy of HAM10000 of 32 MiB to carry to a GPU machine: `python tests/pack_ham10000.py --out data/ham10000-small`.

Central squares at `--size` pixels, images as JPEG (quality 80), masks as PNG, in the published layout. There:
`python -m helpers train cgan --dataset ham10000 --data-root FOLDER --size 128 --minutes 8 --batch-size 64 --projected`.
Needs LESION_DATA_ROOT; HAM10000 is licensed CC BY-NC 4.0.
"""

import argparse
import shutil
import sys
from pathlib import Path

import cv2
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.config import get_config  # noqa: E402
from helpers.data.layouts import open_dataset  # noqa: E402


def square(path: str, size: int, interpolation: int) -> cv2.typing.MatLike:
    """The central square of an image file, resized."""
    image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=interpolation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "ham10000-small")
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    cfg = get_config("cgan", "ham10000")
    images, masks = args.out / "HAM10000_images_part_1", args.out / "HAM10000_segmentations_lesion_tschandl"
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for row in tqdm(open_dataset(cfg).table.itertuples(), unit="images"):
        image = square(row.path, args.size, cv2.INTER_AREA)
        cv2.imwrite(str(images / f"{row.image_id}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 80])
        if isinstance(row.mask_path, str):
            mask = square(row.mask_path, args.size, cv2.INTER_NEAREST)
            cv2.imwrite(str(masks / f"{row.image_id}_segmentation.png"), mask, [cv2.IMWRITE_PNG_BILEVEL, 1])
    shutil.copy(cfg.data_root / "HAM10000_metadata.csv", args.out)
    print(sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file()) / 2**20, "MiB in", args.out)


if __name__ == "__main__":
    main()
