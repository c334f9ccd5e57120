"""The web page: draw a lesion, choose a diagnosis, look; or upload a photograph and see what the networks make of it.

`studio.py` does the work, `visitors.py` keeps visitors apart; here are the things one clicks on.
"""

import tempfile
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
from PIL import Image

from helpers.data.files import DataError
from helpers.views import visitors  # before gradio
from helpers.views.studio import (
    Finding,
    Studio,
    example_sketches,
    inside_of,
    line_drawing,
    plain_name,
    read_drawing,
    read_photograph,
)
from helpers.views.visitors import own_paper, own_path, telling

import gradio as gr  # isort: skip

NOTICE = """# Sketch2Lesion
Draw the outline of a skin lesion, choose a diagnosis, and a network paints what it learnt such lesions look like.
**For teaching and research. Nothing here is a diagnosis, and no picture drawn here is of a person.**"""
CANVAS = 256  # pixels of the paper's side
PAPERS = {"background": None, "layers": [], "composite": None}
NO_LESION = "No lesion was found in this picture."
SURE = """The bars say how sure the network is among the diagnoses it knows, of the central square of the picture. It
cannot name others, and it errs often. In the map, yellow is what spoke for the first of them."""
MOST_AT_ONCE, MOST_IN_ZIP, MOST_WAITING, MOST_VARIATION = 8, 100, 100, 1.5
# Else the first stroke of everybody is lost: no tool is in hand at first.
TAKE_THE_PEN = """() => { setTimeout(() => document.querySelector('button[aria-label="Brush"]')?.click(), 500) }"""


def sketch_on(paper: dict | None, size: int) -> np.ndarray:
    """The sketch `(size, size)` in {0, 255} on the sketch pad. Raises `DataError` for an empty one."""
    picture = (paper or PAPERS)["composite"]
    return line_drawing(Image.new("RGB", (size, size), "white") if picture is None else picture, size)


def paper_with(sketch: np.ndarray) -> dict:
    """The sketch pad showing a sketch, as if it had been drawn there: pen and eraser go on with it."""
    lines = cv2.resize(sketch, (CANVAS, CANVAS), interpolation=cv2.INTER_NEAREST)
    ink = Image.fromarray(np.dstack([np.zeros((CANVAS, CANVAS, 3), np.uint8), lines]), "RGBA")
    white = Image.new("RGBA", ink.size, "white")
    return {"background": white, "layers": [ink], "composite": Image.alpha_composite(white, ink)}


def zipped(pictures: dict[str, np.ndarray], name: str) -> str:
    """A zip of PNGs in the private folder -> its path."""
    file = Path(tempfile.mkdtemp(dir=visitors.PRIVATE)) / f"{name}.zip"
    with ZipFile(file, "w") as archive:
        for place, picture in pictures.items():
            png = BytesIO()
            Image.fromarray(picture).save(png, "PNG")
            archive.writestr(f"{place}.png", png.getvalue())
    return str(file)


# ---------------------------------------------------------------------------------------------- what the buttons call


