import re
import sys
import types
from dataclasses import replace

import pytest

from helpers import colab
from helpers.config import get_config


def test_install_missing_installs_missing_packages_but_never_torch(monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(colab.subprocess, "run", lambda command, check: commands.append(command))
    assert colab.missing_requirements() == []
    colab.install_missing()
    assert commands == [] and capsys.readouterr().out == ""
    monkeypatch.setattr(colab, "find_spec", lambda name: None)
    missing = colab.missing_requirements()
    names = {re.split("[<>=]", line)[0] for line in missing}
    assert {"opencv-python-headless", "scikit-learn", "tqdm"} <= names
    assert not names & {"torch", "torchvision", "numpy", "jupyter", "ruff"}
    monkeypatch.setattr(colab, "find_spec", lambda name: None if name == "cv2" else name)
    colab.install_missing()
    assert commands == [[sys.executable, "-m", "pip", "install", "--quiet", *colab.missing_requirements()]]
    assert colab.missing_requirements()[0].startswith("opencv-python-headless")


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    config = replace(get_config(), outputs=tmp_path / "outputs" / "phantoms-smoke", keep=tmp_path / "drive")
    monkeypatch.setattr(colab, "get_config", lambda: config)
    return config


def test_kept_files_come_back_after_a_disconnect(cfg):
    for name, text in {"cgan/checkpoint.pt": "weights", "experiment/real-1-0.csv": "table"}.items():
        file = cfg.outputs / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        colab.keep(file)
    (cfg.outputs / "cgan/checkpoint.pt").unlink()
    (cfg.outputs / "experiment/real-1-0.csv").write_text("newer")
    assert colab.restore() == 1, "files that are there are newer"
    assert (cfg.outputs / "cgan/checkpoint.pt").read_text() == "weights"
    assert (cfg.outputs / "experiment/real-1-0.csv").read_text() == "newer"
    assert not [path for path in cfg.keep.rglob(".*")]


def test_keep_ignores_files_elsewhere_and_survives_a_lost_drive(cfg, tmp_path):
    (elsewhere := tmp_path / "x.csv").write_text("x")
    colab.keep(elsewhere)
    assert not cfg.keep.exists()
    cfg.keep.write_text("a file where the folder should be")
    cfg.outputs.mkdir(parents=True)
    (file := cfg.outputs / "y.csv").write_text("y")
    with pytest.warns(UserWarning, match="y.csv was not copied to Drive"):
        colab.keep(file)


def test_keep_without_a_folder_does_nothing(cfg, monkeypatch, tmp_path):
    monkeypatch.setattr(colab, "get_config", lambda: replace(cfg, keep=None))
    cfg.outputs.mkdir(parents=True)
    (file := cfg.outputs / "y.csv").write_text("y")
    colab.keep(file)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["y.csv"]


def test_setup_mounts_drive_only_if_wanted(cfg, monkeypatch, capsys):
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    monkeypatch.setattr(colab, "install_missing", lambda: None)
    monkeypatch.delenv("LESION_KEEP", raising=False)
    colab.setup(keep_on_drive=False)
    assert mounted == []
    (cfg.keep / "phantoms-smoke/cgan").mkdir(parents=True)
    (cfg.keep / "phantoms-smoke/cgan/checkpoint.pt").write_text("weights")
    colab.setup(keep_on_drive=True)
    assert mounted == [str(colab.DRIVE)] and "1 files" in capsys.readouterr().out
    monkeypatch.delenv("LESION_KEEP")
