"""The command line: every command's normal use, its bad inputs, and what it prints."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from factories import MeanPoolExtractor, course, folders, ham10000, isic2016, own_images, write_image

from helpers.__main__ import COMMANDS, main
from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.results import publish
from helpers.metrics.extractors import FeatureExtractor, load_extractor
from helpers.models.classifier import ClassifierConfig, load_classifier, train_classifier
from helpers.models.gan import GANConfig, load_gan
from helpers.models.segmenter import SegmenterConfig, load_segmenter, train_segmenter
from helpers.models.simclr import load_skin
from helpers.models.stop import Stopped
from helpers.models.trainer import TrainConfig
from helpers.phantoms.render import render
from helpers.views import plots

ROOT = Path(__file__).parents[1]
CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("LESION_PROFILE", "LESION_DATASET", "LESION_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


DETECTOR = get_config().released / "artifacts.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Stores and outputs are written here instead of into the repository."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def smoke(root, monkeypatch):
    monkeypatch.setattr("helpers.config.ROOT", root)
    monkeypatch.setenv("LESION_PROFILE", "smoke")


def fails(capsys, arguments: list, message: str) -> None:
    """Assert that a command ends with exit status 2 and an error message that matches."""
    assert main([str(argument) for argument in arguments]) == 2
    assert re.search(f"error: .*{message}", capsys.readouterr().err, re.DOTALL), message


def refuses(capsys, arguments: list, message: str) -> None:
    """Assert that a command refuses its options with exit status 2 and a message that matches, line breaks aside."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().err).split())
    assert caught.value.code == 2 and re.search(message, text), text


def test_help_lists_the_commands_without_torch():
    code = "import sys; from helpers.__main__ import main; main(['--help']); print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0 and process.stdout.splitlines()[-1] == "False"
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", process.stdout, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    output = capsys.readouterr().out
    assert caught.value.code == 0 and f"python -m helpers {command}" in output
    assert "--dataset" in output


def test_unknown_commands_are_answered_with_the_nearest_one(capsys):
    fails(capsys, ["trian", "cgan"], "perhaps you meant 'train cgan'")
    fails(capsys, ["train"], "'train' needs another word: train cgan, train dcgan")
    fails(capsys, ["xyzzy"], "unknown command 'xyzzy'")
    assert main([]) == 2


def test_a_misspelled_option_is_answered_with_the_nearest_one(capsys):
    refuses(capsys, ["train", "cgan", "--batchsize", "4"], "Unrecognized options: --batchsize.*--batch-size")
    refuses(capsys, ["prepare", "--sice", "64"], "--size")


# ------------------------------------------------------------------------------------------------- audit and prepare


