"""`Dataset` -> memory-mapped arrays -> batches.

A store is a folder: `images.npy (N, H, W, 3)`, `masks.npy` and `sketches.npy (N, H, W)`, small columns beside them,
`table.csv` and `config.json`. Row i of every one of them is the same picture. Arrays are mapped, not loaded, so a
store of a million pictures takes no more memory than one of a hundred.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from helpers.data.audit import Report, audit, clean
from helpers.data.files import (
    DataError,
    atomic_folder,
    center_crop,
    image_shape,
    read_image,
    read_mask,
    read_sketch,
)
from helpers.data.layouts import DatasetTable
from helpers.data.sketches import hand_drawn, sketch

BATCH = ("images", "masks", "sketches", "labels")
ARRAYS = (*BATCH, "splits", "has_mask", "has_sketch")
SPLITS = ["train", "val", "test"]
VERSION = 3  # raise it when the same data and settings would give another store
CHUNK = 256  # rows held in memory while writing
INK_THRESHOLD = 25  # of 255: less is paper. A thin line fades when it is made smaller; a tenth of white is still a line


@dataclass(frozen=True)
class StoreConfig:
    """`geometry`: "center" takes the central square (generation, classification), "none" the whole picture squeezed
    to a square (segmentation). `style`: "contour" or "structure", see `sketches`. `seed` is that of the split."""

    size: int = 128
    style: str = "contour"
    crop: str = "center"
    seed: int = 0

    def __post_init__(self):
        if not 16 <= self.size <= 1024:
            raise ValueError(f"size {self.size} is not between 16 and 1024 pixels")
        if self.style not in ("contour", "structure"):
            raise ValueError(f"style {self.style!r} is not 'contour' or 'structure' ('hand' is drawn at batch time)")
        if self.crop not in ("center", "none"):
            raise ValueError(f"geometry {self.crop!r} is not 'square' or 'whole'")


class Store:
    """An opened store.

    `images uint8 (N, H, W, 3)`, `masks uint8 (N, H, W)` in {0, 1}, `sketches uint8 (N, H, W)` in {0, 255}: mapped from
    disk, read only. `labels int16 (N,)` has -1 where the label is not known; a picture without mask or sketch has zeros
    there and `False` in `has_mask`, `has_sketch`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        about = self.folder / "config.json"
        if not about.is_file():
            raise DataError(f"{self.folder} is not a store: no config.json in it")
        try:
            facts = json.loads(about.read_text())
            arrays = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
            whole = {len(array) for array in arrays.values()} == {facts["rows"]}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"the store {self.folder} is damaged ({error}): delete it, it will be made again"
            ) from error
        if not whole:
            raise DataError(f"the store {self.folder} is damaged (rows are missing): delete it, it will be made again")
        self.name, self.classes, self.problems = facts["name"], facts["classes"], facts["problems"]
        self.config = StoreConfig(**facts["config"])
        for name, array in arrays.items():
            setattr(self, name, array)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The data set's table, one row per picture; read when first asked for."""
        table = pd.read_csv(self.folder / "table.csv", dtype="string")
        return table.assign(label=table["label"].astype("Int64"))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {len(self.rows(split)):,}" for split in SPLITS)
        return f"Store({self.name}: {len(self):,} pictures at {self.config.size} px, {counts})"

    def rows(self, split: str | None = None, needs: Iterable[str] = (), classes: list[str] | None = None) -> np.ndarray:
        """Row numbers of a split, of pictures that have what is needed: any of "label", "mask", "sketch"."""
        keep = np.ones(len(self), bool)
        if split is not None:
            keep &= self.splits == SPLITS.index(split)
        for what in needs:
            keep &= (self.labels >= 0) if what == "label" else getattr(self, f"has_{what}")
        if classes is not None:
            keep &= np.isin(self.labels, [self.classes.index(c) for c in classes])
        return np.flatnonzero(keep)

    def batch(self, rows: np.ndarray, arrays: Iterable[str] = BATCH) -> dict[str, np.ndarray]:
        """Copies of the named `arrays` of these rows, and the `rows` themselves."""
        return {**{name: np.asarray(getattr(self, name))[rows] for name in arrays}, "rows": rows}

    def batches(
        self,
        rows: np.ndarray,
        size: int,
        rng: np.random.Generator | None = None,
        drop_last: bool = False,
        arrays: Iterable[str] = BATCH,
    ) -> Iterator[dict[str, np.ndarray]]:
        """The rows once, `size` at a time: in their order, or shuffled by `rng`."""
        rows = rows if rng is None else rng.permutation(rows)
        end = len(rows) - len(rows) % size if drop_last else len(rows)
        return (self.batch(rows[start : start + size], arrays) for start in range(0, end, size))


