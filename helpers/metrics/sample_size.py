"""How KID and Fréchet distance of two samples of one distribution depend on the number of images."""

from collections.abc import Callable, Sequence

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], float]  # of features (N, D) and (M, D)


def distances_by_size(
    features: np.ndarray, distance: Distance, sizes: Sequence[int], repeats: int = 20, seed: int = 0
) -> np.ndarray:
    """Distances `(repeats, S)` between two disjoint random subsets of `features (N, D)` for each of `sizes`, the number
    of images in each subset. Raises `ValueError` for a size above N / 2."""
    if 2 * max(sizes) > len(features):
        raise ValueError(f"two sets of {max(sizes)} images need {2 * max(sizes)}, got {len(features)}")
    rng = np.random.default_rng(seed)

    def one(size: int) -> float:
        first, second = features[rng.permutation(len(features))[: 2 * size]].reshape(2, size, -1)
        return distance(first, second)

    return np.array([[one(size) for size in sizes] for _ in range(repeats)])


def median_and_band(distances: np.ndarray) -> np.ndarray:
    """Median, 5 % and 95 % quantile over the repeats: (R, S) -> (3, S)."""
    return np.quantile(distances, (0.5, 0.05, 0.95), axis=0)


def frechet_of_few(features1: np.ndarray, features2: np.ndarray) -> float:
    """`quality.frechet` of features `(N, D)` and `(M, D)`, faster for fewer images than features.

    With centered features A = X / sqrt(N - 1) and B, the covariances are A'A and B'B, and the trace of the root of
    their product is the sum of the singular values of AB' (N, M).
    """
    means = [x.mean(axis=0, dtype=np.float64) for x in (features1, features2)]
    a, b = ((x - mean) / np.sqrt(len(x) - 1) for x, mean in zip((features1, features2), means, strict=True))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((means[0] - means[1]) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * root)
