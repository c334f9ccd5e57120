"""Conditional GAN: sketch + label + artifact flags + latents -> image; its two updates.

Networks are in `networks.py`, losses in `losses.py`: non-saturating logistic loss with R1. Sampling: `sampling.py`.

What the recipe consists of:

- An encoder predicts z and a coarse code of each real image, so that the fake can be compared with it without averaging
  over everything that the sketch leaves open (cVAE-GAN). The comparison is at 1/4 resolution, and loses weight.
- The texture loss compares gradient energy at several scales. With the adversarial loss alone, early models still
  produced textureless skin after 32,000 images.
- Code and random maps vary the structure inside a lesion (see `Generator`); z could only change its tone.
- The diversity loss makes the generator use them: without it the structure correlation of two latents rose from 0.23
  after 20,000 images to 0.41 after 167,000 (HAM10000, 128 px); with it it fell to 0.27 in 88,000 more.
- All networks are conditioned on artifact flags, so that rulers and hair are not part of a class. After 22,000 images
  (HAM10000) neither appears unasked, but hair was asked for in 24 % of the images and found in 9 %.
- Real images are rotated, flipped and shifted, against details at fixed places: the position score at 64 px fell from
  3.4 to 2.2 (real images 1.8), together with the random maps and the coarse lines.
- Sketch lines enter the generator at coarse scales only, against a crease along them.
- The discriminator gets which pixels the lines enclose, and has heads on pretrained features (`projected.py`).

Without pairs of image and sketch (`paired=False`) the losses are those of `unpaired.py`. With style "none" the
generator gets no sketch, see `dcgan_config`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn

from helpers.config import display_path
from helpers.data.batches import SketchSampling, balanced_batches
from helpers.data.layouts import ARTIFACTS
from helpers.data.store import UNKNOWN, Store, fit_config
from helpers.models.augment import augment, d4_augment
from helpers.models.checkpoint import read_network
from helpers.models.checks import MAX_CHANNELS, check_settings
from helpers.models.initialize import init_networks, start_from
from helpers.models.losses import (
    d_loss,
    g_loss,
    hinge_d_loss,
    hinge_g_loss,
    kl_divergence,
    r1_penalty,
    structure_correlation,
    texture_loss,
)
from helpers.models.networks import (
    MIN_SIZE,
    BaseGenerator,
    Discriminator,
    DiscriminatorOutput,
    Encoder,
    Generator,
    LatentGenerator,
    sketch_maps,
)
from helpers.models.sampling import make_preview, save_preview, set_artifact_rates
from helpers.models.trainer import Backward, Batch, TrainConfig, TrainTask, set_gan_lr, train
from helpers.models.unpaired import unpaired_losses

# R1 weight by image size. At 256 px and 0.02 the discriminator overpowers the generator, which still produced bare
# outlines after 2,800 images; with 1.0 it produced lesions after 1,200 (ISIC 2017).
R1_GAMMA = {64: 0.02, 128: 0.02, 256: 1.0}
Evaluate = Callable[[BaseGenerator, int], None]  # (EMA generator, step)


@dataclass(frozen=True)
class GANConfig:
    """Settings of the networks and of one step. Raises `ValueError` for a size that is not in `R1_GAMMA`, or unpaired
    training without sketches."""

    size: int  # pixels per side
    classes: tuple[str, ...] = ()  # only these classes; empty: all of the data set
    style: str | None = None  # sketch style; default: contour with masks or sketches, else structure; "none": no sketch
    base_channels: int = 32  # channels at half the resolution; doubled per halving, up to 8 times
    level_channels: tuple[int, ...] | None = None  # channels at 1/2, 1/4, ...; None: from `base_channels`
    z_dim: int = 16  # length of the latent z
    lr: float = 5e-4  # of all networks, see `set_gan_lr`
    r1_gamma: float | None = None  # None: by size, see `R1_GAMMA`
    d_reg_interval: int = 8  # steps between R1 penalties
    lambda_gan: float = 1.0  # weight of the adversarial loss
    lambda_l1: float = 6.0  # fake against the real image whose latent was encoded, at 1/4 resolution
    l1_floor: float = 0.2  # fraction of `lambda_l1` that is left from the middle of the run on; it falls linearly
    lambda_texture: float = 3.0  # gradient energy of fake and real at four scales
    lambda_kl: float = 0.1  # latents of the encoder against N(0, I)
    lambda_feat: float = 2.0  # feature matching (arXiv 1606.03498)
    lambda_diversity: float = 4.0  # of `structure_correlation` under two latents; 0 generates no pairs
    color_jitter: float = 0.05  # augmentation strength, see `augment`
    translate: float = 0.125  # fraction of the side
    d4_augment: bool = True  # random 90-degree rotations, flips and small shifts of real image and sketch
    hand_drawn_prob: float = 0.2  # probability that a sketch is deformed to look hand-drawn
    paired: bool = True  # False: sketches belong to none of the images, see `unpaired.py`
    lambda_sketch: float = 10.0  # unpaired only
    separation_target: float = 0.65  # unpaired only; what expert outlines reach of Otsu's best split (HAM10000)
    artifacts: bool = True  # condition all networks on the seven artifact flags
    noise_channels: int = 8  # of the random maps at 8, 16 and 32 pixels, see `Generator`
    code_channels: int = 4  # of the code at 8 pixels that the encoder predicts
    fine_lines: bool = False  # True: the generator gets the sketch lines at half the resolution
    projected: bool = False  # adds four heads on pretrained features to the discriminator, see `projected.py`

    def __post_init__(self):
        channels = {"base_channels": (1, MAX_CHANNELS // 8), "noise_channels": (0, 256), "code_channels": (0, 256)}
        channels |= {"level_channels": (1, MAX_CHANNELS), "z_dim": (1, MAX_CHANNELS)}
        check_settings(self, d_reg_interval=(1, 10**6), **channels)
        if self.size not in R1_GAMMA:
            raise ValueError(f"size must be one of {', '.join(map(str, R1_GAMMA))}, got {self.size}")
        if self.style == "none" and not self.paired:
            raise ValueError("unpaired training needs a sketch style, got 'none'")
        if self.level_channels and len(self.level_channels) != self.num_levels:
            wanted = f"level_channels must be {self.num_levels} numbers for {self.size} px"
            raise ValueError(f"{wanted}, got {self.level_channels}")

    def channels(self) -> list[int]:
        """Channels at 1/2, 1/4, ... of the size, down to `MIN_SIZE` pixels."""
        return list(self.level_channels or (self.base_channels * min(2**k, 8) for k in range(self.num_levels)))

    def generator(self) -> BaseGenerator:
        """A new generator."""
        sizes = {"channels": self.channels(), "num_classes": len(self.classes), "z_dim": self.z_dim}
        inputs = {name: getattr(self, name) for name in ("num_artifacts", "noise_channels", "code_channels")}
        if self.style == "none":
            return LatentGenerator(**sizes, **inputs)
        return Generator(**sizes, fine_lines=self.fine_lines, **inputs)

    def encoder(self) -> Encoder:
        """A new encoder."""
        return Encoder(len(self.classes), self.z_dim, self.num_artifacts, self.code_channels)

    def discriminator(self) -> Discriminator:
        """A new discriminator."""
        kind = Discriminator
        if self.projected:
            from helpers.models.projected import ProjectedDiscriminator as kind  # imports timm, which takes seconds
        return kind(self.channels(), len(self.classes), self.num_artifacts)

    @property
    def r1_weight(self) -> float:
        """Weight of the R1 penalty."""
        return R1_GAMMA[self.size] if self.r1_gamma is None else self.r1_gamma

    @property
    def num_levels(self) -> int:
        """Times that the image is halved down to `MIN_SIZE` pixels."""
        return (self.size // MIN_SIZE).bit_length() - 1

    @property
    def num_artifacts(self) -> int:
        """Length of the artifact flags that the networks are conditioned on."""
        return len(ARTIFACTS) if self.artifacts else 0


def dcgan_config(size: int, **changes) -> GANConfig:
    """Settings without a sketch: label and z -> image, not conditioned on artifacts.

    Called DCGAN here after Radford et al. (arXiv 1511.06434), but it is another network: conditioned on a label, which
    modulates every block; bilinear upsampling with group norm instead of transposed convolutions with batch norm; no
    tanh; R1, EMA, differentiable augmentation and class-balanced sampling. With these alone it still collapsed to one
    image per class (HAM10000, 8,000 images). Therefore, for half of each batch, an encoder predicts z from the real
    image, whose tone and layout the generator must reconstruct (VAE-GAN: Larsen et al., arXiv 1512.09300).
    """
    networks = {"style": "none", "z_dim": 32, "artifacts": False, "noise_channels": 0, "code_channels": 0}
    losses = {"lr": 2e-4, "r1_gamma": 0.1, "lambda_l1": 10.0, "l1_floor": 1.0, "lambda_texture": 1.0}
    losses |= {"lambda_diversity": 0.0}  # without a sketch nothing is left open
    augmentation = {"color_jitter": 0.1, "translate": 0.1, "d4_augment": False, "hand_drawn_prob": 0.0}
    return GANConfig(size, **networks | losses | augmentation | changes)


class GAN(TrainTask):
    """Generator, encoder and discriminator with their updates."""

    ema_names = ("generator",)

    def __init__(self, config: GANConfig, preview: dict | None = None, evaluate: Evaluate | None = None):
        """`preview`: inputs of the grid that is saved with every checkpoint, see `make_preview`. `evaluate` is called
        with the EMA generator and the step at every checkpoint."""
        self.config, self.preview, self.evaluate = config, preview, evaluate
        self.extra_state = {"init_from": "random init", "trained_on": []}
        self.networks = {
            "generator": config.generator(),
            "encoder": config.encoder(),
            "discriminator": config.discriminator(),
        }
        g_params = [*self.networks["generator"].parameters(), *self.networks["encoder"].parameters()]
        d_params = [p for p in self.networks["discriminator"].parameters() if p.requires_grad]
        self.optimizers = {
            "generator": torch.optim.Adam(g_params, config.lr, betas=(0.0, 0.99), fused=True),
            "discriminator": torch.optim.Adam(d_params, config.lr, betas=(0.0, 0.99), fused=True),
        }

    def init_from(self, checkpoint: str | Path) -> None:
        """Start from the weights of another training, see `init_networks`."""
        trained_on = init_networks(self.networks, self.config_dict(), checkpoint)
        self.extra_state = {"init_from": display_path(checkpoint), "trained_on": trained_on}

    def training_step(self, batch: Batch, step: int, backward: Backward) -> dict[str, Tensor]:
        """Update D, then G and the encoder.

        First half of the batch: latents encoded from the real images, for the reconstruction losses (cVAE-GAN: Larsen
        et al., arXiv 1512.09300; BicycleGAN, Zhu et al., arXiv 1711.11586). Second half: N(0, I), as at inference.
        """
        for optimizer in self.optimizers.values():
            set_gan_lr(optimizer, self.config.lr, step, self.progress)
        batch = d4_augment(batch) if self.config.d4_augment else batch
        batch = batch | {"sketch_maps": self.sketch_maps(batch)}
        mu, logvar, latents = self.encode(batch, num_encoded=max(1, len(batch["labels"]) // 2))
        fake, pairs = self.generate_pairs(batch, latents)
        losses = self.update_d(batch, fake.detach(), step, backward)
        return losses | self.update_g(batch, fake, mu, logvar, backward, pairs)

    def encode(self, batch: Batch, num_encoded: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance (N, L) of the first N real images, and latents (B, L): N samples of those, then
        N(0, I). The first `z_dim` of L numbers are z, the rest is the code."""
        images, labels, artifacts = batch["images"], batch["labels"], self.artifacts(batch)
        latents = torch.randn(len(labels), self.config.z_dim + self.config.code_channels * MIN_SIZE**2)
        latents = latents.to(labels.device)
        artifacts = None if artifacts is None else artifacts[:num_encoded]
        mu, logvar = self.networks["encoder"](images[:num_encoded], labels[:num_encoded], artifacts)
        encoded = mu + (logvar / 2).exp() * latents[:num_encoded]
        unwrap(self.networks["generator"]).update_stats(encoded.detach()[:, : self.config.z_dim])
        return mu, logvar, torch.cat([encoded, latents[num_encoded:]])

    def generate(self, batch: Batch, latents: Tensor) -> Tensor:
        """Fake images (B, 3, H, W) for the batch's sketches, labels and artifacts, and latents (B, L)."""
        z, code = latents[:, : self.config.z_dim], latents[:, self.config.z_dim :]
        code = code.unflatten(1, (-1, MIN_SIZE, MIN_SIZE)) if self.config.code_channels else None
        return self.networks["generator"](batch["sketches"], batch["labels"], z, self.artifacts(batch), code)

    def generate_pairs(self, batch: Batch, latents: Tensor) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Fake images of `generate`; and for the diversity loss, if it has a weight, the last quarter of them, others
        of their sketches under other latents, and their sketch maps."""
        if not self.config.lambda_diversity:
            return self.generate(batch, latents), None
        size, num_pairs = len(latents), max(1, len(latents) // 4)
        names = [name for name in ("sketches", "labels", "artifacts") if name in batch]
        extended = {name: torch.cat([batch[name], batch[name][-num_pairs:]]) for name in names}
        images = self.generate(extended, torch.cat([latents, torch.randn_like(latents[-num_pairs:])]))
        return images[:size], (images[size - num_pairs : size], images[size:], batch["sketch_maps"][-num_pairs:])

    def artifacts(self, batch: Batch) -> Tensor | None:
        """Flags (B, 7) of the batch if the networks are conditioned on them."""
        return batch["artifacts"] if self.config.artifacts else None

    def sketch_maps(self, batch: Batch) -> Tensor:
        """What the discriminator sees of the sketches: (B, 2, H, W). Blank without pairs, because it would see that a
        sketch belongs to another image, and for a generator without a sketch."""
        if self.config.paired and self.config.style != "none":
            return sketch_maps(batch["sketches"])
        return torch.zeros_like(batch["sketches"]).repeat(1, 2, 1, 1)

    def update_d(self, batch: Batch, fake: Tensor, step: int, backward: Backward) -> dict[str, Tensor]:
        """One step of the discriminator: logistic loss, hinge loss of the heads, and R1 every `d_reg_interval` steps.

        fake: (B, 3, H, W), detached. Returns `loss_d` and the mean global logits `real_score`, `fake_score`.
        """
        images = batch["images"].requires_grad_(step % self.config.d_reg_interval == 0)
        both = self.run_discriminator(self.networks["discriminator"], torch.cat([images, fake]), batch)
        real, fake = both.split()
        loss = d_loss(real.logits(), fake.logits()) + hinge_d_loss(real.heads, fake.heads)
        losses = {"loss_d": loss, "real_score": real.whole.mean(), "fake_score": fake.whole.mean()}
        if images.requires_grad:
            # Lazy regularization (Karras et al., arXiv 1912.04958): less often, weighted by the interval.
            r1 = r1_penalty(real.whole + real.patch.mean(dim=1), images)
            loss = loss + self.config.r1_weight * self.config.d_reg_interval * r1
        self._optimizer_step("discriminator", loss, backward)
        # From D before its update, unlike the fake features in `update_g`: saves a forward pass.
        self.real_features = real.features.detach().mean(dim=0)
        return losses

    def update_g(
        self, batch: Batch, fake: Tensor, mu: Tensor, logvar: Tensor, backward: Backward, pairs: tuple | None = None
    ) -> dict[str, Tensor]:
        """One step of generator and encoder: adversarial, feature matching, KL and reconstruction losses.

        fake: (B, 3, H, W); mu, logvar: (N, L) of the first N images, whose latents were encoded. Returns every loss.
        """
        with requires_grad_off(unwrap(self.networks["discriminator"])) as discriminator:
            output = self.run_discriminator(discriminator, fake, batch)
        losses = {
            "loss_g": g_loss(output.logits()) + hinge_g_loss(output.heads),
            "feature_matching": (output.features.mean(dim=0) - self.real_features).abs().mean(),
            "kl": kl_divergence(mu, logvar),
        } | self.reconstruction_losses(fake, batch, num_encoded=len(mu))
        if pairs:
            losses["diversity"] = structure_correlation(*pairs).relu().mean()
        weights = self.loss_weights()
        self._optimizer_step("generator", sum(weights[name] * loss for name, loss in losses.items()), backward)
        return losses

    def run_discriminator(self, discriminator: nn.Module, images: Tensor, batch: Batch) -> DiscriminatorOutput:
        """D's output for images (K * B, 3, H, W), augmented together with the sketches; `images` are K groups with the
        batch's sketches, labels and artifacts."""
        groups, artifacts = len(images) // len(batch["labels"]), self.artifacts(batch)
        maps, labels = batch["sketch_maps"].repeat(groups, 1, 1, 1), batch["labels"].repeat(groups)
        images, maps = augment(images, maps, self.config.color_jitter, self.config.translate)
        artifacts = None if artifacts is None else artifacts.repeat(groups, 1)
        return discriminator(images, maps, labels, artifacts, num_groups=groups)

    def loss_weights(self) -> dict[str, float]:
        """Weights of the losses in `update_g`, by name."""
        config = self.config
        # Without pairs, L1 compares mean colors, which must stay right.
        l1_decay = max(config.l1_floor, 1 - 2 * self.progress) if config.paired else 1.0
        return {
            "loss_g": config.lambda_gan,
            "feature_matching": config.lambda_feat,
            "l1": config.lambda_l1 * l1_decay,
            "texture": config.lambda_texture,
            "kl": config.lambda_kl,
            "diversity": config.lambda_diversity,
            "sketch": config.lambda_sketch,  # unpaired only
        }

    def reconstruction_losses(self, fake: Tensor, batch: Batch, num_encoded: int) -> dict[str, Tensor]:
        """L1 and texture loss of the first `num_encoded` fakes against the real images that their latents encode.

        L1 at 1/4 resolution: no latent holds every hair, and at full resolution the best answer is a blurred image.
        """
        real = batch["images"].detach()
        if not self.config.paired:
            return unpaired_losses(fake, real, batch["sketches"], num_encoded, self.config.separation_target)
        fake, real = fake[:num_encoded], real[:num_encoded]
        l1 = (F.avg_pool2d(fake, 4) - F.avg_pool2d(real, 4)).abs().mean()
        return {"l1": l1, "texture": texture_loss(fake, real)}

    def on_checkpoint(self, ema_models: dict[str, nn.Module], folder: Path, step: int) -> None:
        """Save `grid-<step>.png`, the preview inputs through the EMA generator, and call `evaluate`."""
        if self.evaluate:
            self.evaluate(ema_models["generator"], step)
        if self.preview is not None:
            save_preview(ema_models["generator"], self.preview, folder / f"grid-{step:06d}.png")