class Desk:
    """What the page's buttons call: values of its parts in, values of its parts out."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.examples = example_sketches(studio.size)

    def draw(self, paper: dict | None, name: str, variation: float, count: float, seed: float) -> tuple[list, str]:
        sketch = sketch_on(paper, self.studio.size)
        variation = float(np.clip(variation or 0, 0, MOST_VARIATION))
        images = self.studio.draw(sketch, name, between(count, 1, MOST_AT_ONCE), variation, whole(seed))
        pictures = {f"{name}-{whole(seed)}-{k + 1}": image for k, image in enumerate(images)}
        mask = inside_of(sketch)
        pictures |= {"sketch": sketch} | ({} if mask is None else {"mask": 255 * mask})
        return images, zipped(pictures, name)

    def draw_others(self, paper: dict | None, name: str, variation: float, count: float, seed: float) -> tuple:
        seed = whole(seed) + 1
        return *self.draw(paper, name, variation, count, seed), seed

    def upload(self, path: str | None) -> dict:
        if path is None:
            raise DataError("Choose a file first.")
        return paper_with(read_drawing(path, self.studio.size))

    def example(self, chosen: gr.SelectData) -> dict:
        return paper_with(self.examples[chosen.index])

    def noise(self, name: str, count: float, seed: float) -> list[np.ndarray]:
        return self.studio.draw_without_sketch(name, between(count, 1, MOST_AT_ONCE), whole(seed))

    def set_of(
        self,
        paper: dict | None,
        name: str,
        mine: bool,
        count: float,
        seed: float,
        progress=gr.Progress(),  # noqa: B008
    ) -> str:
        sketch = sketch_on(paper, self.studio.size) if mine else None
        count, pictures = between(count, 1, MOST_IN_ZIP), {}
        made = self.studio.training_images(name, count, whole(seed), sketch)
        for k, (image, mask) in enumerate(progress.tqdm(made, total=count)):
            pictures |= {f"images/{name}_{k + 1:03d}": image, f"masks/{name}_{k + 1:03d}": 255 * mask}
        return zipped(pictures, f"{count}-{name}")

    def look(self, path: str | None) -> tuple:
        if path is None:
            raise DataError("Choose or take a photograph first.")
        found = self.studio.look(read_photograph(path))
        named = {plain_name(name): value for name, value in found.probabilities.items()}
        paper = None if found.sketch is None else 255 - found.sketch
        return found.image, self.words(found), named, found.heat, paper

    def words(self, found: Finding) -> str:
        told = [f"The lesion takes **{100 * found.share:.1f} %** of the picture." if found.share else NO_LESION]
        told = (
            told if "segmenter" in self.studio.networks else ["Without weights of a segmenter no lesion is looked for."]
        )
        if found.outside > 0.2:
            told.append("**Part of it is outside the central square, which is all that diagnosis and sketch see.**")
        if found.probabilities:
            told.append(SURE)
        return " ".join(told)

    def to_paper(self, path: str | None) -> tuple:
        if path is None:
            raise DataError("There is no sketch: analyse a photograph with a lesion in its central square.")
        return paper_with(read_drawing(path, self.studio.size)), gr.Tabs(selected="draw")


def between(value: float | None, low: int, high: int) -> int:
    """What a visitor, or a program, asked for, within bounds."""
    return int(np.clip(value or low, low, high))


def whole(seed: float | None) -> int:
    return int(np.clip(seed or 0, 0, 2**31 - 1))


# ------------------------------------------------------------------------------------------------------------ the page


def build_page(studio: Studio) -> gr.Blocks:
    """The page; `launch_page` opens it. Needs weights of a CGAN at least: raises `DataError` without."""
    studio.network("cgan")
    desk = Desk(studio)
    with gr.Blocks(title="Sketch2Lesion") as page:
        gr.Markdown(NOTICE)
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw"):
                paper = draw_tab(desk)
            with gr.Tab("Analyse", id="analyse"):
                analyse_tab(desk, paper, tabs)
        page.load(None, js=TAKE_THE_PEN)
        gr.Markdown("Weights in use:\n" + "\n".join(f"- {line}" for line in str(studio).splitlines()))
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)


def choices(studio: Studio, method: str) -> list[tuple[str, str]]:
    return [(plain_name(name), name) for name in studio.classes.get(method, [])]


def draw_tab(desk: Desk) -> gr.Sketchpad:
    known = choices(desk.studio, "cgan")
    with gr.Row():
        with gr.Column():
            paper = own_paper(
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
            shown = [255 - sketch for sketch in desk.examples]
            gallery = gr.Gallery(
                shown, label="Or start from one of these", columns=5, height=130, allow_preview=False, interactive=False
            )
            file = gr.File(label="Or from a file: a sketch or a mask", file_types=["image"], height=110)
        with gr.Column():
            name = gr.Radio(known, value=known[0][1], label="Diagnosis")
            with gr.Row():
                variation = gr.Slider(0, MOST_VARIATION, 1, step=0.1, label="Variation")
                count = gr.Slider(1, MOST_AT_ONCE, 4, step=1, label="Images")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary")
                others = gr.Button("Draw others")
            images = gr.Gallery(label="Drawn", columns=3, height=450, format="png", object_fit="contain")
            save = gr.DownloadButton("Save images, sketch and mask")
    asked = [paper, name, variation, count, seed]
    draw.click(telling(desk.draw), asked, [images, save], api_name="draw", concurrency_id="network")
    others.click(
        telling(desk.draw_others), asked, [images, save, seed], api_name="draw_others", concurrency_id="network"
    )
    file.upload(telling(desk.upload), file, paper, api_name="upload")
    gallery.select(desk.example, None, paper, api_name=False)
    with gr.Row():
        with gr.Accordion("Many images with masks, for training", open=False):
            mine = gr.Checkbox(True, label="shapes like mine (else of phantoms)")
            many = gr.Slider(1, MOST_IN_ZIP, 20, step=1, label="Images")
            make = gr.Button("Make a zip")
            pack = gr.DownloadButton("Save the zip", interactive=False)
            made = make.click(
                telling(desk.set_of), [paper, name, mine, many, seed], pack, api_name="set_of", concurrency_id="sets"
            )
            made.success(lambda: gr.DownloadButton(interactive=True), None, pack, api_name=False)
        if "dcgan" in desk.studio.networks:
            with gr.Accordion("Without a sketch", open=False):
                kinds = choices(desk.studio, "dcgan")
                kind = gr.Radio(kinds, value=kinds[0][1], label="Diagnosis")
                number = gr.Slider(1, MOST_AT_ONCE, 4, step=1, label="Images")
                go = gr.Button("Draw from noise")
                result = gr.Gallery(label="Drawn by the DCGAN", columns=4, format="png", object_fit="contain")
                go.click(telling(desk.noise), [kind, number, seed], result, api_name="noise", concurrency_id="network")
    return paper


def analyse_tab(desk: Desk, paper: gr.Sketchpad, tabs: gr.Tabs) -> None:
    with gr.Row():
        with gr.Column():
            photograph = own_path(gr.Image(sources=["upload", "webcam"], height=400, label="Photograph"))
            look = gr.Button("Analyse", variant="primary")
            words = gr.Markdown()
        with gr.Column():
            outlined = gr.Image(label="Lesion", format="png", interactive=False)
            named = gr.Label(label="How sure the network is")
        with gr.Column():
            heat = gr.Image(
                label="Where it looked (Grad-CAM, central square)", format="png", height=280, interactive=False
            )
            sketch = own_path(gr.Image(label="Sketch", format="png", height=280, interactive=False))
            again = gr.Button("Draw this sketch under another diagnosis")
    look.click(
        telling(desk.look),
        photograph,
        [outlined, words, named, heat, sketch],
        api_name="look",
        concurrency_id="network",
    )
    again.click(telling(desk.to_paper), sketch, [paper, tabs], api_name=False)


def launch_page(page: gr.Blocks, port: int | None = None, wait: bool = False, quiet: bool = False) -> str:
    """Open the page on this machine and no other, in a notebook right there unless it shall be `quiet`; returns its
    address. `wait` until it is closed."""
    visitors.only_uploads(page)
    _, address, _ = page.launch(
        share=False,
        inline=False if quiet else None,
        server_port=port,
        prevent_thread_lock=True,
        quiet=quiet,
        max_file_size=visitors.MOST_BYTES,
    )
    visitors.empty_regularly(page)
    if wait:
        page.block_thread()
    return address
