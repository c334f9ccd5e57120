"""What files and images contain, whatever their names and dates are: hashes for store names and leak checks."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

# Ids of images and lesions in the ISIC Archive: the only names that mean the same in every data set.
ARCHIVE_ID = re.compile(r"(?:ISIC|HAM|IL)_\d{7}(?!\d)", re.IGNORECASE)


def file_hashes(paths: Sequence[str], index: Path, workers: int = 2) -> list[str]:
    """Hash of the bytes of every file, 32 hexadecimal digits, "" if it cannot be read.

    `index`: file that keeps the hashes, so that a file is read again only if its size, dates or inode changed.
    """
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}

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
        entries = dict(zip(paths, pool.map(entry, paths), strict=True))
    if entries != known:
        with suppress(OSError):  # without the index the files are read again
            index.parent.mkdir(parents=True, exist_ok=True)
            temporary = index.with_name(f"{index.name}.{os.getpid()}.part")
            temporary.write_text(json.dumps(entries), encoding="utf-8")
            os.replace(temporary, index)
    return [entries[path][-1] for path in paths]


def pixel_hash(image: np.ndarray) -> str:
    """Hash of the pixels of `image uint8 (H, W, 3)`, 16 hexadecimal digits: equal for copies of other names, dates,
    metadata or lossless formats."""
    digest = hashlib.blake2b(json.dumps(image.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def identities(table: pd.DataFrame) -> list[set[str]]:
    """Per row of a cleaned table, what tells its lesion from those of all data sets: the `pixel_hash` of every image of
    the lesion, and ids of the ISIC Archive, which also hold for copies of another size. Other ids do not: many data
    sets have an image 0001."""
    lesions = table["lesion_id"].fillna(table["image_id"])
    contents = lesions.map(table["content"].groupby(lesions).agg(set))
    archive_ids = (table["image_id"] + " " + lesions).map(lambda text: {i.upper() for i in ARCHIVE_ID.findall(text)})
    return [a | b for a, b in zip(contents, archive_ids, strict=True)]
