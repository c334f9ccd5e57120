"""What the networks of an arm train on, and for how long."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.data.batches import ImageSource
from helpers.data.layouts import ARTIFACTS
from helpers.experiments import arms as module
from helpers.experiments import synthetic
from helpers.experiments.arms import NEW_ARMS, PRETRAINED, ArmConfig, agreement, better_half, fit_arm, runnable
from helpers.experiments.generators import RunOptions
from helpers.experiments.synthetic import cgan_images, images_with_equal_artifacts
from helpers.models.checkpoint import read_checkpoint
from helpers.models.classifier import ClassifierConfig, fit_classifier
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig


@pytest.fixture(scope="module")
def checkpoint(phantom_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    train_gan(phantom_store, GANConfig(64, base_channels=8), folder, TrainConfig(1, 2))
    return folder / "checkpoint.pt"


def source_of(labels: list[int]) -> ImageSource:
    count = len(labels)
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    masks = np.zeros((count, 4, 4), np.uint8)
    masks[:, :2] = 1
    return ImageSource(images, np.arange(count), masks, np.array(labels))


def test_better_half_keeps_the_best_of_each_class_by_the_sum_of_ranks():
    scores = np.array(
        [[0.9, 0.2], [0.8, 0.9], [0.1, 0.8], [0.2, 0.1], [0.02, 0.02], [0.01, 0.01], [0, 0], [0.03, 0.03]]
    )
    kept = better_half(source_of([0, 0, 0, 0, 1, 1, 1, 1]), scores)
    assert kept.images[:, 0, 0, 0].tolist() == [0, 1, 4, 7], "class 1 keeps its half though all its scores are lower"
    assert kept.labels.tolist() == [0, 0, 1, 1] and len(kept.masks) == 4 and kept.rows.tolist() == [0, 1, 2, 3]
    assert len(better_half(source_of([0, 0, 0, 1, 1]), np.ones((5, 2))).images) == 2


def test_agreement_is_dice_with_the_sketch_and_probability_of_the_label(monkeypatch):
    source, empty = source_of([1, 0]), np.zeros((4, 4), np.uint8)
    monkeypatch.setattr(module, "segment", lambda _, images: [source.masks[0], empty])
    monkeypatch.setattr(module, "predict_proba", lambda _, images: np.array([[0.3, 0.7], [0.4, 0.6]]))
    assert agreement(source, None, None) == pytest.approx(np.array([[1, 0.7], [0, 0.4]]))


def test_filtered_images_are_as_many_as_the_others_and_agree_better(phantom_store, checkpoint, tmp_path, monkeypatch):
    experiment = SimpleNamespace(train=TrainConfig(1, 4), seeds=(0,), generator=None, gan_train=None)
    sources_of = module.ArmSources(phantom_store, experiment, tmp_path, RunOptions(), 14, balanced=True)
    monkeypatch.setattr(sources_of, "generator", lambda fraction: (checkpoint, "a file"))
    _, filtered = sources_of(NEW_ARMS["filtered"], 0.5, 0)
    networks = sources_of.filter_networks(0.5)
    candidates = cgan_images(checkpoint, phantom_store, module.fraction_of_rows(phantom_store, 0.5), 28, 0, True)
    assert len(filtered.images) == 14 and np.bincount(filtered.labels, minlength=7).tolist() == [2] * 7
    kept, all_of_them = (agreement(source, *networks).mean(axis=0) for source in (filtered, candidates))
    assert kept.sum() > all_of_them.sum()
    assert set(networks[1].trained_on) == set().union(
        *(phantom_store.identities[row] for row in module.fraction_of_rows(phantom_store, 0.5))
    ), "the filter saw the fraction only"


def test_images_with_equal_artifacts_have_equal_rates_in_all_classes(phantom_store, checkpoint, monkeypatch):
    flags = np.zeros_like(phantom_store.artifacts)
    ruler, hair, ink = (ARTIFACTS.index(name) for name in ("ruler", "hair", "ink"))
    flags[phantom_store.labels == 0, ruler] = flags[phantom_store.labels == 1, hair] = 1
    flags[phantom_store.labels == 2, ink] = 1
    monkeypatch.setattr(phantom_store, "artifacts", flags)
    batches = []
    monkeypatch.setattr(synthetic, "sample_batch", lambda _, batch, seed: batches.append(batch))
    rows = phantom_store.rows("train", ["mask", "label", "sketch"])
    images_with_equal_artifacts(checkpoint, phantom_store, rows, 98, 0)
    cgan_images(checkpoint, phantom_store, rows, 98, 0, balanced=True)
    rates = [np.array([batch["artifacts"][batch["labels"] == k].mean(axis=0) for k in range(7)]) for batch in batches]
    assert rates[0][:, [ruler, hair]] == pytest.approx(np.full((7, 2), 2 / 14)), "1 of 7 classes, of 14 images each"
    assert rates[1][:, ruler].tolist() == [1, 0, 0, 0, 0, 0, 0], "else as in the data"
    assert np.array_equal(rates[0][:, ink], rates[1][:, ink]), "the other flags stay"


def test_runnable_leaves_out_what_the_data_do_not_allow(phantom_store, monkeypatch):
    arms = {"filtered": ArmConfig(selection="filtered"), "equal": ArmConfig(selection="equal artifacts")}
    conditioned, not_conditioned = (SimpleNamespace(generator=GANConfig(64, artifacts=a)) for a in (True, False))
    assert list(runnable(arms, phantom_store, conditioned, RunOptions())) == ["filtered", "equal"]
    assert list(runnable(arms, phantom_store, not_conditioned, RunOptions())) == ["filtered"]
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    assert list(runnable(arms, phantom_store, conditioned, RunOptions())) == ["equal"]


def test_with_augmentation_adds_classical_augmentation_to_named_arms():
    assert module.with_augmentation(()) == () and module.with_augmentation(("real",)) == ("real",)
    assert module.with_augmentation(("filtered", "real")) == ("filtered", "real", "real + augmentation")


def fit(config: ClassifierConfig, sources, out, train_config, init_from):
    return fit_classifier(sources, config, out, train_config, init_from=init_from)


def test_fit_arm_pretrained_halves_the_steps_and_continues_the_weights(phantom_store, tmp_path):
    rows, config = phantom_store.rows("train", ["label"]), ClassifierConfig(64, tuple(phantom_store.classes))
    source = ImageSource(phantom_store.images, rows, labels=phantom_store.labels)
    calls = []

    def recorded(sources, out, train_config, init_from):
        calls.append((sources, train_config.steps, init_from))
        return fit(config, sources, out, train_config, init_from)

    other = ImageSource(source.images, rows[::2], labels=source.labels)
    facts = fit_arm(recorded, NEW_ARMS[PRETRAINED], [source, other], tmp_path, TrainConfig(5, 2))
    start = tmp_path / "pretraining/checkpoint.pt"
    assert calls == [([other], 2, None), ([source], 3, start)], "synthetic images first, 5 steps in all"
    seconds = [read_checkpoint(file)["seconds"] for file in (start, tmp_path / "checkpoint.pt")]
    assert facts == {"init": "random init", "seconds": pytest.approx(sum(seconds), abs=0.06)}
    assert read_checkpoint(tmp_path / "checkpoint.pt")["extra_state"]["init_from"] != "random init"


def test_fit_arm_counts_the_seconds_of_all_processes(phantom_store, tmp_path):
    """As after a kill: the checkpoint of the first process says that it took 100 seconds."""
    rows, config = phantom_store.rows("train", ["label"]), ClassifierConfig(64, tuple(phantom_store.classes))
    source = ImageSource(phantom_store.images, rows, labels=phantom_store.labels)
    arm, train_config = ArmConfig(real=True), TrainConfig(3, 2)
    assert fit_arm(partial(fit, config), arm, [source], tmp_path, train_config)["seconds"] < 100
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(saved | {"seconds": 100.0, "step": 2}, tmp_path / "checkpoint.pt")
    assert fit_arm(partial(fit, config), arm, [source], tmp_path, train_config)["seconds"] >= 100
