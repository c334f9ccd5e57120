"""Measures the page and the commands under load; the page runs in a process of its own.

`python tests/load.py answers --clients 20 --seconds 60`: time of an answer, half of them `generate` (4 images), half
`analyze`. `python tests/load.py memory --clients 4 --megapixels 50`: memory of the page while all clients analyze one
large photo at once. `python tests/load.py commands --megapixels 79`: memory of the commands that read images.
`--other FOLDER` measures the checkout in that folder next, under the same load, and prints the ratio.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.data.sketches import contour  # noqa: E402
from helpers.phantoms.render import render  # noqa: E402
from helpers.phantoms.sample import SAMPLE_SIZES, write  # noqa: E402

CLASS_NAMES = ("MEL", "NV", "BCC")


# ---------------------------------------------------------------------------------------------------------- requests


@contextmanager
def open_page(repository: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of the page of a checkout, and its process, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "helpers", "demo", "--port", str(port)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        wait_for(address, process)
        yield address, process
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address: str, process: subprocess.Popen, seconds: float = 180) -> None:
    """Return when the page answers. Raises `RuntimeError` if it ends or takes longer than `seconds`."""
    for _ in range(int(5 * seconds)):
        try:
            httpx.get(address, timeout=60, trust_env=False)
            return
        except httpx.TransportError:
            if process.poll() is not None:
                break
        time.sleep(0.2)
    raise RuntimeError("the page does not start")


def connect(address: str) -> httpx.Client:
    """A client of the page's API that ignores proxies of the environment."""
    return httpx.Client(base_url=f"{address}gradio_api/", timeout=600, trust_env=False)


def encode(image: np.ndarray, suffix: str = "png") -> bytes:
    """The file of an image, PNG or JPEG."""
    stream = BytesIO()
    Image.fromarray(image).save(stream, {"png": "PNG", "jpg": "JPEG"}[suffix], compress_level=1)
    return stream.getvalue()


def upload(client: httpx.Client, name: str, content: bytes) -> dict:
    """Upload a file; returns the value of its component."""
    (path,) = client.post("upload", files={"files": (name, content)}).raise_for_status().json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def call(client: httpx.Client, api_name: str, *data) -> str:
    """The answer of an API function, as the page sends it."""
    event = client.post(f"call/{api_name}", json={"data": data}).raise_for_status().json()["event_id"]
    return client.get(f"call/{api_name}/{event}").raise_for_status().text


def generate(client: httpx.Client, sketch: bytes, class_name: str, seed: int) -> None:
    """Four images, downloaded like a browser does."""
    canvas = {"background": None, "layers": [], "composite": upload(client, "canvas.png", sketch)}
    answer = call(client, "generate", canvas, class_name, [], 1.0, 1.0, 4, seed)
    assert "event: complete" in answer, answer
    gallery, *_ = json.loads(answer.rsplit("data: ", 1)[1])
    for entry in gallery:
        client.get(f"file={entry['image']['path']}").raise_for_status()


def analyze(client: httpx.Client, name: str, photo: bytes) -> None:
    """Outlined image, heatmap and sketch of a photo, downloaded like a browser does."""
    answer = call(client, "analyze", upload(client, name, photo))
    assert "event: complete" in answer, answer
    for value in json.loads(answer.rsplit("data: ", 1)[1]):
        if isinstance(value, dict) and "path" in value:
            client.get(f"file={value['path']}").raise_for_status()


# ------------------------------------------------------------------------------------------------------------- loads


def measure_answers(repository: Path, clients: int, seconds: float) -> dict[str, float]:
    """Answers of the page within `seconds` to clients that ask again as soon as they are answered: their number, and
    the median and 95th percentile of the time from the upload to the last file, in seconds. The page's processor time
    per answer does not depend on other processes of the machine."""
    sketch = encode(255 - contour(render(0, 3, size=256)[1]))
    photos = [encode(render(1, k, size=512)[0], "jpg") for k in range(clients)]

    def visit(address: str, k: int, times: list[float]) -> None:
        with connect(address) as client:
            while (start := time.monotonic()) < deadline:
                if (k + len(times)) % 2:
                    analyze(client, "photo.jpg", photos[k])
                else:
                    generate(client, sketch, CLASS_NAMES[k % 3], seed=k)
                times.append(time.monotonic() - start)

    with open_page(repository) as (address, process), ThreadPoolExecutor(clients) as pool:
        deadline = time.monotonic() + 1e-3  # one answer of each kind: the first ones load code
        visit(address, 0, [])
        visit(address, 1, [])
        before, deadline = processor_time(process.pid), time.monotonic() + seconds
        times = [[] for _ in range(clients)]
        for job in [pool.submit(visit, address, k, times[k]) for k in range(clients)]:
            job.result()
        used = processor_time(process.pid) - before
    times = np.concatenate(times)
    median, slow = np.percentile(times, (50, 95))
    return {"answers": len(times), "median s": median, "95 % s": slow, "page's CPU s/answer": used / len(times)}


