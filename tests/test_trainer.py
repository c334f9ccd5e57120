import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.models.trainer import TrainConfig, TrainTask, peak_memory, precision, train, update_ema

ROOT = Path(__file__).parents[1]


class Line(TrainTask):
    """The smallest method: a line through points; noise in every step gives resuming something to get wrong."""

    averaged = ("line",)

    def __init__(self, rate: float = 0.05):
        torch.manual_seed(0)
        self.config_dict = {"rate": rate}
        self.networks = {"line": nn.Linear(1, 1)}
        self.optimizers = {"line": torch.optim.Adam(self.networks["line"].parameters(), lr=rate)}
        self.shown = []

    def step(self, batch, number, backward):
        x = batch["x"] + 0.01 * torch.randn_like(batch["x"])
        loss = (self.networks["line"](x) - (3 * batch["x"] + 1)).square().mean()
        self.optimizers["line"].zero_grad()
        backward(loss)
        self.optimizers["line"].step()
        return {"loss": loss}

    def show(self, averages, folder, number):
        self.shown.append(number)


def draw(step: int, process: int) -> dict[str, torch.Tensor]:
    return {"x": torch.rand(8, 1, generator=torch.Generator().manual_seed(1000 * process + step))}


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_it_learns_reports_and_saves(tmp_path):
    method = Line()
    history = train(method, draw, tmp_path, TrainConfig(400, batch_size=8, ema_nimg=100, save_every=150, log_every=20))
    assert history["step"] == list(range(20, 401, 20)) and len(history["loss"]) == 20
    assert history["loss"][-1] < 0.01 < history["loss"][0]
    assert json.loads((tmp_path / "history.json").read_text()) == history
    assert method.shown == [150, 300, 400]
    average = checkpoint(tmp_path)["ema_models"]["line"]
    assert average["weight"].item() == pytest.approx(3, abs=0.1) and average["bias"].item() == pytest.approx(1, abs=0.1)


def test_resumed_is_bit_for_bit_the_uninterrupted_run(tmp_path):
    run = {"batch": 8, "report_every": 7, "save_every": 10}
    whole = train(Line(), draw, tmp_path / "whole", TrainConfig(60, **run))
    train(Line(), draw, tmp_path / "parts", TrainConfig(20, **run))
    parts = train(Line(), draw, tmp_path / "parts", TrainConfig(60, **run))
    assert whole == parts
    one, other = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert equal({k: one[k] for k in one if k != "run"}, {k: other[k] for k in other if k != "run"})


KILLED = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import time
from test_trainer import Line, TrainConfig, draw, train
class Slow(Line):
    def step(self, *rest):
        time.sleep(0.02)
        return super().step(*rest)
train(Slow(), draw, {out!r}, TrainConfig(80, batch=8, save_every=5, log_every=7))
"""


def test_killed_in_the_middle_and_started_again(tmp_path):
    """kill -9 while training, then the same command: the same weights as a run that nobody touched."""
    code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if (tmp_path / "killed/checkpoint.pt").is_file():
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < checkpoint(tmp_path / "killed")["step"] < 80
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    train(Line(), draw, tmp_path / "whole", TrainConfig(80, batch_size=8, save_every=5, log_every=7))
    assert equal(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "killed"))


def test_a_finished_run_is_not_trained_again(tmp_path):
    train(Line(), draw, tmp_path, TrainConfig(10, batch_size=8, log_every=5))
    before = checkpoint(tmp_path)
    history = train(Line(), draw, tmp_path, TrainConfig(10, batch_size=8, log_every=5))
    assert history["step"] == [5, 10] and equal(before, checkpoint(tmp_path))


def test_how_often_is_reported_may_change(tmp_path):
    train(Line(), draw, tmp_path, TrainConfig(10, batch_size=8, log_every=4))
    history = train(Line(), draw, tmp_path, TrainConfig(20, batch_size=8, log_every=10))
    whole = train(Line(), draw, tmp_path / "whole", TrainConfig(20, batch_size=8, log_every=1))
    assert history["step"] == [4, 8, 20]
    assert history["loss"][-1] == pytest.approx(sum(whole["loss"][8:]) / 12), "the mean since the last report"


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(Line(), draw, tmp_path, TrainConfig(10, batch_size=8))
    with pytest.raises(ValueError, match=r"rate 0.05 there, 0.1 here"):
        train(Line(0.1), draw, tmp_path, TrainConfig(20, batch_size=8))
    with pytest.raises(ValueError, match=r"batch 8 there, 4 here"):
        train(Line(), draw, tmp_path, TrainConfig(20, batch_size=4))


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    train(Line(), draw, tmp_path, TrainConfig(2, batch_size=8))
    saved = checkpoint(tmp_path)
    saved["networks"]["line"]["slope"] = saved["networks"]["line"].pop("weight")
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="was written by another version"):
        train(Line(), draw, tmp_path, TrainConfig(4, batch_size=8))


def test_a_full_disk_keeps_the_checkpoint(tmp_path, monkeypatch):
    train(Line(), draw, tmp_path, TrainConfig(10, batch_size=8))
    before = checkpoint(tmp_path)

    def full(contents, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr("helpers.models.trainer.torch.save", full)
    with pytest.raises(OSError, match="the checkpoint before it is kept"):
        train(Line(), draw, tmp_path, TrainConfig(20, batch_size=8))
    assert equal(before, checkpoint(tmp_path))


def test_out_of_gpu_memory_names_a_smaller_batch(tmp_path):
    class Greedy(Line):
        def step(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="try batch 8"):
        train(Greedy(), draw, tmp_path, TrainConfig(10, batch_size=16))


def test_average_is_exponential():
    average, network = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 0.0)
    nn.init.constant_(network.weight, 1.0)
    for _ in range(3):
        update_ema(average, network, decay=0.9)
    assert average.weight.item() == pytest.approx(1 - 0.9**3)


def test_precision_is_one_that_the_machine_has():
    assert precision() in ("no", "fp16", "bf16")
    if not torch.cuda.is_available():
        assert precision() != "fp16"


def test_peak_memory_only_grows():
    def gib() -> float:
        return float(peak_memory().split()[0])

    before = gib()
    assert 0.05 < before < 1000
    held = torch.ones(2**27)  # half a GiB
    assert gib() >= max(before, 0.5) and held.sum() > 0
