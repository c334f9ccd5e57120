"""The page as a program, as many programs at once, and as a person with a mouse see it."""

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
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
from PIL import Image

from helpers.config import ROOT, get_config
from helpers.data import phantoms
from helpers.data.files import DataError
from helpers.views import demo, uploads
from helpers.views.demo import Handlers, build_page, canvas_with, launch_page, sketch_from_canvas
from helpers.views.predictor import Predictor, example_sketches, find_weights

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def studio() -> Predictor:
    return Predictor(find_weights(get_config("cgan")))


@pytest.fixture(scope="module")
def address(studio):
    page = build_page(studio)
    yield launch_page(page, quiet=True)
    page.close()


@pytest.fixture()
def client(address, tmp_path) -> Client:
    return Client(address, verbose=False, download_files=tmp_path)


def on_paper(sketch: np.ndarray, folder: Path, name: str = "paper.png") -> dict:
    Image.fromarray(255 - sketch).save(folder / name)
    return {"background": None, "layers": [], "composite": handle_file(folder / name)}


def pictures(gallery: list[dict]) -> list[np.ndarray]:
    return [np.array(Image.open(entry["image"]).convert("RGB")) for entry in gallery]


# ---------------------------------------------------------------------------------------------------- pure functions


@pytest.mark.parametrize("paper", [None, demo.EMPTY_CANVAS, {"composite": Image.new("RGBA", (256, 256), (0, 0, 0, 0))}])
def test_empty_paper_gets_a_sentence(paper):
    with pytest.raises(DataError, match="paper is empty"):
        sketch_from_canvas(paper, 128)


def test_a_sketch_laid_on_the_paper_comes_back():
    for sketch in example_sketches(128):
        paper = canvas_with(sketch)
        assert paper["composite"].size == (demo.CANVAS, demo.CANVAS) and len(paper["layers"]) == 1
        back = sketch_from_canvas(paper, 128)
        assert np.array_equal(back, sketch)


def test_what_programs_ask_for_is_bounded(studio):
    desk = Handlers(studio)
    paper = canvas_with(desk.examples[0])
    assert len(desk.generate(paper, "MEL", 1.0, 10_000, 0)[0]) == demo.MAX_IMAGES
    assert len(desk.generate(paper, "MEL", 1.0, -5, -7)[0]) == 1
    much, most = (desk.generate(paper, "MEL", variation, 1, 0)[0] for variation in (1e9, demo.MAX_VARIATION))
    assert np.array_equal(much, most)
    with pytest.raises(DataError, match="no wart"):
        desk.generate(paper, "wart", 1.0, 1, 0)


def test_who_does_not_look_for_lesions_does_not_deny_them(studio):
    poor = Predictor({name: path for name, path in studio.weights.items() if name != "segmenter"})
    words = Handlers(poor).words(poor.analyze(phantoms.render(1, 4)[0]))
    assert "no lesion is looked for" in words and demo.NO_LESION not in words and demo.PROBABILITY_NOTE in words


def test_the_private_folder_is_private_and_goes_with_the_process():
    assert os.stat(uploads.UPLOAD_DIR).st_mode & 0o077 == 0
    code = "from helpers.views.uploads import PRIVATE; print(PRIVATE); open(PRIVATE + '/a', 'w').close()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert folder.name.startswith("sketch2lesion-") and not folder.exists()


# ----------------------------------------------------------------------------------------------------------- programs


def test_a_program_draws_and_gets_images_sketch_and_mask(client, studio, tmp_path):
    sketch = example_sketches(128)[1]
    gallery, archive = client.predict(on_paper(sketch, tmp_path), "SK", 1.0, 3, 7, api_name="/draw")
    assert np.array_equal(pictures(gallery), studio.draw(sketch, "SK", 3, 1.0, 7))
    with ZipFile(archive) as inside:
        assert sorted(inside.namelist()) == ["SK-7-1.png", "SK-7-2.png", "SK-7-3.png", "mask.png", "sketch.png"]
        inside.extractall(tmp_path)
    assert np.array_equal(np.array(Image.open(tmp_path / "sketch.png")), sketch)
    mask = np.array(Image.open(tmp_path / "mask.png"))
    assert set(np.unique(mask)) == {0, 255} and mask[sketch > 0].mean() > 200
    *_, seed = client.predict(on_paper(sketch, tmp_path), "SK", 1.0, 1, 7, api_name="/draw_others")
    assert seed == 8


