"""Features of real images and of images generated from their sketches: how far apart they lie, and whether random
forests that are trained on generated ones classify real ones.

The test on generated images, which is optimistic, is shown next to the one on real images; see `forest.py`.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.data.tables import write_csv
from helpers.experiments.forest import SETS, feature_table, feature_values, fit_forest, of_sources, predict_forest
from helpers.experiments.real_vs_generated import generate_test_images
from helpers.experiments.results import with_interval
from helpers.metrics.classification import accuracy, balanced_accuracy
from helpers.metrics.extractors import load_extractor_or_random
from helpers.metrics.fidelity import ssim
from helpers.metrics.quality import MIN_IMAGES, frechet
from helpers.metrics.stats import bootstrap_ci, bootstrap_with_original, ci_over_seeds, verdict
from helpers.models.gan import load_gan
from helpers.models.trainer import check_seed

SPLITS = ("train", "test")
SEEDS = (0, 1, 2, 3, 4)  # of the random forests
DISCRIMINATOR_FEATURES = "efficientnet_lite1"  # of the projected discriminator
NOTE = "took part in training the generator's discriminator"
REAL, SYNTHETIC = "real", "synthetic"


@dataclass(frozen=True)
class FeatureComparison:
    """Options of `experiment features`, and settings of the features in notebook 7."""

    extractors: tuple[str, ...] = ("resnet18", DISCRIMINATOR_FEATURES)  # torchvision networks or EfficientNet-Lite
    num_images: int = 300  # real images per split at most, with a generated one each
    latent_seed: int = 0  # of the generated images

    def __post_init__(self):
        check_seed(self.latent_seed)
        if self.num_images < MIN_IMAGES:
            raise ValueError(f"num_images must be at least {MIN_IMAGES}, got {self.num_images}")


@dataclass(frozen=True)
class Pairs:
    """Real images of a split and those generated from their sketches, both `uint8 (N, S, S, 3)`, in the same order."""

    images: dict[str, np.ndarray]  # of `REAL` and `SYNTHETIC`
    labels: np.ndarray  # (N,)
    groups: np.ndarray  # (N,) lesion ids


def feature_experiment(
    store: Store, generator: Path, options: FeatureComparison, out: Path
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Feature tables by extractor, also written to `out/features-<extractor>.csv`, and a row per number.

    Columns of the rows: `extractor init note measure trained_on tested_on against split value low high n floor verdict
    seconds`. An extractor without ImageNet weights is named "<name>, random init". Raises `DataError` if generator and
    store do not fit, if the generator was trained on test lesions, or if a split has fewer than 10 images with label
    and sketch.
    """
    pairs = {split: paired_images(store, generator, options, split) for split in SPLITS}
    tables, rows = {}, [ssim_row(pairs[split], split) for split in SPLITS]
    projected = load_gan(generator)[1].projected
    for arch in options.extractors:
        started, extractor = time.perf_counter(), load_extractor_or_random(arch)
        parts = [
            feature_table(images, part.labels, extractor, store.classes, source=source, split=split, group=part.groups)
            for split, part in pairs.items()
            for source, images in part.images.items()
        ]
        tables[extractor.name] = table = pd.concat(parts, ignore_index=True)
        write_csv(table, out / f"features-{arch}.csv", index=False, float_format="%.5g")
        found = [*forest_rows(table), *(frechet_row(table, split) for split in SPLITS)]
        facts = {"extractor": extractor.name, "init": "random init" if "random init" in extractor.name else "ImageNet"}
        facts["note"] = NOTE if projected and arch == DISCRIMINATOR_FEATURES else pd.NA
        seconds = time.perf_counter() - started
        rows += [facts | row | {"seconds": seconds if k == 0 else 0.0} for k, row in enumerate(found)]
    return tables, pd.DataFrame(rows).fillna({"seconds": 0.0})


def paired_images(store: Store, generator: Path, options: FeatureComparison, split: str) -> Pairs:
    """Random real images of a split with label and sketch, and those generated from their sketches."""
    rows = np.random.default_rng(0).permutation(store.rows(split, needs=["label", "sketch"]))[: options.num_images]
    if len(rows) < MIN_IMAGES:
        raise DataError(f"{store.name} needs at least {MIN_IMAGES} {split} images with label and sketch, "
                        f"got {len(rows)}")  # fmt: skip
    rows = np.sort(rows)
    generated = generate_test_images(store, generator, rows, options.latent_seed)
    return Pairs({REAL: np.array(store.images[rows]), SYNTHETIC: generated}, store.labels[rows], store.lesions[rows])


# ------------------------------------------------------------------------------------------------------------ measures


def ssim_row(pairs: Pairs, split: str) -> dict:
    """SSIM of every generated image with the real image of its sketch, mean with interval; `floor`: of every real image
    with another one of its class."""
    real, synthetic = pairs.images[REAL], pairs.images[SYNTHETIC]
    values = [ssim(a, b) for a, b in zip(real, synthetic, strict=True)]
    rng, floor = np.random.default_rng(0), []
    for label in np.unique(pairs.labels):
        members = rng.permutation(np.flatnonzero(pairs.labels == label))
        floor += [ssim(real[a], real[b]) for a, b in zip(members, np.roll(members, 1), strict=True) if a != b]
    low, high = bootstrap_ci(values, pairs.groups)
    row = {"measure": "ssim", "split": split, "value": np.mean(values), "low": low, "high": high, "n": len(values)}
    return row | {"floor": np.mean(floor) if floor else np.nan}


