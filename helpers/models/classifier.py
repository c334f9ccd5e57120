"""Image -> diagnosis: any classifier of torchvision or a small one of our own, and the features it sees."""

import pickle
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from helpers.config import find_weights, shown
from helpers.data.files import DataError
from helpers.data.store import Store, balanced_batches, to_tensors
from helpers.models.augment import augment
from helpers.models.training import Batch, Method, Run, best_device, train

SMALL = "small"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which torchvision's weights expect


@dataclass(frozen=True)
class ClassifierSettings:
    """Everything that shapes the network or a step."""

    size: int
    classes: tuple[str, ...]
    network: str = SMALL  # or a name of torchvision's
    rate: float = 1e-3
    smoothing: float = 0.1  # of the labels (Szegedy et al. 2016): diagnoses are not certain either
    colour: float = 0.2  # strength of the augmentation, see `augment`
    shift: float = 0.1


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
    """image (B, 3, H, W) in [-1, 1] -> logits (B, K); `backbone` gives the features before them."""

    def __init__(self, settings: ClassifierSettings, pretrained: bool = True):
        super().__init__()
        self.size, self.backbone = settings.size, Backbone(settings.network, pretrained)
        self.head = nn.Linear(self.backbone.width, len(settings.classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))


def torchvision_network(name: str) -> nn.Module:
    """One of torchvision's classifiers, not trained. Those with further outputs beside the last are left out."""
    others = ["inception*", "googlenet", "squeezenet*"]
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
        with patience(), redirect_stderr(StringIO()):  # it says where on this machine it puts the file
            return renamed(released.DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError):  # no connection, or a file that is not what it should be
        return None


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's DenseNets were released when names could still hold a dot more: `norm.1` is `norm1` now."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): w for name, w in weights.items()}


@contextmanager
def patience(seconds: float = 20) -> Iterator[None]:
    """Connections that are opened inside give up after a while: some networks swallow what they do not let through."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


class ClassifierTraining(Method):
    """Cross-entropy on balanced batches; what is used afterwards is the average of the weights."""

    averaged = ("classifier",)

    def __init__(self, settings: ClassifierSettings):
        self.s, self.settings = settings, asdict(settings) | {"classes": list(settings.classes)}
        self.networks = {"classifier": Classifier(settings)}
        weights = self.networks["classifier"].parameters()
        self.optimisers = {"classifier": torch.optim.AdamW(weights, settings.rate, fused=True)}

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        images, _ = augment(batch["images"], batch["images"][:, :1], self.s.colour, self.s.shift)
        logits = self.networks["classifier"](images)
        loss = F.cross_entropy(logits, batch["labels"], label_smoothing=self.s.smoothing)
        self.optimisers["classifier"].zero_grad(set_to_none=True)
        backward(loss)
        self.optimisers["classifier"].step()
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == batch["labels"]).float().mean()}


def train_classifier(store: Store, settings: ClassifierSettings, out: str | Path, run: Run) -> dict[str, list[float]]:
    """Train on the store's training split, every class equally often; returns the history. Raises `ValueError` when
    the settings are not those of the store, `DataError` when nothing in it has a label."""
    if (settings.size, settings.classes) != (store.settings.size, tuple(store.classes)):
        raise ValueError(f"the store has {store.settings.size} px and {store.classes}, the settings say otherwise")
    if not len(store.rows("train", needs=["label"])):
        raise DataError(f"{store.name} has no training picture with a label: there is nothing to learn from")
    torch.manual_seed(run.seed)
    draw = balanced_batches(store, run.batch, run.seed, arrays=("images", "labels"))
    method = ClassifierTraining(settings)
    if settings.network != SMALL:
        print(f"{settings.network} starts from: {method.networks['classifier'].backbone.start}")
    return train(method, draw, out, run)


def load_classifier(path: str | Path) -> tuple[Classifier, ClassifierSettings]:
    """The averaged classifier of a checkpoint and its settings. Raises `DataError` for another file."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings = ClassifierSettings(**saved["settings"] | {"classes": tuple(saved["settings"]["classes"])})
        classifier = Classifier(settings, pretrained=False)
        classifier.load_state_dict(saved["averages"]["classifier"])
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{shown(path)} is not a checkpoint of a classifier of this version ({error})") from error
    return classifier.to(best_device()).eval().requires_grad_(False), settings


@torch.no_grad()
def classify(classifier: Classifier, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """`images uint8 (N, H, W, 3)` -> probabilities `(N, K)`, rows sum to 1. Raises `ValueError` for images of another
    size than it was trained on."""
    if images.shape[1:3] != (classifier.size, classifier.size):
        raise ValueError(f"images are {images.shape[1:3]} pixels, the classifier was trained on {classifier.size}")
    device = next(classifier.parameters()).device
    parts = [to_tensors({"images": images[k : k + batch]}, device)["images"] for k in range(0, len(images), batch)]
    return np.concatenate([classifier(part).softmax(dim=1).cpu().numpy() for part in parts])
