"""The page called by one program, by many programs at once, and in a browser."""

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from urllib.parse import quote, urlsplit
from zipfile import ZipFile

import gradio
import httpx
import numpy as np
import pytest
from gradio.components.image_editor import EditorData
from gradio.data_classes import FileData
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image, ImageDraw

from helpers.config import ROOT, get_config
from helpers.data.files import DataError
from helpers.phantoms.render import ARTIFACTS, render
from helpers.views import demo, handlers, uploads
from helpers.views.demo import build_page, launch_page
from helpers.views.handlers import Handlers, canvas_with, editor_with, region_from_editor, sketch_from_canvas
from helpers.views.predictor import Predictor, Request, example_sketches

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def address(predictor):
    page = build_page(predictor)
    yield launch_page(page, quiet=True)
    page.close(verbose=False)


@pytest.fixture()
def client(address, tmp_path) -> Client:
    return Client(address, verbose=False, download_files=tmp_path)


def canvas_value(sketch: np.ndarray, folder: Path, name: str = "canvas.png") -> dict:
    """Value of the canvas, as a program sends it, with a sketch in black on white."""
    Image.fromarray(255 - sketch).save(folder / name)
    return {"background": None, "layers": [], "composite": handle_file(folder / name)}


def read_gallery(gallery: list[dict]) -> list[np.ndarray]:
    return [np.array(Image.open(entry["image"]).convert("RGB")) for entry in gallery]


# ---------------------------------------------------------------------------------------------------- without a server


@pytest.mark.parametrize(
    "canvas", [None, handlers.EMPTY_CANVAS, {"composite": Image.new("RGBA", (256, 256), (0, 0, 0, 0))}]
)
def test_sketch_from_canvas_empty_raises(canvas):
    with pytest.raises(DataError, match="drawing is empty"):
        sketch_from_canvas(canvas, 128)


def test_canvas_with_a_sketch_gives_that_sketch_back():
    for sketch in example_sketches(128):
        canvas = canvas_with(sketch)
        assert canvas["composite"].size == (handlers.CANVAS, handlers.CANVAS) and len(canvas["layers"]) == 1
        assert np.array_equal(sketch_from_canvas(canvas, 128), sketch)


SETTINGS = ("MEL", [], 1.0, 1.0, 1, 0)  # diagnosis, artifacts, tone, structure, count, seed


def test_generate_clips_count_seed_tone_and_structure(predictor):
    events = Handlers(predictor)
    canvas = canvas_with(events.examples[0])
    assert len(events.generate(canvas, "MEL", [], 1.0, 1.0, 10_000, 0)[0]) == handlers.MAX_IMAGES
    images, _, seed, request = events.generate(canvas, "MEL", None, 1.0, 1.0, -5, -7)
    assert len(images) == 1 and seed == "0" and request.artifacts == []
    for k, largest in ((2, handlers.MAX_TONE), (3, 1)):
        clipped, limit = (events.generate(canvas, *SETTINGS[:k], v, *SETTINGS[k + 1 :])[0] for v in (1e9, largest))
        assert np.array_equal(clipped, limit)
    with pytest.raises(DataError, match="got wart"):
        events.generate(canvas, "wart", *SETTINGS[1:])
    assert len(events.sample_without_sketch("SK", 1_000, 5)) == handlers.MAX_IMAGES


def painted(image: np.ndarray, box: tuple[int, int, int, int]) -> dict:
    """Value of the image editor with `box` (left, top, right, bottom), in pixels of the canvas, painted over."""
    editor = editor_with(image)
    ink = editor["composite"].copy()
    ImageDraw.Draw(ink).rectangle(box, fill=handlers.REGION_COLOR)
    return editor | {"composite": ink}


