import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from factories import MeanPoolExtractor

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.learning_curve import LearningCurve
from helpers.metrics.extractors import FeatureExtractor
from helpers.models.gan import GANConfig
from helpers.models.networks import Generator
from helpers.models.sampling import sample_batch


@pytest.fixture
def val_store(phantom_store, monkeypatch) -> Store:
    """The small sample with all images in the val split."""
    monkeypatch.setattr(phantom_store, "splits", np.ones_like(phantom_store.splits))
    return phantom_store


def make_curve(store: Store, out: Path, every_nimg: int = 100) -> LearningCurve:
    """A curve of a run with batches of 10 images."""
    return LearningCurve(store, FeatureExtractor("mean-pool", MeanPoolExtractor()), out, 10, every_nimg)


def generator_of(store: Store, seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return GANConfig(64, tuple(store.classes), base_channels=8).generator().eval().requires_grad_(False)


def read_rows(out: Path) -> list[dict[str, float]]:
    with (out / "val.csv").open() as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


def columns(image: np.ndarray) -> list[np.ndarray]:
    """Columns of 64 px of a progress strip, in the order RGB."""
    return np.split(image[..., ::-1], image.shape[1] // 64, axis=1)


def test_curve_adds_a_row_after_every_interval_and_continues_after_a_resume(val_store, tmp_path):
    generator = generator_of(val_store)
    curve = make_curve(val_store, tmp_path)
    for step in (0, 5, 10, 15, 25):  # 0, 50, 100, 150 and 250 images
        curve(generator, step)
    assert [row["nimg"] for row in read_rows(tmp_path)] == [100, 250]
    resumed = make_curve(val_store, tmp_path)
    for step in (25, 28, 30):
        resumed(generator, step)
    rows = read_rows(tmp_path)
    assert [row["nimg"] for row in rows] == [100, 250, 300]
    for name in rows[0].keys() - {"nimg", "seconds"}:
        assert rows[0][name] == rows[1][name] == rows[2][name], f"{name} of the same generator"
    assert rows[0]["n"] == rows[0]["n_real"] == len(curve.batch["labels"]) >= 100
    assert {"kid", "fd", "position", "position_real", "structure"} <= rows[0].keys()


def test_curve_scores_of_real_images_are_better_than_those_of_an_untrained_generator(val_store, tmp_path, monkeypatch):
    curve = make_curve(val_store, tmp_path)
    untrained = curve.evaluate(generator_of(val_store))
    monkeypatch.setattr(curve, "generate", lambda generator, num, seed: curve.batch["images"][:num])
    real = curve.evaluate(generator_of(val_store))
    assert real["fd"] == pytest.approx(0, abs=1e-4) and real["kid"] < 0.2 * untrained["kid"]
    assert real["position"] == real["position_real"] == untrained["position_real"]
    assert real["structure"] == pytest.approx(1) and untrained["structure"] < 0.9


def test_progress_strip_has_the_sketches_and_a_column_per_stage(val_store, tmp_path):
    first, second = generator_of(val_store, 0), generator_of(val_store, 1)
    curve = make_curve(val_store, tmp_path, every_nimg=10_000)
    for generator, step in ((first, 0), (second, 50), (second, 120), (first, 200)):  # 0, 500, 1200 and 2000 images
        curve(generator, step)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "progress-0000000.png", "progress-0001000.png", "progress.png"
    ]  # fmt: skip
    sketches, *stages = columns(cv2.imread(str(tmp_path / "progress.png")))
    assert np.array_equal(255 - sketches[..., 0], np.concatenate(list(curve.batch["sketches"][:6])))
    batch = {name: array[:6] for name, array in curve.batch.items()}
    for stage, generator in zip(stages, (first, second), strict=True):
        assert np.array_equal(stage, np.concatenate(list(sample_batch(generator, batch))))


def test_progress_strip_stages_without_a_checkpoint_of_their_own_are_left_out(val_store, tmp_path):
    curve, generator = make_curve(val_store, tmp_path, every_nimg=100_000), generator_of(val_store)
    for step in (0, 800, 1600, 2400):  # 0, 8,000, 16,000 and 24,000 images
        curve(generator, step)
    names = sorted(file.name for file in tmp_path.glob("progress-*.png"))
    assert names == ["progress-0000000.png", "progress-0003000.png", "progress-0010000.png"]


def test_curve_of_too_few_val_sketches_raises(phantom_store, tmp_path):
    with pytest.raises(DataError, match="phantoms needs at least 100 val images with sketch and label, got 14"):
        make_curve(phantom_store, tmp_path)
