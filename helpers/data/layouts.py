"""A published folder layout -> `Dataset`. `read(folder)` recognises which layout it is by looking inside.

Layouts as published: ISIC challenges 2016, 2017 and 2018 task 3 (challenge.isic-archive.com), HAM10000 (Tschandl 2018,
doi:10.7910/DVN/DBW86T, also as re-issued on Kaggle), the sketch course's re-arrangement of it, class folders.
"""

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from helpers.config import display_path
from helpers.data import sample
from helpers.data.download import download, is_unfinished
from helpers.data.files import IMAGE_SUFFIXES, DataError, list_images

HAM_CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
COLUMNS = ["image_id", "path", "mask_path", "sketch_path", "label", "lesion_id", "split", "source"]
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
MISSING_LIMIT = 0.2


@dataclass
class DatasetTable:
    """One row a picture; what is not known is `<NA>`, never made up.

    `table`: `image_id path mask_path sketch_path label lesion_id split source`; `label` is an index into `classes`.
    `problems`: sentences on what was missing, unreadable or doubtful.
    """

    name: str
    root: Path
    table: pd.DataFrame
    classes: list[str]
    problems: list[str] = field(default_factory=list)
    unpaired_sketches: list[Path] = field(default_factory=list)

    def subset(self, classes: list[str]) -> "DatasetTable":
        """Only pictures of the named classes, labels renumbered in that order. Raises `DataError` on unknown names."""
        unknown = [c for c in classes if c not in self.classes]
        if unknown or len(set(classes)) < len(classes):
            raise DataError(f"classes {classes}: unknown or doubled; {self.name} has {', '.join(self.classes)}")
        names = self.class_names()
        keep = names.isin(classes)
        if not keep.any():
            raise DataError(f"no picture of {self.name} is labelled {' or '.join(classes)}")
        labels = names[keep].map({c: i for i, c in enumerate(classes)}).astype("Int64")
        table = self.table[keep].assign(label=labels).reset_index(drop=True)
        return replace(self, table=table, classes=list(classes))

    @property
    def has_contours(self) -> bool:
        """Whether contour sketches can be had: from masks, or because they came with the pictures."""
        return bool(self.table[["mask_path", "sketch_path"]].notna().any(axis=None))

    def class_names(self) -> pd.Series:
        """The class name of every row, `<NA>` where the label is not known."""
        return self.table["label"].map(dict(enumerate(self.classes))).astype("string")

    def counts(self) -> pd.DataFrame:
        """Pictures per class (rows) and split (columns), with totals."""
        split = self.table["split"].fillna("no split")
        names = self.class_names().fillna("no label")
        order = [c for c in [*self.classes, "no label"] if c in set(names)]
        columns = [s for s in ["train", "val", "test", "no split"] if s in set(split)]
        counts = pd.crosstab(names, split).reindex(index=order, columns=columns, fill_value=0)
        counts.index.name = counts.columns.name = None
        counts["all"] = counts.sum(axis=1)
        counts.loc["all"] = counts.sum(axis=0)
        return counts

    def __repr__(self) -> str:
        classes = " ".join(self.classes)
        return f"Dataset({self.name}: {len(self.table)} pictures, classes {classes}, from {display_path(self.root)})"


@dataclass(frozen=True)
class Layout:
    """One published layout: how to recognise it and how to read it."""

    name: str
    expected: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], DatasetTable]


