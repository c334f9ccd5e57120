"""The web page: generate images from a drawing and a diagnosis, or analyze a photo.

`predictor.py` holds the networks, `uploads.py` the limits on uploads; this file holds the components and their events.
"""

import html
import math
import os
import re
import socket
import tempfile
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
from PIL import Image

from helpers.config import ROOT, display_path
from helpers.data.files import DataError, atomic_file
from helpers.data.sketches import mask_from_sketch, parse_drawing
from helpers.views import uploads  # before gradio
from helpers.views.guard import guarded
from helpers.views.predictor import (
    Analysis,
    Predictor,
    display_name,
    example_sketches,
    read_drawing,
    read_photo,
)
from helpers.views.uploads import composite_only, encode_png, fast_png, raw_path, show_errors

import gradio as gr  # isort: skip

NOTICE = """# Sketch2Lesion
Draw the outline of a skin lesion and choose a diagnosis: a neural network generates images of such a lesion.
**For teaching and research. Nothing here is a medical diagnosis, and no generated image shows a real person.**"""
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
NO_THRESHOLD = "This classifier has no threshold below which it is unsure."
NO_STATISTICS = "It does not recognize images unlike those it was trained on."
MAX_IMAGES, MAX_ZIP_IMAGES, MAX_QUEUE, MAX_VARIATION = 8, 100, 100, 1.5
# The sketch pad starts without a selected tool, and the first stroke would be lost.
SELECT_BRUSH_JS = """() => { setTimeout(() => document.querySelector('button[aria-label="Brush"]')?.click(), 500) }"""


def sketch_from_canvas(canvas: dict | None, size: int) -> np.ndarray:
    """The sketch `uint8 (size, size)` in {0, 255} on the sketch pad. Raises `DataError` as `parse_drawing` does, also
    for an empty pad."""
    composite = (canvas or EMPTY_CANVAS)["composite"]
    return parse_drawing(Image.new("RGB", (size, size), "white") if composite is None else composite, size)


def canvas_with(sketch: np.ndarray) -> dict:
    """Value of a sketch pad with the sketch `uint8 (S, S)` in {0, 255} as its drawing, so that pen and eraser work on
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


# ---------------------------------------------------------------------------------------------------------- handlers


class Handlers:
    """Event handlers of the page: component values in, component values out. They raise `DataError` for inputs that
    cannot be used; numbers beyond their limits are clipped."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.examples = example_sketches(predictor.size)

    def generate(
        self, canvas: dict | None, class_name: str, variation: float, count: float, seed: float
    ) -> tuple[list[np.ndarray], str]:
        """Images of the drawing and a class, and the path of a zip with images, sketch and (for a closed outline)
        mask."""
        sketch, seed = sketch_from_canvas(canvas, self.predictor.size), clip_seed(seed)
        variation = number(variation, "The variation", 0, MAX_VARIATION)
        images = self.predictor.sample(sketch, class_name, clip_count(count, MAX_IMAGES), variation, seed)
        files = {f"{file_name(class_name)}-{seed}-{k + 1}": image for k, image in enumerate(images)}
        mask = mask_from_sketch(sketch)
        files |= {"sketch": sketch} | ({} if mask is None else {"mask": 255 * mask})
        return images, write_zip(files, class_name)

    def generate_more(
        self, canvas: dict | None, class_name: str, variation: float, count: float, seed: float
    ) -> tuple[list[np.ndarray], str, int]:
        """`generate` with the next seed; images, zip and that seed."""
        seed = clip_seed(seed) + 1
        return *self.generate(canvas, class_name, variation, count, seed), seed

    def upload(self, path: str | None) -> dict:
        """Canvas with the drawing or mask of a file."""
        if path is None:
            raise DataError("Choose a file first.")
        return canvas_with(read_drawing(path, self.predictor.size))

    def select_example(self, selected: gr.SelectData) -> dict:
        """Canvas with the example that was clicked."""
        return canvas_with(self.examples[selected.index])

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


# -------------------------------------------------------------------------------------------------------------- page


