"""Uploads to the page: a private folder, emptied after some minutes, and limits on size and number.

Import it before gradio, which reads the environment once.
"""

import atexit
import html
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from io import BytesIO
from pathlib import Path
from stat import S_ISDIR
from threading import Thread

from helpers.data.files import DataError, is_running

PREFIX = f"sketch2lesion-{re.sub(r'[^A-Za-z0-9]', '', platform.node())}-"  # of this machine's pages


def remove_leftovers(folder: str) -> None:
    """Remove the upload folders that pages of this user left in `folder` when they were killed."""
    for path in Path(folder).glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError):
            process, status = int(path.name.removeprefix(PREFIX).split("-")[0]), path.lstat()
            if S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not is_running(process):
                shutil.rmtree(path, ignore_errors=True)


if os.name == "posix":  # on Windows `os.kill` would end the process
    remove_leftovers(tempfile.gettempdir())
UPLOAD_DIR = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")  # readable by this user only
atexit.register(shutil.rmtree, UPLOAD_DIR, ignore_errors=True)
# With a run history, gradio would store inputs and outputs in the visitor's browser.
os.environ |= {"GRADIO_TEMP_DIR": UPLOAD_DIR, "GRADIO_RUN_HISTORY": "False"}
# Gradio would compute statistics of all calls with pandas after every call, which nobody sees.
os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000"}
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from helpers.views.predictor import check_image_header  # noqa: E402

KEEP_SECONDS, PURGE_INTERVAL = 300, 30  # lifetime of a file, and time between two purges, in seconds
MAX_BYTES = 20 * 2**20  # of one upload
MAX_CANVAS_PIXELS = 16_000_000  # gradio makes several copies of a drawing
MAX_CANVASES = 100  # drawings that wait in memory


def show_errors(function: Callable) -> Callable:
    """Wrap an event handler: its `DataError` becomes a message on the page."""

    @wraps(function)
    def wrapper(*args):
        try:
            return function(*args)
        except DataError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error

    return wrapper


def raw_path(component: gr.Image) -> gr.Image:
    """Make the component pass its image as a path, unopened, so that our code reports unreadable ones."""

    def path_of(payload) -> str | None:
        return payload and payload.path

    component.preprocess = path_of
    return component


def encode_png(image: np.ndarray) -> bytes:
    """The PNG of `image uint8 (H, W[, 3])`, in a fifth of the time of Pillow's default and, with noise, no larger."""
    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
    return stream.getvalue()


def fast_png(component: gr.Image | gr.Gallery) -> gr.Image | gr.Gallery:
    """Make the component write images with `encode_png`."""
    postprocess = component.postprocess

    def path_of(value):
        if isinstance(value, tuple):  # image, caption
            return path_of(value[0]), value[1]
        if not isinstance(value, np.ndarray):
            return value
        file = Path(tempfile.mkdtemp(dir=UPLOAD_DIR)) / "image.png"
        file.write_bytes(encode_png(value))
        return str(file)

    component.postprocess = lambda value: postprocess(
        [*map(path_of, value)] if isinstance(value, list) else path_of(value)
    )
    return component


def composite_only(component: gr.ImageEditor) -> gr.ImageEditor:
    """Make the editor open only the composite of a drawing, after a check of its size, and hold at most
    `MAX_CANVASES` drawings in memory."""
    preprocess_all, accept_all = component.preprocess, component.accept_blobs

    @show_errors
    def preprocess(payload):
        drawing = component.blob_storage.get(payload.id) if payload and payload.id else payload
        if drawing is not None:
            drawing.background, drawing.layers = None, []
            if drawing.composite is not None:
                file = getattr(drawing.composite, "path", drawing.composite)
                check_image_header(file, "the drawing", MAX_CANVAS_PIXELS)
        return preprocess_all(payload)

    def accept_blobs(data) -> None:
        if data.data["type"] == "composite":
            accept_all(data)
        while len(component.blob_storage) > MAX_CANVASES:
            component.blob_storage.pop(next(iter(component.blob_storage)), None)

    accept_blobs._is_server_fn = True
    component.preprocess, component.accept_blobs = preprocess, accept_blobs
    return component


def only_uploads(page: gr.Blocks) -> None:
    """Keep every component of the page from fetching URLs and from reading a folder as a file."""

    def only_files(move: Callable) -> Callable:
        async def move_file(path):
            if path is not None and not Path(path).is_file():
                message = f"Uploads are deleted after {KEEP_SECONDS // 60} minutes: choose the file again."
                raise gr.Error(message, print_exception=False)
            return await move(path)

        return move_file

    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = only_files(block.async_move_resource_to_block_cache)


def report_unusable_arguments(page: gr.Blocks) -> None:
    """Make the page answer arguments that a component cannot use, or another number of them, with a sentence. (Gradio
    answers null for all errors but `gr.Error`.) Messages are shown as text, also where they repeat an argument."""
    preprocess, process = page.preprocess_data, page.process_api

    async def preprocess_data(function, *args, **kwargs):
        try:
            return await preprocess(function, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            labels = ", ".join(str(getattr(block, "label", None) or "value") for block in function.inputs)
            message = f"The arguments must be values of these components, in this order: {labels}."
            raise gr.Error(message, print_exception=False) from error

    async def process_api(*args, **kwargs):
        try:
            return await process(*args, **kwargs)
        except gr.Error as error:
            error.message = html.escape(error.message, quote=False)  # gradio shows it as HTML
            raise

    page.preprocess_data, page.process_api = preprocess_data, process_api


def purge_old_uploads(page: gr.Blocks) -> None:
    """Start a thread that deletes files older than `KEEP_SECONDS` from the private folder while the page runs. Files
    that exist now belong to the page and stay. (Gradio's `delete_cache` ends at the first file it cannot delete.)"""
    page_files = {path for path in Path(UPLOAD_DIR).rglob("*") if path.is_file()}

    def purge() -> None:
        while page.is_running:
            time.sleep(PURGE_INTERVAL)
            for path in sorted(Path(UPLOAD_DIR).rglob("*"), reverse=True):  # files before their folders
                remove_old(path, page_files)

    Thread(target=purge, daemon=True).start()


def remove_old(path: Path, page_files: set[Path]) -> None:
    """Delete a file or an empty folder older than `KEEP_SECONDS`, unless it is one of `page_files`."""
    try:
        if path not in page_files and time.time() - path.stat().st_mtime > KEEP_SECONDS:
            path.rmdir() if path.is_dir() else path.unlink()
    except OSError:  # a folder that is not empty, or a file that is already gone
        pass
