import numpy as np
import pandas as pd
import pytest
from factories import MeanPoolExtractor

from helpers.experiments import kid_scale as module
from helpers.experiments.kid_scale import (
    STEPS,
    TARGETS,
    KidScale,
    bisect,
    generated_halves,
    kid_scale,
    to_page,
    verdict,
)
from helpers.experiments.results import publish
from helpers.metrics.extractors import FeatureExtractor


def generate(batch: dict, seed: int) -> np.ndarray:
    """A generator without a network: one color per label, with noise by seed."""
    rng = np.random.default_rng(seed)
    images = 80 + 4 * batch["labels"][:, None, None, None] + rng.integers(0, 30, (len(batch["labels"]), 32, 32, 3))
    return images.astype(np.uint8)


@pytest.mark.parametrize(("target", "expected"), [(0.25, 8), (0.0, 1), (0.51, 16), (3.0, STEPS)])
def test_bisect_finds_the_nearest_step_in_few_measures(target, expected):
    measured = []

    def measure(step: int) -> float:
        measured.append(step)
        return step / STEPS

    assert bisect(measure, target) == expected and len(set(measured)) <= 8


def test_generated_halves_are_of_other_rows_where_there_are_enough(phantom_store):
    seen = []

    def record(batch: dict, seed: int) -> np.ndarray:
        seen.append(batch["rows"])
        return generate(batch, seed)

    halves = generated_halves(record, phantom_store, KidScale(40))
    assert len(halves[0]) == len(halves[1]) == 40 and len(set(seen[0])) == 80
    assert [len(half) for half in generated_halves(record, phantom_store, KidScale(200))] == [200, 200]


def test_kid_scale_reaches_the_targets_by_damage_that_grows(phantom_store, tmp_path, monkeypatch):
    pool = FeatureExtractor("pool", MeanPoolExtractor(2.0))
    table, shown = kid_scale(generate, phantom_store, pool, KidScale(40))
    assert list(shown) == ["blur", "noise", "JPEG", "color"]
    assert (table["n"] == 40).all() and (table["n_real"] == 40).all()
    color = table[table["damage"] == "color"]
    assert color["strength"].is_monotonic_increasing and abs(color["value"].iloc[0]) < 0.1
    assert color["value"].iloc[1:].tolist() == pytest.approx(TARGETS[1:], rel=0.25, abs=0.01)
    blur = table[table["damage"] == "blur"]
    assert blur["value"].max() < 0.3, "mean colors do not see blur"
    assert len(shown["color"]) == len(TARGETS) > len(shown["blur"]) >= 1, "out of reach"
    assert f"The strongest blur has a KID of {blur['value'].max():.3f}." in verdict(table)
    paths = publish("kid-scale", table.assign(seconds=1.0), to_page(table, shown, "cgan", "phantoms"), tmp_path)
    assert [path.suffix for path in paths] == [".csv", ".md", ".png"] and paths[2].stat().st_size < 300_000
    assert pd.read_csv(paths[0])["target"].tolist() == list(TARGETS) * 4
    assert "none is of a patient" in paths[1].read_text(encoding="utf-8")


def test_figure_has_every_image_under_its_target_and_gaps_between():
    values, reached = [0.0, 0.008, 0.05, 0.12, 0.31, 0.5], [True, False, True, True, True, False]
    table = pd.DataFrame({"damage": "blur", "target": TARGETS, "value": values, "reached": reached})
    images = [np.full((8, 8, 3), 40 * k, np.uint8) for k in range(4)]
    drawn = module.figure(table, {"blur": images})
    pixels = [int(axis.images[0].get_array().max()) for axis in drawn.axes]
    assert pixels == [0, 255, 40, 80, 120, 255] and [axis.axison for axis in drawn.axes] == reached
    assert drawn.axes[2].get_title() == "KID 0.05" and drawn.axes[2].get_xlabel() == "0.050"
    assert verdict(table)[1:] == ["The strongest blur has a KID of 0.500."], "0.02 was only between two steps"


def test_kid_scale_of_few_images_raises():
    with pytest.raises(ValueError, match="num_images must be at least 10, got 9"):
        module.KidScale(num_images=9)
