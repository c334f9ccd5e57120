"""Quality of generated images: `python tests/measure.py CHECKPOINT --split val`, on the data set in LESION_DATASET.

Uses every available feature extractor: pretrained ones (LESION_WEIGHTS_DIR) and the classifier of `train classifier`.

A CGAN gets the sketches and labels of the split's images, a DCGAN their labels; both are measured on images that have a
sketch. Two protocols: `natural`, up to 1,000 images in their natural class mix; `balanced`, up to 55 per class. The
floor is as many images of the training split. For our classifier, which was trained on that split, they come from the
one of val and test that is not measured.

Then the latent diversity, the label accuracy (if `train classifier` left a checkpoint of this size; on the lesion alone
if `train classifier --lesion-only` did), the Dice of a CGAN's sketches (if `train segmenter` left one), position score,
structure correlation, the rate of each artifact flag by the released detector, and memorization of the training split.
A CGAN that is conditioned on artifacts gets the flags of the split's images.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS, open_dataset
from helpers.data.store import Store, StoreConfig, prepare
from helpers.metrics.extractors import FeatureExtractor, ImageSet, available_extractors, extract_features
from helpers.metrics.fidelity import (
    MIN_POSITION_IMAGES,
    label_accuracy,
    mean_pairwise_distance,
    position_score,
    sketch_dice,
    structure_correlation,
)
from helpers.metrics.memorization import memorization, thumbnails
from helpers.metrics.quality import quality
from helpers.metrics.stats import bootstrap_ci
from helpers.models.artifacts import load_artifacts, predict_artifacts
from helpers.models.classifier import hide_surroundings, load_classifier, predict_proba
from helpers.models.gan import GANConfig, load_gan
from helpers.models.sampling import sample_batch
from helpers.models.segmenter import load_segmenter, segment

Generate = Callable[[dict[str, np.ndarray], int], np.ndarray]  # batch of the store, seed -> images


def sample_rows(store: Store, split: str, protocol: str, like: np.ndarray | None = None) -> np.ndarray:
    """Random rows of a split by protocol "natural" or "balanced"; with the rows `like`, as many of each class as there
    ("natural": as many in total)."""
    rows = np.random.default_rng(0).permutation(store.rows(split, needs=["sketch", "label"]))
    if protocol == "natural":
        return rows[: 1000 if like is None else len(like)]
    num_classes = len(store.classes)
    counts = [55] * num_classes if like is None else np.bincount(store.labels[like], minlength=num_classes)
    return np.concatenate([rows[store.labels[rows] == k][:n] for k, n in enumerate(counts)])


def load_generator(checkpoint: Path) -> tuple[Generate, GANConfig]:
    """Sampling function and config of a CGAN, or of a DCGAN, which ignores the sketches."""
    try:
        generator, config = load_gan(checkpoint)
    except DataError:
        generator, config = load_gan(checkpoint, sketch=False)
    return partial(sample_batch, generator), config


def take(batch: dict[str, np.ndarray], index: list[int] | slice) -> dict[str, np.ndarray]:
    """The same rows of every array of the batch."""
    return {name: array[index] for name, array in batch.items()}


def latent_diversity(generate: Generate, store: Store, batch: dict, extractor: FeatureExtractor) -> list[float]:
    """Mean pairwise distance of eight images of one sketch and label that differ in z, divided by that of real images
    of the class; one value for each of the first 40 sketches whose class has two real images."""

    def diversity(images: np.ndarray) -> float:
        features = extract_features(ImageSet.from_array(images), extractor, store.config.size)
        return mean_pairwise_distance(features.values)

    labels = batch["labels"]
    sketch_rows = [k for k, label in enumerate(labels[:40]) if np.sum(labels == label) > 1]
    real = {label: diversity(batch["images"][labels == label][:60]) for label in set(labels[sketch_rows])}
    generated = (generate(take(batch, [k] * 8), k) for k in sketch_rows)
    return [diversity(images) / real[label] for images, label in zip(generated, labels[sketch_rows], strict=True)]


def print_mean(name: str, values: np.ndarray) -> None:
    low, high = bootstrap_ci(values)
    print(f"{name}: {np.mean(values):.3f} ({low:.3f} to {high:.3f}), N {len(values)}", flush=True)


def print_label_accuracy(checkpoint: Path, config: GANConfig, batch: dict, generated: np.ndarray) -> None:
    """Of real and generated images, both with gray surroundings if the classifier was trained on such images."""
    classifier, classifier_config = load_classifier(checkpoint)
    if classifier_config.classes != config.classes:
        classes = f"{classifier_config.classes} and {config.classes}"
        raise SystemExit(f"classifier and generator must have the same classes, got {classes}")
    if classifier_config.size != config.size:
        print(f"no label accuracy: the classifier takes {classifier_config.size} px, not {config.size}")
        return
    for name, images in (("real", batch["images"]), ("synthetic", generated)):
        if classifier_config.lesion_only:
            images, name = hide_surroundings(images, batch["masks"]), f"lesion only, {name}"
        print_mean(f"label accuracy, {name}", label_accuracy(predict_proba(classifier, images), batch["labels"]))


def print_structure(generate: Generate, batch: dict, generated: np.ndarray) -> None:
    """Position score of generated and real images, and structure correlation of 200 pairs under two seeds."""
    if len(generated) >= MIN_POSITION_IMAGES:
        scores = position_score(generated), position_score(batch["images"])
        print("position score: {:.2f}, real images {:.2f}".format(*scores) + f", N {len(generated)}", flush=True)
    pairs = take(batch, slice(200))
    correlation = structure_correlation(generate(pairs, 0), generate(pairs, 1))
    print(f"structure correlation of two latents: {correlation:.2f}, N {len(pairs['labels'])}", flush=True)


def print_artifacts(checkpoint: Path, batch: dict, generated: np.ndarray) -> None:
    """Fraction of generated and of real images in which the detector finds each artifact."""
    detector, _ = load_artifacts(checkpoint)
    sets = {"synthetic": generated, "real": batch["images"]}
    rates = {name: (predict_artifacts(detector, images) > 0.5).mean(axis=0) for name, images in sets.items()}
    print(pd.DataFrame(rates, index=list(ARTIFACTS)).round(3).to_string(), f"N {len(generated)}", sep="\n", flush=True)


def print_memorization(extractors: list[FeatureExtractor], sets: tuple[np.ndarray, ...], cache: Path) -> None:
    """`sets`: synthetic, training and held-out images."""
    for extractor in extractors:
        image_sets = [ImageSet.from_array(images) for images in sets]
        features = (extract_features(s, extractor, s.image_size, cache).values for s in image_sets)
        print(f"copies, {extractor.name}: {memorization(*features)}", flush=True)
    print(f"copies, pixels: {memorization(*map(thumbnails, sets))}", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("checkpoint", type=Path)
    args.add_argument("--split", choices=("val", "test"), default="val")
    args = args.parse_args()
    cfg, (generate, config) = get_config("cgan"), load_generator(args.checkpoint)
    classifier_path = cfg.outputs / "classifier" / "checkpoint.pt"
    segmenter_path = cfg.outputs / "segmenter" / "checkpoint.pt"
    extractors, missing = available_extractors(classifier_path)
    store_config = StoreConfig(config.size, getattr(config, "style", "contour"), "center", cfg.seed)
    store = prepare(open_dataset(cfg), cfg.stores, store_config, workers=cfg.workers)
    print(*missing, store, sep="\n")
    for protocol in ("natural", "balanced"):
        rows = sample_rows(store, args.split, protocol)
        batch = store.batch(rows)
        class_names = [store.classes[k] for k in batch["labels"]]
        generated = generate(batch, 0)
        real = ImageSet.from_array(batch["images"], class_names, args.split)
        synthetic = ImageSet.from_array(generated, class_names, "synthetic")
        print(f"\n{protocol} mix")
        for extractor in extractors:
            source = "train" if extractor.name != "classifier" else {"val": "test", "test": "val"}[args.split]
            floor = store.batch(sample_rows(store, source, protocol, rows), ("images", "labels"))
            floor = ImageSet.from_array(floor["images"], [store.classes[k] for k in floor["labels"]], source)
            print(quality(real, synthetic, [extractor], floor, cfg.features), flush=True)
        for path in (classifier_path, classifier_path.parents[1] / "classifier-lesion-only" / "checkpoint.pt"):
            if path.is_file():
                print_label_accuracy(path, config, batch, generated)
        if segmenter_path.is_file() and isinstance(config, GANConfig):
            has_mask = store.has_mask[rows]
            segment_lesions = partial(segment, load_segmenter(segmenter_path)[0])
            for name, images in (("real", batch["images"]), ("synthetic", generated)):
                dice = sketch_dice(images[has_mask], batch["masks"][has_mask], segment_lesions)
                print_mean(f"Dice of sketch and segmented lesion, {name}", dice)
        if protocol == "natural":
            for extractor in extractors:
                ratios = latent_diversity(generate, store, batch, extractor)
                print_mean(f"diversity over eight z, relative to real images, {extractor.name}", ratios)
            print_structure(generate, batch, generated)
            detector = cfg.released / "artifacts.safetensors"
            if detector.is_file():
                print_artifacts(detector, batch, generated)
            train_images = store.batch(store.rows("train"), ("images",))["images"]
            print_memorization(extractors, (generated, train_images, batch["images"]), cfg.features)


if __name__ == "__main__":
    main()
