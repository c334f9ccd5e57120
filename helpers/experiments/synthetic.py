"""Training images that nobody photographed: drawn from deformed sketches, drawn from noise, blended onto other skin."""

from pathlib import Path

import numpy as np

from helpers.data.files import DataError
from helpers.data.poisson import blend, remove_lesion
from helpers.data.sketches import contour, deform, fill
from helpers.data.store import ImageSource, Store
from helpers.models.cgan import load_cgan, sample
from helpers.models.dcgan import load_dcgan, sample_dcgan


def cgan_images(
    checkpoint: Path, store: Store, rows: np.ndarray, count: int, seed: int = 0, balanced: bool = False
) -> ImageSource:
    """`count` images that a CGAN draws from deformed lesions of `rows`, each under its lesion's label, and the masks
    they must show; `balanced`: from every class about as many.

    Raises `DataError` when the network knows other classes or another style of sketch.
    """
    generator, settings = load_cgan(checkpoint)
    check_same_classes(settings.classes, store)
    if settings.style != "contour":
        raise DataError(f"the network draws sketches of style {settings.style!r}, of which no new ones can be made")
    rng = np.random.default_rng(seed)
    chosen = sample_balanced(store.labels, rows, count, rng) if balanced else rng.choice(rows, count)
    masks = np.stack([fill(deform(store.masks[row], rng)) for row in chosen])
    images = sample(generator, np.stack([contour(mask) for mask in masks]), store.labels[chosen], seed)
    return ImageSource(images, np.arange(count), masks, np.asarray(store.labels[chosen]))


def dcgan_images(checkpoint: Path, store: Store, rows: np.ndarray, count: int, seed: int = 0) -> ImageSource:
    """`count` images that a DCGAN draws from noise, under the labels of `rows`, of every class about as many. Raises
    `DataError` when the network knows other classes."""
    generator, settings = load_dcgan(checkpoint)
    check_same_classes(settings.classes, store)
    labels = store.labels[sample_balanced(store.labels, rows, count, np.random.default_rng(seed))]
    return ImageSource(sample_dcgan(generator, labels, seed), np.arange(count), labels=labels)


def blended_images(store: Store, rows: np.ndarray, count: int, skins: np.ndarray, seed: int = 0) -> ImageSource:
    """`count` lesions of `rows`, deformed and blended onto the skin of photographs `skins` (see `small_lesions`), of
    every class about as many. Raises `DataError` without skins."""
    rng = np.random.default_rng(seed)
    if not len(skins):
        raise DataError(f"{store.name} has no picture with skin around its lesion to blend onto")
    chosen = sample_balanced(store.labels, rows, count, rng)
    made = []
    for donor, skin in zip(chosen, rng.choice(skins, count), strict=True):
        bare = remove_lesion(store.images[skin], store.masks[skin], rng)
        made.append(blend(store.images[donor], store.masks[donor], bare, rng))
    images, masks = (np.stack(part) for part in zip(*made, strict=True))
    return ImageSource(images, np.arange(count), masks, np.asarray(store.labels[chosen]))


def small_lesions(store: Store, rows: np.ndarray, max_area: float = 0.25) -> np.ndarray:
    """Those of `rows` whose lesion, known and not empty, fills less than `share` of the picture."""
    areas = np.array([store.masks[row].mean() for row in rows])
    return rows[(areas > 0) & (areas < max_area)]


def sample_balanced(labels: np.ndarray, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the `rows`, from every class about as many: (count,), in the order of the classes."""
    kinds = [rows[labels[rows] == k] for k in np.unique(labels[rows])]
    shares = np.diff(np.linspace(0, count, len(kinds) + 1).round().astype(int))
    return np.concatenate([rng.choice(kind, share) for kind, share in zip(kinds, shares, strict=True)])


def check_same_classes(classes: tuple[str, ...], store: Store) -> None:
    if classes != tuple(store.classes):
        raise DataError(f"the network draws {' '.join(classes)}, the data have {' '.join(store.classes)}")
