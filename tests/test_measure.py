import numpy as np
import pytest
from measure import load_generator, sample_rows

from helpers.data.files import DataError
from helpers.models.gan import GANConfig, dcgan_config, train_gan
from helpers.models.trainer import TrainConfig


def test_load_generator_cgan_and_dcgan_only_the_cgan_depends_on_sketches(phantom_store, tmp_path):
    classes, rows = tuple(phantom_store.classes), phantom_store.rows("train", ["sketch", "label"])
    train_gan(phantom_store, GANConfig(64, classes, base_channels=8), tmp_path / "cgan", TrainConfig(1, 4))
    train_gan(phantom_store, dcgan_config(64, base_channels=8), tmp_path / "dcgan", TrainConfig(1, 4), rows)
    batch = phantom_store.batch(rows[:3])
    blank = batch | {"sketches": np.zeros_like(batch["sketches"])}
    for method, uses_sketches in (("cgan", True), ("dcgan", False)):
        generate, config = load_generator(tmp_path / method / "checkpoint.pt")
        images = generate(batch, 0)
        assert config.size == 64 and images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
        assert np.array_equal(images, generate(batch, 0)), "repeatable by seed"
        assert not np.array_equal(images, generate(batch, 1))
        assert np.array_equal(images, generate(blank, 0)) != uses_sketches


def test_load_generator_other_file_raises(tmp_path):
    (tmp_path / "none.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"none\.pt"):
        load_generator(tmp_path / "none.pt")


def test_sample_rows_like_other_rows_returns_as_many_of_each_class(phantom_store):
    measured = sample_rows(phantom_store, "test", "balanced")
    floor = sample_rows(phantom_store, "train", "balanced", measured)
    counts = [np.bincount(phantom_store.labels[rows], minlength=7) for rows in (measured, floor)]
    assert np.array_equal(*counts) and len(set(measured)) == len(measured)
    natural = sample_rows(phantom_store, "test", "natural")
    assert set(natural) == set(phantom_store.rows("test", ["sketch", "label"]))
    assert len(sample_rows(phantom_store, "train", "natural", natural)) == len(natural)
