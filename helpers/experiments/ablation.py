"""What is each ingredient of the CGAN worth, and how many photographs does it need?

Both train one generator after another, each on equally many pictures. What they draw from sketches of the val split is
judged by a network that took no part in training.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.data.files import DataError
from helpers.data.sketches import hand
from helpers.data.store import Drawings, Store, balanced_batches, to_tensors
from helpers.experiments.cells import Arm, run_cells, share_of_rows
from helpers.metrics.features import Features, Judge, features, pictures_of
from helpers.metrics.fidelity import spread
from helpers.metrics.memorisation import memorisation, thumbnails
from helpers.metrics.quality import compare
from helpers.models.cgan import CGAN, CGANSettings, draw, load_cgan, train_cgan
from helpers.models.losses import separation
from helpers.models.networks import Generator, inside
from helpers.models.pix2pix import Pix2PixSettings, load_pix2pix, train_pix2pix
from helpers.models.training import Batch, Run, train

WHOLE, FLOOR = "whole recipe", "photographs"
# An arm is the whole recipe without one thing, or with one more: a setting, or what `Without` leaves out.
SETTINGS = {
    "no augmentation": {"colour": 0.0, "shift": 0.0},
    "no hand-style lines": {"hand": 0.0},
    "no pretrained eyes": {"projected": False},
    "no adversary": {"adversary": 0.0, "matching": 0.0, "projected": False},
    "no R1": {"penalty": 0.0},
    "no matched features": {"matching": 0.0},
    "no difference to photographs": {"rebuild": 0.0},
    "no texture": {"texture": 0.0},
    "no prior": {"prior": 0.0},
    "no pairs": {"paired": False},
    "in all eight positions": {"turned": True},
}


@dataclass(frozen=True)
class AblationPlan:
    """Sizes of the experiment; every arm sees `run.steps` times `run.batch` pictures."""

    generator: CGANSettings
    run: Run
    judged: int  # drawings, of sketches of val
    shares: tuple[float, ...]  # of the training images, where their number is asked about
    seeds: tuple[int, ...]


def ablation_plan(cfg: SimpleNamespace, store: Store) -> AblationPlan:
    """From `get_config("ablation")`."""
    return AblationPlan(
        generator=CGANSettings(cfg.size, tuple(store.classes), store.settings.style, cfg.width, projected=True),
        run=Run(cfg.steps, cfg.batch),
        judged=cfg.judged,
        shares=cfg.shares,
        seeds=cfg.seeds,
    )


class Without(CGAN):
    """The generator is not told the label, or gets no noise numbers; the discriminator still knows the label."""

    def __init__(self, settings: CGANSettings, label: bool = True, noise: bool = True):
        super().__init__(settings)
        self.label, self.noise = label, noise

    def paint(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
        labels = batch["labels"] if self.label else torch.zeros_like(batch["labels"])
        return self.networks["generator"](batch["sketches"], labels, noise if self.noise else torch.zeros_like(noise))


class Exam:
    """What every generator is asked, by `judge`: to draw these val sketches under their labels, as photographed and as
    redrawn by hand, and some of them under several noises."""

    def __init__(self, store: Store, judge: Judge, most: int, cache: Path):
        """Raises `DataError` for a val split with fewer than 10 sketches."""
        rows = np.random.default_rng(0).permutation(store.rows("val", needs=["sketch", "label"]))[:most]
        if len(rows) < 10:
            raise DataError(f"{store.name} has {len(rows)} val pictures with sketch and label: too few to judge by")
        self.store, self.judge, self.cache, self.rows = store, judge, cache, rows
        self.images, self.sketches, self.labels = (
            np.array(a[rows]) for a in (store.images, store.sketches, store.labels)
        )
        rng = np.random.default_rng(1)
        self.by_hand = np.stack([hand(sketch, rng) for sketch in self.sketches])
        self.real = self.features(self.images, cache)
        train = store.rows("train", needs=["label"])
        train = rng.permutation(train)
        known = np.concatenate([train[store.labels[train] == k][:300] for k in range(len(store.classes))])
        self.names = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, class_weight="balanced"))
        self.names.fit(self.features(np.array(store.images[known]), cache).values, store.labels[known])

    def features(self, images: np.ndarray, cache: Path | None = None) -> Features:
        return features(pictures_of(images), self.judge, self.store.settings.size, cache)

    def floor(self, seed: int) -> pd.DataFrame:
        """What photographs reach: as many of the training split where images are compared, else those of val."""
        train = self.store.rows("train", needs=["label"])
        chosen = np.random.default_rng(seed).choice(train, min(len(train), len(self.rows)), replace=False)
        found = compare(self.features(np.array(self.store.images[chosen]), self.cache), self.real)
        return pd.DataFrame([found | self.obeyed(self.images, self.real, self.images) | {"spread": 1.0}])

    def of(self, generator: Generator, batch: int = 32, noises: int = 8) -> pd.DataFrame:
        """One row: `n kid kid_low kid_high fd precision recall` against the photographs; `named`, `along`, `by_hand`,
        see `obeyed`; `spread`: how far apart the drawings of a sketch under several noises are, as a share of the
        distance of photographs, mean over up to 20 sketches."""
        drawn, redrawn = (draw(generator, s, self.labels, 0, batch=batch) for s in (self.sketches, self.by_hand))
        some = range(min(20, len(self.rows)))
        same = [draw(generator, self.sketches[[k] * noises], self.labels[[k] * noises], k, batch=batch) for k in some]
        apart = np.mean([spread(self.features(images).values) for images in same]) / spread(self.real.values)
        found = self.features(drawn)
        return pd.DataFrame([compare(found, self.real) | self.obeyed(drawn, found, redrawn) | {"spread": apart}])

    def obeyed(self, drawn: np.ndarray, seen: Features, redrawn: np.ndarray) -> dict[str, float]:
        """`named`: balanced accuracy of a logistic regression, taught by features of training photographs, in naming
        the label; `along`: how much of the variance of colours the sketch's outline explains (see `separation`);
        `by_hand`: the same of drawings of hand-drawn lines."""
        right = self.names.predict(seen.values) == self.labels
        named = float(np.mean([right[self.labels == k].mean() for k in np.unique(self.labels)]))
        return {
            "named": named,
            "along": clearness(drawn, self.sketches),
            "by_hand": clearness(redrawn, self.by_hand),
        }


def clearness(images: np.ndarray, sketches: np.ndarray) -> float:
    """Mean `separation` of images `uint8 (N, S, S, 3)` along sketches `(N, S, S)`, at 32 pixels."""
    batch = to_tensors({"images": images, "sketches": sketches})
    small = images.shape[1] // 32
    region = inside(F.max_pool2d(batch["sketches"], small))
    return float(separation(F.avg_pool2d(batch["images"], small), region).mean())


def ablation_experiment(
    store: Store, plan: AblationPlan, judge: Judge, out: str | Path, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Photographs, the whole recipe, the same with one ingredient changed at a time, and pix2pix, or of these arms
    `only` some: a row per arm and seed, see `Exam.of`. Raises `ValueError` for an arm that does not exist, `DataError`
    when the val split has too few sketches."""
    exam = Exam(store, judge, plan.judged, Path(out) / "features")

    def arm(label: bool = True, noise: bool = True, balanced: bool = True, average: bool = True, **changed) -> Arm:
        settings = replace(plan.generator, **changed)

        def cell(share: float, seed: int, work: Path) -> pd.DataFrame:
            start, run = time.perf_counter(), replace(plan.run, seed=seed)
            run = run if average else replace(run, average_over=0)
            torch.manual_seed(seed)
            if label and noise and balanced:
                train_cgan(store, settings, work, run)
            else:
                batches = balanced_batches(store, run.batch, seed, None, Drawings(settings.hand), balanced)
                train(Without(settings, label, noise), batches, work, run)
            seconds = time.perf_counter() - start
            generator = generator_of(work / "checkpoint.pt", label, noise)
            return exam.of(generator).assign(seconds=round(seconds), updates=run.steps)

        return cell

    def pix2pix(share: float, seed: int, work: Path) -> pd.DataFrame:
        start, together = time.perf_counter(), plan.run.batch
        settings = Pix2PixSettings(plan.generator.size, plan.generator.classes)
        run = replace(plan.run, steps=plan.run.steps * together, batch=1, average_over=0, seed=seed)
        train_pix2pix(store, settings, work, replace(run, save_every=plan.run.save_every * together))
        seconds = time.perf_counter() - start
        found = exam.of(load_pix2pix(work / "checkpoint.pt"), batch=1)
        return found.assign(seconds=round(seconds), updates=run.steps)

    def floor(share: float, seed: int, work: Path) -> pd.DataFrame:
        return exam.floor(seed).assign(seconds=0, updates=0)

    arms = {FLOOR: floor, WHOLE: arm()} | {name: arm(**changed) for name, changed in SETTINGS.items()}
    arms |= {
        "no averaged weights": arm(average=False),
        "label unknown to the generator": arm(label=False),
        "no noise numbers": arm(noise=False),
        "classes as they come": arm(balanced=False),
        "pix2pix": pix2pix,
    }
    return run_cells(arms, [1.0], plan.seeds, out, facts("ablation", plan, exam), only)


