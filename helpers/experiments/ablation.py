"""What does each component of the CGAN contribute, and how many training images does it need?

Both experiments train one generator per run, each on equally many images. The images that they generate from sketches
of the val split are compared with the real ones by a feature extractor that was not used in training. Every run writes
the images of the same three sketches to the folder `images`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from helpers.data.batches import SketchSampling, balanced_batches
from helpers.data.files import read_image, write_image
from helpers.data.store import Store
from helpers.experiments.runner import (
    SEED_DECIDED,
    check_fractions,
    fingerprint_of,
    fit_configs,
    fraction_of_rows,
    run_grid,
    run_name,
    training_seconds,
)
from helpers.metrics.extractors import FeatureExtractor
from helpers.metrics.generator_eval import GeneratorEval
from helpers.metrics.memorization import memorization, thumbnails
from helpers.metrics.stats import seed_half_width, verdict
from helpers.models.artifacts import ensure_artifacts
from helpers.models.gan import GAN, GANConfig, load_gan, train_gan
from helpers.models.networks import Generator
from helpers.models.pix2pix import Pix2PixConfig, load_pix2pix, train_pix2pix
from helpers.models.sampling import sample_batch
from helpers.models.trainer import Batch, TrainConfig, train

FULL_RECIPE, FLOOR = "full recipe", "real images"
IMAGES, NUM_SKETCHES = "images", 3  # folder with the images of this many sketches by every run
# Arguments of `Runs.cgan`: what an arm changes in the full recipe.
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
    "no EMA": {"ema": False},
    "no label in G": {"use_label": False},
    "no z": {"use_z": False},
    "no class balancing": {"balanced": False},
}


@dataclass(frozen=True)
class AblationExperiment:
    """Settings of the ablation; every arm trains on `train.steps` times `train.batch_size` images."""

    generator: GANConfig
    train: TrainConfig
    num_eval: int = 1_000  # val sketches to generate from
    seeds: tuple[int, ...] = (0, 1)  # of the trainings
    no_effect: ClassVar = SEED_DECIDED


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


class Runs:
    """The runs of both experiments: each trains a generator and scores it on the val sketches."""

    def __init__(self, store: Store, experiment: AblationExperiment, extractor: FeatureExtractor, out: str | Path):
        self.store, self.experiment = store, fit_configs(experiment, store)
        if experiment.generator.artifacts:
            ensure_artifacts(store)  # before the evaluation copies its batch
        self.evaluation = GeneratorEval(store, extractor, experiment.num_eval, Path(out) / "features")

    def fingerprint(self, question: str) -> dict:
        data, extractor = self.store.folder.name, self.evaluation.extractor.name
        return fingerprint_of(self.experiment, question=question, data=data, extractor=extractor)

    def floor(self, _: float, seed: int, work: Path) -> pd.DataFrame:
        return self.evaluation.floor(seed).assign(seconds=0, updates=0)

    def cgan(
        self, _: float, seed: int, work: Path, use_label=True, use_z=True, balanced=True, ema=True, **changes: Any
    ) -> pd.DataFrame:
        """The full recipe with `changes` of the config; see `AblatedCGAN`, `balanced_batches`, `TrainConfig`."""
        config, train_config = replace(self.experiment.generator, **changes), replace(self.experiment.train, seed=seed)
        train_config = train_config if ema else replace(train_config, ema_nimg=0)
        if use_label and use_z and balanced:
            train_gan(self.store, config, work, train_config)
        else:
            torch.manual_seed(seed)
            sampling = SketchSampling(config.hand_drawn_prob)
            get_batch = balanced_batches(self.store, train_config.batch_size, seed, None, sampling, balanced)
            train(AblatedCGAN(config, use_label, use_z), get_batch, work, train_config)
        scores = self.score(load_ablated_generator(work / "checkpoint.pt", use_label, use_z), work)
        return scores.assign(seconds=training_seconds(work / "checkpoint.pt"), updates=train_config.steps)

    def pix2pix(self, _: float, seed: int, work: Path) -> pd.DataFrame:
        """Batches of one image, and as many images as the other arms."""
        config, nimg = self.experiment.train, self.experiment.train.batch_size
        steps, save_every = config.steps * nimg, config.checkpoint_interval * nimg
        config = replace(config, steps=steps, batch_size=1, seed=seed, ema_nimg=0, save_every=save_every)
        generator = self.experiment.generator
        train_pix2pix(self.store, Pix2PixConfig(generator.size, generator.classes), work, config)
        scores = self.score(load_pix2pix(work / "checkpoint.pt"), work, batch_size=1)
        return scores.assign(seconds=training_seconds(work / "checkpoint.pt"), updates=steps)

    def score(self, generator: Generator, work: Path, batch_size: int = 32) -> pd.DataFrame:
        """Scores of a generator; and writes `images/<run>.png`, its images of the sketches in `images/sketches.png`: of
        the first val lesion of each of `NUM_SKETCHES` classes, side by side, with seed 0."""
        folder = work.parent / IMAGES
        firsts = np.unique(self.evaluation.labels, return_index=True)[1][:NUM_SKETCHES]
        batch = {name: array[firsts] for name, array in self.evaluation.batch.items()}
        write_image(folder / "sketches.png", np.hstack(batch["sketches"]))
        images = sample_batch(generator, batch, 0, batch_size)
        write_image(folder / f"{work.name.removeprefix('work-')}.png", np.hstack(images))
        return self.evaluation.evaluate(generator, batch_size=batch_size)

    def small_data(self, fraction: float, seed: int, work: Path) -> pd.DataFrame:
        """The full recipe on a fraction of the training images, and how many generated images copy one of them."""
        rows, train_config = fraction_of_rows(self.store, fraction, seed), replace(self.experiment.train, seed=seed)
        train_gan(self.store, self.experiment.generator, work, train_config, rows)
        generator, _ = load_gan(work / "checkpoint.pt")
        images = sample_batch(generator, self.evaluation.batch)
        sets = [images, np.array(self.store.images[rows]), self.evaluation.images]  # synthetic, training, held out
        return self.score(generator, work).assign(
            seconds=training_seconds(work / "checkpoint.pt"),
            updates=train_config.steps,
            num_images=len(rows),
            copies=memorization(*(self.evaluation.features(images).values for images in sets)).copies,
            pixel_copies=memorization(*map(thumbnails, sets)).copies,
        )


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
    runs = Runs(store, experiment, extractor, out)
    ablations = {name: partial(runs.cgan, **changes) for name, changes in ABLATIONS.items()}
    arms = {FLOOR: runs.floor, FULL_RECIPE: runs.cgan, **ablations, "pix2pix": runs.pix2pix}
    return run_grid(arms, [1.0], experiment.seeds, out, runs.fingerprint("ablation"), only)


def images_by_arm(out: Path, results: pd.DataFrame) -> dict[str, np.ndarray]:
    """Images of the same `NUM_SKETCHES` sketches that `ablation_experiment` wrote to `out`, side by side, `uint8 (S,
    3 S[, 3])`: "sketches", and every arm's with its first seed."""
    runs = results[results["arm"] != FLOOR].drop_duplicates("arm")
    names = {"sketches": "sketches"} | {run.arm: run_name(run.arm, run.fraction, run.seed) for run in runs.itertuples()}
    return {arm: read_image(out / IMAGES / f"{name}.png") for arm, name in names.items()} if len(runs) else {}


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
    check_fractions(experiment.fractions)
    runs = Runs(store, experiment, extractor, out)
    arms, fingerprint = {FULL_RECIPE: runs.small_data}, runs.fingerprint("small data")
    return run_grid(arms, experiment.fractions, experiment.seeds, out, fingerprint)


