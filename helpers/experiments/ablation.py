"""What does each component of the CGAN contribute, and how many training images does it need?

Both experiments train one generator per run, each on equally many images. The images that they generate from sketches
of the val split are compared with the real ones by a feature extractor that was not used in training.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.data.batches import SketchSampling, balanced_batches, to_tensors
from helpers.data.files import DataError
from helpers.data.sketches import hand_drawn
from helpers.data.store import Store
from helpers.experiments.runner import Arm, check_fractions, fraction_of_rows, plan_fingerprint, run_grid
from helpers.metrics.extractors import FeatureExtractor, Features, ImageSet, extract_features
from helpers.metrics.fidelity import (
    MIN_POSITION_IMAGES,
    mean_pairwise_distance,
    position_score,
    structure_correlation,
)
from helpers.metrics.memorization import memorization, thumbnails
from helpers.metrics.quality import compute_metrics
from helpers.models.gan import GAN, GANConfig, load_gan, train_gan
from helpers.models.networks import Generator, soft_fill
from helpers.models.pix2pix import Pix2PixConfig, load_pix2pix, train_pix2pix
from helpers.models.sampling import sample_batch
from helpers.models.trainer import Batch, TrainConfig, train
from helpers.models.unpaired import otsu_separability

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
MIN_SKETCHES = 10
MAX_PER_CLASS = 300  # training images of a class for the label classifier
NUM_LATENTS = 8  # images per sketch for the diversity
MAX_DIVERSITY_SKETCHES = 20


@dataclass(frozen=True)
class AblationPlan:
    """Sizes of both experiments; every arm trains on `train_config.steps` times `train_config.batch_size` images."""

    generator: GANConfig
    train_config: TrainConfig
    num_eval: int  # val sketches to generate from
    fractions: tuple[float, ...]  # of the training images, in the small-data experiment
    seeds: tuple[int, ...]


def ablation_plan(cfg: SimpleNamespace, store: Store) -> AblationPlan:
    """The plan of `get_config("ablation")`."""
    return AblationPlan(
        generator=GANConfig(cfg.size, tuple(store.classes), store.config.style, cfg.base_channels, projected=True),
        train_config=TrainConfig(cfg.steps, cfg.batch_size),
        num_eval=cfg.num_eval,
        fractions=cfg.fractions,
        seeds=cfg.seeds,
    )


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


class GeneratorEval:
    """Evaluation of generators on the same val sketches with their labels: as in the data set, with hand-drawn lines,
    and some of them with several latents."""

    def __init__(self, store: Store, extractor: FeatureExtractor, num_eval: int, cache: Path):
        """`num_eval`: max number of sketches; `cache`: folder for features of real images. Raises `DataError` if the
        val split has fewer than `MIN_SKETCHES` images with sketch and label."""
        rows = np.random.default_rng(0).permutation(store.rows("val", needs=["sketch", "label"]))[:num_eval]
        if len(rows) < MIN_SKETCHES:
            raise DataError(f"{store.name} needs at least {MIN_SKETCHES} val images with sketch and label, "
                            f"got {len(rows)}")  # fmt: skip
        self.store, self.extractor, self.cache, self.rows = store, extractor, cache, rows
        self.batch = store.batch(rows)
        self.images, self.sketches, self.labels = (self.batch[name] for name in ("images", "sketches", "labels"))
        rng = np.random.default_rng(1)
        self.hand_sketches = np.stack([hand_drawn(sketch, rng) for sketch in self.sketches])
        self.real = self.features(self.images, cache)
        train = rng.permutation(store.rows("train", needs=["label"]))
        by_class = [train[store.labels[train] == k][:MAX_PER_CLASS] for k in range(len(store.classes))]
        self.label_classifier = self._fit_label_classifier(np.concatenate(by_class))

    def _fit_label_classifier(self, rows: np.ndarray) -> Pipeline:
        features = self.features(np.array(self.store.images[rows]), self.cache)
        regression = LogisticRegression(max_iter=300, class_weight="balanced")
        return make_pipeline(StandardScaler(), regression).fit(features.values, self.store.labels[rows])

    def features(self, images: np.ndarray, cache: Path | None = None) -> Features:
        """Features of images `uint8 (N, S, S, 3)`."""
        return extract_features(ImageSet.from_array(images), self.extractor, self.store.config.size, cache)

    def floor(self, seed: int) -> pd.DataFrame:
        """Scores of real images, in the columns of `evaluate`: distances of equally many random training images to the
        val images, conditioning scores of the val images themselves."""
        train = self.store.rows("train", needs=["label"])
        chosen = np.random.default_rng(seed).choice(train, min(len(train), len(self.rows)), replace=False)
        images = np.array(self.store.images[chosen])
        metrics = compute_metrics(self.features(images, self.cache), self.real)
        conditioning = self.conditioning_scores(self.images, self.real, self.images)
        layout = layout_scores(images, self.images[np.random.default_rng(seed).permutation(len(images))])
        return pd.DataFrame([metrics | conditioning | layout | {"diversity": 1.0}])

    def evaluate(self, generator: Generator, batch_size: int = 32) -> pd.DataFrame:
        """Scores of a generator, one row.

        `n n_real kid kid_low kid_high fd precision recall density coverage`: against the real val images, see
        `compute_metrics`. `label_acc sketch_sep sketch_sep_hand`: see `conditioning_scores`. `position structure`: see
        `layout_scores`. `diversity`: mean pairwise feature distance of images from one sketch with different latents,
        divided by that of real images.
        """
        images, other_images, hand_images = (
            sample_batch(generator, self.batch | {"sketches": sketches}, seed, batch_size)
            for sketches, seed in ((self.sketches, 0), (self.sketches, 1), (self.hand_sketches, 0))
        )
        distances = [
            mean_pairwise_distance(self.features(self._sample_latents(generator, k, batch_size)).values)
            for k in range(min(MAX_DIVERSITY_SKETCHES, len(self.rows)))
        ]
        diversity = np.mean(distances) / mean_pairwise_distance(self.real.values)
        features = self.features(images)
        conditioning = self.conditioning_scores(images, features, hand_images)
        layout = layout_scores(images, other_images)
        return pd.DataFrame([compute_metrics(features, self.real) | conditioning | layout | {"diversity": diversity}])

    def _sample_latents(self, generator: Generator, index: int, batch_size: int) -> np.ndarray:
        repeated = {name: array[[index] * NUM_LATENTS] for name, array in self.batch.items()}
        return sample_batch(generator, repeated, index, batch_size)

    def conditioning_scores(self, images: np.ndarray, features: Features, hand_images: np.ndarray) -> dict[str, float]:
        """How well images match their labels and sketches.

        `label_acc`: balanced accuracy of a logistic regression on `features`, trained on real training images.
        `sketch_sep`: `sketch_separability` of `images uint8 (N, S, S, 3)`; `sketch_sep_hand`: that of `hand_images`,
        generated from the hand-drawn sketches.
        """
        correct = self.label_classifier.predict(features.values) == self.labels
        return {
            "label_acc": float(np.mean([correct[self.labels == k].mean() for k in np.unique(self.labels)])),
            "sketch_sep": sketch_separability(images, self.sketches),
            "sketch_sep_hand": sketch_separability(hand_images, self.hand_sketches),
        }


def layout_scores(images: np.ndarray, other_images: np.ndarray) -> dict[str, float]:
    """`position`: position score of images `uint8 (N, S, S, 3)`, NaN for fewer than 100. `structure`: structure
    correlation with `other_images` of the same sketches and other latents. Both see `fidelity.py`."""
    position = position_score(images) if len(images) >= MIN_POSITION_IMAGES else float("nan")
    return {"position": position, "structure": structure_correlation(images, other_images)}


def sketch_separability(images: np.ndarray, sketches: np.ndarray) -> float:
    """Fraction of the color variance that the sketch's region explains, in [0, 1]: mean `otsu_separability` of images
    `uint8 (N, S, S, 3)` and sketches `uint8 (N, S, S)` in {0, 255}, on block means of 32 x 32."""
    batch = to_tensors({"images": images, "sketches": sketches})
    block = images.shape[1] // 32
    region = soft_fill(F.max_pool2d(batch["sketches"], block))
    return float(otsu_separability(F.avg_pool2d(batch["images"], block), region).mean())


def ablation_experiment(
    store: Store, plan: AblationPlan, extractor: FeatureExtractor, out: str | Path, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Scores of real images, the full recipe, the recipe with one component changed at a time, and pix2pix; or only of
    the arms named in `only`.

    Returns a row per arm and seed with the columns of `GeneratorEval.evaluate`, `seconds` and `updates` (training
    steps). Raises `ValueError` for an unknown arm, `DataError` if the val split has too few sketches.
    """
    evaluation = GeneratorEval(store, extractor, plan.num_eval, Path(out) / "features")

    def arm(use_label: bool = True, use_z: bool = True, balanced: bool = True, ema: bool = True, **changes) -> Arm:
        config = replace(plan.generator, **changes)

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            start, train_config = time.perf_counter(), replace(plan.train_config, seed=seed)
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
        start, images_per_step = time.perf_counter(), plan.train_config.batch_size
        train_config = replace(
            plan.train_config,
            steps=plan.train_config.steps * images_per_step,
            batch_size=1,
            seed=seed,
            ema_nimg=0,
            save_every=plan.train_config.checkpoint_interval * images_per_step,
        )
        train_pix2pix(store, Pix2PixConfig(plan.generator.size, plan.generator.classes), work, train_config)
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
    return run_grid(arms, [1.0], plan.seeds, out, _fingerprint("ablation", plan, evaluation), only)


