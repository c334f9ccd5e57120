import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import load_checkpoint
from torch import nn

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.models.checkpoint import export_weights
from helpers.models.gan import CGAN, GANConfig, UnpairedCGAN, d4_augment, load_gan, make_preview, sample, train_gan
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SMALL = GANConfig(64, CLASSES, base_channels=8)


@pytest.fixture
def store(phantom_store) -> Store:
    return phantom_store


@pytest.fixture(scope="module")
def trained(phantom_store, tmp_path_factory):
    """Folder of a CGAN after one step; read only."""
    folder = tmp_path_factory.mktemp("cgan")
    train_gan(phantom_store, SMALL, folder, TrainConfig(1, 4))
    return folder


def random_batch() -> dict[str, torch.Tensor]:
    images, sketches = torch.rand(4, 3, 64, 64) * 2 - 1, torch.rand(4, 1, 64, 64).round()
    return {"images": images, "sketches": sketches, "labels": torch.arange(4), "artifacts": torch.rand(4, 7).round()}


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


def test_config_r1_gamma_follows_size_unless_given():
    assert [GANConfig(size, ("NV",)).r1_gamma for size in (64, 128, 256)] == [0.02, 0.02, 1.0]
    assert GANConfig(256, ("NV",), r1_gamma=0.5).r1_gamma == 0.5


