"""Rare classes: weighted, seen more often, or filled up with images that nobody photographed. What gains recall?

Rare classes have so few lesions that a test split of a tenth says nothing about them. So five folds, split by lesion,
take turns: every lesion is tested once, by a classifier (and generators) that never saw it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from helpers.data.files import DataError
from helpers.data.store import Part, Store
from helpers.experiments.cells import Arm, run_cells
from helpers.experiments.diagnosis import diagnose, probabilities
from helpers.experiments.synthetic import blended_images, drawn_images, noise_images, small_lesions
from helpers.metrics.diagnosis import recalls
from helpers.models.cgan import CGANSettings, train_cgan
from helpers.models.classifier import ClassifierSettings, load_classifier, named, train_on_labelled
from helpers.models.dcgan import DCGANSettings, train_dcgan
from helpers.models.training import Run

RARE = 0.05  # of all labelled images, at most


def rare_classes(store: Store) -> list[str]:
    """Classes with at most a twentieth of the labelled images; the rarest alone where none is so rare."""
    counts = np.bincount(store.labels[store.rows(needs=["label"])], minlength=len(store.classes))
    rare = [name for name, count in zip(store.classes, counts, strict=True) if 0 < count <= RARE * counts.sum()]
    return rare or [store.classes[int(np.where(counts > 0, counts, counts.max()).argmin())]]


def lesion_folds(store: Store, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of each fold, from all splits together: whole lesions, classes in equal shares. Raises
    `DataError` when a class has fewer lesions than there are folds."""
    rows = store.rows(needs=["label"])
    labels, lesions = store.labels[rows], store.table["lesion_id"].fillna(store.table["image_id"]).to_numpy(str)[rows]
    few = [name for k, name in enumerate(store.classes) if 0 < len(set(lesions[labels == k])) < count]
    if few:
        raise DataError(f"{', '.join(few)}: fewer lesions than the {count} folds, so some fold would have none")
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=0).split(rows, labels, lesions)
    return [(rows[train], rows[test]) for train, test in folds]


@dataclass(frozen=True)
class BalancingPlan:
    """Sizes of the experiment; all arms take the same number of optimiser steps."""

    classifier: ClassifierSettings
    cgan: CGANSettings
    dcgan: DCGANSettings
    run: Run
    draw_run: Run  # of the CGAN
    noise_run: Run  # of the DCGAN
    made: int  # images, of all rare classes together, in each fold
    folds: int
    seeds: tuple[int, ...]
    often: tuple[int, ...] = (1,)  # how many real images of a rare class are seen for each made one; an arm for each


def balancing_plan(cfg: SimpleNamespace, store: Store) -> BalancingPlan:
    """From `get_config("balancing")` or `("folds")`."""
    classes = tuple(store.classes)
    return BalancingPlan(
        classifier=ClassifierSettings(cfg.size, classes, cfg.network),
        cgan=CGANSettings(cfg.size, classes, store.settings.style, cfg.width, projected=cfg.projected),
        dcgan=DCGANSettings(cfg.size, classes, cfg.width, projected=cfg.projected),
        run=Run(cfg.steps, cfg.batch),
        draw_run=Run(cfg.draw_steps, cfg.draw_batch),
        noise_run=Run(cfg.noise_steps, cfg.noise_batch),
        made=cfg.made,
        folds=cfg.folds,
        seeds=cfg.seeds,
        often=cfg.often,
    )


def made_arms(often: tuple[int, ...] = (1,)) -> dict[str, tuple[str, int]]:
    """Arms with images that nobody photographed: how they are made, and how many real ones are seen for each."""
    return {
        how if n == 1 else f"{how}, one in {n + 1}": (how, n) for n in often for how in ("DCGAN", "CGAN", "blended")
    }


def compared(best: str, often: tuple[int, ...] = (1,)) -> list[tuple[str, str]]:
    """What is compared: the usual remedies with none, images that nobody photographed with the better of these."""
    usual = [(arm, "as they are") for arm in ("class weights", "oversampled")]
    return usual + [(arm, best) for arm in made_arms(often)]


