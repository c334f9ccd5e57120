"""Image -> diagnosis: any classifier of torchvision or a small one of our own, and the features it sees."""

import pickle
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from helpers.config import display_path, find_weights_file
from helpers.data.files import DataError
from helpers.data.store import ImageSource, Store, labeled_batches, to_tensors
from helpers.models.augment import augment
from helpers.models.checkpoint import read_checkpoint
from helpers.models.trainer import Backward, Batch, TrainConfig, TrainTask, best_device, set_warmup_cosine_lr, train

SMALL_CNN = "small_cnn"
IMAGENET_MEAN, IMAGENET_STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, which torchvision's weights expect


BALANCES = ("sampling", "loss", "none")


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that shapes the network or a step."""

    size: int
    classes: tuple[str, ...]
    arch: str = SMALL_CNN  # or a name of torchvision's
    pretrained: bool = True  # start from ImageNet where its weights can be had
    balance: str = "sampling"  # every class equally often; "loss": every class weighs alike in it; "none"
    lr: float = 1e-3  # at its highest, see `warm_then_cosine`
    label_smoothing: float = 0.1  # of the labels (Szegedy et al. 2016): diagnoses are not certain either
    color_jitter: float = 0.2  # strength of the augmentation, see `augment`; 0 switches each off
    translate: float = 0.1
    scale: float = 0.2

    def __post_init__(self):
        if self.balance not in BALANCES:
            raise ValueError(f"balance {self.balance!r} is not one of {', '.join(BALANCES)}")
        if len(self.classes) < 2:
            raise ValueError(f"{len(self.classes)} classes: a classifier needs two at least")


def small_cnn(width: int = 32) -> nn.Sequential:
    """Our own: four times convolution, normalisation and halving, then the mean over the picture: `8 x width`. It
    looks at every second pixel, for at full resolution the first layer would cost as much as all the others."""
    layers, stride = [], 2
    for inside, outside in pairwise([3, width, 2 * width, 4 * width, 8 * width]):
        layers += [nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
        stride = 1
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 1))


class Backbone(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> features (B, D): a classifier without its last layer.

    `name` is "small" or one of torchvision's classifiers, which starts from ImageNet where the weights can be had, or
    from `file`; `start` says which it was. Raises `ValueError` for a name that neither has, `DataError` for a file of
    weights that are not this network's.
    """

    def __init__(self, arch: str = SMALL_CNN, pretrained: bool = True, file: Path | None = None):
        super().__init__()
        network, self.init = small_cnn() if arch == SMALL_CNN else torchvision_network(arch), "random init"
        if pretrained and arch != SMALL_CNN and (weights := imagenet_weights(arch, file)) is not None:
            try:
                network.load_state_dict(weights)
            except RuntimeError as error:
                raise DataError(f"the weights that were found are not those of {arch} ({error})"[:300]) from error
            self.init = "ImageNet"
        place, last = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
        network.set_submodule(place, nn.Identity())
        self.network, self.num_features = network, last.in_features
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(((image + 1) / 2 - self.mean) / self.std)


class Classifier(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> logits (B, K); `backbone` gives the features before them.

    Once trained: probabilities are those of logits divided by `temperature`; `trained_on` names images and lesions.
    """

    def __init__(self, config: ClassifierConfig, pretrained: bool = True):
        super().__init__()
        self.size, self.classes = config.size, config.classes
        self.backbone = Backbone(config.arch, pretrained and config.pretrained)
        self.head = nn.Linear(self.backbone.num_features, len(config.classes))
        self.temperature, self.trained_on = 1.0, []

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))


def build_classifier(arch: str, classes: Sequence[str], size: int = 224, pretrained: bool = True) -> Classifier:
    """Any of torchvision's classifiers, or `small`, for these classes; from ImageNet where its weights can be had,
    which `backbone.start` tells. Raises `ValueError` for an unknown name."""
    return Classifier(ClassifierConfig(size, tuple(classes), arch, pretrained))


def torchvision_network(arch: str) -> nn.Module:
    """One of torchvision's classifiers, not trained. Those with further outputs beside the last are left out, and those
    for one size of pictures only."""
    others = ["inception*", "googlenet", "squeezenet*", "vit*", "maxvit*"]
    known = torchvision.models.list_models(module=torchvision.models, exclude=others)
    if arch not in known:
        raise ValueError(f"there is no network {arch!r}: there are {SMALL_CNN}, {', '.join(known)}")
    return torchvision.models.get_model(arch, weights=None)


def imagenet_weights(name: str, file: Path | None = None) -> dict[str, Tensor] | None:
    """Weights of one of torchvision's networks: from `file`, else from the folder LESION_WEIGHTS_DIR (there called
    `<name>-imagenet.pth`, or as torchvision calls it), else downloaded; None where they are not to be had, which the
    caller has to say. Raises `DataError` for a file that holds no weights."""
    released = torchvision.models.get_model_weights(name)
    if path := file or find_weights_file(f"{name}-imagenet.pth", *(w.url.split("/")[-1] for w in released)):
        try:
            return fix_densenet_keys(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
            raise DataError(f"{display_path(path)} is missing or holds no weights ({error})"[:300]) from error
    try:
        with download_timeout():
            return fix_densenet_keys(released.DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError):  # no connection, or a file that is not what it should be
        return None


def fix_densenet_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's DenseNets were released when names could still hold a dot more: `norm.1` is `norm1` now."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): w for name, w in weights.items()}


@contextmanager
def download_timeout(seconds: float = 20) -> Iterator[None]:
    """For downloads. Connections that are opened inside give up after a while, for some networks swallow what they do
    not let through; and nothing is printed, which would name a folder of this machine."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


