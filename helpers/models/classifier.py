"""Classifier: image -> diagnosis, with any of torchvision's networks, an EfficientNet-Lite or a small CNN; also its
features, as a backbone.

Inference uses the EMA weights with the best balanced accuracy on the val split.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from helpers.config import display_path
from helpers.data.batches import ImageSource, source_batches, to_tensors
from helpers.data.files import DataError
from helpers.data.store import Store, fit_config
from helpers.models.abstention import MAX_REFERENCES, Confidence, FeatureSubspace, choose_confidence, fit_subspace
from helpers.models.augment import augment
from helpers.models.checkpoint import read_network
from helpers.models.checks import MAX_SIZE, check_settings
from helpers.models.early_stopping import ValidatedTask
from helpers.models.initialize import start_from
from helpers.models.trainer import Backward, Batch, TrainConfig, set_warmup_cosine_lr, train
from helpers.models.weights import LITE_ARCHS, imagenet_weights, lite_network, normalization

SMALL_CNN = "small_cnn"
MAX_VAL_IMAGES = 1_000  # images per validation
INFERENCE_BATCH_SIZE = 64

BALANCES = ("sampling", "loss", "none")


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of the network and of one step. Raises `ValueError` for an unknown `balance` or a single class."""

    size: int  # pixels per side
    classes: tuple[str, ...] = ()  # empty: those of the store
    arch: str = SMALL_CNN  # or a torchvision classifier, or one of `LITE_ARCHS`
    pretrained: bool = True  # initialize from ImageNet if its weights are available
    balance: str = "sampling"  # classes equally often in a batch; "loss": class weights; "none": as in the data
    lr: float = 1e-3  # peak value, see `set_warmup_cosine_lr`
    label_smoothing: float = 0.1  # arXiv 1512.00567; the labels themselves are uncertain
    color_jitter: float = 0.2  # augmentation strength, see `augment`; 0 disables each
    translate: float = 0.1
    scale: float = 0.2
    lesion_only: bool = False  # trained on images whose surroundings are gray, see `hide_surroundings`

    def __post_init__(self):
        if self.balance not in BALANCES:
            raise ValueError(f"balance must be one of {', '.join(BALANCES)}, got {self.balance!r}")
        if len(self.classes) == 1:
            raise ValueError("a classifier needs at least 2 classes, got 1")
        check_settings(self, size=(16, MAX_SIZE))


def small_cnn() -> nn.Sequential:
    """Image (B, 3, H, W) -> (B, 1): four blocks of convolution, batch norm, ReLU and max pooling, then global average
    pooling to (B, 256) and a linear layer.

    The first convolution has stride 2: at full resolution it would cost as much as all the others together.
    """
    layers, stride = [], 2
    for in_channels, out_channels in pairwise([3, 32, 64, 128, 256]):
        layers += [
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        stride = 1
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1))


class Backbone(nn.Module):
    """A classifier without its last layer, as a feature extractor.

    `arch` is "small_cnn", a torchvision classifier or one of `LITE_ARCHS`. All but the first are initialized from
    ImageNet if `pretrained` and the weights are available, or from `file`; `init` is then "ImageNet", else "random
    init". `num_features` is D.

    Raises `ValueError` for an unknown `arch`, `DataError` if the weights are not those of `arch`.
    """

    def __init__(self, arch: str = SMALL_CNN, pretrained: bool = True, file: Path | None = None):
        super().__init__()
        network, self.init = build_network(arch), "random init"
        if pretrained and arch != SMALL_CNN and (weights := imagenet_weights(arch, file)) is not None:
            try:
                network.load_state_dict(weights)
            except RuntimeError as error:
                raise DataError(f"the weights that were found are not those of {arch} ({error})"[:300]) from error
            self.init = "ImageNet"
        name, last_linear = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
        network.set_submodule(name, nn.Identity())
        self.network, self.num_features = network, last_linear.in_features
        mean, std = normalization(arch)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> features (B, D)."""
        x = ((image + 1) / 2 - self.mean) / self.std  # (B, 3, H, W)
        return self.network(x)  # (B, D)


class Classifier(nn.Module):
    """A backbone with a linear head.

    After training, `temperature` calibrates: probabilities are the softmax of logits / temperature. `trained_on` lists
    the ids of training images and their lesions. `confidence` and `subspace` say when not to use a prediction, see
    `abstention.py`; they are None for weights without them.
    """

    def __init__(self, config: ClassifierConfig, pretrained: bool = True):
        super().__init__()
        self.size, self.classes, self.lesion_only = config.size, config.classes, config.lesion_only
        self.backbone = Backbone(config.arch, pretrained and config.pretrained)
        self.head = nn.Linear(self.backbone.num_features, len(config.classes))
        self.temperature, self.trained_on = 1.0, []
        self.confidence: Confidence | None = None
        self.subspace: FeatureSubspace | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> logits (B, K)."""
        features = self.backbone(image)  # (B, D)
        return self.head(features)  # (B, K)


