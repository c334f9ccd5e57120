import math

import numpy as np
import pytest
import torch

from helpers.models.cgan import sample
from helpers.models.pix2pix import PatchGAN, Pix2Pix, Pix2PixConfig, UNet, concat_label, load_pix2pix, train_pix2pix
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def parameters(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_networks_are_those_of_the_paper():
    with torch.device("meta"):
        generator, judge = UNet(256, 2), PatchGAN(2)
        assert len([m for m in generator.modules() if isinstance(m, torch.nn.Conv2d)]) == 8, "halvings, to one pixel"
        assert parameters(generator) == pytest.approx(54.4e6, rel=0.01), "as published with three planes in"
        assert parameters(judge) == pytest.approx(2.77e6, rel=0.01)
        planes = torch.zeros(1, 1, 256, 256), torch.zeros(1, dtype=torch.int64)
        assert judge(torch.zeros(1, 3, 256, 256), *planes).shape == (1, 1, 30, 30)


def test_shapes_labels_and_dropout_as_noise():
    torch.manual_seed(0)
    network, sketch = UNet(64, 3, base_channels=8).eval(), torch.rand(2, 1, 64, 64).round()
    planes = concat_label(sketch, torch.tensor([0, 2]), 3)
    assert planes.shape == (2, 4, 64, 64) and torch.equal(planes[:, 0], sketch[:, 0])
    assert planes[0, 1:].mean(dim=(1, 2)).tolist() == [1, 0, 0] and planes[1, 1:].mean(dim=(1, 2)).tolist() == [0, 0, 1]
    one, other = (network(sketch, torch.tensor([0, 2])) for _ in range(2))
    assert one.shape == (2, 3, 64, 64) and one.abs().max() <= 1 and not torch.equal(one, other)


def test_a_step_moves_both_and_the_difference_falls():
    torch.manual_seed(0)
    method = Pix2Pix(Pix2PixConfig(32, CLASSES, base_channels=8, lr=2e-3), steps=60)
    batch = {"images": torch.full((1, 3, 32, 32), 0.5), "sketches": torch.rand(1, 1, 32, 32).round()}
    batch |= {"labels": torch.tensor([3])}
    told = [method.training_step(batch, k, lambda loss: loss.backward()) for k in range(30)]
    assert all(math.isfinite(v.item()) for v in told[-1].values())
    assert told[-1]["difference"] < 0.5 * told[0]["difference"]
    assert all(weight.requires_grad for weight in method.networks["discriminator"].parameters())


def test_train_load_and_draw(phantom_store, tmp_path):
    settings = Pix2PixConfig(64, tuple(phantom_store.classes), base_channels=8)
    history = train_pix2pix(phantom_store, settings, tmp_path, TrainConfig(4, 1, save_every=2, log_every=2))
    assert history["step"] == [2, 4]
    images = sample(load_pix2pix(tmp_path / "checkpoint.pt"), phantom_store.sketches[:3], [0, 1, 2], batch_size=1)
    assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
    with pytest.raises(ValueError, match="the store has 64 px"):
        train_pix2pix(phantom_store, Pix2PixConfig(128, CLASSES), tmp_path, TrainConfig(1, 1))