def build_page(predictor: Predictor) -> gr.Blocks:
    """The page, to be opened by `launch_page`. Raises `DataError` if the predictor has no CGAN."""
    predictor.network("cgan")
    handlers = Handlers(predictor)
    with gr.Blocks(title="Sketch2Lesion") as page:
        gr.Markdown(NOTICE)
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                canvas = generate_tab(handlers)
            with gr.Tab("Analyze", id="analyze"):
                analyze_tab(handlers, canvas, tabs)
        page.load(None, js=SELECT_BRUSH_JS)
        gr.Markdown(f"Weights in use:\n{weights_list(predictor)}")
    return page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)


def weights_list(predictor: Predictor) -> str:
    """Markdown list of the weights in use, without folders outside the repository."""
    text = str(predictor)
    for path in predictor.weights.values():
        if not Path(path).resolve().is_relative_to(ROOT):
            text = text.replace(display_path(path), Path(path).name)
    return "\n".join(f"- {html.escape(line)}" for line in text.splitlines())


def class_choices(predictor: Predictor, method: str) -> list[tuple[str, str]]:
    """(display name, class name) of every class of a method."""
    return [(display_name(name), name) for name in predictor.classes.get(method, [])]


def generate_tab(handlers: Handlers) -> gr.Sketchpad:
    """Components and events of the tab that generates images; returns its canvas."""
    choices = class_choices(handlers.predictor, "cgan")
    with gr.Row():
        with gr.Column():
            canvas = sketch_input(handlers)
        with gr.Column():
            class_name = gr.Radio(choices, value=choices[0][1], label="Diagnosis")
            with gr.Row():
                variation = gr.Slider(0, MAX_VARIATION, 1, step=0.1, label="Variation")
                count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            with gr.Row():
                generate = gr.Button("Generate", variant="primary")
                more = gr.Button("Generate more")
            images = fast_png(gr.Gallery(label="Generated images", columns=4, height=340, object_fit="contain"))
            save = gr.DownloadButton("Save images, sketch and mask")
    inputs = [canvas, class_name, variation, count, seed]
    shared = {"inputs": inputs, "concurrency_id": "network"}
    generate.click(show_errors(handlers.generate), outputs=[images, save], api_name="generate", **shared)
    more.click(show_errors(handlers.generate_more), outputs=[images, save, seed], api_name="generate_more", **shared)
    with gr.Row():
        zip_section(handlers, canvas, class_name, seed)
        if "dcgan" in handlers.predictor.networks:
            dcgan_section(handlers, seed)
    return canvas


def sketch_input(handlers: Handlers) -> gr.Sketchpad:
    """Canvas, examples and file upload; returns the canvas."""
    canvas = composite_only(
        gr.Sketchpad(
            type="pil",
            canvas_size=(CANVAS, CANVAS),
            fixed_canvas=True,
            layers=False,
            sources=[],
            height=400,
            brush=gr.Brush(default_size=2, colors=["#000000"], color_mode="fixed"),
            label="Canvas: draw an outline (pen and eraser on the left, undo at the top)",
        )
    )
    gallery = gr.Gallery(
        [255 - sketch for sketch in handlers.examples],
        label="Or start from an example",
        columns=5,
        height=130,
        allow_preview=False,
        interactive=False,
    )
    file = gr.File(label="Or upload a sketch or a mask", file_types=["image"], height=110)
    gallery.select(handlers.select_example, None, canvas, api_name=False)
    file.upload(show_errors(handlers.upload), file, canvas, api_name="upload")
    return canvas


def zip_section(handlers: Handlers, canvas: gr.Sketchpad, class_name: gr.Radio, seed: gr.Number) -> None:
    """Components and events to download many images with masks."""
    with gr.Accordion("Many images with masks, for training", open=False):
        use_sketch = gr.Checkbox(True, label="Vary the outline on the canvas (otherwise outlines of phantoms)")
        count = gr.Slider(1, MAX_ZIP_IMAGES, 20, step=1, label="Images")
        make = gr.Button("Make a zip file")
        save = gr.DownloadButton("Save the zip file", interactive=False)
        zipped = make.click(
            show_errors(handlers.make_zip),
            [canvas, class_name, use_sketch, count, seed],
            save,
            api_name="make_zip",
            concurrency_id="zip",
        )
        zipped.success(lambda: gr.DownloadButton(interactive=True), None, save, api_name=False)


