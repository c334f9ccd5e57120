"""Evaluation of a CGAN on val sketches against real images, next to a floor: distances, match of label and sketch,
diversity, recurring detail. The same sketches for every generator, so that generators can be compared.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.data.deform import hand_drawn
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.metrics.extractors import FeatureExtractor, Features, extract_array
from helpers.metrics.fidelity import layout_scores, mean_pairwise_distance, sketch_separability
from helpers.metrics.quality import compute_metrics
from helpers.models.networks import Generator
from helpers.models.sampling import sample_batch

MIN_SKETCHES = 10
MAX_PER_CLASS = 300  # training images of a class for the label classifier
NUM_LATENTS = 8  # images per sketch for the diversity
MAX_DIVERSITY_SKETCHES = 20


def linear_probe(features: np.ndarray, labels: np.ndarray) -> Pipeline:
    """Logistic regression of `labels (N,)` on `features (N, D)`, with all classes of equal weight."""
    regression = LogisticRegression(max_iter=300, class_weight="balanced")
    return make_pipeline(StandardScaler(), regression).fit(features, labels)


class GeneratorEval:
    """Evaluation of generators on the same val sketches with their labels: as in the data set, with hand-drawn lines,
    and some of them with several latents."""

    def __init__(self, store: Store, extractor: FeatureExtractor, num_eval: int, cache: Path):
        """`num_eval`: max number of sketches; `cache`: folder for features of real images. Raises `DataError` if the
        val split has fewer than `MIN_SKETCHES` images with sketch and label."""
        rows = np.random.default_rng(0).permutation(store.rows("val", needs=["sketch", "label"]))[:num_eval]
        if len(rows) < MIN_SKETCHES:
            raise DataError(f"{store.name} needs at least {MIN_SKETCHES} val images with sketch and label, "
                            f"got {len(rows)}")  # fmt: skip
        self.store, self.extractor, self.cache, self.rows = store, extractor, cache, rows
        self.batch = store.batch(rows)
        self.images, self.sketches, self.labels = (self.batch[name] for name in ("images", "sketches", "labels"))
        rng = np.random.default_rng(1)
        self.hand_sketches = np.stack([hand_drawn(sketch, rng) for sketch in self.sketches])
        self.real = self.features(self.images, cache)
        train = rng.permutation(store.rows("train", needs=["label"]))
        by_class = [train[store.labels[train] == k][:MAX_PER_CLASS] for k in range(len(store.classes))]
        train = np.concatenate(by_class)
        train_features = self.features(np.array(store.images[train]), cache)
        self.label_classifier = linear_probe(train_features.values, store.labels[train])

    def features(self, images: np.ndarray, cache: Path | None = None) -> Features:
        """Features of images `uint8 (N, S, S, 3)`."""
        return extract_array(images, self.extractor, cache)

    def floor(self, seed: int) -> pd.DataFrame:
        """Scores of real images, in the columns of `evaluate`: distances of equally many random training images to the
        val images, conditioning scores of the val images themselves."""
        train = self.store.rows("train", needs=["label"])
        chosen = np.random.default_rng(seed).choice(train, min(len(train), len(self.rows)), replace=False)
        images = np.array(self.store.images[chosen])
        metrics = compute_metrics(self.features(images, self.cache), self.real)
        conditioning = self.conditioning_scores(self.images, self.real, self.images)
        layout = layout_scores(images, self.images[np.random.default_rng(seed).permutation(len(images))])
        return pd.DataFrame([metrics | conditioning | layout | {"diversity": 1.0}])

    def evaluate(self, generator: Generator, batch_size: int = 32) -> pd.DataFrame:
        """Scores of a generator, one row.

        `n n_real kid kid_low kid_high fd precision recall density coverage`: against the real val images, see
        `compute_metrics`. `label_acc sketch_sep sketch_sep_hand`: see `conditioning_scores`. `position structure`: see
        `layout_scores`. `diversity`: mean pairwise feature distance of images from one sketch with different latents,
        divided by that of real images.
        """
        images, other_images, hand_images = (
            sample_batch(generator, self.batch | {"sketches": sketches}, seed, batch_size)
            for sketches, seed in ((self.sketches, 0), (self.sketches, 1), (self.hand_sketches, 0))
        )
        distances = [
            mean_pairwise_distance(self.features(self._sample_latents(generator, k, batch_size)).values)
            for k in range(min(MAX_DIVERSITY_SKETCHES, len(self.rows)))
        ]
        diversity = np.mean(distances) / mean_pairwise_distance(self.real.values)
        features = self.features(images)
        conditioning = self.conditioning_scores(images, features, hand_images)
        layout = layout_scores(images, other_images)
        return pd.DataFrame([compute_metrics(features, self.real) | conditioning | layout | {"diversity": diversity}])

    def _sample_latents(self, generator: Generator, index: int, batch_size: int) -> np.ndarray:
        repeated = {name: array[[index] * NUM_LATENTS] for name, array in self.batch.items()}
        return sample_batch(generator, repeated, index, batch_size)

    def conditioning_scores(self, images: np.ndarray, features: Features, hand_images: np.ndarray) -> dict[str, float]:
        """How well images match their labels and sketches.

        `label_acc`: balanced accuracy of a logistic regression on `features`, trained on real training images.
        `sketch_sep`: `sketch_separability` of `images uint8 (N, S, S, 3)`; `sketch_sep_hand`: that of `hand_images`,
        generated from the hand-drawn sketches.
        """
        correct = self.label_classifier.predict(features.values) == self.labels
        return {
            "label_acc": float(np.mean([correct[self.labels == k].mean() for k in np.unique(self.labels)])),
            "sketch_sep": sketch_separability(images, self.sketches),
            "sketch_sep_hand": sketch_separability(hand_images, self.hand_sketches),
        }
