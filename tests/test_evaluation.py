import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from factories import MeanPoolExtractor, derm7pt, folders, isic2016, isic2017, pad_ufes_20, ph2
from PIL import Image

from helpers.config import ROOT, Config
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS
from helpers.experiments import evaluate_generator as generator_module
from helpers.experiments.evaluate_generator import (
    GeneratorEvaluation,
    evaluate_generator,
    own_or_released,
    sample_rows,
)
from helpers.experiments.evaluate_networks import (
    MEASURES,
    ArtifactEvaluation,
    ClassifierEvaluation,
    SegmenterEvaluation,
    evaluate_artifacts,
    evaluate_classifier,
    evaluate_segmenter,
    read_jaccard,
)
from helpers.experiments.evaluation import format_table, load_generator, mean_row, open_store, to_page, to_table
from helpers.metrics.extractors import FeatureExtractor
from helpers.metrics.prediction_tables import predict_table, score_table
from helpers.models.artifacts import ArtifactConfig, train_artifacts
from helpers.models.checkpoint import export_weights
from helpers.models.classifier import ClassifierConfig, load_classifier, train_classifier
from helpers.models.gan import GANConfig, dcgan_config, train_gan
from helpers.models.segmenter import SegmenterConfig, train_segmenter
from helpers.models.trainer import TrainConfig


@pytest.fixture(scope="module")
def cfg(phantoms, tmp_path_factory) -> Config:
    """As from `get_config`, with the small sample."""
    root = tmp_path_factory.mktemp("evaluation")
    folders = {name: root / name for name in ("stores", "features", "outputs")}
    return Config("smoke", "phantoms", phantoms, released=ROOT / "data" / "released", workers=1, **folders)


@pytest.fixture(scope="module")
def outputs(cfg, phantom_store):
    """Folder with a CGAN, a segmenter, a classifier and an artifact detector after one training step each."""
    classes, train_config = tuple(phantom_store.classes), TrainConfig(1, 4)
    torch.manual_seed(0)
    train_gan(phantom_store, GANConfig(64, classes, base_channels=8), cfg.outputs / "cgan", train_config)
    train_classifier(phantom_store, ClassifierConfig(64, classes), cfg.outputs / "classifier", train_config)
    segmenter = SegmenterConfig(64, "Unet", "tu-test_efficientnet", decoder_channels=32, pretrained=False, tta=False)
    train_segmenter(phantom_store, segmenter, cfg.outputs / "segmenter", train_config)
    train_artifacts(phantom_store, ArtifactConfig(64, pretrained=False), cfg.outputs / "artifacts", train_config)
    return cfg.outputs


def test_open_store_takes_the_style_of_the_data_set_and_only_its_classes(cfg, tmp_path):
    store = open_store(cfg, 64, "none", classes=("VASC", "DF"))
    assert store.classes == ["VASC", "DF"] and store.config.style == "contour"
    assert open_store(cfg, 64, "structure").config.style == "structure"
    own = replace(cfg, dataset="folders", data_root=folders(tmp_path / "own"), stores=tmp_path)
    assert open_store(own, 32).config.style == "structure"
    with pytest.raises(DataError, match="folders has the classes dermatofibroma, melanoma, nevus, not VASC"):
        open_store(own, 32, classes=("VASC", "nevus"))


def test_load_generator_cgan_and_dcgan_only_the_cgan_depends_on_sketches(phantom_store, tmp_path):
    classes, rows = tuple(phantom_store.classes), phantom_store.rows("train", ["sketch", "label"])
    train_gan(phantom_store, GANConfig(64, classes, base_channels=8), tmp_path / "cgan", TrainConfig(1, 4))
    train_gan(
        phantom_store, dcgan_config(64, classes=classes, base_channels=8), tmp_path / "dcgan", TrainConfig(1, 4), rows
    )
    batch = phantom_store.batch(rows[:3])
    blank = batch | {"sketches": np.zeros_like(batch["sketches"])}
    for method, uses_sketches in (("cgan", True), ("dcgan", False)):
        generate, config = load_generator(tmp_path / method / "checkpoint.pt")
        images = generate(batch, 0)
        assert config.size == 64 and images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
        assert np.array_equal(images, generate(batch, 0)), "repeatable by seed"
        assert not np.array_equal(images, generate(batch, 1))
        assert np.array_equal(images, generate(blank, 0)) != uses_sketches


