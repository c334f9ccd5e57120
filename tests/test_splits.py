import numpy as np
import pandas as pd
import pytest

from helpers.data.splits import assign_lesion_ids, lesion_groups, split_by_lesion


def test_lesion_groups_indirect_pairs_are_joined():
    lesions = np.array(["a", "a", "b", pd.NA, pd.NA, pd.NA], object)
    groups = lesion_groups(6, lesions, [(1, 2), (3, 4)])
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3


def no_splits(count):
    return np.full(count, pd.NA, object)


@pytest.mark.parametrize("seed", range(10))
def test_split_by_lesion_random_groups_stay_together_with_all_classes_in_all_splits(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 150, 400)
    groups[:12] = np.arange(12) % 3 + 1000  # a rare class of three lesions
    labels = rng.choice(4, 150, p=[0.7, 0.15, 0.1, 0.05])[groups % 150]
    labels[:12] = 4
    splits = split_by_lesion(no_splits(400), groups, labels, seed)
    frame = pd.DataFrame({"group": groups, "label": labels, "split": splits})
    assert frame.groupby("group")["split"].nunique().max() == 1
    assert (pd.crosstab(frame["label"], frame["split"]).to_numpy() > 0).all()
    fractions = frame["split"].value_counts(normalize=True)
    assert 0.07 < fractions["val"] < 0.14 and 0.07 < fractions["test"] < 0.14


def test_split_by_lesion_seed_decides_the_split():
    groups, labels = np.arange(200), np.arange(200) % 2
    first, second, other = (split_by_lesion(no_splits(200), groups, labels, seed) for seed in (1, 1, 2))
    assert (first == second).all() and (first != other).any()


def test_split_by_lesion_holds_out_ten_percent_of_each_class():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    splits = split_by_lesion(no_splits(1000), np.arange(1000), labels)
    counts = pd.crosstab(labels, splits)
    assert counts["val"].tolist() == counts["test"].tolist() == [70, 20, 10]


def test_split_by_lesion_official_splits_are_kept_and_val_is_sampled():
    official = np.repeat(["train", "test"], [80, 20]).astype(object)
    labels = np.arange(100) % 2
    splits = split_by_lesion(official, np.arange(100), labels)
    assert (splits[80:] == "test").all()
    assert (splits == "val").sum() == 10 and set(splits[:80]) == {"train", "val"}
    complete = np.repeat(["train", "val", "test"], [60, 20, 20]).astype(object)
    assert (split_by_lesion(complete, np.arange(100), labels) == complete).all()


def test_split_by_lesion_leaking_group_goes_to_the_evaluation_split():
    official = np.array(["train", "val", "train", "test", "train", "val"], object)
    splits = split_by_lesion(official, np.array([0, 0, 1, 1, 2, 3]), np.zeros(6, int))
    assert splits.tolist() == ["val", "val", "test", "test", "train", "val"]


def test_assign_lesion_ids_group_gets_one_id_and_others_keep_theirs():
    table = pd.DataFrame(
        {"image_id": list("abcdef"), "lesion_id": pd.array(["L2", None, "L3", None, None, "L3"], "string")}
    )
    lesion_ids = assign_lesion_ids(table, np.array([0, 0, 1, 2, 2, 1]))
    assert lesion_ids.to_list() == ["L2", "L2", "L3", "d", "d", "L3"]
    assert assign_lesion_ids(table, np.arange(6)).isna().to_list() == [False, True, False, True, True, False]
