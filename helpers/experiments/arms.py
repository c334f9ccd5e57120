"""What the networks of each arm of notebooks 4 and 6 train on, and for how long."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from helpers.data.batches import ImageSource
from helpers.data.store import Store
from helpers.experiments.generators import RunOptions, check_generators, prepare_generator
from helpers.experiments.runner import (
    check_fractions,
    check_rows,
    fingerprint_of,
    fraction_of_rows,
    run_grid,
    training_seconds,
)
from helpers.experiments.synthetic import cgan_images, images_with_equal_artifacts
from helpers.metrics.overlap import safe_ratio
from helpers.models.checkpoint import read_checkpoint, training_data
from helpers.models.classifier import Classifier, ClassifierConfig, fit_classifier, load_classifier, predict_proba
from helpers.models.gan import load_gan
from helpers.models.segmenter import Segmenter, SegmenterConfig, fit_segmenter, load_segmenter, segment
from helpers.models.trainer import TrainConfig

NO_AUGMENTATION = {"color_jitter": 0.0, "translate": 0.0, "scale": 0.0}  # fields of classifier and segmenter configs
REAL, AUGMENTED = "real", "real + augmentation"
FILTERED, PRETRAINED, EQUAL_ARTIFACTS = "filtered", "pretrained", "artifacts balanced"
SEGMENTER_BATCH_SIZE = 8  # of the filter, at most: a segmenter's step costs far more than a classifier's
# (sources, folder, train config, checkpoint to initialize from)
Fit = Callable[[list[ImageSource], Path, TrainConfig, Path | None], Any]


@dataclass(frozen=True)
class ArmConfig:
    """What the networks of an arm train on."""

    real: bool = False
    synthetic: bool = False
    augmented: bool = False
    balance: str = "sampling"  # of a classifier
    selection: Literal["all", "filtered", "equal artifacts"] = "all"  # which synthetic images
    pretrained: bool = False  # synthetic images in the first half of the steps, real ones in the second

    def apply(self, config: Any) -> Any:
        """The config of a classifier or segmenter, without augmentation if the arm has none."""
        return config if self.augmented else replace(config, **NO_AUGMENTATION)


# Arms of classifiers and segmenters, all with augmentation.
NEW_ARMS = {
    PRETRAINED: ArmConfig(real=True, synthetic=True, augmented=True, pretrained=True),
    FILTERED: ArmConfig(real=True, synthetic=True, augmented=True, selection="filtered"),
}


def with_augmentation(only: tuple[str, ...]) -> tuple[str, ...]:
    """Names of arms to run, with that of classical augmentation if another arm than "real" is named: what synthetic
    images are to be compared with."""
    return tuple(dict.fromkeys((*only, AUGMENTED))) if set(only) - {REAL} else only


def runnable(arms: dict[str, ArmConfig], store: Store, experiment: Any, options: RunOptions) -> dict[str, ArmConfig]:
    """The arms without those that the data do not allow: filtered ones need masks, equal artifacts a generator that is
    conditioned on artifact flags."""
    conditioned = experiment.generator.artifacts and (not options.cgan or load_gan(options.cgan)[1].artifacts)
    possible = {"all": True, "filtered": bool(store.has_mask.any()), "equal artifacts": conditioned}
    return {name: arm for name, arm in arms.items() if possible[arm.selection]}


class ArmSources:
    """Training images of every arm, `count` of them synthetic. Nothing is generated before it is needed.

    The generator of a fraction is trained on its images, once for all arms and seeds, in a folder of `out`, or comes
    from a file, see `prepare_generator`; `experiment` has its config, `generator` and `gan_train`. `balanced`: see
    `cgan_images`.
    """

    def __init__(self, store: Store, experiment: Any, out: Path, options: RunOptions, count: int, balanced: bool):
        self.store, self.experiment, self.out, self.options = store, experiment, Path(out), options
        self.count, self.balanced = count, balanced
        self.generator = lru_cache(maxsize=1)(self._generator)
        self.filter_networks = lru_cache(maxsize=1)(self._filter_networks)
        # All arms of a fraction use the same images.
        self.synthetic = lru_cache(maxsize=len(experiment.seeds))(self._synthetic)

    def __call__(self, arm: ArmConfig, fraction: float, seed: int) -> list[ImageSource]:
        """The arm's sources: real images first."""
        rows = fraction_of_rows(self.store, fraction)
        real = ImageSource(self.store.images, rows, self.store.masks, self.store.labels)
        return [real] * arm.real + ([self.synthetic(arm.selection, fraction, seed)] if arm.synthetic else [])

    def generator_name(self, arm: ArmConfig, fraction: float) -> str:
        """The generator of an arm's synthetic images, for result tables; "none" without them."""
        return self.generator(fraction)[1] if arm.synthetic else "none"

    def _generator(self, fraction: float) -> tuple[Path, str]:
        rows, folder = fraction_of_rows(self.store, fraction), self.out / f"generator-{fraction:g}"
        experiment = self.experiment
        return prepare_generator(self.store, experiment.generator, experiment.gan_train, self.options, rows, folder)

    def _synthetic(self, selection: str, fraction: float, seed: int) -> ImageSource:
        rows, checkpoint = fraction_of_rows(self.store, fraction), self.generator(fraction)[0]
        if selection == "equal artifacts":
            return images_with_equal_artifacts(checkpoint, self.store, rows, self.count, seed)
        if selection == "filtered":
            candidates = cgan_images(checkpoint, self.store, rows, 2 * self.count, seed, self.balanced)
            return better_half(candidates, agreement(candidates, *self.filter_networks(fraction)))
        return cgan_images(checkpoint, self.store, rows, self.count, seed, self.balanced)

    def _filter_networks(self, fraction: float) -> tuple[Segmenter, Classifier]:
        """A segmenter and a classifier trained on the real images of a fraction: those of the experiment if it has
        them, else the default segmenter and the small CNN."""
        store, experiment, folder = self.store, self.experiment, self.out / f"filter-{fraction:g}"
        rows, size = fraction_of_rows(store, fraction), store.config.size
        sources = [ImageSource(store.images, rows, store.masks, store.labels)]
        segmenter = getattr(experiment, "segmenter", SegmenterConfig(size))
        classifier = getattr(experiment, "classifier", ClassifierConfig(size, tuple(store.classes)))
        small = replace(experiment.train, batch_size=min(experiment.train.batch_size, SEGMENTER_BATCH_SIZE))
        fit_segmenter(sources, segmenter, folder / "segmenter", small)
        fit_classifier(sources, classifier, folder / "classifier", experiment.train, training_data(store, rows))
        return (load_segmenter(folder / "segmenter/checkpoint.pt")[0],
                load_classifier(folder / "classifier/checkpoint.pt")[0])  # fmt: skip