def test_load_generator_other_file_raises(tmp_path):
    (tmp_path / "none.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"none\.pt"):
        load_generator(tmp_path / "none.pt")


def test_sample_rows_like_other_rows_returns_as_many_of_each_class(phantom_store):
    measured = sample_rows(phantom_store, "test", "balanced")
    floor = sample_rows(phantom_store, "train", "balanced", measured)
    counts = [np.bincount(phantom_store.labels[rows], minlength=7) for rows in (measured, floor)]
    assert np.array_equal(*counts) and len(set(measured)) == len(measured)
    natural = sample_rows(phantom_store, "test", "natural")
    assert set(natural) == set(phantom_store.rows("test", ["sketch", "label"]))
    assert len(sample_rows(phantom_store, "train", "natural", natural)) == len(natural)


# --------------------------------------------------------------------------------------------------------------- table


def test_mean_row_and_table_have_value_interval_and_n():
    values = np.array([0.0, 1.0, 1.0, 1.0])
    table = to_table([mean_row("accuracy", values, compared="real"), {"measure": "gap", "value": -12.5}], ["header"])
    assert list(table) == ["compared", "measure", "value", "low", "high", "n"]
    assert table["value"].to_list() == [0.75, -12.5] and 0 <= table["low"][0] < 0.75 < table["high"][0] == 1
    assert table["n"][0] == 4 and pd.isna(table["n"][1])
    lines = format_table(table).splitlines()
    assert lines[0] == "header" and "0.7500 (" in lines[2] and lines[3].split() == ["gap", "-12.5"]
    assert len(json.loads(table.to_json(orient="records"))) == 2


def test_format_table_names_what_was_not_measured():
    table = to_table([{"measure": "dice", "value": 0.5, "n": 3}], notes=["no weights", "no weights"])
    assert [line.split() for line in format_table(table).splitlines()[1:]] == [
        ["dice", "0.5000", "3"],
        ["!", "no", "weights"],
    ]


# ---------------------------------------------------------------------------------------------------------- generator


@pytest.fixture
def extractor(monkeypatch) -> FeatureExtractor:
    extractor = FeatureExtractor("mean-pool", MeanPoolExtractor())
    monkeypatch.setattr(generator_module, "available_extractors", lambda *_: ([extractor], ["no inception"]))
    monkeypatch.setattr(generator_module, "DIVERSITY_SKETCHES", 4)
    return extractor


def test_evaluate_generator_has_every_measure_beside_its_reference(cfg, outputs, phantom_store, extractor):
    table = evaluate_generator(outputs / "cgan" / "checkpoint.pt", GeneratorEvaluation(), cfg)
    rows = phantom_store.rows("val", ["sketch", "label"])
    for protocol in ("natural", "balanced"):
        part = table[table["protocol"] == protocol]
        distances = part[(part["class"] == "all") & (part["compared"] == "synthetic")].set_index("measure")
        assert list(distances.index) == ["kid", "fd", "precision", "recall", "density", "coverage"]
        assert (distances["n"] == len(rows)).all() and (distances["n_real"] == len(rows)).all()
        floors = part[(part["class"] == "all") & (part["compared"] == "floor")].set_index("measure")["value"]
        assert distances["floor"].to_dict() == floors.to_dict() and distances.loc["kid", "value"] > floors["kid"]
        assert distances.loc["kid", "low"] < distances.loc["kid", "value"] < distances.loc["kid", "high"]
        assert "blurred real" in set(part["compared"])
        for measure in ("label_accuracy", "sketch_dice"):
            real, synthetic = part[part["measure"] == measure].to_dict("records")
            assert (real["compared"], synthetic["compared"]) == ("real", "synthetic")
            assert synthetic["real"] == real["value"] and real["low"] <= real["value"] <= real["high"]
    natural = table[table["protocol"] == "natural"]
    for measure, count in {"diversity": 1, "structure": 1, "artifact_rate": 7, "copies": 2, "authenticity": 2}.items():
        assert (natural["measure"] == measure).sum() == count and measure not in set(part["measure"])
    assert "position" not in set(table["measure"]), "needs 100 images"
    text = format_table(table)
    assert all(
        word in text for word in ("natural mix", "balanced mix", "! no inception", "held-out real images", *ARTIFACTS)
    )
    assert not table["value"].isna().any()


def test_evaluate_generator_without_other_networks_says_what_is_missing(cfg, outputs, extractor, tmp_path):
    alone = replace(cfg, outputs=tmp_path, released=tmp_path)
    table = evaluate_generator(outputs / "cgan" / "checkpoint.pt", GeneratorEvaluation("test"), alone)
    assert not {"label_accuracy", "sketch_dice", "artifact_rate"} & set(table["measure"])
    assert {"no Dice of the sketches: there is no checkpoint of `train segmenter`",
            "no artifact rates: there is no released detector"} < set(table.attrs["notes"])  # fmt: skip


def test_own_or_released_takes_the_own_segmenter_else_a_released_one_that_saw_no_held_out_lesion(
    cfg, outputs, phantom_store, tmp_path
):
    notes = []

    def choose(folder, rows):
        return own_or_released(replace(cfg, outputs=folder, released=tmp_path), "segmenter", phantom_store, rows, notes)

    own, train = outputs / "segmenter" / "checkpoint.pt", phantom_store.rows("train")
    assert choose(outputs, train) == own and not choose(tmp_path, train).exists()
    released = export_weights(own, tmp_path / "segmenter.safetensors")
    assert choose(outputs, train) == own and choose(tmp_path, train) == released
    assert not notes and not choose(tmp_path, train[:1]).exists(), "neither the own file, which is absent, nor a leak"
    assert len(notes) == 1 and notes[0].startswith("not used: ") and "held out" in notes[0]


def test_evaluate_generator_trained_on_the_split_raises(cfg, phantom_store, extractor, tmp_path):
    config = GANConfig(64, tuple(phantom_store.classes), base_channels=8)
    train_gan(phantom_store, config, tmp_path, TrainConfig(1, 4), phantom_store.rows("val", ["sketch", "label"]))
    with pytest.raises(DataError, match=r"was trained on the lesions of \d+ images that are held out in phantoms"):
        evaluate_generator(tmp_path / "checkpoint.pt", GeneratorEvaluation(), cfg)
    assert len(evaluate_generator(tmp_path / "checkpoint.pt", GeneratorEvaluation("test"), cfg))


def test_evaluate_generator_extractor_option_and_authenticity_are_explained(cfg, outputs, monkeypatch):
    loaded = FeatureExtractor("skin", MeanPoolExtractor())
    monkeypatch.setattr("helpers.metrics.extractors.load_extractor", lambda name: {"skin": loaded}[name])
    monkeypatch.setattr(generator_module, "DIVERSITY_SKETCHES", 4)
    options = GeneratorEvaluation(extractor="skin", infinity=True)
    table = evaluate_generator(outputs / "cgan" / "checkpoint.pt", options, cfg)
    assert set(table["extractor"].dropna()) == {"skin", "pixels"}
    assert sum(note.startswith("authenticity: the fraction of images") for note in table.attrs["notes"]) == 1
    assert any("no fd_infinity: the extrapolation needs 100 images" in note for note in table.attrs["notes"])


@pytest.mark.parametrize(("name", "source"), [("pool", "train"), ("skin", "test"), ("classifier", "test")])
def test_distances_floor_of_extractors_trained_here_is_held_out(phantom_store, tmp_path, monkeypatch, name, source):
    def record(store, split: str, *rest) -> np.ndarray:
        splits.append(split)
        return sample_rows(store, split, *rest)

    generated = generator_module.sample_images(lambda batch, seed: batch["images"], phantom_store, "val", "natural")
    splits = []
    monkeypatch.setattr(generator_module, "sample_rows", record)
    num_logits = 4 if name == "classifier" else 0
    rows = generator_module.distances(generated, [FeatureExtractor(name, MeanPoolExtractor(), num_logits)], tmp_path,
                                      [], by_class=False)  # fmt: skip
    assert splits == [source] and {row["class"] for row in rows} == {"all"}
    scores = [row for row in rows if row["measure"] == "classifier_score" and row["compared"] == "synthetic"]
    assert len(scores) == (name == "classifier") and all(row["floor"] >= 1 for row in scores)


def test_evaluate_generator_of_a_dcgan_has_no_measure_of_sketches(cfg, phantom_store, extractor, tmp_path):
    config = dcgan_config(64, classes=tuple(phantom_store.classes), base_channels=8)
    train_gan(phantom_store, config, tmp_path, TrainConfig(1, 4))
    table = evaluate_generator(tmp_path / "checkpoint.pt", GeneratorEvaluation(), replace(cfg, outputs=tmp_path))
    assert {"kid", "structure", "copies"} < set(table["measure"]) and "sketch_dice" not in set(table["measure"])


def test_sketch_dices_without_masks_says_so(outputs, phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    generate, notes = lambda batch, seed: np.zeros_like(batch["images"]), []
    generated = generator_module.sample_images(generate, phantom_store, "val", "natural")
    assert generator_module.sketch_dices(generated, outputs / "segmenter" / "checkpoint.pt", notes) == []
    assert notes == ["natural: no Dice of the sketches: 0 images have a mask"]


# ---------------------------------------------------------------------------------------- segmenter, classifier, flags


def test_evaluate_segmenter_scores_classes_and_compares_with_another_file(cfg, outputs, tmp_path):
    checkpoint, file = outputs / "segmenter" / "checkpoint.pt", tmp_path / "new" / "scores.csv"
    table = evaluate_segmenter(checkpoint, SegmenterEvaluation(csv=file), cfg)
    scores = pd.read_csv(file)
    means = table[table["class"].isna()].set_index("measure")
    assert list(means.index) == list(MEASURES) and (means["n"] == len(scores)).all()
    assert means["value"].to_dict() == pytest.approx(scores[list(MEASURES)].mean().to_dict())
    by_class = table[table["class"].notna()]
    assert by_class["n"].sum() == len(scores) and set(by_class["measure"]) == {"jaccard"}
    scores.assign(jaccard=scores["jaccard"] - 0.1).to_csv(tmp_path / "old.csv", index=False)
    table = evaluate_segmenter(checkpoint, SegmenterEvaluation(against=tmp_path / "old.csv"), cfg)
    difference = table.iloc[-1]
    assert difference[["value", "low", "high"]].to_list() == pytest.approx([0.1, 0.1, 0.1])
    assert "jaccard_difference" in format_table(table) and "against old.csv" in format_table(table)
    scores.iloc[1:].to_csv(tmp_path / "old.csv", index=False)
    with pytest.raises(DataError, match=rf"lacks 1 of the {len(scores)} images, such as {scores['image_id'][0]}"):
        evaluate_segmenter(checkpoint, SegmenterEvaluation(against=tmp_path / "old.csv"), cfg)


def test_read_jaccard_ids_are_text(tmp_path):
    ids = ["NA", "null", "007", "1e5"]
    pd.DataFrame({"image_id": ids, "jaccard": [0.1, 0.2, 0.3, 0.4]}).to_csv(tmp_path / "a.csv", index=False)
    assert read_jaccard(tmp_path / "a.csv", pd.Series(ids[::-1])).tolist() == [0.4, 0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image_id,dice\na,1\n", r"a\.csv needs the columns image_id and jaccard"),
        (b"image_id,jaccard\na,1\na,0\n", r"a\.csv needs .* one row per image"),
        (b"image_id,jaccard\na,high\n", r"a\.csv lacks 1 of the 1 images, such as a"),
        (b"\xff\xfei\0", r"a\.csv cannot be read as CSV"),
    ],
)
def test_read_jaccard_of_an_unusable_file_raises(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_jaccard(tmp_path / "a.csv", pd.Series(["a"]))


def test_evaluate_classifier_has_scores_calibration_and_gap(cfg, outputs, phantom_store):
    checkpoint = outputs / "classifier" / "checkpoint.pt"
    table = evaluate_classifier(checkpoint, ClassifierEvaluation("test"), cfg).set_index("measure")
    classifier, _ = load_classifier(checkpoint)
    expected = score_table(predict_table(classifier, phantom_store, phantom_store.rows("test", ["label"])))
    row, accuracy = expected.loc["balanced accuracy"], table.loc["balanced_accuracy"]
    assert accuracy[["value", "low", "high", "n", "majority"]].to_list() == pytest.approx(row.to_list())
    assert table.loc["recall", "n"].sum() == len(phantom_store.rows("test", ["label"]))
    assert table.loc["temperature", "value"] == classifier.temperature
    real, synthetic = table.loc["label_accuracy"].to_dict("records")
    assert table.loc["label_accuracy_gap", "value"] == pytest.approx(real["value"] - synthetic["value"])
    assert {"calibration_error", "calibration_error_before", "balanced_label_accuracy"} < set(table.index)


def other_set(cfg: Config, name: str, folder: Path) -> Config:
    return replace(cfg, dataset=name, data_root=folder)


def test_evaluate_classifier_on_another_data_set_scores_shared_classes_and_says_what_is_left_out(
    cfg, outputs, tmp_path
):
    root = derm7pt(tmp_path)
    (root / "meta/meta.csv").write_text((root / "meta/meta.csv").read_text().replace("1,clark nevus", "1,wart", 1))
    table = evaluate_classifier(
        outputs / "classifier" / "checkpoint.pt", ClassifierEvaluation(), other_set(cfg, "derm7pt", root)
    )
    recalls = table[table["measure"] == "recall"].set_index("class")
    assert recalls["n"].to_dict() == {"MEL": 2, "NV": 1, "BKL": 2}, "every image, whatever its split"
    text = format_table(table)
    assert "MEL (melanoma (in situ)), NV (clark nevus), BCC (no image)" in text and "BKL (seborrheic keratosis)" in text
    assert "left out: 2 images of other diagnoses (lentigo 2)" in text
    assert "left out: 1 of 8 images have no label" in text and "have an unknown label in meta.csv ('wart')" in text
    assert set(table["measure"]) == {"balanced_accuracy", "accuracy", "auc", "average_precision", "recall"}


def test_evaluate_classifier_on_a_split_of_another_data_set(cfg, outputs, tmp_path):
    config = other_set(cfg, "isic2017", isic2017(tmp_path))
    table = evaluate_classifier(outputs / "classifier" / "checkpoint.pt", ClassifierEvaluation("test"), config)
    recalls = table[table["measure"] == "recall"].set_index("class")
    assert recalls["n"].to_dict() == {"MEL": 2, "NV": 2, "BKL": 2}


def test_evaluate_classifier_of_too_few_shared_classes_raises(cfg, outputs, tmp_path):
    with pytest.raises(DataError, match="must share at least two classes"):
        evaluate_classifier(
            outputs / "classifier" / "checkpoint.pt",
            ClassifierEvaluation("test"),
            other_set(cfg, "isic2016", isic2016(tmp_path, 6)),
        )


def test_evaluate_classifier_with_a_training_image_in_the_other_set_raises(cfg, outputs, phantom_store, tmp_path):
    """Under another name, in another data set."""
    path = phantom_store.table["path"][phantom_store.rows("train", ["label"])[0]]
    copy = ph2(tmp_path) / "PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp"
    copy.unlink()
    shutil.copyfile(path, copy.with_suffix(Path(path).suffix))
    Image.open(path).convert("L").point(lambda x: 255 * (x < 100)).save(
        tmp_path / "PH2 Dataset images/IMD002/IMD002_lesion/IMD002_lesion.bmp"
    )
    for evaluate, options in (
        (evaluate_classifier, ClassifierEvaluation()),
        (evaluate_segmenter, SegmenterEvaluation()),
    ):
        name = evaluate.__name__.removeprefix("evaluate_")
        with pytest.raises(DataError, match=rf"1 test images are in the {name}'s training set \(IMD002\)"):
            evaluate(outputs / name / "checkpoint.pt", options, other_set(cfg, "ph2", tmp_path))


def test_evaluate_segmenter_on_ph2_uses_every_image_with_a_mask(cfg, outputs, tmp_path):
    shutil.rmtree(ph2(tmp_path) / "PH2 Dataset images/IMD061/IMD061_lesion")
    table = evaluate_segmenter(
        outputs / "segmenter" / "checkpoint.pt", SegmenterEvaluation(), other_set(cfg, "ph2", tmp_path)
    )
    assert table.loc[table["measure"] == "dice", "n"].to_list() == [5]
    by_class = table.dropna(subset="class").set_index("class")["n"]
    assert by_class.to_dict() == {"common nevus": 2, "atypical nevus": 2, "melanoma": 1}
    assert "all, N 5" in format_table(table) and "left out: 1 of 6 images have no mask" in format_table(table)


def test_evaluate_segmenter_without_masks_raises(cfg, outputs, tmp_path):
    with pytest.raises(DataError, match="pad_ufes_20 has no images with a mask in all"):
        config = other_set(cfg, "pad_ufes_20", pad_ufes_20(tmp_path))
        evaluate_segmenter(outputs / "segmenter" / "checkpoint.pt", SegmenterEvaluation(), config)


def test_evaluate_artifacts_uses_annotated_images_only(cfg, outputs, phantom_store):
    table = evaluate_artifacts(outputs / "artifacts" / "checkpoint.pt", ArtifactEvaluation(), cfg)
    rows = phantom_store.rows("val")
    rows = rows[phantom_store.artifacts_known[rows]]
    rates = table[table["measure"] == "artifact_rate"].set_index("class")
    assert list(rates.index) == list(ARTIFACTS) and (table["n"] == len(rows)).all()
    assert rates["real"].to_list() == pytest.approx(phantom_store.artifacts[rows].mean(axis=0).tolist())
    assert (table["measure"] == "average_precision").sum() == 7
    assert "of which trained on 0" in format_table(table)


def test_to_page_shows_overall_rows_and_says_what_they_compare_with():
    rows = [
        {"protocol": "natural", "extractor": "pool", "compared": "synthetic", "class": "all", "measure": "kid",
         "value": 0.02, "low": 0.01, "high": 0.03, "n": 50, "n_real": 50, "floor": 0.004},
        {"protocol": "natural", "extractor": "pool", "compared": "floor", "class": "all", "measure": "kid",
         "value": 0.004, "n": 50},
        {"protocol": "natural", "extractor": "pool", "compared": "synthetic", "class": "MEL", "measure": "kid",
         "value": 0.5, "n": 5},
    ]  # fmt: skip
    page = to_page(to_table(rows, ["store", "config"], ["a note"]), "x on y", ("kid",))
    assert page.question == "How good is x on y?" and page.settings == ["store", "config"] and page.limits == ["a note"]
    text = "KID 0.0200 (0.0100 to 0.0300), floor 0.0040, N 50: natural mix, pool, synthetic; "
    assert page.verdict == [text + "generated images differ from real ones."]
    rows[0]["low"] = 0.003
    assert to_page(to_table(rows, [], []), "x", ("kid",)).verdict[0].endswith("no difference from real images seen.")
    assert len(page.table) == 2 and "MEL" not in page.table.to_string()
