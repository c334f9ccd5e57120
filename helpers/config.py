"""Paths, profile, data set, seed and sizes of every part of the project, read from the environment in this file only.

Environment variables: `LESION_PROFILE` (one of `PROFILES`), `LESION_DATASET` (one of `DATASETS`), `LESION_DATA_ROOT`
(folder of that data set), `LESION_WEIGHTS_DIR` (folder of pretrained weights). Relative paths start at the repository
root.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

# owner/name on GitHub: `make badges REPO=owner/name` changes it here, in the README and in every notebook.
REPOSITORY = "sketch2lesion/sketch2lesion"

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("smoke", "demo", "full")
DATASETS = ("phantoms", "isic2016", "isic2017", "ham10000", "course", "folders")

# Part of the project -> profile -> settings that differ between the profiles.
SIZES = {
    "data": {
        "smoke": {"size": 64, "batch_size": 16},
        "demo": {"size": 128, "batch_size": 64},
        "full": {"size": 128, "batch_size": 64},
    },
    "sketches": {
        "smoke": {"size": 64, "num_examples": 3},
        "demo": {"size": 128, "num_examples": 6},
        "full": {"size": 128, "num_examples": 6},
    },
    "cgan": {
        "smoke": {"size": 64, "base_channels": 8, "steps": 6, "batch_size": 4, "projected": True},
        "demo": {"size": 64, "base_channels": 32, "steps": 500, "batch_size": 4, "projected": True},
        "full": {"size": 256, "base_channels": 64, "steps": 60_000, "batch_size": 16, "projected": True},
    },
    "segmenter": {
        "smoke": {"size": 64, "arch": "Unet", "encoder_name": "mobilenet_v2", "steps": 6, "batch_size": 4},
        "demo": {"size": 128, "arch": "Unet", "encoder_name": "mobilenet_v2", "steps": 120, "batch_size": 16},
        "full": {"size": 256, "arch": "Unet", "encoder_name": "resnet34", "steps": 8_000, "batch_size": 32},
    },
    "segmentation_notebook": {  # notebook 4: does a segmenter gain from synthetic pairs?
        "smoke": {"size": 64, "steps": 4, "batch_size": 4, "fractions": (1.0,), "seeds": (0, 1)}
        | {"base_channels": 8, "gan_steps": 4, "gan_batch_size": 4, "num_pairs": 8},
        "demo": {"size": 64, "steps": 24, "batch_size": 12, "fractions": (0.1,), "seeds": (0, 1, 2)}
        | {"base_channels": 32, "gan_steps": 150, "gan_batch_size": 8, "num_pairs": 300},
        "full": {"size": 256, "steps": 4_000, "batch_size": 32, "fractions": (0.1, 1.0), "seeds": (0, 1, 2)}
        | {"base_channels": 64, "gan_steps": 40_000, "gan_batch_size": 16, "num_pairs": 4_000},
    },
    "artifacts": {
        "smoke": {"size": 64, "steps": 6, "batch_size": 4},
        "demo": {"size": 128, "steps": 300, "batch_size": 16},
        "full": {"size": 128, "steps": 1_500, "batch_size": 64},
    },
    "dcgan": {
        "smoke": {"size": 64, "base_channels": 8, "steps": 6, "batch_size": 4},
        "demo": {"size": 64, "base_channels": 32, "steps": 500, "batch_size": 8},
        "full": {"size": 128, "base_channels": 64, "steps": 40_000, "batch_size": 16},
    },
    "real_vs_synthetic_notebook": {  # notebook 6: does a classifier gain from synthetic images?
        "smoke": {"size": 64, "arch": "small_cnn", "steps": 4, "batch_size": 8, "fractions": (1.0,), "seeds": (0, 1)}
        | {
            "base_channels": 8,
            "gan_steps": 4,
            "gan_batch_size": 4,
            "num_synthetic": 14,
            "archs": ("small_cnn", "mobilenet_v2"),
        },
        "demo": {
            "size": 64,
            "arch": "small_cnn",
            "steps": 40,
            "batch_size": 32,
            "fractions": (0.1,),
            "seeds": (0, 1, 2),
        }
        | {"base_channels": 32, "gan_steps": 300, "gan_batch_size": 4, "num_synthetic": 700}
        | {"archs": ("small_cnn", "resnet18", "mobilenet_v2")},
        "full": {"size": 128, "arch": "resnet18", "steps": 4_000, "batch_size": 64}
        | {"fractions": (0.1, 1.0), "seeds": (0, 1, 2)}
        | {"base_channels": 64, "gan_steps": 40_000, "gan_batch_size": 16, "num_synthetic": 14_000}
        | {"archs": ("small_cnn", "resnet18", "resnet50", "vgg19", "mobilenet_v2", "efficientnet_b0")},
    },
    "balancing_notebook": {  # notebook 7: what raises the recall of rare classes?
        "smoke": {"size": 64, "arch": "small_cnn", "steps": 2, "batch_size": 8, "folds": 2, "seeds": (0, 1)}
        | {"num_synthetic": 6, "real_per_synthetic": (1,)}
        | {"base_channels": 8, "gan_steps": 2, "gan_batch_size": 4, "dcgan_steps": 2, "dcgan_batch_size": 4}
        | {"backbone": "mobilenet_v2", "num_feature_images": 24},
        "demo": {"size": 64, "arch": "small_cnn", "steps": 30, "batch_size": 32, "folds": 2, "seeds": (0, 1, 2)}
        | {"num_synthetic": 300, "real_per_synthetic": (1,)}
        | {"base_channels": 16, "gan_steps": 150, "gan_batch_size": 4, "dcgan_steps": 100, "dcgan_batch_size": 8}
        | {"backbone": "mobilenet_v2", "num_feature_images": 300},
        "full": {"size": 128, "arch": "resnet18", "steps": 4_000, "batch_size": 64, "folds": 5, "seeds": (0, 1, 2)}
        | {"num_synthetic": 6_000, "real_per_synthetic": (1, 4), "base_channels": 64}
        | {"gan_steps": 40_000, "gan_batch_size": 16, "dcgan_steps": 40_000, "dcgan_batch_size": 16}
        | {"backbone": "resnet18", "num_feature_images": 2_000},
    },
    "ablation": {  # what does each component of the CGAN contribute, and how many real images does it need?
        "smoke": {
            "size": 64,
            "base_channels": 8,
            "steps": 2,
            "batch_size": 4,
            "num_eval": 12,
            "fractions": (0.5, 1.0),
            "seeds": (0, 1),
        },
        "demo": {"size": 64, "base_channels": 32, "steps": 1_500, "batch_size": 4, "num_eval": 1_000}
        | {"fractions": (0.0125, 0.05, 0.2, 1.0), "seeds": (0, 1)},
        "full": {"size": 128, "base_channels": 64, "steps": 20_000, "batch_size": 16, "num_eval": 1_000}
        | {"fractions": (0.0125, 0.05, 0.2, 1.0), "seeds": (0, 1)},
    },
    "classifier": {  # notebook 6, and the classifier that is used as a feature extractor
        "smoke": {"size": 64, "arch": "small_cnn", "steps": 6, "batch_size": 16},
        "demo": {"size": 64, "arch": "small_cnn", "steps": 300, "batch_size": 32},
        "full": {"size": 256, "arch": "resnet18", "steps": 6_000, "batch_size": 64},
    },
}
# The experiments of notebooks 4, 6 and 7 as shell commands, which train longer in the demo profile.
SIZES["segmentation"] = SIZES["segmentation_notebook"] | {
    "demo": {"size": 64, "steps": 300, "batch_size": 16, "fractions": (0.1, 1.0), "seeds": (0, 1, 2)}
    | {"base_channels": 32, "gan_steps": 3_000, "gan_batch_size": 4, "num_pairs": 2_000},
}
SIZES["real_vs_synthetic"] = SIZES["real_vs_synthetic_notebook"] | {
    "demo": SIZES["real_vs_synthetic_notebook"]["demo"]
    | {"arch": "mobilenet_v2", "steps": 400, "fractions": (0.1, 1.0)}
    | {"gan_steps": 4_000, "num_synthetic": 3_500}
}
SIZES["balancing"] = SIZES["balancing_notebook"] | {
    "demo": SIZES["balancing_notebook"]["demo"]
    | {"arch": "mobilenet_v2", "steps": 250, "folds": 5, "num_synthetic": 1_500}
    | {"base_channels": 32, "gan_steps": 4_000, "dcgan_steps": 3_000}
}


def get_config(part: str, dataset: str | None = None, data_root: str | Path | None = None) -> SimpleNamespace:
    """Configuration of one part ("data", "sketches", ...) for the profile and data set that the environment selects.

    `dataset` and `data_root` override the environment; a relative `data_root` starts at the working directory.
    Fields: `profile dataset data_root stores released features outputs seed projected workers`, then those of
    `SIZES[part]`.
    Raises `ValueError` if `part`, `dataset` or a variable has an unknown value.
    """
    profile = _choose("LESION_PROFILE", None, "demo", PROFILES)
    name = _choose("LESION_DATASET", dataset, "phantoms", DATASETS)
    if part not in SIZES:
        raise ValueError(f"part must be one of {', '.join(SIZES)}, got {part!r}")
    # Each profile has a sample of its own size, so a smoke run never overwrites that of the demo.
    folder = f"data/phantoms-{profile}" if name == "phantoms" else f"data/{name}"
    if os.environ.get("LESION_DATASET", name) in ("", name):  # else LESION_DATA_ROOT belongs to another data set
        folder = os.environ.get("LESION_DATA_ROOT") or folder
    return SimpleNamespace(
        profile=profile,
        dataset=name,
        data_root=Path(data_root).resolve() if data_root else ROOT / Path(folder).expanduser(),
        stores=ROOT / "data" / "stores",
        released=ROOT / "data" / "released",
        features=ROOT / "data" / "features",
        outputs=ROOT / "outputs" / f"{name}-{profile}",
        seed=0,
        workers=cpu_count(),
        **{"projected": False} | SIZES[part][profile],  # projected: kind of discriminator, see `models/projected.py`
    )


def find_weights_file(*names: str) -> Path | None:
    """Path of the first of these file names that exists in LESION_WEIGHTS_DIR, or None.

    Callers search it before they download. A relative LESION_WEIGHTS_DIR starts at the repository root.
    """
    folder = os.environ.get("LESION_WEIGHTS_DIR")
    candidates = [ROOT / Path(folder).expanduser() / name for name in names] if folder else []
    return next((path for path in candidates if path.is_file()), None)


def display_path(path: str | Path) -> str:
    """Path for messages: relative to the repository root if it is inside, else to the working directory.

    Keeps folder names of the machine out of notebooks and pages.
    """
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else os.path.relpath(path)


# Import names that differ from pip's, and packages that a notebook in Colab does not need or must not replace.
IMPORT_NAMES = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn"}
NOT_IN_COLAB = {"torch", "torchvision", "numpy", "jupyter", "nbval", "pytest", "pytest-xdist", "playwright", "ruff"}


def missing_requirements() -> list[str]:
    """Lines of requirements.txt whose package cannot be imported.

    Never torch, torchvision or numpy: Colab's builds match its GPU and its other packages, and replacing them breaks
    the running session.
    """
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    names = {line: re.split(r"[<>=!~;\[ ]", line)[0] for line in lines if line}
    modules = {line: IMPORT_NAMES.get(name, name.replace("-", "_")) for line, name in names.items()}
    return [line for line, module in modules.items() if names[line] not in NOT_IN_COLAB and find_spec(module) is None]


def install_missing() -> None:
    """Install `missing_requirements` with pip and print their names; print nothing if none is missing."""
    if missing := missing_requirements():
        print("installing", ", ".join(missing))
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)


def cpu_count() -> int:
    """Cores that this process may use; containers and batch systems often allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose(variable: str, override: str | None, default: str, allowed: tuple[str, ...]) -> str:
    value = override or os.environ.get(variable) or default
    if value not in allowed:
        raise ValueError(f"{variable} must be one of {', '.join(allowed)}, got {value!r}")
    return value
