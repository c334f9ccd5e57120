import cv2
import pytest
from factories import ham10000

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
