"""Commands that apply a trained network to a folder, and the web page."""

import csv
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from helpers.config import display_path
from helpers.data.class_folders import MASK_NAME
from helpers.data.files import DataError, atomic_file, image_shape, is_mask, no_images_error, read_image, write_image
from helpers.data.labels import id_from_stem, read_labels, report_ids
from helpers.data.layouts import ARTIFACTS, image_files, images_by_id
from helpers.data.sketches import read_drawings
from helpers.data.store import StoreConfig, map_in_chunks, resize
from helpers.models.classifier import Classifier, hide_surroundings, load_classifier, predict
from helpers.models.gan import load_gan
from helpers.models.sampling import NOT_CONDITIONED, random_artifacts, sample
from helpers.models.segmenter import Segmenter, is_uniform, load_segmenter, segment
from helpers.models.trainer import check_seed
from helpers.models.weights import fuse_batchnorm
from helpers.shell.base import Command, check_outputs, find_checkpoint, print_problems

BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Writes <class>/<image_id>.png."""

    sketches: Path  # folder of line drawings
    out: Path  # folder for the images
    checkpoint: Path | None = None  # default: the one of `train cgan`, else the released weights
    labels: Path | None = None  # CSV of image_id,label or one-hot; default: every class
    artifacts: str = "none"  # in the images: none, real (as often as in real images of the class), or hair,ruler
    seed: int = 0  # random seed

    def __post_init__(self):
        check_seed(self.seed)

    def run(self) -> int:
        checkpoint = find_checkpoint("cgan", self.checkpoint, self.config())
        generator, config = load_gan(checkpoint)
        print(f"{display_path(checkpoint)}: {config.size} px, sketch style {config.style}, {' '.join(config.classes)}")
        flags = parse_artifacts(self.artifacts)
        if flags.any() and not generator.num_artifacts:
            raise DataError(f"{display_path(checkpoint)}: {NOT_CONDITIONED}")
        problems = []
        files = images_by_id(existing_folder(self.sketches), problems)
        sketches = read_drawings(files, config.size, problems)
        labels = labels_for(sketches, self.labels, list(config.classes), problems)
        print_problems(problems)
        if not labels:
            raise DataError(f"{self.sketches} needs at least one readable sketch with a label, got none")
        if self.out.resolve() == self.sketches.resolve():
            raise DataError(f"--out must not be the folder of sketches {self.out}")
        outputs = [self.out / name / f"{image_id}.png" for image_id, names in labels.items() for name in names]
        check_outputs(outputs, [*files.values(), checkpoint, self.labels])
        for k, name in enumerate(config.classes):
            if ids := [image_id for image_id in sketches if name in labels.get(image_id, ())]:
                indices, artifacts = [k] * len(ids), np.tile(flags, (len(ids), 1)) if flags.any() else None
                if self.artifacts == "real":
                    artifacts = random_artifacts(generator, indices, self.seed)
                inputs = np.stack([sketches[i] for i in ids])
                self.save(name, ids, sample(generator, inputs, indices, self.seed, artifacts=artifacts))
        return 0

    def save(self, class_name: str, ids: list[str], images: np.ndarray) -> None:
        """Write the images `uint8 (N, S, S, 3)` of one class."""
        for image_id, image in zip(ids, images, strict=True):
            write_image(self.out / class_name / f"{image_id}.png", image)
        print(f"{len(ids)} images in {display_path(self.out / class_name)}")


def parse_artifacts(text: str) -> np.ndarray:
    """Names separated by commas, or "none" or "real" -> flags `(7,)` in {0, 1}; "real" gives all 1. Raises `DataError`
    for an unknown name."""
    if text in ("none", "real"):
        return np.full(len(ARTIFACTS), text == "real", np.uint8)
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in ARTIFACTS]:
        raise DataError(f"--artifacts must be none, real or names from {', '.join(ARTIFACTS)}; got {unknown[0]!r}")
    return np.array([name in names for name in ARTIFACTS], np.uint8)


def labels_for(sketches: dict, file: Path | None, classes: list[str], problems: list[str]) -> dict[str, list[str]]:
    """Class names to generate for each sketch: the one of the label file, or all classes without a file."""
    if file is None:
        return dict.fromkeys(sketches, classes)
    labels = read_labels(file, classes, problems)
    if unlabeled := [i for i in sketches if i not in labels]:
        problems.append(
            f"{len(unlabeled)} sketches have no label in {file.name} and are left out ({', '.join(unlabeled[:5])})"
        )
    if absent := [i for i in labels if i not in sketches]:
        problems.append(f"{len(absent)} ids of {file.name} have no sketch ({', '.join(absent[:5])})")
    return {i: [labels[i]] for i in sketches if i in labels}


def existing_folder(folder: Path) -> Path:
    """The folder. Raises `DataError` if it does not exist."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    return folder


class LoadedImage(NamedTuple):
    """An image of a folder as a network's input."""

    image_id: str
    path: Path
    image: np.ndarray  # uint8 (S, S, 3)
    shape: tuple[int, int]  # height and width of the file, as a viewer shows it


