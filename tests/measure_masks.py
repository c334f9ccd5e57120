"""How well are lesions found? `python tests/measure_masks.py CHECKPOINT --split val`, on the data set that
LESION_DATASET names: every image at its own size against its original mask, by the measures of the ISIC challenges.
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
    args.add_argument("--csv", type=Path, help="for the scores of every image")
    args.add_argument("--against", type=Path, help="such a file of another checkpoint: the paired difference")
    args = args.parse_args()
    cfg, (segmenter, settings) = get_config("segmenter"), load_segmenter(args.checkpoint)
    store = prepare(open_dataset(cfg), cfg.stores, StoreConfig(settings.size, crop="none"), workers=cfg.workers)
    table = store.table.iloc[store.rows(args.split, needs=["mask"])]
    print(f"{store}\n{settings}", flush=True)
    start = time.perf_counter()
    found = score_images(segmenter, table)
    print(f"{args.split}, N {len(found)}, {time.perf_counter() - start:.0f} s with reading and scoring")
    for measure in ("jaccard", "thresholded_jaccard", "dice", "sensitivity", "specificity", "hd95"):
        low, high = bootstrap_ci(found[measure], found["group"])
        print(f"{measure:<12} {found[measure].mean():8.4f}  ({low:.4f} to {high:.4f})")
    kinds = table["label"].map(dict(enumerate(store.classes))).to_numpy()
    print(found.groupby(kinds)["jaccard"].agg(["mean", "count"]).round(3).to_string())
    if args.against:
        other = pd.read_csv(args.against).set_index("image_id").loc[found["image_id"]]
        difference, low, high = paired_difference(found["jaccard"], other["jaccard"], found["group"])
        print(f"jaccard against {args.against.name} {difference:+.4f}  ({low:+.4f} to {high:+.4f})")
    if args.csv:
        found.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
