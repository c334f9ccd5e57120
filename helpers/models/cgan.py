"""Sketch + label + noise -> image: networks, losses, and the two updates of a conditional GAN.

The generator reads the sketch into ever coarser features (a U-Net, Ronneberger et al. 2015, so lines stay where they
are), then paints back up. Label and a noise vector say *what* is painted, by scaling and shifting features (FiLM,
Perez et al. 2018); a noise picture at every resolution gives skin its grain (StyleGAN, Karras et al. 2019). The
discriminator sees a picture with its sketch and answers twice: patch by patch, and for the whole with its label by
projection (Miyato and Koyama 2018). Loss: non-saturating logistic with an R1 penalty (Mescheder et al. 2018).

Taught by a discriminator alone, first tries still painted flat skin after 32,000 pictures. Three things help: an
encoder reads off each photograph the noise that would have drawn it, so the drawing can be compared with it pixel by
pixel without averaging over all that the sketch leaves open; roughness is compared scale by scale; and both networks
are told where lines lie around each pixel, hence what is inside.

Networks work on blocks of 2 x 2 pixels as channels (pixel shuffle, Shi et al. 2016): at full resolution a step would
spend most of its time moving memory.
"""

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import save_image

from helpers.data.files import DataError
from helpers.data.sketches import hand
from helpers.data.store import Store, to_tensors
from helpers.models.augment import augment
from helpers.models.training import Batch, Method, Run, train

SIZES = (64, 128, 256)
COARSEST = 8  # pixels of a side where the generator turns round


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
    penalty: float = 0.02  # weight of R1 per picture; applied every `penalty_every` steps
    penalty_every: int = 8
    rebuild: float = 10.0  # weight of the absolute difference to a photograph whose noise is known
    texture: float = 3.0  # weight of the difference of its texture
    prior: float = 0.1  # weight of what keeps the noises of photographs normally distributed
    matching: float = 2.0  # weight of the difference of mean discriminator features
    colour: float = 0.05  # strength of the augmentation, see `augment`
    shift: float = 0.1
    hand: float = 0.2  # share of sketches redrawn as by hand

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"size {self.size} is not one of {', '.join(map(str, SIZES))}")

    def channels(self) -> list[int]:
        """Channels at half the resolution, at a quarter, ... down to `COARSEST` pixels."""
        halvings = (self.size // 2 // COARSEST).bit_length() - 1
        return [self.width * min(2**k, 8) for k in range(halvings + 1)]


# --------------------------------------------------------------------------------------------------------- generator


def lines_around(sketch: Tensor) -> Tensor:
    """Is there a line to the left, right, above, below? (B, 1, H, W) in [0, 1] -> (B, 4, H, W) in [0, 1].

    Four times yes is the inside of an outline. Gaps up to a twelfth of the side are closed first; a wider one spoils
    the rows or columns straight behind it. A convolution would need the whole depth of the network to find this out.
    """
    reach = sketch.shape[-1] // 24
    thick = F.max_pool2d(sketch, 2 * reach + 1, stride=1, padding=reach)
    sketch = -F.max_pool2d(-thick, 2 * reach + 1, stride=1, padding=reach)

    def met(axis: int, backwards: bool) -> Tensor:
        on_the_way = sketch.flip(axis).cumsum(axis).flip(axis) if backwards else sketch.cumsum(axis)
        return on_the_way.clamp(max=1)

    return torch.cat([met(axis, backwards) for axis in (2, 3) for backwards in (False, True)], dim=1)


def conv(inside: int, outside: int, width: int, stride: int = 1) -> nn.Conv2d:
    """Edges are repeated: zeros beyond the frame would tell where it is, and normalisation would make much of that."""
    return nn.Conv2d(inside, outside, width, stride, padding=1, padding_mode="replicate")


class Paint(nn.Module):
    """Twice: 3x3 convolution, normalisation, noise picture, then scale and shift by the style.

    x: (B, C, H, W), style: (B, S) -> (B, C, H, W)
    """

    def __init__(self, channels: int, style: int):
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels, 3) for _ in range(2))
        self.grains = nn.ParameterList(torch.full((channels, 1, 1), 0.1) for _ in range(2))
        self.films = nn.ModuleList(nn.Linear(style, 2 * channels) for _ in range(2))
        self.norm = nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels, affine=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        for convolve, grain, film in zip(self.convs, self.grains, self.films, strict=True):
            x = self.norm(convolve(x))
            x = x + grain * torch.randn(len(x), 1, *x.shape[2:], device=x.device, dtype=x.dtype)
            scale, shift = film(style)[:, :, None, None].chunk(2, dim=1)
            x = F.leaky_relu(x * (1 + scale) + shift, 0.2)
        return x


