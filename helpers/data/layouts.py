"""Published folder layouts -> `DatasetTable`. `read(folder)` detects the layout from the folder's content.

Layouts: ISIC challenges 2016, 2017 and 2018 task 3 (challenge.isic-archive.com), HAM10000 (Tschandl et al., arXiv
1803.10417, doi:10.7910/DVN/DBW86T, also as republished on Kaggle), the sketch course's rearrangement of it, class
folders; sets of other clinics (`external.py`).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers.config import default_root
from helpers.data.class_folders import MASK_STEM, files_by_id, find_class_folders, read_folders, subfolders, tree
from helpers.data.download import ARCHIVES, download, is_unfinished
from helpers.data.external import is_derm7pt, is_pad_ufes_20, is_ph2, read_derm7pt, read_pad_ufes_20, read_ph2
from helpers.data.files import MAX_DEPTH, DataError, list_images, report_skipped
from helpers.data.labels import (
    HAM_CLASSES,
    ISIC2016_CLASSES,
    ISIC2017_CLASSES,
    drop_repeated_ids,
    find_entry,
    find_table,
    read_ham10000_metadata,
    read_isic2016_labels,
    read_isic2017_labels,
    read_isic2018_labels,
    read_table,
)
from helpers.data.tables import DatasetTable, build_table, join
from helpers.phantoms import sample
from helpers.phantoms.render import ARTIFACTS


@dataclass(frozen=True)
class Layout:
    """One published layout."""

    name: str
    expected: str  # files and folders, for the error message
    matches: Callable[[Path], bool]
    read: Callable[[Path], DatasetTable]


def read(folder: str | Path, classes: list[str] | None = None) -> DatasetTable:
    """Detect the layout of `folder` and read its table; images are not opened.

    `classes` selects a subset of the classes. Raises `DataError` if the folder does not exist or matches no layout, if
    a label file contradicts itself, or if more than 20 % of the images it lists are missing.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    for candidate in _nested_candidates(folder):
        for layout in LAYOUTS:
            if layout.matches(candidate):
                dataset = layout.read(candidate)
                return dataset.subset(classes) if classes else dataset
    known = "\n".join(f"  {layout.name}: {layout.expected}" for layout in LAYOUTS)
    names = [path.name for path in subfolders(folder)]
    content = f"{len(names)} folders ({', '.join(names[:5])}) and {len(list_images(folder))} images"
    report_skipped(folder, [], skipped := [])
    content += "".join(f"; {text}" for text in skipped if "of formats that are not read" in text)
    raise DataError(f"{folder} matches none of the known layouts: it has {content}. Expected one of:\n{known}")


def open_dataset(cfg, classes: list[str] | None = None) -> DatasetTable:
    """Read the data set of a config from `get_config`, see `ensure_folder`. Raises `DataError` if there is none."""
    ensure_folder(cfg)
    dataset = read(cfg.data_root, classes)
    if dataset.name != cfg.dataset:
        dataset.problems.insert(0, f"expected {cfg.dataset}, but the folder contains {dataset.name}")
    return dataset


def ensure_folder(cfg) -> None:
    """Generate the embedded sample, or download a published set to its default folder, if the folder of the config is
    absent or empty. Raises `DataError` for another folder that does not exist, and for a set that has no download."""
    root, is_default = cfg.data_root, cfg.data_root == default_root(cfg.dataset, cfg.profile)
    is_empty = not root.is_dir() or not any(root.iterdir())
    if not is_default and not root.is_dir():
        hint = f", or leave it out to download {cfg.dataset}" if cfg.dataset in ARCHIVES else ""
        raise DataError(f"{root} is not a folder: correct LESION_DATA_ROOT or --data-root{hint}")
    if cfg.dataset == "phantoms":
        sample.write(root, *sample.SAMPLE_SIZES[cfg.profile], cfg.seed)
    elif is_unfinished(root) or (is_default and is_empty and cfg.dataset in ARCHIVES):
        download(cfg.dataset, root)
    elif is_empty and cfg.dataset not in ARCHIVES:
        (expected,) = (layout.expected for layout in LAYOUTS if layout.name == cfg.dataset)
        raise DataError(
            f"the data set {cfg.dataset!r} has no download: set LESION_DATA_ROOT (or --data-root) to its folder, with "
            f"{expected}"
        )


