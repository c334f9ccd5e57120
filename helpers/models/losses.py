"""Losses of the GANs, as pure functions of logits and images."""

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = 4  # resolutions of the texture loss, each half the one before


def d_loss(real: tuple[Tensor, ...], fake: tuple[Tensor, ...]) -> Tensor:
    """Logistic loss of D (Goodfellow et al., arXiv 1406.2661), summed over kinds of logits (patch, global, heads)."""
    return sum(F.softplus(-r).mean() + F.softplus(f).mean() for r, f in zip(real, fake, strict=True))


def g_loss(fake: tuple[Tensor, ...]) -> Tensor:
    """Non-saturating loss of G, summed over kinds of logits."""
    return sum(F.softplus(-f).mean() for f in fake)


def hinge_d_loss(real: tuple[Tensor, ...], fake: tuple[Tensor, ...]) -> Tensor:
    """Hinge loss of D (Lim and Ye, arXiv 1705.02894), summed over heads; 0 without heads."""
    return sum(F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True))


def hinge_g_loss(fake: tuple[Tensor, ...]) -> Tensor:
    """Hinge loss of G, summed over heads; 0 without heads."""
    return -sum(f.mean() for f in fake)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1 (Mescheder et al., arXiv 1801.04406): half the squared gradient norm of the real logits, mean over the batch.

    A discriminator that is flat near the data makes training stable. `images (B, 3, H, W)` must require gradients.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)), summed over z, mean over the batch; mu, logvar: (B, Z)."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(dim=1).mean()


def texture_loss(fake: Tensor, real: Tensor, grid_size: int = 4) -> Tensor:
    """Mean absolute difference of `log_gradient_energy` over `SCALES` resolutions; fake, real: (B, 3, H, W).

    It compares how rough a region is, not where each pore lies. After the band energies of Heeger and Bergen,
    *Pyramid-Based Texture Analysis/Synthesis*, SIGGRAPH 1995.
    """
    loss = fake.new_zeros(())
    for _ in range(SCALES):
        loss = loss + (log_gradient_energy(fake, grid_size) - log_gradient_energy(real, grid_size)).abs().mean()
        fake, real = F.avg_pool2d(fake, 2), F.avg_pool2d(real, 2)
    return loss


def log_gradient_energy(image: Tensor, grid_size: int = 4) -> Tensor:
    """Log RMS of neighbor differences per grid cell: (B, 3, H, W) -> (B, 12, grid_size, grid_size).

    Differences run along rows, columns and both diagonals (otherwise stripes would score well), of luminance and of two
    color differences (otherwise colored noise would).
    """
    red, green, blue = image.unbind(1)
    x = torch.stack([image.mean(dim=1), red - green, blue - green], dim=1)
    rising, falling = x[..., 1:, :-1] - x[..., :-1, 1:], x[..., 1:, 1:] - x[..., :-1, :-1]
    cell = (x.shape[-1] - 1) // grid_size  # pixels; the rest is cropped, because not every device pools unequal cells
    energy = [
        d[..., : cell * grid_size, : cell * grid_size].square() for d in (x.diff(dim=2), x.diff(dim=3), rising, falling)
    ]
    return F.avg_pool2d(torch.cat(energy, dim=1), cell).add(1e-6).log() / 2


def structure_correlation(a: Tensor, b: Tensor, sketch_maps: Tensor) -> Tensor:
    """Correlation in [-1, 1] of the structures of two images of one sketch under two latents: (B, 3, H, W) -> (B,).

    Structures are what lies between box filters of 3 and 13 pixels of the gray image, where the sketch leaves them
    open: inside the outline, 1/16 of the side or more away from its lines; `sketch_maps (B, 2, H, W)` are lines and
    enclosed area. A generator that ignores its latents has 1. Minimized for diverse images, like the distance in mode
    seeking (arXiv 1903.05628), which a change of tone alone would raise.
    """
    reach = sketch_maps.shape[-1] // 16
    lines, inside = sketch_maps.float().split(1, dim=1)
    open_area = inside * (1 - F.max_pool2d(lines, 2 * reach + 1, stride=1, padding=reach))

    def structure(image: Tensor) -> Tensor:
        gray = image.float().mean(dim=1, keepdim=True)
        band = F.avg_pool2d(gray, 3, 1, 1) - F.avg_pool2d(gray, 13, 1, 6)
        mean = (open_area * band).sum(dim=(2, 3), keepdim=True) / (open_area.sum(dim=(2, 3), keepdim=True) + 1)
        return open_area * (band - mean)

    a, b = structure(a), structure(b)
    product, squares = ((x * y).sum(dim=(1, 2, 3)) for x, y in ((a, b), (a, a)))
    return product / (squares * b.square().sum(dim=(1, 2, 3)) + 1e-4).sqrt()
