import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from factories import LinearTask, get_linear_batch, load_checkpoint
from torch import nn

from helpers.data.store import fit_config
from helpers.models.device import best_device, peak_memory
from helpers.models.stop import Stopped
from helpers.models.trainer import TrainConfig, precision, set_gan_lr, set_warmup_cosine_lr, train, update_ema

ROOT = Path(__file__).parents[1]


def equal(a, b) -> bool:
    """Nested dicts and lists of equal numbers and equal tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def load_without_seconds(folder: Path) -> dict:
    """The checkpoint without the seconds that the training took."""
    saved = load_checkpoint(folder)
    assert saved.pop("seconds") > saved.pop("validation_seconds") >= 0
    return saved


def test_train_line_converges_and_writes_history_and_checkpoints(tmp_path):
    task = LinearTask()
    train_config = TrainConfig(400, batch_size=8, ema_nimg=100, save_every=150, log_every=20)
    history = train(task, get_linear_batch, tmp_path, train_config)
    assert history["step"] == list(range(20, 401, 20)) and len(history["loss"]) == 20
    assert history["loss"][-1] < 0.01 < history["loss"][0]
    assert json.loads((tmp_path / "history.json").read_text()) == history
    assert task.checkpoint_steps == [150, 300, 400]
    ema = load_checkpoint(tmp_path)["ema_models"]["line"]
    assert ema["weight"].item() == pytest.approx(3, abs=0.1) and ema["bias"].item() == pytest.approx(1, abs=0.1)


def test_train_resumed_equals_uninterrupted_run(tmp_path):
    intervals = {"batch_size": 8, "log_every": 7, "save_every": 10}
    history = train(LinearTask(), get_linear_batch, tmp_path / "once", TrainConfig(60, **intervals))
    train(LinearTask(), get_linear_batch, tmp_path / "twice", TrainConfig(20, **intervals))
    assert train(LinearTask(), get_linear_batch, tmp_path / "twice", TrainConfig(60, **intervals)) == history
    assert equal(load_without_seconds(tmp_path / "once"), load_without_seconds(tmp_path / "twice"))


KILLED = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import time
from factories import LinearTask, get_linear_batch
from helpers.models.trainer import TrainConfig, train
class SlowTask(LinearTask):
    def training_step(self, *args):
        time.sleep(0.02)
        return super().training_step(*args)
train(SlowTask(), get_linear_batch, {out!r}, TrainConfig(10_000, batch_size=8, save_every=5, log_every=7))
"""


def test_train_killed_by_sigkill_resumes_to_the_same_weights(tmp_path):
    code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(6000):
        if (tmp_path / "killed/checkpoint.pt").is_file() or process.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    step = load_checkpoint(tmp_path / "killed")["step"]
    assert 0 < step < 10_000 and step % 5 == 0
    train_config = TrainConfig(step + 30, batch_size=8, save_every=5, log_every=7)
    for folder in ("killed", "once"):
        train(LinearTask(), get_linear_batch, tmp_path / folder, train_config)
    assert equal(load_without_seconds(tmp_path / "once"), load_without_seconds(tmp_path / "killed"))


def test_train_finished_run_is_not_trained_further(tmp_path):
    train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(10, batch_size=8, log_every=5))
    before = load_checkpoint(tmp_path)
    history = train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(10, batch_size=8, log_every=5))
    assert history["step"] == [5, 10] and equal(before, load_checkpoint(tmp_path))


