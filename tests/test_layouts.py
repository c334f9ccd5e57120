import csv
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from factories import HAM, course, folders, ham10000, isic2016, isic2017, one_hot, write_image, write_lines, write_mask
from PIL import Image

from helpers.config import get_config
from helpers.data.files import DataError, read_image
from helpers.data.layouts import ARTIFACTS, images_by_id, open_dataset, read
from helpers.data.tables import COLUMNS
from helpers.phantoms.sample import SAMPLE_SIZES


def check_contract(dataset):
    """Check what every reader guarantees; returns the table."""
    table = dataset.table
    assert list(table.columns) == COLUMNS
    assert table["image_id"].is_unique and table["path"].notna().all()
    assert str(table["label"].dtype) == "Int64"
    assert table["label"].dropna().between(0, len(dataset.classes) - 1).all()
    assert set(table["split"].dropna()) <= {"train", "val", "test"}
    assert dataset.counts().loc["all", "all"] == len(table)
    return table


def test_read_phantoms_has_masks_lesions_and_splits(phantoms):
    dataset = read(phantoms)
    table = check_contract(dataset)
    assert (dataset.name, dataset.classes, len(table)) == ("phantoms", HAM, 120)
    assert table[["mask_path", "lesion_id", "split"]].notna().all(axis=None)


def test_read_phantoms_has_artifacts_and_an_empty_string_for_none(phantoms):
    artifacts = read(phantoms).table.set_index("image_id")["artifacts"]
    assert artifacts.notna().all() and (artifacts == "").sum() > 20
    with open(phantoms / "metadata.csv", newline="") as file:
        assert artifacts.to_dict() == {row["image_id"]: row["artifacts"] for row in csv.DictReader(file)}
    names = {name for text in artifacts for name in text.split()}
    assert {"hair", "ink", "gel_border"} <= names <= set(ARTIFACTS)


def test_read_phantoms_unknown_artifact_raises(phantoms, tmp_path):
    folder = shutil.copytree(phantoms, tmp_path / "sample")
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text.replace("hair", "whisker"))
    with pytest.raises(DataError, match=r"must be dark_corner hair .*, got whisker"):
        read(folder)


@pytest.mark.parametrize("published", [isic2016, isic2017, ham10000, course, folders])
def test_read_published_sets_have_unknown_artifacts(tmp_path, published):
    artifacts = read(published(tmp_path)).table["artifacts"]
    assert artifacts.dtype == "string" and artifacts.isna().all()


def test_read_isic2016_has_masks_and_two_classes(tmp_path):
    dataset = read(isic2016(tmp_path))
    table = check_contract(dataset)
    assert dataset.name == "isic2016" and dataset.classes == ["benign", "malignant"]
    assert table.groupby("split")["label"].sum().to_dict() == {"train": 4, "test": 4}
    assert table["mask_path"].str.contains("_Segmentation.png").all()
    assert table["lesion_id"].isna().all(), "unknown values are NA"
    assert dataset.problems == []


def test_read_isic2017_superpixels_are_not_images(tmp_path):
    dataset = read(isic2017(tmp_path))
    table = check_contract(dataset)
    assert dataset.counts()["all"].to_dict() == {"MEL": 6, "SK": 6, "NV": 6, "all": 18}
    assert table["split"].value_counts().to_dict() == {"train": 6, "val": 6, "test": 6}
    assert not table["image_id"].str.contains("superpixels").any()


def test_read_isic2017_missing_test_set_is_reported(tmp_path):
    shutil.rmtree(isic2017(tmp_path) / "ISIC-2017_Test_v2_Data")
    dataset = read(tmp_path)
    assert set(dataset.table["split"]) == {"train", "val"}
    assert any("test images are not in" in problem for problem in dataset.problems)


def test_read_ham10000_dataverse_has_lesion_ids(tmp_path):
    dataset = read(ham10000(tmp_path))
    table = check_contract(dataset)
    assert dataset.name == "ham10000" and table["lesion_id"].nunique() == 7
    assert dataset.counts()["all"].to_dict() == dict.fromkeys(HAM, 2) | {"all": 14}


