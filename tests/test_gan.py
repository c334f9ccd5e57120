import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import load_checkpoint, random_batch
from torch import nn

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.models.augment import d4_augment
from helpers.models.gan import GAN, GANConfig, dcgan_config, load_gan, train_gan
from helpers.models.sampling import sample
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SMALL = GANConfig(64, CLASSES, "contour", base_channels=8)
DCGAN = dcgan_config(64, classes=CLASSES, base_channels=8)


@pytest.fixture
def store(phantom_store) -> Store:
    return phantom_store


@pytest.fixture(scope="module")
def trained(phantom_store, tmp_path_factory):
    """Folder of a CGAN after one step; read only."""
    folder = tmp_path_factory.mktemp("cgan")
    train_gan(phantom_store, SMALL, folder, TrainConfig(1, 4))
    return folder


class RecordingBackward:
    """Backward pass from zeroed gradients that records per call which networks got gradients."""

    def __init__(self, networks: dict[str, nn.Module]):
        self.networks, self.has_gradients = networks, []

    def __call__(self, loss: torch.Tensor) -> None:
        for network in self.networks.values():
            network.zero_grad(set_to_none=True)
        loss.backward()
        self.has_gradients.append(
            {name: any(p.grad is not None for p in network.parameters()) for name, network in self.networks.items()}
        )


def test_config_unknown_size_raises():
    with pytest.raises(ValueError, match="size must be one of 64, 128, 256, got 96"):
        GANConfig(96, CLASSES)
    with pytest.raises(ValueError, match="unpaired training needs a sketch style"):
        GANConfig(64, CLASSES, style="none", paired=False)


def test_config_r1_gamma_follows_size_unless_given():
    assert [GANConfig(size, ("NV",)).r1_weight for size in (64, 128, 256)] == [0.02, 0.02, 1.0]
    assert GANConfig(256, ("NV",), r1_gamma=0.5).r1_weight == 0.5


def test_training_step_updates_every_network_with_its_own_loss_only():
    torch.manual_seed(0)
    task = GAN(SMALL)
    before = {name: [p.clone() for p in network.parameters()] for name, network in task.networks.items()}
    backward = RecordingBackward(task.networks)
    losses = task.training_step(random_batch(), 0, backward)
    assert set(losses) == {
        "loss_d", "loss_g", "real_score", "fake_score", "feature_matching", "l1", "texture", "kl", "diversity"
    }  # fmt: skip
    assert all(math.isfinite(loss.item()) for loss in losses.values())
    for name, network in task.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True)), name
    assert backward.has_gradients == [
        {"generator": False, "encoder": False, "discriminator": True},
        {"generator": True, "encoder": True, "discriminator": False},
    ]
    assert all(p.requires_grad for p in task.networks["discriminator"].parameters())


def test_training_step_projected_updates_heads_and_keeps_the_feature_network():
    torch.manual_seed(0)
    task = GAN(replace(SMALL, projected=True))
    discriminator = task.networks["discriminator"]
    fixed = copy.deepcopy(discriminator.feature_network.state_dict())
    # The hinge loss's gradients of real and fake images may cancel in a bias.
    weights = [w for name, w in discriminator.heads.named_parameters() if not name.endswith("bias")]
    heads = [weight.clone() for weight in weights]
    task.training_step(random_batch(), 0, RecordingBackward(task.networks))
    assert all(torch.equal(w, fixed[name]) for name, w in discriminator.feature_network.state_dict().items())
    assert not any(weight.requires_grad for weight in discriminator.feature_network.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(heads, weights, strict=True))


def test_training_step_learning_rate_is_that_of_step_and_progress():
    task = GAN(SMALL)
    for step, progress, expected in ((0, 0.0, 0.01), (200, 0.4, 1), (200, 1.0, 0.1)):
        task.progress = progress
        task.training_step(random_batch(), step, lambda loss: loss.backward())
        rates = [optimizer.param_groups[0]["lr"] for optimizer in task.optimizers.values()]
        assert rates == pytest.approx([expected * SMALL.lr] * 2)


