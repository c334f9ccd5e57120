"""The networks of `cgan.py`: generator, encoder, discriminator.

The generator reads the sketch into ever coarser features (a U-Net, Ronneberger et al. 2015, so lines stay where they
are), then paints back up. Label and a noise vector say *what* is painted, by scaling and shifting features (FiLM,
Perez et al. 2018); a noise picture at every resolution gives skin its grain (StyleGAN, Karras et al. 2019). The
discriminator sees a picture with its sketch and answers twice: patch by patch, and for the whole with its label by
projection (Miyato and Koyama 2018).

All work on blocks of 2 x 2 pixels as channels (pixel shuffle, Shi et al. 2016): at full resolution a step would spend
most of its time moving memory. `widths` are the channels at half the resolution, at a quarter, ... down to the
coarsest; `classes` and `noise` are how many diagnoses and noise numbers there are.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

COARSEST = 8  # pixels of a side where the generator turns round


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


def inside(sketch: Tensor) -> Tensor:
    """What the outlines of a sketch enclose, lines included: (B, 1, H, W) in [0, 1] -> the same shape, in [0, 1]."""
    return lines_around(sketch).prod(dim=1, keepdim=True)


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


class Noisy(nn.Module):
    """What draws from noise. Once trained (`eval`) it takes standard normal noise and gives it the mean and the
    covariance that the noises of photographs had, as far as the encoder's prior left them apart: there it was compared
    with photographs. Both are those of all noises so far, and of the latest `MEMORY` once there were more."""

    MEMORY = 1_000

    def __init__(self, noise: int):
        super().__init__()
        self.noise = noise
        self.register_buffer("centre", torch.zeros(noise))
        self.register_buffer("covariance", torch.eye(noise))
        self.register_buffer("seen", torch.zeros(()))  # noises, `MEMORY` at most

    def as_known(self, noise: Tensor) -> Tensor:
        if self.training:
            return noise
        values, vectors = torch.linalg.eigh(self.covariance.float().cpu().nan_to_num())
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # of all roots the one that turns noise the least
        return self.centre + noise @ root.to(noise)

    @torch.no_grad()
    def remember(self, noise: Tensor) -> None:
        """Note mean and covariance of noises `(N, Z)` of photographs."""
        self.seen.add_(len(noise)).clamp_(max=self.MEMORY)
        noise, weight = noise.float(), len(noise) / self.seen
        self.centre.lerp_(noise.mean(dim=0), weight)
        off = noise - self.centre
        self.covariance.lerp_(off.T @ off / len(off), weight)

    def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
        """Earlier checkpoints knew the spread of each noise number and nothing of two together."""
        if (spread := state.pop(f"{prefix}spread", None)) is not None:
            state[f"{prefix}covariance"] = spread.square().diag()
        state.setdefault(f"{prefix}seen", torch.tensor(float(self.MEMORY)))
        super()._load_from_state_dict(state, prefix, *rest)


class Generator(Noisy):
    """sketch (B, 1, H, W) in [0, 1], label (B,), noise (B, Z) -> image (B, 3, H, W) in [-1, 1]."""

    def __init__(self, widths: list[int], classes: int, noise: int, style: int = 128):
        super().__init__(noise)
        self.size = COARSEST * 2 ** len(widths)
        self.label = nn.Embedding(classes, 64)
        self.style = nn.Sequential(
            nn.Linear(64 + noise, style), nn.LeakyReLU(0.2), nn.Linear(style, style), nn.LeakyReLU(0.2)
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
        style = self.style(torch.cat([self.label(label), self.as_known(noise)], dim=1))
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

    def __init__(self, classes: int, noise: int, widths: tuple[int, ...] = (3, 32, 64, 128)):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1] * 16, 2 * noise)
        self.label = nn.Embedding(classes, 2 * noise)
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
    -> (patch logits (B, P), logits of the whole (B,)), features (B, C)."""

    def __init__(self, widths: list[int], classes: int):
        super().__init__()
        self.first = nn.Conv2d(32, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.patch = nn.Conv2d(widths[-2], 1, 3, padding=1)
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.whole = nn.Linear(widths[-1], 1)
        self.label = nn.Embedding(classes, widths[-1])
        self.apply(keep_scale)

    def forward(self, image: Tensor, sketch: Tensor, label: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
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
        return (patches, whole), features


# -------------------------------------------------------------------------------------------------- networks of others


def fold_normalisation(module: nn.Module) -> nn.Module:
    """Every convolution that is followed by its batch normalisation takes that over, in place. (timm's normalisations
    hold the activation too.)"""
    for (name, conv), (after, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.out_channels == norm.num_features:
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, after, getattr(norm, "act", nn.Identity()))
    for child in module.children():
        fold_normalisation(child)
    return module