def _nested_candidates(folder: Path) -> list[Path]:
    """The folder, then the only folder inside it, and so on: archives often unpack to nested folders."""
    chain = [folder]
    while len(inner := subfolders(chain[-1])) == 1 and len(chain) < 4:
        chain.append(inner[0])
    return chain


# -------------------------------------------------------------------------------------------------- finding files


def images_by_id(folder: Path | None, problems: list[str] | None = None) -> dict[str, Path]:
    """Image files of a folder (`image_files`) by image id.

    Of several files with one id the first is used; the others are reported in `problems`, as are skipped files.
    """
    return files_by_id(image_files(folder, problems), problems) if folder else {}


def _image_paths(folder: Path, depth: int = MAX_DEPTH) -> list[Path]:
    """Image files in `folder`, or in the folders inside it if it has none, `depth` levels deep: `Train/<class>/`."""
    paths = list_images(folder)
    return paths or [p for inner in subfolders(folder) if depth for p in _image_paths(inner, depth - 1)]


def image_files(folder: Path, problems: list[str] | None = None) -> list[Path]:
    """Image files in `folder`, or in the folders inside it if it has none, as `_image_paths`, without superpixel files.
    Other files and folders are reported in `problems`."""
    paths = _image_paths(folder)
    if problems is not None:
        report_skipped(folder, paths, problems)
    return [path for path in paths if not path.stem.lower().endswith("_superpixels")]


