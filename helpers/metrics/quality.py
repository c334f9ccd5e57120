"""Distance of synthetic to real images: KID, Fréchet distance, precision, recall, density, coverage, Inception Score.

Features come from `extractors.py`, the arithmetic from torch-fidelity. Every number has its N and two references: the
floor (real against other real images) and ceilings (real images blurred, or of another class). KID is the main measure:
its estimate is unbiased, while the bias of a Fréchet distance dominates at a few hundred images. ImageNet features,
Inception's included, favor generators that were trained with ImageNet features (arXiv 2203.06026).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from helpers.data.files import DataError, atomic_file
from helpers.metrics.extractors import CLASSIFIER, INCEPTION, FeatureExtractor, Features, extract_features
from helpers.metrics.image_set import ImageSet
from helpers.metrics.stats import bootstrap_weights, percentile_ci

MIN_IMAGES = 10  # per set; distances of fewer images are meaningless
MIN_IMAGES_FOR_IS = 1000  # ten splits of 100; with smaller splits the score mostly reflects their size
KID_SUBSET_SIZE = 1000
KID_CI_ROUNDS = 500
KID_CI_MAX_IMAGES = 2000  # per set; the interval of a larger set would only be narrower
MIN_IMAGES_FOR_INFINITY = 100
INFINITY_SUBSETS = 8  # of a quarter to all of the synthetic images
PR_NEIGHBORS = 3
PR_MAX_IMAGES = 10_000  # per set
DC_NEIGHBORS = 5
DC_CHUNK = 1000  # real images at a time
COVARIANCE_CHUNK = 4096  # rows at a time
VERSION = 2  # of the cached numbers; increase it when the same features would give other numbers

# ------------------------------------------------------------------------------------------- measures of feature sets


def kid(features1: np.ndarray, features2: np.ndarray) -> float:
    """Kernel Inception distance of features `(N, D)` and `(M, D)`, the squared MMD with a cubic polynomial kernel
    (Bińkowski et al., arXiv 1801.01401). Unbiased: near 0, sometimes below, for two samples of one distribution.

    Uses all images at once if both sets have the same number, at most `KID_SUBSET_SIZE`; otherwise the mean over 50
    random subsets, as large as the smaller set and `KID_SUBSET_SIZE` allow.
    """
    size = min(len(features1), len(features2), KID_SUBSET_SIZE)
    subsets = 1 if len(features1) == len(features2) == size else 50
    kwargs = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    kwargs |= {"kid_kernel_poly_coef0": 1, "rng_seed": 0, "verbose": False}
    tensors = _to_tensors(features1, features2)
    metrics = kid_features_to_metric(*tensors, kid_subsets=subsets, kid_subset_size=size, **kwargs)
    return metrics["kernel_inception_distance_mean"]


def kid_interval(features1: np.ndarray, features2: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of KID over the images of both sets, features `(N, D)` and `(M, D)`, from at most
    `KID_CI_MAX_IMAGES` random images each.

    The kernel is computed once and weighted in every round. An image sampled twice is not compared with itself, which
    would bias the distance upwards.
    """
    rng = np.random.default_rng(0)
    x, y = (f[rng.permutation(len(f))[:KID_CI_MAX_IMAGES]].astype(np.float32) for f in (features1, features2))
    v, w = (bootstrap_weights(len(f), KID_CI_ROUNDS, rng).astype(np.float32) for f in (x, y))  # (R, N), (R, M)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_within(k: np.ndarray, u: np.ndarray) -> np.ndarray:
        squares = u**2
        return (((u @ k) * u).sum(axis=1) - squares @ np.diag(k)) / (u.sum(axis=1) ** 2 - squares.sum(axis=1))

    mean_across = ((v @ kernel(x, y)) * w).sum(axis=1) / (v.sum(axis=1) * w.sum(axis=1))
    return percentile_ci(mean_within(kernel(x, x), v) + mean_within(kernel(y, y), w) - 2 * mean_across)


def frechet(features1: np.ndarray, features2: np.ndarray) -> float:
    """Fréchet distance between normal distributions fitted to features `(N, D)` and `(M, D)` (Heusel et al., arXiv
    1706.08500). It is FID only with Inception's features."""
    statistics = [dict(zip(("mu", "sigma"), mean_and_covariance(f), strict=True)) for f in (features1, features2)]
    return fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]


