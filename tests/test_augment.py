import pytest
import torch
import torch.nn.functional as F

from helpers.models.augment import augment, cutout, jitter_color, random_affine, random_d4_translate, reflect


def matching_pairs(count: int = 64, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, S, S) whose brightness equals their sketch (B, 1, S, S), to compare both after augmentation."""
    torch.manual_seed(0)
    sketches = (torch.rand(count, 1, size, size) > 0.7).float()
    return (2 * sketches - 1).repeat(1, 3, 1, 1), sketches


def test_augment_translate_moves_image_and_sketch_alike():
    images, sketches = matching_pairs()
    moved_images, moved_sketches = augment(images, sketches, color_jitter=0, translate=0.1)
    assert moved_images.shape == images.shape and moved_sketches.shape == sketches.shape
    assert torch.equal(moved_images, (2 * moved_sketches - 1).repeat(1, 3, 1, 1))
    moved = (moved_sketches != sketches).flatten(1).any(dim=1)
    assert moved.float().mean() > 0.9


def test_augment_scale_moves_image_and_mask_alike_by_any_angle():
    images, masks = matching_pairs(32, 32)
    moved_images, moved_masks = augment(images, masks, color_jitter=0, translate=0.1, scale=0.2)
    assert torch.allclose(moved_images, (2 * moved_masks - 1).repeat(1, 3, 1, 1), atol=1e-5)
    interpolated = (moved_masks > 0.01) & (moved_masks < 0.99)
    assert interpolated.float().mean() > 0.3, "multiples of 90 degrees would keep 0 and 1"


def test_augment_color_jitter_changes_images_only():
    images, sketches = matching_pairs()
    jittered, same_sketches = augment(images, sketches, color_jitter=0.5, translate=0)
    assert not torch.equal(jittered, images) and torch.equal(same_sketches, sketches)


def test_augment_strength_zero_returns_inputs():
    images, sketches = matching_pairs()
    same_images, same_sketches = augment(images, sketches, color_jitter=0, translate=0)
    assert torch.equal(same_images, images) and torch.equal(same_sketches, sketches)


def test_augment_same_seed_gives_same_result():
    images, sketches = matching_pairs(4)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(augment(images, sketches, color_jitter=0.2, translate=0.1)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_augment_gradients_reach_every_image():
    images, sketches = matching_pairs(4)
    images.requires_grad_()
    augment(images, sketches, color_jitter=0.2, translate=0.1)[0].square().sum().backward()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_jitter_color_black_images_get_one_bounded_change_each():
    changed = jitter_color(torch.zeros(100, 3, 4, 4), 0.2).flatten(1)
    assert changed.abs().max() <= 0.2 and changed.std(dim=1).max() < 1e-6
    assert changed[:, 0].std() > 0.05


def test_cutout_removes_one_square_per_image_of_the_expected_area():
    torch.manual_seed(0)
    removed = (cutout(torch.ones(2000, 3, 32, 32), side=0.5) == 0).float()
    assert torch.equal(removed[:, 0], removed[:, 1]) and torch.equal(removed[:, 0], removed[:, 2])
    rows, columns = removed[:, 0].amax(dim=2), removed[:, 0].amax(dim=1)
    assert torch.equal(removed[:, 0], rows[:, :, None] * columns[:, None]), "rectangles"
    assert (rows.diff(dim=1).abs().sum(dim=1) <= 2).all(), "in one piece"
    assert rows.sum(dim=1).min() >= 8 and rows.sum(dim=1).max() <= 16, "at least half of it lies in the image"
    assert removed.mean().item() == pytest.approx((7 / 16) ** 2, abs=0.01), "1/16 per axis lies beyond the edges"


def test_cutout_keeps_other_pixels_and_side_zero_keeps_all():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 16, 16)
    cut = cutout(images, side=0.4)
    assert torch.equal(torch.where(cut == 0, images, cut), images) and not torch.equal(cut, images)
    assert torch.equal(cutout(images, side=0.0), images)


def symmetries(image: torch.Tensor) -> list[torch.Tensor]:
    """The 8 rotations and flips of an image (..., S, S)."""
    return [x.rot90(k, (-2, -1)) for x in (image, image.flip(-1)) for k in range(4)]


def test_random_d4_translate_without_shift_gives_all_8_rotations_and_flips():
    torch.manual_seed(0)
    image = torch.arange(64.0).view(1, 8, 8)
    moved = random_d4_translate(image.expand(200, 1, 8, 8), translate=0)
    counts = [sum(torch.equal(m, symmetry) for m in moved) for symmetry in symmetries(image)]
    assert sum(counts) == 200 and min(counts) > 10


def test_random_d4_translate_gives_symmetries_of_all_shifts_with_reflected_edges():
    torch.manual_seed(0)
    image = torch.arange(64.0).view(1, 8, 8)
    padded = F.pad(image, (2, 2, 2, 2), mode="reflect")
    expected = {
        tuple(x.flatten().tolist()): (top, left)
        for top in range(5)
        for left in range(5)
        for x in symmetries(padded[:, top : top + 8, left : left + 8])
    }
    moved = random_d4_translate(image.expand(400, 1, 8, 8), translate=0.25)
    shifts = {expected[tuple(m.flatten().tolist())] for m in moved}
    assert len(expected) == 200 and len(shifts) == 25, "up to 2 pixels in both directions"


def test_random_d4_translate_moves_all_channels_alike_and_passes_gradients():
    torch.manual_seed(0)
    image = torch.randn(16, 1, 8, 8)
    factors = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0])[:, None, None]
    moved = random_d4_translate(image * factors, translate=0.25)
    assert torch.equal(moved, moved[:, :1] * factors)
    image.requires_grad_()
    random_d4_translate(image, translate=0).sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image)), "every pixel is used once"


def test_reflect_positions_outside_are_mirrored_at_the_edge_pixels():
    assert reflect(torch.arange(-3, 9), size=6).tolist() == [3, 2, 1, 0, 1, 2, 3, 4, 5, 4, 3, 2]


def test_random_affine_without_shift_scales_disc_about_center():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    disc = (x.hypot(y) < 16).float().expand(200, 1, 64, 64)
    moved = random_affine(disc, translate=0, scale=0.3)
    area_ratio = moved.sum(dim=(1, 2, 3)) / disc[0].sum()
    assert 0.45 < area_ratio.min() < 0.75 and 1.35 < area_ratio.max() < 2.2, "each axis by up to exp(0.375)"
    for axis in (x, y):
        center = (moved * axis).sum(dim=(1, 2, 3)) / moved.sum(dim=(1, 2, 3))
        assert center.abs().max() < 0.1
