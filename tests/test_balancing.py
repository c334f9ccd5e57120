import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers.data.files import DataError
from helpers.experiments import balancing as module
from helpers.experiments.balancing import (
    BalancingPlan,
    balancing_experiment,
    best_baseline,
    comparison_pairs,
    lesion_folds,
    rare_classes,
    rare_recall,
)
from helpers.experiments.runner import comparisons, summary
from helpers.models.cgan import CGANConfig
from helpers.models.classifier import ClassifierConfig
from helpers.models.dcgan import DCGANConfig
from helpers.models.trainer import TrainConfig


def test_rare_classes_are_those_below_a_twentieth(phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "labels", np.repeat([0, 1, 2, 3], [80, 15, 4, 1])[: len(phantom_store)])
    monkeypatch.setattr(phantom_store, "rows", lambda *_, **__: np.arange(100))
    assert rare_classes(phantom_store) == ["BCC", "AKIEC"], "4 and 1 of 100; a class of none is none"
    monkeypatch.setattr(phantom_store, "labels", np.repeat([0, 1, 2], [40, 35, 25]))
    assert rare_classes(phantom_store) == ["BCC"], "the rarest where none is so rare"


def test_folds_test_every_lesion_once_and_never_share_one(phantom_store):
    folds = lesion_folds(phantom_store, 3)
    tested = np.concatenate([test for _, test in folds])
    assert sorted(tested) == sorted(phantom_store.rows(needs=["label"]))
    lesions = phantom_store.table["lesion_id"].fillna(phantom_store.table["image_id"]).to_numpy()
    for train, test in folds:
        assert not set(lesions[train]) & set(lesions[test]) and len(train) + len(test) == len(tested)
        assert set(np.unique(phantom_store.labels[test])) == set(range(7)), "every class in every fold"
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, lesion_folds(phantom_store, 3), strict=True))


def test_a_class_of_too_few_lesions_is_named(phantom_store):
    with pytest.raises(DataError, match=r"DF.*fewer lesions than the 50 folds"):
        lesion_folds(phantom_store, 50)


def plan_for(store) -> BalancingPlan:
    classes = tuple(store.classes)
    return BalancingPlan(
        classifier=ClassifierConfig(64, classes),
        cgan=CGANConfig(64, classes, base_channels=8),
        dcgan=DCGANConfig(64, classes, base_channels=8),
        train_config=TrainConfig(2, 8),
        gan_train_config=TrainConfig(1, 4),
        dcgan_train_config=TrainConfig(1, 4),
        num_synthetic=6,
        folds=2,
        seeds=(0, 1),
    )


def test_the_experiment_from_end_to_end(phantom_store, tmp_path):
    results = balancing_experiment(phantom_store, plan_for(phantom_store), tmp_path)
    everything = set(phantom_store.table["image_id"].iloc[phantom_store.rows(needs=["label"])])
    counts = results.groupby(["arm", "seed"])["image_id"].agg(["nunique", "size"])
    assert len(counts) == 12 and (counts == len(everything)).all(axis=None), "each image once in each arm and seed"
    rare = rare_classes(phantom_store)
    table = summary(results, measure := rare_recall(phantom_store.classes, rare))
    assert table.iloc[:, 2].between(0, 1).all()
    best = best_baseline(table)
    assert best in ("class-weighted", "oversampled")
    assert len(comparisons(results, measure, comparison_pairs(best))) == 5
    assert (tmp_path / "fold-1" / "DCGAN" / "checkpoint.pt").is_file() and not list(tmp_path.glob("work-*"))


