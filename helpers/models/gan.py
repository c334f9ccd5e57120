"""Conditional GAN: sketch + label + artifact flags + latents -> image; its two updates, and sampling.

Networks are in `networks.py`, losses in `losses.py`: non-saturating logistic loss with R1.

What the recipe consists of:

- An encoder predicts z and a coarse code of each real image, so that the fake can be compared with it without averaging
  over everything that the sketch leaves open (cVAE-GAN). The comparison is at 1/4 resolution, and loses weight.
- The texture loss compares gradient energy at several scales. With the adversarial loss alone, early models still
  produced textureless skin after 32,000 images.
- Code and random maps vary the structure inside a lesion (see `Generator`); z could only change its tone.
- All networks are conditioned on artifact flags, so that rulers and hair are not part of a class. After 22,000 images
  (HAM10000) neither appears unasked, but hair was asked for in 24 % of the images and found in 9 %.
- Real images are rotated, flipped and shifted, against details at fixed places: the position score at 64 px fell from
  3.4 to 2.2 (real images 1.8), together with the random maps and the coarse lines.
- Sketch lines enter the generator at coarse scales only, against a crease along them.
- The discriminator gets which pixels the lines enclose, and has heads on pretrained features (`projected.py`).

Without pairs of image and sketch (`paired=False`) there is no pixel-wise loss and no discriminator could check the
sketch: see `UnpairedCGAN`.
"""

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn
from torchvision.utils import save_image

from helpers.config import display_path
from helpers.data.batches import SketchSampling, balanced_batches, to_tensors
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS
from helpers.data.store import UNKNOWN, Store
from helpers.models.augment import augment, random_d4_translate
from helpers.models.checkpoint import read_checkpoint
from helpers.models.losses import (
    d_loss,
    g_loss,
    hinge_d_loss,
    hinge_g_loss,
    inscribed_circle,
    kl_divergence,
    otsu_mask,
    otsu_separability,
    r1_penalty,
    region_means,
    texture_loss,
)
from helpers.models.networks import (
    MIN_SIZE,
    Discriminator,
    DiscriminatorOutput,
    Encoder,
    Generator,
    Noise,
    random_noise,
    sketch_maps,
    soft_fill,
)
from helpers.models.trainer import Backward, Batch, TrainConfig, TrainTask, best_device, set_gan_lr, train

# R1 weight by image size. At 256 px and 0.02 the discriminator overpowers the generator, which still produced bare
# outlines after 2,800 images; with 1.0 it produced lesions after 1,200 (ISIC 2017).
R1_GAMMA = {64: 0.02, 128: 0.02, 256: 1.0}
# Layers that a checkpoint to initialize from may lack.
NEW_LAYERS = r"feature_network\.|artifact_rates|(heads|artifact_embed|noise_in|line_in|code_in|code_out)\."


# Layers of the finest level, which a checkpoint of half the size lacks.
GROWN_LAYERS = r"down\.0\.|(up|reduce)\.\d+\."
NOT_CONDITIONED = "the generator was not conditioned on artifacts: train it with --artifacts"
Evaluate = Callable[[Generator, int], None]  # (EMA generator, step)