def test_region_from_editor_is_where_the_brush_was():
    image = render(1, 4)[0]
    region = region_from_editor(painted(image, (64, 128, 127, 255)), 128)
    assert region.shape == (128, 128) and region.dtype == np.uint8
    expected = np.zeros_like(region)
    expected[64:, 32:64] = 1
    assert np.array_equal(region, expected)
    huge = {"composite": Image.new("RGBA", (3_000, 2_000), handlers.REGION_COLOR)}
    assert region_from_editor(huge, 64).all(), "of whatever size"
    for nothing in (None, handlers.EMPTY_CANVAS, editor_with(image)):
        with pytest.raises(DataError, match="Mark a part of the image first"):
            region_from_editor(nothing, 128)


def test_no_generated_image_has_the_color_of_the_region(predictor):
    sketch = example_sketches(128)[0]
    for class_name in predictor.classes["cgan"]:
        for image in predictor.sample(sketch, class_name, 4, handlers.MAX_TONE, artifacts=["ink", "patches"]):
            with pytest.raises(DataError, match="Mark a part"):
                region_from_editor(editor_with(image), 128)


def test_regenerate_changes_only_the_painted_part_of_the_last_images(predictor):
    events = Handlers(predictor)
    request = events.generate(canvas_with(events.examples[0]), "NV", ["hair"], 1.0, 0.5, 3, 4)[3]
    original = predictor.generate(request)[1]
    shown = np.asarray(events.edit(request, 2)["composite"].resize((128, 128), Image.Resampling.BOX), int)
    assert np.abs(shown - original).mean() < 3, "the second image is in the editor"
    first, seed = events.regenerate(request, 2, painted(original, (64, 64, 191, 191)), 0)
    second, _ = events.regenerate(request, 2, painted(original, (64, 64, 191, 191)), seed)
    inside = np.zeros((128, 128), bool)
    inside[32:96, 32:96] = True
    for image in (first, second):
        assert np.array_equal(image[~inside], original[~inside])
        assert (image != original).any(axis=2)[inside].mean() > 0.9
    assert seed == 1 and not np.array_equal(first, second), "pressing again gives another one"
    with pytest.raises(DataError, match="The image must be one of 1 to 3, got 4"):
        events.edit(request, 4)
    with pytest.raises(DataError, match="generate images first"):
        events.regenerate(None, 1, painted(original, (0, 0, 9, 9)), 0)


def test_compare_gives_two_rows_with_captions_that_differ_in_diagnosis_and_artifacts_only(predictor):
    events = Handlers(predictor)
    canvas = canvas_with(events.examples[0])
    rows = events.compare(canvas, "MEL", [], 1.0, 1.0, 2, 3, "BKL", ["hair", "patches"])
    expected = [predictor.sample(events.examples[0], "MEL", 2, 1.0, 3)]
    expected.append(predictor.sample(events.examples[0], "BKL", 2, 1.0, 3, artifacts=["hair", "patches"]))
    for row, images, text in zip(
        rows, expected, ("melanoma", "benign keratosis with hair, color patches"), strict=True
    ):
        assert np.array_equal([image for image, _ in row], images) and {shown for _, shown in row} == {text}


def test_artifact_names_are_those_of_the_data_and_hidden_if_the_generator_has_none(predictor, monkeypatch):
    assert tuple(handlers.ARTIFACT_NAMES) == ARTIFACTS
    with gradio.Blocks():
        assert demo.artifact_input(Handlers(predictor), "Artifacts").visible
        monkeypatch.setattr(predictor.networks["cgan"], "num_artifacts", 0)
        assert not demo.artifact_input(Handlers(predictor), "Artifacts").visible


def test_class_input_has_the_classes_of_the_network_with_display_names(predictor):
    with gradio.Blocks():
        first, second = (demo.class_input(Handlers(predictor), "cgan", "Diagnosis", k) for k in (0, 1))
    assert [name for _, name in first.choices] == ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    assert all(shown != name for shown, name in first.choices), "every class has a display name"
    assert (first.value, second.value) == ("MEL", "NV")


