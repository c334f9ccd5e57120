"""Rules for every committed notebook, and the setup cell, run as in Colab."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from factories import own_images

from helpers.config import REPOSITORY, ROOT
from notebooks.run import badge, setup_cell, write_badges, write_notebook

PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def count_words(notebook) -> int:
    return sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")


def test_notebook_badge_and_setup_cell_name_the_repository(notebook, request):
    stem = request.node.callspec.id
    assert badge(REPOSITORY, stem) in notebook.cells[0].source
    setup = [cell.source for cell in notebook.cells if cell.source.startswith("# Setup")]
    assert setup == [setup_cell(REPOSITORY)] and notebook.cells[1].source == setup[0]


def test_readme_and_citation_name_the_repository():
    for name in ("README.md", "CITATION.cff"):
        repositories = set(re.findall(r"github(?:\.com)?/([\w.-]+/[\w-]+)", (ROOT / name).read_text()))
        assert repositories == {REPOSITORY}, name


def test_notebook_has_opening_imports_and_ending(notebook):
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith("# ") and "**You will**" in first
    assert all(word in first for word in ("**Reads**", "**Writes**", "**Takes**"))
    assert "## Exercises" in last and "**Next:**" in last
    imports = [c.source for c in code_cells(notebook)[1:] if re.search(r"^(import|from) ", c.source, re.MULTILINE)]
    assert len(imports) == 1, "one cell with all imports"


def test_notebook_cells_are_short_and_explained(notebook, request):
    setup, *lines = (len(cell.source.splitlines()) for cell in code_cells(notebook))
    assert setup <= 24 and max(lines) <= 20 and sorted(lines)[len(lines) // 2] <= 8
    most = 1800 if request.node.callspec.id[:2] in ("03", "05") else 1200
    assert 400 <= count_words(notebook) <= most
    assert any("assert" in cell.source for cell in code_cells(notebook))


def test_notebook_says_under_every_figure_what_to_see(notebook, request):
    cells, shows = notebook.cells, r"(?m)^(save|show|Image|table_with_images)\("
    figures = [k for k, cell in enumerate(cells) if cell.cell_type == "code" and re.search(shows, cell.source)]
    assert len(figures) >= 4
    assert not [cells[k].source for k in figures if not cells[k + 1].source.startswith("**What to see:** ")]
    if request.node.callspec.id[:2] in ("03", "05"):
        assert any("$$" in cell.source for cell in cells), "the objective as a formula"
        for sentence in (cells[k + 1].source for k in figures):
            assert sentence.endswith(".") and "\n" not in sentence and ". " not in sentence, "one sentence"


def test_notebook_code_does_not_branch_on_profile_or_dataset(notebook):
    source = "\n".join(cell.source for cell in code_cells(notebook)[1:])
    assert not re.search(r"cfg\.(profile|dataset)\s*(==|!=|in\b)|\bif cfg\.(profile|dataset)", source)
    assert "LESION_" not in source


def test_notebook_outputs_are_from_one_run_without_errors(notebook):
    cells = [cell for cell in code_cells(notebook) if cell.source]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    images = [o for o in outputs if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
    assert len(images) >= 4 and any("image/png" in o.data for o in images)
    assert cells[0].outputs == [], "outside Colab the setup cell prints nothing"


def test_notebook_contains_no_absolute_path(notebook):
    text = nbformat.writes(notebook)
    assert str(ROOT) not in text and not re.search(r"/content\b|/home/|/Users/|/root/|/tmp/", text)


def test_notebook_files_are_small():
    sizes = {path.name[:2]: path.stat().st_size for path in PATHS}
    assert sizes.pop("03") < 1_000_000 and max(sizes.values()) < 700_000 and sum(sizes.values()) < 4_000_000


# ------------------------------------------------------------------------------------------------------- own images


@pytest.fixture(scope="module")
def own_root(tmp_path_factory) -> Path:
    """Instead of the repository: released weights, published results, class folders without masks; room for outputs."""
    root = tmp_path_factory.mktemp("own")
    (root / "data").mkdir()
    (root / "data/released").symlink_to(ROOT / "data/released")
    (root / "outputs").mkdir()
    (root / "outputs/results").symlink_to(ROOT / "outputs/results")
    own_images(root / "data/folders")
    return root


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("02", "no masks in this data set: cells that need them show the embedded phantoms"),
        ("07", "no masks of rare classes in this data set: blending is skipped"),
    ],
)
def test_notebook_runs_on_class_folders_without_masks(own_root, monkeypatch, capsys, number, expected):
    monkeypatch.setattr("helpers.config.ROOT", own_root)
    for name, value in {"PROFILE": "smoke", "DATASET": "folders", "DATA_ROOT": "", "WEIGHTS_DIR": ""}.items():
        monkeypatch.setenv(f"LESION_{name}", value)
    (path,) = (path for path in PATHS if path.name.startswith(number))
    variables = {"__name__": "__main__"}
    for cell in code_cells(nbformat.read(path, as_version=4))[1:]:
        exec(cell.source, variables)
    assert expected in capsys.readouterr().out
    assert variables["dataset"].name == "folders" and not variables["dataset"].has_masks
    assert len(list((own_root / "outputs/folders-smoke/figures").glob(f"{number}_*.png"))) >= 7


# --------------------------------------------------------------------------------------------------------- Colab

AS_COLAB = """
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
for _ in range(2):
    exec(open(sys.argv[1]).read())
import helpers.config
print(helpers.config.ROOT)
print(sys.path.count(root), sys.path[0] == root)
"""


def run_setup(tmp_path: Path, script: str, cwd: Path, **variables: str) -> list[str]:
    (tmp_path / "setup.py").write_text(setup_cell(REPOSITORY))
    (tmp_path / "script.py").write_text(script)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "setup.py")]
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.split("\n")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a clone to clone from")
def test_setup_cell_in_colab_run_twice_clones_once(tmp_path):
    empty = tmp_path / "colab"
    empty.mkdir()
    lines = run_setup(tmp_path, AS_COLAB, empty, LESION_REPOSITORY=ROOT.as_uri())
    clone = empty / REPOSITORY.split("/")[1]
    assert lines[0] == str(clone) and lines[1] == "1 True", "nothing is missing, so nothing is installed or printed"
    assert (clone / "requirements.txt").is_file() and len(list(empty.iterdir())) == 1


def test_setup_cell_outside_colab_prints_nothing(tmp_path):
    script = "import sys\nfor _ in range(2): exec(open(sys.argv[1]).read())\nimport helpers\nprint(helpers.__file__)"
    lines = run_setup(tmp_path, script, ROOT / "notebooks")
    assert lines == [str(ROOT / "helpers" / "__init__.py"), ""]


# ------------------------------------------------------------------------------------------------------- badges


def test_write_notebook_with_another_repository_changes_badge_and_setup_only(tmp_path):
    path = tmp_path / PATHS[0].name
    path.write_bytes(PATHS[0].read_bytes())
    write_notebook(path, "zz-somebody/zz-other")
    changed, before = nbformat.read(path, as_version=4), nbformat.read(PATHS[0], as_version=4)
    assert badge("zz-somebody/zz-other", path.stem) in changed.cells[0].source
    assert changed.cells[1].source == setup_cell("zz-somebody/zz-other")
    assert REPOSITORY not in nbformat.writes(changed)
    assert [c.get("outputs") for c in changed.cells] == [c.get("outputs") for c in before.cells]


def test_write_badges_without_owner_and_name_exits():
    with pytest.raises(SystemExit, match="owner/name"):
        write_badges("https://example.org/x")
