"""What is each ingredient of the CGAN worth, and how many photographs does it need?

Both train one generator after another, each on equally many pictures. What they draw from sketches of the val split is
judged by a network that took no part in training.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.data.files import DataError
from helpers.data.sketches import hand_drawn
from helpers.data.store import SketchSampling, Store, balanced_batches, to_tensors
from helpers.experiments.runner import Arm, fraction_of_rows, run_grid
from helpers.metrics.extractors import FeatureExtractor, Features, ImageSet, extract_features
from helpers.metrics.fidelity import mean_pairwise_distance
from helpers.metrics.memorization import memorization, thumbnails
from helpers.metrics.quality import compute_metrics
from helpers.models.cgan import CGAN, CGANConfig, load_cgan, sample, train_cgan
from helpers.models.losses import otsu_separability
from helpers.models.networks import Generator, soft_fill
from helpers.models.pix2pix import Pix2PixConfig, load_pix2pix, train_pix2pix
from helpers.models.trainer import Batch, TrainConfig, train

FULL_RECIPE, FLOOR = "full recipe", "real images"
# An arm is the whole recipe without one thing, or with one more: a setting, or what `Without` leaves out.
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
    "D4 augmentation": {"d4_augment": True},
}


@dataclass(frozen=True)
class AblationPlan:
    """Sizes of the experiment; every arm sees `run.steps` times `run.batch` pictures."""

    generator: CGANConfig
    train_config: TrainConfig
    num_eval: int  # drawings, of sketches of val
    fractions: tuple[float, ...]  # of the training images, where their number is asked about
    seeds: tuple[int, ...]


def ablation_plan(cfg: SimpleNamespace, store: Store) -> AblationPlan:
    """From `get_config("ablation")`."""
    return AblationPlan(
        generator=CGANConfig(cfg.size, tuple(store.classes), store.config.style, cfg.base_channels, projected=True),
        train_config=TrainConfig(cfg.steps, cfg.batch_size),
        num_eval=cfg.num_eval,
        fractions=cfg.fractions,
        seeds=cfg.seeds,
    )


class AblatedCGAN(CGAN):
    """The generator is not told the label, or gets no noise numbers; the discriminator still knows the label."""

    def __init__(self, config: CGANConfig, use_label: bool = True, use_z: bool = True):
        super().__init__(config)
        self.use_label, self.use_z = use_label, use_z

    def generate(self, batch: Batch, z: torch.Tensor) -> torch.Tensor:
        labels = batch["labels"] if self.use_label else torch.zeros_like(batch["labels"])
        return self.networks["generator"](batch["sketches"], labels, z if self.use_z else torch.zeros_like(z))


class GeneratorEval:
    """What every generator is asked, by `judge`: to draw these val sketches under their labels, as photographed and as
    redrawn by hand, and some of them under several noises."""

    def __init__(self, store: Store, extractor: FeatureExtractor, num_eval: int, cache: Path):
        """Raises `DataError` for a val split with fewer than 10 sketches."""
        rows = np.random.default_rng(0).permutation(store.rows("val", needs=["sketch", "label"]))[:num_eval]
        if len(rows) < 10:
            raise DataError(f"{store.name} has {len(rows)} val pictures with sketch and label: too few to judge by")
        self.store, self.extractor, self.cache, self.rows = store, extractor, cache, rows
        self.images, self.sketches, self.labels = (
            np.array(a[rows]) for a in (store.images, store.sketches, store.labels)
        )
        rng = np.random.default_rng(1)
        self.hand_sketches = np.stack([hand_drawn(sketch, rng) for sketch in self.sketches])
        self.real = self.features(self.images, cache)
        train = store.rows("train", needs=["label"])
        train = rng.permutation(train)
        known = np.concatenate([train[store.labels[train] == k][:300] for k in range(len(store.classes))])
        self.label_classifier = make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=300, class_weight="balanced")
        )
        self.label_classifier.fit(self.features(np.array(store.images[known]), cache).values, store.labels[known])

    def features(self, images: np.ndarray, cache: Path | None = None) -> Features:
        return extract_features(ImageSet.from_array(images), self.extractor, self.store.config.size, cache)

    def floor(self, seed: int) -> pd.DataFrame:
        """What photographs reach: as many of the training split where images are compared, else those of val."""
        train = self.store.rows("train", needs=["label"])
        chosen = np.random.default_rng(seed).choice(train, min(len(train), len(self.rows)), replace=False)
        found = compute_metrics(self.features(np.array(self.store.images[chosen]), self.cache), self.real)
        return pd.DataFrame(
            [found | self.conditioning_scores(self.images, self.real, self.images) | {"diversity": 1.0}]
        )

    def evaluate(self, generator: Generator, batch_size: int = 32, num_latents: int = 8) -> pd.DataFrame:
        """One row: `n kid kid_low kid_high fd precision recall` against the photographs; `named`, `along`, `by_hand`,
        see `obeyed`; `spread`: how far apart the drawings of a sketch under several noises are, as a share of the
        distance of photographs, mean over up to 20 sketches."""
        images, hand_images = (
            sample(generator, s, self.labels, 0, batch_size=batch_size) for s in (self.sketches, self.hand_sketches)
        )
        some = range(min(20, len(self.rows)))
        same = [
            sample(
                generator, self.sketches[[k] * num_latents], self.labels[[k] * num_latents], k, batch_size=batch_size
            )
            for k in some
        ]
        apart = np.mean(
            [mean_pairwise_distance(self.features(images).values) for images in same]
        ) / mean_pairwise_distance(self.real.values)
        found = self.features(images)
        return pd.DataFrame(
            [
                compute_metrics(found, self.real)
                | self.conditioning_scores(images, found, hand_images)
                | {"diversity": apart}
            ]
        )

    def conditioning_scores(self, images: np.ndarray, features: Features, hand_images: np.ndarray) -> dict[str, float]:
        """`named`: balanced accuracy of a logistic regression, taught by features of training photographs, in naming
        the label; `along`: how much of the variance of colours the sketch's outline explains (see `separation`);
        `by_hand`: the same of drawings of hand-drawn lines."""
        correct = self.label_classifier.predict(features.values) == self.labels
        named = float(np.mean([correct[self.labels == k].mean() for k in np.unique(self.labels)]))
        return {
            "label_acc": named,
            "sketch_sep": sketch_separability(images, self.sketches),
            "sketch_sep_hand": sketch_separability(hand_images, self.hand_sketches),
        }


def sketch_separability(images: np.ndarray, sketches: np.ndarray) -> float:
    """Mean `separation` of images `uint8 (N, S, S, 3)` along sketches `(N, S, S)`, at 32 pixels."""
    batch = to_tensors({"images": images, "sketches": sketches})
    small = images.shape[1] // 32
    region = soft_fill(F.max_pool2d(batch["sketches"], small))
    return float(otsu_separability(F.avg_pool2d(batch["images"], small), region).mean())


def ablation_experiment(
    store: Store, plan: AblationPlan, extractor: FeatureExtractor, out: str | Path, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Photographs, the whole recipe, the same with one ingredient changed at a time, and pix2pix, or of these arms
    `only` some: a row per arm and seed, see `Exam.of`. Raises `ValueError` for an arm that does not exist, `DataError`
    when the val split has too few sketches."""
    evaluation = GeneratorEval(store, extractor, plan.num_eval, Path(out) / "features")

    def arm(use_label: bool = True, use_z: bool = True, balanced: bool = True, ema: bool = True, **changed) -> Arm:
        config = replace(plan.generator, **changed)

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            start, run = time.perf_counter(), replace(plan.train_config, seed=seed)
            run = run if ema else replace(run, ema_nimg=0)
            torch.manual_seed(seed)
            if use_label and use_z and balanced:
                train_cgan(store, config, work, run)
            else:
                batches = balanced_batches(
                    store, run.batch_size, seed, None, SketchSampling(config.hand_drawn_prob), balanced
                )
                train(AblatedCGAN(config, use_label, use_z), batches, work, run)
            seconds = time.perf_counter() - start
            generator = load_ablated_generator(work / "checkpoint.pt", use_label, use_z)
            return evaluation.evaluate(generator).assign(seconds=round(seconds), updates=run.steps)

        return run_one

    def pix2pix(share: float, seed: int, work: Path) -> pd.DataFrame:
        start, together = time.perf_counter(), plan.train_config.batch_size
        settings = Pix2PixConfig(plan.generator.size, plan.generator.classes)
        run = replace(plan.train_config, steps=plan.train_config.steps * together, batch=1, ema_nimg=0, seed=seed)
        train_pix2pix(store, settings, work, replace(run, save_every=plan.train_config.save_every * together))
        seconds = time.perf_counter() - start
        found = evaluation.evaluate(load_pix2pix(work / "checkpoint.pt"), batch_size=1)
        return found.assign(seconds=round(seconds), updates=run.steps)

    def floor(share: float, seed: int, work: Path) -> pd.DataFrame:
        return evaluation.floor(seed).assign(seconds=0, updates=0)

    arms = {FLOOR: floor, FULL_RECIPE: arm()} | {name: arm(**changed) for name, changed in ABLATIONS.items()}
    arms |= {
        "no EMA": arm(ema=False),
        "no label in G": arm(use_label=False),
        "no z": arm(use_z=False),
        "no class balancing": arm(balanced=False),
        "pix2pix": pix2pix,
    }
    return run_grid(arms, [1.0], plan.seeds, out, fingerprint("ablation", plan, evaluation), only)


