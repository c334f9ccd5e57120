from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from factories import MeanPoolExtractor
from torch import nn

from helpers.data.files import DataError
from helpers.experiments import ablation as module
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
from helpers.experiments.runner import fraction_of_rows
from helpers.metrics.extractors import FeatureExtractor
from helpers.models.gan import GANConfig
from helpers.models.trainer import TrainConfig


@pytest.fixture
def extractor() -> FeatureExtractor:
    return FeatureExtractor("mean-pool", MeanPoolExtractor())


@pytest.fixture
def few_latents(monkeypatch):
    monkeypatch.setattr(module, "NUM_LATENTS", 2)
    monkeypatch.setattr(module, "MAX_DIVERSITY_SKETCHES", 3)


def plan_for(store, projected: bool = False) -> AblationPlan:
    return AblationPlan(
        generator=GANConfig(64, tuple(store.classes), base_channels=8, projected=projected),
        train_config=TrainConfig(2, 2, save_every=2, log_every=1),
        num_eval=12,
        fractions=(0.5, 1.0),
        seeds=(0,),
    )


@pytest.fixture
def trained_weights(monkeypatch) -> list[torch.Tensor]:
    """The weights of every generator that is evaluated, in order."""
    weights = []

    class RecordingEval(GeneratorEval):
        def evaluate(self, generator, **kwargs):
            weights.append(torch.cat([w.flatten() for w in generator.state_dict().values()]))
            return super().evaluate(generator, **kwargs)

    monkeypatch.setattr(module, "GeneratorEval", RecordingEval)
    return weights


def test_ablation_experiment_trains_every_arm_differently(
    phantom_store, extractor, tmp_path, monkeypatch, trained_weights, few_latents
):
    monkeypatch.setattr(module, "Pix2PixConfig", partial(module.Pix2PixConfig, base_channels=8))
    plan = plan_for(phantom_store)
    arms = [FULL_RECIPE, *ABLATIONS, "no EMA", "no label in G", "no z", "no class balancing", "pix2pix"]
    arms.remove("no feature network")  # the plan has none, see below
    results = ablation_experiment(phantom_store, plan, extractor, tmp_path, [FLOOR, *arms])
    assert list(results["arm"]) == [FLOOR, *arms] and len(trained_weights) == len(arms)
    for name, weights in zip(arms[1:], trained_weights[1:], strict=True):
        assert not torch.equal(trained_weights[0], weights), f"{name} is the full recipe"
    assert (results["n"] == 12).all()
    assert results[["kid", "fd", "diversity", "label_acc", "sketch_sep", "sketch_sep_hand"]].notna().all(axis=None)
    assert results.set_index("arm")["updates"][[FULL_RECIPE, "pix2pix"]].to_list() == [2, 4], "equally many images"

    table = mean_over_seeds(results)
    assert table.loc[(FULL_RECIPE, 1.0), "kid, seed 0"] == results["kid"][1]
    above = table["above full recipe, seed 0"]
    assert above[(FULL_RECIPE, 1.0)] == 0 and above[(FLOOR, 1.0)] == results["kid"][0] - results["kid"][1]

    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.csv")}
    subset = ablation_experiment(phantom_store, plan, extractor, tmp_path, ["pix2pix", FLOOR])
    assert subset.equals(results.iloc[[0, -1]].reset_index(drop=True)), "read from the files"
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.csv")}
    assert mean_over_seeds(subset)["above full recipe, seed 0"].isna().all(), "without the full recipe"


def test_ablation_experiment_trains_without_the_feature_network(
    phantom_store, extractor, tmp_path, trained_weights, few_latents
):
    plan = plan_for(phantom_store, projected=True)
    ablation_experiment(phantom_store, plan, extractor, tmp_path, [FULL_RECIPE, "no feature network"])
    assert len(trained_weights) == 2 and not torch.equal(*trained_weights)


def test_ablation_experiment_with_an_unknown_arm_raises(phantom_store, extractor, tmp_path):
    with pytest.raises(ValueError, match=r"arm must be one of real images, full recipe, .*; got 'pix3pix'"):
        ablation_experiment(phantom_store, plan_for(phantom_store), extractor, tmp_path, ["pix3pix"])


def test_small_data_experiment_in_the_folder_of_the_ablation_raises(phantom_store, extractor, tmp_path):
    ablation_experiment(phantom_store, plan_for(phantom_store), extractor, tmp_path, [FLOOR])
    with pytest.raises(ValueError, match="question is 'ablation' there, 'small data' here"):
        small_data_experiment(phantom_store, plan_for(phantom_store), extractor, tmp_path)


