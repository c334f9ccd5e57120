"""`DatasetTable`: a data set as a table with one row per image, and how readers of folders build it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from helpers.config import display_path
from helpers.data.files import DataError, atomic_file
from helpers.data.labels import find_separator, report_ids

COLUMNS = ["image_id", "path", "mask_path", "sketch_path", "label", "lesion_id", "split", "source", "artifacts"]
IDS = dict.fromkeys(["image_id", "lesion_id", "group"], "string")
HAM10000_LICENSE = "CC BY-NC 4.0 (HAM10000: Tschandl, Rosendahl, Kittler, Scientific Data 2018)"
# Of the data sets to train on, by name; data/README.md has those of all.
LICENSES = {"phantoms": "MIT", "isic2016": "CC-0 (ISIC 2016)", "isic2017": "CC-0 (ISIC 2017)",
            "ham10000": HAM10000_LICENSE, "course": HAM10000_LICENSE}  # fmt: skip
MISSING_LIMIT = 0.2  # largest fraction of files or labels that may be missing or unreadable


def read_own_table(path: str | Path, dtype: str | dict[str, str] = IDS) -> pd.DataFrame:
    """A CSV file that this program wrote. Only empty cells are missing: "NA", "null", "007" and "1e5" are ids.

    Raises `DataError` if the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            find_separator(file.readline())
            file.seek(0)
            return pd.read_csv(file, dtype=dtype, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(f"{display_path(path)} cannot be read as CSV ({error})"[:300]) from error


def write_csv(table: pd.DataFrame, file: Path, **options) -> None:
    """Write a table by `atomic_file`; `options` are pandas'."""
    with atomic_file(file) as temporary:
        table.to_csv(temporary, **options)


@dataclass
class DatasetTable:
    """A data set as a table with one row per image; unknown values are `<NA>`.

    `table`: columns `COLUMNS`; `label` is an index into `classes`; `artifacts` has names of `ARTIFACTS` separated by
    spaces, "" for none. `problems`: what was missing, unreadable or doubtful, one sentence each.
    """

    name: str
    root: Path
    table: pd.DataFrame
    classes: list[str]
    problems: list[str] = field(default_factory=list)
    unpaired_sketches: list[Path] = field(default_factory=list)

    def subset(self, classes: list[str]) -> "DatasetTable":
        """The images of the given classes, with labels renumbered in that order.

        Raises `DataError` for unknown or repeated classes, or if no image is left.
        """
        if unknown := [c for c in classes if c not in self.classes]:
            raise DataError(f"{self.name} has the classes {', '.join(self.classes)}, not {', '.join(unknown)}")
        if len(set(classes)) < len(classes):
            raise DataError(f"classes must be different, got {', '.join(classes)}")
        names = self.class_names()
        keep = names.isin(classes)
        if not keep.any():
            raise DataError(f"no image of {self.name} is labeled {' or '.join(classes)}; choose other classes")
        labels = names[keep].map({c: i for i, c in enumerate(classes)}).astype("Int64")
        table = self.table[keep].assign(label=labels).reset_index(drop=True)
        return replace(self, table=table, classes=list(classes))

    @property
    def has_contours(self) -> bool:
        """Whether contour sketches are available, from masks or as files of the data set."""
        return bool(self.table[["mask_path", "sketch_path"]].notna().any(axis=None))

    @property
    def has_masks(self) -> bool:
        """Whether at least one image has a mask."""
        return bool(self.table["mask_path"].notna().any())

    @property
    def style(self) -> str:
        """The sketch style that is used where none is given: "contour" if available, else "structure"."""
        return "contour" if self.has_contours else "structure"

    def class_names(self) -> pd.Series:
        """The class name of every row, `<NA>` if the label is unknown."""
        return self.table["label"].map(dict(enumerate(self.classes))).astype("string")

    def counts(self) -> pd.DataFrame:
        """Number of images per class (rows) and split (columns), with totals "all" (the last row is "total" if a class
        is called "all")."""
        split = self.table["split"].fillna("no split")
        names = self.class_names().fillna("no label")
        order = [c for c in [*self.classes, "no label"] if c in set(names)]
        columns = [s for s in ["train", "val", "test", "no split"] if s in set(split)]
        counts = pd.crosstab(names, split).reindex(index=order, columns=columns, fill_value=0)
        counts.index.name = counts.columns.name = None
        counts["all"] = counts.sum(axis=1)
        counts.loc["total" if "all" in self.classes else "all"] = counts.sum(axis=0)
        return counts

    def __repr__(self) -> str:
        classes = " ".join(self.classes)
        root = display_path(self.root)
        return f"DatasetTable({self.name}: {len(self.table)} images, classes {classes}, from {root})"


def build_table(
    name: str, root: Path, rows: pd.DataFrame, classes: list[str], problems: list[str], unpaired: list[Path] = ()
) -> DatasetTable:
    """Rows with columns `image_id diagnosis split path ...` -> `DatasetTable` with all columns and their types.

    Rows without an image file are removed. Raises `DataError` if they are more than `MISSING_LIMIT`.
    """
    rows = rows.reindex(columns=[*rows.columns, *(c for c in COLUMNS if c not in rows)])
    exists = rows["path"].notna()
    report_ids(problems, "are listed in the label file but have no image file", rows["image_id"][~exists])
    if len(rows) == 0 or (~exists).mean() > MISSING_LIMIT:
        raise DataError(
            f"{root}: {int((~exists).sum())} of {len(rows)} {name} images are missing, "
            f"at most {100 * MISSING_LIMIT:.0f} % may be{_example(rows['image_id'][~exists], root)}; "
            "add them and run the command again"
        )
    rows = rows[exists].reset_index(drop=True)
    repeated = rows["image_id"].duplicated(keep=False) & rows["split"].notna()
    report_ids(problems, "are ids in several splits; the split is added to the id", rows["image_id"][repeated])
    rows["image_id"] = rows["image_id"].mask(repeated, rows["split"] + "-" + rows["image_id"])
    rows["label"] = rows["diagnosis"].map({c: i for i, c in enumerate(classes)}).astype("Int64")
    report_ids(problems, "have no label", rows["image_id"][rows["label"].isna()])
    rows["source"] = rows["source"].astype("string").fillna(name)
    for column in COLUMNS:
        if column != "label":
            rows[column] = rows[column].astype("string")
    _report_absent_classes(rows, classes, problems)
    _report_masks(rows, problems)
    return DatasetTable(name, root, rows[COLUMNS], classes, problems, list(unpaired))


def _example(missing: pd.Series, root: Path) -> str:
    """One of the `missing` ids, and an archive below `root` that it may be in."""
    archives = sorted(path for path in root.rglob("*.zip") if path.is_file())
    unpack = f"; unpack {archives[0].relative_to(root)} first" if archives else ""
    return (f", for example {missing.iloc[0]}" if len(missing) else "") + unpack


def _report_absent_classes(rows: pd.DataFrame, classes: list[str], problems: list[str]) -> None:
    """Report classes that occur in only one of "train" and "test"; without both splits there is nothing to compare."""
    present = rows.dropna(subset="label").groupby("split")["label"].unique().map(set)
    for split, other in (("train", "test"), ("test", "train")):
        if {split, other} <= set(present.index) and (absent := present[other] - present[split]):
            names = ", ".join(classes[k] for k in sorted(absent))
            problems.append(f"no {split} images of {names}, which has {other} images")


def _report_masks(rows: pd.DataFrame, problems: list[str]) -> None:
    no_mask = rows["mask_path"].isna()
    if no_mask.all():
        problems.append("no masks: contour sketches and segmentation need them, structure sketches do not")
    else:
        report_ids(problems, "have no mask", rows["image_id"][no_mask])


def _without_image(labels: pd.DataFrame, images: dict[str, Path]) -> str:
    """An id of a label file without an image, if there is one: its spelling shows why the ids do not match."""
    ids = sorted(set(labels["image_id"]) - set(images))
    return f"; the label file has {ids[0]!r}, which has no image" if ids else ""


def join(
    images: dict[str, Path], labels: pd.DataFrame | None, problems: list[str], split: str | None, **files: dict
) -> pd.DataFrame:
    """Join images, labels and other files (`mask_path=`, `sketch_path=`) by id: one row per id of image or label.

    Raises `DataError` if there are labels, but none for more than `MISSING_LIMIT` of the images.
    """
    has_labels = labels is not None
    labels = pd.DataFrame({"image_id": sorted(images), "diagnosis": pd.NA}) if labels is None else labels
    unlabeled = sorted(set(images) - set(labels["image_id"]))
    report_ids(problems, "are in the image folder but not in the label file", unlabeled)
    rows = pd.concat([labels, pd.DataFrame({"image_id": unlabeled})], ignore_index=True)
    no_label = set(images) & set(rows["image_id"][rows["diagnosis"].isna()])
    if has_labels and len(no_label) > MISSING_LIMIT * len(images):
        raise DataError(
            f"{len(no_label)} of {len(images)} images have no label that can be read, at most "
            f"{100 * MISSING_LIMIT:.0f} % may: {'; '.join(problems[-2:])}{_without_image(labels, images)}"
        )
    rows = rows.assign(split=split or pd.NA, path=rows["image_id"].map(images))
    rows = rows.assign(**{column: rows["image_id"].map(by_id) for column, by_id in files.items()})
    return rows.astype("string")  # an empty column would otherwise change the type of those concatenated to it
