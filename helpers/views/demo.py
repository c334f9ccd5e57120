"""The web page: draw a lesion, choose a diagnosis, look; or upload a photograph and see what the networks make of it.

`studio.py` does the work, `uploads.py` keeps uploads apart; here are the things one clicks on.
"""

import tempfile
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
from PIL import Image

from helpers.data.files import DataError
from helpers.views import uploads  # before gradio
from helpers.views.predictor import (
    Analysis,
    Predictor,
    display_name,
    example_sketches,
    mask_from_sketch,
    parse_drawing,
    read_drawing,
    read_photo,
)
from helpers.views.uploads import composite_only, raw_path, show_errors

import gradio as gr  # isort: skip

NOTICE = """# Sketch2Lesion
Draw the outline of a skin lesion, choose a diagnosis, and a network paints what it learnt such lesions look like.
**For teaching and research. Nothing here is a diagnosis, and no picture drawn here is of a person.**"""
CANVAS = 256  # pixels of the paper's side
EMPTY_CANVAS = {"background": None, "layers": [], "composite": None}
NO_LESION = "No lesion was found in this picture."
PROBABILITY_NOTE = """The bars say how sure the network is among the diagnoses it knows, of the central square of the picture. It
cannot name others, and it errs often. In the map, yellow is what spoke for the first of them."""
MAX_IMAGES, MAX_ZIP_IMAGES, MAX_QUEUE, MAX_VARIATION = 8, 100, 100, 1.5
# Else the first stroke of everybody is lost: no tool is in hand at first.
SELECT_BRUSH_JS = """() => { setTimeout(() => document.querySelector('button[aria-label="Brush"]')?.click(), 500) }"""


def sketch_from_canvas(paper: dict | None, size: int) -> np.ndarray:
    """The sketch `(size, size)` in {0, 255} on the sketch pad. Raises `DataError` for an empty one."""
    picture = (paper or EMPTY_CANVAS)["composite"]
    return parse_drawing(Image.new("RGB", (size, size), "white") if picture is None else picture, size)


def canvas_with(sketch: np.ndarray) -> dict:
    """The sketch pad showing a sketch, as if it had been drawn there: pen and eraser go on with it."""
    lines = cv2.resize(sketch, (CANVAS, CANVAS), interpolation=cv2.INTER_NEAREST)
    ink = Image.fromarray(np.dstack([np.zeros((CANVAS, CANVAS, 3), np.uint8), lines]), "RGBA")
    white = Image.new("RGBA", ink.size, "white")
    return {"background": white, "layers": [ink], "composite": Image.alpha_composite(white, ink)}


def write_zip(pictures: dict[str, np.ndarray], name: str) -> str:
    """A zip of PNGs in the private folder -> its path."""
    file = Path(tempfile.mkdtemp(dir=uploads.UPLOAD_DIR)) / f"{name}.zip"
    with ZipFile(file, "w") as archive:
        for place, picture in pictures.items():
            png = BytesIO()
            Image.fromarray(picture).save(png, "PNG")
            archive.writestr(f"{place}.png", png.getvalue())
    return str(file)


# ---------------------------------------------------------------------------------------------- what the buttons call


