"""What several test files share."""

from pathlib import Path

import pytest

from helpers.data import sample


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A small sample with its planted faults; read only."""
    return sample.write(tmp_path_factory.mktemp("data") / "phantoms", images=120, size=64, seed=0)
