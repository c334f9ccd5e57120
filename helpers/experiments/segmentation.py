"""Do pairs that the CGAN drew help to segment real lesions?"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from helpers.config import get_config
from helpers.data.files import DataError, image_shape, read_image, read_mask
from helpers.data.store import ImageSource, Store, StoreConfig, resize
from helpers.experiments.runner import Arm, fraction_of_rows, run_grid
from helpers.experiments.synthetic import cgan_images
from helpers.metrics.overlap import scores
from helpers.models.cgan import CGANConfig, train_cgan
from helpers.models.segmenter import Segmenter, SegmenterConfig, fit_segmenter, load_segmenter, segment
from helpers.models.trainer import TrainConfig


def score_images(segmenter: Segmenter, table: pd.DataFrame, block: int = 16) -> pd.DataFrame:
    """Challenge scores of every image of a store's `table`, at its own size and against its original mask file:
    `image_id`, `group` (the lesion), then those of `overlap.scores`, then `area`, the lesion's share of the image."""
    rows, store_config = [], StoreConfig(segmenter.size, crop="none")
    for start in range(0, len(table), block):
        part = table.iloc[start : start + block]
        shapes = [image_shape(path) for path in part["path"]]
        images = [resize(read_image(path, min_size=segmenter.size), store_config) for path in part["path"]]
        for row, shape, mask in zip(part.itertuples(), shapes, segment(segmenter, images, shapes), strict=True):
            target = read_mask(row.mask_path, shape)
            group = row.image_id if pd.isna(row.lesion_id) else row.lesion_id
            rows.append({"image_id": row.image_id, "group": group, **scores(mask, target), "area": target.mean()})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class SegmentationPlan:
    """Sizes of the segmentation experiment; all arms take the same number of optimiser steps."""

    segmenter: SegmenterConfig
    generator: CGANConfig
    train_config: TrainConfig
    gan_train_config: TrainConfig  # of the generator
    num_pairs: int
    fractions: tuple[float, ...]  # of the real training images
    seeds: tuple[int, ...]


def segmentation_plan(cfg: SimpleNamespace, store: Store) -> SegmentationPlan:
    """From `get_config("segmentation_notebook")` or `("segmentation")`, with the network of the configured segmenter."""
    part = get_config("segmenter")
    return SegmentationPlan(
        segmenter=SegmenterConfig(cfg.size, part.arch, part.encoder_name),
        generator=CGANConfig(
            cfg.size, tuple(store.classes), store.config.style, cfg.base_channels, projected=cfg.projected
        ),
        train_config=TrainConfig(cfg.steps, cfg.batch_size),
        gan_train_config=TrainConfig(cfg.gan_steps, cfg.gan_batch_size),
        num_pairs=cfg.num_pairs,
        fractions=cfg.fractions,
        seeds=cfg.seeds,
    )


# What is compared: drawn pairs with none, and with what turning and recolouring give for nothing.
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
    """Real images; with classical augmentation; with drawn pairs, without and with augmentation; drawn pairs alone; or
    of these arms `only` some.

    Of each share of the training images, the generator too sees no others. Share and generator are the same for all
    seeds, which decide the pairs, the first weights and the batches. Scored, once, on the real images of `split`.
    Raises `DataError` where masks or labels are missing, `ValueError` for shares outside (0, 1]
    and for an arm that does not exist.
    """
    out = Path(out)
    measured = store.table.iloc[store.rows(split, needs=["mask"])]
    if out_of_range := [share for share in plan.fractions if not 0 < share <= 1]:
        raise ValueError(f"shares {out_of_range} of the training images are not in (0, 1]")
    if measured.empty or not len(fraction_of_rows(store, 1.0)):
        raise DataError(f"{store.name} lacks masks or labels in train or {split}: nothing to compare segmenters on")

    @lru_cache(maxsize=len(plan.seeds))  # arms of one share use the same
    def synthetic_source(share: float, seed: int) -> ImageSource:
        rows, folder = fraction_of_rows(store, share), out / f"generator-{share:g}"
        train_cgan(store, plan.generator, folder, plan.gan_train_config, rows)
        return cgan_images(folder / "checkpoint.pt", store, rows, plan.num_pairs, seed)

    def arm(real: bool, augmented: bool, synthetic: bool) -> Arm:
        def run_one(fraction: float, seed: int, work: Path) -> pd.DataFrame:
            sources = [ImageSource(store.images, fraction_of_rows(store, fraction), masks=store.masks)] if real else []
            sources += [synthetic_source(fraction, seed)] if synthetic else []
            settings = (
                plan.segmenter if augmented else replace(plan.segmenter, color_jitter=0.0, translate=0.0, scale=0.0)
            )
            start = time.perf_counter()
            fit_segmenter(sources, settings, work, replace(plan.train_config, seed=seed))
            seconds = time.perf_counter() - start
            segmenter, _ = load_segmenter(work / "checkpoint.pt")
            return score_images(segmenter, measured).assign(init=segmenter.init, seconds=round(seconds, 1))

        return run_one

    arms = {
        "real": arm(True, False, False),
        "real + augmentation": arm(True, True, False),
        "real + synthetic": arm(True, False, True),
        "real + synthetic + augmentation": arm(True, True, True),
        "synthetic only": arm(False, False, True),
    }
    facts = asdict(plan) | {"split": split, "data": store.folder.name}
    decides = {name: value for name, value in facts.items() if name not in ("fractions", "seeds")}
    return run_grid(arms, plan.fractions, plan.seeds, out, decides, only)
