"""`make bench`: measures speeds, as ratios.

On the embedded sample by default; `LESION_DATASET=ham10000 LESION_DATA_ROOT=... make bench` measures on real data.
`python tests/bench.py bench_steps` runs one function. Speeds vary between machines and over time; compare the ratios
within one run.
"""

import copy
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize, ToTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from factories import random_inception  # noqa: E402

from helpers.config import get_config  # noqa: E402
from helpers.data.audit import audit  # noqa: E402
from helpers.data.batches import ImageSource, source_batches  # noqa: E402
from helpers.data.deform import hand_drawn  # noqa: E402
from helpers.data.layouts import ARTIFACTS, DatasetTable, open_dataset  # noqa: E402
from helpers.data.sketches import contour, structure  # noqa: E402
from helpers.data.store import Store, StoreConfig, prepare  # noqa: E402
from helpers.metrics import extractors  # noqa: E402
from helpers.metrics.extractors import FeatureExtractor, Features, optimize_for_inference  # noqa: E402
from helpers.metrics.image_set import ImageSet  # noqa: E402
from helpers.metrics.quality import compute_metrics, quality  # noqa: E402
from helpers.models import trainer  # noqa: E402
from helpers.models.classifier import Backbone, ClassifierConfig, ClassifierTask  # noqa: E402
from helpers.models.device import best_device  # noqa: E402
from helpers.models.gan import GAN, GANConfig  # noqa: E402
from helpers.models.pix2pix import PatchGAN, UNet  # noqa: E402
from helpers.models.segmenter import SegmenterConfig, SegmenterTask, jaccard_loss, probabilities  # noqa: E402
from helpers.phantoms.classes import CLASSES  # noqa: E402
from helpers.phantoms.render import render  # noqa: E402
from helpers.phantoms.sample import CLASS_FREQUENCIES  # noqa: E402

# Operations that change no memory.
VIEWS = re.compile(
    "aten::(alias|as_strided|chunk|contiguous|detach|empty|empty_like|empty_strided|expand|expand_as|flatten|item|"
    "lift_fresh|mT|narrow|permute|reshape|resize_|result_type|select|slice|split|split_with_sizes|squeeze|t|to|"
    "transpose|unbind|unflatten|unfold|unsqueeze|view|view_as|_unsafe_view)"
)


def row(name: str, value: float, unit: str, target: str = "") -> None:
    """Print one line of the report."""
    print(f"{name:<58} {value:>10,.0f} {unit:<14} {target}", flush=True)


def rate(function: Callable, items: list, rounds: int = 3) -> float:
    """Items per second on one core (processor time): median over `rounds`."""
    rates = []
    for _ in range(rounds):
        start = time.process_time()
        for item in items:
            function(item)
        rates.append(len(items) / (time.process_time() - start))
    return float(np.median(rates))


def run_self(function: str, *args: str) -> list[float]:
    """The numbers that a function of this file prints when run in its own process, because precision and peak memory
    are per process."""
    command = [sys.executable, __file__, function, *args]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(word) for word in output.splitlines()[-1].split()]


# ---------------------------------------------------------------------------------------------------------------- data


def bench_phantoms() -> None:
    """Rendering of phantoms."""
    p = np.array([CLASS_FREQUENCIES[name] for name in CLASSES])
    labels = np.random.default_rng(0).choice(7, 200, p=p / p.sum())
    render(0, 0)  # the first call creates the textures
    speed = rate(lambda k: render(int(labels[k]), 1000 + k), list(range(200)))
    row("phantoms rendered, 128 px, one core", speed, "images/s", "target 100")


def bench_sketches(store: Store) -> None:
    """Sketch extraction."""
    batch = store.batch(store.rows(needs=["mask", "sketch"])[:200])
    pairs, rng = list(zip(batch["images"], batch["masks"], strict=True)), np.random.default_rng(0)
    contours = [contour(mask) for mask in batch["masks"]]
    row("sketches, contour, 128 px, one core", rate(lambda p: contour(p[1]), pairs), "sketches/s", "target 100")
    row("sketches, structure with hair removal", rate(lambda p: structure(*p), pairs), "sketches/s", "target 100")
    row("sketches, hand-drawn", rate(lambda line: hand_drawn(line, rng), contours), "sketches/s", "target 100")


