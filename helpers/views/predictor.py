"""What the page and notebook 8 do, without the page: a drawing and a diagnosis give images; a photo gives lesion,
probabilities, heatmap and sketch. Does not import gradio."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
import pandas as pd
import torch

from helpers.config import Config, display_path
from helpers.data.class_folders import MASK_NAME
from helpers.data.deform import deform
from helpers.data.files import (
    FORMATS,
    MAX_PIXELS,
    DataError,
    center_crop,
    is_mask,
    no_images_error,
    read_header,
    read_image,
)
from helpers.data.layouts import image_files
from helpers.data.sketches import contour, fill, mask_from_sketch, parse_drawing, shrink
from helpers.data.store import StoreConfig, resize
from helpers.models.classifier import hide_surroundings, predict
from helpers.models.gradcam import grad_cam
from helpers.models.hub import LOADERS
from helpers.models.sampling import sample, sample_variations
from helpers.models.segmenter import is_uniform, segment
from helpers.models.weights import fuse_batchnorm
from helpers.phantoms.classes import CLASSES
from helpers.phantoms.render import ARTIFACTS, render
from helpers.views.plots import overlay

DISPLAY_NAMES = {
    "MEL": "melanoma",
    "NV": "mole (nevus)",
    "BCC": "basal cell carcinoma",
    "AKIEC": "actinic keratosis or Bowen's disease",
    "BKL": "benign keratosis",
    "SK": "seborrheic keratosis",
    "DF": "dermatofibroma",
    "VASC": "vascular lesion",
}
METHODS = ("cgan", "segmenter", "classifier", "dcgan")  # of the networks that the page uses
MIN_SIDE = 16  # of an upload, in pixels
# All threads share PyTorch's random generator. While a page is open, train in another process.
LOCK = Lock()
DISPLAY_SIDE = 512  # pixels; larger photos are shown at this size


def display_name(class_name: str) -> str:
    """The everyday name of a class; names that are not in `DISPLAY_NAMES` are returned unchanged."""
    return DISPLAY_NAMES.get(class_name, class_name)


def find_weights(cfg: Config, checkpoints: dict[str, Path | None] | None = None) -> dict[str, Path]:
    """Paths by method: for each of `METHODS` the given checkpoint, else the released weights in `cfg.released`. Methods
    with neither are left out. Raises `DataError` if a given checkpoint does not exist."""
    weights = {}
    for method in METHODS:
        checkpoint, released = (checkpoints or {}).get(method), cfg.released / f"{method}.safetensors"
        if checkpoint and not Path(checkpoint).exists():
            raise DataError(
                f"{display_path(checkpoint)} does not exist: give a checkpoint of `python -m helpers train {method}`"
            )
        if checkpoint or released.is_file():
            weights[method] = Path(checkpoint or released)
    return weights


def read_drawing(path: str | Path, size: int) -> np.ndarray:
    """Read a drawing or mask from a file as a sketch `uint8 (size, size)` in {0, 255}. Raises `DataError` if the file
    is not a readable image (`check_image_header`) or not a drawing (`parse_drawing`)."""
    return parse_drawing(read_upload(path), size)


def check_image_header(file: str | Path | bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise `DataError` if a file, or its content, is not an image of `FORMATS`, has over `max_pixels` pixels or a side
    under `MIN_SIDE` pixels. Reads only the header. `name`: of the file, for the message."""
    try:
        (width, height), _ = read_header(file)
    except DataError as error:
        raise DataError(_unreadable(name)) from error
    if height * width > max_pixels or min(height, width) < MIN_SIDE:
        raise DataError(f"{name} must have at least {MIN_SIDE} pixels per side and at most {max_pixels:,} in all, "
                        f"got {width} x {height}.")  # fmt: skip


def _unreadable(name: str) -> str:
    return f"{name} is damaged or not an image: choose another file ({', '.join(FORMATS)})."


def read_upload(path: str | Path, **kwargs) -> np.ndarray:
    """`read_image(path, **kwargs)` for untrusted files: RGB `uint8 (H, W, 3)`. Raises `DataError` (see
    `check_image_header`) with the file's name, never its folder."""
    name = Path(path).name
    check_image_header(path, name)
    try:
        return read_image(path, **kwargs)
    except DataError as error:
        raise DataError(_unreadable(name)) from error