def test_a_program_gets_a_zip_of_pairs_to_train_with(client, tmp_path):
    archive = client.predict(on_paper(example_sketches(128)[0], tmp_path), "NV", True, 3, 0, api_name="/set_of")
    with ZipFile(archive) as inside:
        names = [f"{part}/NV_{k:03d}.png" for k in (1, 2, 3) for part in ("images", "masks")]
        assert sorted(inside.namelist()) == sorted(names)


def test_a_photograph_is_analysed_and_its_sketch_can_be_drawn(client, tmp_path):
    Image.fromarray(phantoms.render(1, 4, size=200)[0]).save(tmp_path / "photo.png")
    outlined, words, named, heat, sketch = client.predict(handle_file(tmp_path / "photo.png"), api_name="/look")
    assert Image.open(outlined).size == (200, 200) and Image.open(heat).size == (128, 128)
    assert re.search(r"takes \*\*\d+\.\d %\*\*", words)
    sure = {entry["label"]: entry["confidence"] for entry in named["confidences"]}
    assert set(sure) == {"melanoma", "seborrhoeic keratosis", "mole (nevus)"} and abs(sum(sure.values()) - 1) < 1e-4
    paper = client.predict(handle_file(sketch), api_name="/upload")
    drawn, _ = client.predict(
        {**paper, "composite": handle_file(paper["composite"]), "background": None, "layers": []},
        "MEL",
        1.0,
        1,
        0,
        api_name="/draw",
    )
    assert pictures(drawn)[0].shape == (128, 128, 3)


@pytest.mark.parametrize("name", ["empty", "text", "cut", "colour"])
def test_what_cannot_be_analysed_gets_a_sentence(client, tmp_path, name):
    file = tmp_path / f"{name}.png"
    Image.fromarray(np.full((99, 99, 3), 90, np.uint8)).save(file)
    if name != "colour":
        file.write_bytes({"empty": b"", "text": b"no picture", "cut": file.read_bytes()[:60]}[name])
    with pytest.raises(AppError, match="one colour" if name == "colour" else "damaged or not a picture") as error:
        client.predict(handle_file(file), api_name="/look")
    assert uploads.UPLOAD_DIR not in str(error.value)


def test_nothing_drawn_gets_a_sentence(client, tmp_path):
    with pytest.raises(AppError, match="paper is empty"):
        client.predict(on_paper(np.zeros((256, 256), np.uint8), tmp_path), "MEL", 1.0, 1, 0, api_name="/draw")


def own_memory() -> float:
    """MiB of this process that are no mapped files, where the system tells."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+)", status.read_text()) if status.is_file() else None
    return int(found[1]) / 1024 if found else 0.0


def test_twenty_at_once_all_get_their_own_answer(address, studio, tmp_path):
    sketches = example_sketches(128, 20)
    wanted = [studio.draw(sketch, studio.classes["cgan"][k % 3], 2, 1.0, k) for k, sketch in enumerate(sketches)]

    def visit(k: int) -> list[np.ndarray]:
        paper = on_paper(sketches[k], tmp_path, f"{k}.png")
        gallery, _ = Client(address, verbose=False, download_files=tmp_path / str(k)).predict(
            paper, studio.classes["cgan"][k % 3], 1.0, 2, k, api_name="/draw"
        )
        return pictures(gallery)

    with ThreadPoolExecutor(20) as pool:
        first = list(pool.map(visit, range(20)))
        before = own_memory()
        second = list(pool.map(visit, range(20)))
    for got in (first, second):
        assert all(np.array_equal(one, other) for one, other in zip(got, wanted, strict=True))
    assert own_memory() - before < 300, "MiB more for another twenty uploads"


# -------------------------------------------------------------------------------------------------------- other files


def fetched(address: str, path: str) -> tuple[int, str]:
    """Status and text; unlike other clients this one sends the path as it is."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def test_no_file_outside_the_pages_own_can_be_fetched(address, tmp_path):
    (tmp_path / "secret.txt").write_text("hush-hush")
    own = Path(uploads.UPLOAD_DIR) / "own.txt"
    own.write_text("for uploads")
    assert fetched(address, f"/gradio_api/file={own}") == (200, "for uploads"), "the way in that is tried below"
    up = "../" * 12
    places = ["/etc/passwd", f"{up}etc/passwd", f"{uploads.UPLOAD_DIR}/{up}etc/passwd", "file:///etc/passwd"]
    places += [f"{tmp_path}/secret.txt", f"{uploads.UPLOAD_DIR}/{up}{tmp_path}/secret.txt", "/proc/self/environ"]
    places += [uploads.UPLOAD_DIR, f"{uploads.UPLOAD_DIR}/", f"{ROOT}/README.md", "helpers/config.py", "README.md"]
    places += [quote(place, safe="") for place in places]
    for place in places:
        for door in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "gradio_api/stream/", ""):
            status, told = fetched(address, f"/{door}{place}")
            assert status >= 300 or "<html" in told, (door, place)
            assert not re.search("root:x:|hush-hush|PATH=|own.txt|def get_config|# Sketch2Lesion\n\n", told), (
                door,
                place,
            )


