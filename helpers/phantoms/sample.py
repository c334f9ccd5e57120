"""The embedded sample: a folder of phantoms with splits, and with injected faults that the audit must find."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from helpers.data.files import DataError, atomic_folder, write_image
from helpers.phantoms.classes import CLASSES
from helpers.phantoms.render import ARTIFACTS, render_with_flags

# images, pixels per side
SAMPLE_SIZES = {"smoke": (120, 64), "demo": (1000, 128), "colab": (1000, 128), "full": (4000, 256)}
# Fractions of the images of HAM10000.
CLASS_FREQUENCIES = {"NV": 0.669, "MEL": 0.111, "BKL": 0.110, "BCC": 0.051, "AKIEC": 0.033, "VASC": 0.014, "DF": 0.011}
_MIN_LESIONS = 4  # per class: one for val, one for test, two for training
_VERSION = 4  # raise it when images or tables change, then samples on disk are generated again
_COLUMNS = ["image_id", "lesion_id", "diagnosis", "split", "artifacts"]  # of metadata.csv
_FAULTS = ("exact_conflict", "near_duplicate_across_splits", "empty_mask")  # see `_inject_faults`
_FILES = {"phantoms.json", "metadata.csv", "injected_faults.json", "images", "masks"}


def write(folder: str | Path, images: int = 400, size: int = 128, seed: int = 0) -> Path:
    """Write the sample as a folder of `images` phantoms of `size` x `size` pixels, if needed, and return the folder.

    `images/<image_id>.jpg`, `masks/<image_id>.png` (0 or 255), `metadata.csv` (`image_id, lesion_id, diagnosis, split,
    artifacts`; the last has names of `ARTIFACTS` separated by spaces), `injected_faults.json` (ids of the faults that
    the audit must find) and `phantoms.json` (the settings).
    Nothing is written if the folder contains exactly this sample; an incomplete one or one with other settings is
    replaced. Raises `DataError` if the folder contains other files, `ValueError` for fewer than 60 images, a size
    outside 64 to 512 or a negative seed.
    """
    if images < 60:
        raise ValueError(f"need at least 60 images for seven classes in every split, got {images}")
    if not 64 <= size <= 512:
        raise ValueError(f"size must be 64 to 512 pixels, got {size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    folder = Path(folder)
    settings = {"version": _VERSION, "images": images, "size": size, "seed": seed, "classes": CLASSES}
    if _read_settings(folder) == settings:
        return folder
    with atomic_folder(folder) as temporary:
        (temporary / "images").mkdir()
        (temporary / "masks").mkdir()
        rows, injected_faults = _write_images(temporary, images, size, seed)
        table = pd.DataFrame(rows, columns=_COLUMNS).sort_values("image_id")
        table.to_csv(temporary / "metadata.csv", index=False, lineterminator="\n")
        (temporary / "injected_faults.json").write_text(json.dumps(injected_faults, indent=1), encoding="utf-8")
        (temporary / "phantoms.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return folder


def _read_settings(folder: Path) -> dict | None:
    """Settings of the complete sample in `folder`, None if there is none. Raises `DataError` for any other content."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file, expected a folder for phantoms; choose another path")
    names = {path.name for path in folder.glob("*") if not path.name.startswith(".")}
    if not names:
        return None
    foreign = names - _FILES
    for name in ("images", "masks"):
        foreign |= {f"{name}/{path.name}" for path in (folder / name).glob("*") if not path.name.startswith("PH_")}
    try:
        settings = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    if foreign or not isinstance(settings, dict):
        reason = f"it has {min(foreign)}" if foreign else "it has no readable phantoms.json"
        raise DataError(
            f"{folder} is not a sample of phantoms of this version ({reason}) and is not overwritten: set "
            "LESION_DATASET (or --dataset) if it is another data set, delete it if it is an older sample, or choose an "
            "empty folder"
        )
    complete = all((folder / name).is_file() for name in ("metadata.csv", "injected_faults.json"))
    counts = [len(list((folder / name).glob("PH_*"))) for name in ("images", "masks")]
    return settings if complete and counts == 2 * [settings.get("images")] else None


def _lesions(rng: np.random.Generator, images: int) -> list[dict]:
    """Lesions with diagnosis, split and number of images (`images` in total), as frequent as in HAM10000."""
    total = round(images * 7470 / 10015)  # lesions per image in HAM10000
    counts = {name: max(_MIN_LESIONS, round(total * freq)) for name, freq in CLASS_FREQUENCIES.items()}
    counts["NV"] += total - sum(counts.values())
    lesions = []
    for label, name in enumerate(CLASSES):
        held_out = max(1, round(0.1 * counts[name]))
        for n in range(counts[name]):
            split = "val" if n < held_out else "test" if n < 2 * held_out else "train"
            lesions.append({"label": label, "number": n, "diagnosis": name, "split": split, "num_images": 1})
    remaining = images - total
    while remaining:  # most lesions have one image, some two, few three or four
        lesion = lesions[rng.integers(total)]
        if lesion["num_images"] < 4:
            lesion["num_images"] += 1
            remaining -= 1
    numbers = rng.permutation(total)
    return [lesion | {"lesion_id": f"PL_{number:06d}"} for lesion, number in zip(lesions, numbers, strict=True)]


