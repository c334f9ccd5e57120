"""What the evaluations of generator, segmenter, classifier and artifact detector share: the table and its print.

An evaluation is a `DataFrame` with a row per measure, so that it can be printed, written as CSV or JSON, and compared.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.config import Config
from helpers.data.files import DataError
from helpers.data.layouts import open_dataset
from helpers.data.store import Store, StoreConfig, prepare
from helpers.experiments.results import MAX_SETTINGS, Page
from helpers.metrics.stats import bootstrap_ci, paired_difference
from helpers.models.gan import GANConfig, load_gan
from helpers.models.sampling import sample_batch

Generate = Callable[[dict[str, np.ndarray], int], np.ndarray]  # batch of the store, seed -> images

# protocol: how the images were sampled; compared: what the value is of ("synthetic", "floor", ...); low, high: 95 %
# interval; n_real: images compared with; floor, real, majority: the same measure between real images, of real images,
# and of always predicting the most frequent class.
COLUMNS = ("protocol", "extractor", "compared", "class", "measure", "value", "low", "high", "n", "n_real", "floor",
           "real", "majority")  # fmt: skip
ALWAYS = ("measure", "value", "low", "high", "n")
# Where a measure has a line of its own.
ACRONYMS = ("kid", "fd", "fid", "auc", "hd95")  # in capitals in sentences
PRINTED = ("measure", "class", "compared", "extractor", "value", "n", "n_real", "real", "majority")


def open_store(
    cfg: Config, size: int, style: str | None = None, crop: str = "center", classes: Sequence[str] = ()
) -> Store:
    """Store of the selected data set, or of its images of some classes, in their order, see `prepare`.

    Sketch style, if None or "none": "contour" where the data set has masks or sketches, else "structure". Raises
    `DataError` if the data set lacks one of the classes, or masks and sketches for style "contour".
    """
    dataset = open_dataset(cfg)
    style = dataset.style if style in (None, "none") else style
    return prepare(dataset, cfg.stores, StoreConfig(size, style, crop, cfg.seed), workers=cfg.workers, classes=classes)


def load_generator(checkpoint: str | Path) -> tuple[Generate, GANConfig]:
    """Sampling function and config of a CGAN, or of a DCGAN, which ignores the sketches. Raises `DataError` if the file
    is neither."""
    try:
        generator, config = load_gan(checkpoint)
    except DataError:
        generator, config = load_gan(checkpoint, sketch=False)
    return partial(sample_batch, generator), config


def mean_row(measure: str, values: np.ndarray, groups: Sequence | None = None, **other) -> dict:
    """Table row of the mean of `values (N,)` with its 95 % bootstrap interval, over `groups` (one id per value) if
    given. `other`: further columns."""
    low, high = bootstrap_ci(values, groups)
    return {"measure": measure, "value": float(np.mean(values)), "low": low, "high": high, "n": len(values)} | other


def difference_row(compared: str, measure: str, values: np.ndarray, baseline: np.ndarray, groups: Sequence) -> dict:
    """Table row of the mean difference of two `(N,)` measured on the same cases, see `paired_difference`."""
    value, low, high = paired_difference(values, baseline, groups)
    return {"measure": measure, "compared": compared, "value": value, "low": low, "high": high, "n": len(values)}


def to_table(rows: Iterable[dict], header: Iterable = (), notes: Iterable[str] = ()) -> pd.DataFrame:
    """Table of an evaluation with those of `COLUMNS` that have a value, at least `ALWAYS`.

    `header` (data set, config; any objects) and `notes` (what was not measured, and why) are kept as lists of strings
    in `table.attrs`, for `format_table`.
    """
    table = pd.DataFrame(list(rows)).reindex(columns=list(COLUMNS))
    table = table[[name for name in COLUMNS if name in ALWAYS or table[name].notna().any()]]
    counts = {name: "Int64" for name in ("n", "n_real") if name in table}
    table = table.astype(counts | {name: float for name in ("value", "low", "high")})
    table.attrs = {"header": [str(line) for line in header], "notes": list(dict.fromkeys(notes))}
    return table


def format_table(table: pd.DataFrame) -> str:
    """Text of a table of `to_table`: header, every protocol, notes. Distances of an extractor have a line per
    comparison and class, every other measure has a line of its own."""
    header, notes = table.attrs["header"], table.attrs["notes"]
    table = table.reindex(columns=list(COLUMNS)).assign(value=[_interval(row) for row in table.itertuples()])
    blocks = list(header)
    for protocol, part in table.groupby("protocol", sort=False, dropna=False):
        blocks += [] if pd.isna(protocol) else [f"\n{protocol} mix"]
        is_distance = part["extractor"].notna() & part["class"].notna()
        if is_distance.any():
            blocks.append(_to_text(_a_line_per_comparison(part[is_distance])))
        if not is_distance.all():
            blocks.append(_to_text(part.loc[~is_distance, list(PRINTED)]))
    return "\n".join([*blocks, *(f"! {note}" for note in notes)])


def to_page(table: pd.DataFrame, name: str, measures: Sequence[str], by_class: bool = False) -> Page:
    """Page of a table of `to_table`: its overall rows, or with `by_class` all; and of `measures` a sentence each."""
    header, notes = table.attrs["header"], table.attrs["notes"]
    is_overall = table.get("class", pd.Series("all", table.index)).fillna("all") == "all"
    overall = table if by_class else table[is_overall]
    shown = overall.reindex(columns=list(COLUMNS)).assign(value=[_interval(row) for row in overall.itertuples()])
    shown = shown[["protocol", *PRINTED]].dropna(axis=1, how="all").astype(object)
    shown = shown.map(lambda x: "" if pd.isna(x) else _number(x) if isinstance(x, float) else x)
    verdict = sentences(overall, measures)
    if by_class:  # the notes are the verdict on the rows
        return Page(f"How good is {name}?", header[:MAX_SETTINGS], shown, [*verdict, f"{'; '.join(notes)}."], [])
    return Page(f"How good is {name}?", header[:MAX_SETTINGS], shown, verdict, notes)


def sentences(table: pd.DataFrame, measures: Sequence[str]) -> list[str]:
    """For every row of these measures, without floors and ceilings: value, interval, N, and what it compares with; for
    a KID with an interval whether that lies above the floor."""
    lines = []
    for row in table.reindex(columns=list(COLUMNS)).itertuples():
        if row.measure not in measures or str(row.compared).startswith(("floor", "blurred", "other", "real")):
            continue
        name = row.measure.upper() if row.measure in ACRONYMS else row.measure.replace("_", " ").capitalize()
        facts = [f"{k} {_number(getattr(row, k))}" for k in ("floor", "real", "majority") if pd.notna(getattr(row, k))]
        setting = [f"{row.protocol} mix"] if pd.notna(row.protocol) else []
        setting += [word for word in (row.extractor, row.compared) if pd.notna(word)]
        text = ", ".join([f"{name} {_interval(row)}", *facts, f"N {row.n:,}"])
        lines.append(f"{text}{': ' * bool(setting)}{', '.join(setting)}{_against_floor(row)}.")
    return lines


def _against_floor(row) -> str:
    """What a KID with interval and floor says, else nothing."""
    if row.measure != "kid" or pd.isna(row.low) or pd.isna(row.floor):
        return ""
    differs = row.low > row.floor
    return "; generated images differ from real ones" if differs else "; no difference from real images seen"


def _a_line_per_comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """The measures of each comparison side by side; floors have lines of their own."""
    keys = ["extractor", "compared", "class", "n", "n_real"]
    comparisons = rows.groupby(keys, sort=False)
    return pd.DataFrame(
        [dict(zip(keys, key, strict=True), **part.set_index("measure")["value"]) for key, part in comparisons]
    )


def _interval(row) -> str:
    """`0.8123 (0.7991 to 0.8240)`, or the value alone if it has no interval."""
    value = _number(row.value)
    return value if pd.isna(row.low) else f"{value} ({_number(row.low)} to {_number(row.high)})"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def _to_text(table: pd.DataFrame) -> str:
    """The columns that have a value, as text; numbers in the form of `_number`."""

    def cell(x) -> str:
        return "" if pd.isna(x) else _number(x) if isinstance(x, float) else str(x)

    return table.dropna(axis=1, how="all").astype(object).map(cell).to_string(index=False)
