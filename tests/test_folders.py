from helpers.data.audit import audit
from helpers.data.layouts import read
from helpers.phantoms.folders import NINE_CLASSES, draw_tree, write_class_folders, write_course


def test_course_folder_is_read_as_the_course_and_named_as_ham10000(tmp_path):
    dataset = read(write_course(tmp_path / "ISIC 2016", train=14, test=7))
    assert dataset.name == "course" and "HAM10000" in dataset.problems[0]
    assert dataset.counts().loc["all"].to_dict() == {"train": 14, "test": 7, "all": 21}
    assert dataset.table["sketch_path"].notna().all()
    assert dataset.table["label"].value_counts().tolist() == [3] * 7


def test_class_folders_are_read_with_nine_classes_and_their_copies_are_found(tmp_path):
    dataset = read(write_class_folders(tmp_path / "nine", per_class=4, copies=3))
    assert dataset.name == "folders" and dataset.classes == list(NINE_CLASSES)
    assert len(dataset.table) == 9 * 4 + 3 + 1
    report = audit(dataset, progress=False)
    assert len(report.exact_duplicates) >= 4 and len(report.conflicts) == 3 and len(report.leaks) == 1


def test_writing_a_folder_again_replaces_it(tmp_path):
    write_course(tmp_path / "course", train=14, test=7)
    assert len(read(write_course(tmp_path / "course", train=7, test=7)).table) == 14


def test_draw_tree_shows_folders_tables_and_numbers_of_images(tmp_path):
    for name in ("Train/a", "Train/b"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("Train/a/1.jpg", "Train/a/2.jpg", "Train/b/3.jpg", "Train/labels.csv", "notes.txt"):
        (tmp_path / name).write_text("")
    lines = ["|-- Train/", "|   |-- a/  2 images", "|   |-- b/  1 image", "|   |-- labels.csv"]
    assert draw_tree(tmp_path).split("\n") == lines
