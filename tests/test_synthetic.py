import numpy as np
import pytest

from helpers.data.files import DataError
from helpers.data.sketches import contour, fill
from helpers.experiments.synthetic import blended_images, cgan_images, dcgan_images, sample_balanced, small_lesions
from helpers.models.cgan import CGANConfig, train_cgan
from helpers.models.dcgan import DCGANConfig, train_dcgan
from helpers.models.trainer import TrainConfig


@pytest.fixture(scope="module")
def generator(phantom_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    train_cgan(phantom_store, CGANConfig(64, tuple(phantom_store.classes), base_channels=8), folder, TrainConfig(2, 4))
    return folder / "checkpoint.pt"


def test_drawn_pairs_have_new_masks_and_are_the_same_again(generator, phantom_store):
    rows = phantom_store.rows("train", ["mask"])
    pairs = cgan_images(generator, phantom_store, rows, 12)
    assert pairs.images.shape == (12, 64, 64, 3) and pairs.masks.shape == (12, 64, 64)
    assert set(np.unique(pairs.masks)) == {0, 1} and all(contour(mask).any() for mask in pairs.masks)
    assert all(np.array_equal(fill(contour(mask) // 255), mask) for mask in pairs.masks), "what the sketch encloses"
    known = {phantom_store.masks[row].tobytes() for row in rows}
    assert sum(mask.tobytes() in known for mask in pairs.masks) == 0
    again, other = (cgan_images(generator, phantom_store, rows, 12, seed) for seed in (0, 1))
    assert np.array_equal(pairs.images, again.images) and np.array_equal(pairs.masks, again.masks)
    assert not np.array_equal(pairs.masks, other.masks)


def test_a_network_of_other_classes_does_not_draw_pairs(generator, phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "classes", ["benign", "malignant"])
    with pytest.raises(DataError, match="the data have benign malignant"):
        cgan_images(generator, phantom_store, np.array([0]), 2)


def test_every_class_is_chosen_about_as_often():
    labels, rows = np.array([0] * 50 + [1] * 3 + [2] * 20), np.arange(2, 60)
    chosen = sample_balanced(labels, rows, 100, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [33, 34, 33] and set(chosen) <= set(rows)


def test_drawings_can_be_of_every_class_alike(generator, phantom_store):
    part = cgan_images(generator, phantom_store, phantom_store.rows("train", ["mask"]), 14, balanced=True)
    assert np.bincount(part.labels, minlength=7).tolist() == [2] * 7 and part.images.shape == (14, 64, 64, 3)


def test_images_from_noise_have_the_labels_of_the_rows(phantom_store, tmp_path):
    train_dcgan(phantom_store, DCGANConfig(64, tuple(phantom_store.classes), 8), tmp_path, TrainConfig(1, 4))
    rows = phantom_store.rows("train", ["label"], classes=["DF", "VASC"])
    part = dcgan_images(tmp_path / "checkpoint.pt", phantom_store, rows, 10)
    assert part.images.shape == (10, 64, 64, 3) and np.bincount(part.labels, minlength=7).tolist() == [0] * 5 + [5, 5]


def test_blended_lesions_are_of_the_rows_and_their_masks_are_kept(phantom_store):
    rows = phantom_store.rows("train", ["mask"], classes=["DF", "VASC"])
    skins = small_lesions(phantom_store, phantom_store.rows("train", ["mask"]))
    part = blended_images(phantom_store, rows, 8, skins)
    assert part.images.shape == (8, 64, 64, 3) and part.images.dtype == np.uint8
    assert np.bincount(part.labels, minlength=7).tolist() == [0] * 5 + [4, 4] and part.masks.any(axis=(1, 2)).all()
    again = blended_images(phantom_store, rows, 8, skins)
    assert np.array_equal(part.images, again.images), "the same seed, the same images"
    known = {phantom_store.images[row].tobytes() for row in phantom_store.rows()}
    assert not known & {image.tobytes() for image in part.images}


def test_skin_is_taken_from_pictures_with_small_lesions(phantom_store):
    given = phantom_store.rows("val", ["mask"])
    rows = small_lesions(phantom_store, given)
    assert set(rows) < set(given) and all(0 < phantom_store.masks[row].mean() < 0.25 for row in rows)
    with pytest.raises(DataError, match="no picture with skin"):
        blended_images(phantom_store, given, 4, np.array([], int))