def test_read_ham10000_tab_separated_in_nested_folders(tmp_path):
    root = ham10000(tmp_path / "dataverse_files" / "HAM10000")
    table = pd.read_csv(root / "HAM10000_metadata.csv").assign(dataset="vidir_modern")
    table.to_csv(root / "HAM10000_metadata.tab", sep="\t", index=False)
    (root / "HAM10000_metadata.csv").unlink()
    assert len(check_contract(read(tmp_path / "dataverse_files"))) == 14


def test_read_ham10000_kaggle_has_each_image_once_and_no_masks(tmp_path):
    root = ham10000(tmp_path)
    shutil.rmtree(root / "HAM10000_segmentations_lesion_tschandl")
    for part in ("part_1", "part_2"):
        shutil.move(root / f"HAM10000_images_{part}", root / f"ham10000_images_{part}")
    shutil.copytree(root / "ham10000_images_part_1", root / "HAM10000_images_part_3")
    dataset = read(root)
    assert len(check_contract(dataset)) == 14
    assert not dataset.has_masks and not dataset.has_contours and dataset.style == "structure"
    assert any("no masks" in problem for problem in dataset.problems)


@pytest.mark.parametrize("grouped", [True, False])
def test_read_isic2018_lesion_ids_come_from_the_groupings(tmp_path, grouped):
    ids = [f"ISIC_{24306 + i:07d}" for i in range(14)]
    for i, image_id in enumerate(ids):
        write_image(tmp_path / "ISIC2018_Task3_Training_Input" / f"{image_id}.jpg", i)
    name = "ISIC2018_Task3_Training_GroundTruth"
    write_lines(tmp_path / name / f"{name}.csv", *one_hot(ids))
    if grouped:
        rows = [f"{image_id},HAM_{i // 2:07d},histo" for i, image_id in enumerate(ids)]
        path = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
        write_lines(path, "image,lesion_id,diagnosis_confirm_type", *rows)
    dataset = read(tmp_path)
    table = check_contract(dataset)
    assert dataset.name == "ham10000" and table["split"].isna().all()
    assert table["lesion_id"].nunique() == (7 if grouped else 0)
    assert any("no lesion ids" in problem for problem in dataset.problems) != grouped


def test_read_course_called_isic2016_is_reported_as_ham10000(tmp_path):
    dataset = read(course(tmp_path / "ISIC 2016"))
    table = check_contract(dataset)
    assert dataset.name == "course" and dataset.classes == HAM
    assert "HAM10000" in dataset.problems[0] and "not ISIC 2016" in dataset.problems[0]
    assert table["split"].value_counts().to_dict() == {"train": 14, "test": 7}
    assert table["sketch_path"].notna().all() and not dataset.has_masks and dataset.style == "contour"
    assert len(dataset.unpaired_sketches) == 14
    assert all("npaired" in str(path) for path in dataset.unpaired_sketches)


def test_read_course_metadata_in_the_folder_gives_lesion_ids(tmp_path):
    root = course(tmp_path)
    rows = [f"HAM_{i // 2:07d},ISIC_{24306 + i:07d},nv" for i in range(14)]
    write_lines(root / "HAM10000_metadata.csv", "lesion_id,image_id,dx", *rows)
    assert read(root).table["lesion_id"].nunique() == 7


@pytest.mark.parametrize("wrapper", ["Sketch2Lesion_data", "latest", "contours of sketches"])
def test_read_course_outer_folder_name_does_not_matter(tmp_path, wrapper):
    course(tmp_path / wrapper / "ISIC 2016")
    dataset = read(tmp_path)
    assert dataset.table["split"].value_counts().to_dict() == {"train": 14, "test": 7}
    assert dataset.table["sketch_path"].notna().all()


def test_read_course_labels_inside_the_split_folders_are_found(tmp_path):
    course(tmp_path)
    shutil.move(tmp_path / "Train_labels.csv", tmp_path / "Train/Train_labels.csv")
    shutil.move(tmp_path / "Test_Labels.csv", tmp_path / "Test/Test_Labels.csv")
    assert len(check_contract(read(tmp_path))) == 21


def test_read_course_missing_test_labels_keep_the_images(tmp_path):
    (course(tmp_path) / "Test_Labels.csv").unlink()
    dataset = read(tmp_path)
    assert len(check_contract(dataset)) == 21 and dataset.table["label"].isna().sum() == 7
    assert any("the test labels are not in" in problem for problem in dataset.problems)


