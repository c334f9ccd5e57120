"""Tests of the gradable tasks in notebooks/README.md: of the solutions, or of the module that EXERCISES names.

EXERCISES=mine python -m pytest tests/exercises          mine.py is in this folder
"""

import importlib
import os

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from helpers.metrics import quality
from helpers.models import losses

exercises = importlib.import_module(os.environ.get("EXERCISES", "solutions"))


class Quadratic(nn.Module):
    """logit = a |image|^2: the gradient is 2 a image."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.a * images.square().flatten(1).sum(dim=1)


def test_r1_penalty_of_a_known_gradient():
    images, discriminator = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), Quadratic()
    penalty = exercises.r1_penalty(discriminator, images)
    expected = images.square().flatten(1).sum(dim=1).mean() / 2
    assert torch.allclose(penalty, expected)
    penalty.backward()
    assert torch.allclose(discriminator.a.grad, 4 * expected), "the penalty trains the discriminator"


def test_r1_penalty_equals_that_of_the_package():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.LazyLinear(1), nn.Flatten(0))
    images = torch.randn(3, 3, 16, 16, requires_grad=True)
    expected = losses.r1_penalty(network(images), images)
    assert torch.allclose(exercises.r1_penalty(network, images), expected, rtol=1e-4)


def test_kid_is_unbiased_and_equals_that_of_the_package():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 16)), rng.normal(0.3, 1.2, size=(200, 16))
    assert exercises.kid(x, y) == pytest.approx(quality.kid(x.astype(np.float32), y.astype(np.float32)), rel=1e-3)
    same = [exercises.kid(*rng.normal(size=(2, 50, 16))) for _ in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same)) and min(same) < 0 < exercises.kid(x, y)


def test_unet_block_has_the_right_shape_and_uses_the_skip_connection():
    block = exercises.UNetBlock(8, 4, 6).eval()
    x, skip = torch.randn(2, 8, 5, 7), torch.randn(2, 4, 10, 14)
    with torch.no_grad():
        out, without = block(x, skip), block(x, torch.zeros_like(skip))
    assert out.shape == (2, 6, 10, 14) and out.min() >= 0 and not torch.allclose(out, without)
    kinds = [type(module) for module in block.modules()]
    assert kinds.count(nn.Conv2d) == 2 and kinds.count(nn.BatchNorm2d) == 2


@pytest.mark.parametrize("seed", range(5))
def test_otsu_threshold_equals_that_of_opencv(seed):
    rng = np.random.default_rng(seed)
    gray = np.where(rng.random((64, 64)) < 0.3, rng.normal(80, 15, (64, 64)), rng.normal(180, 20, (64, 64)))
    gray = gray.clip(0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(gray, 0, 255, cv2.THRESH_OTSU)
    assert exercises.otsu_threshold(gray) == threshold


def test_otsu_threshold_of_two_values_separates_them():
    gray = np.array([[10, 10, 200], [200, 200, 10]], np.uint8)
    assert 10 <= exercises.otsu_threshold(gray) < 200
