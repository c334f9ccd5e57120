import pytest
import torch

from helpers.models.cgan import CGANConfig
from helpers.models.networks import Discriminator, Encoder, Generator, high_pass, line_visibility

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def small(size: int = 64) -> CGANConfig:
    return CGANConfig(size, CLASSES, base_channels=8)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_shapes_and_ranges(size):
    torch.manual_seed(0)
    settings = small(size)
    sketch, label, noise = torch.rand(2, 1, size, size).round(), torch.tensor([0, 6]), torch.randn(2, settings.z_dim)
    image = settings.generator().eval()(sketch, label, noise)
    assert settings.generator().size == size
    assert image.shape == (2, 3, size, size) and image.abs().max() <= 1
    (patches, whole), features = Discriminator(settings.channels(), 7)(image, sketch, label)
    assert patches.shape == (2, 16 * 16) and whole.shape == (2,) and features.shape[0] == 2
    mean, log_variance = Encoder(7, settings.z_dim)(image, label)
    assert mean.shape == log_variance.shape == noise.shape


def test_sketch_label_and_noise_all_change_the_picture():
    torch.manual_seed(0)
    generator = small().generator().eval()

    def picture(sketch: torch.Tensor, label: int, seed: int) -> torch.Tensor:
        noise = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(5)  # the same grain
        return generator(sketch, torch.tensor([label]), noise)

    blank, line = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    line[..., 32, :] = 1
    base = picture(blank, 0, 0)
    assert torch.equal(base, picture(blank, 0, 0))
    for other in (picture(line, 0, 0), picture(blank, 1, 0), picture(blank, 0, 1)):
        assert (other - base).abs().mean() > 1e-3


def test_the_label_reaches_only_the_whole_logit():
    torch.manual_seed(0)
    discriminator = Discriminator(small().channels(), 7).eval()
    image, sketch = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    one, _ = discriminator(image, sketch, torch.tensor([0, 1]))
    other, _ = discriminator(image, sketch, torch.tensor([2, 1]))
    assert torch.equal(one[0], other[0]) and one[1][0] != other[1][0] and one[1][1] == other[1][1]


def test_lines_around_finds_the_inside_of_an_outline_and_survives_a_gap():
    sketch = torch.zeros(1, 1, 16, 16)
    sketch[..., 4, 4:12] = sketch[..., 11, 4:12] = sketch[..., 4:12, 4] = sketch[..., 4:12, 11] = 1
    around = line_visibility(sketch)[0]
    assert around.shape == (4, 16, 16) and set(around.unique().tolist()) == {0, 1}
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:12, 4:12] = True
    assert torch.equal(around.sum(dim=0) == 4, inside)
    assert around[:, 0, 0].sum() == 0 and around[:, 8, 0].sum() == 1
    sketch[..., 8, 11] = 0
    inside[8, 5:] = False
    assert torch.equal(line_visibility(sketch)[0].sum(dim=0) == 4, inside), "one row, no more, is lost through a gap"


def test_lines_around_closes_small_gaps():
    sketch = torch.zeros(1, 1, 64, 64)
    sketch[..., 12, 12:52] = sketch[..., 51, 12:52] = sketch[..., 12:52, 12] = sketch[..., 12:52, 51] = 1
    inside = line_visibility(sketch).sum(dim=1) == 4
    sketch[..., 30:34, 51] = 0
    assert torch.equal(line_visibility(sketch).sum(dim=1) == 4, inside), "four of 64 pixels are closed"
    sketch[..., 24:40, 51] = 0
    lost = inside & (line_visibility(sketch).sum(dim=1) != 4)
    assert lost.any(dim=2).sum() == 16, "sixteen are not"


def test_any_width_makes_a_network():
    for width in (5, 50, 56):
        generator = CGANConfig(64, CLASSES, base_channels=width).generator()
        assert isinstance(generator, Generator) and generator.size == 64


def test_detail_is_what_a_blur_takes_away():
    torch.manual_seed(0)
    flat = torch.full((1, 3, 32, 32), 0.3)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    grain = flat + 0.02 * torch.randn(1, 3, 32, 32)
    assert high_pass(flat).abs().max() < 1e-5
    assert high_pass(ramp)[..., 4:-4].abs().max() < 1e-4, "a smooth slope has no detail"
    assert high_pass(grain).std().item() == pytest.approx(0.2, rel=0.1)


def test_a_fresh_generator_has_no_screen_pattern():
    torch.manual_seed(0)
    image = small().generator()(torch.zeros(1, 1, 64, 64), torch.tensor([0]), torch.zeros(1, 16))
    blocks = image.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert blocks.std(dim=-1).max() < 1e-6, "the four pixels of a block begin alike"


@pytest.mark.parametrize("batches", [450, 8_000])  # of a short training and of a long one
def test_noise_gets_the_mean_and_covariance_of_photographs_once_trained(batches):
    torch.manual_seed(0)
    generator = small().generator()
    centre, mix = torch.linspace(-1, 1, 16), torch.diag(torch.linspace(0.5, 2, 16))
    mix[3, 2] = 0.8  # the third and the fourth number go together
    for _ in range(batches):
        generator.update_stats(centre + torch.randn(4, 16) @ mix.T)
    assert torch.allclose(generator.centre, centre, atol=0.25)
    assert torch.allclose(generator.covariance, mix @ mix.T, rtol=0.15, atol=0.3)
    noise = torch.randn(20_000, 16)
    assert generator.match_stats(noise) is noise, "while it learns, noise is as it is"
    known = generator.eval().match_stats(noise)
    assert torch.allclose(known.mean(dim=0), generator.centre, atol=0.05)
    assert torch.allclose(known.T.cov(), generator.covariance, rtol=0.05, atol=0.15)
    assert generator.half().match_stats(noise[:4]).isfinite().all(), "released weights are halved"


def test_what_was_seen_long_ago_is_forgotten():
    torch.manual_seed(0)
    generator = small().generator()
    for _ in range(1_000):
        generator.update_stats(5 + torch.randn(16, 16))
    for _ in range(1_000):
        generator.update_stats(torch.randn(16, 16))
    assert generator.seen == generator.WINDOW and generator.centre.abs().max() < 0.15


def test_earlier_weights_knew_the_spread_of_each_noise_number():
    generator = small().generator()
    weights = generator.state_dict()
    del weights["covariance"], weights["seen"]
    generator.load_state_dict(weights | {"spread": torch.linspace(1, 2, 16)})
    assert torch.equal(generator.covariance, torch.linspace(1, 2, 16).square().diag())
    assert generator.seen == generator.WINDOW


def test_a_trained_generator_draws_with_known_noise():
    torch.manual_seed(0)
    generator = small().generator()
    generator.update_stats(2 + 3 * torch.randn(4_000, 16))
    sketch, label, noise = torch.zeros(1, 1, 64, 64), torch.tensor([0]), torch.randn(1, 16)

    def picture(noise: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same grain
        return generator(sketch, label, noise)

    drawn, known = generator.eval() and picture(noise), generator.match_stats(noise)
    generator.train()
    assert torch.equal(drawn, picture(known).clamp(-1, 1))
    assert not torch.equal(drawn, picture(noise).clamp(-1, 1))
