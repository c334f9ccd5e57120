"""Notebooks in Colab: what is missing is installed, and results are kept on Google Drive if wanted.

Trainings write to the machine's own disk, because Drive can drop out while one runs. Every finished checkpoint and
result is copied to Drive; after a disconnect the copies come back and the same cells continue.
"""

import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from helpers.config import ROOT, get_config

# Import names that differ from pip's, and packages that a notebook in Colab does not need or must not replace.
IMPORT_NAMES = {"opencv-python-headless": "cv2", "pillow": "PIL", "scikit-learn": "sklearn"}
TESTING = {"nbval", "pytest", "pytest-xdist", "playwright", "axe-playwright-python", "ruff"}
TESTING |= {"onnx", "onnxscript", "onnxruntime"}
NOT_IN_COLAB = {"torch", "torchvision", "numpy", "jupyter", *TESTING}
DRIVE = Path("/content/drive")
KEPT = ("checkpoint.pt", "history.json", "*.csv", "plan.json")  # copied to Drive and back


def setup(keep_on_drive: bool = False) -> None:
    """Install missing requirements; with `keep_on_drive` mount Drive and bring back what was kept there."""
    install_missing()
    if keep_on_drive:
        from google.colab import drive  # exists in Colab only

        drive.mount(str(DRIVE))
        os.environ["LESION_KEEP"] = str(DRIVE / "MyDrive" / ROOT.name)
        if count := restore():
            print(f"{count} files of earlier sessions came back from Drive")


def missing_requirements() -> list[str]:
    """Lines of requirements.txt whose package cannot be imported.

    Never torch, torchvision or numpy: Colab's builds match its GPU and its other packages, and replacing them breaks
    the running session.
    """
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in requirements.splitlines()]
    names = {line: re.split(r"[<>=!~;\[ ]", line)[0] for line in lines if line}
    modules = {line: IMPORT_NAMES.get(name, name.replace("-", "_")) for line, name in names.items()}
    return [line for line, module in modules.items() if names[line] not in NOT_IN_COLAB and find_spec(module) is None]


def install_missing() -> None:
    """Install `missing_requirements` with pip and print their names; print nothing if none is missing."""
    if missing := missing_requirements():
        print("installing", ", ".join(missing))
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)


def keep(path: Path) -> None:
    """Copy a finished file below `outputs` to LESION_KEEP, if that is set. A failure is a warning: the training goes
    on."""
    cfg, path = get_config(), Path(path).resolve()
    if cfg.keep is None or not path.is_relative_to(cfg.outputs.parent):
        return
    target = cfg.keep / path.relative_to(cfg.outputs.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial := target.with_name(f".{target.name}"))
        partial.replace(target)
    except OSError as error:
        warnings.warn(f"{path.name} was not copied to Drive ({error})", stacklevel=2)


def restore() -> int:
    """Copy the files of LESION_KEEP that are absent below `outputs` back; returns their number."""
    cfg, count = get_config(), 0
    for file in sorted(path for pattern in KEPT for path in cfg.keep.rglob(pattern)):
        target = cfg.outputs.parent / file.relative_to(cfg.keep)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            count += 1
    return count
