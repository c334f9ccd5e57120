"""Differentiable augmentation: the discriminator sees real and drawn pictures only after the same kind of change.

Zhao et al., *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS 2020. A picture and the sketch it
belongs to are moved together, or the condition would no longer fit; colours change in the picture alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(
    images: Tensor, sketches: Tensor, color_jitter: float = 0.2, translate: float = 0.1, scale: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`images (B, 3, H, W)` in [-1, 1] and `sketches (B, 1, H, W)`, or masks, changed at random, each pair differently.

    `colour` scales brightness, saturation and contrast, `shift` is a share of the side, `zoom` the logarithm of a scale
    and brings any angle instead of right ones; 0 switches each off. Values may leave [-1, 1] a little, as brightness
    does. Gradients flow through to the images.
    """
    if color_jitter > 0:
        images = jitter_color(images, color_jitter)
    both = torch.cat([images, sketches], dim=1)
    if scale > 0:
        both = random_affine(both, translate, scale)
    elif translate > 0:
        both = random_d4_translate(both, translate)
    return both[:, :3], both[:, 3:]


def jitter_color(images: Tensor, strength: float) -> Tensor:
    """Brightness, then saturation, then contrast, each by a random factor per picture."""

    def factor() -> Tensor:
        return strength * (2 * torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype) - 1)

    images = images + factor()
    gray = images.mean(dim=1, keepdim=True)
    images = gray + (images - gray) * (1 + factor())
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return middle + (images - middle) * (1 + factor())


def random_d4_translate(images: Tensor, translate: float) -> Tensor:
    """One of the eight turns and mirrorings of the square, then a shift by whole pixels, edges mirrored.

    A lesion has no up and down, so turning costs nothing; whole pixels keep the texture that interpolation would blur.
    """
    size = images.shape[-1]
    reach = round(translate * size)
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    offsets = torch.randint(0, 2 * reach + 1, (len(images), 2)).tolist()
    moves = torch.randint(0, 8, (len(images),)).tolist()
    changed = []
    for picture, (top, left), move in zip(padded, offsets, moves, strict=True):
        part = picture[:, top : top + size, left : left + size].rot90(move % 4, (1, 2))
        changed.append(part.flip(2) if move >= 4 else part)
    return torch.stack(changed)


def random_affine(images: Tensor, translate: float, scale: float) -> Tensor:
    """Mirrored, turned by any angle, zoomed (each axis a little differently) and shifted; edges mirrored."""

    def uniform(*shape: int) -> Tensor:  # in [-1, 1]
        return 2 * torch.rand(len(images), *shape, device=images.device) - 1

    angle, mirror = math.pi * uniform(), uniform().sign()
    factors = torch.exp(scale * uniform(1) + scale / 4 * uniform(2))
    turn = torch.stack([angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], dim=1).view(-1, 2, 2)
    matrix = torch.cat([turn * factors[:, None], 2 * translate * uniform(2, 1)], dim=2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
