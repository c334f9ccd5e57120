from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from helpers.__main__ import main
from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.sketches import contour
from helpers.data.store import StoreConfig, resize
from helpers.experiments.evaluate_networks import selective
from helpers.models.abstention import RANK, Confidence, choose_confidence, fit_subspace
from helpers.models.checkpoint import export_weights, read_checkpoint
from helpers.models.classifier import (
    ClassifierConfig,
    load_classifier,
    predict,
    predict_features,
    predict_proba,
    train_classifier,
)
from helpers.models.gan import load_gan
from helpers.models.sampling import sample
from helpers.models.trainer import TrainConfig
from helpers.phantoms.render import render
from helpers.views.handlers import NO_STATISTICS, NO_THRESHOLD, UNLIKE, Handlers
from helpers.views.predictor import Predictor

RELEASED = get_config().released
CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@pytest.fixture(scope="module")
def checkpoint(phantom_store, tmp_path_factory) -> Path:
    """A classifier trained on phantoms for 60 steps."""
    out = tmp_path_factory.mktemp("classifier")
    train_classifier(
        phantom_store, ClassifierConfig(64, CLASSES), out, TrainConfig(60, 16, save_every=20, ema_nimg=200)
    )
    return out / "checkpoint.pt"


@pytest.fixture(scope="module")
def generated() -> np.ndarray:
    """180 images `uint8 (128, 128, 3)` that the released CGAN generates from the outlines of 60 phantoms."""
    generator, _ = load_gan(RELEASED / "cgan.safetensors")
    sketches = np.stack([contour(render(k % 7, seed=k, size=128)[1]) for k in range(60)])
    images = [sample(generator, sketches, [(k + seed) % 7 for k in range(60)], seed) for seed in range(3)]
    return np.random.default_rng(0).permutation(np.concatenate(images))


@pytest.fixture(scope="module")
def dermoscopic_checkpoint(generated, tmp_path_factory) -> Path:
    """The released classifier with a threshold of 0.5, and the subspace of 120 generated images (val: 30 others)."""
    saved, (classifier, _) = (f(RELEASED / "classifier.safetensors") for f in (read_checkpoint, load_classifier))
    subspace = fit_subspace(*(predict_features(classifier, images) for images in (generated[:120], generated[120:150])))
    saved["extra_state"]["confidence"] = {"threshold": 0.5, "coverage": 0.8, "accuracy": 0.9, "n": 30}
    tensors = {f"subspace.{name}": tensor for name, tensor in subspace.state_dict().items()}
    saved["extra_state"]["best_state_dict"] |= tensors
    path = tmp_path_factory.mktemp("dermoscopic") / "checkpoint.pt"
    torch.save(saved, path)
    return path


@pytest.fixture(scope="module")
def without_thresholds(checkpoint, tmp_path_factory) -> Path:
    """The same, as a version without thresholds wrote it."""
    saved = torch.load(checkpoint, weights_only=True)
    saved["extra_state"].pop("confidence")
    weights = saved["extra_state"]["best_state_dict"]
    saved["extra_state"]["best_state_dict"] = {k: w for k, w in weights.items() if not k.startswith("subspace.")}
    path = tmp_path_factory.mktemp("older") / "checkpoint.pt"
    torch.save(saved, path)
    return path


def text_page(seed: int) -> np.ndarray:
    """A white page with 20 lines of random letters."""
    page, rng = np.full((600, 450, 3), 250, np.uint8), np.random.default_rng(seed)
    for line in range(20):
        letters = "".join(rng.choice(list("abcdefgh ijklm nopqr stu"), 40))
        cv2.putText(page, letters, (20, 30 + 28 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20))
    return page