def iter_images(folder: Path, config: StoreConfig, problems: list[str], workers: int = 1) -> Iterator[LoadedImage]:
    """Every image of a folder as a network's input, read by `workers` threads and counted on a progress bar. Unreadable
    ones, masks, those with the id of another and skipped files go to `problems`."""
    masks, repeated, ids = [], [], set()
    paths = image_files(existing_folder(folder), problems)
    with ThreadPoolExecutor(workers) as pool:
        items = map_in_chunks(pool, partial(load_image, config=config), iter(paths))
        loaded = tqdm(items, total=len(paths), leave=False)
        for path, item in zip(paths, loaded, strict=True):
            if item is None:
                masks.append(path.relative_to(folder))
            elif isinstance(item, DataError):
                problems.append(str(item))
            elif item.image_id in ids:
                repeated.append(path.relative_to(folder))
            else:
                ids.add(item.image_id)
                yield item
    report_ids(problems, "are masks or drawings, not images, and are left out", masks)
    report_ids(problems, "have the id of another file and are left out", repeated)


def load_image(path: Path, config: StoreConfig) -> LoadedImage | DataError | None:
    """Read and resize an image; None for a mask or a drawing, the error for an unreadable file."""
    try:
        image, shape = read_image(path, size=config.size), image_shape(path)
    except DataError as error:
        return error
    if MASK_NAME.search(path.stem) or is_mask(image):
        return None
    return LoadedImage(id_from_stem(path.stem), path, resize(image, config), shape)


def in_batches(images: Iterable[LoadedImage]) -> Iterator[list[LoadedImage]]:
    """The images in lists of at most `BATCH_SIZE`."""
    images = iter(images)
    while batch := list(islice(images, BATCH_SIZE)):
        yield batch


@dataclass(frozen=True, kw_only=True)
class Segment(Command):
    """Writes <image_id>.png (0 or 255) and areas.csv."""

    images: Path  # folder
    out: Path  # folder for the masks
    checkpoint: Path | None = None  # default: the one of `train segmenter`, else the released weights

    def run(self) -> int:
        checkpoint = find_checkpoint("segmenter", self.checkpoint, self.config())
        if self.out.resolve() == self.images.resolve():
            raise DataError(
                f"--out must not be the image folder {self.out}: masks would overwrite images of the same name"
            )
        segmenter, config = load_segmenter(checkpoint)
        fuse_batchnorm(segmenter)
        print(f"{display_path(checkpoint)}: {config.arch} with {config.encoder_name}, {config.size} px")
        problems, files = [], image_files(existing_folder(self.images))
        outputs = [self.out / f"{id_from_stem(path.stem)}.png" for path in files]
        check_outputs([*dict.fromkeys(outputs), self.out / "areas.csv"], [*files, checkpoint])
        images = iter_images(self.images, StoreConfig(config.size, crop="none"), problems, self.config().workers)
        columns = ("image_id", "width", "height", "lesion_pixels", "lesion_fraction")
        areas = self.areas(segmenter, images, problems)
        count = write_rows(self.out / "areas.csv", columns, areas, self.images, problems)
        print_problems(problems)
        print(f"{count} masks and areas.csv in {display_path(self.out)}")
        return 0

    def areas(self, segmenter: Segmenter, images: Iterable[LoadedImage], problems: list[str]) -> Iterator[tuple]:
        """Write the masks; yields the rows of areas.csv."""
        with ThreadPoolExecutor(self.config().workers) as pool:
            for batch in in_batches(images):
                problems += [f"{i.path} has one color only: its mask is empty" for i in batch if is_uniform(i.image)]
                masks = segment(segmenter, [i.image for i in batch], [i.shape for i in batch])
                files = [self.out / f"{i.image_id}.png" for i in batch]
                list(pool.map(write_image, files, [255 * mask for mask in masks]))
                for item, mask in zip(batch, masks, strict=True):
                    height, width = item.shape
                    yield item.image_id, width, height, int(mask.sum()), round(float(mask.mean()), 6)