def read(folder: str | Path, classes: list[str] | None = None) -> DatasetTable:
    """Recognise the layout of `folder` and read its table; pictures are not opened.

    `classes` keeps a subset of the classes. Raises `DataError` when the folder is missing or of no known layout, when a
    label file contradicts itself, or when more than 20 % of the pictures it names are missing.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    for candidate in _nested_candidates(folder):
        for layout in LAYOUTS:
            if layout.matches(candidate):
                dataset = layout.read(candidate)
                return dataset.subset(classes) if classes else dataset
    known = "\n".join(f"  {layout.name}: {layout.expected}" for layout in LAYOUTS)
    raise DataError(f"{folder} has none of the known layouts. Looked for:\n{known}")


def open_dataset(cfg, classes: list[str] | None = None) -> DatasetTable:
    """The data set that `get_config` chose: read from its folder, which is first made (the embedded sample) or
    downloaded (a published set) if it is not there. Raises `DataError` where neither is possible."""
    if cfg.dataset == "phantoms":
        sample.write(cfg.data_root, seed=cfg.seed, **cfg.sample)
    elif not cfg.data_root.is_dir() or is_unfinished(cfg.data_root):
        download(cfg.dataset, cfg.data_root)
    dataset = read(cfg.data_root, classes)
    if dataset.name != cfg.dataset:
        dataset.problems.insert(0, f"asked for {cfg.dataset}, but the folder holds {dataset.name}")
    return dataset


def _nested_candidates(folder: Path) -> list[Path]:
    """The folder, then what it wraps: an archive often unpacks to one folder inside another."""
    chain = [folder]
    while len(inner := _folders(chain[-1])) == 1 and len(chain) < 4:
        chain.append(inner[0])
    return chain


# ---------------------------------------------------------------------------------------------- looking into folders


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))


def _find(folder: Path, *patterns: str) -> Path | None:
    """The first entry of `folder` whose whole name matches one of the patterns, in their order, whatever its case."""
    names = sorted(os.listdir(folder))
    for pattern in patterns:
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return folder / name
    return None


def _csv(folder: Path, pattern: str) -> Path | None:
    """A table called `pattern`, alone or inside a folder of its own name (as the 2018 archives unpack)."""
    found = _find(folder, pattern + r"\.(csv|tab|txt)", pattern)
    return _find(found, pattern + r"\.(csv|tab|txt)") if found and found.is_dir() else found


# What publishers put around a picture's id: sketch_ISIC_1.png, ISIC_1_segmentation.png, ISIC_1_downsampled.jpg.
_DECORATION = re.compile(r"^(sketch|contour)_|_(segmentation|mask|sketch|contours?|downsampled)$", re.IGNORECASE)


def images_by_id(folder: Path | None, problems: list[str] | None = None) -> dict[str, Path]:
    """Pictures in `folder` (or in the one folder inside it) by picture id, superpixel files left out. Of several files
    with one id the first is taken; the others are named in `problems`."""
    if folder is None:
        return {}
    pictures = list_images(folder) or [p for inner in _folders(folder) for p in list_images(inner)]
    found, others = {}, []
    for path in pictures:
        if not path.stem.lower().endswith("_superpixels") and found.setdefault(_id_of(path.stem), path) != path:
            others.append(path.name)
    if problems is not None:
        _report(problems, "have the id of another file and are left out", others)
    return found


def _id_of(stem: str) -> str:
    return _DECORATION.sub("", stem)


# --------------------------------------------------------------------------------------------------- label tables


def read_labels(path: str | Path, classes: list[str], problems: list[str]) -> dict[str, str]:
    """`image_id,label` or one-hot columns -> the class name of every id; what is doubtful goes to `problems`."""
    path = Path(path)
    table = _read_labels(path, [])
    if "label" in table:
        table["diagnosis"] = table["label"].str.strip()
    elif hot := [c for c in classes if c in table]:
        table = _one_hot(table, path, hot, problems)
    else:
        raise DataError(
            f"label file {path} has neither a column 'label' nor one named after a class ({' '.join(classes)})"
        )
    table["image_id"] = table["image_id"].map(_id_of)
    table = _drop_repeated_ids(table.loc[table["diagnosis"].notna(), ["image_id", "diagnosis"]], problems)
    unknown = ~table["diagnosis"].isin(classes)
    _report(problems, f"have a label in {path.name} that is none of {' '.join(classes)}", table["image_id"][unknown])
    return dict(table[~unknown].itertuples(index=False))


_ENDING = re.compile(rf"({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})$", re.IGNORECASE)


def _read_labels(path: Path, needs: list[str], header: bool = True) -> pd.DataFrame:
    """A label file as strings, with at least the columns `needs`, or just these where it has no header. The first
    column is the id if none is called so; ids lose a file ending."""
    names = {"header": "infer"} if header else {"header": None, "names": needs}
    try:  # utf-8-sig: Excel puts a mark before the first column's name
        table = pd.read_csv(path, dtype=str, sep=None, engine="python", encoding="utf-8-sig", **names)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"label file {path} cannot be read ({error})") from error
    table = table.rename(columns={table.columns[0]: "image_id"} if "image_id" not in table else {})
    absent = [column for column in needs if column not in table]
    if absent:
        raise DataError(f"label file {path} has no column {', '.join(absent)}")
    table["image_id"] = table["image_id"].str.strip().str.replace(_ENDING, "", regex=True)
    return table.dropna(subset="image_id")


def _one_hot(table: pd.DataFrame, path: Path, classes: list[str], problems: list[str]) -> pd.DataFrame:
    """One-hot columns -> `diagnosis`; rows with none or several ones get `<NA>` and are named."""
    hot = table[classes].apply(pd.to_numeric, errors="coerce").fillna(0).to_numpy() > 0.5
    table["diagnosis"] = pd.Series([classes[i] for i in hot.argmax(axis=1)], index=table.index, dtype="string")
    table.loc[hot.sum(axis=1) != 1, "diagnosis"] = pd.NA
    _report(problems, "have no single label in " + path.name, table["image_id"][table["diagnosis"].isna()])
    return table


def _drop_repeated_ids(table: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Each id once. A doubled id with one diagnosis is reported, with several it stops."""
    _report(problems, "stand in the label file more than once", table["image_id"][table["image_id"].duplicated()])
    table = table.drop_duplicates(["image_id", "diagnosis"])
    doubled = table["image_id"][table["image_id"].duplicated()]
    if len(doubled):
        raise DataError(f"{_format_ids(doubled)} stand in the label file under different labels")
    return table


