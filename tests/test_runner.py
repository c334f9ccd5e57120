from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.data.files import DataError
from helpers.experiments.runner import (
    Arm,
    check_fractions,
    check_rows,
    comparisons,
    fraction_of_rows,
    run_grid,
    summary,
    to_sentences,
)

PAIRS = [("better", "real"), ("same", "real"), ("worse", "real"), ("worse", "better")]


def constant_arm(gain: float) -> Arm:
    """An arm that scores 40 images: the image's difficulty, a little noise per seed, and `gain` times the fraction."""

    def run_one(fraction: float, seed: int, work) -> pd.DataFrame:
        work.mkdir(parents=True)
        (work / "checkpoint.pt").write_text("large")
        difficulty = np.random.default_rng(0).uniform(0.3, 0.8, 40)
        noise = np.random.default_rng([seed, int(1000 + 100 * gain)]).normal(0, 0.01, 40)
        ids = [f"{k:07d}" for k in range(40)]
        jaccard = difficulty + noise + gain * fraction
        return pd.DataFrame({"image_id": ids, "group": ids, "seconds": 1.5, "jaccard": jaccard})

    return run_one


def test_run_grid_after_a_kill_continues_with_missing_runs(tmp_path):
    calls = []

    def counted(arm: Arm) -> Arm:
        def run_one(fraction, seed, work):
            calls.append((fraction, seed))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return arm(fraction, seed, work)

        return run_one

    arms = {"baseline": counted(constant_arm(0)), "a + b": counted(constant_arm(0.1))}
    with pytest.raises(KeyboardInterrupt):
        run_grid(arms, [0.5], [0, 1], tmp_path, {})
    assert len(list(tmp_path.glob("*.csv"))) == 2 and not list(tmp_path.glob("*.part"))
    results = run_grid(arms, [0.5], [0, 1], tmp_path, {})
    assert calls == [(0.5, 0), (0.5, 1), (0.5, 0), (0.5, 0), (0.5, 1)], "two before, the killed one again, the last"
    assert len(results) == 4 * 40 and results["image_id"].iloc[0] == "0000000", "ids keep leading zeros"
    assert list(results.columns[:3]) == ["arm", "fraction", "seed"]
    assert not list(tmp_path.glob("work-*")), "work folders of finished runs are deleted"
    pd.testing.assert_frame_equal(run_grid(arms, [0.5], [0, 1], tmp_path, {}), results)
    assert len(calls) == 5


def test_run_grid_ids_are_text(tmp_path):
    ids = ["NA", "null", "007", "1e5"]

    def arm(fraction: float, seed: int, work: Path) -> pd.DataFrame:
        return pd.DataFrame({"image_id": ids, "group": ids, "jaccard": [0.5, np.nan, 1, 0], "seconds": 1.0})

    results = run_grid({"real": arm}, [1.0], [0], tmp_path, {})
    assert list(results["image_id"]) == ids and list(results["group"]) == ids
    assert results["jaccard"].tolist() == pytest.approx([0.5, np.nan, 1, 0], nan_ok=True)


def test_run_grid_with_another_fingerprint_raises(tmp_path):
    arms = {"real": constant_arm(0)}
    run_grid(arms, [1.0], [0], tmp_path, {"steps": 10, "split": "val"})
    assert len(run_grid(arms, [1.0], [0, 1], tmp_path, {"steps": 10, "split": "val"})) == 80, "seeds may be added"
    with pytest.raises(ValueError, match=r"another experiment .split is 'val' there, 'test' here"):
        run_grid(arms, [1.0], [0], tmp_path, {"steps": 10, "split": "test"})


def test_run_grid_without_results_accepts_another_fingerprint(tmp_path):
    def failing(*_):
        raise ValueError("unknown architecture")

    with pytest.raises(ValueError, match="unknown architecture"):
        run_grid({"real": failing}, [1.0], [0], tmp_path, {"arch": "resnet19"})
    assert len(run_grid({"real": constant_arm(0)}, [1.0], [0], tmp_path, {"arch": "resnet18"})) == 40
    with pytest.raises(ValueError, match="another experiment"):
        run_grid({"real": constant_arm(0)}, [1.0], [1], tmp_path, {"arch": "resnet19"})


def test_run_grid_with_only_runs_these_arms(tmp_path):
    arms = {"real": constant_arm(0), "better": constant_arm(0.1), "worse": constant_arm(-0.2)}
    subset = run_grid(arms, [1.0], [0, 1], tmp_path, {"steps": 1}, only=["worse", "real"])
    assert list(dict.fromkeys(subset["arm"])) == ["real", "worse"] and not list(tmp_path.glob("better*"))
    assert comparisons(subset, "jaccard", PAIRS).index.to_list() == [(1.0, "worse", "real")]
    assert comparisons(subset, "jaccard", [("better", "real")]).empty
    written = (tmp_path / "worse-1-0.csv").stat().st_mtime_ns
    results = run_grid(arms, [1.0], [0, 1], tmp_path, {"steps": 1})
    assert len(results) == 3 * 80 and (tmp_path / "worse-1-0.csv").stat().st_mtime_ns == written


def test_run_grid_with_an_unknown_arm_raises_and_writes_nothing(tmp_path):
    arms = {"real": constant_arm(0), "better": constant_arm(0.1)}
    with pytest.raises(ValueError, match="arm must be one of real, better; got 'best'"):
        run_grid(arms, [1.0], [0], tmp_path / "other", {"steps": 1}, only=["real", "best"])
    assert not (tmp_path / "other").exists()


