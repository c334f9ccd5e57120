"""Losses of images and sketches that do not belong together; they need no mask and no other network.

No pixel can be compared, and no discriminator could check the sketch: it gets blank ones. The sketch loss uses Otsu's
criterion instead: with the sketch's outline as border, the fake must reach a fraction of the separability that real
images have at Otsu's threshold, with the darker tone inside.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.models.losses import texture_loss
from helpers.models.networks import soft_fill

OTSU_LEVELS = 24  # thresholds per image


def unpaired_losses(
    fake: Tensor, real: Tensor, sketches: Tensor, num_encoded: int, separation_target: float
) -> dict[str, Tensor]:
    """Losses `l1`, `texture` and `sketch` of fake and real images (B, 3, H, W) and sketches (B, 1, H, W) of the fakes.

    The first `num_encoded` real images set the mean colors of both regions and the texture, but not where it lies. The
    sketch loss is 0 if every fake reaches `separation_target` times the separability of the real images. Colors are
    compared on 32 x 32 block means.
    """
    n, block = num_encoded, fake.shape[-1] // 32
    small, small_real = (inscribed_circle(F.avg_pool2d(x, block)) for x in (fake, real))  # (B, 3, P, 1)
    region, dark = inscribed_circle(soft_fill(F.max_pool2d(sketches, block))), otsu_mask(small_real)  # (B, 1, P, 1)
    target = separation_target * otsu_separability(small_real, dark).mean()
    # 1 where the region is darker than the rest, as in `otsu_mask`, else -1: both separate equally well.
    darkness = region_means(small, region).mean(dim=2).diff(dim=1).squeeze(1).sign()  # (B,)
    return {
        "l1": (region_means(small[:n], region[:n]) - region_means(small_real[:n], dark[:n])).abs().mean(),
        "texture": texture_loss(fake[:n], real[:n], grid_size=1),
        "sketch": F.relu(target - darkness * otsu_separability(small, region)).mean(),
    }


def inscribed_circle(images: Tensor) -> Tensor:
    """Pixels of the inscribed circle, without the corners that the lens darkens: (B, C, S, S) -> (B, C, P, 1)."""
    size = images.shape[-1]
    squared = torch.linspace(-1, 1, size, device=images.device).square()
    return images[..., squared[:, None] + squared <= 1].unsqueeze(-1)


def region_means(image: Tensor, region: Tensor) -> Tensor:
    """Mean colors inside and outside of `region (B, 1, H, W)` in [0, 1]: (B, 3, H, W) -> (B, 2, 3)."""
    weights = torch.cat([region, 1 - region], dim=1)
    return torch.einsum("bphw,bchw->bpc", weights, image) / (weights.sum(dim=(2, 3))[..., None] + 1e-3)


def otsu_separability(image: Tensor, region: Tensor) -> Tensor:
    """Between-class variance over total variance of the colors, `(B,)` in [0, 1]; the classes are region and rest.

    1 means two flat colors with exactly this border. The criterion of Otsu, *A Threshold Selection Method from
    Gray-Level Histograms*, IEEE SMC 1979, here for a given region. image: (B, C, H, W), region: (B, 1, H, W).
    """
    size = region.mean(dim=(2, 3))
    inside, outside = region_means(image, region).unbind(dim=1)
    between = size * (1 - size) * (inside - outside).square()
    return between.sum(dim=1) / (image.var(dim=(2, 3), correction=0).sum(dim=1) + 1e-4)


@torch.no_grad()
def otsu_mask(image: Tensor) -> Tensor:
    """Lesion estimate without a mask: pixels darker than Otsu's threshold. (B, 3, H, W) -> (B, 1, H, W) in {0, 1}"""
    gray = image.mean(dim=1, keepdim=True)
    low, high = gray.amin(dim=(2, 3), keepdim=True), gray.amax(dim=(2, 3), keepdim=True)
    masks = [(gray < low + (high - low) * k / OTSU_LEVELS).float() for k in range(1, OTSU_LEVELS)]
    best = torch.stack([otsu_separability(gray, mask) for mask in masks]).argmax(dim=0)
    return torch.stack(masks, dim=1)[torch.arange(len(image)), best]
