import torch

from helpers.models.augment import augment, jitter_color, random_affine, random_d4_translate


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


def test_random_d4_translate_without_shift_permutes_pixels():
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(32, 1, 1, 1)
    moved = random_d4_translate(images, translate=0)
    assert torch.equal(moved.flatten(1).sort(dim=1).values, images.flatten(1))
    assert len({tuple(m.flatten().tolist()) for m in moved}) > 4, "several of the 8 rotations and flips"


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