def mean_and_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(D,)` and covariance `(D, D)` of features `(N, D)` in float64, computed in chunks: a float64 copy of all
    features would not fit in memory."""
    mean, total = features.mean(axis=0, dtype=np.float64), 0.0
    for start in range(0, len(features), COVARIANCE_CHUNK):
        centered = features[start : start + COVARIANCE_CHUNK] - mean
        total = total + centered.T @ centered
    return mean, total / (len(features) - 1)


def precision_recall(synthetic: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Precision and recall in [0, 1] from features `(N, D)` and `(M, D)`: the fraction of synthetic images within the
    manifold of the real ones, and the reverse (Kynkäänniemi et al., arXiv 1904.06991).

    Uses at most `PR_MAX_IMAGES` random images per set. Both depend on N: compare with a floor of the same N.
    """
    kwargs = {"prc_neighborhood": PR_NEIGHBORS, "prc_batch_size": 1000, "save_cpu_ram": True, "verbose": False}
    metrics = prc_features_to_metric(*_to_tensors(*_subsample(synthetic, real)), **kwargs)
    return metrics["precision"], metrics["recall"]


def density_coverage(synthetic: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Density (0 or more, 1 expected for one distribution) and coverage in [0, 1] from features `(N, D)`, `(M, D)`
    (Naeem et al., arXiv 2002.09797).

    Density: in how many real neighborhoods a synthetic image lies on average, over `DC_NEIGHBORS`. Coverage: the
    fraction of real images whose neighborhood contains a synthetic image. A neighborhood reaches to the real image's
    `DC_NEIGHBORS`-th nearest real image. Unlike recall, coverage does not rise with outliers in the synthetic set.
    Uses at most `PR_MAX_IMAGES` images per set. Raises `ValueError` without more than `DC_NEIGHBORS` real images.
    """
    if len(real) <= DC_NEIGHBORS:
        raise ValueError(f"density and coverage need more than {DC_NEIGHBORS} real images, got {len(real)}")
    synthetic, real = _subsample(synthetic, real)
    radii = NearestNeighbors(n_neighbors=DC_NEIGHBORS + 1).fit(real).kneighbors(real)[0][:, -1]  # the first is itself
    contained, covered = 0, 0
    for start in range(0, len(real), DC_CHUNK):
        inside = cdist(real[start : start + DC_CHUNK], synthetic) < radii[start : start + DC_CHUNK, None]
        contained, covered = contained + inside.sum(), covered + inside.any(axis=1).sum()
    return float(contained / (DC_NEIGHBORS * len(synthetic))), float(covered / len(real))


def inception_score(logits: np.ndarray, splits: int = 10) -> float:
    """Inception Score from `logits (N, K)`, mean over the splits (Salimans et al., arXiv 1606.03498): 1 to K, high if
    the predicted classes are certain and varied. By our classifier instead of Inception, over all images at once, it is
    the classifier score: not comparable with an Inception Score, but with that of real images of the same N and mix of
    classes, the floor's."""
    return isc_features_to_metric(torch.from_numpy(logits), splits=splits)["inception_score_mean"]


def frechet_infinity(synthetic: np.ndarray, real: np.ndarray) -> float:
    """Fréchet distance extrapolated to infinitely many synthetic images, features `(N, D)` and `(M, D)` (Chong and
    Forsyth, arXiv 1911.07023): intercept of a line fitted to the distance of random subsets against 1 / their number.

    Removes the bias of N, so that generators with different N can be compared; that of M remains, and the floor has it
    too. Raises `DataError` for fewer than `MIN_IMAGES_FOR_INFINITY` synthetic images.
    """
    if len(synthetic) < MIN_IMAGES_FOR_INFINITY:
        raise DataError(f"the extrapolation needs {MIN_IMAGES_FOR_INFINITY} images, got {len(synthetic)}")
    rng = np.random.default_rng(0)
    counts = np.linspace(len(synthetic) / 4, len(synthetic), INFINITY_SUBSETS).astype(int)
    distances = [frechet(synthetic[rng.permutation(len(synthetic))[:count]], real) for count in counts]
    return float(np.polyfit(1 / counts, distances, 1)[1])


def _subsample(*sets: np.ndarray) -> list[np.ndarray]:
    """At most `PR_MAX_IMAGES` random rows of each set."""
    rng = np.random.default_rng(0)
    return [f if len(f) <= PR_MAX_IMAGES else f[rng.permutation(len(f))[:PR_MAX_IMAGES]] for f in sets]


def _to_tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in arrays]


def compute_metrics(synthetic: Features, real: Features, cache: Path | None = None) -> dict[str, float]:
    """Measures of one set against real images: `n n_real kid kid_low kid_high fd precision recall density coverage`,
    and `is` for an extractor with logits and at least `MIN_IMAGES_FOR_IS` images; stored in the folder `cache` by the
    content of both.

    Raises `DataError` if either set has fewer than `MIN_IMAGES` images.
    """
    for features in (synthetic, real):
        if len(features) < MIN_IMAGES:
            raise DataError(f"need at least {MIN_IMAGES} images, got {len(features)}")

    counts = {"n": len(synthetic), "n_real": len(real)}
    path = cache and cache / f"{VERSION}-{synthetic.key}-{real.key}.json"
    if path and path.is_file():
        return counts | json.loads(path.read_text(encoding="utf-8"))
    pair = synthetic.values, real.values
    metrics = {"kid": kid(*pair)} | dict(zip(("kid_low", "kid_high"), kid_interval(*pair), strict=True))
    metrics |= {"fd": frechet(*pair)} | dict(zip(("precision", "recall"), precision_recall(*pair), strict=True))
    metrics |= dict(zip(("density", "coverage"), density_coverage(*pair), strict=True))
    if synthetic.logits.size and len(synthetic) >= MIN_IMAGES_FOR_IS:
        metrics["is"] = inception_score(synthetic.logits)
    if path:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(metrics), encoding="utf-8")
    return counts | metrics


# ------------------------------------------------------------------------------------------------------------- tables


@dataclass
class Quality:
    """`table` has a row per comparison: `extractor compared class`, then the columns of `compute_metrics`, with `fid`
    instead of `fd` for Inception. What was not measured is empty there and explained in `notes`."""

    table: pd.DataFrame
    notes: list[str]

    def row(self, compared: str = "synthetic", extractor: str | None = None) -> dict:
        """The row of a comparison over all classes, by the given or the first extractor; empty if there is none."""
        rows = self.table[(self.table["compared"] == compared) & (self.table["class"] == "all")]
        rows = rows if extractor is None else rows[rows["extractor"] == extractor]
        return rows.iloc[0].dropna().to_dict() if len(rows) else {}

    def summary(self) -> dict:
        """A flat record for JSON: the numbers of the first extractor (None if not measured), those of its floor as
        `floor_*`, all `rows` and `notes`. The Fréchet distance is always in `fd`, for Inception also in `fid`."""
        synthetic = self.row()
        floor = self.row("floor", extractor=synthetic["extractor"])
        record = {"extractor": synthetic["extractor"], "n_real": synthetic["n_real"], "n_synthetic": synthetic["n"]}
        measures = [k for k in synthetic if k not in ("extractor", "compared", "class", "n", "n_real")]
        record |= {k: synthetic[k] for k in measures} | {f"floor_{k}": floor.get(k) for k in ["n", "n_real", *measures]}
        if "fid" in record:
            record |= {"fd": record["fid"], "floor_fd": record["floor_fid"]}
        return record | {"rows": [row.dropna().to_dict() for _, row in self.table.iterrows()], "notes": self.notes}

    def __str__(self) -> str:
        digits = {"kid": 4, "kid_low": 4, "kid_high": 4, "fd": 1, "fid": 1, "fd_infinity": 1, "fid_infinity": 1}
        digits |= dict.fromkeys(("precision", "recall", "density", "coverage", "is", "classifier_score"), 2)
        text = self.table.round(digits).to_string(index=False, na_rep="")
        return "\n".join([text, *(f"! {note}" for note in self.notes)])


def quality(
    real: ImageSet,
    synthetic: ImageSet,
    extractors: list[FeatureExtractor],
    floor: ImageSet | None = None,
    cache: Path | None = None,
    infinity: bool = False,
) -> Quality:
    """Compare synthetic with real images by every extractor, overall and per class where both sets have classes, next
    to a floor and ceilings.

    Floor: as many images of `floor`, other real images, as there are synthetic ones; without `floor`, some of the real
    images against the rest. Ceilings: the floor's images blurred, and the largest class against all others. All sets
    are resized to the smallest image size, because another resolution would count as a difference.

    `infinity`: also `fd_infinity` of all synthetic images and of the floor, see `frechet_infinity`. A classifier has a
    `classifier_score`. Features and numbers are stored in the folder `cache`. Raises `DataError` if there are fewer
    than `MIN_IMAGES` real or synthetic images.
    """
    sets = [images for images in (real, synthetic, floor) if images is not None]
    for images in (real, synthetic):
        if len(images) < MIN_IMAGES:
            raise DataError(f"{images.name}: need at least {MIN_IMAGES} images, got {len(images)}")
    image_size, notes, rows = min(s.image_size for s in sets), [], []
    if len({s.image_size for s in sets}) > 1:
        sizes = ", ".join(f"{s.name} {s.image_size}" for s in sets)
        notes.append(f"sizes differ ({sizes} pixels): all are compared at {image_size}")
    for extractor in extractors:
        extract = partial(extract_features, extractor=extractor, image_size=image_size, cache=cache)
        features = [extract(images) for images in sets]
        rows += _rows(extractor.name, comparison_sets(sets, features, extract, notes), cache, notes, infinity)
    problems = [problem for images in sets for problem in images.problems]
    have_classes = real.class_names and synthetic.class_names
    if have_classes and (unmatched := sorted(set(real.class_names) ^ set(synthetic.class_names))):
        problems.append(f"not in both sets, so without a row: {', '.join(unmatched)}")
    return Quality(pd.DataFrame(rows), list(dict.fromkeys(problems + notes + shared_images(sets, features))))


def comparison_sets(
    sets: list[ImageSet], features: list[Features], extract: Callable[[ImageSet], Features], notes: list[str]
) -> Iterator[tuple[str, str, Features, Features]]:
    """Yield (comparison, class, set, reference set) per table row; lazily, because every subset is a copy.

    `sets` and their `features` are real, synthetic and optionally floor. Appends to `notes`.
    """
    real, synthetic, others = features[0], features[1], features[2 if len(features) > 2 else 0]
    order, count = np.random.default_rng(0).permutation(len(others)), len(others) // (2 if others is real else 1)
    near, rest = np.split(order, [min(count, len(synthetic))])
    if len(near) < len(synthetic):
        counts = f"{len(near)} images for {len(synthetic)} synthetic ones"
        notes.append(f"the floor has only {counts}: its FD is biased upwards in comparison")
    floor, reference = others.select(near), real.select(rest) if others is real else real
    yield "synthetic", "all", synthetic, real
    yield "floor", "all", floor, reference
    yield "blurred real", "all", extract(sets[2 if len(sets) > 2 else 0].blurred(floor.rows)), reference
    names = list(dict.fromkeys(real.class_names))
    for name in (name for name in names if name in synthetic.class_names):
        yield "synthetic", name, synthetic.of_class(name), real.of_class(name)
        if name in floor.class_names and name in reference.class_names:
            yield "floor", name, floor.of_class(name), reference.of_class(name)
    if len(names) > 1:
        largest = max(sorted(names), key=real.class_names.count)
        yield "other classes", largest, real.of_class(largest, invert=True), real.of_class(largest)


def _rows(
    extractor: str, comparisons: Iterable[tuple], cache: Path | None, notes: list[str], infinity: bool
) -> Iterator[dict]:
    """Table rows of one extractor. Appends comparisons of too few images to `notes`."""
    for comparison, class_name, *pair in comparisons:
        try:
            row = compute_metrics(*pair, cache)
        except DataError as error:
            if (comparison, class_name) == ("synthetic", "all"):
                raise
            notes.append(f"{comparison}, {class_name}: {error}")
            continue
        if infinity and class_name == "all" and comparison in ("synthetic", "floor"):
            try:
                row["fd_infinity"] = frechet_infinity(*(features.values for features in pair))
            except DataError as error:
                notes.append(f"{comparison}: no fd_infinity: {error}")
        if extractor == CLASSIFIER:
            row.pop("is", None)
            row["classifier_score"] = inception_score(pair[0].logits, splits=1)
        if extractor == INCEPTION:  # no other extractor's distance is FID
            row = {name.replace("fd", "fid"): value for name, value in row.items()}
        yield {"extractor": extractor, "compared": comparison, "class": class_name} | row


def shared_images(sets: list[ImageSet], features: list[Features]) -> list[str]:
    """One message for every two sets that share images, pixel for pixel."""
    messages = []
    for i, j in combinations(range(len(features)), 2):
        if num_shared := int(np.isin(features[i].pixel_hashes, features[j].pixel_hashes).sum()):
            names = f"{sets[i].name} are also in {sets[j].name}"
            messages.append(f"{num_shared} images of {names}, which lowers the distance")
    return messages
