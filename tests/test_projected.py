import pytest
import torch
from torch import nn

from helpers.models import projected
from helpers.models.gan import GANConfig
from helpers.models.networks import sketch_maps
from helpers.models.projected import (
    MAX_FEATURE_SIZE,
    MIN_FEATURE_SIZE,
    OUT_CHANNELS,
    STAGES,
    FeatureHead,
    FeatureNetwork,
    ProjectedDiscriminator,
)
from helpers.models.weights import lite_network

CLASSES = ("MEL", "NV", "BCC")


@pytest.fixture(scope="module")
def feature_network() -> FeatureNetwork:
    return FeatureNetwork()


def random_images(size: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", [64, 128, 224, 256])
def test_feature_network_returns_maps_at_1_4_to_1_32_of_128_to_224_pixels(feature_network, size):
    maps = feature_network(random_images(size))
    side = min(max(size, MIN_FEATURE_SIZE), MAX_FEATURE_SIZE)
    sizes = (side // 4, side // 8, side // 16, side // 32)
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip(OUT_CHANNELS, sizes, strict=True)]
    assert all(0.1 < m.std() < 30 for m in maps)


def test_feature_network_fused_batchnorm_keeps_the_pretrained_output(feature_network):
    network = lite_network("efficientnet_lite1").eval()
    x = network.bn1(network.conv_stem(random_images(64)))
    fused = feature_network.stem(random_images(64))
    for (start, stop), stage in zip(STAGES, feature_network.stages, strict=True):
        x, fused = network.blocks[start:stop](x), stage(fused)
        assert torch.allclose(x, fused, atol=1e-3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in feature_network.modules())


def test_feature_network_gradient_reaches_every_image_and_no_weight(feature_network):
    images = random_images(64).requires_grad_()
    sum(m.square().mean() for m in feature_network(images)).backward()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert all(weight.grad is None for weight in feature_network.parameters())


def test_feature_network_shifted_square_is_nearer_than_a_disc(feature_network):
    axis = torch.linspace(-1, 1, 64)
    radius2, max_norm = axis[:, None].square() + axis.square(), torch.maximum(axis[:, None].abs(), axis.abs())
    square, disc = ((region.float() * 2 - 1).expand(1, 3, 64, 64) for region in (max_norm < 0.5, radius2 < 0.3))

    def features(image: torch.Tensor) -> torch.Tensor:
        return feature_network(image)[-1].mean(dim=(2, 3))

    to_shifted = (features(square) - features(square.roll((4, 4), dims=(2, 3)))).norm()
    assert to_shifted < (features(square) - features(disc)).norm()


def test_feature_network_other_global_seed_gives_equal_fixed_weights(feature_network):
    torch.manual_seed(1)
    other = FeatureNetwork()
    for a, b in zip(feature_network.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not any(weight.requires_grad for weight in other.parameters())


@pytest.fixture
def discriminator() -> ProjectedDiscriminator:
    torch.manual_seed(0)
    return ProjectedDiscriminator(GANConfig(64, CLASSES, base_channels=8).channels(), 3, num_artifacts=7)


def test_projected_discriminator_sketch_label_and_artifacts_change_every_head(discriminator):
    discriminator.eval()
    image, sketch, hair = random_images(64), torch.zeros(2, 1, 64, 64), torch.zeros(2, 7)
    sketch[0, :, 20:40, 20], hair[0, 1] = 1, 1
    maps, label, no_artifacts = sketch_maps(sketch), torch.tensor([0, 1]), torch.zeros(2, 7)
    output = discriminator(image, maps, label, no_artifacts)
    assert [tuple(x.shape) for x in output.heads] == [(2, 16)] * 4
    assert output.patch.shape == (2, 256) and output.whole.shape == (2,)
    for inputs in (
        (image, maps, torch.tensor([2, 1]), no_artifacts),
        (image, torch.zeros_like(maps), label, no_artifacts),
        (image, maps, label, hair),
    ):
        for head, other in zip(output.heads, discriminator(*inputs).heads, strict=True):
            assert not torch.equal(head[0], other[0]) and torch.equal(head[1], other[1])


def test_projected_discriminator_training_mode_augments_the_images_of_the_heads_only(discriminator, monkeypatch):
    image, seen, patches = random_images(64), [], []
    discriminator.feature_network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for training, strength in ((True, 0.3), (False, 0.3), (True, 0.0)):
        monkeypatch.setattr(projected, "COLOR_JITTER", strength)
        monkeypatch.setattr(projected, "CUTOUT", strength)
        output = discriminator.train(training)(image, torch.zeros(2, 2, 64, 64), torch.tensor([0, 1]))
        patches.append(output.patch)
    assert (seen[0] == 0).all(dim=1).any(), "cutout"
    assert (seen[0] != image).flatten(1).float().mean() > 0.9, "color jitter"
    assert torch.equal(seen[1], image) and torch.allclose(seen[2], image, atol=1e-6)
    assert torch.equal(patches[0], patches[1]), "the other layers get the image as it is"


def test_feature_head_large_weights_have_spectral_norm_1():
    torch.manual_seed(0)
    head = FeatureHead(64, 3, halvings=2)
    layers = [*head.down, head.last, head.patch_head]
    for layer in layers:
        layer.parametrizations.weight.original.data.mul_(100)
    for _ in range(30):  # power iterations
        head(torch.randn(1, 64, 8, 8), torch.zeros(1, 2, 8, 8), torch.tensor([0]))
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2) == pytest.approx(1, abs=0.05)
