"""The sample folder: complete, split by lesion, with the listed faults, and never written over other files."""

import csv
import itertools
import json
import shutil

import cv2
import numpy as np
import pytest

from helpers.config import PROFILES
from helpers.data.audit import audit
from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.phantoms.classes import CLASSES
from helpers.phantoms.render import ARTIFACTS, render_with_flags
from helpers.phantoms.sample import _VERSION, SAMPLE_SIZES, _lesions, write


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write(tmp_path_factory.mktemp("phantoms") / "sample", images=64, size=64)


@pytest.fixture(scope="module")
def injected_faults(sample):
    return json.loads((sample / "injected_faults.json").read_text())


def table(folder) -> list[dict[str, str]]:
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_pixels(folder, image_id: str) -> np.ndarray:
    return cv2.imread(str(folder / "images" / f"{image_id}.jpg"))


def read_mask(folder, image_id: str) -> np.ndarray:
    return cv2.imread(str(folder / "masks" / f"{image_id}.png"), cv2.IMREAD_UNCHANGED)


def test_write_folder_has_all_images_masks_and_tables(sample):
    rows = table(sample)
    ids = [row["image_id"] for row in rows]
    assert list(rows[0]) == ["image_id", "lesion_id", "diagnosis", "split", "artifacts"]
    assert len(rows) == 64 and len(set(ids)) == 64
    assert {path.stem for path in (sample / "images").iterdir()} == set(ids)
    assert {path.stem for path in (sample / "masks").iterdir()} == set(ids)
    assert {path.name for path in sample.iterdir()} == {
        "phantoms.json", "metadata.csv", "injected_faults.json", "images", "masks",
    }  # fmt: skip
    for image_id in ids[:5]:
        assert read_pixels(sample, image_id).shape == (64, 64, 3)
        assert set(np.unique(read_mask(sample, image_id))) <= {0, 255}
    settings = json.loads((sample / "phantoms.json").read_text())
    assert settings == {"version": _VERSION, "images": 64, "size": 64, "seed": 0, "classes": CLASSES}


def test_write_every_class_has_lesions_in_every_split(sample, injected_faults):
    pairs = injected_faults["exact_conflict"] + injected_faults["near_duplicate_across_splits"]
    faulty = {image_id for pair in pairs for image_id in pair} | set(injected_faults["empty_mask"])
    rows = [row for row in table(sample) if row["image_id"] not in faulty]
    for name in CLASSES:
        of_class = [row for row in rows if row["diagnosis"] == name]
        assert len({row["lesion_id"] for row in of_class}) >= 4
        assert {row["split"] for row in of_class} == {"train", "val", "test"}


def test_write_every_lesion_has_one_split_and_one_diagnosis(sample):
    values: dict[str, set] = {}
    for row in table(sample):
        values.setdefault(row["lesion_id"], set()).add((row["split"], row["diagnosis"]))
    assert all(len(pairs) == 1 for pairs in values.values())
    assert len(values) < 64  # some lesions have several images


def test_write_artifacts_are_the_flags_of_the_phantoms(tmp_path, monkeypatch):
    calls = []

    def record(label, seed, size, view):
        flags = render_with_flags(label, seed, 64, view)[2]
        calls.append(" ".join(name for name, flag in zip(ARTIFACTS, flags, strict=True) if flag))
        return render_with_flags(label, seed, size, view)

    monkeypatch.setattr("helpers.phantoms.sample.render_with_flags", record)
    folder = write(tmp_path / "sample", images=60, size=64, seed=2)
    faults = json.loads((folder / "injected_faults.json").read_text())
    sources = dict(pair for name in ("exact_conflict", "near_duplicate_across_splits") for pair in faults[name])
    artifacts = {row["image_id"]: row["artifacts"] for row in table(folder)}
    copies = set(sources.values())
    assert [text for image_id, text in artifacts.items() if image_id not in copies] == calls
    assert all(artifacts[source] == artifacts[copy] for source, copy in sources.items())
    assert "" in calls and len({name for text in calls for name in text.split()}) >= 5


def test_write_images_of_a_lesion_are_not_neighbors(sample):
    lesion_ids = [row["lesion_id"] for row in sorted(table(sample), key=lambda row: row["image_id"])]
    assert not any(a == b for a, b in itertools.pairwise(lesion_ids))


def test_write_injected_conflicts_are_exact_copies_with_other_labels(sample, injected_faults):
    rows = {row["image_id"]: row for row in table(sample)}
    assert len(injected_faults["exact_conflict"]) == 1
    for a, b in injected_faults["exact_conflict"]:
        assert (sample / f"images/{a}.jpg").read_bytes() == (sample / f"images/{b}.jpg").read_bytes()
        assert rows[a]["diagnosis"] != rows[b]["diagnosis"] and rows[a]["split"] == rows[b]["split"]
        assert rows[a]["lesion_id"] != rows[b]["lesion_id"]