@dataclass(frozen=True, kw_only=True)
class Classify(Command):
    """Writes a table of probabilities; `unsure` and `unlike` are 1 where they should not be used."""

    images: Path  # folder
    out: Path | None = None  # CSV file; default: outputs/.../classified.csv
    checkpoint: Path | None = None  # default: the one of `train classifier`, else the released weights
    segmenter: Path | None = None  # finds the lesion for a classifier of `--lesion-only`; default: as of `segment`

    def run(self) -> int:
        cfg = self.config()
        checkpoint = find_checkpoint("classifier", self.checkpoint, cfg)
        classifier, config = load_classifier(checkpoint)
        fuse_batchnorm(classifier)  # twice as fast
        segmenter = load_segmenter(find_checkpoint("segmenter", self.segmenter, cfg))[0] if config.lesion_only else None
        out, problems = self.out or cfg.outputs / "classified.csv", []
        check_outputs([out], [*image_files(existing_folder(self.images)), checkpoint])
        images, counts = iter_images(self.images, StoreConfig(config.size), problems, cfg.workers), Counter()
        flagged = {"unsure": [], "unlike": []}

        def rows() -> Iterator[tuple]:
            for batch in in_batches(images):
                problems.extend(f"{i.path} has one color only: its probabilities are meaningless"
                                for i in batch if is_uniform(i.image))  # fmt: skip
                inputs = np.stack([i.image for i in batch])
                if segmenter:
                    masks = np.stack([lesion_square(segmenter, i, config.size) for i in batch])
                    problems.extend(f"no lesion is found in {i.path}: its probabilities are meaningless"
                                    for i, mask in zip(batch, masks, strict=True) if not mask.any())  # fmt: skip
                    inputs = hide_surroundings(inputs, masks)
                predictions = predict(classifier, inputs)
                flags = {name: getattr(predictions, name) for name in flagged}
                for k, (item, probs) in enumerate(zip(batch, predictions.probabilities, strict=True)):
                    diagnosis = config.classes[int(probs.argmax())]
                    counts[diagnosis] += 1
                    row = ["" if flag is None else int(flag[k]) for flag in flags.values()]
                    for name, flag in zip(flags, row, strict=True):
                        flagged[name] += [item.image_id] * (flag == 1)
                    yield item.image_id, diagnosis, *row, *(round(float(p), 6) for p in probs)

        count = write_rows(out, ("image_id", "diagnosis", *flagged, *config.classes), rows(), self.images, problems)
        print_problems(problems)
        print(f"{display_path(checkpoint)}: {config.arch}, {config.size} px, temperature {classifier.temperature:.2f}")
        print(f"{count} images, {', '.join(f'{n} {name}' for name, n in counts.most_common())}: "
              f"{display_path(out)}")  # fmt: skip
        print(abstentions(classifier, **flagged))
        print("not for diagnosis, and not for any decision about a patient")
        return 0


def lesion_square(segmenter: Segmenter, item: LoadedImage, size: int) -> np.ndarray:
    """The lesion in the central square of an image, `uint8 (size, size)` in {0, 1}: found in the whole image, as the
    segmenter was trained, and cropped as masks are in a store."""
    whole = read_image(item.path, size=segmenter.size)
    (mask,) = segment(segmenter, [whole], [item.shape])
    return (resize(255 * mask, StoreConfig(size)) > 127).astype(np.uint8)


def abstentions(classifier: Classifier, unsure: list[str], unlike: list[str]) -> str:
    """Two lines: which images, by id, the classifier is unsure about and which are unlike its training images."""
    lines = [f"unsure: {len(unsure)}{listed(unsure)}, with a top probability below {classifier.confidence}",
             f"unlike the dermoscopic images it was trained on: {len(unlike)}{listed(unlike)}"]  # fmt: skip
    if classifier.confidence is None:
        lines[0] = "the classifier has no confidence threshold: no image is called unsure"
    if classifier.subspace is None:
        lines[1] = "the classifier has no feature statistics: no image is called unlike those it was trained on"
    return "\n".join(lines)


def listed(ids: list[str]) -> str:
    """Up to five ids in parentheses, nothing without ids; bytes of file names that are not UTF-8 are escaped."""
    text = f" ({', '.join(ids[:5])}{', ...' * (len(ids) > 5)})" if ids else ""
    return text.encode(errors="backslashreplace").decode()


def write_rows(file: Path, columns: tuple[str, ...], rows: Iterable[tuple], images: Path, problems: list[str]) -> int:
    """Write a CSV file in UTF-8, row by row but complete or not at all; returns the number of rows. Raises `DataError`
    if there are none, with the first `problems` of the folder `images`."""
    # Bytes of file names that are not UTF-8 are escaped.
    escaped = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with atomic_file(file) as temporary, temporary.open("w", **escaped) as stream:
        writer, count = csv.writer(stream), 0
        writer.writerow(columns)
        for row in rows:
            writer.writerow(row)
            count += 1
        if not count:
            raise no_images_error(images, problems)
    return count


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Uses the released weights where no checkpoint is given."""

    port: int | None = None  # default: the first free one from 7860; 0: any free one
    host_name: tuple[str, ...] = ()  # names under which a proxy serves the page: NAME or NAME:PORT
    cgan: Path | None = None  # checkpoint
    dcgan: Path | None = None
    segmenter: Path | None = None
    classifier: Path | None = None

    def run(self) -> int:
        from helpers.views import demo  # gradio takes seconds to import
        from helpers.views.predictor import METHODS, Predictor, find_weights

        port = demo.free_port(self.port)  # before the weights are loaded
        predictor = Predictor(find_weights(self.config(), {method: getattr(self, method) for method in METHODS}))
        print(predictor)
        for signum in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # a normal exit deletes the uploads
            signal.signal(signum, lambda *_: sys.exit(0))
        demo.launch_page(demo.build_page(predictor), port, wait=True, host_names=self.host_name)
        return 0
