import re
from base64 import b64decode
from io import BytesIO
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from helpers.data.layouts import read
from helpers.views import plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_grid_with_colors_masks_and_short_rows_scales_each_image():
    color, mask = np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8)
    figure = plots.grid([[color, mask, 255 * mask], [color]], ["a", "b"], ["image", "mask", "sketch"])
    filled = [axis for axis in figure.axes if axis.images]
    assert len(figure.axes) == 6 and len(filled) == 4
    assert filled[1].images[0].get_clim() == (0, 1) and filled[2].images[0].get_clim() == (0, 255)
    assert [text.get_text() for text in figure.axes[3].texts] == ["b"]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "mask", "sketch"]


def test_grid_without_rows_says_nothing_to_show():
    assert [text.get_text() for text in plots.grid([]).texts] == ["nothing to show"]
    assert len(plots.grid(np.zeros((2, 3, 8, 8, 3), np.uint8)).axes) == 6, "an array of images"


def test_save_small_figure_displays_the_written_png_and_closes_the_figure(tmp_path):
    display = plots.save(plots.grid([[np.zeros((8, 8), np.uint8)] * 3]), tmp_path / "figures/grid.png")
    assert display.format == "png" and display.data == (tmp_path / "figures/grid.png").read_bytes()
    assert Image.open(tmp_path / "figures/grid.png").size[0] > 200
    assert not plt.get_fignums(), "an open figure would be shown twice by a notebook"


def test_save_figure_of_images_displays_a_smaller_jpeg(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    display = plots.save(plots.grid([[image] * 3] * 3), tmp_path / "noise.png")
    assert display.format == "jpeg" and len(display.data) < (tmp_path / "noise.png").stat().st_size


def test_show_displays_a_small_file_as_it_is_and_a_large_one_as_jpeg(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    for image, name, expected in ((noise[:20, :20], "small.png", "png"), (noise, "large.png", "jpeg")):
        Image.fromarray(image).save(tmp_path / name)
        display = plots.show(tmp_path / name)
        assert display.format == expected
        assert Image.open(BytesIO(display.data)).size == image.shape[1::-1]


def test_class_counts_bars_sum_to_all_images(phantoms):
    counts = read(phantoms).counts()
    (axis,) = plots.class_counts(counts).axes
    heights = sum(bar.get_height() for bars in axis.containers for bar in bars)
    assert heights == counts.loc["all", "all"] and axis.get_ylabel() == "images (log)"


def test_overlay_marks_a_border_of_two_pixels_and_copies_the_image():
    mask, image = np.zeros((12, 12), np.uint8), np.zeros((12, 12, 3), np.uint8)
    mask[2:10, 2:10] = 1
    marked = plots.overlay(image, mask, color=(9, 9, 9))
    assert (marked[2:10, 2:10, 0] == 9).sum() == (marked == 9).sum() / 3 == 8 * 8 - 4 * 4
    assert marked[4:8, 4:8].max() == 0 and image.max() == 0


def test_overlay_marks_the_edge_of_the_image_where_the_mask_reaches_it():
    marked = plots.overlay(np.zeros((10, 10, 3), np.uint8), np.ones((10, 10), np.uint8))
    assert marked[:2].any(axis=2).all() and marked[:, -2:].any(axis=2).all() and not marked[2:-2, 2:-2].any()


def test_curves_draw_every_key_of_a_group_over_the_steps():
    history = {
        "step": [10, 20, 30],
        "loss_d": [2.0, 1.5, 1.0],
        "real_score": [0.0, 1.0, 2.0],
        "fake_score": [0.0, -1.0, -2.0],
    }
    figure = plots.curves(history, [["loss_d"], ["real_score", "fake_score"]])
    lines = [line for axis in figure.axes for line in axis.lines]
    assert [line.get_label() for line in lines] == ["loss d", "real score", "fake score"]
    assert lines[0].get_xydata().tolist() == [[10, 2.0], [20, 1.5], [30, 1.0]]
    names = {text.get_text(): text for axis in figure.axes for text in axis.texts}
    assert set(names) == {"loss d", "real score", "fake score"}
    assert all(names[line.get_label()].get_color() == line.get_color() for line in lines)
    assert names["real score"].get_position()[1] > names["fake score"].get_position()[1]
    assert not any(axis.get_legend() for axis in figure.axes)


def test_curves_that_end_at_one_value_have_names_that_do_not_overlap():
    history = {"step": [1, 2], "a": [0.0, 1.0], "b": [1.0, 1.0], "c": [2.0, 1.0]}
    figure = plots.curves(history, [["a", "b", "c"]])
    figure.canvas.draw()
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 3 and all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))


def test_intervals_draw_values_and_ends_in_order():
    charts = {"a": {"floor": (0.0, -0.1, 0.1), "synthetic": (0.4, 0.3, 0.6)}, "b": {"floor": (1, 0, 2)}}
    first, second = plots.intervals(charts, "KID").axes
    positions = [list(line.get_xdata()) for line in first.lines]
    assert [-0.1, 0.1] in positions and [0.4] in positions
    assert [label.get_text() for label in first.get_yticklabels()] == ["floor", "synthetic"]
    assert (first.get_title(), second.get_title(), first.get_xlabel()) == ("a", "b", "KID")


