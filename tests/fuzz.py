"""Read mutated files with every function that reads files of users: `python tests/fuzz.py --count 10000 --seed 0`.

Each may only return or raise `DataError` (`ValueError` where it promises that), within `LIMIT` seconds and
`MAX_MEMORY`, and write nothing but its result. Every input has a seed of its own:
`python tests/fuzz.py --kind tables --count 1 --seed 1234` reads the input that a message calls 1234.
"""

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz_inputs import IDS, WRITERS

from helpers.data import labels, layouts
from helpers.data.download import MAX_RATIO, unpack
from helpers.data.duplicates import fingerprint
from helpers.data.files import DataError, image_shape, read_header, read_image, read_mask
from helpers.data.sketches import mask_from_sketch, parse_drawing
from helpers.data.store import StoreConfig, load_sketch
from helpers.data.tables import read_own_table
from helpers.data.xlsx import read_xlsx
from helpers.experiments.evaluate_networks import read_jaccard
from helpers.metrics.extractors import ImageSet
from helpers.models.artifacts import read_flags, read_ids
from helpers.models.checkpoint import read_network, read_state
from helpers.views.predictor import check_image_header, read_drawing, read_photo

LIMIT = 10  # seconds of CPU time for one call; `main` ends the process if a call takes 12 times as long in all
MAX_MEMORY = 1.5 * 2**30  # bytes that the process may have used at most
Reader = Callable[[Path], object]


@dataclass(frozen=True)
class LayerConfig:
    """Config of the network in the fuzzed weights."""

    size: int
    classes: tuple[str, ...]


def read_layer(path: Path) -> object:
    """A linear layer from a checkpoint or released file."""

    def build(saved: dict, config: LayerConfig) -> torch.nn.Module:
        layer = torch.nn.Linear(3, len(config.classes))
        layer.load_state_dict(saved["extra_state"]["best_state_dict"])
        return layer

    return read_network(path, "a layer", LayerConfig, build)


def read_checkpoint_to_resume(path: Path) -> object:
    """The state of a run. Its `ValueError` is promised."""
    if path.suffix != ".pt":
        raise DataError("no checkpoint")
    try:
        return read_state(path, asdict(LayerConfig(3, ("MEL", "NV"))), {"batch_size": 4, "seed": 0, "ema_nimg": 10})
    except ValueError as error:
        raise DataError(str(error)) from error


def unpack_three(path: Path) -> object:
    """Unpack an archive of three images and check what was written."""
    size, folder = path.stat().st_size, unpack(path, path.parent / "out", 3)
    contents = list(folder.rglob("*"))
    assert all(p.is_file() and not p.is_symlink() for p in contents), "something other than a file was unpacked"
    assert sum(p.stat().st_size for p in contents) <= MAX_RATIO * size, "a bomb was unpacked"
    return folder


def read_fingerprint(path: Path) -> object:
    """The fingerprint of an image. It records errors instead of raising them."""
    if error := fingerprint(str(path), str(path), str(path)).error:
        raise DataError(error)


READERS: dict[str, dict[str, Reader]] = {
    "images": {
        "read_image": read_image,
        "read_image, reduced": lambda path: read_image(path, size=8),
        "read_mask": read_mask,
        "image_shape": image_shape,
        "read_header": read_header,
        "check_image_header": lambda path: check_image_header(path.read_bytes(), path.name),
        "fingerprint": read_fingerprint,
        "read_photo": read_photo,
        "from_folder": lambda path: ImageSet.from_folder(path.parent),
    },
    "drawings": {
        "load_sketch": lambda path: load_sketch(path, StoreConfig(16)),
        "parse_drawing": lambda path: parse_drawing(path, 16),
        "read_drawing": lambda path: mask_from_sketch(read_drawing(path, 32)),
    },
    "tables": {
        "layouts": lambda path: layouts.read(path.parent),
        "isic2016": lambda path: labels.read_isic2016_labels(path, []),
        "isic2017": lambda path: labels.read_isic2017_labels(path, []),
        "isic2018": lambda path: labels.read_isic2018_labels(path, []),
        "ham10000": lambda path: labels.read_ham10000_metadata(path, []),
        "labels": lambda path: labels.read_labels(path, labels.HAM_CLASSES, []),
        "flags": read_flags,
        "ids": read_ids,
        "jaccard": lambda path: read_jaccard(path, pd.Series(IDS)),
        "own table": read_own_table,
        "workbook": read_xlsx,
    },
    "archives": {"unpack": unpack_three},
    "weights": {"read_network": read_layer, "read_state": read_checkpoint_to_resume},
}


