"""Which classification network is best on this data? Equal steps, one row per architecture."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd

from helpers.data.store import Store
from helpers.experiments.runner import check_options, training_facts
from helpers.metrics.prediction_tables import predict_table, score_table
from helpers.models.classifier import ClassifierConfig, load_classifier, train_classifier
from helpers.models.trainer import TrainConfig

HALF_STEPS = ("vgg19",)  # its step takes ten times as long as that of resnet18
MEASURES = {"balanced accuracy": "balanced_accuracy", "auc": "auc"}  # row of `score_table` -> name here


@dataclass(frozen=True)
class BackboneExperiment:
    """Settings of the comparison."""

    classifier: ClassifierConfig
    train: TrainConfig
    archs: tuple[str, ...] = ("small_cnn", "resnet18", "mobilenet_v2")  # networks to compare, see `Backbone`
    no_effect: ClassVar = {"classifier.arch": "--archs decides"}


def backbone_experiment(store: Store, experiment: BackboneExperiment, out: str | Path) -> pd.DataFrame:
    """Train each architecture, its checkpoint in a folder of `out`; trainings that were stopped continue.

    Returns a row per architecture and measure of `MEASURES` on val: `arch init measure value n low high seed` and
    `training_facts`, whose `seconds` are in the first row of an architecture. Val also chose the weights, so the
    scores are optimistic, those of all networks alike. Networks in `HALF_STEPS` are trained for half the steps.
    """
    check_options(experiment)
    return pd.DataFrame(row for arch in experiment.archs for row in backbone_rows(store, experiment, arch, Path(out)))


def backbone_rows(store: Store, experiment: BackboneExperiment, arch: str, out: Path) -> Iterator[dict]:
    """Train one architecture and yield a row per measure."""
    train_config, checkpoint = experiment.train, out / arch / "checkpoint.pt"
    if arch in HALF_STEPS:
        train_config = replace(train_config, steps=max(1, train_config.steps // 2))
    train_classifier(store, replace(experiment.classifier, arch=arch), checkpoint.parent, train_config)
    classifier, _ = load_classifier(checkpoint)
    scores = score_table(predict_table(classifier, store, store.rows("val", needs=["label"])))
    facts = {"seed": train_config.seed} | training_facts(checkpoint, classifier)
    for name, measure in MEASURES.items():
        score = scores.loc[name]
        values = {"value": score["value"], "n": int(score["N"]), "low": score["from"], "high": score["to"]}
        yield {"arch": arch, "init": classifier.backbone.init, "measure": measure} | values | facts
        facts["seconds"] = 0.0
