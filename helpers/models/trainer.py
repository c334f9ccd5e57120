"""The training loop of every method: device, precision, EMA, checkpoints, exact resume, progress.

A method (`gan.py`, `segmenter.py`, ...) defines a `TrainTask`: its networks, optimizers and one `training_step`. All
random numbers of a step follow from the run's seed and the step, so a run of `steps` that was killed and started
again gives the same weights as one that was not (a run of `minutes` does not: its schedules follow the clock).
"""

import copy
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, parse_flag_from_env
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers.config import display_path
from helpers.models.checkpoint import read_state, write_state
from helpers.models.device import keep_freed_memory
from helpers.models.stop import Stopped, StopSignals

Batch = dict[str, Tensor]  # of `batches.to_tensors`; a method reads the keys it needs
GetBatch = Callable[[int, int], Batch]  # (step, rank) -> that process's part of the global batch, on the CPU
Backward = Callable[[Tensor], None]
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class TrainConfig:
    """Length and intervals of a run; the same for every method."""

    steps: int  # optimizer steps
    batch_size: int = 16  # images per process
    seed: int = 0  # of batches, initial weights and all random numbers
    ema_nimg: int = 20_000  # EMA half-life in images, less in the first 300,000 images; 0 disables the EMA
    save_every: int | None = None  # steps between checkpoints; None: 12 per run, at least every 500 steps
    log_every: int | None = None  # steps between entries of the history; None: 40 per run, at least every 50 steps
    minutes: float | None = None  # time budget that replaces `steps`
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # "no": float32; "auto": what the hardware multiplies
    tensorboard: bool = False  # write the history to OUT/tensorboard as well; needs the package tensorboard

    def __post_init__(self):
        for name in ("steps", "batch_size", "save_every", "log_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        check_seed(self.seed)
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes must be a finite number above 0, got {self.minutes}")

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints."""
        return self.save_every or min(500, max(1, self.steps // 12))

    @property
    def log_interval(self) -> int:
        """Steps between entries of the history."""
        return self.log_every or min(50, max(1, self.steps // 40))


def check_seed(seed: int) -> None:
    """Raise `ValueError` for a seed that a random generator does not take."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be 0 to {MAX_SEED}, got {seed}")


