"""The job that measures the headline numbers: `.ci/headline` with local stand-ins, and its workflow file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.config import DATASETS, ROOT

# Prints its arguments and what the test wants a command to print; fails for the command FAIL.
STUB = """#!/usr/bin/env bash
echo "called: $*"
case "$*" in *"${FAIL:-nothing}"*) echo "error: no such weights"; exit 2 ;; esac
case "$*" in *evaluate*) echo "${NOTE:-}" ;; esac
"""
# Runs the package with a rescaled random Inception; an experiment that does not exist yet prints its name.
STAND_IN = f"""#!{sys.executable}
import sys
sys.path[:0] = [".", {str(ROOT / "tests")!r}]
from factories import random_inception
from helpers.__main__ import COMMANDS, main
from helpers.metrics import extractors

class Rescaled(extractors.Inception):
    def forward(self, x):
        return 1_000 * super().forward(x)

extractors.load_inception = lambda file=None: Rescaled(random_inception())
if sys.argv[3] == "experiment" and " ".join(sys.argv[3:5]) not in COMMANDS:
    sys.exit(print("stub of", sys.argv[4]))
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of what the script needs, so that it writes no results into the repository."""
    root = tmp_path / "copy"
    (root / "data/released").mkdir(parents=True)
    (root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/headline", root / ".ci")
    shutil.copy(ROOT / "data/released/cgan.safetensors", root / "data/released")
    return root


def run_headline(root: Path, python: str, **variables: str) -> tuple[int, str, str]:
    """Exit status, all output, and the summary of the script in `root` with `python` as its interpreter."""
    program = root / "python"
    program.write_text(python)
    program.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LESION_")} | {"PYTHON": str(program)}
    result = subprocess.run([root / ".ci/headline"], env=environment | variables, capture_output=True, text=True)
    return result.returncode, result.stdout, (root / "outputs/headline/summary.txt").read_text()


def test_headline_runs_its_steps_in_order_and_lists_them(copy):
    status, output, summary = run_headline(copy, STUB, DATASET="ham10000", DATA_ROOT="/some where")
    calls = [line.removeprefix("called: -m helpers ") for line in output.splitlines() if line.startswith("called")]
    data = "--dataset ham10000 --data-root /some where"
    assert status == 0 and calls == [
        f"prepare {data} --size 128",
        f"evaluate generator data/released/cgan.safetensors {data} --split test --publish",
        f"experiment real-vs-generated --cgan data/released/cgan.safetensors {data} --publish",
    ]
    assert [line.split(":")[0] for line in summary.splitlines()] == [
        "prepare", "generator", "distances", "real-vs-generated"]  # fmt: skip


def test_headline_names_missing_weights_and_goes_on(copy):
    note = "! the weights of Inception are not available (no connection), so there is no FID and no IS"
    status, _, summary = run_headline(copy, STUB, DATASET="phantoms", NOTE=note)
    assert status == 1 and f"s: {note}" in summary and "distances: INCOMPLETE" in summary
    assert "real-vs-generated: done" in summary


@pytest.mark.parametrize(
    ("command", "name", "goes_on"), [("prepare", "prepare", False), ("evaluate", "distances", True)]
)
def test_headline_names_a_step_that_failed(copy, command, name, goes_on):
    status, _, summary = run_headline(copy, STUB, DATASET="phantoms", FAIL=command)
    assert status == 1 and f"{name}: FAILED: error: no such weights" in summary
    assert ("real-vs-generated: done" in summary) == goes_on


def test_headline_without_a_released_generator_trains_one(copy):
    status, output, summary = run_headline(copy, STUB, DATASET="isic2016", MINUTES="5")
    assert status == 0 and "cgan-isic2016.safetensors is absent, one is trained for 5 minutes" in summary
    assert "train cgan --dataset isic2016 --size 128 --minutes 5 --out outputs/headline/cgan" in output
    assert "--cgan outputs/headline/cgan/checkpoint.pt" in output
    (copy / "data/training").mkdir(parents=True)
    (copy / "data/training/cgan-isic2016.safetensors").touch()
    status, output, summary = run_headline(copy, STUB, DATASET="isic2016")
    assert "train cgan" not in output and "generator: data/training/cgan-isic2016.safetensors" in summary
    _, output, _ = run_headline(copy, STUB, DATASET="isic2016", CHECKPOINT="my.pt")
    assert "evaluate generator my.pt" in output and "train cgan" not in output


@pytest.mark.slow
def test_headline_on_the_embedded_sample_measures_fid_and_inception_score(copy):
    """With a random Inception: what is tested is that every step runs, not the numbers."""
    shutil.copytree(ROOT / "helpers", copy / "helpers")
    shutil.copy(ROOT / "requirements.txt", copy)
    for name in ("artifacts", "segmenter"):
        shutil.copy(ROOT / f"data/released/{name}.safetensors", copy / "data/released")
    status, output, summary = run_headline(copy, STAND_IN, DATASET="phantoms", LESION_PROFILE="smoke")
    table = (copy / "outputs/headline/distances.log").read_text()
    assert "FAILED" not in summary, output[-2_000:]
    assert "fid" in table and "inception" in table and "floor" in table and "kid" in table
    assert "distances:" in summary and "real-vs-generated:" in summary
    assert (status == 0) == ("INCOMPLETE" not in summary)


def test_workflow_starts_the_script_by_hand_and_uploads_what_it_writes():
    workflow = yaml.safe_load((ROOT / ".github/workflows/headline.yml").read_text())
    (triggers,) = [workflow[key] for key in workflow if key in (True, "on")]  # YAML 1.1 reads `on` as true
    assert list(triggers) == ["workflow_dispatch"]
    job, inputs = workflow["jobs"]["headline"], triggers["workflow_dispatch"]["inputs"]
    assert job["timeout-minutes"] == 360 and set(inputs["dataset"]["options"]) < set(DATASETS)
    assert {f"${{{{ inputs.{name} }}}}" for name in inputs} == {job["env"][name.upper()] for name in inputs}
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs[-1] == ".ci/headline" and os.access(ROOT / ".ci/headline", os.X_OK)
    upload = job["steps"][-1]
    assert upload["uses"].startswith("actions/upload-artifact@v") and upload["if"] == "always()"
    assert upload["with"]["path"].split() == ["outputs/headline/*.txt", "outputs/headline/*.log", "outputs/results/"]
    script = (ROOT / ".ci/headline").read_text()
    assert all(f"{name.upper()}=${{{name.upper()}:-" in script for name in inputs)
