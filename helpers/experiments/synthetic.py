"""Synthetic training images: from deformed sketches (CGAN), from noise (DCGAN), or blended onto other skin."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from helpers.config import Config, display_path
from helpers.data.batches import ImageSource
from helpers.data.deform import deform, deform_sketch
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS
from helpers.data.poisson import blend, remove_lesion
from helpers.data.sketches import contour, fill
from helpers.data.store import Store
from helpers.models.checkpoint import read_checkpoint
from helpers.models.gan import GANConfig, load_gan, train_gan
from helpers.models.sampling import sample, sample_batch
from helpers.models.trainer import TrainConfig

MAX_LESION_AREA = 0.25  # fraction of the image; more leaves too little skin to blend onto
SPURIOUS = ("ruler", "hair")  # artifacts that correlate with the diagnosis (arXiv 2004.11457)


def ensure_generator(store: Store, config: GANConfig, train_config: TrainConfig, cfg: Config) -> Path:
    """Checkpoint of a CGAN for this store: that of `train cgan`, whose training continues if it was stopped; else a
    file of this repository with this size, trained on training images of this data set; else a new training."""
    own = cfg.outputs / "cgan" / "checkpoint.pt"
    files = [*cfg.released.glob("cgan.safetensors"), *sorted(cfg.released.parent.glob("training/cgan-*.safetensors"))]
    for file in files if not own.is_file() else []:
        if fits(file, store, config.size):
            print(f"generator: {display_path(file)}")
            return file
    train_gan(store, config, own.parent, train_config)
    return own


def fits(checkpoint: Path, store: Store, size: int) -> bool:
    """Whether a CGAN has this size, the classes and sketch style of the store, and was trained on its images, but on
    none of val or test."""
    _, config = load_gan(checkpoint)
    trained_on = read_checkpoint(checkpoint)["extra_state"]["trained_on"]
    if (config.size, config.classes, config.style) != (size, tuple(store.classes), store.config.style):
        return False
    seen = store.rows_in(trained_on)
    return bool(len(seen)) and bool(np.isin(seen, store.rows("train")).all())


def cgan_images(
    checkpoint: Path, store: Store, rows: np.ndarray, count: int, seed: int = 0, balanced: bool = False
) -> ImageSource:
    """Generate `count` images from deformed sketches of random `rows`, each with its lesion's label and artifacts.

    The source holds the deformed masks too. `balanced`: about equally many per class, else in proportion to `rows`.
    Raises `DataError` if the network was not trained on all of these classes, or on another sketch style.
    """
    rng = np.random.default_rng(seed)
    chosen = sample_balanced(store.labels, rows, count, rng) if balanced else rng.choice(rows, count)
    return _images_of(checkpoint, store, chosen, store.artifacts[chosen], rng, seed)


def images_with_equal_artifacts(
    checkpoint: Path, store: Store, rows: np.ndarray, count: int, seed: int = 0
) -> ImageSource:
    """Images as by `cgan_images`, balanced, but with rulers and hair equally often in all classes: as often as in the
    classes of `rows` on average. The other flags are those of the lesions."""
    rng = np.random.default_rng(seed)
    chosen = sample_balanced(store.labels, rows, count, rng)
    flags, labels = np.array(store.artifacts[chosen]), store.labels[chosen]
    for column in map(ARTIFACTS.index, SPURIOUS):
        rate = np.mean([flags[labels == k, column].mean() for k in np.unique(labels)])
        for members in (np.flatnonzero(labels == k) for k in np.unique(labels)):
            flags[members, column] = 0
            flags[rng.permutation(members)[: round(rate * len(members))], column] = 1
    return _images_of(checkpoint, store, chosen, flags, rng, seed)


def _images_of(
    checkpoint: Path, store: Store, chosen: np.ndarray, flags: np.ndarray, rng: np.random.Generator, seed: int
) -> ImageSource:
    """An image from a new sketch of each row in `chosen (N,)`, with its label and with `flags (N, 7)`."""
    generator, config = load_gan(checkpoint)
    columns = class_columns(config.classes, store)
    if config.style != store.config.style:
        raise DataError(f"the store has {store.config.style} sketches, the network was trained on {config.style} ones")
    sketches, masks = (np.stack(arrays) for arrays in zip(*(new_sketch(store, k, rng) for k in chosen), strict=True))
    labels = np.asarray(store.labels[chosen])
    images = sample_batch(generator, {"sketches": sketches, "labels": columns[labels], "artifacts": flags}, seed)
    return ImageSource(images, np.arange(len(chosen)), masks, labels)


def new_sketch(store: Store, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sketch `(H, W)` in {0, 255} and mask `(H, W)` in {0, 1} of a lesion that does not exist: the contour of a
    deformed mask, or deformed lines for style "structure" and for images without a mask, whose mask is zeros."""
    if store.config.style == "structure" or not store.has_mask[row]:
        return deform_sketch(store.sketches[row], store.masks[row], rng)
    mask = fill(deform(store.masks[row], rng))
    return contour(mask), mask


