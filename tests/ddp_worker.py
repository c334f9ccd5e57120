"""Script that `test_devices.py` starts: two processes train on the CPU and write to FOLDER.

`ddp_worker.py torchrun FOLDER` runs in each of the two processes that `torch.distributed.run` starts;
`ddp_worker.py debug_launcher FOLDER` forks them itself with Accelerate's `debug_launcher`, the `notebook_launcher` for
CPUs.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import torch  # noqa: E402
from accelerate import debug_launcher  # noqa: E402
from factories import LinearTask  # noqa: E402
from torch import Tensor  # noqa: E402

from helpers.models.trainer import GetBatch, TrainConfig, TrainTask, train  # noqa: E402


def get_cgan_batch(step: int, rank: int) -> dict[str, Tensor]:
    """One process's part of a batch for a CGAN: four random images."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    return {
        "images": torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1,
        "sketches": (torch.rand(4, 1, 64, 64, generator=generator) > 0.9).float(),
        "labels": torch.randint(0, 3, (4,), generator=generator),
        "artifacts": torch.rand(4, 7, generator=generator).round(),
    }


def get_points(step: int, rank: int) -> dict[str, Tensor]:
    """One process's part of 16 points: half of them."""
    return {"x": torch.randn(16, 1, generator=torch.Generator().manual_seed(step))[8 * rank : 8 * rank + 8]}


def cgan_gradients(projected: bool, get_batch: GetBatch, out: Path) -> dict[str, Tensor]:
    """Gradients of one CGAN step, by network and parameter; without augmentation, and the weights do not change."""
    from helpers.models.gan import GAN, GANConfig  # takes seconds, and the line does not need it

    torch.manual_seed(0)
    config = GANConfig(64, ("NV", "MEL", "BCC"), base_channels=8, lr=0.0, color_jitter=0.0, translate=0.0,
                        d4_augment=False, projected=projected)  # fmt: skip
    task, gradients = GAN(config), {}
    optimizer_step = task._optimizer_step

    def record_gradients(name: str, loss: Tensor, backward) -> None:
        optimizer_step(name, loss, backward)
        for network in ("generator", "encoder") if name == "generator" else ("discriminator",):
            for path, weight in task.networks[network].named_parameters():
                if weight.requires_grad:
                    gradients[f"{network}.{path.removeprefix('module.')}"] = weight.grad.clone()

    task._optimizer_step = record_gradients
    run(task, get_batch, out, steps=1, batch_size=4)
    return gradients


def run(task: TrainTask, get_batch: GetBatch, out: Path, steps: int, batch_size: int) -> None:
    train(task, get_batch, out, TrainConfig(steps, batch_size, save_every=5, log_every=2, precision="no"))


def train_line(out: Path) -> None:
    """10 steps, then 10 more from the checkpoint. Without noise, which would differ from one process's."""
    for steps in (10, 20):
        run(LinearTask(noise=0.0), get_points, out, steps, batch_size=8)


def train_all(out: Path) -> None:
    """The line, and the gradients of both kinds of CGAN, saved by each process."""
    train_line(out / "line")
    for projected in (False, True):
        gradients = cgan_gradients(projected, get_cgan_batch, out / f"cgan-{projected}")
        torch.save(gradients, out / f"gradients-{projected}-{torch.distributed.get_rank()}.pt")


def main() -> None:
    launcher, out = sys.argv[1], Path(sys.argv[2])
    if launcher == "torchrun":
        train_line(out / "line")
    else:
        import helpers.models.projected  # noqa: F401  # once, before the processes are forked

        debug_launcher(train_all, (out,), num_processes=2)


if __name__ == "__main__":
    main()