def test_real_images_may_be_seen_more_often_than_made_ones(phantom_store, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def look(parts, *_):
        raise Seen([len(part.images) for part in parts])

    monkeypatch.setattr("helpers.experiments.balancing.run_grid", lambda arms, *_: arms)
    monkeypatch.setattr("helpers.experiments.balancing.fit_classifier", look)
    plan = replace(plan_for(phantom_store), often=(1, 4))
    arms, real = balancing_experiment(phantom_store, plan, tmp_path), len(phantom_store)
    assert list(arms)[3:] == [name for name, _ in comparison_pairs("oversampled", plan.real_per_synthetic)[2:]]
    for name, seen in (("oversampled", [real]), ("blended", [real, 6]), ("blended, one in 5", 4 * [real] + [6])):
        with pytest.raises(Seen, match=re.escape(str(seen))):
            arms[name](1.0, 0, tmp_path)


def test_no_fold_sees_its_test_lesions_not_even_through_a_generator(phantom_store, tmp_path, monkeypatch):
    """With three folds, so that the test rows of one are not the training rows of another."""
    used, parts_of, fold = [], {}, [None]
    rare = [phantom_store.classes.index(name) for name in rare_classes(phantom_store)]

    def watch(name: str, *positions: int) -> None:
        whole = getattr(module, name)

        def watched(*given, **more):
            used.append((name, fold[0], np.concatenate([given[k] for k in positions])))
            return whole(*given, **more)

        monkeypatch.setattr(module, name, watched)

    watch("train_cgan", 4)
    watch("train_dcgan", 4)
    watch("drawn_images", 2)
    watch("noise_images", 2)
    watch("blended_images", 1, 3)

    class Told(list):
        """Says which fold is at work, from the order in which its rows are asked for."""

        def __iter__(self):
            for k, rows in enumerate(list.__iter__(self)):
                fold[0] = k
                yield rows

    folds = Told(lesion_folds(phantom_store, 3))
    monkeypatch.setattr(module, "lesion_folds", lambda *_: folds)

    def remember(parts, settings, out, run, names):
        parts_of[out.parent.name.removeprefix("work-"), int(out.name)] = parts, names
        return trained(parts, settings, out, run, names)

    trained = module.fit_classifier
    monkeypatch.setattr(module, "train_on_labelled", remember)
    balancing_experiment(phantom_store, replace(plan_for(phantom_store), folds=3, seeds=(0,)), tmp_path)
    lesions = phantom_store.table["lesion_id"].fillna(phantom_store.table["image_id"]).to_numpy()
    assert len(used) == 15 and {k for _, k, _ in used} == {0, 1, 2}, "five kinds of use in each of three folds"
    for name, k, rows in used:
        assert len(rows) and set(lesions[rows]) <= set(lesions[folds[k][0]]), (name, k)
        assert not set(lesions[rows]) & set(lesions[folds[k][1]]), (name, k)
    for (arm, k), (parts, names) in parts_of.items():
        assert np.array_equal(parts[0].rows, folds[k][0]) and set(lesions[folds[k][0]]) <= set(names)
        assert len(parts) == (2 if arm.startswith(("DCGAN", "CGAN", "blended")) else 1), arm
        assert all(set(np.unique(part.labels)) <= set(rare) for part in parts[1:]), "only rare classes are filled up"


def test_recall_of_rare_classes_is_known_where_it_is_made():
    table = pd.DataFrame(
        {"label": [0, 0, 1, 1, 2], "p_a": [1, 0, 0, 1, 0], "p_b": [0, 1, 1, 0, 0], "p_c": [0, 0, 0, 0, 1]}
    )
    measure = rare_recall(["a", "b", "c"], ["b", "c"])
    assert measure(table, np.ones((1, 5))).item() == pytest.approx((0.5 + 1) / 2)


def test_the_better_remedy_is_chosen_by_its_measure():
    index = pd.MultiIndex.from_product([[1.0], ["unbalanced", "class-weighted", "oversampled", "CGAN"]])
    table = pd.DataFrame({"N": 9, "seeds": 2, "recall": [0.1, 0.5, 0.4, 0.9]}, index=index)
    assert best_baseline(table) == "class-weighted"
    assert best_baseline(table.drop("class-weighted", level=1)) == "oversampled"
    assert best_baseline(table.iloc[:1]) == "oversampled", "where neither was asked"
    assert ("CGAN", "class-weighted") in comparison_pairs("class-weighted")


def test_a_set_without_masks_is_refused(phantom_store, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match="no masks of its rare classes"):
        balancing_experiment(phantom_store, plan_for(phantom_store), tmp_path)
