import re
from base64 import b64decode
from io import BytesIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from helpers.data.layouts import read
from helpers.views import plots
from helpers.views.plots import class_counts, curves, distributions, grid, intervals, lines, overlay, save, scatter


def test_grid_takes_colour_masks_sketches_and_gaps(tmp_path):
    colour, mask = np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8)
    figure = grid([[colour, mask, 255 * mask], [colour]], ["a", "b"], ["image", "mask", "sketch"])
    shown = [axis for axis in figure.axes if axis.images]
    assert len(figure.axes) == 6 and len(shown) == 4
    assert shown[1].images[0].get_clim() == (0, 1) and shown[2].images[0].get_clim() == (0, 255)
    assert [t.get_text() for t in figure.axes[3].texts] == ["b"]
    shown = save(figure, tmp_path / "figures/grid.png")
    assert shown.format == "png" and shown.data == (tmp_path / "figures/grid.png").read_bytes()
    assert Image.open(tmp_path / "figures/grid.png").size[0] > 200
    assert not plt.get_fignums(), "a saved figure is closed, or a notebook would show it twice"


def test_class_counts(phantoms):
    counts = read(phantoms).counts()
    figure = class_counts(counts)
    heights = sum(bar.get_height() for bars in figure.axes[0].containers for bar in bars)
    assert heights == counts.loc["all", "all"]
    plt.close(figure)


def test_overlay_marks_the_border_only():
    mask = np.zeros((10, 10), np.uint8)
    mask[3:7, 3:7] = 1
    marked = overlay(np.zeros((10, 10, 3), np.uint8), mask, colour=(9, 9, 9))
    assert (marked[..., 0] == 9).sum() == 12 and marked[4:6, 4:6].max() == 0


def test_nothing_to_show_is_said():
    figure = grid([])
    assert [text.get_text() for text in figure.texts] == ["nothing to show"]
    plt.close(figure)


def test_photographs_are_shown_as_jpeg(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    shown = save(grid([[noise] * 3] * 3), tmp_path / "noise.png")
    assert shown.format == "jpeg" and len(shown.data) < (tmp_path / "noise.png").stat().st_size


def test_curves_of_a_history():
    history = {
        "step": [10, 20, 30],
        "d": [2.0, 1.5, 1.0],
        "real_score": [0.0, 1.0, 2.0],
        "fake_score": [0.0, -1.0, -2.0],
    }
    figure = curves(history, [["d"], ["real_score", "fake_score"]])
    lines = [line for axis in figure.axes for line in axis.lines]
    assert [line.get_label() for line in lines] == ["d", "on real", "on drawn"]
    assert lines[0].get_xydata().tolist() == [[10, 2.0], [20, 1.5], [30, 1.0]]
    plt.close(figure)


def test_intervals_stand_at_their_values():
    figure = intervals({"a": {"floor": (0.0, -0.1, 0.1), "drawn": (0.4, 0.3, 0.6)}, "b": {"floor": (1, 0, 2)}}, "KID")
    first = figure.axes[0]
    places = [list(line.get_xdata()) for line in first.lines]
    assert [-0.1, 0.1] in places and [0.4] in places
    assert [t.get_text() for t in first.get_yticklabels()] == ["floor", "drawn"] and len(figure.axes) == 2
    plt.close(figure)


def test_lines_share_their_x():
    figure = lines([10, 20, 40], {"KID": [0.1, 0.0, -0.1], "FD": [9, 5, 3]}, "images")
    assert [axis.get_title() for axis in figure.axes] == ["KID", "FD"]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [9, 5, 3]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["10", "20", "40"]
    plt.close(figure)


def test_distributions_are_shares():
    figure = distributions({"pixels": {"drawn": np.arange(10.0), "real": np.arange(40.0)}}, "distance")
    heights = [sum(bar.get_height() for bar in bars) for bars in figure.axes[0].containers]
    assert np.allclose(heights, 1)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["drawn, N 10", "real, N 40"]
    plt.close(figure)


def test_scatter_names_its_groups_with_their_number():
    figure = scatter({"NV": ([1, 2, 3], [0.5, 0.6, 0.7]), "MEL": ([4], [0.1])}, ("size", "Jaccard"))
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["NV, N 3", "MEL, N 1"]
    assert [len(points.get_offsets()) for points in axis.collections] == [3, 1]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("size", "Jaccard")
    plt.close(figure)


def test_confusion_shows_counts_by_class():
    figure = plots.confusion({"before": np.array([[8, 2], [3, 1]]), "after": np.zeros((2, 2), int)}, ["MEL", "NV"])
    told = [text.get_text() for text in figure.axes[0].texts]
    assert told == ["8", "2", "3", "1"] and [a.get_title() for a in figure.axes] == ["before", "after"]
    assert figure.axes[0].images[0].get_array().tolist() == [[0.8, 0.2], [0.75, 0.25]]


def test_calibration_draws_every_bin():
    table = pd.DataFrame({"confidence": [0.4, 0.9], "accuracy": [0.5, 0.7], "N": [10, 30]})
    axis = plots.calibration({"before": table, "after": table}).axes[0]
    assert len(axis.collections) == 2 and axis.collections[0].get_offsets().tolist() == [[0.4, 0.5], [0.9, 0.7]]


def test_a_table_with_pictures_shows_text_as_text():
    table = pd.DataFrame({"name": ["<script>", "b"], "share": [0.123456, 1.0]}, index=[7, 8])
    wide, grey = np.zeros((10, 20, 3), np.uint8), np.zeros((10, 10), np.uint8)
    page = plots.table_with_images(table, {"picture": [wide, grey]}, side=30).data
    assert "<script>" not in page and "&lt;script&gt;" in page and ">0.123<" in page
    encoded = re.findall(r"base64,([^\"]+)", page)
    assert [Image.open(BytesIO(b64decode(code))).size for code in encoded] == [(60, 30), (30, 30)]
