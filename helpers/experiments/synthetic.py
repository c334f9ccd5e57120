"""Synthetic training images: from deformed sketches (CGAN), from noise (DCGAN), or blended onto other skin; and what
the arms of notebooks 4 and 6 train on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from helpers.config import Config, display_path
from helpers.data.batches import ImageSource
from helpers.data.deform import deform, deform_sketch
from helpers.data.files import DataError
from helpers.data.poisson import blend, remove_lesion
from helpers.data.sketches import contour, fill
from helpers.data.store import Store
from helpers.experiments.runner import fraction_of_rows
from helpers.models.checkpoint import read_checkpoint
from helpers.models.gan import GANConfig, load_gan, train_gan
from helpers.models.sampling import sample, sample_batch
from helpers.models.trainer import TrainConfig

MAX_LESION_AREA = 0.25  # fraction of the image; more leaves too little skin to blend onto
NO_AUGMENTATION = {"color_jitter": 0.0, "translate": 0.0, "scale": 0.0}  # fields of classifier and segmenter configs


@dataclass(frozen=True)
class ArmConfig:
    """What the networks of an arm train on."""

    real: bool = False
    synthetic: bool = False
    augmented: bool = False
    balance: str = "sampling"  # of a classifier

    def apply(self, config: Any) -> Any:
        """The config of a classifier or segmenter, without augmentation if the arm has none."""
        return config if self.augmented else replace(config, **NO_AUGMENTATION)


def training_sources(
    store: Store, experiment: Any, out: str | Path, count: int, balanced: bool = False
) -> Callable[[ArmConfig, float, int], list[ImageSource]]:
    """Function (arm, fraction, seed) -> sources of an arm's training images, `count` of them synthetic.

    The generator of a fraction is trained on its images, once for all arms and seeds, in a folder of `out`;
    `experiment` has its config, `generator` and `gan_train`. `balanced`: see `cgan_images`.
    """

    @lru_cache(maxsize=len(experiment.seeds))  # all arms of a fraction use the same images
    def synthetic(fraction: float, seed: int) -> ImageSource:
        rows, folder = fraction_of_rows(store, fraction), Path(out) / f"generator-{fraction:g}"
        train_gan(store, experiment.generator, folder, experiment.gan_train, rows)
        return cgan_images(folder / "checkpoint.pt", store, rows, count, seed, balanced)

    def sources(arm: ArmConfig, fraction: float, seed: int) -> list[ImageSource]:
        real = ImageSource(store.images, fraction_of_rows(store, fraction), store.masks, store.labels)
        return [real] * arm.real + ([synthetic(fraction, seed)] if arm.synthetic else [])

    return sources


def ensure_generator(store: Store, config: GANConfig, train_config: TrainConfig, cfg: Config) -> Path:
    """Checkpoint of a CGAN for this store: that of `train cgan`, whose training continues if it was stopped; else the
    released one, if it has this size and was trained on training images of this data set; else a new training."""
    own, released = cfg.outputs / "cgan" / "checkpoint.pt", cfg.released / "cgan.safetensors"
    if not own.is_file() and released.is_file() and fits(released, store, config.size):
        print(f"generator: {display_path(released)}")
        return released
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
    Raises `DataError` if the network was trained on other classes or another sketch style.
    """
    generator, config = load_gan(checkpoint)
    check_same_classes(config.classes, store)
    if config.style != store.config.style:
        raise DataError(f"the store has {store.config.style} sketches, the network was trained on {config.style} ones")
    rng = np.random.default_rng(seed)
    chosen = sample_balanced(store.labels, rows, count, rng) if balanced else rng.choice(rows, count)
    sketches, masks = (np.stack(arrays) for arrays in zip(*(new_sketch(store, k, rng) for k in chosen), strict=True))
    images = sample_batch(generator, store.batch(chosen, ("labels", "artifacts")) | {"sketches": sketches}, seed)
    return ImageSource(images, np.arange(count), masks, np.asarray(store.labels[chosen]))


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
    """Draw `count` of `rows` with replacement, about equally many per class: `(count,)`, ordered by class."""
    by_class = [rows[labels[rows] == k] for k in np.unique(labels[rows])]
    counts = np.diff(np.linspace(0, count, len(by_class) + 1).round().astype(int))
    return np.concatenate([rng.choice(members, n) for members, n in zip(by_class, counts, strict=True)])


def check_same_classes(classes: tuple[str, ...], store: Store) -> None:
    """Raise `DataError` if a network's classes are not those of the store, in the same order."""
    if classes != tuple(store.classes):
        raise DataError(f"{store.name} has the classes {' '.join(store.classes)}, the network {' '.join(classes)}: "
                        "train it on this data set")  # fmt: skip
