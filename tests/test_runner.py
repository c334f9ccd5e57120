import numpy as np
import pandas as pd
import pytest

from helpers.experiments.runner import Arm, comparisons, fraction_of_rows, run_grid, summary, to_sentences


def measured(better: float) -> Arm:
    """An arm that scores 40 images: their difficulty, a little chance, and `better`."""

    def cell(share: float, seed: int, work) -> pd.DataFrame:
        work.mkdir(parents=True)
        (work / "checkpoint.pt").write_text("large")
        hard = np.random.default_rng(0).uniform(0.3, 0.8, 40)
        chance = np.random.default_rng([seed, int(1000 + 100 * better)]).normal(0, 0.01, 40)
        names = [f"{k:07d}" for k in range(40)]
        return pd.DataFrame(
            {"image_id": names, "group": names, "seconds": 1.5, "jaccard": hard + chance + better * share}
        )

    return cell


def test_cells_are_run_once_and_go_on_after_a_kill(tmp_path):
    calls = []

    def counted(arm: Arm) -> Arm:
        def cell(share, seed, work):
            calls.append((share, seed))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return arm(share, seed, work)

        return cell

    arms = {"plain": counted(measured(0)), "a + b": counted(measured(0.1))}
    with pytest.raises(KeyboardInterrupt):
        run_grid(arms, [0.5], [0, 1], tmp_path, {})
    assert len(list(tmp_path.glob("*.csv"))) == 2 and not list(tmp_path.glob("*.part"))
    results = run_grid(arms, [0.5], [0, 1], tmp_path, {})
    assert calls == [(0.5, 0), (0.5, 1), (0.5, 0), (0.5, 0), (0.5, 1)], "two before, the killed one again, the last"
    assert len(results) == 4 * 40 and results["image_id"].iloc[0] == "0000000", "ids keep their zeros"
    assert list(results.columns[:3]) == ["arm", "fraction", "seed"]
    assert not list(tmp_path.glob("work-*")), "checkpoints of finished cells are gone"
    pd.testing.assert_frame_equal(run_grid(arms, [0.5], [0, 1], tmp_path, {}), results)
    assert len(calls) == 5


def test_results_of_another_plan_are_refused(tmp_path):
    arms = {"real": measured(0)}
    run_grid(arms, [1.0], [0], tmp_path, {"steps": 10, "split": "val"})
    assert len(run_grid(arms, [1.0], [0, 1], tmp_path, {"steps": 10, "split": "val"})) == 80, "seeds may be added"
    with pytest.raises(ValueError, match=r"another experiment .split 'val' there, 'test' here"):
        run_grid(arms, [1.0], [0], tmp_path, {"steps": 10, "split": "test"})


def test_a_plan_that_came_to_nothing_binds_nobody(tmp_path):
    def mistyped(*_):
        raise ValueError("no such network")

    with pytest.raises(ValueError, match="no such network"):
        run_grid({"real": mistyped}, [1.0], [0], tmp_path, {"network": "resnet19"})
    assert len(run_grid({"real": measured(0)}, [1.0], [0], tmp_path, {"network": "resnet18"})) == 40
    with pytest.raises(ValueError, match="another experiment"):
        run_grid({"real": measured(0)}, [1.0], [1], tmp_path, {"network": "resnet19"})


def test_some_arms_alone_are_those_of_the_whole(tmp_path):
    arms = {"real": measured(0), "better": measured(0.1), "worse": measured(-0.2)}
    some = run_grid(arms, [1.0], [0, 1], tmp_path, {"steps": 1}, only=["worse", "real"])
    assert list(dict.fromkeys(some["arm"])) == ["real", "worse"] and not list(tmp_path.glob("better*"))
    assert comparisons(some, "jaccard", PAIRS).index.to_list() == [(1.0, "worse", "real")]
    assert comparisons(some, "jaccard", [("better", "real")]).empty
    written = (tmp_path / "worse-1-0.csv").stat().st_mtime_ns
    everything = run_grid(arms, [1.0], [0, 1], tmp_path, {"steps": 1})
    assert len(everything) == 3 * 80 and (tmp_path / "worse-1-0.csv").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="no arm 'best': there are real, better, worse"):
        run_grid(arms, [1.0], [0], tmp_path / "other", {"steps": 1}, only=["real", "best"])
    assert not (tmp_path / "other").exists(), "refused before anything is written"


PAIRS = [("better", "real"), ("same", "real"), ("worse", "real"), ("worse", "better")]


