"""Grids, counts and pairs, drawn the same way everywhere. Arrays in, a matplotlib figure out."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

# One colour per class position, from a palette that colour-blind readers can tell apart (Okabe and Ito 2008).
PALETTE = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442", "#000000"]


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    cell: float = 1.3,
) -> Figure:
    """Pictures in rows: `uint8 (H, W, 3)` in colour, `(H, W)` in grey (masks in {0, 1} and sketches alike).

    A row may be shorter than the others. `cell` is a picture's side in inches.
    """
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(cell * columns, cell * len(rows)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows, strict=True):
        for axis, picture in zip(line, row, strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=max(1, int(picture.max())) if picture.ndim == 2 else None)
    for axis, title in zip(axes[0], column_titles, strict=False):
        axis.set_title(title, fontsize=9)
    for axis, title in zip(axes[:, 0], row_titles, strict=False):
        axis.text(-0.08, 0.5, title, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(0.1 if row_titles else 0, 0, 1, 0.94 if column_titles else 1, 0.04, 0.04)
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


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = (0, 255, 160)) -> np.ndarray:
    """`image (H, W, 3) uint8` with the border of `mask (H, W)` in {0, 1} drawn on it."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    marked = image.copy()
    marked[(mask == 1) & (inner == 0)] = colour
    return marked


def save(figure: Figure, path: str | Path) -> Figure:
    """Write the figure as a PNG for `outputs/`, and hand it back so that a notebook shows it once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return figure
