from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.experiments import arms as arms_module
from helpers.experiments import generators
from helpers.experiments import real_vs_synthetic as module
from helpers.experiments.generators import ALL_ARMS, RunOptions
from helpers.experiments.real_vs_synthetic import RealVsSyntheticExperiment, of_data, real_vs_synthetic_experiment
from helpers.experiments.runner import comparisons, fraction_of_rows, summary
from helpers.metrics.prediction_tables import balanced_accuracy, classes_of, probabilities, recalls_by_arm
from helpers.models.checkpoint import training_data
from helpers.models.classifier import ClassifierConfig
from helpers.models.gan import GANConfig
from helpers.models.trainer import TrainConfig


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


def test_real_vs_synthetic_experiment_tests_every_arm_on_every_test_image(phantom_store, tmp_path):
    results = real_vs_synthetic_experiment(phantom_store, settings_for(phantom_store), tmp_path, ALL_ARMS)
    test = phantom_store.table.iloc[phantom_store.rows("test", needs=["label"])]
    assert set(results["image_id"]) == set(test["image_id"]) and probabilities(results).sum(axis=1) == pytest.approx(1)
    counts = results.groupby(["arm", "seed"]).size()
    assert len(counts) == 18 and (counts == len(test)).all() and not list(tmp_path.glob("work-*"))
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

    def fit_classifier(sources, config, out, train_config, ids, init_from):
        trained_with[out.name] = (sources, config, train_config, ids)
        raise StopIteration

    def run_arms(arms, *_):
        for name, arm in arms.items():
            with pytest.raises(StopIteration):
                arm(0.5, 1, tmp_path / name)

    def train_gan(*args, **kwargs):
        gan_rows.append(args[4])
        return train(*args, **kwargs)

    train = generators.train_gan
    monkeypatch.setattr(generators, "train_gan", train_gan)
    monkeypatch.setattr(module, "fit_classifier", fit_classifier)
    monkeypatch.setattr(arms_module, "run_grid", run_arms)
    experiment = replace(settings_for(phantom_store), seeds=(1,))
    real_vs_synthetic_experiment(phantom_store, experiment, tmp_path, ALL_ARMS)
    with_augmentation = ["real + augmentation", "class-weighted", "real + synthetic + augmentation", "filtered"]
    with_augmentation += ["artifacts balanced", "pretraining"]
    assert set(trained_with) == {"real", *with_augmentation, "real + synthetic", "synthetic only"}
    for name, (sources, config, train_config, data) in trained_with.items():
        assert train_config == replace(experiment.train, seed=1, steps=1 if name == "pretraining" else 2)
        augmented = (
            experiment.classifier
            if name in with_augmentation
            else replace(experiment.classifier, **arms_module.NO_AUGMENTATION)
        )
        assert config == replace(augmented, balance="loss" if name == "class-weighted" else "sampling")
        assert data == training_data(phantom_store, rows)
        real = name not in ("synthetic only", "pretraining")
        synthetic = "synthetic" in name or name in ("filtered", "artifacts balanced", "pretraining")
        assert len(sources) == real + synthetic
        if real:
            assert sources[0].images is phantom_store.images and np.array_equal(sources[0].rows, rows)
        if synthetic:
            assert len(sources[-1].images) == 14, "no real images"
            assert np.bincount(sources[-1].labels).max() <= 3, "about equally many per class"
    assert len(gan_rows) == 1 and np.array_equal(gan_rows[0], rows), "arms share the synthetic images"


def test_real_vs_synthetic_experiment_without_sketches_or_with_wrong_fractions_raises(
    phantom_store, tmp_path, monkeypatch
):
    experiment = settings_for(phantom_store)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got \[1.5\]"):
        real_vs_synthetic_experiment(phantom_store, replace(experiment, fractions=(1.5,)), tmp_path)
    monkeypatch.setattr(phantom_store, "has_sketch", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match=r"training images with sketch and label, .*; got 0 and"):
        real_vs_synthetic_experiment(phantom_store, experiment, tmp_path, ALL_ARMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": TrainConfig(2, 8, seed=3)}, "--train.seed has no effect here: --seeds decides"),
        ({"balance": "loss"}, "--classifier.balance has no effect here: the arms decide"),
        ({"lesion_only": True}, "--classifier.lesion-only has no effect here: all arms see whole images"),
    ],
)
def test_options_without_effect_are_refused(phantom_store, tmp_path, changes, message):
    experiment = settings_for(phantom_store)
    changes = changes if "train" in changes else {"classifier": replace(experiment.classifier, **changes)}
    with pytest.raises(ValueError, match=message):
        real_vs_synthetic_experiment(phantom_store, replace(experiment, **changes), tmp_path)


def test_every_arm_is_also_scored_on_another_data_set_by_the_shared_classes(phantom_store, tmp_path):
    other = Store(phantom_store.folder)
    other.name, other.classes = "camera", ["MEL", "NV", "BCC", "d", "e", "f", "g"]
    options = RunOptions(only=("synthetic only",), also=other)
    results = real_vs_synthetic_experiment(phantom_store, settings_for(phantom_store), tmp_path, options)
    assert set(results["arm"]) == {"synthetic only", "real + augmentation"}, "augmentation is always among the arms"
    parts = of_data(results)
    assert list(parts) == ["phantoms", "camera"]
    test = other.rows("test", ["label"])
    for name, rows in {"phantoms": test, "camera": test[other.labels[test] < 3]}.items():
        assert (parts[name].groupby(["arm", "seed"]).size() == len(rows)).all()
        assert probabilities(parts[name]).sum(axis=1) == pytest.approx(1)
    assert classes_of(parts["camera"]) == ["MEL", "NV", "BCC"] and len(classes_of(parts["phantoms"])) == 7
    images = len(fraction_of_rows(phantom_store, 0.5))
    assert parts["camera"].groupby("arm")["generator"].unique().map(list).to_dict() == {
        "synthetic only": [f"trained here, {images} images"], "real + augmentation": ["none"]
    }  # fmt: skip
    other.name = "phantoms"
    with pytest.raises(ValueError, match="must be another one, got phantoms twice"):
        real_vs_synthetic_experiment(phantom_store, settings_for(phantom_store), tmp_path / "x", options)


def test_confusion_matrices_are_with_and_without_generated_images():
    labels = np.array([0, 0, 1, 1])
    table = pd.DataFrame({"label": labels, "seed": 4, "fraction": 1.0, "collapsed": False, "p_A": 0.4, "p_B": 0.6})
    both = table.assign(arm=module.BOTH, p_A=1 - labels, p_B=labels, collapsed=True)
    few = both.assign(arm="real + augmentation", fraction=0.1)
    matrices = module.confusion_matrices(pd.concat([few, table.assign(arm="real + augmentation"), both]))
    assert [m.tolist() for m in matrices.values()] == [[[0, 2], [0, 2]], [[2, 0], [0, 2]]]
    assert list(matrices) == ["real + augmentation\nseed 4", "real + synthetic + augmentation\nseed 4, collapsed"]
    assert len(module.confusion_matrices(table.assign(arm="real"))) == 0
