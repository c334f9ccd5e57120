"""A CGAN that continues at twice the image size, and weights from which its training can continue elsewhere."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from helpers.__main__ import main
from helpers.models.checkpoint import export_weights
from helpers.models.gan import CGAN, GANConfig, grown_config, load_gan, train_gan
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SMALL = GANConfig(64, CLASSES, base_channels=8, projected=True)


@pytest.fixture(scope="module")
def trained(phantom_store, tmp_path_factory):
    """Checkpoint of a 64 px CGAN after one step; read only."""
    folder = tmp_path_factory.mktemp("small")
    train_gan(phantom_store, SMALL, folder, TrainConfig(1, 4))
    return folder / "checkpoint.pt"


def test_init_from_half_the_size_keeps_every_coarse_layer(trained):
    config = grown_config(replace(SMALL, size=128), trained)
    assert config.channels() == [8, 8, 16, 32]
    torch.manual_seed(1)
    task = CGAN(config)
    task.init_from(trained)
    small = torch.load(trained, weights_only=True)["networks"]
    for name, fine_end in (("generator", ("down", "line_in")), ("discriminator", ("down",))):
        grown = task.networks[name].state_dict()
        for key, weight in small[name].items():
            level = key.split(".")
            if level[0] in fine_end:
                key = ".".join([level[0], str(int(level[1]) + 1), *level[2:]])
            assert torch.equal(grown[key], weight), key
        assert len(grown) > len(small[name])


def test_main_train_cgan_grow_trains_at_twice_the_size(trained, phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    command = ["train", "cgan", "--dataset", "phantoms", "--data-root", str(phantoms), "--grow", str(trained)]
    options = ["--size", "128", "--steps", "1", "--batch-size", "4", "--out", str(tmp_path)]
    assert main([*command, *options]) == 0
    generator, config = load_gan(tmp_path / "checkpoint.pt")
    assert (config.size, config.level_channels, generator.size) == (128, (8, 8, 16, 32), 128)
    assert main([*command, "--size", "64", "--out", str(tmp_path / "same")]) == 2
    assert "has 64 px: it can grow to 128, not 64" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [(8, 16), (8, 16, 32, 64)])
def test_config_level_channels_of_another_number_raises(channels):
    with pytest.raises(ValueError, match="level_channels must be 3 numbers for 64 px"):
        replace(SMALL, level_channels=channels)


def test_init_from_exported_networks_equals_the_checkpoint_in_half_precision(trained, tmp_path):
    file = export_weights(trained, tmp_path / "training.safetensors", all_networks=True, license_name="CC BY-NC 4.0")
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["checkpoint"])["license"] == "CC BY-NC 4.0"
    saved = torch.load(trained, weights_only=True)
    assert file.stat().st_size < trained.stat().st_size / 4
    task = CGAN(SMALL)
    task.init_from(file)
    for name, networks in (("encoder", "networks"), ("discriminator", "networks"), ("generator", "ema_models")):
        for key, weight in task.networks[name].state_dict().items():
            if not key.startswith("feature_network."):
                assert torch.allclose(weight, saved[networks][name][key], rtol=1e-3, atol=1e-6), (name, key)
    assert task.extra_state["trained_on"] == saved["extra_state"]["trained_on"]
    assert load_gan(file)[1] == SMALL
