"""What the events of the page do: values of components in, values of components out.

`predictor.py` holds the networks, `demo.py` the components.
"""

import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
from PIL import Image, ImageColor

from helpers.data.files import DataError, atomic_file
from helpers.data.sketches import mask_from_sketch, parse_drawing
from helpers.views import uploads  # before gradio
from helpers.views.predictor import (
    Analysis,
    Predictor,
    Request,
    display_name,
    example_sketches,
    read_drawing,
    read_photo,
)
from helpers.views.uploads import encode_png

import gradio as gr  # isort: skip

CANVAS = 256  # pixels per side
EMPTY_CANVAS = {"background": None, "layers": [], "composite": None}
NO_LESION = "No lesion was found in this image."
NO_SEGMENTER = "The lesion is not outlined: no weights of a segmenter are available."
PROBABILITY_NOTE = """The bars show calibrated probabilities for the central square of the image. The classifier can
only choose among these diagnoses, which need not be those that images are generated for, and it is often wrong. In the
heatmap, yellow marks the regions that support the most probable diagnosis."""
UNSURE = "**Unsure: the highest probability is below {:.2f}, the classifier's threshold.**"
UNLIKE = """**This image is unlike the dermoscopic images that the classifier was trained on: do not use the
probabilities.**"""
HEAT = "**{:.0f} % of the heat lies inside the lesion.**"
NO_THRESHOLD = "This classifier has no threshold below which it is unsure."
NO_STATISTICS = "It does not recognize images unlike those it was trained on."
NO_REQUEST = "There is no image to change yet: generate images first."
MAX_IMAGES, MAX_ZIP_IMAGES, MAX_TONE = 8, 100, 1.5
REGION_COLOR = "#00c8ff"  # of the brush that marks a region; no generated image has it
MAX_COLOR_DISTANCE = 80  # of a marked pixel from it, Euclidean in RGB of 0 to 255
ARTIFACT_NAMES = {
    "dark_corner": "dark corner",
    "hair": "hair",
    "gel_border": "gel border",
    "gel_bubble": "gel bubbles",
    "ruler": "ruler",
    "ink": "ink",
    "patches": "color patches",
}


def sketch_from_canvas(canvas: dict | None, size: int) -> np.ndarray:
    """The sketch `uint8 (size, size)` in {0, 255} on the canvas. Raises `DataError` as `parse_drawing` does, also
    for an empty pad."""
    composite = (canvas or EMPTY_CANVAS)["composite"]
    return parse_drawing(Image.new("RGB", (size, size), "white") if composite is None else composite, size)


