"""Scores and samples of a CGAN while it trains, to see what more images gain and which checkpoint is best on val."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.files import DataError, atomic_file, read_image, write_image
from helpers.data.store import Store
from helpers.metrics.extractors import FeatureExtractor, extract_array
from helpers.metrics.fidelity import MIN_POSITION_IMAGES, position_score, structure_correlation
from helpers.metrics.quality import compute_metrics
from helpers.models.networks import Generator
from helpers.models.sampling import sample_batch

MAX_EVAL = 600
MAX_PAIRS = 200  # sketches for the structure correlation
STRIP_NIMG = (0, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)  # columns of the progress strip
STRIP_SKETCHES = 6


class LearningCurve:
    """Called with the EMA generator at every checkpoint; appends a row to `val.csv` every `every_nimg` training images.

    Columns: `nimg` (training images so far), `seconds` (without interruptions), the scores of `compute_metrics` against
    the val images, `position`, `position_real` and `structure`, see `fidelity.py`. Images are generated from up to 600
    sketches of the val split, with their labels and artifact flags. `progress.png` shows the same sketches at the first
    checkpoint after each number of `STRIP_NIMG`. Both files are continued after a resume.

    Raises `DataError` if the val split has fewer than 100 sketches.
    """

    def __init__(
        self, store: Store, extractor: FeatureExtractor, out: str | Path, images_per_step: int, every_nimg: int
    ):
        rows = np.random.default_rng(0).permutation(store.rows("val", needs=["sketch", "label"]))[:MAX_EVAL]
        if len(rows) < MIN_POSITION_IMAGES:
            raise DataError(f"{store.name} needs at least {MIN_POSITION_IMAGES} val images with sketch and label, "
                            f"got {len(rows)}")  # fmt: skip
        self.out, self.images_per_step, self.every_nimg = Path(out), images_per_step, every_nimg
        self.started = time.monotonic() - self.last_row()[1]
        self.extractor, self.batch = extractor, store.batch(rows)
        self.real = extract_array(self.batch["images"], extractor)
        self.position_real = position_score(self.batch["images"])

    def __call__(self, generator: Generator, step: int) -> None:
        nimg = step * self.images_per_step
        stage = max(n for n in STRIP_NIMG if n <= nimg)
        if not self.strip_file(stage).is_file():
            self.add_column(generator, stage)
        if nimg // self.every_nimg > self.last_row()[0] // self.every_nimg:
            self.add_row(nimg, self.evaluate(generator))

    def last_row(self) -> tuple[int, int]:
        """`nimg` and `seconds` of the last row of `val.csv`, 0 without rows."""
        file = self.out / "val.csv"
        nimg, seconds = file.read_text(encoding="utf-8").splitlines()[-1].split(",")[:2] if file.is_file() else (0, 0)
        return int(nimg), int(seconds)

    def generate(self, generator: Generator, num: int, seed: int) -> np.ndarray:
        """Images `uint8 (num, S, S, 3)` of the first sketches."""
        return sample_batch(generator, {name: array[:num] for name, array in self.batch.items()}, seed)

    def evaluate(self, generator: Generator) -> dict[str, float]:
        """Scores of the generator, see `LearningCurve`."""
        images = self.generate(generator, len(self.real.values), seed=0)
        others = self.generate(generator, MAX_PAIRS, seed=1)
        return compute_metrics(extract_array(images, self.extractor), self.real) | {
            "position": position_score(images),
            "position_real": self.position_real,
            "structure": structure_correlation(images[: len(others)], others),
        }

    def add_row(self, nimg: int, scores: dict[str, float]) -> None:
        """Append to `val.csv`."""
        file, row = self.out / "val.csv", {"nimg": nimg, "seconds": round(time.monotonic() - self.started)} | scores
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        with atomic_file(file) as temporary:
            line = pd.DataFrame([row]).round(4).to_csv(header=not before, index=False, na_rep="nan")
            temporary.write_text(before + line, encoding="utf-8")

    def strip_file(self, nimg: int) -> Path:
        """The column of the progress strip for one number of training images."""
        return self.out / f"progress-{nimg:07d}.png"

    def add_column(self, generator: Generator, nimg: int) -> None:
        """Write one column of images, then `progress.png` from all columns and the sketches."""
        sketches = 255 - self.batch["sketches"][:STRIP_SKETCHES]
        images = self.generate(generator, STRIP_SKETCHES, seed=0)
        write_image(self.strip_file(nimg), np.concatenate(list(images)))
        columns = [read_image(file) for file in sorted(self.out.glob("progress-*.png"))]
        first = np.concatenate(list(sketches))[..., None].repeat(3, axis=2)
        write_image(self.out / "progress.png", np.concatenate([first, *columns], axis=1))
