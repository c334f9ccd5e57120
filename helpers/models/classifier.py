"""Image -> diagnosis: any classifier of torchvision or a small one of our own, and the features it sees."""

import pickle
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
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

from helpers.config import find_weights, shown
from helpers.data.files import DataError
from helpers.data.store import Part, Store, labelled_batches, to_tensors
from helpers.models.augment import augment
from helpers.models.released import read_checkpoint
from helpers.models.training import Batch, Method, Run, best_device, train, warm_then_cosine

SMALL = "small"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which torchvision's weights expect


BALANCES = ("sampling", "loss", "none")


@dataclass(frozen=True)
class ClassifierSettings:
    """Everything that shapes the network or a step."""

    size: int
    classes: tuple[str, ...]
    network: str = SMALL  # or a name of torchvision's
    pretrained: bool = True  # start from ImageNet where its weights can be had
    balance: str = "sampling"  # every class equally often; "loss": every class weighs alike in it; "none"
    rate: float = 1e-3  # at its highest, see `warm_then_cosine`
    smoothing: float = 0.1  # of the labels (Szegedy et al. 2016): diagnoses are not certain either
    colour: float = 0.2  # strength of the augmentation, see `augment`; 0 switches each off
    shift: float = 0.1
    zoom: float = 0.2

    def __post_init__(self):
        if self.balance not in BALANCES:
            raise ValueError(f"balance {self.balance!r} is not one of {', '.join(BALANCES)}")
        if len(self.classes) < 2:
            raise ValueError(f"{len(self.classes)} classes: a classifier needs two at least")


def small(width: int = 32) -> nn.Sequential:
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

    def __init__(self, name: str = SMALL, pretrained: bool = True, file: Path | None = None):
        super().__init__()
        network, self.start = small() if name == SMALL else torchvision_network(name), "random init"
        if pretrained and name != SMALL and (weights := imagenet_weights(name, file)) is not None:
            try:
                network.load_state_dict(weights)
            except RuntimeError as error:
                raise DataError(f"the weights that were found are not those of {name} ({error})"[:300]) from error
            self.start = "ImageNet"
        place, last = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
        network.set_submodule(place, nn.Identity())
        self.network, self.width = network, last.in_features
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(((image + 1) / 2 - self.mean) / self.deviation)


class Classifier(nn.Module):
    """image (B, 3, H, W) in [-1, 1] -> logits (B, K); `backbone` gives the features before them.

    Once trained: probabilities are those of logits divided by `temperature`; `trained_on` names images and lesions.
    """

    def __init__(self, settings: ClassifierSettings, pretrained: bool = True):
        super().__init__()
        self.size, self.classes = settings.size, settings.classes
        self.backbone = Backbone(settings.network, pretrained and settings.pretrained)
        self.head = nn.Linear(self.backbone.width, len(settings.classes))
        self.temperature, self.trained_on = 1.0, []

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))


def build_classifier(name: str, classes: Sequence[str], size: int = 224, pretrained: bool = True) -> Classifier:
    """Any of torchvision's classifiers, or `small`, for these classes; from ImageNet where its weights can be had,
    which `backbone.start` tells. Raises `ValueError` for an unknown name."""
    return Classifier(ClassifierSettings(size, tuple(classes), name, pretrained))


def torchvision_network(name: str) -> nn.Module:
    """One of torchvision's classifiers, not trained. Those with further outputs beside the last are left out, and those
    for one size of pictures only."""
    others = ["inception*", "googlenet", "squeezenet*", "vit*", "maxvit*"]
    known = torchvision.models.list_models(module=torchvision.models, exclude=others)
    if name not in known:
        raise ValueError(f"there is no network {name!r}: there are {SMALL}, {', '.join(known)}")
    return torchvision.models.get_model(name, weights=None)


