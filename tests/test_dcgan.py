from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.data.files import DataError
from helpers.models.dcgan import DCGAN, DCGANConfig, load_dcgan, sample_dcgan, slerp, train_dcgan
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SETTINGS = DCGANConfig(64, CLASSES, base_channels=8)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_noise_becomes_a_picture_of_the_size(size):
    torch.manual_seed(0)
    generator = replace(SETTINGS, size=size).generator().eval()
    images = generator(torch.tensor([0, 6]), torch.randn(2, 32))
    assert generator.size == size and images.shape == (2, 3, size, size) and images.abs().max() <= 1


def test_label_noise_and_seed_all_change_what_is_drawn():
    torch.manual_seed(0)
    generator = SETTINGS.generator().eval()
    noise = torch.randn(1, 32)
    one = sample_dcgan(generator, [1], latent=noise)
    assert one.shape == (1, 64, 64, 3) and one.dtype == np.uint8
    assert np.array_equal(one, sample_dcgan(generator, [1], latent=noise)), "the same again"
    for other in (sample_dcgan(generator, [2], latent=noise), sample_dcgan(generator, [1], latent=-noise)):
        assert np.abs(one.astype(int) - other).mean() > 0.5
    assert not np.array_equal(sample_dcgan(generator, [1], seed=0), sample_dcgan(generator, [1], seed=1))
    with pytest.raises(ValueError, match="2 labels, 1 noises"):
        sample_dcgan(generator, [1, 2], latent=noise)


def test_a_step_changes_both_networks_and_only_them(phantom_store):
    torch.manual_seed(0)
    method = DCGAN(SETTINGS)
    before = {name: [p.clone() for p in net.parameters()] for name, net in method.networks.items()}
    batch = {"images": torch.rand(4, 3, 64, 64) * 2 - 1, "labels": torch.tensor([0, 1, 2, 6])}
    told = method.training_step(batch, 0, lambda loss: loss.backward())
    assert set(told) == {"d", "real_score", "fake_score", "g", "feature_matching", "l1", "texture", "kl"}
    assert all(torch.isfinite(value) for value in told.values())
    for name, network in method.networks.items():
        changed = [not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True)]
        assert np.mean(changed) > 0.9, name
        assert all(p.requires_grad for p in network.parameters())


def test_training_writes_what_draws_and_goes_on_exactly(phantom_store, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    history = train_dcgan(phantom_store, SETTINGS, whole, TrainConfig(4, 4, save_every=2, log_every=1))
    assert len(history["g"]) == 4 and (whole / "grid-000004.png").is_file()
    for steps in (2, 4):
        train_dcgan(phantom_store, SETTINGS, parts, TrainConfig(steps, 4, save_every=2, log_every=1))
    weights = [torch.load(p / "checkpoint.pt", weights_only=True)["networks"]["generator"] for p in (whole, parts)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    generator, found = load_dcgan(whole / "checkpoint.pt")
    assert found == SETTINGS and not generator.training
    assert sample_dcgan(generator, np.arange(7)).shape == (7, 64, 64, 3)


def test_it_learns_the_tone_of_pictures(phantom_store, tmp_path):
    """Forty steps do not make skin, but from anywhere they come nearer to its mean colour."""
    train_dcgan(phantom_store, SETTINGS, tmp_path, TrainConfig(40, 8, ema_nimg=100))
    rows = phantom_store.rows("train", ["label"])
    wanted = np.mean(
        [phantom_store.images[rows[phantom_store.labels[rows] == k]].mean(axis=(0, 1, 2)) for k in range(7)], 0
    )
    labels = np.arange(35) % 7
    trained = sample_dcgan(load_dcgan(tmp_path / "checkpoint.pt")[0], labels).mean(axis=(0, 1, 2))
    torch.manual_seed(0)
    fresh = sample_dcgan(SETTINGS.generator().eval(), labels).mean(axis=(0, 1, 2))
    assert np.abs(trained - wanted).mean() < 0.6 * np.abs(fresh - wanted).mean()


def test_noises_between_two_keep_their_length():
    one, other = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    path = slerp(one, other, 5)
    assert torch.allclose(path[0], one, atol=1e-4) and torch.allclose(path[-1], other, atol=1e-4)
    ends = torch.stack([one.norm(), other.norm()])
    assert (path.norm(dim=1) > 0.9 * ends.min()).all() and path[2].norm() > ((one + other) / 2).norm() * 1.2


def test_other_settings_and_files_are_refused(phantom_store, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="size 100 is not one of 64, 128, 256"):
        replace(SETTINGS, size=100)
    with pytest.raises(ValueError, match="the store has 64 px"):
        train_dcgan(phantom_store, replace(SETTINGS, size=128), tmp_path, TrainConfig(1))
    with pytest.raises(DataError, match="no training picture with a label"):
        train_dcgan(phantom_store, SETTINGS, tmp_path, TrainConfig(1), rows=np.array([], int))
    torch.save({"settings": {"size": 64}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other.pt is not a checkpoint of a DCGAN"):
        load_dcgan(tmp_path / "other.pt")
