"""What the page and notebook 8 do, without the page: a drawing and a diagnosis -> images; a photograph -> what the
networks make of it. Nothing here knows of browsers."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image

from helpers.config import display_path
from helpers.data import phantoms
from helpers.data.files import DataError, center_crop, extract_lines, list_images, read_image, to_rgb
from helpers.data.sketches import MAX_INK, contour, deform, fill, stroke_width
from helpers.data.store import INK_THRESHOLD, StoreConfig, resize, resize_sketch
from helpers.models.cgan import load_cgan, sample
from helpers.models.classifier import load_classifier, predict_proba
from helpers.models.dcgan import load_dcgan, sample_dcgan
from helpers.models.gradcam import grad_cam
from helpers.models.segmenter import is_uniform, load_segmenter, segment
from helpers.views.plots import overlay

DISPLAY_NAMES = {
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
MAX_PIXELS = 50_000_000  # of a picture
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
LOCK = Lock()  # chance is PyTorch's, one for all threads: with a page open, train in another process
MAX_SIDE = 512  # pixels: larger photographs are shown smaller


def display_name(label: str) -> str:
    """A diagnosis as people call it; classes of other sets keep their own names."""
    return DISPLAY_NAMES.get(label, label)


def find_weights(cfg: SimpleNamespace, given: dict[str, Path | None] | None = None) -> dict[str, Path]:
    """For each of `LOADERS` the given checkpoint, else the released weights; methods without any are left out. Raises
    `DataError` for a given one that is not there."""
    found = {}
    for method in LOADERS:
        wanted, released = (given or {}).get(method), cfg.released / f"{method}.safetensors"
        if wanted and not Path(wanted).is_file():
            raise DataError(f"there is no {display_path(wanted)}")
        if wanted or released.is_file():
            found[method] = Path(wanted or released)
    return found


def parse_drawing(picture: Image.Image, size: int) -> np.ndarray:
    """A drawing of any colours, or a filled mask, as a sketch `uint8 (size, size)` in {0, 255}: transparent paper is
    white, of a filled area the outline is taken. Of a picture that is no square the central one counts, or all of it
    where lines leave that.

    Raises `DataError` for an empty one, and for what is no drawing.
    """
    image = to_rgb(picture)
    lines = extract_lines(image)
    if not (lines > INK_THRESHOLD).any():
        raise DataError("The paper is empty: draw the outline of a lesion first.")
    between = (lines > 4) & (lines < 0.5 * lines.max())  # neither paper nor ink: much of a photograph is
    if between.mean() > 0.08:
        raise DataError("This is no line drawing and no mask: for a photograph take the other tab.")
    settings = StoreConfig(size)
    if (lines > INK_THRESHOLD).sum() > (center_crop(lines) > INK_THRESHOLD).sum():
        lines, image = pad_to_square(lines), pad_to_square(image)
    ink = resize(lines, settings) > 127
    reach = 4 * stroke_width(ink.shape) + 1
    solid = cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_OPEN, np.ones((reach, reach), np.uint8))
    if solid.sum() > 0.8 * ink.sum() > 0:
        return contour(mask_polarity(resize(image, settings).mean(axis=2) > 127))
    thinner = min(lines.shape) // size  # so that fine lines of a large drawing are not lost
    if thinner > 2:
        lines = cv2.dilate(lines, np.ones((thinner // 2 + 1, thinner // 2 + 1), np.uint8))
    sketch = resize_sketch(lines, settings)
    if (sketch > 0).mean() > MAX_INK:
        raise DataError("This is mostly ink: draw the outline of a lesion only.")
    return sketch


def pad_to_square(picture: np.ndarray) -> np.ndarray:
    """A picture `(H, W[, C])` in the middle of a square, the rest in the tone of its corner."""
    height, width = picture.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.broadcast_to(picture[:1, :1], (side, side, *picture.shape[2:])).copy()
    square[top : top + height, left : left + width] = picture
    return square


def mask_polarity(light: np.ndarray) -> np.ndarray:
    """The lesion `uint8` in {0, 1} of a mask, where `light (S, S)` is true: white, as masks are, unless nearly all of
    the frame is white, which then is the paper."""
    frame = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    return (light != (frame.mean() > 0.9)).astype(np.uint8)


def mask_from_sketch(sketch: np.ndarray) -> np.ndarray | None:
    """The mask `uint8 (S, S)` in {0, 1} of a sketch: what its lines enclose, gaps of some pixels closed; None when they
    enclose nothing."""
    gap = max(3, len(sketch) // 12) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap))
    closed = cv2.morphologyEx(np.pad(sketch, gap), cv2.MORPH_CLOSE, disc)[gap:-gap, gap:-gap]
    mask = fill(closed > 0)
    return mask if mask.sum() > 1.5 * (closed > 0).sum() else None


def read_drawing(path: str | Path, size: int) -> np.ndarray:
    """The same from a file. Raises `DataError`, also for a file that is no picture."""
    return parse_drawing(Image.fromarray(read_upload(path)), size)


def check_image_header(file: str | Path | bytes, name: str) -> None:
    """Raise `DataError` for what is no picture, larger than `MOST_PIXELS`, or narrower than 16 pixels; only the head of
    the file is read."""
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as picture:
            width, height = picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is damaged or not a picture.") from error
    if height * width > MAX_PIXELS or min(height, width) < 16:
        raise DataError(f"{name} is {width} x {height} pixels: from 16 a side to {MAX_PIXELS:,} in all can be read.")


def read_upload(path: str | Path, **how) -> np.ndarray:
    """`read_image`, for files of strangers: raises `DataError` that names no folder, see also `check_picture`."""
    name = Path(path).name
    check_image_header(path, name)
    try:
        return read_image(path, **how)
    except DataError as error:
        raise DataError(f"{name} is damaged or not a picture.") from error


def read_photo(path: str | Path) -> np.ndarray:
    """A photograph `uint8 (H, W, 3)`, upright, its longer side `VIEW` pixels at most. Raises as `read_picture`."""
    image = read_upload(path, at_least=MAX_SIDE, upright=True)
    smaller = MAX_SIDE / max(image.shape[:2])
    sides = (max(1, round(image.shape[1] * smaller)), max(1, round(image.shape[0] * smaller)))
    return image if smaller >= 1 else cv2.resize(image, sides, interpolation=cv2.INTER_AREA)


def example_sketches(size: int, count: int = 5) -> list[np.ndarray]:
    """Outlines of phantoms, `uint8 (size, size)` in {0, 255}: nobody's lesions."""
    return [contour(phantoms.render(k % len(phantoms.CLASSES), seed=k, size=size)[1]) for k in range(count)]


