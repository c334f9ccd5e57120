"""Images of a trained generator: sampling, regenerating a part, interpolation, preview grids."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import save_image

from helpers.data.batches import SketchSampling, to_tensors
from helpers.data.files import atomic_file, read_image
from helpers.data.store import UNKNOWN, Store
from helpers.models.networks import BaseGenerator, Generator, Noise, random_noise

FRAME = 2  # pixels around the images of a saved grid
NOT_CONDITIONED = "the generator was not conditioned on artifacts: train it with --artifacts"


@torch.inference_mode()
def sample(
    generator: BaseGenerator,
    sketches: np.ndarray | None,
    labels: Sequence[int] | np.ndarray,
    seed: int = 0,
    latent: Tensor | None = None,
    artifacts: np.ndarray | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Generate `uint8 (N, H, W, 3)` from `sketches uint8 (N, H, W)` in {0, 255}, `labels (N,)`; repeatable by `seed`.
    A generator without a sketch gets None.

    By default every image has its own z and random maps. With `latent (N, Z)` all images share the random maps of
    `seed`, so that they differ only in sketch, label and z. `artifacts (N, 7)` in {0, 1}, in the order of
    `ARTIFACTS`, are the flags to condition on; None: all 0.

    Raises `ValueError` if the arguments differ in number, or sketches are not of the generator's size, or artifacts are
    wanted from a generator that was not conditioned on them.
    """
    _check_inputs(generator, sketches, labels, latent, artifacts)
    device = next(generator.parameters()).device
    batch_size = batch_size if latent is None else 1
    images = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        latents = torch.randn(len(labels), generator.z_dim) if latent is None else latent
        for start in range(0, len(labels), batch_size):
            if latent is not None:
                torch.manual_seed(seed)
            part = slice(start, start + batch_size)
            args = _generator_inputs(generator, sketches, labels, latents, artifacts, part)
            images.append(to_uint8(generator(*args)))
    return np.concatenate(images)


@torch.inference_mode()
def sample_variations(
    generator: Generator,
    sketch: np.ndarray,
    label: int,
    latents: Tensor,
    seeds: Sequence[int],
    structure: float = 1.0,
    artifacts: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    new_seed: int = 0,
) -> np.ndarray:
    """Generate `uint8 (N, H, W, 3)` from one sketch `uint8 (H, W)` in {0, 255}, one label and `artifacts (7,)` in
    {0, 1} (None: all 0), with `latents (N, Z)` and the random maps of `seeds (N,)`.

    `structure` s in [0, 1]: the random maps are sqrt(1 - s^2) * maps of the first seed + s * maps of the image's own
    seed, so that they stay standard normal. At 1 these are the images of N calls of `sample`, but the sketch is encoded
    once; at 0 all have the maps of the first image.

    `keep (H, W)` in {0, 1}: pixels with 1 are those of the call without it. The others come from a second pass with
    the same latent, the recorded maps inside the mask and maps of `new_seed`, which must differ from `seeds`, outside,
    so that both parts fit.

    Raises `ValueError` as `sample` does, and for another `structure`.
    """
    if not 0 <= structure <= 1:
        raise ValueError(f"structure must be from 0 to 1, got {structure}")
    arrays = [None if x is None else np.asarray(x)[None] for x in (sketch, artifacts, keep)]
    _check_inputs(generator, arrays[0], [label], latents[:1], *arrays[1:])
    device, maps, images = next(generator.parameters()).device, None, []
    for latent, seed in zip(latents.split(1), seeds, strict=True):
        args = _generator_inputs(generator, arrays[0], [label], latent, arrays[1], slice(None))
        maps = generator.encode(args[0], None, random_noise) if maps is None else maps
        forward = partial(generator, *args, maps=maps)
        noise = seeded_noise(seed, device)
        if seed != seeds[0]:
            noise = mixed_noise(seeded_noise(seeds[0], device), noise, structure)
        rng = torch.Generator(device).manual_seed(new_seed)
        image = forward(noise=noise) if keep is None else _regenerate(forward, arrays[2], rng, noise)
        images.append(to_uint8(image))
    return np.concatenate(images)


def seeded_noise(seed: int, device: torch.device | str) -> Noise:
    """Standard normal maps: those of `random_noise` after `torch.manual_seed(seed)`."""
    rng = torch.Generator(device).manual_seed(seed)

    def noise(x: Tensor, channels: int) -> Tensor:
        return torch.randn(len(x), channels, *x.shape[2:], generator=rng, device=x.device, dtype=x.dtype)

    return noise