def measure_memory(repository: Path, clients: int, megapixels: float) -> dict[str, float]:
    """Memory of the page in MiB before, at most during, and 10 s after `clients` photos of `megapixels` million pixels
    are analyzed at once."""
    photo = large_photo(megapixels)
    with open_page(repository) as (address, process), ThreadPoolExecutor(clients) as pool:

        def visit(k: int) -> None:
            with connect(address) as client:
                analyze(client, f"photo{k}.png", photo)

        before = memory(process.pid, "VmRSS")
        list(pool.map(visit, range(clients)))
        peak = memory(process.pid, "VmHWM")
        time.sleep(10)
        return {"before MiB": before, "peak MiB": peak, "after MiB": memory(process.pid, "VmRSS")}


def large_photo(megapixels: float, seed: int = 4) -> bytes:
    """A PNG of a phantom, 4:3, of `megapixels` million pixels."""
    height = int((megapixels * 0.75e6) ** 0.5)
    image = Image.fromarray(render(1, seed)[0])
    return encode(np.asarray(image.resize((int(megapixels * 1e6) // height, height), Image.Resampling.NEAREST)))


def memory(pid: int, field: str) -> float:
    """A field of /proc/PID/status in MiB: VmRSS (now), VmHWM (at most so far), RssAnon (without files); 0 if the
    process has ended or the system does not report it."""
    status = Path(f"/proc/{pid}/status")
    match = re.search(rf"{field}:\s+(\d+)", status.read_text()) if status.is_file() else None
    return int(match[1]) / 1024 if match else 0.0


def processor_time(pid: int) -> float:
    """Seconds that a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_commands(repository: Path, megapixels: float) -> dict[str, float]:
    """Peak memory in MiB of the commands that read images, each with one image of `megapixels` million pixels."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, arguments in command_inputs(folder, megapixels).items():
            command = [sys.executable, "-m", "helpers", *arguments]
            environment = os.environ | {"LESION_PROFILE": "smoke"}
            with open(folder / "log.txt", "w") as log:
                process = subprocess.Popen(command, cwd=repository, env=environment, stdout=log, stderr=log)
                while process.poll() is None:
                    peaks[f"{name} MiB"] = memory(process.pid, "VmHWM") or peaks[f"{name} MiB"]
                    time.sleep(0.01)
            if process.returncode:
                print(f"{name}: exit status {process.returncode}: {(folder / 'log.txt').read_text()[-300:]}")
    return peaks


def command_inputs(folder: Path, megapixels: float) -> dict[str, list[str]]:
    """Arguments of the commands; writes the folders that they read, with other images every time, because stores and
    features are kept."""
    images, sketches, dataset = folder / "images", folder / "sketches", folder / "phantoms"
    write(dataset, *SAMPLE_SIZES["smoke"], seed=0)
    photo, mask = large_photo(megapixels, seed=os.getpid()), max((dataset / "masks").iterdir())
    for path in (images / "large.png", max((dataset / "images").iterdir())):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo)
    with Image.open(images / "large.png") as image:
        Image.open(mask).resize(image.size, Image.Resampling.NEAREST).save(mask)
        sketches.mkdir()
        sketch = Image.fromarray(255 - contour(render(0, 3, size=256)[1])).convert("RGB")
        sketch.resize(image.size).save(sketches / "large.png", compress_level=1)
    for k in range(19):
        Image.fromarray(render(k % 3, os.getpid() + k, size=256)[0]).save(images / f"{k}.png")
    data = ["--dataset", "phantoms", "--data-root", str(dataset)]
    compared = ["--synthetic", str(images), "--real", str(images)]
    return {
        "audit": ["audit", str(dataset)],
        "prepare": ["prepare", *data],
        "classify": ["classify", "--images", str(images), "--out", str(folder / "table.csv")],
        "segment": ["segment", "--images", str(images), "--out", str(folder / "masks")],
        "generate": ["generate", "--sketches", str(sketches), "--out", str(folder / "generated")],
        "evaluate folders": ["evaluate", "folders", *compared, "--extractor", "mobilenet_v2"],
    }


# ----------------------------------------------------------------------------------------------------------- command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load", choices=LOADS)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--megapixels", type=float, default=50)
    parser.add_argument("--other", type=Path, help="folder of another checkout")
    args = parser.parse_args()
    measure, options = LOADS[args.load]
    settings = {name: getattr(args, name) for name in options}
    results = [measure(repository, **settings) for repository in (ROOT, args.other) if repository]
    print(f"{args.load}: {', '.join(f'{name} {value:g}' for name, value in settings.items())}")
    for name, value in results[0].items():
        others = "".join(f"   other {result[name]:.2f} (ratio {result[name] / value:.2f})" for result in results[1:])
        print(f"  {name:<22}{value:>10.2f}{others}")


LOADS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "answers": (measure_answers, ("clients", "seconds")),
    "memory": (measure_memory, ("clients", "megapixels")),
    "commands": (measure_commands, ("megapixels",)),
}


if __name__ == "__main__":
    main()
