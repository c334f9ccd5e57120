import re
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzz_inputs import WRITERS


@pytest.mark.parametrize("kind", WRITERS)
def test_mutated_files_are_read_or_refused_with_a_data_error(kind):
    num_read, faults = fuzz.fuzz(kind, 40)
    assert faults == [] and 0 < num_read < 40


def wait(path: Path) -> None:
    while True:
        pass


def use_memory(path: Path) -> None:
    np.ones(2**20)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (wait, "took over 1 s"),
        (use_memory, r"used \d+\.\d GiB"),
        (lambda path: {}["a"], r"KeyError\('a'\)"),
        (lambda path: path.write_text("other"), "wrote or deleted .*image"),
        (lambda path: path.unlink(), "wrote or deleted .*image"),
        (lambda path: (path.parents[2] / "new").symlink_to("/"), "wrote or deleted .*new"),
    ],
)
def test_fuzz_finds_and_names_faults(monkeypatch, reader, message):
    peak = iter(range(0, 2**50, 2**40))
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    monkeypatch.setattr(fuzz, "peak_memory", lambda: next(peak) if reader is use_memory else 0)
    monkeypatch.setitem(fuzz.READERS, "images", {"a reader": reader})
    _, (fault,) = fuzz.fuzz("images", 1, seed=7)
    assert re.match(f"--kind images --seed 7: a reader .*{message}", fault)
