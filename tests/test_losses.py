import math

import pytest
import torch

from helpers.models.losses import (
    d_loss,
    g_loss,
    hinge_d_loss,
    hinge_g_loss,
    inscribed_circle,
    kl_divergence,
    log_gradient_energy,
    otsu_mask,
    otsu_separability,
    r1_penalty,
    region_means,
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


# ------------------------------------------------------------------------------------------- sketches without a pair

LESION, SKIN = torch.tensor([-0.2, -0.4, -0.5]), torch.tensor([0.6, 0.4, 0.3])


def two_tone_images(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with a dark square on light skin, and the region of the square."""
    region = torch.zeros(2, 1, size, size)
    region[:, :, 8:20, 8:20] = 1
    return torch.where(region.bool(), LESION[:, None, None], SKIN[:, None, None]), region


def test_region_means_two_tones_are_both_colors():
    means = region_means(*two_tone_images())
    assert torch.allclose(means, torch.stack([LESION, SKIN]).expand(2, 2, 3), atol=1e-3)


def test_otsu_separability_two_tones_depends_on_region_and_noise():
    torch.manual_seed(0)
    image, region = two_tone_images()
    assert otsu_separability(image, region).tolist() == pytest.approx([1, 1], abs=2e-3)
    assert otsu_separability(image, region.roll(12, dims=3)).max() < 0.1, "other position"
    assert otsu_separability(image, torch.zeros_like(region)).max() < 1e-3, "empty region"
    fraction = 144 / 32**2  # of the image inside the square
    between, noise = 3 * fraction * (1 - fraction) * 0.8**2, 3 * 0.4**2
    noisy = otsu_separability(image + 0.4 * torch.randn(2, 3, 32, 32), region)
    assert noisy.tolist() == pytest.approx([between / (between + noise)] * 2, abs=0.04)


def test_otsu_mask_dark_square_is_found():
    torch.manual_seed(0)
    image, region = two_tone_images()
    assert torch.equal(otsu_mask(image + 0.1 * torch.randn_like(image)), region)
    assert otsu_mask(torch.zeros(1, 3, 8, 8)).shape == (1, 1, 8, 8), "an image of one color"


def test_inscribed_circle_disc_is_kept_and_corners_are_dropped():
    axis = torch.linspace(-1, 1, 33)
    inside = (axis[:, None].square() + axis.square() <= 1).float()
    pixels = inscribed_circle(inside.expand(2, 3, 33, 33))
    assert pixels.shape == (2, 3, int(inside.sum()), 1) and (pixels == 1).all()