def test_describe_without_a_segmenter_does_not_claim_that_there_is_no_lesion(predictor):
    without = Predictor({name: path for name, path in predictor.weights.items() if name != "segmenter"})
    text = Handlers(without).describe(without.analyze(render(1, 4)[0]))
    assert handlers.NO_SEGMENTER in text and handlers.NO_LESION not in text and handlers.PROBABILITY_NOTE in text
    assert "of the heat" not in text


def test_handlers_without_a_file_ask_for_one(predictor):
    events = Handlers(predictor)
    for handler, message in (
        (events.upload, "Choose a file"),
        (events.analyze, "Choose or take a photo"),
        (events.send_to_canvas, "no sketch yet"),
    ):
        with pytest.raises(DataError, match=message):
            handler(None)


def test_upload_dir_is_private_and_is_deleted_when_the_process_ends():
    assert os.stat(uploads.UPLOAD_DIR).st_mode & 0o077 == 0
    code = (  # without gradio and torch, which take seconds to import
        "import sys; from unittest.mock import MagicMock\n"
        "sys.modules |= {'gradio': MagicMock(), 'helpers.views.predictor': MagicMock()}\n"
        "from helpers.views.uploads import UPLOAD_DIR\n"
        "open(UPLOAD_DIR + '/a', 'w').close(); print(UPLOAD_DIR)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    folder = Path(process.stdout.strip())
    assert folder.name.startswith("sketch2lesion-") and not folder.exists()


# ----------------------------------------------------------------------------------------------------------- programs


def test_api_generate_returns_images_and_a_zip_with_sketch_and_mask(client, predictor, tmp_path):
    sketch = example_sketches(128)[1]
    canvas = canvas_value(sketch, tmp_path)
    gallery, archive, seed = client.predict(canvas, "BKL", ["hair"], 0.9, 0.5, 3, 7, api_name="/generate")
    assert np.array_equal(read_gallery(gallery), predictor.sample(sketch, "BKL", 3, 0.9, 7, 0.5, ["hair"]))
    assert seed == "7"
    with ZipFile(archive) as file:
        assert sorted(file.namelist()) == ["BKL-7-1.png", "BKL-7-2.png", "BKL-7-3.png", "mask.png", "sketch.png"]
        file.extractall(tmp_path)
    assert np.array_equal(np.array(Image.open(tmp_path / "sketch.png")), sketch)
    mask = np.array(Image.open(tmp_path / "mask.png"))
    assert set(np.unique(mask)) == {0, 255} and mask[sketch > 0].mean() > 200
    more, _, *seeds = client.predict(canvas, "BKL", [], 1.0, 1.0, 1, 7, api_name="/generate_more")
    assert seeds == ["8", 8] and np.array_equal(read_gallery(more), predictor.sample(sketch, "BKL", 1, 1.0, 8))


def test_api_regenerate_changes_a_part_of_the_images_of_the_same_client(client, address, predictor, tmp_path):
    sketch = example_sketches(128)[1]
    client.predict(canvas_value(sketch, tmp_path), "NV", [], 1.0, 1.0, 2, 3, api_name="/generate")
    original = predictor.sample(sketch, "NV", 2, 1.0, 3)[1]
    painted(original, (0, 0, 127, 127))["composite"].save(tmp_path / "painted.png")
    editor = {"background": None, "layers": [], "composite": handle_file(tmp_path / "painted.png")}
    file, seed = client.predict(2, editor, 5, api_name="/regenerate")
    image = np.array(Image.open(file).convert("RGB"))
    region = np.zeros((128, 128), np.uint8)
    region[:64, :64] = 1
    expected = predictor.regenerate(Request(sketch, "NV", 2, 1.0, 3), 1, region, new_seed=5)
    assert np.array_equal(image, expected) and seed == 6
    another = Client(address, verbose=False, download_files=tmp_path)
    with pytest.raises(AppError, match="generate images first"):
        another.predict(2, editor, 5, api_name="/regenerate")


def test_api_compare_returns_both_rows(client, predictor, tmp_path):
    sketch = example_sketches(128)[1]
    first, second = client.predict(
        canvas_value(sketch, tmp_path), "NV", [], 1.0, 1.0, 2, 3, "MEL", ["ink"], api_name="/compare"
    )
    assert np.array_equal(read_gallery(first), predictor.sample(sketch, "NV", 2, 1.0, 3))
    assert np.array_equal(read_gallery(second), predictor.sample(sketch, "MEL", 2, 1.0, 3, artifacts=["ink"]))
    assert [entry["caption"] for entry in first + second] == ["mole (nevus)"] * 2 + ["melanoma with ink"] * 2


def test_api_generate_with_an_empty_canvas_raises(client, tmp_path):
    with pytest.raises(AppError, match="drawing is empty"):
        client.predict(canvas_value(np.zeros((256, 256), np.uint8), tmp_path), *SETTINGS, api_name="/generate")


def test_api_make_zip_returns_images_with_masks(client, tmp_path):
    canvas = canvas_value(example_sketches(128)[0], tmp_path)
    archive = client.predict(canvas, "NV", True, 3, 0, api_name="/make_zip")
    with ZipFile(archive) as file:
        names = [f"{folder}/NV_{k:03d}.png" for k in (1, 2, 3) for folder in ("images", "masks")]
        assert sorted(file.namelist()) == sorted(names)


def test_api_sample_without_sketch_returns_dcgan_images(client, predictor):
    gallery = client.predict("NV", 3, 5, api_name="/sample_without_sketch")
    assert np.array_equal(read_gallery(gallery), predictor.sample_without_sketch("NV", 3, 5))
    with pytest.raises(AppError, match="wart"):
        client.predict("wart", 1, 0, api_name="/sample_without_sketch")


def test_api_analyze_returns_a_sketch_that_generate_accepts(client, tmp_path):
    Image.fromarray(render(1, 4, size=200)[0]).save(tmp_path / "photo.png")
    outlined, text, probabilities, heatmap, sketch = client.predict(
        handle_file(tmp_path / "photo.png"), api_name="/analyze"
    )
    assert Image.open(outlined).size == (200, 200) and Image.open(heatmap).size == (128, 128)
    assert re.search(r"covers \*\*\d+\.\d %\*\* of the image", text)
    assert re.search(r"\*\*\d+ % of the heat lies inside the lesion\.\*\*", text)
    confidences = {entry["label"]: entry["confidence"] for entry in probabilities["confidences"]}
    assert len(confidences) == 7 and {"melanoma", "benign keratosis", "mole (nevus)"} < set(confidences)
    assert sum(confidences.values()) == pytest.approx(1, abs=1e-4)
    canvas = client.predict(handle_file(sketch), api_name="/upload")
    canvas |= {"composite": handle_file(canvas["composite"]), "background": None, "layers": []}
    gallery, *_ = client.predict(canvas, *SETTINGS, api_name="/generate")
    assert read_gallery(gallery)[0].shape == (128, 128, 3)


@pytest.mark.parametrize("name", ["empty", "text", "cut", "color"])
def test_api_analyze_of_an_unusable_file_raises_without_naming_the_folder(client, tmp_path, name):
    file = tmp_path / f"{name}.png"
    Image.fromarray(np.full((99, 99, 3), 90, np.uint8)).save(file)
    if name != "color":
        file.write_bytes({"empty": b"", "text": b"not an image", "cut": file.read_bytes()[:60]}[name])
    with pytest.raises(AppError, match="one color" if name == "color" else "damaged or not an image") as error:
        client.predict(handle_file(file), api_name="/analyze")
    assert uploads.UPLOAD_DIR not in str(error.value)


def process_memory() -> float:
    """Anonymous memory of this process in MiB; 0 where the system does not report it."""
    status = Path("/proc/self/status")
    match = re.search(r"RssAnon:\s+(\d+)", status.read_text()) if status.is_file() else None
    return int(match[1]) / 1024 if match else 0.0


def test_api_generate_from_twenty_clients_at_once_answers_each(address, predictor, tmp_path):
    sketches, classes = example_sketches(128, 20), predictor.classes["cgan"]
    expected = [predictor.sample(sketch, classes[k % 3], 1, 1.0, k) for k, sketch in enumerate(sketches)]

    def connect(k: int) -> Client:
        return Client(address, verbose=False, download_files=tmp_path / str(k))

    def visit(k: int) -> list[np.ndarray]:
        canvas = canvas_value(sketches[k], tmp_path, f"{k}.png")
        gallery, *_ = clients[k].predict(canvas, classes[k % 3], [], 1.0, 1.0, 1, k, api_name="/generate")
        return read_gallery(gallery)

    with ThreadPoolExecutor(20) as pool:
        clients = list(pool.map(connect, range(20)))
        first = list(pool.map(visit, range(20)))
        before = process_memory()
        second = list(pool.map(visit, range(20)))
    for answers in (first, second):
        assert all(np.array_equal(images, wanted) for images, wanted in zip(answers, expected, strict=True))
    assert process_memory() - before < 300, "MiB more after twenty more uploads"


# -------------------------------------------------------------------------------------------------------------- files


def fetch(address: str, path: str) -> tuple[int, str]:
    """Status and text of a GET request; unlike `httpx`, `HTTPConnection` does not normalize the path."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode(errors="replace")


def test_server_does_not_send_files_outside_the_upload_dir(address, tmp_path):
    (tmp_path / "secret.txt").write_text("hush-hush")
    allowed = Path(uploads.UPLOAD_DIR) / "allowed.txt"
    allowed.write_text("for uploads")
    assert fetch(address, f"/gradio_api/file={allowed}") == (200, "for uploads"), "the route that is tried below"
    up = "../" * 12
    paths = ["/etc/passwd", f"{up}etc/passwd", f"{uploads.UPLOAD_DIR}/{up}etc/passwd", "file:///etc/passwd"]
    paths += [f"{tmp_path}/secret.txt", f"{uploads.UPLOAD_DIR}/{up}{tmp_path}/secret.txt", "/proc/self/environ"]
    paths += [uploads.UPLOAD_DIR, f"{uploads.UPLOAD_DIR}/", f"{ROOT}/README.md", "helpers/config.py", "README.md"]
    paths += [quote(path, safe="") for path in paths]
    leaked = re.compile("root:x:|hush-hush|PATH=|allowed.txt|def get_config|# Sketch2Lesion\n\n")
    for path in paths:
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "gradio_api/stream/", ""):
            status, text = fetch(address, f"/{route}{path}")
            assert status >= 300 or "<html" in text, (route, path)
            assert not leaked.search(text), (route, path)


def analyze_path(address: str, path: str) -> str:
    """The page's answer to a program that sends a path as its photo."""
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    event = httpx.post(f"{address}gradio_api/call/analyze", json={"data": data}).json()["event_id"]
    return httpx.get(f"{address}gradio_api/call/analyze/{event}", timeout=60).text


def test_analyze_accepts_only_uploaded_files(address, tmp_path):
    file = tmp_path / "own.png"
    Image.fromarray(render(1, 4)[0]).save(file)
    uploaded = httpx.post(f"{address}gradio_api/upload", files={"files": file.open("rb")}).json()[0]
    answer = analyze_path(address, uploaded)
    assert "event: complete" in answer and "The lesion covers" in answer
    urls = ["http://127.0.0.1:9/a.png", f"{address}gradio_api/file={uploaded}"]
    for path in (str(file), uploads.UPLOAD_DIR, str(Path(uploaded).parent), "/etc/hostname", *urls):
        answer = analyze_path(address, path)
        assert "event: error" in answer and "covers" not in answer, path
    os.unlink(uploaded)
    assert "event: error" in analyze_path(address, uploaded)


def test_composite_only_rejects_huge_drawings_and_limits_their_number(tmp_path):
    pad = uploads.composite_only(gradio.Sketchpad(type="pil"))
    huge = tmp_path / "huge.png"
    Image.new("1", (9_000, 9_000)).save(huge)
    with pytest.raises(gradio.exceptions.Error, match="pixels"):
        pad.preprocess(EditorData(composite=FileData(path=str(huge)), layers=[FileData(path=str(huge))] * 50))
    for k in range(2 * uploads.MAX_CANVASES):
        for kind in ("layer", "composite"):
            pad.accept_blobs(SimpleNamespace(data={"type": kind, "index": "999999", "id": str(k)}, files=[("f", b"x")]))
    assert len(pad.blob_storage) == uploads.MAX_CANVASES
    assert all(not drawing.layers for drawing in pad.blob_storage.values())


def test_uploads_are_limited_in_size_and_not_listed_to_other_visitors(address, client, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * 21 * 2**20)
    with large.open("rb") as file:
        assert httpx.post(f"{address}gradio_api/upload", files={"files": file}).status_code == 413
    Image.fromarray(render(2, 4)[0]).save(tmp_path / "somebodys-mole.png")
    client.predict(handle_file(tmp_path / "somebodys-mole.png"), api_name="/analyze")
    assert any(path.is_file() for path in Path(uploads.UPLOAD_DIR).rglob("*somebodys-mole*"))
    for route in ("", "config", "gradio_api/info", "gradio_api/startup-events"):
        assert "somebodys-mole" not in httpx.get(address + route).text


def test_purge_old_uploads_deletes_uploads_and_keeps_examples(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "KEEP_SECONDS", 0.5)
    monkeypatch.setattr(uploads, "PURGE_INTERVAL", 0.2)
    page = build_page(predictor)
    try:
        address = launch_page(page, quiet=True)
        Image.fromarray(render(3, 4)[0]).save(tmp_path / "short-lived.png")
        with (tmp_path / "short-lived.png").open("rb") as file:
            (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": file}).json()
        assert Path(path).is_relative_to(uploads.UPLOAD_DIR)
        deadline = time.monotonic() + 60
        while Path(path).parent.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not Path(path).parent.exists()
        examples = re.findall(rf'"path":"({uploads.UPLOAD_DIR}[^"]+)"', httpx.get(f"{address}config").text)
        assert len(set(examples)) >= 5 and all(Path(example).is_file() for example in examples)
    finally:
        page.close(verbose=False)


# ------------------------------------------------------------------------------------------------------------ browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


def open_page(browser, address: str, width: int = 1280):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_label("Brush Size").wait_for()  # the brush is selected
    return page


@pytest.fixture(scope="module")
def figures() -> Path:
    folder = get_config().outputs / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


ALL_LOADED = "[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)"


def test_browser_draw_generate_analyze_and_reuse_the_sketch(address, browser, figures, tmp_path):
    Image.fromarray(render(0, 12, size=300)[0]).save(tmp_path / "photo.png")
    page = open_page(browser, address)
    box = page.locator("canvas").first.bounding_box()
    center = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    for k, angle in enumerate(np.linspace(0, 2 * np.pi, 17)):
        offset = np.array([95, 75]) * [np.cos(angle), np.sin(angle)] * (1 + 0.1 * np.sin(3 * angle))
        page.mouse.move(*(center + offset))
        if k == 0:
            page.mouse.down()
    page.mouse.up()
    page.get_by_label("benign keratosis").first.check()
    page.get_by_role("button", name="Generate", exact=True).click()
    thumbnails = page.get_by_role("button", name=re.compile("Thumbnail . of 4"))
    thumbnails.nth(3).wait_for()
    page.wait_for_function(ALL_LOADED)
    assert thumbnails.nth(0).locator("img").evaluate("i => i.naturalWidth") == 128
    before = thumbnails.nth(0).locator("img").get_attribute("src")
    page.screenshot(path=figures / "08_draw.png", full_page=True)
    page.get_by_role("tab", name="Analyze").click()
    page.locator("input[type=file]:visible, [data-testid=file-upload]").last.set_input_files(tmp_path / "photo.png")
    page.get_by_role("button", name="Analyze", exact=True).click()
    page.get_by_text("The lesion covers").first.wait_for()
    page.wait_for_function(ALL_LOADED)
    page.screenshot(path=figures / "08_analyze.png")
    page.get_by_role("button", name="Generate from this sketch").click()
    page.get_by_label("Brush Size").wait_for()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_function(f"!document.body.innerHTML.includes({before!r})")
    page.wait_for_function(ALL_LOADED)
    page.screenshot(path=figures / "08_again.png")
    assert page.get_by_text("drawing is empty").count() == 0
    page.close()


def open_example(browser, address: str, width: int = 1280):
    """The page with the second example and its images."""
    page = open_page(browser, address, width)
    page.get_by_role("button", name="Thumbnail 2 of 5").click()
    page.get_by_role("button", name="Thumbnail 4 of 4").wait_for()
    return page


def image_at(page, selector: str) -> np.ndarray:
    """The image of an element, once it is loaded."""
    page.locator(selector).wait_for()
    address = page.locator(selector).get_attribute("src")
    return np.array(Image.open(BytesIO(httpx.get(address).content)).convert("RGB"))


def test_browser_example_generates_and_a_painted_part_is_regenerated(address, browser, predictor):
    page = open_example(browser, address)
    settings = (example_sketches(128)[1], "MEL", 4)
    images, seed = predictor.sample(*settings), page.locator("label", has_text="Seed of these images")
    assert seed.locator("input, textarea").input_value() == "0" and seed.get_by_label("Copy").is_visible()
    assert np.array_equal(image_at(page, "[aria-label='Thumbnail 2 of 4'] img"), images[1])
    page.get_by_role("button", name="Regenerate a part").click()
    page.get_by_role("button", name="Regenerate this part").wait_for()
    page.get_by_role("button", name="Thumbnail 2 of 4").first.click()
    page.locator("#region").get_by_label("Brush Size").wait_for()
    assert page.get_by_label("Number of the image").input_value() == "2"
    page.locator("#region canvas").first.scroll_into_view_if_needed()
    page.wait_for_timeout(1_000)  # the page scrolls smoothly
    box = page.locator("#region canvas").first.bounding_box()
    center = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    reach = np.array([30, 0])
    page.mouse.move(*(center - reach))
    page.mouse.down()
    page.mouse.move(*(center + reach), steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Regenerate this part").click()
    changed = (image_at(page, "#changed img") != images[1]).any(axis=2)
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    assert 5 < np.ptp(rows) < 40 and 20 < np.ptp(columns) < 70, "a stroke across the middle"
    assert abs(rows.mean() - 64) < 10 and abs(columns.mean() - 64) < 10
    assert page.get_by_label("Seed of the part").input_value() == "1"
    page.get_by_role("button", name="Generate more").click()
    seed.locator("input, textarea").evaluate("e => new Promise(f => setInterval(() => e.value == '1' && f(), 100))")
    page.get_by_role("button", name="Regenerate this part").click()
    page.get_by_text("Mark a part of the image first").first.wait_for()
    page.close()


def test_browser_compare_shows_both_rows_with_their_artifacts(address, browser):
    page = open_example(browser, address)
    page.get_by_role("button", name="Compare").first.click()
    page.get_by_label("vascular lesion").nth(1).check()
    page.get_by_label("ruler").nth(1).check()
    page.get_by_role("button", name="Compare").last.click()
    page.get_by_text("vascular lesion with ruler").nth(3).wait_for()
    assert page.locator("figcaption, .caption-label").filter(has_text=re.compile("^melanoma$")).count() == 4
    page.wait_for_function(ALL_LOADED)
    page.close()


def open_all(page) -> None:
    """Open every part of the tab."""
    for name in ("Regenerate a part", "Compare", "Many images with masks", "Without a sketch"):
        page.get_by_role("button", name=name).first.click()
    page.get_by_role("button", name="Make a zip file").wait_for()


def test_browser_page_fits_a_phone(address, browser, figures):
    page = open_example(browser, address, width=390)
    open_all(page)
    page.get_by_role("button", name="Thumbnail 1 of 4").first.click()
    page.locator("#region").get_by_label("Brush Size").wait_for()
    for tab in ("Generate", "Analyze"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        page.screenshot(path=figures / f"08_phone_{tab.lower()}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        for control in page.locator("button:visible, input:visible, textarea:visible, canvas:visible").all():
            box = control.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 391, control.evaluate("e => e.outerHTML.slice(0, 200)")
    page.close()


# Gradio names the empty box of an output although its role is not given; nothing outside it can add one.
AXE_EXCEPTIONS = {"aria-prohibited-attr": 'aria-label="Empty value"'}  # by rule, a part of the element


def serious_violations(page, axe) -> list[str]:
    """What axe-core finds serious or critical, without `AXE_EXCEPTIONS`."""
    found = []
    for violation in axe.run(page).response["violations"]:
        exception = AXE_EXCEPTIONS.get(violation["id"])
        for node in violation["nodes"]:
            if violation["impact"] in ("serious", "critical") and not (exception and exception in node["html"]):
                found.append(f"{violation['id']}: {node['html'][:200]}")
    return found


@pytest.mark.parametrize("width", [1280, 390])
def test_browser_page_passes_axe(address, browser, tmp_path, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    Image.fromarray(render(0, 12, size=300)[0]).save(tmp_path / "photo.png")
    page = open_example(browser, address, width)
    open_all(page)
    page.get_by_role("button", name="Compare").last.click()
    page.locator(".caption-label").nth(7).wait_for()
    assert serious_violations(page, axe) == []
    page.get_by_role("tab", name="Analyze").click()
    page.locator("input[type=file]:visible, [data-testid=file-upload]").last.set_input_files(tmp_path / "photo.png")
    page.get_by_role("button", name="Analyze", exact=True).click()
    page.get_by_text("The lesion covers").first.wait_for()
    assert serious_violations(page, axe) == []
    page.close()


def test_browser_waiting_visitor_sees_the_position_in_the_queue(predictor, browser, figures, tmp_path, monkeypatch):
    released, generate = Event(), Predictor.generate

    def wait_and_generate(*args, **kwargs):
        assert released.wait(60)
        return generate(*args, **kwargs)

    monkeypatch.setattr(Predictor, "generate", wait_and_generate)
    app = build_page(predictor)
    try:
        client = Client(launch_page(app, quiet=True), verbose=False, download_files=tmp_path)
        canvas = canvas_value(example_sketches(128)[0], tmp_path)
        jobs = [client.submit(canvas, *SETTINGS, api_name="/generate") for _ in range(2)]
        page = open_page(browser, app.local_url)
        page.get_by_role("button", name="Generate", exact=True).click()
        position = page.get_by_text(re.compile(r"queue: \d+/\d+")).first
        position.wait_for()
        box = position.bounding_box()
        assert box["y"] + box["height"] < 900, "visible without scrolling"
        page.screenshot(path=figures / "08_queue.png")
        page.close()
        released.set()
        assert all(len(job.result(60)[0]) == 1 for job in jobs)
    finally:
        released.set()
        app.close(verbose=False)