def _format_ids(ids: pd.Series | list, most: int = 5) -> str:
    ids = list(dict.fromkeys(ids))
    return f"{len(ids)} ({', '.join(map(str, ids[:most]))}{', ...' if len(ids) > most else ''})"


def _report(problems: list[str], what: str, ids: pd.Series | list) -> None:
    if len(ids):
        problems.append(f"{_format_ids(ids)} {what}")


def _build_table(
    name: str, root: Path, rows: pd.DataFrame, classes: list[str], problems: list[str], unpaired: list[Path] = ()
) -> DatasetTable:
    """Rows (`image_id diagnosis split path ...`) -> Dataset of all columns, right types, missing pictures left out."""
    rows = rows.reindex(columns=[*rows.columns, *(c for c in COLUMNS if c not in rows)])
    here = rows["path"].notna()
    _report(problems, "are named in the label file but there is no such picture", rows["image_id"][~here])
    if len(rows) == 0 or (~here).mean() > MISSING_LIMIT:
        raise DataError(f"{root}: {int((~here).sum())} of {len(rows)} {name} pictures are missing")
    rows = rows[here].reset_index(drop=True)
    unknown = ~rows["diagnosis"].isin(classes) & rows["diagnosis"].notna()
    _report(problems, f"have a diagnosis that is none of {' '.join(classes)}", rows["image_id"][unknown])
    rows["label"] = rows["diagnosis"].map({c: i for i, c in enumerate(classes)}).astype("Int64")
    _report(problems, "have no label", rows["image_id"][rows["label"].isna() & ~unknown])
    rows["source"] = rows["source"].astype("string").fillna(name)
    for column in COLUMNS:
        if column != "label":
            rows[column] = rows[column].astype("string")
    _report_masks(rows, problems)
    return DatasetTable(name, root, rows[COLUMNS], classes, problems, list(unpaired))


def _report_masks(rows: pd.DataFrame, problems: list[str]) -> None:
    without = rows["mask_path"].isna()
    if without.all():
        problems.append("no masks: contour sketches and segmentation need them, structure sketches do not")
    else:
        _report(problems, "have no mask", rows["image_id"][without])


def _join(
    pictures: dict[str, Path], labels: pd.DataFrame | None, problems: list[str], split: str | None, **more: dict
) -> pd.DataFrame:
    """Pictures, labels and further files by id (`mask_path=`, `sketch_path=`) -> rows, a row for every id of either."""
    labels = pd.DataFrame({"image_id": sorted(pictures), "diagnosis": pd.NA}) if labels is None else labels
    unlabelled = sorted(set(pictures) - set(labels["image_id"]))
    _report(problems, "are in the picture folder but not in the label file", unlabelled)
    rows = pd.concat([labels, pd.DataFrame({"image_id": unlabelled})], ignore_index=True)
    rows = rows.assign(split=split or pd.NA, path=rows["image_id"].map(pictures))
    rows = rows.assign(**{column: rows["image_id"].map(files) for column, files in more.items()})
    return rows.astype("string")  # a column without a value would otherwise change the type of those joined to it


