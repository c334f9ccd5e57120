"""Commands that compare many trainings. Each resumes where it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from helpers.config import display_path, get_config
from helpers.data.store import Store
from helpers.data.tables import write_csv
from helpers.experiments import ablation, balancing, real_vs_synthetic, segmentation
from helpers.experiments.arm_results import Scores
from helpers.experiments.evaluation import open_store
from helpers.experiments.generators import RunOptions
from helpers.experiments.results import Page
from helpers.experiments.runner import metric_name, summary, to_sentences
from helpers.metrics.extractors import load_extractor_or_random
from helpers.metrics.prediction_tables import auc, average_precision, balanced_accuracy, recalls_by_arm
from helpers.shell.base import DatasetName, Flat
from helpers.shell.pages import ArmsCommand, ExperimentCommand, data_line, training_line
from helpers.views import plots

CLIPPED = "intervals of scores are clipped to [0, 1]; they do not include the variance of training the generators"
COLLAPSED = ("collapsed: of two classes with 30 test images or more, one is predicted for over half of the other's; "
             "means are given with and without such runs")  # fmt: skip
SECONDS = "seconds are those of the trainings of the arms, without generators"
ARMS_LINE = ("filtered: the half of twice as many images that a segmenter and a classifier agree with; pretrained: "
             "half of the steps on synthetic images, half on real ones; all arms take equally many steps")  # fmt: skip
CENTRAL = "the generator file was trained on central squares, the segmenters see whole images"
FIRST_SEED = "recalls are means over seeds; the confusion matrices are of the first seed only"
ALSO_LIMIT = "the other data set is scored by the shared classes only, on its test split"


@dataclass(frozen=True, kw_only=True)
class SyntheticArmsCommand(ArmsCommand):
    """An experiment with synthetic images. A generator never saw a lesion that its arm is not trained on."""

    split: Literal["val", "test"] = "test"  # real images to score on
    cgan: Path | None = None  # generator for the arms with all training images; the others train their own
    generator_init_from: Path | None = None  # start of the generators that are trained here

    def options(self, also: Store | None = None) -> RunOptions:
        """What to run."""
        return RunOptions(self.split, self.arms, self.cgan, self.generator_init_from, also)

    def settings_lines(self, store: Store, network: str, images: str) -> list[str]:
        """Data, network, origin of the synthetic images, their number, and arms."""
        settings = self.settings
        training = f"{training_line(settings.train, early_stopping=False)}, seeds {settings.seeds}"
        images = f"{images} per fraction and seed, scored on {self.split}"
        return [data_line(store), f"{network}, {training}", self.generator_line(), images, ARMS_LINE]

    def generator_line(self) -> str:
        """Where the synthetic images come from."""
        own = f"trained here on each fraction, {training_line(self.settings.gan_train, early_stopping=False)}"
        start = f", from {display_path(self.generator_init_from)}" if self.generator_init_from else ""
        return f"generators: {f'at 100 % {display_path(self.cgan)}, else ' if self.cgan else ''}{own}{start}"


@dataclass(frozen=True, kw_only=True)
class Segmentation(SyntheticArmsCommand):
    """Mean Jaccard index of segmenters trained on real pairs, synthetic pairs, or both."""

    preset: ClassVar = "segmentation"
    settings: Flat[segmentation.SegmentationExperiment]

    def run(self) -> int:
        settings, out = self.settings, self.folder("segmentation")
        store = self.store(settings.segmenter.size, settings.generator.style, "none")
        results = segmentation.segmentation_experiment(store, settings, out, self.options())
        print(f"{store}\nmean Jaccard on the real images of {self.split}, 95 % intervals over images and seeds")
        scores = Scores.of(results, {"jaccard": segmentation.COMPARISON_PAIRS})
        report(scores, out)
        network = f"segmenter: {settings.segmenter.arch}, {settings.segmenter.encoder_name}"
        page = Page(
            question="Do synthetic pairs of image and mask help to segment real lesions?",
            settings=self.settings_lines(store, network, f"{settings.num_pairs} synthetic pairs"),
            table=scores.table(),
            verdict=scores.sentences(segmentation.ARMS),
            limits=[CLIPPED, SECONDS, *[CENTRAL] * bool(self.cgan)],
            figure=plots.intervals(scores.intervals(), "mean Jaccard index"),
            caption=f"Mean Jaccard index on {self.split} with 95 % intervals over images and seeds",
        )
        self.publish_page("segmentation", store, scores.rows(), page)
        return 0


@dataclass(frozen=True, kw_only=True)
class RealVsSynthetic(SyntheticArmsCommand):
    """Scores of classifiers trained on real images, synthetic images, or both."""

    preset: ClassVar = "real_vs_synthetic"
    settings: Flat[real_vs_synthetic.RealVsSyntheticExperiment]
    classes: tuple[str, ...] = ()  # only images of these classes; the figure then shows confusion matrices
    also_dataset: DatasetName | None = None  # data set whose test images every classifier is scored on as well
    also_root: Path | None = None  # its folder; default: data/<dataset>

    def run(self) -> int:
        settings, out = self.settings, self.folder("real-vs-synthetic")
        store = self.store(settings.classifier.size, settings.generator.style, classes=self.classes)
        also = self.also_dataset and open_store(get_config(self.also_dataset, self.also_root), store.config.size)
        results = real_vs_synthetic.real_vs_synthetic_experiment(store, settings, out, self.options(also))
        print(f"{store}\non the real images of {self.split}, 95 % intervals over lesions and seeds")
        pairs = dict.fromkeys((balanced_accuracy, auc, average_precision), real_vs_synthetic.COMPARISON_PAIRS)
        scores = [Scores.of(r, pairs, data) for data, r in real_vs_synthetic.of_data(results).items()]
        for part in scores:
            report(part, out, f"-{part.data}" * (part is not scores[0]))
            print(recalls_by_arm(part.results).round(3).to_string())
        parts = [part.with_recalls().rows(with_seconds=part is scores[0]) for part in scores]
        rows = pd.concat(parts, ignore_index=True)
        self.publish_page("real-vs-synthetic" + "-".join(["", *self.classes]), store, rows, self.page(store, scores))
        return 0

    def page(self, store: Store, scores: list[Scores]) -> Page:
        """The page of results; the scores on another data set are sentences of the verdict."""
        settings, main = self.settings, scores[0]
        name = metric_name(balanced_accuracy)
        figure = plots.intervals(main.intervals(), name)
        caption = f"{name.capitalize()} on {self.split} with 95 % intervals over lesions and seeds"
        if self.classes and (matrices := real_vs_synthetic.confusion_matrices(main.results)):
            figure = plots.confusion(matrices, store.classes)
            caption = "Confusion matrices with and without generated images"
        return Page(
            question="Do synthetic images help to classify real ones?",
            settings=self.settings_lines(
                store, f"classifier: {settings.classifier.arch}", f"{settings.num_synthetic} synthetic images"
            ),
            table=main.table(),
            verdict=[*main.sentences(real_vs_synthetic.ARMS), *(x for part in scores[1:] for x in part.sentences(()))],
            limits=[CLIPPED, COLLAPSED, SECONDS, *[FIRST_SEED] * bool(self.classes), *[ALSO_LIMIT] * (len(scores) > 1)],
            figure=figure,
            caption=caption,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Balancing(ArmsCommand):
    """Recall of rare classes, by cross-validation."""

    preset: ClassVar = "balancing"
    settings: Flat[balancing.BalancingExperiment]
    generator_init_from: Path | None = None  # start of every fold's CGAN; must not have seen the fold's test lesions

    def run(self) -> int:
        settings, out = self.settings, self.folder("balancing")
        store = self.store(settings.classifier.size, settings.cgan.style)
        if not balancing.can_blend(store):
            print(balancing.NOT_BLENDED)
        options = RunOptions(only=self.arms, generator_init_from=self.generator_init_from)
        results = balancing.balancing_experiment(store, settings, out, options)
        rare = balancing.rare_classes(store)
        print(f"{store}\nrare classes: {' '.join(rare)}; every lesion is tested once, 95 % intervals over lesions and "
              "seeds")  # fmt: skip
        pairs = {}
        for measure in (balancing.rare_recall(store.classes, rare), balanced_accuracy):
            best = balancing.best_baseline(summary(results, measure))
            print(f"by {metric_name(measure)} the best baseline is {best}; the other arms are compared with it\n")
            pairs[measure] = balancing.comparison_pairs(best, settings.real_per_synthetic)
        scores = Scores.of(results, pairs)
        report(scores, out)
        print(recalls_by_arm(results).round(3).to_string())
        self.publish_page("balancing", store, scores.with_recalls().rows(), self.page(store, scores, rare))
        return 0

    def page(self, store: Store, scores: Scores, rare: list[str]) -> Page:
        """The page of results."""
        settings, start = self.settings, self.generator_init_from
        arms = ["unbalanced", "class-weighted", "oversampled", *balancing.synthetic_arms(settings.real_per_synthetic)]
        training = training_line(settings.gan_train, early_stopping=False)
        return Page(
            question="Do class weights, oversampling or synthetic images raise the recall of rare classes?",
            settings=[
                data_line(store),
                f"classifier: {settings.classifier.arch}, {training_line(settings.train, early_stopping=False)}, seeds "
                f"{settings.seeds}; {settings.folds} folds by lesion",
                f"rare classes: {' '.join(rare)}; {settings.num_synthetic} synthetic images of them per fold and seed",
                f"CGANs: trained on each fold's images, {training}"
                + (f", from {display_path(start)}" if start else ""),
                "all arms use augmentation and equally many steps; the best baseline is chosen by its score",
            ],
            table=scores.table(),
            verdict=scores.sentences(arms),
            limits=[CLIPPED, COLLAPSED, SECONDS],
            figure=plots.intervals(scores.intervals(), "mean recall of rare classes"),
            caption="Mean recall of the rare classes with 95 % intervals over lesions and seeds",
        )


@dataclass(frozen=True, kw_only=True)
class Ablation(ArmsCommand):
    """Scores of generators trained without one part of the recipe each."""

    preset: ClassVar = "ablation"
    settings: Flat[ablation.AblationExperiment]

    def run(self) -> int:
        store = self.store(self.settings.generator.size, self.settings.generator.style)
        out, extractor = self.folder("ablation"), load_extractor_or_random("mobilenet_v2")
        results = ablation.ablation_experiment(store, self.settings, extractor, out, self.arms)
        write_csv(ablation.mean_over_seeds(results), out / "means.csv")
        arms = [ablation.FLOOR, ablation.FULL_RECIPE, *ablation.ABLATIONS, "pix2pix"]
        question = "What does each component of the CGAN contribute?"
        rows, page = generator_page(question, self.settings, store, results, extractor.name, arms)
        page = replace(page, images=ablation.images_by_arm(out, results))
        self.publish_page("ablation", store, rows, page)
        return 0


@dataclass(frozen=True, kw_only=True)
class SmallData(ExperimentCommand):
    """Scores of generators trained on fractions of the images."""

    preset: ClassVar = "small_data"
    settings: Flat[ablation.SmallDataExperiment]

    def run(self) -> int:
        store = self.store(self.settings.generator.size, self.settings.generator.style)
        out, extractor = self.folder("small-data"), load_extractor_or_random("mobilenet_v2")
        results = ablation.small_data_experiment(store, self.settings, extractor, out)
        write_csv(ablation.mean_over_seeds(results), out / "means.csv")
        page = generator_page("How many images does the CGAN need?", self.settings, store, results, extractor.name)
        self.publish_page("small-data", store, *page)
        return 0


def generator_page(
    question: str, settings: Any, store: Store, results: pd.DataFrame, extractor: str, arms: Sequence[str] = ()
) -> tuple[pd.DataFrame, Page]:
    """Print the means over the seeds; returns rows and page of an experiment that scores generators. Those of `arms`
    without results are named."""
    rows, means, train = ablation.score_rows(results), ablation.mean_over_seeds(results), settings.train
    print(f"{store}\ngenerated images of val sketches against the real images, features of {extractor}")
    print(f"after {train.steps} steps with batch size {train.batch_size}; "
          f"means over seeds {' '.join(map(str, settings.seeds))}\n")  # fmt: skip
    print(means.round(3).to_string())
    kid = results.groupby(["arm", "fraction"], sort=False)[["kid", "kid_low", "kid_high"]].mean()
    chart = {f"{arm}, {fraction:.0%}": values for (arm, fraction), *values in kid.itertuples()}
    training = training_line(train, early_stopping=False)
    page = Page(
        question=question,
        settings=[
            data_line(store),
            f"generator: {settings.generator.size} px, {training}, seeds {settings.seeds}",
            f"images of val sketches against the real val images, features of {extractor}",
        ],
        table=means.round(4),
        verdict=ablation.verdicts(rows, arms),
        limits=["intervals of KID are over images, those of its differences over seeds by Student's t"],
        figure=plots.intervals({f"KID, {extractor}": chart}, "KID"),
        caption="KID with 95 % intervals over images, means over seeds",
    )
    return rows, page


def report(scores: Scores, out: Path, suffix: str = "") -> None:
    """Print the arms and their comparisons by each measure, and write both as CSV to `out`."""
    where, weights = f"{scores.data}: " if scores.data else "", ", ".join(scores.results["init"].unique())
    print(f"{where}initial weights: {weights}; all seeds share the generators, so the intervals do")
    print("not include the variance of GAN training\n")
    for measure, arms, differences in scores.scored:
        name = metric_name(measure).replace(" ", "-") + suffix
        write_csv(arms, out / f"arms-{name}.csv")
        write_csv(differences, out / f"comparisons-{name}.csv")
        sentences = "\n".join(to_sentences(differences, measure))
        print(arms.round(4).to_string(), differences.round(4).to_string(), sentences, sep="\n\n")
        print()
