from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories import MeanPoolExtractor

from helpers.config import Config
from helpers.data.files import DataError
from helpers.experiments import evaluate_extractor as module
from helpers.experiments.evaluate_extractor import (
    ExtractorEvaluation,
    balanced_halves,
    damaged_sets,
    evaluate_extractor,
    monotone,
    probe_rows,
    replace_by_others,
)
from helpers.metrics.extractors import FeatureExtractor, load_extractor, random_extractor
from helpers.models.checkpoint import export_weights
from helpers.models.simclr import SkinConfig, train_skin
from helpers.models.trainer import TrainConfig

OPTIONS = ExtractorEvaluation(size=64, max_per_class=50)


class Constant(torch.nn.Module):
    """Features without any information: the mean over all images of a batch is 1."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.gain * torch.ones(len(x), 4) + 1e-6 * x.mean(dim=(1, 2, 3))[:, None].sign()


@pytest.fixture
def cfg(phantoms, tmp_path) -> Config:
    folders = {name: tmp_path / name for name in ("stores", "features", "outputs", "released")}
    return Config("smoke", "phantoms", phantoms, workers=1, **folders)


def test_monotone_needs_every_step_of_a_damage_to_rise():
    rows = [{"class": name, "value": value} for name, values in (("a", (0, 1, 2)), ("b", (0, 2, 2)), ("c", (3, 1, 4)))
            for value in values]  # fmt: skip
    assert monotone(rows) == {"a": True, "b": False, "c": False}


def test_replace_by_others_keeps_the_number_and_replaces_the_fraction():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    chosen = np.arange(10) < 4
    assert replace_by_others(images, chosen, 0.0).ravel().tolist() == [0, 1, 2, 3]
    assert replace_by_others(images, chosen, 0.5).ravel().tolist() == [2, 3, 4, 9]
    assert (replace_by_others(images, chosen, 1.0) >= 4).all()


def test_balanced_halves_are_disjoint_training_rows_with_equal_classes(phantom_store):
    first, second = balanced_halves(phantom_store, OPTIONS)
    assert not set(first) & set(second) and set(first) | set(second) <= set(phantom_store.rows("train"))
    counts = [np.bincount(phantom_store.labels[rows], minlength=7) for rows in (first, second)]
    assert np.array_equal(*counts)
    few = balanced_halves(phantom_store, replace(OPTIONS, max_per_class=10))[0]
    assert np.bincount(phantom_store.labels[few]).max() == 10
    with pytest.raises(DataError, match="needs a class with 20 training images, got 18"):
        balanced_halves(phantom_store, replace(OPTIONS, max_per_class=9))


def test_damaged_sets_start_unchanged_and_drop_all_classes_but_one(phantom_store):
    sets = {name: (reference, dict(pairs)) for name, reference, pairs in damaged_sets(phantom_store, OPTIONS)}
    assert list(sets) == ["blur", "noise", "JPEG", "dropped classes", "wrong class"]
    images = np.array(phantom_store.images[balanced_halves(phantom_store, OPTIONS)[1]])
    for name in ("blur", "noise", "JPEG", "dropped classes"):
        assert np.array_equal(sets[name][1][0.0], images) and len(sets[name][1]) == 4
    largest = np.bincount(phantom_store.labels[phantom_store.rows("train")]).max()
    assert len(sets["dropped classes"][1][6 / 7]) == largest // 2
    reference, levels = sets["wrong class"]
    assert {len(level) for level in levels.values()} == {len(reference)}


def test_evaluate_extractor_says_what_rises_and_whether_the_extractor_is_accepted(cfg, monkeypatch):
    pooled, constant = FeatureExtractor("pool", MeanPoolExtractor(3.0)), FeatureExtractor("constant", Constant())
    monkeypatch.setattr(module, "load_extractor", lambda name: {"pool": pooled, "constant": constant}[name])
    monkeypatch.setattr(module, "random_extractor", lambda name: constant)
    table = evaluate_extractor("pool", OPTIONS, cfg)
    kids = table[table["measure"] == "kid"]
    assert set(table["extractor"]) == {"pool"} and len(kids) == 20 and kids["n"].min() >= 10
    for name, rises in monotone(kids.to_dict("records")).items():
        assert f"{name}: KID {'rises' if rises else 'does NOT rise'} with the strength" in table.attrs["notes"]
    notes = evaluate_extractor("constant", OPTIONS, cfg).attrs["notes"]
    assert "blur: KID does NOT rise with the strength" in notes and notes[-1] == "constant is NOT accepted"
    assert "linear probe: NOT better than the same network with random weights" in notes


def test_probe_rows_score_labels_that_the_features_hold(cfg):
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).integers(0, 40, (60, 8, 8, 3))
    images = (80 * labels[:, None, None, None] + noise).astype(np.uint8)
    rows = {"train": np.arange(40), "val": np.arange(40, 60)}
    store = SimpleNamespace(images=images, labels=labels, rows=lambda split, needs: rows[split])
    extractors = {
        "trained": FeatureExtractor("pool", MeanPoolExtractor()),
        "random init": FeatureExtractor("c", Constant()),
    }
    trained, random = probe_rows(store, extractors, 0, cfg)
    assert trained["value"] == 1 and random["value"] == pytest.approx(1 / 3, abs=0.01)
    assert trained["n"] == 20 and random["compared"] == "random init"


def test_random_extractor_has_the_structure_of_the_trained_one_and_other_weights(phantom_store, tmp_path):
    train_skin([phantom_store], SkinConfig(64, base_channels=8), tmp_path, TrainConfig(1, 4))
    name = f"skin={export_weights(tmp_path / 'checkpoint.pt', tmp_path / 'skin.safetensors')}"
    trained, random = load_extractor(name), random_extractor(name)
    assert random.name == "skin, random init" and random.key == random_extractor(name).key != trained.key
    images = np.array(phantom_store.images[:2])
    assert random(images).shape == trained(images).shape
    assert random_extractor("shufflenet_v2_x0_5").name == "shufflenet_v2_x0_5, random init"
