"""Is a synthetic image a copy of a training image?

Copying cannot be read off a distance alone: real images too have near neighbours among the training images. So the
distances of synthetic images to their nearest training image stand beside those of real images that took no part.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.neighbors import NearestNeighbors

THUMBNAIL = 32  # pixels of a side in which pixels are compared


@dataclass
class Memorization:
    """`distances (N,)` of synthetic images to their nearest training image, `nearest (N,)` its row; `held_out (M,)` the
    distances of real images that took no part. `limit` is their 1st percentile; `copies` is the share of synthetic
    images not above it (0.01 is what held-out images have by definition); `authenticity` is the share that is further
    from its nearest training image than that image is from its own nearest (Alaa et al. 2022)."""

    distances: np.ndarray
    nearest: np.ndarray
    held_out: np.ndarray
    limit: float
    copies: float
    authenticity: float
    held_out_authenticity: float

    def closest(self, most: int = 8) -> np.ndarray:
        """Rows of the synthetic images nearest to a training image, nearest first."""
        return np.argsort(self.distances, kind="stable")[:most]

    def __str__(self) -> str:
        shared = int((self.held_out < 1e-3 * np.median(self.held_out)).sum())
        warning = f"; {shared} of the held-out images ARE training images" if shared else ""
        return (
            f"{self.copies:.1%} of {len(self.distances)} synthetic images are as near to a training image as the "
            f"nearest 1 % of {len(self.held_out)} held-out real images; authenticity {self.authenticity:.2f} "
            f"(held-out real images {self.held_out_authenticity:.2f}){warning}"
        )


def memorization(synthetic: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Memorization:
    """From features or `thumbnails`, each `(N, D)`. Raises `ValueError` with fewer than two training images."""
    if len(train) < 2:
        raise ValueError(f"{len(train)} training images: two at least are needed to know how far apart they are")
    index = NearestNeighbors(n_neighbors=2).fit(train)
    nn_distance = index.kneighbors(train)[0][:, 1]

    def look(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        distances, rows = (found[:, 0] for found in index.kneighbors(images, n_neighbors=1))
        return distances, rows, float((distances > nn_distance[rows]).mean())

    distances, nearest, authenticity = look(synthetic)
    held, _, held_authenticity = look(held_out)
    limit = float(np.quantile(held, 0.01))
    copies = float((distances <= limit).mean())  # "or equal": if held-out images are copies themselves, the limit is 0
    return Memorization(distances, nearest, held, limit, copies, authenticity, held_authenticity)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """`uint8 (N, H, W, 3)` -> `float32 (N, 3072)`: small pictures as rows of numbers in [0, 1]; distances are then root
    mean squared differences of grey values (times a constant)."""
    small = [cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float32) / 255 / np.sqrt(3 * THUMBNAIL**2)


def make_copies(train: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The self-test: `count` training images as a copying network would give them back, slightly brighter or darker and
    compressed, and their rows. A search for copies that misses one of them proves nothing about a generator."""
    rows = rng.choice(len(train), count, replace=False)
    copies = []
    for image in train[rows]:
        brighter = np.clip(image.astype(float) + rng.uniform(-4, 4), 0, 255).astype(np.uint8)
        copies.append(cv2.imdecode(cv2.imencode(".jpg", brighter, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_COLOR))
    return np.stack(copies), rows