@dataclass(frozen=True)
class Analysis:
    """What the networks make of a photograph; without a segmenter or classifier their parts are empty."""

    image: np.ndarray  # (H, W, 3), the lesion outlined
    lesion_fraction: float  # of the picture, that is lesion
    outside_fraction: float  # share of the lesion beside the central square, which is all that the parts below see
    probabilities: dict[str, float]  # of the diagnoses, calibrated
    heatmap: np.ndarray | None  # (S, S, 3): the central square, where the first of them was seen
    sketch: np.ndarray | None  # (S, S) in {0, 255} to draw again; None where no lesion was found


class Predictor:
    """The networks. One visitor at a time is served: their chance is PyTorch's, which is one for all threads."""

    def __init__(self, weights: dict[str, Path]):
        """`weights`: see `weights_at_hand`. Raises `DataError` for a file that does not hold such a network."""
        self.weights = weights
        loaded = {method: LOADERS[method](path) for method, path in weights.items()}
        self.networks = {method: network for method, (network, _) in loaded.items()}
        self.classes = {method: list(getattr(settings, "classes", [])) for method, (_, settings) in loaded.items()}

    def __str__(self) -> str:
        parts = []
        for method, network in self.networks.items():
            facts = [display_path(self.weights[method]), f"{network.size} px", " ".join(self.classes[method])]
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

    def sample(
        self, sketch: np.ndarray, name: str, count: int = 4, variation: float = 1.0, seed: int = 0
    ) -> list[np.ndarray]:
        """Images `uint8 (S, S, 3)` of a sketch `(S, S)` in {0, 255} under a diagnosis. `variation` scales the noise: at
        0 all are alike, at 1 as different as photographs taught, beyond the network was never asked. The first images
        of a seed are the same however many there are."""
        generator, label = self.network("cgan"), self.label("cgan", name)
        chance = torch.Generator().manual_seed(seed)
        noise = variation * torch.stack([torch.randn(generator.z_dim, generator=chance) for _ in range(count)])
        grain = [seed + (k if variation else 0) for k in range(count)]
        with LOCK:
            return [sample(generator, sketch[None], [label], grain[k], noise[k : k + 1])[0] for k in range(count)]

    def sample_without_sketch(self, name: str, count: int = 4, seed: int = 0) -> list[np.ndarray]:
        """Images of the DCGAN."""
        generator, label = self.network("dcgan"), self.label("dcgan", name)
        with LOCK:
            return list(sample_dcgan(generator, [label] * count, seed))

    def synthetic_pairs(
        self, name: str, count: int, seed: int = 0, sketch: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images with masks `(S, S)` in {0, 1}, each of another shape: that of the sketch deformed, or of phantoms.
        One by one, so that others are served between two of them."""
        generator, label, rng = self.network("cgan"), self.label("cgan", name), np.random.default_rng(seed)
        shapes = [mask_from_sketch(s) for s in ([sketch] if sketch is not None else example_sketches(self.size, 24))]
        if shapes[0] is None:
            raise DataError("The outline is not closed, so nobody knows what is inside.")
        for _ in range(count):
            mask = fill(deform(shapes[int(rng.integers(len(shapes)))], rng))
            with LOCK:
                (image,) = sample(generator, contour(mask)[None], [label], int(rng.integers(2**31)))
            yield image, mask

    def analyze(self, image: np.ndarray) -> Analysis:
        """A photograph `uint8 (H, W, 3)` -> its lesion, diagnoses, where they are seen, sketch. Raises `DataError` for
        a picture of one colour."""
        if is_uniform(image):
            raise DataError("The picture is all one colour: there is nothing to see.")
        with LOCK:
            mask = np.zeros(image.shape[:2], np.uint8)
            if "segmenter" in self.networks:
                (mask,) = segment(self.networks["segmenter"], [image])
            named, heat = self.classify_with_heatmap(image)
        sketch = None
        if "cgan" in self.networks and center_crop(mask).any():
            sketch = contour((resize(255 * mask, StoreConfig(self.size)) > 127).astype(np.uint8))
        outside = 1 - center_crop(mask).sum() / max(mask.sum(), 1) if mask.any() else 0.0
        return Analysis(overlay(image, mask), float(mask.mean()), float(outside), named, heat, sketch)

    def classify_with_heatmap(self, image: np.ndarray) -> tuple[dict[str, float], np.ndarray | None]:
        if "classifier" not in self.networks:
            return {}, None
        classifier = self.networks["classifier"]
        small = resize(image, StoreConfig(classifier.size))
        (found,) = predict_proba(classifier, small[None])
        heat = grad_cam(classifier, small, int(found.argmax()))
        return dict(zip(self.classes["classifier"], map(float, found), strict=True)), heatmap_overlay(small, heat)


def heatmap_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image under a map in [0, 1]: yellow where it is strongest, untouched where it is 0."""
    tint = cv2.cvtColor(cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    share = 0.6 * heat[..., None]
    return ((1 - share) * image + share * tint).round().astype(np.uint8)


def predict_folder(predictor: Predictor, folder: str | Path) -> tuple[pd.DataFrame, list[Analysis], list[str]]:
    """A table with a row per picture of a folder (`file diagnosis lesion_share`, a probability per class), what was
    found in each, and sentences on what could not be read. Raises `DataError` when nothing could."""
    rows, findings, problems = [], [], []
    for path in list_images(Path(folder)):
        try:
            found = predictor.analyze(read_photo(path))
        except DataError as error:
            problems.append(str(error) if path.name in str(error) else f"{path.name}: {error}")
            continue
        findings.append(found)
        best = max(found.probabilities, key=found.probabilities.get, default="")
        rows.append(
            {"file": path.name, "diagnosis": best, "lesion_fraction": found.lesion_fraction} | found.probabilities
        )
    if not rows:
        raise DataError(f"{display_path(folder)} has no picture that can be read")
    return pd.DataFrame(rows), findings, problems