def _with_masks(
    folders: list[Path], mask_folder: Path | None, problems: list[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks by id; masks are in their own folder or next to the images (ISIC_1_Segmentation.png)."""
    paths = [path for folder in folders for path in _image_paths(folder)]
    named_masks = [path for path in paths if MASK_STEM.search(path.stem)]
    images = files_by_id([path for path in paths if path not in set(named_masks)], problems)
    masks = files_by_id([*(_image_paths(mask_folder) if mask_folder else []), *named_masks], problems)
    return images, masks


def _challenge_split(
    folder: Path, images: Path | None, masks: Path | None, labels: pd.DataFrame | None, split: str, problems: list[str]
) -> pd.DataFrame | None:
    """Rows of one official split of an ISIC challenge; None if its image folder does not exist, which is reported."""
    if images is None:
        problems.append(f"the {split} images are not in {folder.name}")
        return None
    if labels is None:
        problems.append(f"the {split} labels are not in {folder.name}")
    by_id, mask_by_id = _with_masks([images], masks, problems)
    return join(by_id, labels, problems, split, mask_path=mask_by_id)


# --------------------------------------------------------------------------------------------------------- layouts


def _read_phantoms(folder: Path) -> DatasetTable:
    try:
        classes = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder / 'phantoms.json'} is damaged ({error}): delete {folder}") from error
    problems: list[str] = []
    labels = read_table(folder / "metadata.csv", ["diagnosis", "lesion_id", "split", "artifacts"])
    labels["artifacts"] = labels["artifacts"].fillna("")  # an empty field means none, not unknown
    if unknown := set(" ".join(labels["artifacts"]).split()) - set(ARTIFACTS):
        raise DataError(f"artifacts in {folder / 'metadata.csv'} must be {' '.join(ARTIFACTS)}, got {min(unknown)}")
    labels = drop_repeated_ids(labels, problems)
    files = {"path": images_by_id(folder / "images", problems)}
    files["mask_path"] = images_by_id(folder / "masks", problems)
    rows = labels.assign(**{column: labels["image_id"].map(by_id) for column, by_id in files.items()})
    return build_table("phantoms", folder, rows, classes, problems)


def _read_isic2016(folder: Path) -> DatasetTable:
    problems, splits = [], []
    for published, split in (("Training", "train"), ("Test", "test")):
        images = find_entry(folder, f"ISBI2016_ISIC_Part[13]B?_{published}_Data")
        masks = find_entry(folder, f"ISBI2016_ISIC_Part(1|3B)_{published}_GroundTruth")
        path = find_table(folder, f"ISBI2016_ISIC_Part3B?_{published}_GroundTruth")
        labels = read_isic2016_labels(path, problems) if path else None
        splits.append(_challenge_split(folder, images, masks, labels, split, problems))
    return build_table("isic2016", folder, pd.concat(splits), ISIC2016_CLASSES, problems)


def _read_isic2017(folder: Path) -> DatasetTable:
    problems, splits = [], []
    for published, split in (("Training", "train"), ("Validation", "val"), ("Test(_v2)?", "test")):
        images = find_entry(folder, f"ISIC-2017_{published}_Data")
        masks = find_entry(folder, f"ISIC-2017_{published}_Part1_GroundTruth")
        path = find_table(folder, f"ISIC-2017_{published}_Part3_GroundTruth")
        labels = read_isic2017_labels(path, problems) if path else None
        splits.append(_challenge_split(folder, images, masks, labels, split, problems))
    return build_table("isic2017", folder, pd.concat(splits), ISIC2017_CLASSES, problems)


def ham_metadata(folder: Path) -> Path | None:
    """HAM10000's metadata in a folder, under any of its published names."""
    return find_table(folder, "HAM10000_metadata")


def _read_ham10000(folder: Path) -> DatasetTable:
    problems: list[str] = []
    labels = read_ham10000_metadata(ham_metadata(folder), problems)
    parts = [inner for inner in subfolders(folder) if re.match(r"ham10000_images", inner.name, re.IGNORECASE)]
    images, masks = _with_masks(parts, find_entry(folder, "HAM10000_segmentations_lesion_tschandl"), problems)
    rows = join(images, labels, problems, None, mask_path=masks)
    return build_table("ham10000", folder, rows, HAM_CLASSES, problems)


def _read_isic2018(folder: Path) -> DatasetTable:
    problems, splits = [], []
    for published, split in (("Training", "train"), ("Validation", "val"), ("Test", "test")):
        images = find_entry(folder, f"ISIC2018_Task3_{published}_Input")
        path = find_table(folder, f"ISIC2018_Task3_{published}_GroundTruth")
        if images is None and path is None:
            continue
        labels = read_isic2018_labels(path, problems) if path else None
        masks = find_entry(folder, "HAM10000_segmentations_lesion_tschandl")
        splits.append(_challenge_split(folder, images, masks, labels, split, problems))
    rows = _with_lesion_ids(pd.concat(splits), folder, problems)
    if len(splits) == 1:  # the training set alone has no official test split
        rows["split"] = pd.NA
    return build_table("ham10000", folder, rows, HAM_CLASSES, problems)


def _with_lesion_ids(rows: pd.DataFrame, folder: Path, problems: list[str]) -> pd.DataFrame:
    """Add lesion ids from HAM10000's metadata or the 2018 groupings, if one of the files is in the folder."""
    path = ham_metadata(folder) or find_table(folder, "ISIC2018_Task3_Training_LesionGroupings")
    if path is None:
        problems.append(
            "no lesion ids, so images of one lesion may be in several splits: add HAM10000_metadata.csv or "
            "ISIC2018_Task3_Training_LesionGroupings.csv to the folder"
        )
        return rows
    groups = read_table(path, ["lesion_id"]).drop_duplicates("image_id")
    return rows.assign(lesion_id=rows["image_id"].map(groups.set_index("image_id")["lesion_id"]))


def _course_csv(folder: Path, split: str) -> Path | None:
    """`<split>_labels.csv` in `folder`, or at most two levels deeper in folders named after a split (`Train/`)."""
    split_folders = [f for f in subfolders(folder) if _is_split_name(f)]
    nested = [f for outer in split_folders for f in subfolders(outer) if _is_split_name(f)]
    for place in [folder, *split_folders, *nested]:
        if path := find_table(place, rf"{split}_labels?"):
            return path
    return None


def _is_split_name(folder: Path) -> bool:
    return re.match("train|test", folder.name, re.IGNORECASE) is not None


def _course_files(folder: Path, problems: list[str]) -> dict[tuple[str, str], dict[str, Path]]:
    """Image files by (split, kind) and id. The course's folders differ between years, so split and kind ("image",
    "sketch", "unpaired") follow from words in their names.

    Of several files with one id, one in a folder named after a split and less deep is used, see `images_by_id`.
    """
    paths: dict[tuple[str, str], list[Path]] = {}
    names = {inner: inner.relative_to(folder).as_posix().lower() for inner in tree(folder)}
    order = sorted(names, key=lambda f: (not re.search("train|test", names[f]), names[f].count("/"), names[f]))
    for inner in order:
        name, files = names[inner], list_images(inner)
        if files and re.search(r"mask|segmentation|ground.?truth|result|output|prediction|(^|/)gt($|/)", name):
            problems.append(f"{len(files)} files in {name} are left out: the folder's name says they are not images")
            continue
        kind = "unpaired" if "unpaired" in name else "sketch" if re.search("sketch|contour", name) else "image"
        split = "test" if re.search("(^|[/_ -])test", name) else "train"
        paths.setdefault((split, kind), []).extend(files)
    return {key: files_by_id(found, problems) for key, found in paths.items()}


def _read_course(folder: Path) -> DatasetTable:
    problems, splits, unpaired = [], [], []
    files = _course_files(folder, problems)
    for split in ("train", "test"):
        images, sketches = files.get((split, "image"), {}), files.get((split, "sketch"), {})
        path = _course_csv(folder, split)
        labels = read_isic2018_labels(path, problems) if path else None
        if labels is None and images:
            problems.append(f"the {split} labels are not in {folder.name}")
        if path or images:
            splits.append(join(images, labels, problems, split, sketch_path=sketches))
        if split == "train":  # sketches of test lesions must not be trained on
            # A sketch without an image of its id is unpaired, whatever its folder is called.
            unpaired += [p for i, p in sketches.items() if i not in images]
            unpaired += files.get((split, "unpaired"), {}).values()
    rows = _with_lesion_ids(pd.concat(splits), folder, problems)
    if rows["image_id"].str.match(r"ISIC_00(2[4-9]|3[0-4])\d{3}$").mean() > 0.9:
        problems.insert(0, "the images and seven classes are HAM10000's (ISIC 2018 task 3), not ISIC 2016's")
    return build_table("course", folder, rows, HAM_CLASSES, problems, sorted(unpaired))


LAYOUTS = [
    Layout(
        "phantoms", "phantoms.json, metadata.csv, images/, masks/",
        lambda f: (f / "phantoms.json").is_file(), _read_phantoms,
    ),
    Layout(
        "isic2016", "ISBI2016_ISIC_Part1_Training_Data/ or ISBI2016_ISIC_Part1_Test_Data/, Part3 label files",
        lambda f: find_entry(f, r"ISBI2016_ISIC_Part[13]B?_(Training|Test)_Data") is not None, _read_isic2016,
    ),
    Layout(
        "isic2017", "ISIC-2017_Training_Data/, ISIC-2017_Training_Part3_GroundTruth.csv, or validation, or test",
        lambda f: find_entry(f, r"ISIC-2017_(Training|Validation|Test(_v2)?)_Data") is not None, _read_isic2017,
    ),
    Layout(
        "ham10000", "HAM10000_metadata.csv and HAM10000_images_part_1/ (Dataverse, Kaggle)",
        lambda f: ham_metadata(f) is not None and find_entry(f, r"HAM10000_images.*") is not None, _read_ham10000,
    ),
    Layout(
        "ham10000", "ISIC2018_Task3_Training_Input/ and ISIC2018_Task3_Training_GroundTruth.csv",
        lambda f: find_entry(f, r"ISIC2018_Task3_(Training|Validation|Test)_Input") is not None, _read_isic2018,
    ),
    Layout(
        "course", "Train_labels.csv with columns image,MEL,NV,BCC,AKIEC,BKL,DF,VASC, Train_data/, ..._sketch/Contours/",
        lambda f: _course_csv(f, "train") is not None, _read_course,
    ),
    Layout("ph2", "PH2 Dataset images/IMD003/IMD003_Dermoscopic_Image/IMD003.bmp, PH2_dataset.txt", is_ph2, read_ph2),
    Layout("derm7pt", "meta/meta.csv with columns diagnosis and derm, images/", is_derm7pt, read_derm7pt),
    Layout("pad_ufes_20", "metadata.csv with columns img_id and diagnostic, images/", is_pad_ufes_20, read_pad_ufes_20),
    Layout(
        "folders", "two or more <class>/ folders of images, alone or inside Train/, Val/, Test/",
        lambda f: len({c.name for _, c in find_class_folders(f)}) > 1, read_folders,
    ),
]  # fmt: skip
