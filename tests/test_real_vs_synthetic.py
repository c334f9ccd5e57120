from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.data.files import DataError
from helpers.experiments import real_vs_synthetic as module
from helpers.experiments.real_vs_synthetic import (
    RealVsSyntheticExperiment,
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
from helpers.models.classifier import ClassifierConfig, build_classifier, ids_of
from helpers.models.gan import GANConfig
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return build_classifier("small_cnn", CLASSES, 64).eval()


def settings_for(store) -> RealVsSyntheticExperiment:
    classes = tuple(store.classes)
    return RealVsSyntheticExperiment(
        classifier=ClassifierConfig(64, classes),
        generator=GANConfig(64, classes, base_channels=8),
        train=TrainConfig(2, 8),
        gan_train=TrainConfig(1, 2),
        num_synthetic=14,
        fractions=(0.5,),
        seeds=(0, 1),
    )


def test_predict_table_has_a_row_per_image(classifier, phantom_store):
    rows = phantom_store.rows("test", ["label"])
    table = predict_table(classifier, phantom_store, rows)
    assert classes_of(table) == list(CLASSES) and len(table) == len(rows)
    assert probabilities(table).sum(axis=1) == pytest.approx(1) and (table["label"] == phantom_store.labels[rows]).all()
    lesions = phantom_store.table["lesion_id"].iloc[rows].dropna()
    assert set(lesions) <= set(table["group"]) and table["group"].notna().all()


def test_predict_table_of_images_or_lesions_in_the_training_set_raises(classifier, phantom_store):
    rows = phantom_store.rows("test", ["label"])
    classifier.trained_on = ids_of(phantom_store.table.iloc[rows[3:4]])
    with pytest.raises(DataError, match=f"test images or lesions are in .* set .*{classifier.trained_on[0]}"):
        predict_table(classifier, phantom_store, rows)
    lesion = phantom_store.table["lesion_id"].iloc[rows].dropna().iloc[0]
    classifier.trained_on = [lesion]
    with pytest.raises(DataError, match=f"1 test images or lesions .*{lesion}"):
        predict_cross_dataset(classifier, phantom_store, rows)


def test_predict_table_of_a_classifier_with_other_classes_raises(phantom_store):
    rows = phantom_store.rows("test", ["label"])
    for classes in (CLASSES[::-1], CLASSES[:2], (*CLASSES, "SCC")):
        with pytest.raises(DataError, match=f"the same classes, got {' '.join(classes)} and MEL NV"):
            predict_table(build_classifier("small_cnn", classes, 64).eval(), phantom_store, rows)


def test_predict_table_without_labels_raises(classifier, phantom_store, monkeypatch):
    rows = phantom_store.rows("test", ["label"])
    with pytest.raises(DataError, match="phantoms: need labeled test images, got 0 images"):
        predict_table(classifier, phantom_store, rows[:0])
    labels = np.where(np.arange(len(phantom_store)) == rows[0], -1, phantom_store.labels)
    monkeypatch.setattr(phantom_store, "labels", labels)
    for predict in (predict_table, predict_cross_dataset):
        with pytest.raises(DataError, match=f"got {len(rows)} images, 1 without label"):
            predict(classifier, phantom_store, rows)


def test_predict_cross_dataset_uses_the_shared_classes(classifier, phantom_store, monkeypatch):
    rows = phantom_store.rows("test", ["label"])
    all_classes = predict_table(classifier, phantom_store, rows)
    monkeypatch.setattr(phantom_store, "classes", ["MEL", "NV", "BCC", "AKIEC", "SK", "lentigo", "scar"])
    table = predict_cross_dataset(classifier, phantom_store, rows, {"SK": "BKL"})
    assert classes_of(table) == ["MEL", "NV", "BCC", "AKIEC", "BKL"]
    shared = all_classes["label"] < 5
    assert len(table) == shared.sum() and (table["label"].to_numpy() == all_classes.loc[shared, "label"]).all()
    p = probabilities(all_classes)[shared][:, :5]
    assert probabilities(table) == pytest.approx(p / p.sum(axis=1, keepdims=True), rel=1e-4)


def test_predict_cross_dataset_with_one_shared_class_raises(classifier, phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "classes", ["MEL", "b", "c", "d", "e", "f", "g"])
    with pytest.raises(DataError, match="share at least two classes, got MEL NV BCC AKIEC BKL DF VASC and MEL b c"):
        predict_cross_dataset(classifier, phantom_store, phantom_store.rows("test", ["label"]))


def test_recalls_by_arm_lists_counts_and_the_majority_first():
    run = {"image_id": list("abcd"), "group": list("abcd"), "label": [0, 0, 0, 1], "fraction": 1.0, "seed": 0}
    x = pd.DataFrame(run | {"arm": "x", "p_A": [1, 1, 0, 0], "p_B": [0, 0, 1, 1]})
    recalls = recalls_by_arm(pd.concat([x, x.assign(arm="y", p_A=0, p_B=1)]))
    assert recalls.loc[("", "N")].to_list() == [3, 1] and recalls.loc[("", "majority")].to_list() == [1, 0]
    assert recalls.loc[("100%", "x")].to_list() == pytest.approx([2 / 3, 1])
    assert recalls.loc[("100%", "y")].to_list() == [0, 1]


def test_score_table_has_intervals_and_the_majority_baseline():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 90, p=[0.6, 0.3, 0.1])
    p = rng.uniform(size=(90, 3)) + 0.5 * np.eye(3)[labels]
    table = pd.DataFrame({"image_id": range(90), "group": range(90), "label": labels})
    table[["p_A", "p_B", "p_C"]] = p / p.sum(axis=1, keepdims=True)
    scores = score_table(table)
    measures = {"balanced accuracy": balanced_accuracy, "auc": auc, "average precision": average_precision}
    assert set(scores.index) == {*measures, "accuracy", *(f"recall {c}" for c in "ABC")}
    majority = {"balanced accuracy": 1 / 3, "accuracy": (labels == 0).mean(), "auc": 0.5}
    assert scores["majority"][list(majority)].to_dict() == pytest.approx(majority)
    assert (scores["from"] < scores["value"]).all() and (scores["value"] < scores["to"]).all()
    assert scores.loc["recall C", "N"] == (labels == 2).sum()
    for name, measure in measures.items():
        assert measure(table, np.ones((1, 90))).item() == scores.loc[name, "value"]


