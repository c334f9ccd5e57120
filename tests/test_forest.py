import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers.experiments import forest as module
from helpers.experiments.forest import feature_table, feature_values, forest_scores
from helpers.metrics.extractors import FeatureExtractor


class MeanColor(nn.Module):
    """Features (B, 3): the mean colors."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x.mean(dim=(2, 3))


def test_feature_table_has_a_row_per_image_and_survives_csv(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    extractor, labels = FeatureExtractor("mean-color", MeanColor()), np.array([0, 1, 1, 0, 1])
    table = feature_table(images, labels, extractor, ["a", "b"], source="real", split="test")
    assert list(table.columns) == ["source", "split", "diagnosis", "f0", "f1", "f2"]
    assert table["diagnosis"].to_list() == list("abbab") and (table["source"] == "real").all()
    assert feature_values(table) == pytest.approx(images.mean(axis=(1, 2)), abs=1e-3)
    table.to_csv(tmp_path / "features.csv", index=False)
    assert feature_values(pd.read_csv(tmp_path / "features.csv")) == pytest.approx(feature_values(table))


def test_forest_scores_on_synthetic_images_are_higher_than_on_real_ones(monkeypatch):
    """Real classes differ a little, in f0; synthetic ones differ a lot, in f1."""
    monkeypatch.setattr(module, "TREES", 50)
    rng = np.random.default_rng(0)

    def cases(source: str, split: str, count: int = 150) -> pd.DataFrame:
        labels = rng.integers(0, 2, count)
        values = rng.normal(size=(count, 2))
        values[:, 0] += 1.5 * labels * (source == "real")
        values[:, 1] += 6 * labels * (source == "synthetic")
        metadata = {"source": source, "split": split, "diagnosis": np.array(["a", "b"])[labels]}
        return pd.concat([pd.DataFrame(metadata), pd.DataFrame(values).add_prefix("f")], axis=1)

    table = pd.concat([cases(source, split) for source in ("real", "synthetic") for split in ("train", "test")])
    scores = forest_scores(table)
    assert list(scores.index) == list(scores.columns) == ["real", "synthetic", "combined"]
    assert scores.loc["synthetic", "synthetic"] > 0.95 and scores.loc["synthetic", "real"] < 0.65
    assert 0.6 < scores.loc["real", "real"] < 0.9
    assert scores.loc["combined", "combined"] > scores.loc["combined", "real"] + 0.05, "the mixture is easier"
    assert forest_scores(table).equals(scores), "repeatable"
