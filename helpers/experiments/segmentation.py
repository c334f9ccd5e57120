"""Arms x shares of the data x seeds: every cell is trained once and leaves a file, so that a killed experiment goes on
where it was; then tables with intervals and verdicts.

The segmentation experiment asks whether pairs that the CGAN drew help to segment real lesions.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from helpers.config import get_config, shown
from helpers.data.files import DataError, picture_shape, read_image, read_mask
from helpers.data.sketches import contour, deform, filled
from helpers.data.store import Pairs, Store, StoreSettings, fit
from helpers.metrics.overlap import scores
from helpers.metrics.stats import over_seeds, verdict
from helpers.models.cgan import CGANSettings, draw, load_cgan, train_cgan
from helpers.models.segmenter import Segmenter, SegmenterSettings, load_segmenter, segment, train_on_pairs
from helpers.models.training import Run

Arm = Callable[[float, int, Path], pd.DataFrame]  # share of the data, seed, folder to work in -> scores per image


# ------------------------------------------------------------------------------------------------------ any experiment


def run_cells(
    arms: dict[str, Arm], shares: Sequence[float], seeds: Sequence[int], out: str | Path, plan: dict
) -> pd.DataFrame:
    """Every arm at every share and seed whose file is not in `out` yet; returns all of them as one table: `arm share
    seed`, then what the arms measured: `image_id group seconds` and measures. Work of finished cells is deleted.

    `plan`: everything else that decides the results. Raises `ValueError` when `out` holds results of another plan.
    """
    out, tables = Path(out), []
    _same_plan(out, json.loads(json.dumps(plan)))
    cells = tqdm(list(product(dict.fromkeys(shares), arms, dict.fromkeys(seeds))), desc=out.name, unit="cells")
    for share, arm, seed in cells:
        name = f"{arm.replace(' ', '_')}-{share:g}-{seed}"
        file, work = out / f"{name}.csv", out / f"work-{name}"
        if not file.is_file():
            cells.set_postfix_str(f"{arm}, {share:.0%}, seed {seed}")
            table = arms[arm](share, seed, work)
            for place, (column, value) in enumerate({"arm": arm, "share": share, "seed": seed}.items()):
                table.insert(place, column, value)
            table.to_csv(file.with_suffix(".part"), index=False)
            os.replace(file.with_suffix(".part"), file)
        shutil.rmtree(work, ignore_errors=True)
        tables.append(pd.read_csv(file, dtype={"image_id": "string", "group": "string"}))
    return pd.concat(tables, ignore_index=True)


def _same_plan(out: Path, plan: dict) -> None:
    file = out / "plan.json"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan, indent=1))
    saved = json.loads(file.read_text())
    if differing := [f"{k} {saved.get(k)!r} there, {plan[k]!r} here" for k in plan if saved.get(k) != plan[k]]:
        raise ValueError(f"{shown(out)} holds another experiment ({'; '.join(differing)}): choose another folder")


def by_seed(results: pd.DataFrame, share: float, arm: str, measure: str) -> tuple[np.ndarray, pd.Series]:
    """Of one arm at one share: `(S, N)`, a row per seed, a column per image by its name, and the images' groups."""
    cell = results[(results["share"] == share) & (results["arm"] == arm)]
    groups = cell.drop_duplicates("image_id").sort_values("image_id")["group"]
    return cell.pivot(index="seed", columns="image_id", values=measure).to_numpy(), groups