class Generator(nn.Module):
    """sketch (B, 1, H, W) in [0, 1], label (B,), noise (B, Z) -> image (B, 3, H, W) in [-1, 1]."""

    def __init__(self, settings: CGANSettings):
        super().__init__()
        widths, style, self.settings = settings.channels(), 128, settings
        self.label = nn.Embedding(len(settings.classes), 64)
        self.style = nn.Sequential(
            nn.Linear(64 + settings.noise, style), nn.LeakyReLU(0.2), nn.Linear(style, style), nn.LeakyReLU(0.2)
        )
        self.first = conv(8, widths[0], 3)
        self.down = nn.ModuleList(conv(a, b, 4, stride=2) for a, b in pairwise(widths))
        self.turn = Paint(widths[-1], style)
        # Coarse to fine: fewer channels before the enlargement, so that the wide convolutions stay at few pixels.
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.up = nn.ModuleList(Paint(a, style) for a in widths[-2::-1])
        self.paint = conv(widths[0], 12, 3)
        with torch.no_grad():  # all four pixels of a block begin alike, else a screen pattern has to be unlearnt
            self.paint.weight.copy_(self.paint.weight[::4].repeat_interleave(4, dim=0))
            self.paint.bias.zero_()

    def forward(self, sketch: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        style = self.style(torch.cat([self.label(label), noise], dim=1))
        lines = torch.cat([F.pixel_unshuffle(sketch, 2), lines_around(F.max_pool2d(sketch, 2))], dim=1)
        x = self.first(lines)
        seen = []
        for down in self.down:
            seen.append(x)
            x = down(F.leaky_relu(x, 0.2))
        x = self.turn(x, style)
        for narrow, up, lines in zip(self.narrow, self.up, reversed(seen), strict=True):
            x = up(F.interpolate(narrow(x), scale_factor=2, mode="nearest") + lines, style)
        image = F.pixel_shuffle(self.paint(x), 2)
        # No tanh: where it saturates nothing is learnt any more, and white corners stay white.
        return image if self.training else image.clamp(-1, 1)


# ----------------------------------------------------------------------------------------------------------- encoder


class Encoder(nn.Module):
    """Which noise would have drawn this photograph: image (B, 3, H, W), label (B,) -> mean and log-variance (B, Z).

    Reads 32 pixels a side: tone, light and the layout of colours, not the texture. It is told the label, for a noise
    that gave it away would not be the noise that is drawn later.
    """

    def __init__(self, settings: CGANSettings):
        super().__init__()
        widths = (3, 32, 64, 128)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1] * 16, 2 * settings.noise)
        self.label = nn.Embedding(len(settings.classes), 2 * settings.noise)
        nn.init.zeros_(self.label.weight)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        x = F.adaptive_avg_pool2d(image, 32)
        for down in self.down:
            x = F.leaky_relu(down(x), 0.2)
        return (self.out(x.flatten(1)) + self.label(label)).chunk(2, dim=1)


# ----------------------------------------------------------------------------------------------------- discriminator


def keep_scale(module: nn.Module) -> None:
    """He et al. 2015: without normalisation PyTorch's own start shrinks signals at every layer, down to nothing."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def detail(image: Tensor, gain: float = 10.0) -> Tensor:
    """What a 5 x 5 average takes away, made strong. In skin it is a hundredth of the range, so a fresh discriminator
    does not tell a photograph from its blurred self, and nothing would teach the generator texture."""
    smooth = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), (5, 1), stride=1)
    return gain * (image - F.avg_pool2d(smooth, (1, 5), stride=1))  # one axis, then the other: 10 reads, not 25


class Discriminator(nn.Module):
    """image (B, 3, H, W), sketch (B, 1, H, W), label (B,)
    -> patch logits (B, P), logits of the whole (B,), features (B, C)."""

    def __init__(self, settings: CGANSettings):
        super().__init__()
        widths = settings.channels()
        self.first = nn.Conv2d(32, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.patch = nn.Conv2d(widths[-2], 1, 3, padding=1)
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.whole = nn.Linear(widths[-1], 1)
        self.label = nn.Embedding(len(settings.classes), widths[-1])
        self.apply(keep_scale)

    def forward(self, image: Tensor, sketch: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = F.pixel_unshuffle(torch.cat([image, detail(image), sketch], dim=1), 2)
        x = self.first(torch.cat([seen, lines_around(F.max_pool2d(sketch, 2))], dim=1))
        for down in self.down[:-1]:
            x = down(F.leaky_relu(x, 0.2))
        patches = self.patch(F.leaky_relu(x, 0.2)).flatten(1)
        x = self.down[-1](F.leaky_relu(x, 0.2))
        # How much the pictures of a batch differ: a generator that always paints the same is found out by it.
        spread = (x - x.mean(dim=0)).square().mean(dim=0).add(1e-8).sqrt().mean().expand(len(x), 1, *x.shape[2:])
        features = F.leaky_relu(self.last(torch.cat([x, spread], dim=1)), 0.2).mean(dim=(2, 3))
        whole = self.whole(features).squeeze(1) + (self.label(label) * features).sum(dim=1) / features.shape[1] ** 0.5
        return patches, whole, features


# ------------------------------------------------------------------------------------------------------------ losses


def d_loss(real: tuple[Tensor, Tensor], drawn: tuple[Tensor, Tensor]) -> Tensor:
    """Logistic: real logits up, drawn logits down; patches and whole count alike."""
    return sum(F.softplus(-r).mean() + F.softplus(d).mean() for r, d in zip(real, drawn, strict=True))


def g_loss(drawn: tuple[Tensor, Tensor]) -> Tensor:
    """Non-saturating: drawn logits up."""
    return sum(F.softplus(-d).mean() for d in drawn)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the squared gradient of the logits of real pictures: a flat discriminator near the data is a stable one."""
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * slope.square().sum(dim=(1, 2, 3)).mean()


