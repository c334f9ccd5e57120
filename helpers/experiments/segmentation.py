"""Do synthetic pairs of image and mask help to segment real lesions?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from helpers.config import get_config
from helpers.data.batches import ImageSource
from helpers.data.files import image_shape, read_image, read_mask
from helpers.data.store import Store, StoreConfig, resize
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
from helpers.metrics.overlap import scores
from helpers.models.gan import GANConfig, train_gan
from helpers.models.segmenter import Segmenter, SegmenterConfig, fit_segmenter, load_segmenter, segment
from helpers.models.trainer import TrainConfig

CHUNK = 16  # images in memory at a time


def score_images(segmenter: Segmenter, table: pd.DataFrame) -> pd.DataFrame:
    """Scores of every image of a store's `table`, at its own size and against its original mask file, as in the ISIC
    challenges: `image_id`, `group` (lesion id, or image id if it is not known), the measures of `overlap.scores`, and
    `area`, the fraction of the image that the lesion covers."""
    rows, store_config = [], StoreConfig(segmenter.size, crop="none")
    for start in range(0, len(table), CHUNK):
        chunk = table.iloc[start : start + CHUNK]
        shapes = [image_shape(path) for path in chunk["path"]]
        images = [resize(read_image(path, min_size=segmenter.size), store_config) for path in chunk["path"]]
        for row, shape, pred in zip(chunk.itertuples(), shapes, segment(segmenter, images, shapes), strict=True):
            target = read_mask(row.mask_path, shape)
            group = row.image_id if pd.isna(row.lesion_id) else row.lesion_id
            rows.append({"image_id": row.image_id, "group": group, **scores(pred, target), "area": target.mean()})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class SegmentationPlan:
    """Sizes of the experiment; all arms take the same number of optimizer steps."""

    segmenter: SegmenterConfig
    generator: GANConfig
    train_config: TrainConfig  # of the segmenters
    gan_train_config: TrainConfig
    num_pairs: int
    fractions: tuple[float, ...]  # of the real training images
    seeds: tuple[int, ...]


def segmentation_plan(cfg: SimpleNamespace, store: Store) -> SegmentationPlan:
    """The plan of `get_config("segmentation")` or `get_config("segmentation_notebook")`, with architecture and encoder
    of `get_config("segmenter")`."""
    classes, segmenter_cfg = tuple(store.classes), get_config("segmenter")
    return SegmentationPlan(
        segmenter=SegmenterConfig(cfg.size, segmenter_cfg.arch, segmenter_cfg.encoder_name),
        generator=GANConfig(cfg.size, classes, store.config.style, cfg.base_channels, projected=cfg.projected),
        train_config=TrainConfig(cfg.steps, cfg.batch_size),
        gan_train_config=TrainConfig(cfg.gan_steps, cfg.gan_batch_size),
        num_pairs=cfg.num_pairs,
        fractions=cfg.fractions,
        seeds=cfg.seeds,
    )


# Synthetic pairs against no augmentation, and against augmentation, which costs nothing.
COMPARISON_PAIRS = [
    ("real + augmentation", "real"),
    ("real + synthetic", "real"),
    ("synthetic only", "real"),
    ("real + synthetic", "real + augmentation"),
    ("real + synthetic + augmentation", "real + augmentation"),
]


def segmentation_experiment(
    store: Store, plan: SegmentationPlan, out: str | Path, split: str = "test", only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Train a segmenter per arm, fraction and seed, and test it once on the real images of `split`.

    Arms: real pairs and synthetic ones, together or alone, with and without augmentation. `only`: names of the arms to
    run. The generator of a fraction is trained on that fraction's images only. Seeds share fractions and generators,
    and decide synthetic pairs, initial weights and batches.

    Returns the columns `arm fraction seed`, those of `score_images`, `init` (initial weights) and `seconds`. Raises
    `DataError` if masks or labels are missing, `ValueError` for fractions outside (0, 1] or an unknown arm.
    """
    out, test_rows = Path(out), store.rows(split, needs=["mask"])
    check_fractions(plan.fractions)
    check_rows(store, test_rows, split)
    test_table = store.table.iloc[test_rows]

    @lru_cache(maxsize=len(plan.seeds))  # all arms of a fraction use the same pairs
    def synthetic_source(fraction: float, seed: int) -> ImageSource:
        rows, folder = fraction_of_rows(store, fraction), out / f"generator-{fraction:g}"
        train_gan(store, plan.generator, folder, plan.gan_train_config, rows)
        return cgan_images(folder / "checkpoint.pt", store, rows, plan.num_pairs, seed)

    def arm(real: bool = False, synthetic: bool = False, augmented: bool = False) -> Arm:
        config = plan.segmenter if augmented else replace(plan.segmenter, **NO_AUGMENTATION)

        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            sources = [ImageSource(store.images, fraction_of_rows(store, fraction), masks=store.masks)] if real else []
            sources += [synthetic_source(fraction, seed)] if synthetic else []
            start = time.perf_counter()
            fit_segmenter(sources, config, work, replace(plan.train_config, seed=seed))
            seconds = time.perf_counter() - start
            segmenter, _ = load_segmenter(work / "checkpoint.pt")
            return score_images(segmenter, test_table).assign(init=segmenter.init, seconds=round(seconds, 1))

        return run_one

    arms = {
        "real": arm(real=True),
        "real + augmentation": arm(real=True, augmented=True),
        "real + synthetic": arm(real=True, synthetic=True),
        "real + synthetic + augmentation": arm(real=True, synthetic=True, augmented=True),
        "synthetic only": arm(synthetic=True),
    }
    fingerprint = plan_fingerprint(plan, split=split, data=store.folder.name)
    return run_grid(arms, plan.fractions, plan.seeds, out, fingerprint, only)
