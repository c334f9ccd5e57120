"""Losses of networks that draw, as functions of logits and pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor


def d_loss(real: tuple[Tensor, ...], drawn: tuple[Tensor, ...]) -> Tensor:
    """Logistic: real logits up, drawn logits down; all kinds of logits count alike: patches, whole, those of heads."""
    return sum(F.softplus(-r).mean() + F.softplus(d).mean() for r, d in zip(real, drawn, strict=True))


def g_loss(drawn: tuple[Tensor, ...]) -> Tensor:
    """Non-saturating: drawn logits up."""
    return sum(F.softplus(-d).mean() for d in drawn)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the squared gradient of the logits of real pictures: a flat discriminator near the data is a stable one."""
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * slope.square().sum(dim=(1, 2, 3)).mean()


def texture_difference(drawn: Tensor, real: Tensor, scales: int = 4, cells: int = 4) -> Tensor:
    """How differently strong detail is: where the real skin is rough the drawn one shall be as rough, whatever its
    pores; `cells` see `roughness`. After the band energies of Heeger and Bergen, *Pyramid-Based Texture
    Analysis/Synthesis*, 1995.
    """
    difference = drawn.new_zeros(())
    for _ in range(scales):
        difference = difference + (roughness(drawn, cells) - roughness(real, cells)).abs().mean()
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


def middle(pictures: Tensor) -> Tensor:
    """The pixels in the circle that touches all four sides, (B, C, S, S) -> (B, C, P, 1): lenses darken corners."""
    side = pictures.shape[-1]
    across = torch.linspace(-1, 1, side, device=pictures.device).square()
    return pictures[..., across[:, None] + across <= 1].unsqueeze(-1)


def tones(image: Tensor, region: Tensor) -> Tensor:
    """Mean colours within a region `(B, 1, H, W)` in [0, 1] and outside: (B, 3, H, W) -> (B, 2, 3)"""
    parts = torch.cat([region, 1 - region], dim=1)
    return torch.einsum("bphw,bchw->bpc", parts, image) / (parts.sum(dim=(2, 3))[..., None] + 1e-3)


def separation(image: Tensor, region: Tensor) -> Tensor:
    """Which share of the variance of its colours is between a region and the rest, `(B,)` in [0, 1]: 1 for a picture of
    two flat tones, cut just there. By it Otsu 1979 finds a threshold; here the picture has to fit the cut."""
    size = region.mean(dim=(2, 3))
    one, other = tones(image, region).unbind(dim=1)
    between = size * (1 - size) * (one - other).square()
    return between.sum(dim=1) / (image.var(dim=(2, 3), correction=0).sum(dim=1) + 1e-4)


@torch.no_grad()
def darker_part(image: Tensor, levels: int = 24) -> Tensor:
    """The lesion as far as nobody outlined it: what is darker than the threshold that parts a picture best (Otsu, *A
    Threshold Selection Method from Gray-Level Histograms*, 1979). (B, 3, H, W) -> (B, 1, H, W) in {0, 1}"""
    light = image.mean(dim=1, keepdim=True)
    low, high = light.amin(dim=(2, 3), keepdim=True), light.amax(dim=(2, 3), keepdim=True)
    cuts = [(light < low + (high - low) * k / levels).float() for k in range(1, levels)]
    best = torch.stack([separation(light, cut) for cut in cuts]).argmax(dim=0)
    return torch.stack(cuts, dim=1)[torch.arange(len(image)), best]
