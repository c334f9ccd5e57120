import subprocess
import sys

import pytest

# Page faults of ten allocations of 64 MiB after the first four, with and without the function.
COUNT_PAGE_FAULTS = """
import resource, sys, torch
from helpers.models.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(14):
    torch.ones(16 << 20)
    if step == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str) -> int:
    command = [sys.executable, "-c", COUNT_PAGE_FAULTS, argument]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is needed")
def test_keep_freed_memory_reuses_pages():
    default, kept = page_faults("default"), page_faults("kept")
    assert kept < 100 < default, "each allocation of 64 MiB has 16,384 pages of 4 KiB, or 32 of 2 MiB"
