import shutil
from dataclasses import replace

import pandas as pd
import pytest
from factories import HAM, course, folders, ham10000, isic2016, isic2017, one_hot, paint, paint_mask, write

from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.layouts import COLUMNS, open_dataset, read


def contract(dataset):
    """What every reader promises."""
    table = dataset.table
    assert list(table.columns) == COLUMNS
    assert table["image_id"].is_unique and table["path"].notna().all()
    assert str(table["label"].dtype) == "Int64"
    assert table["label"].dropna().between(0, len(dataset.classes) - 1).all()
    assert set(table["split"].dropna()) <= {"train", "val", "test"}
    assert dataset.counts().loc["all", "all"] == len(table)
    return table


def test_phantoms(phantoms):
    dataset = read(phantoms)
    table = contract(dataset)
    assert (dataset.name, dataset.classes, len(table)) == ("phantoms", HAM, 120)
    assert table[["mask_path", "lesion_id", "split"]].notna().all(axis=None)


def test_isic2016(tmp_path):
    dataset = read(isic2016(tmp_path))
    table = contract(dataset)
    assert dataset.name == "isic2016" and dataset.classes == ["benign", "malignant"]
    assert table.groupby("split")["label"].sum().to_dict() == {"train": 4, "test": 4}
    assert table["mask_path"].str.contains("_Segmentation.png").all()
    assert table["lesion_id"].isna().all(), "unknown is NA, not made up"
    assert dataset.problems == []


def test_isic2017_superpixels_are_no_pictures(tmp_path):
    dataset = read(isic2017(tmp_path))
    table = contract(dataset)
    assert dataset.counts()["all"].to_dict() == {"MEL": 6, "SK": 6, "NV": 6, "all": 18}
    assert table["split"].value_counts().to_dict() == {"train": 6, "val": 6, "test": 6}
    assert not table["image_id"].str.contains("superpixels").any()


def test_isic2017_without_its_test_set(tmp_path):
    shutil.rmtree(isic2017(tmp_path) / "ISIC-2017_Test_v2_Data")
    dataset = read(tmp_path)
    assert set(dataset.table["split"]) == {"train", "val"}
    assert any("test pictures are not in" in problem for problem in dataset.problems)


def test_ham10000_dataverse(tmp_path):
    dataset = read(ham10000(tmp_path))
    table = contract(dataset)
    assert dataset.name == "ham10000" and table["lesion_id"].nunique() == 7
    assert dataset.counts()["all"].to_dict() == dict.fromkeys(HAM, 2) | {"all": 14}


def test_ham10000_tab_separated_and_wrapped(tmp_path):
    root = ham10000(tmp_path / "dataverse_files" / "HAM10000")
    table = pd.read_csv(root / "HAM10000_metadata.csv").assign(dataset="vidir_modern")
    table.to_csv(root / "HAM10000_metadata.tab", sep="\t", index=False)
    (root / "HAM10000_metadata.csv").unlink()
    assert len(contract(read(tmp_path / "dataverse_files"))) == 14


def test_ham10000_kaggle_has_every_picture_twice_and_no_masks(tmp_path):
    root = ham10000(tmp_path)
    shutil.rmtree(root / "HAM10000_segmentations_lesion_tschandl")
    for part in ("part_1", "part_2"):
        shutil.move(root / f"HAM10000_images_{part}", root / f"ham10000_images_{part}")
    shutil.copytree(root / "ham10000_images_part_1", root / "HAM10000_images_part_3")
    dataset = read(root)
    assert len(contract(dataset)) == 14
    assert dataset.table["mask_path"].isna().all()
    assert any("no masks" in problem for problem in dataset.problems)


@pytest.mark.parametrize("grouped", [True, False])
def test_isic2018_task3(tmp_path, grouped):
    names = [f"ISIC_{24306 + i:07d}" for i in range(14)]
    for i, name in enumerate(names):
        paint(tmp_path / "ISIC2018_Task3_Training_Input" / f"{name}.jpg", i)
    name = "ISIC2018_Task3_Training_GroundTruth"
    write(tmp_path / name / f"{name}.csv", *one_hot(names))
    if grouped:
        rows = [f"{n},HAM_{i // 2:07d},histo" for i, n in enumerate(names)]
        path = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
        write(path, "image,lesion_id,diagnosis_confirm_type", *rows)
    dataset = read(tmp_path)
    table = contract(dataset)
    assert dataset.name == "ham10000" and table["split"].isna().all()
    assert table["lesion_id"].nunique() == (7 if grouped else 0)
    assert any("no lesion ids" in problem for problem in dataset.problems) != grouped


