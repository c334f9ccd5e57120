"""What a KID looks like: generated images, damaged until their KID to other generated images has a given value.

Reference and images come from one generator (other sketches and latents), so that their KID is 0 but for chance, and
no image of a patient is shown. The strength of each damage is found by bisection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.data.store import Store
from helpers.experiments.evaluation import Generate
from helpers.experiments.results import Page
from helpers.metrics.degradations import DEGRADATIONS
from helpers.metrics.extractors import FeatureExtractor, extract_array
from helpers.metrics.quality import kid
from helpers.views.plots import grid

TARGETS = (0.0, 0.02, 0.05, 0.1, 0.3, 0.8)
STEPS = 32  # of strength, so that bisections share them
LIMITS = (
    "The same KID can look different: it depends on the kind of damage, on the extractor and on the images.",
    "Values that even the strongest damage does not reach have no image.",
    "KID 0 is another half of the images: its value is the error of a KID of this N.",
)


@dataclass(frozen=True)
class KidScale:
    """Options of `experiment kid-scale`. Raises `ValueError` for fewer than 10 images."""

    num_images: int = 200  # in the reference, and in every damaged set
    seed: int = 0  # of the latents

    def __post_init__(self):
        if self.num_images < 10:
            raise ValueError(f"num_images must be at least 10, got {self.num_images}")


def kid_scale(
    generate: Generate, store: Store, extractor: FeatureExtractor, options: KidScale
) -> tuple[pd.DataFrame, dict[str, list[np.ndarray]]]:
    """Table with a row per damage and target (`damage target strength value reached n n_real`), and by damage one image
    `uint8 (H, W, 3)` per target that is reached; the same image in all rows."""
    reference, images = generated_halves(generate, store, options)
    reference = extract_array(reference, extractor).values
    rows, shown = [], {}
    for name, damage in DEGRADATIONS.items():

        @cache
        def measure(step: int, damage: Callable = damage) -> float:
            return kid(extract_array(damaged(images, damage, step), extractor).values, reference)

        steps = [0 if target == 0 else bisect(measure, target) for target in TARGETS]
        rows += [
            {"damage": name, "target": target, "strength": strength(step), "value": measure(step)}
            for target, step in zip(TARGETS, steps, strict=True)
        ]
        reached = [step for target, step in zip(TARGETS, steps, strict=True) if is_reached(measure(step), target)]
        shown[name] = [damaged(images[:1], damage, step)[0] for step in reached]
    table = pd.DataFrame(rows)
    table["reached"] = is_reached(table["value"], table["target"])
    return table.assign(measure="kid", n=len(images), n_real=len(reference), extractor=extractor.name), shown


def is_reached(value: float | pd.Series, target: float | pd.Series) -> bool | pd.Series:
    """Whether a KID is at least 80 % of its target; a target of 0 always is, as the error of KID has both signs."""
    return (value >= 0.8 * target) | (target == 0)


def generated_halves(generate: Generate, store: Store, options: KidScale) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of generated images `uint8 (N, S, S, 3)` of random sketches with their labels: other sketches in each
    where there are enough, because KID supposes independent samples."""
    rows, count = store.rows(needs=["sketch", "label"]), 2 * options.num_images
    chosen = np.random.default_rng(options.seed).choice(rows, count, replace=len(rows) < count)
    images = generate(store.batch(chosen), options.seed)
    return images[: options.num_images], images[options.num_images :]


def damaged(images: np.ndarray, damage: Callable[[np.ndarray, float], np.ndarray], step: int) -> np.ndarray:
    """Images `uint8 (N, H, W, 3)` after damage of the `strength` of a step; unchanged for step 0."""
    return damage(images, strength(step)) if step else images


def strength(step: int) -> float:
    """Strength in [0, 1] of a step in 0 to `STEPS`: squared, because a trace of noise already changes features."""
    return (step / STEPS) ** 2


def bisect(measure: Callable[[int], float], target: float) -> int:
    """The step in 1 to `STEPS` whose measure, which rises, is nearest to `target`."""
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) < target else (low, middle)
    return min((max(low, 1), high), key=lambda step: abs(measure(step) - target))


def figure(table: pd.DataFrame, shown: dict[str, list[np.ndarray]]) -> Figure:
    """A row per damage, with the measured KID under each image."""
    titles = [f"KID {target:g}" for target in TARGETS]
    images = grid(list(shown.values()), list(shown), titles)
    by_damage = table[table["reached"]].groupby("damage", sort=False)["value"].agg(list)
    for row, name in enumerate(shown):
        for axis, value in zip(images.axes[row * len(TARGETS) :], by_damage[name], strict=False):
            axis.set_xlabel(f"{value:.3f}", fontsize=8, labelpad=2)
    images.subplots_adjust(hspace=0.2, bottom=0.05)
    return images


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """A line per damage: measured KID and strength for every target."""
    cells = table.assign(cell=[f"{row.value:.3f} (strength {row.strength:.3f})" for row in table.itertuples()])
    return cells.pivot(index="damage", columns="target", values="cell").loc[list(DEGRADATIONS)].rename(
        columns=lambda target: f"KID {target:g}")  # fmt: skip


def verdict(table: pd.DataFrame) -> list[str]:
    """The error of KID and what was out of reach, in sentences."""
    out_of_reach = table[~table["reached"]].groupby("damage", sort=False)
    lines = [f"The strongest {name} has a KID of {part['value'].max():.3f}." for name, part in out_of_reach]
    return [f"Undamaged images have a KID of {table['value'][0]:.3f}.", *lines]


def to_page(table: pd.DataFrame, shown: dict[str, list[np.ndarray]], generator: str, data: str) -> Page:
    """The page of published results."""
    n, extractor = table["n"][0], table["extractor"][0]
    settings = [
        f"Generator: {generator}; all images are generated, none is of a patient",
        f"Sketches and labels: {data}",
        f"KID of {n} images to {n} others, features of {extractor}",
    ]
    caption = f"Generated images after damage, with the measured KID under each (N = {n}, {extractor})"
    return Page("What does a KID look like?", settings, summary_table(table), verdict(table), LIMITS,
                figure(table, shown), caption)  # fmt: skip