def _challenge_split(
    folder: Path,
    pictures: Path | None,
    masks: Path | None,
    labels: pd.DataFrame | None,
    split: str,
    problems: list[str],
) -> pd.DataFrame:
    """One official split of an ISIC challenge; a split whose picture folder is not there is told and left out."""
    if pictures is None:
        problems.append(f"the {split} pictures are not in {folder.name}")
        return None
    if labels is None:
        problems.append(f"the {split} labels are not in {folder.name}")
    return _join(images_by_id(pictures), labels, problems, split, mask_path=images_by_id(masks))


# --------------------------------------------------------------------------------------------------------- layouts


def _read_phantoms(folder: Path) -> DatasetTable:
    settings = json.loads((folder / "phantoms.json").read_text())
    problems: list[str] = []
    labels = _drop_repeated_ids(_read_labels(folder / "metadata.csv", ["diagnosis", "lesion_id", "split"]), problems)
    files = {"path": images_by_id(folder / "images"), "mask_path": images_by_id(folder / "masks")}
    rows = labels.assign(**{column: labels["image_id"].map(found) for column, found in files.items()})
    return _build_table("phantoms", folder, rows, settings["classes"], problems)


def _read_isic2016(folder: Path) -> DatasetTable:
    problems: list[str] = []
    splits = []
    # The training file says benign/malignant, the test file 0/1 or 0.0/1.0.
    words = {"0": "benign", "0.0": "benign", "1": "malignant", "1.0": "malignant"}
    for published, split in (("Training", "train"), ("Test", "test")):
        pictures = _find(folder, f"ISBI2016_ISIC_Part[13]B?_{published}_Data")
        masks = _find(folder, f"ISBI2016_ISIC_Part(1|3B)_{published}_GroundTruth")
        path = _find(folder, f"ISBI2016_ISIC_Part3B?_{published}_GroundTruth\\.csv")
        labels = _read_labels(path, ["image_id", "diagnosis"], header=False) if path else None
        if labels is not None:
            labels["diagnosis"] = labels["diagnosis"].str.strip().replace(words)
            labels = _drop_repeated_ids(labels, problems)
        splits.append(_challenge_split(folder, pictures, masks, labels, split, problems))
    return _build_table("isic2016", folder, pd.concat(splits), ["benign", "malignant"], problems)


def _read_isic2017(folder: Path) -> DatasetTable:
    problems: list[str] = []
    splits = []
    for published, split in (("Training", "train"), ("Validation", "val"), ("Test(_v2)?", "test")):
        pictures = _find(folder, f"ISIC-2017_{published}_Data")
        masks = _find(folder, f"ISIC-2017_{published}_Part1_GroundTruth")
        path = _csv(folder, f"ISIC-2017_{published}_Part3_GroundTruth")
        labels = None
        if path:
            # Two binary columns; a lesion that is neither is a benign nevus.
            labels = _read_labels(path, ["melanoma", "seborrheic_keratosis"])
            kinds = labels[["melanoma", "seborrheic_keratosis"]].apply(pd.to_numeric, errors="coerce")
            other = (kinds.sum(axis=1, skipna=False) == 0).astype(float)
            labels = labels.rename(columns={"melanoma": "MEL", "seborrheic_keratosis": "SK"}).assign(NV=other)
            labels = _drop_repeated_ids(_one_hot(labels, path, ["MEL", "SK", "NV"], problems), problems)
        splits.append(_challenge_split(folder, pictures, masks, labels, split, problems))
    return _build_table("isic2017", folder, pd.concat(splits), ["MEL", "SK", "NV"], problems)


def _ham_metadata(folder: Path) -> Path | None:
    return _csv(folder, "HAM10000_metadata")