def bench_preparation(dataset: DatasetTable, workers: int) -> Store:
    """Audit and store; returns the store, in a temporary folder under `data`."""
    start = time.perf_counter()
    report = audit(dataset, workers, progress=False)
    audit_seconds = time.perf_counter() - start
    row(f"audit of {len(dataset.table):,} images, {workers} cores", audit_seconds, "s", "target 60 (10,015)")
    stores = tempfile.mkdtemp(prefix="bench-", dir=ROOT / "data")
    start = time.perf_counter()
    store = prepare(dataset, stores, StoreConfig(128), report, workers, progress=False)
    total = audit_seconds + time.perf_counter() - start
    row(f"prepare: the audit, and {len(store):,} images stored", total, "s", "target 90 (10,015)")
    return store


def read_store(store: Store, arrays: tuple[str, ...]) -> float:
    """Images per second in shuffled batches of 64 from one process, warm cache."""
    rng, rates = np.random.default_rng(0), []
    for _ in range(6):
        start, rows = time.perf_counter(), rng.permutation(len(store))
        count = sum(len(store.batch(rows[k : k + 64], arrays)["rows"]) for k in range(0, len(rows), 64))
        rates.append(count / (time.perf_counter() - start))
    return float(np.median(rates[1:]))


def read_image_folder(dataset: DatasetTable, workers: int, max_images: int = 3000) -> float:
    """Images per second of the usual way: torchvision's ImageFolder on the original files, cropped, resized, in
    batches of 64."""
    with tempfile.TemporaryDirectory() as tree:
        for index, (name, path) in enumerate(zip(dataset.class_names(), dataset.table["path"], strict=True)):
            if index < max_images:
                (Path(tree) / str(name)).mkdir(exist_ok=True)
                os.symlink(Path(path).resolve(), Path(tree) / str(name) / Path(path).name)
        folder = ImageFolder(tree, Compose([Resize(128), CenterCrop(128), PILToTensor()]))
        loader = DataLoader(folder, batch_size=64, shuffle=True, num_workers=workers)
        rates = []
        for _ in range(2):
            start = time.perf_counter()
            count = sum(len(images) for images, _ in loader)
            rates.append(count / (time.perf_counter() - start))
        return rates[-1]


def bench_reading(store: Store, dataset: DatasetTable, workers: int) -> None:
    """Batches from the store, against ImageFolder."""
    all_arrays = read_store(store, ("images", "masks", "sketches", "labels"))
    row("store, batches of 64: image, mask, sketch, label", all_arrays, "images/s", "target 20,000")
    ours = read_store(store, ("images", "labels"))
    row("store, batches of 64: image, label", ours, "images/s")
    for processes in (0, workers):
        theirs = read_image_folder(dataset, processes)
        row(f"ImageFolder on the JPEGs, {processes} workers", theirs, "images/s")
        row("  the store is faster by", ours / theirs, "times", "target 100")


# -------------------------------------------------------------------------------------------------------- GAN training


def pix2pix_rate(steps: int) -> float:
    """Images per second of a pix2pix step as published: batch size 1, float32, Adam, cross-entropy and 100 x L1."""
    generator, discriminator = UNet(256, 1), PatchGAN(1)
    optimizer_g, optimizer_d = (
        torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.999)) for n in (generator, discriminator)
    )
    sketch, real = torch.rand(1, 1, 256, 256).round(), torch.rand(1, 3, 256, 256) * 2 - 1
    label = torch.zeros(1, dtype=torch.int64)

    def gan_loss(image: torch.Tensor, target: float) -> torch.Tensor:
        logits = discriminator(image, sketch, label)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    ends = []
    for _ in range(steps):
        fake = generator(sketch, label)
        optimizer_d.zero_grad()
        ((gan_loss(fake.detach(), 0.0) + gan_loss(real, 1.0)) / 2).backward()
        optimizer_d.step()
        discriminator.requires_grad_(False)
        optimizer_g.zero_grad()
        (gan_loss(fake, 1.0) + 100 * (fake - real).abs().mean()).backward()
        optimizer_g.step()
        discriminator.requires_grad_(True)
        ends.append(time.perf_counter())
    return (steps - 3) / (ends[-1] - ends[2])