def test_generate_pairs_share_sketches_and_differ_in_latents():
    gan = GAN(SMALL)
    batch = random_batch() | {"sketch_maps": torch.rand(4, 2, 64, 64)}
    latents = torch.randn(4, SMALL.z_dim + SMALL.code_channels * 64)
    fake, (first, second, maps) = gan.generate_pairs(batch, latents)
    assert fake.shape == (4, 3, 64, 64) and torch.equal(first, fake[3:]) and torch.equal(maps, batch["sketch_maps"][3:])
    assert second.shape == first.shape and not torch.allclose(first, second)
    fake, pairs = GAN(replace(SMALL, lambda_diversity=0.0)).generate_pairs(batch, latents)
    assert fake.shape == (4, 3, 64, 64) and pairs is None


def test_diversity_loss_lowers_the_structure_correlation():
    torch.manual_seed(0)
    only = dict.fromkeys(("lambda_gan", "lambda_l1", "lambda_texture", "lambda_kl", "lambda_feat"), 0.0)
    gan = GAN(replace(SMALL, **only, lambda_diversity=1.0, d4_augment=False, lr=2e-3))
    batch = random_batch() | {"sketches": torch.zeros(4, 1, 64, 64)}
    batch["sketches"][..., 12:52, 12:52] = 1
    batch["sketches"][..., 14:50, 14:50] = 0
    losses = [gan.training_step(batch, step, torch.Tensor.backward)["diversity"] for step in range(1, 40)]
    values = [loss.item() for loss in losses]
    assert sum(values[-10:]) < 0.5 * sum(values[:10])


def test_loss_weights_l1_falls_to_its_floor_in_the_first_half_of_the_run():
    task, unpaired = GAN(replace(SMALL, lambda_l1=10.0, l1_floor=0.2)), GAN(replace(SMALL, paired=False))
    weights = {}
    for progress in (0.0, 0.25, 0.4, 0.5, 1.0):
        task.progress = unpaired.progress = progress
        weights[progress] = task.loss_weights()["l1"]
        assert unpaired.loss_weights()["l1"] == SMALL.lambda_l1, "region colors count all the time"
    assert weights == pytest.approx({0.0: 10, 0.25: 5, 0.4: 2, 0.5: 2, 1.0: 2})


def test_run_discriminator_two_groups_get_the_same_sketches_labels_and_artifacts():
    torch.manual_seed(0)
    task, batch = GAN(replace(SMALL, color_jitter=0.0, translate=0.0)), random_batch()
    discriminator, fake = task.networks["discriminator"], torch.rand(4, 3, 64, 64)
    batch["sketch_maps"] = task.sketch_maps(batch)
    both = task.run_discriminator(discriminator, torch.cat([batch["images"], fake]), batch).split()
    for images, output in zip((batch["images"], fake), both, strict=True):
        alone = task.run_discriminator(discriminator, images, batch)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(output[:3], alone[:3], strict=True))


def test_d4_augment_many_images_gives_all_8_positions_with_their_sketches():
    torch.manual_seed(0)
    corner = torch.zeros(1, 1, 8, 8)
    corner[0, 0, 0, 1] = 1
    batch = {
        "images": corner.expand(200, 3, 8, 8),
        "sketches": corner.expand(200, 1, 8, 8),
        "labels": torch.arange(200),
    }
    augmented = d4_augment(batch)
    assert torch.equal(augmented["images"][:, :1], augmented["sketches"])
    assert torch.equal(augmented["labels"], batch["labels"])
    positions = {tuple(position) for position in augmented["sketches"].nonzero()[:, 2:].tolist()}
    assert positions == {(0, 1), (1, 0), (0, 6), (6, 0), (7, 1), (1, 7), (7, 6), (6, 7)}


# ---------------------------------------------------------------------------------------------------------- training


