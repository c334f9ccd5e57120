import json
import shutil

import cv2
import numpy as np
import pytest
from factories import course, folders, ham10000, isic2016, write_image, write_mask

from helpers.data.audit import audit, clean
from helpers.data.files import DataError, read_image
from helpers.data.layouts import read


@pytest.fixture(scope="module")
def report(phantoms):
    return audit(read(phantoms), progress=False)


@pytest.fixture(scope="module")
def injected_faults(phantoms):
    faults = json.loads((phantoms / "injected_faults.json").read_text())
    return {name: {frozenset(f) if isinstance(f, list) else f for f in ids} for name, ids in faults.items()}


def as_sets(pairs) -> set[frozenset]:
    return set(map(frozenset, pairs))


def test_audit_sample_reports_exactly_the_injected_faults(report, injected_faults):
    assert as_sets(report.exact_duplicates) == injected_faults["exact_conflict"]
    assert as_sets(report.conflicts) == injected_faults["exact_conflict"]
    assert as_sets(report.near_duplicates) == injected_faults["near_duplicate_across_splits"]
    assert as_sets(report.leaks) == injected_faults["near_duplicate_across_splits"]
    assert set(report.empty_masks) == injected_faults["empty_mask"]
    assert not report.unusable and not report.unreadable and not report.unreadable_masks


def test_clean_sample_removes_the_injected_faults(report, injected_faults):
    cleaned = clean(report)
    before, after = report.dataset.table, cleaned.table.set_index("image_id")
    assert set(before["image_id"]) - set(after.index) == set().union(*injected_faults["exact_conflict"])
    for a, b in map(tuple, injected_faults["near_duplicate_across_splits"]):
        assert after["split"][a] == after["split"][b] == "test", "an official test set stays complete"
        assert after["lesion_id"][a] == after["lesion_id"][b], "so that folds keep copies together, too"
    assert after["mask_path"][[i for i in injected_faults["empty_mask"] if i in after.index]].isna().all()
    assert after.dropna(subset="lesion_id").groupby("lesion_id")["split"].nunique().max() == 1
    assert "left out because a copy of them has another label" in " ".join(cleaned.problems)


def test_report_str_fits_one_screen(report):
    lines = str(report).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) < 250
    assert lines[0].startswith("phantoms: 120 images")
    assert lines[-1].startswith("can be used")


def test_audit_exact_copy_is_not_a_near_duplicate(tmp_path):
    root = folders(tmp_path)
    shutil.copy(root / "Train/nevus/ISIC_0000100.jpg", root / "Test/melanoma/ISIC_0000999.jpg")
    report = audit(read(root), progress=False)
    pair = {frozenset(("ISIC_0000100", "ISIC_0000999"))}
    assert as_sets(report.exact_duplicates) == as_sets(report.conflicts) == as_sets(report.leaks) == pair
    assert report.near_duplicates == []


def test_clean_copies_with_two_labels_are_all_removed(tmp_path):
    root = folders(tmp_path)
    for place in ("Train/nevus/ISIC_0000998.jpg", "Test/melanoma/ISIC_0000999.jpg"):
        shutil.copy(root / "Train/nevus/ISIC_0000100.jpg", root / place)
    report = audit(read(root), progress=False)
    copies = {"ISIC_0000100", "ISIC_0000998", "ISIC_0000999"}
    assert [set(ids) for ids in report.conflicts] == [copies]
    cleaned = clean(report)
    assert len(cleaned.table) == 26 and not set(cleaned.table["image_id"]) & copies


# ----------------------------------------------------------------------------------------------- unreadable files


@pytest.fixture
def isic(tmp_path):
    return isic2016(tmp_path)


