import shutil
from dataclasses import replace

import numpy as np
import pytest

from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.sketches import contour, fill
from helpers.data.store import StoreConfig
from helpers.experiments import synthetic as module
from helpers.experiments.synthetic import (
    blended_images,
    cgan_images,
    dcgan_images,
    ensure_generator,
    fits,
    new_sketch,
    sample_balanced,
    small_lesions,
)
from helpers.models.checkpoint import export_weights
from helpers.models.gan import GANConfig, dcgan_config, train_gan
from helpers.models.trainer import TrainConfig


@pytest.fixture(scope="module")
def checkpoint(phantom_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    train_gan(phantom_store, GANConfig(64, tuple(phantom_store.classes), base_channels=8), folder, TrainConfig(2, 4))
    return folder / "checkpoint.pt"


def test_cgan_images_have_new_masks_and_depend_on_the_seed(checkpoint, phantom_store):
    rows = phantom_store.rows("train", ["mask"])
    source = cgan_images(checkpoint, phantom_store, rows, 12)
    assert source.images.shape == (12, 64, 64, 3) and source.masks.shape == (12, 64, 64)
    assert set(np.unique(source.masks)) == {0, 1} and all(contour(mask).any() for mask in source.masks)
    assert all(np.array_equal(fill(contour(mask) // 255), mask) for mask in source.masks), "the sketch encloses it"
    stored = {phantom_store.masks[row].tobytes() for row in rows}
    assert not stored & {mask.tobytes() for mask in source.masks}
    same, other = (cgan_images(checkpoint, phantom_store, rows, 12, seed) for seed in (0, 1))
    assert np.array_equal(source.images, same.images) and np.array_equal(source.masks, same.masks)
    assert not np.array_equal(source.masks, other.masks)


def test_ensure_generator_takes_the_released_one_of_this_data_set(checkpoint, phantom_store, tmp_path, capsys):
    cfg = replace(get_config(), outputs=tmp_path / "outputs", released=tmp_path / "released")
    cfg.released.mkdir()
    released = export_weights(checkpoint, cfg.released / "cgan.safetensors")
    config = GANConfig(64, base_channels=8)
    assert ensure_generator(phantom_store, config, TrainConfig(1, 4), cfg) == released
    assert "generator: " in capsys.readouterr().out and not cfg.outputs.exists()
    shutil.copytree(checkpoint.parent, cfg.outputs / "cgan")
    own = ensure_generator(phantom_store, config, TrainConfig(2, 4), cfg)
    assert own == cfg.outputs / "cgan" / "checkpoint.pt"


def test_ensure_generator_takes_one_for_this_data_set_beside_the_released_one(checkpoint, phantom_store, tmp_path):
    cfg = replace(get_config(), outputs=tmp_path / "outputs", released=tmp_path / "data" / "released")
    (tmp_path / "data/training").mkdir(parents=True)
    shutil.copytree(get_config().released, cfg.released, ignore=lambda _, names: {*names} - {"cgan.safetensors"})
    file = export_weights(checkpoint, tmp_path / "data/training/cgan-phantoms.safetensors")
    assert ensure_generator(phantom_store, GANConfig(64, base_channels=8), TrainConfig(1, 4), cfg) == file


def test_ensure_generator_trains_one_if_the_released_saw_held_out_images(phantom_store, tmp_path):
    cfg = replace(get_config(), outputs=tmp_path / "outputs", released=tmp_path / "released")
    cfg.released.mkdir()
    config = GANConfig(64, base_channels=8)
    train_gan(phantom_store, config, tmp_path / "leaky", TrainConfig(1, 4), rows=phantom_store.rows("test", ["sketch"]))
    released = export_weights(tmp_path / "leaky/checkpoint.pt", cfg.released / "cgan.safetensors")
    assert not fits(released, phantom_store, 64)
    own = ensure_generator(phantom_store, config, TrainConfig(1, 4), cfg)
    assert own.is_file() and own != released
    assert fits(own, phantom_store, 64) and not fits(own, phantom_store, 128)


def test_cgan_images_of_a_network_with_other_classes_raise(checkpoint, phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "classes", ["benign", "malignant"])
    with pytest.raises(DataError, match="phantoms has the classes benign malignant, the network MEL NV"):
        cgan_images(checkpoint, phantom_store, np.array([0]), 2)


def test_cgan_images_of_a_structure_network_come_from_deformed_lines(phantom_store, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_store, "config", StoreConfig(64, "structure"))
    train_gan(phantom_store, GANConfig(64, base_channels=8), tmp_path, TrainConfig(1, 4))
    rows, sketches = phantom_store.rows("train", ["mask", "sketch"])[:4], []
    monkeypatch.setattr(module, "sample_batch", lambda _, batch, seed: sketches.append(batch["sketches"]))
    cgan_images(tmp_path / "checkpoint.pt", phantom_store, rows, 12)
    stored = {phantom_store.sketches[row].tobytes() for row in rows}
    assert sketches[0].shape == (12, 64, 64) and not stored & {sketch.tobytes() for sketch in sketches[0]}
    ink = phantom_store.sketches[rows].astype(bool).mean()
    assert 0.4 * ink < sketches[0].astype(bool).mean() < 2 * ink
    monkeypatch.undo()
    with pytest.raises(DataError, match="the store has contour sketches, the network was trained on structure ones"):
        cgan_images(tmp_path / "checkpoint.pt", phantom_store, rows, 2)


def test_new_sketch_of_an_image_without_a_mask_has_deformed_lines(phantom_store, monkeypatch):
    row = phantom_store.rows("train", ["mask", "sketch"])[0]
    lines, mask = new_sketch(phantom_store, row, np.random.default_rng(0))
    assert np.array_equal(contour(mask), lines)
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    monkeypatch.setattr(phantom_store, "masks", np.zeros_like(phantom_store.masks))
    lines, mask = new_sketch(phantom_store, row, np.random.default_rng(0))
    assert lines.any() and not mask.any() and not np.array_equal(lines, phantom_store.sketches[row])


def test_cgan_images_balanced_has_equally_many_per_class(checkpoint, phantom_store):
    source = cgan_images(checkpoint, phantom_store, phantom_store.rows("train", ["mask"]), 14, balanced=True)
    assert np.bincount(source.labels, minlength=7).tolist() == [2] * 7 and source.images.shape == (14, 64, 64, 3)


def test_sample_balanced_draws_equally_many_per_class():
    labels, rows = np.array([0] * 50 + [1] * 3 + [2] * 20), np.arange(2, 60)
    chosen = sample_balanced(labels, rows, 100, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [33, 34, 33] and set(chosen) <= set(rows)


def test_dcgan_images_have_the_labels_of_the_rows(phantom_store, tmp_path):
    train_gan(phantom_store, dcgan_config(64, base_channels=8), tmp_path, TrainConfig(1, 4))
    rows = phantom_store.rows("train", ["label"], classes=["DF", "VASC"])
    source = dcgan_images(tmp_path / "checkpoint.pt", phantom_store, rows, 10)
    assert source.images.shape == (10, 64, 64, 3)
    assert np.bincount(source.labels, minlength=7).tolist() == [0] * 5 + [5, 5]


def test_blended_images_have_labels_of_the_rows_and_new_pixels(phantom_store):
    rows = phantom_store.rows("train", ["mask"], classes=["DF", "VASC"])
    skin_rows = small_lesions(phantom_store, phantom_store.rows("train", ["mask"]))
    source = blended_images(phantom_store, rows, 8, skin_rows)
    assert source.images.shape == (8, 64, 64, 3) and source.images.dtype == np.uint8
    assert np.bincount(source.labels, minlength=7).tolist() == [0] * 5 + [4, 4]
    assert source.masks.any(axis=(1, 2)).all()
    assert np.array_equal(source.images, blended_images(phantom_store, rows, 8, skin_rows).images), "the same seed"
    stored = {phantom_store.images[row].tobytes() for row in phantom_store.rows()}
    assert not stored & {image.tobytes() for image in source.images}


def test_blended_images_without_skin_raise(phantom_store):
    with pytest.raises(DataError, match="phantoms needs images with skin around a small lesion"):
        blended_images(phantom_store, phantom_store.rows("val", ["mask"]), 4, np.array([], int))


def test_small_lesions_leaves_out_large_lesions_and_empty_masks(phantom_store):
    rows = phantom_store.rows("val", ["mask"])
    small = small_lesions(phantom_store, rows)
    areas = {row: phantom_store.masks[row].mean() for row in rows}
    assert set(small) == {row for row, area in areas.items() if 0 < area < 0.25} and 0 < len(small) < len(rows)
    unmasked = np.setdiff1d(phantom_store.rows(), phantom_store.rows(needs=["mask"]))
    assert len(unmasked) and not len(small_lesions(phantom_store, unmasked))


def test_cgan_images_of_a_network_with_more_classes_get_its_label(checkpoint, phantom_store, monkeypatch):
    """A store of four classes, a generator of seven: the label is the class with the same name."""
    four, batches = ["MEL", "BCC", "AKIEC", "BKL"], []
    labels = np.array([0, 1, 2, 3] * len(phantom_store), np.int16)[: len(phantom_store)]
    monkeypatch.setattr(phantom_store, "classes", four)
    monkeypatch.setattr(phantom_store, "labels", labels)
    monkeypatch.setattr(module, "sample_batch", lambda _, batch, seed: batches.append(batch))
    source = cgan_images(checkpoint, phantom_store, phantom_store.rows("train", ["mask"]), 8, balanced=True)
    names = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    assert [names[k] for k in batches[0]["labels"]] == [four[k] for k in source.labels]
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
