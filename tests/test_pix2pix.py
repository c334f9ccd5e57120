import math

import numpy as np
import pytest
import torch

from helpers.models.pix2pix import PatchGAN, Pix2Pix, Pix2PixConfig, UNet, concat_label, load_pix2pix, train_pix2pix
from helpers.models.sampling import sample
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def num_parameters(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_networks_at_256_px_are_those_of_the_paper():
    with torch.device("meta"):
        generator, discriminator = UNet(256, 2), PatchGAN(2)
        convs = [m for m in generator.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(convs) == 8, "halvings, to one pixel"
        assert num_parameters(generator) == pytest.approx(54.4e6, rel=0.01), "as published, with three input channels"
        assert num_parameters(discriminator) == pytest.approx(2.77e6, rel=0.01)
        inputs = torch.zeros(1, 3, 256, 256), torch.zeros(1, 1, 256, 256), torch.zeros(1, dtype=torch.int64)
        assert discriminator(*inputs).shape == (1, 1, 30, 30)


def test_concat_label_appends_one_plane_per_class():
    sketch = torch.rand(2, 1, 64, 64).round()
    planes = concat_label(sketch, torch.tensor([0, 2]), 3)
    assert planes.shape == (2, 4, 64, 64) and torch.equal(planes[:, 0], sketch[:, 0])
    assert planes[:, 1:].mean(dim=(2, 3)).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert planes[:, 1:].std(dim=(2, 3)).max() == 0


def test_unet_eval_mode_varies_by_dropout():
    torch.manual_seed(0)
    network, sketch = UNet(64, 3, base_channels=8).eval(), torch.rand(2, 1, 64, 64).round()
    first, second = (network(sketch, torch.tensor([0, 2])) for _ in range(2))
    assert first.shape == (2, 3, 64, 64) and first.abs().max() <= 1 and not torch.equal(first, second)


def test_training_step_30_steps_on_one_image_halve_l1():
    torch.manual_seed(0)
    task = Pix2Pix(Pix2PixConfig(32, CLASSES, base_channels=8, lr=2e-3), steps=60)
    before = [weight.clone() for weight in task.networks["discriminator"].parameters()]
    batch = {"images": torch.full((1, 3, 32, 32), 0.5), "sketches": torch.rand(1, 1, 32, 32).round()}
    batch |= {"labels": torch.tensor([3])}
    losses = [task.training_step(batch, step, lambda loss: loss.backward()) for step in range(30)]
    assert set(losses[0]) == {"loss_d", "loss_g", "l1"}
    assert all(math.isfinite(loss.item()) for loss in losses[-1].values())
    assert losses[-1]["l1"] < 0.5 * losses[0]["l1"]
    after = list(task.networks["discriminator"].parameters())
    assert all(weight.requires_grad for weight in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_training_step_second_half_decays_the_learning_rate():
    task = Pix2Pix(Pix2PixConfig(32, CLASSES, base_channels=8), steps=100)
    batch = {"images": torch.zeros(1, 3, 32, 32), "sketches": torch.zeros(1, 1, 32, 32), "labels": torch.tensor([0])}
    for step, expected in ((0, 2e-4), (50, 2e-4), (75, 1e-4)):
        task.progress = step / 100
        task.training_step(batch, step, lambda loss: loss.backward())
        lrs = [group["lr"] for optimizer in task.optimizers.values() for group in optimizer.param_groups]
        assert lrs == pytest.approx([expected] * 2)


def test_train_pix2pix_checkpoint_loads_and_samples(phantom_store, tmp_path):
    config = Pix2PixConfig(64, tuple(phantom_store.classes), base_channels=8)
    history = train_pix2pix(phantom_store, config, tmp_path, TrainConfig(4, 1, save_every=2, log_every=2))
    assert history["step"] == [2, 4]
    images = sample(load_pix2pix(tmp_path / "checkpoint.pt"), phantom_store.sketches[:3], [0, 1, 2], batch_size=1)
    assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
    with pytest.raises(ValueError, match="the store has size 64, the config 128"):
        train_pix2pix(phantom_store, Pix2PixConfig(128, CLASSES), tmp_path, TrainConfig(1, 1))
