"""Features of real and synthetic images, and random forests that are trained and tested on each of them.

Course projects report 90 % accuracy "on synthetic" and 94 % "on combined" images. Tested on images of the generator
that supplied its training images, a classifier's score measures how well it fits the generator. Only real test images
measure how well it classifies lesions.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

from helpers.config import cpu_count
from helpers.metrics.classification import balanced_accuracy
from helpers.metrics.extractors import FeatureExtractor, extract_array

TREES = 300
SETS = {"real": ["real"], "synthetic": ["synthetic"], "combined": ["real", "synthetic"]}


@dataclass(frozen=True)
class FeatureExperiment:
    """Settings of the features in notebook 7."""

    extractor: str = "mobilenet_v2"  # a torchvision network
    num_images: int = 300  # real images per split; as many synthetic ones


def feature_table(
    images: np.ndarray, labels: np.ndarray, extractor: FeatureExtractor, classes: list[str], **metadata: str
) -> pd.DataFrame:
    """One row per image `uint8 (N, H, W, 3)` with label `(N,)`: the constant columns `metadata` (such as source and
    split), `diagnosis`, then the features `f0 f1 ...`."""
    values = extract_array(images, extractor).values
    columns = {**metadata, "diagnosis": np.array(classes)[labels]}
    return pd.concat([pd.DataFrame(columns), pd.DataFrame(values).add_prefix("f")], axis=1)


def feature_values(table: pd.DataFrame) -> np.ndarray:
    """The features `(N, D)` of a `feature_table`."""
    return table.filter(regex=r"^f\d+$").to_numpy()


def forest_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy of random forests (Breiman, *Random Forests*, 2001): a row per training set, a column per test
    set, both of `real synthetic combined`. `table`: rows of `feature_table` with `source` (real or synthetic) and
    `split` (train or test)."""
    scores, classes = {}, sorted(set(table["diagnosis"]))
    for train_name, train_sources in SETS.items():
        train = table[table["source"].isin(train_sources) & (table["split"] == "train")]
        forest = RandomForestClassifier(
            TREES, class_weight="balanced", min_samples_leaf=5, n_jobs=cpu_count(), random_state=0
        ).fit(feature_values(train), train["diagnosis"])
        for test_name, test_sources in SETS.items():
            test = table[table["source"].isin(test_sources) & (table["split"] == "test")]
            probabilities = np.zeros((len(test), len(classes)))
            known = [classes.index(name) for name in forest.classes_]
            probabilities[:, known] = forest.predict_proba(feature_values(test))
            labels = np.array([classes.index(name) for name in test["diagnosis"]])
            scores[train_name, test_name] = balanced_accuracy(probabilities, labels, np.ones((1, len(test)))).item()
    table = pd.Series(scores).unstack()[list(SETS)].loc[list(SETS)]
    return table.rename_axis(index="trained on", columns="tested on")
