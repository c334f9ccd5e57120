"""Which classification network is best on this data? Equal steps, one row per architecture."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from helpers.data.store import Store
from helpers.models.classifier import ClassifierConfig, load_classifier, train_classifier
from helpers.models.trainer import TrainConfig


@dataclass(frozen=True)
class BackboneExperiment:
    """Settings of the comparison."""

    classifier: ClassifierConfig
    train: TrainConfig
    archs: tuple[str, ...] = ("small_cnn", "resnet18", "mobilenet_v2")  # small_cnn, or torchvision classifiers


def backbone_experiment(store: Store, experiment: BackboneExperiment, out: str | Path) -> pd.DataFrame:
    """Train each architecture, its checkpoint in a folder of `out`: a row per architecture with its initial weights
    `init`, `parameters` (millions), best `balanced accuracy` on the val split, the split's size `N`, and `seconds`."""
    rows, count = {}, len(store.rows("val", needs=["label"]))
    for arch in experiment.archs:
        start, folder = time.perf_counter(), Path(out) / arch
        config = replace(experiment.classifier, arch=arch)
        history = train_classifier(store, config, folder, experiment.train)
        seconds, (classifier, _) = time.perf_counter() - start, load_classifier(folder / "checkpoint.pt")
        rows[arch] = {
            "init": classifier.backbone.init,
            "parameters": round(sum(p.numel() for p in classifier.parameters()) / 1e6, 2),
            "balanced accuracy": round(max(history["val_balanced_accuracy"]), 3),
            "N": count,
            "seconds": round(seconds),
        }
    return pd.DataFrame(rows).T
