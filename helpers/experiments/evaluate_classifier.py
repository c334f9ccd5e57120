"""Scores of a classifier on real images, its calibration, and its accuracy on generated images of the same sketches.

`val` selected the weights and the temperature, so its scores are optimistic; use `test` once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import softmax

from helpers.config import DATASETS, ROOT, Config, display_path
from helpers.data.files import DataError
from helpers.data.layouts import open_dataset
from helpers.data.store import Store, StoreConfig, prepare
from helpers.experiments.evaluation import load_generator, mean_row, to_table
from helpers.metrics.classification import calibration_error
from helpers.metrics.fidelity import label_accuracy
from helpers.metrics.prediction_tables import predict_cross_dataset, predict_table, probabilities, score_table
from helpers.metrics.stats import paired_difference
from helpers.models.classifier import Classifier, ClassifierConfig, load_classifier, predict_logits, predict_proba

CLASS_MAP = {"SK": "BKL"}  # ISIC 2017's class counts as HAM10000's


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Options of `evaluate classifier`."""

    split: Literal["val", "test"] = "val"  # everything is chosen on val; test is scored once
    across: str | None = None  # score a split of this data set instead, by the classes that both have
    across_root: Path | None = None  # folder of the data set `across`; default: data/<across>
    cgan: Path | None = None  # generator of the synthetic images; default: the one of `train cgan`


def evaluate_classifier(checkpoint: str | Path, options: ClassifierEvaluation, cfg: Config) -> pd.DataFrame:
    """Table of scores with intervals (over lesions), the calibration error before and after temperature scaling, and if
    there is a generator the accuracy on real and generated images of the same sketches, and the gap between them.

    With `options.across` only the scores, on that data set. Raises `DataError` if the file is no classifier, if it was
    trained on one of these images or lesions, if labels are missing or classes differ, `ValueError` for an unknown data
    set.
    """
    classifier, config = load_classifier(checkpoint)
    cfg = other_dataset(cfg, options.across, options.across_root) if options.across else cfg
    dataset = open_dataset(cfg)
    style = "contour" if dataset.has_contours else "structure"
    store = prepare(dataset, cfg.stores, StoreConfig(config.size, style, seed=cfg.seed), workers=cfg.workers)
    header = [store, f"{config.arch} from {classifier.backbone.init}, {config.size} px, {options.split}"]
    image_rows = store.rows(options.split, needs=["label"])
    if options.across:
        return to_table(scores(predict_cross_dataset(classifier, store, image_rows, CLASS_MAP)), header)
    predictions = predict_table(classifier, store, image_rows)
    rows = [*scores(predictions), *calibration(classifier, store, image_rows, probabilities(predictions))]
    generator = options.cgan or cfg.outputs / "cgan" / "checkpoint.pt"
    if not options.cgan and not generator.is_file():
        return to_table(rows, header, [f"no synthetic images: there is no {display_path(generator)}"])
    return to_table([*rows, *real_against_synthetic(classifier, config, store, options.split, generator)], header)


def other_dataset(cfg: Config, name: str, data_root: Path | None) -> Config:
    """The config with another data set and its folder. Raises `ValueError` for an unknown name."""
    if name not in DATASETS:
        raise ValueError(f"the data set must be one of {', '.join(DATASETS)}, got {name!r}")
    folder = Path(data_root).resolve() if data_root else ROOT / "data" / name
    return replace(cfg, dataset=name, data_root=folder)


def scores(predictions: pd.DataFrame) -> Iterable[dict]:
    """Rows of `score_table`; recalls have their class in `class`."""
    table = score_table(predictions).rename(columns={"from": "low", "to": "high", "N": "n"})
    for name, row in table.iterrows():
        measure, _, class_name = name.partition("recall ")
        named = {"measure": "recall", "class": class_name} if class_name else {"measure": measure.replace(" ", "_")}
        yield named | row.to_dict()


def calibration(classifier: Classifier, store: Store, rows: np.ndarray, calibrated: np.ndarray) -> list[dict]:
    """Rows of the calibration error with and without temperature scaling, and of the temperature."""
    labels, uncalibrated = store.labels[rows], softmax(predict_logits(classifier, store.images[rows]), axis=1)
    values = {
        "calibration_error_before": calibration_error(uncalibrated, labels),
        "calibration_error": calibration_error(calibrated, labels),
        "temperature": float(classifier.temperature),
    }
    return [{"measure": name, "value": value, "n": len(rows)} for name, value in values.items()]


def real_against_synthetic(
    classifier: Classifier, config: ClassifierConfig, store: Store, split: str, generator: Path
) -> list[dict]:
    """Rows of the label accuracy, overall and as mean over classes, on the split's real images that have a sketch and
    on images generated from these sketches, and of the gap. Raises `DataError` if the generator has another size or
    other classes."""
    generate, gan_config = load_generator(generator)
    if (gan_config.size, gan_config.classes) != (config.size, config.classes):
        raise DataError(f"the generator must have size {config.size} and classes {config.classes}, got "
                        f"{gan_config.size} and {gan_config.classes}")  # fmt: skip
    sketch_rows, rows = store.rows(split, needs=["label", "sketch"]), []
    batch = store.batch(sketch_rows)
    sets, labels = {"real": batch["images"], "synthetic": generate(batch, 0)}, batch["labels"]
    correct = {name: label_accuracy(predict_proba(classifier, images), labels) for name, images in sets.items()}
    lesions = store.table["lesion_id"].fillna(store.table["image_id"]).iloc[sketch_rows]
    for name, hits in correct.items():
        balanced = float(np.mean([hits[labels == k].mean() for k in np.unique(labels)]))
        rows.append(mean_row("label_accuracy", hits, lesions, compared=name))
        rows.append({"measure": "balanced_label_accuracy", "compared": name, "value": balanced, "n": len(hits)})
    gap, low, high = paired_difference(correct["real"], correct["synthetic"], lesions)
    interval = {"low": low, "high": high, "n": len(lesions)}
    return [*rows, {"measure": "label_accuracy_gap", "compared": "real - synthetic", "value": gap} | interval]