def test_write_injected_near_duplicates_are_in_two_splits(sample, injected_faults):
    rows = {row["image_id"]: row for row in table(sample)}
    assert len(injected_faults["near_duplicate_across_splits"]) == 2
    for a, b in injected_faults["near_duplicate_across_splits"]:
        original, copy = (read_pixels(sample, image_id).astype(int) for image_id in (a, b))
        assert 0 < np.abs(original - copy).mean() < 15
        assert rows[a]["diagnosis"] == rows[b]["diagnosis"]
        assert {rows[a]["split"], rows[b]["split"]} == {"train", "test"}
        assert rows[a]["lesion_id"] != rows[b]["lesion_id"]


def test_write_copied_lesions_have_no_other_image(sample, injected_faults):
    """Another image of the lesion would be a near duplicate of the copy that is not listed."""
    lesion_ids = {row["image_id"]: row["lesion_id"] for row in table(sample)}
    for a, _ in injected_faults["exact_conflict"] + injected_faults["near_duplicate_across_splits"]:
        assert list(lesion_ids.values()).count(lesion_ids[a]) == 1


def test_write_empty_masks_are_the_injected_ones(sample, injected_faults):
    empty = [row["image_id"] for row in table(sample) if not read_mask(sample, row["image_id"]).any()]
    assert empty == injected_faults["empty_mask"] and len(empty) == 1


def test_audit_sample_finds_exactly_the_injected_copies(sample, injected_faults):
    report = audit(read(sample), progress=False)
    for pairs, expected in (
        (report.near_duplicates, injected_faults["near_duplicate_across_splits"]),
        (report.exact_duplicates, injected_faults["exact_conflict"]),
    ):
        assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in expected}


def test_sample_sizes_has_every_profile():
    assert tuple(SAMPLE_SIZES) == PROFILES
    assert all(images >= 60 and 64 <= size <= 512 for images, size in SAMPLE_SIZES.values())


def test_lesions_class_frequencies_follow_ham10000():
    lesions = _lesions(np.random.default_rng(0), 4000)
    frequency = {name: np.mean([lesion["diagnosis"] == name for lesion in lesions]) for name in CLASSES}
    assert frequency["NV"] == pytest.approx(0.669, abs=0.01) and frequency["DF"] == pytest.approx(0.011, abs=0.005)
    assert sum(lesion["num_images"] for lesion in lesions) == 4000
    assert 0.6 < np.mean([lesion["num_images"] == 1 for lesion in lesions]) < 0.8
    assert np.mean([lesion["split"] == "train" for lesion in lesions]) == pytest.approx(0.8, abs=0.01)


def test_write_existing_sample_is_left_alone(sample):
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert write(sample, images=64, size=64) == sample
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before


@pytest.mark.parametrize("name", ["images/PH_000003.jpg", "masks/PH_000003.png", "injected_faults.json"])
def test_write_missing_file_is_generated_again(sample, tmp_path, name):
    folder = shutil.copytree(sample, tmp_path / "sample")
    (folder / name).unlink()
    write(folder, images=64, size=64)
    assert (folder / name).read_bytes() == (sample / name).read_bytes()


def test_write_other_settings_replace_the_sample_with_identical_bytes(sample, tmp_path):
    folder = write(tmp_path / "sample", images=60, size=64, seed=1)
    assert len(table(folder)) == 60
    write(folder, images=64, size=64)
    contents = [{p.name: p.read_bytes() for p in root.rglob("*.*")} for root in (folder, sample)]
    assert contents[0] == contents[1]
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]  # no temporary folder is left


@pytest.mark.parametrize("name", ["holiday.jpg", "images/holiday.jpg", "phantoms.json"])
def test_write_folder_with_other_files_raises(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("not ours")
    with pytest.raises(DataError, match="is not a sample of phantoms"):
        write(tmp_path, images=64, size=64)
    assert path.read_text() == "not ours"


def test_write_path_of_a_file_raises(tmp_path):
    (tmp_path / "sample").write_text("not ours")
    with pytest.raises(DataError, match="is a file, expected a folder"):
        write(tmp_path / "sample")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 59}, "at least 60 images.*got 59"),
        ({"size": 63}, "64 to 512 pixels, got 63"),
        ({"seed": -1}, "not be negative, got -1"),
    ],
)
def test_write_invalid_settings_raise_and_write_nothing(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "sample", **settings)
    assert not list(tmp_path.iterdir())
