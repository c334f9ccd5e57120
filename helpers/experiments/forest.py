"""Features of real and synthetic images, and a forest that is trained and tested on each of them.

Course projects report 90 % "on synthetic" and 94 % "on combined" images. Tested on images that came from the generator
that trained it, a classifier shows how well it knows the generator. Only real images say what it knows of lesions.
"""

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

from helpers.config import cpu_count
from helpers.metrics.classification import balanced_accuracy
from helpers.metrics.extractors import FeatureExtractor, ImageSet, extract_features

SOURCES = ("real", "synthetic")
SETS = {"real": ["real"], "synthetic": ["synthetic"], "combined": list(SOURCES)}


def feature_table(
    images: np.ndarray, labels: np.ndarray, extractor: FeatureExtractor, classes: list[str], **about
) -> pd.DataFrame:
    """A row per image `uint8 (N, H, W, 3)`: columns of `about` (source and split, say), `diagnosis`, then `f0
    f1 ...` as the judge sees it; ready for `to_csv`."""
    side = images.shape[1]
    values = extract_features(ImageSet.from_array(images), extractor, side).values
    named = {**about, "diagnosis": np.array(classes)[labels]}
    return pd.concat([pd.DataFrame(named), pd.DataFrame(values).add_prefix("f")], axis=1)


def feature_values(table: pd.DataFrame) -> np.ndarray:
    """`(N, D)` of a `feature_table`."""
    return table.filter(regex=r"^f\d+$").to_numpy()


def forest_scores(table: pd.DataFrame, trees: int = 300, seed: int = 0) -> pd.DataFrame:
    """Balanced accuracy of a random forest (Breiman 2001), by what it was trained on (rows) and what it is tested on
    (columns). `table`: `feature_table`s with `source`, real or synthetic, and `split`, train or test."""
    found, classes = {}, sorted(set(table["diagnosis"]))
    for trained, sources in SETS.items():
        train = table[table["source"].isin(sources) & (table["split"] == "train")]
        forest = RandomForestClassifier(
            trees, class_weight="balanced", min_samples_leaf=5, n_jobs=cpu_count(), random_state=seed
        ).fit(feature_values(train), train["diagnosis"])
        for tested, others in SETS.items():
            test = table[table["source"].isin(others) & (table["split"] == "test")]
            p = np.zeros((len(test), len(classes)))
            p[:, [classes.index(name) for name in forest.classes_]] = forest.predict_proba(feature_values(test))
            labels = np.array([classes.index(name) for name in test["diagnosis"]])
            found[trained, tested] = balanced_accuracy(p, labels, np.ones((1, len(test)))).item()
    scores = pd.Series(found).unstack()[list(SETS)].loc[list(SETS)]
    return scores.rename_axis(index="trained on", columns="tested on")