def build_classifier(arch: str, classes: Sequence[str], size: int, pretrained: bool = True) -> Classifier:
    """A new classifier for images of `size` pixels; `arch` as in `Backbone`.

    `pretrained`: initialize from ImageNet if its weights are available; `backbone.init` says whether they were. Raises
    `ValueError` for an unknown `arch`.
    """
    return Classifier(ClassifierConfig(size, tuple(classes), arch, pretrained))


def build_network(arch: str) -> nn.Module:
    """A network with random weights; `arch` as in `Backbone`. Raises `ValueError` for an unknown name."""
    if arch in LITE_ARCHS:
        return lite_network(arch, pretrained=False)
    return small_cnn() if arch == SMALL_CNN else torchvision_network(arch)


def torchvision_network(arch: str) -> nn.Module:
    """One of torchvision's classifiers with random weights. Raises `ValueError` for an unknown name.

    Excluded are networks with auxiliary outputs (Inception, GoogLeNet), without a final linear layer (SqueezeNet) or
    for a fixed image size (ViT, MaxViT).
    """
    excluded = ["inception*", "googlenet", "squeezenet*", "vit*", "maxvit*"]
    archs = torchvision.models.list_models(module=torchvision.models, exclude=excluded)
    if arch not in archs:
        raise ValueError(f"arch must be one of {SMALL_CNN}, {', '.join((*LITE_ARCHS, *archs))}, got {arch!r}")
    return torchvision.models.get_model(arch, weights=None)


# ---------------------------------------------------------------------------------------------------------- training


