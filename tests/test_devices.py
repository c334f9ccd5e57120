"""Two processes on this processor take one step together, by the mean of both gradients.

Started by `torch.distributed.run`, as `accelerate launch` does for several GPUs; for processors it would want MPI.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from ddp_worker import Noted, Straight, half, points, run
from test_trainer import checkpoint

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Equal to 1e-5 is not to be had in bf16, in which the tests before trained where the processor multiplies it."""
    monkeypatch.setattr("helpers.models.trainer.binary_average_precision", lambda: "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def launched(what: str, out: Path, *more: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher = launcher[:1] if what == "notebook" else launcher
    rest = [str(HERE / "ddp_worker.py"), what, str(out), *more]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(launcher + rest, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ["plain", "projected"])
def test_gradients_of_two_processes_are_those_of_both_batches_in_one(tmp_path, kind):
    launched("gradients", tmp_path / "two", kind)
    together, other = (torch.load(tmp_path / f"two/gradients-{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = [gradients_of(process, tmp_path / f"{process}", kind == "projected") for process in (0, 1)]
    assert len(together) > 50 and together.keys() == alone[0].keys()
    for name, gradient in together.items():
        assert torch.equal(gradient, other[name]), name
        mean = (alone[0][name] + alone[1][name]) / 2
        assert torch.allclose(gradient, mean, rtol=1e-5, atol=1e-5 * float(mean.abs().max())), name
        assert not torch.allclose(gradient, alone[0][name], rtol=1e-3), f"{name}: one batch alone gives another"


def gradients_of(process: int, out: Path, projected: bool) -> dict[str, torch.Tensor]:
    """Of a step with that process's batch and its random numbers, which are a process apart: see `_step`."""
    method = Noted(projected)

    def draw(step: int, _: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(process)
        return half(step, process)

    return run(method, draw, out, steps=1, batch=4).gradients


@pytest.mark.parametrize("launcher", ["line", "notebook"])  # accelerate launch, and what a notebook calls
def test_weights_averages_and_history_of_two_processes_are_those_of_one(tmp_path, launcher):
    launched(launcher, tmp_path / "two", "10")
    launched(launcher, tmp_path / "two", "20")  # goes on from its checkpoint

    def both(step: int, _: int) -> dict[str, torch.Tensor]:
        return {"x": torch.cat([points(step, process)["x"] for process in (0, 1)])}

    run(Straight(), both, tmp_path / "one", steps=20, batch=16)
    two, one = checkpoint(tmp_path / "two"), checkpoint(tmp_path / "one")
    assert two["step"] == one["step"] == 20 and two["history"]["step"] == one["history"]["step"]
    for kind in ("networks", "ema_models"):
        for name, weight in one[kind]["line"].items():
            assert two[kind]["line"][name].item() == pytest.approx(weight.item(), abs=1e-5)