def _shuffled(rng: np.random.Generator, lesions: list[dict]) -> list[tuple[dict, int]]:
    """(lesion, index of its image) in an order where no two images of one lesion are neighbors."""
    pairs = [(lesion, index) for lesion in lesions for index in range(lesion["num_images"])]
    while True:
        order = [pairs[i] for i in rng.permutation(len(pairs))]
        if all(a is not b for (a, _), (b, _) in pairwise(order)):
            return order


def _write_images(folder: Path, images: int, size: int, seed: int) -> tuple[list[dict], dict[str, list]]:
    """Render and save all images and masks; returns the rows of `metadata.csv` and the injected faults."""
    rng = np.random.default_rng([seed, images])
    kinds = np.repeat(_FAULTS, (1, 2, 1) if images < 200 else (2, 3, 2)).tolist()
    num_copies = len(kinds) - kinds.count("empty_mask")
    lesions = _lesions(rng, images - num_copies)
    ids = [f"PH_{number:06d}" for number in range(images)]
    copy_ids = [ids.pop(i) for i in sorted(rng.choice(images, num_copies, replace=False), reverse=True)]
    rows, contrast = [], {}
    for image_id, (lesion, index) in zip(ids, _shuffled(rng, lesions), strict=True):
        image, mask, flags = render_with_flags(lesion["label"], 1_000_000 * seed + lesion["number"], size, index)
        _save(folder, image_id, image, mask)
        row = {"image_id": image_id} | {key: lesion[key] for key in ("lesion_id", "diagnosis", "split")}
        rows.append(row | {"artifacts": " ".join(np.array(ARTIFACTS)[flags > 0])})
        contrast[image_id] = np.ptp([cv2.mean(image, mask)[1], cv2.mean(image, 1 - mask)[1]]) * (mask.mean() < 0.7)
    # Faults go to distinctive lesions of large classes, because small classes have few images, and to lesions with one
    # image: another image of the lesion would be a near duplicate of the copy that is not listed as injected.
    classes = ("NV",) if images < 200 else ("NV", "MEL", "BKL")
    count = Counter(row["lesion_id"] for row in rows)
    sources = [r for r in rows if r["split"] == "train" and r["diagnosis"] in classes and count[r["lesion_id"]] == 1]
    sources.sort(key=lambda row: contrast[row["image_id"]])
    copies, injected_faults = _inject_faults(folder, kinds, sources[-len(kinds) :], copy_ids, len(lesions))
    return rows + copies, injected_faults


def _inject_faults(
    folder: Path, kinds: list[str], sources: list[dict], copy_ids: list[str], num_lesions: int
) -> tuple[list[dict], dict[str, list]]:
    """Give each row of `sources` a fault: an exact copy of its image with another label, a near duplicate in another
    split, both under the next of `copy_ids`, or an empty mask.

    kinds: fault of every row, empty masks last. Returns the rows of the copies and the ids of all faults by kind.
    """
    rows, injected_faults = [], {kind: [] for kind in _FAULTS}
    for number, (kind, row) in enumerate(zip(kinds, sources, strict=True)):
        source = row["image_id"]
        if kind == "empty_mask":
            path = folder / "masks" / f"{source}.png"
            write_image(path, np.zeros_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
            injected_faults[kind].append(source)
            continue
        copy = row | {"image_id": copy_ids[number], "lesion_id": f"PL_{num_lesions + number:06d}"}
        if kind == "exact_conflict":
            copy["diagnosis"] = "BKL" if row["diagnosis"] == "MEL" else "MEL"
            for name in ("images/{}.jpg", "masks/{}.png"):
                shutil.copyfile(folder / name.format(source), folder / name.format(copy["image_id"]))
        else:
            copy["split"] = "test"
            _copy_nearly(folder, source, copy["image_id"])
        injected_faults[kind].append([source, copy["image_id"]])
        rows.append(copy)
    return rows, injected_faults


def _save(folder: Path, image_id: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Write an image as JPEG, quality 95 with full color resolution, and its mask (0 or 1) as PNG (0 or 255)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    written = cv2.imwrite(str(folder / "images" / f"{image_id}.jpg"), image[..., ::-1], options)
    written &= cv2.imwrite(str(folder / "masks" / f"{image_id}.png"), mask * 255)
    if not written:  # OpenCV does not raise if the disk is full
        raise OSError(f"could not write {image_id} into {folder}")


def _copy_nearly(folder: Path, source: str, target: str) -> None:
    """Copy an image with the changes of a republished data set: cropped by 3 pixels, brighter, encoded again."""
    image = cv2.imread(str(folder / "images" / f"{source}.jpg"))[..., ::-1]
    mask = cv2.imread(str(folder / "masks" / f"{source}.png"), cv2.IMREAD_GRAYSCALE) // 255
    size = len(image)
    image = cv2.resize(image[1:-2, 2:-1], (size, size), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask[1:-2, 2:-1], (size, size), interpolation=cv2.INTER_NEAREST)
    _save(folder, target, cv2.convertScaleAbs(image, alpha=1.03, beta=2), mask)
