"""Hashes of files and pixels, and what tells an image from those of all data sets."""

import json
from pathlib import Path

import cv2
import pandas as pd
from factories import write_image

from helpers.data.content import file_hashes, identities, pixel_hash
from helpers.data.files import read_image


def test_file_hashes_are_of_the_content_and_files_are_read_once(tmp_path, monkeypatch):
    paths = [str(write_image(tmp_path / f"{k}.png", seed=k % 2)) for k in range(3)]
    read, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(str(path)) or read_bytes(path))
    first = file_hashes(paths, tmp_path / "index.json")
    assert first[0] == first[2] != first[1] and len(first[0]) == 32 and sorted(read) == paths
    read.clear()
    assert file_hashes(paths, tmp_path / "index.json") == first and read == []
    write_image(tmp_path / "1.png", seed=5)
    assert file_hashes(paths, tmp_path / "index.json")[1] != first[1] and read == [paths[1]]


def test_file_hashes_with_an_unreadable_file_or_index(tmp_path):
    path = str(write_image(tmp_path / "a.png"))
    (expected,) = file_hashes([path], tmp_path / "index.json")
    for content in ("", "{", "[]", json.dumps({path: []})):
        (tmp_path / "index.json").write_text(content)
        assert file_hashes([path, str(tmp_path / "absent.png")], tmp_path / "index.json") == [expected, ""]
    (tmp_path / "folder").mkdir()
    assert file_hashes([path], tmp_path / "folder") == [expected], "an index that cannot be written"


def test_pixel_hash_is_that_of_lossless_copies_and_of_no_other_image(tmp_path):
    image = read_image(write_image(tmp_path / "a.png"))
    cv2.imwrite(str(tmp_path / "copy.bmp"), image[..., ::-1])
    changed = image.copy()
    changed[3, 4, 1] ^= 1
    expected = pixel_hash(image)
    assert pixel_hash(read_image(tmp_path / "copy.bmp")) == expected and len(expected) == 16
    height, width, _ = image.shape
    others = [changed, image[:, ::-1], image.reshape(width, height, 3), image[:-1]]
    assert len({expected, *map(pixel_hash, others)}) == 5
    assert pixel_hash(image[:, ::-1][:, ::-1]) == expected


def test_identities_are_pixels_of_the_lesion_and_archive_ids():
    rows = [
        ("0001", None, "a"),
        ("train-ISIC_0000003", None, "b"),
        ("left", "HAM_0000012", "c"),
        ("right", "HAM_0000012", "d"),
        ("isic_00000031", "7", "e"),
    ]
    table = pd.DataFrame(rows, columns=["image_id", "lesion_id", "content"]).astype("string")
    lesion = {"c", "d", "HAM_0000012"}
    assert identities(table) == [{"a"}, {"b", "ISIC_0000003"}, lesion, lesion, {"e"}]
    assert identities(table.iloc[:0]) == []
