"""Checks of files with weights, which may be damaged, of another program or made to do harm, and of settings."""

import math
import warnings
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import torch
from torch import Tensor

from helpers.config import display_path
from helpers.data.files import DataError

MAX_SIZE = 1024  # pixels per side
MAX_CHANNELS = 2048
MAX_CLASSES, MAX_CLASS_NAME = 1_000, 60  # number, characters of a name


def load_file(path: str | Path) -> Any:
    """The content of a file of `torch.save`: tensors and plain values; code in it is never run. Raises `DataError` if
    it is missing, empty, damaged or holds anything else."""
    path, name = Path(path), display_path(path)
    if not path.is_file():
        raise DataError(f"{name} is not a file" if path.exists() else f"{name} does not exist")
    if not path.stat().st_size:
        raise DataError(f"{name} is damaged: it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files by older versions
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead to errors of any kind, whose messages advise to run the code
        raise DataError(f"{name} is damaged or not a checkpoint") from error


def check_weights(weights: Any) -> None:
    """Raise `ValueError` unless these are named tensors of finite numbers."""
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError("its weights are not tensors")
    for name, weight in weights.items():
        # An expanded tensor takes no space in the file and any amount in memory.
        plain = weight.layout == torch.strided and weight.device.type == "cpu"
        if not plain or weight.nbytes > weight.untyped_storage().nbytes():
            raise ValueError(f"its weight {str(name)[:60]} is no ordinary tensor")
        if not isinstance(name, str) or not weight.isfinite().all():
            raise ValueError(f"its weight {str(name)[:60]} is not finite")


def check_settings(config: Any, **ranges: tuple[int, int]) -> None:
    """Raise `ValueError` unless every field of the dataclass `config` has its type, floats are finite, the fields named
    in `ranges` lie between the two numbers, and `classes` can be names of folders."""
    for field in fields(config):
        value = getattr(config, field.name)
        if not _has_type(value, field.type):
            expected = getattr(field.type, "__name__", field.type)
            raise ValueError(f"{field.name} must be of the type {expected}, got {value!r:.60}")
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is not None and not all(low <= v <= high for v in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} must be {low} to {high}, got {value}")
    check_class_names(getattr(config, "classes", ()))


def _has_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is UnionType:
        return any(_has_type(value, option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_has_type(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, kind)


def check_class_names(classes: tuple[str, ...]) -> None:
    """Raise `ValueError` for names that must not become names of folders: empty, over 60 characters, with `/`, a
    backslash, `..` or characters that are not printed; for equal names; and for over 1,000 names."""
    for name in classes:
        safe = name.isprintable() and name != "." and not any(part in name for part in ("/", "\\", ".."))
        if not (safe and 1 <= len(name) <= MAX_CLASS_NAME):
            raise ValueError(f"a class name must have 1 to {MAX_CLASS_NAME} printable characters without /, \\ and .., "
                             f"got {name[:MAX_CLASS_NAME]!r}")  # fmt: skip
    if len(set(classes)) < len(classes) or len(classes) > MAX_CLASSES:
        raise ValueError(f"there must be at most {MAX_CLASSES:,} different class names, got {len(classes):,}")
