import pandas as pd
import pytest
from factories import course, ham10000, isic2016, isic2017, write_image, write_lines, write_mask

from helpers.data.files import DataError
from helpers.data.labels import HAM_CLASSES, clean_id, read_labels
from helpers.data.layouts import read


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" ISIC_1.JPG ", "ISIC_1"), ("sketch_ISIC_1.png", "ISIC_1"), ("ISIC_1_Segmentation", "ISIC_1"), ("a.b", "a.b")],
)
def test_clean_id_has_no_ending_spaces_or_additions(text, expected):
    assert clean_id(text) == expected


def test_read_labels_of_names_and_of_one_hot_columns_agree_and_unknown_ones_are_reported(tmp_path):
    write_lines(tmp_path / "names.csv", "image_id;label", "ISIC_1.jpg;MEL", "ISIC_2.jpg; NV", "ISIC_3.jpg;WART")
    write_lines(tmp_path / "one_hot.csv", "image,MEL,NV", "ISIC_1,1,0", "ISIC_2,0,1", "ISIC_3,0,0")
    for name, problem in (("names", "unknown label in names.csv"), ("one_hot", "no single label in one_hot.csv")):
        problems = []
        assert read_labels(tmp_path / f"{name}.csv", HAM_CLASSES, problems) == {"ISIC_1": "MEL", "ISIC_2": "NV"}
        assert len(problems) == 1 and problem in problems[0] and "ISIC_3" in problems[0]


def test_read_labels_without_a_label_column_raises(tmp_path):
    write_lines(tmp_path / "labels.csv", "image_id,age", "ISIC_1,40")
    with pytest.raises(DataError, match="neither a column 'label' nor one named after a class"):
        read_labels(tmp_path / "labels.csv", HAM_CLASSES, [])


def test_read_label_file_with_byte_order_mark_loses_nothing(tmp_path):
    labels = ham10000(tmp_path) / "HAM10000_metadata.csv"
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())
    assert read(tmp_path).table["lesion_id"].nunique() == 7


def test_read_isic2017_blank_cells_are_unknown_not_a_nevus(tmp_path):
    labels = isic2017(tmp_path) / "ISIC-2017_Training_Part3_GroundTruth.csv"
    labels.write_text(labels.read_text().replace("ISIC_0000002,0.0,0.0", "ISIC_0000002,,"))
    assert read(tmp_path).table.set_index("image_id").loc["ISIC_0000002"].isna()["label"]


@pytest.mark.parametrize(
    ("content", "message"), [("", "cannot be read"), ("image_id,diagnosis\nISIC_0024306,nv", "no column dx, .*, got ")]
)
def test_read_unusable_label_file_raises(tmp_path, content, message):
    (ham10000(tmp_path) / "HAM10000_metadata.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_read_repeated_id_is_reported_or_raises_by_its_labels(tmp_path):
    labels = isic2016(tmp_path) / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
    write_lines(labels, *labels.read_text().split(), "ISIC_0000001,benign")
    dataset = read(tmp_path)
    assert len(dataset.table) == 20
    assert dataset.problems == ["1 (ISIC_0000001) are listed in the label file more than once"]
    write_lines(labels, *labels.read_text().split(), "ISIC_0000001,malignant")
    with pytest.raises(DataError, match=r"ISIC_0000001.*under different labels"):
        read(tmp_path)


def test_read_unknown_label_becomes_na_and_is_reported(tmp_path):
    labels = isic2016(tmp_path) / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
    labels.write_text(labels.read_text().replace("ISIC_0000001,benign", "ISIC_0000001,wart"))
    dataset = read(tmp_path)
    assert dataset.table.set_index("image_id").loc["ISIC_0000001"].isna()["label"]
    assert any("ISIC_0000001" in p and "expected benign malignant" in p for p in dataset.problems)


def test_read_one_hot_row_of_zeros_becomes_na_and_is_reported(tmp_path):
    labels = course(tmp_path) / "Train_labels.csv"
    lines = labels.read_text().split()
    lines[1] = lines[1].replace("1.0", "0.0")
    write_lines(labels, *lines)
    dataset = read(tmp_path)
    assert dataset.table["label"].isna().sum() == 1
    assert any("no single label" in problem for problem in dataset.problems)


def test_read_one_hot_missing_column_raises(tmp_path):
    labels = course(tmp_path) / "Train_labels.csv"
    write_lines(labels, *[line.rsplit(",", 1)[0] for line in labels.read_text().split()])
    with pytest.raises(DataError, match="no column VASC"):
        read(tmp_path)


def test_read_blanks_around_cells_and_column_names_are_removed(tmp_path):
    root = ham10000(tmp_path)
    labels = root / "HAM10000_metadata.csv"
    expected = read(root).table
    lines = labels.read_text().split("\n")
    lines[1:-1:2] = [line.replace(",", " ,\u00a0", 3) for line in lines[1:-1:2]]  # every other row
    labels.write_text("\n".join([lines[0].replace(",", " , "), *lines[1:]]), encoding="utf-8")
    dataset = read(root)
    pd.testing.assert_frame_equal(dataset.table, expected)
    assert dataset.table["lesion_id"].nunique() == 7 and dataset.problems == []


@pytest.mark.parametrize("image_id", ["NA", "null", "None", "nan"])
def test_read_ids_that_pandas_takes_for_missing_are_kept(tmp_path, image_id):
    write_image(isic2016(tmp_path) / "ISBI2016_ISIC_Part1_Training_Data" / f"{image_id}.jpg", 99)
    write_mask(tmp_path / "ISBI2016_ISIC_Part1_Training_GroundTruth" / f"{image_id}_Segmentation.png")
    labels = tmp_path / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
    write_lines(labels, *labels.read_text().split(), f"{image_id},malignant")
    dataset = read(tmp_path)
    assert dataset.class_names()[dataset.table["image_id"] == image_id].to_list() == ["malignant"]
    assert dataset.problems == []


def test_read_lesion_id_called_na_is_unknown(tmp_path):
    labels = ham10000(tmp_path) / "HAM10000_metadata.csv"
    labels.write_text(labels.read_text().replace("HAM_0000001,", "NA,"))
    assert read(tmp_path).table["lesion_id"].isna().sum() == 2


def test_read_composed_and_decomposed_names_are_the_same_id(tmp_path):
    images = isic2016(tmp_path) / "ISBI2016_ISIC_Part1_Training_Data"
    (images / "ISIC_0000001.jpg").rename(images / "ne\u0301vus.jpg")
    labels = tmp_path / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
    labels.write_text(labels.read_text().replace("ISIC_0000001,", "n\u00e9vus,"), encoding="utf-8")
    assert "n\u00e9vus" in read(tmp_path).table["image_id"].to_list()
