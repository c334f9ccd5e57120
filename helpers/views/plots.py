"""Figures in one style: image grids, counts, curves, intervals. Arrays in, a matplotlib figure out."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from IPython.display import Image as DisplayImage
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

# One color per class position, from a palette that color-blind readers can distinguish (Okabe and Ito 2008).
PALETTE = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442", "#000000"]
TABLE_IMAGE_HEIGHT = 96  # pixels


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    cell: float = 1.3,
) -> Figure:
    """Rows of images: `uint8 (H, W, 3)` in color, `(H, W)` in gray (masks in {0, 1} and sketches in {0, 255}).

    Rows may differ in length; without rows the figure says "nothing to show". `cell`: side of an image in inches.
    """
    if not len(rows):
        figure = plt.figure(figsize=(4, 0.5))
        figure.text(0.5, 0.5, "nothing to show", ha="center", va="center")
        return figure
    columns = max(len(row) for row in rows)
    left, top = (0.1 if row_titles else 0), (0.94 if column_titles else 1)
    inches = (cell * columns / (1 - left), cell * len(rows) / top)  # with room for the titles, images stay square
    figure, axes = plt.subplots(len(rows), columns, figsize=inches, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axes_row, row in zip(axes, rows, strict=True):
        for axis, image in zip(axes_row, row, strict=False):
            axis.axis("on")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("0.6")  # separates a light image from the white page
            axis.imshow(image, cmap="gray", vmin=0, vmax=max(1, int(image.max())) if image.ndim == 2 else None)
    for axis, title in zip(axes[0], column_titles, strict=False):
        axis.set_title(title, fontsize=9)
    for axis, title in zip(axes[:, 0], row_titles, strict=False):
        axis.text(-0.08, 0.5, title, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(left, 0, 1, top, 0.04, 0.04)
    return figure


def class_counts(counts: pd.DataFrame) -> Figure:
    """Bars of images per class and split on a log axis. `counts`: see `DatasetTable.counts()`; totals are ignored."""
    total = "total" if "total" in counts.index else "all"
    counts = counts.drop(index=total, columns="all", errors="ignore")
    figure, axis = plt.subplots(figsize=(7, 2.8))
    positions = np.arange(len(counts))
    num_splits = len(counts.columns)
    for k, split in enumerate(counts.columns):
        offset = (k - (num_splits - 1) / 2) * 0.8 / num_splits
        bars = axis.bar(positions + offset, counts[split], 0.78 / num_splits, label=split, color=PALETTE[k])
        axis.bar_label(bars, fontsize=7)
    axis.set_xticks(positions, counts.index)
    axis.set_yscale("log")
    axis.set_ylabel("images (log)")
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def curves(history: dict[str, list[float]], groups: Sequence[Sequence[str]]) -> Figure:
    """Curves of a training's history over its key `step`: one chart per group of keys, named at their ends."""
    figure, axes = plt.subplots(1, len(groups), figsize=(2.5 * len(groups), 2.2), squeeze=False)
    for axis, names in zip(axes[0], groups, strict=True):
        for name, color in zip(names, PALETTE, strict=False):
            axis.plot(history["step"], history[name], color=color, label=name.replace("_", " "))
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        label_ends(axis)
    figure.tight_layout()
    return figure


def label_ends(axis: Axes) -> None:
    """Write the label of every line at the right of its last point, in its color; labels do not overlap."""
    lines = [line for line in axis.lines if not line.get_label().startswith("_")]
    low, high = axis.get_ylim()
    heights = [(line.get_ydata()[-1] - low) / (high - low) for line in lines]
    previous = -1.0
    for line, height in sorted(zip(lines, heights, strict=True), key=lambda pair: pair[1]):
        previous = max(height, previous + 0.12)  # a line of text
        axis.text(1.02, previous, line.get_label(), color=line.get_color(), fontsize=8, va="center",
                  transform=axis.transAxes)  # fmt: skip