def cgan_rate(steps: int, batch_size: int = 4) -> float:
    """Images per second of our CGAN in the training loop, with its precision, memory layout and EMA."""
    config = GANConfig(256, tuple(CLASSES), base_channels=32)
    batch = {
        "images": torch.rand(batch_size, 3, 256, 256) * 2 - 1,
        "sketches": torch.rand(batch_size, 1, 256, 256).round(),
        "labels": torch.arange(batch_size) % len(CLASSES),
        "artifacts": torch.zeros(batch_size, len(ARTIFACTS)),
    }
    return loop_rate(GAN(config), lambda *_: dict(batch), steps, batch_size)


def loop_rate(task: trainer.TrainTask, get_batch: trainer.GetBatch, steps: int, batch_size: int) -> float:
    """Images per second of a task in the training loop, after three steps to warm up."""
    starts, training_step = [], task.training_step
    task.training_step = lambda *args: starts.append(time.perf_counter()) or training_step(*args)
    with tempfile.TemporaryDirectory() as out:
        trainer.train(task, get_batch, out, trainer.TrainConfig(steps, batch_size, save_every=steps))
    return batch_size * (steps - 4) / (starts[-1] - starts[3])


def step_rate(name: str) -> None:
    """Print images per second of "pix2pix", "ours", or ours in "float32"."""
    torch.manual_seed(0)
    if name == "float32":
        trainer.precision = lambda: "no"
    print(pix2pix_rate(13) if name == "pix2pix" else cgan_rate(20))


def bench_steps() -> None:
    """A training step of the CGAN, against pix2pix."""
    rates = {name: [] for name in ("pix2pix", "ours", "float32")}
    for name in [*rates] * 2:  # alternating, so that other load on the machine affects all
        rates[name] += run_self("step_rate", name)
    pix2pix, ours, float32 = (max(r) for r in rates.values())
    print(f"{'training step at 256 px: pix2pix, batch 1, float32':<58} {pix2pix:>10.2f} images/s")
    print(f"{f'  ours, batch 4, precision {trainer.precision()!r}':<58} {ours:>10.2f} images/s")
    print(f"{'  ours is faster by':<58} {ours / pix2pix:>10.1f} times          target 6")
    print(f"{'  ours against itself in float32':<58} {ours / float32:>10.2f} times")


def count_operations(size: int = 128, batch_size: int = 64) -> int:
    """Tensor operations dispatched in a step of the projected CGAN with its EMA, without views and R1: what a GPU has
    to start. Operations that another one calls are not counted."""
    task = GAN(GANConfig(size, tuple(CLASSES), projected=True))
    ema = copy.deepcopy(task.networks["generator"])
    batch = {
        "images": torch.rand(batch_size, 3, size, size) * 2 - 1,
        "sketches": torch.rand(batch_size, 1, size, size).round(),
        "labels": torch.arange(batch_size) % len(CLASSES),
        "artifacts": torch.zeros(batch_size, len(ARTIFACTS)),
    }
    task.training_step(dict(batch), 1, lambda loss: loss.backward())  # creates the state of the optimizers
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        task.training_step(dict(batch), 1, lambda loss: loss.backward())
        trainer.update_ema(ema, task.networks["generator"], 0.99)
    operations = [e for e in profile.events() if e.name.startswith("aten::") and not VIEWS.fullmatch(e.name)]
    return sum(not (e.cpu_parent and e.cpu_parent.name.startswith("aten::")) for e in operations)


def bench_operations() -> None:
    """Operations of a training step, which limit a GPU at small batches."""
    print(f"{'operations in a step, 128 px, batch 64':<58} {count_operations():>10}          target 1,500")


# ------------------------------------------------------------------------------------------------------------- metrics


