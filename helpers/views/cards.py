"""Sample images of the model cards in data/released, and the checksums of all cards.

All images are generated or procedural, with fixed seeds and without any selection. All five take half a minute on one
core.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from helpers.data.files import atomic_file
from helpers.models.artifacts import load_artifacts, predict_artifacts
from helpers.models.classifier import load_classifier, predict_proba
from helpers.models.gan import GANConfig, load_gan
from helpers.models.sampling import sample
from helpers.models.segmenter import load_segmenter, segment
from helpers.phantoms.classes import CLASSES
from helpers.phantoms.render import ARTIFACTS, render, render_with_flags
from helpers.views.plots import grid, overlay, save
from helpers.views.predictor import example_sketches

CELL, CGAN_CELL = 0.92, 1.2  # inches per image side, 110 pixels each
LINE = 0.12  # inches per line of the text at an image
COLORS = 256  # palette of the files, which are then a third as large as in true color


def generate(file: Path, count: int) -> tuple[np.ndarray, np.ndarray, GANConfig]:
    """Sketches `uint8 (count, H, W)`, generated images `uint8 (count, K, H, W, 3)`, one per class, and the config.

    Images of one sketch share the latent and the random maps; no artifact flags.
    """
    generator, config = load_gan(file)
    sketches, num_classes = np.stack(example_sketches(config.size, count)), len(config.classes)
    z, labels = draw_latents(count, config.z_dim), np.tile(np.arange(num_classes), count)
    images = sample(generator, sketches.repeat(num_classes, 0), labels, 0, z.repeat_interleave(num_classes, dim=0))
    return sketches, images.reshape(count, num_classes, *images.shape[1:]), config


def draw_latents(count: int, z_dim: int) -> torch.Tensor:
    """The latents (count, z_dim) of all figures: one per column or row."""
    return torch.randn(count, z_dim, generator=torch.Generator().manual_seed(0))


def generate_with_each_artifact(file: Path, rows: Sequence[int], labels: Sequence[int]) -> np.ndarray:
    """`uint8 (7, H, W, 3)`: image k has the outline and the latent of number `rows[k]` in `generate`, class `labels[k]`
    and only the k-th of `ARTIFACTS`."""
    generator, config = load_gan(file)
    sketches = np.stack(example_sketches(config.size, max(rows) + 1))[list(rows)]
    z = draw_latents(max(rows) + 1, config.z_dim)[list(rows)]
    return sample(generator, sketches, labels, 0, z, np.eye(len(ARTIFACTS), dtype=np.uint8))


def captioned(
    rows: list[list[np.ndarray]], row_titles: list[str], captions: list[list[str]], titles: Sequence[Sequence[str]] = ()
) -> Figure:
    """A grid with a caption of any number of lines below every image, and a title of one line above if given."""
    figure = grid(rows, row_titles, cell=CELL)
    num_lines = max(caption.count("\n") + 1 for row in captions for caption in row)
    above, below = LINE * bool(titles) + 0.04, LINE * num_lines + 0.08
    figure.set_figheight(len(rows) * (CELL + above + below))
    height = figure.get_figheight()
    figure.subplots_adjust(bottom=below / height, top=1 - above / height, hspace=(above + below) / CELL)
    for axis, caption in zip(figure.axes, chain(*captions), strict=True):
        axis.set_xlabel(caption, fontsize=6.5, labelpad=2)
    for axis, title in zip(figure.axes, chain(*titles), strict=False):
        axis.set_title(title, fontsize=6.5, pad=2)
    return figure


def cgan_figure(file: Path, generator: Path) -> Figure:
    """Rows: four contours; columns: the sketch and an image of every class, with the same latent. Last row, if the
    generator takes artifact flags and has as many classes: the first contour and its latent as NV, with one artifact
    each, named below."""
    sketches, images, config = generate(file, 4)
    rows = [[sketch, *row] for sketch, row in zip(sketches, images, strict=True)]
    titles, count = ["sketch", *config.classes], len(ARTIFACTS)
    if not config.artifacts or len(config.classes) != count:
        return grid(rows, column_titles=titles, cell=CGAN_CELL)
    rows.append([sketches[0], *generate_with_each_artifact(file, [0] * count, [config.classes.index("NV")] * count)])
    figure = grid(rows, column_titles=titles, cell=CGAN_CELL)
    height, below = figure.get_figheight(), 2 * LINE
    figure.set_figheight(height + below)
    total = height + below
    figure.subplots_adjust(bottom=below / total, top=(below + figure.subplotpars.top * height) / total)
    for axis, name in zip(figure.axes[(len(rows) - 1) * len(rows[0]) :], ["sketch", *ARTIFACTS], strict=True):
        axis.set_xlabel(name.replace("_", " "), fontsize=9, labelpad=3)
    return figure


def dcgan_figure(file: Path, generator: Path) -> Figure:
    """Rows: classes; columns: six latents, the same for every class."""
    network, config = load_gan(file, sketch=False)
    num_classes = len(config.classes)
    z = draw_latents(6, config.z_dim).repeat(num_classes, 1)
    images = sample(network, None, np.arange(num_classes).repeat(6), 0, z)
    rows = [list(row) for row in images.reshape(num_classes, 6, *images.shape[1:])]
    return grid(rows, config.classes, [f"z {k + 1}" for k in range(6)], cell=CELL)


def segmenter_figure(file: Path, generator: Path) -> Figure:
    """Columns: six generated images, each of the next class; rows: sketch, image, image with the predicted outline."""
    sketches, images, config = generate(generator, 6)
    classes = [k % len(config.classes) for k in range(6)]
    images = [row[k] for row, k in zip(images, classes, strict=True)]
    outlined = [overlay(i, m) for i, m in zip(images, segment(load_segmenter(file)[0], images), strict=True)]
    column_titles = [config.classes[k] for k in classes]
    return grid([list(sketches), images, outlined], ["sketch", "generated", "predicted"], column_titles, CELL)


def classifier_figure(file: Path, generator: Path) -> Figure:
    """Rows: class that the generator was given; columns: six sketches; captions: the most probable class."""
    _, images, generator_config = generate(generator, 6)
    classifier, config = load_classifier(file)
    rows, captions = [list(row) for row in images.swapaxes(0, 1)], []
    for row in rows:
        probs = predict_proba(classifier, np.stack(row))
        captions.append([f"{config.classes[p.argmax()]} {p.max():.2f}" for p in probs])
    return captioned(rows, [f"generated\nas {name}" for name in generator_config.classes], captions)


def artifacts_figure(file: Path, generator: Path) -> Figure:
    """First row: for each artifact the first phantom that shows no other one, with the artifact as title; second row:
    generated images, each of another outline and of the next class, for which that artifact alone was asked; captions:
    the detected flags."""
    detector, config = load_artifacts(file)
    phantoms = [phantom_with(name, config.size) for name in ARTIFACTS]
    classes = load_gan(generator)[1].classes
    labels = [k % len(classes) for k in range(len(ARTIFACTS))]
    generated = list(generate_with_each_artifact(generator, range(len(ARTIFACTS)), labels))
    captions = [[detected(p) for p in predict_artifacts(detector, np.stack(row))] for row in (phantoms, generated)]
    titles = [[f"has {name}" for name in ARTIFACTS], [f"asked: {name}" for name in ARTIFACTS]]
    return captioned([phantoms, generated], ["procedural", "generated"], captions, titles)


def phantom_with(artifact: str, size: int) -> np.ndarray:
    """The first phantom, by seed and class, that shows this artifact and no other one: `uint8 (size, size, 3)`."""
    wanted = [name == artifact for name in ARTIFACTS]
    for seed in range(1000):
        for label in range(len(CLASSES)):
            if (render_with_flags(label, seed, 64)[2] == wanted).all():
                return render(label, seed, size)[0]
    raise ValueError(f"no phantom shows only {artifact}")


def detected(probs: np.ndarray) -> str:
    """The flags with a probability above 0.5, one a line."""
    found = [f"{name} {p:.2f}" for name, p in zip(ARTIFACTS, probs, strict=True) if p > 0.5]
    return "\n".join(found or ["none"])


FIGURES: dict[str, Callable[[Path, Path], Figure]] = {  # (file with weights, file of the generator) -> figure
    "cgan": cgan_figure,
    "dcgan": dcgan_figure,
    "segmenter": segmenter_figure,
    "classifier": classifier_figure,
    "artifacts": artifacts_figure,
}


def write_cards(released: Path, names: Iterable[str], out: Path | None = None) -> list[Path]:
    """Write NAME.png of each name of `FIGURES` from the weights `released`/NAME.safetensors; returns the paths.

    The images for segmenter, classifier and artifacts are generated by the released CGAN. `out`: folder of the figures;
    default: `released`. Raises `ValueError` for an unknown name, `DataError` if a file is missing or not of its method.
    """
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(f"the card must be one of {', '.join(FIGURES)}, got {unknown[0]!r}")
    paths = []
    for name in names:
        path = (out or released) / f"{name}.png"
        figure = FIGURES[name](released / f"{name}.safetensors", released / "cgan.safetensors")
        with atomic_file(path) as temporary:
            save(figure, temporary)
            image = Image.open(temporary).convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, kmeans=3)
            image.save(temporary, optimize=True)
        paths.append(path)
    return paths


def write_checksums(*folders: Path) -> list[Path]:
    """Write the SHA-256 of every NAME.safetensors below the title of its card NAME.md; returns the cards."""
    cards = sorted(card for folder in folders for card in folder.glob("*.md"))
    cards = [card for card in cards if card.with_suffix(".safetensors").is_file()]
    for card in cards:
        checksum = hashlib.sha256(card.with_suffix(".safetensors").read_bytes()).hexdigest()
        title, text = card.read_text(encoding="utf-8").split("\n\n", 1)
        text = re.sub(r"\ASHA-256: .*\n\n", "", text)
        with atomic_file(card) as temporary:
            temporary.write_text(f"{title}\n\nSHA-256: `{checksum}`\n\n{text}", encoding="utf-8", newline="\n")
    return cards