# ---------------------------------------------------------------------------------------------------------- training


class ClassifierTask(TrainTask):
    """Cross-entropy; what is used afterwards is the average of the weights, from the moment when it did best on val."""

    ema_names = ("classifier",)

    def __init__(
        self,
        config: ClassifierConfig,
        steps: int,
        class_weights: Tensor | None = None,
        val: dict[str, np.ndarray] | None = None,
        patience: int = 8,
    ):
        """`val`: images and labels; training stops once `wait` checks in a row did not beat the best on them. Without
        them it goes to its end, and its last average counts."""
        self.config, self.steps, self.class_weights = config, steps, class_weights
        self.val, self.patience = val, patience
        self.networks = {"classifier": Classifier(config)}
        weights = self.networks["classifier"].parameters()
        self.optimizers = {"classifier": torch.optim.AdamW(weights, config.lr, fused=True)}
        self.extra_state = {"checked_at": [], "val_balanced_accuracy": [], "best_state_dict": {}, "temperature": 1.0}
        self.extra_state |= {"init_from": self.networks["classifier"].backbone.init, "trained_on": []}

    def config_dict(self) -> dict:
        """The config with the number of steps, which the learning rate depends on."""
        return super().config_dict() | {"steps": self.steps}

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        set_warmup_cosine_lr(self.optimizers["classifier"], self.config.lr, step, self.steps)
        images, labels = batch["images"], batch["labels"]
        images, _ = augment(images, images[:, :1], self.config.color_jitter, self.config.translate, self.config.scale)
        logits = self.networks["classifier"](images)
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.config.label_smoothing)
        if self.class_weights is not None:  # of a picture's own class; PyTorch would weight the smoothing by all others
            loss = loss * self.class_weights.to(labels.device)[labels]
        loss = loss.mean()
        self.optimizers["classifier"].zero_grad(set_to_none=True)
        backward(loss)
        self.optimizers["classifier"].step()
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def validate(self, ema_models: dict[str, nn.Module], step: int) -> bool:
        """Score the average on val and keep it if it is the best so far; True when it has not been for too long."""
        classifier, scores = ema_models["classifier"], self.extra_state["val_balanced_accuracy"]
        if self.val is None:
            self.extra_state["best_state_dict"] = classifier.state_dict()
            return False
        logits, labels = predict_logits(classifier, self.val["images"]), self.val["labels"]
        correct = logits.argmax(axis=1) == labels
        score = float(np.mean([correct[labels == k].mean() for k in np.unique(labels)]))
        if score > max(scores, default=-1):
            self.extra_state["best_state_dict"] = {
                name: value.cpu().clone() for name, value in classifier.state_dict().items()
            }
            self.extra_state["temperature"] = fit_temperature(logits, labels)
        self.extra_state["checked_at"].append(step)
        scores.append(score)
        return len(scores) - 1 - int(np.argmax(scores)) >= self.patience


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """By what to divide logits `(N, K)` so that probabilities fit labels `(N,)` best, in [0.05, 20] (Guo et al., *On
    Calibration of Modern Neural Networks*, 2017). It changes how sure a network is, never what it names."""

    def nll(power: float) -> float:
        return float(-log_softmax(logits / np.exp(power), axis=1)[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(nll, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def class_weights(sources: Sequence[ImageSource], num_classes: int) -> Tensor:
    """One over how many rows each class has, `(K,)`, with mean 1 over the rows; 0 for a class without rows."""
    labels = np.concatenate([part.labels[part.rows] for part in sources])
    counts = np.bincount(labels, minlength=num_classes)
    inverse = np.divide(1.0, counts, out=np.zeros(num_classes), where=counts > 0)
    return torch.tensor(inverse * len(labels) / np.count_nonzero(counts), dtype=torch.float32)


def train_classifier(
    store: Store, config: ClassifierConfig, out: str | Path, train_config: TrainConfig, patience: int = 8
) -> dict[str, list[float]]:
    """Train on the store's training split; returns the history, with `checked_at` and `val_balanced_accuracy`. Stops
    early once `wait` checks (one every `run.save_every` steps) brought nothing better on val.

    Raises `ValueError` when the settings are not those of the store, `DataError` when fewer than two classes have a
    training picture.
    """
    if (config.size, config.classes) != (store.config.size, tuple(store.classes)):
        raise ValueError(f"the store has {store.config.size} px and {store.classes}, the settings say otherwise")
    rows = store.rows("train", needs=["label"])
    if len(np.unique(store.labels[rows])) < 2:
        raise DataError(f"{store.name} has training pictures of fewer than two classes: there is nothing to tell apart")
    checked = np.random.default_rng(0).permutation(store.rows("val", needs=["label"]))[:1000]
    val = store.batch(np.sort(checked), ("images", "labels")) if len(checked) else None
    source = ImageSource(store.images, rows, labels=store.labels)
    return fit_classifier([source], config, out, train_config, ids_of(store.table.iloc[rows]), val, patience)


def fit_classifier(
    sources: Sequence[ImageSource],
    config: ClassifierConfig,
    out: str | Path,
    train_config: TrainConfig,
    ids: Sequence[str] = (),
    val: dict[str, np.ndarray] | None = None,
    patience: int = 8,
) -> dict[str, list[float]]:
    """Train on `parts` (see `labelled_batches`): without `val` for exactly `run.steps`. `names`: of the images and
    lesions in them, which the checkpoint remembers, so that it is not tested on them. Returns the history."""
    torch.manual_seed(train_config.seed)
    weights = class_weights(sources, len(config.classes)) if config.balance == "loss" else None
    task = ClassifierTask(config, train_config.steps, weights, val, patience)
    task.extra_state["trained_on"] = list(ids)
    if config.arch != SMALL_CNN and val is not None:
        print(f"{config.arch} starts from: {task.extra_state['start']}")
    get_batch = labeled_batches(
        sources, train_config.batch_size, train_config.seed, balanced=config.balance == "sampling"
    )
    history = train(task, get_batch, out, train_config)
    return history | {name: task.extra_state[name] for name in ("checked_at", "val_balanced_accuracy")}


def ids_of(table: pd.DataFrame) -> list[str]:
    """Every image id and lesion id of a table, once."""
    return sorted({*table["image_id"], *table["lesion_id"].dropna()})


# ------------------------------------------------------------------------------------------------------------- using


def load_classifier(path: str | Path) -> tuple[Classifier, ClassifierConfig]:
    """The classifier of a checkpoint as it did best on val, and its settings. Raises `DataError` for another file."""
    try:
        saved = read_checkpoint(path)
        about = {k: v for k, v in saved["config"].items() if k != "steps"}
        config = ClassifierConfig(**about | {"classes": tuple(about["classes"])})
        classifier = Classifier(config, pretrained=False)
        classifier.load_state_dict(saved["extra_state"]["best_state_dict"])
        classifier.backbone.init = saved["extra_state"]["init_from"]
        classifier.temperature, classifier.trained_on = (saved["extra_state"][k] for k in ("temperature", "trained_on"))
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{display_path(path)} is not a checkpoint of a classifier of this version ({error})"[:400]
        ) from error
    classifier = classifier.to(best_device(), memory_format=torch.channels_last)
    return classifier.eval().requires_grad_(False), config


@torch.no_grad()
def predict_logits(classifier: Classifier, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """`images uint8 (N, H, W, 3)` -> logits `(N, K)`. Raises `ValueError` for images of another size than it was
    trained on."""
    if images.shape[1:3] != (classifier.size, classifier.size):
        raise ValueError(f"images are {images.shape[1:3]} pixels, the classifier was trained on {classifier.size}")
    device = next(classifier.parameters()).device
    batches = (
        to_tensors({"images": images[k : k + batch_size]}, device)["images"] for k in range(0, len(images), batch_size)
    )
    logits = [classifier(part).float().cpu().numpy() for part in batches]
    return np.concatenate([np.zeros((0, len(classifier.classes)), np.float32), *logits])


def predict_proba(classifier: Classifier, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """`images uint8 (N, H, W, 3)` -> calibrated probabilities `(N, K)`, rows sum to 1. Raises `ValueError` for images
    of another size than it was trained on."""
    return softmax(predict_logits(classifier, images, batch_size) / classifier.temperature, axis=1)
