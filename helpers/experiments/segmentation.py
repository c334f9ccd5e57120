"""Do pairs that the CGAN drew help to segment real lesions?"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from helpers.config import get_config
from helpers.data.files import DataError, picture_shape, read_image, read_mask
from helpers.data.store import Part, Store, StoreSettings, fit
from helpers.experiments.cells import Arm, run_cells, share_of_rows
from helpers.experiments.synthetic import drawn_images
from helpers.metrics.overlap import scores
from helpers.models.cgan import CGANSettings, train_cgan
from helpers.models.segmenter import Segmenter, SegmenterSettings, load_segmenter, segment, train_on_pairs
from helpers.models.training import Run


def score_images(segmenter: Segmenter, table: pd.DataFrame, block: int = 16) -> pd.DataFrame:
    """Challenge scores of every image of a store's `table`, at its own size and against its original mask file:
    `image_id`, `group` (the lesion), then those of `overlap.scores`, then `area`, the lesion's share of the image."""
    rows, whole = [], StoreSettings(segmenter.size, geometry="whole")
    for start in range(0, len(table), block):
        part = table.iloc[start : start + block]
        shapes = [picture_shape(path) for path in part["path"]]
        images = [fit(read_image(path, at_least=segmenter.size), whole) for path in part["path"]]
        for row, shape, mask in zip(part.itertuples(), shapes, segment(segmenter, images, shapes), strict=True):
            true = read_mask(row.mask_path, shape)
            group = row.image_id if pd.isna(row.lesion_id) else row.lesion_id
            rows.append({"image_id": row.image_id, "group": group, **scores(mask, true), "area": true.mean()})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class SegmentationPlan:
    """Sizes of the segmentation experiment; all arms take the same number of optimiser steps."""

    segmenter: SegmenterSettings
    generator: CGANSettings
    run: Run
    draw_run: Run  # of the generator
    pairs: int
    shares: tuple[float, ...]  # of the real training images
    seeds: tuple[int, ...]


def segmentation_plan(cfg: SimpleNamespace, store: Store) -> SegmentationPlan:
    """From `get_config("pairs")` or `("experiment")`, with the network of the configured segmenter."""
    part = get_config("segmenter")
    return SegmentationPlan(
        segmenter=SegmenterSettings(cfg.size, part.network, part.encoder),
        generator=CGANSettings(
            cfg.size, tuple(store.classes), store.settings.style, cfg.width, projected=cfg.projected
        ),
        run=Run(cfg.steps, cfg.batch),
        draw_run=Run(cfg.draw_steps, cfg.draw_batch),
        pairs=cfg.pairs,
        shares=cfg.shares,
        seeds=cfg.seeds,
    )


# What is compared: drawn pairs with none, and with what turning and recolouring give for nothing.
COMPARED = [
    ("real + augmentation", "real"),
    ("real + drawn", "real"),
    ("drawn only", "real"),
    ("real + drawn", "real + augmentation"),
    ("real + drawn + augmentation", "real + augmentation"),
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
    if out_of_range := [share for share in plan.shares if not 0 < share <= 1]:
        raise ValueError(f"shares {out_of_range} of the training images are not in (0, 1]")
    if measured.empty or not len(share_of_rows(store, 1.0)):
        raise DataError(f"{store.name} lacks masks or labels in train or {split}: nothing to compare segmenters on")

    @lru_cache(maxsize=len(plan.seeds))  # arms of one share use the same
    def drawn(share: float, seed: int) -> Part:
        rows, folder = share_of_rows(store, share), out / f"generator-{share:g}"
        train_cgan(store, plan.generator, folder, plan.draw_run, rows)
        return drawn_images(folder / "checkpoint.pt", store, rows, plan.pairs, seed)

    def arm(real: bool, augmented: bool, synthetic: bool) -> Arm:
        def cell(share: float, seed: int, work: Path) -> pd.DataFrame:
            parts = [Part(store.images, share_of_rows(store, share), masks=store.masks)] if real else []
            parts += [drawn(share, seed)] if synthetic else []
            settings = plan.segmenter if augmented else replace(plan.segmenter, colour=0.0, shift=0.0, zoom=0.0)
            start = time.perf_counter()
            train_on_pairs(parts, settings, work, replace(plan.run, seed=seed))
            seconds = time.perf_counter() - start
            segmenter, _ = load_segmenter(work / "checkpoint.pt")
            return score_images(segmenter, measured).assign(start=segmenter.start, seconds=round(seconds, 1))

        return cell

    arms = {
        "real": arm(True, False, False),
        "real + augmentation": arm(True, True, False),
        "real + drawn": arm(True, False, True),
        "real + drawn + augmentation": arm(True, True, True),
        "drawn only": arm(False, False, True),
    }
    facts = asdict(plan) | {"split": split, "data": store.folder.name}
    decides = {name: value for name, value in facts.items() if name not in ("shares", "seeds")}
    return run_cells(arms, plan.shares, plan.seeds, out, decides, only)
