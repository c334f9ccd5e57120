"""Grids, counts and pairs, drawn the same way everywhere. Arrays in, a matplotlib figure out."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from IPython.display import Image as Shown
from matplotlib.figure import Figure
from PIL import Image

# One colour per class position, from a palette that colour-blind readers can tell apart (Okabe and Ito 2008).
PALETTE = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442", "#000000"]


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    cell: float = 1.3,
) -> Figure:
    """Pictures in rows: `uint8 (H, W, 3)` in colour, `(H, W)` in grey (masks in {0, 1} and sketches alike).

    A row may be shorter than the others; no rows at all give a figure that says so. `cell`: a side in inches.
    """
    if not rows:
        figure = plt.figure(figsize=(4, 0.5))
        figure.text(0.5, 0.5, "nothing to show", ha="center", va="center")
        return figure
    columns = max(len(row) for row in rows)
    left, top = (0.1 if row_titles else 0), (0.94 if column_titles else 1)
    inches = (cell * columns / (1 - left), cell * len(rows) / top)  # room for the titles, the pictures stay square
    figure, axes = plt.subplots(len(rows), columns, figsize=inches, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows, strict=True):
        for axis, picture in zip(line, row, strict=False):
            axis.axis("on")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("0.6")  # a white line along the frame would be lost on a white page
            axis.imshow(picture, cmap="gray", vmin=0, vmax=max(1, int(picture.max())) if picture.ndim == 2 else None)
    for axis, title in zip(axes[0], column_titles, strict=False):
        axis.set_title(title, fontsize=9)
    for axis, title in zip(axes[:, 0], row_titles, strict=False):
        axis.text(-0.08, 0.5, title, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(left, 0, 1, top, 0.04, 0.04)
    return figure


def class_counts(counts: pd.DataFrame) -> Figure:
    """Pictures per class as bars on a logarithmic axis, one bar a split, from `Dataset.counts()`."""
    counts = counts.drop(index="all", errors="ignore").drop(columns="all", errors="ignore")
    figure, axis = plt.subplots(figsize=(7, 2.8))
    positions = np.arange(len(counts))
    for number, split in enumerate(counts.columns):
        shift = (number - (len(counts.columns) - 1) / 2) * 0.8 / len(counts.columns)
        bars = axis.bar(
            positions + shift, counts[split], 0.78 / len(counts.columns), label=split, color=PALETTE[number]
        )
        axis.bar_label(bars, fontsize=7)
    axis.set_xticks(positions, counts.index)
    axis.set_yscale("log")
    axis.set_ylabel("pictures (log)")
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def curves(history: dict[str, list[float]], groups: Sequence[Sequence[str]]) -> Figure:
    """What a training wrote into its history, over steps: one chart per group of names."""
    figure, axes = plt.subplots(1, len(groups), figsize=(2.5 * len(groups), 2.2), squeeze=False)
    for axis, names in zip(axes[0], groups, strict=True):
        for name, colour in zip(names, PALETTE, strict=False):
            axis.plot(history["step"], history[name], color=colour, label=name.replace("_", " "))
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def intervals(charts: dict[str, dict[str, Sequence[float]]], unit: str) -> Figure:
    """One chart per name, in it one line per entry: a value with the ends of its interval."""
    tallest = max(sum(1 + name.count("\n") for name in entries) for entries in charts.values())
    inches = (max(5, 4 * len(charts)), max(2.2, 0.8 + 0.2 * tallest))
    figure, axes = plt.subplots(1, len(charts), figsize=inches, squeeze=False, layout="constrained")
    for axis, (name, entries) in zip(axes[0], charts.items(), strict=True):
        for place, (value, low, high) in enumerate(entries.values()):
            axis.plot([low, high], [place, place], color=PALETTE[1], linewidth=3, alpha=0.4)
            axis.plot(value, place, "o", color=PALETTE[1])
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set_yticks(range(len(entries)), entries)
        axis.set(title=name, xlabel=unit, ylim=(len(entries) - 0.5, -0.5))
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def lines(x: Sequence[float], charts: dict[str, Sequence[float]], label: str) -> Figure:
    """One chart per name over the same x, which doubles from tick to tick."""
    figure, axes = plt.subplots(1, len(charts), figsize=(3.5 * len(charts), 2.2), squeeze=False, layout="constrained")
    for axis, (name, y) in zip(axes[0], charts.items(), strict=True):
        axis.plot(x, y, "o-", color=PALETTE[1])
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, x)
        axis.set(title=name, xlabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def distributions(charts: dict[str, dict[str, np.ndarray]], label: str) -> Figure:
    """One chart per name: how the values of each group are spread, as shares of the group."""
    figure, axes = plt.subplots(1, len(charts), figsize=(4 * len(charts), 2.2), squeeze=False, layout="constrained")
    for axis, (name, groups) in zip(axes[0], charts.items(), strict=True):
        edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 24)
        for colour, (group, values) in zip(PALETTE, groups.items(), strict=False):
            shares = np.full(len(values), 1 / len(values))
            axis.hist(values, edges, weights=shares, color=colour, alpha=0.5, label=f"{group}, N {len(values)}")
        axis.set(title=name, xlabel=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    return figure


def scatter(groups: dict[str, tuple[Sequence[float], Sequence[float]]], labels: tuple[str, str]) -> Figure:
    """Points (x, y) of each group in its colour; `labels` of the two axes."""
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    for colour, (group, (x, y)) in zip(PALETTE, groups.items(), strict=False):
        axis.scatter(x, y, s=14, color=colour, alpha=0.7, linewidths=0, label=f"{group}, N {len(x)}")
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def confusion(matrices: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Counts `(K, K)` side by side: rows are the true classes, columns the named ones, colours shares of a row."""
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(3.3 * len(matrices), 3.2), squeeze=False, layout="constrained"
    )
    for axis, (name, counts) in zip(axes[0], matrices.items(), strict=True):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axis.text(column, row, int(count), ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(classes)), classes, rotation=60, fontsize=8)
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
        axis.set(title=name, xlabel="named")
    axes[0, 0].set_ylabel("true")
    return figure


