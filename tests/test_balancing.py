from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers.data.files import DataError
from helpers.experiments import balancing as module
from helpers.experiments import generators
from helpers.experiments.balancing import (
    BalancingExperiment,
    balancing_experiment,
    best_baseline,
    can_blend,
    comparison_pairs,
    lesion_folds,
    rare_classes,
    rare_recall,
)
from helpers.experiments.generators import RunOptions
from helpers.experiments.runner import comparisons, summary
from helpers.metrics.prediction_tables import probabilities
from helpers.models.checkpoint import training_data
from helpers.models.classifier import ClassifierConfig
from helpers.models.gan import GANConfig, dcgan_config
from helpers.models.trainer import TrainConfig


def settings_for(store) -> BalancingExperiment:
    classes = tuple(store.classes)
    return BalancingExperiment(
        classifier=ClassifierConfig(64, classes),
        cgan=GANConfig(64, classes, base_channels=8),
        dcgan=dcgan_config(64, classes=classes, base_channels=8),
        train=TrainConfig(2, 8),
        gan_train=TrainConfig(1, 2),
        dcgan_train=TrainConfig(1, 2),
        num_synthetic=6,
        folds=2,
        seeds=(0,),
        real_per_synthetic=(1,),
    )


def lesions_of(store) -> np.ndarray:
    return store.table["lesion_id"].fillna(store.table["image_id"]).to_numpy()


def test_rare_classes_have_at_most_5_percent_of_the_images(phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "labels", np.repeat([0, 1, 2, 3], [80, 15, 4, 1])[: len(phantom_store)])
    monkeypatch.setattr(phantom_store, "rows", lambda *_, **__: np.arange(100))
    assert rare_classes(phantom_store) == ["BCC", "AKIEC"], "4 and 1 of 100; classes without images do not count"
    monkeypatch.setattr(phantom_store, "labels", np.repeat([0, 1, 2], [40, 35, 25]))
    assert rare_classes(phantom_store) == ["BCC"], "the rarest class, because none has at most 5 %"


def test_lesion_folds_test_every_lesion_once(phantom_store):
    folds = lesion_folds(phantom_store, 3)
    tested = np.concatenate([test for _, test in folds])
    assert sorted(tested) == sorted(phantom_store.rows(needs=["label"]))
    lesions = lesions_of(phantom_store)
    for train, test in folds:
        assert not set(lesions[train]) & set(lesions[test]) and len(train) + len(test) == len(tested)
        assert set(np.unique(phantom_store.labels[test])) == set(range(7)), "every class in every fold"
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, lesion_folds(phantom_store, 3), strict=True))


def test_lesion_folds_of_a_class_with_too_few_lesions_raise(phantom_store):
    of_class = phantom_store.rows(needs=["label"], classes=["DF"])
    count = len(set(lesions_of(phantom_store)[of_class]))
    with pytest.raises(DataError, match=f"50 folds need at least 50 lesions per class, got .*{count} of DF"):
        lesion_folds(phantom_store, 50)


def test_balancing_experiment_tests_every_image_once_per_arm_and_seed(phantom_store, tmp_path):
    results = balancing_experiment(phantom_store, settings_for(phantom_store), tmp_path)
    num_labeled = len(phantom_store.rows(needs=["label"]))
    counts = results.groupby(["arm", "seed"])["image_id"].agg(["nunique", "size"])
    assert len(counts) == 6 and (counts == num_labeled).all(axis=None)
    rare = [phantom_store.classes.index(name) for name in rare_classes(phantom_store)]
    table = summary(results, measure := rare_recall(phantom_store.classes, rare_classes(phantom_store)))
    correct = results.assign(correct=probabilities(results).argmax(axis=1) == results["label"])
    correct = correct[correct["label"].isin(rare)].groupby(["arm", "label"])["correct"].mean()
    assert table.loc[1.0].iloc[:, 2].to_dict() == pytest.approx(correct.groupby("arm").mean().to_dict())
    best = best_baseline(table)
    assert table.loc[(1.0, best)].iloc[2] == max(table.loc[1.0].iloc[1:3, 2])
    assert len(comparisons(results, measure, comparison_pairs(best))) == 5
    assert (tmp_path / "fold-1" / "DCGAN" / "checkpoint.pt").is_file() and not list(tmp_path.glob("work-*"))


def test_balancing_experiment_repeats_real_images_per_synthetic_one(phantom_store, tmp_path, monkeypatch):
    fitted = []

    def fit_classifier(sources, *_):
        fitted.append([len(source.images) for source in sources])
        raise StopIteration

    monkeypatch.setattr(module, "run_grid", lambda arms, *_: arms)
    monkeypatch.setattr(module, "fit_classifier", fit_classifier)
    experiment = replace(settings_for(phantom_store), real_per_synthetic=(1, 4))
    arms, real = balancing_experiment(phantom_store, experiment, tmp_path), len(phantom_store)
    assert list(arms)[3:] == [name for name, _ in comparison_pairs("oversampled", experiment.real_per_synthetic)[2:]]
    for name in ("oversampled", "blended", "blended, one in 5"):
        with pytest.raises(StopIteration):
            arms[name](1.0, 0, tmp_path)
    assert fitted == [[real], [real, 6], [real, real, real, real, 6]]


