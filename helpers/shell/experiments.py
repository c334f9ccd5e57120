"""Commands that compare many trainings. Each resumes where it stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from helpers.data.files import atomic_file
from helpers.data.store import Store
from helpers.experiments import ablation, balancing, real_vs_synthetic, segmentation
from helpers.experiments.runner import comparisons, metric_name, summary, to_sentences
from helpers.metrics.extractors import load_extractor_or_random
from helpers.metrics.prediction_tables import auc, average_precision, balanced_accuracy, recalls_by_arm
from helpers.shell.base import DataCommand, Flat


@dataclass(frozen=True, kw_only=True)
class ExperimentCommand(DataCommand):
    """Writes its tables to a folder, which must not hold the same experiment with other settings."""

    out: Path | None = None  # folder for the results; default: outputs/.../NAME-experiment

    def folder(self, name: str) -> Path:
        """Where the results go."""
        return self.out or self.config().outputs / f"{name}-experiment"


@dataclass(frozen=True, kw_only=True)
class ArmsCommand(ExperimentCommand):
    """An experiment of which some arms can be run alone."""

    arms: tuple[str, ...] = ()  # only these arms; default: all


@dataclass(frozen=True, kw_only=True)
class Segmentation(ArmsCommand):
    """Mean Jaccard index of segmenters trained on real pairs, synthetic pairs, or both."""

    preset: ClassVar = "segmentation"
    settings: Flat[segmentation.SegmentationExperiment]
    split: Literal["val", "test"] = "test"  # real images to score on

    def run(self) -> int:
        store = self.store(self.settings.segmenter.size, self.settings.generator.style, "none")
        out = self.folder("segmentation")
        results = segmentation.segmentation_experiment(store, self.settings, out, self.split, self.arms)
        print(f"{store}\nmean Jaccard on the real images of {self.split}, 95 % intervals over images and seeds")
        report(results, ["jaccard"], segmentation.COMPARISON_PAIRS, out)
        return 0


@dataclass(frozen=True, kw_only=True)
class RealVsSynthetic(ArmsCommand):
    """Scores of classifiers trained on real images, synthetic images, or both."""

    preset: ClassVar = "real_vs_synthetic"
    settings: Flat[real_vs_synthetic.RealVsSyntheticExperiment]
    split: Literal["val", "test"] = "test"  # real images to score on

    def run(self) -> int:
        store = self.store(self.settings.classifier.size, self.settings.generator.style)
        out = self.folder("real-vs-synthetic")
        results = real_vs_synthetic.real_vs_synthetic_experiment(store, self.settings, out, self.split, self.arms)
        print(f"{store}\non the real images of {self.split}, 95 % intervals over lesions and seeds")
        report(results, [balanced_accuracy, auc, average_precision], real_vs_synthetic.COMPARISON_PAIRS, out)
        print(recalls_by_arm(results).round(3).to_string())
        return 0


@dataclass(frozen=True, kw_only=True)
class Balancing(ArmsCommand):
    """Recall of rare classes, by cross-validation."""

    preset: ClassVar = "balancing"
    settings: Flat[balancing.BalancingExperiment]

    def run(self) -> int:
        store = self.store(self.settings.classifier.size, self.settings.cgan.style)
        out = self.folder("balancing")
        if not balancing.can_blend(store):
            print(balancing.NOT_BLENDED)
        results = balancing.balancing_experiment(store, self.settings, out, self.arms)
        rare = balancing.rare_classes(store)
        print(f"{store}\nrare classes: {' '.join(rare)}; every lesion is tested once, 95 % intervals over lesions and "
              "seeds")  # fmt: skip
        for measure in (balancing.rare_recall(store.classes, rare), balanced_accuracy):
            best = balancing.best_baseline(summary(results, measure))
            print(f"by {metric_name(measure)} the best baseline is {best}; the other arms are compared with it\n")
            report(results, [measure], balancing.comparison_pairs(best, self.settings.real_per_synthetic), out)
        print(recalls_by_arm(results).round(3).to_string())
        return 0


@dataclass(frozen=True, kw_only=True)
class Ablation(ArmsCommand):
    """Scores of generators trained without one part of the recipe each."""

    preset: ClassVar = "ablation"
    settings: Flat[ablation.AblationExperiment]

    def run(self) -> int:
        store = self.store(self.settings.generator.size, self.settings.generator.style)
        out = self.folder("ablation")
        extractor = load_extractor_or_random("mobilenet_v2")
        results = ablation.ablation_experiment(store, self.settings, extractor, out, self.arms)
        report_generators(
            results, store, self.settings, extractor.name, out / ("some.csv" if self.arms else "table.csv")
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class SmallData(ExperimentCommand):
    """Scores of generators trained on fractions of the images."""

    preset: ClassVar = "small_data"
    settings: Flat[ablation.SmallDataExperiment]

    def run(self) -> int:
        store = self.store(self.settings.generator.size, self.settings.generator.style)
        out = self.folder("small-data")
        extractor = load_extractor_or_random("mobilenet_v2")
        results = ablation.small_data_experiment(store, self.settings, extractor, out)
        report_generators(results, store, self.settings, extractor.name, out / "table.csv")
        return 0


def report(results: pd.DataFrame, measures: list, pairs: list[tuple[str, str]], out: Path) -> None:
    """Print the arms and their comparisons by each measure, and write both as CSV to `out`."""
    print(
        f"initial weights: {', '.join(results['init'].unique())}; all seeds share the generators, so the intervals do"
    )
    print("not include the variance of GAN training\n")
    for measure in measures:
        arms, differences = summary(results, measure), comparisons(results, measure, pairs)
        name = metric_name(measure).replace(" ", "-")
        write_csv(arms, out / f"arms-{name}.csv")
        write_csv(differences, out / f"comparisons-{name}.csv")
        sentences = "\n".join(to_sentences(differences, measure))
        print(arms.round(4).to_string(), differences.round(4).to_string(), sentences, sep="\n\n")
        print()


def report_generators(results: pd.DataFrame, store: Store, settings: Any, extractor: str, file: Path) -> None:
    """Print the means over the seeds, and write them as CSV."""
    table, train = ablation.mean_over_seeds(results), settings.train
    print(f"{store}\ngenerated images of val sketches against the real images, features of {extractor}")
    print(f"after {train.steps} steps with batch size {train.batch_size}; "
          f"means over seeds {' '.join(map(str, settings.seeds))}\n")  # fmt: skip
    print(table.round(3).to_string())
    write_csv(table, file)


def write_csv(table: pd.DataFrame, file: Path, **options) -> None:
    """Write a table by `atomic_file`; `options` are pandas'."""
    with atomic_file(file) as temporary:
        table.to_csv(temporary, **options)