def test_intervals_mark_zero_only_where_it_says_something_and_share_the_axes_of_equal_entries():
    scores = {
        "10 %": {"real": (0.8, 0.7, 0.9), "both": (0.6, 0.5, 0.7)},
        "100 %": {"real": (2, 1, 3), "both": (1, 1, 1)},
    }
    left, right = plots.intervals(scores, "Jaccard").axes
    assert left.get_xlim() == right.get_xlim() and left.get_xlim()[0] > 0.3
    assert right.yaxis.get_tick_params()["labelleft"] is False
    assert plots.intervals(scores, "difference of Jaccard").axes[0].get_xlim()[0] <= 0
    other = plots.intervals({"a": {"x": (1, 1, 2)}, "b": {"y": (5, 4, 6)}}, "FD").axes
    assert other[0].get_xlim() != other[1].get_xlim()


def test_curves_are_named_at_their_ends_without_overlap():
    history = {"step": [1, 2], "a": [0.0, 1.0], "b": [0.0, 1.0], "c": [5.0, 0.0]}
    (axis,) = plots.curves(history, [["a", "b", "c"]]).axes
    assert [text.get_text() for text in axis.texts] == ["c", "a", "b"] and axis.get_legend() is None
    heights = [text.get_position()[1] for text in axis.texts]
    assert np.diff(heights).min() >= 0.119 and axis.texts[0].get_color() == axis.lines[2].get_color()


def test_bands_draw_a_line_in_a_band_per_title_over_the_same_x():
    rows = [5, 4, 3], [1, 2, 2], [9, 6, 4]
    kid, fd = plots.bands([10, 20, 40], {"KID": rows, "FD": rows}, "images").axes
    assert (kid.get_title(), fd.get_title(), fd.get_xlabel()) == ("KID", "FD", "images")
    assert fd.lines[0].get_ydata().tolist() == [5, 4, 3]
    corners = kid.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (1, 9)
    assert [label.get_text() for label in kid.get_xticklabels()] == ["10", "20", "40"]
    (linear,) = plots.bands([10, 20, 40], {"KID": rows}, "images", log=False).axes
    assert linear.get_xscale() == "linear" and kid.get_xscale() == "log"


def test_diagram_has_every_box_and_an_arrow_between_their_centers():
    figure = plots.diagram({"sketch": (0, 0), "GENERATOR\nU-Net": (1, 2)}, [("sketch", "GENERATOR\nU-Net", "lines")])
    (axis,) = figure.axes
    boxes = {text.get_text(): text for text in axis.texts if text.get_bbox_patch() and text.get_text()}
    assert list(boxes) == ["sketch", "GENERATOR\nU-Net", "lines"]
    colors = [text.get_bbox_patch().get_facecolor() for text in boxes.values()]
    assert colors[0] == colors[2] == (1, 1, 1, 1) != colors[1], "networks are colored"
    (arrow,) = (text for text in axis.texts if getattr(text, "arrow_patch", None))
    assert (arrow.xyann, arrow.xy) == ((0, 0), (1, 2))


def test_distributions_of_groups_of_different_size_each_sum_to_one():
    figure = plots.distributions({"pixels": {"synthetic": np.arange(10.0), "real": np.arange(40.0)}}, "distance")
    heights = [sum(bar.get_height() for bar in bars) for bars in figure.axes[0].containers]
    assert np.allclose(heights, 1)
    legend = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in legend] == ["synthetic, N 10", "real, N 40"]


def test_scatter_legend_gives_each_group_with_its_count():
    figure = plots.scatter({"NV": ([1, 2, 3], [0.5, 0.6, 0.7]), "MEL": ([4], [0.1])}, ("size", "Jaccard"))
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["NV, N 3", "MEL, N 1"]
    assert [len(points.get_offsets()) for points in axis.collections] == [3, 1]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("size", "Jaccard")


def test_confusion_shows_counts_and_colors_by_fraction_of_the_row():
    figure = plots.confusion({"before": np.array([[8, 2], [3, 1]]), "after": np.zeros((2, 2), int)}, ["MEL", "NV"])
    before, after = figure.axes
    assert [text.get_text() for text in before.texts] == ["8", "2", "3", "1"]
    assert before.images[0].get_array().tolist() == [[0.8, 0.2], [0.75, 0.25]]
    assert (before.get_title(), after.get_title(), before.get_xlabel()) == ("before", "after", "predicted")


def test_calibration_draws_every_bin_of_every_table():
    table = pd.DataFrame({"confidence": [0.4, 0.9], "accuracy": [0.5, 0.7], "N": [10, 30]})
    (axis,) = plots.calibration({"before": table, "after": table}).axes
    assert len(axis.collections) == 2 and axis.collections[0].get_offsets().tolist() == [[0.4, 0.5], [0.9, 0.7]]


def test_table_with_images_escapes_text_and_resizes_images():
    table = pd.DataFrame({"name": ["<script>", "b"], "fraction": [0.123456, 1.0]}, index=[7, 8])
    wide, gray = np.zeros((10, 20, 3), np.uint8), np.zeros((10, 10), np.uint8)
    html = plots.table_with_images(table, {"image": [wide, gray]}).data
    assert "<script>" not in html and "&lt;script&gt;" in html and ">0.123<" in html
    encoded = re.findall(r"base64,([^\"]+)", html)
    assert [Image.open(BytesIO(b64decode(code))).size for code in encoded] == [(192, 96), (96, 96)]
