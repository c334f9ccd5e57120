"""How good are drawn images? `python tests/measure.py CHECKPOINT --split val`, on the data set that LESION_DATASET
names, judged by whoever is at hand (LESION_WEIGHTS_DIR for pretrained weights; the classifier of `train classifier`).

A CGAN draws sketches and labels of the split's pictures, a DCGAN their labels. Two protocols: `natural`, 1,000 pictures
in their natural mix; `balanced`, 55 of every class, or all there are. The drawings are compared with the pictures; the
floor compares as many pictures of the training split with them, or of the split that is not measured where our
classifier judges, which was taught by the training split. Then: are noises obeyed, labels (where `train classifier`
left a checkpoint of this size) and a CGAN's sketches (where `train segmenter` did), and is anything copied from the
training split? A DCGAN too is measured on pictures that have a sketch.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.layouts import open_dataset
from helpers.data.store import Store, StoreConfig, prepare
from helpers.metrics.extractors import FeatureExtractor, ImageSet, available_extractors, extract_features
from helpers.metrics.fidelity import label_accuracy, mean_pairwise_distance, sketch_dice
from helpers.metrics.memorization import memorization, thumbnails
from helpers.metrics.quality import quality
from helpers.metrics.stats import bootstrap_ci
from helpers.models.cgan import CGANConfig, load_cgan, sample
from helpers.models.classifier import load_classifier, predict_proba
from helpers.models.dcgan import DCGANConfig, load_dcgan, sample_dcgan
from helpers.models.segmenter import load_segmenter, segment


def choose(store: Store, split: str, protocol: str, like: np.ndarray | None = None) -> np.ndarray:
    """Rows of a split by the protocol; with `like` as many of each class as there."""
    rows = np.random.default_rng(0).permutation(store.rows(split, needs=["sketch", "label"]))
    if protocol == "natural":
        return rows[: 1000 if like is None else len(like)]
    counts = (
        [55] * len(store.classes) if like is None else np.bincount(store.labels[like], minlength=len(store.classes))
    )
    return np.concatenate([rows[store.labels[rows] == k][:n] for k, n in enumerate(counts)])


def tell(what: str, values: np.ndarray) -> None:
    low, high = bootstrap_ci(values)
    print(f"{what}: {np.mean(values):.3f} ({low:.3f} to {high:.3f}), N {len(values)}", flush=True)


Painter = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # sketches, labels, seed -> images


def painter(checkpoint: Path) -> tuple[Painter, CGANConfig | DCGANConfig]:
    """Of a CGAN, or of a DCGAN, which looks at no sketch."""
    try:
        generator, settings = load_cgan(checkpoint)
        return partial(sample, generator), settings
    except DataError:
        generator, settings = load_dcgan(checkpoint)
        return lambda sketches, labels, seed: sample_dcgan(generator, labels, seed), settings


def noises(paint: Painter, store: Store, batch: dict, judge: FeatureExtractor, sketches: int = 40) -> list[float]:
    """How far apart the drawings of one sketch (or label) under eight noises are, as a share of the distance of real
    images of its class; for each of some sketches."""

    def apart(images: np.ndarray) -> float:
        return mean_pairwise_distance(extract_features(ImageSet.from_array(images), judge, store.config.size).values)

    labels = batch["labels"]
    real = {label: apart(batch["images"][labels == label][:60]) for label in set(labels[:sketches])}
    drawn = (paint(batch["sketches"][[k] * 8], labels[[k] * 8], k) for k in range(sketches))
    return [apart(images) / real[label] for images, label in zip(drawn, labels, strict=False)]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("checkpoint", type=Path)
    args.add_argument("--split", choices=("val", "test"), default="val")
    args = args.parse_args()
    cfg, (paint, trained) = get_config("cgan"), painter(args.checkpoint)
    classifier = cfg.outputs / "classifier" / "checkpoint.pt"
    segmenter = cfg.outputs / "segmenter" / "checkpoint.pt"
    judges, missing = available_extractors(classifier)
    settings = StoreConfig(trained.size, getattr(trained, "style", "contour"), "square", cfg.seed)
    store = prepare(open_dataset(cfg), cfg.stores, settings, workers=cfg.workers)
    print(*missing, store, sep="\n")
    for protocol in ("natural", "balanced"):
        rows = choose(store, args.split, protocol)
        batch = store.batch(rows)
        kinds = [store.classes[k] for k in batch["labels"]]
        drawn = paint(batch["sketches"], batch["labels"], 0)
        real, synthetic = (
            ImageSet.from_array(batch["images"], kinds, args.split),
            ImageSet.from_array(drawn, kinds, "drawn"),
        )
        print(f"\n{protocol} mix")
        for judge in judges:
            source = "train" if judge.name != "classifier" else {"val": "test", "test": "val"}[args.split]
            chosen = choose(store, source, protocol, rows)
            others = store.batch(chosen, ("images", "labels"))
            floor = ImageSet.from_array(others["images"], [store.classes[k] for k in others["labels"]], source)
            print(quality(real, synthetic, [judge], floor, cfg.features), flush=True)
        if classifier.is_file():
            network, taught = load_classifier(classifier)
            if taught.classes != trained.classes:
                raise SystemExit(f"the classifier knows {taught.classes}, the generator {trained.classes}")
            if taught.size != trained.size:
                print(f"the classifier looks at {taught.size} px: labels are not asked for")
            else:
                for name, images in (("real", batch["images"]), ("drawn", drawn)):
                    tell(f"label named right, {name}", label_accuracy(predict_proba(network, images), batch["labels"]))
        if segmenter.is_file() and isinstance(trained, CGANConfig):
            outlined, masks = store.has_mask[rows], batch["masks"][store.has_mask[rows]]
            for name, images in (("real", batch["images"]), ("drawn", drawn)):
                found = sketch_dice(images[outlined], masks, partial(segment, load_segmenter(segmenter)[0]))
                tell(f"Dice of sketch and lesion found, {name}", found)
        if protocol == "natural":
            for judge in judges:
                shares = noises(paint, store, batch, judge)
                tell(f"distance of eight noises, share of that of real images, {judge.name}", shares)
            train = store.batch(store.rows("train"), ("images",))["images"]
            for judge in judges:
                sets = (
                    extract_features(ImageSet.from_array(s), judge, trained.size, cfg.features)
                    for s in (drawn, train, real.items)
                )
                print(f"copies, {judge.name}: {memorization(*(s.values for s in sets))}", flush=True)
            print(f"copies, pixels: {memorization(*(thumbnails(s) for s in (drawn, train, real.items)))}", flush=True)


if __name__ == "__main__":
    main()
