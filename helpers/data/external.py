"""Data sets of other clinics, as distributed -> `DatasetTable`: PH2, derm7pt and PAD-UFES-20.

They test what was trained on the sets of `layouts.py`; `diagnoses.py` says which of our classes their diagnoses are.
Links and licenses: data/README.md.
"""

import re
from pathlib import Path

import pandas as pd

from helpers.data.class_folders import files_by_id, subfolders, tree
from helpers.data.files import DataError, list_images
from helpers.data.labels import clean_name, find_entry, find_table, known_labels, one_hot_labels, read_table, read_text
from helpers.data.tables import DatasetTable, build_table, join
from helpers.data.xlsx import read_xlsx

PH2_CLASSES = ["common nevus", "atypical nevus", "melanoma"]  # in the order of their codes 0, 1, 2
DERM7PT_CLASSES = [
    "basal cell carcinoma", "blue nevus", "clark nevus", "combined nevus", "congenital nevus", "dermal nevus",
    "dermatofibroma", "lentigo", "melanoma", "melanoma (in situ)", "melanoma (less than 0.76 mm)",
    "melanoma (0.76 to 1.5 mm)", "melanoma (more than 1.5 mm)", "melanoma metastasis", "melanosis", "miscellaneous",
    "recurrent nevus", "reed or spitz nevus", "seborrheic keratosis", "vascular lesion",
]  # fmt: skip
PAD_UFES_20_CLASSES = ["ACK", "BCC", "MEL", "NEV", "SCC", "SEK"]

# --------------------------------------------------------------------------------------------------------------- PH2


def is_ph2(folder: Path) -> bool:
    """Whether the folder has cases of PH2, such as `PH2 Dataset images/IMD003/IMD003_Dermoscopic_Image/`."""
    return any(find_entry(case, f"{case.name}_Dermoscopic_Image") for case in _ph2_cases(folder))


def read_ph2(folder: Path) -> DatasetTable:
    """PH2 (Mendonca et al., doi:10.1109/EMBC.2013.6610779): 200 images with masks; the masks of colors (`IMD003_roi/`)
    are not read. Without a label file all labels are unknown."""
    problems: list[str] = []
    cases = _ph2_cases(folder)
    images, masks = _ph2_files(cases, "Dermoscopic_Image"), _ph2_files(cases, "lesion")
    text, workbook = find_entry(folder, r"PH2_dataset\.txt"), find_entry(folder, r"PH2_dataset\.xlsx")
    labels = None
    if text:
        labels = known_labels(_ph2_text(text), PH2_CLASSES, text, problems)
    elif workbook:
        labels = one_hot_labels(_ph2_workbook(workbook), PH2_CLASSES, workbook, problems)
    else:
        problems.append(f"the labels are not in {folder.name}: add PH2_dataset.txt or PH2_dataset.xlsx")
    rows = join(images, labels, problems, None, mask_path=masks)
    return build_table("ph2", folder, rows, PH2_CLASSES, problems)


def _ph2_cases(folder: Path) -> list[Path]:
    inner = find_entry(folder, r"PH2[ _-]?Dataset[ _-]?images") or folder
    return [case for case in subfolders(inner) if re.fullmatch(r"IMD\d+", case.name, re.IGNORECASE)]


def _ph2_files(cases: list[Path], kind: str) -> dict[str, Path]:
    """The first image in `IMD003_<kind>/` of every case that has one, by case."""
    folders = {case.name: find_entry(case, f"{case.name}_{kind}") for case in cases}
    files = {name: list_images(folder)[:1] for name, folder in folders.items() if folder}
    return {name: paths[0] for name, paths in files.items() if paths}


def _ph2_text(path: Path) -> pd.DataFrame:
    """`PH2_dataset.txt`: lines of cells between `||`, with a header and codes of diagnoses; legends follow."""
    try:
        lines = [line for line in read_text(path).splitlines() if line.lstrip().startswith("||")]
        header, *rows = [[cell.strip() for cell in line.split("||")] for line in lines]
        columns = [header.index("Name"), header.index("Clinical Diagnosis")]
        cells = [[row[column] for column in columns] for row in rows]
    except (OSError, ValueError, LookupError) as error:
        raise DataError(f"label file {path} cannot be read ({error}), expected columns Name and Clinical Diagnosis "
                        "between ||") from error  # fmt: skip
    table = pd.DataFrame(cells, columns=["image_id", "diagnosis"], dtype="string")
    codes = {str(code): name for code, name in enumerate(PH2_CLASSES)}
    return table.assign(diagnosis=table["diagnosis"].replace(codes))


