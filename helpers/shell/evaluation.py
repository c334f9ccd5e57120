"""Commands that measure: folders of images, or one network on real data."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pandas as pd
import tyro

from helpers.config import display_path
from helpers.data.files import DataError
from helpers.experiments.blind_test import NUM_IMAGES, write_blind_test
from helpers.experiments.evaluate_extractor import ExtractorEvaluation, evaluate_extractor
from helpers.experiments.evaluate_generator import GeneratorEvaluation, evaluate_generator
from helpers.experiments.evaluate_networks import (
    ArtifactEvaluation,
    ClassifierEvaluation,
    SegmenterEvaluation,
    evaluate_artifacts,
    evaluate_classifier,
    evaluate_segmenter,
)
from helpers.experiments.evaluation import format_table, to_page
from helpers.experiments.results import publish
from helpers.metrics.extractors import available_extractors
from helpers.metrics.image_set import ImageSet
from helpers.metrics.quality import quality
from helpers.models.trainer import check_seed
from helpers.shell.base import Command, DataCommand, Flat, check_outputs
from helpers.views.cards import FIGURES, write_cards, write_checksums


@dataclass(frozen=True, kw_only=True)
class EvaluateFolders(Command):
    """The last line of `--json` is one object with the keys `fd kid ...`."""

    real: Path  # folder of images, or of one folder per class
    synthetic: Path  # arranged as --real
    floor: Path | None = None  # folder of other real images; default: a part of --real
    extractor: str | None = None  # inception, skin, an ImageNet network, NAME=FILE or checkpoint.pt; default: all
    infinity: bool = False  # also the Fréchet distance extrapolated to infinitely many images
    json: bool = False  # print a summary as JSON instead of the table

    def run(self) -> int:
        cfg = self.config()
        real, synthetic = ImageSet.from_folder(self.real), ImageSet.from_folder(self.synthetic)
        floor = self.floor and ImageSet.from_folder(self.floor)
        checkpoint = cfg.outputs / "classifier" / "checkpoint.pt"
        extractors, missing = available_extractors(checkpoint, self.extractor)
        if not extractors:
            raise DataError("no feature extractor available: " + "; ".join(missing))
        result = quality(real, synthetic, extractors, floor, cfg.features, self.infinity)
        if any(extractor.name == "classifier" for extractor in extractors):
            result.notes.append(f"the classifier is {display_path(self.extractor or checkpoint)}")
        result.notes += missing
        print(json.dumps(result.summary()) if self.json else result)
        return 0


def publish_table(
    name: str, table: pd.DataFrame, start: float, title: str, measures: Sequence[str], by_class: bool = False
) -> None:
    """Publish a table of `to_table` with the page of `to_page`; `start`: time when its command began."""
    seconds = (time.perf_counter() - start) / len(table)
    page = to_page(table, title, measures, by_class)
    print(*map(display_path, publish(name, table.assign(seconds=seconds), page)), sep="\n")


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(DataCommand):
    """Prints a table with a row per measure."""

    checkpoint: tyro.conf.Positional[Path]  # checkpoint.pt or released weights
    json: bool = False  # print the table as JSON, a list of rows
    publish: bool = False  # write csv and page to outputs/results
    measures: ClassVar[tuple[str, ...]]  # that the page has a sentence of

    def run(self) -> int:
        start = time.perf_counter()
        table = self.function(self.checkpoint, self.options, self.config())
        print(table.to_json(orient="records") if self.json else format_table(table))
        if self.publish:
            name = self.checkpoint.stem if self.checkpoint.suffix == ".safetensors" else self.checkpoint.parent.name
            name = f"{name}-{self.config().dataset}-{self.options.split}"
            publish_table(
                name, table, start, f"{display_path(self.checkpoint)} on {self.config().dataset}", self.measures
            )
        return 0


@dataclass(frozen=True, kw_only=True)
class EvaluateGenerator(EvaluateCommand):
    """See `evaluate_generator`."""

    options: Flat[GeneratorEvaluation] = field(default_factory=GeneratorEvaluation)
    function: ClassVar = staticmethod(evaluate_generator)
    measures: ClassVar = ("kid", "fd", "recall", "coverage")


@dataclass(frozen=True, kw_only=True)
class EvaluateExtractor(DataCommand):
    """See `evaluate_extractor`."""

    extractor: tyro.conf.Positional[str]  # inception, skin, a network with ImageNet weights, or NAME=FILE
    options: Flat[ExtractorEvaluation] = field(default_factory=ExtractorEvaluation)

    publish: bool = False  # write csv and page to outputs/results

    def run(self) -> int:
        start, name = time.perf_counter(), self.extractor.partition("=")[0]
        table = evaluate_extractor(self.extractor, self.options, self.config())
        print(format_table(table))
        if self.publish:
            measures = ("probe_balanced_accuracy",)
            publish_table(f"extractor-{name}", table, start, f"the extractor {name}", measures, by_class=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class EvaluateSegmenter(EvaluateCommand):
    """See `evaluate_segmenter`."""

    options: Flat[SegmenterEvaluation] = field(default_factory=SegmenterEvaluation)
    function: ClassVar = staticmethod(evaluate_segmenter)
    measures: ClassVar = ("jaccard", "thresholded_jaccard")


@dataclass(frozen=True, kw_only=True)
class EvaluateClassifier(EvaluateCommand):
    """See `evaluate_classifier`."""

    options: Flat[ClassifierEvaluation] = field(default_factory=ClassifierEvaluation)
    function: ClassVar = staticmethod(evaluate_classifier)
    measures: ClassVar = ("balanced_accuracy", "auc", "accuracy_at_coverage")


@dataclass(frozen=True, kw_only=True)
class EvaluateArtifacts(EvaluateCommand):
    """See `evaluate_artifacts`."""

    options: Flat[ArtifactEvaluation] = field(default_factory=ArtifactEvaluation)
    function: ClassVar = staticmethod(evaluate_artifacts)
    measures: ClassVar = ("average_precision",)


@dataclass(frozen=True, kw_only=True)
class BlindTest(DataCommand):
    """Never publish the folder: it has images of patients."""

    checkpoint: tyro.conf.Positional[Path]  # checkpoint.pt or released weights of a generator
    out: Path  # folder for 32 images and key.json
    seed: int = 0  # of images, order and latents

    def __post_init__(self):
        check_seed(self.seed)

    def run(self) -> int:
        outputs = [self.out / "images" / f"{number:02d}.png" for number in range(NUM_IMAGES)]
        check_outputs([*outputs, self.out / "key.json"], [self.checkpoint])
        numbers = write_blind_test(self.checkpoint, self.out, self.seed, self.config())
        print(f"32 images in {display_path(self.out / 'images')}, {len(numbers)} of them generated: key.json")
        return 0


@dataclass(frozen=True, kw_only=True)
class Cards(Command):
    """Each NAME.png next to NAME.safetensors in data/released; checksums in the cards there and in data/training."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()  # such as cgan segmenter; default: all

    def run(self) -> int:
        released = self.config().released
        images = write_cards(released, self.names or tuple(FIGURES))
        for path in [*images, *write_checksums(released, released.parent / "training")]:
            print(display_path(path))
        return 0
