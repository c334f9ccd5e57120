"""The experiments that compare networks after equally many steps: `backbones` and `segmenters`."""

from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

from helpers.__main__ import main
from helpers.experiments import networks_compared
from helpers.experiments.networks_compared import (
    BackboneExperiment,
    SegmenterExperiment,
    backbone_experiment,
    segmenter_experiment,
)
from helpers.experiments.results import publish
from helpers.experiments.runner import to_wide, training_facts
from helpers.models.classifier import ClassifierConfig
from helpers.models.segmenter import SegmenterConfig
from helpers.models.trainer import TrainConfig
from helpers.shell import pages
from helpers.shell.publishing import best_sentence

ENCODER = "tu-test_efficientnet"  # timm's smallest: 0.1 million parameters
CLASSIFIER = ClassifierConfig(64, pretrained=False)
SEGMENTER = SegmenterConfig(64, decoder_channels=32, pretrained=False, tta=False)


def test_training_facts_divide_the_images_by_the_seconds_without_validation(tmp_path):
    saved = {"config": {}, "extra_state": {}, "ema_models": {}, "step": 6, "train_config": {"batch_size": 5}}
    torch.save(saved | {"seconds": 10.0, "validation_seconds": 4.0}, tmp_path / "checkpoint.pt")
    facts = training_facts(tmp_path / "checkpoint.pt", nn.Linear(3, 2))
    assert facts == {"parameters": 8, "steps": 6, "images_per_second": 5.0, "seconds": 10.0}


def test_backbone_experiment_has_two_measures_per_network_and_halves_the_steps(phantom_store, tmp_path, monkeypatch):
    monkeypatch.setattr(networks_compared, "HALF_STEPS", ("mobilenet_v3_small",))
    experiment = BackboneExperiment(CLASSIFIER, TrainConfig(4, 4), ("mobilenet_v3_small", "small_cnn"))
    rows = backbone_experiment(phantom_store, experiment, tmp_path)
    assert rows["arch"].tolist() == ["mobilenet_v3_small"] * 2 + ["small_cnn"] * 2
    assert rows["measure"].tolist() == ["balanced_accuracy", "auc"] * 2 and rows["steps"].tolist() == [2, 2, 4, 4]
    assert set(rows["init"]) == {"random init"} and set(rows["n"]) == {len(phantom_store.rows("val", ["label"]))}
    assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()
    assert (rows["seconds"] > 0).tolist() == [True, False, True, False], "so that they can be added up"
    table = to_wide(rows, ["arch"])
    assert table.loc["small_cnn", "parameters"] == "0.39 M" and table.loc["small_cnn", "steps"] == 4
    assert list(table.columns) == [
        "init",
        "parameters",
        "steps",
        "seconds",
        "images/s",
        "balanced accuracy",
        "auc",
        "N",
    ]


def test_backbone_experiment_continues_after_a_kill_and_counts_all_seconds(phantom_store, tmp_path, monkeypatch):
    train, archs = networks_compared.train_classifier, ("small_cnn", "mobilenet_v3_small")
    experiment = BackboneExperiment(CLASSIFIER, TrainConfig(2, 4, save_every=1), archs)

    def killed(store, config, out, train_config):
        if config.arch != "small_cnn":
            raise KeyboardInterrupt
        train(store, config, out, train_config)
        saved = torch.load(out / "checkpoint.pt", weights_only=True)
        torch.save(saved | {"seconds": 1000.0}, out / "checkpoint.pt")  # of the process that ends here

    monkeypatch.setattr(networks_compared, "train_classifier", killed)
    with pytest.raises(KeyboardInterrupt):
        backbone_experiment(phantom_store, experiment, tmp_path)
    monkeypatch.setattr(networks_compared, "train_classifier", train)
    rows = backbone_experiment(phantom_store, experiment, tmp_path)
    assert set(rows["arch"]) == set(archs) and rows["seconds"].iloc[0] == 1000, "trained before, not again"


def test_segmenter_experiment_has_a_row_per_architecture_and_encoder(phantom_store, tmp_path):
    experiment = SegmenterExperiment(SEGMENTER, TrainConfig(1, 4), encoders=(ENCODER,))
    store = phantom_store
    rows = segmenter_experiment(store, experiment, tmp_path / "out")
    assert rows[["arch", "encoder"]].values.tolist() == [["Unet", ENCODER], ["DeepLabV3Plus", ENCODER]]
    assert set(rows["measure"]) == {"jaccard"} and set(rows["n"]) == {len(store.rows("val", ["mask"]))}
    assert rows["value"].between(rows["low"], rows["high"]).all() and (rows["images_per_second"] > 0).all()
    assert to_wide(rows, ["arch", "encoder"]).loc[("Unet", ENCODER), "steps"] == 1


def test_default_segmenters_are_two_architectures_with_two_encoders():
    experiment = SegmenterExperiment(SEGMENTER, TrainConfig(1))
    assert experiment.archs == ("Unet", "DeepLabV3Plus")
    assert experiment.encoders == ("mobilenet_v2", "tu-tf_efficientnet_lite1")


def test_best_sentence_names_the_networks_inside_the_interval_of_the_best():
    rows = pd.DataFrame({"arch": ["a", "b", "c"], "measure": "auc", "value": [0.5, 0.8, 0.75], "low": [0.4, 0.7, 0.6],
                         "high": [0.6, 0.9, 0.85], "n": 20})  # fmt: skip
    assert best_sentence(rows, "auc", ["arch"]) == (
        "By auc b is best (0.800, 0.700 to 0.900, N 20); within its interval: c."
    )


def test_main_backbones_and_segmenters_publish_their_tables(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.setattr(pages, "publish", partial(publish, folder=tmp_path / "results"))
    data = ["--dataset", "phantoms", "--data-root", str(phantoms), "--train.steps", "1", "--publish"]
    networks = {
        "backbones": ["--archs", "small_cnn"],
        "segmenters": ["--archs", "Unet", "--encoders", ENCODER, "--segmenter.no-pretrained"],
    }
    for name, options in networks.items():
        assert main(["experiment", name, *data, *options]) == 0
        assert "synthetic phantoms, no real images" in (tmp_path / "results" / f"{name}-phantoms-64.md").read_text()
        table = pd.read_csv(tmp_path / "results" / f"{name}-phantoms-64.csv")
        assert set(table["arch"]) == {options[1]} and table["parameters"].gt(10_000).all()
        assert (tmp_path / "results" / f"{name}-phantoms-64.png").stat().st_size < 300_000
    assert "is best" in capsys.readouterr().out