def small_data_experiment(store: Store, plan: AblationPlan, judge: Judge, out: str | Path) -> pd.DataFrame:
    """The whole recipe on shares of the training images (whole lesions, of every class as large a share, others for
    every seed), each on equally many pictures; a row per share and seed, see `Exam.of`, with the number of
    `photographs` and which share of the drawings is nearer to one of them than the nearest 1 % of val photographs:
    `copies`, by the judge's features, and `copied_pixels`.

    Raises `ValueError` for shares outside (0, 1], `DataError` where masks or labels are missing.
    """
    if out_of_range := [share for share in plan.shares if not 0 < share <= 1]:
        raise ValueError(f"shares {out_of_range} of the training images are not in (0, 1]")
    exam = Exam(store, judge, plan.judged, Path(out) / "features")

    def cell(share: float, seed: int, work: Path) -> pd.DataFrame:
        start, taught = time.perf_counter(), share_of_rows(store, share, seed)
        train_cgan(store, plan.generator, work, replace(plan.run, seed=seed), taught)
        seconds = time.perf_counter() - start
        generator, _ = load_cgan(work / "checkpoint.pt")
        drawn = draw(generator, exam.sketches, exam.labels, seed=0)
        sets = [drawn, np.array(store.images[taught]), exam.images]
        by_judge = memorisation(*(exam.features(images).values for images in sets))
        by_pixels = memorisation(*(thumbnails(images) for images in sets))
        found = exam.of(generator).assign(seconds=round(seconds), updates=plan.run.steps, photographs=len(taught))
        return found.assign(copies=by_judge.copies, copied_pixels=by_pixels.copies)

    return run_cells({WHOLE: cell}, plan.shares, plan.seeds, out, facts("small data", plan, exam))


