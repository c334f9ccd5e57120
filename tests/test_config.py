import ast
import re
import sys
from pathlib import Path

import pytest

from helpers.colab import IMPORT_NAMES
from helpers.config import ROOT, default_root, display_path, find_weights_file, get_config


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("LESION_PROFILE", "LESION_DATASET", "LESION_DATA_ROOT", "LESION_WEIGHTS_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_get_config_without_variables_is_the_demo_on_phantoms():
    cfg = get_config()
    assert (cfg.profile, cfg.dataset, cfg.seed) == ("demo", "phantoms", 0)
    assert cfg.data_root == ROOT / "data/phantoms-demo" and cfg.outputs == ROOT / "outputs/phantoms-demo"
    assert cfg.workers >= 1


def test_get_config_reads_profile_dataset_and_root_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LESION_PROFILE", "full")
    monkeypatch.setenv("LESION_DATASET", "isic2017")
    assert get_config().data_root == ROOT / "data/isic2017"
    monkeypatch.setenv("LESION_DATA_ROOT", "../elsewhere")
    assert get_config().data_root == ROOT / "../elsewhere", "relative to the repository, not to the notebook"
    monkeypatch.setenv("LESION_DATA_ROOT", str(tmp_path))
    assert get_config().data_root == tmp_path
    assert get_config().outputs == ROOT / "outputs/isic2017-full"


def test_display_path_on_another_drive_is_absolute(tmp_path, monkeypatch):
    def relpath(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr("os.path.relpath", relpath)
    assert display_path(tmp_path) == str(tmp_path.resolve()) and display_path(ROOT / "data") == "data"


def test_get_config_two_folder_sets_have_different_outputs(tmp_path):
    roots = [tmp_path / "a" / "images", tmp_path / "b" / "images", tmp_path / "b" / "images" / ".." / "images"]
    first, second, again = (get_config("folders", root).outputs.name for root in roots)
    assert first != second == again and first.startswith("folders-images-") and first.endswith("-demo")


def test_get_config_arguments_override_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LESION_DATASET", "isic2017")
    monkeypatch.setenv("LESION_DATA_ROOT", "somewhere")
    cfg = get_config(dataset="ham10000")
    assert cfg.data_root == ROOT / "data/ham10000", "LESION_DATA_ROOT belongs to isic2017"
    assert get_config(dataset="isic2017").data_root == ROOT / "somewhere"
    assert get_config(data_root=tmp_path).data_root == tmp_path
    monkeypatch.delenv("LESION_DATASET")
    assert get_config(dataset="ham10000").data_root == ROOT / "somewhere", "no other set is named"


def test_get_config_tilde_is_the_home_folder(monkeypatch):
    assert get_config(data_root="~/isic").data_root == Path.home() / "isic"
    monkeypatch.setenv("LESION_DATA_ROOT", "~/isic")
    assert get_config("isic2016").data_root == Path.home() / "isic"


def test_default_root_is_the_folder_if_none_is_named():
    assert get_config("isic2016").data_root == default_root("isic2016", "demo") == ROOT / "data/isic2016"
    assert get_config().data_root == default_root("phantoms", "demo")


def test_get_config_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("LESION_DATASET", "")
    assert get_config().dataset == "phantoms"


@pytest.mark.parametrize("variable", ["LESION_PROFILE", "LESION_DATASET"])
def test_get_config_unknown_value_raises(monkeypatch, variable):
    monkeypatch.setenv(variable, "nonsense")
    with pytest.raises(ValueError, match=f"{variable} must be one of .*, got 'nonsense'"):
        get_config()


def test_find_weights_file_returns_the_first_that_exists(monkeypatch, tmp_path):
    assert find_weights_file("a.pth") is None
    monkeypatch.setenv("LESION_WEIGHTS_DIR", str(tmp_path))
    assert find_weights_file("a.pth", "b.pth") is None
    (tmp_path / "b.pth").write_bytes(b"")
    assert find_weights_file("a.pth", "b.pth") == tmp_path / "b.pth"


def test_display_path_is_relative_to_the_repository_or_working_directory(tmp_path, monkeypatch):
    assert display_path(ROOT / "data/x") == "data/x"
    monkeypatch.chdir(tmp_path)
    assert display_path(tmp_path / "y") == "y"


# Imported packages that others of requirements.txt bring along, and optional ones.
BROUGHT_ALONG = {
    "IPython",
    "nbclient",
    "nbconvert",
    "nbformat",
    "gradio_client",
    "httpx",
    "huggingface_hub",
    "fastapi",
    "starlette",
    "yaml",
}
OPTIONAL = {"google", "pillow_heif", "isic_challenge_scoring"}  # google: Colab's own


def packages(file: str) -> list[str]:
    """Names of the packages in a file of requirements."""
    lines = (ROOT / file).read_text().splitlines()
    return [re.split(r"[<>=!~; \[]", line)[0].lower() for line in lines if line.strip() and not line.startswith("#")]


def imported_modules() -> set[str]:
    """Top-level names of all modules that the code imports, without those of Python and our own."""
    files = [path for folder in ("helpers", "tests", "notebooks") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    ours = {"helpers", "notebooks", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - ours


def test_every_imported_package_is_required():
    modules = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in packages("requirements.txt")}
    assert {"PIL", "cv2", "sklearn", "safetensors", "torch"} <= modules & imported_modules()
    assert imported_modules() - modules - BROUGHT_ALONG == OPTIONAL


def test_every_required_package_has_a_tested_version():
    assert set(packages("requirements.txt")) <= set(packages("constraints.txt"))
    assert len(set(packages("requirements.txt"))) == len(packages("requirements.txt"))
