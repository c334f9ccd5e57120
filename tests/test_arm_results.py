"""Rows, table and sentences of results, and what a collapsed run changes."""

import numpy as np
import pandas as pd
import pytest

from helpers.experiments.ablation import FLOOR, FULL_RECIPE
from helpers.experiments.ablation import score_rows as generator_rows
from helpers.experiments.ablation import verdicts as generator_verdicts
from helpers.experiments.arm_results import Scores
from helpers.experiments.runner import comparisons, summary
from helpers.metrics.prediction_tables import balanced_accuracy, is_collapsed

PAIRS = [("better", "real"), ("absent", "real")]


def run_of(arm: str, seed: int, accuracy: float, collapsed: bool = False, num_images: int = 80) -> pd.DataFrame:
    """Predictions of two classes, `accuracy` of each right; a collapsed run predicts B only."""
    labels = np.arange(num_images) % 2
    wrong = np.random.default_rng(seed).permutation(num_images)[: round((1 - accuracy) * num_images)]
    p_b = np.where(np.isin(np.arange(num_images), wrong), 1 - labels, labels) * 0.8 + 0.1
    p_b = np.full(num_images, 0.9) if collapsed else p_b
    ids = [f"i{k}" for k in range(num_images)]
    table = pd.DataFrame({"image_id": ids, "group": ids, "label": labels, "p_A": 1 - p_b, "p_B": p_b})
    facts = {"init": "random init", "generator": "none" if arm == "real" else "cgan.pt", "seconds": 10.0 + seed}
    return table.assign(arm=arm, fraction=1.0, seed=seed, collapsed=is_collapsed(table), **facts)


def results_of(collapse: bool = False, seeds: int = 3) -> pd.DataFrame:
    runs = [run_of("real", seed, 0.7) for seed in range(seeds)]
    runs += [run_of("better", seed, 0.95, collapsed=collapse and seed == 1) for seed in range(seeds)]
    return pd.concat(runs, ignore_index=True)


@pytest.mark.parametrize(("count", "taken", "expected"), [(30, 16, True), (30, 15, False), (29, 29, False)])
def test_is_collapsed_if_one_large_class_takes_over_half_of_another(count, taken, expected):
    labels = np.array([0] * count + [1] * 60)
    p_b = np.where(labels == 1, 0.9, 0.1)
    p_b[:taken] = 0.9
    table = pd.DataFrame({"image_id": range(len(labels)), "label": labels, "p_A": 1 - p_b, "p_B": p_b})
    assert is_collapsed(table) is expected


def test_intervals_stay_within_the_range_of_the_measure():
    """Two seeds that differ much: Student's t with one degree of freedom reaches beyond 1."""
    results = pd.concat([run_of("real", 0, 0.99), run_of("real", 1, 0.85)], ignore_index=True)
    results = pd.concat([results, results.assign(arm="better")], ignore_index=True)
    row = summary(results, balanced_accuracy).loc[(1.0, "real")]
    assert row["to"] == 1 and 0 <= row["from"] < row["balanced accuracy"] < 1
    results.loc[(results["arm"] == "better") & (results["seed"] == 0), ["p_A", "p_B"]] = [0.9, 0.1]
    row = comparisons(results, balanced_accuracy, [("better", "real")]).iloc[0]
    assert row["from"] == -1 and row["to"] <= 1


def test_scores_have_a_row_per_run_mean_and_difference():
    results = results_of()
    rows = Scores.of(results, {balanced_accuracy: PAIRS}).with_recalls().rows()
    assert set(rows["measure"]) == {"balanced_accuracy", "recall_A", "recall_B"}
    by_run = rows[rows["seed"].notna() & (rows["measure"] == "balanced_accuracy")]
    means = by_run.groupby("arm")["value"].mean()
    assert len(by_run) == 6 and means.to_dict() == pytest.approx({"real": 0.7, "better": 0.95}, abs=0.02)
    mean = rows[rows["seed"].isna() & rows["against"].isna() & (rows["measure"] == "balanced_accuracy")]
    assert mean.set_index("arm")["value"].to_dict() == pytest.approx(means.to_dict()) and (mean["seeds"] == 3).all()
    difference = rows[rows["against"].notna()]
    assert difference[["arm", "against", "verdict"]].to_numpy().tolist() == [["better", "real", "helps"]]
    assert difference["value"].item() == pytest.approx(means["better"] - means["real"])
    assert rows["seconds"].sum() == 2 * (10 + 11 + 12), "every training once"
    assert rows.loc[rows["measure"] == "recall_A", "n"].unique().tolist() == [40] and rows["n"].notna().all()
    assert rows.loc[(rows["arm"] == "better") & rows["against"].isna(), "generator"].unique().tolist() == ["cgan.pt"]


