"""Networks of the GAN (`gan.py`): generator with or without a sketch, encoder, discriminator.

The generator is a U-Net (Ronneberger et al., arXiv 1505.04597): it encodes the sketch to coarse features and decodes
them with skip connections, so that lesion borders stay on the sketch lines. Label and latent z are mapped to a vector w
that modulates every decoder block by FiLM (Perez et al., arXiv 1709.07871); per-pixel noise at every resolution adds
texture (StyleGAN, Karras et al., arXiv 1812.04948). The discriminator gets the image with its sketch and returns patch
logits and one global logit with label projection (Miyato and Koyama, arXiv 1802.05637).

Input and output are pixel-(un)shuffled by 2 (Shi et al., arXiv 1609.05158): at full resolution most of a step would be
spent on memory traffic. `channels` lists the channels at 1/2, 1/4, ... of the image size.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIZE = 8  # pixels per side of the generator's bottleneck
W_DIM = 128  # length of the vector w that modulates the decoder


# --------------------------------------------------------------------------------------------------------- generator


def line_visibility(sketch: Tensor) -> Tensor:
    """Per pixel: does a ray to the top, bottom, left or right hit a sketch line? All four = inside a closed outline.

    sketch: (B, 1, H, W) in [0, 1] -> (B, 4, H, W) in [0, 1]. Gaps up to 1/12 of the side are closed first; a wider gap
    affects the rows or columns behind it. A convolution would need the whole depth of the network for this.
    """
    reach = sketch.shape[-1] // 24
    dilated = F.max_pool2d(sketch, 2 * reach + 1, stride=1, padding=reach)
    closed = -F.max_pool2d(-dilated, 2 * reach + 1, stride=1, padding=reach)

    def hit(axis: int, backwards: bool) -> Tensor:
        crossed = closed.flip(axis).cumsum(axis).flip(axis) if backwards else closed.cumsum(axis)
        return crossed.clamp(max=1)

    return torch.cat([hit(axis, backwards) for axis in (2, 3) for backwards in (False, True)], dim=1)


def soft_fill(sketch: Tensor) -> Tensor:
    """Area enclosed by the sketch lines, lines included: (B, 1, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1]."""
    return line_visibility(sketch).prod(dim=1, keepdim=True)


def sketch_maps(sketch: Tensor) -> Tensor:
    """What a discriminator sees of a sketch, its lines and the area they enclose: (B, 1, H, W) -> (B, 2, H, W). The
    area is computed at half the resolution. Call it once per batch: its max pooling is slow on CPUs."""
    fill = soft_fill(F.max_pool2d(sketch, 2))  # (B, 1, H/2, W/2)
    return torch.cat([sketch, F.interpolate(fill, scale_factor=2, mode="nearest")], dim=1)


def box_blur(x: Tensor, radius: int, edges: str = "replicate") -> Tensor:
    """Mean over squares of 2 radius + 1 pixels: (B, C, H, W) -> (B, C, H, W)."""
    side = 2 * radius + 1  # separable: 2 side reads per pixel, not side**2
    x = F.pad(x, (radius, radius, radius, radius), mode=edges)
    return F.avg_pool2d(F.avg_pool2d(x, (side, 1), stride=1), (1, side), stride=1)


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution with `padding=1`, replicated: zeros would reveal the frame, which the normalization amplifies."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=1, padding_mode="replicate")


Noise = Callable[[Tensor, int], Tensor]  # (x, channels) -> random maps (B, channels, H, W) of the size of x


def random_noise(x: Tensor, channels: int = 1) -> Tensor:
    """Standard normal maps (B, channels, H, W) for x (B, C, H, W)."""
    return torch.randn(len(x), channels, *x.shape[2:], device=x.device, dtype=x.dtype)


def embed_condition(module: nn.Module, label: Tensor, artifacts: Tensor | None) -> Tensor:
    """Embedding of label (B,), plus that of artifact flags (B, 7) if given -> (B, D). Flags that are 0 add nothing."""
    embedding = module.class_embed(label)
    return embedding if artifacts is None else embedding + module.artifact_embed(artifacts)


class StyledConvBlock(nn.Module):
    """x (B, C, H, W), w (B, W_DIM) -> (B, C, H, W). Two times: convolution, group norm, per-pixel noise, FiLM, ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels, 3) for _ in range(2))
        self.noise_strength = nn.ParameterList(torch.full((channels, 1, 1), 0.1) for _ in range(2))
        self.affines = nn.ModuleList(nn.Linear(W_DIM, 2 * channels) for _ in range(2))
        self.norm = nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels, affine=False)

    def forward(self, x: Tensor, w: Tensor, noise: Noise = random_noise) -> Tensor:
        for convolve, strength, affine in zip(self.convs, self.noise_strength, self.affines, strict=True):
            x = self.norm(convolve(x))  # (B, C, H, W)
            x = x + strength * noise(x, 1)  # (B, 1, H, W)
            scale, shift = affine(w)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
            x = F.leaky_relu(x * (1 + scale) + shift, 0.2)
        return x