def test_read_folders_has_splits_and_no_masks(tmp_path):
    dataset = read(folders(tmp_path))
    table = check_contract(dataset)
    assert dataset.name == "folders" and dataset.classes == ["dermatofibroma", "melanoma", "nevus"]
    assert table["split"].value_counts().to_dict() == {"train": 18, "test": 9}
    assert table["mask_path"].isna().all()


def test_read_folders_repeated_file_names_get_the_folder_as_prefix(tmp_path):
    for name in ("a", "b"):
        for i in range(2):
            write_image(tmp_path / name / f"{i}.png", i)
    dataset = read(tmp_path)
    assert check_contract(dataset)["image_id"].to_list() == ["a-0.png", "a-1.png", "b-0.png", "b-1.png"]
    assert dataset.table["split"].isna().all()
    assert "share their file name" in " ".join(dataset.problems)


def test_read_folders_spellings_of_splits_are_recognized(tmp_path):
    for split in ("training", "Valid", "testing"):
        for name in ("a", "b"):
            write_image(tmp_path / split / name / f"{split}.png", len(split))
    assert read(tmp_path).table["split"].value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("names", "looks"),
    [
        (("images", "masks"), "images next to masks"),
        (("AUTO", "GT", "IMG"), "images next to masks"),
        (("data", "gt"), "images next to masks"),
        (("trainA", "trainB"), "images of several splits"),
        (("trainx", "trainy"), "images of several splits"),
        (("part_1", "part_2"), "numbered parts"),
        (("images_part 1", "images_part 2"), "numbered parts"),
        (("X_Training_Input", "X_GroundTruth"), "images next to masks"),
        (("all_images", "mel", "nv"), "images not sorted by diagnosis"),
    ],
)
def test_read_folders_not_named_after_classes_raise(tmp_path, names, looks):
    for name in names:
        write_image(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=f"looks like .*{looks}.* must be named after classes.*got .*{names[0]}"):
        read(tmp_path)


def test_read_folders_of_masks_are_not_classes(tmp_path):
    for i in range(3):
        write_image(tmp_path / "abc" / f"ISIC_{i}.jpg", i)
        write_mask(tmp_path / "xyz" / f"ISIC_{i}_Segmentation.png")
    with pytest.raises(DataError, match=r"looks like images next to masks: .*got xyz"):
        read(tmp_path)


@pytest.mark.parametrize("names", [("0", "1"), ("benign", "malignant"), ("class_1", "class_2"), ("valid nevus", "gtx")])
def test_read_folders_named_after_classes_are_read(tmp_path, names):
    for i, name in enumerate(names):
        write_image(tmp_path / name / f"{i}.png", i)
    assert read(tmp_path).classes == sorted(names)


def test_read_folders_that_differ_in_case_or_blanks_are_one_class(tmp_path):
    for name in ("Train/Nevus", "Train/mel anoma", "Test/nevus ", "Test/Melanoma"):
        write_image(tmp_path / name / f"{len(name)}.png", len(name))
    dataset = read(tmp_path)
    assert dataset.classes == ["Melanoma", "Nevus"] and dataset.table["label"].value_counts().to_dict() == {0: 2, 1: 2}
    assert "the folders 'Nevus', 'nevus ' are one class, Nevus" in dataset.problems


def test_read_class_missing_in_one_split_is_reported(tmp_path):
    shutil.rmtree(folders(tmp_path) / "Test/nevus")
    assert "no test images of nevus, which has train images" in read(tmp_path).problems


def test_counts_with_a_class_called_all(tmp_path):
    for i in range(5):
        write_image(tmp_path / ("all" if i < 3 else "nevus") / f"{i}.png", i)
    assert read(tmp_path).counts()["all"].to_dict() == {"all": 3, "nevus": 2, "total": 5}


@pytest.mark.parametrize("image_id", ["NA", "null"])
def test_read_folders_image_called_na(tmp_path, image_id):
    (folders(tmp_path) / "Train/nevus/ISIC_0000100.jpg").rename(tmp_path / f"Train/nevus/{image_id}.jpg")
    assert image_id in check_contract(read(tmp_path))["image_id"].to_list()


