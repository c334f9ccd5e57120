"""The one training loop: device, precision, averaged weights, checkpoints, exact resume, progress.

A method (`cgan.py`, ...) brings networks, optimisers and one `step`. Everything random in a step follows from the
run's seed and the step's number, so a run that was killed and started again draws the very same numbers.
"""

import copy
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from tqdm.auto import tqdm

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """How long and how often; the same for every method. `batch` counts the pictures of one process."""

    steps: int
    batch: int = 16
    seed: int = 0
    average_over: int = 2_000  # pictures after which a weight counts half in the average (EMA); 0: no average
    save_every: int = 500  # steps
    report_every: int = 50


class Method:
    """What the loop asks of a method. `networks` and `optimisers` by name; `averaged` names the networks whose
    exponential average is kept, which is what draws afterwards. `settings` must match to go on from a checkpoint, where
    one that it does not know yet counts as in `defaults`; `kept`, if there is one, is what the method itself wants to
    find in it again."""

    networks: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    averaged: tuple[str, ...]
    settings: dict
    defaults: ClassVar[dict] = {}
    kept: dict

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """One update of everything; returns what to write into the history."""
        raise NotImplementedError

    def _apply(self, name: str, loss: Tensor, backward: Callable[[Tensor], None]) -> None:
        """Update what the optimiser `name` holds."""
        self.optimisers[name].zero_grad(set_to_none=True)
        backward(loss)
        self.optimisers[name].step()

    def show(self, averages: dict[str, nn.Module], folder: Path, number: int) -> bool | None:
        """Save whatever shows how far the training is; called before every checkpoint. True ends the training."""


def precision() -> str:
    """bf16 where the hardware multiplies it, float16 on older GPUs, else float32, in Accelerate's words."""
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "no"


def warm_then_cosine(optimiser: torch.optim.Optimizer, rate: float, number: int, steps: int) -> None:
    """Set the learning rate of step `number`: up to `rate` during the first twentieth of `steps`, then down to zero
    along a cosine (Loshchilov and Hutter 2017)."""
    warm = max(1, steps // 20)
    share = min((number + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1, number / steps))))
    for group in optimiser.param_groups:
        group["lr"] = rate * share


def best_device() -> torch.device:
    """Where a trained network is used: the accelerator if there is one and ACCELERATE_USE_CPU does not forbid it."""
    if torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.accelerator.current_accelerator()
    return torch.device("cpu")


def peak_memory() -> str:
    """The most memory this process has held so far, in words: of the GPU where there is one, else of everything."""
    if best_device().type == "cuda":
        return f"{torch.cuda.max_memory_reserved() / 2**30:.2f} GiB of GPU memory at most"
    try:
        import resource  # not on Windows
    except ImportError:
        return "peak memory not known here"
    unit = 2**10 if sys.platform != "darwin" else 1  # Linux counts in KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB of memory at most"


def train(method: Method, draw: Callable[[int, int], Batch], out: str | Path, run: Run) -> dict[str, list[float]]:
    """Train until `run.steps`, going on from `out/checkpoint.pt` if it is there; returns the history.

    `draw(step, process)` gives that process's share of the step's batch on the CPU, the same for the same numbers.
    Writes `checkpoint.pt` and `history.json`, on the main process. Raises `ValueError` when the checkpoint is of other
    settings, `MemoryError` naming a smaller batch when the GPU's memory is full, `OSError` when the disk is.
    """
    accelerator = Accelerator(mixed_precision=precision())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for network in method.networks.values():
        network.to(accelerator.device, memory_format=torch.channels_last)
    # Before `prepare`, which wraps what it is given: weights and averages are those of the plain networks.
    state = State(method, dict(method.networks), accelerator, run)
    method.networks = {name: accelerator.prepare(network) for name, network in method.networks.items()}
    for name in method.optimisers:
        method.optimisers[name] = accelerator.prepare(method.optimisers[name])
    state.load(out / "checkpoint.pt")
    together = run.batch * accelerator.num_processes
    bar = tqdm(total=run.steps * together, initial=state.step * together, unit="images", desc=out.name,
               disable=not accelerator.is_main_process)  # fmt: skip
    while state.step < run.steps and not state.ended:
        losses = _step(method, draw, state.step, accelerator, run)
        state.after(losses)
        bar.update(together)
        if state.step % run.report_every == 0:
            bar.set_postfix({name: f"{values[-1]:.2f}" for name, values in state.history.items() if name != "step"})
        if state.step % run.save_every == 0 or state.step == run.steps:
            if accelerator.is_main_process and method.show(state.averages, out, state.step):
                accelerator.set_trigger()
            state.ended = accelerator.check_trigger()  # by all processes at once
            if accelerator.is_main_process:
                state.save(out)
    bar.close()
    accelerator.wait_for_everyone()  # or others would look for a file that is still being written
    return state.history