class TrainTask:
    """What a method gives the training loop.

    `networks` and `optimizers` are named; `ema_names` lists the networks that get an exponential moving average.
    `config` must equal the checkpoint's to resume. `extra_state` is saved and restored unchanged. A subclass defines
    `training_step(batch, step, backward)`, which updates every network once and returns scalars for the history.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    ema_names: tuple[str, ...]
    config: Any  # the method's frozen dataclass
    extra_state: dict
    steps: int | None = None  # length of the learning rate schedule, if it has a fixed one
    progress: float = 0.0  # fraction of the run that is done, in [0, 1]; set before every step

    def config_dict(self) -> dict:
        """The config as plain values, for checkpoints; with `steps` where the learning rate depends on them."""
        fields = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.config).items()}
        return fields | ({} if self.steps is None else {"steps": self.steps})

    def _optimizer_step(self, name: str, loss: Tensor, backward: Backward) -> None:
        """Backpropagate `loss` and step the optimizer `name`."""
        self.optimizers[name].zero_grad(set_to_none=True)
        backward(loss)
        self.optimizers[name].step()

    def on_checkpoint(self, ema_models: dict[str, nn.Module], folder: Path, step: int) -> None:
        """Called before every checkpoint, on the main process: save samples to `folder`."""

    def validate(self, ema_models: dict[str, nn.Module], step: int) -> bool:
        """Called before every checkpoint, on the main process: True stops the training early."""
        return False


def precision(choice: str = "auto") -> str:
    """Mixed precision in Accelerate's terms: the `choice`, or for "auto" "bf16" where the hardware multiplies it,
    "fp16" on older GPUs, else "no" (float32)."""
    if choice != "auto":
        return choice
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "no"


def set_warmup_cosine_lr(optimizer: torch.optim.Optimizer, lr: float, progress: float) -> None:
    """Set the learning rate: linear warm-up to `lr` in the first 5 % of the run (`progress` in [0, 1]), then cosine
    decay to 0 (Loshchilov and Hutter, arXiv 1608.03983)."""
    factor = min(20 * progress + 0.02, 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = lr * factor


def set_gan_lr(optimizer: torch.optim.Optimizer, lr: float, step: int, progress: float) -> None:
    """Set the learning rate of `step`: linear warm-up over 100 steps, at most 5 % of the run, then `lr`,
    then cosine decay to `lr` / 10 in the second half. `progress` in [0, 1]."""
    decay = 0.55 + 0.45 * math.cos(math.pi * max(0.0, 2 * progress - 1))
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1.0, max((step + 1) / 100, 20 * progress)) * decay


def train(task: TrainTask, get_batch: GetBatch, out: str | Path, train_config: TrainConfig) -> dict[str, list[float]]:
    """Train for `train_config.steps`, or for `train_config.minutes` if given, resuming from `out/checkpoint.pt` if it
    exists; returns the history.

    `get_batch(step, rank)` must return the same batch for the same numbers. The main process writes `checkpoint.pt`
    and `history.json`. Raises `ValueError` if the checkpoint is damaged or has another config, `MemoryError` with a
    smaller batch size to try if GPU memory is full, `OSError` if the disk is, and `Stopped` after SIGINT or SIGTERM,
    with the checkpoint of the last step written (with several processes these signals have their usual effect).
    """
    keep_freed_memory()
    accelerator = Accelerator(mixed_precision=precision(train_config.precision))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for network in task.networks.values():
        network.to(accelerator.device, memory_format=torch.channels_last)
    # Before `prepare`, which wraps networks for several processes: weights and EMA are those of the bare networks.
    state = TrainState(task, dict(task.networks), accelerator, train_config)
    task.networks = {name: accelerator.prepare(network) for name, network in task.networks.items()}
    for name in task.optimizers:
        task.optimizers[name] = accelerator.prepare(task.optimizers[name])
    state.resume(out / "checkpoint.pt")
    global_batch_size = train_config.batch_size * accelerator.num_processes
    total = None if train_config.minutes else train_config.steps * global_batch_size
    bar = tqdm(total=total, initial=state.step * global_batch_size, unit="images",
               desc=out.name, disable=not accelerator.is_main_process)  # fmt: skip
    writer = summary_writer(out) if train_config.tensorboard and accelerator.is_main_process else None
    task.progress = state.progress()
    closing_writer = closing(writer) if writer else nullcontext()
    with closing_writer, bar, StopSignals(accelerator.num_processes == 1) as signals:
        while task.progress < 1 and not state.stopped:
            state.update(_run_step(task, get_batch, state.step, accelerator, train_config))
            task.progress = state.progress()
            bar.update(global_batch_size)
            if state.step % train_config.log_interval == 0:
                _log_losses(state.history, bar, writer, nimg=state.step * global_batch_size)
            if state.step % train_config.checkpoint_interval == 0 or task.progress == 1:
                _checkpoint(task, state, out, accelerator)
            elif signals.received:  # without a validation, which a run that was not stopped would not have here
                write_state(state.state_dict(), out)
            if signals.received:
                raise Stopped(f"stopped after step {state.step}, which {display_path(out / 'checkpoint.pt')} has: run "
                              "the same command again to go on", signals.received)  # fmt: skip
    accelerator.wait_for_everyone()  # else another process could read a file that is still being written
    return state.history


def _log_losses(history: dict[str, list[float]], bar: tqdm, writer: Any | None, nimg: int) -> None:
    """Show the last losses of the history on the progress bar, and write them to TensorBoard if there is a writer."""
    losses = {name: values[-1] for name, values in history.items() if name != "step"}
    bar.set_postfix({name: f"{value:.2f}" for name, value in losses.items()})
    for name, value in losses.items() if writer else ():
        writer.add_scalar(name, value, nimg)


def _checkpoint(task: TrainTask, state: "TrainState", out: Path, accelerator: Accelerator) -> None:
    """Validate and write the checkpoint, on the main process; all processes stop if the validation says so."""
    if accelerator.is_main_process:
        started = time.monotonic()
        task.on_checkpoint(state.ema_models, out, state.step)
        if task.validate(state.ema_models, state.step):
            accelerator.set_trigger()
        state.validation_seconds += time.monotonic() - started
    state.stopped = accelerator.check_trigger()  # the same on all processes
    if accelerator.is_main_process:
        write_state(state.state_dict(), out)


def summary_writer(out: Path):
    """TensorBoard's writer for `out/tensorboard`. Raises `ValueError` if the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard is not installed: `pip install tensorboard`") from error
    return SummaryWriter(out / "tensorboard")


def _run_step(
    task: TrainTask, get_batch: GetBatch, step: int, accelerator: Accelerator, train_config: TrainConfig
) -> dict[str, Tensor]:
    # One seed from run, step and rank; prime factors keep neighboring steps and ranks apart.
    torch.manual_seed(train_config.seed * 1_000_003 + step * 101 + accelerator.process_index)
    batch = get_batch(step, accelerator.process_index)
    batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
    try:
        return task.training_step(batch, step, accelerator.backward)
    except torch.OutOfMemoryError as error:
        size = train_config.batch_size
        raise MemoryError(f"out of GPU memory with batch size {size}: try batch size {max(1, size // 2)}") from error