def test_read_unknown_layout_raises_with_the_known_ones(tmp_path):
    write_lines(tmp_path / "readme.txt", "nothing here")
    with pytest.raises(
        DataError, match=r"(?s)none of the known layouts.*isic2016.*isic2017.*ham10000.*course.*folders"
    ):
        read(tmp_path)


def test_read_missing_folder_raises(tmp_path):
    with pytest.raises(DataError, match="absent is not a folder"):
        read(tmp_path / "absent")


def remove_images(root, count):
    for i in range(count):
        (root / f"ISBI2016_ISIC_Part1_Training_Data/ISIC_{i:07d}.jpg").unlink()


def test_read_missing_images_up_to_20_percent_are_reported(tmp_path):
    remove_images(isic2016(tmp_path), 4)
    dataset = read(tmp_path)
    assert len(dataset.table) == 16
    assert any(p.startswith("4 (ISIC_0000000, ISIC_0000001") and "no image file" in p for p in dataset.problems)


def test_read_more_missing_images_raise(tmp_path):
    remove_images(isic2016(tmp_path), 5)
    with pytest.raises(DataError, match="5 of 20 isic2016 images are missing, at most 20 % may be"):
        read(tmp_path)


def test_read_unlabeled_image_is_kept_and_reported(tmp_path):
    write_image(isic2016(tmp_path) / "ISBI2016_ISIC_Part1_Training_Data" / "ISIC_0000099.jpg", 99)
    write_mask(tmp_path / "ISBI2016_ISIC_Part1_Training_GroundTruth" / "ISIC_0000099_Segmentation.png")
    dataset = read(tmp_path)
    row = dataset.table.set_index("image_id").loc["ISIC_0000099"]
    assert pd.isna(row["label"]) and row["split"] == "train"
    assert any("ISIC_0000099" in p and "not in the label file" in p for p in dataset.problems)


def test_subset_renumbers_labels_in_the_given_order(tmp_path):
    dataset = read(ham10000(tmp_path), classes=["BKL", "MEL"])
    assert dataset.classes == ["BKL", "MEL"]
    assert dataset.class_names().tolist().count("BKL") == 2
    assert dataset.table["label"].value_counts().to_dict() == {0: 2, 1: 2}


def test_subset_unknown_repeated_or_empty_class_raises(tmp_path):
    dataset = read(ham10000(tmp_path), classes=["BKL", "MEL"])
    with pytest.raises(DataError, match="ham10000 has the classes BKL, MEL, not WART"):
        dataset.subset(["WART", "MEL"])
    with pytest.raises(DataError, match="classes must be different, got MEL, MEL"):
        dataset.subset(["MEL", "MEL"])
    with pytest.raises(DataError, match="no image of ham10000 is labeled MEL"):
        replace(dataset, table=dataset.table[dataset.table["label"] == 0]).subset(["MEL"])


def test_images_by_id_repeated_id_is_reported(tmp_path):
    for name in ("ISIC_1.jpg", "ISIC_1_downsampled.jpg", "sketch_ISIC_2.png"):
        write_image(tmp_path / name)
    problems = []
    images = images_by_id(tmp_path, problems)
    assert {image_id: path.name for image_id, path in images.items()} == {
        "ISIC_1": "ISIC_1.jpg",
        "ISIC_2": "sketch_ISIC_2.png",
    }
    assert problems == ["1 (ISIC_1_downsampled.jpg) have the id of another file and are left out"]


def test_open_dataset_generates_the_sample_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    dataset = open_dataset(get_config(dataset="phantoms", data_root=tmp_path))
    images, size = SAMPLE_SIZES["smoke"]
    assert (dataset.name, len(dataset.table)) == ("phantoms", images)
    assert read_image(dataset.table["path"][0]).shape == (size, size, 3)


def test_open_dataset_other_content_than_expected_is_reported(tmp_path):
    ham10000(tmp_path)
    dataset = open_dataset(get_config(dataset="isic2016", data_root=tmp_path))
    assert dataset.problems[0] == "expected isic2016, but the folder contains ham10000"


