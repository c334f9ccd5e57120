"""Small folders of phantoms in two layouts that projects start from: the course's "ISIC 2016", and nine class folders
with copies in them. Notebook 1 shows how both are read."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.files import atomic_folder, write_image
from helpers.data.sketches import contour
from helpers.phantoms.classes import CLASSES
from helpers.phantoms.render import render

COURSE = {  # split: labels, images, sketches, first id
    "train": ("Train_labels.csv", "Train_data", "Train/Train_sketch/Contours", 24306),
    "test": ("Test_Labels.csv", "Test/Test_data/Test", "Test/Test_sketch/Test_contours", 33000),
}
# The nine names of the set, and the phantom class that stands for each.
NINE_CLASSES = {
    "actinic keratosis": "AKIEC", "basal cell carcinoma": "BCC", "dermatofibroma": "DF", "melanoma": "MEL",
    "nevus": "NV", "pigmented benign keratosis": "BKL", "seborrheic keratosis": "BKL",
    "squamous cell carcinoma": "AKIEC", "vascular lesion": "VASC",
}  # fmt: skip


def write_course(folder: str | Path, train: int = 14, test: int = 7, size: int = 64) -> Path:
    """Write `train` and `test` phantoms with sketches and labels as the course does; replaces and returns `folder`."""
    with atomic_folder(Path(folder)) as root:
        for count, (labels, images, sketches, first) in zip((train, test), COURSE.values(), strict=True):
            ids = [f"ISIC_{first + k:07d}" for k in range(count)]
            for place in (images, sketches):
                (root / place).mkdir(parents=True)
            for k, name in enumerate(ids):
                image, mask = render(k % len(CLASSES), first + k, size)
                write_image(root / images / f"{name}.jpg", image)
                write_image(root / sketches / f"sketch_{name}.png", contour(mask))
            one_hot = np.eye(len(CLASSES), dtype=int)[np.arange(count) % len(CLASSES)]
            pd.DataFrame(one_hot, pd.Index(ids, name="image"), CLASSES).to_csv(root / labels)
    return Path(folder)


def write_class_folders(folder: str | Path, per_class: int = 4, copies: int = 3, size: int = 64) -> Path:
    """Write nine class folders of phantoms, 3/4 of them in Train/ and the others in Test/. The first `copies` melanomas
    of Train/ are in its nevi too, and the first one is in Test/ as well. Replaces and returns `folder`."""
    with atomic_folder(Path(folder)) as root:
        for number, (name, phantom) in enumerate(NINE_CLASSES.items()):
            for k in range(per_class):
                path = root / ("Train" if k < 3 * per_class / 4 else "Test") / name / f"ISIC_{100 * number + k:07d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, render(CLASSES.index(phantom), 100 * number + k, size)[0])
        melanomas = sorted((root / "Train/melanoma").iterdir())
        for path in melanomas[:copies]:
            shutil.copyfile(path, root / "Train/nevus" / path.name)
        shutil.copyfile(melanomas[0], root / "Test/melanoma/ISIC_0009999.jpg")
    return Path(folder)


def draw_tree(folder: str | Path, indent: str = "") -> str:
    """The folders and tables in `folder`, a line each, as ASCII; images are counted."""
    folder, lines = Path(folder), []
    inner = sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix == ".csv")
    for path in inner:
        images = sum(file.is_file() and file.suffix != ".csv" for file in path.iterdir()) if path.is_dir() else 0
        name = f"{path.name}/" if path.is_dir() else path.name
        count = f"  {images} image{'s' * (images > 1)}" if images else ""
        lines.append(f"{indent}|-- {name}{count}")
        if path.is_dir() and (below := draw_tree(path, f"{indent}|   ")):
            lines.append(below)
    return "\n".join(lines)
