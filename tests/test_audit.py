import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
import pytest
from factories import course, folders, ham10000, isic2016, write_image, write_mask

from helpers.data.audit import (
    Fingerprint,
    assign_lesion_ids,
    audit,
    clean,
    fingerprint,
    lesion_groups,
    near_pairs,
    same_lesion,
    split_by_lesion,
)
from helpers.data.files import DataError, read_image
from helpers.data.layouts import read
from helpers.phantoms.photo import render


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
    assert report.usable and not report.unreadable and not report.unreadable_masks


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


def test_assign_lesion_ids_group_gets_one_id_and_others_keep_theirs():
    table = pd.DataFrame(
        {"image_id": list("abcdef"), "lesion_id": pd.array(["L2", None, "L3", None, None, "L3"], "string")}
    )
    lesion_ids = assign_lesion_ids(table, np.array([0, 0, 1, 2, 2, 1]))
    assert lesion_ids.to_list() == ["L2", "L2", "L3", "d", "d", "L3"]
    assert assign_lesion_ids(table, np.arange(6)).isna().to_list() == [False, True, False, True, True, False]


def test_report_str_fits_one_screen(report):
    lines = str(report).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) < 250
    assert lines[0].startswith("phantoms: 120 images")
    assert lines[-1].startswith("can be used")


# ------------------------------------------------------------------------------------------------- comparing images


def save(path, image):
    cv2.imwrite(str(path), image[..., ::-1])
    return fingerprint(str(path))


@pytest.fixture(scope="module")
def lesion():
    return render(label=0, seed=11, size=256)[0]


@pytest.fixture(scope="module")
def other_lesions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    return [save(folder / f"{i}.png", render(1, i, 256)[0]) for i in range(20)]


@pytest.mark.parametrize("change", ["brighter", "recompressed", "shifted", "rotated", "scaled", "smaller"])
def test_near_pairs_changed_copy_is_found_among_others(tmp_path, lesion, other_lesions, change):
    matrix = {
        "shifted": np.float32([[1, 0, 9], [0, 1, -6]]),
        "rotated": cv2.getRotationMatrix2D((128, 128), 8, 1),
        "scaled": cv2.getRotationMatrix2D((128, 128), 0, 1.1),
    }.get(change)
    copy = lesion if matrix is None else cv2.warpAffine(lesion, matrix, (256, 256), borderMode=cv2.BORDER_REFLECT)
    if change == "brighter":
        copy = np.clip(copy * 1.15 + 8, 0, 255).astype(np.uint8)
    if change == "smaller":
        copy = cv2.resize(copy, (180, 180), interpolation=cv2.INTER_AREA)
    name = "copy.jpg" if change == "recompressed" else "copy.png"
    prints = [save(tmp_path / "original.png", lesion), *other_lesions, save(tmp_path / name, copy)]
    with ThreadPoolExecutor(2) as pool:
        assert near_pairs(prints, pool) == [(0, 21)]


def keypoints(points: np.ndarray) -> Fingerprint:
    """A synthetic fingerprint: point i has the same descriptor in every image."""
    descriptors = np.random.default_rng(1).integers(0, 256, (len(points), 32), dtype=np.uint8)
    return Fingerprint(points=points.astype(np.float32), descriptors=descriptors)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("shifted and rotated", True),
        ("scaled by 1.8", True),
        ("scaled by 3", False),
        ("on one point", False),
        ("a ruler", False),
        ("20 of 60 agree", False),
        ("30 of 60 agree", True),
        ("20 points in total", False),
    ],
)
def test_same_lesion_needs_enough_spread_inliers_of_one_transform(case, expected):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 150, (60, 2))
    points[:, 1] = 140 + rng.uniform(-3, 3, 60) if case == "a ruler" else points[:, 1]
    rotation = np.array([[0.98, -0.2], [0.2, 0.98]])
    scale = {"scaled by 1.8": 1.8, "scaled by 3": 3, "on one point": 0}.get(case, 1)
    transformed = points @ rotation * scale + 7
    if "agree" in case:
        num_inliers = int(case[:2])
        transformed[num_inliers:] = rng.uniform(0, 150, (60 - num_inliers, 2))
    count = 20 if case == "20 points in total" else 60
    assert same_lesion(keypoints(points[:count]), keypoints(transformed[:count])) == expected


