"""Features of real and generated images, and random forests on them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import MeanPoolExtractor

from helpers.__main__ import main
from helpers.data.files import DataError
from helpers.experiments import features as module
from helpers.experiments import forest
from helpers.experiments.features import FeatureComparison, feature_experiment, forest_rows, verdicts
from helpers.experiments.results import publish
from helpers.metrics.extractors import FeatureExtractor
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig
from helpers.shell import pages

OPTIONS = FeatureComparison(("resnet18", "efficientnet_lite1"), num_images=14)


@pytest.fixture(scope="module")
def generator(phantom_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    train_gan(phantom_store, GANConfig(64, base_channels=8, projected=True), folder, TrainConfig(1, 2))
    return folder / "checkpoint.pt"


@pytest.fixture(autouse=True)
def pooled(monkeypatch):
    """Two extractors, of which one has no ImageNet weights, and small forests."""
    names = {"resnet18": "resnet18, random init"}
    load = lambda name: FeatureExtractor(names.get(name, name), MeanPoolExtractor())  # noqa: E731
    monkeypatch.setattr(module, "load_extractor_or_random", load)
    monkeypatch.setattr(forest, "TREES", 20)


def test_feature_experiment_measures_train_and_test_images(phantom_store, generator, tmp_path):
    tables, rows = feature_experiment(phantom_store, generator, OPTIONS, tmp_path)
    table = pd.read_csv(tmp_path / "features-resnet18.csv")
    num_test = min(14, len(phantom_store.rows("test", ["label", "sketch"])))
    assert table.groupby(["split", "source"]).size().to_dict() == {
        ("train", "real"): 14, ("train", "synthetic"): 14, ("test", "real"): num_test, ("test", "synthetic"): num_test
    }  # fmt: skip
    assert list(tables) == ["resnet18, random init", "efficientnet_lite1"] and len(table) == len(
        tables["efficientnet_lite1"]
    )
    assert rows.groupby("extractor")["init"].first().to_dict() == {
        "efficientnet_lite1": "ImageNet", "resnet18, random init": "random init"
    }  # fmt: skip
    assert rows[rows["note"].notna()]["extractor"].unique().tolist() == ["efficientnet_lite1"], "its features trained D"
    assert {"ssim", "fd", "accuracy", "balanced_accuracy"} == set(rows["measure"]) and rows["n"].notna().all()
    distances = rows[rows["measure"].isin(["ssim", "fd"])]
    assert len(distances) == 2 + 2 * 2 and distances["floor"].notna().all()
    scores = rows[(rows["measure"] == "accuracy") & (rows["tested_on"] == "combined")]
    assert len(scores) == 6 and (scores["n"] == 2 * num_test).all() and scores["value"].between(0, 1).all()
    assert sum("took part in training" in line for line in module.limits(rows)) == 1


def test_generated_images_belong_to_the_real_image_of_their_row(phantom_store, generator):
    pairs = module.paired_images(phantom_store, generator, OPTIONS, "train")
    assert pairs.images["real"].shape == pairs.images["synthetic"].shape == (14, 64, 64, 3)
    assert not np.array_equal(pairs.images["real"], pairs.images["synthetic"])
    rows = [
        int(np.flatnonzero((phantom_store.images == image).all(axis=(1, 2, 3)))[0]) for image in pairs.images["real"]
    ]
    assert np.array_equal(phantom_store.labels[rows], pairs.labels)


def test_feature_experiment_refuses_a_generator_that_saw_test_images(phantom_store, tmp_path):
    rows = phantom_store.rows("test", ["label", "sketch"])
    train_gan(phantom_store, GANConfig(64, base_channels=8), tmp_path, TrainConfig(1, 2), rows)
    with pytest.raises(DataError, match="held out in phantoms"):
        feature_experiment(phantom_store, tmp_path / "checkpoint.pt", OPTIONS, tmp_path)


def test_feature_experiment_of_few_images_is_refused(phantom_store, generator, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="num_images must be at least 10, got 9"):
        replace(OPTIONS, num_images=9)
    monkeypatch.setattr(phantom_store, "has_sketch", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match="needs at least 10 train images with label and sketch, got 0"):
        feature_experiment(phantom_store, generator, OPTIONS, tmp_path)


def test_forest_rows_tell_the_flattering_test_from_the_honest_one():
    """Real classes differ in f0, synthetic ones only in f1: a forest of synthetic images does not know real ones."""
    rng = np.random.default_rng(0)

    def cases(source: str, split: str) -> pd.DataFrame:
        labels, values = rng.integers(0, 2, 150), rng.normal(size=(150, 2))
        values[:, 0] += 4 * labels * (source == "real")
        values[:, 1] += 6 * labels * (source == "synthetic")
        metadata = {
            "source": source,
            "split": split,
            "group": np.arange(150),
            "diagnosis": np.array(["a", "b"])[labels],
        }
        return pd.concat([pd.DataFrame(metadata), pd.DataFrame(values).add_prefix("f")], axis=1)

    table = pd.concat([cases(source, split) for source in ("real", "synthetic") for split in ("train", "test")])
    rows = pd.DataFrame(forest_rows(table)).assign(extractor="x")
    rows = rows[rows["measure"] == "balanced_accuracy"]
    scores = rows[rows["against"].isna()].set_index(["trained_on", "tested_on"])["value"]
    assert scores["synthetic", "synthetic"] > 0.95 and scores["synthetic", "real"] < 0.65 < 0.9 < scores["real", "real"]
    differences = rows[rows["against"].notna()].set_index("trained_on")
    assert differences.loc["synthetic", "verdict"] == "hurts"
    assert differences.loc["combined", "value"] == pytest.approx(scores["combined", "real"] - scores["real", "real"])
    lines = verdicts(rows)
    assert len(lines) == 2 and lines[0].startswith("x, trained on synthetic instead of real features")
    assert f"score {scores['synthetic', 'synthetic']:.3f} instead of {scores['synthetic', 'real']:.3f}" in lines[0]


def test_main_experiment_features_publishes_a_page(phantoms, generator, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    monkeypatch.setattr(pages, "publish", lambda *args: publish(*args, folder=tmp_path / "results"))
    options = ["--data-root", str(phantoms), "--cgan", str(generator), "--num-images", "12", "--publish"]
    assert main(["experiment", "features", *options, "--out", str(tmp_path / "out")]) == 0
    assert "instead of real features, tested on real ones: " in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "results").iterdir()}
    assert files == {f"features-phantoms-64.{ending}" for ending in ("csv", "md", "png")}
    assert (tmp_path / "results/features-phantoms-64.png").stat().st_size < 300_000
    assert "took part in training" in (tmp_path / "results/features-phantoms-64.md").read_text(encoding="utf-8")
    assert (tmp_path / "out/features-efficientnet_lite1.csv").is_file()
