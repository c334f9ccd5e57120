from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import isic2016

from helpers import experiments as module
from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.data.sketches import contour, filled
from helpers.experiments import (
    SegmentationPlan,
    comparisons,
    drawn_pairs,
    in_words,
    run_cells,
    score_images,
    segmentation_experiment,
    share_of_rows,
    summary,
)
from helpers.models.cgan import CGANSettings, train_cgan
from helpers.models.segmenter import Segmenter, SegmenterSettings
from helpers.models.training import Run


def measured(better: float) -> module.Arm:
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

    def counted(arm: module.Arm) -> module.Arm:
        def cell(share, seed, work):
            calls.append((share, seed))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return arm(share, seed, work)

        return cell

    arms = {"plain": counted(measured(0)), "a + b": counted(measured(0.1))}
    with pytest.raises(KeyboardInterrupt):
        run_cells(arms, [0.5], [0, 1], tmp_path, {})
    assert len(list(tmp_path.glob("*.csv"))) == 2 and not list(tmp_path.glob("*.part"))
    results = run_cells(arms, [0.5], [0, 1], tmp_path, {})
    assert calls == [(0.5, 0), (0.5, 1), (0.5, 0), (0.5, 0), (0.5, 1)], "two before, the killed one again, the last"
    assert len(results) == 4 * 40 and results["image_id"].iloc[0] == "0000000", "ids keep their zeros"
    assert list(results.columns[:3]) == ["arm", "share", "seed"]
    assert not list(tmp_path.glob("work-*")), "checkpoints of finished cells are gone"
    pd.testing.assert_frame_equal(run_cells(arms, [0.5], [0, 1], tmp_path, {}), results)
    assert len(calls) == 5


def test_results_of_another_plan_are_refused(tmp_path):
    arms = {"real": measured(0)}
    run_cells(arms, [1.0], [0], tmp_path, {"steps": 10, "split": "val"})
    assert len(run_cells(arms, [1.0], [0, 1], tmp_path, {"steps": 10, "split": "val"})) == 80, "seeds may be added"
    with pytest.raises(ValueError, match=r"another experiment .split 'val' there, 'test' here"):
        run_cells(arms, [1.0], [0], tmp_path, {"steps": 10, "split": "test"})


PAIRS = [("better", "real"), ("same", "real"), ("worse", "real"), ("worse", "better")]


def test_comparisons_know_which_arm_is_better(tmp_path):
    arms = {"real": measured(0), "same": measured(-0.0001), "better": measured(0.1), "worse": measured(-0.2)}
    results = run_cells(arms, [0.1, 1.0, 1.0], [0, 1, 2], tmp_path, {})
    table = summary(results, "jaccard")
    assert len(table) == 8 and (table["N"] == 40).all() and (table["seeds"] == 3).all()
    assert (table["from"] < table["jaccard"]).all() and (table["jaccard"] < table["to"]).all()
    assert (table["worst seed"] < table["jaccard"]).all() and (table["jaccard"] < table["best seed"]).all()
    found = comparisons(results, "jaccard", PAIRS)
    assert found.loc[1.0]["verdict"].to_list() == ["helps", "no difference seen", "hurts", "hurts"]
    assert found.loc[1.0]["difference"].to_list() == pytest.approx([0.1, 0, -0.2, -0.3], abs=0.005)
    assert found.loc[0.1]["difference"].to_list() == pytest.approx([0.01, 0, -0.02, -0.03], abs=0.005), "a tenth of it"
    words = in_words(found, "jaccard")
    assert len(words) == 8 and words[4].startswith("100% of the real images, better against real: helps (+0.")
    assert words[4].endswith("N 40, 3 seeds)")


def test_one_seed_makes_no_verdict(tmp_path):
    results = run_cells({"real": measured(0), "better": measured(0.1)}, [1.0], [0], tmp_path, {})
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
        row = summary(run_cells({"real": arm}, [1.0], [0], tmp_path / name, {}), "jaccard").iloc[0]
        widths.append(row["to"] - row["from"])
    assert widths[0] > 1.5 * widths[1]


def test_scores_are_taken_at_the_images_own_size(tmp_path, monkeypatch):
    table = open_isic(tmp_path)
    true = [module.read_mask(path) for path in table["mask_path"]]
    monkeypatch.setattr(module, "segment", lambda _, images, shapes: [true.pop(0) for _ in images])
    found = score_images(SimpleNamespace(size=64), table, block=3)
    assert (
        (found["jaccard"] == 1).all()
        and (found["hd95"] == 0).all()
        and list(found["image_id"]) == list(table["image_id"])
    )
    assert found["area"].to_numpy() == pytest.approx([module.read_mask(p).mean() for p in table["mask_path"]])


