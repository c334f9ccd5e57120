import torch

from helpers.models.augment import augment, jitter_color, random_affine, random_d4_translate


def pair(count: int = 64, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose brightness is their sketch, so that both can be compared after any move."""
    torch.manual_seed(0)
    sketches = (torch.rand(count, 1, size, size) > 0.7).float()
    return (2 * sketches - 1).repeat(1, 3, 1, 1), sketches


def test_picture_and_sketch_move_together():
    images, sketches = pair()
    moved, lines = augment(images, sketches, color_jitter=0)
    assert moved.shape == images.shape and lines.shape == sketches.shape
    assert torch.equal(moved, (2 * lines - 1).repeat(1, 3, 1, 1))
    changed = (lines != sketches).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.9, "nearly all are moved, each in its own way"


def test_sketches_keep_their_colours():
    images, sketches = pair()
    _, lines = augment(images, sketches, color_jitter=0.5, translate=0)
    assert set(lines.unique().tolist()) == {0.0, 1.0}


def test_off_is_off():
    images, sketches = pair()
    changed, lines = augment(images, sketches, color_jitter=0, translate=0)
    assert torch.equal(changed, images) and torch.equal(lines, sketches)


def test_moves_keep_the_content():
    pictures = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(32, 1, 1, 1)
    moved = random_d4_translate(pictures, translate=0)
    assert torch.equal(moved.flatten(1).sort(dim=1).values, pictures.flatten(1))
    assert len({tuple(m.flatten().tolist()) for m in moved}) > 4, "several of the eight turns and mirrorings"


def test_colour_is_one_change_per_picture_and_bounded():
    images = torch.zeros(100, 3, 4, 4)
    changed = jitter_color(images, 0.2)
    assert changed.abs().max() <= 0.2 and changed.flatten(1).std(dim=1).max() < 1e-6
    assert changed.flatten(1)[:, 0].std() > 0.05


def test_gradients_reach_the_images():
    images, sketches = pair(4)
    images.requires_grad_()
    augment(images, sketches)[0].square().sum().backward()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_the_seed_decides():
    images, sketches = pair(4)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(augment(images, sketches)[0])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_zooming_moves_picture_and_mask_together_and_by_any_angle():
    images, masks = pair(32, 32)
    moved, found = augment(images, masks, color_jitter=0, translate=0.1, scale=0.2)
    assert torch.allclose(moved, (2 * found - 1).repeat(1, 3, 1, 1), atol=1e-5)
    assert ((found > 0.01) & (found < 0.99)).float().mean() > 0.3, "between the pixels too, unlike right angles"


def test_zoom_keeps_a_disc_where_it_is_and_changes_its_size():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    disc = (x.hypot(y) < 16).float().expand(200, 1, 64, 64)
    moved = random_affine(disc, translate=0, scale=0.3)
    sizes = moved.sum(dim=(1, 2, 3)) / disc[0].sum()
    assert 0.45 < sizes.min() < 0.75 and 1.35 < sizes.max() < 2.2, "both axes by up to exp(0.375)"
    middle = (moved * x).sum(dim=(1, 2, 3)) / moved.sum(dim=(1, 2, 3))
    assert middle.abs().max() < 0.1
