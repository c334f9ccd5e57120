"""Splits by lesion: which rows of a table belong together, and "train", "val" or "test" for every row."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HELD_OUT_FRACTION = 0.1  # of each class, for a missing "val" or "test" split


def lesion_groups(count: int, lesions: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Group number of each of `count` rows: equal for rows with the same lesion id (`lesions`, `<NA>` if unknown) and
    for rows connected, directly or not, by `pairs`."""
    first = pd.Series(np.arange(count)).groupby(pd.Series(lesions), dropna=True).transform("first")
    links = [(row, int(head)) for row, head in first.dropna().items()] + pairs
    rows, columns = np.array(links, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def groups_with_conflict(groups: np.ndarray, values: pd.Series) -> list[np.ndarray]:
    """Row numbers of every group with more than one known value."""
    num_values = values.groupby(groups).nunique()
    return [np.flatnonzero(groups == group) for group in num_values.index[num_values > 1]]


def split_by_lesion(splits: np.ndarray, groups: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Split of every row, `object (N,)` of "train", "val", "test", with every group in one split.

    Official splits are kept; rows without one go to "train". A group that spans several goes to the evaluation split
    ("test" before "val" before "train"), so an official test set stays complete. A split "val" or "test" without any
    row is sampled from "train": `HELD_OUT_FRACTION` of the images of each class, at least one group if the class has
    three, never its last.
    """
    ranks = pd.Series(splits).map({"train": 0, "val": 1, "test": 2}).fillna(0).astype(int)
    group_ranks = ranks.groupby(groups).transform("max").to_numpy()
    frame = pd.DataFrame({"group": groups, "label": labels, "rank": group_ranks})
    rng = np.random.default_rng(seed)
    for rank in sorted({1, 2} - set(ranks)):
        sampled = _sample_groups(frame, rng)
        frame.loc[frame["group"].isin(sampled), "rank"] = rank
    return np.array(["train", "val", "test"], dtype=object)[frame["rank"]]


def _sample_groups(frame: pd.DataFrame, rng: np.random.Generator) -> list[int]:
    """Groups of training rows that together hold `HELD_OUT_FRACTION` of each class."""
    sampled: list[int] = []
    strata = frame.groupby("group").agg(label=("label", "first"), rank=("rank", "first"), size=("label", "size"))
    for _, stratum in strata.groupby("label"):
        training = stratum[stratum["rank"] == 0]
        target = HELD_OUT_FRACTION * stratum["size"].sum()
        order = training.iloc[rng.permutation(len(training))]
        # Take groups as long as each brings the sum nearer to the target.
        before = order["size"].cumsum() - order["size"]
        selected = order.index[before + order["size"] / 2 <= target]
        # Rare classes need at least one group for evaluation and one for training.
        sampled += list(order.index[: min(max(len(selected), 1), len(training) - 1)])
    return sampled


def assign_lesion_ids(table: pd.DataFrame, groups: np.ndarray) -> pd.Series:
    """One `lesion_id` per group of several images, so that later splits and resampling keep copies together.

    It is the smallest of the group's lesion ids, where an image without one counts with its `image_id`. An ungrouped
    image keeps its own, which may be `<NA>`.
    """
    names = table["lesion_id"].fillna(table["image_id"]).groupby(groups)
    known = table["lesion_id"].notna() | (names.transform("size") > 1)
    return names.transform("min").where(known).astype("string")