class Handlers:
    """What the page's buttons call: values of its parts in, values of its parts out."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.examples = example_sketches(predictor.size)

    def generate(self, paper: dict | None, name: str, variation: float, count: float, seed: float) -> tuple[list, str]:
        sketch = sketch_from_canvas(paper, self.predictor.size)
        variation = float(np.clip(variation or 0, 0, MAX_VARIATION))
        images = self.predictor.sample(sketch, name, clamp(count, 1, MAX_IMAGES), variation, clip_seed(seed))
        pictures = {f"{name}-{clip_seed(seed)}-{k + 1}": image for k, image in enumerate(images)}
        mask = mask_from_sketch(sketch)
        pictures |= {"sketch": sketch} | ({} if mask is None else {"mask": 255 * mask})
        return images, write_zip(pictures, name)

    def generate_more(self, paper: dict | None, name: str, variation: float, count: float, seed: float) -> tuple:
        seed = clip_seed(seed) + 1
        return *self.generate(paper, name, variation, count, seed), seed

    def upload(self, path: str | None) -> dict:
        if path is None:
            raise DataError("Choose a file first.")
        return canvas_with(read_drawing(path, self.predictor.size))

    def example(self, chosen: gr.SelectData) -> dict:
        return canvas_with(self.examples[chosen.index])

    def sample_without_sketch(self, name: str, count: float, seed: float) -> list[np.ndarray]:
        return self.predictor.sample_without_sketch(name, clamp(count, 1, MAX_IMAGES), clip_seed(seed))

    def make_zip(
        self,
        paper: dict | None,
        name: str,
        mine: bool,
        count: float,
        seed: float,
        progress=gr.Progress(),  # noqa: B008
    ) -> str:
        sketch = sketch_from_canvas(paper, self.predictor.size) if mine else None
        count, pictures = clamp(count, 1, MAX_ZIP_IMAGES), {}
        made = self.predictor.synthetic_pairs(name, count, clip_seed(seed), sketch)
        for k, (image, mask) in enumerate(progress.tqdm(made, total=count)):
            pictures |= {f"images/{name}_{k + 1:03d}": image, f"masks/{name}_{k + 1:03d}": 255 * mask}
        return write_zip(pictures, f"{count}-{name}")

    def analyze(self, path: str | None) -> tuple:
        if path is None:
            raise DataError("Choose or take a photograph first.")
        found = self.predictor.analyze(read_photo(path))
        named = {display_name(name): value for name, value in found.probabilities.items()}
        paper = None if found.sketch is None else 255 - found.sketch
        return found.image, self.words(found), named, found.heatmap, paper

    def words(self, found: Analysis) -> str:
        told = [
            f"The lesion takes **{100 * found.lesion_fraction:.1f} %** of the picture."
            if found.lesion_fraction
            else NO_LESION
        ]
        told = (
            told
            if "segmenter" in self.predictor.networks
            else ["Without weights of a segmenter no lesion is looked for."]
        )
        if found.outside_fraction > 0.2:
            told.append("**Part of it is outside the central square, which is all that diagnosis and sketch see.**")
        if found.probabilities:
            told.append(PROBABILITY_NOTE)
        return " ".join(told)

    def send_to_canvas(self, path: str | None) -> tuple:
        if path is None:
            raise DataError("There is no sketch: analyse a photograph with a lesion in its central square.")
        return canvas_with(read_drawing(path, self.predictor.size)), gr.Tabs(selected="draw")


def clamp(value: float | None, low: int, high: int) -> int:
    """What a visitor, or a program, asked for, within bounds."""
    return int(np.clip(value or low, low, high))


def clip_seed(seed: float | None) -> int:
    return int(np.clip(seed or 0, 0, 2**31 - 1))


# ------------------------------------------------------------------------------------------------------------ the page


def build_page(predictor: Predictor) -> gr.Blocks:
    """The page; `launch_page` opens it. Needs weights of a CGAN at least: raises `DataError` without."""
    predictor.network("cgan")
    handlers = Handlers(predictor)
    with gr.Blocks(title="Sketch2Lesion") as page:
        gr.Markdown(NOTICE)
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw"):
                paper = generate_tab(handlers)
            with gr.Tab("Analyse", id="analyse"):
                analyze_tab(handlers, paper, tabs)
        page.load(None, js=SELECT_BRUSH_JS)
        gr.Markdown("Weights in use:\n" + "\n".join(f"- {line}" for line in str(predictor).splitlines()))
    return page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)


def choices(predictor: Predictor, method: str) -> list[tuple[str, str]]:
    return [(display_name(name), name) for name in predictor.classes.get(method, [])]


def generate_tab(handlers: Handlers) -> gr.Sketchpad:
    known = choices(handlers.predictor, "cgan")
    with gr.Row():
        with gr.Column():
            canvas = composite_only(
                gr.Sketchpad(
                    type="pil",
                    canvas_size=(CANVAS, CANVAS),
                    fixed_canvas=True,
                    layers=False,
                    sources=[],
                    height=400,
                    brush=gr.Brush(default_size=2, colors=["#000000"], color_mode="fixed"),
                    label="Paper: pen, eraser and undo are on its rim",
                )
            )
            shown = [255 - sketch for sketch in handlers.examples]
            gallery = gr.Gallery(
                shown, label="Or start from one of these", columns=5, height=130, allow_preview=False, interactive=False
            )
            file = gr.File(label="Or from a file: a sketch or a mask", file_types=["image"], height=110)
        with gr.Column():
            name = gr.Radio(known, value=known[0][1], label="Diagnosis")
            with gr.Row():
                variation = gr.Slider(0, MAX_VARIATION, 1, step=0.1, label="Variation")
                count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary")
                others = gr.Button("Draw others")
            images = gr.Gallery(label="Drawn", columns=3, height=450, format="png", object_fit="contain")
            save = gr.DownloadButton("Save images, sketch and mask")
    asked = [canvas, name, variation, count, seed]
    draw.click(show_errors(handlers.generate), asked, [images, save], api_name="draw", concurrency_id="network")
    others.click(
        show_errors(handlers.generate_more),
        asked,
        [images, save, seed],
        api_name="draw_others",
        concurrency_id="network",
    )
    file.upload(show_errors(handlers.upload), file, canvas, api_name="upload")
    gallery.select(handlers.example, None, canvas, api_name=False)
    with gr.Row():
        with gr.Accordion("Many images with masks, for training", open=False):
            mine = gr.Checkbox(True, label="shapes like mine (else of phantoms)")
            many = gr.Slider(1, MAX_ZIP_IMAGES, 20, step=1, label="Images")
            make = gr.Button("Make a zip")
            pack = gr.DownloadButton("Save the zip", interactive=False)
            made = make.click(
                show_errors(handlers.make_zip),
                [canvas, name, mine, many, seed],
                pack,
                api_name="set_of",
                concurrency_id="sets",
            )
            made.success(lambda: gr.DownloadButton(interactive=True), None, pack, api_name=False)
        if "dcgan" in handlers.predictor.networks:
            with gr.Accordion("Without a sketch", open=False):
                kinds = choices(handlers.predictor, "dcgan")
                kind = gr.Radio(kinds, value=kinds[0][1], label="Diagnosis")
                number = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images")
                go = gr.Button("Draw from noise")
                result = gr.Gallery(label="Drawn by the DCGAN", columns=4, format="png", object_fit="contain")
                go.click(
                    show_errors(handlers.sample_without_sketch),
                    [kind, number, seed],
                    result,
                    api_name="noise",
                    concurrency_id="network",
                )
    return canvas


def analyze_tab(handlers: Handlers, canvas: gr.Sketchpad, tabs: gr.Tabs) -> None:
    with gr.Row():
        with gr.Column():
            photograph = raw_path(gr.Image(sources=["upload", "webcam"], height=400, label="Photograph"))
            look = gr.Button("Analyse", variant="primary")
            words = gr.Markdown()
        with gr.Column():
            outlined = gr.Image(label="Lesion", format="png", interactive=False)
            named = gr.Label(label="How sure the network is")
        with gr.Column():
            heat = gr.Image(
                label="Where it looked (Grad-CAM, central square)", format="png", height=280, interactive=False
            )
            sketch = raw_path(gr.Image(label="Sketch", format="png", height=280, interactive=False))
            again = gr.Button("Draw this sketch under another diagnosis")
    look.click(
        show_errors(handlers.analyze),
        photograph,
        [outlined, words, named, heat, sketch],
        api_name="look",
        concurrency_id="network",
    )
    again.click(show_errors(handlers.send_to_canvas), sketch, [canvas, tabs], api_name=False)


def launch_page(page: gr.Blocks, port: int | None = None, wait: bool = False, quiet: bool = False) -> str:
    """Open the page on this machine and no other, in a notebook right there unless it shall be `quiet`; returns its
    address. `wait` until it is closed."""
    uploads.only_uploads(page)
    _, address, _ = page.launch(
        share=False,
        inline=False if quiet else None,
        server_port=port,
        prevent_thread_lock=True,
        quiet=quiet,
        max_file_size=uploads.MAX_BYTES,
    )
    uploads.purge_old_uploads(page)
    if wait:
        page.block_thread()
    return address
