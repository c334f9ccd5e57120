"""`make bench`: the speeds that the README states, measured here and now.

On the embedded sample by default; `LESION_DATASET=ham10000 LESION_DATA_ROOT=... make bench` measures on real data.
Speeds differ from machine to machine and from minute to minute: what counts are the ratios within one run.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.config import get_config  # noqa: E402
from helpers.data.audit import audit  # noqa: E402
from helpers.data.layouts import Dataset, open_dataset  # noqa: E402
from helpers.data.phantoms import CLASSES, draw  # noqa: E402
from helpers.data.sample import SHARES  # noqa: E402
from helpers.data.sketches import contour, hand, structure  # noqa: E402
from helpers.data.store import Store, StoreSettings, prepare  # noqa: E402


def row(what: str, value: float, unit: str, target: str = "") -> None:
    print(f"{what:<58} {value:>10,.0f} {unit:<14} {target}", flush=True)


def rate(function: Callable, items: list, rounds: int = 3) -> float:
    """Items a second on one core: processor time, the median of some rounds."""
    rates = []
    for _ in range(rounds):
        start = time.process_time()
        for item in items:
            function(item)
        rates.append(len(items) / (time.process_time() - start))
    return float(np.median(rates))


def bench_phantoms() -> None:
    shares = np.array([SHARES[name] for name in CLASSES])
    labels = np.random.default_rng(0).choice(7, 200, p=shares / shares.sum())
    draw(0, 0)  # textures are made once
    speed = rate(lambda k: draw(int(labels[k]), 1000 + k), list(range(200)))
    row("phantoms drawn, 128 px, one core", speed, "images/s", "target 100")


def bench_sketches(store: Store) -> None:
    batch = store.batch(store.rows(needs=["mask", "sketch"])[:200])
    pairs, rng = list(zip(batch["images"], batch["masks"], strict=True)), np.random.default_rng(0)
    outlines = [contour(mask) for mask in batch["masks"]]
    row("sketches, contour, 128 px, one core", rate(lambda p: contour(p[1]), pairs), "sketches/s", "target 100")
    row("sketches, structure with hair removal", rate(lambda p: structure(*p), pairs), "sketches/s", "target 100")
    row("sketches, hand", rate(lambda line: hand(line, rng), outlines), "sketches/s", "target 100")


def bench_preparation(dataset: Dataset, workers: int) -> Store:
    start = time.perf_counter()
    report = audit(dataset, workers, progress=False)
    audited = time.perf_counter() - start
    row(f"audit of {len(dataset.table):,} pictures, {workers} cores", audited, "s", "target 60 (10,015)")
    stores = tempfile.mkdtemp(prefix="bench-", dir=ROOT / "data")
    start = time.perf_counter()
    store = prepare(dataset, stores, StoreSettings(128), report, workers, progress=False)
    written = time.perf_counter() - start
    row(f"prepare: the audit, and {len(store):,} pictures stored", audited + written, "s", "target 90 (10,015)")
    return store


def read_store(store: Store, arrays: tuple[str, ...]) -> float:
    """Pictures a second in shuffled batches of 64, warm cache; one process."""
    rows, rng = np.arange(len(store)), np.random.default_rng(0)
    rates = []
    for _ in range(6):
        start = time.perf_counter()
        seen = sum(len(batch["rows"]) for batch in store.batches(rows, 64, rng, arrays=arrays))
        rates.append(seen / (time.perf_counter() - start))
    return float(np.median(rates[1:]))


def read_image_folder(dataset: Dataset, workers: int, most: int = 3000) -> float:
    """What a course notebook does: torchvision's ImageFolder on the original files, cropped, resized, batches of 64."""
    with tempfile.TemporaryDirectory() as tree:
        for index, (name, path) in enumerate(zip(dataset.class_names(), dataset.table["path"], strict=True)):
            if index < most:
                (Path(tree) / str(name)).mkdir(exist_ok=True)
                os.symlink(Path(path).resolve(), Path(tree) / str(name) / Path(path).name)
        folder = ImageFolder(tree, Compose([Resize(128), CenterCrop(128), PILToTensor()]))
        loader = DataLoader(folder, batch_size=64, shuffle=True, num_workers=workers)
        rates = []
        for _ in range(2):
            start = time.perf_counter()
            seen = sum(len(images) for images, _ in loader)
            rates.append(seen / (time.perf_counter() - start))
        return rates[-1]


def bench_reading(store: Store, dataset: Dataset, workers: int) -> None:
    everything = read_store(store, ("images", "masks", "sketches", "labels"))
    row("store, batches of 64: image, mask, sketch, label", everything, "images/s", "target 20,000")
    ours = read_store(store, ("images", "labels"))
    row("store, batches of 64: image, label", ours, "images/s")
    for processes in (0, workers):
        theirs = read_image_folder(dataset, processes)
        row(f"ImageFolder on the JPEGs, {processes} workers", theirs, "images/s")
        row("  the store is faster by", ours / theirs, "times", "target 100")


def main() -> None:
    cfg = get_config("data")
    dataset = open_dataset(cfg)
    print(f"{dataset.name}, {len(dataset.table):,} pictures, {cfg.workers} cores")
    bench_phantoms()
    store = bench_preparation(dataset, cfg.workers)
    try:
        bench_sketches(store)
        bench_reading(store, dataset, cfg.workers)
    finally:
        shutil.rmtree(store.folder.parent)


if __name__ == "__main__":
    main()