def imagenet_weights(name: str, file: Path | None = None) -> dict[str, Tensor] | None:
    """Weights of one of torchvision's networks: from `file`, else from the folder LESION_WEIGHTS_DIR (there called
    `<name>-imagenet.pth`, or as torchvision calls it), else downloaded; None where they are not to be had, which the
    caller has to say. Raises `DataError` for a file that holds no weights."""
    released = torchvision.models.get_model_weights(name)
    if path := file or find_weights(f"{name}-imagenet.pth", *(w.url.split("/")[-1] for w in released)):
        try:
            return renamed(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
            raise DataError(f"{shown(path)} is missing or holds no weights ({error})"[:300]) from error
    try:
        with patience():
            return renamed(released.DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError):  # no connection, or a file that is not what it should be
        return None


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's DenseNets were released when names could still hold a dot more: `norm.1` is `norm1` now."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): w for name, w in weights.items()}


@contextmanager
def patience(seconds: float = 20) -> Iterator[None]:
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


class ClassifierTraining(Method):
    """Cross-entropy; what is used afterwards is the average of the weights, from the moment when it did best on val."""

    averaged = ("classifier",)

    def __init__(
        self,
        settings: ClassifierSettings,
        steps: int,
        class_weights: Tensor | None = None,
        val: dict[str, np.ndarray] | None = None,
        wait: int = 8,
    ):
        """`val`: images and labels; training stops once `wait` checks in a row did not beat the best on them. Without
        them it goes to its end, and its last average counts."""
        self.s, self.steps, self.class_weights = settings, steps, class_weights
        self.settings = asdict(settings) | {"classes": list(settings.classes), "steps": steps}
        self.val, self.wait = val, wait
        self.networks = {"classifier": Classifier(settings)}
        weights = self.networks["classifier"].parameters()
        self.optimisers = {"classifier": torch.optim.AdamW(weights, settings.rate, fused=True)}
        self.kept = {"checked_at": [], "val_balanced_accuracy": [], "best": {}, "temperature": 1.0}
        self.kept |= {"start": self.networks["classifier"].backbone.start, "trained_on": []}

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        warm_then_cosine(self.optimisers["classifier"], self.s.rate, number, self.steps)
        images, labels = batch["images"], batch["labels"]
        images, _ = augment(images, images[:, :1], self.s.colour, self.s.shift, self.s.zoom)
        logits = self.networks["classifier"](images)
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.s.smoothing)
        if self.class_weights is not None:  # of a picture's own class; PyTorch would weight the smoothing by all others
            loss = loss * self.class_weights.to(labels.device)[labels]
        loss = loss.mean()
        self.optimisers["classifier"].zero_grad(set_to_none=True)
        backward(loss)
        self.optimisers["classifier"].step()
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def show(self, averages: dict[str, nn.Module], folder: Path, number: int) -> bool:
        """Score the average on val and keep it if it is the best so far; True when it has not been for too long."""
        average, earlier = averages["classifier"], self.kept["val_balanced_accuracy"]
        if self.val is None:
            self.kept["best"] = average.state_dict()
            return False
        logits, labels = logits_of(average, self.val["images"]), self.val["labels"]
        right = logits.argmax(axis=1) == labels
        score = float(np.mean([right[labels == k].mean() for k in np.unique(labels)]))
        if score > max(earlier, default=-1):
            self.kept["best"] = {name: value.cpu().clone() for name, value in average.state_dict().items()}
            self.kept["temperature"] = fitted_temperature(logits, labels)
        self.kept["checked_at"].append(number)
        earlier.append(score)
        return len(earlier) - 1 - int(np.argmax(earlier)) >= self.wait


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """By what to divide logits `(N, K)` so that probabilities fit labels `(N,)` best, in [0.05, 20] (Guo et al., *On
    Calibration of Modern Neural Networks*, 2017). It changes how sure a network is, never what it names."""

    def misfit(power: float) -> float:
        return float(-log_softmax(logits / np.exp(power), axis=1)[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(misfit, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def class_weights_of(parts: Sequence[Part], classes: int) -> Tensor:
    """One over how many rows each class has, `(K,)`, with mean 1 over the rows; 0 for a class without rows."""
    labels = np.concatenate([part.labels[part.rows] for part in parts])
    counts = np.bincount(labels, minlength=classes)
    shares = np.divide(1.0, counts, out=np.zeros(classes), where=counts > 0)
    return torch.tensor(shares * len(labels) / np.count_nonzero(counts), dtype=torch.float32)


def train_classifier(
    store: Store, settings: ClassifierSettings, out: str | Path, run: Run, wait: int = 8
) -> dict[str, list[float]]:
    """Train on the store's training split; returns the history, with `checked_at` and `val_balanced_accuracy`. Stops
    early once `wait` checks (one every `run.save_every` steps) brought nothing better on val.

    Raises `ValueError` when the settings are not those of the store, `DataError` when fewer than two classes have a
    training picture.
    """
    if (settings.size, settings.classes) != (store.settings.size, tuple(store.classes)):
        raise ValueError(f"the store has {store.settings.size} px and {store.classes}, the settings say otherwise")
    rows = store.rows("train", needs=["label"])
    if len(np.unique(store.labels[rows])) < 2:
        raise DataError(f"{store.name} has training pictures of fewer than two classes: there is nothing to tell apart")
    checked = np.random.default_rng(0).permutation(store.rows("val", needs=["label"]))[:1000]
    val = store.batch(np.sort(checked), ("images", "labels")) if len(checked) else None
    part = Part(store.images, rows, labels=store.labels)
    return train_on_labelled([part], settings, out, run, named(store.table.iloc[rows]), val, wait)


def train_on_labelled(
    parts: Sequence[Part],
    settings: ClassifierSettings,
    out: str | Path,
    run: Run,
    names: Sequence[str] = (),
    val: dict[str, np.ndarray] | None = None,
    wait: int = 8,
) -> dict[str, list[float]]:
    """Train on `parts` (see `labelled_batches`): without `val` for exactly `run.steps`. `names`: of the images and
    lesions in them, which the checkpoint remembers, so that it is not tested on them. Returns the history."""
    torch.manual_seed(run.seed)
    weights = class_weights_of(parts, len(settings.classes)) if settings.balance == "loss" else None
    method = ClassifierTraining(settings, run.steps, weights, val, wait)
    method.kept["trained_on"] = list(names)
    if settings.network != SMALL and val is not None:
        print(f"{settings.network} starts from: {method.kept['start']}")
    draw = labelled_batches(parts, run.batch, run.seed, balanced=settings.balance == "sampling")
    history = train(method, draw, out, run)
    return history | {name: method.kept[name] for name in ("checked_at", "val_balanced_accuracy")}


def named(table: pd.DataFrame) -> list[str]:
    """Every image id and lesion id of a table, once."""
    return sorted({*table["image_id"], *table["lesion_id"].dropna()})


# ------------------------------------------------------------------------------------------------------------- using


def load_classifier(path: str | Path) -> tuple[Classifier, ClassifierSettings]:
    """The classifier of a checkpoint as it did best on val, and its settings. Raises `DataError` for another file."""
    try:
        saved = read_checkpoint(path)
        about = {k: v for k, v in saved["settings"].items() if k != "steps"}
        settings = ClassifierSettings(**about | {"classes": tuple(about["classes"])})
        classifier = Classifier(settings, pretrained=False)
        classifier.load_state_dict(saved["kept"]["best"])
        classifier.backbone.start = saved["kept"]["start"]
        classifier.temperature, classifier.trained_on = (saved["kept"][k] for k in ("temperature", "trained_on"))
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{shown(path)} is not a checkpoint of a classifier of this version ({error})"[:400]) from error
    classifier = classifier.to(best_device(), memory_format=torch.channels_last)
    return classifier.eval().requires_grad_(False), settings


@torch.no_grad()
def logits_of(classifier: Classifier, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """`images uint8 (N, H, W, 3)` -> logits `(N, K)`. Raises `ValueError` for images of another size than it was
    trained on."""
    if images.shape[1:3] != (classifier.size, classifier.size):
        raise ValueError(f"images are {images.shape[1:3]} pixels, the classifier was trained on {classifier.size}")
    device = next(classifier.parameters()).device
    parts = (to_tensors({"images": images[k : k + batch]}, device)["images"] for k in range(0, len(images), batch))
    found = [classifier(part).float().cpu().numpy() for part in parts]
    return np.concatenate([np.zeros((0, len(classifier.classes)), np.float32), *found])


def classify(classifier: Classifier, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """`images uint8 (N, H, W, 3)` -> calibrated probabilities `(N, K)`, rows sum to 1. Raises `ValueError` for images
    of another size than it was trained on."""
    return softmax(logits_of(classifier, images, batch) / classifier.temperature, axis=1)