def test_a_collapsed_run_is_named_and_also_left_out():
    results = results_of(collapse=True)
    scores = Scores.of(results, {balanced_accuracy: PAIRS})
    arms, differences = scores.scored[0].arms.loc[1.0], scores.scored[0].differences.loc[1.0]
    assert list(arms.index) == ["real", "better", "better, without collapsed runs"]
    assert arms["seeds"].tolist() == [3, 3, 2] and arms["collapsed"].tolist() == [0, 1, 0]
    assert arms["balanced accuracy"].tolist() == pytest.approx([0.7, (0.5 + 0.95 * 2) / 3, 0.95], abs=0.02)
    both = results[results["seed"] != 1]
    expected = comparisons(both, balanced_accuracy, PAIRS).iloc[0]
    assert differences.iloc[1]["difference"] == pytest.approx(expected["difference"]), "the same seeds of both arms"
    assert differences["seeds"].tolist() == [3, 2] and differences["verdict"].iloc[1] == "helps"
    text = " ".join(scores.sentences(["real", "better", "filtered"]))
    assert "1 collapsed runs included" in text and "better at 100% collapsed with seed 1." in text
    assert text.endswith("Not run: filtered.")
    assert list(scores.table().loc["100 %"]["collapsed"]) == [0, 1, 0]


def test_one_seed_has_no_verdict():
    scores = Scores.of(results_of(seeds=1), {balanced_accuracy: PAIRS})
    assert scores.rows()["verdict"].dropna().tolist() == ["one seed, no verdict"]
    assert "helps" not in " ".join(scores.sentences(["real", "better"]))


def test_one_remaining_seed_has_no_verdict():
    differences = comparisons(results_of(collapse=True, seeds=2), balanced_accuracy, PAIRS)
    assert differences["verdict"].tolist()[1] == "one seed, no verdict" and differences["seeds"].tolist() == [2, 1]


def generators(kid: dict[str, list[float]]) -> pd.DataFrame:
    """Scores of generators by arm and seed."""
    facts = {"fraction": 1.0, "n": 12, "n_real": 12, "fd": 3.0, "seconds": 5.0, "updates": 2}
    return pd.DataFrame(
        {"arm": arm, "seed": seed, "kid": value, "kid_low": value - 0.01, "kid_high": value + 0.01} | facts
        for arm, values in kid.items()
        for seed, value in enumerate(values)
    )


def test_rows_of_generators_compare_kid_with_the_full_recipe():
    kid = {FLOOR: [0.0, 0.0], FULL_RECIPE: [0.1, 0.2], "no L1": [0.2, 0.301], "no R1": [0.1, 0.3], "no z": [0.05]}
    rows = generator_rows(generators(kid))
    scores = rows[rows["against"].isna()]
    assert len(scores) == 9 * 2 and set(scores["measure"]) == {"kid", "fd"} and rows["seconds"].sum() == 9 * 5
    assert scores[scores["measure"] == "kid"]["low"].notna().all() and rows["n"].notna().all()
    differences = rows[rows["against"].notna()].set_index("arm")
    assert differences["verdict"].to_dict() == {
        "no L1": "KID is higher",
        "no R1": "no difference seen",
        "no z": "one seed, no verdict",
    }
    assert differences.loc["no L1", "value"] == pytest.approx(0.1005) and pd.isna(differences.loc["no z", "low"])
    lines = generator_verdicts(rows, [*kid, "pix2pix"])
    assert lines[0].startswith("no L1 at 100% of the images against full recipe: KID is higher (+0.1005")
    assert len(lines) == 4 and lines[-1] == "Not run: pix2pix."
