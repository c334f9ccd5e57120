import numpy as np
import pytest
import torch
from torch import nn

from helpers.data.files import DataError
from helpers.experiments.ablation import (
    ABLATIONS,
    FLOOR,
    FULL_RECIPE,
    AblatedCGAN,
    AblationPlan,
    GeneratorEval,
    ablation_experiment,
    mean_over_seeds,
    small_data_experiment,
)
from helpers.metrics.extractors import FeatureExtractor
from helpers.models.cgan import CGANConfig
from helpers.models.trainer import TrainConfig


class Tones(nn.Module):
    """A judge that sees tones and their layout."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.tensor(1 / 255))

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 8).flatten(1) * self.unit


@pytest.fixture
def judge() -> FeatureExtractor:
    return FeatureExtractor("tones", Tones())


def plan_for(store, **changed) -> AblationPlan:
    settings = CGANConfig(64, tuple(store.classes), base_channels=8, projected=True)
    run = TrainConfig(2, 2, save_every=2, log_every=1)
    return AblationPlan(
        **{"generator": settings, "run": run, "judged": 12, "fractions": (0.5, 1.0), "seeds": (0,)} | changed
    )


def test_every_arm_is_trained_another_way_and_judged(phantom_store, judge, tmp_path, monkeypatch):
    trained = {}

    class Keeping(GeneratorEval):
        def of(self, generator, **how):
            trained[len(trained)] = torch.cat([w.flatten() for w in generator.state_dict().values()])
            return super().evaluate(generator, **how)

    monkeypatch.setattr("helpers.experiments.ablation.GeneratorEval", Keeping)
    results = ablation_experiment(phantom_store, plan_for(phantom_store), judge, tmp_path)
    arms = [FULL_RECIPE, *ABLATIONS, "no EMA", "no label in G", "no z"]
    assert list(results["arm"]) == [FLOOR, *arms, "no class balancing", "pix2pix"]
    assert (results["n"] == 12).all()
    assert results[["kid", "fd", "diversity", "label_acc", "sketch_sep", "sketch_sep_hand"]].notna().all(axis=None)
    for k in range(1, len(arms)):
        assert not torch.equal(trained[0], trained[k]), f"{arms[k]} is the whole recipe"
    assert results.set_index("arm")["updates"][[FULL_RECIPE, "pix2pix"]].to_list() == [2, 4], "of as many pictures"
    table = mean_over_seeds(results)
    assert table.loc[(FULL_RECIPE, 1.0), "kid, seed 0"] == results["kid"][1]
    assert table.loc[(FULL_RECIPE, 1.0), "above the whole, seed 0"] == 0
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.csv")}
    again = ablation_experiment(phantom_store, plan_for(phantom_store), judge, tmp_path)
    assert again.equals(results) and before == {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.csv")}
    some = ablation_experiment(phantom_store, plan_for(phantom_store), judge, tmp_path, ["pix2pix", FLOOR])
    assert list(some["arm"]) == [FLOOR, "pix2pix"] and list(mean_over_seeds(some)["kid, seed 0"]) == list(some["kid"])
    with pytest.raises(ValueError, match="no arm 'pix3pix': there are photographs, whole recipe"):
        ablation_experiment(phantom_store, plan_for(phantom_store), judge, tmp_path, ["pix3pix"])
    with pytest.raises(ValueError, match="question"):
        small_data_experiment(phantom_store, plan_for(phantom_store), judge, tmp_path)


def test_a_blind_generator_draws_the_same_for_every_label_or_noise():
    settings, batch = CGANConfig(64, ("A", "B"), base_channels=8), {"sketches": torch.zeros(2, 1, 64, 64)}
    batch |= {"labels": torch.tensor([0, 1])}
    for left_out, same in (({"label": False}, True), ({"noise": False}, False)):
        method = AblatedCGAN(settings, **left_out)
        method.networks["generator"].eval()
        pictures = []
        for noise in (torch.zeros(2, settings.z_dim), torch.ones(2, settings.z_dim)):
            torch.manual_seed(0)
            pictures.append(method.generate(batch, noise))
        assert torch.equal(*pictures) != same, "noise numbers"
        labels = []
        for label in (0, 1):
            torch.manual_seed(0)
            labels.append(method.generate(batch | {"labels": torch.full((2,), label)}, noise))
        assert torch.equal(*labels) == same, "labels"


def test_fewer_photographs_and_what_is_copied(phantom_store, judge, tmp_path):
    results = small_data_experiment(phantom_store, plan_for(phantom_store), judge, tmp_path)
    few, all_of_them = results["num_images"]
    assert few < all_of_them == len(phantom_store.rows("train", needs=["mask", "label", "sketch"]))
    assert results[["copies", "pixel_copies"]].isin(np.arange(13) / 12).all(axis=None)
    assert list(mean_over_seeds(results).index) == [(FULL_RECIPE, 0.5), (FULL_RECIPE, 1.0)]
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        small_data_experiment(phantom_store, plan_for(phantom_store, shares=(0.0, 1.0)), judge, tmp_path)


class Copier(nn.Module):
    """Gives back the photograph whose sketch it sees, or another one's."""

    noise, size = 1, 64

    def __init__(self, store, rows, moved: int = 0):
        super().__init__()
        self.store, self.rows, self.moved, self.unused = store, rows, moved, nn.Parameter(torch.zeros(1))

    def forward(self, sketch, label, noise):
        found = []
        for one in (255 * sketch[:, 0]).round().byte().numpy():
            same = [k for k, row in enumerate(self.rows) if np.array_equal(self.store.sketches[row], one)]
            found.append(self.rows[((same or [0])[0] + self.moved) % len(self.rows)])
        images = torch.from_numpy(self.store.images[np.array(found)]).permute(0, 3, 1, 2)
        return images / 127.5 - 1


def test_photographs_themselves_are_at_no_distance_and_obey(phantom_store, judge, tmp_path):
    exam = GeneratorEval(phantom_store, judge, 12, tmp_path)
    assert len(exam.rows) == 12 and (phantom_store.splits[exam.rows] == 1).all()
    own, others = (
        exam.evaluate(Copier(phantom_store, exam.rows, moved).eval(), num_latents=2).iloc[0] for moved in (0, 1)
    )
    for row in (own, others):
        assert row["fd"] == pytest.approx(0, abs=1e-4) and row["kid"] < 0.01
        assert row["precision"] == row["recall"] == 1 and row["diversity"] == 0
    floor = exam.floor(0).iloc[0]
    assert own["sketch_sep"] == pytest.approx(floor["sketch_sep"], abs=1e-4)
    assert others["sketch_sep"] < 0.7 * own["sketch_sep"], "alone tells that the sketch is another one's"


def test_the_examiner_names_what_it_was_taught_and_nothing_else(phantom_store, judge, tmp_path):
    exam = GeneratorEval(phantom_store, judge, 12, tmp_path)
    rows = phantom_store.rows("train", needs=["label"])[:21]
    images, exam.labels, exam.sketches = (
        np.array(a[rows]) for a in (phantom_store.images, phantom_store.labels, phantom_store.sketches)
    )
    exam.hand_sketches, seen = exam.sketches, exam.features(images)
    assert exam.conditioning_scores(images, seen, images)["label_acc"] > 0.9
    exam.labels = (exam.labels + 1) % 7
    assert exam.conditioning_scores(images, seen, images)["label_acc"] < 0.2


def test_too_few_val_sketches(phantom_store, judge, tmp_path):
    with pytest.raises(DataError, match="too few to judge by"):
        GeneratorEval(phantom_store, judge, 5, tmp_path)
