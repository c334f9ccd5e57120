"""Published results: a CSV, a page and a figure in `outputs/results`, which git tracks.

Tables in README, pages and notebooks are read from the CSV, never typed. A row is one number: what it is of, `measure`,
`value`, `n` and where it has one `low`, `high` (95 % interval), `floor` and `seed`; then how it was made: `command`,
`commit`, `seconds`, `machine`.
"""

import os
import platform
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from helpers.config import ROOT, cpu_count, display_path
from helpers.data.files import DataError, atomic_file, write_image
from helpers.data.tables import write_csv

RESULTS = ROOT / "outputs" / "results"
MAX_SETTINGS = 5
LINE_LENGTH = 118  # of the text of a page
FIGURE_DPI = 80  # keeps a figure below 300 KB
# Their folders say nothing to others.
MACHINE_OPTIONS = ("--out", "--data-root", "--extra-root", "--also-root", "--csv")


@dataclass(frozen=True)
class Page:
    """What a page of results shows besides the numbers' origin. Raises `ValueError` for more than `MAX_SETTINGS`."""

    question: str
    settings: Sequence[str]  # data, networks, training, what is compared: a line each
    table: pd.DataFrame  # rounded, with its index as first columns
    verdict: Sequence[str]  # sentences, made from the numbers by a rule
    limits: Sequence[str]
    figure: Figure | None = None
    caption: str = ""  # what the figure shows
    images: Mapping[str, np.ndarray] = field(default_factory=dict)  # by name, uint8 (H, W[, 3])

    def __post_init__(self):
        if len(self.settings) > MAX_SETTINGS:
            raise ValueError(f"a page has at most {MAX_SETTINGS} lines of settings, got {len(self.settings)}")


def publish(name: str, rows: pd.DataFrame, page: Page, folder: Path = RESULTS) -> list[Path]:
    """Write `<name>.csv`, `<name>.md` and, with a figure, `<name>.png` to `folder`, and the page's images to
    `<name>/`; returns the paths of the first three.

    `rows` has at least the columns `measure value n seconds`; an existing `command`, `commit` or `machine` is kept.
    Raises `ValueError` for a missing column, or a value without N.
    """
    needed = ["measure", "value", "n", "seconds"]
    if absent := [column for column in needed if column not in rows]:
        raise ValueError(f"published results need the columns {', '.join(needed)}; absent: {', '.join(absent)}")
    if rows.loc[rows["value"].notna(), "n"].isna().any():
        raise ValueError("every published value needs its n")
    rows = rows.copy()
    for column, value in {"command": command_line(), "commit": commit(), "machine": machine()}.items():
        rows[column] = rows[column].fillna(value) if column in rows else value
    files = [folder / f"{name}{ending}" for ending in (".csv", ".md", ".png")]
    write_csv(rows, files[0], index=False, float_format="%.6g")
    with atomic_file(files[1]) as temporary:
        temporary.write_text(to_markdown(name, rows, page), encoding="utf-8")
    for image, pixels in page.images.items():
        write_image(folder / name / f"{image}.png", pixels)
    if page.figure is None:
        return files[:2]
    with atomic_file(files[2]) as temporary:
        page.figure.savefig(temporary, format="png", dpi=FIGURE_DPI, bbox_inches="tight")
    return files


def read_published(name: str, folder: Path = RESULTS, **where: str) -> pd.DataFrame:
    """Rows of the published `<name>.csv`; `where` gives the value that each column must have. Raises `DataError` if the
    file does not exist or no row is left."""
    file = folder / f"{name}.csv"
    if not file.is_file():
        raise DataError(f"{display_path(file)} does not exist: write it by `python -m helpers ... --publish`")
    rows = pd.read_csv(file)
    for column, value in where.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        raise DataError(f"{file.name} has no row with {where}")
    return rows


