"""The web page: generate images from a drawing and a diagnosis, or analyze a photo.

`handlers.py` holds what its events do, `predictor.py` the networks, `uploads.py` the limits on uploads; this file holds
the components.
"""

import html
import inspect
import os
import socket
from pathlib import Path

from helpers.config import ROOT, display_path
from helpers.data.files import DataError
from helpers.views import uploads  # before gradio
from helpers.views.guard import guarded
from helpers.views.handlers import ARTIFACT_NAMES, CANVAS, MAX_IMAGES, MAX_TONE, MAX_ZIP_IMAGES, REGION_COLOR, Handlers
from helpers.views.predictor import Predictor, display_name
from helpers.views.uploads import composite_only, fast_png, raw_path, show_errors

import gradio as gr  # isort: skip

NOTICE = """# Sketch2Lesion
Draw the outline of a skin lesion and choose a diagnosis: a neural network generates images of such a lesion.
**For teaching and research. Nothing here is a medical diagnosis, and no generated image shows a real person.**"""
MAX_QUEUE, MAX_SESSIONS = 100, 1_000  # visitors who wait, and whose last settings are kept
GRADIO_6 = "buttons" in inspect.signature(gr.Textbox.__init__).parameters
COPY_BUTTON = {"buttons": ["copy"]} if GRADIO_6 else {"show_copy_button": True}
# The canvas starts without a selected tool, and the first stroke would be lost.
SELECT_BRUSH_JS = """() => { const timer = setInterval(() => {
    const brush = document.querySelector('button[aria-label="Brush"]')
    if (brush) { brush.click(); clearInterval(timer) }
}, 500) }"""
# Gradio's gray and orange have too little contrast (WCAG 2, 1.4.3), and its galleries are too wide for a phone.
STYLE = """<style>
:root:not(:has(.dark)) { --body-text-color-subdued: #5f5f68; --color-accent: #c2410c }
:root, .dark { --button-primary-background-fill: #c2410c; --button-primary-background-fill-hover: #9a3412;
    --button-primary-text-color: white; --button-primary-text-color-hover: white }
.grid-wrap .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) }
</style>"""


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
        gr.HTML(STYLE)
    return page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)


def weights_list(predictor: Predictor) -> str:
    """Markdown list of the weights in use, without folders outside the repository."""
    text = str(predictor)
    for path in predictor.weights.values():
        if not Path(path).resolve().is_relative_to(ROOT):
            text = text.replace(display_path(path), Path(path).name)
    return "\n".join(f"- {html.escape(line)}" for line in text.splitlines())


def class_input(handlers: Handlers, method: str, label: str, first: int = 0) -> gr.Radio:
    """Buttons for the classes of a method by their display names, of which the one at position `first` is chosen."""
    choices = [(display_name(name), name) for name in handlers.predictor.classes[method]]
    return gr.Radio(choices, value=choices[first % len(choices)][1], label=label)


def generate_tab(handlers: Handlers) -> gr.ImageEditor:
    """Components and events of the tab that generates images; returns its canvas."""
    with gr.Row():
        with gr.Column():
            canvas, examples = sketch_input(handlers)
            numbers = number_inputs()
        with gr.Column():
            settings = [class_input(handlers, "cgan", "Diagnosis"), artifact_input(handlers, "Artifacts"), *numbers]
            with gr.Row():
                generate = gr.Button("Generate", variant="primary")
                more = gr.Button("Generate more")
            images = fast_png(gr.Gallery(label="Generated images", columns=4, height=320, object_fit="contain"))
            shown_seed = gr.Textbox(label="Seed of these images", interactive=False, **COPY_BUTTON)
            save = gr.DownloadButton("Save images, sketch and mask")
    class_name, *_, seed = settings
    last = gr.State()  # the `Request` of the images
    outputs, inputs = [images, save, shown_seed, last], [canvas, *settings]
    shared = {"concurrency_id": "network"}
    generate.click(show_errors(handlers.generate), inputs, outputs, api_name="generate", **shared)
    more.click(show_errors(handlers.generate_more), inputs, [*outputs, seed], api_name="generate_more", **shared)
    examples.select(show_errors(handlers.generate_example), settings, [canvas, *outputs], api_name=False, **shared)
    region_section(handlers, images, last)
    compare_section(handlers, inputs)
    with gr.Row():
        with gr.Column():
            zip_section(handlers, canvas, class_name, seed)
        if "dcgan" in handlers.predictor.networks:
            with gr.Column():
                dcgan_section(handlers, seed)
    return canvas


def number_inputs() -> list[gr.components.Component]:
    """Components with the other values of `request_of`: tone, structure, count and seed."""
    with gr.Row():
        tone = gr.Slider(0, MAX_TONE, 1, step=0.1, label="Tone", info="How much the colors differ")
        structure = gr.Slider(0, 1, 1, step=0.1, label="Structure", info="How much the patterns differ")
    with gr.Row():
        count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images")
        seed = gr.Number(0, precision=0, minimum=0, label="Seed")
    return [tone, structure, count, seed]


