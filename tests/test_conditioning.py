"""Artifact conditioning, random maps and partial regeneration of the CGAN."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.__main__ import main
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS
from helpers.data.store import UNKNOWN
from helpers.models.cgan import CGAN, CGANConfig, load_cgan, sample, train_cgan
from helpers.models.networks import Generator
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SMALL = CGANConfig(64, CLASSES, base_channels=8, artifacts=True, noise_channels=4, projected=True)
HAIR = np.array([[0, 1, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def trained(phantom_store, tmp_path_factory):
    """Folder of a CGAN that is conditioned on artifacts, after one step; read only."""
    folder = tmp_path_factory.mktemp("conditioned")
    train_cgan(phantom_store, SMALL, folder, TrainConfig(1, 4))
    return folder


def conditioned_generator(seed: int = 0) -> Generator:
    """An untrained generator whose artifact embedding and random maps have an effect."""
    torch.manual_seed(seed)
    generator = SMALL.generator().eval().requires_grad_(False)
    torch.nn.init.normal_(generator.artifact_embed.weight)
    return generator


def random_batch() -> dict[str, torch.Tensor]:
    return {
        "images": torch.rand(4, 3, 64, 64) * 2 - 1,
        "sketches": torch.rand(4, 1, 64, 64).round(),
        "labels": torch.arange(4),
        "artifacts": torch.rand(4, 7).round(),
    }


def circle(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    radius = np.hypot(x, y)
    return np.where(np.abs(radius - size / 4) < 1.5, 255, 0).astype(np.uint8)


def test_training_step_updates_the_artifact_embedding_of_every_network():
    torch.manual_seed(0)
    task = CGAN(SMALL)
    for step in range(2):  # zero-initialized: D's gradient reaches G's embedding once D's is not zero
        task.training_step(random_batch(), step, lambda loss: loss.backward())
    discriminator = task.networks["discriminator"]
    modules = [*(task.networks[name] for name in ("generator", "encoder", "discriminator")), *discriminator.heads]
    assert all(module.artifact_embed.weight.abs().max() > 0 for module in modules)


def test_generator_without_artifacts_and_with_none_of_them_are_equal():
    generator = conditioned_generator()
    sketch, label, z = torch.rand(1, 1, 64, 64).round(), torch.tensor([1]), torch.zeros(1, SMALL.z_dim)
    images = []
    for artifacts in (None, torch.zeros(1, 7), torch.ones(1, 7)):
        torch.manual_seed(0)
        images.append(generator(sketch, label, z, artifacts))
    assert torch.equal(images[0], images[1]) and not torch.allclose(images[0], images[2], atol=1e-3)


def test_sample_artifacts_change_the_image_and_wrong_ones_raise():
    generator = conditioned_generator()
    none, hair = sample(generator, circle()[None], [1]), sample(generator, circle()[None], [1], artifacts=HAIR)
    assert np.array_equal(none, sample(generator, circle()[None], [1], artifacts=0 * HAIR))
    assert not np.array_equal(none, hair)
    with pytest.raises(ValueError, match=r"artifacts must be \(1, 7\), got \(2, 7\)"):
        sample(generator, circle()[None], [1], artifacts=HAIR.repeat(2, axis=0))
    plain = replace(SMALL, artifacts=False).generator().eval().requires_grad_(False)
    with pytest.raises(ValueError, match="was not conditioned on artifacts"):
        sample(plain, circle()[None], [1], artifacts=HAIR)


def test_random_maps_change_the_layout_of_an_image_and_z_alone_does_not_hide_it():
    torch.manual_seed(0)
    with_maps = replace(SMALL, noise_channels=8).generator().eval().requires_grad_(False)
    latent = torch.zeros(2, SMALL.z_dim)

    def low_frequency_difference(generator: Generator) -> float:
        """Mean difference of 8 x 8 block means between two seeds with the same z."""
        images = [sample(generator, circle()[None], [1], seed, latent[:1])[0].astype(float) for seed in (0, 1)]
        blocks = [image.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) for image in images]
        return float(np.abs(blocks[0] - blocks[1]).mean())

    difference = low_frequency_difference(with_maps)
    for layer in with_maps.noise_in:
        torch.nn.init.zeros_(layer.weight)
    assert difference > 2 * low_frequency_difference(with_maps) > 0


def test_sample_keep_returns_the_kept_region_exactly_and_changes_the_rest():
    generator, keep = conditioned_generator(), np.zeros((2, 64, 64), np.uint8)
    keep[:, :, :32] = 1
    sketches, labels = np.stack([circle()] * 2), [1, 4]
    original = sample(generator, sketches, labels, seed=3)
    changed = sample(generator, sketches, labels, seed=8, keep=keep, keep_seed=3)
    assert np.array_equal(changed[:, :, :32], original[:, :, :32])
    assert np.abs(changed[:, :, 36:].astype(int) - original[:, :, 36:]).mean() > 1
    assert not np.array_equal(changed, sample(generator, sketches, labels, seed=9, keep=keep, keep_seed=3))
    assert np.array_equal(changed, sample(generator, sketches, labels, seed=8, keep=keep, keep_seed=3))
    everything = sample(generator, sketches, labels, seed=8, keep=np.ones_like(keep), keep_seed=3)
    assert np.array_equal(everything, original)


def test_sample_keep_joins_the_regions_without_a_seam():
    """Next to the border the kept random maps still count: the step there is smaller than between two images."""
    generator, keep = conditioned_generator(), np.zeros((1, 64, 64), np.uint8)
    keep[:, :, :32] = 1
    original, other = (sample(generator, circle()[None], [1], seed=seed).astype(int) for seed in (3, 8))
    joined = sample(generator, circle()[None], [1], seed=8, keep=keep, keep_seed=3).astype(int)
    pasted = np.concatenate([original[:, :, :32], other[:, :, 32:]], axis=2)

    def step(image: np.ndarray) -> float:
        return float(np.abs(image[:, :, 32] - image[:, :, 31]).mean())

    assert step(joined) < step(pasted)


def test_sample_keep_of_other_shape_raises():
    with pytest.raises(ValueError, match="keep must have the shape of the sketches"):
        sample(conditioned_generator(), circle()[None], [1], keep=np.ones((1, 32, 32)))


def test_train_cgan_unknown_flags_raise_and_known_ones_are_learned_from(phantom_store, trained, tmp_path, monkeypatch):
    generator, config = load_cgan(trained / "checkpoint.pt")
    assert config == SMALL and generator.num_artifacts == 7 and generator.noise_channels == 4
    unknown = np.array(phantom_store.artifacts)
    unknown[0] = UNKNOWN
    monkeypatch.setattr(phantom_store, "artifacts", unknown)
    with pytest.raises(DataError, match="unknown artifact flags: `python -m helpers prepare` fills them"):
        train_cgan(phantom_store, SMALL, tmp_path, TrainConfig(1, 4))


def test_init_from_unconditioned_checkpoint_adds_the_conditioning(phantom_store, tmp_path):
    plain = replace(SMALL, artifacts=False, noise_channels=0)
    train_cgan(phantom_store, plain, tmp_path, TrainConfig(1, 4))
    task = CGAN(SMALL)
    task.init_from(tmp_path / "checkpoint.pt")
    old, _ = load_cgan(tmp_path / "checkpoint.pt")
    assert task.networks["generator"].artifact_embed.weight.abs().max() == 0
    torch.nn.init.normal_(old.to_rgb.weight)  # the loaded copy is independent of the task's
    assert not torch.equal(old.to_rgb.weight, task.networks["generator"].to_rgb.weight)


def test_main_generate_artifacts_of_a_conditioned_checkpoint(trained, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "sketches").mkdir()
    Image.fromarray(circle(256)).save(tmp_path / "sketches" / "a.png")
    command = ["generate", "--checkpoint", str(trained / "checkpoint.pt"), "--sketches", str(tmp_path / "sketches")]
    assert main([*command, "--artifacts", "hair,ruler", "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").rglob("a.png"))) == len(CLASSES)
    assert main([*command, "--artifacts", "scratch", "--out", str(tmp_path / "out")]) == 2
    assert f"none or names from {', '.join(ARTIFACTS)}; got 'scratch'" in capsys.readouterr().err
