"""Differentiable augmentation: the discriminator sees real and drawn pictures only after the same kind of change.

Zhao et al., *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS 2020. A picture and the sketch it
belongs to are moved together, or the condition would no longer fit; colours change in the picture alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(
    images: Tensor, sketches: Tensor, colour: float = 0.2, shift: float = 0.1, zoom: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`images (B, 3, H, W)` in [-1, 1] and `sketches (B, 1, H, W)`, or masks, changed at random, each pair differently.

    `colour` scales brightness, saturation and contrast, `shift` is a share of the side, `zoom` the logarithm of a scale
    and brings any angle instead of right ones; 0 switches each off. Values may leave [-1, 1] a little, as brightness
    does. Gradients flow through to the images.
    """
    if colour > 0:
        images = recolour(images, colour)
    both = torch.cat([images, sketches], dim=1)
    if zoom > 0:
        both = turn_and_zoom(both, shift, zoom)
    elif shift > 0:
        both = turn_and_shift(both, shift)
    return both[:, :3], both[:, 3:]


def recolour(images: Tensor, strength: float) -> Tensor:
    """Brightness, then saturation, then contrast, each by a random factor per picture."""

    def factor() -> Tensor:
        return strength * (2 * torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype) - 1)

    images = images + factor()
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (1 + factor())
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return middle + (images - middle) * (1 + factor())


def turn_and_shift(pictures: Tensor, shift: float) -> Tensor:
    """One of the eight turns and mirrorings of the square, then a shift by whole pixels, edges mirrored.

    A lesion has no up and down, so turning costs nothing; whole pixels keep the texture that interpolation would blur.
    """
    sides = pictures.shape[-1]
    reach = round(shift * sides)
    padded = F.pad(pictures, (reach, reach, reach, reach), mode="reflect")
    offsets = torch.randint(0, 2 * reach + 1, (len(pictures), 2)).tolist()
    moves = torch.randint(0, 8, (len(pictures),)).tolist()
    changed = []
    for picture, (top, left), move in zip(padded, offsets, moves, strict=True):
        part = picture[:, top : top + sides, left : left + sides].rot90(move % 4, (1, 2))
        changed.append(part.flip(2) if move >= 4 else part)
    return torch.stack(changed)


def turn_and_zoom(pictures: Tensor, shift: float, zoom: float) -> Tensor:
    """Mirrored, turned by any angle, zoomed (each axis a little differently) and shifted; edges mirrored."""

    def uniform(*shape: int) -> Tensor:  # in [-1, 1]
        return 2 * torch.rand(len(pictures), *shape, device=pictures.device) - 1

    angle, mirror = math.pi * uniform(), uniform().sign()
    scale = torch.exp(zoom * uniform(1) + zoom / 4 * uniform(2))
    turn = torch.stack([angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], dim=1).view(-1, 2, 2)
    matrix = torch.cat([turn * scale[:, None], 2 * shift * uniform(2, 1)], dim=2)
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