def bench_freed_memory() -> None:
    """Seconds of processor time of training steps, with and without `keep_freed_memory`, in processes of their own."""
    code = (
        "import resource, sys, torch; torch.set_num_threads(1)\n"
        "from helpers.models.classifier import ClassifierConfig, ClassifierTask\n"
        "from helpers.models.device import keep_freed_memory\n"
        "keep_freed_memory() if sys.argv[1] == 'kept' else None\n"
        "task = ClassifierTask(ClassifierConfig(128, ('a', 'b'), 'mobilenet_v2', pretrained=False), 8)\n"
        "task.networks['classifier'].to(memory_format=torch.channels_last)\n"
        "batch = {'images': torch.rand(32, 3, 128, 128), 'labels': torch.zeros(32, dtype=torch.long)}\n"
        "batch['images'] = batch['images'].to(memory_format=torch.channels_last)\n"
        "for step in range(8):\n"
        "    if step == 2: start = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    task.training_step(batch, step, torch.Tensor.backward)\n"
        "end = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, end.ru_maxrss / 2**20)\n"
    )
    results = {}
    for name in ("default", "kept") * 3:
        out = subprocess.run([sys.executable, "-c", code, name], cwd=ROOT, capture_output=True, text=True, check=True)
        results.setdefault(name, []).append([float(word) for word in out.stdout.split()])
    (default, default_peak), (kept, kept_peak) = (np.median(results[name], axis=0) for name in ("default", "kept"))
    print(f"keep_freed_memory: {default / kept:.2f} times as fast, peak memory {kept_peak / default_peak:.2f} times")


def bench_inception() -> None:
    """Features of Inception: torch-fidelity's (float32, batch size 64), against ours with equal weights."""
    images = np.random.default_rng(0).integers(0, 256, (64, 128, 128, 3), dtype=np.uint8)
    theirs, size = random_inception(), extractors.BATCH_SIZE
    network = optimize_for_inference(extractors.Inception(random_inception()), 299)  # equal by seed
    ours = FeatureExtractor("inception", network, 1008)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    functions = {
        "torch-fidelity": lambda: theirs(batch),
        "ours": lambda: [ours(images[k : k + size]) for k in range(0, len(images), size)],
    }
    rates = {name: [] for name in functions}
    for name in [*functions] * 3:  # alternating, so that other load on the machine affects both
        start = time.perf_counter()
        with torch.no_grad():
            functions[name]()
        rates[name].append(len(images) / (time.perf_counter() - start))
    default, optimized = (max(r) for r in rates.values())
    print(f"{'Inception, 128 px, torch-fidelity':<58} {default:>10.2f} images/s")
    print(f"{'  ours':<58} {optimized:>10.2f} images/s")
    print(f"{'  ours is faster by':<58} {optimized / default:>10.1f} times          target 4")


def bench_second_call() -> None:
    """`quality` with an empty and with a filled cache."""
    shape = (1000, 128, 128, 3)
    images = [np.random.default_rng(k).integers(0, 256, shape, dtype=np.uint8) for k in (0, 1)]
    sets = [ImageSet.from_array(array) for array in images]
    torch.manual_seed(0)
    backbone = extractors.Resized(Backbone("mobilenet_v2", pretrained=False), 224)
    extractor = FeatureExtractor("random", optimize_for_inference(backbone, 224))
    with tempfile.TemporaryDirectory() as cache:
        for call, target in (("first", ""), ("second", "target 5")):
            start = time.perf_counter()
            quality(*sets, [extractor], cache=Path(cache))
            seconds = time.perf_counter() - start
            print(f"{f'quality of 1,000 against 1,000, {call} call':<58} {seconds:>10.1f} s              {target}")


def compare_many(count: int = 50_000, dim: int = 2048) -> None:
    """All metrics of two sets of random features; prints this process's peak memory in GiB."""
    sets = []
    for seed in (0, 1):
        values = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
        sets.append(Features(str(seed), values, np.empty((count, 0)), [], np.arange(count), np.arange(count)))
    compute_metrics(*sets)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def bench_many() -> None:
    """Memory and time of the metrics on many images."""
    start = time.perf_counter()
    (peak,), seconds = run_self("compare_many"), time.perf_counter() - start
    print(f"{'all metrics of 50,000 against 50,000, 2,048 features':<58} {peak:>10.2f} GiB            target 3")
    print(f"{'':<58} {seconds:>10.0f} s")


