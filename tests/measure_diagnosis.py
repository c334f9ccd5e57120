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
from helpers.data.store import StoreSettings, prepare
from helpers.experiments.diagnosis import diagnose, diagnose_elsewhere, probabilities, scored
from helpers.metrics.diagnosis import calibration_error
from helpers.metrics.fidelity import looks_like
from helpers.metrics.stats import interval, paired
from helpers.models.cgan import draw, load_cgan
from helpers.models.classifier import classify, load_classifier

SAME = {"SK": "BKL"}


def main() -> None:
    door = argparse.ArgumentParser(description=__doc__)
    door.add_argument("checkpoint", type=Path)
    door.add_argument("--split", choices=("val", "test"), default="val")
    door.add_argument("--across", metavar="DATASET")
    door.add_argument("--data-root", type=Path)
    door.add_argument("--cgan", type=Path, help="its checkpoint; default: the one of `train cgan`")
    args = door.parse_args()
    cfg = get_config("quality", dataset=args.across, data_root=args.data_root)
    classifier, settings = load_classifier(args.checkpoint)
    dataset = open_dataset(cfg)
    style = "contour" if dataset.has_outlines else "structure"
    store = prepare(dataset, cfg.stores, StoreSettings(settings.size, style, seed=cfg.seed), workers=cfg.workers)
    rows = store.rows(args.split, needs=["label"])
    print(f"{store}\n{settings.network} from {classifier.backbone.start}, {settings.size} px, {args.split}")
    if args.across:
        print(scored(diagnose_elsewhere(classifier, store, rows, SAME)).round(3).to_string())
        return
    table = diagnose(classifier, store, rows)
    print(scored(table).round(3).to_string())
    after, classifier.temperature, temperature = probabilities(table), 1.0, classifier.temperature
    before, labels = classify(classifier, store.images[rows]), store.labels[rows]
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
    drawn = draw(generator, batch["sketches"], batch["labels"], seed=0)
    named = [looks_like(classify(classifier, images), batch["labels"]) for images in (batch["images"], drawn)]
    lesions = store.table["lesion_id"].fillna(store.table["image_id"]).iloc[sketched]
    for name, right in zip(("photographs", "drawings"), named, strict=True):
        recalls = np.mean([right[batch["labels"] == k].mean() for k in np.unique(batch["labels"])])
        low, high = interval(right, lesions)
        print(f"{name}: accuracy {right.mean():.3f} ({low:.3f} to {high:.3f}), balanced {recalls:.3f}, N {len(right)}")
    gap, low, high = paired(*named, lesions)
    print(f"gap {100 * gap:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")


if __name__ == "__main__":
    main()