class Hang(BaseException):
    """A call took too long. No `Exception`, which the readers turn into `DataError`."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `Hang` after `seconds` of CPU time, which do not depend on what else the machine does."""

    def stop(*_) -> None:
        raise Hang

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def peak_memory() -> int:
    """Bytes of main memory that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def call(reader: Reader, path: Path) -> tuple[bool, str | None]:
    """Whether `path` was read, and what went wrong, None if nothing did."""
    before = peak_memory()
    try:
        with time_limit(LIMIT):
            reader(path)
        read, fault = True, None
    except DataError:
        read, fault = False, None
    except Hang:
        read, fault = False, f"took over {LIMIT} s"
    except Exception as error:
        read, fault = False, repr(error)[:300]
    if peak_memory() > max(before, MAX_MEMORY):
        fault = f"used {peak_memory() / 2**30:.1f} GiB"
    return read, fault


def snapshot(root: Path) -> dict[Path, bytes | None]:
    """Content of all files below `root`, None for folders and links."""
    return {p: p.read_bytes() if p.is_file() and not p.is_symlink() else None for p in root.rglob("*")}


def read_input(kind: str, seed: int, root: Path, started: Callable[[int], None]) -> tuple[bool, list[str]]:
    """Read the input `seed` with all readers of its kind, in a new folder below the empty folder `root`; whether one of
    them read it, and a message per failure. `started`: see `fuzz`."""
    folder, was_read, faults = root / "a" / "b" / "input", False, []  # `..` must not leave `root`
    folder.mkdir(parents=True)
    path = WRITERS[kind](np.random.default_rng(seed), folder)
    content = snapshot(root)
    for name, reader in READERS[kind].items():
        started(seed)
        read, fault = call(reader, path)
        was_read |= read
        left = snapshot(root)
        if kind == "archives":  # its result; a damaged archive is deleted
            left = {p: c for p, c in left.items() if not (read and p.is_relative_to(folder / "out"))}
            left = left if read else {path: content[path]} | left
        if changed := content.items() ^ left.items():
            fault = f"{fault or ''}; wrote or deleted {min(changed)[0]}"
        if fault:
            faults.append(f"--kind {kind} --seed {seed}: {name} {fault}")
    return was_read, faults


def fuzz(kind: str, count: int, seed: int = 0, started: Callable[[int], None] = lambda seed: None) -> tuple[int, list]:
    """Read `count` inputs of a kind in an empty folder, which becomes the current and the temporary folder; how many
    were read, and a message per failure. `started`: called before every call of a reader, with the input's seed."""
    num_read, faults, previous = 0, [], (os.getcwd(), tempfile.tempdir)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder).resolve()
        try:
            for input_seed in range(seed, seed + count):
                with tempfile.TemporaryDirectory(dir=root) as inner:
                    os.chdir(inner)
                    tempfile.tempdir = inner
                    read, found = read_input(kind, input_seed, Path(inner), started)
                    num_read += read
                    faults += found
                    tempfile.tempdir = previous[1]
                    os.chdir(previous[0])
        finally:
            os.chdir(previous[0])
            tempfile.tempdir = previous[1]
    return num_read, faults


def run(kinds: list[str], count: int, seed: int, current, failed) -> None:
    """Read `count` inputs of every kind and print a line for each. `current`: shared array of the number of the kind,
    the seed of the input and the time of the call; `failed`: shared number of failures."""
    for number, kind in enumerate(kinds):
        start = time.perf_counter()

        def started(input_seed: int, number: int = number) -> None:
            current[:] = [number, input_seed, time.time()]

        num_read, faults = fuzz(kind, count, seed, started)
        failed.value += len(faults)
        print(*faults, sep="\n", end="\n" if faults else "")
        print(f"{kind}: {count} inputs, {num_read} read, {count - num_read} refused, "
              f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="inputs, in equal parts of every kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first input of every kind")
    parser.add_argument("--kind", choices=list(WRITERS), help="one kind only")
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else list(WRITERS)
    # Another process, because C code that hangs or crashes takes its process with it.
    context = multiprocessing.get_context("spawn")
    current, failed = context.Array("d", [0, options.seed, time.time() + 60]), context.Value("i", 0)
    child = context.Process(target=run, args=(kinds, options.count // len(kinds), options.seed, current, failed))
    child.start()
    while child.is_alive():
        child.join(1)
        if time.time() - current[2] > 12 * LIMIT:  # C code that waits, or does not let signals through
            child.kill()
            child.join()
    if child.exitcode:
        reason = "hangs" if child.exitcode == -signal.SIGKILL else f"ends the process with {child.exitcode}"
        print(f"--kind {kinds[int(current[0])]} --seed {int(current[1])}: {reason}")
    return int(bool(child.exitcode or failed.value))


if __name__ == "__main__":
    sys.exit(main())
