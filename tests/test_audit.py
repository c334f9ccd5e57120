import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
import pytest
from factories import course, folders, ham10000, isic2016, paint, paint_mask

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
from helpers.data.phantoms import render


@pytest.fixture(scope="module")
def report(phantoms):
    return audit(read(phantoms), progress=False)


@pytest.fixture(scope="module")
def planted(phantoms):
    faults = json.loads((phantoms / "injected_faults.json").read_text())
    return {name: {frozenset(f) if isinstance(f, list) else f for f in found} for name, found in faults.items()}


def pairs(found) -> set[frozenset]:
    return set(map(frozenset, found))


def test_planted_faults_are_found_and_nothing_else(report, planted):
    assert pairs(report.exact) == planted["exact_conflict"]
    assert pairs(report.conflicts) == planted["exact_conflict"]
    assert pairs(report.near) == planted["near_duplicate_across_splits"]
    assert planted["near_duplicate_across_splits"] <= {frozenset(ids) for ids in report.leaks}
    assert set(report.empty_masks) == planted["empty_mask"]
    assert report.usable and not report.damaged and not report.damaged_masks


def test_trusted_puts_them_right(report, planted):
    before, after = report.dataset.table, clean(report).table
    dropped = {i for pair in planted["exact_conflict"] for i in pair}
    assert set(before["image_id"]) - set(after["image_id"]) == dropped
    split = after.set_index("image_id")["split"]
    for a, b in map(tuple, planted["near_duplicate_across_splits"]):
        assert split[a] == split[b] == "test", "an official test set keeps every picture"
    lesion = after.set_index("image_id")["lesion_id"]
    for a, b in map(tuple, planted["near_duplicate_across_splits"]):
        assert lesion[a] == lesion[b], "one name for what is one lesion, so that folds keep it together too"
    masks = after.set_index("image_id")["mask_path"]
    assert masks[[i for i in planted["empty_mask"] if i in masks]].isna().all()
    assert after.dropna(subset="lesion_id").groupby("lesion_id")["split"].nunique().max() == 1
    assert "left out because a copy of them has another label" in " ".join(clean(report).problems)


def test_copies_get_one_lesion_id_and_others_keep_theirs():
    table = pd.DataFrame(
        {"image_id": list("abcdef"), "lesion_id": pd.array(["L2", None, "L3", None, None, "L3"], "string")}
    )
    names = assign_lesion_ids(table, np.array([0, 0, 1, 2, 2, 1]))
    assert names.to_list() == ["L2", "L2", "L3", "d", "d", "L3"]
    assert assign_lesion_ids(table, np.arange(6)).isna().to_list() == [False, True, False, True, True, False]


def test_one_screen(report):
    lines = str(report).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) < 250
    assert lines[0].startswith("phantoms: 120 pictures")
    assert "can be used" in lines[-1]


# --------------------------------------------------------------------------------------------- recognising pictures


def save(path, image):
    cv2.imwrite(str(path), image[..., ::-1])
    return fingerprint(str(path))


@pytest.fixture
def lesion():
    return render(label=0, seed=11, size=256)[0]


@pytest.mark.parametrize("change", ["brighter", "recompressed", "shifted", "turned", "zoomed", "smaller"])
def test_a_changed_copy_is_recognised(tmp_path, lesion, change):
    matrix = {
        "shifted": np.float32([[1, 0, 9], [0, 1, -6]]),
        "turned": cv2.getRotationMatrix2D((128, 128), 8, 1),
        "zoomed": cv2.getRotationMatrix2D((128, 128), 0, 1.1),
    }.get(change)
    copy = lesion if matrix is None else cv2.warpAffine(lesion, matrix, (256, 256), borderMode=cv2.BORDER_REFLECT)
    if change == "brighter":
        copy = np.clip(copy * 1.15 + 8, 0, 255).astype(np.uint8)
    if change == "smaller":
        copy = cv2.resize(copy, (180, 180), interpolation=cv2.INTER_AREA)
    name = "copy.jpg" if change == "recompressed" else "copy.png"
    one, other = save(tmp_path / "one.png", lesion), save(tmp_path / name, copy)
    assert same_lesion(one, other)
    others = [save(tmp_path / f"{i}.png", render(1, i, 256)[0]) for i in range(20)]
    with ThreadPoolExecutor(2) as pool:
        assert near_pairs([one, *others, other], pool) == [(0, 21)]


def keypoints(points: np.ndarray) -> Fingerprint:
    """A made-up fingerprint: point i looks the same in every picture."""
    descriptors = np.random.default_rng(1).integers(0, 256, (len(points), 32), dtype=np.uint8)
    return Fingerprint(points=points.astype(np.float32), descriptors=descriptors)