def test_images_are_squeezed_and_masks_come_back_at_their_size(tmp_path):
    """A stand-in that finds the left half must score as the left half of a picture that is no square."""
    table, asked = open_isic(tmp_path), []

    class LeftHalf(torch.nn.Module):
        size, flips = 64, False

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image):
            asked.append(image.shape[2:])
            left = torch.arange(image.shape[3]) < image.shape[3] // 2
            return (20.0 * left - 10).expand(len(image), 1, *image.shape[2:])

    found = score_images(LeftHalf(), table)
    assert set(asked) == {(64, 64)}
    for row, path in zip(found.itertuples(), table["mask_path"], strict=True):
        true = module.read_mask(path)
        left = np.zeros_like(true)
        left[:, : true.shape[1] // 2] = 1
        assert row.jaccard == pytest.approx(module.scores(left, true)["jaccard"], abs=0.05)


def open_isic(folder):
    """Six pictures of 40 x 32 pixels with their masks."""
    return read(isic2016(folder, 6)).table.iloc[:6]


def test_an_untrained_segmenter_scores_low(phantom_store):
    table = phantom_store.table.iloc[phantom_store.rows("test", needs=["mask"])]
    segmenter = Segmenter(SegmenterSettings(64, pretrained=False)).eval()
    assert score_images(segmenter, table)["jaccard"].mean() < 0.5


def test_a_share_takes_whole_lesions_and_grows(phantom_store):
    few, all_rows = share_of_rows(phantom_store, 0.2), share_of_rows(phantom_store, 1.0)
    assert set(few) < set(all_rows) and len(all_rows) == len(phantom_store.rows("train", ["mask", "label", "sketch"]))
    lesions = phantom_store.table["lesion_id"].to_numpy()
    rest = np.setdiff1d(all_rows, few)
    assert not set(lesions[few]) & set(lesions[rest])
    assert len(set(lesions[few])) == pytest.approx(0.2 * len(set(lesions[all_rows])), abs=1)


@pytest.fixture(scope="module")
def generator(phantom_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    train_cgan(phantom_store, CGANSettings(64, tuple(phantom_store.classes), width=8), folder, Run(2, 4))
    return folder / "checkpoint.pt"


def test_drawn_pairs_have_new_masks_and_are_the_same_again(generator, phantom_store):
    rows = phantom_store.rows("train", ["mask"])
    pairs = drawn_pairs(generator, phantom_store, rows, 12)
    assert pairs.images.shape == (12, 64, 64, 3) and pairs.masks.shape == (12, 64, 64)
    assert set(np.unique(pairs.masks)) == {0, 1} and all(contour(mask).any() for mask in pairs.masks)
    assert all(np.array_equal(filled(contour(mask) // 255), mask) for mask in pairs.masks), "what the sketch encloses"
    known = {phantom_store.masks[row].tobytes() for row in rows}
    assert sum(mask.tobytes() in known for mask in pairs.masks) == 0
    again, other = (drawn_pairs(generator, phantom_store, rows, 12, seed) for seed in (0, 1))
    assert np.array_equal(pairs.images, again.images) and np.array_equal(pairs.masks, again.masks)
    assert not np.array_equal(pairs.masks, other.masks)


def test_a_network_of_other_classes_does_not_draw_pairs(generator, phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "classes", ["benign", "malignant"])
    with pytest.raises(DataError, match="the data have benign malignant"):
        drawn_pairs(generator, phantom_store, np.array([0]), 2)


def plan_for(store) -> SegmentationPlan:
    return SegmentationPlan(
        segmenter=SegmenterSettings(64, pretrained=False),
        generator=CGANSettings(64, tuple(store.classes), width=8),
        run=Run(2, 4),
        draw_run=Run(2, 4),
        pairs=8,
        shares=(0.5,),
        seeds=(0, 1),
    )


def test_the_segmentation_experiment_from_end_to_end(phantom_store, tmp_path):
    results = segmentation_experiment(phantom_store, plan_for(phantom_store), tmp_path)
    test = phantom_store.table.iloc[phantom_store.rows("test", needs=["mask"])]
    assert set(results["image_id"]) == set(test["image_id"])
    counts = results.groupby(["arm", "seed"]).size()
    assert len(counts) == 10 and (counts == len(test)).all()
    assert (tmp_path / "generator-0.5" / "checkpoint.pt").is_file() and not list(tmp_path.glob("work-*"))
    assert summary(results, "jaccard")["jaccard"].between(0, 1).all()
    assert len(comparisons(results, "jaccard", module.COMPARED)) == 5


def test_arms_differ_in_what_they_say_and_in_nothing_else(phantom_store, tmp_path, monkeypatch):
    seen, few = {}, share_of_rows(phantom_store, 0.5)

    def remember(parts, settings, out, run):
        seen[out.name.removeprefix("work-")] = (parts, settings, run)
        raise StopIteration

    def arm(name: str):
        plan = replace(plan_for(phantom_store), seeds=(1,))
        monkeypatch.setattr(module, "run_cells", lambda arms, *_: arms[name](0.5, 1, tmp_path / f"work-{name}"))
        with pytest.raises(StopIteration):
            segmentation_experiment(phantom_store, plan, tmp_path)
        return seen[name]

    trained_on = []
    whole = module.train_cgan
    monkeypatch.setattr(module, "train_cgan", lambda *given: trained_on.append(given[4]) or whole(*given))
    monkeypatch.setattr(module, "train_on_pairs", remember)
    real, classical, drawn, both, alone = (arm(n) for n in ("real", "real + augmentation", "real + drawn",
                                                            "real + drawn + augmentation", "drawn only"))  # fmt: skip
    assert all(run == Run(2, 4, seed=1) for *_, run in (real, classical, drawn, both, alone))
    assert [s.zoom > 0 for _, s, _ in (real, classical, drawn, both, alone)] == [False, True, False, True, False]
    assert [len(parts) for parts, *_ in (real, classical, drawn, both, alone)] == [1, 1, 2, 2, 1]
    for parts, *_ in (real, classical, drawn, both):
        assert parts[0].images is phantom_store.images and np.array_equal(parts[0].rows, few)
    assert all(len(parts[-1].images) == 8 for parts, *_ in (drawn, both, alone)), "none of them real"
    assert len(trained_on) == 3 and all(np.array_equal(rows, few) for rows in trained_on)


def test_a_set_without_masks_is_refused(phantom_store, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    plan = SegmentationPlan(SegmenterSettings(64), CGANSettings(64, ("NV",)), Run(1), Run(1), 1, (1.0,), (0,))
    with pytest.raises(DataError, match="lacks masks or labels"):
        segmentation_experiment(phantom_store, plan, tmp_path)
