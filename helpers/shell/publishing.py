"""Experiments whose results can be published in `outputs/results`. Each resumes where it stopped."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd
import tyro

from helpers.config import display_path
from helpers.data.files import atomic_file
from helpers.data.store import Store
from helpers.experiments import extractors, features, forest, headline, kid_scale, networks_compared, real_vs_generated
from helpers.experiments.evaluation import load_generator
from helpers.experiments.results import FIGURE_DPI, Page, publish, to_charts
from helpers.experiments.runner import to_wide
from helpers.metrics.extractors import load_extractor
from helpers.models.gan import load_gan
from helpers.shell.base import Command, DataCommand, Flat, find_checkpoint
from helpers.shell.pages import ExperimentCommand, data_line, print_paths, training_line
from helpers.views import plots

VAL_LIMIT = "val also chose the weights, so the scores are optimistic, those of all networks alike"
INIT_LIMIT = "networks that start from ImageNet have an advantage over those that start from random weights (init)"
SEED_LIMIT = "one training of each network: the intervals do not include the variance of training"


@dataclass(frozen=True, kw_only=True)
class RealVsGenerated(ExperimentCommand):
    """Scores of classifiers trained on real images, on real test images and on images generated from their sketches."""

    preset: ClassVar = "real_vs_generated"
    settings: Flat[real_vs_generated.RealVsGeneratedExperiment]
    cgan: Path | None = None  # generator; default: the one of `train cgan`, else the released one

    def run(self) -> int:
        generator = find_checkpoint("cgan", self.cgan, self.config())
        _, config = load_gan(generator)
        store = self.store(config.size, config.style, classes=config.classes)
        print(f"generator: {display_path(generator)}")
        out = self.folder("real-vs-generated")
        results = real_vs_generated.real_vs_generated_experiment(store, self.settings, generator, out)
        rows = real_vs_generated.score_rows(results, self.settings.latent_seed).assign(
            generator=display_path(generator)
        )
        self.report("real-vs-generated", store, rows, self.page(store, generator, results, rows))
        return 0

    def page(self, store: Store, generator: Path, results: pd.DataFrame, rows: pd.DataFrame) -> Page:
        """The page of results."""
        settings, init = self.settings, results["arm"].iloc[0]
        figure = plots.confusion(real_vs_generated.confusion_matrices(results), store.classes)
        return Page(
            question="Does a classifier of real images recognize generated ones?",
            settings=[
                data_line(store),
                f"classifier: {settings.arch}, {training_line(settings.train)}, seeds {settings.seeds}",
                f"generator: {display_path(generator)}; one latent per sketch, seed {settings.latent_seed}",
                "generated images have the sketch, label and artifact flags of a real test image",
            ],
            table=real_vs_generated.to_columns(rows),
            verdict=[*real_vs_generated.verdicts(rows), *real_vs_generated.not_run(results, settings.arch)],
            limits=[
                "the intervals are over lesions: they do not include the variance of training",
                "a generator that shows its classes more clearly than real images do has a gap below 0",
            ],
            figure=figure,
            caption=f"Confusion matrices, {settings.arch} from {init}, seed {results['seed'].iloc[0]}",
        )


@dataclass(frozen=True, kw_only=True)
class Features(ExperimentCommand):
    """Features of real images and of images generated from their sketches: projections, distances, random forests."""

    options: Flat[features.FeatureComparison] = field(default_factory=features.FeatureComparison)
    cgan: Path | None = None  # generator; default: the one of `train cgan`, else the released one

    def run(self) -> int:
        generator = find_checkpoint("cgan", self.cgan, self.config())
        _, config = load_gan(generator)
        store, options = self.store(config.size, config.style, classes=config.classes), self.options
        print(f"generator: {display_path(generator)}")
        tables, rows = features.feature_experiment(store, generator, options, self.folder("features"))
        rows = rows.assign(generator=display_path(generator))
        page = Page(
            question="Do features of generated images classify real ones?",
            settings=[
                data_line(store),
                f"generator: {display_path(generator)}; one latent per sketch, seed {options.latent_seed}",
                f"features: {'; '.join(tables)}; random forests of {forest.TREES} trees, seeds {features.SEEDS}",
                "generated images have the sketch, label and artifact flags of a real image of the same split",
            ],
            table=features.to_columns(rows),
            verdict=features.verdicts(rows),
            limits=features.limits(rows),
            figure=plots.scatters(features.projections(tables)),
            caption="Features of train and test images, projected to two dimensions by PCA and t-SNE",
        )
        self.report("features", store, rows, page)
        return 0


@dataclass(frozen=True, kw_only=True)
class NetworkComparison(ExperimentCommand):
    """Networks that were trained for equally many steps, scored on val."""

    def report_networks(self, name: str, store: Store, rows: pd.DataFrame, keys: list[str], shorter: str = "") -> None:
        """Print, write and publish the `rows`, which `keys` name the networks of; `shorter`: which took fewer steps."""
        train, names = self.settings.train, rows[keys].agg("\n".join, axis=1)
        charts = to_charts(rows.assign(name=names, measure=rows["measure"].str.replace("_", " ")), "measure", "name")
        page = Page(
            question=f"Which of these {name} is best after equally many steps?",
            settings=[data_line(store), training_line(train) + shorter, f"seed {train.seed}"],
            table=to_wide(rows, keys),
            verdict=[best_sentence(rows, rows["measure"].iloc[0], keys)],
            limits=[VAL_LIMIT, SEED_LIMIT, *([INIT_LIMIT] if rows["init"].nunique() > 1 else [])],
            figure=plots.intervals(charts, "score on val"),
            caption="Scores on val with 95 % intervals over lesions",
        )
        self.report(name, store, rows, page)


@dataclass(frozen=True, kw_only=True)
class Backbones(NetworkComparison):
    """Balanced accuracy and AUC on val of several networks after equally many steps."""

    preset: ClassVar = "backbones"
    settings: Flat[networks_compared.BackboneExperiment]

    def run(self) -> int:
        settings = self.settings
        store = self.store(settings.classifier.size, classes=settings.classifier.classes)
        rows = networks_compared.backbone_experiment(store, settings, self.folder("backbones"))
        halved = "".join(f"; {name} half of them" for name in networks_compared.HALF_STEPS if name in settings.archs)
        self.report_networks("backbones", store, rows, ["arch"], halved)
        return 0


@dataclass(frozen=True, kw_only=True)
class Segmenters(NetworkComparison):
    """Mean Jaccard index on val of several networks after equally many steps."""

    preset: ClassVar = "segmenters"
    settings: Flat[networks_compared.SegmenterExperiment]

    def run(self) -> int:
        store = self.store(self.settings.segmenter.size, crop="none")
        rows = networks_compared.segmenter_experiment(store, self.settings, self.folder("segmenters"))
        self.report_networks("segmenters", store, rows, ["arch", "encoder"])
        return 0


@dataclass(frozen=True, kw_only=True)
class Extractors(DataCommand):
    """KID, Fréchet distance, precision and recall of one generator by every extractor that is available."""

    checkpoint: tyro.conf.Positional[Path | None] = None  # of a generator; default: as in `generate`
    split: Literal["val", "test"] = "val"
    publish: bool = False  # write outputs/results/extractors-DATASET-SIZE.*

    def run(self) -> int:
        cfg = self.config()
        checkpoint = find_checkpoint("cgan", self.checkpoint, cfg)
        table = extractors.compare_extractors(checkpoint, self.split, cfg)
        page = extractors.to_page(table, checkpoint, cfg.dataset)
        print(page.table.to_string(), *page.verdict, sep="\n")
        if self.publish:
            size = load_generator(checkpoint)[1].size
            print_paths(publish(f"extractors-{cfg.dataset}-{size}", table, page))
        return 0


@dataclass(frozen=True, kw_only=True)
class KidScale(DataCommand):
    """Generated images, damaged until they have a given KID; no image of a patient is shown."""

    checkpoint: Path | None = None  # of a generator; default: as in `generate`
    extractor: str = "mobilenet_v2"  # see `evaluate folders`
    options: Flat[kid_scale.KidScale] = field(default_factory=kid_scale.KidScale)
    out: Path | None = None  # PNG file of the figure; default: outputs/.../kid-scale.png
    publish: bool = False  # write outputs/results/kid-scale.*

    def run(self) -> int:
        started, cfg = time.perf_counter(), self.config()
        checkpoint = find_checkpoint("cgan", self.checkpoint, cfg)
        generate, config = load_generator(checkpoint)
        store = self.store(config.size, config.style, classes=config.classes)
        table, shown = kid_scale.kid_scale(generate, store, load_extractor(self.extractor), self.options)
        table = table.assign(seconds=(time.perf_counter() - started) / len(table), seed=self.options.seed)
        page = kid_scale.to_page(table, shown, display_path(checkpoint), cfg.dataset)
        print(page.table.to_string(), *page.verdict, sep="\n")
        out = self.out or cfg.outputs / "kid-scale.png"
        with atomic_file(out) as temporary:
            page.figure.savefig(temporary, format="png", dpi=FIGURE_DPI, bbox_inches="tight")
        print_paths([out, *(publish("kid-scale", table, page) if self.publish else [])])
        return 0


@dataclass(frozen=True, kw_only=True)
class Results(Command):
    """The tables stand between the lines `<!-- results -->` and `<!-- end of results -->`."""

    def run(self) -> int:
        print_paths(headline.write_tables())
        return 0


def best_sentence(rows: pd.DataFrame, measure: str, keys: list[str]) -> str:
    """Which network is best by a measure, and which others it does not differ from: those whose value lies inside its
    interval."""
    rows = rows[rows["measure"] == measure].assign(name=lambda table: table[keys].agg(" ".join, axis=1))
    best = rows.loc[rows["value"].idxmax()]
    close = rows[(rows["value"] >= best["low"]) & (rows["name"] != best["name"])]["name"]
    others = f"; within its interval: {', '.join(close)}" if len(close) else "; no other is within its interval"
    value = f"{best['value']:.3f}, {best['low']:.3f} to {best['high']:.3f}, N {best['n']}"
    return f"By {measure.replace('_', ' ')} {best['name']} is best ({value}){others}."
