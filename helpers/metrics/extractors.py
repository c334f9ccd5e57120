"""Features of pictures by a network that judges: read in blocks, computed once, kept by content.

A judge played no part in the training of what it judges. `inception` is the one that FID is defined by; where its
weights cannot be had, any other says its name beside every number. Judges compute in float32: bf16
moved the Fréchet distance of 500 drawings from 500 photographs by 1.2 % (MobileNetV2, HAM10000).
"""

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from tqdm.auto import tqdm

from helpers.config import cpu_count, display_path, find_weights_file
from helpers.data.files import DataError, center_crop, list_images, read_image
from helpers.models.classifier import Backbone, download_timeout, load_classifier
from helpers.models.networks import fuse_batchnorm
from helpers.models.trainer import best_device

BATCH_SIZE = 16  # pictures at a time: more do not fit the cache of a processor
MAX_UNREADABLE = 0.2  # share of the files
INCEPTION = "inception"
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name; its end is the file's digest

# ---------------------------------------------------------------------------------------------------------- pictures


@dataclass
class ImageSet:
    """A set to be judged: files, or `uint8 (N, H, W, 3)` in memory. `kinds` holds the class name of each, or nothing;
    `side` is that of the smallest central square among them, `odd` what is to be told of them, `damaged` the files left
    out so far. `blur` softens, as a share of the side."""

    name: str
    items: list[Path] | np.ndarray
    class_names: list[str]
    image_size: int
    warnings: list[str] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)
    blur: float = 0.0

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ImageSet":
        """Pictures directly in `folder`, or in its subfolders, whose names are then their classes.

        Raises `DataError` for a folder that is not there, holds no picture, holds pictures beside folders of pictures, or
        has more than a fifth damaged ones.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"there is no folder {display_path(folder)}")
        inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        paths, within = list_images(folder), [(path, place.name) for place in inner for path in list_images(place)]
        if paths and within:
            raise DataError(
                f"{display_path(folder)} holds pictures, {paths[0].name} the first, and folders of pictures: which?"
            )
        paths, kinds = paths or [path for path, _ in within], [kind for _, kind in within]
        if not paths:
            raise DataError(f"{display_path(folder)} holds no pictures, nor do folders in it")
        with ThreadPoolExecutor(cpu_count()) as pool:
            headers = list(pool.map(_header, paths))
        good = [k for k, header in enumerate(headers) if header is not None]
        pictures = cls(folder.name, [paths[k] for k in good], [kinds[k] for k in good] if kinds else [], 0)
        pictures.drop([path for path, header in zip(paths, headers, strict=True) if header is None])
        sides = Counter(min(headers[k][0]) for k in good)
        pictures.image_size = min(sides)
        if len(sides) > 1:
            span = f"pictures of {pictures.image_size} to {max(sides)} pixels"
            pictures.warnings.append(f"{folder.name}: {span}, all brought to the smallest size")
        if grey := sum(headers[k][1] in ("1", "L", "LA", "I;16") for k in good):
            pictures.warnings.append(f"{folder.name}: {grey} of {len(good)} pictures are grey, taken as they are")
        return pictures

    @classmethod
    def from_array(cls, images: np.ndarray, kinds: list[str] | None = None, name: str = "array") -> "ImageSet":
        """Pictures in memory, `uint8 (N, H, W, 3)`, and their class names. Raises `ValueError` for other shapes, types."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
            raise ValueError(f"pictures are {images.dtype} {images.shape}, not uint8 (N, H, W, 3)")
        if kinds and len(kinds) != len(images):
            raise ValueError(f"{len(images)} pictures, {len(kinds)} class names")
        return cls(name, images, list(kinds or []), min(images.shape[1:3]))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def problems(self) -> list[str]:
        """One sentence each."""
        names = ", ".join(sorted(path.name for path in self.unreadable)[:5])
        told = f"{self.name}: {len(self.unreadable)} pictures are damaged and left out ({names})"
        return [told, *self.warnings] if self.unreadable else self.warnings

    def drop(self, damaged: list[Path]) -> None:
        """Note damaged files. Raises `DataError` when they are more than a fifth."""
        self.unreadable.update(damaged)
        if damaged and len(self.unreadable) > MAX_UNREADABLE * (whole := len(self.unreadable.union(self.items))):
            raise DataError(
                f"{len(self.unreadable)} of {whole} pictures of {self.name} are damaged, {damaged[0].name} one"
            )

    def crop(self, index: int, side: int) -> np.ndarray:
        """One picture's central square as `(side, side, 3)`. Raises `DataError` for a damaged file."""
        item = self.items[index]
        picture = center_crop(item if isinstance(item, np.ndarray) else read_image(item))
        how = cv2.INTER_AREA if len(picture) >= side else cv2.INTER_CUBIC
        picture = picture if len(picture) == side else cv2.resize(picture, (side, side), interpolation=how)
        return cv2.GaussianBlur(picture, (0, 0), self.blur * side) if self.blur else picture

    def blurred(self, rows: np.ndarray, blur: float = 1 / 64) -> "ImageSet":
        """These rows, softened."""
        files = not isinstance(self.items, np.ndarray)
        items = [self.items[k] for k in rows] if files else self.items[rows]
        return ImageSet(f"{self.name}, blurred", items, [], self.image_size, blur=blur)

    @cached_property
    def key(self) -> str:
        """Changes with any pixel of an array, any byte of a file; not with the names of files."""
        digest = hashlib.blake2b(str(self.blur).encode(), digest_size=12)
        if isinstance(self.items, np.ndarray):
            digest.update(str(self.items.shape).encode())
            digest.update(np.ascontiguousarray(self.items).data)
        else:
            for path in self.items:
                digest.update(hashlib.blake2b(path.read_bytes(), digest_size=12).digest())
        return digest.hexdigest()


