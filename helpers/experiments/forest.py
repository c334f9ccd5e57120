"""Features of real and synthetic images, and random forests that are trained and tested on each of them.

Course projects report 90 % accuracy "on synthetic" and 94 % "on combined" images. Tested on images of the generator
that supplied its training images, a classifier's score measures how well it fits the generator. Only real test images
measure how well it classifies lesions.
"""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

from helpers.config import cpu_count
from helpers.metrics.classification import balanced_accuracy
from helpers.metrics.extractors import FeatureExtractor, extract_array

TREES = 300
SETS = {"real": ["real"], "synthetic": ["synthetic"], "combined": ["real", "synthetic"]}


def feature_table(
    images: np.ndarray, labels: np.ndarray, extractor: FeatureExtractor, classes: list[str], **metadata: Any
) -> pd.DataFrame:
    """One row per image `uint8 (N, H, W, 3)` with label `(N,)`: the columns `metadata` (such as source and split; a
    constant or N values), `diagnosis`, then the features `f0 f1 ...`."""
    values = extract_array(images, extractor).values
    columns = {**metadata, "diagnosis": np.array(classes)[labels]}
    return pd.concat([pd.DataFrame(columns), pd.DataFrame(values).add_prefix("f")], axis=1)


def feature_values(table: pd.DataFrame) -> np.ndarray:
    """The features `(N, D)` of a `feature_table`."""
    return table.filter(regex=r"^f\d+$").to_numpy()


def fit_forest(table: pd.DataFrame, seed: int = 0) -> RandomForestClassifier:
    """A random forest (Breiman, *Random Forests*, 2001) of the rows of a `feature_table`."""
    forest = RandomForestClassifier(
        TREES, class_weight="balanced", min_samples_leaf=5, n_jobs=cpu_count(), random_state=seed
    )
    return forest.fit(feature_values(table), table["diagnosis"])


def predict_forest(
    forest: RandomForestClassifier, table: pd.DataFrame, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(N, K)` of the rows of a `feature_table`, 0 for classes that the forest was not trained on, and
    their labels `(N,)`, indices into `classes`."""
    probabilities = np.zeros((len(table), len(classes)))
    probabilities[:, [classes.index(name) for name in forest.classes_]] = forest.predict_proba(feature_values(table))
    return probabilities, np.array([classes.index(name) for name in table["diagnosis"]])


def of_sources(table: pd.DataFrame, name: str, split: str) -> pd.DataFrame:
    """The rows of a split and of one of `SETS`."""
    return table[table["source"].isin(SETS[name]) & (table["split"] == split)]


def forest_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy of random forests: a row per training set, a column per test set, both of `SETS`. `table`: rows
    of `feature_table` with `source` (real or synthetic) and `split` (train or test)."""
    scores, classes = {}, sorted(set(table["diagnosis"]))
    for train_name in SETS:
        forest = fit_forest(of_sources(table, train_name, "train"))
        for test_name in SETS:
            p, labels = predict_forest(forest, of_sources(table, test_name, "test"), classes)
            scores[train_name, test_name] = balanced_accuracy(p, labels, np.ones((1, len(labels)))).item()
    table = pd.Series(scores).unstack()[list(SETS)].loc[list(SETS)]
    return table.rename_axis(index="trained on", columns="tested on")