def artifact_input(handlers: Handlers, label: str) -> gr.CheckboxGroup:
    """Check boxes for the artifacts, hidden if the generator was not conditioned on them."""
    choices = [(shown, name) for name, shown in ARTIFACT_NAMES.items()]
    return gr.CheckboxGroup(choices, label=label, visible=bool(handlers.predictor.network("cgan").num_artifacts))


def region_section(handlers: Handlers, images: gr.Gallery, last: gr.State) -> None:
    """Components and events to regenerate a part of one of the images, whose request is `last`."""
    with gr.Accordion("Regenerate a part", open=False):
        gr.Markdown("Click one of the generated images, mark a part of it with the brush, and regenerate it.")
        with gr.Row():
            editor = mask_editor(
                elem_id="region",
                label="Image: mark a part",
                brush=gr.Brush(14, [REGION_COLOR], color_mode="fixed"),
            )
            with gr.Column():
                with gr.Row():
                    position = gr.Number(1, precision=0, minimum=1, maximum=MAX_IMAGES, label="Number of the image")
                    new_seed = gr.Number(0, precision=0, minimum=0, label="Seed of the part")
                regenerate = gr.Button("Regenerate this part", variant="primary")
                changed = output_image("Changed image", elem_id="changed", height=300)
    shared = {"concurrency_id": "network"}
    images.select(show_errors(handlers.select_image), last, [position, editor], api_name=False, **shared)
    position.input(show_errors(handlers.edit), [last, position], editor, api_name=False, **shared)
    images.change(None, None, editor, js="() => null")
    inputs = [last, position, editor, new_seed]
    regenerate.click(show_errors(handlers.regenerate), inputs, [changed, new_seed], api_name="regenerate", **shared)


def compare_section(handlers: Handlers, inputs: list[gr.components.Component]) -> None:
    """Components and events to compare two diagnoses and artifacts. `inputs`: of `Handlers.generate`."""
    with gr.Accordion("Compare", open=False):
        gr.Markdown("The same drawing, seed and sliders with the diagnosis and artifacts above, and with these:")
        class_name = class_input(handlers, "cgan", "Second diagnosis", first=1)
        artifacts = artifact_input(handlers, "Second artifacts")
        compare = gr.Button("Compare", variant="primary")
        with gr.Row():
            rows = [
                fast_png(gr.Gallery(label=label, columns=2, object_fit="contain", height=600))
                for label in ("With the settings above", "With the second diagnosis and artifacts")
            ]
    compare.click(
        show_errors(handlers.compare),
        [*inputs, class_name, artifacts],
        rows,
        api_name="compare",
        concurrency_id="network",
    )


def mask_editor(**options) -> gr.ImageEditor:
    """A square canvas of fixed size with pen and eraser, without layers and uploads, and with limits on size and
    number."""
    return composite_only(
        gr.ImageEditor(
            type="pil",
            canvas_size=(CANVAS, CANVAS),
            fixed_canvas=True,
            layers=False,
            sources=[],
            transforms=[],
            height=400,
            **options,
        )
    )


def sketch_input(handlers: Handlers) -> tuple[gr.ImageEditor, gr.Gallery]:
    """Canvas, examples and file upload; returns the first two."""
    canvas = mask_editor(
        label="Canvas: draw an outline", brush=gr.Brush(default_size=2, colors=["#000000"], color_mode="fixed")
    )
    examples = gr.Gallery(
        [255 - sketch for sketch in handlers.examples],
        label="Or start from an example",
        columns=5,
        height=130,
        allow_preview=False,
        interactive=False,
    )
    file = gr.File(label="Or upload a sketch or a mask", file_types=["image"], height=150)
    file.upload(show_errors(handlers.upload), file, canvas, api_name="upload")
    return canvas, examples


def zip_section(handlers: Handlers, canvas: gr.ImageEditor, class_name: gr.Radio, seed: gr.Number) -> None:
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
    with gr.Accordion("Without a sketch", open=False):
        class_name = class_input(handlers, "dcgan", "Diagnosis")
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


def analyze_tab(handlers: Handlers, canvas: gr.ImageEditor, tabs: gr.Tabs) -> None:
    """Components and events of the tab that analyzes a photo."""
    with gr.Row():
        with gr.Column():
            photo = raw_path(gr.Image(sources=["upload", "webcam"], height=400, label="Photo"))
            analyze = gr.Button("Analyze", variant="primary")
            text = gr.Markdown()
        with gr.Column():
            outlined = output_image("Lesion outline")
            probabilities = gr.Label(label="Probabilities of the diagnoses")
        with gr.Column():
            heatmap = output_image("Heatmap (Grad-CAM, central square)", height=280)
            sketch = raw_path(output_image("Sketch", height=280))
            send = gr.Button("Generate from this sketch")
    analyze.click(
        show_errors(handlers.analyze),
        photo,
        [outlined, text, probabilities, heatmap, sketch],
        api_name="analyze",
        concurrency_id="network",
    )
    send.click(show_errors(handlers.send_to_canvas), sketch, [canvas, tabs], api_name=False)


def output_image(label: str, **options) -> gr.Image:
    """An image that events show; screen readers say its label."""
    spoken = {"alt_text": label} if GRADIO_6 else {}
    return fast_png(gr.Image(label=label, interactive=False, **spoken, **options))


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
            state_session_capacity=MAX_SESSIONS,
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
