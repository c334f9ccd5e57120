"""When the prediction of a classifier should not be used: it is unsure, or the image is unlike its training images.

Both thresholds are chosen on val: one of the calibrated top probability (selective classification, Geifman and
El-Yaniv, arXiv 1705.08500), one of the distance of the classifier's own features to those of training images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from helpers.models.checks import check_settings

COVERAGE = 0.8  # fraction of the val images that the confidence threshold keeps
RANK = 64  # 64 x 1280 numbers for MobileNetV2, 164 KB in half precision
MAX_REFERENCES = 1_500  # training images that the subspace is fitted on
QUANTILE = 0.99  # of the distances on val: about 1 % of images like those of val are called unlike


@dataclass(frozen=True)
class Confidence:
    """A threshold of the calibrated top probability, in [0, 1], and what it does on val: `coverage`, the fraction of
    `n` images at or above it, and their `accuracy`. Raises `ValueError` for other values."""

    threshold: float
    coverage: float
    accuracy: float
    n: int

    def __post_init__(self):
        check_settings(self, threshold=(0, 1), coverage=(0, 1), accuracy=(0, 1))

    def __str__(self) -> str:
        return (f"{self.threshold:.2f}, which on val keeps {self.coverage:.0%} of {self.n:,} images with accuracy "
                f"{self.accuracy:.3f}")  # fmt: skip


def choose_confidence(probabilities: np.ndarray, labels: np.ndarray, coverage: float = COVERAGE) -> Confidence:
    """The highest threshold that keeps at least the fraction `coverage` of the images; equal probabilities are kept
    together. `probabilities (N, K)`, `labels (N,)`, N >= 1."""
    top, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    threshold = float(np.sort(top)[::-1][int(np.ceil(coverage * len(top))) - 1])
    kept = top >= threshold
    return Confidence(threshold, float(kept.mean()), float(correct[kept].mean()), len(top))


class FeatureSubspace(nn.Module):
    """The principal subspace of features of training images, `components (R, D)`, and the `threshold` of the distance.

    The distance is the fraction of a feature's squared norm that lies outside the subspace (the residual of ViM,
    arXiv 2203.10807, relative to the norm).
    """

    def __init__(self, rank: int, num_features: int):
        super().__init__()
        self.register_buffer("components", torch.zeros(rank, num_features))
        self.register_buffer("threshold", torch.tensor(1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) -> distances (N,) in [0, 1]."""
        inside = (features @ self.components.T).square().sum(dim=1)  # (N,)
        total = features.square().sum(dim=1).clamp(min=1e-12)  # (N,)
        return (1 - inside / total).clamp(0, 1)

    def unlike(self, features: Tensor) -> Tensor:
        """Features (N, D) -> bool (N,): farther than nearly all images of val."""
        return self(features) > self.threshold


def fit_subspace(train: Tensor, val: Tensor) -> FeatureSubspace:
    """The subspace of the training features `(N, D)`, at most `RANK` directions and half as many as images, with the
    threshold of the val features `(M, D)`."""
    _, directions = torch.linalg.eigh(train.T.double() @ train.double())  # ascending eigenvalues
    rank = max(1, min(RANK, len(train) // 2, train.shape[1] - 1))
    subspace = FeatureSubspace(rank, train.shape[1]).to(train.device)
    subspace.components.copy_(directions[:, -rank:].T)
    subspace.threshold.fill_(subspace(val).quantile(QUANTILE))
    return subspace