def test_training_step_updates_every_network_with_its_own_loss_only():
    torch.manual_seed(0)
    task = CGAN(SMALL)
    before = {name: [p.clone() for p in network.parameters()] for name, network in task.networks.items()}
    backward = RecordingBackward(task.networks)
    losses = task.training_step(random_batch(), 0, backward)
    assert set(losses) == {
        "loss_d", "loss_g", "real_score", "fake_score", "feature_matching", "l1", "texture", "kl"
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
    task = CGAN(replace(SMALL, projected=True))
    discriminator = task.networks["discriminator"]
    fixed = copy.deepcopy(discriminator.feature_network.state_dict())
    heads = [weight.clone() for weight in discriminator.heads.parameters()]
    task.training_step(random_batch(), 0, RecordingBackward(task.networks))
    assert all(torch.equal(w, fixed[name]) for name, w in discriminator.feature_network.state_dict().items())
    assert not any(weight.requires_grad for weight in discriminator.feature_network.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(heads, discriminator.heads.parameters(), strict=True))


def test_training_step_learning_rate_is_that_of_step_and_progress():
    task = CGAN(SMALL)
    for step, progress, expected in ((0, 0.0, 0.01), (200, 0.4, 1), (200, 1.0, 0.1)):
        task.progress = progress
        task.training_step(random_batch(), step, lambda loss: loss.backward())
        rates = [optimizer.param_groups[0]["lr"] for optimizer in task.optimizers.values()]
        assert rates == pytest.approx([expected * SMALL.lr] * 2)


def test_loss_weights_l1_falls_to_its_floor_in_the_first_half_of_the_run():
    task, unpaired = CGAN(replace(SMALL, lambda_l1=10.0, l1_floor=0.2)), UnpairedCGAN(replace(SMALL, paired=False))
    weights = {}
    for progress in (0.0, 0.25, 0.4, 0.5, 1.0):
        task.progress = unpaired.progress = progress
        weights[progress] = task.loss_weights()["l1"]
        assert unpaired.loss_weights()["l1"] == SMALL.lambda_l1, "region colors count all the time"
    assert weights == pytest.approx({0.0: 10, 0.25: 5, 0.4: 2, 0.5: 2, 1.0: 2})


def test_run_discriminator_two_groups_get_the_same_sketches_labels_and_artifacts():
    torch.manual_seed(0)
    task, batch = CGAN(replace(SMALL, color_jitter=0.0, translate=0.0)), random_batch()
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


# --------------------------------------------------------------------------------------------------- initialization


def test_init_from_checkpoint_copies_every_network(trained):
    task = CGAN(replace(SMALL, projected=True))
    task.init_from(trained / "checkpoint.pt")
    for name, saved in load_checkpoint(trained)["networks"].items():
        weights = task.networks[name].state_dict()
        assert all(torch.equal(weight, weights[key]) for key, weight in saved.items()), name


def test_init_from_released_file_copies_the_generator_only(trained, tmp_path):
    task = CGAN(replace(SMALL, projected=True))
    before = {name: copy.deepcopy(task.networks[name].state_dict()) for name in ("encoder", "discriminator")}
    task.init_from(export_weights(trained / "checkpoint.pt", tmp_path / "cgan.safetensors"))
    weights = task.networks["generator"].state_dict()
    ema = load_checkpoint(trained)["ema_models"]["generator"]
    assert all(torch.allclose(weight, weights[key], atol=1e-3) for key, weight in ema.items())
    for name, saved in before.items():
        weights = task.networks[name].state_dict()
        assert all(torch.equal(weight, weights[key]) for key, weight in saved.items()), name
    assert task.extra_state["init_from"].endswith("cgan.safetensors") and task.extra_state["trained_on"]


def test_init_from_other_config_raises_value_error(trained):
    changes = {
        "networks of other sizes": {"base_channels": 16},
        r"has classes \['MEL'.*, the config says \['VASC'": {"classes": CLASSES[::-1]},
        "has style 'contour', the config says 'structure'": {"style": "structure"},
    }
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            CGAN(replace(SMALL, **change)).init_from(trained / "checkpoint.pt")


def test_init_from_other_kind_of_checkpoint_raises_data_error(trained, tmp_path):
    saved = load_checkpoint(trained)
    for other in ({"networks": {"segmenter": {}}}, saved | {"networks": saved["networks"] | {"encoder": {}}}):
        torch.save(other, tmp_path / "other.pt")
        with pytest.raises(DataError, match="is not a checkpoint of `train cgan`"):
            CGAN(SMALL).init_from(tmp_path / "other.pt")


def test_train_init_from_records_source_and_training_images(store, trained, tmp_path):
    config = replace(SMALL, projected=True)
    train_gan(store, config, tmp_path / "second", TrainConfig(1, 4), init_from=trained / "checkpoint.pt")
    assert load_gan(tmp_path / "second/checkpoint.pt")[1] == config
    extra_state = load_checkpoint(tmp_path / "second")["extra_state"]
    assert extra_state["init_from"].endswith("checkpoint.pt")
    train_ids = store.table["image_id"].iloc[store.rows("train", needs=["sketch", "label"])]
    assert extra_state["trained_on"] == sorted(train_ids)
    val_rows = store.rows("val", needs=["sketch", "label"])
    with pytest.raises(DataError, match=f"was trained on {len(train_ids)} images that are held out"):
        train_gan(store, SMALL, tmp_path / "third", TrainConfig(1, 4), val_rows, init_from=trained / "checkpoint.pt")


# ------------------------------------------------------------------------------------------------ training, sampling


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
    assert sorted(p.name for p in (tmp_path / "once").glob("grid-*.png")) == [f"grid-{k:06d}.png" for k in (1, 2, 3)]
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


def test_train_unpaired_sketches_of_wrong_kind_raise(store, tmp_path):
    lines = np.full((2, 64, 64), 255, np.uint8)
    for paired, sketches in ((True, lines), (False, lines[:, :32, :32]), (False, 0 * lines)):
        with pytest.raises(ValueError, match=r"unpaired sketches need paired=False, size \(64, 64\) and lines; got"):
            train_gan(store, replace(SMALL, paired=paired), tmp_path, TrainConfig(1), sketches=sketches)


def test_train_without_images_raises(store, tmp_path):
    with pytest.raises(DataError, match="needs at least one training image with a sketch and a label, got none"):
        train_gan(store, SMALL, tmp_path, TrainConfig(1), rows=np.array([], int))


def test_sample_same_seed_repeats_and_latent_fixes_the_noise():
    torch.manual_seed(0)
    generator = SMALL.generator().eval()
    sketches, labels = np.zeros((5, 64, 64), np.uint8), [0, 1, 2, 3, 4]
    sketches[:, 20:40, 20:22] = 255
    random_state = torch.random.get_rng_state()
    images = sample(generator, sketches, labels, seed=3, batch_size=2)
    assert images.shape == (5, 64, 64, 3) and images.dtype == np.uint8
    assert np.array_equal(images, sample(generator, sketches, labels, seed=3, batch_size=2))
    assert not np.array_equal(images, sample(generator, sketches, labels, seed=4, batch_size=2))
    assert torch.equal(random_state, torch.random.get_rng_state()), "the global random state is restored"
    equal = sample(generator, sketches[:2], [0, 0], latent=torch.zeros(2, 16))
    assert np.array_equal(equal[0], equal[1]), "the same per-pixel noise"
    assert not np.array_equal(equal, sample(generator, sketches[:2], [0, 0], latent=torch.zeros(2, 16), seed=1))
    different = sample(generator, sketches[:2], [0, 0], latent=torch.tensor([[-2.0], [2.0]]).expand(2, 16))
    assert not np.array_equal(different[0], different[1])


def test_sample_wrong_number_or_size_raises():
    generator, sketches = SMALL.generator().eval(), np.zeros((5, 64, 64), np.uint8)
    with pytest.raises(ValueError, match="got 5 sketches, 2 labels, no latents"):
        sample(generator, sketches, [0, 1])
    with pytest.raises(ValueError, match="got 5 sketches, 5 labels, 1 latents"):
        sample(generator, sketches, [0] * 5, latent=torch.zeros(1, 16))
    with pytest.raises(ValueError, match=r"sketches must be \(64, 64\) pixels, got \(32, 32\)"):
        sample(generator, sketches[:, :32, :32], [0] * 5)


def test_make_preview_has_every_label_and_two_more_latents_per_sketch(store):
    preview = make_preview(store, SMALL, seed=0, num_sketches=3)
    assert preview["sketches"].shape == (27, 1, 64, 64) and preview["columns"] == 9
    assert preview["labels"][:7].tolist() == list(range(7))
    assert torch.equal(preview["sketches"][0], preview["sketches"][8])
    assert torch.equal(preview["latents"][0], preview["latents"][6])
    assert not torch.equal(preview["latents"][0], preview["latents"][7])


# ------------------------------------------------------------------------------------------- sketches without a pair


def test_train_unpaired_records_sketch_loss_and_loads_like_paired(store, tmp_path):
    config = replace(SMALL, paired=False)
    history = train_gan(store, config, tmp_path, TrainConfig(2, batch_size=4, log_every=1))
    assert history["sketch"][0] > 0 and all(np.isfinite(history["l1"]))
    generator, loaded = load_gan(tmp_path / "checkpoint.pt")
    assert loaded == config and sample(generator, store.sketches[:2], [0, 1]).shape == (2, 64, 64, 3)


def two_tone_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Images with a dark square at another position than their sketch's, and the square of the sketch."""
    square = torch.zeros(2, 1, 64, 64)
    square[:, :, 20:44, 20:44] = 1
    sketches = square.clone()
    sketches[:, :, 22:42, 22:42] = 0
    images = 0.8 - square.roll(-12, dims=3) + 0.05 * torch.randn(2, 3, 64, 64)
    return {"images": images, "sketches": sketches, "labels": torch.arange(2)}, square


def test_unpaired_reconstruction_losses_dark_region_off_the_sketch_is_penalized():
    torch.manual_seed(0)
    task, (batch, square) = UnpairedCGAN(replace(SMALL, paired=False)), two_tone_batch()
    on_sketch, off_sketch = ((0.8 - s).expand(2, 3, 64, 64) for s in (square, square.roll(12, dims=2)))
    low, high = (task.reconstruction_losses(fake, batch, num_encoded=1) for fake in (on_sketch, off_sketch))
    assert low["sketch"] == 0 and high["sketch"] > 0.3
    assert low["l1"] < 0.05 and high["l1"] > 0.3, "region colors of the real image, wherever its dark region lies"


def test_unpaired_discriminator_gets_blank_sketches():
    torch.manual_seed(0)
    (batch, _), blank = two_tone_batch(), torch.zeros(2, 2, 64, 64)
    assert torch.equal(UnpairedCGAN(replace(SMALL, paired=False)).sketch_maps(batch), blank)
    assert CGAN(SMALL).sketch_maps(batch).sum(dim=(2, 3)).min() > 0


def test_unpaired_sketch_loss_wants_the_darker_tone_inside():
    task = UnpairedCGAN(replace(SMALL, paired=False))
    sketches = torch.zeros(2, 1, 64, 64)
    sketches[..., 16, 16:48] = sketches[..., 47, 16:48] = sketches[..., 16:48, 16] = sketches[..., 16:48, 47] = 1
    dark_inside = torch.full((2, 3, 64, 64), 0.5)
    dark_inside[..., 16:48, 16:48] = -0.5
    batch = {"images": dark_inside, "sketches": sketches}
    losses = [float(task.reconstruction_losses(fake, batch, 1)["sketch"]) for fake in (dark_inside, -dark_inside)]
    assert losses[0] == 0 and losses[1] > task.config.separation_target
