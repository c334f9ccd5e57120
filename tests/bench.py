"""`make bench`: the speeds that the README states, measured here and now.

On the embedded sample by default; `LESION_DATASET=ham10000 LESION_DATA_ROOT=... make bench` measures on real data.
`python tests/bench.py bench_steps` measures one part. Speeds differ from machine to machine and from minute to minute:
what counts are the ratios within one run.
"""

import json
import os
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
from factories import random_inception
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize, ToTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.config import get_config  # noqa: E402
from helpers.data.audit import audit  # noqa: E402
from helpers.data.layouts import DatasetTable, open_dataset  # noqa: E402
from helpers.data.phantoms import CLASSES, render  # noqa: E402
from helpers.data.sample import CLASS_FREQUENCIES  # noqa: E402
from helpers.data.sketches import contour, hand_drawn, structure  # noqa: E402
from helpers.data.store import ImageSource, Store, StoreConfig, labeled_batches, prepare  # noqa: E402
from helpers.metrics.extractors import (
    BATCH_SIZE,
    FeatureExtractor,
    Features,
    ImageSet,
    Inception,
    Resized,
    optimize_for_inference,
)
from helpers.metrics.quality import compute_metrics, quality  # noqa: E402
from helpers.models import trainer  # noqa: E402
from helpers.models.cgan import CGAN, CGANConfig  # noqa: E402
from helpers.models.classifier import Backbone, ClassifierConfig, ClassifierTask  # noqa: E402
from helpers.models.pix2pix import PatchGAN, UNet  # noqa: E402
from helpers.models.segmenter import SegmenterConfig, SegmenterTask, jaccard_loss, probabilities  # noqa: E402


def row(what: str, value: float, unit: str, target: str = "") -> None:
    print(f"{what:<58} {value:>10,.0f} {unit:<14} {target}", flush=True)


def rate(function: Callable, items: list, rounds: int = 3) -> float:
    """Items a second on one core: processor time, the median of some rounds."""
    rates = []
    for _ in range(rounds):
        start = time.process_time()
        for item in items:
            function(item)
        rates.append(len(items) / (time.process_time() - start))
    return float(np.median(rates))


def bench_phantoms() -> None:
    shares = np.array([CLASS_FREQUENCIES[name] for name in CLASSES])
    labels = np.random.default_rng(0).choice(7, 200, p=shares / shares.sum())
    render(0, 0)  # textures are made once
    speed = rate(lambda k: render(int(labels[k]), 1000 + k), list(range(200)))
    row("phantoms drawn, 128 px, one core", speed, "images/s", "target 100")


def bench_sketches(store: Store) -> None:
    batch = store.batch(store.rows(needs=["mask", "sketch"])[:200])
    pairs, rng = list(zip(batch["images"], batch["masks"], strict=True)), np.random.default_rng(0)
    outlines = [contour(mask) for mask in batch["masks"]]
    row("sketches, contour, 128 px, one core", rate(lambda p: contour(p[1]), pairs), "sketches/s", "target 100")
    row("sketches, structure with hair removal", rate(lambda p: structure(*p), pairs), "sketches/s", "target 100")
    row("sketches, hand", rate(lambda line: hand_drawn(line, rng), outlines), "sketches/s", "target 100")


def bench_preparation(dataset: DatasetTable, workers: int) -> Store:
    start = time.perf_counter()
    report = audit(dataset, workers, progress=False)
    audited = time.perf_counter() - start
    row(f"audit of {len(dataset.table):,} pictures, {workers} cores", audited, "s", "target 60 (10,015)")
    stores = tempfile.mkdtemp(prefix="bench-", dir=ROOT / "data")
    start = time.perf_counter()
    store = prepare(dataset, stores, StoreConfig(128), report, workers, progress=False)
    written = time.perf_counter() - start
    row(f"prepare: the audit, and {len(store):,} pictures stored", audited + written, "s", "target 90 (10,015)")
    return store


