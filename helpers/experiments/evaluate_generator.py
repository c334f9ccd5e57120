"""Quality of generated images, with every available feature extractor: pretrained ones (LESION_WEIGHTS_DIR) and the
classifier of `train classifier`.

A CGAN gets the sketches, labels and artifact flags of the split's images, a DCGAN their labels; both are evaluated on
images that have a sketch. Two protocols: `natural`, up to 1,000 images in their natural class mix; `balanced`, up to 55
per class. The floor is as many images of the training split. For our classifier and `skin`, which were trained on that
split, they come from the one of val and test that is not evaluated.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from helpers.config import Config, display_path
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS
from helpers.data.store import SPLITS, Store
from helpers.experiments.evaluation import Generate, load_generator, mean_row, open_store, to_table
from helpers.metrics.extractors import TRAINED_HERE, FeatureExtractor, available_extractors, extract_array
from helpers.metrics.fidelity import (
    MIN_POSITION_IMAGES,
    label_accuracy,
    mean_pairwise_distance,
    position_score,
    sketch_dice,
    structure_correlation,
)
from helpers.metrics.image_set import ImageSet
from helpers.metrics.memorization import AUTHENTICITY, memorization, thumbnails
from helpers.metrics.quality import quality
from helpers.models.artifacts import load_artifacts, predict_artifacts
from helpers.models.checkpoint import check_held_out
from helpers.models.classifier import hide_surroundings, load_classifier, predict_proba
from helpers.models.segmenter import load_segmenter, segment

NATURAL_IMAGES, BALANCED_IMAGES_PER_CLASS = 1000, 55
DIVERSITY_SKETCHES, NUM_LATENTS = 40, 8
STRUCTURE_PAIRS = 200


@dataclass(frozen=True)
class GeneratorEvaluation:
    """Options of `evaluate generator`."""

    split: Literal["val", "test"] = "val"  # everything is chosen on val; test is scored once
    extractor: str | None = None  # inception, skin, a network with ImageNet weights, NAME=FILE; default: all available
    infinity: bool = False  # also the Fréchet distance extrapolated to infinitely many images


@dataclass(frozen=True)
class Generated:
    """Images generated from a sample of a split's rows."""

    generate: Generate
    store: Store
    split: str
    protocol: str
    rows: np.ndarray  # (N,) of the store
    batch: dict[str, np.ndarray]  # real images, sketches, labels, masks and flags of these rows
    images: np.ndarray  # uint8 (N, S, S, 3)


def evaluate_generator(checkpoint: str | Path, options: GeneratorEvaluation, cfg: Config) -> pd.DataFrame:
    """Table of a CGAN or DCGAN by protocol: distances to real images next to their floor and ceilings, label accuracy,
    Dice of the sketches; for the natural mix also diversity, position, structure, artifact rates and memorization.

    Label accuracy needs the checkpoint of `train classifier` (on the lesion alone: of `--lesion-only`) in
    `cfg.outputs`, the Dice that of `train segmenter` there or the released segmenter; artifact rates the detector in
    `cfg.released`. Raises `DataError` if
    the file is no generator, if it was trained on lesions of the split, if its classes are not those of the data set or
    of the classifier, or for fewer than 10 images.
    """
    generate, config = load_generator(checkpoint)
    extractors, notes = available_extractors(cfg.outputs / "classifier" / "checkpoint.pt", options.extractor)
    store, rows = open_store(cfg, config.size, config.style, classes=config.classes), []
    others = np.flatnonzero(store.splits != SPLITS.index(options.split))
    check_held_out(checkpoint, store, others)
    segmenter = own_or_released(cfg, "segmenter", store, others, notes)
    for protocol in ("natural", "balanced"):
        generated = sample_images(generate, store, options.split, protocol)
        measured = distances(generated, extractors, cfg.features, notes, options.infinity)
        for name in ("classifier", "classifier-lesion-only"):
            measured += label_accuracies(generated, cfg.outputs / name / "checkpoint.pt", notes)
        if config.style != "none":  # a DCGAN has no sketches
            measured += sketch_dices(generated, segmenter, notes)
        if protocol == "natural":
            measured += diversities(generated, extractors)
            measured += structures(generated)
            measured += artifact_rates(generated, cfg.released / "artifacts.safetensors", notes)
            measured += copies(generated, extractors, cfg.features, notes)
        rows += [{"protocol": protocol} | row for row in measured]
    return to_table(rows, [store, f"{config}, {options.split}"], notes)


