from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.data.files import DataError
from helpers.experiments import real_vs_synthetic as module
from helpers.experiments.real_vs_synthetic import (
    RealVsSyntheticPlan,
    auc,
    average_precision,
    balanced_accuracy,
    classes_of,
    predict_cross_dataset,
    predict_table,
    probabilities,
    real_vs_synthetic_experiment,
    recalls_by_arm,
    score_table,
)
from helpers.experiments.runner import comparisons, fraction_of_rows, summary
from helpers.models.cgan import CGANConfig
from helpers.models.classifier import ClassifierConfig, build_classifier, ids_of
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return build_classifier("small", CLASSES, 64).eval()


def test_a_table_of_probabilities_has_a_row_per_image(classifier, phantom_store):
    rows = phantom_store.rows("test", ["label"])
    table = predict_table(classifier, phantom_store, rows)
    assert classes_of(table) == list(CLASSES) and len(table) == len(rows)
    assert probabilities(table).sum(axis=1) == pytest.approx(1) and (table["label"] == phantom_store.labels[rows]).all()
    lesions = phantom_store.table["lesion_id"].iloc[rows].dropna()
    assert set(lesions) <= set(table["group"]) and table["group"].notna().all()


def test_what_was_trained_on_is_no_test_and_is_named(classifier, phantom_store):
    rows = phantom_store.rows("test", ["label"])
    classifier.trained_on = ids_of(phantom_store.table.iloc[rows[3:4]])
    with pytest.raises(DataError, match=f"trained on .*{classifier.trained_on[0]}.*not a test"):
        predict_table(classifier, phantom_store, rows)
    lesion = phantom_store.table["lesion_id"].iloc[rows].dropna().iloc[0]
    classifier.trained_on = [lesion]
    with pytest.raises(DataError, match=lesion):
        predict_cross_dataset(classifier, phantom_store, rows)


def test_another_set_is_asked_for_what_both_know(classifier, phantom_store, monkeypatch):
    rows = phantom_store.rows("test", ["label"])
    whole = predict_table(classifier, phantom_store, rows)
    monkeypatch.setattr(phantom_store, "classes", ["MEL", "NV", "BCC", "AKIEC", "SK", "lentigo", "scar"])
    table = predict_cross_dataset(classifier, phantom_store, rows, {"SK": "BKL"})
    assert classes_of(table) == ["MEL", "NV", "BCC", "AKIEC", "BKL"]
    kept = whole["label"] < 5
    assert len(table) == kept.sum() and (table["label"].to_numpy() == whole.loc[kept, "label"]).all()
    p = probabilities(whole)[kept][:, :5]
    assert probabilities(table) == pytest.approx(p / p.sum(axis=1, keepdims=True), rel=1e-4)
    monkeypatch.setattr(phantom_store, "classes", ["MEL", "b", "c", "d", "e", "f", "g"])
    with pytest.raises(DataError, match="the classifier knows MEL NV"):
        predict_cross_dataset(classifier, phantom_store, rows)


def test_a_classifier_of_other_classes_is_refused(phantom_store):
    rows = phantom_store.rows("test", ["label"])
    for classes in (CLASSES[::-1], CLASSES[:2], (*CLASSES, "SCC")):
        with pytest.raises(DataError, match=f"the classifier knows {' '.join(classes)}, phantoms has MEL"):
            predict_table(build_classifier("small", classes, 64).eval(), phantom_store, rows)


def test_pictures_without_labels_are_no_test(classifier, phantom_store, monkeypatch):
    rows = phantom_store.rows("test", ["label"])
    with pytest.raises(DataError, match="phantoms: 0 pictures"):
        predict_table(classifier, phantom_store, rows[:0])
    monkeypatch.setattr(
        phantom_store, "labels", np.where(np.arange(len(phantom_store)) == rows[0], -1, phantom_store.labels)
    )
    for ask in (predict_table, predict_cross_dataset):
        with pytest.raises(DataError, match="1 of them without label"):
            ask(classifier, phantom_store, rows)


def test_recalls_of_every_arm_stand_under_those_of_the_majority():
    one = {"image_id": list("abcd"), "group": list("abcd"), "label": [0, 0, 0, 1], "fraction": 1.0, "seed": 0}
    x = pd.DataFrame(one | {"arm": "x", "p_A": [1, 1, 0, 0], "p_B": [0, 0, 1, 1]})
    found = recalls_by_arm(pd.concat([x, x.assign(arm="y", p_A=0, p_B=1)]))
    assert found.loc[("", "N")].to_list() == [3, 1] and found.loc[("", "majority")].to_list() == [1, 0]
    assert found.loc[("100%", "x")].to_list() == pytest.approx([2 / 3, 1])
    assert found.loc[("100%", "y")].to_list() == [0, 1]