def test_comparisons_find_the_better_arm(tmp_path):
    arms = {"real": constant_arm(0), "same": constant_arm(-0.0001)}
    arms |= {"better": constant_arm(0.1), "worse": constant_arm(-0.2)}
    results = run_grid(arms, [0.1, 1.0, 1.0], [0, 1, 2], tmp_path, {})
    table = summary(results, "jaccard")
    assert len(table) == 8 and (table["N"] == 40).all() and (table["seeds"] == 3).all()
    assert (table["from"] < table["jaccard"]).all() and (table["jaccard"] < table["to"]).all()
    assert (table["worst seed"] < table["jaccard"]).all() and (table["jaccard"] < table["best seed"]).all()
    differences = comparisons(results, "jaccard", PAIRS)
    assert differences.loc[1.0]["verdict"].to_list() == ["helps", "no difference seen", "hurts", "hurts"]
    assert differences.loc[1.0]["difference"].to_list() == pytest.approx([0.1, 0, -0.2, -0.3], abs=0.005)
    assert differences.loc[0.1]["difference"].to_list() == pytest.approx([0.01, 0, -0.02, -0.03], abs=0.005)
    sentences = to_sentences(differences, "jaccard")
    assert len(sentences) == 8
    assert sentences[4].startswith("100% of the training images, better against real: helps (+0.")
    assert sentences[4].endswith("N 40, 3 seeds)")


def test_comparisons_with_one_seed_have_no_verdict(tmp_path):
    results = run_grid({"real": constant_arm(0), "better": constant_arm(0.1)}, [1.0], [0], tmp_path, {})
    assert comparisons(results, "jaccard", [("better", "real")])["verdict"].item() == "one seed, no verdict"


def test_comparisons_of_different_initial_weights_raise(tmp_path):
    results = run_grid({"real": constant_arm(0), "better": constant_arm(0.1)}, [1.0], [0, 1], tmp_path, {})
    results["init"] = np.where(results["seed"] == 0, "ImageNet", "random init")
    with pytest.raises(ValueError, match="same initial weights to be compared, got ImageNet and random init"):
        comparisons(results, "jaccard", [("better", "real")])


def test_summary_resamples_the_images_of_a_lesion_together(tmp_path):
    def grouped(fraction, seed, work):
        lesions = np.repeat(np.arange(10), 4)
        jaccard = np.random.default_rng(5).uniform(size=10)[lesions]
        ids = [f"i{k}" for k in range(40)]
        return pd.DataFrame({"image_id": ids, "group": lesions, "seconds": 1, "jaccard": jaccard})

    def single(fraction, seed, work):
        return grouped(fraction, seed, work).assign(group=range(40))

    widths = []
    for name, arm in (("grouped", grouped), ("single", single)):
        row = summary(run_grid({"real": arm}, [1.0], [0], tmp_path / name, {}), "jaccard").iloc[0]
        widths.append(row["to"] - row["from"])
    assert widths[0] > 1.5 * widths[1]


def test_summary_accepts_a_function_of_results_and_weights(tmp_path):
    """A measure that is not a mean over images."""

    def upper_half(run: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        above = run["jaccard"].to_numpy() >= run["jaccard"].median()
        return weights @ (run["jaccard"] * above) / (weights @ above)

    results = run_grid({"real": constant_arm(0), "better": constant_arm(0.1)}, [1.0], [0, 1, 2], tmp_path, {})
    table, differences = summary(results, upper_half), comparisons(results, upper_half, [("better", "real")])
    jaccard = results[(results["arm"] == "real") & (results["seed"] == 1)]["jaccard"]
    assert table["upper half"].iloc[0] == pytest.approx(jaccard[jaccard >= jaccard.median()].mean(), abs=0.02)
    assert differences["verdict"].item() == "helps"
    assert differences["difference"].item() == pytest.approx(0.1, abs=0.01)
    assert "upper half" in to_sentences(differences, upper_half)[0]


def test_fraction_of_rows_takes_whole_lesions_of_every_class(phantom_store):
    few, all_rows = fraction_of_rows(phantom_store, 0.2), fraction_of_rows(phantom_store, 1.0)
    assert set(few) < set(all_rows) and len(all_rows) == len(phantom_store.rows("train", ["mask", "label", "sketch"]))
    lesions = phantom_store.table["lesion_id"].to_numpy()
    assert not set(lesions[few]) & set(lesions[np.setdiff1d(all_rows, few)])
    for k in range(7):
        num_all, num_few = (len(set(lesions[rows[phantom_store.labels[rows] == k]])) for rows in (all_rows, few))
        assert num_few == max(1, round(0.2 * num_all)), "the same fraction of every class"


def test_fraction_of_rows_needs_masks_unless_the_store_has_none(phantom_store, monkeypatch):
    all_rows = fraction_of_rows(phantom_store, 1.0)
    some = np.zeros(len(phantom_store), bool)
    some[all_rows[:5]] = True
    monkeypatch.setattr(phantom_store, "has_mask", some)
    assert list(fraction_of_rows(phantom_store, 1.0)) == list(all_rows[:5])
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    assert list(fraction_of_rows(phantom_store, 1.0)) == list(phantom_store.rows("train", ["label", "sketch"]))


def test_check_fractions_outside_0_to_1_raises():
    check_fractions([0.01, 1.0])
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got \[0.0, 1.5\]"):
        check_fractions([0.0, 0.5, 1.5])


def test_check_rows_without_training_or_test_images_raises(phantom_store, monkeypatch):
    num_train = len(fraction_of_rows(phantom_store, 1.0))
    check_rows(phantom_store, np.arange(3), "test")
    with pytest.raises(DataError, match=f"phantoms needs .* to test on in test; got {num_train} and 0"):
        check_rows(phantom_store, np.arange(0), "test")
    monkeypatch.setattr(phantom_store, "has_sketch", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match="got 0 and 3"):
        check_rows(phantom_store, np.arange(3), "test")
