"""The embedded sample: phantoms written as a folder, with splits and with the faults an audit should find."""

import csv
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from helpers.data.files import DataError, atomic_folder
from helpers.data.phantoms import CLASSES, render

# The shares of HAM10000.
CLASS_FREQUENCIES = {"NV": 0.669, "MEL": 0.111, "BKL": 0.110, "BCC": 0.051, "AKIEC": 0.033, "VASC": 0.014, "DF": 0.011}
_MIN_LESIONS = 4  # lesions of every class: one for val, one for test, two to learn from
_VERSION = 3  # of the pictures: raise it when the drawing changes, and old samples are drawn anew
_OURS = {"phantoms.json", "metadata.csv", "injected_faults.json", "images", "masks"}


def write(folder: str | Path, images: int = 400, size: int = 128, seed: int = 0) -> Path:
    """Write the sample of `images` pictures as a folder, once, and return the folder.

    `images/<image_id>.jpg`, `masks/<image_id>.png` (0 or 255), `metadata.csv` (`image_id, lesion_id, diagnosis,
    split`), `planted.json` (faults put in on purpose, for the audit to find) and `phantoms.json` (the settings).
    Nothing is done where the folder holds exactly this sample; one of other settings, or with pictures missing, is
    replaced whole.
    Raises `DataError` for a folder that holds anything else, `ValueError` for under 60 images or a bad size.
    """
    if images < 60:
        raise ValueError(f"{images} images are too few for all seven classes in every split: take 60 or more")
    if not 64 <= size <= 512 or seed < 0:
        raise ValueError(f"size {size} must be 64 to 512 pixels and seed {seed} not negative")
    folder = Path(folder)
    settings = {"version": _VERSION, "images": images, "size": size, "seed": seed, "classes": CLASSES}
    if _settings_in(folder) == settings and _complete(folder, images):
        return folder
    with atomic_folder(folder) as fresh:
        (fresh / "images").mkdir()
        (fresh / "masks").mkdir()
        rows, planted = _write_pictures(fresh, images, size, seed)
        with open(fresh / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["image_id", "lesion_id", "diagnosis", "split"], lineterminator="\n")
            table.writeheader()
            table.writerows(sorted(rows, key=lambda row: row["image_id"]))
        (fresh / "injected_faults.json").write_text(json.dumps(planted, indent=1), encoding="utf-8")
        (fresh / "phantoms.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return folder


def _settings_in(folder: Path) -> dict | None:
    """Settings of the sample in `folder`; None where there is nothing yet. Somebody else's files: `DataError`."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, not a folder for phantoms")
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if not found:
        return None
    strangers = found - _OURS
    for name in ("images", "masks"):
        strangers |= {f"{name}/{path.name}" for path in (folder / name).glob("*") if not path.name.startswith("PH_")}
    try:
        settings = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    if strangers or not isinstance(settings, dict):
        what = f"such as {min(strangers)}" if strangers else "and no readable phantoms.json"
        raise DataError(f"{folder} holds files that are no phantoms sample ({what}); choose an empty folder")
    return settings


def _complete(folder: Path, images: int) -> bool:
    """Whether nobody has deleted pictures or tables since."""
    tables = all((folder / name).is_file() for name in ("metadata.csv", "injected_faults.json"))
    return tables and all(len(list((folder / name).glob("PH_*"))) == images for name in ("images", "masks"))


def _lesions(rng: np.random.Generator, pictures: int) -> list[dict]:
    """Lesions with diagnosis, split and number of photographs (`pictures` in all), as common as in HAM10000."""
    total = round(pictures * 7470 / 10015)  # lesions per picture there
    counts = {name: max(_MIN_LESIONS, round(total * share)) for name, share in CLASS_FREQUENCIES.items()}
    counts["NV"] += total - sum(counts.values())
    lesions = []
    for label, name in enumerate(CLASSES):
        held_out = max(1, round(0.1 * counts[name]))
        for n in range(counts[name]):
            split = "val" if n < held_out else "test" if n < 2 * held_out else "train"
            lesions.append({"label": label, "number": n, "diagnosis": name, "split": split, "photographs": 1})
    left = pictures - total
    while left:  # most lesions have one photograph, some two, few three or four
        lesion = lesions[rng.integers(total)]
        if lesion["photographs"] < 4:
            lesion["photographs"] += 1
            left -= 1
    for lesion, number in zip(lesions, rng.permutation(total), strict=True):
        lesion["lesion_id"] = f"PL_{number:06d}"
    return lesions


def _shuffled(rng: np.random.Generator, lesions: list[dict]) -> list[tuple[dict, int]]:
    """(lesion, photograph) in an order where no two photographs of one lesion are neighbours."""
    pairs = [(lesion, photograph) for lesion in lesions for photograph in range(lesion["photographs"])]
    while True:
        order = [pairs[i] for i in rng.permutation(len(pairs))]
        if all(a is not b for (a, _), (b, _) in pairwise(order)):
            return order


def _write_pictures(folder: Path, images: int, size: int, seed: int) -> tuple[list[dict], dict[str, list]]:
    """Draw everything into `folder`; returns the rows of the table and the truth about the planted faults."""
    rng = np.random.default_rng([seed, images])
    faults = (1, 2, 1) if images < 200 else (2, 3, 2)  # conflicts, near duplicates, empty masks
    copies = faults[0] + faults[1]
    lesions = _lesions(rng, images - copies)
    ids = [f"PH_{number:06d}" for number in range(images)]
    spare = [ids.pop(i) for i in sorted(rng.choice(images, copies, replace=False), reverse=True)]
    rows, contrast = [], {}
    for image_id, (lesion, photograph) in zip(ids, _shuffled(rng, lesions), strict=True):
        image, mask = render(lesion["label"], 1_000_000 * seed + lesion["number"], size, photograph)
        _save(folder, image_id, image, mask)
        rows.append({"image_id": image_id} | {key: lesion[key] for key in ("lesion_id", "diagnosis", "split")})
        contrast[image_id] = np.ptp([cv2.mean(image, mask)[1], cv2.mean(image, 1 - mask)[1]]) * (mask.mean() < 0.7)
    # faults go to distinctive lesions of the large classes, so that no small class loses its few, and to lesions of
    # one photograph: another one would be a near duplicate of the copy that nobody planted
    large = ("NV",) if images < 200 else ("NV", "MEL", "BKL")
    photographs = Counter(row["lesion_id"] for row in rows)
    once = [r for r in rows if r["split"] == "train" and r["diagnosis"] in large and photographs[r["lesion_id"]] == 1]
    once.sort(key=lambda row: contrast[row["image_id"]])
    copied, planted = _inject_faults(folder, once[-sum(faults) :], spare, faults, len(lesions))
    return rows + copied, planted


def _inject_faults(
    folder: Path, sources: list[dict], spare: list[str], faults: tuple[int, int, int], lesions: int
) -> tuple[list[dict], dict[str, list]]:
    """Copies of the first `sources` under the `spare` ids, masks of the last ones emptied; new rows and the truth."""
    conflicts, near, _ = faults
    planted, rows = {"exact_conflict": [], "near_duplicate_across_splits": [], "empty_mask": []}, []
    for number, (row, image_id) in enumerate(zip(sources, spare, strict=False)):
        copy = row | {"image_id": image_id, "lesion_id": f"PL_{lesions + number:06d}"}
        if number < conflicts:
            _copy_exactly(folder, row["image_id"], image_id)
            copy["diagnosis"] = "BKL" if row["diagnosis"] == "MEL" else "MEL"
            planted["exact_conflict"].append([row["image_id"], image_id])
        else:
            _copy_nearly(folder, row["image_id"], image_id)
            copy["split"] = "test"
            planted["near_duplicate_across_splits"].append([row["image_id"], image_id])
        rows.append(copy)
    for row in sources[conflicts + near :]:
        path = folder / "masks" / f"{row['image_id']}.png"
        cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
        planted["empty_mask"].append(row["image_id"])
    return rows, planted


def _save(folder: Path, image_id: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Write one picture, JPEG of quality 95 with full colour resolution, and its mask."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done = cv2.imwrite(str(folder / "images" / f"{image_id}.jpg"), image[..., ::-1], settings)
    done &= cv2.imwrite(str(folder / "masks" / f"{image_id}.png"), mask * 255)
    if not done:  # OpenCV says no word about a full disk
        raise OSError(f"could not write {image_id} into {folder}")


def _copy_exactly(folder: Path, source: str, target: str) -> None:
    for name in ("images/{}.jpg", "masks/{}.png"):
        (folder / name.format(target)).write_bytes((folder / name.format(source)).read_bytes())


def _copy_nearly(folder: Path, source: str, target: str) -> None:
    """The same picture as another clinic would hand it in: cropped by a pixel or two, brighter, encoded anew."""
    image = cv2.imread(str(folder / "images" / f"{source}.jpg"))[..., ::-1]
    mask = cv2.imread(str(folder / "masks" / f"{source}.png"), cv2.IMREAD_GRAYSCALE) // 255
    size = len(image)
    image = cv2.resize(image[1:-2, 2:-1], (size, size), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask[1:-2, 2:-1], (size, size), interpolation=cv2.INTER_NEAREST)
    _save(folder, target, cv2.convertScaleAbs(image, alpha=1.03, beta=2), mask)