def asked(address: str, given: dict) -> str:
    """What the page says to a program that sends `given` as its photograph."""
    event = httpx.post(f"{address}gradio_api/call/look", json={"data": [given]}).json()["event_id"]
    return httpx.get(f"{address}gradio_api/call/look/{event}", timeout=60).text


def test_only_what_was_uploaded_is_analysed(address, tmp_path):
    file = tmp_path / "mine.png"
    Image.fromarray(phantoms.render(1, 4)[0]).save(file)
    uploaded = httpx.post(f"{address}gradio_api/upload", files={"files": file.open("rb")}).json()[0]
    assert "event: complete" in asked(address, {"path": uploaded, "meta": {"_type": "gradio.FileData"}})
    addresses = ["http://127.0.0.1:9/a.png", f"{address}gradio_api/file={uploaded}"]
    for place in (str(file), uploads.UPLOAD_DIR, str(Path(uploaded).parent), "/etc/hostname", *addresses):
        told = asked(address, {"path": place, "meta": {"_type": "gradio.FileData"}})
        assert "event: error" in told and "takes" not in told, place
    os.unlink(uploaded)
    assert "event: error" in asked(address, {"path": uploaded, "meta": {"_type": "gradio.FileData"}})


def test_a_program_draws_without_a_sketch(client, studio):
    gallery = client.predict("NV", 3, 5, api_name="/noise")
    assert np.array_equal(pictures(gallery), studio.draw_without_sketch("NV", 3, 5))
    assert len(Handlers(studio).sample_without_sketch("SK", 1_000, 5)) == demo.MAX_IMAGES
    with pytest.raises(AppError, match="wart"):
        client.predict("wart", 1, 0, api_name="/noise")


def test_papers_of_programs_are_bounded(address, tmp_path):
    with pytest.raises(gradio.exceptions.Error, match="pixels"):
        bomb = tmp_path / "bomb.png"
        Image.new("1", (9_000, 9_000)).save(bomb)
        pad = uploads.composite_only(gradio.Sketchpad(type="pil"))
        pad.preprocess(EditorData(composite=FileData(path=str(bomb)), layers=[FileData(path=str(bomb))] * 50))
    for k in range(2 * uploads.MAX_CANVASES):
        for kind in ("layer", "composite"):
            pad.accept_blobs(SimpleNamespace(data={"type": kind, "index": "999999", "id": str(k)}, files=[("f", b"x")]))
    assert len(pad.blob_storage) <= uploads.MAX_CANVASES
    assert all(not sheet.layers for sheet in pad.blob_storage.values())


def test_uploads_are_bounded_and_not_told_to_others(address, client, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * 21 * 2**20)
    with large.open("rb") as file:
        assert httpx.post(f"{address}gradio_api/upload", files={"files": file}).status_code == 413
    Image.fromarray(phantoms.render(2, 4)[0]).save(tmp_path / "somebodys-mole.png")
    client.predict(handle_file(tmp_path / "somebodys-mole.png"), api_name="/look")
    kept = [path for path in Path(uploads.UPLOAD_DIR).rglob("*somebodys-mole*") if path.is_file()]
    assert kept, "uploads lie in the private folder"
    for place in ("", "config", "gradio_api/info", "gradio_api/startup-events"):
        assert "somebodys-mole" not in httpx.get(address + place).text


