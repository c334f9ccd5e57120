import numpy as np
import pytest
from measure import choose, painter

from helpers.data.files import DataError
from helpers.models.cgan import CGANConfig, train_cgan
from helpers.models.dcgan import DCGANConfig, train_dcgan
from helpers.models.trainer import TrainConfig


def test_either_generator_paints_and_only_one_looks_at_sketches(phantom_store, tmp_path):
    classes, rows = tuple(phantom_store.classes), phantom_store.rows("train", ["sketch", "label"])
    train_cgan(phantom_store, CGANConfig(64, classes, base_channels=8), tmp_path / "cgan", TrainConfig(1, 4))
    train_dcgan(phantom_store, DCGANConfig(64, classes, base_channels=8), tmp_path / "dcgan", TrainConfig(1, 4), rows)
    batch = phantom_store.batch(rows[:3])
    other = np.zeros_like(batch["sketches"])
    for method, looks in (("cgan", True), ("dcgan", False)):
        paint, settings = painter(tmp_path / method / "checkpoint.pt")
        images = paint(batch["sketches"], batch["labels"], 0)
        assert settings.size == 64 and images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
        assert np.array_equal(images, paint(batch["sketches"], batch["labels"], 0)), "one seed, one picture"
        assert not np.array_equal(images, paint(batch["sketches"], batch["labels"], 1))
        assert np.array_equal(images, paint(other, batch["labels"], 0)) != looks
    (tmp_path / "none.pt").write_bytes(b"no network")
    with pytest.raises(DataError, match=r"none\.pt"):
        painter(tmp_path / "none.pt")


def test_the_floor_has_as_many_of_each_class(phantom_store):
    measured = choose(phantom_store, "test", "balanced")
    like = choose(phantom_store, "train", "balanced", measured)
    counts = [np.bincount(phantom_store.labels[rows], minlength=7) for rows in (measured, like)]
    assert np.array_equal(*counts) and len(set(measured)) == len(measured)
    natural = choose(phantom_store, "test", "natural")
    assert set(natural) == set(phantom_store.rows("test", ["sketch", "label"]))
    assert len(choose(phantom_store, "train", "natural", natural)) == len(natural)
