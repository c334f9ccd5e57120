"""What does each component of the CGAN contribute, and how many training images does it need?

Both experiments train one generator per run, each on equally many images. The images that they generate from sketches
of the val split are compared with the real ones by a feature extractor that was not used in training.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from helpers.data.batches import SketchSampling, balanced_batches
from helpers.data.store import Store, fit_config
from helpers.experiments.runner import Arm, check_fractions, fingerprint_of, fraction_of_rows, run_grid
from helpers.metrics.extractors import FeatureExtractor
from helpers.metrics.generator_eval import GeneratorEval
from helpers.metrics.memorization import memorization, thumbnails
from helpers.models.gan import GAN, GANConfig, load_gan, train_gan
from helpers.models.networks import Generator
from helpers.models.pix2pix import Pix2PixConfig, load_pix2pix, train_pix2pix
from helpers.models.sampling import sample_batch
from helpers.models.trainer import Batch, TrainConfig, train

FULL_RECIPE, FLOOR = "full recipe", "real images"
# Config fields that an arm changes in the full recipe; `ablation_experiment` adds arms that need other code.
ABLATIONS = {
    "no augmentation": {"color_jitter": 0.0, "translate": 0.0},
    "no hand-drawn lines": {"hand_drawn_prob": 0.0},
    "no feature network": {"projected": False},
    "no adversarial loss": {"lambda_gan": 0.0, "lambda_feat": 0.0, "projected": False},
    "no R1": {"r1_gamma": 0.0},
    "no feature matching": {"lambda_feat": 0.0},
    "no L1": {"lambda_l1": 0.0},
    "no texture loss": {"lambda_texture": 0.0},
    "no KL": {"lambda_kl": 0.0},
    "unpaired": {"paired": False},
    "no D4 augmentation": {"d4_augment": False},
    "no artifact conditioning": {"artifacts": False},
    "no spatial code": {"code_channels": 0},
    "no random maps": {"code_channels": 0, "noise_channels": 0},
    "lines at fine scales": {"fine_lines": True},
    "constant L1 weight": {"l1_floor": 1.0},
}


@dataclass(frozen=True)
class AblationExperiment:
    """Settings of the ablation; every arm trains on `train.steps` times `train.batch_size` images."""

    generator: GANConfig
    train: TrainConfig
    num_eval: int = 1_000  # val sketches to generate from
    seeds: tuple[int, ...] = (0, 1)  # of the trainings

    def fit(self, store: Store) -> "AblationExperiment":
        """With the classes of the store. Raises `ValueError` if a config does not fit the store."""
        return replace(self, generator=fit_config(self.generator, store))


@dataclass(frozen=True)
class SmallDataExperiment(AblationExperiment):
    """Settings of the small-data experiment."""

    fractions: tuple[float, ...] = (0.0125, 0.05, 0.2, 1.0)  # of the training images, in (0, 1]


class AblatedCGAN(GAN):
    """CGAN whose generator gets no label or no z; the discriminator is still conditioned on the label."""

    def __init__(self, config: GANConfig, use_label: bool = True, use_z: bool = True):
        super().__init__(config)
        self.use_label, self.use_z = use_label, use_z

    def generate(self, batch: Batch, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) with all labels set to 0, or the z of latents (B, L) to zeros."""
        labels = batch["labels"] if self.use_label else torch.zeros_like(batch["labels"])
        kept = torch.arange(latents.shape[1], device=latents.device) >= (0 if self.use_z else self.config.z_dim)
        return super().generate(batch | {"labels": labels}, latents * kept)