@dataclass(frozen=True)
class GANConfig:
    """Settings of the networks and of one step. Raises `ValueError` for a size that is not in `R1_GAMMA`."""

    size: int  # pixels per side
    classes: tuple[str, ...]
    style: str = "contour"  # sketch style, see `sketches.py`
    base_channels: int = 32  # channels at half the resolution; doubled per halving, up to 8 times
    level_channels: tuple[int, ...] | None = None  # channels at 1/2, 1/4, ...; None: from `base_channels`
    z_dim: int = 16
    lr: float = 5e-4  # of all networks, see `set_gan_lr`
    r1_gamma: float | None = None  # None: by size, see `R1_GAMMA`
    d_reg_interval: int = 8  # steps between R1 penalties
    lambda_gan: float = 1.0
    lambda_l1: float = 6.0  # fake against the real image whose latent was encoded, at 1/4 resolution
    l1_floor: float = 0.2  # fraction of `lambda_l1` that is left from the middle of the run on; it falls linearly
    lambda_texture: float = 3.0
    lambda_kl: float = 0.1
    lambda_feat: float = 2.0  # feature matching (arXiv 1606.03498)
    color_jitter: float = 0.05  # augmentation strength, see `augment`
    translate: float = 0.125
    d4_augment: bool = True  # random 90-degree rotations, flips and small shifts of real image and sketch
    hand_drawn_prob: float = 0.2  # probability that a sketch is deformed to look hand-drawn
    paired: bool = True  # False: sketches belong to none of the images, see `UnpairedCGAN`
    lambda_sketch: float = 10.0  # unpaired only
    separation_target: float = 0.65  # unpaired only; what expert outlines reach of Otsu's best split (HAM10000)
    artifacts: bool = True  # condition all networks on the seven artifact flags
    noise_channels: int = 8  # of the random maps at 8, 16 and 32 pixels, see `Generator`
    code_channels: int = 4  # of the code at 8 pixels that the encoder predicts
    fine_lines: bool = False  # True: the generator gets the sketch lines at half the resolution
    projected: bool = False  # adds four heads on pretrained features to the discriminator, see `projected.py`

    def __post_init__(self):
        if self.size not in R1_GAMMA:
            raise ValueError(f"size must be one of {', '.join(map(str, R1_GAMMA))}, got {self.size}")
        if self.r1_gamma is None:
            object.__setattr__(self, "r1_gamma", R1_GAMMA[self.size])
        if self.level_channels is not None:
            object.__setattr__(self, "level_channels", tuple(self.level_channels))  # a file has a list
            if len(self.level_channels) != (levels := (self.size // MIN_SIZE).bit_length() - 1):
                raise ValueError(
                    f"level_channels must be {levels} numbers for {self.size} px, got {self.level_channels}"
                )

    def channels(self) -> list[int]:
        """Channels at 1/2, 1/4, ... of the size, down to `MIN_SIZE` pixels."""
        if self.level_channels:
            return list(self.level_channels)
        halvings = (self.size // 2 // MIN_SIZE).bit_length() - 1
        return [self.base_channels * min(2**k, 8) for k in range(halvings + 1)]

    def generator(self) -> Generator:
        """A new generator."""
        return Generator(
            self.channels(),
            len(self.classes),
            self.z_dim,
            self.num_artifacts,
            self.noise_channels,
            self.code_channels,
            self.fine_lines,
        )

    def encoder(self) -> Encoder:
        """A new encoder."""
        return Encoder(len(self.classes), self.z_dim, self.num_artifacts, self.code_channels)

    @property
    def num_artifacts(self) -> int:
        """Length of the artifact flags that the networks are conditioned on."""
        return len(ARTIFACTS) if self.artifacts else 0


class CGAN(TrainTask):
    """Generator, encoder and discriminator with their updates."""

    ema_names = ("generator",)

    def __init__(self, config: GANConfig, preview: dict[str, Tensor] | None = None, evaluate: Evaluate | None = None):
        """`preview`: inputs of the grid that is saved with every checkpoint, see `make_preview`. `evaluate` is called
        with the EMA generator and the step at every checkpoint."""
        self.config, self.preview, self.evaluate = config, preview, evaluate
        self.extra_state = {"init_from": "random init", "trained_on": []}
        self.networks = {
            "generator": config.generator(),
            "encoder": config.encoder(),
            "discriminator": build_discriminator(
                config.channels(), len(config.classes), config.projected, config.num_artifacts
            ),
        }
        g_params = [*self.networks["generator"].parameters(), *self.networks["encoder"].parameters()]
        d_params = [p for p in self.networks["discriminator"].parameters() if p.requires_grad]
        self.optimizers = {
            "generator": torch.optim.Adam(g_params, config.lr, betas=(0.0, 0.99), fused=True),
            "discriminator": torch.optim.Adam(d_params, config.lr, betas=(0.0, 0.99), fused=True),
        }

    def init_from(self, checkpoint: str | Path) -> None:
        """Initialize from another training: from a checkpoint all networks (`NEW_LAYERS` may be missing), from a
        released file only the generator; the discriminator then starts from scratch. From half the image size with a
        `grown_config`, all layers but those of the finest level.

        Raises `DataError` if the file is not a CGAN's, `ValueError` if its classes, sketch style or sizes differ.
        """
        path = display_path(checkpoint)
        try:
            saved = read_checkpoint(checkpoint)
            given = self.config_dict()
            for name in ("classes", "style"):
                if saved["config"][name] != given[name]:
                    raise ValueError(f"{path} has {name} {saved['config'][name]!r}, the config says {given[name]!r}")
            grows = given["level_channels"] and saved["config"]["size"] * 2 == given["size"]
            new_layers = rf"{NEW_LAYERS}|{GROWN_LAYERS}" if grows else NEW_LAYERS
            for name, weights in saved.get("networks", saved["ema_models"]).items():
                weights = grow_weights(weights) if grows and name != "encoder" else weights
                missing, unexpected = self.networks[name].load_state_dict(weights, strict=False)
                for key in missing:  # flags that the file does not know have no effect at first
                    if key.endswith("artifact_embed.weight"):
                        nn.init.zeros_(self.networks[name].get_parameter(key))
                if dropped := [
                    key for key in unexpected if re.search(r"(^|\.)(artifact_embed|noise_in|code_in|code_out)\.", key)
                ]:
                    raise ValueError(f"{path} has {dropped[0]} in its {name}, the config has no such layer")
                if absent := [key for key in missing if not re.match(new_layers, key)]:
                    raise KeyError(f"{absent[0]} is missing in its {name}")
        except RuntimeError as error:
            raise ValueError(f"{path} has networks of other sizes ({error})"[:400]) from error
        except (EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise DataError(f"{path} is not a checkpoint of `train cgan` ({error})"[:400]) from error
        self.extra_state = {"init_from": path, "trained_on": saved.get("extra_state", {}).get("trained_on", [])}

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
        fake = self.generate(batch, latents)
        losses = self.update_d(batch, fake.detach(), step, backward)
        return losses | self.update_g(batch, fake, mu, logvar, backward)

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

    def artifacts(self, batch: Batch) -> Tensor | None:
        """Flags (B, 7) of the batch if the networks are conditioned on them."""
        return batch["artifacts"] if self.config.artifacts else None

    def sketch_maps(self, batch: Batch) -> Tensor:
        """What the discriminator sees of the sketches: (B, 2, H, W)."""
        return sketch_maps(batch["sketches"])

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
            loss = loss + self.config.r1_gamma * self.config.d_reg_interval * r1
        self._optimizer_step("discriminator", loss, backward)
        # From D before its update, unlike the fake features in `update_g`: saves a forward pass.
        self.real_features = real.features.detach().mean(dim=0)
        return losses

    def update_g(self, batch: Batch, fake: Tensor, mu: Tensor, logvar: Tensor, backward: Backward) -> dict[str, Tensor]:
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
        return {
            "loss_g": self.config.lambda_gan,
            "feature_matching": self.config.lambda_feat,
            "l1": self.config.lambda_l1 * max(self.config.l1_floor, 1 - 2 * self.progress),
            "texture": self.config.lambda_texture,
            "kl": self.config.lambda_kl,
        }

    def reconstruction_losses(self, fake: Tensor, batch: Batch, num_encoded: int) -> dict[str, Tensor]:
        """L1 and texture loss of the first `num_encoded` fakes against the real images that their latents encode.

        L1 at 1/4 resolution: no latent holds every hair, and at full resolution the best answer is a blurred image.
        """
        fake, real = fake[:num_encoded], batch["images"][:num_encoded].detach()
        return {
            "l1": (F.avg_pool2d(fake, 4) - F.avg_pool2d(real, 4)).abs().mean(),
            "texture": texture_loss(fake, real),
        }

    @torch.no_grad()
    def on_checkpoint(self, ema_models: dict[str, nn.Module], folder: Path, step: int) -> None:
        """Save `grid-<step>.png`, the preview inputs through the EMA generator, and call `evaluate`."""
        if self.evaluate:
            self.evaluate(ema_models["generator"], step)
        if self.preview is None:
            return
        torch.manual_seed(0)  # the same per-pixel noise in every grid
        generator = ema_models["generator"]
        device = next(generator.parameters()).device
        args = [self.preview[name].to(device) for name in ("sketches", "labels", "latents")]
        if self.config.artifacts:  # the preview shows images without artifacts
            args.append(torch.zeros(len(args[0]), len(ARTIFACTS), device=device))
        images = generator(*args)
        save_grid(images, folder / f"grid-{step:06d}.png", self.preview["columns"])


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write images (B, 3, H, W) in [-1, 1] as one PNG."""
    save_image(images, path, nrow=columns, value_range=(-1, 1), normalize=True)


class UnpairedCGAN(CGAN):
    """CGAN trained on images and sketches that do not belong together; needs no mask and no other network.

    The discriminator gets blank sketches. The sketch loss uses Otsu's criterion instead: with the sketch's outline as
    border, the fake must reach `separation_target` times the separability that real images have at Otsu's threshold,
    with the darker tone inside. Real images whose z was encoded set the mean colors of both regions and the texture,
    but not where it lies.
    """

    def loss_weights(self) -> dict[str, float]:
        """Weights of the losses in `update_g`, by name, with that of the sketch loss."""
        weights = {"l1": self.config.lambda_l1, "sketch": self.config.lambda_sketch}  # L1 of mean colors: not reduced
        return super().loss_weights() | weights

    def sketch_maps(self, batch: Batch) -> Tensor:
        """Blank maps: D must not see that a sketch belongs to another image."""
        return torch.zeros_like(batch["sketches"]).repeat(1, 2, 1, 1)

    def reconstruction_losses(self, fake: Tensor, batch: Batch, num_encoded: int) -> dict[str, Tensor]:
        """L1 of the region colors and sketch loss, both on 32 x 32 block means, and texture loss without positions."""
        block = fake.shape[-1] // 32
        small, real = (inscribed_circle(F.avg_pool2d(x, block)) for x in (fake, batch["images"].detach()))
        region, dark = inscribed_circle(soft_fill(F.max_pool2d(batch["sketches"], block))), otsu_mask(real)
        target = self.config.separation_target * otsu_separability(real, dark).mean()
        # 1 where the region is darker than the rest, as in `otsu_mask`, else -1: both separate equally well.
        darkness = region_means(small, region).mean(dim=2).diff(dim=1).squeeze(1).sign()  # (B,)
        n = num_encoded
        return {
            "l1": (region_means(small[:n], region[:n]) - region_means(real[:n], dark[:n])).abs().mean(),
            "texture": texture_loss(fake[:n], batch["images"][:n].detach(), grid_size=1),
            "sketch": F.relu(target - darkness * otsu_separability(small, region)).mean(),
        }


def grown_config(config: GANConfig, checkpoint: str | Path) -> GANConfig:
    """The config with the channels of a checkpoint of half its image size, and one finer level with as many channels as
    the finest there. Coarse levels can then be initialized from it (progressive growing, arXiv 1710.10196).

    Raises `DataError` if the file is not a CGAN's, `ValueError` if it has another size.
    """
    _, small = load_gan(checkpoint)
    if 2 * small.size != config.size:
        raise ValueError(
            f"{display_path(checkpoint)} has {small.size} px: it can grow to {2 * small.size}, not {config.size}"
        )
    finest, *_ = channels = small.channels()
    return replace(config, level_channels=(finest, *channels))


def grow_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a generator or discriminator, renamed for twice the image size: levels that are counted from the fine
    end move by one."""

    def rename(key: str) -> str:
        return re.sub(r"^(down|line_in)\.(\d+)", lambda match: f"{match[1]}.{int(match[2]) + 1}", key)

    return {rename(key): weight for key, weight in weights.items()}


def d4_augment(batch: Batch) -> Batch:
    """Shift every image and its sketch by up to 6 % of the side and apply one of the 8 rotations and flips of the
    square: the generator does not learn where a ruler or a dark corner lies."""
    both = random_d4_translate(torch.cat([batch["images"], batch["sketches"]], dim=1), translate=0.06)
    return batch | {"images": both[:, :3], "sketches": both[:, 3:]}


def build_discriminator(
    channels: list[int], num_classes: int, projected: bool, num_artifacts: int = 0
) -> Discriminator:
    """A new discriminator, with four heads on pretrained features if `projected`."""
    if not projected:
        return Discriminator(channels, num_classes, num_artifacts)
    from helpers.models.projected import ProjectedDiscriminator  # imports timm, which takes seconds

    return ProjectedDiscriminator(channels, num_classes, num_artifacts)


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
    """Train on the store's training split, or on these `rows` of any split; checkpoint, history and grids go to `out`.
    Returns the history.

    With `config.paired` False, `sketches uint8 (M, H, W)` in {0, 255} are used and images need none; without `sketches`
    each image gets a random sketch of the store. `init_from`: checkpoint or released file to initialize from.
    `evaluate` is called with the generator and the step: before the first step, then with the EMA generator at every
    checkpoint.

    Unknown artifact flags are filled by the released detector. Raises `ValueError` if the config does not fit the store
    or the initial checkpoint, `DataError` if there are no training images, or unknown flags and no detector, or if
    `init_from` was trained on images of this store that are held out here.
    """
    check_config(store, config, sketches)
    if config.artifacts and (store.artifacts == UNKNOWN).any():
        from helpers.models.artifacts import ensure_artifacts  # imports timm, which takes seconds

        ensure_artifacts(store)
    sketch_sampling = SketchSampling(config.hand_drawn_prob, config.paired, sketches)
    usable = store.rows("train" if rows is None else None, needs=sketch_sampling.needs())
    train_rows = usable if rows is None else np.intersect1d(rows, usable)
    if not len(train_rows):
        raise DataError(f"{store.name} needs at least one training image with a sketch and a label, got none")
    torch.manual_seed(train_config.seed)
    preview = make_preview(store, config, train_config.seed, unpaired_sketches=sketches)
    task = (CGAN if config.paired else UnpairedCGAN)(config, preview, evaluate)
    train_ids = set(store.table["image_id"].iloc[train_rows])
    if init_from:
        task.init_from(init_from)
        held_out = set(store.table["image_id"]) - train_ids
        if leaked := set(task.extra_state["trained_on"]) & held_out:
            path = display_path(init_from)
            raise DataError(f"{path} was trained on {len(leaked)} images that are held out in {store.name}")
    if config.artifacts:
        set_artifact_rates(task.networks["generator"], store, train_rows)
    task.extra_state["trained_on"] = sorted({*task.extra_state["trained_on"], *train_ids})
    get_batch = balanced_batches(store, train_config.batch_size, train_config.seed, rows, sketch_sampling)
    if evaluate and not (Path(out) / "checkpoint.pt").is_file() and PartialState().is_main_process:
        Path(out).mkdir(parents=True, exist_ok=True)
        evaluate(task.networks["generator"].eval(), 0)
        task.networks["generator"].train()
    return train(task, get_batch, out, train_config)


def set_artifact_rates(generator: Generator, store: Store, rows: np.ndarray) -> None:
    """Record how often each artifact occurs in these images of each class, for `random_artifacts`."""
    for k in np.unique(store.labels[rows]):
        flags = store.artifacts[rows[store.labels[rows] == k]]
        generator.artifact_rates[int(k)] = torch.as_tensor(flags.mean(axis=0))


def check_config(store: Store, config: GANConfig, sketches: np.ndarray | None) -> None:
    """Raise `ValueError` if store or unpaired sketches do not have the size, style and classes of the config."""
    has = {"size": store.config.size, "style": store.config.style, "classes": tuple(store.classes)}
    if sketches is not None:
        expected = (config.size, config.size)
        if config.paired or sketches.shape[1:] != expected or not sketches.any():
            raise ValueError(
                f"unpaired sketches need paired=False, size {expected} and lines; got paired={config.paired}, "
                f"shape {sketches.shape}"
            )
        has["style"] = config.style  # the style of the given sketches is not recorded in the store
    given = {name: getattr(config, name) for name in has}
    if differing := [f"{name} {has[name]!r}, the config {given[name]!r}" for name in has if has[name] != given[name]]:
        raise ValueError(f"the store has {'; '.join(differing)}")


def load_gan(path: str | Path) -> tuple[Generator, GANConfig]:
    """The EMA generator of a checkpoint, in eval mode on the best device, and its config. Raises `DataError` if the
    file is not a CGAN's."""
    try:
        saved = read_checkpoint(path)
        config = GANConfig(**saved["config"] | {"classes": tuple(saved["config"]["classes"])})
        generator = config.generator()
        generator.load_state_dict(saved["ema_models"]["generator"])
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        message = f"{display_path(path)} is not a checkpoint of this version's `train cgan` ({error})"
        raise DataError(message[:400]) from error
    return generator.to(best_device()).eval().requires_grad_(False), config


@torch.no_grad()
def sample(
    generator: Generator,
    sketches: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    seed: int = 0,
    latent: Tensor | None = None,
    artifacts: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    keep_seed: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Generate `uint8 (N, H, W, 3)` from `sketches uint8 (N, H, W)` in {0, 255}, `labels (N,)`; repeatable by `seed`.

    By default every image has its own z and random maps. With `latent (N, Z)` all images share the random maps of
    `seed`, so that they differ only in sketch, label and z. `artifacts (N, 7)` in {0, 1}, in the order of
    `ARTIFACTS`, are the flags to condition on; None: all 0.

    `keep (N, H, W)` in {0, 1}: pixels with 1 are those of `sample(..., seed=keep_seed)`. The others come from a second
    pass with the same z, the recorded noise inside the mask and noise of `seed` outside, so that both parts fit.

    Raises `ValueError` if the arguments differ in number, or sketches are not of the generator's size, or artifacts are
    wanted from a generator that was not conditioned on them.
    """
    _check_inputs(generator, sketches, labels, latent, artifacts, keep)
    device = next(generator.parameters()).device
    batch_size = batch_size if latent is None else 1
    first_seed = seed if keep is None else keep_seed
    flags = np.zeros((len(sketches), generator.num_artifacts)) if artifacts is None else artifacts
    images = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(first_seed)
        latents = torch.randn(len(sketches), generator.z_dim) if latent is None else latent
        rng = torch.Generator(device).manual_seed(seed)
        for start in range(0, len(sketches), batch_size):
            if latent is not None:
                torch.manual_seed(first_seed)
                rng.manual_seed(seed)
            part = slice(start, start + batch_size)
            inputs = to_tensors({"sketches": np.array(sketches[part]), "labels": np.array(labels[part])}, device)
            args = [inputs["sketches"], inputs["labels"], latents[part].to(device)]
            if generator.num_artifacts:
                args.append(torch.as_tensor(np.array(flags[part]), dtype=torch.float32, device=device))
            image = generator(*args) if keep is None else _regenerate(generator, args, keep[part], rng)
            images.append(to_uint8(image))
    return np.concatenate(images)


def sample_batch(generator: Generator, batch: dict[str, np.ndarray], seed: int = 0, batch_size: int = 32) -> np.ndarray:
    """`sample` with the sketches and labels of `Store.batch` and, if the generator is conditioned on them, the artifact
    flags of its images (unknown ones count as absent): synthetic images as comparable to the real ones as possible."""
    artifacts = batch["artifacts"] % UNKNOWN if generator.num_artifacts else None
    return sample(generator, batch["sketches"], batch["labels"], seed, artifacts=artifacts, batch_size=batch_size)


def random_artifacts(generator: Generator, labels: Sequence[int] | np.ndarray, seed: int = 0) -> np.ndarray:
    """Artifact flags `(N, 7)` in {0, 1} for labels (N,): each as often as in the training images of that class.

    Raises `ValueError` if the generator was not conditioned on artifacts.
    """
    if not generator.num_artifacts:
        raise ValueError(NOT_CONDITIONED)
    rates = generator.artifact_rates.float().cpu().numpy()[np.asarray(labels)]
    return (np.random.default_rng(seed).random(rates.shape) < rates).astype(np.uint8)


def _regenerate(generator: Generator, args: list[Tensor], keep: np.ndarray, rng: torch.Generator) -> Tensor:
    """An image inside `keep (B, H, W)`, and outside of it another one that differs in the random maps there."""
    mask = torch.as_tensor(np.array(keep), dtype=torch.float32, device=args[0].device)[:, None]  # (B, 1, H, W)
    recorder = NoiseRecorder()
    original = generator(*args, noise=recorder)
    changed = generator(*args, noise=recorder.replay(mask, rng))
    return torch.where(mask > 0, original, changed)


class NoiseRecorder:
    """Records the generator's noise maps, so that a second pass can reuse them where a mask is 1."""

    def __init__(self):
        self.maps: list[Tensor] = []

    def __call__(self, x: Tensor, channels: int) -> Tensor:
        self.maps.append(random_noise(x, channels))
        return self.maps[-1]

    def replay(self, mask: Tensor, rng: torch.Generator) -> Noise:
        """Noise that repeats the recorded maps where mask (B, 1, H, W) is 1, and elsewhere comes from `rng`."""
        recorded = iter(self.maps)

        def noise(x: Tensor, channels: int) -> Tensor:
            kept = next(recorded)
            fresh = torch.randn(kept.shape, generator=rng, device=kept.device, dtype=kept.dtype)
            return torch.where(F.adaptive_max_pool2d(mask, x.shape[2:]) > 0, kept, fresh)

        return noise


def _check_inputs(
    generator: Generator,
    sketches: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    latent: Tensor | None,
    artifacts: np.ndarray | None,
    keep: np.ndarray | None,
) -> None:
    if len(sketches) != len(labels) or (latent is not None and len(latent) != len(sketches)):
        latents = "no" if latent is None else len(latent)
        raise ValueError(
            f"need one label (and latent) per sketch, got {len(sketches)} sketches, {len(labels)} labels, "
            f"{latents} latents"
        )
    size = generator.size
    if np.shape(sketches)[1:] != (size, size):
        raise ValueError(f"sketches must be ({size}, {size}) pixels, got {np.shape(sketches)[1:]}")
    if keep is not None and np.shape(keep) != np.shape(sketches):
        raise ValueError(f"keep must have the shape of the sketches {np.shape(sketches)}, got {np.shape(keep)}")
    if artifacts is None:
        return
    if not generator.num_artifacts:
        raise ValueError(NOT_CONDITIONED)
    if np.shape(artifacts) != (len(sketches), generator.num_artifacts):
        raise ValueError(f"artifacts must be ({len(sketches)}, {generator.num_artifacts}), got {np.shape(artifacts)}")


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> `uint8 (B, H, W, 3)`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def make_preview(
    store: Store, config: GANConfig, seed: int, num_sketches: int = 4, unpaired_sketches: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Inputs of the preview grid: rows are sketches of the val split (or `unpaired_sketches`), columns all labels with
    one z, then the image's own label with two other z. Keys `sketches labels latents columns`."""
    needs = SketchSampling(unpaired_sketches=unpaired_sketches).needs()
    rows = store.rows("val", needs=needs)
    rows = rows if len(rows) else store.rows("train", needs=needs)
    rows = np.random.default_rng(seed).permutation(rows)[:num_sketches]
    batch = store.batch(rows, ("sketches", "labels"))
    if unpaired_sketches is not None:
        batch["sketches"] = unpaired_sketches[np.arange(len(rows)) % len(unpaired_sketches)]
    batch = to_tensors(batch)
    num_classes = len(config.classes)
    columns = num_classes + 2
    latents = torch.randn(3, config.z_dim, generator=torch.Generator().manual_seed(seed))
    latent_index = torch.tensor([0] * num_classes + [1, 2]).repeat(len(rows))
    labels = [torch.cat([torch.arange(num_classes), label.repeat(2)]) for label in batch["labels"]]
    return {
        "sketches": batch["sketches"].repeat_interleave(columns, dim=0),
        "labels": torch.cat(labels),
        "latents": latents[latent_index],
        "columns": columns,
    }