def plot(seed: int) -> np.ndarray:
    """A curve, bars, points or a histogram by matplotlib."""
    rng, (figure, ax) = np.random.default_rng(seed), plt.subplots(figsize=(4, 4), dpi=80)
    kinds = (
        lambda: ax.plot(rng.normal(size=(50, 3)).cumsum(axis=0)),
        lambda: ax.bar(range(6), rng.uniform(size=6)),
        lambda: ax.scatter(*rng.normal(size=(2, 80))),
        lambda: ax.hist(rng.normal(size=300)),
    )
    kinds[seed % 4]()
    figure.canvas.draw()
    image = np.array(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    return image


def other_images() -> dict[str, list[np.ndarray]]:
    """2 photos, 10 pages and 20 plots."""
    return {
        "photo": list(load_sample_images().images),
        "page": [text_page(seed) for seed in range(10)],
        "plot": [plot(seed) for seed in range(20)],
    }


def new_phantoms(count: int) -> list[np.ndarray]:
    """Phantoms that are not in the sample."""
    return [render(k % 7, seed=1000 + k, size=64)[0] for k in range(count)]


def as_batch(images: list[np.ndarray], size: int = 64) -> np.ndarray:
    return np.stack([resize(image, StoreConfig(size)) for image in images])


# --------------------------------------------------------------------------------------------------------- thresholds


def test_choose_confidence_keeps_the_most_probable_four_fifths():
    top = np.array([0.9, 0.6, 0.8, 0.7, 0.55])
    confidence = choose_confidence(np.stack([top, 1 - top], axis=1), np.array([0, 1, 0, 1, 1]))
    assert confidence == Confidence(0.6, 0.8, 0.5, 5)


def test_choose_confidence_keeps_equal_probabilities_together():
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.7, 0.3], [0.7, 0.3]])
    assert choose_confidence(p, np.array([0, 0, 1, 1]), coverage=0.5) == Confidence(0.7, 1.0, 0.5, 4)


def test_choose_confidence_raises_the_accuracy_of_what_it_keeps():
    rng = np.random.default_rng(0)
    p = rng.dirichlet((1, 1, 1), size=5_000)
    labels = (p.cumsum(axis=1) > rng.uniform(size=(5_000, 1))).argmax(axis=1)
    confidence = choose_confidence(p, labels)
    assert confidence.coverage == 0.8 and confidence.n == 5_000
    assert confidence.accuracy > (p.argmax(axis=1) == labels).mean() + 0.03


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", None])
def test_confidence_threshold_outside_its_range_raises(value):
    with pytest.raises(ValueError, match="threshold must be"):
        Confidence(value, 0.8, 0.9, 100)


def test_fit_subspace_distance_is_the_relative_residual_whatever_the_norm():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(300, RANK))[0].T  # (R, D)
    train, val = torch.randn(500, RANK) @ basis, torch.randn(200, RANK) @ basis + 0.01 * torch.randn(200, 300)
    subspace = fit_subspace(train, val)
    assert subspace.components.shape == (RANK, 300)
    assert torch.allclose(subspace.components @ subspace.components.T, torch.eye(RANK), atol=1e-5)
    outside = torch.linalg.qr(torch.cat([basis.T, torch.randn(300, 1)], dim=1))[0][:, -1]
    inside = train[:1] / train[0].norm()
    for share in (0.0, 0.25, 1.0):
        feature = (1 - share) ** 0.5 * inside + share**0.5 * outside
        for norm in (0.1, 1, 100):
            assert float(subspace(norm * feature)) == pytest.approx(share, abs=1e-4)
    assert subspace.unlike(val).float().mean() == pytest.approx(0.01, abs=0.005)
    assert subspace(torch.zeros(1, 300)).isfinite().all()


def test_fit_subspace_of_few_images_has_half_as_many_directions():
    torch.manual_seed(0)
    assert fit_subspace(torch.randn(10, 300), torch.randn(4, 300)).components.shape == (5, 300)


# ---------------------------------------------------------------------------------------------------------- classifier


def test_train_classifier_stores_thresholds_that_export_keeps(checkpoint, phantom_store, tmp_path):
    classifier, _ = load_classifier(checkpoint)
    val = phantom_store.rows("val", ["label"])
    probs, labels = predict_proba(classifier, phantom_store.images[val]), phantom_store.labels[val]
    confidence = classifier.confidence
    kept = probs.max(axis=1) >= confidence.threshold - 1e-6
    assert confidence.n == len(val) and confidence.coverage == pytest.approx(kept.mean()) and kept.mean() >= 0.8
    assert confidence.accuracy == pytest.approx((probs.argmax(axis=1) == labels)[kept].mean())
    released, _ = load_classifier(export_weights(checkpoint, tmp_path / "classifier.safetensors"))
    assert released.confidence == confidence
    features = predict_features(classifier, as_batch(new_phantoms(20)))
    assert torch.allclose(classifier.subspace(features), released.subspace(features), atol=1e-3)
    assert float(released.subspace.threshold) == pytest.approx(float(classifier.subspace.threshold), rel=1e-3)
    assert 0 < float(classifier.subspace.threshold) < 1