def ablation_experiment(
    store: Store,
    experiment: AblationExperiment,
    extractor: FeatureExtractor,
    out: str | Path,
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Scores of real images, the full recipe, the recipe with one component changed at a time, and pix2pix; or only of
    the arms named in `only`.

    Returns a row per arm and seed with the columns of `GeneratorEval.evaluate`, `seconds` and `updates` (training
    steps). Raises `ValueError` for an unknown arm, `DataError` if the val split has too few sketches.
    """
    experiment = experiment.fit(store)
    evaluation = GeneratorEval(store, extractor, experiment.num_eval, Path(out) / "features")

    def arm(use_label: bool = True, use_z: bool = True, balanced: bool = True, ema: bool = True, **changes) -> Arm:
        config = replace(experiment.generator, **changes)

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            start, train_config = time.perf_counter(), replace(experiment.train, seed=seed)
            train_config = train_config if ema else replace(train_config, ema_nimg=0)
            torch.manual_seed(seed)
            if use_label and use_z and balanced:
                train_gan(store, config, work, train_config)
            else:
                sketch_sampling = SketchSampling(config.hand_drawn_prob)
                get_batch = balanced_batches(store, train_config.batch_size, seed, None, sketch_sampling, balanced)
                train(AblatedCGAN(config, use_label, use_z), get_batch, work, train_config)
            seconds = time.perf_counter() - start
            generator = load_ablated_generator(work / "checkpoint.pt", use_label, use_z)
            return evaluation.evaluate(generator).assign(seconds=round(seconds), updates=train_config.steps)

        return run_one

    def pix2pix(fraction: float, seed: int, work: Path) -> pd.DataFrame:
        start, images_per_step = time.perf_counter(), experiment.train.batch_size
        train_config = replace(
            experiment.train,
            steps=experiment.train.steps * images_per_step,
            batch_size=1,
            seed=seed,
            ema_nimg=0,
            save_every=experiment.train.checkpoint_interval * images_per_step,
        )
        train_pix2pix(store, Pix2PixConfig(experiment.generator.size, experiment.generator.classes), work, train_config)
        seconds = time.perf_counter() - start
        scores = evaluation.evaluate(load_pix2pix(work / "checkpoint.pt"), batch_size=1)
        return scores.assign(seconds=round(seconds), updates=train_config.steps)

    def floor(fraction: float, seed: int, work: Path) -> pd.DataFrame:
        return evaluation.floor(seed).assign(seconds=0, updates=0)

    arms = {FLOOR: floor, FULL_RECIPE: arm()} | {name: arm(**changes) for name, changes in ABLATIONS.items()}
    arms |= {
        "no EMA": arm(ema=False),
        "no label in G": arm(use_label=False),
        "no z": arm(use_z=False),
        "no class balancing": arm(balanced=False),
        "pix2pix": pix2pix,
    }
    return run_grid(arms, [1.0], experiment.seeds, out, _fingerprint("ablation", experiment, evaluation), only)


def small_data_experiment(
    store: Store, experiment: SmallDataExperiment, extractor: FeatureExtractor, out: str | Path
) -> pd.DataFrame:
    """Scores of the full recipe trained on fractions of the training images, see `fraction_of_rows`, with other lesions
    for every seed and equally many steps.

    Returns a row per fraction and seed with the columns of `GeneratorEval.evaluate`, `seconds`, `updates` (training
    steps), `num_images` (training images) and the memorization scores `copies` (in feature space) and `pixel_copies`,
    both in [0, 1], see `Memorization`.

    Raises `ValueError` for fractions outside (0, 1], `DataError` if masks or labels are missing.
    """
    experiment = experiment.fit(store)
    check_fractions(experiment.fractions)
    evaluation = GeneratorEval(store, extractor, experiment.num_eval, Path(out) / "features")

    def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
        start, train_rows = time.perf_counter(), fraction_of_rows(store, fraction, seed)
        train_gan(store, experiment.generator, work, replace(experiment.train, seed=seed), train_rows)
        seconds = time.perf_counter() - start
        generator, _ = load_gan(work / "checkpoint.pt")
        images = sample_batch(generator, evaluation.batch)
        sets = [images, np.array(store.images[train_rows]), evaluation.images]
        by_features = memorization(*(evaluation.features(images).values for images in sets))
        by_pixels = memorization(*(thumbnails(images) for images in sets))
        return evaluation.evaluate(generator).assign(
            seconds=round(seconds),
            updates=experiment.train.steps,
            num_images=len(train_rows),
            copies=by_features.copies,
            pixel_copies=by_pixels.copies,
        )

    fingerprint = _fingerprint("small data", experiment, evaluation)
    return run_grid({FULL_RECIPE: run_one}, experiment.fractions, experiment.seeds, out, fingerprint)


def _fingerprint(question: str, experiment: AblationExperiment, evaluation: GeneratorEval) -> dict:
    data, extractor = evaluation.store.folder.name, evaluation.extractor.name
    return fingerprint_of(experiment, question=question, data=data, extractor=extractor)


def load_ablated_generator(checkpoint: Path, use_label: bool = True, use_z: bool = True) -> Generator:
    """The EMA generator of a checkpoint of `AblatedCGAN`, which ignores labels or z as in training: every label gets
    the embedding of label 0, and the latent statistics map every z to 0."""
    generator, _ = load_gan(checkpoint)
    if not use_label:
        generator.class_embed.weight.copy_(generator.class_embed.weight[:1].expand_as(generator.class_embed.weight))
    if not use_z:
        generator.running_mean.zero_()
        generator.running_cov.zero_()
    return generator


def mean_over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and fraction: the mean of every measure over the seeds, the KID of every seed, and its difference
    to the full recipe's with the same seed (at the largest fraction). Two seeds show which differences are large; they
    do not prove any."""
    by = ["arm", "fraction"]
    measures = [m for m in results if m not in (*by, "seed", "kid_low", "kid_high", "n_real")]
    kid = results.pivot_table(index=by, columns="seed", values="kid", sort=False)
    table = results.groupby(by, sort=False)[measures].mean().join(kid.add_prefix("kid, seed "))
    reference = results[results["arm"] == FULL_RECIPE].groupby("seed")["kid"].last()
    return table.join((kid - reference).add_prefix("above full recipe, seed "))