def better_remedy(summary: pd.DataFrame) -> str:
    """Class weights or oversampling, whichever has the higher measure in a `summary`; oversampling where neither was
    asked."""
    usual = summary.xs(summary.index[0][0])[lambda table: table.index.isin(["class weights", "oversampled"])]
    return str(usual.iloc[:, 2].idxmax()) if len(usual) else "oversampled"


def balancing_experiment(
    store: Store, plan: BalancingPlan, out: str | Path, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Images as they are; every class with equal weight; every class equally often; the same with half (or less, see
    `often`) of the rare classes' images drawn from noise, from deformed sketches, or blended onto other skin; or of
    these arms `only` some. All are augmented.

    Every fold trains its generators on its own training rows. Folds and generators are the same for all seeds. Raises
    `DataError` where masks or labels are missing, `ValueError` for an arm that does not exist.
    """
    out, folds = Path(out), lesion_folds(store, plan.folds)
    rare = [store.classes.index(name) for name in rare_classes(store)]
    with_mask = store.rows(needs=["mask", "label", "sketch"])
    if not np.isin(store.labels[with_mask], rare).any():
        raise DataError(f"{store.name} has no masks of its rare classes: nothing to draw or to blend them from")

    def made(how: str, fold: int, seed: int) -> Part:
        train, folder = folds[fold][0], out / f"fold-{fold}" / how
        outlined = np.intersect1d(train, with_mask)
        few = train if how == "DCGAN" else outlined
        few = few[np.isin(store.labels[few], rare)]
        if how == "DCGAN":
            train_dcgan(store, plan.dcgan, folder, plan.noise_run, train)
            return noise_images(folder / "checkpoint.pt", store, few, plan.made, seed)
        if how == "CGAN":
            train_cgan(store, plan.cgan, folder, plan.draw_run, outlined)
            return drawn_images(folder / "checkpoint.pt", store, few, plan.made, seed, balanced=True)
        return blended_images(store, few, plan.made, small_lesions(store, outlined), seed)

    def arm(balance: str, how: str | None = None, often: int = 1) -> Arm:
        def cell(share: float, seed: int, work: Path) -> pd.DataFrame:
            tables, seconds = [], 0.0
            for fold, (train, test) in enumerate(folds):
                parts = often * [Part(store.images, train, labels=store.labels)] + (
                    [made(how, fold, seed)] if how else []
                )
                settings, names = replace(plan.classifier, balance=balance), named(store.table.iloc[train])
                start = time.perf_counter()
                train_on_labelled(parts, settings, work / f"{fold}", replace(plan.run, seed=seed), names)
                seconds += time.perf_counter() - start
                classifier, _ = load_classifier(work / f"{fold}" / "checkpoint.pt")
                tables.append(diagnose(classifier, store, test).assign(fold=fold, start=classifier.backbone.start))
            return pd.concat(tables).assign(seconds=round(seconds, 1))

        return cell

    arms = {
        "as they are": arm("none"),
        "class weights": arm("loss"),
        "oversampled": arm("sampling"),
    } | {name: arm("sampling", how, often) for name, (how, often) in made_arms(plan.often).items()}
    facts = asdict(plan) | {"data": store.folder.name}
    decides = {name: value for name, value in facts.items() if name not in ("seeds", "often")}
    return run_cells(arms, [1.0], plan.seeds, out, decides, only)


def rare_recall(classes: list[str], rare: list[str]) -> Callable[[pd.DataFrame, np.ndarray], np.ndarray]:
    """A measure: mean recall of the `rare` classes, over all folds together."""
    chosen = [classes.index(name) for name in rare]

    def mean_recall_of_rare_classes(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        return recalls(probabilities(table), table["label"].to_numpy(), weights)[:, chosen].mean(axis=1)

    return mean_recall_of_rare_classes
