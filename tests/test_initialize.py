import copy
import json
from dataclasses import replace

import pytest
import torch
from factories import isic2016, load_checkpoint
from safetensors import safe_open

from helpers import config as config_module
from helpers.__main__ import main
from helpers.data.files import DataError
from helpers.models.checkpoint import export_weights, training_data
from helpers.models.gan import GAN, GANConfig, grown_config, load_gan, train_gan
from helpers.models.initialize import start_from
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


def test_init_from_other_classes_keeps_all_but_the_class_rows(plain, trained):
    for config, checkpoint in ((PLAIN, plain / "checkpoint.pt"), (SMALL, trained)):
        task = GAN(replace(config, classes=("benign", "VASC", "MEL")))
        before = {name: copy.deepcopy(network.state_dict()) for name, network in task.networks.items()}
        task.init_from(checkpoint)
        saved, num_class_rows = torch.load(checkpoint, weights_only=True)["networks"], 0
        for name, network in task.networks.items():
            for key, weight in network.state_dict().items():
                if key.split(".")[-2:] == ["class_embed", "weight"] or key == "artifact_rates":
                    num_class_rows += 1
                    assert torch.equal(weight[0], before[name][key][0]), "a new class"
                    assert torch.equal(weight[1:], saved[name][key][[6, 0]]), "rows of VASC and MEL"
                else:
                    assert torch.equal(weight, saved[name][key]), key
        assert num_class_rows == 4 + 4 * config.projected


def test_init_from_class_rows_that_do_not_match_the_class_list_raises(plain, tmp_path):
    saved = load_checkpoint(plain)
    saved["networks"]["generator"]["class_embed.weight"] = torch.zeros(2, 64)
    torch.save(saved, tmp_path / "other.pt")
    with pytest.raises(DataError, match="is not a checkpoint of `train cgan`"):
        GAN(replace(PLAIN, classes=("VASC", "MEL"))).init_from(tmp_path / "other.pt")


def test_main_train_cgan_init_from_trains_on_the_classes_of_another_data_set(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    released = config_module.ROOT / "data" / "released"
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "released").symlink_to(released)
    data = ["--dataset", "isic2016", "--data-root", str(isic2016(tmp_path / "isic2016"))]
    options = ["--no-projected", "--steps", "1", "--batch-size", "4", "--init-from", str(plain / "checkpoint.pt")]
    assert main(["train", "cgan", *data, *options, "--out", str(tmp_path / "out")]) == 0
    generator, config = load_gan(tmp_path / "out/checkpoint.pt")
    assert config.classes == ("benign", "malignant") and generator.class_embed.weight.shape == (2, 64)
    trained_on = load_checkpoint(tmp_path / "out")["extra_state"]["trained_on"]
    assert {"ISIC_0000000", *load_checkpoint(plain)["extra_state"]["trained_on"]} <= set(trained_on)
    saved = load_checkpoint(plain)
    saved["extra_state"]["trained_on"] = ["ISIC_0000101"]  # a test image of ISIC 2016
    torch.save(saved, tmp_path / "leaked.pt")
    options[-1] = str(tmp_path / "leaked.pt")
    assert main(["train", "cgan", *data, *options, "--out", str(tmp_path / "leaked")]) == 2
    assert "leaked.pt was trained on the lesions of 1 images that are held out in isic2016" in capsys.readouterr().err


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


def license_of(file) -> str | None:
    """The license in the header of a released file."""
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["checkpoint"]).get("license")


def test_licenses_of_all_training_data_are_recorded_and_exported(plain, phantom_store, tmp_path):
    assert license_of(export_weights(plain / "checkpoint.pt", tmp_path / "phantoms.safetensors")) == "MIT"
    names = ["CC BY-NC 4.0 (A: B, C, 2018)", "CC-0 (D)"]
    file = tmp_path / "released.safetensors"
    export_weights(plain / "checkpoint.pt", file, license_name="; ".join(names))
    task = GAN(PLAIN)
    start_from(task, file, phantom_store, phantom_store.rows("train"))
    assert task.extra_state["licenses"] == [*names, "MIT"]
    assert license_of(export_weights(file, tmp_path / "again.safetensors")) == "; ".join(names)


def test_a_checkpoint_without_licenses_resumes_and_gets_them(plain, phantom_store, tmp_path):
    saved = load_checkpoint(plain)
    assert saved["extra_state"].pop("licenses") == ["MIT"]
    torch.save(saved, tmp_path / "checkpoint.pt")
    assert license_of(export_weights(tmp_path / "checkpoint.pt", tmp_path / "x.safetensors")) is None
    train_gan(phantom_store, PLAIN, tmp_path, TrainConfig(2, 4))
    resumed = load_checkpoint(tmp_path)
    assert resumed["step"] == 2 and resumed["extra_state"]["licenses"] == ["MIT"]