def mixed_noise(first: Noise, own: Noise, weight: float) -> Noise:
    """Standard normal maps whose correlation with those of `own` is `weight` in [0, 1], and else are those of
    `first`."""

    def noise(x: Tensor, channels: int) -> Tensor:
        return math.sqrt(1 - weight**2) * first(x, channels) + weight * own(x, channels)

    return noise


def _generator_inputs(generator: BaseGenerator, sketches, labels, latents: Tensor, artifacts, part: slice) -> list:
    """Sketches, labels, latents and flags, if the generator is conditioned on them, as tensors on its device."""
    device = next(generator.parameters()).device
    arrays = {"labels": labels, "sketches": sketches, "artifacts": artifacts}
    tensors = to_tensors({name: np.array(x[part]) for name, x in arrays.items() if x is not None}, device)
    args = [tensors.get("sketches"), tensors["labels"], latents[part].to(device)]
    if generator.num_artifacts:
        args.append(tensors.get("artifacts", torch.zeros(len(args[1]), generator.num_artifacts, device=device)))
    return args


def _regenerate(forward: Callable[..., Tensor], keep: np.ndarray, rng: torch.Generator, noise: Noise) -> Tensor:
    """The image of `forward(noise=noise)` inside `keep (B, H, W)`, and outside of it another one that differs in the
    random maps there."""
    mask = torch.as_tensor(np.array(keep), dtype=torch.float32, device=rng.device)[:, None]  # (B, 1, H, W)
    recorder = NoiseRecorder(noise)
    original = forward(noise=recorder)
    changed = forward(noise=recorder.replay(mask, rng))
    return torch.where(mask > 0, original, changed)


class NoiseRecorder:
    """Records the maps of `noise`, so that a second pass can reuse them where a mask is 1."""

    def __init__(self, noise: Noise = random_noise):
        self.noise = noise
        self.maps: list[Tensor] = []

    def __call__(self, x: Tensor, channels: int) -> Tensor:
        self.maps.append(self.noise(x, channels))
        return self.maps[-1]

    def replay(self, mask: Tensor, rng: torch.Generator) -> Noise:
        """Noise that repeats the recorded maps where mask (B, 1, H, W) is 1, and elsewhere comes from `rng`."""
        recorded = iter(self.maps)

        def noise(x: Tensor, channels: int) -> Tensor:
            kept = next(recorded)
            fresh = torch.randn(kept.shape, generator=rng, device=kept.device, dtype=kept.dtype)
            return torch.where(F.adaptive_max_pool2d(mask, x.shape[2:]) > 0, kept, fresh)

        return noise


def _check_inputs(generator: BaseGenerator, sketches, labels, latent, artifacts, keep=None) -> None:
    n, size = len(labels), generator.size
    if sketches is None and generator.takes_sketch:
        raise ValueError("the generator needs sketches, got None")
    if len(labels if sketches is None else sketches) != n or (latent is not None and len(latent) != n):
        counts = ["no" if x is None else len(x) for x in (sketches, latent)]
        raise ValueError(
            f"need one label (and latent) per image, got {counts[0]} sketches, {n} labels, {counts[1]} latents"
        )
    if sketches is not None and np.shape(sketches)[1:] != (size, size):
        raise ValueError(f"sketches must be ({size}, {size}) pixels, got {np.shape(sketches)[1:]}")
    if keep is not None and np.shape(keep) != (n, size, size):
        raise ValueError(f"keep must have the shape of the images {(n, size, size)}, got {np.shape(keep)}")
    if artifacts is not None and not generator.num_artifacts:
        raise ValueError(NOT_CONDITIONED)
    if artifacts is not None and np.shape(artifacts) != (n, generator.num_artifacts):
        raise ValueError(f"artifacts must be ({n}, {generator.num_artifacts}), got {np.shape(artifacts)}")


def sample_batch(
    generator: BaseGenerator, batch: dict[str, np.ndarray], seed: int = 0, batch_size: int = 32
) -> np.ndarray:
    """`sample` with the labels of `Store.batch` and, if the generator takes them, its sketches and the artifact flags
    of its images (unknown ones count as absent): synthetic images as comparable to the real ones as possible."""
    sketches = batch["sketches"] if generator.takes_sketch else None
    artifacts = batch["artifacts"] % UNKNOWN if generator.num_artifacts else None
    return sample(generator, sketches, batch["labels"], seed, artifacts=artifacts, batch_size=batch_size)


def set_artifact_rates(generator: BaseGenerator, store: Store, rows: np.ndarray) -> None:
    """Record how often each artifact occurs in these images of each class, for `random_artifacts`."""
    for k in np.unique(store.labels[rows]):
        flags = store.artifacts[rows[store.labels[rows] == k]]
        generator.artifact_rates[int(k)] = torch.as_tensor(flags.mean(axis=0))


