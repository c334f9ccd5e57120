"""How good is a classifier on real images? `python tests/measure_diagnosis.py CHECKPOINT --split val|test`

Measures with intervals, calibration before and after, and, where `train cgan` has been run at the same size, the same
question about drawings of the same sketches. `--across DATASET --data-root FOLDER` asks about another data set's split
instead (ISIC 2017's SK is HAM10000's BKL). `val` chose weights and temperature, so it flatters; give `test` once.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.config import get_config
from helpers.data.layouts import open_dataset
from helpers.data.store import StoreConfig, prepare
from helpers.experiments.real_vs_synthetic import predict_cross_dataset, predict_table, probabilities, score_table
from helpers.metrics.classification import calibration_error
from helpers.metrics.fidelity import label_accuracy
from helpers.metrics.stats import bootstrap_ci, paired_difference
from helpers.models.cgan import load_cgan, sample
from helpers.models.classifier import load_classifier, predict_proba

SAME = {"SK": "BKL"}


def main() -> None:
    door = argparse.ArgumentParser(description=__doc__)
    door.add_argument("checkpoint", type=Path)
    door.add_argument("--split", choices=("val", "test"), default="val")
    door.add_argument("--across", metavar="DATASET")
    door.add_argument("--data-root", type=Path)
    door.add_argument("--cgan", type=Path, help="its checkpoint; default: the one of `train cgan`")
    args = door.parse_args()
    cfg = get_config("classifier", dataset=args.across, data_root=args.data_root)
    classifier, settings = load_classifier(args.checkpoint)
    dataset = open_dataset(cfg)
    style = "contour" if dataset.has_contours else "structure"
    store = prepare(dataset, cfg.stores, StoreConfig(settings.size, style, seed=cfg.seed), workers=cfg.workers)
    rows = store.rows(args.split, needs=["label"])
    print(f"{store}\n{settings.arch} from {classifier.backbone.init}, {settings.size} px, {args.split}")
    if args.across:
        print(score_table(predict_cross_dataset(classifier, store, rows, SAME)).round(3).to_string())
        return
    table = predict_table(classifier, store, rows)
    print(score_table(table).round(3).to_string())
    after, classifier.temperature, temperature = probabilities(table), 1.0, classifier.temperature
    before, labels = predict_proba(classifier, store.images[rows]), store.labels[rows]
    errors = [calibration_error(p, labels) for p in (before, after)]
    print(f"calibration error {errors[0]:.3f} before, {errors[1]:.3f} after temperature {temperature:.2f}")
    cgan = args.cgan or cfg.outputs / "cgan" / "checkpoint.pt"
    if not cgan.is_file():
        return
    generator, trained = load_cgan(cgan)
    if (trained.size, trained.classes) != (settings.size, settings.classes):
        raise SystemExit(f"the generator draws {trained.size} px and {trained.classes}: no drawings to compare with")
    sketched = store.rows(args.split, needs=["label", "sketch"])
    batch = store.batch(sketched, ("images", "sketches", "labels"))
    drawn = sample(generator, batch["sketches"], batch["labels"], seed=0)
    named = [label_accuracy(predict_proba(classifier, images), batch["labels"]) for images in (batch["images"], drawn)]
    lesions = store.table["lesion_id"].fillna(store.table["image_id"]).iloc[sketched]
    for name, right in zip(("photographs", "drawings"), named, strict=True):
        recalls = np.mean([right[batch["labels"] == k].mean() for k in np.unique(batch["labels"])])
        low, high = bootstrap_ci(right, lesions)
        print(f"{name}: accuracy {right.mean():.3f} ({low:.3f} to {high:.3f}), balanced {recalls:.3f}, N {len(right)}")
    gap, low, high = paired_difference(*named, lesions)
    print(f"gap {100 * gap:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")


if __name__ == "__main__":
    main()
