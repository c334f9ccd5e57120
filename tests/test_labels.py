import gzip
import os
import unicodedata

import pandas as pd
import pytest
from factories import course, ham10000, isic2016, isic2017, one_hot, write_image, write_lines, write_mask

from helpers.data.files import DataError
from helpers.data.labels import HAM_CLASSES, clean_id, id_from_stem, read_labels, read_table
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


def test_read_table_ids_are_in_the_column_image_id_or_image_or_the_first(tmp_path):
    ids = ["NA", "null", "007", "1e5"]
    for header in ("image_id,label,image", "label,image,x", "name,label,x"):
        position = {"label,image,x": 1}.get(header, 0)
        rows = [["a", "b", "c"] for _ in ids]
        for row, image_id in zip(rows, ids, strict=True):
            row[position] = image_id
        path = write_lines(tmp_path / "a.csv", header, *(",".join(row) for row in rows))
        assert list(read_table(path, ["label"])["image_id"]) == ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv.gz", gzip.compress(b"image_id,label\na,b\n" * 99, mtime=0)[:40], "a.csv.gz cannot be read"),
        ("a.csv.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 40, "a.csv.gz cannot be read"),
        ("a.csv.gz", gzip.compress(b"image_id,label\n" + bytes(30_000_000), mtime=0), "over 10,000,000 bytes"),
        ("a.csv", b"image_id,label\n\xe9,b\n", "save it as CSV in UTF-8"),
    ],
)
def test_read_table_of_damaged_packed_or_otherwise_encoded_text_raises(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name, [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_read_table_of_excel_has_any_of_its_encodings(tmp_path, encoding):
    (tmp_path / "a.csv").write_text("image_id\tlabel\nnævus\tb\n", encoding=encoding)
    assert read_table(tmp_path / "a.csv", ["label"]).to_numpy().tolist() == [["nævus", "b"]]


def test_id_from_stem_is_nfc_upper_case_for_the_archive_and_can_be_written():
    assert id_from_stem(unicodedata.normalize("NFD", "nævus_é")) == "nævus_é"
    assert id_from_stem("isic_0024306_downsampled") == "ISIC_0024306" and id_from_stem("isic_1") == "isic_1"
    assert id_from_stem(os.fsdecode(b"na\xefve")) == "na_ve"


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
def test_read_table_separators_and_too_many_columns(tmp_path, separator):
    path = write_lines(tmp_path / "a.csv", *(separator.join(cells) for cells in (["image_id", "label"], ["a", "b"])))
    assert read_table(path, []).to_numpy().tolist() == [["a", "b"]]
    write_lines(path, separator.join(["image_id"] * 2_000))
    with pytest.raises(DataError, match="over 1,000 columns"):
        read_table(path, [])
    write_lines(path, separator.join(["image_id", "label"]), separator.join("abc"))
    with pytest.raises(DataError, match="more cells than the 2 columns"):
        read_table(path, [])


def test_read_table_takes_any_line_end(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "a.csv").write_bytes(end.join(["image_id,label", "a,b", "c,d", ""]).encode())
        assert read_table(tmp_path / "a.csv", []).to_numpy().tolist() == [["a", "b"], ["c", "d"]]


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


ISIC2018 = "ISIC2018_Task3_Training_GroundTruth.csv"


def isic2018(root, lines):
    """ISIC 2018 task 3 with 14 training images and these lines of the label file."""
    for i in range(14):
        write_image(root / "ISIC2018_Task3_Training_Input" / f"ISIC_{24306 + i:07d}.jpg", i)
    write_lines(root / ISIC2018, *lines)
    return root


IDS = [f"ISIC_{24306 + i:07d}" for i in range(14)]


@pytest.mark.parametrize(
    ("one", "zero", "separator"),
    [
        ("True", "False", ","),
        ("TRUE ", " FALSE", ","),
        ("1,0", "0,0", ";"),
        ("x", "", ","),
        ("yes", "no", ","),
        ("1", "0", "\t"),
    ],
)
def test_read_one_hot_spellings_of_one_and_zero(tmp_path, one, zero, separator):
    lines = [line.replace(",", separator) for line in one_hot(IDS)]
    lines = [line.replace("1.0", one).replace("0.0", zero) for line in lines]
    dataset = read(isic2018(tmp_path, lines))
    assert dataset.class_names().to_list() == 2 * HAM_CLASSES


@pytest.mark.parametrize("cell", ["maybe", "2", "-1", "1.O"])
def test_read_one_hot_other_cells_raise_with_their_content(tmp_path, cell):
    lines = one_hot(IDS)
    lines[3] = lines[3].replace("1.0", cell)
    with pytest.raises(DataError, match=f"1 cells are neither 0 nor 1 .* '{cell}' in column BCC of ISIC_0024308"):
        read(isic2018(tmp_path, lines))


@pytest.mark.parametrize(("one", "zero"), [("True", "False"), ("1,0", "0,0")])
def test_read_isic2017_spellings_of_one_and_zero(tmp_path, one, zero):
    expected = read(isic2017(tmp_path)).table
    labels = tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv"
    text = labels.read_text().replace(",", ";") if "," in one else labels.read_text()
    labels.write_text(text.replace("1.0", one).replace("0.0", zero))
    pd.testing.assert_frame_equal(read(tmp_path).table, expected)


@pytest.mark.parametrize("values", [("False", "True"), ("Benign ", "MALIGNANT"), ("0", "1")])
def test_read_isic2016_spellings_of_labels(tmp_path, values):
    dataset = read(isic2016(tmp_path))
    labels = tmp_path / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
    labels.write_text(labels.read_text().replace("benign", values[0]).replace("malignant", values[1]))
    changed = read(tmp_path)
    pd.testing.assert_frame_equal(changed.table, dataset.table)
    assert changed.problems == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nv ", "NV"),
        ("Nv", "NV"),
        ("Melanocytic nevi", "NV"),
        ("Benign keratosis-like lesions ", "BKL"),
        ("melanoma", "MEL"),
    ],
)
def test_read_ham10000_written_out_names_are_classes(tmp_path, text, name):
    labels = ham10000(tmp_path) / "HAM10000_metadata.csv"
    labels.write_text(labels.read_text().replace(",nv,", f",{text},"))
    assert read(tmp_path).class_names()[2:4].to_list() == [name, name]


def test_read_unknown_labels_over_20_percent_raise_with_their_content(tmp_path):
    labels = ham10000(tmp_path) / "HAM10000_metadata.csv"
    labels.write_text(labels.read_text().replace(",nv,", ",wart,"))
    dataset = read(tmp_path)
    assert dataset.table["label"].isna().sum() == 2
    assert any("HAM10000_metadata.csv ('wart'), expected MEL NV" in problem for problem in dataset.problems)
    labels.write_text(labels.read_text().replace(",mel,", ",scar,"))
    with pytest.raises(DataError, match=r"4 of 14 images have no label that can be read.*'scar', 'wart'"):
        read(tmp_path)


def test_read_images_without_a_row_over_20_percent_raise(tmp_path):
    labels = ham10000(tmp_path) / "HAM10000_metadata.csv"
    write_lines(labels, *labels.read_text().split()[:12])
    with pytest.raises(DataError, match=r"3 of 14 images have no label.*ISIC_0024317.* not in the label file"):
        read(tmp_path)


def test_read_labels_of_true_and_false(tmp_path):
    write_lines(tmp_path / "labels.csv", "image_id,MEL,SK,NV", "a,True,False,False", "b,False,False,True")
    assert read_labels(tmp_path / "labels.csv", ["MEL", "SK", "NV"], []) == {"a": "MEL", "b": "NV"}