def sample_rows(store: Store, split: str, protocol: str, like: np.ndarray | None = None) -> np.ndarray:
    """Random rows of a split by protocol "natural" or "balanced"; with the rows `like`, as many of each class as there
    ("natural": as many in total)."""
    rows = np.random.default_rng(0).permutation(store.rows(split, needs=["sketch", "label"]))
    if protocol == "natural":
        return rows[: NATURAL_IMAGES if like is None else len(like)]
    num_classes, per_class = len(store.classes), BALANCED_IMAGES_PER_CLASS
    counts = [per_class] * num_classes if like is None else np.bincount(store.labels[like], minlength=num_classes)
    return np.concatenate([rows[store.labels[rows] == k][:n] for k, n in enumerate(counts)])


def sample_images(generate: Generate, store: Store, split: str, protocol: str) -> Generated:
    """Images of the rows of `sample_rows`, with seed 0."""
    rows = sample_rows(store, split, protocol)
    batch = store.batch(rows)
    return Generated(generate, store, split, protocol, rows, batch, generate(batch, 0))


def take(batch: dict[str, np.ndarray], index: list[int] | slice) -> dict[str, np.ndarray]:
    """The same rows of every array of the batch."""
    return {name: array[index] for name, array in batch.items()}


def distances(
    generated: Generated,
    extractors: Sequence[FeatureExtractor],
    cache: Path,
    notes: list[str],
    infinity: bool = False,
    by_class: bool = True,
) -> list[dict]:
    """Rows of `quality`, one per extractor, comparison, class (or none if not `by_class`) and measure. Appends to
    `notes`."""
    store, batch, rows = generated.store, generated.batch, []

    def image_set(images: np.ndarray, labels: np.ndarray, name: str) -> ImageSet:
        return ImageSet.from_array(images, [store.classes[k] for k in labels] if by_class else None, name)

    real = image_set(batch["images"], batch["labels"], generated.split)
    synthetic = image_set(generated.images, batch["labels"], "synthetic")
    for extractor in extractors:
        source = "train" if extractor.name not in TRAINED_HERE else {"val": "test", "test": "val"}[generated.split]
        floor = store.batch(sample_rows(store, source, generated.protocol, generated.rows), ("images", "labels"))
        others = image_set(floor["images"], floor["labels"], source)
        measured = quality(real, synthetic, [extractor], others, cache, infinity)
        rows += a_row_per_measure(measured.table)
        notes += [f"{generated.protocol}: {note}" for note in measured.notes]
    return rows


def a_row_per_measure(table: pd.DataFrame) -> Iterable[dict]:
    """Rows from the `table` of one extractor in `Quality`; those of synthetic images get the floor of their class."""
    keys = ["extractor", "compared", "class", "n", "n_real"]
    floors = table[table["compared"] == "floor"].set_index("class")
    for row in table.to_dict("records"):
        for measure in (name for name in table if name not in (*keys, "kid_low", "kid_high")):
            if pd.isna(row[measure]):
                continue
            floor = floors[measure].get(row["class"]) if row["compared"] == "synthetic" else None
            interval = {"low": row.get(f"{measure}_low"), "high": row.get(f"{measure}_high")}
            yield {k: row[k] for k in keys} | {"measure": measure, "value": row[measure], "floor": floor} | interval


def real_and_synthetic(measure: str, real: np.ndarray, synthetic: np.ndarray) -> list[dict]:
    """Rows of a measure that has one value per image, of real and of synthetic images."""
    row = mean_row(measure, real, compared="real")
    return [row, mean_row(measure, synthetic, compared="synthetic", real=row["value"])]


def label_accuracies(generated: Generated, checkpoint: Path, notes: list[str]) -> list[dict]:
    """Rows of real and generated images; with gray surroundings if the classifier was trained on such images."""
    if not checkpoint.is_file():
        return []
    classifier, config = load_classifier(checkpoint)
    batch, size = generated.batch, generated.images.shape[1]
    if config.classes != tuple(generated.store.classes):
        classes = f"{' '.join(config.classes)} and {' '.join(generated.store.classes)}"
        raise DataError(f"classifier and generator must have the same classes, got {classes}")
    if config.size != size:
        notes.append(f"no label accuracy by the {checkpoint.parent.name}: it takes {config.size} px, not {size}")
        return []
    sets = [batch["images"], generated.images]
    if config.lesion_only:
        sets = [hide_surroundings(images, batch["masks"]) for images in sets]
    correct = [label_accuracy(predict_proba(classifier, images), batch["labels"]) for images in sets]
    return real_and_synthetic("label_accuracy_lesion_only" if config.lesion_only else "label_accuracy", *correct)


def own_or_released(cfg: Config, method: str, store: Store, rows: np.ndarray, notes: list[str]) -> Path:
    """The checkpoint of `train METHOD`; without one the released file, unless that was trained on lesions of the store
    other than at `rows`, which is added to `notes`."""
    own, released = cfg.outputs / method / "checkpoint.pt", cfg.released / f"{method}.safetensors"
    if own.is_file() or not released.is_file():
        return own
    try:
        check_held_out(released, store, rows)
    except DataError as error:
        notes.append(f"not used: {error}")
        return own
    return released


