"""What the page and notebook 8 do, without the page: a drawing and a diagnosis -> images; a photograph -> what the
networks make of it. Nothing here knows of browsers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image

from helpers.config import shown
from helpers.data import phantoms
from helpers.data.files import DataError, colours, lines_of, list_images, picture_shape, read_image
from helpers.data.sketches import MOSTLY_INK, contour, deform, filled, line_width
from helpers.data.store import StoreSettings, fit, fit_lines
from helpers.models.cgan import draw, load_cgan
from helpers.models.classifier import classify, load_classifier
from helpers.models.dcgan import draw_dcgan, load_dcgan
from helpers.models.gradcam import grad_cam
from helpers.models.segmenter import load_segmenter, one_colour, segment
from helpers.views.plots import overlay

PLAIN = {
    "MEL": "melanoma",
    "NV": "mole (nevus)",
    "BCC": "basal cell carcinoma",
    "AKIEC": "actinic keratosis or Bowen's disease",
    "BKL": "benign keratosis",
    "SK": "seborrhoeic keratosis",
    "DF": "dermatofibroma",
    "VASC": "vascular lesion",
}
LOADERS = {"cgan": load_cgan, "segmenter": load_segmenter, "classifier": load_classifier, "dcgan": load_dcgan}
MOST_PIXELS = 50_000_000  # of a photograph
VIEW = 512  # pixels: larger photographs are shown smaller


def plain_name(label: str) -> str:
    """A diagnosis as people call it; classes of other sets keep their own names."""
    return PLAIN.get(label, label)


def weights_at_hand(cfg: SimpleNamespace, given: dict[str, Path] | None = None) -> dict[str, Path]:
    """For each of `LOADERS` the given checkpoint, else the released weights, else what `train` left; methods without
    any are left out. Raises `DataError` for a given one that is not there."""
    found = {}
    for method in LOADERS:
        wanted = (given or {}).get(method)
        if wanted and not Path(wanted).is_file():
            raise DataError(f"there is no {shown(wanted)}")
        places = [cfg.released / f"{method}.safetensors", cfg.outputs / method / "checkpoint.pt"]
        if place := wanted or next((p for p in places if p.is_file()), None):
            found[method] = Path(place)
    return found


def line_drawing(picture: Image.Image, size: int) -> np.ndarray:
    """A drawing of any colours, or a filled mask, as a sketch `uint8 (size, size)` in {0, 255}: transparent paper is
    white, of pictures that are no squares the central one counts, of a filled area its outline.

    Raises `DataError` for an empty one, and for what is no drawing.
    """
    lines, settings = lines_of(colours(picture)), StoreSettings(size)
    sketch = fit_lines(lines, settings)
    ink = (sketch > 0).astype(np.uint8)
    if not ink.any():
        raise DataError("The paper is empty: draw the outline of a lesion first.")
    tones = fit(lines, settings)
    between = (tones > 4) & (tones < 0.5 * tones.max())  # neither paper nor ink: much of a photograph is
    if between.mean() > 0.08:
        raise DataError("This is no line drawing and no mask: for a photograph take the other tab.")
    reach = 4 * line_width(ink.shape) + 1
    solid = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((reach, reach), np.uint8))
    if solid.sum() > 0.8 * ink.sum():  # a mask
        frame = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
        return contour(1 - ink if frame.mean() > 0.5 else ink)
    if ink.mean() > MOSTLY_INK:
        raise DataError("This is mostly ink: draw the outline of a lesion only.")
    return sketch


def read_drawing(path: str | Path, size: int) -> np.ndarray:
    """The same from a file. Raises `DataError`, also for a file that is no picture."""
    return line_drawing(Image.fromarray(read_photograph(path)), size)


def read_photograph(path: str | Path) -> np.ndarray:
    """A photograph `uint8 (H, W, 3)`, upright, its longer side `VIEW` pixels at most. Raises `DataError` for a file
    that is no picture, larger than `MOST_PIXELS`, or narrower than 16 pixels."""
    name = Path(path).name
    try:
        height, width = picture_shape(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is damaged or not a picture.") from error
    if height * width > MOST_PIXELS or min(height, width) < 16:
        raise DataError(f"{name} is {width} x {height} pixels: from 16 a side to {MOST_PIXELS:,} in all can be read.")
    try:
        image = read_image(path, at_least=VIEW, upright=True)
    except DataError as error:
        raise DataError(f"{name} is damaged or not a picture.") from error
    smaller = VIEW / max(image.shape[:2])
    sides = (max(1, round(image.shape[1] * smaller)), max(1, round(image.shape[0] * smaller)))
    return image if smaller >= 1 else cv2.resize(image, sides, interpolation=cv2.INTER_AREA)


def example_sketches(size: int, count: int = 5) -> list[np.ndarray]:
    """Outlines of phantoms, `uint8 (size, size)` in {0, 255}: nobody's lesions."""
    return [contour(phantoms.draw(k % len(phantoms.CLASSES), seed=k, size=size)[1]) for k in range(count)]


@dataclass(frozen=True)
class Finding:
    """What the networks make of a photograph; without a segmenter or classifier their parts are empty."""

    image: np.ndarray  # (H, W, 3), the lesion outlined
    share: float  # of the picture, that is lesion
    probabilities: dict[str, float]  # of the diagnoses, calibrated
    heat: np.ndarray | None  # (S, S, 3): the central square, where the first of them was seen
    sketch: np.ndarray | None  # (S, S) in {0, 255} to draw again; None where no lesion was found