def to_table(rows: pd.DataFrame, index: Sequence[str], columns: str) -> pd.DataFrame:
    """Published rows for reading: a row for each value of the columns `index` and N, a column for each value of
    `columns`, both in the order of the file; cells as `with_interval`, empty where there is no row."""
    texts = [with_interval(*row) for row in rows[["value", "low", "high"]].to_numpy()]
    rows = rows.rename(columns={"n": "N"}).assign(text=texts)
    index = [*index, "N"]
    table = pd.DataFrame({name: part.set_index(index)["text"] for name, part in rows.groupby(columns, sort=False)})
    return table.reindex(pd.MultiIndex.from_frame(rows[index].drop_duplicates())).fillna("")


def to_charts(rows: pd.DataFrame, title: str, entry: str) -> dict[str, dict[str, list[float]]]:
    """Published rows for `plots.intervals`: a chart for each value of the column `title`, in it the value, low and high
    of each value of the column `entry`."""
    return {
        name: {
            row[entry].replace(" against ", "\nagainst "): [row["value"], row["low"], row["high"]]
            for row in part.to_dict("records")
        }
        for name, part in rows.groupby(title, sort=False)
    }


def to_markdown(name: str, rows: pd.DataFrame, page: Page) -> str:
    """The page: question, settings, table, figure, verdict, limits, origin of the numbers."""
    figure = f"![{page.caption}]({name}.png)\n\n*{page.caption}*" if page.figure is not None else ""
    images = [f"| {image} | ![{image}]({name}/{quote(image)}.png) |" for image in page.images]
    origin = [
        f"`{command}`, commit {commit_id}, {machine_name}, {part['seconds'].sum():,.0f} s in all"
        for (command, commit_id, machine_name), part in rows.groupby(["command", "commit", "machine"], sort=False)
    ]
    blocks = [
        f"# {page.question}",
        _bullets(page.settings),
        markdown_table(page.table),
        figure,
        "\n".join(["| | images of the same sketches |", "|---|---|", *images]) if images else "",
        "## Verdict",
        _bullets(page.verdict),
        "## Limits" if page.limits else "",
        _bullets(page.limits),
        "## How it was made",
        _bullets(origin),
        f"All numbers: [{name}.csv]({name}.csv).",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def with_interval(value: float, low: float, high: float) -> str:
    """`0.812 (0.799 to 0.824)`, or the value alone if the interval is missing."""
    return f"{value:.3f}" + ("" if pd.isna(low) else f" ({low:.3f} to {high:.3f})")


def markdown_table(table: pd.DataFrame) -> str:
    """A table as Markdown, its named index levels as first columns; missing values are empty."""
    named = [level for level in table.index.names if level is not None]
    table = table.reset_index() if named else table
    lines = [[str(column) for column in table], ["---"] * len(table.columns)]
    lines += [["" if pd.isna(cell) else str(cell) for cell in row] for row in table.astype(object).to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that runs now, with the environment variables that decide it; folders of this machine are `DIR`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    names = ["LESION_PROFILE"] + ["LESION_DATASET"] * ("--dataset" not in arguments)
    variables = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    words, place = [], None
    for word in arguments:
        option = word.partition("=")[0]
        if place:
            word = "DIR"
        elif option in MACHINE_OPTIONS and "=" in word:
            word = f"{option}=DIR"
        place = word in MACHINE_OPTIONS
        words.append(str(Path(word).relative_to(ROOT)) if word.startswith(str(ROOT)) else word)
    return " ".join([*variables, "python -m helpers", shlex.join(words)])


def commit() -> str:
    """Short id of the checked-out commit, with "+" if tracked files of code differ from it; "unknown" without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "-uno", "helpers"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Processor or GPU, number of cores and version of torch."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cores = cpu_count()
    return f"{cores} core{'s' * (cores > 1)} of {_cpu_name()}, torch {torch.__version__.partition('+')[0]}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        amx = any("amx_bf16" in line for line in lines if line.startswith("flags"))
        return name + " with AMX (bf16)" * amx
    except (OSError, StopIteration):
        return platform.machine()


def _bullets(lines: Sequence[str]) -> str:
    wrap = partial(textwrap.fill, width=LINE_LENGTH, subsequent_indent="  ", break_long_words=False)
    return "\n".join(wrap(f"- {line}", break_on_hyphens=False) for line in lines)