def to_tensors(batch: dict[str, np.ndarray], device: str = "cpu") -> dict:
    """What a batch holds as tensors: images `(B, 3, H, W)` float in [-1, 1]; masks, sketches `(B, 1, H, W)` in [0, 1];
    labels int64."""
    import torch  # seconds to load, and neither the audit nor the preparation needs it

    def floats(name: str) -> torch.Tensor:
        return torch.from_numpy(batch[name]).to(device).float()

    convert = {
        "images": lambda: (floats("images") / 127.5 - 1).permute(0, 3, 1, 2).contiguous(),
        "masks": lambda: floats("masks")[:, None],
        "sketches": lambda: floats("sketches")[:, None] / 255,
        "labels": lambda: torch.from_numpy(batch["labels"].astype(np.int64)).to(device),
    }
    return {name: make() for name, make in convert.items() if name in batch}


@dataclass(frozen=True)
class SketchSampling:
    """Which sketches come with the pictures of a batch."""

    hand_drawn_prob: float = 0.0  # share that is redrawn as by hand
    paired: bool = True  # each picture's own; else any
    unpaired_sketches: np.ndarray | None = (
        None  # (M, H, W) in {0, 255}, where not `paired`; None: of the same rows of the store
    )

    def needs(self) -> list[str]:
        """What a picture must have."""
        return ["label"] if self.unpaired_sketches is not None else ["sketch", "label"]


def balanced_batches(
    store: Store,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
    sketch_sampling: SketchSampling = SketchSampling(),
    balanced: bool = True,
) -> Callable[[int, int], dict]:
    """`draw(step, process)` for the training loop, images, sketches and labels: every class of the training split (or
    of these `rows` of any) equally likely, within it every picture; not `balanced`: every picture. Random by the
    step."""
    usable = store.rows("train" if rows is None else None, needs=sketch_sampling.needs())
    rows = usable if rows is None else np.intersect1d(rows, usable)
    by_class = [rows[store.labels[rows] == label] for label in range(len(store.classes))] if balanced else [rows]
    by_class = [members for members in by_class if len(members)]
    pool = store.sketches if sketch_sampling.unpaired_sketches is None else sketch_sampling.unpaired_sketches
    places = rows if sketch_sampling.unpaired_sketches is None else np.arange(len(pool))

    def get_batch(step: int, rank: int) -> dict:
        rng = np.random.default_rng([seed, step, rank])
        chosen = [by_class[k][rng.integers(len(by_class[k]))] for k in rng.integers(len(by_class), size=batch_size)]
        found = store.batch(np.array(chosen), ("images", "sketches", "labels"))
        if not sketch_sampling.paired:
            found["sketches"] = np.array(pool[rng.choice(places, batch_size)])
        if sketch_sampling.hand_drawn_prob:
            for k in np.flatnonzero(rng.random(batch_size) < sketch_sampling.hand_drawn_prob):
                found["sketches"][k] = hand_drawn(found["sketches"][k], rng)
        return to_tensors(found)

    return get_batch


@dataclass(frozen=True)
class ImageSource:
    """Where training images come from: these `rows` of arrays, of a store or drawn."""

    images: np.ndarray  # uint8 (N, H, W, 3)
    rows: np.ndarray
    masks: np.ndarray | None = None  # uint8 (N, H, W) in {0, 1}
    labels: np.ndarray | None = None  # (N,)