@pytest.mark.parametrize(
    ("case", "same"),
    [
        ("shifted and turned", True),
        ("zoomed by 1.8", True),
        ("zoomed by 3", False),
        ("on one point", False),
        ("a ruler", False),
        ("20 of 60 agree", False),
        ("30 of 60 agree", True),
        ("20 points in all", False),
    ],
)
def test_what_counts_as_one_geometry(case, same):
    rng = np.random.default_rng(0)
    here = rng.uniform(0, 150, (60, 2))
    here[:, 1] = 140 + rng.uniform(-3, 3, 60) if case == "a ruler" else here[:, 1]
    turn = np.array([[0.98, -0.2], [0.2, 0.98]])
    there = here @ turn * {"zoomed by 1.8": 1.8, "zoomed by 3": 3, "on one point": 0}.get(case, 1) + 7
    if "agree" in case:
        count = int(case[:2])
        there[count:] = rng.uniform(0, 150, (60 - count, 2))
    few = 20 if case == "20 points in all" else 60
    assert same_lesion(keypoints(here[:few]), keypoints(there[:few])) == same


def test_flat_pictures_have_nothing_to_compare(tmp_path):
    flat = [save(tmp_path / f"{v}.png", np.full((64, 64, 3), v, np.uint8)) for v in (90, 91)]
    assert not same_lesion(*flat)
    with ThreadPoolExecutor(1) as pool:
        assert near_pairs(flat, pool) == near_pairs(flat[:1], pool) == near_pairs([], pool) == []


def test_exact_copies_are_exact(tmp_path):
    root = folders(tmp_path)
    shutil.copy(root / "Train/nevus/ISIC_0000100.jpg", root / "Test/melanoma/ISIC_0000999.jpg")
    report = audit(read(root), progress=False)
    pair = {frozenset(("ISIC_0000100", "ISIC_0000999"))}
    assert pairs(report.exact_duplicates) == pairs(report.conflicts) == {frozenset(ids) for ids in report.leaks} == pair
    assert report.near_duplicates == []
    cleaned = clean(report)
    assert len(cleaned.table) == 26 and not set(cleaned.table["image_id"]) & {"ISIC_0000100", "ISIC_0000999"}


def test_all_copies_of_a_contradiction_go(tmp_path):
    """Three copies, two labels: nobody knows which label is right, so none of the three is kept."""
    root = folders(tmp_path)
    for place in ("Train/nevus/ISIC_0000998.jpg", "Test/melanoma/ISIC_0000999.jpg"):
        shutil.copy(root / "Train/nevus/ISIC_0000100.jpg", root / place)
    report = audit(read(root), progress=False)
    assert [set(ids) for ids in report.conflicts] == [{"ISIC_0000100", "ISIC_0000998", "ISIC_0000999"}]
    assert len(clean(report).table) == 26


# -------------------------------------------------------------------------------------------------- what is damaged


