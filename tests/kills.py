"""Kill training and `prepare` at random moments, start them again until they finish, and compare the results with those
of runs that were not killed: `python tests/kills.py --trainings 24 --prepares 13 --seed 0`.

A smaller number is a test that is marked slow (test_kills.py). Each command is a process of its own, as users start it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.data.store import ARRAYS, Store
from helpers.phantoms import sample

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "LESION_PROFILE": "smoke", "TQDM_DISABLE": "1"}


@dataclass(frozen=True)
class Kills:
    """Print the number of kills and of differences; exit status 1 if there is a difference."""

    trainings: int = 24  # kills of `train dcgan`
    prepares: int = 13  # kills of `prepare`
    steps: int = 60  # of the training
    seed: int = 0  # of the moments


def start(*arguments: str | Path) -> subprocess.Popen:
    """Start a command of the shell."""
    command = [sys.executable, "-m", "helpers", *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finish(*arguments: str | Path) -> float:
    """Run a command of the shell to its end; returns the seconds. Raises `RuntimeError` if it fails."""
    started = time.perf_counter()
    if status := start(*arguments).wait():
        raise RuntimeError(f"{arguments} ended with {status}")
    return time.perf_counter() - started


def kill_and_finish(arguments: list[str | Path], kills: int, seconds: float, rng: np.random.Generator) -> int:
    """Kill a command that takes `seconds` up to `kills` times, each time at a random moment, then let it finish;
    returns how often it was killed before it was done."""
    killed = 0
    while killed < kills:
        process = start(*arguments)
        time.sleep(rng.uniform(0, seconds))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    finish(*arguments)
    return killed


def kill_trainings(data: Path, folder: Path, kills: int, steps: int, rng: np.random.Generator) -> tuple[int, int]:
    """Numbers of kills and of differences from the checkpoint of a training that was not killed."""

    def arguments(name: str) -> list[str | Path]:
        options = ("--steps", steps, "--batch-size", 4, "--save-every", 5, "--no-projected", "--base-channels", 8)
        return ["train", "dcgan", "--dataset", "phantoms", "--data-root", data, "--out", folder / name, *options]

    finish(*arguments("warm-up"))  # prepares the store
    seconds = finish(*arguments("whole"))
    total, differences, run = 0, 0, 0
    while total < kills:
        run += 1
        total += kill_and_finish(arguments(f"{run}"), min(4, kills - total), seconds, rng)
        differences += not same_checkpoint(folder / "whole/checkpoint.pt", folder / f"{run}/checkpoint.pt")
    return total, differences


def same_checkpoint(*files: Path) -> bool:
    """Whether two checkpoints have equal weights, optimizer states, steps and histories."""
    states = [torch.load(file, weights_only=True) | {"seconds": 0} for file in files]
    leaves = [torch.utils._pytree.tree_flatten(state)[0] for state in states]
    return len(leaves[0]) == len(leaves[1]) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*leaves, strict=True)
    )


def kill_prepares(data: Path, folder: Path, kills: int, rng: np.random.Generator) -> tuple[int, int]:
    """Numbers of kills and of stores that differ from that of a command that was not killed, or have other files
    next to them."""

    def arguments(name: str) -> list[str | Path]:
        return ["prepare", "--dataset", "phantoms", "--data-root", data, "--size", "64", "--out", folder / name]

    seconds = finish(*arguments("whole"))
    (whole,) = (folder / "whole").iterdir()
    total, differences, run = 0, 0, 0
    while total < kills:
        run += 1
        total += kill_and_finish(arguments(f"{run}"), min(2, kills - total), seconds, rng)
        found = list((folder / f"{run}").iterdir())
        differences += [path.name for path in found] != [whole.name] or not same_store(whole, found[0])
    return total, differences


def same_store(*folders: Path) -> bool:
    """Whether two stores have equal files and arrays."""
    a, b = map(Store, folders)
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    equal = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)
    return equal and names[0] == names[1] and a.fingerprint == b.fingerprint


def main(options: Kills) -> int:
    """Kill, compare and print."""
    differences, rng = 0, np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sample.write(folder / "data", 60, 128)
        for name, result in (
            ("training", lambda: kill_trainings(folder / "data", folder / "t", options.trainings, options.steps, rng)),
            ("prepare", lambda: kill_prepares(folder / "data", folder / "p", options.prepares, rng)),
        ):
            kills, different = result()
            print(f"{name}: {kills} kills, {different} differences", flush=True)
            differences += different
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Kills)))