class TimedTask(LinearTask):
    """Every step takes a second of its own clock. Records the progress before each step."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.now, self.progresses = 100.0, []
        monkeypatch.setattr("helpers.models.trainer.time", SimpleNamespace(monotonic=lambda: self.now))

    def training_step(self, *args):
        self.now += 1
        self.progresses.append(self.progress)
        return super().training_step(*args)


def test_train_progress_is_the_fraction_of_the_steps(tmp_path, monkeypatch):
    task = TimedTask(monkeypatch)
    train(task, get_linear_batch, tmp_path, TrainConfig(4, batch_size=8))
    assert task.progresses == [0, 0.25, 0.5, 0.75] and task.progress == 1
    task = TimedTask(monkeypatch)
    train(task, get_linear_batch, tmp_path, TrainConfig(8, batch_size=8))
    assert task.progresses == [0.5, 0.625, 0.75, 0.875], "half of the longer run"


def test_train_minutes_replace_the_steps_and_are_continued_after_a_resume(tmp_path, monkeypatch):
    for minutes, expected in ((0.25, [k / 15 for k in range(15)]), (0.25, []), (0.5, [k / 30 for k in range(15, 30)])):
        task = TimedTask(monkeypatch)
        train_config = TrainConfig(3, 8, save_every=500, log_every=5, minutes=minutes)
        history = train(task, get_linear_batch, tmp_path, train_config)
        assert task.progresses == pytest.approx(expected) and task.progress == 1
        assert task.checkpoint_steps == ([round(60 * minutes)] if expected else [])
    saved = load_checkpoint(tmp_path)
    assert saved["step"] == saved["seconds"] == 30 and history["step"] == [5, 10, 15, 20, 25, 30]


def test_train_counts_the_seconds_of_validation_in_all_processes(tmp_path, monkeypatch):
    class SlowValidation(TimedTask):
        def on_checkpoint(self, *_):
            self.now += 3

    for steps, checkpoints in ((4, 2), (8, 4)):
        train(SlowValidation(monkeypatch), get_linear_batch, tmp_path, TrainConfig(steps, 8, save_every=2))
        saved = load_checkpoint(tmp_path)
        assert saved["validation_seconds"] == 3 * checkpoints and saved["seconds"] == steps + 3 * checkpoints


def test_train_minutes_of_a_real_clock_end_the_run(tmp_path):
    started = time.monotonic()
    train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(1, batch_size=8, minutes=0.02))
    assert time.monotonic() - started >= 1.2
    saved = load_checkpoint(tmp_path)
    assert saved["step"] > 1 and 1.2 <= saved["seconds"] < 60
    train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(1, batch_size=8, minutes=0.02))
    assert equal(saved, load_checkpoint(tmp_path))


def test_train_validate_true_stops_and_is_not_continued(tmp_path):
    class StoppingTask(LinearTask):
        def validate(self, ema_models, step):
            assert not ema_models["line"].training and self.checkpoint_steps[-1] == step
            return step >= 4

    for _ in range(2):
        train(StoppingTask(), get_linear_batch, tmp_path, TrainConfig(10, batch_size=8, save_every=2))
        assert load_checkpoint(tmp_path)["step"] == 4


def test_train_other_log_interval_continues_the_mean(tmp_path):
    train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(10, batch_size=8, log_every=4))
    history = train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(20, batch_size=8, log_every=10))
    every_step = train(LinearTask(), get_linear_batch, tmp_path / "once", TrainConfig(20, batch_size=8, log_every=1))
    assert history["step"] == [4, 8, 20]
    assert history["loss"][-1] == pytest.approx(sum(every_step["loss"][8:]) / 12), "mean since the last entry"


def test_train_checkpoint_of_other_config_raises(tmp_path):
    train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(10, batch_size=8))
    with pytest.raises(ValueError, match=r"another config \(lr is 0.05 there, 0.1 here\)"):
        train(LinearTask(0.1), get_linear_batch, tmp_path, TrainConfig(20, batch_size=8))
    with pytest.raises(ValueError, match=r"batch_size is 8 there, 4 here; seed is 0 there, 1 here"):
        train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(20, batch_size=4, seed=1))


@pytest.mark.parametrize("change", ["parameter", "key", "seconds"])
def test_train_checkpoint_of_other_version_raises(tmp_path, change):
    train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(2, batch_size=8))
    saved = load_checkpoint(tmp_path)
    if change == "parameter":
        saved["networks"]["line"]["slope"] = saved["networks"]["line"].pop("weight")
    elif change == "key":
        saved["settings"] = saved.pop("config")
    else:
        del saved["seconds"]
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"(by another|of this) version.*: delete it or choose another folder"):
        train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(4, batch_size=8))


def test_train_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(10, batch_size=8))
    before = load_checkpoint(tmp_path)

    def save_on_full_disk(content, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("helpers.models.checkpoint.torch.save", save_on_full_disk)
    with pytest.raises(OSError, match=r"new/checkpoint\.pt cannot be written: the disk is full$"):
        train(LinearTask(), get_linear_batch, tmp_path / "new", TrainConfig(20, batch_size=8))
    with pytest.raises(OSError, match=r"checkpoint\.pt cannot be written: the disk is full; the previous one is kept$"):
        train(LinearTask(), get_linear_batch, tmp_path, TrainConfig(20, batch_size=8))
    assert equal(before, load_checkpoint(tmp_path))


def test_train_out_of_gpu_memory_names_half_the_batch_size(tmp_path):
    class HugeTask(LinearTask):
        def training_step(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="with batch size 16: try batch size 8"):
        train(HugeTask(), get_linear_batch, tmp_path, TrainConfig(10, batch_size=16))


def test_fit_config_fills_empty_classes_and_style_and_names_what_differs():
    @dataclass(frozen=True)
    class Config:
        size: int = 64
        classes: tuple[str, ...] = ()
        style: str | None = None

    store = SimpleNamespace(config=SimpleNamespace(size=64, style="contour"), classes=["MEL", "NV"])
    assert fit_config(Config(), store) == Config(classes=("MEL", "NV"), style="contour")
    assert fit_config(Config(style="none"), store).style == "none"
    assert fit_config(Config(style="structure"), store, check_style=False).style == "structure"
    message = r"the store has size 64, the config 128; classes \('MEL', 'NV'\), the config \('NV',\)$"
    with pytest.raises(ValueError, match=message):
        fit_config(Config(128, ("NV",)), store)


def test_update_ema_constant_weight_approaches_it_exponentially():
    ema_model, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(ema_model.weight, 0.0)
    nn.init.constant_(model.weight, 1.0)
    for _ in range(3):
        update_ema(ema_model, model, decay=0.9)
    assert ema_model.weight.item() == pytest.approx(1 - 0.9**3)


def learning_rates(set_lr, *settings: tuple) -> list[float]:
    """Learning rates that `set_lr(optimizer, 2.0, *setting)` gives, as fractions of 2."""
    optimizer, rates = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), []
    for setting in settings:
        set_lr(optimizer, 2.0, *setting)
        rates.append(optimizer.param_groups[0]["lr"] / 2)
    return rates


def test_set_gan_lr_warms_up_stays_and_decays_to_a_tenth():
    warm_up = learning_rates(set_gan_lr, (0, 0.0), (49, 0.001), (99, 0.002))
    assert warm_up == pytest.approx([0.01, 0.5, 1])
    assert learning_rates(set_gan_lr, (1, 0.05), (5, 0.025)) == pytest.approx([1, 0.5]), "a short run"
    later = learning_rates(set_gan_lr, *((10_000, progress) for progress in (0.3, 0.5, 0.75, 1.0)))
    assert later == pytest.approx([1, 1, 0.55, 0.1])
    steps = learning_rates(set_gan_lr, *((10_000, 0.5 + k / 200) for k in range(101)))
    assert steps == sorted(steps, reverse=True)


def test_set_warmup_cosine_lr_warms_up_in_a_twentieth_and_decays_to_zero():
    rates = learning_rates(set_warmup_cosine_lr, *((k / 200,) for k in range(201)))
    assert 0 < rates[0] < 0.05 and rates[5] == pytest.approx(0.52) and rates[10] > 0.99
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.5) and rates[200] == pytest.approx(0)


@pytest.mark.parametrize(
    ("cuda", "forced_cpu", "bf16", "expected"),
    [
        (True, False, True, "bf16"),
        (True, False, False, "fp16"),
        (True, True, True, "no"),
        (False, False, True, "bf16"),
        (False, False, False, "no"),
    ],
)
def test_precision_by_hardware_is_what_it_multiplies(monkeypatch, cuda, forced_cpu, bf16, expected):
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(forced_cpu))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    capabilities = {"avx512_bf16": bf16 and not cuda}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision() == expected


def test_best_device_cpu_forced_is_cpu():
    assert best_device() == torch.device("cpu")  # conftest.py sets ACCELERATE_USE_CPU


def test_peak_memory_after_allocation_has_grown():
    def gib() -> float:
        return float(peak_memory().split()[0])

    before = gib()
    assert 0.05 < before < 1000
    allocated = torch.ones(2**27)  # half a GiB
    assert gib() >= max(before, 0.5) and allocated.sum() > 0


def test_train_config_intervals_follow_the_steps_unless_given():
    assert [TrainConfig(steps).checkpoint_interval for steps in (3, 1200, 100_000)] == [1, 100, 500]
    assert [TrainConfig(steps).log_interval for steps in (3, 1200, 100_000)] == [1, 30, 50]
    assert TrainConfig(1200, save_every=7, log_every=9).checkpoint_interval == 7


@pytest.mark.parametrize("name", ["steps", "batch_size", "save_every", "log_every", "minutes"])
def test_train_config_out_of_range_raises(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        TrainConfig(**{"steps": 3} | {name: 0})


def test_precision_is_the_given_one():
    assert [precision(choice) for choice in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]
    assert precision() in ("no", "bf16", "fp16")


def test_tensorboard_gets_the_history_or_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train_config = TrainConfig(4, batch_size=8, log_every=2, tensorboard=True)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        train(LinearTask(), get_linear_batch, tmp_path / "missing", train_config)
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    history = train(LinearTask(), get_linear_batch, tmp_path, train_config)
    (name,) = set(history) - {"step"}
    scalars = [(name, value, 8 * step) for value, step in zip(history[name], history["step"], strict=True)]
    assert written == [tmp_path / "tensorboard", *scalars, "closed"]


@pytest.mark.parametrize("seed", [-1, 2**32, 20240101123456])
def test_train_config_seed_out_of_range_raises(seed):
    with pytest.raises(ValueError, match=f"seed must be 0 to 4294967295, got {seed}"):
        TrainConfig(1, seed=seed)


def test_resume_with_other_images_or_a_damaged_checkpoint_raises(tmp_path):
    def task_of(*ids: str, data: str = "store") -> LinearTask:
        task = LinearTask()
        task.extra_state = {"trained_on": list(ids), "data": data}
        return task

    train(task_of("a", "b"), get_linear_batch, tmp_path, TrainConfig(2, batch_size=8))
    train(task_of("a"), get_linear_batch, tmp_path, TrainConfig(3, batch_size=8))
    for other in (task_of("a", "c"), task_of("a", data="relabeled")):
        with pytest.raises(ValueError, match=r"checkpoint.pt was trained on other data: choose another folder"):
            train(other, get_linear_batch, tmp_path, TrainConfig(4, batch_size=8))
    checkpoint = tmp_path / "checkpoint.pt"
    for content in (checkpoint.read_bytes()[:500], b""):
        checkpoint.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            train(task_of("a"), get_linear_batch, tmp_path, TrainConfig(4, batch_size=8))


# ------------------------------------------------------------------------------------------------- stopped by a signal


class StoppedTask(LinearTask):
    """Sends itself signals in the given step."""

    def __init__(self, step: int, *signals: int):
        super().__init__()
        self.stop_step, self.signals = step, signals

    def training_step(self, batch, step, backward):
        if step == self.stop_step:
            for signum in self.signals:
                signal.raise_signal(signum)
        return super().training_step(batch, step, backward)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_train_stopped_by_a_signal_writes_the_running_step_and_goes_on_to_the_same_weights(tmp_path, signum):
    train_config = TrainConfig(60, batch_size=8, log_every=7, save_every=25)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    task = StoppedTask(32, signum)
    with pytest.raises(
        Stopped, match=r"^stopped after step 33, which \S*checkpoint\.pt has: run .* to go on$"
    ) as caught:
        train(task, get_linear_batch, tmp_path / "stopped", train_config)
    assert caught.value.signum == signum and task.checkpoint_steps == [25], "no validation that others do not have"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_checkpoint(tmp_path / "stopped")["step"] == 33
    for folder in ("stopped", "once"):
        train(LinearTask(), get_linear_batch, tmp_path / folder, train_config)
    assert equal(load_without_seconds(tmp_path / "once"), load_without_seconds(tmp_path / "stopped"))


def test_train_second_signal_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(StoppedTask(2, signal.SIGINT, signal.SIGINT), get_linear_batch, tmp_path, TrainConfig(60, batch_size=8))
    assert not isinstance(caught.value, Stopped) and not (tmp_path / "history.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_train_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a job in the background
    try:
        train(StoppedTask(2, signal.SIGINT), get_linear_batch, tmp_path, TrainConfig(4, batch_size=8))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert load_checkpoint(tmp_path)["step"] == 4