@pytest.mark.parametrize("removed", ["use_label", "use_z"])
def test_ablated_cgan_ignores_the_removed_input_only(removed):
    task = AblatedCGAN(GANConfig(64, ("A", "B"), base_channels=8), **{removed: False})
    task.networks["generator"].eval()

    def generate(label: int, z: float) -> torch.Tensor:
        torch.manual_seed(0)
        batch = {"sketches": torch.zeros(2, 1, 64, 64), "labels": torch.full((2,), label)}
        latents = torch.zeros(2, task.config.z_dim + task.config.code_channels * 64)
        latents[:, : task.config.z_dim] = z
        return task.generate(batch | {"artifacts": torch.zeros(2, 7)}, latents)

    assert torch.equal(generate(0, 1.0), generate(1, 1.0)) == (removed == "use_label")
    assert torch.equal(generate(0, 0.0), generate(0, 1.0)) == (removed == "use_z")


def test_small_data_experiment_counts_training_images(phantom_store, extractor, tmp_path, few_latents):
    results = small_data_experiment(phantom_store, plan_for(phantom_store), extractor, tmp_path)
    half, full = results["num_images"]
    assert half == len(fraction_of_rows(phantom_store, 0.5)) < full == len(fraction_of_rows(phantom_store, 1.0))
    assert (results[["copies", "pixel_copies"]] == 0).all(axis=None), "two steps produce nothing like a lesion"
    assert list(mean_over_seeds(results).index) == [(FULL_RECIPE, 0.5), (FULL_RECIPE, 1.0)]


def test_small_data_experiment_finds_copies_of_training_images(
    phantom_store, extractor, tmp_path, monkeypatch, few_latents
):
    copies = np.array(phantom_store.images[fraction_of_rows(phantom_store, 1.0)[:6]])
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    half_copied = np.concatenate([copies, noise])
    monkeypatch.setattr(module, "sample_batch", lambda generator, batch, *_, **__: half_copied[: len(batch["labels"])])
    plan = replace(plan_for(phantom_store), fractions=(1.0,))
    results = small_data_experiment(phantom_store, plan, extractor, tmp_path)
    assert results["copies"].item() == results["pixel_copies"].item() == 0.5


def test_small_data_experiment_with_wrong_fractions_raises(phantom_store, extractor, tmp_path):
    plan = replace(plan_for(phantom_store), fractions=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got \[0.0\]"):
        small_data_experiment(phantom_store, plan, extractor, tmp_path)


class CopyingGenerator(nn.Module):
    """Returns the stored image whose sketch it gets, or the image `shift` positions further in `rows`."""

    z_dim, size, num_artifacts, takes_sketch = 1, 64, 0, True

    def __init__(self, store, rows, shift: int = 0):
        super().__init__()
        self.store, self.rows, self.shift, self.unused = store, rows, shift, nn.Parameter(torch.zeros(1))

    def forward(self, sketch, label, z):
        copied = []
        for lines in (255 * sketch[:, 0]).round().byte().numpy():
            matches = [k for k, row in enumerate(self.rows) if np.array_equal(self.store.sketches[row], lines)]
            copied.append(self.rows[((matches or [0])[0] + self.shift) % len(self.rows)])
        images = torch.from_numpy(self.store.images[np.array(copied)]).permute(0, 3, 1, 2)
        return images / 127.5 - 1


def test_evaluate_of_copied_val_images_is_perfect_except_for_diversity(phantom_store, extractor, tmp_path, few_latents):
    evaluation = GeneratorEval(phantom_store, extractor, 12, tmp_path)
    assert len(evaluation.rows) == 12 and (phantom_store.splits[evaluation.rows] == 1).all()
    own, others = (
        evaluation.evaluate(CopyingGenerator(phantom_store, evaluation.rows, shift).eval()).iloc[0] for shift in (0, 1)
    )
    for row in (own, others):
        assert row["fd"] == pytest.approx(0, abs=1e-4) and row["kid"] < 0.01
        assert row["precision"] == row["recall"] == 1 and row["diversity"] == 0
    assert np.isnan(own["position"]) and own["structure"] == pytest.approx(1), "12 images; equal for all latents"
    assert own["sketch_sep"] == pytest.approx(evaluation.floor(0)["sketch_sep"].item(), abs=1e-4)
    assert others["sketch_sep"] < 0.7 * own["sketch_sep"], "no other score shows that sketches do not match"


def test_conditioning_scores_drop_with_wrong_labels(phantom_store, extractor, tmp_path):
    evaluation = GeneratorEval(phantom_store, extractor, 12, tmp_path)
    rows = phantom_store.rows("train", needs=["label"])[:21]
    images, evaluation.labels, evaluation.sketches = (
        np.array(array[rows]) for array in (phantom_store.images, phantom_store.labels, phantom_store.sketches)
    )
    evaluation.hand_sketches, features = evaluation.sketches, evaluation.features(images)
    assert evaluation.conditioning_scores(images, features, images)["label_acc"] > 0.7
    evaluation.labels = (evaluation.labels + 1) % 7
    assert evaluation.conditioning_scores(images, features, images)["label_acc"] < 0.2


def test_generator_eval_with_too_few_val_sketches_raises(phantom_store, extractor, tmp_path):
    with pytest.raises(DataError, match="phantoms needs at least 10 val images with sketch and label, got 5"):
        GeneratorEval(phantom_store, extractor, 5, tmp_path)
