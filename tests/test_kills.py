import numpy as np
import pytest
from kills import kill_prepares, kill_trainings


@pytest.mark.slow
def test_killed_training_and_prepare_end_like_those_that_were_not(phantoms, tmp_path):
    rng = np.random.default_rng(0)
    assert kill_trainings(phantoms, tmp_path / "training", 1, 10, rng) == (1, 0)
    assert kill_prepares(phantoms, tmp_path / "prepare", 1, rng) == (1, 0)
