from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import load_checkpoint

from helpers.data.files import DataError
from helpers.models.dcgan import DCGAN, DCGANConfig, load_dcgan, sample_dcgan, slerp, train_dcgan
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SMALL = DCGANConfig(64, CLASSES, base_channels=8)


def test_config_unknown_size_raises():
    with pytest.raises(ValueError, match="size must be one of 64, 128, 256, got 100"):
        replace(SMALL, size=100)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_generator_every_size_returns_images_in_range(size):
    torch.manual_seed(0)
    generator = replace(SMALL, size=size).generator().eval()
    images = generator(torch.tensor([0, 6]), torch.randn(2, 32))
    assert generator.size == size and images.shape == (2, 3, size, size) and images.abs().max() <= 1


def test_sample_dcgan_label_latent_and_seed_change_the_image():
    torch.manual_seed(0)
    generator = SMALL.generator().eval()
    latent = torch.randn(1, 32)
    image = sample_dcgan(generator, [1], latent=latent)
    assert image.shape == (1, 64, 64, 3) and image.dtype == np.uint8
    assert np.array_equal(image, sample_dcgan(generator, [1], latent=latent))
    for other in (sample_dcgan(generator, [2], latent=latent), sample_dcgan(generator, [1], latent=-latent)):
        assert np.abs(image.astype(int) - other).mean() > 0.5
    assert not np.array_equal(sample_dcgan(generator, [1], seed=0), sample_dcgan(generator, [1], seed=1))
    with pytest.raises(ValueError, match="got 2 labels, 1 latents"):
        sample_dcgan(generator, [1, 2], latent=latent)


def test_training_step_updates_every_network():
    torch.manual_seed(0)
    task = DCGAN(SMALL)
    before = {name: [p.clone() for p in network.parameters()] for name, network in task.networks.items()}
    batch = {"images": torch.rand(4, 3, 64, 64) * 2 - 1, "labels": torch.tensor([0, 1, 2, 6])}
    losses = task.training_step(batch, 0, lambda loss: loss.backward())
    assert set(losses) == {
        "loss_d", "loss_g", "real_score", "fake_score", "feature_matching", "l1", "texture", "kl"
    }  # fmt: skip
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, network in task.networks.items():
        changed = [not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True)]
        assert np.mean(changed) > 0.9, name
        assert all(p.requires_grad for p in network.parameters())


def test_loss_weights_l1_is_constant():
    task = DCGAN(SMALL)
    for progress in (0.0, 0.5, 1.0):
        task.progress = progress
        assert task.loss_weights()["l1"] == SMALL.lambda_l1


def test_train_dcgan_resumed_equals_uninterrupted_run_and_saves_grids(phantom_store, tmp_path):
    def run(folder: str, steps: int) -> dict:
        return train_dcgan(phantom_store, SMALL, tmp_path / folder, TrainConfig(steps, 4, save_every=1, log_every=1))

    history = run("once", 2)
    assert len(history["loss_g"]) == 2 and (tmp_path / "once/grid-000002.png").is_file()
    run("twice", 1)
    assert run("twice", 2) == history
    once, twice = (load_checkpoint(tmp_path / folder)["networks"]["generator"] for folder in ("once", "twice"))
    assert all(torch.equal(weight, twice[name]) for name, weight in once.items())
    generator, config = load_dcgan(tmp_path / "once/checkpoint.pt")
    assert config == SMALL and not generator.training
    assert sample_dcgan(generator, np.arange(7)).shape == (7, 64, 64, 3)


def test_train_dcgan_short_run_approaches_the_mean_color(phantom_store, tmp_path):
    train_dcgan(phantom_store, replace(SMALL, lr=2e-3), tmp_path, TrainConfig(20, 8, ema_nimg=100))
    rows = phantom_store.rows("train", ["label"])
    images = [phantom_store.images[rows[phantom_store.labels[rows] == label]] for label in range(7)]
    expected = np.mean([class_images.mean(axis=(0, 1, 2)) for class_images in images], axis=0)
    labels = np.arange(35) % 7
    trained = sample_dcgan(load_dcgan(tmp_path / "checkpoint.pt")[0], labels).mean(axis=(0, 1, 2))
    torch.manual_seed(0)
    untrained = sample_dcgan(SMALL.generator().eval(), labels).mean(axis=(0, 1, 2))
    assert np.abs(trained - expected).mean() < 0.4 * np.abs(untrained - expected).mean()


def test_train_dcgan_config_unlike_store_or_no_images_raises(phantom_store, tmp_path):
    with pytest.raises(ValueError, match=r"the store has 64 px and .*, the config 128 px"):
        train_dcgan(phantom_store, replace(SMALL, size=128), tmp_path, TrainConfig(1))
    with pytest.raises(DataError, match="needs at least one training image with a label, got none"):
        train_dcgan(phantom_store, SMALL, tmp_path, TrainConfig(1), rows=np.array([], int))


def test_load_dcgan_other_file_raises(tmp_path):
    torch.save({"config": {"size": 64}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other.pt is not a checkpoint of a DCGAN"):
        load_dcgan(tmp_path / "other.pt")


def test_slerp_intermediate_latents_keep_their_norm():
    z0, z1 = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    latents = slerp(z0, z1, 5)
    assert torch.allclose(latents[0], z0, atol=1e-4) and torch.allclose(latents[-1], z1, atol=1e-4)
    assert (latents.norm(dim=1) > 0.9 * min(z0.norm(), z1.norm())).all()
    assert latents[2].norm() > 1.2 * ((z0 + z1) / 2).norm(), "longer than half way on a straight line"
