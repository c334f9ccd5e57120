"""Scores of a segmenter: every image at its own size against its original mask, as in the ISIC challenges."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from helpers.config import Config
from helpers.data.files import DataError
from helpers.data.layouts import open_dataset
from helpers.data.store import StoreConfig, prepare
from helpers.experiments.evaluation import mean_row, to_table
from helpers.metrics.segmentation_scores import score_images
from helpers.metrics.stats import paired_difference
from helpers.models.segmenter import load_segmenter

MEASURES = ("jaccard", "thresholded_jaccard", "dice", "sensitivity", "specificity", "hd95")  # hd95 in pixels


@dataclass(frozen=True)
class SegmenterEvaluation:
    """Options of `evaluate segmenter`."""

    split: Literal["val", "test"] = "val"  # everything is chosen on val; test is scored once
    csv: Path | None = None  # file to write, with the scores of every image
    against: Path | None = None  # such a file of another checkpoint: adds the paired difference of the Jaccard index


def evaluate_segmenter(checkpoint: str | Path, options: SegmenterEvaluation, cfg: Config) -> pd.DataFrame:
    """Table of mean scores with intervals (over lesions), the Jaccard index of every class, and the paired difference
    to the scores in `options.against`.

    Raises `DataError` if the file is no segmenter, if no image has a mask, or if `options.against` lacks an image.
    """
    segmenter, config = load_segmenter(checkpoint)
    store = prepare(open_dataset(cfg), cfg.stores, StoreConfig(config.size, crop="none"), workers=cfg.workers)
    images = store.table.iloc[store.rows(options.split, needs=["mask"])]
    if not len(images):
        raise DataError(f"{store.name} has no masks in {options.split} to compare with")
    start = time.perf_counter()
    scores = score_images(segmenter, images)
    seconds = time.perf_counter() - start
    rows = [mean_row(measure, scores[measure], scores["group"]) for measure in MEASURES]
    class_names = images["label"].map(dict(enumerate(store.classes))).to_numpy()
    for name, values in scores["jaccard"].groupby(class_names):
        rows.append({"measure": "jaccard", "class": name, "value": values.mean(), "n": len(values)})
    if options.against:
        rows.append(difference_row(scores, options.against))
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        scores.to_csv(options.csv, index=False)
    time_taken = f"{options.split}, N {len(scores)}, {seconds:.0f} s including reading and scoring"
    return to_table(rows, [store, config, time_taken])


def difference_row(scores: pd.DataFrame, against: Path) -> dict:
    """Row of the mean difference of the Jaccard index to that in the CSV file `against`, on the same images."""
    baseline = pd.read_csv(against).set_index("image_id")["jaccard"].reindex(scores["image_id"])
    if baseline.isna().any():
        raise DataError(f"{against.name} lacks {baseline.isna().sum()} of the {len(scores)} images, such as "
                        f"{baseline.index[baseline.isna()][0]}")  # fmt: skip
    value, low, high = paired_difference(scores["jaccard"], baseline, scores["group"])
    row = {"measure": "jaccard_difference", "compared": f"against {against.name}", "value": value}
    return row | {"low": low, "high": high, "n": len(scores)}
