import copy
import json
from dataclasses import replace

import pytest
import torch
from factories import load_checkpoint
from safetensors import safe_open

from helpers.__main__ import main
from helpers.data.files import DataError
from helpers.models.checkpoint import export_weights, training_data
from helpers.models.gan import GAN, GANConfig, grown_config, load_gan, train_gan
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
PLAIN = GANConfig(64, CLASSES, "contour", base_channels=8)
SMALL = replace(PLAIN, projected=True)


@pytest.fixture(scope="module")
def plain(phantom_store, tmp_path_factory):
    """Folder of a CGAN without projected heads after one step; read only."""
    folder = tmp_path_factory.mktemp("plain")
    train_gan(phantom_store, PLAIN, folder, TrainConfig(1, 4))
    return folder


@pytest.fixture(scope="module")
def trained(phantom_store, tmp_path_factory):
    """Checkpoint of a 64 px CGAN after one step; read only."""
    folder = tmp_path_factory.mktemp("small")
    train_gan(phantom_store, SMALL, folder, TrainConfig(1, 4))
    return folder / "checkpoint.pt"


def test_init_from_checkpoint_copies_every_network(plain):
    task = GAN(replace(PLAIN, projected=True))
    task.init_from(plain / "checkpoint.pt")
    for name, saved in load_checkpoint(plain)["networks"].items():
        weights = task.networks[name].state_dict()
        assert all(torch.equal(weight, weights[key]) for key, weight in saved.items()), name


def test_init_from_released_file_copies_the_generator_only(plain, tmp_path):
    task = GAN(replace(PLAIN, projected=True))
    before = {name: copy.deepcopy(task.networks[name].state_dict()) for name in ("encoder", "discriminator")}
    task.init_from(export_weights(plain / "checkpoint.pt", tmp_path / "cgan.safetensors"))
    weights = task.networks["generator"].state_dict()
    ema = load_checkpoint(plain)["ema_models"]["generator"]
    assert all(torch.allclose(weight, weights[key], atol=1e-3) for key, weight in ema.items())
    for name, saved in before.items():
        weights = task.networks[name].state_dict()
        assert all(torch.equal(weight, weights[key]) for key, weight in saved.items()), name
    assert task.extra_state["init_from"].endswith("cgan.safetensors") and task.extra_state["trained_on"]


def test_init_from_other_config_raises_value_error(plain):
    changes = {
        "networks of other sizes": {"base_channels": 16},
        r"has classes \['MEL'.*, the config says \['VASC'": {"classes": CLASSES[::-1]},
        "has style 'contour', the config says 'structure'": {"style": "structure"},
    }
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            GAN(replace(PLAIN, **change)).init_from(plain / "checkpoint.pt")


def test_init_from_other_kind_of_checkpoint_raises_data_error(plain, tmp_path):
    saved = load_checkpoint(plain)
    for other in (saved | {"networks": {"segmenter": {}}}, saved | {"networks": saved["networks"] | {"encoder": {}}}):
        torch.save(other, tmp_path / "other.pt")
        with pytest.raises(DataError, match="is not a checkpoint of `train cgan`"):
            GAN(PLAIN).init_from(tmp_path / "other.pt")


def test_train_init_from_records_source_and_training_images(phantom_store, plain, tmp_path):
    config = replace(PLAIN, projected=True)
    train_gan(phantom_store, config, tmp_path / "second", TrainConfig(1, 4), init_from=plain / "checkpoint.pt")
    assert load_gan(tmp_path / "second/checkpoint.pt")[1] == config
    extra_state = load_checkpoint(tmp_path / "second")["extra_state"]
    assert extra_state["init_from"].endswith("checkpoint.pt")
    rows = phantom_store.rows("train", needs=["sketch", "label"])
    assert extra_state["trained_on"] == training_data(phantom_store, rows)["trained_on"]
    val_rows = phantom_store.rows("val", needs=["sketch", "label"])
    with pytest.raises(DataError, match=f"trained on the lesions of {len(rows)} images that are held out"):
        train_gan(
            phantom_store, PLAIN, tmp_path / "third", TrainConfig(1, 4), val_rows, init_from=plain / "checkpoint.pt"
        )


# ----------------------------------------------------------------------------------------- growing, exported networks


def test_init_from_half_the_size_keeps_every_coarse_layer(trained):
    config = grown_config(replace(SMALL, size=128), trained)
    assert config.channels() == [8, 8, 16, 32]
    torch.manual_seed(1)
    task = GAN(config)
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
    task = GAN(SMALL)
    task.init_from(file)
    for name, networks in (("encoder", "networks"), ("discriminator", "networks"), ("generator", "ema_models")):
        for key, weight in task.networks[name].state_dict().items():
            if not key.startswith("feature_network."):
                assert torch.allclose(weight, saved[networks][name][key], rtol=1e-3, atol=1e-6), (name, key)
    assert task.extra_state["trained_on"] == saved["extra_state"]["trained_on"]
    assert load_gan(file)[1] == SMALL
