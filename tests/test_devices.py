"""Two processes on this CPU train together, by the mean of both gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from ddp_worker import cgan_gradients, get_cgan_batch, get_points, run
from factories import LinearTask, load_checkpoint

WORKER = str(Path(__file__).parent / "ddp_worker.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # as `accelerate launch` does


@pytest.fixture(autouse=True)
def one_thread_float32(monkeypatch):
    """Compute as the started processes do: other threads add in another order, bf16 is too coarse to compare."""
    monkeypatch.setattr("helpers.models.trainer.precision", lambda *_: "no")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Function that starts the worker by a launcher, once per module, and returns its folder."""
    folders = {}

    def launch(launcher: str) -> Path:
        if launcher not in folders:
            out = tmp_path_factory.mktemp(launcher)
            command = [sys.executable, *(TORCHRUN if launcher == "torchrun" else []), WORKER, launcher, str(out)]
            env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-3000:]
            folders[launcher] = out
        return folders[launcher]

    return launch


@pytest.mark.parametrize("projected", [False, True])
def test_train_cgan_in_two_processes_has_the_mean_of_both_gradients(launched, tmp_path, projected):
    folder = launched("debug_launcher")
    rank0, rank1 = (torch.load(folder / f"gradients-{projected}-{rank}.pt", weights_only=True) for rank in (0, 1))
    single0, single1 = (single_process_gradients(rank, tmp_path / str(rank), projected) for rank in (0, 1))
    assert len(rank0) > 50 and rank0.keys() == single0.keys()
    for name, gradient in rank0.items():
        assert torch.equal(gradient, rank1[name]), name
        mean = (single0[name] + single1[name]) / 2
        largest = float(mean.abs().max())
        assert torch.allclose(gradient, mean, rtol=1e-4, atol=1e-4 * largest), name
        if "heads." in name and name.endswith("patch_head.bias"):
            continue  # hinge loss: a difference of two counts of patches, which can be equal on both ranks
        assert not torch.allclose(gradient, single0[name], rtol=1e-2, atol=1e-2 * largest), f"{name}: only of rank 0"


def single_process_gradients(rank: int, out: Path, projected: bool) -> dict[str, torch.Tensor]:
    """Gradients with the batch and the random numbers of that rank (seed 0 + rank, see `trainer._run_step`)."""

    def get_batch(step: int, _: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(rank)
        return get_cgan_batch(step, rank)

    return cgan_gradients(projected, get_batch, out)


@pytest.mark.parametrize("launcher", ["torchrun", "debug_launcher"])
def test_train_in_two_processes_equals_one_process_with_the_global_batch(launched, tmp_path, launcher):
    def get_global_batch(step: int, _: int) -> dict[str, torch.Tensor]:
        return {"x": torch.cat([get_points(step, rank)["x"] for rank in (0, 1)])}

    run(LinearTask(noise=0.0), get_global_batch, tmp_path, steps=20, batch_size=16)
    two, one = load_checkpoint(launched(launcher) / "line"), load_checkpoint(tmp_path)
    assert two["step"] == one["step"] == 20 and two["history"]["step"] == one["history"]["step"]
    for kind in ("networks", "ema_models"):
        for name, weight in one[kind]["line"].items():
            assert two[kind]["line"][name].item() == pytest.approx(weight.item(), abs=1e-5)