def texture_difference(drawn: Tensor, real: Tensor, scales: int = 4) -> Tensor:
    """How differently strong detail is: where the real skin is rough the drawn one shall be as rough, whatever its
    pores. After the band energies of Heeger and Bergen, *Pyramid-Based Texture Analysis/Synthesis*, 1995.
    """
    difference = drawn.new_zeros(())
    for _ in range(scales):
        difference = difference + (roughness(drawn) - roughness(real)).abs().mean()
        drawn, real = F.avg_pool2d(drawn, 2), F.avg_pool2d(real, 2)
    return difference


def roughness(image: Tensor, cells: int = 4) -> Tensor:
    """Logarithm of the size of differences between neighbours, in a raster of `cells` x `cells`: along rows, columns
    and both diagonals (else stripes would do), of light and of two differences of colour (else coloured noise would).

    (B, 3, H, W) -> (B, 12, cells, cells)
    """
    red, green, blue = image.unbind(1)
    x = torch.stack([image.mean(dim=1), red - green, blue - green], dim=1)
    rising, falling = x[..., 1:, :-1] - x[..., :-1, 1:], x[..., 1:, 1:] - x[..., :-1, :-1]
    side = (x.shape[-1] - 1) // cells  # of a cell; cropped, since not every device pools unequal cells
    steps = [d[..., : side * cells, : side * cells].square() for d in (x.diff(dim=2), x.diff(dim=3), rising, falling)]
    return F.avg_pool2d(torch.cat(steps, dim=1), side).add(1e-6).log() / 2


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the standard normal, summed over the noise, mean over the batch."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()


# ---------------------------------------------------------------------------------------------------------- training


