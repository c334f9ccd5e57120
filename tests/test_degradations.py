import numpy as np
import pytest

from helpers.metrics.degradations import DEGRADATIONS
from helpers.phantoms.render import render


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradation_grows_with_strength_from_nothing_and_repeats(name):
    images = np.stack([render(k, seed=k, size=64)[0] for k in range(3)])
    damage = DEGRADATIONS[name]
    errors = [np.abs(damage(images, s).astype(float) - images).mean() for s in (0.0, 0.1, 0.4, 1.0)]
    assert errors[0] < 1.5, "JPEG of quality 100 rounds"
    assert np.all(np.diff(errors) > 0.5)
    assert damage(images, 0.4).dtype == np.uint8 and np.array_equal(damage(images, 0.4), damage(images, 0.4))