def test_open_dataset_downloads_to_the_default_folder_if_it_is_absent_or_empty(tmp_path, monkeypatch):
    def download(name, folder):
        calls.append(name)
        isic2016(folder)

    calls = []
    monkeypatch.setattr("helpers.data.layouts.download", download)
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.delenv("LESION_DATA_ROOT", raising=False)
    for _ in range(2):
        assert open_dataset(get_config("isic2016")).root == tmp_path / "data/isic2016"
        assert calls == ["isic2016"]
    shutil.rmtree(tmp_path / "data/isic2016")
    (tmp_path / "data/isic2016").mkdir()
    open_dataset(get_config("isic2016"))
    assert len(calls) == 2


def test_open_dataset_unfinished_download_is_continued(tmp_path, monkeypatch):
    isic2016(tmp_path)
    calls = []
    monkeypatch.setattr("helpers.data.layouts.download", lambda name, folder: calls.append(name))
    cfg = get_config(dataset="isic2016", data_root=tmp_path)
    open_dataset(cfg)
    assert calls == []
    (tmp_path / ".download-unfinished").touch()
    open_dataset(cfg)
    assert calls == ["isic2016"]


@pytest.mark.parametrize(
    "inner",
    [".thumbnails", "@eaDir", "#recycle", "__MACOSX", ".ipynb_checkpoints", "thumbnails", "masks", "results", "zzz"],
)
def test_read_course_folders_below_the_images_replace_nothing(tmp_path, inner):
    expected = read(course(tmp_path))
    for path in list((tmp_path / "Train_data").iterdir()):
        write_image(tmp_path / "Train_data" / inner / path.name, size=(12, 9))
    write_image(tmp_path / "Train_data" / inner / "ISIC_0024306-checkpoint.jpg", size=(12, 9))
    if inner == "zzz":
        (tmp_path / "Train_data/zzz/ISIC_0024306-checkpoint.jpg").unlink()
    dataset = read(tmp_path)
    pd.testing.assert_frame_equal(dataset.table, expected.table)
    new = [problem for problem in dataset.problems if problem not in expected.problems]
    text = {"zzz": "14 (ISIC_0024306.jpg, ", "masks": "15 files in train_data/masks", "results": "15 files in"}.get(
        inner
    )
    assert len(new) == bool(text) and all(problem.startswith(text) for problem in new)


def test_read_course_results_beside_the_images_replace_nothing(tmp_path):
    expected = read(course(tmp_path)).table
    for path in list((tmp_path / "Train_data").iterdir()):
        write_image(tmp_path / "A" / path.name, size=(12, 9))
    dataset = read(tmp_path)
    pd.testing.assert_frame_equal(dataset.table, expected)
    assert any("have the id of another file and are left out" in problem for problem in dataset.problems)


@pytest.mark.parametrize("published", [isic2016, isic2017, ham10000, folders])
@pytest.mark.parametrize("hidden", [".thumbnails", "@eaDir", "#recycle", "__MACOSX"])
def test_read_hidden_folders_are_ignored(tmp_path, published, hidden):
    root = published(tmp_path)
    expected = read(root)
    for folder in [root, *(f for f in root.rglob("*") if f.is_dir())]:
        write_image(folder / hidden / "ISIC_0000001.jpg", size=(12, 9))
    dataset = read(root)
    pd.testing.assert_frame_equal(dataset.table, expected.table)
    assert dataset.problems == expected.problems


def move_masks(masks, images):
    for path in list(masks.iterdir()):
        shutil.move(path, images / path.name)
    masks.rmdir()


def test_read_isic2016_part_3b_has_masks_beside_the_images(tmp_path):
    expected = read(isic2016(tmp_path)).table
    for part in ("Training", "Test"):
        images = (tmp_path / f"ISBI2016_ISIC_Part1_{part}_Data").rename(tmp_path / f"ISBI2016_ISIC_Part3B_{part}_Data")
        move_masks(tmp_path / f"ISBI2016_ISIC_Part1_{part}_GroundTruth", images)
        name = f"ISBI2016_ISIC_Part3{{}}_{part}_GroundTruth.csv"
        (tmp_path / name.format("")).rename(tmp_path / name.format("B"))
    dataset = read(tmp_path)
    files = ["path", "mask_path"]
    names = dataset.table[files].map(lambda path: path.rpartition("/")[2])
    assert names.equals(expected[files].map(lambda path: path.rpartition("/")[2]))
    assert dataset.table.drop(columns=files).equals(expected.drop(columns=files)) and dataset.problems == []


