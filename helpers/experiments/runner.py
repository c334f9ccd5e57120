"""Arms x shares of the data x seeds: every cell is trained once and leaves a file, so that a killed experiment goes on
where it was; then tables with intervals and verdicts.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from helpers.config import display_path
from helpers.data.store import Store
from helpers.metrics.stats import bootstrap_with_original, ci_over_seeds, verdict

Arm = Callable[[float, int, Path], pd.DataFrame]  # share of the data, seed, folder to work in -> results per image
# A column of the results, of which the mean is taken, or a function: rows of one cell, (R, N) weights -> (R,).
Measure = str | Callable[[pd.DataFrame, np.ndarray], np.ndarray]


def run_grid(
    arms: dict[str, Arm],
    fractions: Sequence[float],
    seeds: Sequence[int],
    out: str | Path,
    fingerprint: dict,
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Every arm, or of them `only` some, at every share and seed whose file is not in `out` yet; returns all of them as
    one table: `arm share seed`, then what the arms measured: `image_id group seconds` and measures. Work of finished
    cells is deleted.

    `plan`: everything else that decides the results. Raises `ValueError` when `out` holds results of another plan, and
    for an arm that does not exist.
    """
    if unknown := [name for name in only or () if name not in arms]:
        raise ValueError(f"no arm {unknown[0]!r}: there are {', '.join(arms)}")
    out, tables = Path(out), []
    arms = {name: arm for name, arm in arms.items() if not only or name in only}
    _check_same_experiment(out, json.loads(json.dumps(fingerprint)))
    runs = tqdm(list(product(dict.fromkeys(fractions), arms, dict.fromkeys(seeds))), desc=out.name, unit="cells")
    for fraction, arm, seed in runs:
        name = f"{arm.replace(' ', '_')}-{fraction:g}-{seed}"
        file, work = out / f"{name}.csv", out / f"work-{name}"
        if not file.is_file():
            runs.set_postfix_str(f"{arm}, {fraction:.0%}, seed {seed}")
            table = arms[arm](fraction, seed, work)
            for place, (column, value) in enumerate({"arm": arm, "fraction": fraction, "seed": seed}.items()):
                table.insert(place, column, value)
            table.to_csv(file.with_suffix(".part"), index=False)
            os.replace(file.with_suffix(".part"), file)
        shutil.rmtree(work, ignore_errors=True)
        tables.append(pd.read_csv(file, dtype={"image_id": "string", "group": "string"}))
    return pd.concat(tables, ignore_index=True)


def _check_same_experiment(out: Path, fingerprint: dict) -> None:
    file = out / "plan.json"
    if not file.is_file() or not any(out.glob("*-*-*.csv")):  # a plan that never came to a result binds nobody
        out.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".part").write_text(json.dumps(fingerprint, indent=1))
        os.replace(file.with_suffix(".part"), file)
    saved = json.loads(file.read_text())
    if differing := [
        f"{k} {saved.get(k)!r} there, {fingerprint[k]!r} here" for k in fingerprint if saved.get(k) != fingerprint[k]
    ]:
        raise ValueError(
            f"{display_path(out)} holds another experiment ({'; '.join(differing)}): choose another folder, or delete that one"
        )


def estimates(results: pd.DataFrame, fraction: float, arm: str, measure: Measure) -> tuple[np.ndarray, int]:
    """Of one arm at one share: the measure of every seed, first of the images as they are, then of resamples of them,
    `(S, 1 + R)`; and the number of images. Images of one `group`, a lesion say, are drawn together."""
    cell = results[(results["fraction"] == fraction) & (results["arm"] == arm)].sort_values("image_id")
    seeds = [one for _, one in cell.groupby("seed")]
    drawn = bootstrap_with_original(
        len(seeds[0]), seeds[0]["group"]
    )  # the same images for every arm, which makes pairs of them
    if isinstance(measure, str):
        found = [drawn @ one[measure].to_numpy() / drawn.sum(axis=1) for one in seeds]
    else:
        found = [measure(one, drawn) for one in seeds]
    return np.stack(found), len(seeds[0])


def summary(results: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """One row per share and arm: the measure's mean over seeds with its interval (see `over_seeds`), the worst and the
    best seed, and seconds of training."""
    rows, name = [], metric_name(measure)
    for (fraction, arm), cell in results.groupby(["fraction", "arm"], sort=False):
        found, count = estimates(results, fraction, arm, measure)
        by_seed, (low, high) = found[:, 0], ci_over_seeds(found)
        row = {"fraction": fraction, "arm": arm, "N": count, "seeds": len(by_seed), name: by_seed.mean()}
        row |= {"from": low, "to": high, "worst seed": by_seed.min(), "best seed": by_seed.max()}
        rows.append(row | {"seconds": cell["seconds"].mean()})
    return pd.DataFrame(rows).set_index(["fraction", "arm"])


def comparisons(results: pd.DataFrame, measure: Measure, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences of one arm to another, on the same images, with interval and verdict, at every share; pairs of
    arms that were not asked are left out. With one seed there is no verdict: what chance does in training is not known.
    Raises `ValueError` when some networks started
    from ImageNet and others did not."""
    if "init" in results and len(starts := results["init"].unique()) > 1:
        raise ValueError(f"networks started from {' and from '.join(starts)}: they cannot be compared")
    rows, asked = [], [pair for pair in pairs if set(pair) <= set(results["arm"])]
    for fraction, (arm, other) in product(results["fraction"].unique(), asked):
        ours, count = estimates(results, fraction, arm, measure)
        difference = ours - estimates(results, fraction, other, measure)[0]
        low, high = ci_over_seeds(difference)
        row = {"fraction": fraction, "arm": arm, "against": other, "difference": difference[:, 0].mean()}
        found = verdict(low, high) if len(difference) > 1 else "one seed, no verdict"
        rows.append(row | {"from": low, "to": high, "verdict": found, "N": count, "seeds": len(difference)})
    columns = ["fraction", "arm", "against", "difference", "from", "to", "verdict", "N", "seeds"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:3])


def metric_name(measure: Measure) -> str:
    """A measure's name as tables have it."""
    return measure if isinstance(measure, str) else measure.__name__.replace("_", " ")


def to_sentences(table: pd.DataFrame, measure: Measure) -> list[str]:
    """One sentence for each of the `comparisons`, by its rule whichever way it falls."""
    name = metric_name(measure)
    return [
        f"{fraction:.0%} of the real images, {arm} against {other}: {row['verdict']} ({row['difference']:+.3f} {name}, "
        f"{row['from']:+.3f} to {row['to']:+.3f}, N {row['N']}, {row['seeds']} seeds)"
        for (fraction, arm, other), row in table.iterrows()
    ]


def fraction_of_rows(store: Store, fraction: float, seed: int = 0) -> np.ndarray:
    """A share of the training rows that have a mask and a label, a larger one holding the smaller. Of every class as
    large a share of its lesions, one at least; whole lesions, so that two photographs of one do not count as two."""
    rows = store.rows("train", needs=["mask", "label", "sketch"])
    lesions = store.table["lesion_id"].fillna(store.table["image_id"]).to_numpy(str)[rows]
    rng, chosen = np.random.default_rng(seed), []
    for label in np.unique(store.labels[rows]):
        names = rng.permutation(np.unique(lesions[store.labels[rows] == label]))
        chosen += list(names[: max(1, round(fraction * len(names)))])
    return rows[np.isin(lesions, chosen)]