def intervals(charts: dict[str, dict[str, Sequence[float]]], unit: str) -> Figure:
    """One chart per title; each entry is a row with its value and interval `(value, low, high)`. `unit`: x label.

    Zero is marked where an interval reaches it, and for differences. Charts with the same entries share both axes."""
    same = len({tuple(entries) for entries in charts.values()}) == 1
    max_lines = max(sum(1 + name.count("\n") for name in entries) for entries in charts.values())
    inches = (max(5, 4 * len(charts)), max(2.2, 0.8 + 0.2 * max_lines))
    figure, axes = plt.subplots(
        1, len(charts), sharex=same, sharey=same, figsize=inches, squeeze=False, layout="constrained"
    )
    for axis, (title, entries) in zip(axes[0], charts.items(), strict=True):
        for y, (value, low, high) in enumerate(entries.values()):
            axis.plot([low, high], [y, y], color=PALETTE[1], linewidth=3, alpha=0.4)
            axis.plot(value, y, "o", color=PALETTE[1])
        if "difference" in unit or min(low for _, low, _ in entries.values()) <= 0:
            axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set_yticks(range(len(entries)), entries)
        axis.locator_params(axis="x", nbins=4)
        axis.set(title=title, xlabel=unit, ylim=(len(entries) - 0.5, -0.5))
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def bands(x: Sequence[float], charts: dict[str, Sequence[Sequence[float]]], label: str, log: bool = True) -> Figure:
    """One chart per title: `(middle, low, high)`, each over the same `x`, as a line in a band. `label`: of the x axis,
    whose scale is log2 with a tick per value, or linear."""
    figure, axes = plt.subplots(1, len(charts), figsize=(4.2 * len(charts), 2.4), squeeze=False, layout="constrained")
    for axis, (title, (middle, low, high)) in zip(axes[0], charts.items(), strict=True):
        axis.fill_between(x, low, high, color=PALETTE[1], alpha=0.25, linewidth=0)
        axis.plot(x, middle, "o-", markersize=3, color=PALETTE[1])
        axis.axhline(0, color="0.6", linewidth=0.8)
        if log:
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, x)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def diagram(boxes: dict[str, tuple[float, float]], arrows: Sequence[tuple[str, str, str]]) -> Figure:
    """Boxes by their text, each centered at (x, y) in units of 2 by 1 inches, and arrows (from, to, text). Networks are
    the boxes whose text is upper case in its first line."""
    (left, right), (bottom, top) = ((min(values), max(values)) for values in zip(*boxes.values(), strict=True))
    figure, axis = plt.subplots(figsize=(2 * (right - left + 1), top - bottom + 0.8))
    axis.set(xlim=(left - 0.5, right + 0.5), ylim=(bottom - 0.4, top + 0.4))
    axis.axis("off")
    patches = {}
    for text, position in boxes.items():
        color = PALETTE[5] if text.split("\n")[0].isupper() else "white"
        style = {"boxstyle": "round,pad=0.4", "facecolor": color, "edgecolor": "0.4"}
        patches[text] = axis.text(*position, text, fontsize=9, ha="center", va="center", bbox=style).get_bbox_patch()
    for start, end, text in arrows:
        style = {"arrowstyle": "->", "color": "0.4", "patchA": patches[start], "patchB": patches[end], "shrinkB": 1}
        axis.annotate("", boxes[end], boxes[start], arrowprops=style)
        middle = 0.4 * np.array(boxes[start]) + 0.6 * np.array(boxes[end])
        style = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axis.text(*middle, text, fontsize=8, ha="center", va="center", bbox=style if text else None)
    return figure