def calibration(tables: dict[str, pd.DataFrame]) -> Figure:
    """How often a network is right (`accuracy`) when it is as sure as that (`confidence`); size says of how many cases.
    On the diagonal probabilities mean what they say."""
    figure, axis = plt.subplots(figsize=(3.6, 2.8), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    for colour, (name, table) in zip(PALETTE, tables.items(), strict=False):
        axis.plot(table["confidence"], table["accuracy"], color=colour, alpha=0.4)
        sizes = 120 * table["N"] / table["N"].sum()
        axis.scatter(table["confidence"], table["accuracy"], s=sizes + 4, color=colour, label=name)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = (0, 255, 160)) -> np.ndarray:
    """`image (H, W, 3) uint8` with the border of `mask (H, W)` in {0, 1} drawn on it."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    marked = image.copy()
    marked[(mask == 1) & (inner == 0)] = colour
    return marked


def table_with_images(table: pd.DataFrame, pictures: dict[str, Sequence[np.ndarray]], side: int = 96) -> HTML:
    """A table with columns of pictures `(H, W[, 3]) uint8` before its own, each `side` pixels high."""

    def tag(picture: np.ndarray) -> str:
        image, file = Image.fromarray(picture), BytesIO()
        image.resize((round(side * image.width / image.height), side)).convert("RGB").save(file, "JPEG", quality=82)
        return f'<img src="data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}">'

    shown = pd.DataFrame({name: [tag(picture) for picture in column] for name, column in pictures.items()})
    table = pd.concat([shown, table.reset_index(drop=True).map(as_text)], axis=1)
    return HTML(table.to_html(escape=False, index=False, border=0))


def as_text(value: object) -> str:
    """For a page: numbers with three digits, and nothing that a browser would take for more than text."""
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))


def save(figure: Figure, path: str | Path) -> Shown:
    """Write the figure as a PNG for `outputs/`, and return what a notebook shows: photographs as JPEG, which takes a
    fifth of the room, lines and charts as PNG."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    if path.stat().st_size < 60_000:
        return Shown(data=path.read_bytes(), format="png")
    smaller = BytesIO()
    Image.open(path).convert("RGB").save(smaller, "JPEG", quality=82)
    return Shown(data=smaller.getvalue(), format="jpeg")
