"""Data set table -> memory-mapped arrays on disk (the store); training batches are made in `batches.py`.

A store is a folder with `images.npy (N, H, W, 3)`, `masks.npy` and `sketches.npy (N, H, W)`, small arrays `(N,)`
(`labels.npy`, ...), `table.csv`, `config.json` and `files.json` (hashes of the files it was made from); row i of each
array belongs to the same image. Arrays are mapped, not loaded, so memory does not grow with N.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from helpers.data.audit import Report, audit, clean
from helpers.data.content import file_hashes, identities, pixel_hash, read_hashes, write_hashes
from helpers.data.files import DataError, atomic_folder, center_crop, image_shape, read_image, read_mask
from helpers.data.layouts import ARTIFACTS, DatasetTable
from helpers.data.sketches import INK_THRESHOLD, STYLES, extract_lines, sketch
from helpers.data.tables import read_own_table

BATCH = ("images", "masks", "sketches", "labels", "artifacts")
ARRAYS = (*BATCH, "splits", "has_mask", "has_sketch", "artifacts_known")
UNKNOWN = 255  # flag value: neither annotated nor predicted
SPLITS = ["train", "val", "test"]
VERSION = 6  # raise it when the same data and config give a different store
CHUNK = 256  # images in memory while writing
PATHS = ["path", "mask_path", "sketch_path"]


@dataclass(frozen=True)
class StoreConfig:
    """How images are stored. Raises `ValueError` for a value that is not allowed."""

    size: int = 128  # side of the stored images in pixels, 16 to 1024
    style: str = "contour"  # sketch style, "contour" or "structure", see `sketches`
    crop: str = "center"  # "center": central square (generation, classification); "none": image squeezed to a square
    seed: int = 0  # of the split, for data sets without an official one

    def __post_init__(self):
        if not 16 <= self.size <= 1024:
            raise ValueError(f"size must be 16 to 1024 pixels, got {self.size}")
        if self.style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {self.style!r}")
        if self.crop not in ("center", "none"):
            raise ValueError(f"crop must be one of center, none, got {self.crop!r}")


class Store:
    """An opened store.

    `images uint8 (N, H, W, 3)`, `masks uint8 (N, H, W)` in {0, 1}, `sketches uint8 (N, H, W)` in {0, 255}: mapped from
    disk, read only. `labels int16 (N,)` is -1 where the label is unknown, `splits int8 (N,)` indexes `SPLITS`. Images
    without mask or sketch have zeros there and False in `has_mask`, `has_sketch` `bool (N,)`. `artifacts uint8 (N, 7)`
    are flags in the order of `ARTIFACTS`, 0 or 1, or all `UNKNOWN`, in memory. `artifacts_known bool (N,)`: the flags
    came with the data set; else they are a detector's, see `models/artifacts.py`. `fingerprint` is a hash of all arrays
    as they were written: equal for the same data, config and splits, wherever they are.
    """

    def __init__(self, folder: str | Path):
        """Open `folder`. Raises `DataError` if it is not a store or is damaged."""
        self.folder = Path(folder)
        path = self.folder / "config.json"
        if not path.is_file():
            raise DataError(f"{self.folder} is not a store: expected a config.json in it")
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            arrays = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
            complete = {len(array) for array in arrays.values()} == {metadata["rows"]}
            self.fingerprint = metadata["fingerprint"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"the store {self.folder} is damaged ({error}): delete it, it will be written again"
            ) from error
        if not complete:
            raise DataError(
                f"the store {self.folder} is damaged (expected {metadata['rows']} rows in every array): delete it, it "
                "will be written again"
            )
        self.name, self.classes, self.problems = metadata["name"], metadata["classes"], metadata["problems"]
        self.config = StoreConfig(**metadata["config"])
        for name, array in arrays.items():
            setattr(self, name, array)
        self.artifacts = np.array(self.artifacts)  # not mapped: the file is replaced when a detector fills it

    @cached_property
    def table(self) -> pd.DataFrame:
        """The data set's table, one row per image; read on first access."""
        table = read_own_table(self.folder / "table.csv", "string")
        # The CSV cannot distinguish "none" from unknown. Predicted flags are left out: they depend on size and crop.
        flags = np.where(self.artifacts_known[:, None], self.artifacts, UNKNOWN)
        artifacts = pd.array(flags_to_names(flags), "string")
        return table.assign(label=table["label"].astype("Int64"), artifacts=artifacts)

    @cached_property
    def identities(self) -> list[set[str]]:
        """Per row, what tells its lesion from those of all data sets, see `content.identities`."""
        return identities(self.table)

    @property
    def lesions(self) -> np.ndarray:
        """Per row the lesion's id, or the image's where that is not known, `(N,)`."""
        return self.table["lesion_id"].fillna(self.table["image_id"]).to_numpy(str)

    def rows_in(self, others: Iterable[str], rows: np.ndarray | None = None) -> np.ndarray:
        """Those of `rows (M,)`, default all, whose lesion is among the identities `others`."""
        others, rows = set(others), range(len(self)) if rows is None else rows
        return np.array([row for row in rows if self.identities[row] & others], int)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {len(self.rows(split)):,}" for split in SPLITS)
        return f"Store({self.name}: {len(self):,} images at {self.config.size} px, {counts})"

    def rows(self, split: str | None = None, needs: Iterable[str] = (), classes: list[str] | None = None) -> np.ndarray:
        """Row numbers `(M,)`, ascending, of images of a split and of these `classes` (None: all) that have everything
        in `needs`: any of "label", "mask", "sketch"."""
        keep = np.ones(len(self), bool)
        if split is not None:
            keep &= self.splits == SPLITS.index(split)
        for need in needs:
            keep &= (self.labels >= 0) if need == "label" else getattr(self, f"has_{need}")
        if classes is not None:
            keep &= np.isin(self.labels, [self.classes.index(c) for c in classes])
        return np.flatnonzero(keep)

    def batch(self, rows: np.ndarray, arrays: Iterable[str] = BATCH) -> dict[str, np.ndarray]:
        """Copies of the named `arrays` at these rows, and the `rows` themselves."""
        return {**{name: np.asarray(getattr(self, name))[rows] for name in arrays}, "rows": rows}

    def batches(
        self, rows: np.ndarray, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """One epoch: each row once, in the given order or shuffled by `rng`; the last batch may be smaller."""
        rows = rows if rng is None else rng.permutation(rows)
        return (self.batch(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size))


def fit_config(config: Any, store: Store, check_style: bool = True) -> Any:
    """A method's `config`, with the classes and the sketch style of the store if it has none.

    Raises `ValueError` if its size, classes or sketch style are not the store's; the style "none" fits every store.
    """
    has = {"size": store.config.size, "style": store.config.style, "classes": tuple(store.classes)}
    unset = [name for name, value in (("classes", ()), ("style", None)) if getattr(config, name, "") == value]
    config = replace(config, **{name: has[name] for name in unset})
    given = {name: getattr(config, name) for name in has if hasattr(config, name)}
    if not check_style or given.get("style") == "none":
        given.pop("style", None)
    if differing := [f"{name} {has[name]!r}, the config {v!r}" for name, v in given.items() if v != has[name]]:
        raise ValueError(f"the store has {'; '.join(differing)}")
    return config


# ---------------------------------------------------------------------------------------------------------- writing


def prepare(
    dataset: DatasetTable,
    stores: str | Path,
    config: StoreConfig = StoreConfig(),
    report: Report | None = None,
    workers: int = 2,
    progress: bool = True,
    classes: Sequence[str] = (),
) -> Store:
    """Open the store of a data set in the folder `stores`; if there is none, audit (unless a `report` is given), clean,
    split and write the data set first.

    `classes`: only images of these, labeled in this order; every image has the split that it has in the whole data set,
    so that networks trained on all classes are tested on nothing they saw. The store's name contains the config and a
    hash of the data, so changed data get a new store and a copy of the data the same one. A store of the same data with
    another config supplies the cleaned table, which saves the audit. Raises `DataError` for unusable data, and for
    classes that it does not have.
    """
    classes = () if list(classes) == dataset.classes else tuple(classes)
    if classes:
        dataset.subset(classes)  # unknown classes raise before the audit
    paths = dataset.table[PATHS].melt()["value"].dropna()
    hashes = file_hashes(paths, read_hashes(Path(stores).glob(f"{dataset.name}-*/files.json")), workers)
    hash_of = {path: entry[-1] for path, entry in hashes.items()}
    key, whole_key = (data_key(dataset, config.seed, hash_of, chosen) for chosen in (classes, ()))
    folder = Path(stores) / f"{dataset.name}-{key}-{config.size}-{config.style}-{config.crop}"
    if not folder.is_dir():
        check_style(dataset, config)
        sibling = next(Path(stores).glob(f"{dataset.name}-{whole_key}-*"), None)
        if sibling is not None:
            other = Store(sibling)
            cleaned = replace(dataset, table=with_paths(other.table, dataset.table), problems=other.problems)
        else:
            cleaned = clean(report or audit(dataset, workers, progress), config.seed)
        try:
            build_store(cleaned.subset(classes) if classes else cleaned, folder, config, workers, progress)
        except OSError:
            if not folder.is_dir():  # else another process was first to write the same store
                raise
    store = Store(folder)
    write_hashes(hashes, folder / "files.json")
    store.table = with_paths(store.table, dataset.table)
    return store


def with_paths(table: pd.DataFrame, current: pd.DataFrame) -> pd.DataFrame:
    """The cleaned `table` with the paths of `current`, which may be a copy elsewhere; absent files stay absent."""
    by_id = current.set_index("image_id")
    return table.assign(**{c: table["image_id"].map(by_id[c]).where(table[c].notna()).astype("string") for c in PATHS})


def build_store(
    dataset: DatasetTable, folder: str | Path, config: StoreConfig, workers: int = 2, progress: bool = True
) -> Store:
    """Write every row of the table, without cleaning, as the store `folder`.

    Raises `DataError` for an unreadable image, a mask of another size than its image, or style "contour" without masks
    or sketches; an existing `folder` is then left unchanged.
    """
    check_style(dataset, config)
    with ThreadPoolExecutor(workers) as pool:
        if "content" not in dataset.table:  # it was not audited
            contents = list(pool.map(lambda path: pixel_hash(read_image(path)), dataset.table["path"]))
            dataset = replace(dataset, table=dataset.table.assign(content=contents))
        rows = map_in_chunks(pool, partial(load_row, config=config), dataset.table.itertuples(index=False))
        write_store(
            folder, dataset, config, tqdm(rows, "storing", len(dataset.table), leave=False, disable=not progress)
        )
    return Store(folder)


def check_style(dataset: DatasetTable, config: StoreConfig) -> None:
    """Raise `DataError` if the style is "contour" and the data set has neither masks nor sketches."""
    if config.style == "contour" and not dataset.has_contours:
        raise DataError(f"style 'contour' needs masks or sketches, {dataset.name} has none: use style 'structure'")


def data_key(dataset: DatasetTable, seed: int, hashes: dict[str, str], classes: Sequence[str] = ()) -> str:
    """Hash of 12 hexadecimal digits over the table, with the hash of every file instead of its path, the split's seed,
    and the chosen classes, if any."""
    table = dataset.table.assign(**{column: dataset.table[column].map(hashes) for column in PATHS})
    digest = hashlib.sha256(json.dumps([VERSION, seed, dataset.classes] + [list(classes)] * bool(classes)).encode())
    digest.update(table.to_csv(index=False).encode())
    return digest.hexdigest()[:12]


def write_store(folder: str | Path, dataset: DatasetTable, config: StoreConfig, rows: Iterable[tuple]) -> None:
    """Write `rows`, one (image, mask or None, sketch or None) per row of the table, as the store `folder`; if an error
    occurs, an existing `folder` is left unchanged.

    The arrays are written as plain files, not through a memory map: a full disk then raises `OSError` instead of
    crashing the process, and memory does not grow with their number.
    """
    count, size = len(dataset.table), config.size
    shapes = {"images": (count, size, size, 3), "masks": (count, size, size), "sketches": (count, size, size)}
    empty = np.zeros((size, size), np.uint8)
    flags = {"has_mask": np.zeros(count, bool), "has_sketch": np.zeros(count, bool)}
    digest = hashlib.blake2b(json.dumps([asdict(config), dataset.classes]).encode(), digest_size=8)
    with atomic_folder(folder) as temporary:
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(temporary / f"{name}.npy", "wb")) for name in shapes}
            for name, shape in shapes.items():
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(files[name], header)
            for k, row in enumerate(rows):
                _, mask, lines = row
                flags["has_mask"][k], flags["has_sketch"][k] = mask is not None, lines is not None and lines.any()
                for name, array in zip(shapes, row, strict=True):
                    content = np.ascontiguousarray(empty if array is None else array, np.uint8).data
                    files[name].write(content)
                    digest.update(content)
        for name, column in {**_columns(dataset.table), **flags}.items():
            np.save(temporary / f"{name}.npy", column)
            digest.update(column.data)
        # Bytes of paths that are not UTF-8 are escaped; `prepare` takes the paths from the data set.
        dataset.table.to_csv(temporary / "table.csv", index=False, errors="backslashreplace")
        metadata = {"name": dataset.name, "rows": count, "classes": dataset.classes, "config": asdict(config)}
        metadata["fingerprint"] = digest.hexdigest()
        text = json.dumps({**metadata, "problems": dataset.problems}, indent=1)
        (temporary / "config.json").write_text(text, encoding="utf-8")