class ClassifierTask(ValidatedTask):
    """Cross-entropy on augmented images, with early stopping on the val split."""

    ema_names = ("classifier",)
    score_name = "val_balanced_accuracy"

    def __init__(
        self,
        config: ClassifierConfig,
        steps: int,
        class_weights: Tensor | None = None,
        val: dict[str, np.ndarray] | None = None,
        references: np.ndarray | None = None,
    ):
        """`class_weights (K,)`: weights of the loss. `val`: `images` and `labels`, see `ValidatedTask`. `references`:
        training images `uint8 (N, H, W, 3)` to fit the `FeatureSubspace` on."""
        super().__init__(config, steps, val, Classifier(config))
        self.class_weights, self.references = class_weights, references
        self.extra_state |= {"init_from": self.networks["classifier"].backbone.init, "temperature": 1.0}

    def init_from(self, checkpoint: str | Path) -> None:
        """Initialize with the weights of another classifier's checkpoint or released file; the head stays new unless
        that has the same classes. Raises `ValueError` if its architecture differs."""
        other, saved_config = load_classifier(checkpoint)
        if saved_config.arch != self.config.arch:
            path = display_path(checkpoint)
            raise ValueError(f"{path} has arch {saved_config.arch!r}, the config says {self.config.arch!r}")
        classifier = self.networks["classifier"]
        classifier.backbone.load_state_dict(other.backbone.state_dict())
        if saved_config.classes == self.config.classes:
            classifier.head.load_state_dict(other.head.state_dict())
        self.extra_state |= {"init_from": display_path(checkpoint), "trained_on": other.trained_on}

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        """Update the classifier on `images (B, 3, H, W)` and `labels (B,)`; returns `loss` and `accuracy`."""
        set_warmup_cosine_lr(self.optimizers["classifier"], self.config.lr, self.progress)
        images, labels = batch["images"], batch["labels"]
        images, _ = augment(images, images[:, :1], self.config.color_jitter, self.config.translate, self.config.scale)
        logits = self.networks["classifier"](images)  # (B, K)
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.config.label_smoothing)
        if self.class_weights is not None:
            # By the label of each image: the weights of `cross_entropy` would also apply to the smoothed other classes.
            loss = loss * self.class_weights.to(labels.device)[labels]
        loss = loss.mean()
        self._optimizer_step("classifier", loss, backward)
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Balanced accuracy on val, and the temperature and confidence threshold of these weights."""
        logits, labels = predict_logits(network, self.val["images"]), self.val["labels"]
        correct = logits.argmax(axis=1) == labels
        score = float(np.mean([correct[labels == k].mean() for k in np.unique(labels)]))
        temperature = fit_temperature(logits, labels)
        confidence = choose_confidence(softmax(logits / temperature, axis=1), labels)
        return {"val_balanced_accuracy": score, "temperature": temperature, "confidence": asdict(confidence)}

    def statistics(self, network: nn.Module) -> dict[str, Tensor]:
        """The tensors of the `FeatureSubspace` of these weights, if there are reference images."""
        if self.references is None:
            return {}
        subspace = fit_subspace(*(predict_features(network, x) for x in (self.references, self.val["images"])))
        return {f"subspace.{name}": tensor.cpu() for name, tensor in subspace.state_dict().items()}


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Temperature in [0.05, 20] that minimizes the negative log-likelihood of `labels (N,)` under softmax(logits /
    temperature), `logits (N, K)` (Guo et al., arXiv 1706.04599). It changes confidence, never the predicted class."""

    def nll(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(nll, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def class_weights(sources: Sequence[ImageSource], num_classes: int) -> Tensor:
    """Inverse class frequencies `(K,)`, scaled to a mean of 1 over all rows; 0 for a class without rows."""
    labels = np.concatenate([source.labels[source.rows] for source in sources])
    counts = np.bincount(labels, minlength=num_classes)
    inverse = np.divide(1.0, counts, out=np.zeros(num_classes), where=counts > 0)
    return torch.tensor(inverse * len(labels) / np.count_nonzero(counts), dtype=torch.float32)


def hide_surroundings(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Images `uint8 (N, H, W, 3)` with gray where masks `(N, H, W)` in {0, 1} are 0: a classifier of such images cannot
    use rulers, hair on the skin or dark corners."""
    return np.where(masks[..., None] > 0, images, np.uint8(128))


def train_classifier(
    store: Store,
    config: ClassifierConfig,
    out: str | Path,
    train_config: TrainConfig,
    init_from: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train on the store's training split; checkpoint and history go to `out`. Returns the history, with `checked_at`
    (steps of the validations) and `val_balanced_accuracy`. Stops early, see `ValidatedTask`.

    `init_from`: see `start_from`, also of other classes. Raises `ValueError` if the config does not fit the store,
    `DataError` if fewer than 2 classes have training images (with a mask, if `config.lesion_only`), and both as
    `start_from` does.
    """
    config = fit_config(config, store)
    needs = ["label", "mask"] if config.lesion_only else ["label"]
    rows = store.rows("train", needs=needs)
    if (num_classes := len(np.unique(store.labels[rows]))) < 2:
        raise DataError(f"{store.name} needs training images of at least 2 classes, got {num_classes}")
    val_rows = np.random.default_rng(0).permutation(store.rows("val", needs=needs))[:MAX_VAL_IMAGES]
    val = store.batch(np.sort(val_rows)) if len(val_rows) else None
    source = ImageSource(store.images, rows, labels=store.labels)
    if config.lesion_only:
        images = hide_surroundings(store.images[rows], store.masks[rows])
        source = ImageSource(images, np.arange(len(rows)), labels=np.array(store.labels[rows]))
        if val:
            val["images"] = hide_surroundings(val["images"], val["masks"])
    references = np.random.default_rng(0).permutation(source.rows)[:MAX_REFERENCES]
    references = np.array(source.images[np.sort(references)]) if val else None
    task = new_task([source], config, train_config, val, references)
    start_from(task, init_from, store, rows)
    if config.arch != SMALL_CNN or init_from:
        print(f"{config.arch} starts from: {task.extra_state['init_from']}")
    return train_task(task, [source], out, train_config)


def fit_classifier(
    sources: Sequence[ImageSource],
    config: ClassifierConfig,
    out: str | Path,
    train_config: TrainConfig,
    data: dict | None = None,
    init_from: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train on `sources`, see `source_batches`, for exactly `train_config.steps`, without validation. Returns the
    history.

    `data`: the `training_data` of the real images, saved so that they are not used as test images. `init_from`: see
    `train_classifier`.
    """
    task = new_task(sources, config, train_config)
    if init_from:
        task.init_from(init_from)
    task.extra_state |= data or {}
    return train_task(task, sources, out, train_config)


def new_task(
    sources: Sequence[ImageSource],
    config: ClassifierConfig,
    train_config: TrainConfig,
    val: dict[str, np.ndarray] | None = None,
    references: np.ndarray | None = None,
) -> ClassifierTask:
    """The task of a training on `sources`; `val` and `references`: see `ClassifierTask`."""
    torch.manual_seed(train_config.seed)
    weights = class_weights(sources, len(config.classes)) if config.balance == "loss" else None
    return ClassifierTask(config, train_config.steps, weights, val, references)


def train_task(
    task: ClassifierTask, sources: Sequence[ImageSource], out: str | Path, train_config: TrainConfig
) -> dict[str, list[float]]:
    """Train with batches from `sources`; returns the history with the scores on val."""
    balanced = task.config.balance == "sampling"
    get_batch = source_batches(sources, train_config.batch_size, train_config.seed, ("images", "labels"), balanced)
    return train(task, get_batch, out, train_config) | task.scores()


# --------------------------------------------------------------------------------------------------------- inference


def load_classifier(path: str | Path) -> tuple[Classifier, ClassifierConfig]:
    """The classifier of a checkpoint (best weights on val), in eval mode on the best device, and its config. Raises
    `DataError` if the file is not a classifier's."""

    def build(saved: dict, config: ClassifierConfig) -> Classifier:
        classifier = Classifier(config, pretrained=False).to(memory_format=torch.channels_last)
        extra_state, weights = saved["extra_state"], saved["extra_state"]["best_state_dict"]
        if (components := weights.get("subspace.components")) is not None:
            classifier.subspace = FeatureSubspace(len(components), classifier.backbone.num_features)
        classifier.load_state_dict(weights)
        classifier.backbone.init = extra_state["init_from"]
        classifier.temperature, classifier.trained_on = (extra_state[k] for k in ("temperature", "trained_on"))
        classifier.confidence = Confidence(**extra_state["confidence"]) if "confidence" in extra_state else None
        if not 0 < classifier.temperature < math.inf:
            raise ValueError(f"its temperature must be a finite number above 0, got {classifier.temperature}")
        return classifier

    return read_network(path, "a checkpoint of a classifier", ClassifierConfig, build)


class Predictions(NamedTuple):
    """What a classifier says about N images. The flags are None for weights without the threshold."""

    probabilities: np.ndarray  # float32 (N, K), calibrated; rows sum to 1
    unsure: np.ndarray | None  # bool (N,): the top probability is below the confidence threshold
    unlike: np.ndarray | None  # bool (N,): unlike the training images


@torch.inference_mode()
def predict(classifier: Classifier, images: np.ndarray) -> Predictions:
    """Probabilities of `images uint8 (N, H, W, 3)` and whether not to use them. Raises `ValueError` if the images do
    not have the classifier's size."""
    features = predict_features(classifier, images)  # (N, D)
    logits = classifier.head(features).float().cpu().numpy()  # (N, K)
    probabilities = softmax(logits / classifier.temperature, axis=1)
    confidence, subspace = classifier.confidence, classifier.subspace
    unsure = None if confidence is None else probabilities.max(axis=1) < confidence.threshold
    return Predictions(probabilities, unsure, None if subspace is None else subspace.unlike(features).cpu().numpy())


def predict_proba(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Calibrated probabilities `(N, K)` of `images uint8 (N, H, W, 3)`; rows sum to 1. Raises `ValueError` if the
    images do not have the classifier's size."""
    return softmax(predict_logits(classifier, images) / classifier.temperature, axis=1)


def predict_logits(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Logits `float32 (N, K)` of `images uint8 (N, H, W, 3)`. Raises `ValueError` if the images do not have the
    classifier's size."""
    if not len(images):
        return np.zeros((0, len(classifier.classes)), np.float32)
    return _in_batches(classifier, classifier, images).cpu().numpy()


def predict_features(classifier: Classifier, images: np.ndarray) -> Tensor:
    """Features `float32 (N, D)` of `images uint8 (N, H, W, 3)`, N >= 1, on the classifier's device. Raises `ValueError`
    if the images do not have the classifier's size."""
    return _in_batches(classifier, classifier.backbone, images)


@torch.inference_mode()
def _in_batches(classifier: Classifier, function: Callable[[Tensor], Tensor], images: np.ndarray) -> Tensor:
    """`function` of all `images`, of at most `INFERENCE_BATCH_SIZE` at a time, `float32 (N, D)`."""
    size = (classifier.size, classifier.size)
    if images.shape[1:3] != size:
        raise ValueError(f"the classifier needs images of {size} pixels, got {images.shape[1:3]}")
    device, outputs = next(classifier.parameters()).device, []
    for start in range(0, len(images), INFERENCE_BATCH_SIZE):
        batch = to_tensors({"images": images[start : start + INFERENCE_BATCH_SIZE]}, device)
        outputs.append(function(batch["images"]).float())
    return torch.cat(outputs)
