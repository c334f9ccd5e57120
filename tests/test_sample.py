"""The sample as a folder: complete, split by lesion, with true planted faults, and never over other people's files."""

import csv
import itertools
import json

import cv2
import numpy as np
import pytest

from helpers.data.audit import audit
from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.data.phantoms import CLASSES
from helpers.data.sample import _VERSION, _lesions, write


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write(tmp_path_factory.mktemp("phantoms") / "sample", images=64, size=64)


def table(folder) -> list[dict[str, str]]:
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(folder, image_id: str) -> np.ndarray:
    return cv2.imread(str(folder / "images" / f"{image_id}.jpg"))


def mask_of(folder, image_id: str) -> np.ndarray:
    return cv2.imread(str(folder / "masks" / f"{image_id}.png"), cv2.IMREAD_UNCHANGED)


def test_folder_holds_what_it_says(sample):
    rows = table(sample)
    ids = [row["image_id"] for row in rows]
    assert list(rows[0]) == ["image_id", "lesion_id", "diagnosis", "split"]
    assert len(rows) == 64 and len(set(ids)) == 64
    assert {path.stem for path in (sample / "images").iterdir()} == set(ids)
    assert {path.stem for path in (sample / "masks").iterdir()} == set(ids)
    assert {path.name for path in sample.iterdir()} == {
        "phantoms.json", "metadata.csv", "injected_faults.json", "images", "masks",
    }  # fmt: skip
    for image_id in ids[:5]:
        assert pixels(sample, image_id).shape == (64, 64, 3)
        assert set(np.unique(mask_of(sample, image_id))) <= {0, 255}
    settings = json.loads((sample / "phantoms.json").read_text())
    assert settings == {"version": _VERSION, "images": 64, "size": 64, "seed": 0, "classes": CLASSES}


def test_every_class_has_lesions_in_every_split(sample):
    rows = table(sample)
    planted = json.loads((sample / "injected_faults.json").read_text())
    faulty = {i for pair in planted["exact_conflict"] + planted["near_duplicate_across_splits"] for i in pair}
    honest = [row for row in rows if row["image_id"] not in faulty | set(planted["empty_mask"])]
    for name in CLASSES:
        of_class = [row for row in honest if row["diagnosis"] == name]
        assert len({row["lesion_id"] for row in of_class}) >= 4
        assert {row["split"] for row in of_class} == {"train", "val", "test"}


def test_a_lesion_stays_on_one_side_and_has_one_diagnosis(sample):
    sides: dict[str, set] = {}
    for row in table(sample):
        sides.setdefault(row["lesion_id"], set()).add((row["split"], row["diagnosis"]))
    assert all(len(side) == 1 for side in sides.values())
    assert len(sides) < 64  # some lesions have several photographs


def test_photographs_of_a_lesion_are_not_neighbours(sample):
    lesion_ids = [row["lesion_id"] for row in sorted(table(sample), key=lambda row: row["image_id"])]
    assert sum(a == b for a, b in itertools.pairwise(lesion_ids)) == 0


def test_planted_faults_are_true(sample):
    rows = {row["image_id"]: row for row in table(sample)}
    planted = json.loads((sample / "injected_faults.json").read_text())
    assert len(planted["exact_conflict"]) in (1, 2) and len(planted["near_duplicate_across_splits"]) in (2, 3)
    for a, b in planted["exact_conflict"]:
        assert (sample / f"images/{a}.jpg").read_bytes() == (sample / f"images/{b}.jpg").read_bytes()
        assert rows[a]["diagnosis"] != rows[b]["diagnosis"] and rows[a]["split"] == rows[b]["split"]
        assert rows[a]["lesion_id"] != rows[b]["lesion_id"]
    lesions = [row["lesion_id"] for row in rows.values()]
    for a, _ in planted["exact_conflict"] + planted["near_duplicate_across_splits"]:
        assert lesions.count(rows[a]["lesion_id"]) == 1  # no unplanted near duplicate through another photograph
    for a, b in planted["near_duplicate_across_splits"]:
        same, different = (pixels(sample, image_id).astype(int) for image_id in (a, b))
        assert 0 < np.abs(same - different).mean() < 15
        assert rows[a]["diagnosis"] == rows[b]["diagnosis"]
        assert {rows[a]["split"], rows[b]["split"]} == {"train", "test"}
        assert rows[a]["lesion_id"] != rows[b]["lesion_id"]
    empty = {i for i in rows if not mask_of(sample, i).any()}
    assert empty == set(planted["empty_mask"]) and len(empty) in (1, 2)