def frechet_row(table: pd.DataFrame, split: str) -> dict:
    """Fréchet distance of the generated images of a split to its real ones; `floor`: of equally many real images of the
    other split to them."""
    other = next(name for name in SPLITS if name != split)
    real, synthetic = (feature_values(of_sources(table, source, split)) for source in (REAL, SYNTHETIC))
    floor = feature_values(of_sources(table, REAL, other))
    count = min(len(real), len(floor))
    row = {"measure": "fd", "split": split, "value": frechet(synthetic, real), "n": len(real)}
    return row | {"floor": frechet(floor[:count], real[:count])}


def forest_rows(table: pd.DataFrame) -> list[dict]:
    """Accuracy and balanced accuracy of random forests for every training and test set of `SETS`, means over `SEEDS`
    with intervals over lesions and seeds, clipped to [0, 1]; and on real test images the differences to the forest that
    is trained on real ones."""
    rows, classes = [], sorted(set(table["diagnosis"]))
    forests = {name: [fit_forest(of_sources(table, name, "train"), seed) for seed in SEEDS] for name in SETS}
    for tested_on in SETS:
        test = of_sources(table, tested_on, "test")
        weights = bootstrap_with_original(len(test), test["group"])
        for measure in (balanced_accuracy, accuracy):
            estimates = {
                name: np.stack([measure(*predict_forest(forest, test, classes), weights) for forest in by_seed])
                for name, by_seed in forests.items()
            }
            facts = {"measure": measure.__name__, "tested_on": tested_on, "n": len(test), "split": "test"}
            rows += [facts | _score(name, values) for name, values in estimates.items()]
            if tested_on == REAL:
                rows += [facts | _difference(name, estimates) for name in SETS if name != REAL]
    return rows


def _score(trained_on: str, values: np.ndarray) -> dict:
    low, high = np.clip(ci_over_seeds(values), 0, 1)
    return {"trained_on": trained_on, "value": values[:, 0].mean(), "low": low, "high": high}


def _difference(trained_on: str, estimates: dict[str, np.ndarray]) -> dict:
    difference = estimates[trained_on] - estimates[REAL]
    low, high = np.clip(ci_over_seeds(difference), -1, 1)
    row = {"trained_on": trained_on, "against": REAL, "value": difference[:, 0].mean(), "low": low, "high": high}
    return row | {"verdict": verdict(low, high)}


def projections(tables: dict[str, pd.DataFrame]) -> dict[str, dict[str, np.ndarray]]:
    """PCA and t-SNE (van der Maaten and Hinton, 2008) of the features of each extractor: points `(2, N)` by source."""
    charts = {}
    for name, table in tables.items():
        values = feature_values(table)
        tsne = TSNE(2, perplexity=min(30, len(values) // 4), random_state=0)
        for method, projection in {"PCA": PCA(2, random_state=0), "t-SNE": tsne}.items():
            points = projection.fit_transform(values)
            charts[f"{name}, {method}"] = {s: points[(table["source"] == s).to_numpy()].T for s in (REAL, SYNTHETIC)}
    return charts


# ------------------------------------------------------------------------------------------------------------- results


def to_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without differences for reading, rounded."""
    rows = rows[rows["against"].isna()]
    texts = [with_interval(*row) for row in rows[["value", "low", "high"]].to_numpy()]
    table = rows.assign(value=texts, floor=rows["floor"].map(lambda x: "" if pd.isna(x) else f"{x:.3f}"))
    keys = ["extractor", "measure", "trained_on", "tested_on", "split"]
    return table[[*keys, "value", "floor", "n"]].rename(columns={"n": "N"}).fillna("").set_index(keys)


def verdicts(rows: pd.DataFrame) -> list[str]:
    """Sentences by the intervals of the differences in balanced accuracy on real test images, each followed by what the
    forest scores on a test set with generated images."""
    lines, rows = [], rows[rows["measure"] == "balanced_accuracy"]
    for row in rows[rows["against"].notna()].itertuples():
        same = rows[
            (rows["extractor"] == row.extractor) & (rows["trained_on"] == row.trained_on) & rows["against"].isna()
        ]
        by_test = same.set_index("tested_on")["value"]
        lines.append(f"{row.extractor}, trained on {row.trained_on} instead of real features, tested on real ones: "
                     f"{row.verdict} ({row.value:+.3f} balanced accuracy, {row.low:+.3f} to {row.high:+.3f}, "
                     f"N {row.n}, {len(SEEDS)} seeds); on {row.trained_on} test images the same forests score "
                     f"{by_test[row.trained_on]:.3f} instead of {by_test[REAL]:.3f}.")  # fmt: skip
    return lines


def limits(rows: pd.DataFrame) -> list[str]:
    """What to know about the numbers."""
    lines = [
        "a score on generated test images measures how well a forest fits the generator, not lesions",
        "the intervals include the variance of the forests, not that of training the generator",
        "intervals of accuracies are clipped to [0, 1]; FD of few images is large, so compare it with its floor",
    ]
    noted = rows.loc[rows["note"].notna(), "extractor"].unique()
    return lines + [f"{name} {NOTE}" for name in noted]