def facts(question: str, plan: AblationPlan, exam: Exam) -> dict:
    """What decides the results."""
    decides = {name: value for name, value in asdict(plan).items() if name not in ("shares", "seeds")}
    return decides | {"question": question, "data": exam.store.folder.name, "judge": exam.judge.name}


def generator_of(checkpoint: Path, label: bool = True, noise: bool = True) -> Generator:
    """The averaged generator of a checkpoint, as blind to labels and noise numbers as it was in training."""
    generator, _ = load_cgan(checkpoint)
    if not label:
        generator.label.weight.copy_(generator.label.weight[:1].expand_as(generator.label.weight))
    if not noise:
        generator.centre.zero_()
        generator.covariance.zero_()
    return generator


def in_table(results: pd.DataFrame) -> pd.DataFrame:
    """A row per arm and share: mean of every measure over the seeds; of KID, every seed, and by how much each is above
    that of the whole recipe with the same seed. Two seeds show which differences are large, they prove none."""
    by = ["arm", "share"]
    measures = [m for m in results if m not in (*by, "seed", "kid_low", "kid_high", "n_real")]
    kid = results.pivot_table(index=by, columns="seed", values="kid", sort=False)
    table = results.groupby(by, sort=False)[measures].mean().join(kid.add_prefix("kid, seed "))
    whole = results[results["arm"] == WHOLE].groupby("seed")["kid"].last()  # of the largest share
    return table.join((kid - whole).add_prefix("above the whole, seed "))