def _step(method: Method, draw: Callable, step: int, accelerator: Accelerator, run: Run) -> dict[str, Tensor]:
    # One number from all three; a prime apart, so that neighbouring steps and processes share nothing.
    torch.manual_seed(run.seed * 1_000_003 + step * 101 + accelerator.process_index)
    batch = draw(step, accelerator.process_index)
    batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
    try:
        return method.step(batch, step, accelerator.backward)
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"out of GPU memory with batch {run.batch}: try batch {max(1, run.batch // 2)}") from error


class State:
    """All that a step depends on, in one file."""

    def __init__(self, method: Method, networks: dict[str, nn.Module], accelerator: Accelerator, run: Run):
        self.method, self.networks, self.accelerator, self.run = method, networks, accelerator, run
        self.step, self.history, self.sums, self.summed, self.ended = 0, {"step": []}, {}, 0, False
        self.averages = {name: copy.deepcopy(networks[name]).eval().requires_grad_(False) for name in method.averaged}

    def after(self, losses: dict[str, Tensor]) -> None:
        """Average the weights, note the losses: their mean since the last report."""
        self.step += 1
        together, over = self.run.batch * self.accelerator.num_processes, self.run.average_over
        decay = 0.5 ** (together / over) if over else 0.0
        # Early on the average would mostly remember random weights.
        decay = min(decay, self.step / (self.step + 10))
        for name, average in self.averages.items():
            update_average(average, self.networks[name], decay)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.summed += 1
        if self.step % self.run.report_every == 0:
            self.history["step"].append(self.step)
            for name, total in self.sums.items():
                self.history.setdefault(name, []).append(total / self.summed)
            self.sums, self.summed = {}, 0

    def contents(self) -> dict:
        return {
            "step": self.step,
            "settings": self.method.settings,
            "run": asdict(self.run),
            "history": self.history,
            "sums": self.sums,
            "summed": self.summed,
            "ended": self.ended,
            "kept": getattr(self.method, "kept", {}),
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.method.optimisers.items()},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},  # of float16
        }

    def save(self, out: Path) -> None:
        """Checkpoint and history, each written beside its place and renamed: a kill leaves the one before."""
        fresh = out / "checkpoint.pt.part"
        try:
            torch.save(self.contents(), fresh)
        except RuntimeError as error:  # what PyTorch makes of a full disk
            raise OSError(f"{fresh} cannot be written, the checkpoint before it is kept ({error})") from error
        os.replace(fresh, out / "checkpoint.pt")
        fresh = out / "history.json.part"
        fresh.write_text(json.dumps(self.history))
        os.replace(fresh, out / "history.json")

    def load(self, path: Path) -> None:
        if not path.is_file():
            return
        saved = torch.load(path, map_location="cpu", weights_only=True)
        _same_settings(path, self.method.defaults | saved["settings"], self.method.settings)
        # Steps may be raised to train longer; what shapes a step may not change.
        shaping = ("batch", "seed", "average_over")
        _same_settings(path, {k: saved["run"][k] for k in shaping}, {k: asdict(self.run)[k] for k in shaping})
        try:
            for name, weights in saved["networks"].items():
                self.networks[name].load_state_dict(weights)
            for name, weights in saved["averages"].items():
                self.averages[name].load_state_dict(weights)
            for name, content in saved["optimisers"].items():
                self.method.optimisers[name].load_state_dict(content)
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} was written by another version: delete it or choose another folder") from error
        self.step, self.history, self.sums, self.summed = (saved[k] for k in ("step", "history", "sums", "summed"))
        self.ended, self.method.kept = saved.get("ended", False), saved.get("kept", {})


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network; buffers are copied."""
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight.to(mean.dtype), 1 - decay)
    for mean, value in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(value)


def _same_settings(path: Path, saved: dict, given: dict) -> None:
    differing = [f"{k} {saved.get(k)!r} there, {given.get(k)!r} here" for k in given if saved.get(k) != given.get(k)]
    if differing:
        raise ValueError(f"{path} is of another run ({'; '.join(differing)}): choose another folder or delete it")