class Studio:
    """The networks. One visitor at a time is served: their chance is PyTorch's, which is one for all threads."""

    def __init__(self, weights: dict[str, Path]):
        """`weights`: see `weights_at_hand`. Raises `DataError` for a file that does not hold such a network."""
        self.weights, self.busy = weights, Lock()
        loaded = {method: LOADERS[method](path) for method, path in weights.items()}
        self.networks = {method: network for method, (network, _) in loaded.items()}
        self.classes = {method: list(getattr(settings, "classes", [])) for method, (_, settings) in loaded.items()}

    def __str__(self) -> str:
        parts = []
        for method, network in self.networks.items():
            facts = [shown(self.weights[method]), f"{network.size} px", " ".join(self.classes[method])]
            parts.append(f"{method}: " + ", ".join(filter(None, facts)))
        return "\n".join(parts)

    @property
    def size(self) -> int:
        """Pixels of a sketch's side."""
        return self.networks["cgan"].size

    def network(self, method: str) -> torch.nn.Module:
        """Raises `DataError` where it has no weights."""
        if method not in self.networks:
            raise DataError(f"There are no weights of a {method} here: `python -m helpers train {method}` makes some.")
        return self.networks[method]

    def label(self, method: str, name: str) -> int:
        """Raises `DataError` for a class that the network does not know."""
        self.network(method)
        if name not in self.classes[method]:
            raise DataError(f"This network knows {', '.join(self.classes[method])}, and no {name}.")
        return self.classes[method].index(name)

    def draw(
        self, sketch: np.ndarray, name: str, count: int = 4, variation: float = 1.0, seed: int = 0
    ) -> list[np.ndarray]:
        """Images `uint8 (S, S, 3)` of a sketch `(S, S)` in {0, 255} under a diagnosis. `variation` scales the noise: at
        0 all are alike, at 1 as different as photographs taught, beyond the network was never asked. The first images
        of a seed are the same however many there are."""
        generator, label = self.network("cgan"), self.label("cgan", name)
        chance = torch.Generator().manual_seed(seed)
        noise = variation * torch.stack([torch.randn(generator.noise, generator=chance) for _ in range(count)])
        grain = [seed + (k if variation else 0) for k in range(count)]
        with self.busy:
            return [draw(generator, sketch[None], [label], grain[k], noise[k : k + 1])[0] for k in range(count)]

    def draw_without_sketch(self, name: str, count: int = 4, seed: int = 0) -> list[np.ndarray]:
        """Images of the DCGAN."""
        generator, label = self.network("dcgan"), self.label("dcgan", name)
        with self.busy:
            return list(draw_dcgan(generator, [label] * count, seed))

    def training_images(
        self, name: str, count: int, seed: int = 0, sketch: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images with masks `(S, S)` in {0, 1}, each of another shape: that of the sketch deformed, or of phantoms.
        One by one, so that others are served between two of them."""
        generator, label, rng = self.network("cgan"), self.label("cgan", name), np.random.default_rng(seed)
        shapes = [filled(s > 0) for s in ([sketch] if sketch is not None else example_sketches(self.size, 24))]
        for _ in range(count):
            mask = filled(deform(shapes[int(rng.integers(len(shapes)))], rng))
            with self.busy:
                (image,) = draw(generator, contour(mask)[None], [label], int(rng.integers(2**31)))
            yield image, mask

    def look(self, image: np.ndarray) -> Finding:
        """A photograph `uint8 (H, W, 3)` -> its lesion, diagnoses, where they are seen, sketch. Raises `DataError` for
        a picture of one colour."""
        if one_colour(image):
            raise DataError("The picture is all one colour: there is nothing to see.")
        with self.busy:
            mask = np.zeros(image.shape[:2], np.uint8)
            if "segmenter" in self.networks:
                (mask,) = segment(self.networks["segmenter"], [image])
            named, heat = self.diagnosed(image)
        sketch = None
        if "cgan" in self.networks and mask.any():
            sketch = contour((fit(255 * mask, StoreSettings(self.size)) > 127).astype(np.uint8))
        return Finding(overlay(image, mask), float(mask.mean()), named, heat, sketch if np.any(sketch) else None)

    def diagnosed(self, image: np.ndarray) -> tuple[dict[str, float], np.ndarray | None]:
        if "classifier" not in self.networks:
            return {}, None
        classifier = self.networks["classifier"]
        small = fit(image, StoreSettings(classifier.size))
        (found,) = classify(classifier, small[None])
        heat = grad_cam(classifier, small, int(found.argmax()))
        return dict(zip(self.classes["classifier"], map(float, found), strict=True)), heated(small, heat)


def heated(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image under a map in [0, 1]: yellow where it is strongest, untouched where it is 0."""
    tint = cv2.cvtColor(cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    share = 0.6 * heat[..., None]
    return ((1 - share) * image + share * tint).round().astype(np.uint8)


def predict_folder(studio: Studio, folder: str | Path) -> tuple[pd.DataFrame, dict[str, Finding], list[str]]:
    """A table with a row per picture of a folder (`image_id diagnosis lesion_share`, a probability per class), what was
    found in each, and sentences on what could not be read. Raises `DataError` when nothing could."""
    rows, findings, problems = [], {}, []
    for path in list_images(Path(folder)):
        try:
            found = studio.look(read_photograph(path))
        except DataError as error:
            problems.append(f"{path.name}: {error}")
            continue
        findings[path.stem] = found
        best = max(found.probabilities, key=found.probabilities.get, default="")
        rows.append({"image_id": path.stem, "diagnosis": best, "lesion_share": found.share} | found.probabilities)
    if not rows:
        raise DataError(f"{shown(folder)} has no picture that can be read")
    return pd.DataFrame(rows), findings, problems
