"""Commands that train networks and export their weights."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import tyro
from accelerate import PartialState

from helpers.config import display_path, get_config
from helpers.data.files import DataError
from helpers.data.layouts import open_dataset
from helpers.data.sketches import read_drawings
from helpers.data.store import Store
from helpers.experiments.evaluation import open_store
from helpers.experiments.learning_curve import LearningCurve
from helpers.metrics.extractors import load_extractor
from helpers.models.artifacts import ArtifactConfig, ensure_artifacts, read_flags, read_ids, train_artifacts
from helpers.models.checkpoint import export_weights
from helpers.models.classifier import ClassifierConfig, train_classifier
from helpers.models.device import peak_memory
from helpers.models.gan import GANConfig, grown_config, train_gan
from helpers.models.hub import LOADERS
from helpers.models.onnx_export import export_onnx
from helpers.models.segmenter import SegmenterConfig, baseline_config, train_segmenter
from helpers.models.simclr import SkinConfig, train_skin
from helpers.models.trainer import TrainConfig
from helpers.shell.base import Command, DataCommand, DatasetName, Flat, check_outputs, print_problems


@dataclass(frozen=True, kw_only=True)
class TrainCommand(DataCommand):
    """Prepares the data if needed, trains and prints the result (`fit`), and the peak memory."""

    train: Flat[TrainConfig]
    out: Path | None = None  # folder for checkpoint and history; default: outputs/.../METHOD

    def folder(self, method: str) -> Path:
        """Where checkpoint and history go."""
        return self.out or self.config().outputs / method

    def run(self) -> int:
        self.fit()
        print(peak_memory())
        return 0


@dataclass(frozen=True, kw_only=True)
class TrainCGAN(TrainCommand):
    """Generator with encoder and discriminator."""

    preset: ClassVar = "cgan"
    settings: Flat[GANConfig]
    init_from: Path | None = None  # initialize with the weights of this file, also of other classes
    grow: Path | None = None  # initialize with weights of half the size
    extractor: str = "mobilenet_v2"  # of the scores on val, see `evaluate folders`
    evaluate_every: int | None = None  # images; then scores on val go to val.csv, images to progress.png

    def __post_init__(self):
        if self.settings.style == "none":
            raise ValueError("a CGAN needs a sketch style; without a sketch: `train dcgan`")
        if self.init_from and self.grow:
            raise ValueError("--init-from and --grow exclude each other")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every must be at least 1, got {self.evaluate_every}")

    def fit(self) -> None:
        settings, sketches, out = self.settings, None, self.folder("cgan")
        files = [] if settings.paired else open_dataset(self.config(), list(settings.classes)).unpaired_sketches
        store = self.store(settings.size, None if files else settings.style, classes=settings.classes)
        settings = grown_config(settings, self.grow) if self.grow else settings
        if not settings.paired:
            sketches = unpaired_sketches(files, settings.size)
        curve = self.learning_curve(store, out) if self.evaluate_every else None
        init_from = self.grow or self.init_from
        train_gan(store, settings, out, self.train, sketches=sketches, init_from=init_from, evaluate=curve)
        checkpoint = display_path(out / "checkpoint.pt")
        print(f"trained: python -m helpers generate --checkpoint {checkpoint} --sketches FOLDER --out FOLDER")

    def learning_curve(self, store: Store, out: Path) -> LearningCurve:
        """Evaluation on val every `evaluate_every` images."""
        if self.settings.artifacts:
            ensure_artifacts(store)  # before the curve copies its batch
        images_per_step = self.train.batch_size * PartialState().num_processes
        return LearningCurve(store, load_extractor(self.extractor), out, images_per_step, self.evaluate_every)


def unpaired_sketches(files: list[Path], size: int) -> np.ndarray | None:
    """Sketches `uint8 (N, size, size)` in {0, 255} of these files, None without files. Raises `DataError` if none is
    readable."""
    if not files:
        print("no unpaired sketches found: each image gets a random sketch of the data set")
        return None
    problems = []
    sketches = read_drawings({str(path): path for path in files}, size, problems)
    print_problems(problems)
    print(f"{len(sketches):,} unpaired sketches")
    if not sketches:
        raise DataError("none of the unpaired sketches can be read: at least one is needed")
    return np.stack(list(sketches.values()))


@dataclass(frozen=True, kw_only=True)
class TrainDCGAN(TrainCommand):
    """The generator without a sketch."""

    preset: ClassVar = "dcgan"
    no_effect: ClassVar = dict.fromkeys(
        ("style", "paired", "hand_drawn_prob", "lambda_sketch", "separation_target", "fine_lines"),
        "a DCGAN has no sketch, `train cgan` has",
    )
    settings: Flat[GANConfig]

    def fit(self) -> None:
        store, out = self.store(self.settings.size, classes=self.settings.classes), self.folder("dcgan")
        train_gan(store, self.settings, out, self.train)
        print(f"trained; generated images: {display_path(out)}/grid-*.png")


@dataclass(frozen=True, kw_only=True)
class TrainSegmenter(TrainCommand):
    """A network of segmentation-models-pytorch."""

    preset: ClassVar = "segmenter"
    settings: Flat[SegmenterConfig]
    classes: tuple[str, ...] = ()  # keep only these classes
    init_from: Path | None = None  # initialize with the weights of this file
    baseline: bool = False  # random init, cross-entropy only, no augmentation, no EMA, no TTA

    def fit(self) -> None:
        settings, train, out = self.settings, self.train, self.folder("segmenter")
        store = self.store(settings.size, crop="none", classes=self.classes)
        if self.baseline:
            settings, train = baseline_config(settings), replace(train, ema_nimg=1)
        history = train_segmenter(store, settings, out, train, init_from=self.init_from)
        checkpoint = display_path(out / "checkpoint.pt")
        print(f"trained, {best_score(history['val_jaccard'], 'mean Jaccard')}: "
              f"python -m helpers segment --checkpoint {checkpoint} --images FOLDER --out FOLDER")  # fmt: skip


def best_score(scores: list[float], name: str) -> str:
    """The best score on val as text."""
    best = max(scores, default=math.nan)
    return "no val images to validate on" if math.isnan(best) else f"{name} on val {best:.3f}"


@dataclass(frozen=True, kw_only=True)
class TrainClassifier(TrainCommand):
    """A small CNN, a network of torchvision, or efficientnet_lite0 to 2."""

    preset: ClassVar = "classifier"
    settings: Flat[ClassifierConfig]
    init_from: Path | None = None  # initialize with the weights of this file, also of other classes

    def fit(self) -> None:
        settings = self.settings
        store = self.store(settings.size, classes=settings.classes)
        out = self.folder("classifier-lesion-only" if settings.lesion_only else "classifier")
        history = train_classifier(store, settings, out, self.train, self.init_from)
        checkpoint = display_path(out / "checkpoint.pt")
        print(f"trained, {best_score(history['val_balanced_accuracy'], 'balanced accuracy')}: "
              f"python -m helpers classify --checkpoint {checkpoint} --images FOLDER")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainArtifacts(TrainCommand):
    """The detector of hair, rulers and other artifacts."""

    preset: ClassVar = "artifacts"
    settings: Flat[ArtifactConfig]
    classes: tuple[str, ...] = ()  # keep only these classes
    init_from: Path | None = None  # initialize with the weights of this file
    flags: Path | None = None  # CSV of image_id and seven flags; default: the data set's own
    exclude: tuple[Path, ...] = ()  # CSV files: do not train on the ids in their first column

    def fit(self) -> None:
        store, out = self.store(self.settings.size, classes=self.classes), self.folder("artifacts")
        flags = read_flags(self.flags) if self.flags else None
        exclude = set().union(*map(read_ids, self.exclude))
        history = train_artifacts(store, self.settings, out, self.train, flags, exclude, self.init_from)
        print(f"trained, mean average precision on val {max(history['val_ap'], default=float('nan')):.3f}")


@dataclass(frozen=True, kw_only=True)
class TrainSkin(TrainCommand):
    """The encoder of the feature extractor `skin`, by SimCLR."""

    preset: ClassVar = "skin"
    settings: Flat[SkinConfig]
    extra_dataset: DatasetName | None = None  # a second data set to train on
    extra_root: Path | None = None  # its folder

    def fit(self) -> None:
        stores = [self.store(self.settings.size)]
        if self.extra_dataset:
            stores.append(open_store(get_config(self.extra_dataset, self.extra_root), self.settings.size))
        out = self.folder("skin")
        losses = train_skin(stores, self.settings, out, self.train).get("loss", [math.nan])
        checkpoint = display_path(out / "checkpoint.pt")
        print(f"trained, loss {losses[-1]:.3f}: python -m helpers export skin --checkpoint {checkpoint}")


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Weights for `data/released`, or to continue a training elsewhere."""

    method: tyro.conf.Positional[Literal["cgan", "dcgan", "segmenter", "classifier", "artifacts", "skin"]]
    checkpoint: Path | None = None  # default: the one of `train METHOD`
    out: Path | None = None  # file; default: data/released/METHOD.safetensors
    license: str | None = None  # for the file's header; default: those of the training data
    onnx: bool = False  # an ONNX file instead, for programs without PyTorch; default: next to the checkpoint
    all_networks: bool = False  # also encoder and discriminator, to continue the training of a GAN

    def run(self) -> int:
        cfg = self.config()
        checkpoint = self.checkpoint or cfg.outputs / self.method / "checkpoint.pt"
        if not checkpoint.exists():
            raise DataError(f"{display_path(checkpoint)} does not exist: `python -m helpers train {self.method}` "
                            "writes it")  # fmt: skip
        network, _ = LOADERS[self.method](checkpoint)  # raises if the checkpoint is of another method
        folder, ending = (checkpoint.parent, "onnx") if self.onnx else (cfg.released, "safetensors")
        file = self.out or folder / f"{self.method}.{ending}"
        check_outputs([file], [checkpoint])
        if self.onnx:
            export_onnx(network, file)
            hint = "inputs: helpers/models/onnx_export.py"
        else:
            export_weights(checkpoint, file, self.all_networks, self.license)
            hint = "write a model card next to it: training data, license, measured quality"
        print(f"{display_path(file)}: {file.stat().st_size / 1e6:.1f} MB; {hint}")
        return 0
