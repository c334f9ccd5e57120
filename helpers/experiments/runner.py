"""Resumable grid of training runs (arms x fractions of the data x seeds), and tables with intervals and verdicts.

Every run leaves one CSV file, so that a killed experiment continues with the first run that is missing.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from helpers.colab import keep
from helpers.config import display_path
from helpers.data.files import DataError, atomic_file
from helpers.data.store import Store, fit_config
from helpers.data.tables import read_own_table, write_csv
from helpers.experiments.results import with_interval
from helpers.metrics.stats import bootstrap_with_original, ci_over_seeds, verdict
from helpers.models.checkpoint import read_checkpoint

Arm = Callable[[float, int, Path], pd.DataFrame]  # (fraction of the data, seed, work folder) -> results, row by row
# A column of the results, averaged over images, or a function: (rows of one run, weights (R, N)) -> (R,).
Measure = str | Callable[[pd.DataFrame, np.ndarray], np.ndarray]
# Settings that something else decides, `no_effect` of an experiment: neither options nor to be changed.
SEED_DECIDED = {"train.seed": "--seeds decides"}
ARMS_DECIDED = SEED_DECIDED | {
    "classifier.balance": "the arms decide",
    "classifier.lesion_only": "all arms see whole images",
}
WITHOUT_COLLAPSED = ", without collapsed runs"


def run_grid(
    arms: dict[str, Arm],
    fractions: Sequence[float],
    seeds: Sequence[int],
    out: str | Path,
    fingerprint: dict,
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Run every arm, or those named in `only`, at every fraction and seed that has no file in `out` yet.

    Returns the results of all of these runs as one table: `arm fraction seed`, then the columns of the arms:
    `image_id group seconds` and measures. `fingerprint` holds everything else that decides the results, see
    `fingerprint_of`. Work folders of finished runs are deleted.

    Raises `ValueError` if `out` holds results with another fingerprint, or for an unknown arm.
    """
    if unknown := [name for name in only or () if name not in arms]:
        raise ValueError(f"arm must be one of {', '.join(arms)}; got {unknown[0]!r}")
    out, tables = Path(out), []
    arms = {name: arm for name, arm in arms.items() if not only or name in only}
    _check_same_experiment(out, json.loads(json.dumps(fingerprint)))
    runs = tqdm(list(product(dict.fromkeys(fractions), arms, dict.fromkeys(seeds))), desc=out.name, unit="runs")
    for fraction, arm, seed in runs:
        name = run_name(arm, fraction, seed)
        file, work = out / f"{name}.csv", out / f"work-{name}"
        if not file.is_file():
            runs.set_postfix_str(f"{arm}, {fraction:.0%}, seed {seed}")
            table = arms[arm](fraction, seed, work)
            for position, (column, value) in enumerate({"arm": arm, "fraction": fraction, "seed": seed}.items()):
                table.insert(position, column, value)
            write_csv(table, file, index=False)
            keep(file)
        shutil.rmtree(work, ignore_errors=True)
        tables.append(read_own_table(file))
    return pd.concat(tables, ignore_index=True)


def run_name(arm: str, fraction: float, seed: int) -> str:
    """Name of a run's files."""
    return f"{arm.replace(' ', '_')}-{fraction:g}-{seed}"


def _check_same_experiment(out: Path, fingerprint: dict) -> None:
    file = out / "plan.json"
    if not file.is_file() or not any(out.glob("*-*-*.csv")):  # without results the settings may still change
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(fingerprint, indent=1), encoding="utf-8")
        keep(file)
    saved = json.loads(file.read_text(encoding="utf-8"))
    differing = [f"{k} is {saved.get(k)!r} there, {v!r} here" for k, v in fingerprint.items() if saved.get(k) != v]
    if differing:
        message = f"{display_path(out)} holds another experiment ({'; '.join(differing)})"
        raise ValueError(f"{message}: choose another folder or delete it")


def fit_configs(experiment: Any, store: Store) -> Any:
    """An experiment's settings with classes and sketch style of the store in every method's config. Raises
    `ValueError` if a config does not fit the store, or for an option without effect, see `check_options`."""
    check_options(experiment)
    configs = {name: fit_config(value, store) for name, value in vars(experiment).items() if hasattr(value, "size")}
    return replace(experiment, **configs)


def check_options(experiment: Any) -> None:
    """Raise `ValueError` for settings in the experiment's `no_effect` that differ from their defaults."""
    for name, reason in experiment.no_effect.items():
        part, field = name.split(".")
        config = getattr(experiment, part)
        if getattr(config, field) != getattr(type(config), field):
            raise ValueError(f"{option_of(name)} has no effect here: {reason}")


def option_of(name: str) -> str:
    """The option of a field of an experiment's config, such as "train.batch_size"."""
    return f"--{name.replace('_', '-')}"


