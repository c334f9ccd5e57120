import pytest
import torch
from torch import nn

from helpers.models.gan import GANConfig
from helpers.models.networks import (
    Discriminator,
    DiscriminatorOutput,
    Encoder,
    Generator,
    box_blur,
    high_pass,
    line_visibility,
    minibatch_std,
    sketch_maps,
)

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def small(size: int = 64, base_channels: int = 8, **changes) -> GANConfig:
    return GANConfig(size, CLASSES, base_channels=base_channels, **changes)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return small().generator()


def no_noise(x: torch.Tensor, channels: int) -> torch.Tensor:
    return x.new_zeros(len(x), channels, *x.shape[2:])


def square_outline(size: int = 64, start: int = 16, stop: int = 48) -> torch.Tensor:
    """Sketch (1, 1, S, S) of a square whose lines are one pixel wide and lie in rows and columns [start, stop)."""
    sketch = torch.zeros(1, 1, size, size)
    sketch[..., start:stop, start:stop] = 1
    sketch[..., start + 1 : stop - 1, start + 1 : stop - 1] = 0
    return sketch


@pytest.mark.parametrize("size", [64, 128, 256])
def test_networks_every_size_have_documented_shapes(size):
    torch.manual_seed(0)
    config = small(size)
    sketch, label, z = torch.rand(2, 1, size, size).round(), torch.tensor([0, 6]), torch.randn(2, config.z_dim)
    generator = config.generator().eval()
    image = generator(sketch, label, z)
    assert generator.size == size
    assert image.shape == (2, 3, size, size) and image.abs().max() <= 1
    output = Discriminator(config.channels(), 7)(image, sketch_maps(sketch), label)
    assert output.patch.shape == (2, 16 * 16) and output.whole.shape == (2,) and output.heads == ()
    assert output.features.shape == (2, config.channels()[-1])
    mu, logvar = Encoder(7, config.z_dim)(image, label)
    assert mu.shape == logvar.shape == z.shape


@pytest.mark.parametrize("base_channels", [5, 50, 56])  # channels that 16 does not divide
def test_generator_odd_base_channels_returns_image(base_channels):
    generator = small(base_channels=base_channels).generator().eval()
    image = generator(torch.zeros(1, 1, 64, 64), torch.tensor([0]), torch.zeros(1, 16))
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all()


def test_generator_sketch_label_and_z_change_the_image(generator):
    def image(sketch: torch.Tensor, label: int, seed: int) -> torch.Tensor:
        z = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(5)  # the same per-pixel noise
        return generator(sketch, torch.tensor([label]), z)

    generator.eval()
    blank, line = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    line[..., 32, :] = 1
    base = image(blank, 0, 0)
    assert torch.equal(base, image(blank, 0, 0))
    for other in (image(line, 0, 0), image(blank, 1, 0), image(blank, 0, 1)):
        assert (other - base).abs().mean() > 1e-3


def test_generator_untrained_has_equal_pixels_in_every_block(generator):
    image = generator(torch.zeros(1, 1, 64, 64), torch.tensor([0]), torch.zeros(1, 16))
    blocks = image.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert blocks.std(dim=-1).max() < 1e-6, "no checkerboard pattern"
    assert image.std() > 1e-3


@pytest.mark.parametrize("fine_lines", [False, True])
def test_generator_line_inside_an_outline_reaches_fine_scales_with_fine_lines_only(fine_lines):
    torch.manual_seed(0)
    generator, inputs = small(fine_lines=fine_lines).generator().eval(), []
    generator.stem.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    outline = square_outline()
    streak = outline.clone()
    streak[..., 32, 24:40] = 1
    images = [generator(s, torch.tensor([0]), torch.zeros(1, 16), noise=no_noise) for s in (outline, streak)]
    assert torch.equal(*inputs) != fine_lines
    assert (images[0] - images[1]).abs().mean() > 1e-3, "coarse scales get it in both"


# -------------------------------------------------------------------------------------------------------------- code


def test_encoder_code_does_not_change_z_and_depends_on_its_place_only():
    torch.manual_seed(0)
    encoder, label = Encoder(7, 16, code_channels=4), torch.tensor([0, 6])
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    mu, logvar = encoder(image, label)
    assert mu.shape == logvar.shape == (2, 16 + 4 * 64)
    image[..., :8, :8] *= -1  # the first of 8 x 8 places
    changed = (encoder(image, label)[0] != mu)[:, 16:].unflatten(1, (4, 8, 8)).any(dim=1)
    assert changed[:, 0, 0].all() and not changed[:, 3:].any() and not changed[:, :, 3:].any()
    mu, _ = encoder(image, label)
    nn.init.normal_(encoder.code_out[0].weight)
    other_mu, _ = encoder(image, label)
    assert torch.equal(mu[:, :16], other_mu[:, :16]) and (mu[:, 16:] != other_mu[:, 16:]).all()