def test_predict_equals_predict_proba_and_flags_what_is_below_the_threshold(checkpoint):
    classifier, _ = load_classifier(checkpoint)
    images = as_batch(new_phantoms(20))
    predictions, probs = predict(classifier, images), predict_proba(classifier, images)
    assert predictions.probabilities == pytest.approx(probs, abs=1e-6)
    classifier.confidence = Confidence(float(np.median(probs.max(axis=1))), 0.5, 0.5, 20)
    assert predict(classifier, images).unsure.sum() == 10


def test_predict_calls_other_images_unlike_dermoscopic_ones(dermoscopic_checkpoint, generated, tmp_path):
    """N = 2 photos, 10 pages and 20 plots: all; N = 30 generated images: few; N = 28 phantoms: between.
    Also exported."""
    exported = export_weights(dermoscopic_checkpoint, tmp_path / "classifier.safetensors")
    assert exported.stat().st_size < (RELEASED / "classifier.safetensors").stat().st_size + 200_000
    for file in (dermoscopic_checkpoint, exported):
        classifier, _ = load_classifier(file)
        for kind, images in other_images().items():
            assert predict(classifier, as_batch(images, 128)).unlike.all(), kind
        phantoms, others = (predict_features(classifier, x) for x in (as_batch(new_phantoms(28), 128), generated[150:]))
        assert classifier.subspace(phantoms).median() > classifier.subspace(others).median()
        assert predict(classifier, generated[150:]).unlike.mean() < 0.2


def test_released_classifier_flags_what_its_card_says(generated):
    classifier, _ = load_classifier(RELEASED / "classifier.safetensors")
    sets = {kind: as_batch(images, 128) for kind, images in other_images().items()}
    sets |= {"phantom": as_batch(new_phantoms(28), 128), "generated": generated}
    flagged = {kind: (int(predict(classifier, images).unlike.sum()), len(images)) for kind, images in sets.items()}
    assert all(flagged[kind] == (n, n) for kind, n in (("photo", 2), ("page", 10), ("plot", 20)))
    assert flagged["phantom"][0] <= 5 and flagged["generated"][0] <= 5, flagged


def test_predict_without_thresholds_flags_nothing(without_thresholds):
    classifier, _ = load_classifier(without_thresholds)
    predictions = predict(classifier, as_batch(new_phantoms(2)))
    assert predictions.unsure is None and predictions.unlike is None and predictions.probabilities.shape == (2, 7)


def test_train_classifier_without_thresholds_resumes_and_gets_them(without_thresholds, phantom_store, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(without_thresholds.read_bytes())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    saved["extra_state"]["val_balanced_accuracy"] = [0.0] * 3
    saved["config"]["steps"] = 61
    torch.save(saved, tmp_path / "checkpoint.pt")
    config = ClassifierConfig(64, CLASSES)
    train_classifier(phantom_store, config, tmp_path, TrainConfig(61, 16, save_every=20, ema_nimg=200))
    classifier, _ = load_classifier(tmp_path / "checkpoint.pt")
    assert classifier.confidence is not None and classifier.subspace is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", {"threshold": 2.0, "coverage": 0.8, "accuracy": 0.9, "n": 9}),
        ("confidence", {"threshold": 0.5}),
        ("confidence", [0.5]),
        ("components", torch.zeros(3)),
        ("components", torch.zeros(3, 7)),
    ],
)
def test_load_classifier_with_unusable_thresholds_raises(checkpoint, tmp_path, name, value):
    saved = torch.load(checkpoint, weights_only=True)
    if name == "components":
        saved["extra_state"]["best_state_dict"]["subspace.components"] = value
    else:
        saved["extra_state"][name] = value
    torch.save(saved, tmp_path / "bad.pt")
    with pytest.raises(DataError, match=r"bad\.pt is not a checkpoint of a classifier"):
        load_classifier(tmp_path / "bad.pt")


