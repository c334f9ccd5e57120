from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories import isic2016

from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.experiments import segmentation as module
from helpers.experiments.runner import comparisons, fraction_of_rows, summary
from helpers.experiments.segmentation import SegmentationPlan, score_images, segmentation_experiment
from helpers.models.cgan import CGANConfig
from helpers.models.segmenter import Segmenter, SegmenterConfig
from helpers.models.trainer import TrainConfig


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
    segmenter = Segmenter(SegmenterConfig(64, pretrained=False)).eval()
    assert score_images(segmenter, table)["jaccard"].mean() < 0.5


def plan_for(store) -> SegmentationPlan:
    return SegmentationPlan(
        segmenter=SegmenterConfig(64, pretrained=False),
        generator=CGANConfig(64, tuple(store.classes), base_channels=8),
        train_config=TrainConfig(2, 4),
        gan_train_config=TrainConfig(2, 4),
        num_pairs=8,
        fractions=(0.5,),
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
    assert len(comparisons(results, "jaccard", module.COMPARISON_PAIRS)) == 5


def test_arms_differ_in_what_they_say_and_in_nothing_else(phantom_store, tmp_path, monkeypatch):
    seen, few = {}, fraction_of_rows(phantom_store, 0.5)

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
    real, classical, drawn, both, alone = (arm(n) for n in ("real", "real + augmentation", "real + synthetic",
                                                            "real + synthetic + augmentation", "synthetic only"))  # fmt: skip
    assert all(run == TrainConfig(2, 4, seed=1) for *_, run in (real, classical, drawn, both, alone))
    assert [s.zoom > 0 for _, s, _ in (real, classical, drawn, both, alone)] == [False, True, False, True, False]
    assert [len(parts) for parts, *_ in (real, classical, drawn, both, alone)] == [1, 1, 2, 2, 1]
    for parts, *_ in (real, classical, drawn, both):
        assert parts[0].images is phantom_store.images and np.array_equal(parts[0].rows, few)
    assert all(len(parts[-1].images) == 8 for parts, *_ in (drawn, both, alone)), "none of them real"
    assert len(trained_on) == 3 and all(np.array_equal(rows, few) for rows in trained_on)


def test_a_set_without_masks_is_refused(phantom_store, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    plan = SegmentationPlan(
        SegmenterConfig(64), CGANConfig(64, ("NV",)), TrainConfig(1), TrainConfig(1), 1, (1.0,), (0,)
    )
    with pytest.raises(DataError, match="lacks masks or labels"):
        segmentation_experiment(phantom_store, plan, tmp_path)