def test_uploads_are_emptied_and_examples_stay(studio, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "KEEP_SECONDS", 2)
    monkeypatch.setattr(uploads, "PURGE_INTERVAL", 1)
    page = build_page(studio)
    try:
        there = launch_page(page, quiet=True)
        Image.fromarray(phantoms.render(3, 4)[0]).save(tmp_path / "short-lived.png")
        kept = Path(
            httpx.post(f"{there}gradio_api/upload", files={"files": (tmp_path / "short-lived.png").open("rb")}).json()[
                0
            ]
        )
        assert kept.is_file() and kept.is_relative_to(uploads.UPLOAD_DIR)
        left = time.monotonic() + 60
        while kept.parent.exists() and time.monotonic() < left:
            time.sleep(0.5)
        assert not kept.parent.exists()
        examples = re.findall(rf'"path":"({uploads.UPLOAD_DIR}[^"]+)"', httpx.get(f"{there}config").text)
        assert len(set(examples)) >= 5 and all(Path(path).is_file() for path in examples)
    finally:
        page.close(verbose=False)


# ------------------------------------------------------------------------------------------------------------- people


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_a_person_draws_with_the_mouse_and_uploads_a_photograph(address, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")
    shots = get_config("cgan").outputs / "figures"
    shots.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantoms.render(0, 12, size=300)[0]).save(tmp_path / "photo.png")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(60_000)
        tab.goto(address)
        tab.get_by_label("Brush Size").wait_for()  # the pen is in hand
        box = tab.locator("canvas").first.bounding_box()
        middle, reach = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]), np.array([95, 75])
        for k, angle in enumerate(np.linspace(0, 2 * np.pi, 50)):
            at = middle + reach * [np.cos(angle), np.sin(angle)] * (1 + 0.1 * np.sin(3 * angle))
            tab.mouse.move(*at)
            if k == 0:
                tab.mouse.down()
        tab.mouse.up()
        tab.get_by_label("seborrhoeic keratosis").first.check()
        tab.get_by_role("button", name="Draw", exact=True).click()
        thumbnails = tab.get_by_role("button", name=re.compile("Thumbnail . of 4"))
        thumbnails.nth(3).wait_for()
        tab.wait_for_function("[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)")
        assert thumbnails.nth(0).locator("img").evaluate("i => i.naturalWidth") == 128
        tab.screenshot(path=shots / "08_draw.png", full_page=True)
        tab.get_by_role("tab", name="Analyse").click()
        tab.locator("input[type=file]:visible, [data-testid=file-upload]").last.set_input_files(tmp_path / "photo.png")
        tab.get_by_role("button", name="Analyse", exact=True).click()
        tab.get_by_text("of the picture").wait_for()
        tab.wait_for_timeout(1_500)
        tab.screenshot(path=shots / "08_analyse.png")
        tab.get_by_role("button", name="Draw this sketch under another diagnosis").click()
        tab.get_by_label("Brush Size").wait_for()
        tab.get_by_role("button", name="Draw", exact=True).click()
        tab.wait_for_timeout(3_000)
        tab.screenshot(path=shots / "08_again.png")
        assert tab.get_by_text("paper is empty").count() == 0
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_who_waits_sees_where_in_the_queue(studio, tmp_path, monkeypatch):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")
    monkeypatch.setattr(Predictor, "draw", slowly(Predictor.sample, seconds=4))
    page = build_page(studio)
    try:
        client = Client(launch_page(page, quiet=True), verbose=False, download_files=tmp_path)
        sketch = on_paper(example_sketches(128)[0], tmp_path)
        before = [client.submit(sketch, "NV", 1.0, 1, 0, api_name="/draw") for _ in range(3)]
        with sync_api.sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.set_default_timeout(60_000)
            tab.goto(page.local_url)
            tab.get_by_role("button", name="Draw", exact=True).click()
            place = tab.get_by_text(re.compile(r"queue: \d+/\d+")).first
            place.wait_for()
            box = place.bounding_box()
            assert box["y"] + box["height"] < 900, "without scrolling"
            tab.screenshot(path=get_config("cgan").outputs / "figures" / "08_queue.png")
            browser.close()
        assert all(job.result(60) for job in before)
    finally:
        page.close(verbose=False)


def slowly(method, seconds: float):
    def slow(*given):
        time.sleep(seconds)
        return method(*given)

    return slow
