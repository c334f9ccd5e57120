import subprocess
import sys

import pytest

# Page faults of 60 allocations of 64 MiB, with and without the function. Where the heap places the first few varies.
COUNT_PAGE_FAULTS = """
import resource, sys, torch
from helpers.models.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 << 20)
one = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for step in range(60):
    torch.ones(16 << 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / one)
"""


def tensors_of_new_pages(argument: str) -> float:
    command = [sys.executable, "-c", COUNT_PAGE_FAULTS, argument]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is needed")
def test_keep_freed_memory_reuses_pages():
    default, kept = tensors_of_new_pages("default"), tensors_of_new_pages("kept")
    assert default > 55, "without it every tensor gets new pages"
    assert kept < 8, "with it only the first tensors do"