def test_real_vs_synthetic_experiment_tests_every_arm_on_every_test_image(phantom_store, tmp_path):
    results = real_vs_synthetic_experiment(phantom_store, settings_for(phantom_store), tmp_path)
    test = phantom_store.table.iloc[phantom_store.rows("test", needs=["label"])]
    assert set(results["image_id"]) == set(test["image_id"]) and probabilities(results).sum(axis=1) == pytest.approx(1)
    counts = results.groupby(["arm", "seed"]).size()
    assert len(counts) == 12 and (counts == len(test)).all() and not list(tmp_path.glob("work-*"))
    table = summary(results, balanced_accuracy).loc[0.5]["balanced accuracy"]
    recalls = recalls_by_arm(results).loc["50%"]
    assert table.to_dict() == pytest.approx(recalls.mean(axis=1).to_dict()), "mean recall, mean over seeds"
    pairs = comparisons(results, balanced_accuracy, module.COMPARISON_PAIRS).loc[0.5]["difference"]
    assert list(pairs.index) == module.COMPARISON_PAIRS
    assert list(pairs) == pytest.approx([table[arm] - table[reference] for arm, reference in pairs.index])


def test_real_vs_synthetic_experiment_arms_differ_in_data_augmentation_and_balance_only(
    phantom_store, tmp_path, monkeypatch
):
    trained_with, gan_rows, rows = {}, [], fraction_of_rows(phantom_store, 0.5)

    def fit_classifier(sources, config, out, train_config, ids):
        trained_with[out.name] = (sources, config, train_config, ids)
        raise StopIteration

    def run_arms(arms, *_):
        for name, arm in arms.items():
            with pytest.raises(StopIteration):
                arm(0.5, 1, tmp_path / name)

    train_gan = module.train_gan
    monkeypatch.setattr(module, "train_gan", lambda *args: gan_rows.append(args[4]) or train_gan(*args))
    monkeypatch.setattr(module, "fit_classifier", fit_classifier)
    monkeypatch.setattr(module, "run_grid", run_arms)
    experiment = replace(settings_for(phantom_store), seeds=(1,))
    real_vs_synthetic_experiment(phantom_store, experiment, tmp_path)
    with_augmentation = ["real + augmentation", "class-weighted", "real + synthetic + augmentation"]
    assert set(trained_with) == {"real", *with_augmentation, "real + synthetic", "synthetic only"}
    for name, (sources, config, train_config, ids) in trained_with.items():
        assert train_config == replace(experiment.train, seed=1)
        augmented = experiment.classifier if name in with_augmentation else replace(experiment.classifier, **module.NO_AUGMENTATION)
        assert config == replace(augmented, balance="loss" if name == "class-weighted" else "sampling")
        assert set(ids) == set(ids_of(phantom_store.table.iloc[rows]))
        real, synthetic = name != "synthetic only", "synthetic" in name
        assert len(sources) == real + synthetic
        if real:
            assert sources[0].images is phantom_store.images and np.array_equal(sources[0].rows, rows)
        if synthetic:
            assert len(sources[-1].images) == 14, "no real images"
            assert np.bincount(sources[-1].labels).max() <= 3, "about equally many per class"
    assert len(gan_rows) == 1 and np.array_equal(gan_rows[0], rows), "arms share the synthetic images"


def test_real_vs_synthetic_experiment_without_masks_or_with_wrong_fractions_raises(
    phantom_store, tmp_path, monkeypatch
):
    experiment = settings_for(phantom_store)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got \[1.5\]"):
        real_vs_synthetic_experiment(phantom_store, replace(experiment, fractions=(1.5,)), tmp_path)
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match=r"training images with mask and label, .*; got 0 and"):
        real_vs_synthetic_experiment(phantom_store, experiment, tmp_path)
