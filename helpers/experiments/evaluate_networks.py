"""Scores of a segmenter, a classifier and an artifact detector on real images.

Segmenter: every image at its own size against its original mask, as in the ISIC challenges. Classifier: also its
calibration, and its accuracy on generated images of the same sketches; `val` selected its weights and temperature, so
these scores are optimistic; use `test` once.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import softmax

from helpers.config import EXTERNAL, Config, display_path
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS, open_dataset
from helpers.data.store import Store
from helpers.data.tables import read_own_table, write_csv
from helpers.experiments.evaluation import difference_row, load_generator, mean_row, open_store, to_table
from helpers.metrics.classification import calibration_error
from helpers.metrics.fidelity import label_accuracy
from helpers.metrics.prediction_tables import (
    SharedClasses,
    check_not_trained_on,
    classifier_inputs,
    predict_cross_dataset,
    predict_table,
    probabilities,
    score_table,
)
from helpers.metrics.segmentation_scores import score_images
from helpers.models.artifacts import average_precisions, load_artifacts, predict_artifacts, read_flags
from helpers.models.classifier import (
    Classifier,
    ClassifierConfig,
    hide_surroundings,
    load_classifier,
    predict,
    predict_logits,
    predict_proba,
)
from helpers.models.segmenter import load_segmenter

MEASURES = ("jaccard", "thresholded_jaccard", "dice", "sensitivity", "specificity", "hd95")  # hd95 in pixels
Split = Literal["val", "test", "all"]


def select_rows(store: Store, split: Split | None, needs: Sequence[str]) -> tuple[np.ndarray, str, list[str]]:
    """Rows of a split that have everything in `needs`, see `Store.rows`; the split's name, by default "val", "all" of
    an external set; and how many images lack what, as notes. Raises `DataError` if there is no row."""
    name = split or ("all" if store.name in EXTERNAL else "val")
    part = None if name == "all" else name
    rows, lacking = store.rows(part), {need: len(store.rows(part)) - len(store.rows(part, [need])) for need in needs}
    notes = [f"left out: {count} of {len(rows)} images have no {need}" for need, count in lacking.items() if count]
    if not len(selected := store.rows(part, needs)):
        raise DataError(f"{store.name} has no images with a {' and a '.join(needs)} in {name}")
    return selected, name, notes


# --------------------------------------------------------------------------------------------------------- segmenter


@dataclass(frozen=True)
class SegmenterEvaluation:
    """Options of `evaluate segmenter`."""

    split: Split | None = None  # default: val, on which everything is chosen; of an external set all
    csv: Path | None = None  # file to write, with the scores of every image
    against: Path | None = None  # such a file of another checkpoint: adds the paired difference of the Jaccard index


def evaluate_segmenter(checkpoint: str | Path, options: SegmenterEvaluation, cfg: Config) -> pd.DataFrame:
    """Table of mean scores with intervals (over lesions), the Jaccard index of every class, and the paired difference
    to the scores in `options.against`.

    Raises `DataError` if the file is no segmenter, if it was trained on one of these images or lesions, if no image has
    a mask, or if `options.against` lacks an image.
    """
    segmenter, config = load_segmenter(checkpoint)
    store = open_store(cfg, config.size, crop="none")
    image_rows, split, notes = select_rows(store, options.split, ["mask"])
    check_not_trained_on(segmenter, store, image_rows)
    images = store.table.iloc[image_rows]
    start = time.perf_counter()
    scores = score_images(segmenter, images)
    seconds = time.perf_counter() - start
    rows = [mean_row(measure, scores[measure], scores["group"]) for measure in MEASURES]
    class_names = images["label"].map(dict(enumerate(store.classes))).to_numpy()
    for name, values in scores["jaccard"].groupby(class_names):
        rows.append({"measure": "jaccard", "class": name, "value": values.mean(), "n": len(values)})
    if options.against:
        baseline = read_jaccard(options.against, scores["image_id"])
        compared = f"against {options.against.name}"
        rows.append(difference_row(compared, "jaccard_difference", scores["jaccard"], baseline, scores["group"]))
    if options.csv:
        write_csv(scores, options.csv, index=False)
    time_taken = f"{split}, N {len(scores)}, {seconds:.0f} s including reading and scoring"
    return to_table(rows, [store, config, time_taken], [*notes, *store.problems])


def read_jaccard(file: Path, image_ids: pd.Series) -> pd.Series:
    """The Jaccard index of these images in a CSV file of scores. Raises `DataError` if it cannot be read or lacks
    one."""
    scores = read_own_table(file)
    if not {"image_id", "jaccard"} <= set(scores) or scores["image_id"].duplicated().any():
        raise DataError(f"{file.name} needs the columns image_id and jaccard with one row per image")
    scores["jaccard"] = pd.to_numeric(scores["jaccard"], errors="coerce")
    jaccard = scores.set_index("image_id")["jaccard"].reindex(image_ids)
    if jaccard.isna().any():
        raise DataError(f"{file.name} lacks {jaccard.isna().sum()} of the {len(jaccard)} images, such as "
                        f"{jaccard.index[jaccard.isna()][0]}")  # fmt: skip
    return jaccard


# ----------------------------------------------------------------------------------------------------------- classifier


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Options of `evaluate classifier`."""

    split: Split | None = None  # default: val, on which everything is chosen; of an external set all
    cgan: Path | None = None  # generator of the synthetic images; default: the one of `train cgan`