class TrainState:
    """Everything that a step depends on, saved as one file."""

    def __init__(
        self, task: TrainTask, networks: dict[str, nn.Module], accelerator: Accelerator, train_config: TrainConfig
    ):
        self.task, self.networks, self.accelerator, self.train_config = task, networks, accelerator, train_config
        self.step, self.history, self.loss_sums, self.loss_count, self.stopped = 0, {"step": []}, {}, 0, False
        self.started, self.seconds_before = time.monotonic(), 0.0  # start of this process's part, seconds before it
        self.validation_seconds = 0.0  # part of `seconds`: samples and scores at checkpoints
        self.ema_models = {name: copy.deepcopy(networks[name]).eval().requires_grad_(False) for name in task.ema_names}

    def seconds(self) -> float:
        """Seconds of training so far, including those before a resume."""
        return self.seconds_before + time.monotonic() - self.started

    def progress(self) -> float:
        """Fraction of the steps, or of the time budget, that is used, in [0, 1]; the same on all processes."""
        if self.train_config.minutes is None:
            return min(1.0, self.step / self.train_config.steps)
        used = self.seconds() / (60 * self.train_config.minutes)
        if self.accelerator.num_processes > 1:
            used = float(broadcast(torch.tensor(used, device=self.accelerator.device)))
        return min(1.0, used)

    def update(self, losses: dict[str, Tensor]) -> None:
        """Update the EMA and accumulate `losses`; log their mean every `log_every` steps."""
        self.step += 1
        global_batch_size = self.train_config.batch_size * self.accelerator.num_processes
        half_life = self.train_config.ema_nimg
        decay = 0.5 ** (global_batch_size / half_life) if half_life else 0.0
        # EMA ramp-up: the first steps would otherwise dominate.
        decay = min(decay, self.step / (self.step + 10))
        for name, ema_model in self.ema_models.items():
            update_ema(ema_model, self.networks[name], decay)
        for name, value in losses.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value.detach().float()  # stays on the device
        self.loss_count += 1
        if self.step % self.train_config.log_interval == 0:
            self.history["step"].append(self.step)
            for name, total in self.loss_sums.items():
                self.history.setdefault(name, []).append(float(total) / self.loss_count)
            self.loss_sums, self.loss_count = {}, 0

    def state_dict(self) -> dict:
        """The checkpoint: tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "step": self.step,
            "config": self.task.config_dict(),
            "train_config": asdict(self.train_config),
            "history": self.history,
            "loss_sums": {name: float(total) for name, total in self.loss_sums.items()},
            "loss_count": self.loss_count,
            "stopped": self.stopped,
            "seconds": self.seconds(),
            "validation_seconds": self.validation_seconds,
            "extra_state": getattr(self.task, "extra_state", {}),
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "ema_models": {name: model.state_dict() for name, model in self.ema_models.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.task.optimizers.items()},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},  # float16 only
        }

    def resume(self, path: Path) -> None:
        """Load a checkpoint if it exists. Raises `ValueError` if its config differs or its networks do not fit."""
        if not path.exists():
            return
        saved = read_state(path, self.task.config_dict(), asdict(self.train_config))
        try:
            parts = {"networks": self.networks, "ema_models": self.ema_models, "optimizers": self.task.optimizers}
            for part, modules in parts.items():
                for name in modules.keys() | saved[part].keys():
                    modules[name].load_state_dict(saved[part][name])
            saved_state = {"licenses": []} | saved["extra_state"]  # checkpoints of an earlier version lack it
            for name, value in getattr(self.task, "extra_state", {}).items():
                if not isinstance(saved_state[name], type(value)):  # an OrderedDict is a dict
                    raise TypeError(f"{name} is of another type")
            if self.accelerator.scaler and saved["scaler"]:  # empty after another precision
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            self.validation_seconds = float(saved.get("validation_seconds", 0.0))  # unfinished trainings may lack it
        except Exception as error:  # foreign states of optimizers cause errors of any kind
            raise ValueError(f"{path} was written by another version: delete it or choose another folder") from error
        extra_state = getattr(self.task, "extra_state", {})
        others = set(extra_state.get("trained_on", [])) - set(saved["extra_state"].get("trained_on", []))
        if others or saved["extra_state"].get("data") != extra_state.get("data"):
            raise ValueError(f"{path} was trained on other data: choose another folder or delete it")
        self.step, self.history = saved["step"], saved["history"]
        self.loss_sums, self.loss_count = saved["loss_sums"], saved["loss_count"]
        self.stopped, self.task.extra_state = saved["stopped"], extra_state | saved["extra_state"]
        self.seconds_before = saved["seconds"]


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * model for parameters; buffers are copied."""
    torch._foreach_lerp_(list(ema_model.parameters()), list(model.parameters()), 1 - decay)
    if buffers := list(ema_model.buffers()):
        torch._foreach_copy_(buffers, list(model.buffers()))