def load_ablated_generator(checkpoint: Path, use_label: bool, use_z: bool) -> Generator:
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


# ------------------------------------------------------------------------------------------------------------- results

NOT_MEASURES = ("arm", "fraction", "seed", "n", "n_real", "kid_low", "kid_high", "seconds", "updates", "num_images")


def score_rows(results: pd.DataFrame) -> pd.DataFrame:
    """A row per arm, fraction, seed and measure, the KID with its interval over images, then those of
    `kid_differences`. The `seconds` of a training are in one of its rows, the others have 0."""
    measures, rows = [m for m in results if m not in NOT_MEASURES], []
    for run in results.to_dict("records"):
        facts = {k: run.get(k) for k in ("arm", "fraction", "seed", "n", "n_real", "num_images")}
        for k, measure in enumerate(measures):
            ends = {"low": run["kid_low"], "high": run["kid_high"]} if measure == "kid" else {}
            row = {"measure": measure, "value": run[measure], "seconds": run["seconds"] * (k == 0)}
            rows.append(facts | ends | row)
    return pd.concat([pd.DataFrame(rows), kid_differences(results)], ignore_index=True)


def kid_differences(results: pd.DataFrame) -> pd.DataFrame:
    """KID of every arm and fraction minus that of the full recipe at the largest fraction with the same seed: a row
    with the mean over `seeds`, its 95 % interval by Student's t, and `verdict`; with one seed without both."""
    kid = results.pivot_table(index=["arm", "fraction"], columns="seed", values="kid", sort=False)
    full = kid.index[kid.index.get_level_values("arm") == FULL_RECIPE]
    rows = []
    for key in kid.index if len(full) else ():
        differences = (kid.loc[key] - kid.loc[max(full)]).dropna().to_numpy()
        if key == max(full) or key[0] == FLOOR or not len(differences):
            continue
        row = dict(zip(["arm", "fraction"], key, strict=True)) | {"against": FULL_RECIPE, "measure": "kid"}
        row |= {"value": differences.mean(), "seeds": len(differences), "verdict": "one seed, no verdict"}
        if len(differences) > 1:
            low, high = (differences.mean() + sign * seed_half_width(differences) for sign in (-1, 1))
            words = {"helps": "KID is higher", "hurts": "KID is lower"}
            row |= {"low": low, "high": high, "verdict": words.get(verdict(low, high), "no difference seen")}
        rows.append(row | {"n": results["n"].iloc[0], "seconds": 0.0})
    return pd.DataFrame(rows)


def verdicts(rows: pd.DataFrame, arms: Sequence[str] = ()) -> list[str]:
    """A sentence per row of `kid_differences` in a table of `score_rows`, and one about those of `arms` without any."""
    lines, differences = [], rows[rows["against"].notna()] if "against" in rows else rows[:0]
    for row in differences.itertuples():
        ends = f", {row.low:+.4f} to {row.high:+.4f}" if row.seeds > 1 else ""
        lines.append(f"{row.arm} at {row.fraction:.0%} of the images against {row.against}: {row.verdict} "
                     f"({row.value:+.4f}{ends}, N {row.n}, {row.seeds:.0f} seeds).")  # fmt: skip
    absent = [arm for arm in arms if arm not in set(rows["arm"])]
    return lines + ([f"Not run: {', '.join(absent)}."] if absent else [])
