"""Which generator may feed which arm: one that saw no lesion that the arm's own networks are not trained on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.config import display_path
from helpers.data.content import file_hashes
from helpers.data.files import DataError
from helpers.data.store import SPLITS, Store
from helpers.models.artifacts import ensure_artifacts
from helpers.models.checkpoint import check_held_out
from helpers.models.gan import GANConfig, load_gan, train_gan
from helpers.models.trainer import TrainConfig


@dataclass(frozen=True)
class RunOptions:
    """What an experiment on synthetic images runs, besides its settings."""

    split: str = "test"  # real images to score on
    only: tuple[str, ...] = ()  # arms; empty: all
    cgan: Path | None = None  # generator for the arms with all training images; the others train their own
    generator_init_from: Path | None = None  # start of the generators that are trained here
    also: Store | None = None  # another data set to score classifiers on

    def context(self) -> dict:
        """What of it decides the results, for `fingerprint_of`; files by their content."""
        also = self.also and self.also.folder.name
        files = {"cgan": self.cgan, "generator_init_from": self.generator_init_from}
        return {"split": self.split, "also": also} | {name: file and content_hash(file) for name, file in files.items()}


ALL_ARMS = RunOptions()  # on the test split, with generators that are trained here


def content_hash(file: Path) -> str:
    """Hash of a file's bytes."""
    return file_hashes([str(file)])[str(file)][-1]


def check_generators(options: RunOptions, store: Store, parts: Iterable[np.ndarray], config: GANConfig) -> None:
    """Check the files of `options` before anything is trained: `--cgan` against the training split,
    `--generator-init-from` against the training rows of every arm or fold in `parts`, and both against the images of
    `options.also` that are scored.

    Raises `DataError` if a file was trained on other lesions, or does not say on which; `ValueError` if `--cgan` has
    another image size than `config`.
    """
    if options.cgan:
        check_trained_on(options.cgan, store, store.rows("train"))
        if (size := load_gan(options.cgan)[1].size) != config.size:
            raise ValueError(f"{display_path(options.cgan)} has images of {size} px, the experiment {config.size} px")
    if options.generator_init_from:
        for rows in parts:
            check_trained_on(options.generator_init_from, store, rows)
    for file in filter(None, (options.cgan, options.generator_init_from) if options.also else ()):
        check_trained_on(file, options.also, np.flatnonzero(options.also.splits != SPLITS.index("test")))


def check_trained_on(file: Path, store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` if a generator was trained on lesions of the store other than those at `rows`, or if its file
    does not list what it was trained on."""
    if not check_held_out(file, store, rows).get("trained_on"):
        raise DataError(f"{display_path(file)} does not list its training images: it may have seen test images")


def prepare_generator(
    store: Store, config: GANConfig, train_config: TrainConfig, options: RunOptions, rows: np.ndarray, folder: Path
) -> tuple[Path, str]:
    """Checkpoint of a generator for an arm or fold with the training images `rows`, and its name in result tables.

    With all training images it is the file of `--cgan`, if given, else one that is trained in `folder` on exactly these
    images, from `--generator-init-from`, if given. Raises `DataError` as `check_trained_on` does.
    """
    if options.cgan and has_all_training_images(store, rows):
        check_trained_on(options.cgan, store, store.rows("train"))
        if load_gan(options.cgan)[1].artifacts:
            ensure_artifacts(store)
        return options.cgan, display_path(options.cgan)
    start = options.generator_init_from
    if start:
        check_trained_on(start, store, rows)
    train_gan(store, config, folder, train_config, rows, init_from=start)
    return folder / "checkpoint.pt", f"trained here, {len(rows):,} images" + (
        f", from {display_path(start)}" if start else ""
    )


def has_all_training_images(store: Store, rows: np.ndarray) -> bool:
    """Whether `rows` are those of the training split that generators can be trained on: with label and sketch, and with
    a mask unless the store has none."""
    needs = ["label", "sketch", *["mask"] * bool(store.has_mask.any())]
    return np.array_equal(rows, store.rows("train", needs=needs))