def _ph2_workbook(path: Path) -> pd.DataFrame:
    """`PH2_dataset.xlsx`: below the legends a header with `Image Name` and a column per diagnosis with X."""
    rows, needed = read_xlsx(path), {"image name", *PH2_CLASSES}
    found = [k for k, row in enumerate(rows) if needed <= {text.casefold() for text in row.values()}]
    if not found:
        raise DataError(f"{path} has no row with the columns Image Name, {', '.join(PH2_CLASSES)}")
    columns = {column: text.casefold() for column, text in rows[found[0]].items() if text.casefold() in needed}
    table = pd.DataFrame(rows[found[0] + 1 :], dtype="string").reindex(columns=list(columns)).rename(columns=columns)
    return table.rename(columns={"image name": "image_id"}).dropna(subset="image_id")


# ----------------------------------------------------------------------------------------------------------- derm7pt


def is_derm7pt(folder: Path) -> bool:
    """Whether the folder has `images/` and `meta/meta.csv`."""
    return bool(find_entry(folder, "images") and _derm7pt_table(folder))


def _derm7pt_table(folder: Path) -> Path | None:
    meta = find_entry(folder, "meta")
    return find_table(meta, "meta") if meta and meta.is_dir() else None


def read_derm7pt(folder: Path) -> DatasetTable:
    """derm7pt (Kawahara et al., doi:10.1109/JBHI.2018.2824327): the dermoscopic image of 1,011 cases; clinical
    images are not read. Splits are the published ones, if their files are there."""
    problems: list[str] = []
    path = _derm7pt_table(folder)
    table = read_table(path, ["diagnosis", "derm"])  # the first column has the numbers of the cases
    files = _files_by_path(find_entry(folder, "images"))
    ids = table["derm"].fillna("case").str.replace(r"\.\w+$", "", regex=True).str.replace("/", "-").map(clean_name)
    repeated = ids.duplicated(keep=False)
    rows = table.assign(
        image_id=ids.where(~repeated, ids + "-" + table["image_id"]),
        path=table["derm"].map(lambda name: files.get(name) or files.get(name.casefold()), na_action="ignore"),
        split=_derm7pt_splits(path.parent, table.index),
    )
    rows = known_labels(rows, DERM7PT_CLASSES, path, problems)
    return build_table("derm7pt", folder, rows, DERM7PT_CLASSES, problems)


def _files_by_path(folder: Path) -> dict[str, Path]:
    """Images below `folder` by their path in it, as spelled and in lower case: some paths of the table differ from the
    files in case."""
    files = {p.relative_to(folder).as_posix(): p for inner in tree(folder) for p in list_images(inner)}
    return {name.casefold(): path for name, path in files.items()} | files


def _derm7pt_splits(meta: Path, rows: pd.Index) -> pd.Series:
    """The split of every row of the table, `<NA>` if it is in none of the files of row numbers."""
    splits = pd.Series(pd.NA, rows, dtype="string")
    for name, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        if path := find_table(meta, f"{name}_indexes"):
            numbers = pd.to_numeric(read_table(path, [], id_column="indexes")["image_id"], errors="coerce")
            splits[rows.isin(numbers)] = split
    return splits


# ------------------------------------------------------------------------------------------------------- PAD-UFES-20


def is_pad_ufes_20(folder: Path) -> bool:
    """Whether the folder has a `metadata.csv` with the columns `img_id` and `diagnostic`."""
    path = find_table(folder, "metadata")
    if path is None or not path.is_file():
        return False
    with path.open("rb") as file:
        header = file.readline(1_000)
    return b"img_id" in header and b"diagnostic" in header


def read_pad_ufes_20(folder: Path) -> DatasetTable:
    """PAD-UFES-20 (Pacheco et al., arXiv 2007.00478): 2,298 images taken by phones, in `images/` or
    `imgs_part_1/` and others."""
    problems = ["phone images, not dermoscopic ones: unlike what networks for dermoscopy were trained on"]
    path = find_table(folder, "metadata")
    table = read_table(path, ["img_id", "diagnostic"], id_column="img_id")
    labels = known_labels(table.assign(diagnosis=table["diagnostic"]), PAD_UFES_20_CLASSES, path, problems)
    if {"patient_id", "lesion_id"} <= set(labels):
        labels["lesion_id"] = labels["patient_id"] + "-" + labels["lesion_id"]
    images = files_by_id([p for inner in tree(folder) for p in list_images(inner)], problems)
    return build_table("pad_ufes_20", folder, join(images, labels, problems, None), PAD_UFES_20_CLASSES, problems)