def test_audit_reports_on_one_screen_and_writes_nothing(phantoms, tmp_path, monkeypatch, capsys):
    before = sorted((path, path.stat().st_mtime_ns) for path in phantoms.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main(["audit", str(phantoms)]) == 0
    report = capsys.readouterr().out
    assert report.startswith("phantoms: 120 images") and "VASC" in report and len(report.splitlines()) <= 40
    assert sorted((path, path.stat().st_mtime_ns) for path in phantoms.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_audit_of_some_classes_ignores_the_others(phantoms, capsys):
    assert main(["audit", str(phantoms), "--classes", "MEL", "BKL"]) == 0
    report = capsys.readouterr().out
    assert "BKL" in report and "VASC" not in report


def test_audit_of_unknown_or_damaged_data_fails(tmp_path, capsys):
    fails(capsys, ["audit", tmp_path], "known layouts")
    images = isic2016(tmp_path / "isic") / "ISBI2016_ISIC_Part1_Training_Data"
    for path in list(images.iterdir())[:6]:
        path.write_bytes(b"")
    assert main(["audit", str(tmp_path / "isic")]) == 1
    assert "6 of 20 images cannot be read" in capsys.readouterr().out


def prepare_args(dataset: str, folder: Path, out: Path, *more: str) -> list[str]:
    return ["prepare", "--dataset", dataset, "--data-root", str(folder), "--size", "32", "--out", str(out), *more]


def test_prepare_twice_writes_one_store(tmp_path, capsys):
    folder, stores = isic2016(tmp_path / "isic"), tmp_path / "stores"
    assert main(prepare_args("isic2016", folder, stores)) == 0
    assert main(prepare_args("isic2016", folder, stores)) == 0
    assert len(list(stores.iterdir())) == 1
    store = Store(next(stores.iterdir()))
    assert len(store) == 20 and store.config.size == 32
    assert set(store.table["split"]) == {"train", "val", "test"}
    assert "isic2016" in capsys.readouterr().out


def test_prepare_sketch_style_follows_from_the_data_set(tmp_path, capsys, monkeypatch):
    folder, stores = folders(tmp_path / "tree"), tmp_path / "stores"
    monkeypatch.setenv("LESION_DATASET", "folders")
    monkeypatch.setenv("LESION_DATA_ROOT", str(folder))
    options = ["--size", "32", "--out", str(stores), "--classes", "nevus", "melanoma"]
    assert main(["prepare", *options]) == 0
    store = Store(next(stores.iterdir()))
    assert store.classes == ["nevus", "melanoma"] and len(store) == 18
    assert store.config.style == "structure" and "no masks" in capsys.readouterr().out
    fails(capsys, ["prepare", *options, "--style", "contour"], "'contour' needs masks.*: use style 'structure'")
    assert main(prepare_args("isic2016", isic2016(tmp_path / "isic"), tmp_path / "masked")) == 0
    assert Store(next((tmp_path / "masked").iterdir())).config.style == "contour"


@pytest.mark.parametrize(("dataset", "content"), [("course", "Train_labels.csv"), ("folders", "<class>/")])
def test_prepare_of_an_absent_data_set_without_download_fails(smoke, capsys, dataset, content):
    fails(capsys, ["prepare", "--dataset", dataset], f"'{dataset}' has no download: set LESION_DATA_ROOT.*{content}")


def test_prepare_never_downloads_to_a_folder_that_was_named(smoke, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("helpers.data.layouts.download", lambda *_: pytest.fail("a download was started"))
    for dataset, hint in (("isic2016", "leave it out to download isic2016"), ("folders", ""), ("phantoms", "")):
        fails(capsys, prepare_args(dataset, tmp_path / "absent", tmp_path / "out"), f"absent is not a folder.*{hint}")
    monkeypatch.setenv("LESION_DATASET", "ham10000")
    monkeypatch.setenv("LESION_DATA_ROOT", str(tmp_path / "absent"))
    fails(capsys, ["prepare"], "absent is not a folder: correct LESION_DATA_ROOT or --data-root")
    (tmp_path / "empty").mkdir()
    fails(capsys, prepare_args("isic2016", tmp_path / "empty", tmp_path / "out"), "none of the known layouts")
    assert not (tmp_path / "absent").exists()


def test_prepare_with_data_root_but_without_dataset_says_which_variable_to_set(smoke, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LESION_DATA_ROOT", str(isic2016(tmp_path)))
    fails(capsys, ["prepare"], "is not a sample of phantoms.*set LESION_DATASET")


def test_options_with_a_tilde_are_in_the_home_folder(tmp_path, monkeypatch):
    home, work = tmp_path / "home", tmp_path / "work"
    folders(home / "own")
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    command = ["prepare", "--dataset", "folders", "--data-root=~/own", "--size", "32", "--out", "~/stores"]
    assert main(command) == 0
    assert len(list((home / "stores").iterdir())) == 1 and list(work.iterdir()) == []


def test_prepare_into_a_file_fails(tmp_path, capsys):
    (tmp_path / "stores").write_text("a file")
    fails(capsys, prepare_args("isic2016", isic2016(tmp_path / "isic"), tmp_path / "stores"), "stores")


# ------------------------------------------------------------------------------------------------ training and export


@pytest.fixture(scope="module")
def trained(phantoms, root) -> Path:
    """Checkpoint of a CGAN after 2 steps, then continued to 3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.config.ROOT", root)
        patch.setenv("LESION_PROFILE", "smoke")
        for steps in ("2", "3"):
            out = str(root / "run")
            assert main(["train", "cgan", "--data-root", str(phantoms), "--steps", steps, "--out", out]) == 0
    return root / "run" / "checkpoint.pt"


def test_train_cgan_twice_continues_and_writes_history_and_grids(trained):
    names = {path.name for path in trained.parent.iterdir()}
    assert {"checkpoint.pt", "history.json", "grid-000002.png", "grid-000003.png"} <= names


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
import torch
torch.set_num_threads(1)
import helpers.config
from helpers.__main__ import main
helpers.config.ROOT = Path({root!r})
sys.exit(main({command!r}))
"""


def test_train_killed_and_started_again_equals_a_run_without_interruption(phantoms, root, tmp_path, smoke):
    command = ["train", "cgan", "--data-root", str(phantoms), "--steps", "12", "--save-every", "4", "--out"]
    checkpoints = [tmp_path / out / "checkpoint.pt" for out in ("killed", "uninterrupted")]
    killed = KILLED.format(repository=str(ROOT), root=str(root), command=[*command, str(tmp_path / "killed")])
    process = subprocess.Popen([sys.executable, "-c", killed], env=os.environ, stdout=subprocess.DEVNULL)
    while process.poll() is None and not checkpoints[0].is_file():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < torch.load(checkpoints[0], weights_only=True)["step"] < 12
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process: sums depend on the number of threads
    try:
        for checkpoint in checkpoints:
            assert main([*command, str(checkpoint.parent)]) == 0
    finally:
        torch.set_num_threads(threads)
    resumed, expected = (torch.load(checkpoint, weights_only=True) for checkpoint in checkpoints)
    assert resumed["step"] == expected["step"] == 12 and resumed["history"] == expected["history"]
    for group in ("networks", "ema_models"):
        for name, weights in expected[group].items():
            assert all(torch.equal(weight, resumed[group][name][key]) for key, weight in weights.items()), name


def test_train_stopped_by_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(phantoms, root, tmp_path, smoke):
    command = ["train", "cgan", "--data-root", str(phantoms), "--steps", "4000", "--save-every", "2"]
    code = KILLED.format(repository=str(ROOT), root=str(root), command=[*command, "--out", str(tmp_path)])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (tmp_path / "checkpoint.pt").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert process.returncode == 130 and 2 <= step < 4000 and "Traceback" not in errors
    assert re.search(rf"^stopped after step {step}, .*: run the same command again to go on$", errors, re.MULTILINE)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Stopped("stopped after step 3", signal.SIGTERM), 143, "stopped after step 3\n"),
        (Stopped("stopped after step 3", signal.SIGINT), 130, "stopped after step 3\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_main_stopped_by_a_signal_returns_its_status(error, status, message, monkeypatch, capsys):
    def stop(_):
        raise error

    monkeypatch.setattr("helpers.__main__.run", stop)
    assert main(["audit"]) == status and capsys.readouterr().err == message


@pytest.mark.parametrize("options", [["--help"], ["audit", "PHANTOMS"]])
def test_output_that_nobody_reads_ends_quietly(options, phantoms):
    options = [str(phantoms) if option == "PHANTOMS" else option for option in options]
    reader, writer = os.pipe()
    os.close(reader)  # as after `| head` has ended
    command = [sys.executable, "-m", "helpers", *options]
    process = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert process.returncode == 141 and not re.sub(r"\r?.*it/s.*", "", process.stderr).strip()


def test_train_cgan_defaults_are_those_of_the_config(trained):
    config = load_gan(trained)[1]
    given = {"style": "contour", "base_channels": config.base_channels, "projected": config.projected}
    assert config == GANConfig(config.size, config.classes, **given)


def train_args(method: str, phantoms: Path, out: Path, *more: str) -> list[str]:
    command = ["train", method, "--dataset", "phantoms", "--data-root", str(phantoms), "--out", str(out)]
    return [*command, "--steps", "1", "--batch-size", "4", *more]


def test_train_cgan_init_from_takes_another_checkpoint(phantoms, tmp_path, smoke, capsys):
    def args(out: str, *more: str) -> list[str]:
        return train_args("cgan", phantoms, tmp_path / out, "--base-channels", "8", *more)

    assert main(args("first", "--no-projected")) == 0
    first = tmp_path / "first/checkpoint.pt"
    assert not load_gan(first)[1].projected
    assert main(args("second", "--init-from", str(first), "--no-d4-augment")) == 0
    config = load_gan(tmp_path / "second/checkpoint.pt")[1]
    assert config.projected and not config.d4_augment
    saved = torch.load(tmp_path / "second/checkpoint.pt", weights_only=True)
    assert saved["extra_state"]["init_from"].endswith("first/checkpoint.pt")
    fails(capsys, args("third", "--init-from", str(tmp_path / "none.pt")), "none.pt")


def test_train_classifier_init_from_takes_another_checkpoint(phantoms, tmp_path, smoke, capsys):
    assert main(train_args("classifier", phantoms, tmp_path / "first")) == 0
    first = tmp_path / "first/checkpoint.pt"
    assert main(train_args("classifier", phantoms, tmp_path / "second", "--init-from", str(first))) == 0
    assert "small_cnn starts from" in capsys.readouterr().out
    saved = torch.load(tmp_path / "second/checkpoint.pt", weights_only=True)
    assert saved["extra_state"]["init_from"].endswith("first/checkpoint.pt")
    args = train_args("classifier", phantoms, tmp_path / "third", "--arch", "mobilenet_v3_small", "--no-pretrained")
    fails(capsys, [*args, "--init-from", str(first)], "has arch 'small_cnn', the config says 'mobilenet_v3_small'")


def test_train_cgan_options_are_recorded_in_the_checkpoint(phantoms, tmp_path, smoke):
    options = ["--no-artifacts", "--no-d4-augment", "--fine-lines", "--no-projected", "--base-channels", "8"]
    options += ["--noise-channels", "0", "--code-channels", "2", "--minutes", "0.01"]
    assert main(train_args("cgan", phantoms, tmp_path, *options)) == 0
    config = load_gan(tmp_path / "checkpoint.pt")[1]
    assert not (config.artifacts or config.d4_augment or config.projected) and config.fine_lines
    assert (config.noise_channels, config.code_channels) == (0, 2)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["train_config"]["minutes"] == 0.01 and saved["seconds"] >= 0.6


def test_train_cgan_evaluate_every_needs_enough_val_images(phantoms, tmp_path, smoke, capsys, monkeypatch):
    extractor = FeatureExtractor("mean-pool", MeanPoolExtractor())
    monkeypatch.setattr("helpers.shell.training.load_extractor", lambda name: extractor)
    command = train_args("cgan", phantoms, tmp_path, "--base-channels", "8", "--evaluate-every", "100")
    fails(capsys, command, r"needs at least 100 val images with sketch and label, got \d+")


def test_train_cgan_unpaired_uses_unpaired_sketches_or_says_that_there_are_none(
    phantoms, tmp_path, smoke, monkeypatch, capsys
):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    (tmp_path / "data/released").mkdir(parents=True)
    shutil.copy(DETECTOR, tmp_path / "data/released")
    options = ["--size", "64", "--steps", "1", "--batch-size", "4", "--base-channels", "8", "--no-paired"]
    command = ["train", "cgan", *options, "--dataset", "course", "--data-root", str(course(tmp_path / "course"))]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^\d+ unpaired sketches\nartifact flags of \d+ images by .*artifacts.safetensors$", output, re.M)
    assert main(train_args("cgan", phantoms, tmp_path / "b", *options)) == 0
    assert "no unpaired sketches found" in capsys.readouterr().out
    assert not load_gan(tmp_path / "b/checkpoint.pt")[1].paired


def own_args(folder: Path, out: Path) -> list[str]:
    return ["--dataset", "folders", "--data-root", str(folder), "--out", str(out)]


def test_train_cgan_sketch_style_follows_from_the_data_set(trained, tmp_path, smoke, capsys):
    assert load_gan(trained)[1].style == "contour", "phantoms have masks"
    options = ["--steps", "2", "--batch-size", "4", "--base-channels", "8", "--no-projected", "--no-artifacts"]
    command = ["train", "cgan", *own_args(own_images(tmp_path / "own", 10), tmp_path / "out"), *options]
    assert main(command) == 0
    assert load_gan(tmp_path / "out/checkpoint.pt")[1].style == "structure"
    fails(capsys, [*command, "--style", "contour"], "'contour' needs masks or sketches, folders has none")
    fails(capsys, [*command, "--style", "watercolor"], "style must be one of contour, structure, got 'watercolor'")


def test_train_dcgan_with_options_writes_checkpoint_and_grid(phantoms, tmp_path, smoke):
    options = ["--base-channels", "8", "--projected", "--d4-augment"]
    assert main(train_args("dcgan", phantoms, tmp_path, *options)) == 0
    config = load_gan(tmp_path / "checkpoint.pt", sketch=False)[1]
    assert (config.base_channels, config.projected, config.d4_augment) == (8, True, True)
    assert (tmp_path / "grid-000001.png").is_file()


def test_train_classifier_prints_balanced_accuracy_and_memory(phantoms, tmp_path, smoke, capsys):
    assert main(train_args("classifier", phantoms, tmp_path, "--balance", "loss")) == 0
    output = capsys.readouterr().out
    assert re.search(r"trained, balanced accuracy on val 0\.\d{3}:", output) and "memory" in output.splitlines()[-1]
    config = load_classifier(tmp_path / "checkpoint.pt")[1]
    assert (config.arch, config.balance) == ("small_cnn", "loss")


def test_train_skin_takes_a_second_data_set_and_export_writes_the_extractor(phantoms, tmp_path, smoke, capsys):
    options = ["--extra-dataset", "isic2016", "--extra-root", str(isic2016(tmp_path / "isic")), "--minutes", "0.02"]
    assert main(train_args("skin", phantoms, tmp_path / "out", *options)) == 0
    checkpoint, file = tmp_path / "out/checkpoint.pt", tmp_path / "skin.safetensors"
    assert "export skin --checkpoint" in capsys.readouterr().out
    assert {f"ISIC_{k:07d}" for k in range(10)} & set(load_skin(checkpoint)[0].trained_on)
    assert main(["export", "skin", "--checkpoint", str(checkpoint), "--out", str(file)]) == 0
    assert load_extractor(f"skin={file}").name == "skin"


def test_experiments_on_extractors_write_figure_and_published_pages(
    trained, phantoms, root, tmp_path, smoke, monkeypatch, capsys
):
    pool = FeatureExtractor("mobilenet_v2", MeanPoolExtractor())

    def load_one(names: list[str]) -> tuple[list, dict]:
        return ([pool], {}) if names == ["mobilenet_v2"] else ([], {names[0]: "no weights"})

    monkeypatch.setattr("helpers.experiments.extractors.load_extractors", load_one)
    monkeypatch.setattr("helpers.shell.publishing.load_extractor", lambda name: pool)
    monkeypatch.setattr("helpers.shell.publishing.publish", lambda *a: publish(*a, folder=tmp_path))
    data = ["--data-root", str(phantoms), "--publish"]
    assert main(["experiment", "extractors", str(trained), *data]) == 0
    output = capsys.readouterr().out
    assert "not run: no weights" in output and "Only mobilenet_v2 was run: KID" in output
    out = tmp_path / "scale.png"
    arguments = ["--checkpoint", str(trained), "--num-images", "12", "--out", str(out), *data]
    assert main(["experiment", "kid-scale", *arguments]) == 0
    assert out.is_file() and (tmp_path / "kid-scale.png").is_file()
    size = load_gan(trained)[1].size
    assert {f"extractors-phantoms-{size}.md", "kid-scale.csv"} <= {path.name for path in tmp_path.iterdir()}


def test_evaluate_extractor_prints_kid_by_damage_and_the_decision(phantoms, smoke, monkeypatch, capsys):
    pool = FeatureExtractor("pool", MeanPoolExtractor())
    for name in ("load_extractor", "random_extractor"):
        monkeypatch.setattr(f"helpers.experiments.evaluate_extractor.{name}", lambda _: pool)
    assert main(["evaluate", "extractor", "pool", "--data-root", str(phantoms)]) == 0
    output = capsys.readouterr().out
    assert "strength 1.00" in output and output.splitlines()[-1] == "! pool is NOT accepted", (
        "random weights are as good"
    )


def test_train_in_a_folder_with_a_checkpoint_of_other_data_fails(tmp_path, smoke, capsys):
    """Also if the file names are equal, and if only a label was corrected."""
    for site, seed in (("a", 0), ("b", 100)):
        for k in range(24):
            write_image(tmp_path / site / "images" / f"class{k % 2}" / f"{k:04d}.jpg", seed=seed + k)
    copy = shutil.copytree(tmp_path / "a", tmp_path / "copy")
    relabeled = shutil.copytree(tmp_path / "a", tmp_path / "relabeled")
    (relabeled / "images/class0/0000.jpg").rename(relabeled / "images/class1/0000.jpg")

    def args(site: str, method: str, steps: int, *more: str) -> list[str]:
        data = ["--dataset", "folders", "--data-root", str(tmp_path / site / "images")]
        return [
            "train",
            method,
            *data,
            "--out",
            str(tmp_path / method),
            "--steps",
            f"{steps}",
            "--batch-size",
            "4",
            *more,
        ]

    assert main(args("a", "classifier", 1)) == 0 and main(args(copy, "classifier", 1)) == 0
    gan = ("--no-projected", "--base-channels", "8")
    assert main(args("a", "dcgan", 1, *gan)) == 0 and main(args(copy, "dcgan", 2, *gan)) == 0
    for site in ("b", "relabeled"):
        fails(capsys, args(site, "classifier", 1), "checkpoint.pt was trained on other data: choose another folder")
        fails(capsys, args(site, "dcgan", 3, *gan), "checkpoint.pt was trained on other data")


def test_options_out_of_range_are_named(phantoms, tmp_path, smoke, capsys):
    segmenter = train_args("segmenter", phantoms, tmp_path, "--arch", "DeepLabV3Plus", "--batch-size", "1")
    fails(capsys, segmenter, "batch_size must be at least 2 for DeepLabV3Plus")
    fails(capsys, train_args("cgan", phantoms, tmp_path, "--seed", "-1"), "seed must be 0 to 4294967295, got -1")
    generate = ["generate", "--sketches", str(tmp_path), "--out", str(tmp_path / "o"), "--seed", "-1"]
    refuses(capsys, generate, "seed must be 0 to 4294967295, got -1")
    balancing = ["experiment", "balancing", "--data-root", str(phantoms), "--folds", "1"]
    fails(capsys, balancing, "folds must be at least 2, got 1")


def test_data_sets_with_names_of_no_encoding_are_prepared(tmp_path, capsys):
    """A class folder and a file whose names are not UTF-8, and names in another Unicode form."""
    root = folders(tmp_path / "tree")
    os.rename(root / "Train/nevus/ISIC_0000100.jpg", os.fsencode(root / "Train/nevus") + b"/na\xefve.jpg")
    os.rename(root / "Train/nevus", os.fsencode(root / "Train") + b"/n\xe6vus")
    (root / "Train/melanoma").rename(root / "Train" / unicodedata.normalize("NFD", "mélanome"))
    assert main(prepare_args("folders", root, tmp_path / "stores")) == 0
    store = Store(next((tmp_path / "stores").iterdir()))
    assert {"n_vus", "mélanome"} <= set(store.classes) and "na_ve" in store.table["image_id"].to_list()
    assert main(prepare_args("folders", root, tmp_path / "stores")) == 0
    assert len(list((tmp_path / "stores").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: rewrite(root / "HAM10000_metadata.csv", "ISIC_", "part_1/ISIC_"),
            "label file has 'part_1/ISIC_.*no image",
        ),
        (lambda root: zip_images(root), "for example ISIC_.*unpack HAM10000_images_part_1.zip first"),
    ],
)
def test_audit_where_ids_and_files_do_not_match_names_one_of_each(tmp_path, capsys, change, message):
    root = ham10000(tmp_path / "ham")
    change(root)
    fails(capsys, ["audit", root], message)


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def zip_images(root: Path) -> None:
    for part in sorted(root.glob("HAM10000_images_part_*")):
        shutil.make_archive(str(part), "zip", part)
        shutil.rmtree(part)
        part.mkdir()


def test_train_segmenter_with_options_prints_jaccard(phantoms, tmp_path, smoke, capsys):
    def args(out: str, *more: str) -> list[str]:
        return train_args("segmenter", phantoms, tmp_path / out, *more)

    assert main(args("options", "--arch", "FPN", "--decoder-channels", "64")) == 0
    assert re.search(r"trained, mean Jaccard on val 0\.\d{3}:", capsys.readouterr().out)
    config = load_segmenter(tmp_path / "options/checkpoint.pt")[1]
    assert (config.arch, config.decoder_channels) == ("FPN", 64)
    assert main(args("baseline", "--baseline")) == 0
    config = load_segmenter(tmp_path / "baseline/checkpoint.pt")[1]
    assert (config.pretrained, config.tta, config.color_jitter) == (False, False, 0)
    fails(capsys, args("options", "--decoder-channels", "16"), "must be 32 to 2048, got 16")


@pytest.mark.parametrize(
    ("option", "values", "expected"),
    [
        ("--steps", ["0", "-3"], "steps must be at least 1"),
        ("--batch-size", ["0", "-3"], "batch_size must be at least 1"),
        ("--save-every", ["0", "-3"], "save_every must be at least 1"),
        ("--base-channels", ["0", "-3"], "base_channels must be 1 to"),
        ("--noise-channels", ["-1"], "noise_channels must be 0 to"),
        ("--code-channels", ["-1"], "code_channels must be 0 to"),
        ("--minutes", ["0", "-3", "inf", "nan"], "minutes must be a finite number above 0"),
        ("--size", ["96"], "size must be one of 64, 128, 256, got 96"),
    ],
)
def test_train_refuses_numbers_out_of_range(smoke, capsys, option, values, expected):
    for value in values:
        fails(capsys, ["train", "cgan", option, value], expected)


def test_train_refuses_options_that_do_not_parse_or_fit_together(smoke, capsys):
    refuses(capsys, ["train", "cgan", "--size", "many"], "Error parsing --size")
    refuses(capsys, ["train", "cgan", "--evaluate-every", "0"], "evaluate_every must be at least 1, got 0")
    refuses(capsys, ["train", "cgan", "--init-from", "a.pt", "--grow", "b.pt"], "exclude each other")


def test_export_writes_weights_that_load_and_says_what_is_missing(trained, tmp_path, smoke, capsys):
    file = tmp_path / "cgan.safetensors"
    assert main(["export", "cgan", "--checkpoint", str(trained), "--out", str(file)]) == 0
    assert "MB; write a model card" in capsys.readouterr().out
    assert load_gan(file)[1] == load_gan(trained)[1] and file.stat().st_size < trained.stat().st_size / 2
    fails(capsys, ["export", "dcgan", "--checkpoint", tmp_path / "none.pt"], "train dcgan")
    fails(capsys, ["export", "classifier", "--checkpoint", trained], "not a checkpoint of a classifier")


# ----------------------------------------------------------------------------------------------------------- generate


@pytest.fixture
def sketches(tmp_path) -> Path:
    """Three outlines: white on black, black on white, and a large one that is not square."""
    folder = tmp_path / "sketches"
    folder.mkdir()
    for name, shape, inverted in (("a.png", (64, 64), 0), ("sketch_b.png", (64, 64), 1), ("c.jpg", (300, 400), 1)):
        sketch = np.zeros(shape, np.uint8)
        cv2.circle(sketch, (shape[1] // 2, shape[0] // 2), shape[0] // 4, 255, max(2, shape[0] // 60))
        cv2.imwrite(str(folder / name), 255 - sketch if inverted else sketch)
    return folder


def generate_args(checkpoint: Path, sketches: Path, out: Path, *more: str) -> list[str]:
    return ["generate", "--checkpoint", str(checkpoint), "--sketches", str(sketches), "--out", str(out), *more]


def generated(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def test_generate_without_labels_writes_every_class_and_depends_on_the_seed(trained, sketches, tmp_path, capsys):
    for out, seed in (("first", "4"), ("second", "4"), ("third", "5")):
        assert main(generate_args(trained, sketches, tmp_path / out, "--seed", seed)) == 0
    first = generated(tmp_path / "first")
    assert set(first) == {f"{name}/{i}.png" for name in CLASSES for i in "abc"}
    assert first == generated(tmp_path / "second") != generated(tmp_path / "third")
    assert cv2.imread(str(tmp_path / "first/MEL/c.png")).shape == (64, 64, 3)
    output = capsys.readouterr().out
    assert "checkpoint.pt: 64 px, sketch style contour, MEL NV" in output and "!" not in output


@pytest.mark.parametrize(
    "table", ["image_id,label\na,BCC\nb,NV\nc.jpg,NV\n", "image,MEL,NV,BCC\na,0,0,1\nb,0.0,1.0,0.0\nc,0,1,0\n"]
)
def test_generate_with_labels_writes_one_class_per_sketch(trained, sketches, tmp_path, table):
    (tmp_path / "labels.csv").write_text(table)
    assert main(generate_args(trained, sketches, tmp_path / "out", "--labels", str(tmp_path / "labels.csv"))) == 0
    assert set(generated(tmp_path / "out")) == {"BCC/a.png", "NV/b.png", "NV/c.png"}


def test_generate_reports_sketches_and_labels_that_it_leaves_out(trained, sketches, tmp_path, capsys):
    (sketches / "broken.png").write_bytes(b"not an image")
    cv2.imwrite(str(sketches / "empty.png"), np.zeros((64, 64), np.uint8))
    cv2.imwrite(str(sketches / "a_mask.png"), np.eye(64, dtype=np.uint8) * 255)
    cv2.imwrite(str(sketches / "shades.png"), render(0, 0, size=64)[0])
    (tmp_path / "labels.csv").write_text("image_id,label\nsketch_a.bmp,BCC\nb,lupus\nz,NV\nc,\n")
    assert main(generate_args(trained, sketches, tmp_path / "out", "--labels", str(tmp_path / "labels.csv"))) == 0
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("! ")]
    for message in (
        "broken.png",
        "empty.png: The drawing is empty",
        "shades.png: Expected a line drawing or a mask",
        "a_mask.png",  # its id is that of a.png
        "expected MEL NV",  # lupus
        "2 sketches have no label in labels.csv",
        "1 ids of labels.csv have no sketch (z)",
    ):
        assert any(message in problem for problem in problems), message
    assert set(generated(tmp_path / "out")) == {"BCC/a.png"}


def test_generate_with_unusable_checkpoint_sketches_or_labels_fails(trained, sketches, tmp_path, capsys):
    out = tmp_path / "out"
    fails(capsys, generate_args(tmp_path / "none.pt", sketches, out), "train cgan")
    for name, content in (("torn.pt", trained.read_bytes()[:1000]), ("text.pt", b"weights")):
        (tmp_path / name).write_bytes(content)
        fails(capsys, generate_args(tmp_path / name, sketches, out), f"{name} is damaged or not a checkpoint")
    torch.save({"config": {"classes": []}}, tmp_path / "other.pt")
    fails(capsys, generate_args(tmp_path / "other.pt", sketches, out), "other.pt is not a checkpoint")
    fails(capsys, generate_args(trained, tmp_path / "nowhere", out), "nowhere is not a folder")
    (tmp_path / "nothing").mkdir()
    fails(capsys, generate_args(trained, tmp_path / "nothing", out), "at least one readable sketch with a label")
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,age\na,40\n")
    fails(capsys, generate_args(trained, sketches, out, "--labels", str(labels)), "column 'label'")
    labels.write_text("image_id,label\na,NV\na,MEL\n")
    fails(capsys, generate_args(trained, sketches, out, "--labels", str(labels)), "different labels")
    assert not out.exists()


# ------------------------------------------------------------------------------------- quality, classify and segment


@pytest.fixture(scope="module")
def image_sets(phantom_store, tmp_path_factory) -> Path:
    """Folders `real`, `floor` and `synthetic` of phantoms by class, and a classifier's checkpoint in `classifier`."""
    root = tmp_path_factory.mktemp("image-sets")
    for row, image in enumerate(phantom_store.images):
        folder = root / ("real", "floor", "synthetic")[row % 3] / phantom_store.classes[phantom_store.labels[row]]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{row}.png"), image[..., ::-1])
    config = ClassifierConfig(64, tuple(phantom_store.classes))
    train_classifier(phantom_store, config, root / "classifier", TrainConfig(2, 4))
    return root


def quality_args(image_sets: Path, *more: str, synthetic: str = "synthetic") -> list[str]:
    command = ["evaluate", "folders", "--extractor", str(image_sets / "classifier" / "checkpoint.pt")]
    return [*command, "--real", str(image_sets / "real"), "--synthetic", str(image_sets / synthetic), *more]


def test_quality_prints_json_or_a_table(image_sets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    args = quality_args(image_sets, "--floor", str(image_sets / "floor"))
    assert main([*args, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["extractor"] == "classifier" and summary["n_real"] == 40 and summary["n_synthetic"] == 39
    assert all(isinstance(summary[k], float) for k in ("kid", "fd", "floor_kid", "floor_fd"))
    assert summary["floor_n"] == 39
    assert len(list((tmp_path / "data" / "features").glob("*.npz"))) == 4, "three sets and the blurred one"
    assert main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["extractor", "compared", "class", "n"] and "nan" not in "".join(lines).lower()
    assert any(line.startswith("! ") and "DF" in line for line in lines), "classes with too few images are reported"


def test_quality_with_unusable_folders_or_features_fails(image_sets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    (image_sets / "empty").mkdir(exist_ok=True)
    fails(capsys, quality_args(image_sets, synthetic="empty"), "empty")
    (image_sets / "single").mkdir(exist_ok=True)
    cv2.imwrite(str(image_sets / "single" / "a.png"), np.zeros((64, 64, 3), np.uint8))
    fails(capsys, quality_args(image_sets, synthetic="single"), "at least 10 images, got 1")
    real = ["evaluate", "folders", "--real", image_sets / "real", "--synthetic", image_sets / "real"]
    fails(capsys, [*real, "--extractor", "resnet19"], "resnet19")

    def not_available(name: str):
        raise DataError(f"no {name}")

    monkeypatch.setattr("helpers.metrics.extractors.load_extractor", not_available)
    fails(capsys, real, "no feature extractor available: no inception; no mobilenet_v2")


SHAPES = {"a.png": (50, 70, 3), "gray.png": (64, 64), "clear.png": (80, 60, 4), "large.jpg": (1500, 2000, 3)}


def varied_images(folder: Path) -> Path:
    """Images of several sizes and modes, a black one and a damaged one."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        coarse = rng.integers(0, 255, (8, 8, *shape[2:])).astype(np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(coarse, shape[1::-1]))
    cv2.imwrite(str(folder / "black.png"), np.zeros((40, 30, 3), np.uint8))
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


def test_classify_writes_probabilities_and_reports_unusable_images(image_sets, tmp_path, capsys):
    images, checkpoint = varied_images(tmp_path / "in"), image_sets / "classifier" / "checkpoint.pt"
    command = ["classify", "--checkpoint", str(checkpoint), "--images", str(images), "--out", str(tmp_path / "p.csv")]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert re.search(r"^! .*broken.jpg", output, re.MULTILINE) and "black.png has one color only" in output
    assert "5 images, " in output and "not for diagnosis" in output
    table = pd.read_csv(tmp_path / "p.csv", index_col="image_id")
    classes = load_classifier(checkpoint)[1].classes
    assert sorted(table.index) == ["a", "black", "clear", "gray", "large"]
    assert list(table.columns) == ["diagnosis", "unsure", "unlike", *classes]
    probs = table[list(classes)]
    assert probs.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert (probs.idxmax(axis=1) == table["diagnosis"]).all()


def test_classify_with_unusable_checkpoint_or_images_fails(image_sets, trained, tmp_path, capsys):
    checkpoint = image_sets / "classifier" / "checkpoint.pt"
    for file, images, message in (
        (tmp_path / "none.pt", tmp_path, "train classifier"),
        (trained, tmp_path, "not a checkpoint of a classifier"),
        (checkpoint, tmp_path / "nowhere", "nowhere is not a folder"),
        (checkpoint, tmp_path, "at least one readable image, got none"),
    ):
        fails(capsys, ["classify", "--checkpoint", file, "--images", images, "--out", tmp_path / "x"], message)
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def segmenter(phantom_store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    train_segmenter(phantom_store, SegmenterConfig(64, pretrained=False), folder, TrainConfig(2, 4))
    return folder / "checkpoint.pt"


def segment_args(checkpoint: Path, images: Path, out: Path) -> list[str]:
    return ["segment", "--checkpoint", str(checkpoint), "--images", str(images), "--out", str(out)]


def test_segment_writes_masks_of_the_images_sizes_and_areas(segmenter, tmp_path, capsys):
    assert main(segment_args(segmenter, varied_images(tmp_path / "in"), tmp_path / "out")) == 0
    output = capsys.readouterr().out
    assert re.search(r"^! .*broken.jpg", output, re.MULTILINE)
    assert "black.png has one color only: its mask is empty" in output
    table = pd.read_csv(tmp_path / "out" / "areas.csv", index_col="image_id")
    assert sorted(table.index) == ["a", "black", "clear", "gray", "large"]
    for name, shape in SHAPES.items():
        mask = cv2.imread(str(tmp_path / "out" / f"{name.split('.')[0]}.png"), cv2.IMREAD_UNCHANGED)
        row = table.loc[name.split(".")[0]]
        assert mask.shape == shape[:2] == (row["height"], row["width"]) and set(np.unique(mask)) <= {0, 255}
        assert row["lesion_pixels"] == (mask > 0).sum()
        assert row["lesion_fraction"] == pytest.approx((mask > 0).mean(), abs=1e-6)
    assert table.loc["black", "lesion_pixels"] == 0


def test_segment_with_unusable_checkpoint_or_folders_fails(segmenter, trained, tmp_path, capsys):
    out, nothing = tmp_path / "out", tmp_path / "nothing"
    nothing.mkdir()
    fails(capsys, segment_args(tmp_path / "none.pt", tmp_path, out), "train segmenter")
    fails(capsys, segment_args(trained, tmp_path, out), "not a checkpoint of a segmenter")
    fails(capsys, segment_args(segmenter, tmp_path / "nowhere", out), "nowhere is not a folder")
    fails(capsys, segment_args(segmenter, nothing, out), "at least one readable image, got none")
    fails(capsys, segment_args(segmenter, nothing, nothing / ".." / "nothing"), "--out must not be the image folder")


# --------------------------------------------------------------------------------------------------------------- demo


def test_demo_opens_the_page_with_released_or_given_weights(monkeypatch, capsys, tmp_path):
    from helpers.views import demo

    launched = []
    monkeypatch.setattr(demo, "launch_page", lambda page, port, **kwargs: launched.append((page.title, port, kwargs)))
    assert main(["demo", "--port", "7999", "--host-name", "page.example"]) == 0
    assert launched == [("Sketch2Lesion", 7999, {"wait": True, "host_names": ("page.example",)})]
    assert "cgan: data/released/cgan.safetensors, 128 px, MEL NV BCC AKIEC BKL DF VASC" in capsys.readouterr().out
    fails(capsys, ["demo", "--cgan", tmp_path / "gone.pt"], "gone.pt does not exist")


# -------------------------------------------------------------------------------------------------------- experiments


def experiment_args(name: str, phantoms: Path, *more: str) -> list[str]:
    return ["experiment", name, "--dataset", "phantoms", "--data-root", str(phantoms), "--seeds", "0", *more]


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """Where `--publish` writes to."""
    monkeypatch.setattr("helpers.shell.pages.publish", lambda *args: publish(*args, folder=tmp_path / "results"))
    return tmp_path / "results"


def read_published(folder: Path, name: str) -> tuple[pd.DataFrame, str]:
    """Rows and page of a published result, whose figure must exist and be small."""
    assert (folder / f"{name}.png").stat().st_size < 300_000
    return pd.read_csv(folder / f"{name}.csv"), (folder / f"{name}.md").read_text(encoding="utf-8")


def test_experiment_segmentation_resumes_compares_and_refuses_other_settings(
    phantoms, tmp_path, smoke, published, capsys
):
    out = tmp_path / "out"
    args = experiment_args("segmentation", phantoms, "--gan-train.steps", "1", "--out", str(out))
    half = [*args, "--train.steps", "2", "--fractions", "0.5"]
    assert main([*half, "--arms", "real", "real + augmentation", "--publish"]) == 0
    rows, page = read_published(published, "segmentation-phantoms-64")
    assert set(rows["arm"]) == {"real", "real + augmentation"} and rows["seconds"].sum() > 0
    assert rows["verdict"].dropna().tolist() == ["one seed, no verdict"]
    assert "Not run: real + synthetic, real + synthetic + augmentation, synthetic only, pretrained, filtered." in page
    output = capsys.readouterr().out
    assert "real + augmentation against real: one seed, no verdict" in output and "synthetic" not in output
    assert not (out / "generator-0.5").exists() and len(list(out.glob("*-0.5-0.csv"))) == 2
    assert main(half) == 0
    output = capsys.readouterr().out
    assert output.count("50% of the training images, ") == 8 and "synthetic only against real: one seed" in output
    assert (out / "arms-jaccard.csv").is_file() and (out / "comparisons-jaccard.csv").is_file()
    assert len(list(out.glob("*-0.5-0.csv"))) == 7
    fails(capsys, [*args, "--train.steps", "3"], "holds another experiment")
    fails(capsys, [*half, "--arms", "unreal"], "one of real, real \\+ augmentation, real \\+ synthetic, .*unreal")
    fails(capsys, [*args, "--fractions", "1.5"], r"in \(0, 1\], got \[1.5\]")


def test_experiment_real_vs_synthetic_of_four_classes_shows_both_confusion_matrices(
    phantoms, tmp_path, smoke, published, monkeypatch, capsys
):
    figures = []
    confusion = plots.confusion
    monkeypatch.setattr(plots, "confusion", lambda *args: figures.append(args) or confusion(*args))
    options = ["--train.steps", "1", "--gan-train.steps", "1", "--num-synthetic", "8", "--out", str(tmp_path / "out")]
    options += ["--arms", "real + synthetic + augmentation", "--classes", "MEL", "BCC", "AKIEC", "BKL", "--publish"]
    assert main(experiment_args("real-vs-synthetic", phantoms, *options)) == 0
    rows, page = read_published(published, "real-vs-synthetic-MEL-BCC-AKIEC-BKL-phantoms-64")
    ((matrices, classes),) = figures
    assert (
        list(classes) == ["MEL", "BCC", "AKIEC", "BKL"]
        and [matrix.shape for matrix in matrices.values()] == [(4, 4)] * 2
    )
    assert [title.partition("\n")[0] for title in matrices] == [
        "real + augmentation",
        "real + synthetic + augmentation",
    ]
    recalls = rows[rows["seed"].notna() & rows["measure"].str.startswith("recall_")]
    balanced = rows[rows["seed"].notna() & (rows["measure"] == "balanced_accuracy")].set_index("arm")["value"]
    assert recalls.groupby("arm")["value"].mean().to_dict() == pytest.approx(balanced.to_dict(), abs=1e-5)
    assert "small_cnn" in page and "Not run: real, class-weighted" in page
    assert (
        rows[rows["arm"] == "real + synthetic + augmentation"]["generator"]
        .dropna()
        .str.startswith("trained here")
        .all()
    )


def test_experiment_real_vs_synthetic_writes_arms_by_three_measures(phantoms, tmp_path, smoke, capsys):
    options = ["--train.steps", "2", "--gan-train.steps", "1", "--fractions", "0.5", "--num-synthetic", "7"]
    assert main(experiment_args("real-vs-synthetic", phantoms, *options, "--out", str(tmp_path))) == 0
    output = capsys.readouterr().out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["generator"]["projected"] is False and plan["num_synthetic"] == 7
    assert output.count("50% of the training images, ") == 30 and "one seed, no verdict" in output
    measures = ("auc", "average-precision", "balanced-accuracy")
    assert {path.name for path in tmp_path.glob("arms*")} == {f"arms-{measure}.csv" for measure in measures}


def test_experiments_sketch_style_follows_from_the_data_set(tmp_path, smoke, capsys):
    own = own_args(own_images(tmp_path / "own", 10), tmp_path / "out")
    options = ["--seeds", "0", "--fractions", "1", "--generator.no-artifacts", "--arms", "real", "synthetic only"]
    assert main(["experiment", "real-vs-synthetic", *own, *options]) == 0
    assert "synthetic only against real" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/plan.json").read_text())["generator"]["style"] == "structure"
    fails(capsys, ["experiment", "segmentation", *own], "folders has no masks: segmentation needs them")


def test_experiment_balancing_compares_with_the_best_baseline(phantoms, tmp_path, smoke, published, capsys):
    options = ["--train.steps", "1", "--gan-train.steps", "1", "--dcgan-train.steps", "1", "--num-synthetic", "4"]
    options += ["--cgan.projected", "--dcgan.projected"]
    args = experiment_args("balancing", phantoms, *options)
    out = tmp_path / "out"
    assert main([*args, "--out", str(out), "--publish"]) == 0
    rows, page = read_published(published, "balancing-phantoms-64")
    assert {"mean_recall_of_rare_classes", "balanced_accuracy", "recall_MEL"} <= set(rows["measure"])
    assert "rare classes: " in page and "one seed, no verdict" in page and "Not run" not in page
    plan = json.loads((out / "plan.json").read_text())
    assert plan["cgan"]["projected"] and plan["dcgan"]["projected"]
    output = capsys.readouterr().out
    assert "rare classes: " in output and output.count("DCGAN against ") == 2
    assert len(list(out.glob("comparisons*"))) == 2
    assert main([*args, "--out", str(out), "--arms", "blended"]) == 0
    output = capsys.readouterr().out
    assert "blended" in output and "DCGAN" not in output
    fails(capsys, [*args, "--folds", "60", "--out", str(tmp_path / "x")], "60 folds")


def test_experiment_small_data_and_ablation_write_their_tables(phantoms, tmp_path, smoke, published, capsys):
    options = ["--train.steps", "1", "--num-eval", "10"]
    small_data, ablation = (experiment_args(name, phantoms, *options) for name in ("small-data", "ablation"))
    assert main([*small_data, "--fractions", "0.5", "--out", str(tmp_path / "small-data"), "--publish"]) == 0
    rows, _ = read_published(published, "small-data-phantoms-64")
    assert {"kid", "copies"} <= set(rows["measure"]) and set(rows["fraction"]) == {0.5} and (rows["n"] > 9).all()
    output = capsys.readouterr().out
    assert "features of mobilenet_v2" in output and "pixel_copies" in output
    assert re.search(r"full recipe +0\.5", output)
    assert (tmp_path / "small-data/table.csv").is_file()
    assert main([*ablation, "--out", str(tmp_path / "ablation"), "--arms", "real images", "--publish"]) == 0
    assert "Not run: full recipe, no augmentation" in read_published(published, "ablation-phantoms-64")[1]
    assert [path.name for path in (tmp_path / "ablation").glob("real*")] == ["real_images-1-0.csv"]
    assert set(pd.read_csv(tmp_path / "ablation/table.csv")["arm"]) == {"real images"}


@pytest.mark.parametrize(
    "arguments", [["ablation", "--fractions", "0.5"], ["small-data", "--gan-steps", "1"], ["small-data", "--arms", "x"]]
)
def test_experiment_refuses_options_of_other_experiments(arguments, capsys):
    refuses(capsys, ["experiment", *arguments], f"Unrecognized options: {arguments[1]}")
