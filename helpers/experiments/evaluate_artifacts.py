"""Scores of an artifact detector on annotated real images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from helpers.config import Config
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS, open_dataset
from helpers.data.store import StoreConfig, prepare
from helpers.experiments.evaluation import to_table
from helpers.models.artifacts import average_precisions, load_artifacts, predict_artifacts, read_flags


@dataclass(frozen=True)
class ArtifactEvaluation:
    """Options of `evaluate artifacts`."""

    split: Literal["val", "test"] = "val"  # everything is chosen on val; test is scored once
    flags: Path | None = None  # CSV with annotations: image_id and seven flags; default: those of the data set


def evaluate_artifacts(checkpoint: str | Path, options: ArtifactEvaluation, cfg: Config) -> pd.DataFrame:
    """Table of the average precision of every artifact, beside its prevalence, and of how often it is detected.

    Raises `DataError` if the file is no detector, if the annotations are unreadable, or if no image is annotated.
    """
    detector, config = load_artifacts(checkpoint)
    dataset = open_dataset(cfg)
    style = "contour" if dataset.has_contours else "structure"
    store = prepare(dataset, cfg.stores, StoreConfig(config.size, style), workers=cfg.workers)
    rows, ids = store.rows(options.split), store.table["image_id"].to_numpy(str)
    if options.flags:
        flags = read_flags(options.flags).reindex(ids[rows]).to_numpy()
        known = ~np.isnan(flags).any(axis=1)
    else:
        flags, known = store.artifacts[rows], store.artifacts_known[rows]
    rows, flags = rows[known], flags[known] > 0.5
    if not len(rows):
        raise DataError(f"{store.name} has no annotated images in {options.split}: name a file with --flags")
    num_trained_on = len(set(detector.trained_on) & set(ids[rows]))
    detected = predict_artifacts(detector, np.array(store.images[rows]))
    precisions, prevalence = average_precisions(detected, flags), flags.mean(axis=0)
    table_rows = []
    for k, name in enumerate(ARTIFACTS):
        row = {"class": name, "n": len(rows), "real": prevalence[k]}
        table_rows.append(row | {"measure": "average_precision", "value": precisions[k]})
        table_rows.append(row | {"measure": "artifact_rate", "value": (detected[:, k] > 0.5).mean()})
    header = [store, f"{options.split}, N {len(rows)}, of which trained on {num_trained_on}; real: prevalence"]
    return to_table(table_rows, header)