@contextmanager
def requires_grad_off(network: nn.Module) -> Iterator[nn.Module]:
    """Temporarily set requires_grad=False on all parameters."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield network
    finally:
        for p in trainable:
            p.requires_grad_(True)


def unwrap(network: nn.Module) -> nn.Module:
    """The network without DistributedDataParallel."""
    return getattr(network, "module", network)


def train_gan(
    store: Store,
    config: GANConfig,
    out: str | Path,
    train_config: TrainConfig,
    rows: np.ndarray | None = None,
    sketches: np.ndarray | None = None,
    init_from: str | Path | None = None,
    evaluate: Evaluate | None = None,
) -> dict[str, list[float]]:
    """Train on the store's training split, or on these `rows` of any split, every class equally often; checkpoint,
    history and grids go to `out`. Returns the history.

    With `config.paired` False, `sketches uint8 (M, H, W)` in {0, 255} are used and images need none; without `sketches`
    each image gets a random sketch of the store. `init_from`: see `start_from` and, for other classes, `init_networks`.
    `evaluate` is called with generator and step before the first step, then with the EMA generator at checkpoints; a
    grid is written as often.

    Unknown artifact flags are filled by the released detector. Raises `ValueError` if the config does not fit the
    store, `DataError` if there are no training images, or unknown flags and no detector, and both as `start_from` does.
    """
    config = check_config(config, store, sketches)
    if config.artifacts and (store.artifacts == UNKNOWN).any():
        from helpers.models.artifacts import ensure_artifacts  # imports timm, which takes seconds

        ensure_artifacts(store)
    sampling = SketchSampling(config.hand_drawn_prob, config.paired, sketches, required=config.style != "none")
    rows = sampling.rows(store, rows)
    torch.manual_seed(train_config.seed)
    task = GAN(config, evaluate=evaluate)
    generator = task.networks["generator"]
    task.preview = make_preview(store, generator, train_config.seed, unpaired_sketches=sketches)
    start_from(task, init_from, store, rows, allowed=rows)
    if config.artifacts:
        set_artifact_rates(generator, store, rows)
    if not (Path(out) / "checkpoint.pt").is_file() and PartialState().is_main_process:
        Path(out).mkdir(parents=True, exist_ok=True)
        task.on_checkpoint({"generator": generator.eval()}, Path(out), 0)
        generator.train()
    get_batch = balanced_batches(store, train_config.batch_size, train_config.seed, rows, sampling)
    return train(task, get_batch, out, train_config)


def check_config(config: GANConfig, store: Store, sketches: np.ndarray | None) -> GANConfig:
    """`fit_config` for a GAN. Raises `ValueError` if store or unpaired sketches do not have the size, style and classes
    of the config."""
    if sketches is None:
        return fit_config(config, store)
    size = (config.size, config.size)
    if config.paired or sketches.shape[1:] != size or not sketches.any():
        raise ValueError(
            f"unpaired sketches need paired=False, size {size} and lines; got paired={config.paired}, "
            f"shape {sketches.shape}"
        )
    return fit_config(config, store, check_style=False)  # that of the given sketches is not recorded in the store


def load_gan(path: str | Path, sketch: bool = True) -> tuple[BaseGenerator, GANConfig]:
    """The EMA generator of a checkpoint, in eval mode on the best device, and its config. Raises `DataError` if the
    file is not a GAN's with a sketch, or with `sketch=False` without one (DCGAN)."""
    name = "CGAN" if sketch else "DCGAN"

    def build(saved: dict, config: GANConfig) -> BaseGenerator:
        if (config.style != "none") != sketch:
            raise ValueError(f"its sketch style is {config.style!r}")
        generator = config.generator()
        generator.load_state_dict(saved["ema_models"]["generator"])
        return generator

    return read_network(path, f"a checkpoint of a {name}", GANConfig, build)


def grown_config(config: GANConfig, checkpoint: str | Path) -> GANConfig:
    """The config with the channels of a checkpoint of half its image size, and one finer level with as many channels as
    the finest there. Coarse levels can then be initialized from it (progressive growing, arXiv 1710.10196).

    Raises `DataError` if the file is not a CGAN's, `ValueError` if it has another size.
    """
    _, small = load_gan(checkpoint, sketch=config.style != "none")
    if 2 * small.size != config.size:
        path = display_path(checkpoint)
        raise ValueError(f"{path} has {small.size} px: it can grow to {2 * small.size}, not {config.size}")
    finest, *_ = channels = small.channels()
    return replace(config, level_channels=(finest, *channels))
