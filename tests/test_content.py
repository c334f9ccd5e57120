"""Hashes of files and pixels, and what tells an image from those of all data sets."""

import os
from pathlib import Path

import cv2
import pandas as pd
from factories import write_image

from helpers.data.content import file_hashes, identities, pixel_hash, read_hashes, write_hashes
from helpers.data.files import read_image


def test_file_hashes_are_of_the_content_and_known_files_are_not_read_again(tmp_path, monkeypatch):
    paths = [str(write_image(tmp_path / f"{k}.png", seed=k % 2)) for k in range(3)]
    read, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(str(path)) or read_bytes(path))
    first = file_hashes(paths)
    digests = [first[path][-1] for path in paths]
    assert digests[0] == digests[2] != digests[1] and len(digests[0]) == 32 and sorted(read) == paths
    read.clear()
    assert file_hashes(paths, first) == first and read == []
    before, content = os.stat(paths[1]), bytearray(read_bytes(Path(paths[1])))
    content[-20] ^= 1
    Path(paths[1]).write_bytes(content)
    os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))  # same size and date
    assert file_hashes(paths, first)[paths[1]][-1] != digests[1] and read == [paths[1]]
    assert file_hashes([str(tmp_path / "absent.png")]) == {str(tmp_path / "absent.png"): [""]}


def test_hashes_are_written_and_damaged_files_are_ignored(tmp_path):
    hashes = file_hashes([str(write_image(tmp_path / "a.png"))])
    write_hashes(hashes, tmp_path / "files.json")
    for name, content in (("empty", ""), ("cut", "{"), ("list", "[1]"), ("number", "3")):
        (tmp_path / f"{name}.json").write_text(content)
    assert read_hashes([*sorted(tmp_path.glob("*.json")), tmp_path / "absent.json"]) == hashes
    write_hashes(hashes, tmp_path / "a.png" / "files.json")  # cannot be written
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("a.png", "cut.json", "empty.json", "files.json", "list.json", "number.json"),
    ], "nothing else is written"


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