def small_data_experiment(
    store: Store, plan: AblationPlan, extractor: FeatureExtractor, out: str | Path
) -> pd.DataFrame:
    """The whole recipe on shares of the training images (whole lesions, of every class as large a share, others for
    every seed), each on equally many pictures; a row per share and seed, see `Exam.of`, with the number of
    `photographs` and which share of the drawings is nearer to one of them than the nearest 1 % of val photographs:
    `copies`, by the judge's features, and `copied_pixels`.

    Raises `ValueError` for shares outside (0, 1], `DataError` where masks or labels are missing.
    """
    if out_of_range := [share for share in plan.fractions if not 0 < share <= 1]:
        raise ValueError(f"shares {out_of_range} of the training images are not in (0, 1]")
    evaluation = GeneratorEval(store, extractor, plan.num_eval, Path(out) / "features")

    def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
        start, train_rows = time.perf_counter(), fraction_of_rows(store, fraction, seed)
        train_cgan(store, plan.generator, work, replace(plan.train_config, seed=seed), train_rows)
        seconds = time.perf_counter() - start
        generator, _ = load_cgan(work / "checkpoint.pt")
        images = sample(generator, evaluation.sketches, evaluation.labels, seed=0)
        sets = [images, np.array(store.images[train_rows]), evaluation.images]
        by_judge = memorization(*(evaluation.features(images).values for images in sets))
        by_pixels = memorization(*(thumbnails(images) for images in sets))
        found = evaluation.evaluate(generator).assign(
            seconds=round(seconds), updates=plan.train_config.steps, num_images=len(train_rows)
        )
        return found.assign(copies=by_judge.copies, pixel_copies=by_pixels.copies)

    return run_grid(
        {FULL_RECIPE: run_one}, plan.fractions, plan.seeds, out, fingerprint("small data", plan, evaluation)
    )


