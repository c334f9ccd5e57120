"""Whether a feature extractor can be trusted: KID must rise with known damage, its features must hold the diagnosis.

Two disjoint samples of training images, both with up to `MAX_PER_CLASS` images of each class, are compared: the
second one as it is, then blurred, noisy, compressed, without some classes, and with another class. Weaker damage than
that of `STRENGTHS` and `FRACTIONS` would be lost in the differences between two samples of this size. A logistic
regression on the features is scored on val, next to one on the features of the same network with random weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

from helpers.config import Config
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments.evaluation import open_store, to_table
from helpers.metrics.degradations import DEGRADATIONS
from helpers.metrics.extractors import FeatureExtractor, extract_array, load_extractor, random_extractor
from helpers.metrics.generator_eval import linear_probe
from helpers.metrics.quality import MIN_IMAGES, kid, kid_interval

ORDERED = ("blur", "noise", "JPEG")
STRENGTHS = (0.2, 0.5, 1.0)
FRACTIONS = (0.5, 0.75, 1.0)  # of the classes that are dropped, at most all but one; of images of a wrong class
MAX_PROBE_IMAGES = 3_000  # of the training split


@dataclass(frozen=True)
class ExtractorEvaluation:
    """Options of `evaluate extractor`."""

    size: int = 64  # pixels per side of the images
    max_per_class: int = 50  # images of a class in each of the two samples
    seed: int = 0  # of the samples


def evaluate_extractor(name: str, options: ExtractorEvaluation, cfg: Config) -> pd.DataFrame:
    """Table of an extractor: KID by damage and strength, balanced accuracy of a linear probe and of the same network
    with random weights; the notes say whether each KID rises and whether the extractor is accepted.

    Raises `DataError` if its weights are not available, or for too few images.
    """
    extractor, store = load_extractor(name), open_store(cfg, options.size)
    rows = list(damage_rows(store, extractor, options, cfg))
    rises = monotone(rows)
    notes = [f"{name}: KID {'rises' if up else 'does NOT rise'} with the strength" for name, up in rises.items()]
    probes = probe_rows(store, {"trained": extractor, "random init": random_extractor(name)}, options.seed, cfg)
    better = probes[0]["value"] > probes[1]["value"]
    notes.append(f"linear probe: {'better' if better else 'NOT better'} than the same network with random weights")
    accepted = better and all(rises.values())
    notes.append(f"{extractor.name} is {'' if accepted else 'NOT '}accepted")
    return to_table([row | {"extractor": extractor.name} for row in [*rows, *probes]], [store, options], notes)


def monotone(rows: list[dict]) -> dict[str, bool]:
    """Of each damage in `rows`, whether KID is larger at every strength than at the one before."""
    values = {name: [row["value"] for row in rows if row["class"] == name] for name in dict.fromkeys(
        row["class"] for row in rows)}  # fmt: skip
    return {name: bool((np.diff(v) > 0).all()) for name, v in values.items()}


def damage_rows(store: Store, extractor: FeatureExtractor, options: ExtractorEvaluation, cfg: Config) -> Iterator[dict]:
    """Rows of KID with its interval: `class` is the damage, `compared` its strength, from 0 upwards."""
    features = partial(extract_array, extractor=extractor, cache=cfg.features)
    for name, reference, sets in damaged_sets(store, options):
        reference = features(reference).values
        for strength, images in sets:
            pair = features(images).values, reference
            low, high = kid_interval(*pair)
            yield {"measure": "kid", "class": name, "compared": f"strength {strength:.2f}", "value": kid(*pair),
                   "low": low, "high": high, "n": len(pair[0]), "n_real": len(reference)}  # fmt: skip


def damaged_sets(
    store: Store, options: ExtractorEvaluation
) -> Iterator[tuple[str, np.ndarray, Iterator[tuple[float, np.ndarray]]]]:
    """Yield name, reference images and pairs of strength and damaged images, all `uint8 (N, S, S, 3)`. Raises
    `DataError` if a set would have fewer than `MIN_IMAGES` images."""
    first, second = balanced_halves(store, options)
    images, labels = np.array(store.images[second]), store.labels[second]
    reference = np.array(store.images[first])
    for name in ORDERED:
        yield name, reference, ((s, DEGRADATIONS[name](images, s) if s else images) for s in (0.0, *STRENGTHS))
    present, counts = np.unique(labels, return_counts=True)
    present = present[np.argsort(counts, kind="stable")]  # the largest class stays
    dropped = [round(fraction * (len(present) - 1)) for fraction in (0.0, *FRACTIONS)]
    yield (
        "dropped classes",
        reference,
        ((count / len(present), images[np.isin(labels, present[count:])]) for count in dropped),
    )
    largest = np.bincount(labels).argmax()
    yield (
        "wrong class",
        reference[store.labels[first] == largest],
        ((fraction, replace_by_others(images, labels == largest, fraction)) for fraction in (0.0, *FRACTIONS)),
    )


def replace_by_others(images: np.ndarray, chosen: np.ndarray, fraction: float) -> np.ndarray:
    """The `chosen` images, `bool (N,)`, with this fraction replaced by others, spread over all others."""
    right, wrong = images[chosen], images[~chosen]
    count = min(round(fraction * len(right)), len(wrong))
    return np.concatenate([right[count:], wrong[np.linspace(0, len(wrong) - 1, count).round().astype(int)]])


def balanced_halves(store: Store, options: ExtractorEvaluation) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint samples of rows of the training split with the same number of each class. Raises `DataError` if the
    largest class has fewer than `MIN_IMAGES` in each."""
    rng, halves = np.random.default_rng(options.seed), ([], [])
    rows = rng.permutation(store.rows("train", needs=["label"]))
    for label in range(len(store.classes)):
        of_class = rows[store.labels[rows] == label]
        count = min(len(of_class) // 2, options.max_per_class)
        halves[0].append(of_class[:count])
        halves[1].append(of_class[count : 2 * count])
    if (most := max(map(len, halves[0]))) < MIN_IMAGES:
        raise DataError(f"{store.name} needs a class with {2 * MIN_IMAGES} training images, got {2 * most}")
    return np.concatenate(halves[0]), np.concatenate(halves[1])


def probe_rows(store: Store, extractors: dict[str, FeatureExtractor], seed: int, cfg: Config) -> list[dict]:
    """Row of the balanced accuracy on val of a linear probe on the features of each extractor."""
    rng = np.random.default_rng(seed)
    train = rng.permutation(store.rows("train", needs=["label"]))[:MAX_PROBE_IMAGES]
    val, rows = store.rows("val", needs=["label"]), []
    for name, extractor in extractors.items():
        x, x_val = (extract_array(np.array(store.images[k]), extractor, cfg.features).values for k in (train, val))
        score = balanced_accuracy_score(store.labels[val], linear_probe(x, store.labels[train]).predict(x_val))
        rows.append({"measure": "probe_balanced_accuracy", "compared": name, "value": score, "n": len(val)})
    return rows