def evaluate_classifier(checkpoint: str | Path, options: ClassifierEvaluation, cfg: Config) -> pd.DataFrame:
    """Table of scores with intervals (over lesions), the calibration error before and after temperature scaling, the
    coverage and accuracy at the confidence threshold, the fraction of images unlike the training images, and if there
    is a generator the accuracy on real and generated images of the same sketches, and the gap between them.

    On a data set that lacks some of the classifier's classes only the scores, by the classes that both have. A
    classifier of lesions alone sees the original masks. Raises `DataError` if the file is no classifier, if it was
    trained on one of these images or lesions, if labels are missing or fewer than two classes are shared.
    """
    classifier, config = load_classifier(checkpoint)
    dataset = open_dataset(cfg)
    has_all_classes = set(config.classes) <= set(dataset.classes)
    store = open_store(cfg, config.size, classes=config.classes if has_all_classes else ())
    needs = ["label", "mask"] if config.lesion_only else ["label"]
    image_rows, split, notes = select_rows(store, options.split, needs)
    header = [store, f"{config.arch} from {classifier.backbone.init}, {config.size} px, {split}"]
    if not has_all_classes:
        table = scores(predict_cross_dataset(classifier, store, image_rows))
        line, left_out = describe_shared_classes(classifier, store, image_rows)
        return to_table(table, [*header, line], [*notes, *left_out, *store.problems])
    if others := len(dataset.table) - len(dataset.subset(list(config.classes)).table):
        notes.append(f"left out: {others} images of {dataset.name} have none of the classifier's classes")
    predictions = predict_table(classifier, store, image_rows)
    rows = [*scores(predictions), *calibration(classifier, store, image_rows, probabilities(predictions))]
    rows += selective(classifier, store, image_rows, predictions["group"], notes)
    generator = options.cgan or cfg.outputs / "cgan" / "checkpoint.pt"
    if options.cgan or generator.is_file():
        rows += real_against_synthetic(classifier, config, store, split, generator)
    else:
        notes.append(f"no synthetic images: there is no {display_path(generator)}")
    return to_table(rows, header, [*notes, *store.problems])


def describe_shared_classes(classifier: Classifier, store: Store, rows: np.ndarray) -> tuple[str, list[str]]:
    """Which classes are scored, with the data set's names at these rows where they differ, and a note of how many
    images of which other classes are left out."""
    shared, present = SharedClasses.of(classifier.classes, store.classes), np.unique(store.labels[rows])
    names = []
    for k, name in enumerate(shared.names):
        theirs = [store.classes[label] for label in present if shared.labels[label] == k]
        names.append(name if theirs == [name] else f"{name} ({', '.join(theirs) or 'no image'})")
    line = f"classes of both: {', '.join(names)}; the classifier has {' '.join(classifier.classes)}"
    counts = np.bincount(store.labels[rows], minlength=len(store.classes)) * (shared.labels < 0)
    others = ", ".join(f"{store.classes[k]} {counts[k]}" for k in np.flatnonzero(counts))
    return line, [f"left out: {counts.sum()} images of other diagnoses ({others})"] if others else []


def scores(predictions: pd.DataFrame) -> Iterator[dict]:
    """Rows of `score_table`; recalls have their class in `class`."""
    table = score_table(predictions).rename(columns={"from": "low", "to": "high", "N": "n"})
    for name, row in table.iterrows():
        measure, _, class_name = name.partition("recall ")
        named = {"measure": "recall", "class": class_name} if class_name else {"measure": measure.replace(" ", "_")}
        yield named | row.to_dict()


def calibration(classifier: Classifier, store: Store, rows: np.ndarray, calibrated: np.ndarray) -> list[dict]:
    """Rows of the calibration error with and without temperature scaling, and of the temperature."""
    logits, labels = predict_logits(classifier, classifier_inputs(classifier, store, rows)), store.labels[rows]
    uncalibrated = softmax(logits, axis=1)
    values = {
        "calibration_error_before": calibration_error(uncalibrated, labels),
        "calibration_error": calibration_error(calibrated, labels),
        "temperature": float(classifier.temperature),
    }
    return [{"measure": name, "value": value, "n": len(rows)} for name, value in values.items()]


