"""The page against other web sites, oversized requests, unusable arguments and hostile names."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import load
import numpy as np
import pytest
from PIL import Image

from helpers.__main__ import main
from helpers.config import ROOT
from helpers.data.files import DataError
from helpers.data.sketches import contour
from helpers.phantoms.render import render
from helpers.views import demo, guard, handlers, uploads
from helpers.views import predictor as predictor_module
from helpers.views.demo import build_page, free_port, launch_page
from helpers.views.guard import Guard
from helpers.views.handlers import number
from helpers.views.predictor import Predictor

HOSTILE = ["<img src=x onerror=window.hacked=1>", "</script><script>window.hacked=1</script>"]
API_NAMES = (
    "generate",
    "generate_more",
    "regenerate",
    "compare",
    "upload",
    "make_zip",
    "sample_without_sketch",
    "analyze",
)


@pytest.fixture(scope="module")
def page(predictor):
    page = build_page(predictor)
    launch_page(page, quiet=True, host_names=("proxy.example:8443", "page.example"))
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def api(page):
    with httpx.Client(base_url=page.local_url, timeout=60) as client:
        yield client


def empty_page() -> demo.gr.Blocks:
    with demo.gr.Blocks() as page:
        return page


# ------------------------------------------------------------------------------------------------------ host, origin


def test_page_answers_under_its_own_names_and_those_of_its_proxy_only(page, api):
    port = page.server_port
    own = [f"localhost:{port}", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "proxy.example:8443"]
    own += ["page.example", "page.example:8080"]
    foreign = [
        "evil.example",
        f"evil.example:{port}",
        "localhost",
        f"localhost:{port + 1}",
        "proxy.example",
        "[::1",
        "",
    ]
    foreign += [f"localhost.evil.example:{port}", f"127.0.0.1:{port}.evil.example", f"page.example.evil:{port}"]
    assert {host: api.get("config", headers={"Host": host}).status_code for host in own} == dict.fromkeys(own, 200)
    for host in foreign:
        answer = api.get("config", headers={"Host": host})
        assert answer.status_code == 403 and "--host-name" in answer.text, host


def test_page_on_port_80_is_known_without_its_port():
    assert Guard(None)._is_own("localhost", 80) and not Guard(None)._is_own("localhost", 8080)
    assert Guard(None, any_host=True)._is_own("x.googleusercontent.com", 7860), "a hosted notebook"


@pytest.mark.parametrize("origin", ["http://localhost:1234", "https://evil.example", "null", "http://[", "file://"])
def test_requests_of_other_pages_are_refused_without_cors_headers(page, api, origin):
    preflight = {"Access-Control-Request-Method": "POST"}
    for answer in (
        api.get("config", headers={"Origin": origin}),
        api.post("gradio_api/upload", headers={"Origin": origin}, files={"files": b"x"}),
        api.options("gradio_api/queue/join", headers={"Origin": origin} | preflight),
    ):
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    own = api.get("config", headers={"Origin": page.local_url.rstrip("/")})
    assert own.status_code == 200 and not [name for name in own.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path", ["", "config", "gradio_api/info", "gradio_api/file=/etc/passwd", "nothing", "assets/../../x"]
)
def test_every_answer_forbids_frames_and_guessing_of_types(api, path):
    headers = api.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_page_in_a_notebook_may_be_framed(monkeypatch):
    launched = {}
    monkeypatch.setattr(demo.gr.utils, "ipython_check", lambda: True)
    monkeypatch.setattr(demo.gr.Blocks, "launch", lambda self, **kwargs: launched.update(kwargs) or (None, "", ""))
    for quiet, framed in ((False, True), (True, False)):
        monkeypatch.setattr(demo, "guarded", lambda **options: options)
        launch_page(empty_page(), quiet=quiet)
        assert launched["app_kwargs"] == {"host_names": (), "any_host": False, "framed": framed}


# ---------------------------------------------------------------------------------------------------- size, arguments


def test_requests_without_or_with_a_large_length_are_refused_on_every_route(api):
    for route in ("gradio_api/queue/join", "gradio_api/call/generate", "gradio_api/component_server", "login", "x"):
        answer = api.post(route, content=b" " * (guard.MAX_BODY + 1))
        assert answer.status_code == 413 and "1,048,576 bytes" in answer.text, route
        assert api.post(route, content=iter([b"x"])).status_code == 411, route
    answer = api.post("gradio_api/upload", files={"files": b" " * (guard.MAX_UPLOAD + 1)})
    assert answer.status_code == 413


def answer_of(api: httpx.Client, api_name: str, data: list) -> str:
    """The page's answer to a program, which may send what JSON does not have: NaN and infinity."""
    body = json.dumps({"data": data})
    answer = api.post(f"gradio_api/call/{api_name}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    return api.get(f"gradio_api/call/{api_name}/{answer.json()['event_id']}").text


@pytest.mark.parametrize("api_name", API_NAMES)
def test_api_answers_unusable_arguments_with_a_sentence(page, api, api_name, monkeypatch):
    examples, black = predictor_module.example_sketches(128, 2), np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(handlers, "sketch_from_canvas", lambda *_: examples[0])
    monkeypatch.setattr(predictor_module, "example_sketches", lambda *_: examples)
    monkeypatch.setattr(predictor_module, "sample", lambda _, __, labels, *___: np.stack([black] * len(labels)))
    monkeypatch.setattr(predictor_module, "sample_variations", lambda *args: np.stack([black] * len(args[4])))
    (function,) = (f for f in page.fns.values() if f.api_name == api_name)
    usable = {"Diagnosis": "MEL", "Second diagnosis": "NV", "Tone": 1.0, "Structure": 1.0, "Images": 1, "Seed": 0}
    data = [usable.get(block.label) for block in function.inputs if not block.stateful]
    values = [float("nan"), "text", None]
    if api_name not in ("generate_more", "make_zip", "compare"):  # their components are those of `generate`
        values += [float("inf"), 1e9, [1], {"path": 1}]
    calls = [[*data[:k], value, *data[k + 1 :]] for k in range(len(data)) for value in values]
    for arguments in (*calls, [], [*data, 1]):
        answer = answer_of(api, api_name, arguments)
        if "event: error" in answer:
            error = json.loads(answer.rsplit("data: ", 1)[1])["error"]
            assert error and " " in error, (arguments, answer)
            assert str(ROOT) not in answer and uploads.UPLOAD_DIR not in answer, arguments
        else:
            assert "event: complete" in answer, (arguments, answer)


def test_regenerate_answers_unusable_positions_and_editors_with_a_sentence(predictor):
    events = handlers.Handlers(predictor)
    request = handlers.request_of(events.examples[0], ("MEL", [], 1, 1, 2, 0))
    painted = {"composite": Image.new("RGB", (9, 7), handlers.REGION_COLOR)}
    for position in (float("nan"), float("inf"), 1e9, 3, "1", [1]):
        with pytest.raises(DataError, match="The image must be"):
            events.regenerate(request, position, painted, 0)
    for new_seed in (float("nan"), "1"):
        with pytest.raises(DataError, match="The seed must be a number"):
            events.regenerate(request, 1, painted, new_seed)
    assert events.regenerate(request, None, painted, float("inf"))[1] == 2**31


def test_number_clips_and_refuses_what_is_not_a_number():
    assert [number(v, "It", 1, 8) for v in (None, -1, 3, 1e9, float("inf"), -float("inf"))] == [1, 1, 3, 8, 8, 1]
    for value in (float("nan"), "3", [3]):
        with pytest.raises(DataError, match="It must be a number from 1 to 8, got"):
            number(value, "It", 1, 8)


def test_requests_that_gradio_cannot_read_get_a_sentence(api):
    for route, body in (("call/v2/generate", {"x": 1}), ("call/v2/nothing", {}), ("run/nothing", {"data": []})):
        answer = api.post(f"gradio_api/{route}", json=body)
        assert 400 <= answer.status_code < 500 and "Traceback" not in answer.text, route


def test_no_route_names_folders_of_the_machine(api):
    packages = str(Path(demo.gr.__file__).parents[1])
    for route in ("", "config", "gradio_api/info", "gradio_api/openapi.json", "gradio_api/startup-events", "theme.css"):
        text = api.get(route).text.replace(uploads.UPLOAD_DIR, "")
        for folder in (str(ROOT), packages, str(Path.home()) + "/", os.getcwd(), tempfile.gettempdir() + "/"):
            assert folder not in text, (route, folder)


def test_answers_lie_in_folders_that_cannot_be_guessed_or_listed(api):
    assert re.fullmatch(rf"{uploads.PREFIX}{os.getpid()}-\w{{8,}}", Path(uploads.UPLOAD_DIR).name)
    (first,), (second,) = (api.post("gradio_api/upload", files={"files": ("a.txt", text)}).json() for text in "ab")
    assert all(re.fullmatch(r"[0-9a-f]{64}", Path(path).parent.name) for path in (first, second))
    zips = {handlers.write_zip({}, "MEL") for _ in range(2)}
    assert len({Path(path).parent for path in zips}) == 2
    for folder in (uploads.UPLOAD_DIR, Path(first).parent, *(Path(path).parent for path in zips)):
        answer = api.get(f"gradio_api/file={folder}")
        assert answer.status_code >= 400 and "a.txt" not in answer.text and ".zip" not in answer.text


# ------------------------------------------------------------------------------------------------------- class names


def test_hostile_class_names_stay_inside_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "UPLOAD_DIR", str(tmp_path))
    for name in (*HOSTILE, "../../x", "a/b", "", "é"):
        file = Path(handlers.write_zip({}, name))
        assert file.parent.parent == tmp_path and file.is_file()