def test_scores_have_intervals_and_a_baseline():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 90, p=[0.6, 0.3, 0.1])
    p = rng.uniform(size=(90, 3)) + np.eye(3)[labels]
    table = pd.DataFrame({"image_id": range(90), "group": range(90), "label": labels})
    table[["p_A", "p_B", "p_C"]] = p / p.sum(axis=1, keepdims=True)
    found = score_table(table)
    assert list(found.index) == [
        "balanced accuracy",
        "accuracy",
        "auc",
        "average precision",
        *(f"recall {c}" for c in "ABC"),
    ]
    assert found["majority"].iloc[:3].to_list() == pytest.approx([1 / 3, (labels == 0).mean(), 0.5])
    assert (found["from"] <= found["value"]).all() and found.loc["recall C", "N"] == (labels == 2).sum()
    one = np.ones((1, 90))
    for name, measure in (
        ("auc", auc),
        ("balanced accuracy", balanced_accuracy),
        ("average precision", average_precision),
    ):
        assert measure(table, one).item() == found.loc[name, "value"]


def plan_for(store) -> RealVsSyntheticPlan:
    classes = tuple(store.classes)
    return RealVsSyntheticPlan(
        classifier=ClassifierConfig(64, classes),
        generator=CGANConfig(64, classes, base_channels=8),
        train_config=TrainConfig(2, 8),
        gan_train_config=TrainConfig(2, 4),
        num_synthetic=14,
        fractions=(0.5,),
        seeds=(0, 1),
    )


def test_the_experiment_from_end_to_end(phantom_store, tmp_path):
    results = real_vs_synthetic_experiment(phantom_store, plan_for(phantom_store), tmp_path)
    test = phantom_store.table.iloc[phantom_store.rows("test", needs=["label"])]
    assert set(results["image_id"]) == set(test["image_id"]) and probabilities(results).sum(axis=1) == pytest.approx(1)
    assert len(results.groupby(["arm", "seed"])) == 12 and not list(tmp_path.glob("work-*"))
    table = summary(results, balanced_accuracy)
    assert (
        table["balanced accuracy"].between(0, 1).all() and len(comparisons(results, auc, module.COMPARISON_PAIRS)) == 5
    )


def test_arms_differ_in_what_they_say_and_in_nothing_else(phantom_store, tmp_path, monkeypatch):
    seen, few = {}, fraction_of_rows(phantom_store, 0.5)

    def remember(parts, settings, out, run, names):
        seen[out.name] = (parts, settings, run, names)
        raise StopIteration

    def arm(name: str):
        plan = replace(plan_for(phantom_store), seeds=(1,))
        monkeypatch.setattr(module, "run_cells", lambda arms, *_: arms[name](0.5, 1, tmp_path / name))
        with pytest.raises(StopIteration):
            real_vs_synthetic_experiment(phantom_store, plan, tmp_path)
        return seen[name]

    trained_on, whole = [], module.train_cgan
    monkeypatch.setattr(module, "train_cgan", lambda *given: trained_on.append(given[4]) or whole(*given))
    monkeypatch.setattr(module, "train_on_labelled", remember)
    names = [
        "real",
        "real + augmentation",
        "class-weighted",
        "real + synthetic",
        "real + synthetic + augmentation",
        "synthetic only",
    ]
    arms = [arm(name) for name in names]
    assert all(run == TrainConfig(2, 8, seed=1) for *_, run, _ in arms)
    assert [s.colour > 0 for _, s, *_ in arms] == [False, True, True, False, True, False]
    assert [s.balance for _, s, *_ in arms] == ["sampling", "sampling", "loss", "sampling", "sampling", "sampling"]
    assert [len(parts) for parts, *_ in arms] == [1, 1, 1, 2, 2, 1]
    for parts, *_ in arms[:5]:
        assert parts[0].images is phantom_store.images and np.array_equal(parts[0].rows, few)
    for parts, *_ in arms[3:]:
        assert len(parts[-1].images) == 14 and np.bincount(parts[-1].labels).max() <= 3, "none real, classes alike"
    assert all(set(names) == set(ids_of(phantom_store.table.iloc[few])) for *_, names in arms)
    assert len(trained_on) == 3 and all(np.array_equal(rows, few) for rows in trained_on)


def test_what_cannot_be_compared_is_refused(phantom_store, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"shares \[1.5\]"):
        real_vs_synthetic_experiment(phantom_store, replace(plan_for(phantom_store), shares=(1.5,)), tmp_path)
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match="lacks masks or labels"):
        real_vs_synthetic_experiment(phantom_store, plan_for(phantom_store), tmp_path)