def distributions(charts: dict[str, dict[str, np.ndarray]], label: str) -> Figure:
    """One chart per title: histograms of the values `(N,)` of each group, in fractions of the group. `label`: of x."""
    figure, axes = plt.subplots(1, len(charts), figsize=(4 * len(charts), 2.2), squeeze=False, layout="constrained")
    for axis, (title, groups) in zip(axes[0], charts.items(), strict=True):
        edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 24)
        for color, (group, values) in zip(PALETTE, groups.items(), strict=False):
            weights = np.full(len(values), 1 / len(values))
            axis.hist(values, edges, weights=weights, color=color, alpha=0.5, label=f"{group}, N {len(values)}")
        axis.set(title=title, xlabel=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    return figure


def scatter(groups: dict[str, tuple[Sequence[float], Sequence[float]]], labels: tuple[str, str]) -> Figure:
    """Points `(x, y)` of each group in its own color. `labels`: of the x and y axes."""
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    for color, (group, (x, y)) in zip(PALETTE, groups.items(), strict=False):
        axis.scatter(x, y, s=14, color=color, alpha=0.7, linewidths=0, label=f"{group}, N {len(x)}")
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scatters(charts: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]]) -> Figure:
    """Charts of points `(x, y)` by title, two in a row, each group in its own color; axes without numbers, for
    projections that have no unit."""
    rows = -(-len(charts) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(6.6, 2.8 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(charts) :]:
        axis.axis("off")
    for axis, (title, groups) in zip(axes.flat, charts.items(), strict=False):
        for color, (group, (x, y)) in zip(PALETTE, groups.items(), strict=False):
            axis.scatter(x, y, s=8, color=color, alpha=0.5, linewidths=0, label=f"{group}, N {len(x)}")
        axis.set(title=title, xticks=[], yticks=[])
        axis.legend(frameon=False, fontsize=7)
    return figure


def confusion(matrices: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Confusion matrices `(K, K)` side by side, by title: counts, rows true and columns predicted classes; the color is
    the fraction of the row."""
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(3.3 * len(matrices), 3.2), squeeze=False, layout="constrained"
    )
    for axis, (title, counts) in zip(axes[0], matrices.items(), strict=True):
        fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if fractions[row, column] > 0.6 else "black"
            axis.text(column, row, int(count), ha="center", va="center", fontsize=7, color=color)
        axis.set_xticks(range(len(classes)), classes, rotation=60, fontsize=8)
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
        axis.set(title=title, xlabel="predicted")
    axes[0, 0].set_ylabel("true")
    return figure


def calibration(tables: dict[str, pd.DataFrame]) -> Figure:
    """Reliability diagram: `accuracy` over `confidence` of every bin, marker area by its `N`. Calibrated probabilities
    lie on the diagonal. `tables` by name, see `metrics.classification.reliability`."""
    figure, axis = plt.subplots(figsize=(3.6, 2.8), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    for color, (name, table) in zip(PALETTE, tables.items(), strict=False):
        axis.plot(table["confidence"], table["accuracy"], color=color, alpha=0.4, label=name)
        areas = 120 * table["N"] / table["N"].sum()
        axis.scatter(table["confidence"], table["accuracy"], s=areas + 4, color=color)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.spines[["top", "right"]].set_visible(False)
    label_ends(axis)
    return figure


def overlay(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] = (0, 255, 160)) -> np.ndarray:
    """A copy of `image uint8 (H, W, 3)` with the border of `mask uint8 (H, W)` in {0, 1}, two pixels thick, in an RGB
    color."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask, cross, iterations=2, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    marked = image.copy()
    marked[(mask == 1) & (inner == 0)] = color
    return marked


def table_with_images(table: pd.DataFrame, images: dict[str, Sequence[np.ndarray]]) -> HTML:
    """An HTML table with columns of images `uint8 (H, W[, 3])`, resized to `TABLE_IMAGE_HEIGHT`, before those of
    `table`."""

    def tag(array: np.ndarray) -> str:
        image, file = Image.fromarray(array), BytesIO()
        resized = image.resize((round(TABLE_IMAGE_HEIGHT * image.width / image.height), TABLE_IMAGE_HEIGHT))
        resized.convert("RGB").save(file, "JPEG", quality=75)
        return f'<img src="data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}">'

    tags = pd.DataFrame({name: [tag(array) for array in column] for name, column in images.items()})
    table = pd.concat([tags, table.reset_index(drop=True).map(as_text)], axis=1)
    return HTML(table.to_html(escape=False, index=False, border=0))


def as_text(value: object) -> str:
    """A table value as HTML text: floats with three digits, anything else escaped."""
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))


def save(figure: Figure, path: str | Path) -> DisplayImage:
    """Write the figure as a PNG, close it, and return the image that a notebook displays: the PNG if it is small (lines
    and charts), else a JPEG, which takes a fifth of the space for images."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # on a full disk an older file stays
    figure.savefig(temporary, dpi=110, bbox_inches="tight")
    temporary.replace(path)
    plt.close(figure)
    return show(path)


def show(path: str | Path) -> DisplayImage:
    """The image file `path` for a notebook: a PNG as it is if it is small, else as JPEG."""
    path = Path(path)
    if path.stat().st_size < 60_000:
        return DisplayImage(data=path.read_bytes(), format="png")
    jpeg = BytesIO()
    Image.open(path).convert("RGB").save(jpeg, "JPEG", quality=75)
    return DisplayImage(data=jpeg.getvalue(), format="jpeg")