def small_data_experiment(
    store: Store, plan: AblationPlan, extractor: FeatureExtractor, out: str | Path
) -> pd.DataFrame:
    """Scores of the full recipe trained on fractions of the training images, see `fraction_of_rows`, with other lesions
    for every seed and equally many steps.

    Returns a row per fraction and seed with the columns of `GeneratorEval.evaluate`, `seconds`, `updates` (training
    steps), `num_images` (training images) and the memorization scores `copies` (in feature space) and `pixel_copies`,
    both in [0, 1], see `Memorization`.

    Raises `ValueError` for fractions outside (0, 1], `DataError` if masks or labels are missing.
    """
    check_fractions(plan.fractions)
    evaluation = GeneratorEval(store, extractor, plan.num_eval, Path(out) / "features")

    def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
        start, train_rows = time.perf_counter(), fraction_of_rows(store, fraction, seed)
        train_gan(store, plan.generator, work, replace(plan.train_config, seed=seed), train_rows)
        seconds = time.perf_counter() - start
        generator, _ = load_gan(work / "checkpoint.pt")
        images = sample_batch(generator, evaluation.batch)
        sets = [images, np.array(store.images[train_rows]), evaluation.images]
        by_features = memorization(*(evaluation.features(images).values for images in sets))
        by_pixels = memorization(*(thumbnails(images) for images in sets))
        return evaluation.evaluate(generator).assign(
            seconds=round(seconds),
            updates=plan.train_config.steps,
            num_images=len(train_rows),
            copies=by_features.copies,
            pixel_copies=by_pixels.copies,
        )

    fingerprint = _fingerprint("small data", plan, evaluation)
    return run_grid({FULL_RECIPE: run_one}, plan.fractions, plan.seeds, out, fingerprint)


def _fingerprint(question: str, plan: AblationPlan, evaluation: GeneratorEval) -> dict:
    data, extractor = evaluation.store.folder.name, evaluation.extractor.name
    return plan_fingerprint(plan, question=question, data=data, extractor=extractor)


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