def read_store(store: Store, arrays: tuple[str, ...]) -> float:
    """Pictures a second in shuffled batches of 64, warm cache; one process."""
    rows, rng = np.arange(len(store)), np.random.default_rng(0)
    rates = []
    for _ in range(6):
        start = time.perf_counter()
        seen = sum(len(batch["rows"]) for batch in store.batches(rows, 64, rng, arrays=arrays))
        rates.append(seen / (time.perf_counter() - start))
    return float(np.median(rates[1:]))


def read_image_folder(dataset: DatasetTable, workers: int, most: int = 3000) -> float:
    """What a course notebook does: torchvision's ImageFolder on the original files, cropped, resized, batches of 64."""
    with tempfile.TemporaryDirectory() as tree:
        for index, (name, path) in enumerate(zip(dataset.class_names(), dataset.table["path"], strict=True)):
            if index < most:
                (Path(tree) / str(name)).mkdir(exist_ok=True)
                os.symlink(Path(path).resolve(), Path(tree) / str(name) / Path(path).name)
        folder = ImageFolder(tree, Compose([Resize(128), CenterCrop(128), PILToTensor()]))
        loader = DataLoader(folder, batch_size=64, shuffle=True, num_workers=workers)
        rates = []
        for _ in range(2):
            start = time.perf_counter()
            seen = sum(len(images) for images, _ in loader)
            rates.append(seen / (time.perf_counter() - start))
        return rates[-1]


def bench_reading(store: Store, dataset: DatasetTable, workers: int) -> None:
    everything = read_store(store, ("images", "masks", "sketches", "labels"))
    row("store, batches of 64: image, mask, sketch, label", everything, "images/s", "target 20,000")
    ours = read_store(store, ("images", "labels"))
    row("store, batches of 64: image, label", ours, "images/s")
    for processes in (0, workers):
        theirs = read_image_folder(dataset, processes)
        row(f"ImageFolder on the JPEGs, {processes} workers", theirs, "images/s")
        row("  the store is faster by", ours / theirs, "times", "target 100")


# ------------------------------------------------------------------------------------------------- training steps


def pix2pix_rate(steps: int) -> float:
    """Images a second of the canonical step: batch 1, float32, Adam, cross-entropy and 100 x L1."""
    generator, discriminator = UNet(256, 1), PatchGAN(1)
    painter, judge = (torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.999)) for n in (generator, discriminator))
    sketch, real = torch.rand(1, 1, 256, 256).round(), torch.rand(1, 3, 256, 256) * 2 - 1
    none = torch.zeros(1, dtype=torch.int64)
    entropy = nn.functional.binary_cross_entropy_with_logits

    def opinion(image: torch.Tensor, wanted: float) -> torch.Tensor:
        logits = discriminator(image, sketch, none)
        return entropy(logits, torch.full_like(logits, wanted))

    ends = []
    for _ in range(steps):
        drawn = generator(sketch, none)
        judge.zero_grad()
        ((opinion(drawn.detach(), 0.0) + opinion(real, 1.0)) / 2).backward()
        judge.step()
        discriminator.requires_grad_(False)
        painter.zero_grad()
        (opinion(drawn, 1.0) + 100 * (drawn - real).abs().mean()).backward()
        painter.step()
        discriminator.requires_grad_(True)
        ends.append(time.perf_counter())
    return (steps - 3) / (ends[-1] - ends[2])


def our_rate(steps: int, batch: int = 4) -> float:
    """Images a second of our step, as trained: precision and memory layout of the training loop, its averages too."""
    ends = []

    class Timed(CGAN):
        def step(self, *given):
            ends.append(time.perf_counter())
            return super().training_step(*given)

    settings = CGANConfig(256, tuple(CLASSES), base_channels=get_config("cgan").width)
    given = {
        "images": torch.rand(batch, 3, 256, 256) * 2 - 1,
        "sketches": torch.rand(batch, 1, 256, 256).round(),
        "labels": torch.arange(batch) % len(CLASSES),
    }
    with tempfile.TemporaryDirectory() as out:
        trainer.train(Timed(settings), lambda *_: dict(given), out, trainer.TrainConfig(steps, batch))
    return batch * (steps - 4) / (ends[-1] - ends[3])


