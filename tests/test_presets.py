"""Presets: every profile has the same methods and experiments, of the same types, and their configs can be used."""

from dataclasses import is_dataclass

import pytest

from helpers.config import PROFILES
from helpers.data.store import Store
from helpers.experiments.runner import fit_configs
from helpers.presets import PRESETS


def types_of(preset) -> tuple:
    return tuple(type(part) for part in preset) if isinstance(preset, tuple) else (type(preset),)


def test_presets_have_every_profile_with_the_same_types():
    assert set(PRESETS) == set(PROFILES)
    for profile, presets in PRESETS.items():
        assert {name: types_of(preset) for name, preset in presets.items()} == {
            name: types_of(preset) for name, preset in PRESETS["demo"].items()
        }, profile


def test_presets_are_frozen_dataclasses_without_classes():
    for presets in PRESETS.values():
        for preset in presets.values():
            for part in preset if isinstance(preset, tuple) else (preset,):
                assert is_dataclass(part) and type(part).__dataclass_params__.frozen
                assert not getattr(part, "classes", ()), "the classes come from the data set"


@pytest.mark.parametrize(
    "name", ["segmentation", "real_vs_synthetic", "balancing", "ablation", "small_data", "segmentation_notebook"]
)
def test_smoke_experiments_fit_the_sample_and_get_its_classes(name, phantom_store: Store):
    experiment = fit_configs(PRESETS["smoke"][name], phantom_store)
    config = experiment.cgan if name == "balancing" else experiment.generator
    assert config.classes == tuple(phantom_store.classes)


def test_experiments_refuse_a_store_of_another_size(phantom_store: Store):
    with pytest.raises(ValueError, match="128"):
        fit_configs(PRESETS["full"]["ablation"], phantom_store)