def test_clean_unreadable_images_are_left_out(isic):
    images = isic / "ISBI2016_ISIC_Part1_Training_Data"
    content = (images / "ISIC_0000003.jpg").read_bytes()
    (images / "ISIC_0000003.jpg").write_bytes(content[: len(content) // 2])
    (images / "ISIC_0000004.jpg").write_text("not an image")
    report = audit(read(isic), progress=False)
    assert set(report.unreadable) == {"ISIC_0000003", "ISIC_0000004"}
    cleaned = clean(report)
    assert len(cleaned.table) == 18 and "2 unreadable images left out" in cleaned.problems


def test_clean_too_many_unreadable_images_raise(isic):
    for i in range(5):
        (isic / f"ISBI2016_ISIC_Part1_Training_Data/ISIC_{i:07d}.jpg").write_bytes(b"")
    report = audit(read(isic), progress=False)
    assert report.unusable and "CANNOT BE USED: 5 of 20 images" in str(report)
    with pytest.raises(DataError, match=r"5 of 20 images cannot be read, at most 20 % may be: .*ISIC_0000000\.jpg"):
        clean(report)


def test_clean_mask_of_other_size_raises_with_both_sizes(isic):
    write_mask(isic / "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000001_Segmentation.png", (50, 50))
    report = audit(read(isic), progress=False)
    assert list(report.size_mismatches) == ["ISIC_0000001"] and report.unusable
    with pytest.raises(DataError, match="50 x 50 pixels but its image is 40 x 32"):
        clean(report)


def test_clean_unreadable_sketch_becomes_unknown(tmp_path):
    sketch = course(tmp_path) / "Train/Train_sketch/Contours/sketch_ISIC_0024310.png"
    sketch.write_bytes(sketch.read_bytes()[:40])
    cleaned = clean(audit(read(tmp_path), progress=False))
    sketches = cleaned.table.set_index("image_id")["sketch_path"]
    assert sketches.index[sketches.isna()].to_list() == ["ISIC_0024310"]
    assert "1 unreadable sketches treated as unknown" in cleaned.problems


def test_clean_unreadable_mask_becomes_unknown(isic):
    (isic / "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000001_Segmentation.png").write_bytes(b"")
    report = audit(read(isic), progress=False)
    assert not report.unusable and list(report.unreadable_masks) == ["ISIC_0000001"]
    assert "1 unreadable masks treated as unknown" in clean(report).problems


def test_audit_too_many_unreadable_masks_are_unusable(isic):
    for path in sorted((isic / "ISBI2016_ISIC_Part1_Training_GroundTruth").iterdir())[:5]:
        path.write_bytes(b"")
    assert "5 of 20 masks cannot be read" in audit(read(isic), progress=False).unusable


def test_audit_sketch_of_other_shape_is_unusable(tmp_path):
    sketch = course(tmp_path) / "Train/Train_sketch/Contours/sketch_ISIC_0024310.png"
    write_mask(sketch, (100, 30))
    assert "100 x 30 pixels but its image is 40 x 32" in audit(read(tmp_path), progress=False).unusable
    write_mask(sketch, (80, 64))
    assert not audit(read(tmp_path), progress=False).unusable, "the same shape at another size is fine"


def test_audit_lesion_with_two_diagnoses_is_reported(tmp_path):
    labels = ham10000(tmp_path) / "HAM10000_metadata.csv"
    labels.write_text(labels.read_text().replace("HAM_0000001,ISIC_0024308,nv", "HAM_0000001,ISIC_0024308,bcc"))
    assert audit(read(tmp_path), progress=False).conflicting_labels == ["HAM_0000001"]


def test_clean_full_mask_is_reported_and_kept(tmp_path):
    mask = ham10000(tmp_path) / "HAM10000_segmentations_lesion_tschandl/ISIC_0024306_segmentation.png"
    cv2.imwrite(str(mask), np.full((32, 40), 255, np.uint8))
    report = audit(read(tmp_path), progress=False)
    assert report.full_masks == ["ISIC_0024306"]
    assert clean(report).table["mask_path"].notna().all()


def test_clean_one_image_per_class_stays_in_train(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / name / "only.png", ord(name))
    cleaned = clean(audit(read(tmp_path), progress=False))
    assert cleaned.table["split"].tolist() == ["train", "train"]
    assert read_image(cleaned.table["path"][0]).shape == (32, 40, 3)


def test_clean_over_20_percent_contradicting_copies_raise(tmp_path):
    for name in ("nevus", "melanoma"):
        for i in range(10):
            write_image(tmp_path / name / f"{name}_{i}.jpg", i if i < 2 else i + 100 * (name == "nevus"))
    report = audit(read(tmp_path), progress=False)
    assert not report.unusable and len(report.contradicting) == 4
    shutil.copy(tmp_path / "nevus/nevus_5.jpg", tmp_path / "melanoma/copy.jpg")
    report = audit(read(tmp_path), progress=False)
    with pytest.raises(DataError, match="6 of 21 images have a copy with another label, at most 20 % may: "):
        clean(report)
    assert "CANNOT BE USED" in str(report)