def _read_ham10000(folder: Path) -> DatasetTable:
    problems: list[str] = []
    labels = _read_labels(_ham_metadata(folder), ["dx", "lesion_id"])
    labels = _drop_repeated_ids(labels.assign(diagnosis=labels["dx"].str.upper()), problems)
    pictures: dict[str, Path] = {}
    for inner in _folders(folder):
        if re.match(r"ham10000_images", inner.name, re.IGNORECASE):
            pictures = {**images_by_id(inner), **pictures}
    masks = images_by_id(_find(folder, "HAM10000_segmentations_lesion_tschandl"))
    rows = _join(pictures, labels, problems, None, mask_path=masks)
    return _build_table("ham10000", folder, rows, HAM_CLASSES, problems)


def _read_isic2018(folder: Path) -> DatasetTable:
    problems: list[str] = []
    splits = []
    for published, split in (("Training", "train"), ("Validation", "val"), ("Test", "test")):
        pictures = _find(folder, f"ISIC2018_Task3_{published}_Input")
        path = _csv(folder, f"ISIC2018_Task3_{published}_GroundTruth")
        if pictures is None and path is None:
            continue
        labels = (
            _drop_repeated_ids(_one_hot(_read_labels(path, HAM_CLASSES), path, HAM_CLASSES, problems), problems)
            if path
            else None
        )
        masks = _find(folder, "HAM10000_segmentations_lesion_tschandl")
        splits.append(_challenge_split(folder, pictures, masks, labels, split, problems))
    rows = _with_lesion_ids(pd.concat(splits), folder, problems)
    if len(splits) == 1:  # the training set alone has no official test split
        rows["split"] = pd.NA
    return _build_table("ham10000", folder, rows, HAM_CLASSES, problems)


def _with_lesion_ids(rows: pd.DataFrame, folder: Path, problems: list[str]) -> pd.DataFrame:
    """Lesion ids from HAM10000's metadata or the 2018 groupings, where one of them lies in the folder."""
    path = _ham_metadata(folder) or _csv(folder, "ISIC2018_Task3_Training_LesionGroupings")
    if path is None:
        problems.append(
            "no lesion ids, so photographs of one lesion can stand in several splits: put HAM10000_metadata.csv "
            "or ISIC2018_Task3_Training_LesionGroupings.csv into the folder"
        )
        return rows
    groups = _read_labels(path, ["lesion_id"]).drop_duplicates("image_id")
    return rows.assign(lesion_id=rows["image_id"].map(groups.set_index("image_id")["lesion_id"]))


def _course_csv(folder: Path, split: str) -> Path | None:
    """`Train_labels.csv`, beside the pictures or in folders called after a split, `Train/` for instance."""
    named = [f for f in _folders(folder) if _is_split_name(f)]
    for place in [folder, *named, *(f for outer in named for f in _folders(outer) if _is_split_name(f))]:
        if found := _find(place, rf"{split}_labels?\.csv"):
            return found
    return None


def _is_split_name(folder: Path) -> bool:
    return re.match("train|test", folder.name, re.IGNORECASE) is not None


def _course_files(folder: Path) -> dict[tuple[str, str], dict[str, Path]]:
    """Pictures by (split, kind) and id. The course's folders differ from year to year, so they are told apart by the
    words in their names."""
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for inner, _, _ in os.walk(folder):
        where = Path(inner).relative_to(folder).as_posix().lower()
        kind = "unpaired" if "unpaired" in where else "sketch" if re.search("sketch|contour", where) else "image"
        split = "test" if re.search("(^|[/_ -])test", where) else "train"
        files = {_DECORATION.sub("", path.stem): path for path in list_images(Path(inner))}
        found.setdefault((split, kind), {}).update(files)
    return found


def _read_course(folder: Path) -> DatasetTable:
    problems: list[str] = []
    found = _course_files(folder)
    splits, unpaired = [], []
    for split in ("train", "test"):
        pictures, sketches = found.get((split, "image"), {}), found.get((split, "sketch"), {})
        path, labels = _course_csv(folder, split), None
        if path:
            labels = _drop_repeated_ids(
                _one_hot(_read_labels(path, HAM_CLASSES), path, HAM_CLASSES, problems), problems
            )
        elif pictures:
            problems.append(f"the {split} labels are not in {folder.name}")
        if path or pictures:
            splits.append(_join(pictures, labels, problems, split, sketch_path=sketches))
        if split == "train":  # those of test lesions are not to be learnt from
            # A sketch that names no picture has no pair, whatever its folder is called.
            unpaired += [p for i, p in sketches.items() if i not in pictures]
            unpaired += found.get((split, "unpaired"), {}).values()
    rows = _with_lesion_ids(pd.concat(splits), folder, problems)
    if rows["image_id"].str.match(r"ISIC_00(2[4-9]|3[0-4])\d{3}$").mean() > 0.9:
        problems.insert(0, "these are HAM10000's pictures and seven labels (ISIC 2018 task 3), not ISIC 2016's")
    return _build_table("course", folder, rows, HAM_CLASSES, problems, sorted(unpaired))


