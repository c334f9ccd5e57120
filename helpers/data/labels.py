"""Label tables of published data sets -> one table with `image_id` and `diagnosis`, and image ids without additions."""

import gzip
import os
import re
import unicodedata
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from io import StringIO
from pathlib import Path

import pandas as pd

from helpers.data.diagnoses import SPELLINGS
from helpers.data.files import IMAGE_SUFFIXES, DataError

HAM_CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
ISIC2016_CLASSES = ["benign", "malignant"]
ISIC2017_CLASSES = ["MEL", "SK", "NV"]
MAX_BYTES = 10_000_000  # of a label file, unpacked; HAM10000's has 600,000
MAX_COLUMNS = 1_000

_BINARY_WORDS = {"true": "1", "yes": "1", "x": "1", "false": "0", "no": "0"}

# Publishers' additions to an image id: sketch_ISIC_1.png, ISIC_1_segmentation.png, ISIC_1_downsampled.jpg.
_DECORATION = re.compile(r"^(sketch|contour)_|_(segmentation|mask|sketch|contours?|downsampled)$", re.IGNORECASE)
_TABLE_ENDING = r"( ?\(\d+\))?\.(csv|tab|txt)(\.gz)?"  # "labels (1).csv" is a repeated download
_MISSING = ["NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "NULL", "null", "None"]  # as pandas reads them
_ENDING = re.compile(rf"({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})$", re.IGNORECASE)


def id_from_stem(stem: str) -> str:
    """The image id in a file name without ending, see `clean_name`; ids of the ISIC Archive are upper case."""
    stem = _DECORATION.sub("", clean_name(stem))
    return stem.upper() if re.fullmatch(r"isic_\d{7}", stem) else stem


def clean_name(name: str) -> str:
    """The name of a file or folder in Unicode form NFC, because macOS stores names decomposed, with _ for every byte
    that is not UTF-8, because neither tables nor file names of other systems can hold it."""
    return re.sub("[\ud800-\udfff]", "_", unicodedata.normalize("NFC", name))


def clean_id(text: str) -> str:
    """The image id in a cell of a table: without spaces, file ending and what publishers put around ids."""
    return id_from_stem(_ENDING.sub("", text.strip()))


def find_entry(folder: Path, *patterns: str) -> Path | None:
    """The first entry of `folder` whose name matches a pattern completely, ignoring case; earlier patterns first."""
    names = sorted(os.listdir(folder))
    for pattern in patterns:
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return folder / name
    return None


def find_table(folder: Path, pattern: str) -> Path | None:
    """A table named `pattern`, directly in `folder` or in a folder of the same name (as the 2018 archives unpack)."""
    path = find_entry(folder, pattern + r"\.(csv|tab|txt)", pattern + _TABLE_ENDING, pattern)
    return find_entry(path, pattern + _TABLE_ENDING) if path and path.is_dir() else path


def read_labels(path: str | Path, classes: list[str], problems: list[str]) -> dict[str, str]:
    """Read a label file with columns `image_id,label` or one-hot columns -> the class name of every id.

    Ids with no single known label go to `problems`. Raises `DataError` if the file cannot be used.
    """
    path = Path(path)
    table = read_table(path, [])
    if "label" in table:
        table["diagnosis"] = table["label"]
    elif hot := [c for c in classes if c in table]:
        table = _one_hot(table, _binary(table, hot, path), path, problems)
    else:
        raise DataError(
            f"label file {path} has neither a column 'label' nor one named after a class ({' '.join(classes)})"
        )
    table["image_id"] = table["image_id"].map(id_from_stem)
    table = known_labels(table.dropna(subset="diagnosis"), classes, path, problems).dropna(subset="diagnosis")
    return dict(table[["image_id", "diagnosis"]].itertuples(index=False))


def read_isic2016_labels(path: Path, problems: list[str]) -> pd.DataFrame:
    """Label file of ISIC 2016 without header -> `image_id`, `diagnosis` (`ISIC2016_CLASSES`)."""
    labels = read_table(path, ["image_id", "diagnosis"], header=False)
    # The training file has benign/malignant, the test file 0/1 or 0.0/1.0.
    names = _to_numbers(labels["diagnosis"]).map(dict(enumerate(ISIC2016_CLASSES)))
    labels["diagnosis"] = names.fillna(labels["diagnosis"])
    return known_labels(labels, ISIC2016_CLASSES, path, problems)


def read_isic2017_labels(path: Path, problems: list[str]) -> pd.DataFrame:
    """Label file of ISIC 2017 with two binary columns -> `image_id`, `diagnosis` (`ISIC2017_CLASSES`)."""
    labels = read_table(path, ["melanoma", "seborrheic_keratosis"])
    binary = _binary(labels, ["melanoma", "seborrheic_keratosis"], path).set_axis(["MEL", "SK"], axis=1)
    nevus = (binary.sum(axis=1, skipna=False) == 0).astype(float)  # a lesion that is neither is a benign nevus
    return drop_repeated_ids(_one_hot(labels, binary.assign(NV=nevus), path, problems), problems)


def read_ham10000_metadata(path: Path, problems: list[str]) -> pd.DataFrame:
    """Metadata of HAM10000 with the columns `dx` and `lesion_id` -> also `diagnosis` (`HAM_CLASSES`)."""
    labels = read_table(path, ["dx", "lesion_id"])
    return known_labels(labels.assign(diagnosis=labels["dx"]), HAM_CLASSES, path, problems)


def read_isic2018_labels(path: Path, problems: list[str]) -> pd.DataFrame:
    """One-hot label file with the columns `HAM_CLASSES` -> `image_id`, `diagnosis`."""
    return one_hot_labels(read_table(path, HAM_CLASSES), HAM_CLASSES, path, problems)


def one_hot_labels(table: pd.DataFrame, classes: list[str], path: Path, problems: list[str]) -> pd.DataFrame:
    """A table of the file `path` with the columns `image_id` and `classes` -> also `diagnosis`, each id once. Raises
    `DataError` for cells that are neither 0 nor 1 (True, False, x or empty)."""
    return drop_repeated_ids(_one_hot(table, _binary(table, classes, path), path, problems), problems)


def read_table(path: Path, needs: list[str], header: bool = True, id_column: str = "image_id") -> pd.DataFrame:
    """Read a label file as strings, with at least the columns `needs`; a file without header has exactly these.

    Column names and cells are cleaned, see `clean_text`. Ids are in `id_column`, else `image_id`, `image` or the first
    column, which becomes `image_id`; their file endings are removed. Raises `DataError` if the file cannot be read or
    lacks a column.
    """
    kwargs = {"header": "infer"} if header else {"header": None, "names": needs}
    try:
        text = read_text(Path(path))
        sep = find_separator(text.lstrip().partition("\n")[0])
        table = pd.read_csv(StringIO(text), dtype=str, sep=sep, keep_default_na=False, **kwargs)
        if not isinstance(table.index, pd.RangeIndex):  # pandas would take the first cells for row names
            raise ValueError(f"its lines have more cells than the {len(table.columns)} columns")
    except (OSError, EOFError, zlib.error, ValueError) as error:  # EOFError: a truncated .gz
        raise DataError(f"label file {path} cannot be read ({error}): save it as CSV in UTF-8") from error
    table = table.rename(columns=str).rename(columns=str.strip)
    table = table.loc[:, ~table.columns.duplicated()].apply(clean_text)
    absent = [column for column in needs if column not in table]
    if absent:
        raise DataError(f"label file {path} has no column {', '.join(absent)}, got {', '.join(map(str, table))}")
    ids = next((name for name in (id_column, "image_id", "image") if name in table), table.columns[0])
    table = table.rename(columns={ids: "image_id"})
    table["image_id"] = table["image_id"].str.replace(_ENDING, "", regex=True)
    table = table.dropna(subset="image_id")
    others = table.columns.drop("image_id")  # "NA" is a possible image id
    return table.assign(**{c: table[c].mask(table[c].isin(_MISSING)) for c in others})


def read_text(path: Path) -> str:
    """Content of a text file in UTF-8 or UTF-16, which may be packed (.gz). Raises `ValueError` for another encoding
    and for over `MAX_BYTES`."""
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"over {MAX_BYTES:,} bytes")
    # Excel writes a byte order mark, and its "Unicode text" is UTF-16.
    text = content.decode("utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def find_separator(line: str) -> str:
    """The separator of columns in the first line of a table: semicolon, tab, bar or comma, else spaces. Raises
    `ValueError` for over `MAX_COLUMNS` columns."""
    separator = max(";\t|,", key=line.count)  # of equally many the first: commas may be decimal
    if max(line.count(separator), len(line.split())) > MAX_COLUMNS:
        raise ValueError(f"over {MAX_COLUMNS:,} columns")
    return separator if separator in line else r"\s+"


def clean_text(column: pd.Series) -> pd.Series:
    """Cells of a table without surrounding blanks, in Unicode form NFC; empty cells become `<NA>`."""
    column = column.astype("string").str.normalize("NFC").str.strip()
    return column.mask(column == "")


def _to_numbers(column: pd.Series) -> pd.Series:
    """Cells as numbers: words of `_BINARY_WORDS` and decimal commas are read, anything else is NaN."""
    text = column.str.casefold().str.replace(",", ".").replace(_BINARY_WORDS)
    return pd.to_numeric(text.astype(object), errors="coerce")


def _binary(table: pd.DataFrame, columns: list[str], path: Path) -> pd.DataFrame:
    """Columns of 0 and 1 as numbers, NaN for empty cells. Raises `DataError` for any other content."""
    numbers = table[columns].apply(_to_numbers)
    wrong = (table[columns].notna() & ~((numbers >= 0) & (numbers <= 1))).stack()
    if wrong.any():
        row, column = wrong.idxmax()
        raise DataError(
            f"label file {path}: {wrong.sum()} cells are neither 0 nor 1 (True, False, x or empty), "
            f"the first is {table.loc[row, column]!r} in column {column} of {table.loc[row, 'image_id']}"
        )
    return numbers


def _one_hot(table: pd.DataFrame, binary: pd.DataFrame, path: Path, problems: list[str]) -> pd.DataFrame:
    """Columns of 0 and 1, named after classes -> column `diagnosis`; rows with none or several ones get `<NA>` and are
    reported."""
    hot = binary > 0.5
    table["diagnosis"] = hot.idxmax(axis=1).astype("string").where(hot.sum(axis=1) == 1)
    report_ids(problems, "have no single label in " + path.name, table["image_id"][table["diagnosis"].isna()])
    return table


def known_labels(labels: pd.DataFrame, classes: list[str], path: Path, problems: list[str]) -> pd.DataFrame:
    """Column `diagnosis` as names of `classes`, each id once; unknown names become `<NA>` and are reported."""
    spellings = {name: c for c in classes for name in [c.casefold(), *SPELLINGS.get(c, [])]}
    text = labels["diagnosis"].str.casefold().str.replace(r"[\s_-]+", " ", regex=True)
    names = text.map(spellings).astype("string")
    unknown = labels[names.isna() & labels["diagnosis"].notna()]
    cells = ", ".join(map(repr, unknown["diagnosis"].unique()[:3]))
    text = f"have an unknown label in {path.name} ({cells}), expected {' '.join(classes)}"
    report_ids(problems, text, unknown["image_id"])
    return drop_repeated_ids(labels.assign(diagnosis=names), problems)


def drop_repeated_ids(table: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Keep each id once. Repeated ids with one diagnosis are reported; with several, `DataError` is raised."""
    ids = table["image_id"]
    report_ids(problems, "are listed in the label file more than once", ids[ids.duplicated()])
    table = table.drop_duplicates(["image_id", "diagnosis"])
    conflicting = table["image_id"][table["image_id"].duplicated()]
    if len(conflicting):
        text = "are listed in the label file under different labels; keep one row for each id"
        raise DataError(f"{_format_ids(conflicting)} {text}")
    return table


def _format_ids(ids: pd.Series | list) -> str:
    """Number of different ids and the first five."""
    ids = list(dict.fromkeys(ids))
    return f"{len(ids)} ({', '.join(map(str, ids[:5]))}{', ...' if len(ids) > 5 else ''})"


def report_ids(problems: list[str], text: str, ids: pd.Series | list) -> None:
    """Add "<number> (<ids>) <text>" to `problems` if there are ids."""
    if len(ids):
        problems.append(f"{_format_ids(ids)} {text}")
