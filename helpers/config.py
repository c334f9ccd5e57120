"""Paths, profile, data set and seed, read from the environment in this file only. Sizes are in `presets.py`.

Environment variables: `LESION_PROFILE` (one of `PROFILES`), `LESION_DATASET` (one of `DATASETS`), `LESION_DATA_ROOT`
(folder of that data set), `LESION_WEIGHTS_DIR` (folder of pretrained weights), `LESION_KEEP` (folder that checkpoints
and results are copied to, see `colab.py`). Relative paths start at the repository root.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

# owner/name on GitHub: `make badges REPO=owner/name` changes it here, in the README and in every notebook.
REPOSITORY = "sketch2lesion/sketch2lesion"

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("smoke", "demo", "colab", "full")
EXTERNAL = ("ph2", "derm7pt", "pad_ufes_20")  # data sets that only test what was trained on others
DATASETS = ("phantoms", "isic2016", "isic2017", "ham10000", "course", "folders", *EXTERNAL)


@dataclass(frozen=True)
class Config:
    """Paths, profile, data set and seed: what the environment decides. Sizes are in `presets.py`."""

    profile: str
    dataset: str
    data_root: Path  # folder of the data set
    outputs: Path  # folder for what is trained on this data set with this profile
    stores: Path
    released: Path
    features: Path  # cache of extracted features
    workers: int  # threads that read images
    seed: int = 0
    keep: Path | None = None  # folder that checkpoints and results are copied to


def get_config(dataset: str | None = None, data_root: str | Path | None = None) -> Config:
    """What the environment selects; `dataset` and `data_root` override it; `~` is the home folder.

    A relative LESION_DATA_ROOT starts at the repository root, a relative `data_root` at the working directory. Raises
    `ValueError` if `dataset` or a variable has an unknown value.
    """
    profile = _choose("LESION_PROFILE", None, "demo", PROFILES)
    name = _choose("LESION_DATASET", dataset, "phantoms", DATASETS)
    folder = default_root(name, profile)
    if os.environ.get("LESION_DATASET", name) in ("", name):  # else LESION_DATA_ROOT belongs to another data set
        folder = Path(os.environ.get("LESION_DATA_ROOT") or folder).expanduser()
    root = Path(data_root).expanduser().resolve() if data_root else ROOT / folder
    return Config(
        profile=profile,
        dataset=name,
        data_root=root,
        outputs=ROOT / "outputs" / f"{name}{_folder_suffix(name, root)}-{profile}",
        stores=ROOT / "data" / "stores",
        released=ROOT / "data" / "released",
        features=ROOT / "data" / "features",
        workers=cpu_count(),
        keep=ROOT / Path(keep).expanduser() if (keep := os.environ.get("LESION_KEEP")) else None,
    )


def default_root(dataset: str, profile: str) -> Path:
    """Folder of a data set for which none is named; a published set is downloaded only to this one."""
    # Each profile has a sample of its own size, so a smoke run never overwrites that of the demo.
    return ROOT / "data" / (f"phantoms-{profile}" if dataset == "phantoms" else dataset)


def find_weights_file(*names: str) -> Path | None:
    """Path of the first of these file names that exists in LESION_WEIGHTS_DIR, or None.

    Callers search it before they download. A relative LESION_WEIGHTS_DIR starts at the repository root.
    """
    folder = os.environ.get("LESION_WEIGHTS_DIR")
    candidates = [ROOT / Path(folder).expanduser() / name for name in names] if folder else []
    return next((path for path in candidates if path.is_file()), None)


def display_path(path: str | Path) -> str:
    """Path for messages: relative to the repository root if it is inside, else to the working directory, and absolute
    on another drive of Windows.

    Keeps folder names of the machine out of notebooks and pages.
    """
    path = Path(path).resolve()
    try:
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else os.path.relpath(path)
    except ValueError:
        return str(path)


def cpu_count() -> int:
    """Cores that this process may use; containers and batch systems often allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folder_suffix(name: str, root: Path) -> str:
    """For data sets that are anybody's folder: its name, and digits that distinguish folders of one name."""
    if name not in ("course", "folders") or root == default_root(name, ""):
        return ""
    return f"-{root.name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:6]}"


def _choose(variable: str, override: str | None, default: str, allowed: tuple[str, ...]) -> str:
    value = override or os.environ.get(variable) or default
    if value not in allowed:
        raise ValueError(f"{variable} must be one of {', '.join(allowed)}, got {value!r}")
    return value