def fingerprint_of(experiment: Any, **context: str | None) -> dict:
    """What decides an experiment's results: all fields of its dataclass except those that only add runs, and
    `context`."""
    grid = ("fractions", "seeds", "real_per_synthetic")
    return {name: value for name, value in asdict(experiment).items() if name not in grid} | context


def training_seconds(*checkpoints: Path) -> float:
    """Seconds of the trainings that wrote these checkpoints, of all processes that continued them."""
    return round(sum(read_checkpoint(checkpoint)["seconds"] for checkpoint in checkpoints), 1)


def training_facts(checkpoint: Path, network: nn.Module) -> dict:
    """What a training cost: `parameters` of the network, `steps` up to the last checkpoint, `images_per_second` without
    validation, and `seconds` with it, of all processes that continued it."""
    saved = read_checkpoint(checkpoint)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": saved["step"],
        "images_per_second": saved["step"] * saved["train_config"]["batch_size"]
        / (saved["seconds"] - saved.get("validation_seconds", 0.0)),
        "seconds": saved["seconds"],
    }  # fmt: skip


def to_wide(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Table of networks for reading, a row per network, from `rows` with a row per network and measure: `keys`, `init`,
    `value n low high` and `training_facts`."""
    table = []
    for key, part in rows.groupby(list(keys), sort=False):
        first = part.iloc[0]
        row = dict(zip(keys, key, strict=True)) | {
            "init": first["init"],
            "parameters": f"{first['parameters'] / 1e6:.2f} M",
        }
        row |= {"steps": int(first["steps"]), "seconds": round(first["seconds"])}
        row |= {"images/s": f"{first['images_per_second']:.1f}"}
        values = zip(part["measure"], part["value"], part["low"], part["high"], strict=True)
        row |= {name.replace("_", " "): with_interval(*numbers) for name, *numbers in values}
        table.append(row | {"N": int(first["n"])})
    return pd.DataFrame(table).set_index(list(keys))


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise `ValueError` for fractions of the training images outside (0, 1]."""
    if out_of_range := [fraction for fraction in fractions if not 0 < fraction <= 1]:
        raise ValueError(f"fractions of the training images must be in (0, 1], got {out_of_range}")


def check_rows(store: Store, test_rows: np.ndarray, split: str) -> None:
    """Raise `DataError` if the store has no complete training images, or `test_rows (N,)` of `split` are empty."""
    num_train = len(fraction_of_rows(store, 1.0))
    if not num_train or not len(test_rows):
        raise DataError(f"{store.name} needs training images with sketch and label, and images to test on in {split}; "
                        f"got {num_train} and {len(test_rows)}")  # fmt: skip


def estimates(results: pd.DataFrame, fraction: float, arm: str, measure: Measure) -> tuple[np.ndarray, int]:
    """Bootstrap estimates `(S, 1 + R)` of one arm at one fraction, and the number of images.

    One row per seed: the measure on all images, then on R resamples of them. Images of one `group`, such as a lesion,
    are resampled together. Every arm gets the same resamples, so differences between arms are paired.
    """
    runs = results[(results["fraction"] == fraction) & (results["arm"] == arm)].sort_values("image_id")
    by_seed = [run for _, run in runs.groupby("seed")]
    weights = bootstrap_with_original(len(by_seed[0]), by_seed[0]["group"])
    if isinstance(measure, str):
        values = [weights @ run[measure].to_numpy() / weights.sum(axis=1) for run in by_seed]
    else:
        values = [measure(run, weights) for run in by_seed]
    return np.stack(values), len(by_seed[0])


def with_and_without_collapsed(seeds: Sequence[int], collapsed: set[int]) -> dict[str, list[int]]:
    """Seeds to average over, by the suffix of the arm's name: all; and the others, if some runs collapsed (see
    `prediction_tables.is_collapsed`) and some did not."""
    others = [seed for seed in seeds if seed not in collapsed]
    return {"": list(seeds)} | ({WITHOUT_COLLAPSED: others} if 0 < len(others) < len(seeds) else {})


def collapsed_seeds(runs: pd.DataFrame) -> set[int]:
    """Seeds of the collapsed runs, by the column `collapsed`; none without it."""
    return set(runs.loc[runs["collapsed"].astype(bool), "seed"]) if "collapsed" in runs else set()


def summary(results: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """One row per fraction and arm: N, number of seeds, the measure's mean over seeds with its 95 % interval (see
    `ci_over_seeds`), clipped to [0, 1], where all measures lie, its values at the worst and the best seed, and seconds
    of training.

    If runs collapsed, `collapsed` counts them, and a second row of the arm leaves them out.
    """
    rows, name = [], metric_name(measure)
    for (fraction, arm), runs in results.groupby(["fraction", "arm"], sort=False):
        collapsed = collapsed_seeds(runs)
        for suffix, seeds in with_and_without_collapsed(runs["seed"].unique(), collapsed).items():
            part = runs[runs["seed"].isin(seeds)]
            values, count = estimates(part, fraction, arm, measure)
            by_seed, (low, high) = values[:, 0], np.clip(ci_over_seeds(values), 0, 1)
            row = {"fraction": fraction, "arm": arm + suffix, "N": count, "seeds": len(by_seed), name: by_seed.mean()}
            row |= {"from": low, "to": high, "worst seed": by_seed.min(), "best seed": by_seed.max()}
            row |= {"seconds": part["seconds"].mean()}
            rows.append(row | ({"collapsed": len(collapsed.intersection(seeds))} if "collapsed" in runs else {}))
    return pd.DataFrame(rows).set_index(["fraction", "arm"])


def comparisons(results: pd.DataFrame, measure: Measure, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences between arms on the same images and with the same seeds, with 95 % interval, clipped to
    [-1, 1], and verdict: a row per fraction and pair; a second one without the seeds where one of both collapsed.

    Pairs with an arm that is not in `results` are skipped. With one seed there is no verdict, because the variance of
    training is unknown. Raises `ValueError` if the runs differ in their initial weights (column `init`).
    """
    if "init" in results and len(inits := results["init"].unique()) > 1:
        raise ValueError(f"runs must have the same initial weights to be compared, got {' and '.join(inits)}")
    rows = []
    for fraction, (arm, reference) in product(results["fraction"].unique(), pairs):
        both = [results[(results["fraction"] == fraction) & (results["arm"] == name)] for name in (arm, reference)]
        shared = [seed for seed in both[0]["seed"].unique() if seed in set(both[1]["seed"])]
        collapsed = [collapsed_seeds(runs).intersection(shared) for runs in both]
        for suffix, seeds in with_and_without_collapsed(shared, set.union(*collapsed)).items() if shared else ():
            parts = [runs[runs["seed"].isin(seeds)] for runs in both]
            row = {"fraction": fraction, "arm": arm + suffix, "against": reference}
            row |= _compare(
                estimates(parts[0], fraction, arm, measure), estimates(parts[1], fraction, reference, measure)
            )
            rows.append(row | {"collapsed": sum(len(bad.intersection(seeds)) for bad in collapsed)})
    columns = ["fraction", "arm", "against", "difference", "from", "to", "verdict", "N", "seeds"]
    columns += ["collapsed"] * ("collapsed" in results)
    return pd.DataFrame(rows, columns=columns).set_index(columns[:3])


def _compare(values: tuple[np.ndarray, int], reference: tuple[np.ndarray, int]) -> dict:
    """Mean difference of two `estimates` with interval, verdict, N and number of seeds."""
    difference = values[0] - reference[0]
    low, high = np.clip(ci_over_seeds(difference), -1, 1)
    result = verdict(low, high) if len(difference) > 1 else "one seed, no verdict"
    return {"difference": difference[:, 0].mean(), "from": low, "to": high, "verdict": result,
            "N": values[1], "seeds": len(difference)}  # fmt: skip


def metric_name(measure: Measure) -> str:
    """Name of a measure in tables: the column, or the function's name with spaces."""
    return measure if isinstance(measure, str) else measure.__name__.replace("_", " ")


def to_sentences(table: pd.DataFrame, measure: Measure) -> list[str]:
    """One sentence for every row of a table of `comparisons`."""
    name = metric_name(measure)
    return [
        f"{fraction:.0%} of the training images, {arm} against {reference}: {row['verdict']} ({row['difference']:+.3f} "
        f"{name}, {row['from']:+.3f} to {row['to']:+.3f}, N {row['N']}, {row['seeds']} seeds"
        + (f", {row['collapsed']} collapsed runs included)" if row.get("collapsed") else ")")
        for (fraction, arm, reference), row in table.iterrows()
    ]


def fraction_of_rows(store: Store, fraction: float, seed: int = 0) -> np.ndarray:
    """Training rows with label and sketch, and with a mask unless the store has none, `(N,)`: this fraction of every
    class's lesions, at least one each.

    Lesions stay whole, so that two images of one do not count as two. With the same seed a larger fraction contains a
    smaller one.
    """
    rows = store.rows("train", needs=["label", "sketch", *["mask"] * bool(store.has_mask.any())])
    lesions = store.lesions[rows]
    rng, chosen = np.random.default_rng(seed), []
    for label in np.unique(store.labels[rows]):
        shuffled = rng.permutation(np.unique(lesions[store.labels[rows] == label]))
        chosen += list(shuffled[: max(1, round(fraction * len(shuffled)))])
    return rows[np.isin(lesions, chosen)]
