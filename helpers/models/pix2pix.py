"""pix2pix as the baseline: sketch + label -> image (Isola et al., arXiv 1611.07004).

As in the paper: a U-Net down to one pixel whose only noise is dropout, a discriminator of 70 x 70 patches,
cross-entropy plus 100 times L1, batches of one image, images mirrored and shifted a little, a learning rate that decays
to 0 over the second half. Unlike the paper, both networks get the label: one plane per class, next to the sketch.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.data.batches import balanced_batches
from helpers.data.store import Store, fit_config
from helpers.models.augment import augment
from helpers.models.checkpoint import read_network
from helpers.models.checks import MAX_CHANNELS, MAX_SIZE, check_settings
from helpers.models.trainer import Backward, Batch, TrainConfig, TrainTask, train


@dataclass(frozen=True)
class Pix2PixConfig:
    """Settings of the networks and of one step."""

    size: int  # pixels per side; a power of 2, at least 32
    classes: tuple[str, ...] = ()  # empty: those of the store
    base_channels: int = 64  # channels at half the resolution; doubled per halving, up to 8 times
    lr: float = 2e-4
    lambda_l1: float = 100.0
    translate: float = 0.1  # augmentation strength, see `augment`

    def __post_init__(self):
        check_settings(self, size=(32, MAX_SIZE), base_channels=(1, MAX_CHANNELS // 8))


# ---------------------------------------------------------------------------------------------------------- networks


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm without running statistics: with batches of one image, eval mode must use the batch's as well."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


class SkipConnection(nn.Module):
    """Concatenate input and output of the inner levels: (B, C, H, W) -> (B, C + C_inner, H, W)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], dim=1)  # (B, C + C_inner, H, W)


class Dropout(nn.Module):
    """Dropout in eval mode too, because it is the only source of noise: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)  # (B, C, H, W)


class UNet(nn.Module):
    """sketch (B, 1, S, S) in [0, 1], label (B,) -> image (B, 3, S, S) in [-1, 1].

    Halves the size down to one pixel; dropout in the inner levels. `z` is accepted for `sample` and not used.
    """

    z_dim = 1
    takes_sketch = True
    num_artifacts = 0

    def __init__(self, size: int, num_classes: int, base_channels: int = 64):
        super().__init__()
        self.size, self.num_classes = size, num_classes
        net, halvings = unet_level(8 * base_channels, 8 * base_channels, None), size.bit_length() - 1
        for _ in range(halvings - 5):
            net = unet_level(8 * base_channels, 8 * base_channels, net, dropout=True)
        for factor in (4, 2, 1):
            net = unet_level(factor * base_channels, 2 * factor * base_channels, net)
        first = nn.Conv2d(1 + num_classes, base_channels, 4, 2, 1)
        last = nn.ConvTranspose2d(2 * base_channels, 3, 4, 2, 1)
        self.layers = nn.Sequential(first, SkipConnection(net), nn.ReLU(), last, nn.Tanh())

    def forward(self, sketch: Tensor, label: Tensor, z: Tensor | None = None) -> Tensor:
        return self.layers(concat_label(sketch, label, self.num_classes))  # (B, 1 + K, S, S) -> (B, 3, S, S)


def unet_level(outer: int, inner: int, net: nn.Module | None, dropout: bool = False) -> nn.Module:
    """One level around the inner levels `net` (None: the innermost): (B, outer, H, W) -> (B, outer, H, W), with `inner`
    channels at half the resolution."""
    down = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1)]
    up = [nn.ReLU(), nn.ConvTranspose2d(inner * (2 if net else 1), outer, 4, 2, 1), batch_norm(outer)]
    between = [batch_norm(inner), SkipConnection(net)] if net else []
    return nn.Sequential(*down, *between, *up, *([Dropout()] if dropout else []))


class PatchGAN(nn.Module):
    """image (B, 3, S, S), sketch (B, 1, S, S), label (B,) -> logits (B, 1, P, P) of 70 x 70 patches; P = S/8 - 2."""

    def __init__(self, num_classes: int, base_channels: int = 64):
        super().__init__()
        self.num_classes = num_classes
        layers = [nn.Conv2d(4 + num_classes, base_channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            in_channels, out_channels = factor * base_channels, 2 * factor * base_channels
            layers += [nn.Conv2d(in_channels, out_channels, 4, stride, 1), batch_norm(out_channels), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * base_channels, 1, 4, 1, 1))

    def forward(self, image: Tensor, sketch: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([concat_label(sketch, label, self.num_classes), image], dim=1)  # (B, 1 + K + 3, S, S)
        return self.layers(x)  # (B, 1, P, P)


def concat_label(sketch: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """sketch (B, 1, H, W), label (B,) -> (B, 1 + num_classes, H, W): the sketch, then the label as one-hot planes."""
    planes = F.one_hot(label, num_classes).to(sketch.dtype)[:, :, None, None]
    return torch.cat([sketch, planes.expand(-1, -1, *sketch.shape[2:])], dim=1)


def init_normal(module: nn.Module) -> None:
    """The paper's initialization: convolution weights ~ N(0, 0.02**2)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)


