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
def eyes() -> FeatureNetwork:
    return FeatureNetwork()


@pytest.mark.parametrize("size", [64, 128])
def test_maps_at_an_eighth_a_sixteenth_and_a_thirtysecond_of_the_side(eyes, size):
    maps = eyes(torch.rand(2, 3, size, size) * 2 - 1)
    sides = (size // 8, size // 16, size // 32)
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip(MIXED_CHANNELS, sides, strict=True)]
    assert all(0.1 < m.std() < 30 for m in maps)


def test_eyes_are_the_pretrained_network_with_its_normalisations_folded_in(eyes):
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(efficientnet_weights(network))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, y = network.bn1(network.conv_stem(image)), eyes.stem(image)
    for (start, stop), stage in zip(STAGES, eyes.stages, strict=True):
        x, y = network.blocks[start:stop](x), stage(y)
        assert torch.allclose(x, y, atol=1e-3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in eyes.modules())


def test_they_know_photographs_better_than_chance_does(eyes):
    """Pretrained weights answer to shapes: a square is nearer to itself shifted than to a disc."""
    line = torch.linspace(-1, 1, 64)
    far, wide = line[:, None].square() + line.square(), torch.maximum(line[:, None].abs(), line.abs())
    square, disc = (
        ((wide < 0.5).float() * 2 - 1).expand(1, 3, 64, 64),
        ((far < 0.3).float() * 2 - 1).expand(1, 3, 64, 64),
    )
    shifted = square.roll((4, 4), dims=(2, 3))

    def seen(image: torch.Tensor) -> torch.Tensor:
        return eyes(image)[-1].mean(dim=(2, 3))

    assert (seen(square) - seen(shifted)).norm() < (seen(square) - seen(disc)).norm()


def test_chance_mixes_the_same_on_every_machine(eyes):
    torch.manual_seed(1)
    other = FeatureNetwork()
    for one, two in zip(eyes.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert not any(weight.requires_grad for weight in other.parameters())


def test_its_own_logits_come_first_and_heads_know_sketch_and_label():
    torch.manual_seed(0)
    widths = CGANConfig(64, CLASSES, base_channels=8).channels()
    judge = ProjectedDiscriminator(widths, 3).eval()
    image, sketch = torch.rand(2, 3, 64, 64) * 2 - 1, torch.zeros(2, 1, 64, 64)
    sketch[0, :, 20:40, 20] = 1
    logits, features = judge(image, sketch, torch.tensor([0, 1]))
    assert [tuple(x.shape) for x in logits] == [(2, 256), (2,), (2, 4), (2, 4), (2, 4)] and features.shape[0] == 2
    otherwise, _ = judge(image, sketch, torch.tensor([2, 1]))
    blank, _ = judge(image, torch.zeros_like(sketch), torch.tensor([0, 1]))
    for k in (2, 3, 4):
        for other in (otherwise, blank):
            assert not torch.equal(logits[k][0], other[k][0]) and torch.equal(logits[k][1], other[k][1])


def test_weights_of_heads_stay_small():
    """Seen as a matrix each has a norm of 1, however far training would take it."""
    torch.manual_seed(0)
    head = FeatureHead(64, 3, halvings=2)
    layers = [*head.down, head.last, head.patch_head]
    for layer in layers:
        layer.parametrizations.weight.original.data.mul_(100)
    for _ in range(30):  # of power iteration
        head(torch.randn(1, 64, 8, 8), torch.zeros(1, 2, 8, 8), torch.tensor([0]))
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2) == pytest.approx(1, abs=0.05)