def test_damaged_pictures_are_named_and_left_out(tmp_path):
    pictures = isic2016(tmp_path) / "ISBI2016_ISIC_Part1_Training_Data"
    whole = (pictures / "ISIC_0000003.jpg").read_bytes()
    (pictures / "ISIC_0000003.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "ISIC_0000004.jpg").write_text("no picture")
    report = audit(read(tmp_path), progress=False)
    assert set(report.unreadable) == {"ISIC_0000003", "ISIC_0000004"}
    cleaned = clean(report)
    assert len(cleaned.table) == 18 and "2 unreadable pictures left out" in cleaned.problems
    for i in range(5, 9):
        (pictures / f"ISIC_{i:07d}.jpg").write_bytes(b"")
    report = audit(read(tmp_path), progress=False)
    assert not report.usable and "CANNOT BE USED: 6 of 20" in str(report)
    with pytest.raises(DataError, match="6 of 20"):
        clean(report)


def test_mask_of_another_size_stops_with_both_sizes(tmp_path):
    paint_mask(isic2016(tmp_path) / "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000001_Segmentation.png", (50, 50))
    report = audit(read(tmp_path), progress=False)
    assert list(report.size_mismatches) == ["ISIC_0000001"] and not report.usable
    with pytest.raises(DataError, match="50 x 50 pixels but its image is 40 x 32"):
        clean(report)


def test_unreadable_masks_and_sketches_are_unknown_not_the_end(tmp_path):
    whole = course(tmp_path)
    cut = whole / "Train/Train_sketch/Contours/sketch_ISIC_0024310.png"
    cut.write_bytes(cut.read_bytes()[:40])
    cleaned = clean(audit(read(whole), progress=False))
    assert cleaned.table.set_index("image_id")["sketch_path"].isna().sum() == 1
    assert "1 unreadable sketches taken as unknown" in cleaned.problems
    masks = isic2016(tmp_path / "isic") / "ISBI2016_ISIC_Part1_Training_GroundTruth"
    (masks / "ISIC_0000001_Segmentation.png").write_bytes(b"")
    report = audit(read(tmp_path / "isic"), progress=False)
    assert report.usable and list(report.unreadable_masks) == ["ISIC_0000001"]
    assert "1 unreadable masks taken as unknown" in clean(report).problems
    for path in list(masks.iterdir())[:6]:
        path.write_bytes(b"")
    assert "masks cannot be read" in audit(read(tmp_path / "isic"), progress=False).unusable


def test_a_sketch_of_another_shape_stops(tmp_path):
    paint_mask(course(tmp_path) / "Train/Train_sketch/Contours/sketch_ISIC_0024310.png", (100, 30))
    report = audit(read(tmp_path), progress=False)
    assert "100 x 30 pixels but its image is 40 x 32" in report.unusable
    paint_mask(tmp_path / "Train/Train_sketch/Contours/sketch_ISIC_0024310.png", (80, 64))
    assert audit(read(tmp_path), progress=False).usable, "the same shape at another size is fine"


def test_a_lesion_with_two_diagnoses_is_reported(tmp_path):
    labels = ham10000(tmp_path) / "HAM10000_metadata.csv"
    labels.write_text(labels.read_text().replace("HAM_0000001,ISIC_0024308,nv", "HAM_0000001,ISIC_0024308,bcc"))
    assert audit(read(tmp_path), progress=False).conflicting_labels == ["HAM_0000001"]


def test_full_masks_are_reported_not_dropped(tmp_path):
    root = ham10000(tmp_path)
    full = root / "HAM10000_segmentations_lesion_tschandl/ISIC_0024306_segmentation.png"
    cv2.imwrite(str(full), np.full((32, 40), 255, np.uint8))
    report = audit(read(root), progress=False)
    assert report.full_masks == ["ISIC_0024306"]
    assert clean(report).table["mask_path"].notna().all()


# ------------------------------------------------------------------------------------------------ groups and splits


def test_groups_join_indirectly():
    lesions = np.array(["a", "a", "b", pd.NA, pd.NA, pd.NA], object)
    groups = lesion_groups(6, lesions, [(1, 2), (3, 4)])
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3


@pytest.mark.parametrize("seed", range(20))
def test_a_split_never_shares_a_group_and_never_forgets_a_class(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 150, 400)
    groups[:12] = np.arange(12) % 3 + 1000  # a rare class of three lesions
    labels = rng.choice(4, 150, p=[0.7, 0.15, 0.1, 0.05])[groups % 150]
    labels[:12] = 4
    splits = split_by_lesion(np.full(400, pd.NA, object), groups, labels, seed=seed)
    frame = pd.DataFrame({"group": groups, "label": labels, "split": splits})
    assert frame.groupby("group")["split"].nunique().max() == 1
    assert (pd.crosstab(frame["label"], frame["split"]).to_numpy() > 0).all()
    shares = frame["split"].value_counts(normalize=True)
    assert 0.07 < shares["val"] < 0.14 and 0.07 < shares["test"] < 0.14
    again = split_by_lesion(np.full(400, pd.NA, object), groups, labels, seed=seed)
    assert (again == splits).all()


def test_shares_hold_class_by_class():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    splits = split_by_lesion(np.full(1000, pd.NA, object), np.arange(1000), labels)
    counts = pd.crosstab(labels, splits)
    assert counts["val"].tolist() == counts["test"].tolist() == [70, 20, 10]


def test_official_splits_are_kept_and_a_missing_val_is_drawn():
    official = np.repeat(["train", "test"], [80, 20]).astype(object)
    labels = np.arange(100) % 2
    splits = split_by_lesion(official, np.arange(100), labels)
    assert (splits[80:] == "test").all()
    assert (splits == "val").sum() == 10 and set(splits[:80]) == {"train", "val"}
    whole = np.repeat(["train", "val", "test"], [60, 20, 20]).astype(object)
    assert (split_by_lesion(whole, np.arange(100), labels) == whole).all()


def test_leaks_go_to_the_side_that_is_measured():
    official = np.array(["train", "val", "train", "test", "train", "val"], object)
    splits = split_by_lesion(official, np.array([0, 0, 1, 1, 2, 3]), np.zeros(6, int))
    assert splits.tolist() == ["val", "val", "test", "test", "train", "val"]


def test_a_set_of_one_picture(tmp_path):
    for name in ("a", "b"):
        paint(tmp_path / name / "only.png", ord(name))
    cleaned = clean(audit(read(tmp_path), progress=False))
    assert cleaned.table["split"].tolist() == ["train", "train"]
    assert read_image(cleaned.table["path"][0]).shape == (32, 40, 3)
