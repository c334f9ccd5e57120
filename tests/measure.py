"""How far are drawn images from real ones? `python tests/measure.py CHECKPOINT --split val`, on the data set that
LESION_DATASET names, judged by MobileNetV2 (weights from LESION_WEIGHTS_DIR) or by another network: `--features NAME`.

Two protocols: `natural`, 1,000 pictures in their natural mix; `balanced`, 55 of every class, or all there are. Sketches
and labels of the split's pictures are drawn and compared with the pictures; the floor compares as many pictures of the
training split with them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.config import get_config
from helpers.data.layouts import open_dataset
from helpers.data.store import Store, StoreSettings, prepare
from helpers.metrics.features import features, judge, pictures_of
from helpers.metrics.quality import compare
from helpers.models.cgan import draw, load_cgan


def choose(store: Store, split: str, protocol: str, like: np.ndarray | None = None) -> np.ndarray:
    """Rows of a split by the protocol; with `like` as many of each class as there."""
    rows = np.random.default_rng(0).permutation(store.rows(split, needs=["sketch", "label"]))
    if protocol == "natural":
        return rows[: 1000 if like is None else len(like)]
    counts = (
        [55] * len(store.classes) if like is None else np.bincount(store.labels[like], minlength=len(store.classes))
    )
    return np.concatenate([rows[store.labels[rows] == k][:n] for k, n in enumerate(counts)])


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("checkpoint", type=Path)
    args.add_argument("--split", choices=("val", "test"), default="val")
    args.add_argument("--features", default="mobilenet_v2", metavar="NAME")
    args = args.parse_args()
    network, (generator, trained), cfg = judge(args.features), load_cgan(args.checkpoint), get_config("cgan")
    settings = StoreSettings(trained.size, trained.style, "square", cfg.seed)
    store = prepare(open_dataset(cfg), cfg.stores, settings, workers=cfg.workers)
    for protocol in ("natural", "balanced"):
        rows = choose(store, args.split, protocol)
        batch = store.batch(rows, ("images", "sketches", "labels"))
        drawn = draw(generator, batch["sketches"], batch["labels"], seed=0)
        others = store.batch(choose(store, "train", protocol, rows), ("images",))["images"]
        sets = (drawn, others, batch["images"])
        drawn, others, real = (features(pictures_of(s), network, trained.size) for s in sets)
        for name, found in (("drawn", compare(drawn, real)), ("floor", compare(others, real))):
            print(f"{protocol}, {args.split}, {name}: N {found['n']} and {found['n_real']},", end=" ")
            print(
                f"KID-{network.name} {found['kid']:.4f} ({found['kid_low']:.4f} to {found['kid_high']:.4f}),", end=" "
            )
            print(f"FD-{network.name} {found['fd']:.1f},", end=" ")
            print(f"precision {found['precision']:.2f}, recall {found['recall']:.2f}", flush=True)


if __name__ == "__main__":
    main()
