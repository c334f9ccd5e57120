"""Do drawn images help a classifier? Arms, scores on real images, and what another data set says."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.special import softmax

from helpers.data.files import DataError
from helpers.data.store import Part, Store
from helpers.experiments.cells import Arm, run_cells, share_of_rows
from helpers.experiments.synthetic import drawn_images
from helpers.metrics import diagnosis
from helpers.models.cgan import CGANSettings, train_cgan
from helpers.models.classifier import (
    Classifier,
    ClassifierSettings,
    classify,
    load_classifier,
    logits_of,
    named,
    train_on_labelled,
)
from helpers.models.training import Run

# ------------------------------------------------------------------------------------------------------------ scoring


def diagnose(classifier: Classifier, store: Store, rows: np.ndarray) -> pd.DataFrame:
    """Calibrated probabilities of these rows of a store: `image_id group label`, then `p_<class>` each. `group` is the
    lesion. Raises `DataError` when the classifier knows other classes, when it was trained on one of these images or
    lesions, or when one has no label."""
    if tuple(classifier.classes) != tuple(store.classes):
        there = " ".join(store.classes)
        raise DataError(f"the classifier knows {' '.join(classifier.classes)}, {store.name} has {there}")
    refuse_known(classifier, store, rows)
    refuse_unlabelled(store, rows)
    return _as_table(store, rows, store.labels[rows], classify(classifier, store.images[rows]), store.classes)


def diagnose_elsewhere(
    classifier: Classifier, store: Store, rows: np.ndarray, same: dict[str, str] | None = None
) -> pd.DataFrame:
    """The same on a set with other classes, for those that both know: probabilities add up to 1 over them, pictures of
    other classes are left out. `same` renames the store's classes, such as {"SK": "BKL"}.

    Raises `DataError` when they share fewer than two classes.
    """
    refuse_known(classifier, store, rows)
    refuse_unlabelled(store, rows)
    names = [(same or {}).get(name, name) for name in store.classes]
    shared = [name for name in classifier.classes if name in names]
    if len(shared) < 2:
        raise DataError(f"the classifier knows {' '.join(classifier.classes)}, {store.name} has {' '.join(names)}")
    label = np.array([shared.index(name) if name in shared else -1 for name in names])[store.labels[rows]]
    rows, label = rows[label >= 0], label[label >= 0]
    logits = logits_of(classifier, store.images[rows])[:, [classifier.classes.index(name) for name in shared]]
    return _as_table(store, rows, label, softmax(logits / classifier.temperature, axis=1), shared)


def _as_table(store: Store, rows: np.ndarray, labels: np.ndarray, p: np.ndarray, classes: Sequence[str]):
    table = store.table.iloc[rows]
    about = {"image_id": table["image_id"], "group": table["lesion_id"].fillna(table["image_id"]), "label": labels}
    return pd.DataFrame({**about, **{f"p_{name}": p[:, k] for k, name in enumerate(classes)}}).reset_index(drop=True)


def refuse_known(classifier: Classifier, store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` with the names of images or lesions that the classifier was trained on."""
    if known := sorted(set(named(store.table.iloc[rows])) & set(classifier.trained_on)):
        names = ", ".join(known[:5])
        raise DataError(f"{len(known)} images or lesions to be tested on were trained on ({names}): not a test")


