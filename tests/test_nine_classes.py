"""The nine-class folder set (ISIC's names, Train/ and Test/, no masks, many copies), as made folders."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from helpers.__main__ import main
from helpers.config import get_config
from helpers.data.audit import audit
from helpers.data.layouts import read
from helpers.data.store import StoreConfig, prepare, resize
from helpers.models.classifier import ClassifierConfig, hide_surroundings, predict, train_classifier
from helpers.models.segmenter import load_segmenter, segment
from helpers.models.trainer import TrainConfig
from helpers.phantoms.render import render
from helpers.views.predictor import Predictor, find_weights

CLASSES = [
    "actinic keratosis", "basal cell carcinoma", "dermatofibroma", "melanoma", "nevus", "pigmented benign keratosis",
    "seborrheic keratosis", "squamous cell carcinoma", "vascular lesion",
]  # fmt: skip
OTHER_CLASS, ACROSS, SAME_CLASS = 3, 4, 2  # copies under another class, in Train and Test, twice in one folder


@pytest.fixture(scope="module")
def nine(tmp_path_factory) -> Path:
    """Eight images in Train and two in Test of each class, and copies: `OTHER_CLASS`, `ACROSS`, `SAME_CLASS`."""
    root = tmp_path_factory.mktemp("nine") / "Skin cancer ISIC The International Skin Imaging Collaboration"
    for label, name in enumerate(CLASSES):
        for k in range(10):
            path = root / ("Train" if k < 8 else "Test") / name / f"ISIC_{1000 * label + k:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(cv2.resize(render(label % 7, seed=100 * label + k, size=96)[0], (96, 72))).save(path)
    for k in range(OTHER_CLASS):  # of one name, as in the set
        name = f"ISIC_{3000 + k:07d}.png"
        shutil.copyfile(root / "Train/melanoma" / name, root / "Train/nevus" / name)
    for k in range(ACROSS):
        name = CLASSES[k]
        shutil.copyfile(root / "Train" / name / f"ISIC_{1000 * k + 5:07d}.png", root / "Test" / name / f"copy_{k}.png")
    for k in range(SAME_CLASS):
        folder = root / "Train/vascular lesion"
        shutil.copyfile(folder / f"ISIC_{8000 + k:07d}.png", folder / f"again_{k}.png")
    return root.parent


def test_audit_of_nine_classes_counts_every_copy_once(nine):
    dataset = read(nine)
    assert dataset.classes == CLASSES and dataset.counts().loc["all"].to_dict() == {"train": 77, "test": 22, "all": 99}
    report = audit(dataset, progress=False)
    assert len(report.exact_duplicates) == OTHER_CLASS + ACROSS + SAME_CLASS and report.near_duplicates == []
    assert len(report.conflicts) == OTHER_CLASS and len(report.contradicting) == 2 * OTHER_CLASS
    assert len(report.leaks) == ACROSS and all(len(ids) == 2 for ids in report.leaks)
    text = str(report)
    assert "! " + f"{9:5,} exact copies" in text and "! " + f"{OTHER_CLASS:5,} copies with different labels" in text
    assert "! " + f"{ACROSS:5,} lesions or copies in several splits" in text and "can be used" in text


def test_prepare_of_nine_classes_drops_contradictions_and_keeps_copies_on_one_side(nine, tmp_path):
    store = prepare(read(nine), tmp_path, StoreConfig(32, "structure"), progress=False)
    assert len(store) == 99 - 2 * OTHER_CLASS and not store.has_mask.any()
    splits = pd.Series(store.splits).groupby(store.table["content"]).nunique()
    assert (splits == 1).all() and (store.table["content"].value_counts() == 2).sum() == ACROSS + SAME_CLASS
    problems = "\n".join(store.problems)
    assert f"{2 * OTHER_CLASS} images left out because a copy of them has another label" in problems
    assert f"{ACROSS} images moved so that each lesion is in one split" in problems


def test_segment_nine_classes_without_masks(nine, tmp_path, capsys):
    assert main(["segment", "--images", str(nine), "--out", str(tmp_path / "masks")]) == 0
    areas = pd.read_csv(tmp_path / "masks/areas.csv", index_col="image_id")
    printed = capsys.readouterr().out
    assert len(areas) == 96 and areas.index.is_unique and f"{OTHER_CLASS} (" in printed
    assert "have the id of another file" in printed and set(areas["width"]) == {96} and set(areas["height"]) == {72}
    assert areas["lesion_fraction"].between(0.01, 0.95).mean() > 0.9


@pytest.fixture(scope="module")
def checkpoints(phantom_store, tmp_path_factory) -> dict[bool, Path]:
    """Classifiers with and without surroundings, of the same first weights, after two steps."""
    out = tmp_path_factory.mktemp("classifiers")
    for lesion_only in (False, True):
        torch.manual_seed(0)
        config = ClassifierConfig(64, tuple(phantom_store.classes), lesion_only=lesion_only)
        train_classifier(phantom_store, config, out / str(lesion_only), TrainConfig(2, 8))
    return {lesion_only: out / str(lesion_only) / "checkpoint.pt" for lesion_only in (False, True)}


def classify(checkpoint: Path, images: Path, out: Path) -> pd.DataFrame:
    segmenter = get_config().released / "segmenter.safetensors"
    options = ["--images", str(images), "--out", str(out), "--checkpoint", str(checkpoint)]
    assert main(["classify", *options, "--segmenter", str(segmenter)]) == 0
    return pd.read_csv(out, index_col="image_id").drop(columns=["diagnosis", "unsure", "unlike"])


def test_classify_nine_classes_with_and_without_surroundings(nine, checkpoints, tmp_path, capsys):
    tables = {flag: classify(path, nine, tmp_path / f"{flag}.csv") for flag, path in checkpoints.items()}
    for table in tables.values():
        assert len(table) == 96 and table.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-4)
    predictor = Predictor(find_weights(get_config(), {"classifier": checkpoints[True]}))
    paths = sorted(nine.rglob("Test/melanoma/ISIC*.png"))
    for path in paths:
        page = predictor.analyze(np.asarray(Image.open(path))).probabilities
        assert tables[True].loc[path.stem].to_dict() == pytest.approx(page, abs=1e-3), "the page and the shell agree"
    assert len(paths) == 2 and "left out" in capsys.readouterr().out


def test_classify_gives_a_lesion_only_classifier_gray_surroundings(nine, checkpoints, tmp_path, monkeypatch):
    images, inputs = next(nine.rglob("Train/melanoma")), {}
    for flag, path in checkpoints.items():
        monkeypatch.setattr(
            "helpers.shell.inference.predict",
            lambda classifier, images, flag=flag: inputs.update({flag: images}) or predict(classifier, images),
        )
        classify(path, images, tmp_path / f"{flag}.csv")
    segmenter, _ = load_segmenter(get_config().released / "segmenter.safetensors")
    masks = segment(segmenter, [np.asarray(Image.open(path)) for path in sorted(images.glob("*.png"))])
    masks = np.stack([resize(255 * mask, StoreConfig(64)) > 127 for mask in masks])
    assert 0.02 < masks.mean() < 0.9 and not (inputs[False] == 128).all(axis=-1).any(axis=(1, 2)).all()
    assert np.array_equal(inputs[True], hide_surroundings(inputs[False], masks))


def test_classify_of_a_lesion_only_classifier_says_where_no_lesion_is(checkpoints, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 64), (220, 180, 160)).save(tmp_path / "in/plain.png")
    classify(checkpoints[True], tmp_path / "in", tmp_path / "p.csv")
    printed = capsys.readouterr().out
    assert "no lesion is found in" in printed and "plain.png: its probabilities are meaningless" in printed


def test_evaluate_classifier_on_nine_classes_by_name(nine, checkpoints, tmp_path, monkeypatch, capsys):
    """Both keratoses are BKL, squamous cell carcinoma is none of ours; images with a copy in Test are test images."""
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    options = ["--dataset", "folders", "--data-root", str(nine), "--split", "test"]
    assert main(["evaluate", "classifier", str(checkpoints[False]), *options]) == 0
    printed = capsys.readouterr().out
    assert (
        "BKL (pigmented benign keratosis, seborrheic keratosis)" in printed and "AKIEC (actinic keratosis)" in printed
    )
    assert "left out: 2 images of other diagnoses (squamous cell carcinoma 2)" in printed
    lines = [line.split() for line in printed.splitlines() if line.strip().startswith("recall")]
    assert {line[1]: int(line[-1]) for line in lines} == {
        "MEL": 4, "NV": 2, "BCC": 4, "AKIEC": 4, "BKL": 4, "DF": 4, "VASC": 2,
    }  # fmt: skip


def test_evaluate_classifier_of_lesions_alone_needs_masks(nine, checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    assert (
        main(["evaluate", "classifier", str(checkpoints[True]), "--dataset", "folders", "--data-root", str(nine)]) == 2
    )
    assert "folders has no images with a label and a mask in val" in capsys.readouterr().err
