"""Solutions of the gradable tasks in notebooks/README.md."""

import numpy as np
import torch
from torch import Tensor, nn


def r1_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Half the squared gradient norm of the logits with respect to the images, mean over the batch (arXiv 1801.04406).

    discriminator: images (B, 3, H, W) -> logits (B,). Returns a scalar that can be differentiated again.
    """
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean() / 2


def kid(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D) with the kernel (x . y / D + 1)^3 (arXiv 1801.01401)."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_without_diagonal(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    within = mean_without_diagonal(kernel(x, x)) + mean_without_diagonal(kernel(y, y))
    return float(within - 2 * kernel(x, y).mean())


class UNetBlock(nn.Module):
    """One decoder block of a U-Net: x (B, C, H, W) and skip (B, S, 2H, 2W) -> (B, out_channels, 2H, 2W).

    Upsampling by 2, concatenation with the skip connection, then twice convolution, batch norm and ReLU.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        layers = []
        for channels in (in_channels + skip_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        return self.layers(torch.cat([x, skip], dim=1))


def otsu_threshold(gray: np.ndarray) -> int:
    """The threshold t of a gray image `uint8 (H, W)` that maximizes the variance between the pixels <= t and the
    pixels > t: w0 w1 (m0 - m1)^2 for their fractions w and means m (Otsu 1979). The smallest such t."""
    histogram = np.bincount(gray.ravel(), minlength=256) / gray.size
    weight, moment = histogram.cumsum(), (histogram * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * weight - moment) ** 2 / (weight * (1 - weight))
    return int(np.argmax(np.round(np.nan_to_num(between, posinf=0), 9)))
