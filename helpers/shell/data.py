"""Commands that check, prepare and copy data sets."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from helpers.config import display_path, get_config
from helpers.data.audit import audit
from helpers.data.layouts import read
from helpers.data.shrink import shrink_ham10000
from helpers.data.store import UNKNOWN
from helpers.data.tables import DatasetTable
from helpers.experiments.evaluation import open_store
from helpers.models.artifacts import ensure_artifacts
from helpers.presets import PRESETS
from helpers.shell.base import Command, DataCommand, print_problems


@dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Status 1 if the folder cannot be used."""

    folder: tyro.conf.Positional[Path]  # of any known layout
    classes: tuple[str, ...] = ()  # keep only these classes

    def run(self) -> int:
        report = audit(read(self.folder, list(self.classes) or None), workers=self.config().workers)
        print(report)
        return 1 if report.unusable else 0


@dataclass(frozen=True, kw_only=True)
class Prepare(DataCommand):
    """Adds the artifact flags of the released detector if the set has none."""

    size: int  # pixels per side
    style: Literal["contour", "structure"] | None = None  # default: contour with masks or sketches, else structure
    crop: Literal["center", "none"] = "center"  # central square, or whole image
    classes: tuple[str, ...] = ()  # keep only these classes
    out: Path | None = None  # folder for the store; default: data/stores

    @classmethod
    def default(cls) -> "Prepare":
        return cls(size=PRESETS[get_config().profile]["store"].size)

    def run(self) -> int:
        started, cfg = time.perf_counter(), self.config()
        cfg = replace(cfg, stores=self.out or cfg.stores)
        store = open_store(cfg, self.size, self.style, self.crop, self.classes)
        if (store.artifacts == UNKNOWN).any() and (cfg.released / "artifacts.safetensors").is_file():
            ensure_artifacts(store)
        print(DatasetTable(store.name, cfg.data_root, store.table, store.classes).counts().to_string())
        print_problems(store.problems)
        print(f"{store}\n{display_path(store.folder)}")
        print(f"{time.perf_counter() - started:.0f} s")
        return 0


@dataclass(frozen=True, kw_only=True)
class Shrink(DataCommand):
    """The copy has the published layout: it is prepared and trained on like the original."""

    out: Path  # folder for the copy
    size: int = 128  # pixels per side

    def run(self) -> int:
        num_bytes = shrink_ham10000(self.out, self.size, self.config())
        print(f"{num_bytes / 1e6:.1f} MB in {display_path(self.out)}")
        return 0