def test_comparisons_know_which_arm_is_better(tmp_path):
    arms = {"real": measured(0), "same": measured(-0.0001), "better": measured(0.1), "worse": measured(-0.2)}
    results = run_grid(arms, [0.1, 1.0, 1.0], [0, 1, 2], tmp_path, {})
    table = summary(results, "jaccard")
    assert len(table) == 8 and (table["N"] == 40).all() and (table["seeds"] == 3).all()
    assert (table["from"] < table["jaccard"]).all() and (table["jaccard"] < table["to"]).all()
    assert (table["worst seed"] < table["jaccard"]).all() and (table["jaccard"] < table["best seed"]).all()
    found = comparisons(results, "jaccard", PAIRS)
    assert found.loc[1.0]["verdict"].to_list() == ["helps", "no difference seen", "hurts", "hurts"]
    assert found.loc[1.0]["difference"].to_list() == pytest.approx([0.1, 0, -0.2, -0.3], abs=0.005)
    assert found.loc[0.1]["difference"].to_list() == pytest.approx([0.01, 0, -0.02, -0.03], abs=0.005), "a tenth of it"
    words = to_sentences(found, "jaccard")
    assert len(words) == 8 and words[4].startswith("100% of the real images, better against real: helps (+0.")
    assert words[4].endswith("N 40, 3 seeds)")


def test_one_seed_makes_no_verdict(tmp_path):
    results = run_grid({"real": measured(0), "better": measured(0.1)}, [1.0], [0], tmp_path, {})
    assert comparisons(results, "jaccard", [("better", "real")])["verdict"].item() == "one seed, no verdict"


def test_photographs_of_one_lesion_are_resampled_together(tmp_path):
    def grouped(share, seed, work):
        lesions = np.repeat(np.arange(10), 4)
        value = np.random.default_rng(5).uniform(size=10)[lesions]
        return pd.DataFrame(
            {"image_id": [f"i{k}" for k in range(40)], "group": lesions, "seconds": 1, "jaccard": value}
        )

    def alone(share, seed, work):
        return grouped(share, seed, work).assign(group=range(40))

    widths = []
    for name, arm in (("grouped", grouped), ("alone", alone)):
        row = summary(run_grid({"real": arm}, [1.0], [0], tmp_path / name, {}), "jaccard").iloc[0]
        widths.append(row["to"] - row["from"])
    assert widths[0] > 1.5 * widths[1]


def test_a_share_takes_whole_lesions_and_grows(phantom_store):
    few, all_rows = fraction_of_rows(phantom_store, 0.2), fraction_of_rows(phantom_store, 1.0)
    assert set(few) < set(all_rows) and len(all_rows) == len(phantom_store.rows("train", ["mask", "label", "sketch"]))
    lesions = phantom_store.table["lesion_id"].to_numpy()
    rest = np.setdiff1d(all_rows, few)
    assert not set(lesions[few]) & set(lesions[rest])
    for k in range(7):
        whole, part = (len(set(lesions[rows[phantom_store.labels[rows] == k]])) for rows in (all_rows, few))
        assert part == max(1, round(0.2 * whole)), "as large a share of every class"


def test_a_measure_may_be_a_function_of_cases_and_weights(tmp_path):
    """The median, say, which is no mean over images."""

    def upper_half(cell: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
        best = cell["jaccard"].to_numpy() >= cell["jaccard"].median()
        return weights @ (cell["jaccard"] * best) / (weights @ best)

    results = run_grid({"real": measured(0), "better": measured(0.1)}, [1.0], [0, 1, 2], tmp_path, {})
    table, found = summary(results, upper_half), comparisons(results, upper_half, [("better", "real")])
    cell = results[(results["arm"] == "real") & (results["seed"] == 1)]["jaccard"]
    assert table["upper half"].iloc[0] == pytest.approx(cell[cell >= cell.median()].mean(), abs=0.02)
    assert found["verdict"].item() == "helps" and found["difference"].item() == pytest.approx(0.1, abs=0.01)
    assert "upper half" in to_sentences(found, upper_half)[0]


def test_networks_of_several_starts_are_not_compared(tmp_path):
    results = run_grid({"real": measured(0), "better": measured(0.1)}, [1.0], [0, 1], tmp_path, {})
    results["init"] = np.where(results["seed"] == 0, "ImageNet", "random init")
    with pytest.raises(ValueError, match="started from ImageNet and from random init"):
        comparisons(results, "jaccard", [("better", "real")])