def _header(path: Path) -> tuple[tuple[int, int], str] | None:
    """Size and mode that a file states, or None when it is damaged from the start."""
    try:
        with Image.open(path) as picture:
            return picture.size, picture.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


# ------------------------------------------------------------------------------------------------------------ judges


@dataclass(frozen=True)
class FeatureExtractor:
    """`network`: pictures (B, 3, S, S) in 0..255 -> numbers (B, D), the last `logits` of which are class logits."""

    name: str
    network: nn.Module
    logits: int = 0

    @cached_property
    def key(self) -> str:
        """Changes with weights and structure, never with the name alone."""
        digest = hashlib.blake2b(str(self.network).encode(), digest_size=12)
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """`uint8 (B, S, S, 3)` -> `float32 (B, D)`"""
        x = torch.from_numpy(pictures).to(next(self.network.parameters()).device).permute(0, 3, 1, 2).float()
        return self.network(x.contiguous(memory_format=torch.channels_last)).float().cpu().numpy()


def load_extractor(name: str) -> FeatureExtractor:
    """A judge by name: `inception`, one of torchvision's networks with ImageNet weights, or the checkpoint of a
    classifier of ours, `.../checkpoint.pt` (then called `classifier`). `name=FILE` takes the weights from a file.
    Raises `DataError` when the weights are not to be had or not of that network."""
    if Path(name).suffix == ".pt":
        classifier, settings = load_classifier(name)
        return FeatureExtractor(
            "classifier", optimize_for_inference(Resized(classifier.backbone, settings.size), settings.size)
        )
    name, _, file = name.partition("=")
    if name == INCEPTION:
        return FeatureExtractor(name, optimize_for_inference(inception(Path(file) if file else None), 299), 1008)
    backbone = Backbone(name, file=Path(file) if file else None)
    if backbone.init != "ImageNet":
        where = f"no {name}-imagenet.pth where LESION_WEIGHTS_DIR says"
        raise DataError(f"the weights of {name} cannot be had: no connection, and {where}")
    return FeatureExtractor(name, optimize_for_inference(Resized(backbone, 224), 224))


