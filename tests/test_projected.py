import pytest
import timm
import torch
from torch import nn

from helpers.models.cgan import CGANConfig
from helpers.models.projected import (
    MIXED_CHANNELS,
    STAGES,
    FeatureHead,
    FeatureNetwork,
    ProjectedDiscriminator,
    efficientnet_weights,
)

CLASSES = ("MEL", "NV", "BCC")


@pytest.fixture(scope="module")
def feature_network() -> FeatureNetwork:
    return FeatureNetwork()


@pytest.mark.parametrize("size", [64, 128])
def test_feature_network_returns_maps_at_1_8_1_16_and_1_32(feature_network, size):
    maps = feature_network(torch.rand(2, 3, size, size) * 2 - 1)
    sizes = (size // 8, size // 16, size // 32)
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip(MIXED_CHANNELS, sizes, strict=True)]
    assert all(0.1 < m.std() < 30 for m in maps)


def test_feature_network_fused_batchnorm_keeps_the_pretrained_output(feature_network):
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(efficientnet_weights(network))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, fused = network.bn1(network.conv_stem(image)), feature_network.stem(image)
    for (start, stop), stage in zip(STAGES, feature_network.stages, strict=True):
        x, fused = network.blocks[start:stop](x), stage(fused)
        assert torch.allclose(x, fused, atol=1e-3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in feature_network.modules())


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


def test_projected_discriminator_sketch_and_label_change_every_head():
    torch.manual_seed(0)
    discriminator = ProjectedDiscriminator(CGANConfig(64, CLASSES, base_channels=8).channels(), 3).eval()
    image, sketch = torch.rand(2, 3, 64, 64) * 2 - 1, torch.zeros(2, 1, 64, 64)
    sketch[0, :, 20:40, 20] = 1
    logits, features = discriminator(image, sketch, torch.tensor([0, 1]))
    assert [tuple(x.shape) for x in logits] == [(2, 256), (2,), (2, 4), (2, 4), (2, 4)] and features.shape[0] == 2
    other_label, _ = discriminator(image, sketch, torch.tensor([2, 1]))
    no_sketch, _ = discriminator(image, torch.zeros_like(sketch), torch.tensor([0, 1]))
    for k in (2, 3, 4):
        for other in (other_label, no_sketch):
            assert not torch.equal(logits[k][0], other[k][0]) and torch.equal(logits[k][1], other[k][1])


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
