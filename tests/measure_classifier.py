"""Classification scores on real images: `python tests/measure_classifier.py CHECKPOINT --split val|test`

Prints measures with intervals, the calibration error before and after temperature scaling and, if `train cgan` left a
checkpoint of this size, the accuracy on generated images of the same sketches. `--across DATASET --data-root FOLDER`
scores a split of another data set instead (ISIC 2017's SK counts as HAM10000's BKL). `val` selected the weights and the
temperature, so its scores are optimistic; use `test` once.
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
from helpers.models.classifier import load_classifier, predict_proba
from helpers.models.gan import load_gan
from helpers.models.sampling import sample_batch

SAME_CLASS = {"SK": "BKL"}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("checkpoint", type=Path)
    args.add_argument("--split", choices=("val", "test"), default="val")
    args.add_argument("--across", metavar="DATASET", help="score a split of this data set")
    args.add_argument("--data-root", type=Path, help="folder of the data set")
    args.add_argument("--cgan", type=Path, help="checkpoint of a CGAN; default: the one of `train cgan`")
    args = args.parse_args()
    cfg = get_config("classifier", dataset=args.across, data_root=args.data_root)
    classifier, config = load_classifier(args.checkpoint)
    dataset = open_dataset(cfg)
    style = "contour" if dataset.has_contours else "structure"
    store = prepare(dataset, cfg.stores, StoreConfig(config.size, style, seed=cfg.seed), workers=cfg.workers)
    rows = store.rows(args.split, needs=["label"])
    print(f"{store}\n{config.arch} from {classifier.backbone.init}, {config.size} px, {args.split}")
    if args.across:
        print(score_table(predict_cross_dataset(classifier, store, rows, SAME_CLASS)).round(3).to_string())
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
    generator, gan_config = load_gan(cgan)
    if (gan_config.size, gan_config.classes) != (config.size, config.classes):
        raise SystemExit(
            f"the generator must have size {config.size} and classes {config.classes}, got {gan_config.size} and "
            f"{gan_config.classes}"
        )
    sketch_rows = store.rows(args.split, needs=["label", "sketch"])
    batch = store.batch(sketch_rows)
    generated, labels = sample_batch(generator, batch), batch["labels"]
    correct = [label_accuracy(predict_proba(classifier, images), labels) for images in (batch["images"], generated)]
    lesions = store.table["lesion_id"].fillna(store.table["image_id"]).iloc[sketch_rows]
    for name, hits in zip(("real", "synthetic"), correct, strict=True):
        balanced = np.mean([hits[labels == k].mean() for k in np.unique(labels)])
        low, high = bootstrap_ci(hits, lesions)
        print(f"{name}: accuracy {hits.mean():.3f} ({low:.3f} to {high:.3f}), balanced {balanced:.3f}, N {len(hits)}")
    gap, low, high = paired_difference(*correct, lesions)
    print(f"gap {100 * gap:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")


if __name__ == "__main__":
    main()