def summary(results: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One row per share and arm: mean over images and seeds with its interval (see `over_seeds`; images of one `group`,
    a lesion say, are resampled together), the worst and the best seed, and seconds of training."""
    rows = []
    for (share, arm), cell in results.groupby(["share", "arm"], sort=False):
        values, groups = by_seed(results, share, arm, measure)
        low, high = over_seeds(values, groups)
        row = {"share": share, "arm": arm, "N": values.shape[1], "seeds": len(values), measure: values.mean()}
        row |= {
            "from": low,
            "to": high,
            "worst seed": values.mean(axis=1).min(),
            "best seed": values.mean(axis=1).max(),
        }
        rows.append(row | {"seconds": cell["seconds"].mean()})
    return pd.DataFrame(rows).set_index(["share", "arm"])


def comparisons(results: pd.DataFrame, measure: str, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences of one arm to another, on the same images, with interval and verdict, at every share. With one
    seed there is no verdict: what chance does in training is not known."""
    rows = []
    for share, (arm, other) in product(results["share"].unique(), pairs):
        values, groups = by_seed(results, share, arm, measure)
        difference = values - by_seed(results, share, other, measure)[0]
        low, high = over_seeds(difference, groups)
        row = {"share": share, "arm": arm, "against": other, "difference": difference.mean(), "from": low, "to": high}
        found = verdict(low, high) if len(values) > 1 else "one seed, no verdict"
        rows.append(row | {"verdict": found, "N": values.shape[1], "seeds": len(values)})
    return pd.DataFrame(rows).set_index(["share", "arm", "against"])


def in_words(table: pd.DataFrame, measure: str) -> list[str]:
    """One sentence for each of the `comparisons`, by its rule whichever way it falls."""
    return [
        f"{share:.0%} of the real images, {arm} against {other}: {row['verdict']} ({row['difference']:+.3f} {measure}, "
        f"{row['from']:+.3f} to {row['to']:+.3f}, N {row['N']}, {row['seeds']} seeds)"
        for (share, arm, other), row in table.iterrows()
    ]


# --------------------------------------------------------------------------------------------------------- segmenting


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


def share_of_rows(store: Store, share: float) -> np.ndarray:
    """A share of the training rows that have a mask and a label, the same for every arm and seed; whole lesions are
    chosen, so that two photographs of one do not count as two."""
    rows = store.rows("train", needs=["mask", "label", "sketch"])
    lesions = store.table["lesion_id"].fillna(store.table["image_id"]).to_numpy(str)[rows]
    names = np.random.default_rng(0).permutation(np.unique(lesions))
    return rows[np.isin(lesions, names[: max(1, round(share * len(names)))])]


def drawn_pairs(checkpoint: Path, store: Store, rows: np.ndarray, count: int, seed: int = 0) -> Pairs:
    """`count` images drawn from deformed lesions of `rows`, each under its lesion's label, and the masks they must
    show. Raises `DataError` when the network knows other classes or another style of sketch."""
    generator, settings = load_cgan(checkpoint)
    if settings.classes != tuple(store.classes):
        raise DataError(f"the network draws {' '.join(settings.classes)}, the data have {' '.join(store.classes)}")
    if settings.style != "contour":
        raise DataError(f"the network draws sketches of style {settings.style!r}, of which no new ones can be made")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(rows, count)
    masks = np.stack([filled(deform(store.masks[row], rng)) for row in chosen])
    images = draw(generator, np.stack([contour(mask) for mask in masks]), store.labels[chosen], seed)
    return Pairs(images, masks, np.arange(count))


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
        generator=CGANSettings(cfg.size, tuple(store.classes), store.settings.style, cfg.width),
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


def segmentation_experiment(store: Store, plan: SegmentationPlan, out: str | Path, split: str = "test") -> pd.DataFrame:
    """Real images; with classical augmentation; with drawn pairs, without and with augmentation; drawn pairs alone.

    Of each share of the training images, the generator too sees no others. Share and generator are the same for all
    seeds, which decide the pairs, the first weights and the batches. Scored, once, on the real images of `split`.
    Raises `DataError` where masks or labels are missing, `ValueError` for shares outside (0, 1].
    """
    out = Path(out)
    measured = store.table.iloc[store.rows(split, needs=["mask"])]
    if out_of_range := [share for share in plan.shares if not 0 < share <= 1]:
        raise ValueError(f"shares {out_of_range} of the training images are not in (0, 1]")
    if measured.empty or not len(share_of_rows(store, 1.0)):
        raise DataError(f"{store.name} lacks masks or labels in train or {split}: nothing to compare segmenters on")

    @cache
    def drawn(share: float, seed: int) -> Pairs:
        rows, folder = share_of_rows(store, share), out / f"generator-{share:g}"
        train_cgan(store, plan.generator, folder, plan.draw_run, rows)
        return drawn_pairs(folder / "checkpoint.pt", store, rows, plan.pairs, seed)

    def arm(real: bool, augmented: bool, synthetic: bool) -> Arm:
        def cell(share: float, seed: int, work: Path) -> pd.DataFrame:
            parts = [Pairs(store.images, store.masks, share_of_rows(store, share))] if real else []
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
    return run_cells(arms, plan.shares, plan.seeds, out, decides)