def random_artifacts(generator: BaseGenerator, labels: Sequence[int] | np.ndarray, seed: int = 0) -> np.ndarray:
    """Artifact flags `(N, 7)` in {0, 1} for labels (N,): each as often as in the training images of that class.

    Raises `ValueError` if the generator was not conditioned on artifacts.
    """
    if not generator.num_artifacts:
        raise ValueError(NOT_CONDITIONED)
    rates = generator.artifact_rates.float().cpu().numpy()[np.asarray(labels)]
    return (np.random.default_rng(seed).random(rates.shape) < rates).astype(np.uint8)


def slerp(z0: Tensor, z1: Tensor, steps: int) -> Tensor:
    """Spherical interpolation (White, arXiv 1609.04468): `steps` latents (steps, Z) from `z0` to `z1`, both (Z,).

    Linear interpolation would pass through latents that are shorter than those of training.
    """
    t = torch.linspace(0, 1, steps)[:, None]
    angle = torch.arccos(torch.clamp(F.cosine_similarity(z0, z1, dim=0), -0.9999, 0.9999))
    return (torch.sin((1 - t) * angle) * z0 + torch.sin(t * angle) * z1) / torch.sin(angle)


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> `uint8 (B, H, W, 3)`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------- previews


def make_preview(
    store: Store,
    generator: BaseGenerator,
    seed: int,
    num_sketches: int = 4,
    unpaired_sketches: np.ndarray | None = None,
) -> dict:
    """Inputs of a preview grid, without artifacts: `sketches labels latents`, and its number of `columns`.

    Rows are sketches of the val split (or `unpaired_sketches`), columns all labels with one z, then the image's own
    label with two other z. Without a sketch: rows are labels, columns six z.
    """
    num_classes, rng = len(store.classes), torch.Generator().manual_seed(seed)
    if not generator.takes_sketch:
        labels, latents = torch.arange(num_classes), torch.randn(6, generator.z_dim, generator=rng)
        sketches = torch.zeros(num_classes, 1, generator.size, generator.size)
        return _grid(sketches, labels.repeat_interleave(6), latents.repeat(num_classes, 1), columns=6)
    needs = SketchSampling(unpaired_sketches=unpaired_sketches).needs()
    rows = store.rows("val", needs=needs)
    rows = rows if len(rows) else store.rows("train", needs=needs)
    rows = np.random.default_rng(seed).permutation(rows)[:num_sketches]
    batch = store.batch(rows, ("sketches", "labels"))
    if unpaired_sketches is not None:
        batch["sketches"] = unpaired_sketches[np.arange(len(rows)) % len(unpaired_sketches)]
    batch = to_tensors(batch)
    labels = torch.cat([torch.cat([torch.arange(num_classes), label.repeat(2)]) for label in batch["labels"]])
    latents = torch.randn(3, generator.z_dim, generator=rng)[[0] * num_classes + [1, 2]]
    return _grid(batch["sketches"], labels, latents.repeat(len(rows), 1), columns=num_classes + 2)


def _grid(sketches: Tensor, labels: Tensor, latents: Tensor, columns: int) -> dict:
    sketches = sketches.repeat_interleave(columns, dim=0)
    return {"sketches": sketches, "labels": labels, "latents": latents, "columns": columns}


@torch.no_grad()
def save_preview(generator: BaseGenerator, preview: dict, path: Path) -> None:
    """Write the images of `make_preview`'s inputs as one PNG. Sets the global random state."""
    torch.manual_seed(0)  # the same per-pixel noise in every grid
    device = next(generator.parameters()).device
    args = [preview[name].to(device) for name in ("sketches", "labels", "latents")]
    if generator.num_artifacts:
        args.append(torch.zeros(len(args[0]), generator.num_artifacts, device=device))
    with atomic_file(path) as temporary:
        save_image(
            generator(*args), temporary, nrow=preview["columns"], value_range=(-1, 1), normalize=True, padding=FRAME
        )


def read_previews(folder: str | Path, size: int) -> dict[int, np.ndarray]:
    """The grids of `save_preview` in a training's folder, by step: `uint8 (rows, columns, size, size, 3)` each."""
    grids = {}
    for path in sorted(Path(folder).glob("grid-*.png")):
        pixels, side = read_image(path)[FRAME:, FRAME:], size + FRAME
        images = pixels.reshape(len(pixels) // side, side, -1, side, 3).swapaxes(1, 2)
        grids[int(path.stem.removeprefix("grid-"))] = images[:, :, :size, :size]
    return grids