def fingerprint(question: str, plan: AblationPlan, exam: GeneratorEval) -> dict:
    """What decides the results."""
    decides = {name: value for name, value in asdict(plan).items() if name not in ("fractions", "seeds")}
    return decides | {"question": question, "data": exam.store.folder.name, "extractor": exam.extractor.name}


def load_ablated_generator(checkpoint: Path, use_label: bool = True, use_z: bool = True) -> Generator:
    """The averaged generator of a checkpoint, as blind to labels and noise numbers as it was in training."""
    generator, _ = load_cgan(checkpoint)
    if not use_label:
        generator.class_embed.weight.copy_(generator.class_embed.weight[:1].expand_as(generator.class_embed.weight))
    if not use_z:
        generator.running_mean.zero_()
        generator.running_cov.zero_()
    return generator


def mean_over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """A row per arm and share: mean of every measure over the seeds; of KID, every seed, and by how much each is above
    that of the whole recipe with the same seed. Two seeds show which differences are large, they prove none."""
    by = ["arm", "fraction"]
    measures = [m for m in results if m not in (*by, "seed", "kid_low", "kid_high", "n_real")]
    kid = results.pivot_table(index=by, columns="seed", values="kid", sort=False)
    table = results.groupby(by, sort=False)[measures].mean().join(kid.add_prefix("kid, seed "))
    whole = results[results["arm"] == FULL_RECIPE].groupby("seed")["kid"].last()  # of the largest share
    return table.join((kid - whole).add_prefix("above the whole, seed "))
