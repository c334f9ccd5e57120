import pytest
import torch
from torch import nn

from helpers.models.cgan import CGANConfig
from helpers.models.networks import Discriminator, Encoder, Generator, fuse_batchnorm, high_pass, line_visibility

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def small(size: int = 64, base_channels: int = 8) -> CGANConfig:
    return CGANConfig(size, CLASSES, base_channels=base_channels)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return small().generator()


@pytest.mark.parametrize("size", [64, 128, 256])
def test_networks_every_size_have_documented_shapes(size):
    torch.manual_seed(0)
    config = small(size)
    sketch, label, z = torch.rand(2, 1, size, size).round(), torch.tensor([0, 6]), torch.randn(2, config.z_dim)
    generator = config.generator().eval()
    image = generator(sketch, label, z)
    assert generator.size == size
    assert image.shape == (2, 3, size, size) and image.abs().max() <= 1
    (patch_logits, global_logit), features = Discriminator(config.channels(), 7)(image, sketch, label)
    assert patch_logits.shape == (2, 16 * 16) and global_logit.shape == (2,)
    assert features.shape == (2, config.channels()[-1])
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


def test_discriminator_other_label_changes_only_the_global_logit():
    torch.manual_seed(0)
    discriminator = Discriminator(small().channels(), 7).eval()
    image, sketch = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    (patch0, global0), _ = discriminator(image, sketch, torch.tensor([0, 1]))
    (patch1, global1), _ = discriminator(image, sketch, torch.tensor([2, 1]))
    assert torch.equal(patch0, patch1) and global0[0] != global1[0] and global0[1] == global1[1]


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


def test_high_pass_keeps_noise_and_removes_flat_and_sloped_areas():
    torch.manual_seed(0)
    flat = torch.full((1, 3, 32, 32), 0.3)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    noise = flat + 0.02 * torch.randn(1, 3, 32, 32)
    assert high_pass(flat).abs().max() < 1e-5
    assert high_pass(ramp)[..., 4:-4].abs().max() < 1e-4
    assert high_pass(noise).std().item() == pytest.approx(0.2, rel=0.1), "10 times as strong"


def test_fuse_batchnorm_nested_network_keeps_its_output():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)), nn.ReLU())
    network(5 + 3 * torch.randn(64, 3, 8, 8))  # running statistics other than 0 and 1
    x = torch.randn(2, 3, 8, 8)
    expected = network.eval()(x)
    fused = fuse_batchnorm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert torch.allclose(fused(x), expected, atol=1e-5)


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
