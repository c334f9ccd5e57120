import cv2
import pytest
from factories import ham10000, one_hot, write_image, write_lines

from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.data.shrink import shrink_ham10000


def test_shrink_writes_small_squares_in_the_published_layout(tmp_path):
    cfg = get_config("ham10000", ham10000(tmp_path / "original"))
    size = shrink_ham10000(tmp_path / "small", 16, cfg)
    original, small = read(cfg.data_root), read(tmp_path / "small")
    assert small.name == "ham10000" and size == sum(f.stat().st_size for f in (tmp_path / "small").rglob("*.*"))
    for column in ("image_id", "label", "lesion_id"):
        assert small.table[column].to_list() == original.table[column].to_list()
    assert small.table["mask_path"].isna().to_list() == original.table["mask_path"].isna().to_list()
    row = small.table[small.table["mask_path"].notna()].iloc[0]
    assert cv2.imread(row["path"]).shape == (16, 16, 3)
    mask = cv2.imread(row["mask_path"], cv2.IMREAD_UNCHANGED)
    assert mask.shape == (16, 16) and set(mask.ravel()) == {0, 255}


def test_shrink_into_the_data_set_raises(tmp_path):
    cfg = get_config("ham10000", ham10000(tmp_path / "original"))
    with pytest.raises(DataError, match="its images would be overwritten"):
        shrink_ham10000(tmp_path / "original", 16, cfg)


def test_shrink_of_another_data_set_raises(tmp_path):
    with pytest.raises(DataError, match="only ham10000 can be shrunk, got isic2016"):
        shrink_ham10000(tmp_path, 16, get_config("isic2016", tmp_path))


@pytest.mark.parametrize("name", ["HAM10000_metadata.tab", "HAM10000_metadata", "hmnist/HAM10000_metadata.csv"])
def test_shrink_takes_the_metadata_under_its_published_names(tmp_path, name):
    root = ham10000(tmp_path / "original")
    table = (root / "HAM10000_metadata.csv").rename(root / "table")
    if "/" in name:  # a nested data set
        (root / "hmnist").mkdir()
        for folder in root.glob("HAM10000_*"):
            folder.rename(root / "hmnist" / folder.name)
    table.rename(root / name)
    shrink_ham10000(tmp_path / "small", 16, get_config("ham10000", root))
    assert read(tmp_path / "small").table["label"].to_list() == read(root).table["label"].to_list()


def test_shrink_without_metadata_raises_before_anything_is_written(tmp_path):
    names = [f"ISIC_{24306 + i:07d}" for i in range(7)]
    for i, name in enumerate(names):
        write_image(tmp_path / "task3/ISIC2018_Task3_Training_Input" / f"{name}.jpg", i)
    write_lines(tmp_path / "task3/ISIC2018_Task3_Training_GroundTruth.csv", *one_hot(names))
    with pytest.raises(DataError, match=r"has no HAM10000_metadata\.csv"):
        shrink_ham10000(tmp_path / "small", 16, get_config("ham10000", tmp_path / "task3"))
    assert not (tmp_path / "small").exists()
