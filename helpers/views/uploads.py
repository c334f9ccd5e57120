"""What visitors of the page send and get: a private folder, emptied after some minutes, and nothing that is larger than
the machine can bear. Import it before gradio, which reads the environment once.
"""

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from threading import Thread

UPLOAD_DIR = tempfile.mkdtemp(prefix="sketch2lesion-")  # for this user alone
atexit.register(shutil.rmtree, UPLOAD_DIR, ignore_errors=True)
os.environ |= {"GRADIO_TEMP_DIR": UPLOAD_DIR, "GRADIO_RUN_HISTORY": "False"}  # runs would stay in the visitor's browser
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402

from helpers.data.files import DataError  # noqa: E402
from helpers.views.predictor import check_image_header  # noqa: E402

KEEP_SECONDS, PURGE_INTERVAL = 300, 30  # seconds that files are kept, and between two looks for older ones
MAX_BYTES = 20 * 2**20  # of one upload
MAX_CANVASES = 100  # sheets of paper that wait to be drawn from


def show_errors(function: Callable) -> Callable:
    """What cannot be used becomes a message on the page."""

    @wraps(function)
    def told(*given):
        try:
            return function(*given)
        except DataError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error

    return told


def raw_path(component: gr.Image) -> gr.Image:
    """Its pictures reach our code as paths, unopened: we have a sentence for those that cannot be read."""

    def path_of(payload) -> str | None:
        return payload and payload.path

    component.preprocess = path_of
    return component


def composite_only(component: gr.Sketchpad) -> gr.Sketchpad:
    """Of a sheet of paper only the composite is opened, after a look at its size, and few sheets wait at a time."""
    read, accept = component.preprocess, component.accept_blobs

    @show_errors
    def preprocess(payload):
        sheet = component.blob_storage.get(payload.id) if payload and payload.id else payload
        if sheet is not None:
            sheet.background, sheet.layers = None, []
            if sheet.composite is not None:
                check_image_header(getattr(sheet.composite, "path", sheet.composite), "the drawing")
        return read(payload)

    def accept_blobs(data) -> None:
        if data.data["type"] == "composite":
            accept(data)
        while len(component.blob_storage) > MAX_CANVASES:
            component.blob_storage.pop(next(iter(component.blob_storage)), None)

    accept_blobs._is_server_fn = True
    component.preprocess, component.accept_blobs = preprocess, accept_blobs
    return component


def only_uploads(page: gr.Blocks) -> None:
    """No part of the page fetches addresses, or takes a folder for a file."""

    def guarded(move: Callable) -> Callable:
        async def moved(place):
            if place is not None and not Path(place).is_file():
                raise gr.Error(
                    f"Pictures are kept for {KEEP_SECONDS // 60} minutes: choose it again.", print_exception=False
                )
            return await move(place)

        return moved

    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = guarded(block.async_move_resource_to_block_cache)


def purge_old_uploads(page: gr.Blocks) -> None:
    """As long as the page runs, remove what is older than `KEPT` from the private folder, but for what belongs to the
    page itself. (Gradio's own `delete_cache` stops for good at the first file that it cannot remove.)"""
    own = {path for path in Path(UPLOAD_DIR).rglob("*") if path.is_file()}

    def empty() -> None:
        while page.is_running:
            time.sleep(PURGE_INTERVAL)
            for path in sorted(Path(UPLOAD_DIR).rglob("*"), reverse=True):  # files before their folders
                remove_old(path, own)

    Thread(target=empty, daemon=True).start()


def remove_old(path: Path, own: set[Path]) -> None:
    try:
        if path not in own and time.time() - path.stat().st_mtime > KEEP_SECONDS:
            path.rmdir() if path.is_dir() else path.unlink()
    except OSError:  # a folder with something in it, or somebody was faster
        pass