def pair_batches(sources: Sequence[ImageSource], batch_size: int, seed: int) -> Callable[[int, int], dict]:
    """`draw(step, process)` for the training loop, images and masks: each part equally likely, within it each row;
    random by the step."""

    def get_batch(step: int, rank: int) -> dict:
        rng = np.random.default_rng([seed, step, rank])
        chosen = [
            (source, rng.choice(source.rows))
            for source in (sources[k] for k in rng.integers(len(sources), size=batch_size))
        ]
        return to_tensors({name: np.stack([getattr(part, name)[row] for part, row in chosen])
                           for name in ("images", "masks")})  # fmt: skip

    return get_batch


def labeled_batches(
    sources: Sequence[ImageSource], batch_size: int, seed: int, balanced: bool = True
) -> Callable[[int, int], dict]:
    """`draw(step, process)` for the training loop, images and labels: every class equally likely, then every part that
    has it, then each of its rows there. Not `balanced`: each part equally likely, within it each row."""
    known = np.unique(np.concatenate([part.labels[part.rows] for part in sources]))
    by_class = {k: [(part, rows) for part in sources if len(rows := part.rows[part.labels[part.rows] == k])]
                for k in known}  # fmt: skip
    kinds = list(by_class.values()) if balanced else [[(part, part.rows)] for part in sources]

    def get_batch(step: int, rank: int) -> dict:
        rng = np.random.default_rng([seed, step, rank])
        picked = [kinds[k][rng.integers(len(kinds[k]))] for k in rng.integers(len(kinds), size=batch_size)]
        chosen = [(part, rows[rng.integers(len(rows))]) for part, rows in picked]
        return to_tensors({"images": np.stack([part.images[row] for part, row in chosen]),
                           "labels": np.array([part.labels[row] for part, row in chosen])})  # fmt: skip

    return get_batch


# ---------------------------------------------------------------------------------------------------------- writing


def prepare(
    dataset: DatasetTable,
    stores: str | Path,
    config: StoreConfig = StoreConfig(),
    report: Report | None = None,
    workers: int = 2,
    progress: bool = True,
) -> Store:
    """From a data set as read to its store in the folder `stores`: opened if it is there, else audited (unless a
    `report` is given), put right, split and written.

    Its name holds the settings and a hash of the data: other data, another store. A store of the same data under other
    settings spares the audit. Raises `DataError` for data that cannot be used.
    """
    key = data_key(dataset, config.seed)
    folder = Path(stores) / f"{dataset.name}-{key}-{config.size}-{config.style}-{config.crop}"
    if not folder.is_dir():
        check_style(dataset, config)
        sibling = next(Path(stores).glob(f"{dataset.name}-{key}-*"), None)
        if sibling is not None:
            known = Store(sibling)
            cleaned = replace(dataset, table=known.table, problems=known.problems)
        else:
            cleaned = clean(report or audit(dataset, workers, progress), config.seed)
        try:
            build_store(cleaned, folder, config, workers, progress)
        except OSError:
            if not folder.is_dir():  # else another process was first with the same store
                raise
    return Store(folder)


def build_store(
    dataset: DatasetTable, folder: str | Path, config: StoreConfig, workers: int = 2, progress: bool = True
) -> Store:
    """Write the data set as it stands, row by row, to `folder`. Raises `DataError` for a picture that cannot be read, a
    mask of another size than its picture, or contours of a set without masks; `folder` then stays as it was."""
    check_style(dataset, config)
    with ThreadPoolExecutor(workers) as pool:
        arrays = _in_blocks(pool, partial(load_row, config=config), dataset.table.itertuples(index=False))
        counted = tqdm(arrays, "storing", len(dataset.table), disable=not progress, leave=False)
        write_store(folder, dataset, config, counted)
    return Store(folder)


def check_style(dataset: DatasetTable, config: StoreConfig) -> None:
    """Raise `DataError` when the style needs masks and the data set has none."""
    if config.style == "contour" and not dataset.has_contours:
        raise DataError(f"{dataset.name} has no masks to draw contours from: prepare it with style 'structure'")