# ---------------------------------------------------------------------------------------------------------- training


class Pix2Pix(TrainTask):
    """Generator and discriminator with their updates."""

    ema_names = ("generator",)

    def __init__(self, config: Pix2PixConfig, steps: int):
        self.config, self.steps = config, steps
        num_classes = len(config.classes)
        self.networks = {
            "generator": UNet(config.size, num_classes, config.base_channels),
            "discriminator": PatchGAN(num_classes, config.base_channels),
        }
        for network in self.networks.values():
            network.apply(init_normal)
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), config.lr, betas=(0.5, 0.999), fused=True)
            for name, network in self.networks.items()
        }

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        """Set the learning rate, update D, then G. Returns `loss_d`, `loss_g` and `l1`."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * min(1.0, 2 * (1 - self.progress))
        real, sketches = augment(batch["images"], batch["sketches"], color_jitter=0.0, translate=self.config.translate)
        labels, discriminator = batch["labels"], self.networks["discriminator"]
        fake = self.networks["generator"](sketches, labels)  # (B, 3, S, S)
        pred_real, pred_fake = (discriminator(images, sketches, labels) for images in (real, fake.detach()))
        loss_d = (F.softplus(-pred_real).mean() + F.softplus(pred_fake).mean()) / 2
        self._optimizer_step("discriminator", loss_d, backward)
        discriminator.requires_grad_(False)
        loss_g, l1 = F.softplus(-discriminator(fake, sketches, labels)).mean(), (fake - real).abs().mean()
        self._optimizer_step("generator", loss_g + self.config.lambda_l1 * l1, backward)
        discriminator.requires_grad_(True)
        return {"loss_d": loss_d, "loss_g": loss_g, "l1": l1}


def train_pix2pix(
    store: Store, config: Pix2PixConfig, out: str | Path, train_config: TrainConfig
) -> dict[str, list[float]]:
    """Train on the store's training split, every class equally often; checkpoint and history go to `out`. Returns the
    history. Raises `ValueError` if the config does not fit the store."""
    config = fit_config(config, store)
    torch.manual_seed(train_config.seed)
    get_batch = balanced_batches(store, train_config.batch_size, train_config.seed)
    return train(Pix2Pix(config, train_config.steps), get_batch, out, train_config)


def load_pix2pix(path: str | Path) -> UNet:
    """The EMA generator of a checkpoint, in eval mode on the best device. Call `sample` with `batch_size=1`: its batch
    norm was trained with single images. Raises `DataError` if the file is not a pix2pix's."""

    def build(saved: dict, config: Pix2PixConfig) -> UNet:
        generator = UNet(config.size, len(config.classes), config.base_channels)
        generator.load_state_dict(saved["ema_models"]["generator"])
        return generator

    generator, _ = read_network(path, "a checkpoint of pix2pix", Pix2PixConfig, build)
    return generator