def read_photo(path: str | Path) -> np.ndarray:
    """A photo as `uint8 (H, W, 3)`, upright, read as the store reads images. Raises `DataError` (see
    `check_image_header`)."""
    return read_upload(path, size=DISPLAY_SIDE)


def example_sketches(size: int, count: int = 5) -> list[np.ndarray]:
    """Outlines of `count` phantoms, each `uint8 (size, size)` in {0, 255}."""
    return [contour(render(k % len(CLASSES), seed=k, size=size)[1]) for k in range(count)]


@dataclass(frozen=True)
class Analysis:
    """Predictions for one photo. Without a segmenter, classifier or CGAN the fields that need it are 0, empty or
    None."""

    image: np.ndarray  # uint8 (H, W, 3), reduced to `DISPLAY_SIDE`, with the lesion's outline
    lesion_fraction: float  # of the image's area, in [0, 1]
    outside_fraction: float  # of the lesion's area, outside the central square that the fields below are about
    probabilities: dict[str, float]  # by class name, calibrated
    heatmap: np.ndarray | None  # uint8 (S, S, 3), central square with the Grad-CAM of the most probable class
    sketch: np.ndarray | None  # uint8 (S, S) in {0, 255}, input for the CGAN; None without a lesion in the square
    unsure: bool | None = None  # the top probability is below the classifier's threshold; None if it has none
    unlike: bool | None = None  # the central square is unlike the training images; None if that is not known
    heat_inside: float | None = None  # share of the heat, in [0, 1], inside the lesion; None without either


@dataclass(frozen=True, eq=False)  # arrays neither compare nor hash
class Request:
    """Which images the CGAN is to generate. With `tone` and `structure` at 0 all of them are equal; the first images of
    a seed do not depend on `count`."""

    sketch: np.ndarray  # (S, S) in {0, 255}
    class_name: str
    count: int = 4
    tone: float = 1.0  # scales the latent, which acts on all pixels alike: 1 as in training, above 1 outside of it
    seed: int = 0
    structure: float = 1.0  # in [0, 1], how much the random maps differ, see `sample_variations`
    artifacts: Sequence[str] = ()  # names, see `Predictor.artifact_flags`