def dcgan_images(checkpoint: Path, store: Store, rows: np.ndarray, count: int, seed: int = 0) -> ImageSource:
    """Generate `count` images from noise with labels of `rows`, about equally many per class. Raises `DataError` if the
    network was trained on other classes."""
    generator, config = load_gan(checkpoint, sketch=False)
    check_same_classes(config.classes, store)
    labels = store.labels[sample_balanced(store.labels, rows, count, np.random.default_rng(seed))]
    return ImageSource(sample(generator, None, labels, seed), np.arange(count), labels=labels)


def blended_images(store: Store, rows: np.ndarray, count: int, skin_rows: np.ndarray, seed: int = 0) -> ImageSource:
    """Deform `count` lesions of `rows`, about equally many per class, and blend them onto the skin of other images.

    `skin_rows`: images whose own lesion is removed first, see `small_lesions`. Raises `DataError` if there are none.
    """
    rng = np.random.default_rng(seed)
    if not len(skin_rows):
        raise DataError(f"{store.name} needs images with skin around a small lesion to blend onto, got none")
    chosen = sample_balanced(store.labels, rows, count, rng)
    blended = []
    for donor, skin in zip(chosen, rng.choice(skin_rows, count), strict=True):
        background = remove_lesion(store.images[skin], store.masks[skin], rng)
        blended.append(blend(store.images[donor], store.masks[donor], background, rng))
    images, masks = (np.stack(arrays) for arrays in zip(*blended, strict=True))
    return ImageSource(images, np.arange(count), masks, np.asarray(store.labels[chosen]))


def small_lesions(store: Store, rows: np.ndarray) -> np.ndarray:
    """Those of `rows` whose mask is not empty and covers less than `MAX_LESION_AREA` of the image."""
    areas = np.array([store.masks[row].mean() for row in rows])
    return rows[(areas > 0) & (areas < MAX_LESION_AREA)]


def sample_balanced(labels: np.ndarray, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample `count` of `rows` with replacement, about equally many per class: `(count,)`, ordered by class."""
    by_class = [rows[labels[rows] == k] for k in np.unique(labels[rows])]
    counts = np.diff(np.linspace(0, count, len(by_class) + 1).round().astype(int))
    return np.concatenate([rng.choice(members, n) for members, n in zip(by_class, counts, strict=True)])


def check_same_classes(classes: Sequence[str], store: Store) -> None:
    """Raise `DataError` if a network's classes are not those of the store, in the same order."""
    if tuple(classes) != tuple(store.classes):
        raise DataError(f"{store.name} has the classes {' '.join(store.classes)}, the network {' '.join(classes)}: "
                        "train it on this data set")  # fmt: skip


def class_columns(classes: Sequence[str], store: Store) -> np.ndarray:
    """The index in a network's `classes` of each class of the store, `(K,)`. Raises `DataError` if one is missing."""
    if not set(store.classes) <= set(classes):
        check_same_classes(classes, store)
    return np.array([list(classes).index(name) for name in store.classes])