# ---------------------------------------------------------------------------------------------------------- judging


def bench_judging() -> None:
    """torch-fidelity's Inception as it comes (float32, 64 images a batch) against the same weights in ours."""
    images = np.random.default_rng(0).integers(0, 256, (64, 128, 128, 3), dtype=np.uint8)
    theirs = random_inception()
    ours = FeatureExtractor(
        "inception", optimize_for_inference(Inception(random_inception()), 299), 1008
    )  # the same weights, by the same seed
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    rates = {"torch-fidelity": [], "ours": []}
    for _ in range(3):  # in turn, so that a busy minute does not hit one alone
        for what, judge in (
            ("torch-fidelity", lambda: theirs(batch)),
            ("ours", lambda: [ours(images[k : k + BATCH_SIZE]) for k in range(0, len(images), BATCH_SIZE)]),
        ):
            start = time.perf_counter()
            with torch.no_grad():
                judge()
            rates[what].append(len(images) / (time.perf_counter() - start))
    default, quick = (max(r) for r in rates.values())
    print(f"{'Inception, 128 px, torch-fidelity':<58} {default:>10.2f} images/s")
    print(f"{f'  ours, precision {trainer.precision()!r}':<58} {quick:>10.2f} images/s")
    print(f"{'  ours is faster by':<58} {quick / default:>10.1f} times          target 4")


def bench_second_call() -> None:
    sets = [
        ImageSet.from_array(np.random.default_rng(k).integers(0, 256, (1000, 128, 128, 3), dtype=np.uint8))
        for k in (0, 1)
    ]
    torch.manual_seed(0)
    judges = [
        FeatureExtractor(
            "random", optimize_for_inference(Resized(Backbone("mobilenet_v2", pretrained=False), 224), 224)
        )
    ]
    with tempfile.TemporaryDirectory() as cache:
        for what, target in (("first", ""), ("second", "target 5")):
            start = time.perf_counter()
            quality(*sets, judges, cache=Path(cache))
            seconds = time.perf_counter() - start
            print(f"{f'quality of 1,000 against 1,000, {what} call':<58} {seconds:>10.1f} s              {target}")


def compare_many(count: int = 50_000, width: int = 2048) -> None:
    """All measures of two sets of random features; prints the peak of this process' memory."""
    sets = []
    for seed in (0, 1):
        values = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
        sets.append(Features(str(seed), values, np.empty((count, 0)), [], np.arange(count), np.arange(count)))
    compute_metrics(*sets)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def bench_many() -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "compare_many"], capture_output=True, text=True, check=True)
    peak, seconds = float(done.stdout.split()[-1]), time.perf_counter() - start
    print(f"{'all measures of 50,000 against 50,000, 2,048 features':<58} {peak:>10.2f} GiB            target 3")
    print(f"{'':<58} {seconds:>10.0f} s")


def step_rate(what: str) -> None:
    """One measurement in a process of its own: precision cannot change within one."""
    torch.manual_seed(0)
    if what == "float32":
        trainer.precision = lambda: "no"
    print(pix2pix_rate(13) if what == "pix2pix" else our_rate(20))


def bench_steps() -> None:
    rates = {what: [] for what in ("pix2pix", "ours", "float32")}
    for what in [*rates] * 2:  # in turn and twice, so that a busy minute does not hit one alone
        done = subprocess.run([sys.executable, __file__, "step_rate", what], capture_output=True, text=True, check=True)
        rates[what].append(float(done.stdout.split()[-1]))
    pix2pix, ours, float32 = (max(r) for r in rates.values())
    print(f"{'training step at 256 px: pix2pix, batch 1, float32':<58} {pix2pix:>10.2f} images/s")
    print(f"{f'  ours, batch 4, precision {trainer.precision()!r}':<58} {ours:>10.2f} images/s")
    print(f"{'  ours is faster by':<58} {ours / pix2pix:>10.1f} times          target 6")
    print(f"{'  ours against itself in float32':<58} {ours / float32:>10.2f} times")


# ------------------------------------------------------------------------------------------------------- segmenting


