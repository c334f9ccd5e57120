import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from helpers.data.files import DataError
from helpers.metrics.prediction_tables import (
    auc,
    average_precision,
    balanced_accuracy,
    classes_of,
    predict_cross_dataset,
    predict_table,
    probabilities,
    recalls_by_arm,
    score_table,
)
from helpers.models.checkpoint import training_data
from helpers.models.classifier import (
    Classifier,
    ClassifierConfig,
    build_classifier,
    hide_surroundings,
    predict_logits,
    predict_proba,
)

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return build_classifier("small_cnn", CLASSES, 64).eval()


def test_predict_table_has_a_row_per_image(classifier, phantom_store):
    rows = phantom_store.rows("test", ["label"])
    table = predict_table(classifier, phantom_store, rows)
    assert classes_of(table) == list(CLASSES) and len(table) == len(rows)
    assert probabilities(table).sum(axis=1) == pytest.approx(1) and (table["label"] == phantom_store.labels[rows]).all()
    lesions = phantom_store.table["lesion_id"].iloc[rows].dropna()
    assert set(lesions) <= set(table["group"]) and table["group"].notna().all()


def test_predict_table_of_images_or_lesions_in_the_training_set_raises(classifier, phantom_store):
    rows = phantom_store.rows("test", ["label"])
    classifier.trained_on = training_data(phantom_store, rows[3:4])["trained_on"]
    with pytest.raises(DataError, match=f"test images are in .* set .*{phantom_store.table['image_id'][rows[3]]}"):
        predict_table(classifier, phantom_store, rows)
    with pytest.raises(DataError, match="test images are in the classifier's training set"):
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
    table = predict_cross_dataset(classifier, phantom_store, rows)
    assert classes_of(table) == ["MEL", "NV", "BCC", "AKIEC", "BKL"]
    shared = all_classes["label"] < 5
    assert len(table) == shared.sum() and (table["label"].to_numpy() == all_classes.loc[shared, "label"]).all()
    p = probabilities(all_classes)[shared][:, :5]
    assert probabilities(table) == pytest.approx(p / p.sum(axis=1, keepdims=True), rel=1e-4)


def test_predict_cross_dataset_names_of_one_class_are_added_up(phantom_store, monkeypatch):
    """Those of the classifier (two kinds of melanoma) and those of the data set (two kinds of nevi)."""
    torch.manual_seed(0)
    classes = ("melanoma (in situ)", "melanoma metastasis", "nevus", "wart")
    classifier, rows = build_classifier("small_cnn", classes, 64).eval(), phantom_store.rows("test", ["label"])
    labels = phantom_store.labels[rows]
    monkeypatch.setattr(phantom_store, "classes", ["common nevus", "atypical nevus", "melanoma", "a", "b", "c", "d"])
    table = predict_cross_dataset(classifier, phantom_store, rows)
    assert classes_of(table) == ["MEL", "nevus"]
    assert table["label"].to_list() == [int(label < 2) for label in labels if label < 3]
    p = softmax(predict_logits(classifier, phantom_store.images[rows])[:, :3], axis=1)[labels < 3]
    assert probabilities(table) == pytest.approx(np.stack([p[:, 0] + p[:, 1], p[:, 2]], axis=1), rel=1e-4)


def test_predict_table_of_a_lesion_only_classifier_hides_the_surroundings(phantom_store):
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(64, CLASSES, lesion_only=True)).eval()
    rows = phantom_store.rows("test", ["label", "mask"])
    hidden = hide_surroundings(phantom_store.images[rows], phantom_store.masks[rows])
    assert (hidden == 128).mean() > 0.2
    for predict in (predict_table, predict_cross_dataset):
        p = probabilities(predict(classifier, phantom_store, rows))
        assert p == pytest.approx(predict_proba(classifier, hidden), rel=1e-4)
        assert np.abs(p - predict_proba(classifier, phantom_store.images[rows])).max() > 1e-4


def test_predict_cross_dataset_with_one_shared_class_raises(classifier, phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "classes", ["MEL", "b", "c", "d", "e", "f", "g"])
    with pytest.raises(DataError, match="share at least two classes, got MEL NV BCC AKIEC BKL DF VASC and MEL b c"):
        predict_cross_dataset(classifier, phantom_store, phantom_store.rows("test", ["label"]))


def test_recalls_by_arm_lists_counts_and_the_majority_first():
    run = {"image_id": list("abcd"), "group": list("abcd"), "label": [0, 0, 0, 1], "fraction": 1.0, "seed": 0}
    x = pd.DataFrame(run | {"arm": "x", "p_A": [1, 1, 0, 0], "p_B": [0, 0, 1, 1]})
    recalls = recalls_by_arm(pd.concat([x, x.assign(arm="y", p_A=0, p_B=1)]))
    assert list(recalls.columns) == ["A", "B", "balanced accuracy"]
    assert recalls.loc[("", "N")].to_list() == [3, 1, 4] and recalls.loc[("", "majority")].to_list() == [1, 0, 0.5]
    assert recalls.loc[("100%", "x")].to_list() == pytest.approx([2 / 3, 1, 5 / 6])
    assert recalls.loc[("100%", "y")].to_list() == [0, 1, 0.5]


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
