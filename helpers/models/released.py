"""Trained weights as files that can be given away: safetensors in half precision, settings in the file's header.

Unlike a checkpoint such a file holds nothing to go on training with, and reading it can run no code.
"""

import json
import zlib
from base64 import b64decode, b64encode
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from helpers.config import shown
from helpers.data.files import DataError


def release(checkpoint: str | Path, file: str | Path) -> Path:
    """What a checkpoint of `train` draws, segments or classifies with, written to `file`; returns its path. Raises
    `DataError` for a checkpoint that has no such weights."""
    saved, file = read_checkpoint(checkpoint), Path(file)
    kept = dict(saved.get("kept", {}))
    weights = kept.pop("best", None) or saved.get("averages", {}).get("generator")
    if not weights:
        raise DataError(f"{shown(checkpoint)} holds no weights that could be released")
    halved = {name: (w.half() if w.is_floating_point() else w).contiguous() for name, w in weights.items()}
    if beyond := [name for name, w in halved.items() if not w.isfinite().all()]:
        raise DataError(f"{shown(checkpoint)}: {beyond[0]} is not finite in half precision")
    kept["trained_on"] = packed(kept.get("trained_on", []))
    about = json.dumps({"settings": saved["settings"], "kept": kept})
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}")
    save_file(halved, fresh, {"about": about})
    fresh.replace(file)
    return file


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint, or a released file in the same form: `settings`, `kept` and `averages`. Raises `DataError` for a
    released file that cannot be read, and what `torch.load` raises."""
    if Path(path).suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        with safe_open(path, "pt") as file:
            about, names = json.loads((file.metadata() or {})["about"]), list(file.keys())
            weights = {name: whole(file.get_tensor(name)) for name in names}
        settings, kept = about["settings"], about["kept"]
        kept["trained_on"] = unpacked(kept["trained_on"])
    except (OSError, SafetensorError, KeyError, ValueError, zlib.error) as error:
        raise DataError(f"{shown(path)} is not a file of released weights ({error})"[:300]) from error
    return {"settings": settings, "kept": kept | {"best": weights}, "averages": {"generator": weights}}


def packed(names: list[str]) -> str:
    """Thousands of names of pictures, a tenth as long."""
    return b64encode(zlib.compress("\n".join(names).encode(), 9)).decode()


def unpacked(text: str) -> list[str]:
    return zlib.decompress(b64decode(text)).decode().splitlines()


def whole(weight: Tensor) -> Tensor:
    """In float32, if it is no whole number."""
    return weight.float() if weight.is_floating_point() else weight
