"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
from factories import MeanPoolExtractor

from helpers.config import get_config
from helpers.data.layouts import read
from helpers.data.store import Store, StoreConfig, build_store, prepare
from helpers.metrics import generator_eval
from helpers.metrics.extractors import FeatureExtractor
from helpers.phantoms import sample
from helpers.views.predictor import Predictor, find_weights

# Results are equal bit for bit on a CPU only: on a GPU some backward passes add in varying order.
os.environ["ACCELERATE_USE_CPU"] = "true"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A small embedded sample with its injected faults; read only."""
    return sample.write(tmp_path_factory.mktemp("data") / "phantoms", images=120, size=64, seed=0)


@pytest.fixture(scope="session")
def phantom_store(phantoms, tmp_path_factory) -> Store:
    """The small sample, audited and split, at 64 px; read only."""
    return prepare(read(phantoms), tmp_path_factory.mktemp("stores"), StoreConfig(64), progress=False)


@pytest.fixture(scope="session")
def store(phantoms, tmp_path_factory) -> Store:
    """The small sample at 64 px as it is, with its injected faults; read only."""
    return build_store(read(phantoms), tmp_path_factory.mktemp("store") / "s", StoreConfig(64), progress=False)


@pytest.fixture
def extractor() -> FeatureExtractor:
    return FeatureExtractor("mean-pool", MeanPoolExtractor())


@pytest.fixture
def few_latents(monkeypatch):
    monkeypatch.setattr(generator_eval, "NUM_LATENTS", 2)
    monkeypatch.setattr(generator_eval, "MAX_DIVERSITY_SKETCHES", 3)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """The released networks, as the page uses them."""
    return Predictor(find_weights(get_config()))


@pytest.fixture(autouse=True, scope="session")
def freed_memory_is_returned():
    """Trainings would keep freed memory for the rest of the process, and tests of memory would count it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.models.trainer.keep_freed_memory", lambda: None)
        yield
