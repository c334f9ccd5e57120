import numpy as np
import pytest
import torch
from factories import ham10000

from helpers.data.batches import ImageSource, image_batches
from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.data.store import StoreConfig, prepare
from helpers.metrics.extractors import load_extractor
from helpers.models.augment import random_blur, random_crop
from helpers.models.checkpoint import export_weights, training_data
from helpers.models.simclr import (
    SkinConfig,
    SkinEncoder,
    load_skin,
    nt_xent,
    random_view,
    train_skin,
    training_rows,
)
from helpers.models.trainer import TrainConfig

CONFIG = SkinConfig(64, base_channels=8)


def test_nt_xent_of_orthogonal_images_is_the_known_value_and_falls_with_agreement():
    z = 3 * torch.eye(5)  # the length does not count
    expected = np.log(1 + 8 * np.exp(-1 / 0.5))  # one view at cosine 1 among eight rows at cosine 0
    assert float(nt_xent(z, z, 0.5)) == pytest.approx(expected, rel=1e-5)
    assert float(nt_xent(z, z.roll(1, dims=0), 0.5)) == pytest.approx(expected + 2, rel=1e-5), "cosine 0 instead of 1"


def test_random_crop_of_full_size_is_the_image_and_smaller_ones_enlarge_it():
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 32).expand(16, 3, 32, 32)
    assert torch.allclose(random_crop(ramp, 1.0), ramp, atol=1e-5)
    spans = random_crop(ramp, 0.5).flatten(1).aminmax(dim=1)
    span = spans.max - spans.min
    assert span.min() > 0.9 and span.max() <= 2 and span.std() > 0.05, "half to all of the range from -1 to 1"


def test_random_blur_probability_zero_changes_nothing_and_one_smooths_every_image():
    torch.manual_seed(0)
    images = torch.randn(16, 3, 32, 32)
    assert torch.equal(random_blur(images, 0.0), images)
    smoothed = random_blur(images, 1.0).flatten(1).std(dim=1)
    assert (smoothed < images.flatten(1).std(dim=1)).all() and smoothed.std() > 0.05, "by different amounts"


def test_random_view_differs_between_images_and_keeps_their_shape():
    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 64).repeat(4, 1, 1, 1)
    views = random_view(images, CONFIG)
    assert views.shape == images.shape
    assert all((views[k] - views[0]).abs().mean() > 0.01 for k in range(1, 4))


def test_encoder_features_are_the_averages_of_four_stages():
    encoder = SkinEncoder(CONFIG).eval()
    assert encoder.num_features == 8 + 16 + 32 + 64
    assert encoder(torch.zeros(2, 3, 64, 64)).shape == (2, 120)


def test_image_batches_repeat_by_step_and_sample_all_rows_of_all_sources_once():
    sources = [ImageSource(np.full((4, 2, 2, 3), k * 100, np.uint8), np.arange(3)) for k in range(2)]
    get_batch = image_batches(sources, 6, seed=0)
    images = get_batch(0, 0)["images"]
    assert sorted((127.5 * (images[:, 0, 0, 0] + 1)).round().tolist()) == [0, 0, 0, 100, 100, 100]
    assert torch.equal(get_batch(3, 0)["images"], get_batch(3, 0)["images"])
    assert len(image_batches(sources, 20, seed=0)(0, 0)["images"]) == 20, "more than there are"


def test_train_skin_learns_and_its_files_give_the_same_extractor(phantom_store, tmp_path):
    run = TrainConfig(60, 32, ema_nimg=200, log_every=10, save_every=60)
    history = train_skin([phantom_store], CONFIG, tmp_path, run)
    assert history["loss"][-1] < history["loss"][0] - 0.5
    encoder, config = load_skin(tmp_path / "checkpoint.pt")
    rows = phantom_store.rows("train")
    assert config == CONFIG and encoder.trained_on == training_data(phantom_store, rows)["trained_on"]
    images = np.array(phantom_store.images[:6])
    file = export_weights(tmp_path / "checkpoint.pt", tmp_path / "skin.safetensors")
    extractor = load_extractor(f"skin={file}")
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    assert extractor.name == "skin" and np.abs(extractor(images) - expected).max() < 0.02 * np.abs(expected).max()


def test_train_skin_of_two_stores_leaves_out_lesions_that_one_of_them_holds_out(phantom_store, tmp_path):
    other = prepare(read(ham10000(tmp_path / "ham")), tmp_path / "stores", StoreConfig(64), progress=False)
    moved = prepare(read(ham10000(tmp_path / "ham")), tmp_path / "stores", StoreConfig(64), progress=False)
    moved.splits = 2 - np.array(other.splits)  # train and test change places
    alone, both = training_rows([other]), training_rows([other, phantom_store])
    assert len(alone[0]) and np.array_equal(alone[0], both[0])
    assert np.array_equal(both[1], phantom_store.rows("train")), "no lesion is in both"
    assert not len(training_rows([other, moved])[0]), "held out by the second one"
    train_skin([other, phantom_store], CONFIG, tmp_path / "out", TrainConfig(1, 4))
    expected = {name for store in (other, phantom_store) for row in store.rows("train")
                for name in store.identities[row]}  # fmt: skip
    assert set(load_skin(tmp_path / "out" / "checkpoint.pt")[0].trained_on) == expected


def test_train_skin_of_other_size_or_single_images_raises(phantom_store, tmp_path):
    with pytest.raises(ValueError, match="the store has size 64, the config 32"):
        train_skin([phantom_store], SkinConfig(32), tmp_path, TrainConfig(1, 4))
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        train_skin([phantom_store], CONFIG, tmp_path, TrainConfig(1, 1))


@pytest.mark.parametrize("wrong", [{"size": 16}, {"crop": 1.5}, {"blur": -0.1}, {"temperature": 0.0}])
def test_skin_config_out_of_range_raises(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SkinConfig(**{"size": 64} | wrong)


def test_load_extractor_skin_without_file_names_it(tmp_path):
    with pytest.raises(DataError, match=r"skin\.safetensors"):
        load_extractor(f"skin={tmp_path / 'skin.safetensors'}")
