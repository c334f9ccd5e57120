"""Whether synthetic images are copies of training images.

A distance alone does not show copying: real images also have near neighbors among the training images. The distances of
synthetic images to their nearest training image are therefore compared with those of held-out real images.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.neighbors import NearestNeighbors

AUTHENTICITY = (
    "authenticity: the fraction of images that are farther from their nearest training image than that image is from "
    "its own nearest neighbor; copies lower it, blurred or odd images raise it, so compare with held-out real images"
)
THUMBNAIL = 32  # pixels per side of the images whose pixels are compared


@dataclass
class Memorization:
    """Distances to the nearest training image, and what follows from them; see `memorization`."""

    distances: np.ndarray  # (N,) of synthetic images to their nearest training image
    nearest: np.ndarray  # (N,) row of that training image
    held_out: np.ndarray  # (M,) distances of held-out real images
    limit: float  # 1st percentile of `held_out`
    copies: float  # fraction of synthetic images at or below `limit`; 0.01 for held-out images by definition
    authenticity: float  # fraction in [0, 1], see `memorization`
    held_out_authenticity: float  # of the held-out images

    def closest(self, count: int = 8) -> np.ndarray:
        """Rows of the `count` synthetic images nearest to a training image, nearest first."""
        return np.argsort(self.distances, kind="stable")[:count]

    def __str__(self) -> str:
        num_shared = int((self.held_out < 1e-3 * np.median(self.held_out)).sum())
        warning = f"; {num_shared} of the held-out images ARE training images" if num_shared else ""
        return (
            f"{self.copies:.1%} of {len(self.distances)} synthetic images are as near to a training image as the "
            f"nearest 1 % of {len(self.held_out)} held-out real images; authenticity {self.authenticity:.2f} "
            f"(held-out real images {self.held_out_authenticity:.2f}){warning}"
        )


def memorization(synthetic: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Memorization:
    """Compare distances to the training images, from features or `thumbnails`: `(N, D)`, `(T, D)`, `(M, D)`.

    Authenticity (Alaa et al., arXiv 2102.08921): an image is authentic if it is farther from its nearest training image
    than that one is from its own nearest neighbor among the training images. A copy is not; of real images about half
    to two thirds are, so the value of held-out images is the reference, not 1. A value far below it means copies, one
    above it only that the images lie farther from the training images than real ones do: noise has authenticity 1.

    Raises `ValueError` for fewer than two training images.
    """
    if len(train) < 2:
        raise ValueError(f"need at least 2 training images to know their distances, got {len(train)}")
    index = NearestNeighbors(n_neighbors=2).fit(train)
    nn_distance = index.kneighbors(train)[0][:, 1]  # column 0 is the image itself

    def nearest_train(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        distances, rows = (neighbors[:, 0] for neighbors in index.kneighbors(features, n_neighbors=1))
        return distances, rows, float((distances > nn_distance[rows]).mean())

    distances, nearest, authenticity = nearest_train(synthetic)
    held_out_distances, _, held_out_authenticity = nearest_train(held_out)
    limit = float(np.quantile(held_out_distances, 0.01))
    copies = float((distances <= limit).mean())  # "or equal": the limit is 0 if held-out images are training images
    return Memorization(distances, nearest, held_out_distances, limit, copies, authenticity, held_out_authenticity)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Flattened small images `float32 (N, 3072)` of `uint8 (N, H, W, 3)`, scaled so that the Euclidean distance of two
    rows is the root mean squared difference of pixel values in [0, 1]."""
    small = [cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float32) / 255 / np.sqrt(3 * THUMBNAIL**2)


def make_copies(train: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Near copies `(count, H, W, 3)` of random training images `uint8 (N, H, W, 3)`, and their rows.

    They imitate a network that memorizes: slightly brighter or darker and JPEG-compressed. `memorization` must find all
    of them, else its result says nothing about a generator.
    """
    rows = rng.choice(len(train), count, replace=False)
    copies = []
    for image in train[rows]:
        shifted = np.clip(image.astype(float) + rng.uniform(-4, 4), 0, 255).astype(np.uint8)
        copies.append(cv2.imdecode(cv2.imencode(".jpg", shifted, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_COLOR))
    return np.stack(copies), rows
