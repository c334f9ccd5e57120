"""The device of inference, and memory: how much was used, and keeping it between steps."""

import ctypes
import sys

import torch
from accelerate.utils import parse_flag_from_env


def best_device() -> torch.device:
    """Device for inference: the accelerator if there is one and ACCELERATE_USE_CPU is not set, else the CPU."""
    if torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.accelerator.current_accelerator()
    return torch.device("cpu")


def peak_memory() -> str:
    """Peak memory of this process as a sentence: GPU memory if there is a GPU, else resident memory."""
    if best_device().type == "cuda":
        return f"{torch.cuda.max_memory_reserved() / 2**30:.2f} GiB of GPU memory at most"
    try:
        import resource  # not on Windows
    except ImportError:
        return "peak memory is not available on this system"
    unit = 2**10 if sys.platform != "darwin" else 1  # Linux counts in KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB of memory at most"


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation instead of returning it to the system, for the rest of the
    process; without effect on other systems and on GPU memory.

    By default every large tensor gets new pages from the kernel, which fills them with zeros. `make bench`
    compares training steps on a CPU. Peak memory grows by some percent.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no tensor is a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give back the end of the heap
