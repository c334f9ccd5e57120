"""How near are synthetic images to real ones? KID, Fréchet distance, precision and recall, Inception Score.

Features are ours (`features.py`), the arithmetic is torch-fidelity's. Every number stands with its N and beside two
others that give it a scale: the floor, real against other real images, and ceilings, real images spoilt on purpose.
KID leads: at a few hundred images its estimate is unbiased, while a Fréchet distance mostly measures N.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from helpers.data.files import DataError
from helpers.metrics.extractors import INCEPTION, FeatureExtractor, Features, ImageSet, extract_features
from helpers.metrics.stats import bootstrap_weights, percentile_ci

MIN_IMAGES = 10  # images of a set; below that no distance means anything
MIN_IMAGES_FOR_IS = 1000  # ten parts of a hundred; the score of smaller parts mostly tells their size
KID_SUBSET_SIZE = 1000  # images that KID compares at a time
VERSION = 1  # raise it when the same features would give another number: older ones are then not taken from the cache

# ----------------------------------------------------------------------------------------------- measures of two sets


def kid(one: np.ndarray, other: np.ndarray, seed: int = 0) -> float:
    """Kernel distance (Bińkowski et al. 2018) of features `(N, D)` and `(M, D)`: unbiased, so near 0 for two samples of
    one kind, and sometimes below. All images at once when both sets have the same number, up to `SUBSET`; else the
    mean over 50 random subsets as large as the smaller set allows, `SUBSET` at most."""
    size = min(len(one), len(other), KID_SUBSET_SIZE)
    subsets = 1 if len(one) == len(other) == size else 50
    kernel = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    kernel |= {"kid_kernel_poly_coef0": 1, "rng_seed": seed, "verbose": False}
    found = kid_features_to_metric(*_tensors(one, other), kid_subsets=subsets, kid_subset_size=size, **kernel)
    return found["kernel_inception_distance_mean"]


def kid_interval(
    one: np.ndarray, other: np.ndarray, rounds: int = 500, most: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of KID over the images of both sets, of at most `most` each (a larger set is surer).

    The kernel is computed once, a round only weighs it. An image drawn twice is not compared with itself, which would
    bias the distance upwards.
    """
    rng = np.random.default_rng(seed)
    x, y = (f[rng.permutation(len(f))[:most]].astype(np.float32) for f in (one, other))
    v, w = (bootstrap_weights(len(f), rounds, rng).astype(np.float32) for f in (x, y))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(k: np.ndarray, u: np.ndarray) -> np.ndarray:
        squares = u**2
        return (((u @ k) * u).sum(axis=1) - squares @ np.diag(k)) / (u.sum(axis=1) ** 2 - squares.sum(axis=1))

    across = ((v @ kernel(x, y)) * w).sum(axis=1) / (v.sum(axis=1) * w.sum(axis=1))
    return percentile_ci(within(kernel(x, x), v) + within(kernel(y, y), w) - 2 * across)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of two normal distributions with the means and covariances of features `(N, D)`, `(M, D)` (Heusel et al.
    2017). Only with Inception's features it is FID."""
    statistics = [dict(zip(("mu", "sigma"), mean_and_covariance(f), strict=True)) for f in (one, other)]
    return fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]


def mean_and_covariance(values: np.ndarray, block: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """In double precision, block by block: all at once would take several copies of the features."""
    mean, total = values.mean(axis=0, dtype=np.float64), 0.0
    for start in range(0, len(values), block):
        centred = values[start : start + block] - mean
        total = total + centred.T @ centred
    return mean, total / (len(values) - 1)


def precision_recall(
    synthetic: np.ndarray, real: np.ndarray, neighbors: int = 3, most: int = 10_000
) -> tuple[float, float]:
    """Share of synthetic images among the real ones, share of real images among the synthetic (Kynkäänniemi et al.
    2019), of at most `most` random ones each. They change with N: compare them with those of a floor of the same N."""
    rng = np.random.default_rng(0)
    sets = [f if len(f) <= most else f[rng.permutation(len(f))[:most]] for f in (synthetic, real)]
    how = {"prc_neighborhood": neighbors, "prc_batch_size": 1000, "save_cpu_ram": True, "verbose": False}
    found = prc_features_to_metric(*_tensors(*sets), **how)
    return found["precision"], found["recall"]


def inception_score(logits: np.ndarray) -> float:
    """Salimans et al. 2016, over ten parts as published: how sure and how varied Inception's guesses are."""
    return isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"]


def _tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in arrays]


