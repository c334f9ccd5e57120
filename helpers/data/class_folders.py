"""Class folders: a folder of images for every diagnosis, alone or below folders of splits. Masks and sketches may lie
next to the images."""

import os
import re
from pathlib import Path

import pandas as pd

from helpers.data.files import HIDDEN_FOLDER, DataError, list_images, report_skipped
from helpers.data.labels import clean_name, id_from_stem, report_ids
from helpers.data.tables import DatasetTable, build_table

MASK_STEM = re.compile(r"_(segmentation|mask)$", re.IGNORECASE)
# What publishers append to the names of masks: ISIC_1_Segmentation.png, IMD002_lesion.bmp
MASK_NAME = re.compile(r"_(segmentation|mask|lesion|roi|gt|groundtruth|sketch|contours?)$", re.IGNORECASE)
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted by name, without hidden ones."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and not HIDDEN_FOLDER.fullmatch(e.name))


def tree(folder: Path) -> list[Path]:
    """`folder` and all folders below it, without hidden ones; links to folders are not followed."""
    inner = [f for f in subfolders(folder) if not f.is_symlink()]
    return [folder, *(below for f in inner for below in tree(f))]


def files_by_id(paths: list[Path], problems: list[str] | None = None) -> dict[str, Path]:
    """The first file of every image id; the others are reported in `problems`; without superpixel files."""
    by_id, repeated = {}, []
    for path in paths:
        if not path.stem.lower().endswith("_superpixels") and by_id.setdefault(id_from_stem(path.stem), path) != path:
            repeated.append(path.name)
    if problems is not None:
        report_ids(problems, "have the id of another file and are left out", repeated)
    return by_id


# Names of folders that cannot be diagnoses, by what a folder with such folders looks like.
_SPLIT_WORD = "train|training|val|valid|validation|test|testing"
_NOT_A_CLASS = {
    "images next to masks": r".*(masks?|segmentations?|ground.?truths?|sketch(es)?|contours?)|(.*[_ -])?gt|auto",
    "images of several splits, without classes": rf"({_SPLIT_WORD})([_ -]?([a-z]|\d+|images?|imgs?|data))?",
    "numbered parts of one set": r".*(part|fold|batch|chunk|split|folder|set|disc|volume|images?|data)[_ -]?\(?\d+\)?",
    "images not sorted by diagnosis": r"(.*[_ -])?(images?|imgs?|pictures?|photos?|input|data|results?|outputs?)",
}


def _appearance(name: str, paths: list[Path]) -> str | None:
    """What a folder with this folder of images looks like if that is not a diagnosis."""
    if sum(bool(MASK_STEM.search(path.stem)) for path in paths) > len(paths) / 2:
        return "images next to masks"
    return next((text for text, names in _NOT_A_CLASS.items() if re.fullmatch(names, name.strip(), re.I)), None)


def is_mask_folder(name: str) -> bool:
    """Whether a folder is named as one of masks or sketches."""
    return _appearance(name, []) == "images next to masks"


def _check_class_names(folder: Path, class_folders: list[Path]) -> None:
    """Raise `DataError` if folders cannot be named after diagnoses."""
    looks = {c.name: text for c in class_folders if (text := _appearance(c.name, list_images(c)))}
    if looks:
        text = " and ".join(sorted(set(looks.values())))
        raise DataError(
            f"{folder} looks like {text}: its folders must be named after classes of lesions, got {', '.join(looks)}"
        )


def _class_names(folder_names: pd.Series, problems: list[str]) -> pd.Series:
    """Folder names as class names: those that differ only in case or blanks become the first one and are reported."""
    folder_names = folder_names.map(clean_name)
    keys = folder_names.str.casefold().str.replace(r"\s+", "", regex=True)
    classes = folder_names.groupby(keys).transform("min").str.split().str.join(" ")
    for name, spellings in folder_names.groupby(classes).unique().items():
        if len(spellings) > 1:
            problems.append(f"the folders {', '.join(map(repr, sorted(spellings)))} are one class, {name}")
    return classes


def find_class_folders(folder: Path) -> list[tuple[str | None, Path]]:
    """(split, class folder) pairs of a tree `<class>/` or `<split>/<class>/`; split is None in the former."""
    inner = subfolders(folder)
    splits = [(SPLIT_FOLDERS[f.name.lower()], f) for f in inner if f.name.lower() in SPLIT_FOLDERS]
    trees = splits or [(None, folder)]
    return [(split, c) for split, tree in trees for c in subfolders(tree) if list_images(c)]


def _image_rows(folder: Path) -> list[dict]:
    """The images directly in a folder, each with the mask (a_mask.png, see `MASK_NAME`) or sketch (a_sketch.png) that
    is next to it (a.jpg). A file of such a name without its image is an image."""
    paths = list_images(folder)
    by_stem = {path.stem: path for path in paths}
    rows = {path: {"image_id": clean_name(path.stem), "path": path} for path in paths}
    for path in paths:
        ending = MASK_NAME.search(path.stem)
        image = ending and by_stem.get(path.stem[: ending.start()])
        if image in rows:
            is_sketch = re.match("sketch|contour", ending[1], re.IGNORECASE)
            rows[image].setdefault("sketch_path" if is_sketch else "mask_path", path)
            del rows[path]
    return list(rows.values())


def read_folders(folder: Path) -> DatasetTable:
    """The data set in class folders. Raises `DataError` if their names cannot be diagnoses."""
    problems: list[str] = []
    class_folders = find_class_folders(folder)
    _check_class_names(folder, [c for _, c in class_folders])
    rows = pd.DataFrame(
        [row | {"diagnosis": c.name, "split": split or pd.NA} for split, c in class_folders for row in _image_rows(c)]
    )
    used = rows.reindex(columns=["path", "mask_path", "sketch_path"]).stack().dropna()
    report_skipped(folder, used, problems)
    rows["diagnosis"] = _class_names(rows["diagnosis"].astype("string"), problems)
    # One file name in two classes becomes two rows; the audit reports whether it is the same image.
    repeated = rows["image_id"].duplicated(keep=False)
    full_names = rows["path"].map(lambda p: clean_name(p.relative_to(folder).as_posix()).replace("/", "-"))
    rows["image_id"] = rows["image_id"].where(~repeated, full_names)
    report_ids(problems, "share their file name with others; the folder is added to the id", rows["image_id"][repeated])
    return build_table("folders", folder, rows, sorted(rows["diagnosis"].unique()), problems)