def _columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Label and split of every row as small integers, -1 where unknown, and artifact flags."""
    splits = table["split"].map({split: code for code, split in enumerate(SPLITS)})
    return {
        "labels": table["label"].fillna(-1).to_numpy(np.int16),
        "splits": splits.fillna(-1).to_numpy(np.int8),
        "artifacts": names_to_flags(table["artifacts"]),
        "artifacts_known": table["artifacts"].notna().to_numpy(bool),
    }


def names_to_flags(names: Iterable) -> np.ndarray:
    """Artifact names separated by spaces, or `<NA>`, per image -> flags `uint8 (N, 7)` in {0, 1}, or all `UNKNOWN`.
    Raises `ValueError` for another name."""
    names = list(names)
    if wrong := {name for text in names if not pd.isna(text) for name in text.split()} - set(ARTIFACTS):
        raise ValueError(f"artifacts must be of {', '.join(ARTIFACTS)}, got {min(wrong)!r}")
    rows = [
        [UNKNOWN] * len(ARTIFACTS) if pd.isna(text) else [int(name in text.split()) for name in ARTIFACTS]
        for text in names
    ]
    return np.array(rows, np.uint8).reshape(-1, len(ARTIFACTS))


def flags_to_names(flags: np.ndarray) -> list:
    """Inverse of `names_to_flags`."""
    return [
        pd.NA if UNKNOWN in row else " ".join(name for name, flag in zip(ARTIFACTS, row, strict=True) if flag)
        for row in np.asarray(flags)
    ]


def map_in_chunks(pool: ThreadPoolExecutor, function: Callable, items: Iterator) -> Iterator:
    """`pool.map` that runs at most `CHUNK` items ahead, so memory does not grow with their number."""
    while chunk := [item for _, item in zip(range(CHUNK), items, strict=False)]:
        yield from pool.map(function, chunk)


def load_row(row, config: StoreConfig) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Read a row of the table: image `(S, S, 3)`, mask `(S, S)` in {0, 1} or None, sketch `(S, S)` in {0, 255} or None;
    all uint8."""
    image = resize(read_image(row.path, size=config.size), config)
    mask = lines = None
    if pd.notna(row.mask_path):
        mask = (resize(255 * read_mask(row.mask_path, image_shape(row.path)), config) > 127).astype(np.uint8)
    if config.style == "contour" and pd.notna(row.sketch_path):
        lines = load_sketch(row.sketch_path, config)
    elif config.style == "structure" or mask is not None:
        lines = sketch(image, mask, config.style)
    return image, mask, lines


def load_sketch(path: str | Path, config: StoreConfig) -> np.ndarray:
    """Read the sketch of an image as `uint8 (S, S)` in {0, 255}: cropped as its image is, unlike a user's drawing."""
    return np.where(resize(extract_lines(read_image(path)), config) > INK_THRESHOLD, 255, 0).astype(np.uint8)


def resize(image: np.ndarray, config: StoreConfig) -> np.ndarray:
    """Resize an image `(H, W[, C])` to `(S, S[, C])`, S = `config.size`, cropped as the config says."""
    image = center_crop(image) if config.crop == "center" else image
    shrinks = min(image.shape[:2]) >= config.size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (config.size, config.size), interpolation=interpolation)
