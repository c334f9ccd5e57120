"""The cells of an Excel workbook, by the standard library: a workbook is a zip of XML files."""

import re
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

from helpers.data.files import DataError
from helpers.data.labels import MAX_BYTES


def read_xlsx(path: str | Path) -> list[dict[str, str]]:
    """Rows of the first sheet: the text of every cell that has some, by the letters of its column.

    Raises `DataError` if the file is no workbook, is damaged or protected, or has over `MAX_BYTES` in a sheet.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            strings = _parse(archive, "xl/sharedStrings.xml") if "xl/sharedStrings.xml" in names else []
            shared = [_text(item) for item in strings]
            sheet = _parse(archive, min(name for name in names if re.fullmatch(r"xl/worksheets/\w+\.xml", name)))
            return [_cells(row, shared) for row in sheet.findall(".//{*}row")]
    except (OSError, zipfile.BadZipFile, zlib.error, ElementTree.ParseError, LookupError, ValueError, EOFError,
            RuntimeError) as error:  # fmt: skip
        raise DataError(f"{path} cannot be read as an Excel workbook ({error})"[:300]) from error


def _parse(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    """The XML of one file. Raises `ValueError` for a large file and for entities, which may expand to a larger one."""
    with archive.open(name) as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES or b"<!DOCTYPE" in content:
        raise ValueError(f"{name} has over {MAX_BYTES:,} bytes or a document type")
    return ElementTree.fromstring(content)


def _cells(row: ElementTree.Element, shared: list[str]) -> dict[str, str]:
    """Text by column of a row; text of type "s" is a number in the list of `shared` strings."""
    cells = {}
    for cell in row.findall("{*}c"):
        value = cell.find("{*}v")
        text = _text(cell) if value is None else value.text or ""
        text = shared[int(text)] if cell.get("t") == "s" else text
        if text.strip():
            cells[re.sub(r"\d", "", cell.get("r", ""))] = text.strip()
    return cells


def _text(element: ElementTree.Element) -> str:
    """All text in an element: formatted text has several parts."""
    return "".join(part.text or "" for part in element.findall(".//{*}t"))