def test_generator_code_changes_mostly_its_own_place(generator):
    def image(code: torch.Tensor | None) -> torch.Tensor:
        return generator(square_outline(), torch.tensor([0]), torch.zeros(1, 16), code=code, noise=no_noise)

    generator.eval()
    code = torch.zeros(1, 4, 8, 8)
    base = image(code)
    assert torch.equal(base, image(None)), "without a code the noise is the code"
    code[..., 1, 1] = 2
    difference = (image(code) - base).abs()
    assert difference[..., 8:16, 8:16].mean() > 4 * difference[..., 40:, 40:].mean()


# ----------------------------------------------------------------------------------------------------- discriminator


def test_discriminator_other_label_changes_only_the_global_logit():
    torch.manual_seed(0)
    discriminator = Discriminator(small().channels(), 7).eval()
    image, maps = torch.randn(2, 3, 64, 64), sketch_maps(torch.rand(2, 1, 64, 64))
    output, other = (discriminator(image, maps, torch.tensor([label, 1])) for label in (0, 2))
    assert torch.equal(output.patch, other.patch) and (output.whole != other.whole).tolist() == [True, False]


def test_discriminator_two_groups_give_the_outputs_of_each_alone():
    torch.manual_seed(0)
    discriminator = Discriminator(small().channels(), 7)
    real, fake, maps = torch.randn(4, 3, 64, 64), torch.zeros(4, 3, 64, 64), torch.rand(4, 2, 64, 64)
    label = torch.arange(4)
    both = [torch.cat([real, fake]), maps.repeat(2, 1, 1, 1), label.repeat(2)]
    alone = [discriminator(images, maps, label) for images in (real, fake)]
    for together, single in zip(discriminator(*both, num_groups=2).split(), alone, strict=True):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together[:3], single[:3], strict=True))
    mixed, _ = discriminator(*both).split()
    assert not torch.allclose(mixed.whole, alone[0].whole, atol=1e-5), "one group has one standard deviation"


def test_minibatch_std_of_groups_is_that_of_each_group():
    torch.manual_seed(0)
    equal, opposite = torch.full((2, 3, 4, 4), 5.0), torch.ones(2, 3, 4, 4)
    opposite[1] = -1
    std = minibatch_std(torch.cat([equal, 2 * opposite]), num_groups=2)
    assert std.shape == (4, 1, 1, 1) and std.flatten().tolist() == pytest.approx([0, 0, 2, 2], abs=1e-3)
    x = torch.randn(6, 3, 4, 4)
    expected = torch.cat([minibatch_std(half) for half in x.chunk(2)])
    assert torch.allclose(minibatch_std(x, num_groups=2), expected)
    assert minibatch_std(x).flatten().tolist() == pytest.approx([x.std(dim=0, correction=0).mean().item()] * 6)


def test_discriminator_output_split_halves_every_part():
    output = DiscriminatorOutput(
        patch=torch.arange(12).view(4, 3),
        whole=torch.arange(4),
        features=torch.arange(8).view(4, 2),
        heads=(torch.arange(4)[:, None], 10 + torch.arange(4)[:, None]),
    )
    first, second = output.split()
    assert first.whole.tolist() == [0, 1] and second.whole.tolist() == [2, 3]
    assert first.patch.tolist() == [[0, 1, 2], [3, 4, 5]] and second.features.tolist() == [[4, 5], [6, 7]]
    assert [head.flatten().tolist() for head in (*first.heads, *second.heads)] == [[0, 1], [10, 11], [2, 3], [12, 13]]
    assert first.logits() == (first.patch, first.whole) and output._replace(heads=()).split()[1].heads == ()


# --------------------------------------------------------------------------------------------------- fixed functions


def test_line_visibility_square_outline_is_seen_from_inside_in_all_directions():
    sketch = torch.zeros(1, 1, 16, 16)
    sketch[..., 4, 4:12] = sketch[..., 11, 4:12] = sketch[..., 4:12, 4] = sketch[..., 4:12, 11] = 1
    visibility = line_visibility(sketch)[0]
    assert visibility.shape == (4, 16, 16) and set(visibility.unique().tolist()) == {0, 1}
    enclosed = torch.zeros(16, 16, dtype=torch.bool)
    enclosed[4:12, 4:12] = True
    assert torch.equal(visibility.sum(dim=0) == 4, enclosed)
    assert visibility[:, 0, 0].sum() == 0 and visibility[:, 8, 0].sum() == 1
    sketch[..., 8, 11] = 0
    enclosed[8, 5:] = False
    assert torch.equal(line_visibility(sketch)[0].sum(dim=0) == 4, enclosed), "a gap of one pixel opens one row"