def test_near_pairs_uniform_images_have_no_pairs(tmp_path):
    uniform = [save(tmp_path / f"{v}.png", np.full((64, 64, 3), v, np.uint8)) for v in (90, 91)]
    assert not same_lesion(*uniform)
    with ThreadPoolExecutor(1) as pool:
        for prints in (uniform, uniform[:1], []):
            assert near_pairs(prints, pool) == []


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
    assert not report.usable and "CANNOT BE USED: 5 of 20 images" in str(report)
    with pytest.raises(DataError, match=r"5 of 20 images cannot be read, at most 20 % may be: .*ISIC_0000000\.jpg"):
        clean(report)


def test_clean_mask_of_other_size_raises_with_both_sizes(isic):
    write_mask(isic / "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000001_Segmentation.png", (50, 50))
    report = audit(read(isic), progress=False)
    assert list(report.size_mismatches) == ["ISIC_0000001"] and not report.usable
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
    assert report.usable and list(report.unreadable_masks) == ["ISIC_0000001"]
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
    assert audit(read(tmp_path), progress=False).usable, "the same shape at another size is fine"


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


# ------------------------------------------------------------------------------------------------ groups and splits


def test_lesion_groups_indirect_pairs_are_joined():
    lesions = np.array(["a", "a", "b", pd.NA, pd.NA, pd.NA], object)
    groups = lesion_groups(6, lesions, [(1, 2), (3, 4)])
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3


def no_splits(count):
    return np.full(count, pd.NA, object)


@pytest.mark.parametrize("seed", range(10))
def test_split_by_lesion_random_groups_stay_together_with_all_classes_in_all_splits(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 150, 400)
    groups[:12] = np.arange(12) % 3 + 1000  # a rare class of three lesions
    labels = rng.choice(4, 150, p=[0.7, 0.15, 0.1, 0.05])[groups % 150]
    labels[:12] = 4
    splits = split_by_lesion(no_splits(400), groups, labels, seed)
    frame = pd.DataFrame({"group": groups, "label": labels, "split": splits})
    assert frame.groupby("group")["split"].nunique().max() == 1
    assert (pd.crosstab(frame["label"], frame["split"]).to_numpy() > 0).all()
    fractions = frame["split"].value_counts(normalize=True)
    assert 0.07 < fractions["val"] < 0.14 and 0.07 < fractions["test"] < 0.14


def test_split_by_lesion_seed_decides_the_split():
    groups, labels = np.arange(200), np.arange(200) % 2
    first, second, other = (split_by_lesion(no_splits(200), groups, labels, seed) for seed in (1, 1, 2))
    assert (first == second).all() and (first != other).any()


def test_split_by_lesion_holds_out_ten_percent_of_each_class():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    splits = split_by_lesion(no_splits(1000), np.arange(1000), labels)
    counts = pd.crosstab(labels, splits)
    assert counts["val"].tolist() == counts["test"].tolist() == [70, 20, 10]


def test_split_by_lesion_official_splits_are_kept_and_val_is_sampled():
    official = np.repeat(["train", "test"], [80, 20]).astype(object)
    labels = np.arange(100) % 2
    splits = split_by_lesion(official, np.arange(100), labels)
    assert (splits[80:] == "test").all()
    assert (splits == "val").sum() == 10 and set(splits[:80]) == {"train", "val"}
    complete = np.repeat(["train", "val", "test"], [60, 20, 20]).astype(object)
    assert (split_by_lesion(complete, np.arange(100), labels) == complete).all()


def test_split_by_lesion_leaking_group_goes_to_the_evaluation_split():
    official = np.array(["train", "val", "train", "test", "train", "val"], object)
    splits = split_by_lesion(official, np.array([0, 0, 1, 1, 2, 3]), np.zeros(6, int))
    assert splits.tolist() == ["val", "val", "test", "test", "train", "val"]


def test_clean_one_image_per_class_stays_in_train(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / name / "only.png", ord(name))
    cleaned = clean(audit(read(tmp_path), progress=False))
    assert cleaned.table["split"].tolist() == ["train", "train"]
    assert read_image(cleaned.table["path"][0]).shape == (32, 40, 3)