def load_extractor_or_random(name: str) -> FeatureExtractor:
    """One of torchvision's networks even where its weights cannot be had: then it is called "<name>, random init"."""
    backbone = Backbone(name)
    told = name if backbone.init == "ImageNet" else f"{name}, {backbone.init}"
    return FeatureExtractor(told, optimize_for_inference(Resized(backbone, 224), 224))


def available_extractors(checkpoint: Path) -> tuple[list[FeatureExtractor], list[str]]:
    """Inception and MobileNetV2 where their weights can be had, and the classifier of `checkpoint` if that is there;
    and a sentence for each that is missing."""
    found, missing = [], []
    for name in (INCEPTION, "mobilenet_v2"):
        try:
            found.append(load_extractor(name))
        except DataError as error:
            missing.append(str(error))
    if checkpoint.is_file():
        return [*found, load_extractor(str(checkpoint))], missing
    return found, [*missing, f"there is no {display_path(checkpoint)}, so our classifier does not judge"]


class Resized(nn.Module):
    """A backbone behind bilinear resizing: pictures (B, 3, H, W) in 0..255 -> features (B, D)."""

    def __init__(self, backbone: nn.Module, image_size: int):
        super().__init__()
        self.backbone, self.image_size = backbone, image_size

    def extra_repr(self) -> str:
        return f"side={self.image_size}"  # part of the judge's key

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.image_size:
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return self.backbone(x / 127.5 - 1)


class Inception(nn.Module):
    """The network of FID: pictures (B, 3, H, W) in 0..255 -> 2048 features and 1008 logits without bias, side by side.

    torch-fidelity's modules and weights. Its bilinear resizing, TensorFlow's of 2015, is linear in rows and columns, so
    two matrix products do it.
    """

    def __init__(self, published: FeatureExtractorInceptionV3):
        super().__init__()
        *trunk, head = published.children()
        self.trunk, self.head = nn.Sequential(*trunk, nn.Flatten()), head

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (tensorflow_resizing(side, 299).to(x.device) for side in x.shape[2:])
        x = rows @ x @ columns.T
        features = self.trunk(((x - 128) / 128).contiguous(memory_format=torch.channels_last))
        return torch.cat([features, F.linear(features, self.head.weight)], dim=1)


def tensorflow_resizing(side: int, to: int) -> Tensor:
    """`(to, side)`: each row the weights of two neighbours, corners at corners and no half pixels."""
    where = torch.arange(to) * (side / to)
    low = where.floor().long()
    matrix = torch.zeros(to, side)
    matrix[torch.arange(to), low] = 1 - (where - low)
    matrix[torch.arange(to), (low + 1).clamp(max=side - 1)] += where - low
    return matrix


def inception(file: Path | None = None) -> Inception:
    """With the official weights: from `file`, from LESION_WEIGHTS_DIR or downloaded. Raises `DataError` when none of
    them has these very weights."""
    path = file or find_weights_file(INCEPTION_WEIGHTS)
    try:
        if path and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(INCEPTION_WEIGHTS[-12:-4]):
            raise OSError(f"{display_path(path)} is another file than the official one")
        with download_timeout():
            published = FeatureExtractorInceptionV3(
                INCEPTION, ["2048"], feature_extractor_weights_path=path and str(path), verbose=False
            )
    except (OSError, RuntimeError) as error:
        raise DataError(f"Inception's weights cannot be had ({error}), so there is no FID and no IS") from error
    return Inception(published)


def optimize_for_inference(network: nn.Module, image_size: int) -> nn.Module:
    """The same function of pictures, quicker: normalisation folded into the convolutions before it, channels last."""
    network = network.eval().requires_grad_(False).to(best_device(), memory_format=torch.channels_last)
    folded = fuse_batchnorm(copy.deepcopy(network))
    sample = 255 * torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    sample = sample.to(next(network.parameters()).device)
    with torch.inference_mode():
        wanted, found = network(sample), folded(sample)
    # Networks that call their parts in another order than they name them are left as they are.
    return folded if torch.allclose(wanted, found, 1e-3, 1e-3 * float(wanted.abs().mean())) else network


# ---------------------------------------------------------------------------------------------------------- features


