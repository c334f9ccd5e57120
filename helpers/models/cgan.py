"""Sketch + label + noise -> image: a conditional GAN, its two updates, and drawing with it.

Networks are in `networks.py`, losses in `losses.py`: non-saturating logistic with R1 (Mescheder et al. 2018).

Taught by a discriminator alone, first tries still painted flat skin after 32,000 pictures. Three things help: an
encoder reads off each photograph the noise that would have drawn it, so the drawing can be compared with it pixel by
pixel without averaging over all that the sketch leaves open; roughness is compared scale by scale; and both networks
are told where lines lie around each pixel, hence what is inside.

Where no sketch belongs to any photograph (`paired=False`) nothing can be compared pixel by pixel, and no discriminator
could tell which sketch is obeyed: see `UnpairedCGAN`.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import save_image

from helpers.config import shown
from helpers.data.files import DataError
from helpers.data.store import Drawings, Store, balanced_batches, to_tensors
from helpers.models.augment import augment, turn_and_shift
from helpers.models.losses import (
    d_loss,
    darker_part,
    divergence,
    g_loss,
    middle,
    r1_penalty,
    separation,
    texture_difference,
    tones,
)
from helpers.models.networks import COARSEST, Discriminator, Encoder, Generator, inside
from helpers.models.released import read_checkpoint
from helpers.models.training import Batch, Method, Run, best_device, train

# By the size of the pictures, weight of R1. At 256 px 0.02 lets the discriminator run away from the generator, which
# still painted bare outlines after 2,800 pictures; with 1 it painted lesions after 1,200 (ISIC 2017).
PENALTIES = {64: 0.02, 128: 0.02, 256: 1.0}


@dataclass(frozen=True)
class CGANSettings:
    """Everything that shapes the networks or a step. `width` is the channels at half the resolution, doubled at each
    further halving up to eight times that."""

    size: int
    classes: tuple[str, ...]
    style: str = "contour"  # of the sketches, see `sketches.py`
    width: int = 32
    noise: int = 16
    rate: float = 2e-4  # of generator and encoder; the discriminator learns twice as fast (Heusel et al. 2017)
    penalty: float | None = None  # weight of R1 per picture; None takes that of `PENALTIES`
    penalty_every: int = 8  # steps
    adversary: float = 1.0  # weight of what the discriminator says
    rebuild: float = 10.0  # weight of the absolute difference to a photograph whose noise is known
    texture: float = 3.0  # weight of the difference of its texture
    prior: float = 0.1  # weight of what keeps the noises of photographs normally distributed
    matching: float = 2.0  # weight of the difference of mean discriminator features
    colour: float = 0.05  # strength of the augmentation, see `augment`
    shift: float = 0.1
    turned: bool = False  # pictures, with their sketches, come in all eight positions
    hand: float = 0.2  # share of sketches redrawn as by hand
    paired: bool = True  # else the sketches belong to none of the photographs, see `UnpairedCGAN`
    agreement: float = 10.0  # weight of how far an unpaired sketch is from being obeyed
    clear: float = 0.65  # how clearly it has to be: what outlines reach of the best cut in photographs of HAM10000
    projected: bool = False  # the discriminator also looks through a pretrained network: three more kinds of logits

    def __post_init__(self):
        if self.size not in PENALTIES:
            raise ValueError(f"size {self.size} is not one of {', '.join(map(str, PENALTIES))}")
        if self.penalty is None:
            object.__setattr__(self, "penalty", PENALTIES[self.size])

    def channels(self) -> list[int]:
        """Channels at half the resolution, at a quarter, ... down to `COARSEST` pixels."""
        halvings = (self.size // 2 // COARSEST).bit_length() - 1
        return [self.width * min(2**k, 8) for k in range(halvings + 1)]

    def generator(self) -> Generator:
        return Generator(self.channels(), len(self.classes), self.noise)


class CGAN(Method):
    """The two networks and how they are updated in turn."""

    averaged = ("generator",)
    defaults: ClassVar[dict] = {f.name: f.default for f in fields(CGANSettings)}

    def __init__(self, settings: CGANSettings, preview: dict[str, Tensor] | None = None):
        """`preview`: sketches, labels and noises that are drawn with every checkpoint."""
        self.s, self.preview, self.kept = settings, preview, {"start": "random init", "trained_on": []}
        self.settings = asdict(settings) | {"classes": list(settings.classes)}
        self.networks = {
            "generator": settings.generator(),
            "encoder": Encoder(len(settings.classes), settings.noise),
            "discriminator": discriminator(settings.channels(), len(settings.classes), settings.projected),
        }
        painters = [*self.networks["generator"].parameters(), *self.networks["encoder"].parameters()]
        judges = [p for p in self.networks["discriminator"].parameters() if p.requires_grad]
        self.optimisers = {
            "generator": torch.optim.Adam(painters, settings.rate, betas=(0.5, 0.99), fused=True),
            "discriminator": torch.optim.Adam(judges, 2 * settings.rate, betas=(0.5, 0.99), fused=True),
        }

    def begin_with(self, checkpoint: str | Path) -> None:
        """Take the weights of another training: of a checkpoint all that it has, where eyes and heads of a projected
        discriminator may be new; of a released file its generator, whose adversary begins anew. Raises `DataError`
        when it is none of a CGAN, `ValueError` when its classes, sketches or sizes differ."""
        try:
            saved = read_checkpoint(checkpoint)
            there = {name: saved["settings"][name] for name in ("classes", "style")}
            if differing := [f"{k} {v!r}" for k, v in there.items() if v != self.settings[k]]:
                raise ValueError(f"{shown(checkpoint)} has {', '.join(differing)}, unlike the settings")
            for name, weights in saved.get("networks", saved["averages"]).items():
                missing = self.networks[name].load_state_dict(weights, strict=False).missing_keys
                if unknown := [key for key in missing if not key.startswith(("eyes.", "heads."))]:
                    raise KeyError(f"no {unknown[0]} in its {name}")
        except RuntimeError as error:
            raise ValueError(f"{shown(checkpoint)} has networks of other sizes ({error})"[:400]) from error
        except (EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise DataError(f"{shown(checkpoint)} is not a checkpoint of `train cgan` ({error})"[:400]) from error
        self.kept = {"start": shown(checkpoint), "trained_on": saved.get("kept", {}).get("trained_on", [])}

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """Half of the batch is drawn with the noise that the encoder reads off its photograph, so it can be compared
        with it; the other half with any noise, as later (cVAE-GAN; Larsen et al. 2016, Zhu et al. 2017)."""
        batch = turned(batch) if self.s.turned else batch
        known = max(1, len(batch["labels"]) // 2)
        noise = torch.randn(len(batch["labels"]), self.s.noise).to(batch["labels"].device)
        read = self.networks["encoder"](batch["images"][:known], batch["labels"][:known])
        mean, log_variance = read
        noise = torch.cat([mean + (log_variance / 2).exp() * noise[:known], noise[known:]])
        plain(self.networks["generator"]).remember(noise[:known].detach())
        drawn = self.paint(batch, noise)
        told = self.update_d(batch, drawn.detach(), number, backward)
        return told | self.update_g(batch, drawn, read, backward)

    def paint(self, batch: Batch, noise: Tensor) -> Tensor:
        return self.networks["generator"](batch["sketches"], batch["labels"], noise)

    def weights(self) -> dict[str, float]:
        weights = {"g": self.s.adversary, "matched": self.s.matching, "rebuilt": self.s.rebuild}
        return weights | {"texture": self.s.texture, "prior": self.s.prior}

    def compare(self, drawn: Tensor, batch: Batch, known: int) -> dict[str, Tensor]:
        """Of the first `known`, drawn with the noise of a photograph, to that photograph."""
        drawn, real = drawn[:known], batch["images"][:known].detach()
        return {"rebuilt": self.difference(drawn, real), "texture": texture_difference(drawn, real)}

    def difference(self, drawn: Tensor, real: Tensor) -> Tensor:
        return (drawn - real).abs().mean()

    def judge(self, discriminator: nn.Module, images: Tensor, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Logits and features of pictures, seen through augmentation."""
        images, sketches = augment(images, batch["sketches"], self.s.colour, self.s.shift)
        return discriminator(images, sketches, batch["labels"])

    def update_d(
        self, batch: Batch, drawn: Tensor, number: int, backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        real = batch["images"].requires_grad_(number % self.s.penalty_every == 0)
        on_real, features = self.judge(self.networks["discriminator"], real, batch)
        on_drawn, _ = self.judge(self.networks["discriminator"], drawn, batch)
        loss = d_loss(on_real, on_drawn)
        told = {"d": loss, "on_real": on_real[1].mean(), "on_drawn": on_drawn[1].mean()}
        if real.requires_grad:
            # Applied seldom and weighted up in turn: the same pull for less work (Karras et al. 2020).
            slope = r1_penalty(on_real[1] + on_real[0].mean(dim=1), real)
            loss = loss + self.s.penalty * self.s.penalty_every * slope
        self._apply("discriminator", loss, backward)
        # Of the discriminator before its update, unlike those of the drawn pictures: near enough, and a pass saved.
        self.real_features = features.detach().mean(dim=0)
        return told

    def update_g(
        self, batch: Batch, drawn: Tensor, read: tuple[Tensor, Tensor], backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        with frozen(plain(self.networks["discriminator"])) as judge:
            on_drawn, features = self.judge(judge, drawn, batch)
        parts = {
            "g": g_loss(on_drawn),
            "matched": (features.mean(dim=0) - self.real_features).abs().mean(),
            "prior": divergence(*read),
        } | self.compare(drawn, batch, known=len(read[0]))
        weights = self.weights()
        self._apply("generator", sum(weights[name] * part for name, part in parts.items()), backward)
        return parts

    @torch.no_grad()
    def show(self, averages: dict[str, nn.Module], folder: Path, number: int) -> None:
        """`grid-<step>.png`: the preview, drawn by the averaged generator."""
        if self.preview is not None:
            torch.manual_seed(0)  # the grain too is the same in every grid
            generator = averages["generator"]
            device = next(generator.parameters()).device
            images = generator(*(self.preview[k].to(device) for k in ("sketches", "labels", "noises")))
            save_image(
                images,
                folder / f"grid-{number:06d}.png",
                nrow=self.preview["columns"],
                value_range=(-1, 1),
                normalize=True,
            )


class UnpairedCGAN(CGAN):
    """Taught by photographs and sketches that do not belong together; no mask and no other network takes part.

    The discriminator sees pictures without sketches. That a drawing obeys its sketch is asked by Otsu's measure (1979):
    cut along the sketch, the drawing has to fall into two tones `clear` times as clearly as photographs do when cut
    where they fall apart best. A photograph whose noise is known gives both tones, and texture wherever it may be.
    """

    def weights(self) -> dict[str, float]:
        return super().weights() | {"obeys": self.s.agreement}

    def judge(self, discriminator: nn.Module, images: Tensor, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        return super().judge(discriminator, images, batch | {"sketches": torch.zeros_like(batch["sketches"])})

    def compare(self, drawn: Tensor, batch: Batch, known: int) -> dict[str, Tensor]:
        size = drawn.shape[-1] // 32  # of blocks: tones and layout, not texture
        small, real = (middle(F.avg_pool2d(images, size)) for images in (drawn, batch["images"].detach()))
        region, dark = middle(inside(F.max_pool2d(batch["sketches"], size))), darker_part(real)
        wanted = self.s.clear * separation(real, dark).mean()
        return {
            "rebuilt": (tones(small[:known], region[:known]) - tones(real[:known], dark[:known])).abs().mean(),
            "texture": texture_difference(drawn[:known], batch["images"][:known].detach(), cells=1),
            "obeys": F.relu(wanted - separation(small, region)).mean(),
        }


def turned(batch: Batch) -> Batch:
    """Each picture with its sketch in one of the eight positions of the square: what lies in a corner of a photograph,
    a ruler perhaps, is not learnt to belong there."""
    both = turn_and_shift(torch.cat([batch["images"], batch["sketches"]], dim=1), shift=0.0)
    return batch | {"images": both[:, :3], "sketches": both[:, 3:]}


def discriminator(widths: list[int], classes: int, projected: bool) -> Discriminator:
    if not projected:
        return Discriminator(widths, classes)
    from helpers.models.projected import Projected  # seconds to load: not for everybody

    return Projected(widths, classes)


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Inside no gradients of its weights are wanted."""
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield network
    finally:
        for weight in learning:
            weight.requires_grad_(True)


def plain(network: nn.Module) -> nn.Module:
    """Without the wrapper that averages gradients over processes."""
    return getattr(network, "module", network)


def train_cgan(
    store: Store,
    settings: CGANSettings,
    out: str | Path,
    run: Run,
    rows: np.ndarray | None = None,
    sketches: np.ndarray | None = None,
    start: str | Path | None = None,
) -> dict[str, list[float]]:
    """Train on the store's training split, or on these `rows` of any; checkpoint, history and grids go to `out`.
    Returns the history. Not `settings.paired`: `sketches (M, H, W)` in {0, 255} are drawn and pictures need none, or
    any of the store's are. `start`: a checkpoint or released file to begin with.

    Raises `ValueError` when the settings are not those of the store or of the start, `DataError` when there is nothing
    to learn from or the start was taught by pictures of this store that it is not taught by here.
    """
    here = {"size": store.settings.size, "style": store.settings.style, "classes": tuple(store.classes)}
    if sketches is not None:
        if settings.paired or sketches.shape[1:] != (settings.size, settings.size) or not sketches.any():
            raise ValueError(
                f"sketches {sketches.shape} are for training without pairs, at {settings.size} px, not empty"
            )
        here["style"] = settings.style  # theirs, which the store does not know
    if differing := [f"{k} {v!r}, not {getattr(settings, k)!r}" for k, v in here.items() if v != getattr(settings, k)]:
        raise ValueError(f"the store has {', '.join(differing)} as the settings say")
    drawings = Drawings(settings.hand, settings.paired, sketches)
    usable = store.rows("train" if rows is None else None, needs=drawings.needs())
    taught = usable if rows is None else np.intersect1d(rows, usable)
    if not len(taught):
        raise DataError(
            f"{store.name} has no training picture with a sketch and a label: there is nothing to learn from"
        )
    torch.manual_seed(run.seed)
    preview = preview_of(store, settings, run.seed, others=sketches)
    method = (CGAN if settings.paired else UnpairedCGAN)(settings, preview)
    taught_by = set(store.table["image_id"].iloc[taught])
    if start:
        method.begin_with(start)
        if known := set(method.kept["trained_on"]) & (set(store.table["image_id"]) - taught_by):
            raise DataError(f"{shown(start)} was trained on {len(known)} pictures that are held out in {store.name}")
    method.kept["trained_on"] = sorted({*method.kept["trained_on"], *taught_by})
    return train(method, balanced_batches(store, run.batch, run.seed, rows, drawings), out, run)


def load_cgan(path: str | Path) -> tuple[Generator, CGANSettings]:
    """The averaged generator of a checkpoint, ready to draw, and its settings. Raises `DataError` for another file."""
    try:
        saved = read_checkpoint(path)
        settings = CGANSettings(**saved["settings"] | {"classes": tuple(saved["settings"]["classes"])})
        generator = settings.generator()
        generator.load_state_dict(saved["averages"]["generator"])
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is not a checkpoint of this version's `train cgan` ({error})") from error
    return generator.to(best_device()).eval().requires_grad_(False), settings


@torch.no_grad()
def draw(
    generator: Generator,
    sketches: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    seed: int = 0,
    noise: Tensor | None = None,
    batch: int = 32,
) -> np.ndarray:
    """`sketches uint8 (N, H, W)` in {0, 255} under `labels (N,)` -> images `uint8 (N, H, W, 3)`, the same for the same
    seed. Each gets its own noise and grain; with `noise (N, Z)` given, all have the seed's grain, so that pictures
    differ in what was asked for and in nothing else.

    Raises `ValueError` when there are not as many labels (or noises) as sketches, or their size is not the network's.
    """
    if len(sketches) != len(labels) or (noise is not None and len(noise) != len(sketches)):
        noises = "any" if noise is None else len(noise)
        raise ValueError(f"{len(sketches)} sketches, {len(labels)} labels, {noises} noises")
    size, device = generator.size, next(generator.parameters()).device
    if np.shape(sketches)[1:] != (size, size):
        raise ValueError(f"sketches are {np.shape(sketches)[1:]} pixels, the network draws ({size}, {size})")
    batch = batch if noise is None else 1
    images = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        noises = torch.randn(len(sketches), generator.noise) if noise is None else noise
        for start in range(0, len(sketches), batch):
            if noise is not None:
                torch.manual_seed(seed)
            part = slice(start, start + batch)
            given = to_tensors({"sketches": np.array(sketches[part]), "labels": np.array(labels[part])}, device)
            images.append(as_images(generator(given["sketches"], given["labels"], noises[part].to(device))))
    return np.concatenate(images)


def as_images(drawn: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> `uint8 (B, H, W, 3)`"""
    return ((drawn + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def preview_of(
    store: Store, settings: CGANSettings, seed: int, sketches: int = 4, others: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Sketches of the val split, or some of `others`, (rows) under every label (columns), and the same sketch under two
    more noises."""
    needs = Drawings(others=others).needs()
    rows = store.rows("val", needs=needs)
    rows = rows if len(rows) else store.rows("train", needs=needs)
    rows = np.random.default_rng(seed).permutation(rows)[:sketches]
    batch = store.batch(rows, ("sketches", "labels"))
    if others is not None:
        batch["sketches"] = others[np.arange(len(rows)) % len(others)]
    batch = to_tensors(batch)
    classes = len(settings.classes)
    noise = torch.randn(3, settings.noise, generator=torch.Generator().manual_seed(seed))
    labels = [torch.cat([torch.arange(classes), label.repeat(2)]) for label in batch["labels"]]
    which = torch.tensor([0] * classes + [1, 2]).repeat(len(rows))
    columns = classes + 2
    return {
        "sketches": batch["sketches"].repeat_interleave(columns, dim=0),
        "labels": torch.cat(labels),
        "noises": noise[which],
        "columns": columns,
    }