def segmenting_rates(what: str, steps: int = 12, size: int = 192, batch: int = 8) -> None:
    """Prints images a second of training and of predicting: "plain", the library's network as it comes, float32, no
    augmentation; "library", the same network in our loop with augmentation and averages; "narrow", by our default."""
    torch.manual_seed(0)
    given = {"images": torch.rand(batch, 3, size, size) * 2 - 1, "masks": torch.rand(batch, 1, size, size).round()}
    settings = SegmenterConfig(size, pretrained=False, **({} if what == "narrow" else {"width": 256}))
    method, ends = SegmenterTask(settings, steps, None, 1), []
    network = method.networks["segmenter"]
    if what == "plain":
        optimiser = torch.optim.AdamW(network.parameters(), fused=False)
        for _ in range(steps):
            ends.append(time.perf_counter())
            logits = network(given["images"])
            optimiser.zero_grad()
            (
                F.binary_cross_entropy_with_logits(logits, given["masks"]) + jaccard_loss(logits, given["masks"])
            ).backward()
            optimiser.step()
    else:
        step = method.training_step
        method.training_step = lambda *all_given: ends.append(time.perf_counter()) or step(*all_given)
        with tempfile.TemporaryDirectory() as out:
            trainer.train(method, lambda *_: dict(given), out, trainer.TrainConfig(steps, batch))
        network.to(memory_format=torch.channels_last)
    rate = batch * (steps - 4) / (ends[-1] - ends[3])
    network.eval()
    network.flips = False
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(5):
            network(given["images"]).sigmoid() if what == "plain" else probabilities(network, given["images"])
    print(rate, 5 * batch / (time.perf_counter() - start))


def bench_segmenting() -> None:
    rates = {what: [] for what in ("plain", "library", "narrow")}
    for what in [*rates] * 2:
        done = subprocess.run(
            [sys.executable, __file__, "segmenting_rates", what], capture_output=True, text=True, check=True
        )
        rates[what].append([float(word) for word in done.stdout.split()[-2:]])
    best = {what: np.max(found, axis=0) for what, found in rates.items()}
    for name, k in (("training", 0), ("predicting", 1)):
        print(f"{f'U-Net (mobilenet_v2) 192 px, {name}, as the library has it':<58} {best['plain'][k]:>10.2f} images/s")
        for what, text in (("library", "  the same network in ours"), ("narrow", "  our narrower default")):
            times = best[what][k] / best["plain"][k]
            print(f"{text:<58} {best[what][k]:>10.2f} images/s, {times:.1f} times" + "  target 3" * (k == 0))


# ------------------------------------------------------------------------------------------------------- classifying