def compute_metrics(synthetic: Features, real: Features, cache: Path | None = None) -> dict[str, float]:
    """All measures of one set against real images, kept in `cache` by the content of both. Raises `DataError` when
    either has fewer than `FEWEST` images."""
    for found in (synthetic, real):
        if len(found) < MIN_IMAGES:
            raise DataError(f"{len(found)} images are too few to measure, {MIN_IMAGES} are the least")

    def measure() -> dict[str, float]:
        low, high = kid_interval(synthetic.values, real.values)
        exact, covered = precision_recall(synthetic.values, real.values)
        found = {"kid": kid(synthetic.values, real.values), "kid_low": low, "kid_high": high}
        found |= {"fd": frechet(synthetic.values, real.values), "precision": exact, "recall": covered}
        scored = synthetic.logits.size and len(synthetic) >= MIN_IMAGES_FOR_IS
        return found | ({"is": inception_score(synthetic.logits)} if scored else {})

    counted = {"n": len(synthetic), "n_real": len(real)}
    return counted | (cached(cache / f"{VERSION}-{synthetic.key}-{real.key}.json", measure) if cache else measure())


def cached(path: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What the file says, else what `make` says, written to it."""
    if path.is_file():
        return json.loads(path.read_text())
    found = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{os.getpid()}-{path.name}")
    fresh.write_text(json.dumps(found))
    os.replace(fresh, path)
    return found


# ------------------------------------------------------------------------------------------------------------- tables


@dataclass
class Quality:
    """`table`: one row a comparison with columns `extractor compared class n n_real kid kid_low kid_high fd precision
    recall` (Inception: `fid is` instead of `fd`); what could not be measured is empty and told in `notes`."""

    table: pd.DataFrame
    notes: list[str]

    def row(self, compared: str = "synthetic", class_name: str = "all", extractor: str | None = None) -> dict:
        found = self.table[(self.table["compared"] == compared) & (self.table["class"] == class_name)]
        found = found if extractor is None else found[found["extractor"] == extractor]
        return found.iloc[0].dropna().to_dict() if len(found) else {}

    def summary(self) -> dict:
        """The first extractor's figures in one flat record, what could not be measured as None; then all rows. Its
        Fréchet distance is always `fd`, and `fid` too if it is one."""
        ours = self.row()
        floor = self.row("floor", extractor=ours["extractor"])
        first = {"extractor": ours["extractor"], "n_real": ours["n_real"], "n_synthetic": ours["n"]}
        measures = [k for k in ours if k not in ("extractor", "compared", "class", "n", "n_real")]
        first |= {k: ours[k] for k in measures} | {f"floor_{k}": floor.get(k) for k in ["n", "n_real", *measures]}
        if "fid" in first:
            first |= {"fd": first["fid"], "floor_fd": first["floor_fid"]}
        return first | {"rows": [row.dropna().to_dict() for _, row in self.table.iterrows()], "notes": self.notes}

    def __str__(self) -> str:
        digits = {"kid": 4, "kid_low": 4, "kid_high": 4, "fd": 1, "fid": 1, "precision": 2, "recall": 2, "is": 2}
        text = self.table.round({k: v for k, v in digits.items() if k in self.table}).to_string(index=False, na_rep="")
        return "\n".join([text, *(f"! {note}" for note in self.notes)])


def quality(
    real: ImageSet,
    synthetic: ImageSet,
    extractors: list[FeatureExtractor],
    floor: ImageSet | None = None,
    cache: Path | None = None,
) -> Quality:
    """Synthetic against real images by every judge, overall and per class where both sets have classes, and a scale for
    the reader. `floor`: other real images, of which as many are compared as there are synthetic ones; without them part
    of the real images is compared with the rest. Ceilings: the images of the floor blurred, and the largest class
    against all others.

    All are compared at the size of the smallest, or more pixels would count as a difference. Raises `DataError` when
    either set has fewer than `FEWEST` images.
    """
    check_counts(real, synthetic)
    sets = [pictures for pictures in (real, synthetic, floor) if pictures is not None]
    side, notes, rows = min(p.image_size for p in sets), [], []
    if len({p.image_size for p in sets}) > 1:
        sizes = ", ".join(f"{p.name} {p.image_size}" for p in sets)
        notes.append(f"sizes differ ({sizes} pixels): all are compared at {side}")
    for judge in extractors:
        judged = [extract_features(pictures, judge, side, cache) for pictures in sets]
        rows += _rows(judge, sets, judged, side, cache, notes)
    problems = [problem for pictures in sets for problem in pictures.problems]
    if (
        alone := sorted(set(real.class_names) ^ set(synthetic.class_names))
        if real.class_names and synthetic.class_names
        else []
    ):
        problems.append(f"not in both sets, so without a row: {', '.join(alone)}")
    return Quality(pd.DataFrame(rows), list(dict.fromkeys(problems + notes + shared_images(sets, judged))))


def _rows(
    judge: FeatureExtractor,
    sets: list[ImageSet],
    judged: list[Features],
    side: int,
    cache: Path | None,
    notes: list[str],
) -> list[dict]:
    """What one judge says. Real images, synthetic ones, and perhaps those of the floor, as pictures and as features."""
    real, synthetic, others = judged[0], judged[1], judged[2] if len(judged) > 2 else judged[0]
    near, far = floor_rows(len(synthetic), len(others), half=others is real)
    if len(near) < len(synthetic):
        notes.append(f"the floor has {len(near)} images for {len(synthetic)} synthetic ones: read its FD with care")
    reference = real.select(far) if others is real else real
    softened = extract_features(sets[2 if len(sets) > 2 else 0].blurred(others.rows[near]), judge, side, cache)
    rows = []
    for what, kind, one, other in comparison_sets(real, synthetic, others.select(near), reference, softened):
        try:
            row = compute_metrics(one, other, cache)
        except DataError as error:
            if (what, kind) == ("synthetic", "all"):
                raise
            notes.append(f"{what}, {kind}: {error}")
            continue
        if judge.name == INCEPTION:
            row["fid"] = row.pop("fd")  # only now may it be called so
        rows.append({"extractor": judge.name, "compared": what, "class": kind} | row)
    return rows


def check_counts(*sets: ImageSet) -> None:
    """Before anything is computed. Raises `DataError` naming the set that is too small."""
    for pictures in sets:
        if len(pictures) < MIN_IMAGES:
            raise DataError(
                f"{pictures.name}: {len(pictures)} images are too few to measure, {MIN_IMAGES} are the least"
            )


def floor_rows(n: int, others: int, half: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which `n` images stand for the floor, at random among `others`, at most half of them if `half`; and the rest."""
    order = np.random.default_rng(0).permutation(others)
    n = min(n, others // 2 if half else others)
    return order[:n], order[n:]


def comparison_sets(
    real: Features, synthetic: Features, floor: Features, reference: Features, blurred: Features
) -> Iterator[tuple[str, str, Features, Features]]:
    """What stands in the table: what is compared, of which class, the two sets. One at a time, for each is a copy."""
    yield "synthetic", "all", synthetic, real
    yield "floor", "all", floor, reference
    yield "blurred real", "all", blurred, reference
    kinds = sorted(set(real.class_names) & set(synthetic.class_names), key=real.class_names.index)
    for kind in kinds:
        yield "synthetic", kind, synthetic.of_class(kind), real.of_class(kind)
        if kind in floor.class_names and kind in reference.class_names:
            yield "floor", kind, floor.of_class(kind), reference.of_class(kind)
    if len(set(real.class_names)) > 1:
        largest = max(sorted(set(real.class_names)), key=real.class_names.count)
        yield "other classes", largest, real.of_class(largest, without=True), real.of_class(largest)


def shared_images(sets: list[ImageSet], judged: list[Features]) -> list[str]:
    """A sentence for every two sets that share images, pixel for pixel."""
    told = []
    for k, one in enumerate(judged):
        for m in range(k + 1, len(judged)):
            if shared := int(np.isin(one.pixel_hashes, judged[m].pixel_hashes).sum()):
                told.append(
                    f"{shared} images of {sets[k].name} are also in {sets[m].name}, which flatters the distance"
                )
    return told