def test_line_visibility_gap_up_to_a_twelfth_is_closed():
    sketch = torch.zeros(1, 1, 64, 64)
    sketch[..., 12, 12:52] = sketch[..., 51, 12:52] = sketch[..., 12:52, 12] = sketch[..., 12:52, 51] = 1
    enclosed = line_visibility(sketch).sum(dim=1) == 4
    sketch[..., 30:34, 51] = 0
    assert torch.equal(line_visibility(sketch).sum(dim=1) == 4, enclosed), "4 of 64 pixels"
    sketch[..., 24:40, 51] = 0
    opened = enclosed & (line_visibility(sketch).sum(dim=1) != 4)
    assert opened.any(dim=2).sum() == 16, "16 of 64 pixels stay open"


def test_sketch_maps_are_the_lines_and_the_enclosed_square_at_half_the_resolution():
    filled = torch.zeros(64, 64)
    filled[16:48, 16:48] = 1
    for outline in (square_outline(), square_outline(start=17, stop=47)):  # the second is rounded to even pixels
        lines, area = sketch_maps(outline)[0]
        assert torch.equal(lines, outline[0, 0]) and torch.equal(area, filled)
    assert sketch_maps(torch.zeros(2, 1, 64, 64)).shape == (2, 2, 64, 64)
    assert not sketch_maps(torch.zeros(2, 1, 64, 64)).any()


def test_box_blur_keeps_constants_and_spreads_a_pixel_over_a_square():
    constant = torch.full((2, 3, 16, 16), 0.7)
    assert torch.allclose(box_blur(constant, 3), constant)
    pixel = torch.zeros(1, 1, 15, 15)
    pixel[..., 7, 7] = 1
    expected = torch.zeros(1, 1, 15, 15)
    expected[..., 5:10, 5:10] = 1 / 25
    assert torch.allclose(box_blur(pixel, 2), expected, atol=1e-6)


def test_high_pass_keeps_noise_and_removes_flat_and_sloped_areas():
    torch.manual_seed(0)
    flat = torch.full((1, 3, 32, 32), 0.3)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    noise = flat + 0.02 * torch.randn(1, 3, 32, 32)
    assert high_pass(flat).abs().max() < 1e-5
    assert high_pass(ramp)[..., 4:-4].abs().max() < 1e-4
    assert high_pass(noise).std().item() == pytest.approx(0.2, rel=0.1), "10 times as strong"


# ------------------------------------------------------------------------------------------------- latent statistics


@pytest.mark.parametrize("steps", [450, 2_000])  # more than WINDOW latents in both
def test_match_stats_eval_mode_gives_mean_and_covariance_of_the_latents(generator, steps):
    mean, mix = torch.linspace(-1, 1, 16), torch.diag(torch.linspace(0.5, 2, 16))
    mix[3, 2] = 0.8  # correlation of two dimensions
    for _ in range(steps):
        generator.update_stats(mean + torch.randn(4, 16) @ mix.T)
    assert torch.allclose(generator.running_mean, mean, atol=0.25)
    assert torch.allclose(generator.running_cov, mix @ mix.T, rtol=0.15, atol=0.3)
    z = torch.randn(20_000, 16)
    assert generator.match_stats(z) is z, "training mode"
    matched = generator.eval().match_stats(z)
    assert torch.allclose(matched.mean(dim=0), generator.running_mean, atol=0.05)
    assert torch.allclose(matched.T.cov(), generator.running_cov, rtol=0.05, atol=0.15)
    assert generator.half().match_stats(z[:4]).isfinite().all(), "half precision, as in released weights"


def test_update_stats_old_latents_are_forgotten(generator):
    for _ in range(200):
        generator.update_stats(5 + torch.randn(16, 16))
    for _ in range(500):
        generator.update_stats(torch.randn(16, 16))
    assert generator.num_seen == generator.WINDOW and generator.running_mean.abs().max() < 0.15


def test_generator_eval_mode_maps_z_by_match_stats(generator):
    generator.update_stats(2 + 3 * torch.randn(4_000, 16))
    z = torch.randn(1, 16)

    def image(z: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same per-pixel noise
        return generator(torch.zeros(1, 1, 64, 64), torch.tensor([0]), z)

    evaluated, matched = generator.eval() and image(z), generator.match_stats(z)
    generator.train()
    assert torch.equal(evaluated, image(matched).clamp(-1, 1))
    assert not torch.equal(evaluated, image(z).clamp(-1, 1))
