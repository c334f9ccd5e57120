"""What the commands share: parsing by tyro, the options that select the data, which checkpoint is used."""

import os
import re
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from helpers.config import DATASETS, Config, display_path, get_config
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.evaluation import open_store
from helpers.experiments.runner import option_of
from helpers.presets import PRESETS

T = TypeVar("T")
Flat = Annotated[T, tyro.conf.arg(name="")]  # a nested dataclass whose options have no prefix
DatasetName = Literal[DATASETS]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: its fields are the options, `run` returns the exit status, or raises `DataError` or `ValueError`."""

    preset: ClassVar[str | None] = None  # key of `PRESETS`: the fields `settings` and, of a method, `train`
    no_effect: ClassVar[dict[str, str]] = {}  # options of `settings` that are refused, and why
    dataset: DatasetName | None = None  # data set; default: LESION_DATASET, else the embedded sample

    @classmethod
    def parse(cls, arguments: list[str], program: str, description: str) -> "Command":
        """The command with these options; in paths `~` is the home folder. Raises `SystemExit` with a message and the
        nearest option for a wrong one, `ValueError` for one without effect."""
        arguments, default = [expand_home(argument) for argument in arguments], cls.default()
        settings = getattr(default, "settings", None)
        no_effect = getattr(settings, "no_effect", cls.no_effect)
        given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
        for name in no_effect:
            if option_of(name) in given:
                raise ValueError(f"{option_of(name)} has no effect here: {no_effect[name]}")
        registry = hiding(settings, no_effect)
        return tyro.cli(cls, args=arguments, prog=program, description=description, default=default, registry=registry)

    @classmethod
    def default(cls) -> Any:
        """The command with the settings of the profile, or None if it has none."""
        if cls.preset is None:
            return None
        preset = PRESETS[get_config().profile][cls.preset]
        return cls(settings=preset[0], train=preset[1]) if isinstance(preset, tuple) else cls(settings=preset)

    def config(self) -> Config:
        """Paths, profile and data set."""
        return get_config(self.dataset, getattr(self, "data_root", None))


@dataclass(frozen=True, kw_only=True)
class DataCommand(Command):
    """A command that reads a data set."""

    data_root: Path | None = None  # its folder; default: LESION_DATA_ROOT, else data/<dataset>

    def store(self, size: int, style: str | None = None, crop: str = "center", classes: tuple[str, ...] = ()) -> Store:
        """The data set's store, see `open_store`."""
        return open_store(self.config(), size, style, crop, classes)


def hiding(settings: Any, names: Iterable[str]) -> ConstructorRegistry:
    """Rules by which tyro leaves out options: fields of `settings`, such as "style", or of its parts, "train.seed"."""
    registry, hidden = ConstructorRegistry(), {}
    for name in names:
        part, _, field = name.rpartition(".")
        hidden.setdefault(id(getattr(settings, part) if part else settings), set()).add(field)

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if id(info.default) not in hidden:
            return None
        spec = registry.get_struct_spec(replace(info, default=copy(info.default)))  # by the rules of tyro
        names = hidden[id(info.default)]
        fields = (replace(f, type=tyro.conf.Suppress[f.type]) if f.name in names else f for f in spec.fields)
        return replace(spec, fields=tuple(fields))

    return registry


def expand_home(argument: str) -> str:
    """An argument with the home folder for `~` at its start or after `=`: shells leave it in `--out=~/x`."""
    prefix = re.match(r"([\w.-]+=)?", argument)[0]
    return prefix + os.path.expanduser(argument.removeprefix(prefix))


def find_checkpoint(method: str, checkpoint: Path | None, cfg: Config) -> Path:
    """The given checkpoint, else the one that `train METHOD` wrote, else the released weights; prints a note if it was
    trained on phantoms. Raises `DataError` if none exists."""
    path = checkpoint or cfg.outputs / method / "checkpoint.pt"
    released = cfg.released / f"{method}.safetensors"
    if not checkpoint and not path.is_file() and released.is_file():
        return released
    if not path.exists():
        raise DataError(f"{display_path(path)} does not exist: train one with `python -m helpers train {method}` "
                        "or name one with --checkpoint")  # fmt: skip
    if not checkpoint and cfg.dataset == "phantoms" and released.is_file():
        print(f"note: {display_path(path)} was trained on synthetic phantoms; for real images use "
              f"--checkpoint {display_path(released)}")  # fmt: skip
    return path


def print_problems(problems: list[str]) -> None:
    """One line per problem; bytes of file names that are not UTF-8 are escaped."""
    text = "".join(f"! {problem}\n" for problem in problems)
    print(text.encode(errors="backslashreplace").decode(), end="")


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Before files are written: raise `DataError` if one of them is a file that was read, also by another name, or if
    a file has the name of a folder or the other way round; print how many files will be replaced. None among the
    `inputs` is ignored."""
    outputs = list(outputs)
    folders = {folder for path in outputs for folder in path.parents}
    if file := next((folder for folder in folders if folder.is_file()), None):
        raise DataError(f"{display_path(file)} is a file, expected the name of a folder")
    existing = [path for path in outputs if path.exists()]
    if folder := next((path for path in existing if path.is_dir()), None):
        raise DataError(f"{display_path(folder)} is a folder, expected the name of a file")
    read = {_identity(path) for path in inputs if existing and path is not None and path.exists()}
    if clash := next((path for path in existing if _identity(path) in read), None):
        raise DataError(f"{display_path(clash)} is read by this command and would be overwritten: choose another --out")
    if existing:
        names = ", ".join(display_path(path) for path in existing[:3])
        print_problems([f"{len(existing)} existing files are replaced: {names}{', ...' * (len(existing) > 3)}"])


def _identity(path: Path) -> tuple[int, int]:
    """What paths of one file have in common, through links and other spellings."""
    return path.stat().st_dev, path.stat().st_ino
