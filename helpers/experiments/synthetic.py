"""Training images that nobody photographed: drawn from deformed sketches, drawn from noise, blended onto other skin."""

from pathlib import Path

import numpy as np

from helpers.data.blend import blend, without_lesion
from helpers.data.files import DataError
from helpers.data.sketches import contour, deform, filled
from helpers.data.store import Part, Store
from helpers.models.cgan import draw, load_cgan
from helpers.models.dcgan import draw_dcgan, load_dcgan


def drawn_images(
    checkpoint: Path, store: Store, rows: np.ndarray, count: int, seed: int = 0, balanced: bool = False
) -> Part:
    """`count` images that a CGAN draws from deformed lesions of `rows`, each under its lesion's label, and the masks
    they must show; `balanced`: from every class about as many.

    Raises `DataError` when the network knows other classes or another style of sketch.
    """
    generator, settings = load_cgan(checkpoint)
    same_classes(settings.classes, store)
    if settings.style != "contour":
        raise DataError(f"the network draws sketches of style {settings.style!r}, of which no new ones can be made")
    rng = np.random.default_rng(seed)
    chosen = choose(store.labels, rows, count, rng) if balanced else rng.choice(rows, count)
    masks = np.stack([filled(deform(store.masks[row], rng)) for row in chosen])
    images = draw(generator, np.stack([contour(mask) for mask in masks]), store.labels[chosen], seed)
    return Part(images, np.arange(count), masks, np.asarray(store.labels[chosen]))


def noise_images(checkpoint: Path, store: Store, rows: np.ndarray, count: int, seed: int = 0) -> Part:
    """`count` images that a DCGAN draws from noise, under the labels of `rows`, of every class about as many. Raises
    `DataError` when the network knows other classes."""
    generator, settings = load_dcgan(checkpoint)
    same_classes(settings.classes, store)
    labels = store.labels[choose(store.labels, rows, count, np.random.default_rng(seed))]
    return Part(draw_dcgan(generator, labels, seed), np.arange(count), labels=labels)


def blended_images(store: Store, rows: np.ndarray, count: int, skins: np.ndarray, seed: int = 0) -> Part:
    """`count` lesions of `rows`, deformed and blended onto the skin of photographs `skins` (see `small_lesions`), of
    every class about as many. Raises `DataError` without skins."""
    rng = np.random.default_rng(seed)
    if not len(skins):
        raise DataError(f"{store.name} has no picture with skin around its lesion to blend onto")
    chosen = choose(store.labels, rows, count, rng)
    made = []
    for donor, skin in zip(chosen, rng.choice(skins, count), strict=True):
        bare = without_lesion(store.images[skin], store.masks[skin], rng)
        made.append(blend(store.images[donor], store.masks[donor], bare, rng))
    images, masks = (np.stack(part) for part in zip(*made, strict=True))
    return Part(images, np.arange(count), masks, np.asarray(store.labels[chosen]))


def small_lesions(store: Store, rows: np.ndarray, share: float = 0.25) -> np.ndarray:
    """Those of `rows` whose lesion, known and not empty, fills less than `share` of the picture."""
    areas = np.array([store.masks[row].mean() for row in rows])
    return rows[(areas > 0) & (areas < share)]


def choose(labels: np.ndarray, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the `rows`, from every class about as many: (count,), in the order of the classes."""
    kinds = [rows[labels[rows] == k] for k in np.unique(labels[rows])]
    shares = np.diff(np.linspace(0, count, len(kinds) + 1).round().astype(int))
    return np.concatenate([rng.choice(kind, share) for kind, share in zip(kinds, shares, strict=True)])


def same_classes(classes: tuple[str, ...], store: Store) -> None:
    if classes != tuple(store.classes):
        raise DataError(f"the network draws {' '.join(classes)}, the data have {' '.join(store.classes)}")