# -------------------------------------------------------------------------------------------------------- segmentation


def segmentation_rates(name: str, steps: int = 12, size: int = 192, batch_size: int = 8) -> None:
    """Print images per second of training and of prediction. "baseline": the library's network in float32, no
    augmentation; "library": the same network in our loop, with augmentation and EMA; "ours": with our default decoder,
    which has fewer channels."""
    torch.manual_seed(0)
    images = torch.rand(batch_size, 3, size, size) * 2 - 1
    batch = {"images": images, "masks": torch.rand(batch_size, 1, size, size).round()}
    channels = {} if name == "ours" else {"decoder_channels": 256}
    task = SegmenterTask(SegmenterConfig(size, pretrained=False, **channels), steps)
    network = task.networks["segmenter"]
    if name == "baseline":
        training = baseline_segmentation_rate(network, batch, steps)
    else:
        training = loop_rate(task, lambda *_: dict(batch), steps, batch_size)
        network.to(memory_format=torch.channels_last)
    network.eval()
    network.tta = False
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(5):
            network(images).sigmoid() if name == "baseline" else probabilities(network, images)
    print(training, 5 * batch_size / (time.perf_counter() - start))


def baseline_segmentation_rate(network: torch.nn.Module, batch: dict[str, torch.Tensor], steps: int) -> float:
    """Images per second of a plain PyTorch loop."""
    optimizer, starts = torch.optim.AdamW(network.parameters(), fused=False), []
    for _ in range(steps):
        starts.append(time.perf_counter())
        logits = network(batch["images"])
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(logits, batch["masks"]) + jaccard_loss(logits, batch["masks"])
        loss.backward()
        optimizer.step()
    return len(batch["images"]) * (steps - 4) / (starts[-1] - starts[3])


def bench_segmentation() -> None:
    """Training and prediction of the segmenter, against the library's network."""
    rates = {name: [] for name in ("baseline", "library", "ours")}
    for name in [*rates] * 2:
        rates[name].append(run_self("segmentation_rates", name))
    best = {name: np.max(values, axis=0) for name, values in rates.items()}
    for task, k in (("training", 0), ("prediction", 1)):
        text = f"U-Net (mobilenet_v2) 192 px, {task}, library default"
        print(f"{text:<58} {best['baseline'][k]:>10.2f} images/s")
        for name, text in (("library", "  the same network in our loop"), ("ours", "  our default, fewer channels")):
            times = best[name][k] / best["baseline"][k]
            print(f"{text:<58} {best[name][k]:>10.2f} images/s, {times:.1f} times" + "  target 3" * (k == 0))


# ------------------------------------------------------------------------------------------------------ classification


def classification_rate(name: str, steps: int = 14, batch_size: int = 32) -> None:
    """Print images per second of training ResNet18 at 128 px. "baseline": torchvision's in float32, NCHW, decoding
    every file in every epoch; "ours": from the store, with augmentation and EMA."""
    cfg = get_config()
    dataset = open_dataset(cfg)
    torch.manual_seed(0)
    if name == "baseline":
        print(baseline_classification_rate(dataset, steps, batch_size))
        return
    store = prepare(dataset, cfg.stores, StoreConfig(128), progress=False)
    source = ImageSource(store.images, store.rows("train", needs=["label"]), labels=store.labels)
    config = ClassifierConfig(128, tuple(store.classes), "resnet18", pretrained=False)
    get_batch = source_batches([source], batch_size, 0, ("images", "labels"), balanced=True)
    print(loop_rate(ClassifierTask(config, steps), get_batch, steps, batch_size))