def refuse_unlabelled(store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` when there is nothing to test on, or no label to compare with."""
    if not len(rows) or (store.labels[rows] < 0).any():
        raise DataError(
            f"{store.name}: {len(rows)} pictures, {int((store.labels[rows] < 0).sum())} of them without label"
        )


def probabilities(table: pd.DataFrame) -> np.ndarray:
    """`(N, K)` of a table of `diagnose`."""
    return table.filter(regex="^p_").to_numpy()


def balanced_accuracy(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    return diagnosis.balanced_accuracy(probabilities(table), table["label"].to_numpy(), weights)


def auc(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    return diagnosis.auc(probabilities(table), table["label"].to_numpy(), weights)


def average_precision(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    return diagnosis.average_precision(probabilities(table), table["label"].to_numpy(), weights)


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `diagnose` as measures with intervals (lesions resampled whole), below them what always naming the
    commonest class would reach."""
    p, labels = probabilities(table), table["label"].to_numpy()
    measures = [diagnosis.balanced_accuracy, diagnosis.accuracy, diagnosis.auc, diagnosis.average_precision]
    found = diagnosis.with_intervals(measures, p, labels, table["group"])
    names = {f"recall {k}": f"recall {name}" for k, name in enumerate(classes_of(table))}
    majority = np.zeros_like(p)
    majority[:, np.bincount(labels).argmax()] = 1
    one = np.ones((1, len(labels)))
    return found.rename(index=names).assign(
        majority=[*(measure(majority, labels, one).item() for measure in measures), *[np.nan] * (len(found) - 4)]
    )


def recalls_by_arm(results: pd.DataFrame) -> pd.DataFrame:
    """Recall of every class, mean over seeds, a row per share and arm, above them how many images there are (N) and
    what always naming the commonest class would reach."""
    classes = classes_of(results)
    one = results[results["seed"] == results["seed"].iloc[0]].drop_duplicates("image_id")
    counts = np.bincount(one["label"], minlength=len(classes))
    rows = {("", "N"): counts, ("", "majority"): (counts == counts.max()).astype(float)}
    for (share, arm), cell in results.groupby(["share", "arm"], sort=False):
        drawn = np.ones((1, len(cell)))
        rows[f"{share:.0%}", arm] = diagnosis.recalls(probabilities(cell), cell["label"].to_numpy(), drawn)[0]
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["share", "arm"]), classes)


def classes_of(table: pd.DataFrame) -> list[str]:
    return [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]


# --------------------------------------------------------------------------------------------------------- experiment


@dataclass(frozen=True)
class DiagnosisPlan:
    """Sizes of the experiment; all arms take the same number of optimiser steps."""

    classifier: ClassifierSettings
    generator: CGANSettings
    run: Run
    draw_run: Run  # of the generator
    drawn: int
    shares: tuple[float, ...]  # of the real training images
    seeds: tuple[int, ...]


def diagnosis_plan(cfg: SimpleNamespace, store: Store) -> DiagnosisPlan:
    """From `get_config("synthetic")` or `("diagnosis")`."""
    classes = tuple(store.classes)
    return DiagnosisPlan(
        classifier=ClassifierSettings(cfg.size, classes, cfg.network),
        generator=CGANSettings(cfg.size, classes, store.settings.style, cfg.width, projected=cfg.projected),
        run=Run(cfg.steps, cfg.batch),
        draw_run=Run(cfg.draw_steps, cfg.draw_batch),
        drawn=cfg.drawn,
        shares=cfg.shares,
        seeds=cfg.seeds,
    )


COMPARED = [
    ("real + augmentation", "real"),
    ("weighted", "real + augmentation"),
    ("real + drawn", "real"),
    ("drawn only", "real"),
    ("real + drawn + augmentation", "real + augmentation"),
]


def diagnosis_experiment(
    store: Store, plan: DiagnosisPlan, out: str | Path, split: str = "test", only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Real images, every class equally often; with classical augmentation; augmented, drawn as they come and weighted
    in the loss instead; with as many drawn images, without and with augmentation; drawn images alone; or of these arms
    `only` some.

    Of each share of the training images, the generator too sees no others. Share and generator are the same for all
    seeds, which decide the drawings, the first weights and the batches. Scored, once, on the real images of `split`.
    Raises `DataError` where labels are missing, `ValueError` for shares outside (0, 1]
    and for an arm that does not exist.
    """
    out, measured = Path(out), store.rows(split, needs=["label"])
    if out_of_range := [share for share in plan.shares if not 0 < share <= 1]:
        raise ValueError(f"shares {out_of_range} of the training images are not in (0, 1]")
    if not len(measured) or not len(share_of_rows(store, 1.0)):
        raise DataError(f"{store.name} lacks masks or labels in train or {split}: nothing to compare classifiers on")

    @lru_cache(maxsize=len(plan.seeds))  # arms of one share use the same
    def drawn(share: float, seed: int) -> Part:
        rows, folder = share_of_rows(store, share), out / f"generator-{share:g}"
        train_cgan(store, plan.generator, folder, plan.draw_run, rows)
        return drawn_images(folder / "checkpoint.pt", store, rows, plan.drawn, seed, balanced=True)

    def arm(real: bool, augmented: bool, synthetic: bool, balance: str = "sampling") -> Arm:
        def cell(share: float, seed: int, work: Path) -> pd.DataFrame:
            rows = share_of_rows(store, share)
            parts = [Part(store.images, rows, labels=store.labels)] if real else []
            parts += [drawn(share, seed)] if synthetic else []
            settings = plan.classifier if augmented else replace(plan.classifier, colour=0.0, shift=0.0, zoom=0.0)
            settings, start = replace(settings, balance=balance), time.perf_counter()
            train_on_labelled(parts, settings, work, replace(plan.run, seed=seed), named(store.table.iloc[rows]))
            seconds = time.perf_counter() - start
            classifier, _ = load_classifier(work / "checkpoint.pt")
            table = diagnose(classifier, store, measured)
            return table.assign(start=classifier.backbone.start, seconds=round(seconds, 1))

        return cell

    arms = {
        "real": arm(True, False, False),
        "real + augmentation": arm(True, True, False),
        "weighted": arm(True, True, False, "loss"),
        "real + drawn": arm(True, False, True),
        "real + drawn + augmentation": arm(True, True, True),
        "drawn only": arm(False, False, True),
    }
    facts = asdict(plan) | {"split": split, "data": store.folder.name}
    decides = {name: value for name, value in facts.items() if name not in ("shares", "seeds")}
    return run_cells(arms, plan.shares, plan.seeds, out, decides, only)
