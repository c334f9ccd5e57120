import math

import pytest
import torch

from helpers.models.losses import (
    d_loss,
    g_loss,
    hinge_d_loss,
    hinge_g_loss,
    kl_divergence,
    log_gradient_energy,
    r1_penalty,
    structure_correlation,
    texture_loss,
)


def test_d_loss_and_g_loss_known_logits_have_known_values():
    zero = (torch.zeros(3, 4), torch.zeros(3))
    assert d_loss(zero, zero).item() == pytest.approx(4 * math.log(2))
    assert g_loss(zero).item() == pytest.approx(2 * math.log(2))
    high = (torch.full((3, 4), 20.0), torch.full((3,), 20.0))
    low = tuple(-logits for logits in high)
    assert d_loss(high, low).item() < 1e-6 and d_loss(low, high).item() > 10
    assert g_loss(high).item() < 1e-6 and g_loss(low).item() > 10


def test_hinge_losses_known_logits_have_known_values():
    zero, confident = (torch.zeros(3, 4), torch.zeros(3, 1)), (torch.full((3, 4), 2.0), torch.full((3, 1), 5.0))
    assert hinge_d_loss(zero, zero).item() == 4 and hinge_g_loss(zero).item() == 0
    wrong = tuple(-logits for logits in confident)
    assert hinge_d_loss(confident, wrong).item() == 0, "beyond the margin of 1"
    assert hinge_d_loss(wrong, confident).item() == 2 * (1 + 2) + 2 * (1 + 5)
    assert hinge_g_loss(confident).item() == -7 and hinge_g_loss(wrong).item() == 7
    assert hinge_d_loss((torch.tensor([0.5, 3.0]),), (torch.tensor([-0.5, -3.0]),)).item() == 0.5


def test_hinge_losses_without_heads_are_zero():
    assert hinge_d_loss((), ()) == 0 and hinge_g_loss(()) == 0


def test_r1_penalty_linear_logits_is_half_the_squared_weight():
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    weight = torch.randn(3, 4, 4)
    penalty = r1_penalty((images * weight).sum(dim=(1, 2, 3)), images)
    assert penalty.item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-5)


def test_kl_divergence_known_normals_have_known_values():
    assert kl_divergence(torch.zeros(3, 5), torch.zeros(3, 5)).item() == 0
    assert kl_divergence(torch.ones(3, 5), torch.zeros(3, 5)).item() == pytest.approx(2.5)
    wide = kl_divergence(torch.zeros(3, 1), torch.full((3, 1), math.log(4.0)))
    assert wide.item() == pytest.approx(0.5 * (3 - math.log(4)))


def test_texture_loss_other_strength_direction_or_color_is_larger_than_other_pixels():
    torch.manual_seed(0)
    base = torch.linspace(-0.5, 0.5, 64).expand(2, 3, 64, 64)
    noise, other_noise = (0.05 * torch.randn(2, 1, 64, 64) for _ in range(2))
    same_texture = texture_loss(base + noise, base + other_noise)
    assert texture_loss(base + noise, base + noise).item() == 0
    assert texture_loss(base + 0.4, base).item() < 1e-4, "brightness is not texture"
    stripes = noise[..., :1].expand(2, 1, 64, 64)
    diagonal = torch.stack([noise[:, :, 0].roll(k, dims=-1) for k in range(64)], dim=2)
    colored = 0.05 * torch.randn(2, 3, 64, 64)
    for fake in (base, base + 3 * noise, base + stripes, base + diagonal, base + colored):
        assert texture_loss(fake, base + other_noise) > 2 * same_texture


def test_log_gradient_energy_checkerboard_has_known_values():
    checkerboard = 0.1 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(1, 3, 32, 32)
    energy = log_gradient_energy(checkerboard)
    assert energy.shape == (1, 12, 4, 4)
    horizontal_vertical = energy[0, [0, 3]].flatten().tolist()
    assert horizontal_vertical == pytest.approx([math.log(0.2)] * 32, abs=1e-3), "neighbors differ by 0.2"
    assert energy[0, [1, 2, 4, 5]].max() < math.log(0.01), "no color differences in gray"
    assert energy[0, [6, 9]].max() < math.log(0.01), "equal values along the diagonals"


def square_maps(count: int) -> torch.Tensor:
    """Sketch maps of a square outline of 80 pixels in 128."""
    lines, inside = torch.zeros(count, 1, 128, 128), torch.zeros(count, 1, 128, 128)
    lines[..., 24:104, 24:104] = inside[..., 24:104, 24:104] = 1
    lines[..., 26:102, 26:102] = 0
    return torch.cat([lines, inside], dim=1)


def test_structure_correlation_known_pairs_have_known_values():
    image, other = torch.randn(2, 3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    maps = square_maps(3)
    assert torch.allclose(structure_correlation(image, image, maps), torch.ones(3), atol=1e-3)
    assert torch.allclose(structure_correlation(image, -image, maps), -torch.ones(3), atol=1e-3)
    assert structure_correlation(image, other, maps).abs().max() < 0.2
    brighter = 0.5 * image + 0.2
    assert torch.allclose(structure_correlation(image, brighter, maps), torch.ones(3), atol=1e-3), (
        "tone is no structure"
    )


def test_structure_correlation_looks_inside_the_outline_only():
    image, other = torch.randn(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    maps = square_maps(1)
    outside = torch.where(maps[:, 1:] > 0, image, other)
    assert structure_correlation(image, outside, maps) > 0.95
    assert structure_correlation(image, image, torch.zeros_like(maps)) == 0, "nothing is enclosed"
