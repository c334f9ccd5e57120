import math

import pytest
import torch

from helpers.models.losses import d_loss, divergence, g_loss, r1_penalty, roughness, texture_difference


def test_losses_of_known_logits():
    zero = (torch.zeros(3, 4), torch.zeros(3))
    assert d_loss(zero, zero).item() == pytest.approx(4 * math.log(2))
    assert g_loss(zero).item() == pytest.approx(2 * math.log(2))
    sure = (torch.full((3, 4), 20.0), torch.full((3,), 20.0))
    assert d_loss(sure, tuple(-x for x in sure)).item() < 1e-6
    assert g_loss(sure).item() < 1e-6 < 10 < g_loss(tuple(-x for x in sure)).item()


def test_r1_of_a_linear_function():
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    weight = torch.randn(3, 4, 4)
    assert r1_penalty((images * weight).sum(dim=(1, 2, 3)), images).item() == pytest.approx(
        0.5 * weight.square().sum().item(), rel=1e-5
    )


def test_texture_is_compared_by_strength_direction_and_colour_not_pixel_by_pixel():
    torch.manual_seed(0)
    base = torch.linspace(-0.5, 0.5, 64).expand(2, 3, 64, 64)
    grain, other = (0.05 * torch.randn(2, 1, 64, 64) for _ in range(2))
    same = texture_difference(base + grain, base + other)
    assert texture_difference(base + grain, base + grain).item() == 0
    assert texture_difference(base + 0.4, base).item() < 1e-4, "light is not texture"
    stripes = grain[..., :1].expand(2, 1, 64, 64)
    diagonal = torch.stack([grain[:, :, 0].roll(k, dims=-1) for k in range(64)], dim=2)
    coloured = 0.05 * torch.randn(2, 3, 64, 64)
    for worse in (base, base + 3 * grain, base + stripes, base + diagonal, base + coloured):
        assert texture_difference(worse, base + other) > 2 * same


def test_roughness_of_a_known_texture():
    checks = 0.1 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(1, 3, 32, 32)
    rough = roughness(checks)
    assert rough.shape == (1, 12, 4, 4)
    assert rough[0, [0, 3]].flatten().tolist() == pytest.approx([math.log(0.2)] * 32, abs=1e-3), (
        "neighbours differ by 0.2"
    )
    assert rough[0, [1, 2, 4, 5]].max() < math.log(0.01), "grey has no colour noise"
    assert rough[0, [6, 9]].max() < math.log(0.01), "along a diagonal a chessboard is of one colour"


def test_divergence_from_the_standard_normal():
    assert divergence(torch.zeros(3, 5), torch.zeros(3, 5)).item() == 0
    assert divergence(torch.ones(3, 5), torch.zeros(3, 5)).item() == pytest.approx(2.5)
    assert divergence(torch.zeros(3, 1), torch.full((3, 1), math.log(4.0))).item() == pytest.approx(
        0.5 * (3 - math.log(4))
    )
