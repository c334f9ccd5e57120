"""Which generator may feed which arm."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.config import display_path
from helpers.data.files import DataError
from helpers.experiments.balancing import BalancingExperiment, balancing_experiment
from helpers.experiments.generators import RunOptions, check_generators, prepare_generator
from helpers.experiments.runner import fraction_of_rows
from helpers.models.checkpoint import export_weights, read_checkpoint
from helpers.models.classifier import ClassifierConfig
from helpers.models.gan import GANConfig, dcgan_config, train_gan
from helpers.models.trainer import TrainConfig

CONFIG, TRAIN = GANConfig(64, base_channels=8), TrainConfig(1, 2)


@pytest.fixture(scope="module")
def files(phantom_store, tmp_path_factory) -> dict:
    """Generators of all training images, of 20 % of them, and of test images."""
    folder = tmp_path_factory.mktemp("generators")
    rows = {"all": fraction_of_rows(phantom_store, 1.0), "few": fraction_of_rows(phantom_store, 0.2)}
    rows["test"] = phantom_store.rows("test", ["label", "sketch"])
    for name, trained_on in rows.items():
        train_gan(phantom_store, CONFIG, folder / name, TRAIN, trained_on)
    return {name: folder / name / "checkpoint.pt" for name in rows}


def prepare(store, options: RunOptions, fraction: float, folder):
    return prepare_generator(store, CONFIG, TRAIN, options, fraction_of_rows(store, fraction), folder)


def test_cgan_feeds_all_training_images_and_a_fraction_trains_its_own(phantom_store, files, tmp_path):
    released = export_weights(files["all"], tmp_path / "cgan.safetensors")
    options = RunOptions(cgan=released)
    file, name = prepare(phantom_store, options, 1.0, tmp_path / "whole")
    assert file == released and name.endswith("cgan.safetensors") and not (tmp_path / "whole").exists()
    file, name = prepare(phantom_store, options, 0.5, tmp_path / "half")
    rows = fraction_of_rows(phantom_store, 0.5)
    assert file == tmp_path / "half/checkpoint.pt" and name == f"trained here, {len(rows)} images"
    seen = phantom_store.rows_in(read_checkpoint(file)["extra_state"]["trained_on"])
    identities = set().union(*(phantom_store.identities[row] for row in rows))
    assert set(rows) <= set(seen) == set(phantom_store.rows_in(identities)), "exactly these lesions"


def test_cgan_that_saw_held_out_lesions_is_refused(phantom_store, files):
    with pytest.raises(DataError, match=r"was trained on the lesions of .* that are held out in phantoms"):
        check_generators(RunOptions(cgan=files["test"]), phantom_store, [], CONFIG)
    check_generators(RunOptions(cgan=files["all"]), phantom_store, [], CONFIG)


def test_cgan_that_does_not_list_its_training_images_is_refused(phantom_store, files, tmp_path):
    saved = torch.load(files["all"], weights_only=True)
    saved["extra_state"]["trained_on"] = []
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="does not list its training images"):
        check_generators(RunOptions(cgan=tmp_path / "checkpoint.pt"), phantom_store, [], CONFIG)


def test_cgan_of_another_size_is_refused(phantom_store, files):
    with pytest.raises(ValueError, match="has images of 64 px, the experiment 128 px"):
        check_generators(RunOptions(cgan=files["all"]), phantom_store, [], replace(CONFIG, size=128))


def test_generator_init_from_lesions_inside_the_fraction_is_named(phantom_store, files, tmp_path):
    options = RunOptions(generator_init_from=files["few"])
    check_generators(options, phantom_store, [fraction_of_rows(phantom_store, 0.2)], CONFIG)
    file, name = prepare(phantom_store, options, 0.5, tmp_path)
    assert (
        name == f"trained here, {len(fraction_of_rows(phantom_store, 0.5))} images, from {display_path(files['few'])}"
    )
    start, trained = (torch.load(path, weights_only=True)["extra_state"]["trained_on"] for path in (files["few"], file))
    assert set(start) < set(trained)


@pytest.mark.parametrize("name", ["all", "test"])
def test_generator_init_from_lesions_outside_the_fraction_is_refused(phantom_store, files, tmp_path, name):
    options, rows = RunOptions(generator_init_from=files[name]), fraction_of_rows(phantom_store, 0.2)
    with pytest.raises(DataError, match=r"was trained on the lesions of .* that are held out in phantoms"):
        check_generators(options, phantom_store, [rows], CONFIG)
    with pytest.raises(DataError, match="that are held out"):
        prepare(phantom_store, options, 0.2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_balancing_refuses_a_start_that_saw_test_lesions_of_a_fold(phantom_store, files, tmp_path):
    train = TrainConfig(1, 2)
    experiment = BalancingExperiment(
        ClassifierConfig(64), CONFIG, dcgan_config(64, base_channels=8), train, TRAIN, TRAIN
    )
    with pytest.raises(DataError, match="that are held out in phantoms"):
        options = RunOptions(generator_init_from=files["all"])
        balancing_experiment(phantom_store, replace(experiment, folds=2), tmp_path / "out", options)
    assert not (tmp_path / "out").exists(), "refused before the first training"


def test_generator_that_saw_test_lesions_of_the_other_data_set_is_refused(phantom_store, files):
    """The other data set is the same one here: its training images may be known, its test images not."""
    check_generators(RunOptions(cgan=files["all"], also=phantom_store), phantom_store, [], CONFIG)
    rows = [np.arange(len(phantom_store))]
    options = RunOptions(generator_init_from=files["test"])
    check_generators(options, phantom_store, rows, CONFIG)
    with pytest.raises(DataError, match="that are held out in phantoms"):
        check_generators(replace(options, also=phantom_store), phantom_store, rows, CONFIG)


def test_context_tells_files_by_their_content(files, tmp_path):
    copied = shutil.copy(files["all"], tmp_path / "copy.pt")
    contexts = [RunOptions(cgan=file).context() for file in (files["all"], tmp_path / "copy.pt", files["few"])]
    assert copied and contexts[0] == contexts[1] != contexts[2]
