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

PRIVATE = tempfile.mkdtemp(prefix="sketch2lesion-")  # for this user alone
atexit.register(shutil.rmtree, PRIVATE, ignore_errors=True)
os.environ |= {"GRADIO_TEMP_DIR": PRIVATE, "GRADIO_RUN_HISTORY": "False"}  # runs would stay in the visitor's browser
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402

from helpers.data.files import DataError  # noqa: E402
from helpers.views.studio import check_picture  # noqa: E402

KEPT, EMPTIED_EVERY = 300, 30  # seconds that files are kept, and between two looks for older ones
MOST_BYTES = 20 * 2**20  # of one upload
MOST_SHEETS = 100  # sheets of paper that wait to be drawn from


def telling(function: Callable) -> Callable:
    """What cannot be used becomes a message on the page."""

    @wraps(function)
    def told(*given):
        try:
            return function(*given)
        except DataError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error

    return told


def own_path(component: gr.Image) -> gr.Image:
    """Its pictures reach our code as paths, unopened: we have a sentence for those that cannot be read."""

    def path_of(payload) -> str | None:
        return payload and payload.path

    component.preprocess = path_of
    return component


def own_paper(component: gr.Sketchpad) -> gr.Sketchpad:
    """Of a sheet of paper only the composite is opened, after a look at its size, and few sheets wait at a time."""
    read, accept = component.preprocess, component.accept_blobs

    @telling
    def preprocess(payload):
        sheet = component.blob_storage.get(payload.id) if payload and payload.id else payload
        if sheet is not None:
            sheet.background, sheet.layers = None, []
            if sheet.composite is not None:
                check_picture(getattr(sheet.composite, "path", sheet.composite), "the drawing")
        return read(payload)

    def accept_blobs(data) -> None:
        if data.data["type"] == "composite":
            accept(data)
        while len(component.blob_storage) > MOST_SHEETS:
            component.blob_storage.pop(next(iter(component.blob_storage)), None)

    accept_blobs._is_server_fn = True
    component.preprocess, component.accept_blobs = preprocess, accept_blobs
    return component


def only_uploads(page: gr.Blocks) -> None:
    """No part of the page fetches addresses, or takes a folder for a file."""

    def guarded(move: Callable) -> Callable:
        async def moved(place):
            if place is not None and not Path(place).is_file():
                raise gr.Error(f"Pictures are kept for {KEPT // 60} minutes: choose it again.", print_exception=False)
            return await move(place)

        return moved

    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = guarded(block.async_move_resource_to_block_cache)


def empty_regularly(page: gr.Blocks) -> None:
    """As long as the page runs, remove what is older than `KEPT` from the private folder, but for what belongs to the
    page itself. (Gradio's own `delete_cache` stops for good at the first file that it cannot remove.)"""
    own = {path for path in Path(PRIVATE).rglob("*") if path.is_file()}

    def empty() -> None:
        while page.is_running:
            time.sleep(EMPTIED_EVERY)
            for path in sorted(Path(PRIVATE).rglob("*"), reverse=True):  # files before their folders
                remove_old(path, own)

    Thread(target=empty, daemon=True).start()


def remove_old(path: Path, own: set[Path]) -> None:
    try:
        if path not in own and time.time() - path.stat().st_mtime > KEPT:
            path.rmdir() if path.is_dir() else path.unlink()
    except OSError:  # a folder with something in it, or somebody was faster
        pass