def run_arms(
    arms: dict[str, ArmConfig],
    sources_of: ArmSources,
    test_rows: np.ndarray,
    fit_of: Callable[[ArmConfig, float], Fit],
    score: Callable[[Path], pd.DataFrame],
) -> pd.DataFrame:
    """Train a network per arm (those that the data and the options allow), fraction and seed by `fit_of(arm,
    fraction)`, and score its checkpoint on the images at `test_rows`.

    Returns a table of `run_grid`: the columns of `score`, then `generator init seconds`. Raises `DataError` and
    `ValueError` as `check_fractions`, `check_rows`, `check_generators` and `run_grid` do.
    """
    store, experiment, options = sources_of.store, sources_of.experiment, sources_of.options
    check_fractions(experiment.fractions)
    check_rows(store, test_rows, options.split)
    parts = (fraction_of_rows(store, fraction) for fraction in experiment.fractions)
    check_generators(options, store, parts, experiment.generator)

    def run_one(arm: ArmConfig, fraction: float, seed: int, work: Path) -> pd.DataFrame:
        sources, train_config = sources_of(arm, fraction, seed), replace(experiment.train, seed=seed)
        facts = fit_arm(fit_of(arm, fraction), arm, sources, work, train_config)
        return score(work / "checkpoint.pt").assign(generator=sources_of.generator_name(arm, fraction), **facts)

    runs = {name: partial(run_one, arm) for name, arm in runnable(arms, store, experiment, options).items()}
    fingerprint, only = fingerprint_of(experiment, data=store.folder.name, **options.context()), options.only
    return run_grid(runs, experiment.fractions, experiment.seeds, sources_of.out, fingerprint, with_augmentation(only))


def agreement(source: ImageSource, segmenter: Segmenter, classifier: Classifier) -> np.ndarray:
    """How well networks find in synthetic images what these were generated from, `(N, 2)` in [0, 1]: the Dice index of
    the segmenter's mask with the sketch's, and the classifier's probability of the label."""
    masks = segment(segmenter, list(source.images))
    dice = [safe_ratio(2 * (a & b).sum(), a.sum() + b.sum()) for a, b in zip(masks, source.masks, strict=True)]
    probabilities = predict_proba(classifier, source.images)[np.arange(len(source.images)), source.labels]
    return np.stack([dice, probabilities], axis=1)


def better_half(source: ImageSource, scores: np.ndarray) -> ImageSource:
    """The half of the images that is best in its class, so that about half of each class stays: by the sum of the ranks
    in the columns of `scores (N, S)`."""
    place = np.zeros(len(scores))  # in the class, from the worst: in (0, 1]
    for members in (np.flatnonzero(source.labels == label) for label in np.unique(source.labels)):
        place[members] = rankdata(rankdata(scores[members], axis=0).sum(axis=1), method="ordinal") / len(members)
    kept = np.sort(np.argsort(-place, kind="stable")[: len(place) // 2])
    return ImageSource(source.images[kept], np.arange(len(kept)), source.masks[kept], source.labels[kept])


def fit_arm(fit: Fit, arm: ArmConfig, sources: list[ImageSource], work: Path, train_config: TrainConfig) -> dict:
    """Train an arm's network to `work/checkpoint.pt`; a pretrained one in two halves of equally many steps.

    Returns its initial weights, `init`, and `seconds` of all processes. Raises `ValueError` for a pretrained arm with
    fewer than two steps.
    """
    final = work / "checkpoint.pt"
    if not arm.pretrained:
        fit(sources, work, train_config, None)
        return {"init": read_checkpoint(final)["extra_state"]["init_from"], "seconds": training_seconds(final)}
    (real, synthetic), start = sources, work / "pretraining" / "checkpoint.pt"
    half, minutes = train_config.steps // 2, train_config.minutes and train_config.minutes / 2
    fit([synthetic], start.parent, replace(train_config, steps=half, minutes=minutes), None)
    fit([real], work, replace(train_config, steps=train_config.steps - half, minutes=minutes), start)
    return {"init": read_checkpoint(start)["extra_state"]["init_from"], "seconds": training_seconds(start, final)}
