"""Segmentation scores: `python tests/measure_masks.py CHECKPOINT --split val`, on the data set in LESION_DATASET.

Every image is scored at its own size against its original mask, with the measures of the ISIC challenges.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from helpers.config import get_config
from helpers.data.layouts import open_dataset
from helpers.data.store import StoreConfig, prepare
from helpers.experiments.segmentation import score_images
from helpers.metrics.stats import bootstrap_ci, paired_difference
from helpers.models.segmenter import load_segmenter


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("checkpoint", type=Path)
    args.add_argument("--split", choices=("val", "test"), default="val")
    args.add_argument("--csv", type=Path, help="output file for the scores of every image")
    args.add_argument("--against", type=Path, help="such a file of another checkpoint; prints the paired difference")
    args = args.parse_args()
    cfg, (segmenter, config) = get_config("segmenter"), load_segmenter(args.checkpoint)
    store = prepare(open_dataset(cfg), cfg.stores, StoreConfig(config.size, crop="none"), workers=cfg.workers)
    table = store.table.iloc[store.rows(args.split, needs=["mask"])]
    print(f"{store}\n{config}", flush=True)
    start = time.perf_counter()
    scores = score_images(segmenter, table)
    print(f"{args.split}, N {len(scores)}, {time.perf_counter() - start:.0f} s including reading and scoring")
    for measure in ("jaccard", "thresholded_jaccard", "dice", "sensitivity", "specificity", "hd95"):
        low, high = bootstrap_ci(scores[measure], scores["group"])
        print(f"{measure:<19} {scores[measure].mean():8.4f}  ({low:.4f} to {high:.4f})")
    class_names = table["label"].map(dict(enumerate(store.classes))).to_numpy()
    print(scores.groupby(class_names)["jaccard"].agg(["mean", "count"]).round(3).to_string())
    if args.against:
        baseline = pd.read_csv(args.against).set_index("image_id").loc[scores["image_id"]]
        difference, low, high = paired_difference(scores["jaccard"], baseline["jaccard"], scores["group"])
        print(f"jaccard against {args.against.name} {difference:+.4f}  ({low:+.4f} to {high:+.4f})")
    if args.csv:
        scores.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