# ---------------------------------------------------------------------------------------------------- where it is used


def write_images(folder: Path, images: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def test_classify_writes_and_prints_what_is_unsure_and_unlike(dermoscopic_checkpoint, generated, tmp_path, capsys):
    china, flower = load_sample_images().images
    skin = {f"s{k:02}": image for k, image in enumerate(generated[150:])}
    images = write_images(tmp_path / "in", {"china": china, "flower": flower} | skin)
    arguments = ["--checkpoint", str(dermoscopic_checkpoint), "--images", str(images), "--out", str(tmp_path / "p.csv")]
    assert main(["classify", *arguments]) == 0
    text, table = capsys.readouterr().out, pd.read_csv(tmp_path / "p.csv", index_col="image_id")
    assert list(table) == ["diagnosis", "unsure", "unlike", *CLASSES] and len(table) == 32
    assert table["unlike"][["china", "flower"]].tolist() == [1, 1] and table["unlike"].sum() < 10
    assert (table["unsure"] == (table[list(CLASSES)].max(axis=1) < 0.5)).all() and table["unsure"].any()
    assert f"unsure: {table['unsure'].sum()} (" in text
    assert "below 0.50, which on val keeps 80% of 30 images with accuracy 0.900" in text
    assert f"unlike the dermoscopic images it was trained on: {table['unlike'].sum()} (china, flower" in text


def test_classify_without_thresholds_says_so_and_flags_nothing(without_thresholds, tmp_path, capsys):
    images = write_images(tmp_path / "in", {"china": load_sample_images().images[0]})
    arguments = ["--checkpoint", str(without_thresholds), "--images", str(images), "--out", str(tmp_path / "p.csv")]
    assert main(["classify", *arguments]) == 0
    text, table = capsys.readouterr().out, pd.read_csv(tmp_path / "p.csv")
    assert table[["unsure", "unlike"]].isna().all(axis=None)
    assert "has no confidence threshold: no image is called unsure" in text and "no feature statistics" in text


def test_selective_has_coverage_and_accuracy_at_the_threshold(checkpoint, without_thresholds, phantom_store):
    rows, notes = phantom_store.rows("test", ["label"]), []
    groups = pd.Series(np.arange(len(rows)))
    classifier, _ = load_classifier(checkpoint)
    table = pd.DataFrame(selective(classifier, phantom_store, rows, groups, notes)).set_index("measure")
    probs, labels = predict_proba(classifier, phantom_store.images[rows]), phantom_store.labels[rows]
    kept = probs.max(axis=1) >= classifier.confidence.threshold
    assert table.loc["coverage", "value"] == pytest.approx(kept.mean()) and table.loc["coverage", "n"] == len(rows)
    expected = (probs.argmax(axis=1) == labels)[kept].mean()
    assert table.loc["accuracy_at_coverage", ["value", "n"]].tolist() == pytest.approx([expected, kept.sum()])
    assert table.loc["confidence_threshold", "n"] == classifier.confidence.n
    assert table.loc["unlike_rate", "value"] < 0.5 and notes == []
    classifier, _ = load_classifier(without_thresholds)
    assert list(selective(classifier, phantom_store, rows, groups, notes)) == [] and len(notes) == 2


def test_page_says_unsure_and_unlike(dermoscopic_checkpoint, without_thresholds):
    photo = load_sample_images().images[0]

    def describe(classifier: Path, threshold: float | None = None) -> str:
        handlers = Handlers(Predictor({"cgan": RELEASED / "cgan.safetensors", "classifier": classifier}))
        if threshold is not None:
            handlers.predictor.networks["classifier"].confidence = Confidence(threshold, 0.8, 0.9, 100)
        return handlers.describe(handlers.predictor.analyze(photo))

    unsure, sure, unknown = (
        describe(dermoscopic_checkpoint, 1.0),
        describe(dermoscopic_checkpoint, 0.0),
        describe(without_thresholds),
    )
    assert "**Unsure: the highest probability is below 1.00" in unsure and "Unsure" not in sure + unknown
    assert UNLIKE in unsure and UNLIKE in sure and UNLIKE not in unknown
    assert NO_THRESHOLD in unknown and NO_STATISTICS in unknown and NO_THRESHOLD not in sure