def test_train_resumed_equals_uninterrupted_run_and_saves_grids(store, tmp_path):
    intervals = {"batch_size": 4, "log_every": 1, "save_every": 1}
    history = train_gan(store, SMALL, tmp_path / "once", TrainConfig(3, **intervals))
    train_gan(store, SMALL, tmp_path / "twice", TrainConfig(1, **intervals))
    assert train_gan(store, SMALL, tmp_path / "twice", TrainConfig(3, **intervals)) == history
    generator, config = load_gan(tmp_path / "once/checkpoint.pt")
    assert config == SMALL and not generator.training
    resumed = load_gan(tmp_path / "twice/checkpoint.pt")[0].state_dict()
    for name, weight in generator.state_dict().items():
        assert torch.equal(weight, resumed[name]), name
    assert sorted(p.name for p in (tmp_path / "once").glob("grid-*.png")) == [f"grid-{k:06d}.png" for k in range(4)]
    with pytest.raises(ValueError, match="base_channels is 8 there, 16 here"):
        train_gan(store, replace(SMALL, base_channels=16), tmp_path / "once", TrainConfig(4, **intervals))


def test_train_evaluate_is_called_at_the_start_and_at_checkpoints_and_changes_nothing(store, tmp_path):
    calls = []

    def evaluate(generator: nn.Module, step: int) -> None:
        calls.append((step, generator.training))
        torch.rand(5)

    for steps in (2, 3):
        train_gan(store, SMALL, tmp_path / "a", TrainConfig(steps, 4, save_every=2), evaluate=evaluate)
    assert calls == [(0, False), (2, False), (3, False)], "not at the start of a resumed run"
    for steps in (2, 3):
        train_gan(store, SMALL, tmp_path / "b", TrainConfig(steps, 4, save_every=2))
    a, b = (load_checkpoint(tmp_path / name)["networks"]["generator"] for name in ("a", "b"))
    assert all(torch.equal(weight, b[name]) for name, weight in a.items())


def test_train_config_unlike_store_raises(store, tmp_path):
    changes = {
        "the store has size 64, the config 128": {"size": 128},
        r"the store has classes \('MEL', 'NV', .*, the config \('MEL', 'NV'\)": {"classes": ("MEL", "NV")},
        "the store has style 'contour', the config 'structure'": {"style": "structure"},
    }
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            train_gan(store, replace(SMALL, **change), tmp_path, TrainConfig(1))
    assert list(tmp_path.iterdir()) == []


def test_train_without_images_raises(store, tmp_path):
    with pytest.raises(DataError, match="needs at least one training image with a sketch and a label, got none"):
        train_gan(store, SMALL, tmp_path, TrainConfig(1), rows=np.array([], int))


# ---------------------------------------------------------------------------------------------------- without a sketch


@pytest.mark.parametrize("size", [64, 128, 256])
def test_latent_generator_every_size_returns_images_in_range(size):
    torch.manual_seed(0)
    generator = replace(DCGAN, size=size).generator().eval()
    images = generator(None, torch.tensor([0, 6]), torch.randn(2, 32))
    assert generator.size == size and images.shape == (2, 3, size, size) and images.abs().max() <= 1


def test_training_step_without_sketch_updates_every_network():
    torch.manual_seed(0)
    task = GAN(DCGAN)
    before = {name: [p.clone() for p in network.parameters()] for name, network in task.networks.items()}
    losses = task.training_step(random_batch(), 0, lambda loss: loss.backward())
    assert set(losses) == {
        "loss_d", "loss_g", "real_score", "fake_score", "feature_matching", "l1", "texture", "kl"
    }  # fmt: skip
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, network in task.networks.items():
        changed = [not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True)]
        assert np.mean(changed) > 0.9, name
        assert all(p.requires_grad for p in network.parameters())


def test_loss_weights_without_sketch_l1_is_constant():
    task = GAN(DCGAN)
    for progress in (0.0, 0.5, 1.0):
        task.progress = progress
        assert task.loss_weights()["l1"] == DCGAN.lambda_l1