def test_course_is_named_as_what_it_is(tmp_path):
    dataset = read(course(tmp_path / "ISIC 2016"))
    table = contract(dataset)
    assert dataset.name == "course" and dataset.classes == HAM
    assert "HAM10000" in dataset.problems[0] and "not ISIC 2016" in dataset.problems[0]
    assert table["split"].value_counts().to_dict() == {"train": 14, "test": 7}
    assert table["sketch_path"].notna().all()
    assert len(dataset.unpaired_sketches) == 14
    assert all("npaired" in str(path) for path in dataset.unpaired_sketches)


def test_course_takes_lesion_ids_where_they_lie(tmp_path):
    root = course(tmp_path)
    rows = [f"HAM_{i // 2:07d},ISIC_{24306 + i:07d},nv" for i in range(14)]
    write(root / "HAM10000_metadata.csv", "lesion_id,image_id,dx", *rows)
    assert read(root).table["lesion_id"].nunique() == 7


def test_folders(tmp_path):
    dataset = read(folders(tmp_path))
    table = contract(dataset)
    assert dataset.name == "folders" and dataset.classes == ["dermatofibroma", "melanoma", "nevus"]
    assert table["split"].value_counts().to_dict() == {"train": 18, "test": 9}
    assert table["mask_path"].isna().all()


def test_folders_without_splits_and_with_shared_names(tmp_path):
    for name in ("a", "b"):
        for i in range(3):
            paint(tmp_path / name / f"{i}.png", i)
    dataset = read(tmp_path)
    contract(dataset)
    assert dataset.table["split"].isna().all()
    assert "share their name" in " ".join(dataset.problems)


def test_folders_with_a_validation_split(tmp_path):
    for split in ("training", "Valid", "testing"):
        for name in ("a", "b"):
            paint(tmp_path / split / name / f"{split}.png", len(split))
    assert read(tmp_path).table["split"].value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}


@pytest.mark.parametrize("names", [("images", "masks"), ("trainA", "trainB"), ("X_Training_Input", "X_GroundTruth")])
def test_folders_that_are_no_classes_are_refused(tmp_path, names):
    for name in names:
        paint(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=f"{names[0]}.*no classes"):
        read(tmp_path)


@pytest.mark.parametrize("wrapper", ["Sketch2Lesion_data", "latest", "contours of sketches"])
def test_course_in_a_folder_of_any_name(tmp_path, wrapper):
    course(tmp_path / wrapper / "ISIC 2016")
    dataset = read(tmp_path)
    assert dataset.table["split"].value_counts().to_dict() == {"train": 14, "test": 7}
    assert dataset.table["sketch_path"].notna().all()


def test_course_labels_inside_the_split_folders(tmp_path):
    course(tmp_path)
    shutil.move(tmp_path / "Train_labels.csv", tmp_path / "Train/Train_labels.csv")
    shutil.move(tmp_path / "Test_Labels.csv", tmp_path / "Test/Test_Labels.csv")
    assert len(contract(read(tmp_path))) == 21


def test_course_without_test_labels_keeps_the_pictures(tmp_path):
    (course(tmp_path) / "Test_Labels.csv").unlink()
    dataset = read(tmp_path)
    assert len(contract(dataset)) == 21 and dataset.table["label"].isna().sum() == 7
    assert any("the test labels are not in" in problem for problem in dataset.problems)


def test_a_mark_of_excel_loses_nothing(tmp_path):
    labels = ham10000(tmp_path) / "HAM10000_metadata.csv"
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())
    assert read(tmp_path).table["lesion_id"].nunique() == 7


def test_blank_cells_are_unknown_not_a_nevus(tmp_path):
    labels = isic2017(tmp_path) / "ISIC-2017_Training_Part3_GroundTruth.csv"
    labels.write_text(labels.read_text().replace("ISIC_0000002,0.0,0.0", "ISIC_0000002,,"))
    assert read(tmp_path).table.set_index("image_id").loc["ISIC_0000002"].isna()["label"]


@pytest.mark.parametrize(
    ("content", "told"), [("", "cannot be read"), ("image_id,diagnosis\nISIC_0024306,nv", "no column dx")]
)
def test_label_files_that_cannot_be_used(tmp_path, content, told):
    (ham10000(tmp_path) / "HAM10000_metadata.csv").write_text(content)
    with pytest.raises(DataError, match=told):
        read(tmp_path)