def test_the_audit_finds_what_was_planted_and_nothing_else(sample):
    planted = json.loads((sample / "injected_faults.json").read_text())
    report = audit(read(sample), progress=False)
    for found, truth in (
        (report.near_duplicates, planted["near_duplicate_across_splits"]),
        (report.exact_duplicates, planted["exact_conflict"]),
    ):
        assert {frozenset(pair) for pair in found} == {frozenset(pair) for pair in truth}


def test_no_other_copies(sample):
    planted = json.loads((sample / "injected_faults.json").read_text())["exact_conflict"]
    contents = [path.read_bytes() for path in (sample / "images").iterdir()]
    assert len(contents) - len(set(contents)) == len(planted)


def test_shares_follow_ham10000():
    lesions = _lesions(np.random.default_rng(0), 4000)
    share = {name: np.mean([lesion["diagnosis"] == name for lesion in lesions]) for name in CLASSES}
    assert share["NV"] == pytest.approx(0.669, abs=0.01) and share["DF"] == pytest.approx(0.011, abs=0.005)
    assert sum(lesion["photographs"] for lesion in lesions) == 4000
    assert 0.6 < np.mean([lesion["photographs"] == 1 for lesion in lesions]) < 0.8
    assert np.mean([lesion["split"] == "train" for lesion in lesions]) == pytest.approx(0.8, abs=0.01)


def test_writing_twice_does_nothing(sample):
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert write(sample, images=64, size=64) == sample
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before


@pytest.mark.parametrize("name", ["images/PH_000003.jpg", "masks/PH_000003.png", "injected_faults.json"])
def test_what_is_missing_is_drawn_again(tmp_path, name):
    folder = write(tmp_path / "sample", images=60, size=64)
    before = (folder / name).read_bytes()
    (folder / name).unlink()
    assert (write(folder, images=60, size=64) / name).read_bytes() == before


def test_other_settings_replace_the_sample_and_the_same_give_the_same_bytes(sample, tmp_path):
    folder = write(tmp_path / "again", images=60, size=64, seed=1)
    assert len(table(folder)) == 60
    write(folder, images=64, size=64)
    assert {p.name: p.read_bytes() for p in folder.rglob("*.*")} == {
        p.name: p.read_bytes() for p in sample.rglob("*.*")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # nothing left over beside it


@pytest.mark.parametrize("stranger", ["holiday.jpg", "images/holiday.jpg", "phantoms.json"])
def test_a_folder_of_somebody_else_is_refused(tmp_path, stranger):
    path = tmp_path / stranger
    path.parent.mkdir(exist_ok=True)
    path.write_text("not ours")
    with pytest.raises(DataError, match="no phantoms sample"):
        write(tmp_path, images=64, size=64)
    assert path.read_text() == "not ours"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "sample").write_text("not ours")
    with pytest.raises(DataError, match="is a file"):
        write(tmp_path / "sample")


@pytest.mark.parametrize(
    ("settings", "words"), [({"images": 59}, "59 images"), ({"size": 63}, "size 63"), ({"seed": -1}, "seed -1")]
)
def test_bad_settings_write_nothing(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "sample", **settings)
    assert not list(tmp_path.iterdir())