class CGAN(Method):
    """The two networks and how they are updated in turn."""

    averaged = ("generator",)

    def __init__(self, settings: CGANSettings, preview: dict[str, Tensor] | None = None):
        """`preview`: sketches, labels and noises that are drawn with every checkpoint."""
        self.s, self.preview = settings, preview
        self.settings = asdict(settings) | {"classes": list(settings.classes)}
        self.networks = {
            "generator": Generator(settings),
            "encoder": Encoder(settings),
            "discriminator": Discriminator(settings),
        }
        painters = [*self.networks["generator"].parameters(), *self.networks["encoder"].parameters()]
        self.optimisers = {
            "generator": torch.optim.Adam(painters, settings.rate, betas=(0.5, 0.99), fused=True),
            "discriminator": torch.optim.Adam(
                self.networks["discriminator"].parameters(), 2 * settings.rate, betas=(0.5, 0.99), fused=True
            ),
        }

    def step(self, batch: Batch, number: int, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """Half of the batch is drawn with the noise that the encoder reads off its photograph, so it can be compared
        with it; the other half with any noise, as later (cVAE-GAN; Larsen et al. 2016, Zhu et al. 2017)."""
        known = max(1, len(batch["labels"]) // 2)
        noise = torch.randn(len(batch["labels"]), self.s.noise).to(batch["labels"].device)
        read = self.networks["encoder"](batch["images"][:known], batch["labels"][:known])
        mean, log_variance = read
        noise = torch.cat([mean + (log_variance / 2).exp() * noise[:known], noise[known:]])
        drawn = self.networks["generator"](batch["sketches"], batch["labels"], noise)
        told = self.update_d(batch, drawn.detach(), number, backward)
        return told | self.update_g(batch, drawn, read, backward)

    def judge(self, discriminator: nn.Module, images: Tensor, batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Logits and features of pictures, seen through augmentation."""
        images, sketches = augment(images, batch["sketches"], self.s.colour, self.s.shift)
        patches, whole, features = discriminator(images, sketches, batch["labels"])
        return (patches, whole), features

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
        # Frozen, and without the wrapper that would average its gradients over processes: none are wanted here.
        judge = getattr(self.networks["discriminator"], "module", self.networks["discriminator"])
        judge.requires_grad_(False)
        on_drawn, features = self.judge(judge, drawn, batch)
        judge.requires_grad_(True)
        known = len(read[0])
        real = batch["images"][:known].detach()
        parts = {
            "g": g_loss(on_drawn),
            "matched": (features.mean(dim=0) - self.real_features).abs().mean(),
            "rebuilt": (drawn[:known] - real).abs().mean(),
            "texture": texture_difference(drawn[:known], real),
            "prior": divergence(*read),
        }
        weights = {"g": 1.0, "matched": self.s.matching, "rebuilt": self.s.rebuild}
        weights |= {"texture": self.s.texture, "prior": self.s.prior}
        self._apply("generator", sum(weights[name] * part for name, part in parts.items()), backward)
        return parts

    def _apply(self, name: str, loss: Tensor, backward: Callable[[Tensor], None]) -> None:
        self.optimisers[name].zero_grad(set_to_none=True)
        backward(loss)
        self.optimisers[name].step()

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


def balanced_batches(
    store: Store, batch: int, seed: int, split: str = "train", by_hand: float = 0.0
) -> Callable[[int, int], Batch]:
    """`draw(step, process)` for the loop: every class equally likely, within it every picture; random by the step.
    A share `by_hand` of the sketches is redrawn as by hand."""
    rows = store.rows(split, needs=["sketch", "label"])
    by_class = [rows[store.labels[rows] == label] for label in range(len(store.classes))]
    by_class = [members for members in by_class if len(members)]

    def draw(step: int, process: int) -> Batch:
        rng = np.random.default_rng([seed, step, process])
        chosen = [by_class[k][rng.integers(len(by_class[k]))] for k in rng.integers(len(by_class), size=batch)]
        arrays = store.batch(np.array(chosen), ("images", "sketches", "labels"))
        for k in np.flatnonzero(rng.random(batch) < by_hand):
            arrays["sketches"][k] = hand(arrays["sketches"][k], rng)
        return to_tensors(arrays)

    return draw


def train_cgan(store: Store, settings: CGANSettings, out: str | Path, run: Run) -> dict[str, list[float]]:
    """Train on the store's training split; checkpoint, history and grids go to `out`. Returns the history."""
    here = {"size": store.settings.size, "style": store.settings.style, "classes": tuple(store.classes)}
    if differing := [f"{k} {v!r}, not {getattr(settings, k)!r}" for k, v in here.items() if v != getattr(settings, k)]:
        raise ValueError(f"the store has {', '.join(differing)} as the settings say")
    if not len(store.rows("train", needs=["sketch", "label"])):
        raise DataError(
            f"{store.name} has no training picture with a sketch and a label: there is nothing to learn from"
        )
    torch.manual_seed(run.seed)
    method = CGAN(settings, preview_of(store, settings, run.seed))
    return train(method, balanced_batches(store, run.batch, run.seed, by_hand=settings.hand), out, run)


def load_cgan(path: str | Path) -> tuple[Generator, CGANSettings]:
    """The averaged generator of a checkpoint, ready to draw, and its settings. Raises `DataError` for another file."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings = CGANSettings(**saved["settings"] | {"classes": tuple(saved["settings"]["classes"])})
        generator = Generator(settings)
        generator.load_state_dict(saved["averages"]["generator"])
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is not a checkpoint of this version's `train cgan` ({error})") from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return generator.to(device).eval().requires_grad_(False), settings


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
    size, device = generator.settings.size, next(generator.parameters()).device
    if np.shape(sketches)[1:] != (size, size):
        raise ValueError(f"sketches are {np.shape(sketches)[1:]} pixels, the network draws ({size}, {size})")
    batch = batch if noise is None else 1
    images = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        noises = torch.randn(len(sketches), generator.settings.noise) if noise is None else noise
        for start in range(0, len(sketches), batch):
            if noise is not None:
                torch.manual_seed(seed)
            part = slice(start, start + batch)
            given = to_tensors({"sketches": np.array(sketches[part]), "labels": np.array(labels[part])}, device)
            image = generator(given["sketches"], given["labels"], noises[part].to(device))
            images.append(((image + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(images)


def preview_of(store: Store, settings: CGANSettings, seed: int, sketches: int = 4) -> dict[str, Tensor]:
    """Sketches of the val split (rows) under every label (columns), and the same sketch under two more noises."""
    rows = store.rows("val", needs=["sketch", "label"])
    rows = rows if len(rows) else store.rows("train", needs=["sketch", "label"])
    rows = np.random.default_rng(seed).permutation(rows)[:sketches]
    batch = to_tensors(store.batch(rows, ("sketches", "labels")))
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
