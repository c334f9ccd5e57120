"""What files and images contain, whatever their names and dates are: hashes for store names and leak checks."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.files import atomic_file

# Ids of images and lesions in the ISIC Archive: the only names that mean the same in every data set.
ARCHIVE_ID = re.compile(r"(?:ISIC|HAM|IL)_\d{7}(?!\d)", re.IGNORECASE)


def file_hashes(paths: Iterable[str], known: dict[str, list] | None = None, workers: int = 2) -> dict[str, list]:
    """Size, dates, inode and hash of every file: the last entry of each list has 32 hexadecimal digits, "" if the file
    cannot be read. A file whose other entries are the `known` ones is not read again."""
    known = known or {}

    def entry(path: str) -> list:
        try:
            stat = os.stat(path)
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            if known.get(path, [])[:-1] == state:
                return known[path]
            return [*state, hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()]
        except OSError:
            return [""]

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(paths, pool.map(entry, paths), strict=True))


def read_hashes(files: Iterable[Path]) -> dict[str, list]:
    """The `file_hashes` in JSON files; unreadable ones are left out, because files can be read again."""
    known = {}
    for file in files:
        with suppress(OSError, ValueError, TypeError):
            known |= json.loads(file.read_text(encoding="utf-8"))
    return known


def write_hashes(hashes: dict[str, list], file: Path) -> None:
    """Write `file_hashes` as JSON if they changed; without them, files are read again."""
    if hashes != read_hashes([file]):
        with suppress(OSError), atomic_file(file) as temporary:
            temporary.write_text(json.dumps(hashes), encoding="utf-8")


def pixel_hash(image: np.ndarray) -> str:
    """Hash of the pixels of `image uint8 (H, W, 3)`, 16 hexadecimal digits: equal for copies of other names, dates,
    metadata or lossless formats."""
    digest = hashlib.blake2b(json.dumps(image.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def identities(table: pd.DataFrame) -> list[set[str]]:
    """Per row of a cleaned table, what distinguishes its lesion from those of all data sets: the `pixel_hash` of
    every image of the lesion, and ids of the ISIC Archive, which also hold for copies of another size. Other ids do
    not: many data sets have an image 0001."""
    lesions = table["lesion_id"].fillna(table["image_id"])
    contents = lesions.map(table["content"].groupby(lesions).agg(set))
    archive_ids = (table["image_id"] + " " + lesions).map(lambda text: {i.upper() for i in ARCHIVE_ID.findall(text)})
    return [a | b for a, b in zip(contents, archive_ids, strict=True)]