def test_train_dcgan_resumed_equals_uninterrupted_run_and_saves_grids(phantom_store, tmp_path):
    def run(folder: str, steps: int) -> dict:
        return train_gan(phantom_store, DCGAN, tmp_path / folder, TrainConfig(steps, 4, save_every=1, log_every=1))

    history = run("once", 2)
    assert len(history["loss_g"]) == 2 and (tmp_path / "once/grid-000002.png").is_file()
    run("twice", 1)
    assert run("twice", 2) == history
    once, twice = (load_checkpoint(tmp_path / folder)["networks"]["generator"] for folder in ("once", "twice"))
    assert all(torch.equal(weight, twice[name]) for name, weight in once.items())
    generator, config = load_gan(tmp_path / "once/checkpoint.pt", sketch=False)
    assert config == DCGAN and not generator.training
    assert sample(generator, None, np.arange(7)).shape == (7, 64, 64, 3)


def test_train_dcgan_short_run_approaches_the_mean_color(phantom_store, tmp_path):
    train_gan(phantom_store, replace(DCGAN, lr=2e-3), tmp_path, TrainConfig(20, 8, ema_nimg=100))
    rows = phantom_store.rows("train", ["label"])
    images = [phantom_store.images[rows[phantom_store.labels[rows] == label]] for label in range(7)]
    expected = np.mean([class_images.mean(axis=(0, 1, 2)) for class_images in images], axis=0)
    labels = np.arange(35) % 7
    trained = sample(load_gan(tmp_path / "checkpoint.pt", sketch=False)[0], None, labels).mean(axis=(0, 1, 2))
    torch.manual_seed(0)
    untrained = sample(DCGAN.generator().eval(), None, labels).mean(axis=(0, 1, 2))
    assert np.abs(trained - expected).mean() < 0.4 * np.abs(untrained - expected).mean()


def test_train_dcgan_config_unlike_store_or_no_images_raises(phantom_store, tmp_path):
    with pytest.raises(ValueError, match="the store has size 64, the config 128"):
        train_gan(phantom_store, replace(DCGAN, size=128), tmp_path, TrainConfig(1))
    with pytest.raises(DataError, match="needs at least one training image with a label, got none"):
        train_gan(phantom_store, DCGAN, tmp_path, TrainConfig(1), rows=np.array([], int))


def test_load_dcgan_other_file_raises(tmp_path):
    torch.save({"config": {"size": 64}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other.pt is not a checkpoint of this version"):
        load_gan(tmp_path / "other.pt", sketch=False)


def test_load_gan_of_the_other_mode_raises(trained, phantom_store, tmp_path):
    with pytest.raises(DataError, match=r"is not a checkpoint of a DCGAN .* \(its sketch style is 'contour'\)"):
        load_gan(trained / "checkpoint.pt", sketch=False)
    train_gan(phantom_store, dcgan_config(64, base_channels=8), tmp_path, TrainConfig(1, 4))
    with pytest.raises(DataError, match=r"is not a checkpoint of a CGAN .* \(its sketch style is 'none'\)"):
        load_gan(tmp_path / "checkpoint.pt")
    assert load_gan(tmp_path / "checkpoint.pt", sketch=False)[1] == DCGAN, "with the classes of the store"


def test_without_sketch_the_batch_sketch_changes_nothing():
    torch.manual_seed(0)
    task, batch = GAN(DCGAN), random_batch()
    assert not task.sketch_maps(batch).any()
    images = []
    for sketches in (batch["sketches"], 1 - batch["sketches"]):
        torch.manual_seed(1)
        images.append(task.generate(batch | {"sketches": sketches}, torch.ones(4, 32)))
    assert torch.equal(*images)


def test_train_without_sketch_but_with_artifacts_and_maps_runs(phantom_store, tmp_path):
    config = dcgan_config(64, base_channels=8, artifacts=True, noise_channels=4, code_channels=4, d4_augment=True)
    train_gan(phantom_store, config, tmp_path, TrainConfig(1, 4))
    generator, _ = load_gan(tmp_path / "checkpoint.pt", sketch=False)
    flags = np.ones((2, 7))
    assert not np.array_equal(sample(generator, None, [0, 1]), sample(generator, None, [0, 1], artifacts=flags))