def sketch_dices(generated: Generated, checkpoint: Path, notes: list[str]) -> list[dict]:
    """Rows of the Dice between sketch and segmented lesion, of real and of generated images that have a mask."""
    if not checkpoint.is_file():
        notes.append("no Dice of the sketches: there is no checkpoint of `train segmenter`")
        return []
    has_mask = generated.store.has_mask[generated.rows]
    if has_mask.sum() < 2:
        notes.append(f"{generated.protocol}: no Dice of the sketches: {has_mask.sum()} images have a mask")
        return []
    notes.append(f"{generated.protocol}: Dice of the sketches by {display_path(checkpoint)}")
    segment_lesions = partial(segment, load_segmenter(checkpoint)[0])
    sets, masks = (generated.batch["images"], generated.images), generated.batch["masks"][has_mask]
    return real_and_synthetic("sketch_dice", *(sketch_dice(s[has_mask], masks, segment_lesions) for s in sets))


def diversities(generated: Generated, extractors: Sequence[FeatureExtractor]) -> list[dict]:
    """Row per extractor of `latent_diversity`; none if it has fewer than two values."""
    ratios = {extractor.name: latent_diversity(generated, extractor) for extractor in extractors}
    return [mean_row("diversity", np.array(values), extractor=k) for k, values in ratios.items() if len(values) > 1]


def latent_diversity(generated: Generated, extractor: FeatureExtractor) -> list[float]:
    """Mean pairwise distance of eight images of one sketch and label that differ in z, divided by that of real images
    of the class; one value for each of the first 40 sketches whose class has two real images."""

    def diversity(images: np.ndarray) -> float:
        return mean_pairwise_distance(extract_array(images, extractor).values)

    batch, labels = generated.batch, generated.batch["labels"]
    sketch_rows = [k for k, label in enumerate(labels[:DIVERSITY_SKETCHES]) if np.sum(labels == label) > 1]
    real = {label: diversity(batch["images"][labels == label][:60]) for label in set(labels[sketch_rows])}
    samples = {k: generated.generate(take(batch, [k] * NUM_LATENTS), k) for k in sketch_rows}
    return [diversity(images) / real[labels[k]] for k, images in samples.items()]


def structures(generated: Generated) -> list[dict]:
    """Rows of the position score, from 100 images on, and of the structure correlation of pairs under two seeds."""
    rows, count = [], len(generated.images)
    if count >= MIN_POSITION_IMAGES:
        scores = {"value": position_score(generated.images), "real": position_score(generated.batch["images"])}
        rows.append({"measure": "position", "compared": "synthetic", "n": count} | scores)
    pairs = take(generated.batch, slice(STRUCTURE_PAIRS))
    correlation = structure_correlation(generated.generate(pairs, 0), generated.generate(pairs, 1))
    return [*rows, {"measure": "structure", "compared": "synthetic", "value": correlation, "n": len(pairs["labels"])}]


def artifact_rates(generated: Generated, checkpoint: Path, notes: list[str]) -> list[dict]:
    """Row per artifact: the fraction of generated and of real images in which the detector finds it."""
    if not checkpoint.is_file():
        notes.append("no artifact rates: there is no released detector")
        return []
    detector, _ = load_artifacts(checkpoint)
    sets = (generated.images, generated.batch["images"])
    synthetic, real = ((predict_artifacts(detector, images) > 0.5).mean(axis=0) for images in sets)
    table = pd.DataFrame({"class": ARTIFACTS, "value": synthetic, "real": real})
    table = table.assign(measure="artifact_rate", compared="synthetic", n=len(generated.images))
    return table.to_dict("records")


def copies(
    generated: Generated, extractors: Sequence[FeatureExtractor], cache: Path, notes: list[str]
) -> Iterable[dict]:
    """Rows of the memorization of the training split, by features and by pixels; the held-out real images are those of
    the sketches. Appends to `notes`."""
    train_images = generated.store.batch(generated.store.rows("train"), ("images",))["images"]
    sets = (generated.images, train_images, generated.batch["images"])  # synthetic, training, held out
    features = {e.name: [extract_array(images, e, cache).values for images in sets] for e in extractors}
    for name, arrays in (features | {"pixels": [thumbnails(images) for images in sets]}).items():
        result = memorization(*arrays)
        notes += [f"copies by {name}: {result}", AUTHENTICITY]
        row = {"extractor": name, "compared": "synthetic", "n": len(result.distances), "n_real": len(result.held_out)}
        yield row | {"measure": "copies", "value": result.copies, "real": 0.01}  # by definition
        yield row | {"measure": "authenticity", "value": result.authenticity, "real": result.held_out_authenticity}
