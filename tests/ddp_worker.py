"""What `test_devices.py` starts twice at a time: `ddp_worker.py gradients|line|notebook FOLDER HOW`, where
HOW is plain or projected, or a number of steps."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import torch  # noqa: E402
from accelerate import debug_launcher  # noqa: E402
from test_trainer import Line  # noqa: E402
from torch import Tensor  # noqa: E402

from helpers.models import trainer  # noqa: E402
from helpers.models.cgan import CGAN, CGANConfig  # noqa: E402
from helpers.models.trainer import TrainConfig, TrainTask, train  # noqa: E402

CLASSES = ("NV", "MEL", "BCC")


def half(step: int, process: int) -> dict[str, Tensor]:
    """The share of one process of a batch for a CGAN: four pictures."""
    dice = torch.Generator().manual_seed(10 * step + process)
    return {
        "images": torch.rand(4, 3, 64, 64, generator=dice) * 2 - 1,
        "sketches": (torch.rand(4, 1, 64, 64, generator=dice) > 0.9).float(),
        "labels": torch.randint(0, 3, (4,), generator=dice),
    }


def points(step: int, process: int) -> dict[str, Tensor]:
    """The share of one process of sixteen points."""
    x = torch.randn(16, 1, generator=torch.Generator().manual_seed(step))[8 * process : 8 * process + 8]
    return {"x": x}


class Straight(Line):
    """Without the noise that each process draws for itself."""

    def step(self, batch, number, backward):
        loss = (self.networks["line"](batch["x"]) - (3 * batch["x"] + 1)).square().mean()
        self.optimizers["line"].zero_grad()
        backward(loss)
        self.optimizers["line"].step()
        return {"loss": loss}


class Noted(CGAN):
    """Without augmentation, and nothing moves: what is noted are the gradients of a step."""

    def __init__(self, projected: bool = False):
        torch.manual_seed(0)
        settings = CGANConfig(
            64, CLASSES, base_channels=8, lr=0.0, color_jitter=0.0, translate=0.0, projected=projected
        )
        super().__init__(settings)
        self.gradients = {}

    def _apply(self, name: str, loss: Tensor, backward) -> None:
        super()._optimizer_step(name, loss, backward)
        networks = {"generator": ("generator", "encoder"), "discriminator": ("discriminator",)}[name]
        for network in networks:
            learning = [(path, w) for path, w in self.networks[network].named_parameters() if w.requires_grad]
            for path, weight in learning:
                self.gradients[f"{network}.{path.removeprefix('module.')}"] = weight.grad.clone()


def run(method: TrainTask, draw, out: Path, steps: int, batch: int) -> TrainTask:
    train(method, draw, out, TrainConfig(steps, batch, save_every=5, log_every=2))
    return method


def main() -> None:
    trainer.precision = lambda: "no"
    what, out = sys.argv[1], Path(sys.argv[2])
    if what == "gradients":
        gradients = run(Noted(sys.argv[3] == "projected"), half, out, steps=1, batch=4).gradients
        torch.save(gradients, out / f"gradients-{torch.distributed.get_rank()}.pt")
    elif what == "notebook":
        debug_launcher(straight, (out, int(sys.argv[3])), num_processes=2)  # `notebook_launcher` for processors
    else:
        straight(out, int(sys.argv[3]))


def straight(out: Path, steps: int) -> None:
    run(Straight(), points, out, steps, batch=8)


if __name__ == "__main__":
    main()