def region_from_editor(editor: dict | None, size: int) -> np.ndarray:
    """Where the image in the editor is marked in `REGION_COLOR`: `uint8 (size, size)` in {0, 1}. Raises
    `DataError` if it is nowhere."""
    composite = (editor or EMPTY_CANVAS)["composite"] or Image.new("RGB", (CANVAS, CANVAS))
    colors = np.asarray(composite.convert("RGB").resize((CANVAS, CANVAS), Image.Resampling.NEAREST), np.float32)
    marked = np.linalg.norm(colors - ImageColor.getrgb(REGION_COLOR), axis=2) < MAX_COLOR_DISTANCE
    if not marked.any():
        raise DataError("Mark a part of the image first.")
    return (cv2.resize(marked.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)


def editor_with(image: np.ndarray) -> dict:
    """Value of an image editor with `image uint8 (S, S, 3)`, enlarged to the canvas."""
    background = Image.fromarray(image).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    return {"background": background, "layers": [], "composite": background}


def caption(class_name: str, artifacts: list[str]) -> str:
    """Diagnosis and artifacts in words."""
    return " with ".join(filter(None, [display_name(class_name), ", ".join(ARTIFACT_NAMES[x] for x in artifacts)]))


def canvas_with(sketch: np.ndarray) -> dict:
    """Value of the canvas with the sketch `uint8 (S, S)` in {0, 255} as its drawing, so that pen and eraser work on
    it."""
    lines = cv2.resize(sketch, (CANVAS, CANVAS), interpolation=cv2.INTER_NEAREST)
    ink = Image.fromarray(np.dstack([np.zeros((CANVAS, CANVAS, 3), np.uint8), lines]), "RGBA")
    white = Image.new("RGBA", ink.size, "white")
    return {"background": white, "layers": [ink], "composite": Image.alpha_composite(white, ink)}


def write_zip(images: dict[str, np.ndarray], name: str) -> str:
    """Write `images` (by path without suffix) as PNGs into `<name>.zip` in the upload folder; returns its path."""
    file = Path(tempfile.mkdtemp(dir=uploads.UPLOAD_DIR)) / f"{file_name(name)}.zip"
    with atomic_file(file) as temporary, ZipFile(temporary, "w") as archive:
        for stem, image in images.items():
            archive.writestr(f"{stem}.png", encode_png(image))
    return str(file)


def file_name(text: str) -> str:
    """Text, of a class name for example, as a part of a file name."""
    return re.sub(r"[^\w.-]", "_", text)


class Handlers:
    """Event handlers of the page: component values in, component values out. They raise `DataError` for inputs that
    cannot be used; numbers beyond their limits are clipped."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.examples = example_sketches(predictor.size)

    def sample(self, request: Request) -> tuple[list[np.ndarray], str, str, Request]:
        """Images, the path of a zip with images, sketch and (for a closed outline) mask, the seed as text, and the
        request."""
        images, name = self.predictor.generate(request), file_name(request.class_name)
        files = {f"{name}-{request.seed}-{k + 1}": image for k, image in enumerate(images)}
        mask = mask_from_sketch(request.sketch)
        files |= {"sketch": request.sketch} | ({} if mask is None else {"mask": 255 * mask})
        return images, write_zip(files, name), str(request.seed), request

    def generate(self, canvas: dict | None, *values) -> tuple[list[np.ndarray], str, str, Request]:
        """`sample` of the drawing and the `values` of `request_of`."""
        return self.sample(request_of(sketch_from_canvas(canvas, self.predictor.size), values))

    def generate_more(self, canvas: dict | None, *values) -> tuple[list[np.ndarray], str, str, Request, int]:
        """`generate` with the next seed, which is returned as well."""
        *others, seed = values
        seed = clip_seed(seed) + 1
        return *self.generate(canvas, *others, seed), seed

    def generate_example(self, selected: gr.SelectData, *values) -> tuple:
        """Canvas with the example that was clicked, and `sample` of it and the `values` of `request_of`."""
        sketch = self.examples[selected.index]
        return canvas_with(sketch), *self.sample(request_of(sketch, values))

    def select_image(self, request: Request | None, selected: gr.SelectData) -> tuple[int, dict]:
        """Number, from 1, of the image that was clicked, and the editor with it."""
        return selected.index + 1, self.edit(request, selected.index + 1)

    def edit(self, request: Request | None, position: float) -> dict:
        """Editor with the image at a position, from 1, of the last ones."""
        return editor_with(self.changed_image(request, position, np.zeros((self.predictor.size,) * 2, np.uint8)))

    def regenerate(
        self, request: Request | None, position: float, editor: dict | None, new_seed: float
    ) -> tuple[np.ndarray, int]:
        """The image at a position, from 1, of the last ones, changed where the editor is marked; and the next
        seed."""
        region, new_seed = region_from_editor(editor, self.predictor.size), clip_seed(new_seed)
        return self.changed_image(request, position, region, new_seed), new_seed + 1

    def changed_image(
        self, request: Request | None, position: float, region: np.ndarray, new_seed: int = 0
    ) -> np.ndarray:
        """`Predictor.regenerate` of the image at a position, from 1."""
        if request is None:
            raise DataError(NO_REQUEST)
        index = int(number(position, "The image", 1, MAX_IMAGES)) - 1
        return self.predictor.regenerate(request, index, region, new_seed)

    def compare(self, canvas: dict | None, *values) -> tuple[list, list]:
        """Images with captions of the drawing and the values of `request_of`, and with another diagnosis and other
        artifacts, the last two values."""
        sketch = sketch_from_canvas(canvas, self.predictor.size)
        class_name, artifacts, *others, other_class, other_artifacts = values
        rows = []
        for name, flags in ((class_name, artifacts), (other_class, other_artifacts)):
            request = request_of(sketch, (name, flags, *others))
            text = caption(name, request.artifacts)
            rows.append([(image, text) for image in self.predictor.generate(request)])
        return tuple(rows)

    def upload(self, path: str | None) -> dict:
        """Canvas with the drawing or mask of a file."""
        if path is None:
            raise DataError("Choose a file first.")
        return canvas_with(read_drawing(path, self.predictor.size))

    def sample_without_sketch(self, class_name: str, count: float, seed: float) -> list[np.ndarray]:
        """Images of a class by the DCGAN."""
        return self.predictor.sample_without_sketch(class_name, clip_count(count, MAX_IMAGES), clip_seed(seed))

    def make_zip(
        self,
        canvas: dict | None,
        class_name: str,
        use_sketch: bool,
        count: float,
        seed: float,
        progress=gr.Progress(),  # noqa: B008
    ) -> str:
        """Path of a zip with `count` images and masks; their shapes vary the drawing, or phantoms if not
        `use_sketch`."""
        sketch = sketch_from_canvas(canvas, self.predictor.size) if use_sketch else None
        count, files = clip_count(count, MAX_ZIP_IMAGES), {}
        pairs = self.predictor.synthetic_pairs(class_name, count, clip_seed(seed), sketch)
        for k, (image, mask) in enumerate(progress.tqdm(pairs, total=count)):
            name = f"{file_name(class_name)}_{k + 1:03d}"
            files |= {f"images/{name}": image, f"masks/{name}": 255 * mask}
        return write_zip(files, f"{count}-{class_name}")

    def analyze(self, path: str | None) -> tuple:
        """Outlined image, text, probabilities by display name, heatmap and sketch (black on white) of a photo."""
        if path is None:
            raise DataError("Choose or take a photo first.")
        analysis = self.predictor.analyze(read_photo(path))
        probabilities = {display_name(name): value for name, value in analysis.probabilities.items()}
        sketch = None if analysis.sketch is None else 255 - analysis.sketch
        return analysis.image, self.describe(analysis), probabilities, analysis.heatmap, sketch

    def describe(self, analysis: Analysis) -> str:
        """Text under an analyzed photo."""
        if "segmenter" not in self.predictor.networks:
            sentences = [NO_SEGMENTER]
        elif analysis.lesion_fraction:
            sentences = [f"The lesion covers **{100 * analysis.lesion_fraction:.1f} %** of the image."]
        else:
            sentences = [NO_LESION]
        if analysis.outside_fraction > 0.2:
            sentences.append("**Part of it is outside the central square: probabilities and sketch ignore that part.**")
        if analysis.probabilities:
            sentences += [*self.abstentions(analysis), PROBABILITY_NOTE]
        if analysis.heat_inside is not None:
            sentences.append(HEAT.format(100 * analysis.heat_inside))
        return " ".join(sentences)

    def abstentions(self, analysis: Analysis) -> list[str]:
        """Sentences on whether to use the probabilities of an analyzed photo."""
        sentences = [NO_THRESHOLD] if analysis.unsure is None else []
        sentences += [NO_STATISTICS] if analysis.unlike is None else []
        if analysis.unsure:
            sentences.append(UNSURE.format(self.predictor.networks["classifier"].confidence.threshold))
        return [*sentences, UNLIKE] if analysis.unlike else sentences

    def send_to_canvas(self, path: str | None) -> tuple[dict, gr.Tabs]:
        """Canvas with the sketch of an analyzed photo, and the tab with the canvas."""
        if path is None:
            raise DataError("There is no sketch yet: analyze a photo with a lesion in its central square first.")
        return canvas_with(read_drawing(path, self.predictor.size)), gr.Tabs(selected="generate")


def request_of(sketch: np.ndarray, values: Sequence) -> Request:
    """A request from the values of components: diagnosis, artifacts, tone, structure, count and seed."""
    class_name, artifacts, tone, structure, count, seed = values
    return Request(
        sketch,
        class_name,
        count=clip_count(count, MAX_IMAGES),
        tone=number(tone, "The tone", 0, MAX_TONE),
        seed=clip_seed(seed),
        structure=number(structure, "The structure", 0, 1),
        artifacts=artifacts or [],
    )


def number(value: float | None, name: str, low: float, high: float) -> float:
    """A number from the page or the API within [low, high]; `low` for an empty field. Raises `DataError` if it is none,
    which `name` begins."""
    if not isinstance(value, int | float | None) or (value is not None and math.isnan(value)):
        raise DataError(f"{name} must be a number from {low} to {high}, got {value}.")
    return min(max(value or 0, low), high)


def clip_count(count: float | None, high: int) -> int:
    """A number of images within [1, high]. Raises `DataError` as `number` does."""
    return int(number(count, "The number of images", 1, high))


def clip_seed(seed: float | None) -> int:
    """A seed within [0, 2**31 - 1]; 0 for an empty field. Raises `DataError` as `number` does."""
    return int(number(seed, "The seed", 0, 2**31 - 1))
