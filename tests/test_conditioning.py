"""Artifact conditioning, random maps, code and partial regeneration of the CGAN."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import circle, random_batch

from helpers.__main__ import main
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS
from helpers.data.store import UNKNOWN
from helpers.models.gan import GAN, GANConfig, load_gan, train_gan
from helpers.models.networks import Generator
from helpers.models.sampling import random_artifacts, sample
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SMALL = GANConfig(64, CLASSES, "contour", base_channels=8, noise_channels=4, projected=True)
HAIR = np.array([[0, 1, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def trained(phantom_store, tmp_path_factory):
    """Folder of a CGAN that is conditioned on artifacts, after one step; read only."""
    folder = tmp_path_factory.mktemp("conditioned")
    train_gan(phantom_store, SMALL, folder, TrainConfig(1, 4))
    return folder


def conditioned_generator(seed: int = 0) -> Generator:
    """An untrained generator."""
    torch.manual_seed(seed)
    return SMALL.generator().eval().requires_grad_(False)


def test_config_conditions_on_artifacts_code_and_maps_by_default():
    config = GANConfig(64, CLASSES)
    assert config.artifacts and config.num_artifacts == 7 and config.d4_augment and not config.fine_lines
    assert (config.noise_channels, config.code_channels) == (8, 4)


def test_training_step_updates_the_artifact_embedding_of_every_network():
    torch.manual_seed(0)
    task = GAN(SMALL)
    discriminator = task.networks["discriminator"]
    modules = [*(task.networks[name] for name in ("generator", "encoder", "discriminator")), *discriminator.heads]
    before = [module.artifact_embed.weight.clone() for module in modules]
    task.training_step(random_batch(), 0, lambda loss: loss.backward())
    assert all(not torch.equal(w, module.artifact_embed.weight) for w, module in zip(before, modules, strict=True))


def test_generator_without_artifacts_and_with_none_of_them_are_equal():
    generator = conditioned_generator()
    sketch, label, z = torch.rand(1, 1, 64, 64).round(), torch.tensor([1]), torch.zeros(1, SMALL.z_dim)
    images = []
    for artifacts in (None, torch.zeros(1, 7), torch.ones(1, 7)):
        torch.manual_seed(0)
        images.append(generator(sketch, label, z, artifacts))
    assert torch.equal(images[0], images[1]) and not torch.allclose(images[0], images[2], atol=1e-3)


@pytest.mark.parametrize("changes", [{"code_channels": 0, "noise_channels": 8}, {"noise_channels": 0}])
def test_random_maps_or_code_change_the_layout_of_an_image_with_equal_z(changes):
    torch.manual_seed(0)
    generator = replace(SMALL, **changes).generator().eval().requires_grad_(False)
    latent = torch.zeros(1, SMALL.z_dim)

    def low_frequency_difference() -> float:
        """Mean difference of 8 x 8 block means between two seeds with the same z."""
        images = [sample(generator, circle()[None], [1], seed, latent)[0].astype(float) for seed in (0, 1)]
        blocks = [image.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) for image in images]
        return float(np.abs(blocks[0] - blocks[1]).mean())

    difference = low_frequency_difference()
    for layer in (*generator.noise_in, *generator.code_in):
        torch.nn.init.zeros_(layer.weight)
    assert difference > 2 * low_frequency_difference() > 0, "only the per-pixel noise is left"


def test_encode_half_of_the_batch_gets_the_code_of_its_real_images():
    torch.manual_seed(0)
    task = GAN(SMALL)
    mu, logvar, latents = task.encode(random_batch(), num_encoded=2)
    assert mu.shape == logvar.shape == (2, 16 + 4 * 64) and latents.shape == (4, 16 + 4 * 64)
    (gradient,) = torch.autograd.grad(latents[:, 16:].sum(), task.networks["encoder"].code_out[0].bias)
    assert gradient[:4].tolist() == [2 * 64] * 4, "the mean at all places of two images"
    latents = latents.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(task.generate(random_batch(), latents).square().sum(), latents)
    assert (gradient != 0).float().mean() > 0.9, "every part of the latents reaches the images"


def test_train_cgan_unknown_flags_without_a_detector_raise(phantom_store, tmp_path, monkeypatch):
    unknown = np.array(phantom_store.artifacts)
    unknown[0] = UNKNOWN
    monkeypatch.setattr(phantom_store, "artifacts", unknown)
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    with pytest.raises(DataError, match=r"unknown artifact flags: they need .*artifacts.safetensors, .*--no-artifacts"):
        train_gan(phantom_store, SMALL, tmp_path, TrainConfig(1, 4))
    train_gan(phantom_store, replace(SMALL, artifacts=False), tmp_path, TrainConfig(1, 4))


def test_load_cgan_returns_a_conditioned_generator(trained):
    generator, config = load_gan(trained / "checkpoint.pt")
    assert config == SMALL and generator.num_artifacts == 7
    assert (generator.noise_channels, generator.code_channels) == (4, 4)


def test_init_from_unconditioned_checkpoint_adds_the_conditioning(phantom_store, tmp_path):
    plain = replace(SMALL, artifacts=False, noise_channels=0, code_channels=0)
    train_gan(phantom_store, plain, tmp_path, TrainConfig(1, 4))
    task = GAN(SMALL)
    task.init_from(tmp_path / "checkpoint.pt")
    old, _ = load_gan(tmp_path / "checkpoint.pt")
    assert task.networks["generator"].artifact_embed.weight.abs().max() == 0
    torch.nn.init.normal_(old.to_rgb.weight)  # the loaded copy is independent of the task's
    assert not torch.equal(old.to_rgb.weight, task.networks["generator"].to_rgb.weight)


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        ({"artifacts": False}, "artifact_embed.weight"),
        ({"noise_channels": 0}, "noise_in.0.weight"),
        ({"code_channels": 0}, "code_in.0.weight"),
    ],
)
def test_init_from_checkpoint_with_layers_that_the_config_lacks_raises(trained, change, layer):
    with pytest.raises(ValueError, match=f"has {layer} in its generator, the config has no such layer"):
        GAN(replace(SMALL, **change)).init_from(trained / "checkpoint.pt")


def test_random_artifacts_are_as_frequent_as_in_the_training_images_of_the_class(phantom_store, trained):
    generator, _ = load_gan(trained / "checkpoint.pt")
    rows = phantom_store.rows("train", needs=["sketch", "label"])
    for label in (0, 1):
        expected = phantom_store.artifacts[rows[phantom_store.labels[rows] == label]].mean(axis=0)
        flags = random_artifacts(generator, [label] * 4000)
        assert flags.shape == (4000, 7) and flags.mean(axis=0) == pytest.approx(expected, abs=0.04)
    assert np.array_equal(random_artifacts(generator, [0, 1], seed=3), random_artifacts(generator, [0, 1], seed=3))
    plain = replace(SMALL, artifacts=False).generator()
    with pytest.raises(ValueError, match="was not conditioned on artifacts"):
        random_artifacts(plain, [0])


def test_main_generate_artifacts_of_a_conditioned_checkpoint(trained, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "sketches").mkdir()
    Image.fromarray(circle(256)).save(tmp_path / "sketches" / "a.png")
    command = ["generate", "--checkpoint", str(trained / "checkpoint.pt"), "--sketches", str(tmp_path / "sketches")]
    assert main([*command, "--artifacts", "hair,ruler", "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").rglob("a.png"))) == len(CLASSES)
    assert main([*command, "--artifacts", "real", "--out", str(tmp_path / "real")]) == 0
    assert len(list((tmp_path / "real").rglob("a.png"))) == len(CLASSES)
    assert main([*command, "--artifacts", "scratch", "--out", str(tmp_path / "out")]) == 2
    assert f"none, real or names from {', '.join(ARTIFACTS)}; got 'scratch'" in capsys.readouterr().err