@pytest.mark.parametrize("published", [isic2017, ham10000])
def test_read_masks_beside_the_images(tmp_path, published):
    root = published(tmp_path)
    expected = read(root).table
    if published is ham10000:
        move_masks(root / "HAM10000_segmentations_lesion_tschandl", root / "HAM10000_images_part_1")
    else:
        for part in ("Training", "Validation", "Test_v2"):
            move_masks(root / f"ISIC-2017_{part}_Part1_GroundTruth", root / f"ISIC-2017_{part}_Data")
    dataset = read(root)
    assert dataset.table["path"].equals(expected["path"]) and dataset.problems == []
    assert (dataset.table["mask_path"].str.rpartition("/")[2] == expected["mask_path"].str.rpartition("/")[2]).all()


def test_read_second_file_of_an_id_is_reported(tmp_path):
    write_image(isic2017(tmp_path) / "ISIC-2017_Training_Data/ISIC_0000001.png")
    dataset = read(tmp_path)
    assert dataset.problems == ["1 (ISIC_0000001.png) have the id of another file and are left out"]
    assert dataset.table["path"][1].endswith(".jpg")


@pytest.mark.parametrize("name", ["HAM10000_metadata.csv.gz", "HAM10000_metadata (1).csv"])
def test_read_ham10000_metadata_compressed_or_downloaded_twice(tmp_path, name):
    expected = read(ham10000(tmp_path)).table
    pd.read_csv(tmp_path / "HAM10000_metadata.csv").to_csv(tmp_path / name, index=False)
    (tmp_path / "HAM10000_metadata.csv").unlink()
    pd.testing.assert_frame_equal(read(tmp_path).table, expected)


def test_read_same_id_in_two_splits_gets_the_split_as_prefix(tmp_path):
    course(tmp_path)
    (tmp_path / "Test/Test_data/Test/ISIC_0033000.jpg").rename(tmp_path / "Test/Test_data/Test/ISIC_0024306.jpg")
    labels = tmp_path / "Test_Labels.csv"
    labels.write_text(labels.read_text().replace("ISIC_0033000", "ISIC_0024306"))
    dataset = read(tmp_path)
    ids = check_contract(dataset)["image_id"].to_list()
    assert ids[0] == "train-ISIC_0024306" and ids[14] == "test-ISIC_0024306"
    assert any("are ids in several splits" in problem for problem in dataset.problems)


def test_read_folders_names_classes_that_are_left_out(tmp_path):
    for name in ("train/nevus", "train/melanoma", "test/nevus", "test/melanoma", "keratosis"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "brown").save(tmp_path / name / f"{name.replace('/', '_')}.png")
    (tmp_path / "train" / "wart").mkdir()
    for k in range(3):
        (tmp_path / "train" / "wart" / f"{k}.raw").write_bytes(b"not an image format")
    dataset = read(tmp_path)
    assert dataset.classes == ["melanoma", "nevus"] and len(dataset.table) == 4
    problems = "\n".join(dataset.problems)
    assert "1 files in folders that are not read (keratosis) are left out: keratosis/keratosis.png" in problems
    assert "3 files of formats that are not read (.raw) are left out: train/wart/0.raw" in problems


def test_read_folders_masks_and_sketches_beside_the_images_are_no_images(tmp_path):
    for number, name in enumerate(("benign", "malignant")):
        for i in range(4):
            image = write_image(tmp_path / name / f"{name} ({i}).png", 10 * number + i)
            write_mask(image.with_stem(f"{image.stem}_{('mask', 'Segmentation', 'lesion', 'sketch')[i]}"))
        write_image(tmp_path / name / f"{name}_lesion.png", 100 + number)  # without its image: an image
    dataset = read(tmp_path)
    assert dataset.table.groupby("label").size().to_list() == [5, 5] and dataset.table["image_id"].is_unique
    for column, count in (("mask_path", 6), ("sketch_path", 2)):
        files = dataset.table.dropna(subset=column)
        stems = [path.removesuffix(".png") + "_" for path in files["path"]]
        assert len(files) == count and all(map(str.startswith, files[column], stems))
    assert not any("are left out" in problem for problem in dataset.problems)