class Predictor:
    """The loaded networks. `LOCK` admits one call at a time, because all threads share PyTorch's random generator."""

    def __init__(self, weights: dict[str, Path]):
        """`weights`: paths by method, see `find_weights`. Raises `DataError` for a file that is not such a method's."""
        self.weights = weights
        loaded = {method: LOADERS[method](path) for method, path in weights.items()}
        self.networks = {method: fuse_batchnorm(network) for method, (network, _) in loaded.items()}
        self.classes = {method: list(getattr(config, "classes", [])) for method, (_, config) in loaded.items()}

    def __str__(self) -> str:
        lines = []
        for method, network in self.networks.items():
            facts = [display_path(self.weights[method]), f"{network.size} px", " ".join(self.classes[method])]
            lines.append(f"{method}: " + ", ".join(filter(None, facts)))
        return "\n".join(lines)

    @property
    def size(self) -> int:
        """Size of the CGAN's sketches and images in pixels per side."""
        return self.networks["cgan"].size

    def network(self, method: str) -> torch.nn.Module:
        """The network of a method. Raises `DataError` if it has no weights."""
        if method not in self.networks:
            raise DataError(f"No weights of a {method} available: train one with `python -m helpers train {method}`.")
        return self.networks[method]

    def label(self, method: str, class_name: str) -> int:
        """The index of a class in a method's classes. Raises `DataError` for another class, or without weights."""
        self.network(method)
        if class_name not in self.classes[method]:
            raise DataError(f"The diagnosis must be one of {', '.join(self.classes[method])}, got {class_name}.")
        return self.classes[method].index(class_name)

    def artifact_flags(self, names: Sequence[str]) -> np.ndarray | None:
        """Flags `(7,)` in {0, 1} of these artifacts, None without any. Raises `DataError` for another name, or if the
        CGAN was not conditioned on artifacts."""
        if unknown := [str(name) for name in names if name not in ARTIFACTS]:
            raise DataError(f"The artifacts must be of {', '.join(ARTIFACTS)}, got {', '.join(unknown)}.")
        if names and not self.network("cgan").num_artifacts:
            raise DataError("This generator cannot add artifacts: it was not conditioned on them.")
        return np.array([name in names for name in ARTIFACTS], np.uint8) if names else None

    def sample(self, *values, **named) -> list[np.ndarray]:
        """`generate` for `Request(*values, **named)`: sketch, class name, count and so on."""
        return self.generate(Request(*values, **named))

    def generate(self, request: Request) -> list[np.ndarray]:
        """The images of a request, `uint8 (S, S, 3)` each. Raises `DataError` as `label` and `artifact_flags` do."""
        return list(self._variations(request, list(range(request.count))))

    def regenerate(self, request: Request, index: int, region: np.ndarray, new_seed: int = 0) -> np.ndarray:
        """Image `index` of `generate`, `uint8 (S, S, 3)`: equal outside `region (S, S)` in {0, 1}, with other random
        maps inside it; another one for every `new_seed`. Raises `DataError` as `generate` does, and for an `index`
        outside [0, count)."""
        if not 0 <= index < request.count:
            raise DataError(f"The image must be one of 1 to {request.count}, got {index + 1}.")
        # The first image is part of `structure`. The seed is never one of the images' own.
        return self._variations(request, [0, index], keep=1 - region, new_seed=2**32 - 1 - new_seed)[-1]

    def _variations(self, request: Request, indices: list[int], **regenerated) -> np.ndarray:
        """`sample_variations` for the images `indices (N,)` of a request."""
        label, flags = self.label("cgan", request.class_name), self.artifact_flags(request.artifacts)
        generator, rng = self.networks["cgan"], torch.Generator().manual_seed(request.seed)
        latents = torch.stack([torch.randn(generator.z_dim, generator=rng) for _ in range(request.count)])
        latents, seeds = request.tone * latents[indices], [request.seed + k for k in indices]
        with LOCK:
            return sample_variations(
                generator, request.sketch, label, latents, seeds, request.structure, flags, **regenerated
            )

    def sample_without_sketch(self, class_name: str, count: int = 4, seed: int = 0) -> list[np.ndarray]:
        """Generate `count` images `uint8 (S, S, 3)` of a class with the DCGAN. Raises `DataError` as `label` does."""
        generator, label = self.network("dcgan"), self.label("dcgan", class_name)
        with LOCK:
            return list(sample(generator, None, [label] * count, seed))

    def synthetic_pairs(
        self, class_name: str, count: int, seed: int = 0, sketch: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield `count` images `uint8 (S, S, 3)` of a class with masks `uint8 (S, S)` in {0, 1}.

        Every mask is another random deformation: of the sketch's area, or of phantom lesions without a sketch. `LOCK`
        is released between images, so that other requests are served. Raises `DataError` if the outline is not closed,
        and as `label` does.
        """
        generator, label, rng = self.network("cgan"), self.label("cgan", class_name), np.random.default_rng(seed)
        outlines = [sketch] if sketch is not None else example_sketches(self.size, 24)
        shapes = [mask_from_sketch(outline) for outline in outlines]
        if shapes[0] is None:
            raise DataError("The outline must be closed to have a mask: close its gaps.")
        for _ in range(count):
            mask = fill(deform(shapes[int(rng.integers(len(shapes)))], rng))
            with LOCK:
                (image,) = sample(generator, contour(mask)[None], [label], int(rng.integers(2**31)))
            yield image, mask

    def analyze(self, image: np.ndarray) -> Analysis:
        """Segment and classify a photo `uint8 (H, W, 3)`. Raises `DataError` if it has one color only."""
        shown = shrink(image, DISPLAY_SIDE)
        if is_uniform(shown):
            raise DataError("The image has one color only: choose an image of a lesion.")
        with LOCK:
            mask = np.zeros(shown.shape[:2], np.uint8)
            if "segmenter" in self.networks:  # the networks' inputs come from the image as it was read
                (mask,) = segment(self.networks["segmenter"], [image], [mask.shape])
            probabilities, heatmap, facts = self.classify_with_heatmap(image, mask)
        sketch = None
        if "cgan" in self.networks and center_crop(mask).any():
            sketch = contour((resize(255 * mask, StoreConfig(self.size)) > 127).astype(np.uint8))
        outside = 1 - center_crop(mask).sum() / max(mask.sum(), 1) if mask.any() else 0.0
        fractions = float(mask.mean()), float(outside)
        return Analysis(overlay(shown, mask), *fractions, probabilities, heatmap, sketch, **facts)

    def classify_with_heatmap(
        self, image: np.ndarray, mask: np.ndarray
    ) -> tuple[dict[str, float], np.ndarray | None, dict[str, bool | float]]:
        """Class probabilities of the central square of `image uint8 (H, W, 3)`; that square `uint8 (S, S, 3)` with the
        Grad-CAM of the most probable class; and those of the fields `unsure unlike heat_inside` of `Analysis` that are
        known. Empty and None without a classifier. One that was trained on lesions alone sees nothing outside
        `mask uint8 (H', W')` in {0, 1}, which has the image's shape or is smaller."""
        if "classifier" not in self.networks:
            return {}, None, {}
        classifier = self.networks["classifier"]
        square, inside = (resize(x, StoreConfig(classifier.size)) for x in (image, 255 * mask))
        if classifier.lesion_only:
            square = hide_surroundings(square, inside > 127)
        predictions = predict(classifier, square[None])
        (probs,) = predictions.probabilities
        heat = grad_cam(classifier, square, int(probs.argmax()))
        named = {"unsure": predictions.unsure, "unlike": predictions.unlike}
        facts = {name: bool(flag[0]) for name, flag in named.items() if flag is not None}
        facts["heat_inside"] = share_inside(heat, inside > 127)
        named_probs = dict(zip(self.classes["classifier"], map(float, probs), strict=True))
        return named_probs, heatmap_overlay(square, heat), facts


def share_inside(heat: np.ndarray, inside: np.ndarray) -> float | None:
    """The share, in [0, 1], of `heat (H, W)` >= 0 where `inside bool (H, W)`; None if one of them is 0 everywhere."""
    return float(heat[inside].sum() / heat.sum()) if inside.any() and heat.any() else None


def heatmap_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image `uint8 (H, W, 3)` under a colored map of `heat (H, W)` in [0, 1]: yellow at 1, unchanged at 0."""
    colors = cv2.cvtColor(cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    alpha = 0.6 * heat[..., None]
    return ((1 - alpha) * image + alpha * colors).round().astype(np.uint8)


def predict_folder(predictor: Predictor, folder: str | Path) -> tuple[pd.DataFrame, list[Analysis], list[str]]:
    """Analyze every image of a folder, or of the folders inside it if it has none.

    Returns a table with a row per readable image (`file diagnosis lesion_fraction`, then a probability per class), the
    analyses in its order, and messages about unreadable images, masks and skipped files. Raises `DataError` if no image
    is readable.
    """
    rows, analyses, problems = [], [], []
    for path in image_files(Path(folder), problems):
        try:
            photo = read_photo(path)
            if MASK_NAME.search(path.stem) or is_mask(photo):
                raise DataError(f"{path.name} is a mask or a drawing, not a photo")
            analysis = predictor.analyze(photo)
        except DataError as error:
            problems.append(str(error) if path.name in str(error) else f"{path.name}: {error}")
            continue
        analyses.append(analysis)
        probabilities = analysis.probabilities
        diagnosis = max(probabilities, key=probabilities.get, default="")
        facts = {"file": path.relative_to(folder).as_posix(), "diagnosis": diagnosis}
        rows.append(facts | {"lesion_fraction": analysis.lesion_fraction} | probabilities)
    if not rows:
        raise no_images_error(folder, problems)
    return pd.DataFrame(rows), analyses, problems
