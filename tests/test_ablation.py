from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from helpers.experiments import ablation as module
from helpers.experiments.ablation import (
    ABLATIONS,
    FLOOR,
    FULL_RECIPE,
    AblatedCGAN,
    SmallDataExperiment,
    ablation_experiment,
    images_by_arm,
    mean_over_seeds,
    small_data_experiment,
)
from helpers.experiments.runner import fraction_of_rows
from helpers.metrics import generator_eval
from helpers.metrics.generator_eval import GeneratorEval
from helpers.models.gan import GANConfig
from helpers.models.trainer import TrainConfig


def settings_for(store, projected: bool = False) -> SmallDataExperiment:
    return SmallDataExperiment(
        generator=GANConfig(64, tuple(store.classes), base_channels=8, projected=projected),
        train=TrainConfig(2, 2, save_every=2, log_every=1),
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
    experiment = settings_for(phantom_store)
    arms = [FULL_RECIPE, *ABLATIONS, "pix2pix"]
    arms.remove("no feature network")  # these settings have none, see below
    results = ablation_experiment(phantom_store, experiment, extractor, tmp_path, [FLOOR, *arms])
    assert list(results["arm"]) == [FLOOR, *arms] and len(trained_weights) == len(arms)
    for name, weights in zip(arms[1:], trained_weights[1:], strict=True):
        assert not torch.equal(trained_weights[0], weights), f"{name} is the full recipe"
    assert (results["n"] == 12).all()
    assert results[["kid", "fd", "diversity", "label_acc", "sketch_sep", "sketch_sep_hand"]].notna().all(axis=None)
    assert results.set_index("arm")["updates"][[FULL_RECIPE, "pix2pix"]].to_list() == [2, 4], "equally many images"

    images = images_by_arm(tmp_path, results)
    assert list(images) == ["sketches", *arms] and {image.shape for image in images.values()} == {(64, 192, 3)}
    evaluation = GeneratorEval(phantom_store, extractor, 12, tmp_path)
    tiles = images["sketches"][:, :, 0].reshape(64, 3, 64).swapaxes(0, 1)
    labels = [evaluation.labels[(evaluation.sketches == tile).all(axis=(1, 2))].item() for tile in tiles]
    assert len(set(labels)) == 3, "sketches of three classes"
    assert len({image.tobytes() for image in images.values()}) == len(images), "every arm has its own images"

    table = mean_over_seeds(results)
    assert table.loc[(FULL_RECIPE, 1.0), "kid, seed 0"] == results["kid"][1]
    above = table["above full recipe, seed 0"]
    assert above[(FULL_RECIPE, 1.0)] == 0 and above[(FLOOR, 1.0)] == results["kid"][0] - results["kid"][1]

    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.csv")}
    subset = ablation_experiment(phantom_store, experiment, extractor, tmp_path, ["pix2pix", FLOOR])
    assert subset.equals(results.iloc[[0, -1]].reset_index(drop=True)), "read from the files"
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.csv")}
    assert mean_over_seeds(subset)["above full recipe, seed 0"].isna().all(), "without the full recipe"


def test_ablation_experiment_trains_without_the_feature_network(
    phantom_store, extractor, tmp_path, trained_weights, few_latents
):
    experiment = settings_for(phantom_store, projected=True)
    ablation_experiment(phantom_store, experiment, extractor, tmp_path, [FULL_RECIPE, "no feature network"])
    assert len(trained_weights) == 2 and not torch.equal(*trained_weights)


def test_ablation_experiment_with_an_unknown_arm_raises(phantom_store, extractor, tmp_path):
    with pytest.raises(ValueError, match=r"arm must be one of real images, full recipe, .*; got 'pix3pix'"):
        ablation_experiment(phantom_store, settings_for(phantom_store), extractor, tmp_path, ["pix3pix"])


def test_small_data_experiment_in_the_folder_of_the_ablation_raises(phantom_store, extractor, tmp_path):
    ablation_experiment(phantom_store, settings_for(phantom_store), extractor, tmp_path, [FLOOR])
    with pytest.raises(ValueError, match="question is 'ablation' there, 'small data' here"):
        small_data_experiment(phantom_store, settings_for(phantom_store), extractor, tmp_path)


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
    results = small_data_experiment(phantom_store, settings_for(phantom_store), extractor, tmp_path)
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
    for sampling in (module, generator_eval):
        monkeypatch.setattr(sampling, "sample_batch", lambda _, batch, *__, **___: half_copied[: len(batch["labels"])])
    experiment = replace(settings_for(phantom_store), fractions=(1.0,))
    results = small_data_experiment(phantom_store, experiment, extractor, tmp_path)
    assert results["copies"].item() == results["pixel_copies"].item() == 0.5


def test_small_data_experiment_with_wrong_fractions_raises(phantom_store, extractor, tmp_path):
    experiment = replace(settings_for(phantom_store), fractions=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got \[0.0\]"):
        small_data_experiment(phantom_store, experiment, extractor, tmp_path)