def selective(
    classifier: Classifier, store: Store, rows: np.ndarray, groups: pd.Series, notes: list[str]
) -> Iterator[dict]:
    """Rows of the confidence threshold, of the coverage and the accuracy at it (selective classification), and of how
    often an image is called unlike the training images. What the classifier lacks goes to `notes`."""
    if len(rows) < 2:
        notes.append("no coverage: an interval needs at least 2 images")
        return
    predictions = predict(classifier, classifier_inputs(classifier, store, rows))
    if predictions.unsure is None:
        notes.append("no coverage: the classifier has no confidence threshold")
    else:
        kept, correct = ~predictions.unsure, predictions.probabilities.argmax(axis=1) == store.labels[rows]
        confidence = classifier.confidence
        yield {"measure": "confidence_threshold", "value": confidence.threshold, "n": confidence.n}
        yield mean_row("coverage", kept, groups)
        if kept.sum() > 1:
            yield mean_row("accuracy_at_coverage", correct[kept], groups[kept])
    if predictions.unlike is None:
        notes.append("no rate of unlike images: the classifier has no feature statistics")
    else:
        yield mean_row("unlike_rate", predictions.unlike, groups)


def real_against_synthetic(
    classifier: Classifier, config: ClassifierConfig, store: Store, split: Split, generator: Path
) -> list[dict]:
    """Rows of the label accuracy, overall and as mean over classes, on the split's real images that have a sketch and
    on images generated from these sketches, and of the gap. Raises `DataError` if the generator has another size or
    other classes."""
    generate, gan_config = load_generator(generator)
    if (gan_config.size, gan_config.classes) != (config.size, config.classes):
        raise DataError(f"the generator must have size {config.size} and classes {config.classes}, got "
                        f"{gan_config.size} and {gan_config.classes}")  # fmt: skip
    needs = ["label", "sketch", "mask"] if config.lesion_only else ["label", "sketch"]
    (sketch_rows, _, _), rows = select_rows(store, split, needs), []
    batch = store.batch(sketch_rows)
    sets, labels = {"real": batch["images"], "synthetic": generate(batch, 0)}, batch["labels"]
    if config.lesion_only:
        sets = {name: hide_surroundings(images, batch["masks"]) for name, images in sets.items()}
    correct = {name: label_accuracy(predict_proba(classifier, images), labels) for name, images in sets.items()}
    lesions = store.lesions[sketch_rows]
    for name, hits in correct.items():
        balanced = float(np.mean([hits[labels == k].mean() for k in np.unique(labels)]))
        rows.append(mean_row("label_accuracy", hits, lesions, compared=name))
        rows.append({"measure": "balanced_label_accuracy", "compared": name, "value": balanced, "n": len(hits)})
    return [*rows, difference_row("real - synthetic", "label_accuracy_gap", *correct.values(), lesions)]


# ------------------------------------------------------------------------------------------------------------ artifacts


@dataclass(frozen=True)
class ArtifactEvaluation:
    """Options of `evaluate artifacts`."""

    split: Literal["val", "test"] = "val"  # everything is chosen on val; test is scored once
    flags: Path | None = None  # CSV with annotations: image_id and seven flags; default: those of the data set


def evaluate_artifacts(checkpoint: str | Path, options: ArtifactEvaluation, cfg: Config) -> pd.DataFrame:
    """Table of the average precision of every artifact, next to its prevalence, and of how often it is detected.

    Raises `DataError` if the file is no detector, if the annotations are unreadable, or if no image is annotated.
    """
    detector, config = load_artifacts(checkpoint)
    store = open_store(cfg, config.size)
    rows, ids = store.rows(options.split), store.table["image_id"].to_numpy(str)
    if options.flags:
        flags = read_flags(options.flags).reindex(ids[rows]).to_numpy()
        known = ~np.isnan(flags).any(axis=1)
    else:
        flags, known = store.artifacts[rows], store.artifacts_known[rows]
    rows, flags = rows[known], flags[known] > 0.5
    if not len(rows):
        raise DataError(f"{store.name} has no annotated images in {options.split}: name a file with --flags")
    num_trained_on = len(store.rows_in(detector.trained_on, rows))
    detected = predict_artifacts(detector, np.array(store.images[rows]))
    precisions, prevalence = average_precisions(detected, flags), flags.mean(axis=0)
    values = {"average_precision": precisions, "artifact_rate": (detected > 0.5).mean(axis=0)}
    table = [
        {"class": name, "n": len(rows), "real": prevalence[k], "measure": measure, "value": by_artifact[k]}
        for k, name in enumerate(ARTIFACTS)
        for measure, by_artifact in values.items()
    ]
    return to_table(
        table, [store, f"{options.split}, N {len(rows)}, of which trained on {num_trained_on}; real: prevalence"]
    )
