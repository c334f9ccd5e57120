"""Small folders in every published layout, made of pictures that are no skin at all."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as published

HAM = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def paint(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    """A smooth random picture of `size` (width, height); another seed, another picture."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 220, (6, 6, 3)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8))
    return path


def paint_mask(path: Path, size: tuple[int, int] = (40, 32)) -> Path:
    mask = np.zeros(size[::-1], np.uint8)
    cv2.circle(mask, (size[0] // 2, size[1] // 2), size[1] // 4, 255, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)
    return path


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def isic2016(root: Path, count: int = 10) -> Path:
    for part, first, words in (("Training", 0, ("benign", "malignant")), ("Test", 100, ("0.0", "1.0"))):
        ids = [f"ISIC_{first + i:07d}" for i in range(count)]
        for i, name in enumerate(ids):
            paint(root / f"ISBI2016_ISIC_Part1_{part}_Data" / f"{name}.jpg", first + i)
            paint_mask(root / f"ISBI2016_ISIC_Part1_{part}_GroundTruth" / f"{name}_Segmentation.png")
        lines = [f"{name},{words[i % 3 == 0]}" for i, name in enumerate(ids)]
        write(root / f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv", *lines)
    return root


def isic2017(root: Path, count: int = 6) -> Path:
    for number, part in enumerate(("Training", "Validation", "Test_v2")):
        ids = [f"ISIC_{100 * number + i:07d}" for i in range(count)]
        for i, name in enumerate(ids):
            paint(root / f"ISIC-2017_{part}_Data" / f"{name}.jpg", 100 * number + i)
            paint(root / f"ISIC-2017_{part}_Data" / f"{name}_superpixels.png", 7)
            paint_mask(root / f"ISIC-2017_{part}_Part1_GroundTruth" / f"{name}_segmentation.png")
        rows = [f"{name},{float(i % 3 == 0)},{float(i % 3 == 1)}" for i, name in enumerate(ids)]
        write(root / f"ISIC-2017_{part}_Part3_GroundTruth.csv", "image_id,melanoma,seborrheic_keratosis", *rows)
    return root


def ham10000(root: Path, count: int = 14) -> Path:
    """Two photographs of every lesion."""
    ids = [f"ISIC_{24306 + i:07d}" for i in range(count)]
    for i, name in enumerate(ids):
        paint(root / f"HAM10000_images_part_{1 + i % 2}" / f"{name}.jpg", i)
        paint_mask(root / "HAM10000_segmentations_lesion_tschandl" / f"{name}_segmentation.png")
    rows = [f"HAM_{i // 2:07d},{name},{HAM[i // 2 % 7].lower()},histo,50,male,back" for i, name in enumerate(ids)]
    write(root / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", *rows)
    return root


def one_hot(names: list[str]) -> list[str]:
    rows = [name + "," + ",".join(str(float(i % 7 == k)) for k in range(7)) for i, name in enumerate(names)]
    return ["image," + ",".join(HAM), *rows]


def course(root: Path, count: int = 14) -> Path:
    train = [f"ISIC_{24306 + i:07d}" for i in range(count)]
    test = [f"ISIC_{33000 + i:07d}" for i in range(7)]
    for i, name in enumerate(train):
        paint(root / "Train_data" / f"{name}.jpg", i)
        paint_mask(root / "Train/Train_sketch/Contours" / f"sketch_{name}.png")
        paint_mask(root / "Train/Unpaired_train_sketch/Contours" / f"sketch_{i}.png")
    for i, name in enumerate(test):
        paint(root / "Test/Test_data/Test" / f"{name}.jpg", 500 + i)
        paint_mask(root / "Test/Test_sketch/Test_contours" / f"sketch_{name}.png")
    write(root / "Train_labels.csv", *one_hot(train))
    write(root / "Test_Labels.csv", *one_hot(test))
    return root


def folders(root: Path) -> Path:
    for split, first, count in (("Train", 0, 6), ("Test", 50, 3)):
        for number, name in enumerate(("melanoma", "nevus", "dermatofibroma")):
            for i in range(count):
                seed = first + 100 * number + i
                paint(root / split / name / f"ISIC_{seed:07d}.jpg", seed)
    return root


def random_inception() -> torch.nn.Module:
    """torch-fidelity's Inception with weights that nobody trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(published.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        return published.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
