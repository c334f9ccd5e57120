"""Do synthetic images help a classifier? The arms are compared on real images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from helpers.data.store import ImageSource, Store
from helpers.experiments.runner import (
    NO_AUGMENTATION,
    Arm,
    check_fractions,
    check_rows,
    fraction_of_rows,
    plan_fingerprint,
    run_grid,
)
from helpers.experiments.synthetic import cgan_images
from helpers.metrics.prediction_tables import (  # noqa: F401, the command line takes the measures from here
    auc,
    average_precision,
    balanced_accuracy,
    predict_table,
    recalls_by_arm,
)
from helpers.models.classifier import ClassifierConfig, fit_classifier, ids_of, load_classifier
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig


@dataclass(frozen=True)
class RealVsSyntheticPlan:
    """Sizes of the experiment; all arms take the same number of optimizer steps."""

    classifier: ClassifierConfig
    generator: GANConfig
    train_config: TrainConfig  # of the classifiers
    gan_train_config: TrainConfig
    num_synthetic: int
    fractions: tuple[float, ...]  # of the real training images
    seeds: tuple[int, ...]


def real_vs_synthetic_plan(cfg: SimpleNamespace, store: Store) -> RealVsSyntheticPlan:
    """The plan of `get_config("real_vs_synthetic")` or `get_config("real_vs_synthetic_notebook")`."""
    classes = tuple(store.classes)
    return RealVsSyntheticPlan(
        classifier=ClassifierConfig(cfg.size, classes, cfg.arch),
        generator=GANConfig(cfg.size, classes, store.config.style, cfg.base_channels, projected=cfg.projected),
        train_config=TrainConfig(cfg.steps, cfg.batch_size),
        gan_train_config=TrainConfig(cfg.gan_steps, cfg.gan_batch_size),
        num_synthetic=cfg.num_synthetic,
        fractions=cfg.fractions,
        seeds=cfg.seeds,
    )


COMPARISON_PAIRS = [
    ("real + augmentation", "real"),
    ("class-weighted", "real + augmentation"),
    ("real + synthetic", "real"),
    ("synthetic only", "real"),
    ("real + synthetic + augmentation", "real + augmentation"),
]


def real_vs_synthetic_experiment(
    store: Store, plan: RealVsSyntheticPlan, out: str | Path, split: str = "test", only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Train a classifier per arm, fraction and seed, and test it once on the real images of `split`.

    Arms: real images and synthetic ones, together or alone, with and without augmentation, classes sampled equally;
    "class-weighted" samples real images uniformly and weights the loss instead. `only`: names of the arms to run. The
    generator of a fraction is trained on that fraction's images only. Seeds share fractions and generators, and decide
    synthetic images, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `predict_table`, `init` (initial weights) and `seconds`. Raises
    `DataError` if masks or labels are missing, `ValueError` for fractions outside (0, 1] or an unknown arm.
    """
    out, test_rows = Path(out), store.rows(split, needs=["label"])
    check_fractions(plan.fractions)
    check_rows(store, test_rows, split)

    @lru_cache(maxsize=len(plan.seeds))  # all arms of a fraction use the same images
    def synthetic_source(fraction: float, seed: int) -> ImageSource:
        rows, folder = fraction_of_rows(store, fraction), out / f"generator-{fraction:g}"
        train_gan(store, plan.generator, folder, plan.gan_train_config, rows)
        return cgan_images(folder / "checkpoint.pt", store, rows, plan.num_synthetic, seed, balanced=True)

    def arm(real: bool = False, synthetic: bool = False, augmented: bool = False, balance: str = "sampling") -> Arm:
        config = replace(plan.classifier, balance=balance, **({} if augmented else NO_AUGMENTATION))

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            rows = fraction_of_rows(store, fraction)
            sources = [ImageSource(store.images, rows, labels=store.labels)] if real else []
            sources += [synthetic_source(fraction, seed)] if synthetic else []
            start = time.perf_counter()
            fit_classifier(sources, config, work, replace(plan.train_config, seed=seed), ids_of(store.table.iloc[rows]))
            seconds = time.perf_counter() - start
            classifier, _ = load_classifier(work / "checkpoint.pt")
            table = predict_table(classifier, store, test_rows)
            return table.assign(init=classifier.backbone.init, seconds=round(seconds, 1))

        return run_one

    arms = {
        "real": arm(real=True),
        "real + augmentation": arm(real=True, augmented=True),
        "class-weighted": arm(real=True, augmented=True, balance="loss"),
        "real + synthetic": arm(real=True, synthetic=True),
        "real + synthetic + augmentation": arm(real=True, synthetic=True, augmented=True),
        "synthetic only": arm(synthetic=True),
    }
    fingerprint = plan_fingerprint(plan, split=split, data=store.folder.name)
    return run_grid(arms, plan.fractions, plan.seeds, out, fingerprint, only)
