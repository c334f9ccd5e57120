"""Differentiable augmentation of images together with their sketches or masks.

In a GAN the discriminator sees real and fake images only after the same kind of augmentation (Zhao et al.,
*Differentiable Augmentation for Data-Efficient GAN Training*, arXiv 2006.10738). Geometry changes image and sketch
alike, so that they still match; color changes the image alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur


def augment(
    images: Tensor, sketches: Tensor, color_jitter: float, translate: float, scale: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Augment `images (B, 3, H, W)` in [-1, 1] and `sketches (B, 1, H, W)`, or masks, differently per pair.

    `color_jitter`: strength of brightness, saturation and contrast. `translate`: largest shift as a fraction of the
    side. `scale`: log of the largest scale factor; if positive, rotation is by any angle, else by multiples of 90
    degrees. 0 disables each; with both `translate` and `scale` 0 nothing moves. Images may leave [-1, 1] slightly.
    Gradients flow to the images.
    """
    if color_jitter > 0:
        images = jitter_color(images, color_jitter)
    both = torch.cat([images, sketches], dim=1)  # (B, 4, H, W)
    if scale > 0:
        both = random_affine(both, translate, scale)
    elif translate > 0:
        both = random_d4_translate(both, translate)
    return both[:, :3], both[:, 3:]


def jitter_color(images: Tensor, strength: float) -> Tensor:
    """Change brightness, then saturation, then contrast of images (B, 3, H, W), each by a random amount per image."""

    def amount() -> Tensor:  # (B, 1, 1, 1) in [-strength, strength]
        return strength * (2 * torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype) - 1)

    images = images + amount()
    gray = images.mean(dim=1, keepdim=True)
    images = gray + (images - gray) * (1 + amount())
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 + amount())


def cutout(images: Tensor, side: float) -> Tensor:
    """Set one random square per image to 0, with `side` as a fraction of the images (B, C, S, S); it may reach over the
    edge."""
    size = images.shape[-1]
    half, position = side * size / 2, torch.arange(size, device=images.device)
    center = size * torch.rand(2, len(images), 1, device=images.device)
    inside = (position - center).abs() < half  # (2, B, S): rows and columns
    return images.masked_fill((inside[0, :, :, None] & inside[1, :, None])[:, None], 0)


def random_d4_translate(images: Tensor, translate: float) -> Tensor:
    """Shift images (B, C, S, S) by whole pixels with reflected edges, then apply one of the 8 rotations and flips of
    the square.

    A lesion has no up and down. Whole pixels keep the texture that interpolation would blur. One gather for the whole
    batch, because a GPU takes longer to start an operation than to do it.
    """
    batch, channels, size, _ = images.shape
    max_shift = round(translate * size)
    shift = torch.randint(-max_shift, max_shift + 1, (2, batch, 1))  # sampled on the CPU: equal on every device
    flip, transpose = torch.rand(2, batch, 1) < 0.5, torch.rand(batch, 1, 1) < 0.5
    position = torch.arange(size)
    rows, columns = reflect(torch.where(flip, size - 1 - position, position) + shift, size)  # (B, S) each
    rows, columns = rows[:, :, None], columns[:, None]
    index = torch.where(transpose, (rows * size + columns).mT, rows * size + columns).flatten(1)  # (B, S * S)
    index = index.to(images.device, non_blocking=True)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view_as(images)


def random_crop(images: Tensor, smallest: float) -> Tensor:
    """Cut a random square from each image (B, C, S, S), of `smallest` to 1 times its side, and resize it to S."""
    side = smallest + (1 - smallest) * torch.rand(len(images), 1, 1, device=images.device)
    center = (1 - side) * (2 * torch.rand(len(images), 2, 1, device=images.device) - 1)
    matrix = torch.cat([side * torch.eye(2, device=images.device), center], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def random_blur(images: Tensor, probability: float) -> Tensor:
    """Blur some of the images (B, C, H, W): with this `probability`, a random fraction of each is replaced by that
    image after a Gaussian of one pixel."""
    amount = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    blurred = gaussian_blur(images, [5, 5], [1.0, 1.0])
    return torch.lerp(images, blurred, amount[0] * (amount[1] < probability))


def reflect(position: Tensor, size: int) -> Tensor:
    """Pixel positions outside [0, size) mirrored at the edge pixels; for less than one `size` outside."""
    return size - 1 - (size - 1 - position.abs()).abs()


def random_affine(images: Tensor, translate: float, scale: float) -> Tensor:
    """Flip, rotate by any angle, scale (each axis slightly differently) and shift images (B, C, H, W); edges are
    reflected."""

    def uniform(*shape: int) -> Tensor:  # (B, *shape) in [-1, 1]
        return 2 * torch.rand(len(images), *shape, device=images.device) - 1

    angle, flip = math.pi * uniform(), uniform().sign()  # (B,) each
    factors = torch.exp(scale * uniform(1) + scale / 4 * uniform(2))  # (B, 2)
    rotation = torch.stack([angle.cos() * flip, -angle.sin(), angle.sin() * flip, angle.cos()], dim=1).view(-1, 2, 2)
    matrix = torch.cat([rotation * factors[:, None], 2 * translate * uniform(2, 1)], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def d4_augment(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shift every image and its sketch by up to 6 % of the side and apply one of the 8 rotations and flips of the
    square: the generator does not learn where a ruler or a dark corner lies."""
    both = random_d4_translate(torch.cat([batch["images"], batch["sketches"]], dim=1), translate=0.06)
    return batch | {"images": both[:, :3], "sketches": both[:, 3:]}
