import numpy as np
import pytest

from helpers.metrics.quality import frechet, kid
from helpers.metrics.sample_size import distances_by_size, frechet_of_few, median_and_band


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_frechet_of_few_equals_frechet(shape):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape).astype(np.float32), rng.normal(0.5, 1.5, size=(50, shape[1])).astype(np.float32)
    assert frechet_of_few(x, y) == pytest.approx(frechet(x, y), rel=1e-4)


def test_distances_by_size_subsets_are_disjoint_and_repeatable():
    features, sizes = np.arange(40.0)[:, None], []

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        assert x.shape == y.shape and not set(x[:, 0]) & set(y[:, 0])
        sizes.append(len(x))
        return float(x.sum())

    first = distances_by_size(features, distance, [5, 20], repeats=3)
    assert first.shape == (3, 2) and sizes == [5, 20] * 3
    assert np.array_equal(first, distances_by_size(features, distance, [5, 20], repeats=3))
    assert len(set(first[:, 0])) > 1, "every repeat takes other images"
    with pytest.raises(ValueError, match="two sets of 21 images need 42, got 40"):
        distances_by_size(features, distance, [21])


def test_frechet_distance_of_one_distribution_falls_with_n_and_kid_stays_near_0():
    features = np.random.default_rng(0).normal(size=(320, 32)).astype(np.float32)
    fd, low, high = median_and_band(distances_by_size(features, frechet_of_few, [10, 40, 160]))
    assert fd[0] > 2 * fd[1] > 4 * fd[2] > 0 and (low <= fd).all() and (fd <= high).all()
    middle, low, high = median_and_band(distances_by_size(features, kid, [10, 40, 160]))
    assert np.abs(middle).max() < 0.1 and (high - low)[2] < (high - low)[0]
    assert (low < 0).all() and (high > 0).all()