def data_key(dataset: DatasetTable, seed: int) -> str:
    """Twelve hexadecimal digits that change with the table, size or date of a file it names, or the split's seed."""
    digest = hashlib.sha256(json.dumps([VERSION, seed, dataset.classes]).encode())
    digest.update(dataset.table.to_csv(index=False).encode())
    for column in ("path", "mask_path", "sketch_path"):
        for path in dataset.table[column].dropna():
            fact = os.stat(path)
            digest.update(f"{fact.st_size} {fact.st_mtime_ns} ".encode())
    return digest.hexdigest()[:12]


def write_store(folder: str | Path, dataset: DatasetTable, config: StoreConfig, arrays: Iterable[tuple]) -> None:
    """Write `(image, mask or None, sketch or None)` per row of the table as a store, whole or not at all.

    Written as plain files, not through a map: a full disk is then an error and not a crash, and memory stays flat.
    """
    count, size = len(dataset.table), config.size
    shapes = {"images": (count, size, size, 3), "masks": (count, size, size), "sketches": (count, size, size)}
    empty = np.zeros((size, size), np.uint8)
    has = {"has_mask": np.zeros(count, bool), "has_sketch": np.zeros(count, bool)}
    with atomic_folder(folder) as fresh:
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(fresh / f"{name}.npy", "wb")) for name in shapes}
            for name, shape in shapes.items():
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(files[name], header)
            for row, (image, mask, drawing) in enumerate(arrays):
                has["has_mask"][row], has["has_sketch"][row] = mask is not None, drawing is not None and drawing.any()
                for name, array in zip(shapes, (image, mask, drawing), strict=True):
                    files[name].write(np.ascontiguousarray(empty if array is None else array, np.uint8).data)
        for name, column in {**_columns(dataset.table), **has}.items():
            np.save(fresh / f"{name}.npy", column)
        dataset.table.to_csv(fresh / "table.csv", index=False)
        about = {"name": dataset.name, "rows": count, "classes": dataset.classes, "config": asdict(config)}
        (fresh / "config.json").write_text(json.dumps({**about, "problems": dataset.problems}, indent=1))


def _columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Label and split of every row as small integers, -1 where not known."""
    splits = table["split"].map({split: code for code, split in enumerate(SPLITS)})
    return {
        "labels": table["label"].fillna(-1).to_numpy(np.int16),
        "splits": splits.fillna(-1).to_numpy(np.int8),
    }


def _in_blocks(pool: ThreadPoolExecutor, function: Callable, items: Iterator) -> Iterator:
    """`pool.map` that looks only `BLOCK` items ahead, so memory does not grow with their number."""
    while block := [item for _, item in zip(range(CHUNK), items, strict=False)]:
        yield from pool.map(function, block)


def load_row(row, config: StoreConfig) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """A row of the table -> image `(S, S, 3)`, mask `(S, S)` in {0, 1} or None, sketch `(S, S)` in {0, 255} or None"""
    image = resize(read_image(row.path, min_size=config.size), config)
    mask = sketch_array = None
    if pd.notna(row.mask_path):
        mask = (resize(255 * read_mask(row.mask_path, image_shape(row.path)), config) > 127).astype(np.uint8)
    if config.style == "contour" and pd.notna(row.sketch_path):
        sketch_array = load_sketch(row.sketch_path, config)
    elif config.style == "structure" or mask is not None:
        sketch_array = sketch(image, mask, config.style)
    return image, mask, sketch_array


def load_sketch(path: str | Path, config: StoreConfig) -> np.ndarray:
    """A drawing in a file -> `(S, S)` in {0, 255}."""
    return resize_sketch(read_sketch(path), config)


def resize_sketch(lines: np.ndarray, config: StoreConfig) -> np.ndarray:
    """White lines on black `(H, W)` -> `(S, S)` in {0, 255}."""
    return np.where(resize(lines, config) > INK_THRESHOLD, 255, 0).astype(np.uint8)


def resize(image: np.ndarray, config: StoreConfig) -> np.ndarray:
    """A picture `(H, W[, C])` brought to `(S, S[, C])` by the settings' geometry."""
    image = center_crop(image) if config.crop == "center" else image
    smaller = min(image.shape[:2]) >= config.size
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(image, (config.size, config.size), interpolation=how)