def baseline_classification_rate(dataset: DatasetTable, steps: int, batch_size: int) -> float:
    """Images per second of a plain PyTorch loop on decoded files."""
    table = dataset.table[dataset.table["label"].notna()].head(steps * batch_size)
    transform = Compose([Resize(128), CenterCrop(128), ToTensor()])
    files = DecodedFiles(table["path"].tolist(), table["label"].tolist(), transform)
    loader, device, starts = DataLoader(files, batch_size, num_workers=2), best_device(), []
    network = torchvision.models.resnet18(num_classes=len(dataset.classes)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=False)
    for images, labels in loader:
        starts.append(time.perf_counter())
        loss = F.cross_entropy(network(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return batch_size * (len(starts) - 4) / (starts[-1] - starts[3])


class DecodedFiles(torch.utils.data.Dataset):
    """Images and labels, decoded from their files on every access."""

    def __init__(self, paths: list[str], labels: list[int], transform: Callable):
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), int(self.labels[index])


def bench_classification() -> None:
    """Training of a classifier, against torchvision's usual loop."""
    rates = {"baseline": [], "ours": []}
    for name in [*rates] * 2:
        rates[name] += run_self("classification_rate", name)
    baseline, ours = (max(r) for r in rates.values())
    print(f"{'training ResNet18 at 128 px: NCHW, float32, decoding files':<58} {baseline:>10.1f} images/s")
    print(f"{f'  ours, from the store, precision {trainer.precision()!r}':<58} {ours:>10.1f} images/s")
    print(f"{'  ours is faster by':<58} {ours / baseline:>10.1f} times          target 4")


# ---------------------------------------------------------------------------------------------------------------- page


def bench_page() -> None:
    """From the request to the images: upload of the canvas, answer, download of the images, over plain HTTP as in a
    browser."""
    import httpx

    from helpers.views.demo import build_page, launch_page
    from helpers.views.predictor import Predictor, example_sketches, find_weights

    predictor = Predictor(find_weights(get_config()))
    page = build_page(predictor)
    sketch, name, png = example_sketches(predictor.size)[0], predictor.classes["cgan"][0], BytesIO()
    Image.fromarray(255 - sketch).save(png, "PNG")

    def request(client: httpx.Client, count: int, seed: int) -> None:
        (path,) = client.post("upload", files={"files": ("canvas.png", png.getvalue())}).json()
        canvas = {"background": None, "layers": [], "composite": {"path": path, "meta": {"_type": "gradio.FileData"}}}
        event = client.post("call/generate", json={"data": [canvas, name, [], 1.0, 1.0, count, seed]}).json()[
            "event_id"
        ]
        answer = client.get(f"call/generate/{event}").text
        gallery, *_ = json.loads(answer.split("data: ", 1)[1])
        images = [client.get(f"file={entry['image']['path']}") for entry in gallery]
        assert len(images) == count and all(image.status_code == 200 for image in images)

    with httpx.Client(base_url=f"{launch_page(page, quiet=True)}gradio_api/", timeout=60) as client:
        for count in (1, 4):
            network = median_time(lambda seed, n=count: predictor.sample(sketch, name, n, 1.0, seed))
            total = median_time(lambda seed, n=count: request(client, n, seed))
            text = f"generating {count} at {predictor.size} px: network alone / on the page"
            print(f"{text:<58} {network:>10.2f} s / {total:.2f} s   target 0.3")
    page.close(verbose=False)


def median_time(function: Callable, rounds: int = 12) -> float:
    """Median seconds of a call, after two to warm up."""
    times = []
    for k in range(rounds):
        start = time.perf_counter()
        function(k)
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def main() -> None:
    if len(sys.argv) > 1:
        return globals()[sys.argv[1]](*sys.argv[2:])
    cfg = get_config()
    dataset = open_dataset(cfg)
    print(f"{dataset.name}, {len(dataset.table):,} images, {cfg.workers} cores")
    bench_phantoms()
    store = bench_preparation(dataset, cfg.workers)
    try:
        bench_sketches(store)
        bench_reading(store, dataset, cfg.workers)
    finally:
        shutil.rmtree(store.folder.parent)
    bench_steps()
    bench_operations()
    bench_inception()
    bench_second_call()
    bench_many()
    bench_segmentation()
    bench_classification()
    bench_page()


if __name__ == "__main__":
    main()