def dcgan_section(handlers: Handlers, seed: gr.Number) -> None:
    """Components and events to generate images without a sketch."""
    choices = class_choices(handlers.predictor, "dcgan")
    with gr.Accordion("Without a sketch", open=False):
        class_name = gr.Radio(choices, value=choices[0][1], label="Diagnosis")
        count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images")
        generate = gr.Button("Generate without a sketch")
        images = fast_png(gr.Gallery(label="Generated by the DCGAN", columns=4, object_fit="contain"))
        generate.click(
            show_errors(handlers.sample_without_sketch),
            [class_name, count, seed],
            images,
            api_name="sample_without_sketch",
            concurrency_id="network",
        )


def analyze_tab(handlers: Handlers, canvas: gr.Sketchpad, tabs: gr.Tabs) -> None:
    """Components and events of the tab that analyzes a photo."""
    with gr.Row():
        with gr.Column():
            photo = raw_path(gr.Image(sources=["upload", "webcam"], height=400, label="Photo"))
            analyze = gr.Button("Analyze", variant="primary")
            text = gr.Markdown()
        with gr.Column():
            outlined = fast_png(gr.Image(label="Lesion outline", interactive=False))
            probabilities = gr.Label(label="Probabilities of the diagnoses")
        with gr.Column():
            heatmap = fast_png(gr.Image(label="Heatmap (Grad-CAM, central square)", height=280, interactive=False))
            sketch = fast_png(raw_path(gr.Image(label="Sketch", height=280, interactive=False)))
            send = gr.Button("Generate from this sketch")
    analyze.click(
        show_errors(handlers.analyze),
        photo,
        [outlined, text, probabilities, heatmap, sketch],
        api_name="analyze",
        concurrency_id="network",
    )
    send.click(show_errors(handlers.send_to_canvas), sketch, [canvas, tabs], api_name=False)


def launch_page(
    page: gr.Blocks, port: int | None = None, wait: bool = False, quiet: bool = False, host_names: tuple[str, ...] = ()
) -> str:
    """Serve the page to this machine only and return its address; in a notebook it is shown inline unless `quiet`.

    `port`: default the first free one from 7860; 0 is any free one. `wait`: return only when the page is closed.
    `host_names`: names under which a proxy serves the page, see `Guard`. Raises `DataError` if the port is not free.
    """
    port = free_port(port)
    uploads.only_uploads(page)
    uploads.report_unusable_arguments(page)
    bypass_proxy()
    hosted = gr.utils.colab_check() or gr.utils.is_hosted_notebook()
    framed = not quiet and (hosted or gr.utils.ipython_check())
    try:
        _, address, _ = page.launch(
            share=False,
            inline=False if quiet else None,
            server_name="127.0.0.1",
            server_port=port,
            prevent_thread_lock=True,
            quiet=quiet,
            max_file_size=uploads.MAX_BYTES,
            ssr_mode=False,
            app_kwargs=guarded(host_names=host_names, any_host=hosted, framed=framed),
        )
    except OSError as error:
        ports = "7860 to 7959 are" if port is None else f"{port} is"
        raise DataError(f"Port {ports} in use or not allowed: choose another one (--port).") from error
    uploads.purge_old_uploads(page)
    if wait:
        page.block_thread()
    return address


def free_port(port: int | None) -> int | None:
    """The port, or a free one for 0. Raises `DataError` if it is not a port's number."""
    if port is None or 0 < port < 2**16:
        return port
    if port:
        raise DataError(f"The port must be from 0 to 65535, got {port}.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def bypass_proxy() -> None:
    """Keep this process from asking a proxy of the environment for pages of this machine, as gradio does for its own
    address when it starts."""
    names = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    missing = [name for name in ("localhost", "127.0.0.1") if name not in names.split(",")]
    if names != "*":
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [names, *missing]))