def classifying_rate(what: str, steps: int = 14, batch: int = 32) -> None:
    """Prints images a second of training ResNet18 at 128 px: "usual", torchvision's own in float32, NCHW, fed by
    `ImageFolder`'s way of decoding every picture again; "ours", from the store, augmented and averaged."""
    cfg = get_config("data")
    dataset, ends = open_dataset(cfg), []
    torch.manual_seed(0)
    if what == "usual":
        table = dataset.table[dataset.table["label"].notna()].head(steps * batch)
        change = Compose([Resize(128), CenterCrop(128), ToTensor()])
        loader = DataLoader(Decoded(table["path"].tolist(), table["label"].tolist(), change), batch, num_workers=2)
        device = trainer.best_device()
        network = torchvision.models.resnet18(num_classes=len(dataset.classes)).to(device)
        optimiser = torch.optim.AdamW(network.parameters(), fused=False)
        for images, labels in loader:
            ends.append(time.perf_counter())
            loss = F.cross_entropy(network(images.to(device)), labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    else:
        store = prepare(dataset, cfg.stores, StoreConfig(128), progress=False)
        part = ImageSource(store.images, store.rows("train", needs=["label"]), labels=store.labels)
        settings = ClassifierConfig(128, tuple(store.classes), "resnet18", pretrained=False)
        method = ClassifierTask(settings, steps)
        step = method.training_step
        method.training_step = lambda *given: ends.append(time.perf_counter()) or step(*given)
        with tempfile.TemporaryDirectory() as out:
            trainer.train(method, labeled_batches([part], batch, 0), out, trainer.TrainConfig(steps, batch))
    print(batch * (len(ends) - 4) / (ends[-1] - ends[3]))


class Decoded(torch.utils.data.Dataset):
    """Files, decoded whenever they are asked for."""

    def __init__(self, paths: list[str], labels: list[int], change: Callable):
        self.paths, self.labels, self.change = paths, labels, change

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.change(Image.open(self.paths[index]).convert("RGB")), int(self.labels[index])


def bench_classifying() -> None:
    rates = {"usual": [], "ours": []}
    for what in [*rates] * 2:
        command = [sys.executable, __file__, "classifying_rate", what]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rates[what].append(float(done.stdout.split()[-1]))
    usual, ours = (max(found) for found in rates.values())
    print(f"{'training ResNet18 at 128 px: NCHW, float32, decoding files':<58} {usual:>10.1f} images/s")
    print(f"{f'  ours, from the store, precision {trainer.precision()!r}':<58} {ours:>10.1f} images/s")
    print(f"{'  ours is faster by':<58} {ours / usual:>10.1f} times          target 4")


# -------------------------------------------------------------------------------------------------------------- page


def bench_page() -> None:
    """From a visitor's question to the pictures in the browser: the paper goes up, the answer comes, pictures are
    fetched. By plain HTTP, as browsers do it."""
    import httpx

    from helpers.views.demo import build_page, launch_page
    from helpers.views.predictor import Predictor, example_sketches, find_weights

    studio = Predictor(find_weights(get_config("cgan")))
    page = build_page(studio)
    sketch, name, paper = example_sketches(studio.size)[0], studio.classes["cgan"][0], BytesIO()
    Image.fromarray(255 - sketch).save(paper, "PNG")

    def asked(visitor: httpx.Client, count: int, seed: int) -> None:
        (path,) = visitor.post("upload", files={"files": ("paper.png", paper.getvalue())}).json()
        sheet = {"background": None, "layers": [], "composite": {"path": path, "meta": {"_type": "gradio.FileData"}}}
        event = visitor.post("call/draw", json={"data": [sheet, name, 1.0, count, seed]}).json()["event_id"]
        answer = visitor.get(f"call/draw/{event}").text
        gallery, _ = json.loads(answer.split("data: ", 1)[1])
        pictures = [visitor.get(f"file={entry['image']['path']}") for entry in gallery]
        assert len(pictures) == count and all(picture.status_code == 200 for picture in pictures)

    with httpx.Client(base_url=f"{launch_page(page, quiet=True)}gradio_api/", timeout=60) as visitor:
        for count in (1, 4):
            alone = median_time(lambda seed, n=count: studio.sample(sketch, name, n, 1.0, seed))
            whole = median_time(lambda seed, n=count: asked(visitor, n, seed))
            told = f"drawing {count} at {studio.size} px: network alone / on the page"
            print(f"{told:<58} {alone:>10.2f} s / {whole:.2f} s   target 0.3")
    page.close(verbose=False)


def median_time(function: Callable, rounds: int = 12) -> float:
    """Seconds of a call, after two to warm up."""
    times = []
    for k in range(rounds):
        start = time.perf_counter()
        function(k)
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def main() -> None:
    if len(sys.argv) > 1:
        return globals()[sys.argv[1]](*sys.argv[2:])
    cfg = get_config("data")
    dataset = open_dataset(cfg)
    print(f"{dataset.name}, {len(dataset.table):,} pictures, {cfg.workers} cores")
    bench_phantoms()
    store = bench_preparation(dataset, cfg.workers)
    try:
        bench_sketches(store)
        bench_reading(store, dataset, cfg.workers)
    finally:
        shutil.rmtree(store.folder.parent)
    bench_steps()
    bench_judging()
    bench_second_call()
    bench_many()
    bench_segmenting()
    bench_classifying()
    bench_page()


if __name__ == "__main__":
    main()