@dataclass
class Features:
    """`values float32 (N, D)` and `logits (N, K)` of a set, `rows` their place in it (damaged pictures have none),
    `kinds` as in `Pictures`; `marks` are equal where pixels are; `key` changes with pictures and judge."""

    key: str
    values: np.ndarray
    logits: np.ndarray
    class_names: list[str]
    pixel_hashes: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows: np.ndarray) -> "Features":
        chosen = hashlib.blake2b(np.asarray(rows, np.int64).tobytes(), digest_size=6).hexdigest()
        kinds = [self.class_names[k] for k in rows] if self.class_names else []
        parts = (self.values[rows], self.logits[rows], kinds, self.pixel_hashes[rows], self.rows[rows])
        return Features(f"{self.key}-{chosen}", *parts)

    def of_class(self, kind: str, without: bool = False) -> "Features":
        return self.select(np.flatnonzero((np.array(self.class_names) == kind) != without))


def extract_features(
    images: ImageSet, extractor: FeatureExtractor, image_size: int, cache: Path | None = None
) -> Features:
    """Every picture's central square at `side` pixels, judged. With a folder `cache` the result is kept there, under
    the content of pictures and weights; damaged files are told in `pictures.problems` and left out."""
    key = f"{images.key}-{image_size}-{extractor.key}"
    kept = cache and cache / f"{key}.npz"
    if not kept or not kept.is_file():
        found = _compute(images, extractor, image_size)
        if not kept:
            return _as_features(key, images, extractor, found)
        cache.mkdir(parents=True, exist_ok=True)
        fresh = cache / f".{key}-{os.getpid()}.npz"
        np.savez(fresh, **found)
        os.replace(fresh, kept)
    with np.load(kept) as found:
        return _as_features(key, images, extractor, dict(found))


def _as_features(key: str, pictures: ImageSet, judge: FeatureExtractor, found: dict[str, np.ndarray]) -> Features:
    values, rows = found["values"], found["rows"]
    if len(rows) < len(pictures):
        damaged = sorted(set(range(len(pictures))) - set(rows.tolist()))
        pictures.drop([pictures.items[k] for k in damaged])
    split = values.shape[1] - judge.logits
    kinds = [pictures.class_names[k] for k in rows] if pictures.class_names else []
    return Features(key, values[:, :split], values[:, split:], kinds, found["marks"], rows)


def _compute(pictures: ImageSet, judge: FeatureExtractor, side: int) -> dict[str, np.ndarray]:
    values, rows, marks = None, [], []
    for where, squares in tqdm(_blocks(pictures, side), f"{judge.name}, {pictures.name}", -(-len(pictures) // BATCH_SIZE),
                               unit=f" x {BATCH_SIZE} images", leave=False):  # fmt: skip
        found = judge(squares)
        if values is None:
            values = np.empty((len(pictures), found.shape[1]), np.float32)
        values[len(rows) : len(rows) + len(where)] = found
        rows += where
        marks += [hashlib.blake2b(square.tobytes(), digest_size=8).digest() for square in squares]
    if values is None:
        raise DataError(f"no picture of {pictures.name} can be read")
    return {"values": values[: len(rows)], "rows": np.array(rows), "marks": np.frombuffer(b"".join(marks), np.uint64)}


def _blocks(pictures: ImageSet, side: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Row numbers and squares, `BLOCK` at a time; the next block is read while this one is judged."""

    def read(start: int) -> list[tuple[int, np.ndarray]]:
        found = []
        for k in range(start, min(start + BATCH_SIZE, len(pictures))):
            try:
                found.append((k, pictures.crop(k, side)))
            except DataError:
                continue  # told from the rows that are missing
        return found

    with ThreadPoolExecutor(1) as pool:
        starts = range(0, len(pictures), BATCH_SIZE)
        ahead = pool.submit(read, 0)
        for start in starts:
            block, ahead = ahead.result(), pool.submit(read, start + BATCH_SIZE)
            if block:
                yield [k for k, _ in block], np.stack([square for _, square in block])