class BaseGenerator(nn.Module):
    """sketch (B, 1, H, W) in [0, 1], label (B,), z (B, Z), artifacts (B, A) in {0, 1} -> image (B, 3, H, W) in [-1, 1];
    H = W = `size`. A subclass defines `encode(sketch, condition, noise)`: feature maps, the last of 8 x 8 pixels.

    A = `num_artifacts`: 7 or 0. z acts on all pixels alike. What varies the structure inside a lesion are random maps
    (3D noise of OASIS: Sushko et al., arXiv 2012.04781): N(0, 1) maps of `noise_channels` channels at 8, 16 and 32
    pixels, and a code of `code_channels` channels at 8 pixels, which the encoder can predict from a real image. Without
    a given code (B, C, 8, 8) it is random as well; `noise(x, channels)` samples the maps. `maps` are those of `encode`
    for the sketch, if they are known. Training mode does not clamp, so values may leave [-1, 1] a little.

    In eval mode z ~ N(0, I) is mapped to mean and covariance of the encoder's latents: the reconstruction losses train
    the generator on those only (the aggregate posterior), and the KL loss does not bring them all the way to N(0, I).
    Both statistics are means over all latents so far; beyond `WINDOW` latents, old ones decay exponentially.
    """

    WINDOW = 1_000
    takes_sketch: bool

    def __init__(
        self,
        channels: list[int],
        num_classes: int,
        z_dim: int,
        num_artifacts: int = 0,
        noise_channels: int = 0,
        code_channels: int = 0,
    ):
        super().__init__()
        self.size, self.z_dim = MIN_SIZE * 2 ** len(channels), z_dim
        self.register_buffer("running_mean", torch.zeros(z_dim))
        self.register_buffer("running_cov", torch.eye(z_dim))
        self.register_buffer("num_seen", torch.zeros(()))  # latents so far, at most WINDOW
        self.num_artifacts, self.noise_channels, self.code_channels = num_artifacts, noise_channels, code_channels
        self.class_embed = nn.Embedding(num_classes, 64)
        layers = [nn.Linear(64 + z_dim, W_DIM), nn.LeakyReLU(0.2), nn.Linear(W_DIM, W_DIM), nn.LeakyReLU(0.2)]
        self.mapping = nn.Sequential(*layers)

    def match_stats(self, z: Tensor) -> Tensor:
        """In eval mode mean + z cov^(1/2), else z unchanged: (B, Z) -> (B, Z)."""
        if self.training:
            return z
        values, vectors = torch.linalg.eigh(self.running_cov.float().cpu().nan_to_num())
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # the symmetric root rotates z the least
        return self.running_mean + z @ root.to(z)

    @torch.no_grad()
    def update_stats(self, z: Tensor) -> None:
        """Update mean and covariance with latents z (N, Z) that the encoder sampled for real images."""
        self.num_seen.add_(len(z)).clamp_(max=self.WINDOW)
        z, weight = z.float(), len(z) / self.num_seen
        self.running_mean.lerp_(z.mean(dim=0), weight)
        centered = z - self.running_mean
        self.running_cov.lerp_(centered.T @ centered / len(centered), weight)

    def add_decoder(self, channels: list[int]) -> None:
        """Layers from 8 pixels to the image."""
        self.bottleneck = StyledConvBlock(channels[-1])
        # Coarse to fine: channels are reduced before upsampling, so that the widest convolutions run at low resolution.
        self.reduce = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(list(pairwise(channels))))
        self.up = nn.ModuleList(StyledConvBlock(a) for a in channels[-2::-1])
        self.to_rgb = conv(channels[0], 12, 3)
        with torch.no_grad():  # ICNR init (Aitken et al., arXiv 1707.02937): avoids checkerboard artifacts
            self.to_rgb.weight.copy_(self.to_rgb.weight[::4].repeat_interleave(4, dim=0))
            self.to_rgb.bias.zero_()

    def add_inputs(self, channels: list[int]) -> None:
        """Layers for random maps, code and artifact flags."""
        self.noise_in = map_inputs(self.noise_channels, channels[:-4:-1])
        self.code_in = map_inputs(self.code_channels, channels[-1:])
        if self.num_artifacts:
            self.artifact_embed = nn.Linear(self.num_artifacts, 64, bias=False)
            nn.init.normal_(self.artifact_embed.weight, std=0.5)
            rates = torch.zeros(self.class_embed.num_embeddings, self.num_artifacts)
            self.register_buffer("artifact_rates", rates)  # per class, in the training images

    def forward(
        self,
        sketch: Tensor | None,
        label: Tensor,
        z: Tensor,
        artifacts: Tensor | None = None,
        code: Tensor | None = None,
        noise: Noise = random_noise,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        condition = torch.cat([embed_condition(self, label, artifacts), self.match_stats(z)], dim=1)  # (B, 64 + Z)
        w = self.mapping(condition)  # (B, W_DIM)
        *skips, x = self.encode(sketch, condition, noise) if maps is None else maps  # (B, C, 8, 8)
        for code_in in self.code_in:
            x = x + code_in(noise(x, self.code_channels) if code is None else code.to(x.dtype))
        x = self.bottleneck(self.add_noise(x, 0, noise), w, noise)
        for level, (reduce, up) in enumerate(zip(self.reduce, self.up, strict=True), start=1):
            x = F.interpolate(reduce(x), scale_factor=2, mode="nearest" if skips else "bilinear")
            x = x + skips[-level] if skips else x
            x = up(self.add_noise(x, level, noise), w, noise)  # (B, C, 16, 16), and so on, to (B, C0, H/2, W/2)
        image = F.pixel_shuffle(self.to_rgb(x), 2)  # (B, 12, H/2, W/2) -> (B, 3, H, W)
        # No tanh: its gradient vanishes where it saturates, so white corners would stay white.
        return image if self.training else image.clamp(-1, 1)

    def add_noise(self, x: Tensor, level: int, noise: Noise) -> Tensor:
        """Add random maps to x (B, C, H, W) at one of the three coarsest levels (0: 8 px)."""
        if level >= len(self.noise_in):
            return x
        return x + self.noise_in[level](noise(x, self.noise_channels))


class Generator(BaseGenerator):
    """Generator with a sketch.

    `fine_lines`: the lines themselves are an input at half the resolution. Then they often appear in the image, as a
    crease along the lesion border; without, fine scales get the enclosed area and three blurred copies, and the lines
    are added from 1/8 of the resolution on.
    """

    takes_sketch = True

    def __init__(self, channels: list[int], num_classes: int, z_dim: int, fine_lines: bool = True, **inputs: int):
        super().__init__(channels, num_classes, z_dim, **inputs)
        self.stem = conv(8 if fine_lines else 4, channels[0], 3)
        self.down = nn.ModuleList(conv(a, b, 4, stride=2) for a, b in pairwise(channels))
        self.add_decoder(channels)
        self.line_in = nn.ModuleList() if fine_lines else map_inputs(2, channels[2:])
        self.add_inputs(channels)

    def encode(self, sketch: Tensor, condition: Tensor, noise: Noise) -> list[Tensor]:
        """Feature maps (B, C, S, S) of the sketch, from S = H/2 down to 8 pixels."""
        inside = line_visibility(F.max_pool2d(sketch, 2))  # (B, 4, H/2, W/2)
        if self.line_in:
            fill, side = inside.prod(dim=1, keepdim=True), inside.shape[-1]
            x = torch.cat([fill, *(box_blur(fill, side // k) for k in (32, 10, 4))], dim=1)  # (B, 4, H/2, W/2)
            lines = torch.cat([F.avg_pool2d(sketch, 4), F.max_pool2d(sketch, 4)], dim=1)  # (B, 2, H/4, W/4)
        else:
            x = torch.cat([F.pixel_unshuffle(sketch, 2), inside], dim=1)  # (B, 8, H/2, W/2)
        maps = [self.stem(x)]
        for level, down in enumerate(self.down):
            x = down(F.leaky_relu(maps[-1], 0.2))  # (B, C, H/2, W/2) -> (B, 2C, H/4, W/4), and so on
            if self.line_in and level:
                lines = torch.cat([F.avg_pool2d(lines[:, :1], 2), F.max_pool2d(lines[:, 1:], 2)], dim=1)
                x = x + self.line_in[level - 1](lines)
            maps.append(x)
        return maps


class LatentGenerator(BaseGenerator):
    """Generator without a sketch: label, z and flags are projected to the 8 x 8 map. `sketch` is ignored."""

    takes_sketch = False

    def __init__(self, channels: list[int], num_classes: int, z_dim: int, **inputs: int):
        super().__init__(channels, num_classes, z_dim, **inputs)
        self.stem = nn.Linear(64 + z_dim, channels[-1] * MIN_SIZE**2)
        self.const_noise_strength = nn.Parameter(torch.ones(channels[-1], 1, 1))
        self.add_decoder(channels)
        self.add_inputs(channels)

    def encode(self, sketch: Tensor | None, condition: Tensor, noise: Noise) -> list[Tensor]:
        """The 8 x 8 map (B, C, 8, 8)."""
        x = self.stem(condition).unflatten(1, (-1, MIN_SIZE, MIN_SIZE))
        # Per-pixel noise at the coarsest scale lets details that z does not encode (hair) change position.
        return [x + self.const_noise_strength * noise(x, x.shape[1])]


def map_inputs(in_channels: int, channels: Sequence[int]) -> nn.ModuleList:
    """1x1 convolutions from `in_channels` to each of `channels`, which keep the variance; none for 0 channels."""
    layers = nn.ModuleList(nn.Conv2d(in_channels, c, 1) for c in channels if in_channels)
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layers


# ----------------------------------------------------------------------------------------------------------- encoder


class Encoder(nn.Module):
    """Approximate posterior of z and code: image (B, 3, H, W), label (B,), artifacts (B, A) -> mean, log-variance,
    (B, L) each, L = z_dim + code_channels * 64.

    Its input is reduced to 32 x 32 pixels: tone, lighting and layout of colors, not texture. z is conditioned on the
    label, because a latent that encodes the label would differ from the latents sampled at inference.
    """

    def __init__(self, num_classes: int, z_dim: int, num_artifacts: int = 0, code_channels: int = 0):
        super().__init__()
        channels = (3, 32, 64, 128)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(channels))
        self.out = nn.Linear(channels[-1] * 16, 2 * z_dim)
        self.class_embed = nn.Embedding(num_classes, 2 * z_dim)
        nn.init.zeros_(self.class_embed.weight)
        self.code_out = nn.ModuleList(nn.Conv2d(channels[2], 2 * code_channels, 1) for _ in range(code_channels > 0))
        if num_artifacts:
            self.artifact_embed = nn.Linear(num_artifacts, 2 * z_dim, bias=False)
            nn.init.zeros_(self.artifact_embed.weight)

    def forward(self, image: Tensor, label: Tensor, artifacts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = F.adaptive_avg_pool2d(image, 32)  # (B, 3, 32, 32)
        maps = []
        for down in self.down:
            x = F.leaky_relu(down(x), 0.2)  # (B, 32, 16, 16), (B, 64, 8, 8), (B, 128, 4, 4)
            maps.append(x)
        z_stats = (self.out(x.flatten(1)) + embed_condition(self, label, artifacts)).chunk(2, dim=1)  # 2 x (B, Z)
        if not self.code_out:
            return z_stats
        code_stats = self.code_out[0](maps[1]).chunk(2, dim=1)  # 2 x (B, C, 8, 8)
        mean, logvar = (torch.cat([z, code.flatten(1)], dim=1) for z, code in zip(z_stats, code_stats, strict=True))
        return mean, logvar


# ----------------------------------------------------------------------------------------------------- discriminator


def init_kaiming(module: nn.Module) -> None:
    """Kaiming init (He et al., arXiv 1502.01852): with PyTorch's default, activations vanish in a network without
    normalization."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        nn.init.zeros_(module.bias)


class DiscriminatorOutput(NamedTuple):
    """Logits of image patches and of the whole image, and the spatial means of the last layer, for feature matching."""

    patch: Tensor  # (B, P)
    whole: Tensor  # (B,)
    features: Tensor  # (B, C)
    heads: tuple[Tensor, ...] = ()  # (B, 16) or (B, 49) each: patch logits of heads on pretrained features

    def logits(self) -> tuple[Tensor, ...]:
        """The logits of the layers that are trained from scratch."""
        return self.patch, self.whole

    def split(self) -> tuple["DiscriminatorOutput", "DiscriminatorOutput"]:
        """Outputs of the first and the second half of the batch."""
        (*own, heads), half = self, len(self.whole) // 2
        first, second = slice(half), slice(half, None)
        return tuple(DiscriminatorOutput(*(x[k] for x in own), tuple(x[k] for x in heads)) for k in (first, second))


def high_pass(image: Tensor) -> Tensor:
    """10 times the difference of the image and its 5 x 5 mean: (B, C, H, W) -> (B, C, H, W).

    Skin texture is about 1 % of the value range. Without this input an untrained discriminator does not separate a real
    image from its blurred copy, and the generator gets no gradient towards texture.
    """
    return 10.0 * (image - box_blur(image, 2, edges="reflect"))


class Discriminator(nn.Module):
    """image (B, 3, H, W), sketch maps (B, 2, H, W), label (B,), artifacts (B, A) -> `DiscriminatorOutput`.

    Each of `num_groups` equal parts of a batch, such as real and fake, has its own minibatch standard deviation.
    """

    def __init__(self, channels: list[int], num_classes: int, num_artifacts: int = 0):
        super().__init__()
        self.stem = nn.Conv2d(32, channels[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(channels))
        self.patch_head = nn.Conv2d(channels[-2], 1, 3, padding=1)
        self.last = nn.Conv2d(channels[-1] + 1, channels[-1], 3, padding=1)
        self.global_head = nn.Linear(channels[-1], 1)
        self.class_embed = nn.Embedding(num_classes, channels[-1])
        self.apply(init_kaiming)
        if num_artifacts:
            self.artifact_embed = nn.Linear(num_artifacts, channels[-1], bias=False)
            nn.init.normal_(self.artifact_embed.weight, std=0.3)

    def forward(
        self, image: Tensor, sketch: Tensor, label: Tensor, artifacts: Tensor | None = None, num_groups: int = 1
    ) -> DiscriminatorOutput:
        x = self.stem(F.pixel_unshuffle(torch.cat([image, high_pass(image), sketch], dim=1), 2))  # (B, C0, H/2, W/2)
        for down in self.down[:-1]:
            x = down(F.leaky_relu(x, 0.2))  # (B, C, 16, 16) at the end
        patch = self.patch_head(F.leaky_relu(x, 0.2)).flatten(1)  # (B, P), P = 16 * 16
        x = self.down[-1](F.leaky_relu(x, 0.2))  # (B, C, 8, 8)
        std = minibatch_std(x, num_groups).expand(-1, 1, *x.shape[2:])
        features = F.leaky_relu(self.last(torch.cat([x, std], dim=1)), 0.2).mean(dim=(2, 3))  # (B, C)
        projection = (embed_condition(self, label, artifacts) * features).sum(dim=1) / features.shape[1] ** 0.5
        return DiscriminatorOutput(patch, self.global_head(features).squeeze(1) + projection, features)


def minibatch_std(x: Tensor, num_groups: int = 1) -> Tensor:
    """Mean standard deviation of x (B, C, H, W) over each of `num_groups` equal parts of the batch: (B, 1, 1, 1).

    Lets D detect mode collapse (Karras et al., arXiv 1710.10196).
    """
    groups = x.unflatten(0, (num_groups, -1))  # (G, B / G, C, H, W)
    variance = (groups - groups.mean(dim=1, keepdim=True)).square().mean(dim=1)  # (G, C, H, W)
    std = variance.add(1e-8).sqrt().mean(dim=(1, 2, 3))  # (G,)
    return std.repeat_interleave(groups.shape[1])[:, None, None, None]
