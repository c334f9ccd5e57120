"""Files of weights that are damaged, of another program or made to do harm: every command answers with one sentence."""

import json
import math
import pickle
import re
import zlib
from base64 import b64encode
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from factories import load_checkpoint
from safetensors.torch import save_file
from torch import nn

from helpers.__main__ import main
from helpers.data.files import DataError
from helpers.models.artifacts import ArtifactConfig
from helpers.models.checkpoint import MAX_IDS_BYTES, export_weights, read_checkpoint, unpack_ids
from helpers.models.checks import check_class_names, check_settings, check_weights, load_file
from helpers.models.classifier import ClassifierConfig, load_classifier, train_classifier
from helpers.models.gan import GANConfig, train_gan
from helpers.models.pix2pix import Pix2PixConfig
from helpers.models.segmenter import SegmenterConfig
from helpers.models.trainer import TrainConfig
from helpers.models.weights import imagenet_weights

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


class Code:
    """Unpickling this creates the file `executed`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return Path.touch, (self.folder / "executed",)


def saved_by_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


def zeroed(path: Path, content: bytes) -> None:
    """The file after a power failure: a part was never written."""
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])


FILES = {  # what is written instead of a checkpoint with this content
    "empty": lambda path, content: path.write_bytes(b""),
    "cut in half": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "first bytes": lambda path, content: path.write_bytes(content[:500]),
    "torn": zeroed,
    "text": lambda path, content: path.write_text("no such page\n"),
    "pointer": lambda path, content: path.write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n"),
    "folder": lambda path, content: path.mkdir(),
    "tensor": lambda path, content: torch.save(torch.ones(3), path),
    "list": lambda path, content: torch.save([1, 2], path),
    "empty dict": lambda path, content: torch.save({}, path),
    "state dict": lambda path, content: torch.save(nn.Linear(2, 2).state_dict(), path),
    "other program": lambda path, content: torch.save({"model": nn.Linear(2, 2).state_dict(), "epoch": 3}, path),
    "module": lambda path, content: torch.save(nn.Linear(2, 2), path),
    "code": lambda path, content: torch.save(Code(path.parent), path),
    "pickled code": lambda path, content: saved_by_pickle(path, Code(path.parent)),
}


def replace_weight(saved: dict, value: float | torch.Tensor) -> None:
    for weights in (saved["ema_models"]["generator"], saved["networks"]["generator"]):
        name = next(name for name, weight in weights.items() if weight.dim() == 4)
        weights[name] = torch.full_like(weights[name], value) if isinstance(value, float) else value


CONTENTS = {  # what is changed in a checkpoint
    "config is absent": lambda saved: saved.pop("config"),
    "config is a list": lambda saved: saved.update(config=[1]),
    "extra state is absent": lambda saved: saved.pop("extra_state"),
    "extra state is none": lambda saved: saved.update(extra_state=None),
    "networks are a list": lambda saved: saved.update(networks=[1], ema_models=[2]),
    "weights are numbers": lambda saved: saved["ema_models"].update(generator={"a": 1}),
    "weights of another shape": lambda saved: replace_weight(saved, torch.ones(2, 2)),
    "weights of a huge shape": lambda saved: replace_weight(saved, torch.ones(1).expand(10**6, 10**6)),
    "weights are sparse": lambda saved: replace_weight(saved, torch.eye(3).to_sparse()),
    "weights are NaN": lambda saved: replace_weight(saved, math.nan),
    "weights are infinite": lambda saved: replace_weight(saved, math.inf),
    "a network is absent": lambda saved: (saved["networks"].pop("generator"), saved["ema_models"].pop("generator")),
    "ids are a number": lambda saved: saved["extra_state"].update(trained_on=5),
    "ids are numbers": lambda saved: saved["extra_state"].update(trained_on=[5]),
    "setting: size is huge": lambda saved: saved["config"].update(size=10**9),
    "setting: size is a text": lambda saved: saved["config"].update(size="64"),
    "setting: channels are huge": lambda saved: saved["config"].update(base_channels=10**9),
    "setting: channels per level are huge": lambda saved: saved["config"].update(level_channels=[10**9] * 4),
    "a class is a path": lambda saved: saved["config"].update(classes=["../x", *CLASSES[1:]]),
    "a class is a number": lambda saved: saved["config"].update(classes=[1, *CLASSES[1:]]),
    "classes are a text": lambda saved: saved["config"].update(classes="MELNVBC"),
    "setting is unknown": lambda saved: saved["config"].update(speed=3),
}
STATES = {  # what only matters to go on with the training
    "history is a text": lambda saved: saved.update(history="none"),
    "history without steps": lambda saved: saved.update(history={"loss": [1.0]}),
    "history of texts": lambda saved: saved.update(history={"step": ["a"]}),
    "step is a text": lambda saved: saved.update(step="3"),
    "step is negative": lambda saved: saved.update(step=-3),
    "train config is absent": lambda saved: saved.pop("train_config"),
    "train config is empty": lambda saved: saved.update(train_config={}),
    "optimizers are absent": lambda saved: saved.update(optimizers={}),
    "optimizer of another network": lambda saved: saved["optimizers"].update(
        generator={"state": {}, "param_groups": []}
    ),
    "discriminator is absent": lambda saved: saved["networks"].pop("discriminator"),
    "loss sums are texts": lambda saved: saved.update(loss_sums={"loss": "a"}),
    "extra state is empty": lambda saved: saved.update(extra_state={}),
    "seconds are NaN": lambda saved: saved.update(seconds=math.nan),
}


@pytest.fixture(scope="module")
def checkpoint(phantom_store, tmp_path_factory) -> Path:
    """Of a CGAN after one step; read only."""
    folder = tmp_path_factory.mktemp("cgan")
    train_gan(phantom_store, GANConfig(64, CLASSES, base_channels=8), folder, TrainConfig(1, 4))
    return folder / "checkpoint.pt"


@pytest.fixture
def damaged(request, checkpoint, tmp_path) -> Path:
    """`checkpoint.pt` with one of `FILES`, `CONTENTS` and `STATES`."""
    path = tmp_path / "checkpoint.pt"
    if request.param in FILES:
        FILES[request.param](path, checkpoint.read_bytes())
    else:
        saved = load_checkpoint(checkpoint.parent)
        (CONTENTS | STATES)[request.param](saved)
        torch.save(saved, path)
    yield path
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def run(phantoms, root, tmp_path, monkeypatch, capsys):
    """Function arguments -> the error message, of a command that ends with exit status 2 and one sentence."""
    monkeypatch.setattr("helpers.config.ROOT", root)
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    for name in ("LESION_DATASET", "LESION_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        progress = re.compile(r"\s*|.*(it|images)/s.*")
        lines = [line for line in capsys.readouterr().err.splitlines() if not progress.fullmatch(line)]
        assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 600, lines
        assert "weights_only" not in lines[0], "PyTorch advises to run the code"
        return lines[0]

    return run_command


@pytest.mark.parametrize("damaged", [*FILES, *CONTENTS], indirect=True)
def test_commands_with_a_damaged_checkpoint_end_with_one_sentence(damaged, run, tmp_path, phantoms):
    (tmp_path / "images").mkdir()
    expected = "checkpoint.pt is not a file" if damaged.is_dir() else "checkpoint.pt"
    for command in ("generate --sketches", "segment --images", "classify --images"):
        assert expected in run(*command.split(), "images", "--out", "out", "--checkpoint", damaged)
    for method in ("cgan", "segmenter", "classifier", "artifacts"):
        assert expected in run("export", method, "--out", "out.safetensors", "--checkpoint", damaged)
    data = ("--data-root", phantoms)
    for name in ("generator", "segmenter", "classifier", "artifacts"):
        assert expected in run("evaluate", name, damaged, *data)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("damaged", [*FILES, *(kind for kind in CONTENTS if "setting" not in kind)], indirect=True)
def test_training_from_the_weights_of_a_damaged_checkpoint_ends_with_one_sentence(damaged, run, phantoms):
    options = ("--no-projected", "--base-channels", 8, "--init-from", damaged, "--out", "new")
    assert "checkpoint.pt" in run("train", "cgan", "--data-root", phantoms, *options)


@pytest.mark.parametrize(
    "damaged", [*FILES, *(kind for kind in CONTENTS if kind != "setting is unknown"), *STATES], indirect=True
)
def test_training_on_from_a_damaged_checkpoint_ends_with_one_sentence(damaged, run, phantoms, tmp_path):
    options = ("--no-projected", "--base-channels", 8, "--batch-size", 4, "--steps", 2, "--out", tmp_path)
    message = run("train", "cgan", "--data-root", phantoms, *options)
    assert "checkpoint.pt" in message and "choose another folder" in message


# ------------------------------------------------------------------------------------------------------ released files


@pytest.fixture(scope="module")
def classifier(phantom_store, tmp_path_factory) -> Path:
    """Checkpoint of a classifier after one step; read only."""
    folder = tmp_path_factory.mktemp("classifier")
    train_classifier(phantom_store, ClassifierConfig(64), folder, TrainConfig(1, 4))
    return folder / "checkpoint.pt"


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "1", None, [1.0]])
def test_classifier_of_no_temperature_above_zero_is_refused(classifier, temperature, run, tmp_path):
    saved = load_checkpoint(classifier.parent)
    saved["extra_state"]["temperature"] = temperature
    torch.save(saved, tmp_path / "checkpoint.pt")
    (tmp_path / "images").mkdir()
    message = run("classify", "--images", "images", "--checkpoint", tmp_path / "checkpoint.pt")
    assert "is not a checkpoint of a classifier" in message


def test_classifier_stopped_before_its_first_validation_says_so(classifier, tmp_path):
    saved = load_checkpoint(classifier.parent)
    saved["extra_state"]["best_state_dict"] = {}
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="was stopped before its first validation: go on with its training"):
        load_classifier(tmp_path / "checkpoint.pt")


def released(path: Path, weights: dict | None = None, **changes: object) -> Path:
    """A file as `export_weights` writes it, with a header of other content."""
    header = {"config": {"size": 64}, "extra_state": {"trained_on": b64encode(zlib.compress(b"a")).decode()}} | changes
    save_file(weights or {"weight": torch.ones(2)}, path, {"checkpoint": json.dumps(header)})
    return path


HEADERS = {
    "config": [{"config": None}, {"config": [1]}, {"config": "x"}],
    "extra state": [{"extra_state": None}, {"extra_state": []}, {"extra_state": {}}],
    "ids": [{"extra_state": {"trained_on": ids}} for ids in (5, "x", "eJw=", None, ["a"])],
}


@pytest.mark.parametrize("changes", [changes for kind in HEADERS.values() for changes in kind])
def test_released_file_with_a_foreign_header_is_refused(tmp_path, changes):
    assert read_checkpoint(released(tmp_path / "good.safetensors"))["extra_state"]["trained_on"] == ["a"]
    with pytest.raises(DataError, match=r"bad\.safetensors"):
        read_checkpoint(released(tmp_path / "bad.safetensors", **changes))


def test_released_file_with_nan_or_cut_or_without_a_header_is_refused(tmp_path):
    path = released(tmp_path / "a.safetensors", {"weight": torch.tensor([1, math.nan])})
    with pytest.raises(DataError, match="its weight weight is not finite"):
        read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="is not a file of released weights"):
        read_checkpoint(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(DataError, match="is not a file of released weights"):
        read_checkpoint(path)
    released(path, {"generator/weight": torch.ones(2), "weight": torch.ones(2)})
    with pytest.raises(DataError, match="is not a file of released weights"):
        read_checkpoint(path)


def test_unpack_ids_stops_at_its_limit():
    packed = b64encode(zlib.compress(b"\n" * (MAX_IDS_BYTES + 1), 9)).decode()
    assert len(packed) < 100_000
    with pytest.raises(ValueError, match="its training images take over 64 MiB"):
        unpack_ids(packed)


def test_export_of_a_refused_checkpoint_writes_nothing(checkpoint, tmp_path):
    saved = load_checkpoint(checkpoint.parent)
    replace_weight(saved, math.nan)
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="is not finite"):
        export_weights(tmp_path / "checkpoint.pt", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


# ------------------------------------------------------------------------------------------------- weights and settings


def test_load_file_of_tensors_is_read_and_a_missing_one_named(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    assert load_file(tmp_path / "a.pt")["weight"].tolist() == [1, 1]
    for name, message in {"b.pt": "b.pt does not exist", ".": "is not a file"}.items():
        with pytest.raises(DataError, match=message):
            load_file(tmp_path / name)


def test_check_weights_accepts_ordinary_tensors_only():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    check_weights(network.state_dict())
    for weights in (None, [torch.ones(1)], {"a": 1}, {1: torch.ones(1)}, {"a": torch.ones(1, device="meta")}):
        with pytest.raises(ValueError, match="its weight"):
            check_weights(weights)


def test_imagenet_weights_of_a_file_with_nan_are_refused(tmp_path):
    weights = nn.Linear(2, 2).state_dict()
    torch.save(weights, tmp_path / "good.pth")
    assert imagenet_weights("resnet18", tmp_path / "good.pth").keys() == weights.keys()
    torch.save(weights | {"bias": torch.tensor([math.nan])}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=r"bad\.pth holds no weights .its weight bias is not finite"):
        imagenet_weights("resnet18", tmp_path / "bad.pth")


@dataclass(frozen=True)
class Settings:
    size: int = 64
    lr: float = 1e-3
    tta: bool = True
    arch: str = "a"
    channels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()


def test_check_settings_names_the_field_of_another_type_or_range():
    check_settings(
        Settings(lr=1, channels=(3, 4), classes=("MEL", "basal cell carcinoma")), size=(1, 64), channels=(3, 4)
    )
    wrong = {"size": ["64", 1.5, True, None], "lr": ["x", math.nan, math.inf, False], "tta": [1], "arch": [3]}
    wrong |= {"channels": [3, [3], ("a",)], "classes": ["MEL", None, (1,)]}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name} must be of the type"):
                check_settings(replace(Settings(), **{name: value}))
    for name, value in {"size": 65, "channels": (3, 5)}.items():
        with pytest.raises(ValueError, match=f"{name} must be 3 to 4"):
            check_settings(replace(Settings(), **{name: value}), **{name: (3, 4)})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "../x", "a..b", "a\nb", "a\0", "\x1b[31m", "a" * 61, "\ud800"]
)
def test_check_class_names_that_are_no_folder_names_raise(name):
    check_class_names(("MEL", "Bowen's disease", "nævus (benign)", "a" * 60))
    with pytest.raises(ValueError, match="a class name must have 1 to 60 printable characters"):
        check_class_names(("MEL", name))
    with pytest.raises(ValueError, match="different class names, got 2"):
        check_class_names(("MEL", "MEL"))


@pytest.mark.parametrize("config", [GANConfig, ClassifierConfig, SegmenterConfig, ArtifactConfig, Pix2PixConfig])
def test_configs_of_absurd_sizes_raise(config):
    assert config(64).size == 64
    for size in (10**9, -64, 0, 64.0, "64", None):
        with pytest.raises(ValueError, match="size must be"):
            config(size)
    for name in {"base_channels", "z_dim", "noise_channels", "decoder_channels"} & vars(config(64)).keys():
        with pytest.raises(ValueError, match=f"{name} must be"):
            config(64, **{name: 10**6})
