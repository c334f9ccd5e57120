import math

import pytest
import torch

from helpers.models.losses import (
    d_loss,
    g_loss,
    kl_divergence,
    log_gradient_energy,
    otsu_mask,
    otsu_separability,
    r1_penalty,
    region_means,
    texture_loss,
)


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
    same = texture_loss(base + grain, base + other)
    assert texture_loss(base + grain, base + grain).item() == 0
    assert texture_loss(base + 0.4, base).item() < 1e-4, "light is not texture"
    stripes = grain[..., :1].expand(2, 1, 64, 64)
    diagonal = torch.stack([grain[:, :, 0].roll(k, dims=-1) for k in range(64)], dim=2)
    coloured = 0.05 * torch.randn(2, 3, 64, 64)
    for worse in (base, base + 3 * grain, base + stripes, base + diagonal, base + coloured):
        assert texture_loss(worse, base + other) > 2 * same


def test_roughness_of_a_known_texture():
    checks = 0.1 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(1, 3, 32, 32)
    rough = log_gradient_energy(checks)
    assert rough.shape == (1, 12, 4, 4)
    assert rough[0, [0, 3]].flatten().tolist() == pytest.approx([math.log(0.2)] * 32, abs=1e-3), (
        "neighbours differ by 0.2"
    )
    assert rough[0, [1, 2, 4, 5]].max() < math.log(0.01), "grey has no colour noise"
    assert rough[0, [6, 9]].max() < math.log(0.01), "along a diagonal a chessboard is of one colour"


def test_divergence_from_the_standard_normal():
    assert kl_divergence(torch.zeros(3, 5), torch.zeros(3, 5)).item() == 0
    assert kl_divergence(torch.ones(3, 5), torch.zeros(3, 5)).item() == pytest.approx(2.5)
    assert kl_divergence(torch.zeros(3, 1), torch.full((3, 1), math.log(4.0))).item() == pytest.approx(
        0.5 * (3 - math.log(4))
    )


def two_tones(side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Light skin with a dark square, and where the square is."""
    region = torch.zeros(2, 1, side, side)
    region[:, :, 8:20, 8:20] = 1
    lesion, skin = torch.tensor([-0.2, -0.4, -0.5]), torch.tensor([0.6, 0.4, 0.3])
    return torch.where(region.bool(), lesion[:, None, None], skin[:, None, None]), region


def test_tones_and_separation_of_two_flat_tones():
    image, region = two_tones()
    assert torch.allclose(region_means(image, region)[0, 0], torch.tensor([-0.2, -0.4, -0.5]), atol=1e-3)
    assert torch.allclose(region_means(image, region)[0, 1], torch.tensor([0.6, 0.4, 0.3]), atol=1e-3)
    assert otsu_separability(image, region).tolist() == pytest.approx([1, 1], abs=2e-3)
    assert otsu_separability(image, region.roll(12, dims=3)).max() < 0.1, "another place"
    assert otsu_separability(image, torch.zeros_like(region)).max() < 1e-3, "an empty sketch asks for nothing"
    half = otsu_separability(image + 0.8 * torch.randn(2, 3, 32, 32), region)
    assert (half > 0.1).all() and (half < 0.5).all(), "noise takes a share of the variance"


def test_the_darker_part_is_the_lesion():
    torch.manual_seed(0)
    image, region = two_tones()
    found = otsu_mask(image + 0.1 * torch.randn_like(image))
    assert found.shape == region.shape and torch.equal(found, region)
    assert otsu_mask(torch.zeros(1, 3, 8, 8)).isfinite().all(), "a picture of one tone"
