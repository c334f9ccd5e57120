"""Which classification network, and which segmentation network, is best on this data? Equal steps, one row per
architecture, or per architecture and encoder."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.evaluation import mean_row
from helpers.experiments.runner import check_options, training_facts
from helpers.metrics.prediction_tables import predict_table, score_table
from helpers.metrics.segmentation_scores import score_images
from helpers.models.classifier import ClassifierConfig, load_classifier, train_classifier
from helpers.models.segmenter import SegmenterConfig, load_segmenter, train_segmenter
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


@dataclass(frozen=True)
class SegmenterExperiment:
    """Settings of the comparison."""

    segmenter: SegmenterConfig
    train: TrainConfig
    archs: tuple[str, ...] = ("Unet", "DeepLabV3Plus")  # see `SegmenterConfig.arch`
    encoders: tuple[str, ...] = ("mobilenet_v2", "tu-tf_efficientnet_lite1")  # see `SegmenterConfig.encoder_name`
    no_effect: ClassVar = {"segmenter.arch": "--archs decides", "segmenter.encoder_name": "--encoders decides"}


def segmenter_experiment(store: Store, experiment: SegmenterExperiment, out: str | Path) -> pd.DataFrame:
    """Train each architecture with each encoder, its checkpoint in a folder of `out`; trainings that were stopped
    continue.

    Returns a row for each: `arch encoder init measure value n low high seed` and `training_facts`. The value is the
    mean Jaccard index on val, every image at its own size, with its interval over lesions. Val also chose the weights,
    so the scores are optimistic, those of all networks alike. Raises `DataError` if no image in val has a mask.
    """
    check_options(experiment)
    if not len(store.rows("val", needs=["mask"])):
        raise DataError(f"{store.name} has no masks in val to compare with")
    pairs = [(arch, encoder) for arch in experiment.archs for encoder in experiment.encoders]
    return pd.DataFrame(segmenter_row(store, experiment, *pair, Path(out)) for pair in pairs)


def segmenter_row(store: Store, experiment: SegmenterExperiment, arch: str, encoder: str, out: Path) -> dict:
    """Train one network and score it on val."""
    config, checkpoint = experiment.segmenter, out / f"{arch}-{encoder}" / "checkpoint.pt"
    config = replace(config, arch=arch, encoder_name=encoder)
    train_segmenter(store, config, checkpoint.parent, experiment.train)
    segmenter, _ = load_segmenter(checkpoint)
    scores = score_images(segmenter, store.table.iloc[store.rows("val", needs=["mask"])])
    score = mean_row("jaccard", scores["jaccard"], scores["group"], seed=experiment.train.seed)
    return {"arch": arch, "encoder": encoder, "init": segmenter.init} | score | training_facts(checkpoint, segmenter)
