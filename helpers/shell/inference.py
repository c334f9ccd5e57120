"""Commands that apply a trained network to a folder, and the web page."""

import csv
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.config import display_path
from helpers.data.files import DataError, image_shape, is_mask, read_image
from helpers.data.labels import id_from_stem, read_labels, report_ids
from helpers.data.layouts import ARTIFACTS, image_files, images_by_id
from helpers.data.sketches import read_drawings
from helpers.data.store import StoreConfig, resize
from helpers.models.classifier import load_classifier, predict_proba
from helpers.models.gan import load_gan
from helpers.models.sampling import NOT_CONDITIONED, random_artifacts, sample
from helpers.models.segmenter import is_uniform, load_segmenter, segment
from helpers.shell.base import Command, check_outputs, find_checkpoint, print_problems

# What publishers append to the names of masks: ISIC_1_Segmentation.png, IMD002_lesion.bmp
_MASK_NAME = re.compile(r"_(segmentation|mask|lesion|roi|gt|groundtruth|sketch|contours?)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Writes <class>/<image_id>.png."""

    sketches: Path  # folder of line drawings
    out: Path  # folder for the images
    checkpoint: Path | None = None  # default: the one of `train cgan`, else the released weights
    labels: Path | None = None  # CSV of image_id,label or one-hot; default: every class
    artifacts: str = "none"  # in the images: none, real (as often as in real images of the class), or hair,ruler
    seed: int = 0  # random seed

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
        (self.out / class_name).mkdir(parents=True, exist_ok=True)
        for image_id, image in zip(ids, images, strict=True):
            Image.fromarray(image).save(self.out / class_name / f"{image_id}.png")
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


def iter_images(folder: Path, config: StoreConfig, problems: list[str]) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Yield id, path and image `uint8 (S, S, 3)`, resized as `config` says, of every image of a folder; at most one is
    in memory at full size. Unreadable ones, masks and skipped files go to `problems`."""
    masks, repeated, ids = [], [], set()
    for path in image_files(existing_folder(folder), problems):
        if (image_id := id_from_stem(path.stem)) in ids:
            (masks if _MASK_NAME.search(path.stem) else repeated).append(path.relative_to(folder))
            continue
        try:
            image = read_image(path, size=config.size)
        except DataError as error:
            problems.append(str(error))
            continue
        if _MASK_NAME.search(path.stem) or is_mask(image):
            masks.append(path.relative_to(folder))
            continue
        ids.add(image_id)
        image = resize(image, config)
        yield image_id, path, image
    report_ids(problems, "are masks or drawings, not images, and are left out", masks)
    report_ids(problems, "have the id of another file and are left out", repeated)


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
        print(f"{display_path(checkpoint)}: {config.arch} with {config.encoder_name}, {config.size} px")
        problems, areas, files = [], [], image_files(existing_folder(self.images))
        outputs = [self.out / f"{id_from_stem(path.stem)}.png" for path in files]
        check_outputs([*dict.fromkeys(outputs), self.out / "areas.csv"], [*files, checkpoint])
        self.out.mkdir(parents=True, exist_ok=True)
        for image_id, path, image in iter_images(self.images, StoreConfig(config.size, crop="none"), problems):
            height, width = image_shape(path)
            if is_uniform(image):
                problems.append(f"{path} has one color only: its mask is empty")
            (mask,) = segment(segmenter, [image], [(height, width)])
            Image.fromarray(255 * mask).save(self.out / f"{image_id}.png")
            areas.append((image_id, width, height, int(mask.sum()), round(float(mask.mean()), 6)))
        print_problems(problems)
        write_rows(
            self.out / "areas.csv",
            ("image_id", "width", "height", "lesion_pixels", "lesion_fraction"),
            areas,
            self.images,
        )
        print(f"{len(areas)} masks and areas.csv in {display_path(self.out)}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Classify(Command):
    """Writes a table of probabilities."""

    images: Path  # folder
    out: Path | None = None  # CSV file; default: outputs/.../classified.csv
    checkpoint: Path | None = None  # default: the one of `train classifier`, else the released weights

    def run(self) -> int:
        cfg = self.config()
        checkpoint = find_checkpoint("classifier", self.checkpoint, cfg)
        classifier, config = load_classifier(checkpoint)
        out, problems, rows = self.out or cfg.outputs / "classified.csv", [], []
        check_outputs([out], [*image_files(existing_folder(self.images)), checkpoint])
        for image_id, path, image in iter_images(self.images, StoreConfig(config.size), problems):
            if is_uniform(image):
                problems.append(f"{path} has one color only: its probabilities are meaningless")
            (probs,) = predict_proba(classifier, image[None])
            rows.append((image_id, config.classes[int(probs.argmax())], *(round(float(p), 6) for p in probs)))
        print_problems(problems)
        write_rows(out, ("image_id", "diagnosis", *config.classes), rows, self.images)
        counts = Counter(row[1] for row in rows)
        print(f"{display_path(checkpoint)}: {config.arch}, {config.size} px, temperature {classifier.temperature:.2f}")
        print(f"{len(rows)} images, {', '.join(f'{n} {name}' for name, n in counts.most_common())}: "
              f"{display_path(out)}")  # fmt: skip
        print("not for diagnosis, and not for any decision about a patient")
        return 0


def write_rows(file: Path, columns: tuple[str, ...], rows: list[tuple], images: Path) -> None:
    """Write a CSV file in UTF-8, complete or not at all. Raises `DataError` if there are no rows."""
    if not rows:
        raise DataError(f"{images} needs at least one readable image, got none")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.part")  # on a full disk an older file stays
    try:
        # Bytes of file names that are not UTF-8 are escaped.
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            csv.writer(stream).writerows([columns, *rows])
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


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
        from helpers.views.predictor import LOADERS, Predictor, find_weights

        port = demo.free_port(self.port)  # before the weights are loaded
        predictor = Predictor(find_weights(self.config(), {method: getattr(self, method) for method in LOADERS}))
        print(predictor)
        for signum in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # a normal exit deletes the uploads
            signal.signal(signum, lambda *_: sys.exit(0))
        demo.launch_page(demo.build_page(predictor), port, wait=True, host_names=self.host_name)
        return 0
