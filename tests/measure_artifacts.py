"""Artifact detector scores: `python tests/measure_artifacts.py CHECKPOINT --flags CSV --split val`, on the data set in
LESION_DATASET.

`--flags` names annotations (image_id and seven flags, see `read_flags`); without it the data set's own flags are used.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from helpers.config import get_config
from helpers.data.layouts import ARTIFACTS, open_dataset
from helpers.data.store import UNKNOWN, StoreConfig, prepare
from helpers.models.artifacts import average_precisions, load_artifacts, predict_artifacts, read_flags


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("checkpoint", type=Path)
    args.add_argument("--flags", type=Path)
    args.add_argument("--split", choices=("val", "test"), default="val")
    args = args.parse_args()
    cfg, (detector, config) = get_config("artifacts"), load_artifacts(args.checkpoint)
    dataset = open_dataset(cfg)
    style = "contour" if dataset.has_contours else "structure"
    store = prepare(dataset, cfg.stores, StoreConfig(config.size, style), workers=cfg.workers)
    rows, ids = store.rows(args.split), store.table["image_id"].to_numpy(str)
    if args.flags:
        flags = read_flags(args.flags).reindex(ids[rows]).to_numpy()
        known = ~np.isnan(flags).any(axis=1)
    else:
        flags = store.artifacts[rows]
        known = (flags != UNKNOWN).all(axis=1)
    rows, flags = rows[known], flags[known] > 0.5
    known_ids = set(detector.trained_on) & set(ids[rows])
    probs = predict_artifacts(detector, np.array(store.images[rows]))
    print(f"{store}\n{args.split}, N {len(rows)}, of which trained on {len(known_ids)}")
    table = pd.DataFrame({"average precision": average_precisions(probs, flags), "prevalence": flags.mean(axis=0),
                          "predicted": (probs > 0.5).mean(axis=0)}, index=list(ARTIFACTS))  # fmt: skip
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