def test_browser_shows_hostile_class_names_as_text(predictor, monkeypatch):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    hostile = Predictor(dict(predictor.weights))
    hostile.classes = {
        method: [*HOSTILE, *classes][: len(classes)] for method, classes in predictor.classes.items() if classes
    }
    hostile.classes["segmenter"] = [f"`{HOSTILE[0]}`"]
    app = build_page(hostile)
    monkeypatch.setattr(handlers, "sketch_from_canvas", lambda *_: np.zeros((128, 128), np.uint8))
    try:
        address = launch_page(app, quiet=True)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            window = browser.new_page()
            window.set_default_timeout(60_000)
            window.goto(address)
            window.get_by_label("Brush Size").wait_for()
            assert window.get_by_label(HOSTILE[0], exact=True).count() > 0, "the names are shown"
            window.get_by_label(HOSTILE[0], exact=True).first.check()
            hostile.classes["cgan"] = HOSTILE[1:]
            window.get_by_role("button", name="Generate", exact=True).click()
            window.get_by_text("The diagnosis must be one of").first.wait_for()
            assert window.evaluate("window.hacked") is None
            assert window.evaluate("document.querySelectorAll('img[src=x]').length") == 0
            browser.close()
    finally:
        app.close(verbose=False)


def test_page_names_no_folders_of_weights_outside_the_repository(predictor, tmp_path):
    inside = demo.weights_list(predictor)
    assert "- cgan: data/released/cgan.safetensors, 128 px, MEL NV" in inside
    outside = Predictor({"cgan": shutil.copy(predictor.weights["cgan"], tmp_path / "own.safetensors")})
    assert demo.weights_list(outside).startswith("- cgan: own.safetensors, 128 px")