def test_balancing_experiment_accepts_more_ratios_and_seeds_later(phantom_store, tmp_path):
    """Both only add runs, so results of the first call are kept; other sizes are another experiment."""
    experiment = settings_for(phantom_store)
    balancing_experiment(phantom_store, experiment, tmp_path, RunOptions(only=("blended",)))
    more = replace(experiment, seeds=(0, 1), real_per_synthetic=(1, 4))
    results = balancing_experiment(phantom_store, more, tmp_path, RunOptions(only=("blended", "blended, one in 5")))
    assert len(results.groupby(["arm", "seed"])) == 4
    with pytest.raises(ValueError, match="num_synthetic is 6 there, 7 here"):
        balancing_experiment(phantom_store, replace(experiment, num_synthetic=7), tmp_path)


def test_balancing_experiment_never_trains_on_test_lesions(phantom_store, tmp_path, monkeypatch):
    """Neither a classifier nor a generator does. Three folds, so that the test rows of one are not the training rows of
    another."""
    used, fitted, current_fold = [], {}, [None]
    rare = [phantom_store.classes.index(name) for name in rare_classes(phantom_store)]

    def record_rows(name: str, *positions: int, where=module) -> None:
        function = getattr(where, name)

        def recorded(*args, **kwargs):
            used.append((name, current_fold[0], np.concatenate([args[k] for k in positions])))
            return function(*args, **kwargs)

        monkeypatch.setattr(where, name, recorded)

    record_rows("train_gan", 4)
    record_rows("train_gan", 4, where=generators)
    record_rows("cgan_images", 2)
    record_rows("dcgan_images", 2)
    record_rows("blended_images", 1, 3)

    class TrackedFolds(list):
        """Stores the index of the fold that is being iterated in `current_fold`."""

        def __iter__(self):
            for k, rows in enumerate(list.__iter__(self)):
                current_fold[0] = k
                yield rows

    folds = TrackedFolds(lesion_folds(phantom_store, 3))
    monkeypatch.setattr(module, "lesion_folds", lambda *_: folds)
    fit = module.fit_classifier

    def fit_classifier(sources, config, out, train_config, data):
        fitted[out.parent.name.removeprefix("work-"), int(out.name)] = sources, data
        return fit(sources, config, out, train_config, data)

    monkeypatch.setattr(module, "fit_classifier", fit_classifier)
    balancing_experiment(phantom_store, replace(settings_for(phantom_store), folds=3), tmp_path)
    lesions = lesions_of(phantom_store)
    assert len(used) == 15 and {fold for _, fold, _ in used} == {0, 1, 2}, "five uses in each of three folds"
    for name, fold, rows in used:
        assert len(rows) and set(lesions[rows]) <= set(lesions[folds[fold][0]]), (name, fold)
        assert not set(lesions[rows]) & set(lesions[folds[fold][1]]), (name, fold)
    assert len(fitted) == 18
    for (arm, fold), (sources, data) in fitted.items():
        assert np.array_equal(sources[0].rows, folds[fold][0])
        assert data == training_data(phantom_store, folds[fold][0])
        assert len(sources) == (2 if arm.startswith(("DCGAN", "CGAN", "blended")) else 1), arm
        assert all(set(np.unique(source.labels)) <= set(rare) for source in sources[1:]), "only rare classes"


def test_balancing_experiment_without_masks_does_not_blend(phantom_store, tmp_path, monkeypatch):
    assert can_blend(phantom_store)
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    assert not can_blend(phantom_store)
    experiment = replace(settings_for(phantom_store), real_per_synthetic=(1, 4))
    results = balancing_experiment(phantom_store, experiment, tmp_path, RunOptions(only=("oversampled", "CGAN")))
    assert set(results["arm"]) == {"oversampled", "CGAN"}
    with pytest.raises(ValueError, match=r"must be one of unbalanced, .*, DCGAN, CGAN, DCGAN, one in 5, CGAN, one in"):
        balancing_experiment(phantom_store, experiment, tmp_path, RunOptions(only=("blended",)))


def test_rare_recall_is_the_mean_over_the_rare_classes():
    table = pd.DataFrame(
        {"label": [0, 0, 1, 1, 2], "p_a": [1, 0, 0, 1, 0], "p_b": [0, 1, 1, 0, 0], "p_c": [0, 0, 0, 0, 1]}
    )
    measure = rare_recall(["a", "b", "c"], ["b", "c"])
    assert measure(table, np.ones((1, 5))).item() == pytest.approx((0.5 + 1) / 2)


def test_best_baseline_has_the_higher_measure():
    index = pd.MultiIndex.from_product([[1.0], ["unbalanced", "class-weighted", "oversampled", "CGAN"]])
    table = pd.DataFrame({"N": 9, "seeds": 2, "recall": [0.1, 0.5, 0.4, 0.9]}, index=index)
    assert best_baseline(table) == "class-weighted"
    assert best_baseline(table.drop("class-weighted", level=1)) == "oversampled"
    assert best_baseline(table.iloc[:1]) == "oversampled", "the default without baselines"


def test_comparison_pairs_compare_synthetic_arms_with_the_best_baseline():
    pairs = comparison_pairs("class-weighted", (1, 4))
    assert pairs[:2] == [("class-weighted", "unbalanced"), ("oversampled", "unbalanced")]
    assert {reference for _, reference in pairs[2:]} == {"class-weighted"}
    assert [arm for arm, _ in pairs[2:]] == [
        *("DCGAN", "CGAN", "blended"),
        *("DCGAN, one in 5", "CGAN, one in 5", "blended, one in 5"),
    ]