# Folders of pictures whose names say what they are in another layout, not which diagnosis.
_NO_CLASS = re.compile(
    r"images?|masks?|sketch(es)?|contours?|.*_(input|data|groundtruth)|(train|test)[ab]", re.IGNORECASE
)


def _class_folders(folder: Path) -> list[tuple[str | None, Path]]:
    """(split, class folder) of a tree `<class>/` or `<split>/<class>/`."""
    inner = _folders(folder)
    splits = [(SPLIT_FOLDERS[f.name.lower()], f) for f in inner if f.name.lower() in SPLIT_FOLDERS]
    trees = splits or [(None, folder)]
    return [(split, c) for split, tree in trees for c in _folders(tree) if list_images(c)]


def _read_folders(folder: Path) -> DatasetTable:
    problems: list[str] = []
    rows = [
        {"image_id": path.stem, "diagnosis": c.name, "split": split or pd.NA, "path": path}
        for split, c in _class_folders(folder)
        for path in list_images(c)
    ]
    rows = pd.DataFrame(rows)
    strange = [name for name in rows["diagnosis"].unique() if _NO_CLASS.fullmatch(name)]
    if strange:
        raise DataError(f"{folder} has folders called {', '.join(strange)}, which are no classes of lesions")
    # One file name under two classes is two rows; the audit will say whether it is one picture.
    again = rows["image_id"].duplicated(keep=False)
    full = rows["path"].map(lambda p: p.relative_to(folder).as_posix().replace("/", "-"))
    rows["image_id"] = rows["image_id"].where(~again, full)
    _report(
        problems, "pictures share their name with another and are called by folder and name", rows["image_id"][again]
    )
    return _build_table("folders", folder, rows, sorted(rows["diagnosis"].unique()), problems)


LAYOUTS = [
    Layout(
        "phantoms", "phantoms.json, metadata.csv, images/, masks/",
        lambda f: (f / "phantoms.json").is_file(), _read_phantoms,
    ),
    Layout(
        "isic2016", "ISBI2016_ISIC_Part1_Training_Data/ or ISBI2016_ISIC_Part1_Test_Data/, Part3 label files",
        lambda f: _find(f, r"ISBI2016_ISIC_Part[13]B?_(Training|Test)_Data") is not None, _read_isic2016,
    ),
    Layout(
        "isic2017", "ISIC-2017_Training_Data/, ISIC-2017_Training_Part3_GroundTruth.csv, or validation, or test",
        lambda f: _find(f, r"ISIC-2017_(Training|Validation|Test(_v2)?)_Data") is not None, _read_isic2017,
    ),
    Layout(
        "ham10000", "HAM10000_metadata.csv and HAM10000_images_part_1/ (Dataverse, Kaggle)",
        lambda f: _ham_metadata(f) is not None and _find(f, r"HAM10000_images.*") is not None, _read_ham10000,
    ),
    Layout(
        "ham10000", "ISIC2018_Task3_Training_Input/ and ISIC2018_Task3_Training_GroundTruth.csv",
        lambda f: _find(f, r"ISIC2018_Task3_(Training|Validation|Test)_Input") is not None, _read_isic2018,
    ),
    Layout(
        "course", "Train_labels.csv with columns image,MEL,NV,BCC,AKIEC,BKL,DF,VASC, Train_data/, ..._sketch/Contours/",
        lambda f: _course_csv(f, "train") is not None, _read_course,
    ),
    Layout(
        "folders", "two or more <class>/ folders of pictures, alone or inside Train/, Val/, Test/",
        lambda f: len({c.name for _, c in _class_folders(f)}) > 1, _read_folders,
    ),
]  # fmt: skip