# -------------------------------------------------------------------------------------------------------------- load


def test_page_under_load_answers_all_and_returns_its_memory(page):
    sketch, photo = load.encode(255 - contour(render(0, 3, size=256)[1])), load.large_photo(3)

    def visit(k: int) -> None:
        with load.connect(page.local_url) as client:
            load.analyze(client, "photo.png", photo)
            load.generate(client, sketch, "MEL", seed=7)  # the same images for all

    visit(0)
    before = load.memory(os.getpid(), "RssAnon")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(visit, range(4)))
    assert load.memory(os.getpid(), "RssAnon") - before < 250, "MiB"


def test_encode_png_is_lossless_and_not_larger_than_pillows_default(tmp_path):
    for image in (render(1, 4)[0], 255 * render(1, 4)[1]):
        (tmp_path / "a.png").write_bytes(uploads.encode_png(image))
        Image.fromarray(image).save(tmp_path / "default.png")
        assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), image)
        assert (tmp_path / "a.png").stat().st_size < 1.1 * (tmp_path / "default.png").stat().st_size + 5000


# ----------------------------------------------------------------------------------------------- start, end of a page


def test_free_port_and_busy_ports(capsys):
    assert free_port(None) is None and free_port(7861) == 7861 and 0 < free_port(0) < 2**16
    for port in ("-1", "70000"):
        assert main(["demo", "--port", port]) == 2
        assert f"error: The port must be from 0 to 65535, got {port}." in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(["demo", "--port", "abc"])
    assert error.value.code == 2
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(DataError, match=f"Port {port} is in use"):
            launch_page(empty_page(), port=port, quiet=True)


def test_page_starts_where_the_environment_names_a_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet.example")
    page = empty_page()
    try:
        assert httpx.get(launch_page(page, port=0, quiet=True)).status_code == 200
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "intranet.example,localhost,127.0.0.1"
    finally:
        page.close(verbose=False)


def test_upload_folders_of_killed_pages_are_removed_at_the_next_start(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        f"{uploads.PREFIX}{ended.pid}-abcdefgh": False,  # name: whether it stays
        f"{uploads.PREFIX}{os.getpid()}-abcdefgh": True,
        f"{uploads.PREFIX}{os.getppid()}-abcdefgh": True,
        f"sketch2lesion-othermachine-{ended.pid}-abcdefgh": True,
        f"{uploads.PREFIX}notanumber": True,
        f"another-{ended.pid}-abcdefgh": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "upload.png").write_bytes(b"x")
    (tmp_path / "kept").mkdir()
    (tmp_path / f"{uploads.PREFIX}{ended.pid}-link").symlink_to(tmp_path / "kept")
    (tmp_path / f"{uploads.PREFIX}{ended.pid}-file").write_bytes(b"x")
    uploads.remove_leftovers(str(tmp_path))
    assert {name: (tmp_path / name / "upload.png").is_file() for name in names} == names
    assert (tmp_path / "kept").is_dir() and (tmp_path / f"{uploads.PREFIX}{ended.pid}-file").is_file()


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give a folder to another user")
def test_upload_folders_of_other_users_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = tmp_path / f"{uploads.PREFIX}{ended.pid}-abcdefgh"
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    uploads.remove_leftovers(str(tmp_path))
    assert folder.is_dir()
