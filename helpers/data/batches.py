"""Training batches from a store or from arrays: every one follows from seed, step and rank alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from helpers.data.deform import hand_drawn
from helpers.data.files import DataError
from helpers.data.store import Store


def to_tensors(batch: dict[str, np.ndarray], device: str = "cpu") -> dict:
    """The arrays of a batch as tensors: images `(B, 3, H, W)` float in [-1, 1]; masks, sketches `(B, 1, H, W)` float in
    [0, 1]; labels `(B,)` int64; artifacts `(B, 7)` float in [0, 1]. Other entries are left out."""
    import torch  # takes seconds to import; audit and preparation do not need it

    def to_float(name: str) -> torch.Tensor:
        return torch.from_numpy(batch[name]).to(device).float()

    converters = {
        "images": lambda: (to_float("images") / 127.5 - 1).permute(0, 3, 1, 2).contiguous(),
        "masks": lambda: to_float("masks")[:, None],
        "sketches": lambda: to_float("sketches")[:, None] / 255,
        "labels": lambda: torch.from_numpy(batch["labels"].astype(np.int64)).to(device),
        "artifacts": lambda: to_float("artifacts"),
    }
    return {name: convert() for name, convert in converters.items() if name in batch}


@dataclass(frozen=True)
class SketchSampling:
    """Which sketches the images of a batch get."""

    hand_drawn_prob: float = 0.0  # probability that a sketch is replaced by its `hand_drawn` version
    paired: bool = True  # True: each image's own sketch; False: a random one
    unpaired_sketches: np.ndarray | None = None  # uint8 (M, H, W) in {0, 255} if not paired; None: the store's
    required: bool = True  # False: images without a sketch are used too

    def needs(self) -> list[str]:
        """What images must have to be used, for `Store.rows`."""
        return ["sketch", "label"] if self.required and self.unpaired_sketches is None else ["label"]

    def rows(self, store: Store, rows: np.ndarray | None = None) -> np.ndarray:
        """Rows of the training split, or of these `rows` of any split, that have what is needed. Raises `DataError` if
        there are none."""
        usable = store.rows("train" if rows is None else None, needs=self.needs())
        usable = usable if rows is None else np.intersect1d(rows, usable)
        if not len(usable):
            needs = " and a ".join(self.needs())
            raise DataError(f"{store.name} needs at least one training image with a {needs}, got none")
        return usable


def balanced_batches(
    store: Store,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
    sketch_sampling: SketchSampling = SketchSampling(),
    balanced: bool = True,
) -> Callable[[int, int], dict]:
    """`get_batch(step, rank)` for the training loop, with images, sketches, labels and artifacts.

    Samples from the training split, or from these `rows` of any split: all classes are equally likely, and all images
    of a class; if not `balanced`, all images are. The same seed, step and rank give the same batch.
    """
    rows = sketch_sampling.rows(store, rows)
    groups = [rows[store.labels[rows] == label] for label in range(len(store.classes))] if balanced else [rows]
    groups = [group for group in groups if len(group)]
    pool = store.sketches if sketch_sampling.unpaired_sketches is None else sketch_sampling.unpaired_sketches
    pool_rows = rows if sketch_sampling.unpaired_sketches is None else np.arange(len(pool))

    def get_batch(step: int, rank: int) -> dict:
        rng = np.random.default_rng([seed, step, rank])
        sampled = [groups[k][rng.integers(len(groups[k]))] for k in rng.integers(len(groups), size=batch_size)]
        batch = store.batch(np.array(sampled), ("images", "sketches", "labels", "artifacts"))
        if not sketch_sampling.paired:
            batch["sketches"] = np.array(pool[rng.choice(pool_rows, batch_size)])
        if sketch_sampling.hand_drawn_prob:
            for k in np.flatnonzero(rng.random(batch_size) < sketch_sampling.hand_drawn_prob):
                batch["sketches"][k] = hand_drawn(batch["sketches"][k], rng)
        return to_tensors(batch)

    return get_batch


@dataclass(frozen=True)
class ImageSource:
    """Training images: `rows` of the arrays of a store, or of synthetic images."""

    images: np.ndarray  # uint8 (N, H, W, 3)
    rows: np.ndarray  # (M,), the rows to use
    masks: np.ndarray | None = None  # uint8 (N, H, W) in {0, 1}
    labels: np.ndarray | None = None  # (N,)


def image_batches(sources: Sequence[ImageSource], batch_size: int, seed: int) -> Callable[[int, int], dict]:
    """`get_batch(step, rank)` for the training loop, with images; all rows of all sources are equally likely, and none
    comes twice in a batch if there are enough. The same seed, step and rank give the same batch."""
    rows = [(source, row) for source in sources for row in source.rows]

    def get_batch(step: int, rank: int) -> dict:
        rng = np.random.default_rng([seed, step, rank])
        sampled = rng.choice(len(rows), batch_size, replace=len(rows) < batch_size)
        return to_tensors({"images": np.stack([source.images[row] for source, row in (rows[k] for k in sampled)])})

    return get_batch


def source_batches(
    sources: Sequence[ImageSource], batch_size: int, seed: int, names: Sequence[str], balanced: bool = False
) -> Callable[[int, int], dict]:
    """`get_batch(step, rank)` for the training loop, with the arrays `names` of the sources.

    If `balanced`, a class is sampled, then a source that has it, then a row of that class there; else a source, then a
    row; each uniformly. The same seed, step and rank give the same batch.
    """
    groups = [[(source, source.rows)] for source in sources]
    if balanced:
        labels = np.unique(np.concatenate([source.labels[source.rows] for source in sources]))
        groups = [[(source, rows) for source in sources if len(rows := source.rows[source.labels[source.rows] == k])]
                  for k in labels]  # fmt: skip

    def get_batch(step: int, rank: int) -> dict:
        rng = np.random.default_rng([seed, step, rank])
        picked = [groups[k][rng.integers(len(groups[k]))] for k in rng.integers(len(groups), size=batch_size)]
        sampled = [(source, rows[rng.integers(len(rows))]) for source, rows in picked]
        return to_tensors({name: np.stack([getattr(source, name)[row] for source, row in sampled]) for name in names})

    return get_batch
