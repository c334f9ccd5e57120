import subprocess
import sys
from pathlib import Path

import pytest
from made_up import folders, isic2016

from helpers.__main__ import main
from helpers.data.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("LESION_PROFILE", "LESION_DATASET", "LESION_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_audit_says_what_a_folder_is(phantoms, capsys):
    assert main(["audit", str(phantoms)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("phantoms: 120 pictures") and "copies under another label" in told
    assert len(told.splitlines()) <= 40


def test_audit_of_a_subset(phantoms, capsys):
    assert main(["audit", str(phantoms), "--classes", "MEL", "BKL"]) == 0
    told = capsys.readouterr().out
    assert "BKL" in told and "VASC" not in told


def test_audit_fails_on_data_that_cannot_be_used(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    assert "none of the known layouts" in capsys.readouterr().err
    pictures = isic2016(tmp_path / "isic") / "ISBI2016_ISIC_Part1_Training_Data"
    for path in list(pictures.iterdir())[:6]:
        path.write_bytes(b"")
    assert main(["audit", str(tmp_path / "isic")]) == 1
    assert "CANNOT BE USED" in capsys.readouterr().out


def test_audit_writes_nothing(phantoms, tmp_path, monkeypatch):
    before = sorted((p, p.stat().st_mtime_ns) for p in phantoms.rglob("*"))
    monkeypatch.chdir(tmp_path)
    main(["audit", str(phantoms)])
    assert sorted((p, p.stat().st_mtime_ns) for p in phantoms.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def prepare(folder, stores, *more) -> int:
    return main(["prepare", "--data-root", str(folder), "--size", "32", "--out", str(stores), *more])


def test_prepare_writes_one_store_and_opens_it_again(tmp_path, capsys):
    folder, stores = isic2016(tmp_path / "isic"), tmp_path / "stores"
    assert prepare(folder, stores, "--dataset", "isic2016") == 0
    assert prepare(folder, stores, "--dataset", "isic2016") == 0
    assert len(list(stores.iterdir())) == 1
    store = Store(next(stores.iterdir()))
    assert len(store) == 20 and store.settings.size == 32
    assert set(store.table["split"]) == {"train", "val", "test"}
    assert "isic2016" in capsys.readouterr().out


def test_prepare_of_class_folders(tmp_path, capsys):
    folder, stores = folders(tmp_path / "tree"), tmp_path / "stores"
    assert prepare(folder, stores, "--dataset", "folders") == 2
    assert "style 'structure'" in capsys.readouterr().err
    assert (
        prepare(folder, stores, "--dataset", "folders", "--style", "structure", "--classes", "nevus", "melanoma") == 0
    )
    store = Store(next(stores.iterdir()))
    assert store.classes == ["nevus", "melanoma"] and len(store) == 18


@pytest.mark.parametrize("dataset", ["course", "folders"])
def test_what_cannot_be_downloaded_is_said(tmp_path, capsys, dataset):
    assert prepare(tmp_path / "absent", tmp_path / "stores", "--dataset", dataset) == 2
    assert "no download called" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, capsys):
    (tmp_path / "stores").write_text("a file")
    assert prepare(isic2016(tmp_path / "isic"), tmp_path / "stores", "--dataset", "isic2016") == 2
    assert "error: " in capsys.readouterr().err


def test_the_shell_door():
    told = subprocess.run(
        [sys.executable, "-m", "helpers", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "audit" in told.stdout and "prepare" in told.stdout