def test_unknown_layout_says_what_was_looked_for(tmp_path):
    write(tmp_path / "readme.txt", "nothing here")
    with pytest.raises(
        DataError, match=r"(?s)none of the known layouts.*isic2016.*isic2017.*ham10000.*course.*folders"
    ):
        read(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        read(tmp_path / "absent")


@pytest.mark.parametrize(("missing", "stops"), [(4, False), (5, True)])
def test_a_fifth_may_be_missing_and_no_more(tmp_path, missing, stops):
    pictures = isic2016(tmp_path) / "ISBI2016_ISIC_Part1_Training_Data"
    for i in range(missing):
        (pictures / f"ISIC_{i:07d}.jpg").unlink()
    if stops:
        with pytest.raises(DataError, match="5 of 20"):
            read(tmp_path)
    else:
        assert len(read(tmp_path).table) == 16


def test_missing_pictures_are_counted_and_too_many_stop(tmp_path):
    pictures = isic2016(tmp_path) / "ISBI2016_ISIC_Part1_Training_Data"
    for i in range(2):
        (pictures / f"ISIC_{i:07d}.jpg").unlink()
    dataset = read(tmp_path)
    assert len(dataset.table) == 18
    assert any("2 (ISIC_0000000, ISIC_0000001)" in p and "no such picture" in p for p in dataset.problems)
    for i in range(2, 6):
        (pictures / f"ISIC_{i:07d}.jpg").unlink()
    with pytest.raises(DataError, match="6 of 20"):
        read(tmp_path)


def test_unlabelled_pictures_are_kept_and_named(tmp_path):
    paint(isic2016(tmp_path) / "ISBI2016_ISIC_Part1_Training_Data" / "ISIC_0000099.jpg", 99)
    paint_mask(tmp_path / "ISBI2016_ISIC_Part1_Training_GroundTruth" / "ISIC_0000099_Segmentation.png")
    dataset = read(tmp_path)
    row = dataset.table.set_index("image_id").loc["ISIC_0000099"]
    assert pd.isna(row["label"]) and row["split"] == "train"
    assert any("ISIC_0000099" in p and "not in the label file" in p for p in dataset.problems)


def test_doubled_ids(tmp_path):
    labels = isic2016(tmp_path) / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
    write(labels, *labels.read_text().split(), "ISIC_0000001,benign")
    dataset = read(tmp_path)
    assert len(dataset.table) == 20
    assert dataset.problems == ["1 (ISIC_0000001) stand in the label file more than once"]
    write(labels, *labels.read_text().split(), "ISIC_0000001,malignant")
    with pytest.raises(DataError, match=r"ISIC_0000001.*different labels"):
        read(tmp_path)


def test_unknown_label_is_named(tmp_path):
    labels = isic2016(tmp_path) / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
    labels.write_text(labels.read_text().replace("ISIC_0000001,benign", "ISIC_0000001,wart"))
    dataset = read(tmp_path)
    assert dataset.table.set_index("image_id").loc["ISIC_0000001"].isna()["label"]
    assert any("ISIC_0000001" in p and "none of benign malignant" in p for p in dataset.problems)


def test_one_hot_without_a_single_one(tmp_path):
    labels = course(tmp_path) / "Train_labels.csv"
    lines = labels.read_text().split()
    lines[1] = lines[1].replace("1.0", "0.0")
    write(labels, *lines)
    dataset = read(tmp_path)
    assert dataset.table["label"].isna().sum() == 1
    assert any("no single label" in problem for problem in dataset.problems)
    write(labels, *[line.rsplit(",", 1)[0] for line in lines])
    with pytest.raises(DataError, match="no column VASC"):
        read(tmp_path)


def test_subset_renumbers(tmp_path):
    dataset = read(ham10000(tmp_path), classes=["BKL", "MEL"])
    assert dataset.classes == ["BKL", "MEL"]
    assert dataset.class_names().tolist().count("BKL") == 2
    assert dataset.table["label"].value_counts().to_dict() == {0: 2, 1: 2}
    with pytest.raises(DataError, match="WART"):
        dataset.subset(["WART"])
    with pytest.raises(DataError, match="no picture of ham10000 is labelled MEL"):
        replace(dataset, table=dataset.table[dataset.table["label"] == 0]).subset(["MEL"])


def test_another_set_than_the_one_asked_for_is_said(tmp_path):
    ham10000(tmp_path)
    dataset = open_dataset(get_config("data", dataset="isic2016", data_root=tmp_path))
    assert dataset.problems[0] == "asked for isic2016, but the folder holds ham10000"


def test_an_unfinished_download_goes_on(tmp_path, monkeypatch):
    isic2016(tmp_path)
    calls = []
    monkeypatch.setattr("helpers.data.layouts.download", lambda name, folder: calls.append(name))
    cfg = get_config("data", dataset="isic2016", data_root=tmp_path)
    open_dataset(cfg)
    assert calls == []
    (tmp_path / ".download-unfinished").touch()
    open_dataset(cfg)
    assert calls == ["isic2016"]
