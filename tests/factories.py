"""Test data and test doubles that several test files share: small folders in every published layout, filled with
random images that do not show skin, and the smallest tasks and networks."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from helpers.models.trainer import Backward, TrainTask
from helpers.phantoms.render import render

HAM = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    """Write a smooth random image of `size` (width, height); another seed gives another image."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 220, (6, 6, 3)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8))
    return path


def write_mask(path: Path, size: tuple[int, int] = (40, 32)) -> Path:
    """Write a mask of `size` (width, height) with a disc in {0, 255}."""
    mask = np.zeros(size[::-1], np.uint8)
    cv2.circle(mask, (size[0] // 2, size[1] // 2), size[1] // 4, 255, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)
    return path


def write_lines(path: Path, *lines: str) -> Path:
    """Write a text file with these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def isic2016(root: Path, count: int = 10) -> Path:
    """ISIC 2016: `count` training and `count` test images with masks; every third is malignant."""
    for part, first, values in (("Training", 0, ("benign", "malignant")), ("Test", 100, ("0.0", "1.0"))):
        ids = [f"ISIC_{first + i:07d}" for i in range(count)]
        for i, name in enumerate(ids):
            write_image(root / f"ISBI2016_ISIC_Part1_{part}_Data" / f"{name}.jpg", first + i)
            write_mask(root / f"ISBI2016_ISIC_Part1_{part}_GroundTruth" / f"{name}_Segmentation.png")
        lines = [f"{name},{values[i % 3 == 0]}" for i, name in enumerate(ids)]
        write_lines(root / f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv", *lines)
    return root


def isic2017(root: Path, count: int = 6) -> Path:
    """ISIC 2017: `count` images of each split with superpixels (which must be ignored), masks and labels."""
    for number, part in enumerate(("Training", "Validation", "Test_v2")):
        ids = [f"ISIC_{100 * number + i:07d}" for i in range(count)]
        for i, name in enumerate(ids):
            write_image(root / f"ISIC-2017_{part}_Data" / f"{name}.jpg", 100 * number + i)
            write_image(root / f"ISIC-2017_{part}_Data" / f"{name}_superpixels.png", 7)
            write_mask(root / f"ISIC-2017_{part}_Part1_GroundTruth" / f"{name}_segmentation.png")
        rows = [f"{name},{float(i % 3 == 0)},{float(i % 3 == 1)}" for i, name in enumerate(ids)]
        write_lines(root / f"ISIC-2017_{part}_Part3_GroundTruth.csv", "image_id,melanoma,seborrheic_keratosis", *rows)
    return root


def ham10000(root: Path, count: int = 14) -> Path:
    """HAM10000: `count` images with masks, two of every lesion."""
    ids = [f"ISIC_{24306 + i:07d}" for i in range(count)]
    for i, name in enumerate(ids):
        write_image(root / f"HAM10000_images_part_{1 + i % 2}" / f"{name}.jpg", i)
        write_mask(root / "HAM10000_segmentations_lesion_tschandl" / f"{name}_segmentation.png")
    rows = [f"HAM_{i // 2:07d},{name},{HAM[i // 2 % 7].lower()},histo,50,male,back" for i, name in enumerate(ids)]
    write_lines(root / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", *rows)
    return root


def one_hot(names: list[str]) -> list[str]:
    """Lines of a one-hot label file; image i has class i modulo 7."""
    rows = [name + "," + ",".join(str(float(i % 7 == k)) for k in range(7)) for i, name in enumerate(names)]
    return ["image," + ",".join(HAM), *rows]


def course(root: Path, count: int = 14) -> Path:
    """The course's folders: `count` training and 7 test images with contours, and unpaired contours."""
    train = [f"ISIC_{24306 + i:07d}" for i in range(count)]
    test = [f"ISIC_{33000 + i:07d}" for i in range(7)]
    for i, name in enumerate(train):
        write_image(root / "Train_data" / f"{name}.jpg", i)
        write_mask(root / "Train/Train_sketch/Contours" / f"sketch_{name}.png")
        write_mask(root / "Train/Unpaired_train_sketch/Contours" / f"sketch_{i}.png")
    for i, name in enumerate(test):
        write_image(root / "Test/Test_data/Test" / f"{name}.jpg", 500 + i)
        write_mask(root / "Test/Test_sketch/Test_contours" / f"sketch_{name}.png")
    write_lines(root / "Train_labels.csv", *one_hot(train))
    write_lines(root / "Test_Labels.csv", *one_hot(test))
    return root


def folders(root: Path) -> Path:
    """Class folders: 6 training and 3 test images of each of three classes."""
    for split, first, count in (("Train", 0, 6), ("Test", 50, 3)):
        for number, name in enumerate(("melanoma", "nevus", "dermatofibroma")):
            for i in range(count):
                seed = first + 100 * number + i
                write_image(root / split / name / f"ISIC_{seed:07d}.jpg", seed)
    return root


PH2_CODES = {"IMD002": 0, "IMD003": 0, "IMD004": 1, "IMD009": 1, "IMD058": 2, "IMD061": 2}  # diagnosis of each case
PH2_NAMES = ["Common Nevus", "Atypical Nevus", "Melanoma"]


def ph2(root: Path) -> Path:
    """PH2: six cases with a mask and a mask of a color, and labels as text and as workbook."""
    for seed, name in enumerate(PH2_CODES):
        case = root / "PH2 Dataset images" / name
        write_image(case / f"{name}_Dermoscopic_Image" / f"{name}.bmp", seed)
        write_mask(case / f"{name}_lesion" / f"{name}_lesion.bmp")
        write_mask(case / f"{name}_roi" / f"{name}_R1_Label4.bmp")
    header = "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network ||  Colors ||"
    rows = [f"|| {name} ||                ||                  {code} || 0 | AT ||  3  4 ||"
            for name, code in PH2_CODES.items()]  # fmt: skip
    write_lines(root / "PH2_dataset.txt", header, *rows, "", "Legends:", " Clinical Diagnosis: 0 - Common Nevus; ...")
    columns = ["Image Name", "Histological Diagnosis", *PH2_NAMES, "Asymmetry"]
    crosses = [[name, "", *("X" if code == k else "" for k in range(3)), "0"] for name, code in PH2_CODES.items()]
    write_xlsx(root / "PH2_dataset.xlsx", [["Legends"], ["", "0 - Common Nevus"], [], columns, *crosses])
    return root


def write_xlsx(path: Path, rows: list[list[str]]) -> Path:
    """Write a workbook of texts, as Excel does: shared strings, and no cell where the text is empty."""
    texts = sorted({text for row in rows for text in row})
    cells = [
        "".join(f'<c r="{chr(65 + k)}{n}" t="s"><v>{texts.index(text)}</v></c>' for k, text in enumerate(row) if text)
        for n, row in enumerate(rows, 1)
    ]
    name = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    body = "".join(f'<row r="{n}">{row}</row>' for n, row in enumerate(cells, 1))
    with zipfile.ZipFile(path, "w") as archive:
        strings = "".join(f"<si><t>{text}</t></si>" for text in texts)
        archive.writestr("xl/sharedStrings.xml", f"<sst {name}>{strings}</sst>")
        archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet {name}><sheetData>{body}</sheetData></worksheet>")
    return path


def derm7pt(root: Path) -> Path:
    """derm7pt: eight cases of four diagnoses with a dermoscopic and a clinical image; the case of a path differs from
    the file's in every second one. Splits of four, two and two cases."""
    diagnoses = ["clark nevus", "melanoma (in situ)", "seborrheic keratosis", "lentigo"] * 2
    lines = ["case_num,diagnosis,seven_point_score,clinic,derm,case_id,notes"]
    for k, diagnosis in enumerate(diagnoses):
        derm, clinic = f"NEL/Nel{k:03d}.jpg", f"NEL/Nel{k:03d}c.jpg"
        write_image(root / "images" / derm, k)
        write_image(root / "images" / clinic, 50 + k)
        lines.append(f"{k + 1},{diagnosis},2,{clinic},{derm.upper() if k % 2 else derm},,")
    write_lines(root / "meta/meta.csv", *lines)
    for name, numbers in (("train", "0123"), ("valid", "45"), ("test", "67")):
        write_lines(root / "meta" / f"{name}_indexes.csv", "indexes", *numbers)
    return root


def pad_ufes_20(root: Path) -> Path:
    """PAD-UFES-20: two images of each of six diagnoses, of six patients, in three parts."""
    lines = ["patient_id,lesion_id,smoke,img_id,diagnostic,biopsed"]
    for k, diagnosis in enumerate(["ACK", "BCC", "MEL", "NEV", "SCC", "SEK"] * 2):
        name = f"PAT_{k % 6}_{k % 6 + 20}_{k}.png"
        write_image(root / f"images/imgs_part_{k % 3 + 1}/imgs_part_{k % 3 + 1}" / name, k)
        lines.append(f"PAT_{k % 6},{k % 6 + 20},,{name},{diagnosis},True")
    write_lines(root / "metadata.csv", *lines)
    return root


def own_images(root: Path, per_class: int = 12) -> Path:
    """Class folders without masks: `per_class` phantoms of each of three classes, in three sizes."""
    for number, name in enumerate(("melanoma", "nevus", "basal cell carcinoma")):
        (root / name).mkdir(parents=True)
        for k in range(per_class):
            image = render(number, seed=100 * number + k, size=80)[0]
            size = [(80, 80), (96, 72), (72, 90)][k % 3]  # width, height
            cv2.imwrite(str(root / name / f"{name[:3]}_{k}.png"), cv2.resize(image, size)[..., ::-1])
    return root


def random_inception() -> nn.Module:
    """torch-fidelity's Inception with random weights instead of a download."""
    from torch_fidelity import feature_extractor_inceptionv3 as published  # takes seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(published.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        return published.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])


def inception_weights(path: Path) -> Path:
    """A file of random weights for torch-fidelity's Inception, scaled so that signals keep their size: with plain ones
    every feature is nearly 0, and so is every FID."""
    network, generator = random_inception(), torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2, generator=generator)
    torch.save(network.state_dict(), path)
    return path


# ------------------------------------------------------------------------------------------------------- test doubles


class MeanPoolExtractor(torch.nn.Module):
    """Network of a feature extractor with known features: the mean colors of a 4 x 4 grid, times `gain`. Counts the
    images it gets."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain, self.num_images = torch.nn.Parameter(torch.tensor(gain)), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_images += len(x)
        return self.gain * torch.nn.functional.adaptive_avg_pool2d(x / 255, 4).flatten(1)


@dataclass(frozen=True)
class LinearConfig:
    lr: float = 0.05


class LinearTask(TrainTask):
    """The smallest task: fit a line to points. Noise in every step makes the result depend on the random state."""

    ema_names = ("line",)

    def __init__(self, lr: float = 0.05, noise: float = 0.01):
        torch.manual_seed(0)
        self.config, self.noise = LinearConfig(lr), noise
        self.networks = {"line": nn.Linear(1, 1)}
        self.optimizers = {"line": torch.optim.Adam(self.networks["line"].parameters(), lr=lr)}
        self.checkpoint_steps = []

    def training_step(self, batch: dict, step: int, backward: Backward) -> dict[str, torch.Tensor]:
        x = batch["x"] + self.noise * torch.randn_like(batch["x"])
        loss = (self.networks["line"](x) - (3 * batch["x"] + 1)).square().mean()
        self._optimizer_step("line", loss, backward)
        return {"loss": loss}

    def on_checkpoint(self, ema_models: dict[str, nn.Module], folder: Path, step: int) -> None:
        self.checkpoint_steps.append(step)


def get_linear_batch(step: int, rank: int) -> dict[str, torch.Tensor]:
    """Eight points in [0, 1), the same for the same step and rank."""
    return {"x": torch.rand(8, 1, generator=torch.Generator().manual_seed(1000 * rank + step))}


def load_checkpoint(folder: Path) -> dict:
    """What `train` wrote to `folder`."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def circle(size: int = 64) -> np.ndarray:
    """A sketch of a circle, `uint8 (size, size)` in {0, 255}."""
    y, x = np.mgrid[:size, :size] - size / 2
    return np.where(np.abs(np.hypot(x, y) - size / 4) < 1.5, 255, 0).astype(np.uint8)


def random_batch() -> dict[str, torch.Tensor]:
    """Four random images of 64 px with sketches, labels and artifact flags, as in a training step."""
    images, sketches = torch.rand(4, 3, 64, 64) * 2 - 1, torch.rand(4, 1, 64, 64).round()
    return {"images": images, "sketches": sketches, "labels": torch.arange(4), "artifacts": torch.rand(4, 7).round()}


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] as uint8 (B, H, W, 3)."""
    return ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
