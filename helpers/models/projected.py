"""Discriminator with extra heads on pretrained features (Projected GAN, Sauer et al., arXiv 2111.01007).

Trained from scratch, a discriminator needs very many images until it separates hair from scratches; ImageNet features
do so from the first step. As published: four scales, random 1x1 convolutions that widen the channels and add coarse
maps to finer ones, heads with spectral normalization that see strongly augmented images. EfficientNet-Lite1 (Tan and
Le, arXiv 1905.11946) is installed by pip, so that no download can fail.

A network that is used here must not evaluate the generated images later. Another ImageNet network may, but can still
be biased in their favor (Kynkäänniemi et al., arXiv 2203.06026).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from helpers.models.augment import cutout, jitter_color
from helpers.models.networks import Discriminator, DiscriminatorOutput, embed_condition
from helpers.models.weights import fuse_batchnorm, lite_network

# Blocks of the network up to 1/4, 1/8, 1/16 and 1/32 of the image size, their channels, and those after mixing.
STAGES, CHANNELS, MIXED_CHANNELS = ((0, 2), (2, 3), (3, 5), (5, 7)), (24, 40, 112, 320), (64, 128, 256, 512)
OUT_CHANNELS = (64, 64, 128, 256)  # after the coarser maps were added
HIDDEN_CHANNELS = 64  # of a head
COLOR_JITTER, CUTOUT = 0.3, 0.2  # of the images of the heads; side of the square as a fraction
# Smaller images are enlarged and larger ones reduced: the network has no features of 64 px images at 1/32.
MIN_FEATURE_SIZE, MAX_FEATURE_SIZE = 128, 224


class FeatureNetwork(nn.Module):
    """Fixed pretrained features: image (B, 3, H, W) in [-1, 1] -> list of (B, C, S/4, S/4), (B, C, S/8, S/8),
    (B, C, S/16, S/16) and (B, C, S/32, S/32) with C from `OUT_CHANNELS` and S = H, but at least 128 and at most 224.

    The random mixture spreads the differences between images over all channels and scales, so that no head can rely on
    a few of them. Published maps are enlarged twice, which the first layer of each head undoes; here they are not.
    """

    def __init__(self):
        super().__init__()
        network = fuse_batchnorm(lite_network("efficientnet_lite1").eval())
        self.stem = nn.Sequential(network.conv_stem, network.bn1)  # bn1 is only its activation after the fusion
        self.stages = nn.ModuleList(network.blocks[start:stop] for start, stop in STAGES)
        self.channel_mix = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=False) for a, b in zip(CHANNELS, MIXED_CHANNELS, strict=True)
        )
        self.scale_mix = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=False) for a, b in zip(MIXED_CHANNELS, OUT_CHANNELS, strict=True)
        )
        generator = torch.Generator().manual_seed(0)  # the same mixture in every run
        for layer in [*self.channel_mix, *self.scale_mix]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = min(max(image.shape[-1], MIN_FEATURE_SIZE), MAX_FEATURE_SIZE)
        if size != image.shape[-1]:
            image = F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        x, mixed = self.stem(image), []  # (B, 32, S/2, S/2)
        for stage, mix in zip(self.stages, self.channel_mix, strict=True):
            x = stage(x)  # (B, 24, S/4, S/4), (B, 40, S/8, S/8), (B, 112, S/16, S/16), (B, 320, S/32, S/32)
            mixed.append(mix(x))
        maps = []
        for x, mix in zip(reversed(mixed), reversed(self.scale_mix), strict=True):  # coarse to fine
            if maps:
                coarse = F.interpolate(maps[0], scale_factor=2, mode="bilinear", align_corners=False)
                x = (x + coarse) / 2**0.5  # keeps the variance
            maps.insert(0, mix(x))
        return maps


class FeatureHead(nn.Module):
    """Discriminator head: features (B, C, s, s), sketch (B, 2, s, s), label (B,) -> patch logits (B, P).

    P = (s / 2**halvings)**2. The two channels of the sketch are its lines and its filled area. Conditioned on the label
    by projection (Miyato and Koyama, arXiv 1802.05637).
    """

    def __init__(self, channels: int, num_classes: int, halvings: int, num_artifacts: int = 0):
        super().__init__()
        hidden = HIDDEN_CHANNELS
        self.stem = spectral_norm(nn.Conv2d(channels + 2, hidden, 3, padding=1))
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(hidden, hidden, 4, 2, padding=1)) for _ in range(halvings))
        self.last = spectral_norm(nn.Conv2d(hidden, hidden, 3, padding=1))
        self.patch_head = spectral_norm(nn.Conv2d(hidden, 1, 1))
        self.class_embed = nn.Embedding(num_classes, hidden)
        nn.init.normal_(self.class_embed.weight, std=0.3)
        if num_artifacts:
            self.artifact_embed = nn.Linear(num_artifacts, hidden, bias=False)
            nn.init.normal_(self.artifact_embed.weight, std=0.3)

    def forward(self, features: Tensor, sketch: Tensor, label: Tensor, artifacts: Tensor | None = None) -> Tensor:
        x = torch.cat([features, sketch], dim=1)  # (B, C + 2, s, s)
        for layer in [self.stem, *self.down, self.last]:
            x = F.leaky_relu(layer(x), 0.2)  # (B, 64, s / 2**halvings, s / 2**halvings) at the end
        condition = embed_condition(self, label, artifacts)[:, :, None, None]
        projection = (condition * x).sum(dim=1, keepdim=True) / x.shape[1] ** 0.5
        return (self.patch_head(x) + projection).flatten(1)  # (B, P)


class ProjectedDiscriminator(Discriminator):
    """`Discriminator` with four heads on `FeatureNetwork`; adds their patch logits (B, 16) to the output (49 for images
    of 256 px).

    The heads are conditioned on sketch, label and artifacts. Spectral normalization (Miyato et al., arXiv 1802.05957)
    bounds their weights; the R1 penalty applies to the other logits only. Their images are augmented further, by
    `COLOR_JITTER` and `CUTOUT`.
    """

    def __init__(self, channels: list[int], num_classes: int, num_artifacts: int = 0):
        super().__init__(channels, num_classes, num_artifacts)
        self.feature_network = FeatureNetwork()
        self.heads = nn.ModuleList(
            FeatureHead(c, num_classes, halvings, num_artifacts)
            for c, halvings in zip(OUT_CHANNELS, (3, 2, 1, 0), strict=True)
        )

    def forward(
        self, image: Tensor, sketch: Tensor, label: Tensor, artifacts: Tensor | None = None, num_groups: int = 1
    ) -> DiscriminatorOutput:
        output = super().forward(image, sketch, label, artifacts, num_groups)
        if self.training:
            image = cutout(jitter_color(image, COLOR_JITTER), CUTOUT)
        lines, fill, logits = sketch[:, :1], sketch[:, 1:], []
        for head, features in zip(self.heads, self.feature_network(image), strict=True):
            size = features.shape[-2:]
            lines, fill = F.adaptive_max_pool2d(lines, size), F.adaptive_avg_pool2d(fill, size)  # (B, 1, s, s) each
            logits.append(head(features, torch.cat([lines, fill], dim=1), label, artifacts))  # (B, 16)
        return output._replace(heads=tuple(logits))
