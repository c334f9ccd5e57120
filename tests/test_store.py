import dataclasses
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from factories import course, folders, ham10000, isic2016, to_uint8, write_image, write_mask

from helpers.data import store as module
from helpers.data.audit import audit
from helpers.data.batches import (
    to_tensors,
)
from helpers.data.content import file_hashes
from helpers.data.files import DataError, center_crop, read_image, read_mask
from helpers.data.layouts import DatasetTable, read
from helpers.data.sketches import contour
from helpers.data.store import (
    ARRAYS,
    CHUNK,
    UNKNOWN,
    Store,
    StoreConfig,
    build_store,
    data_key,
    flags_to_names,
    names_to_flags,
    prepare,
    write_store,
)

ROOT = Path(__file__).parents[1]
SMALL = StoreConfig(size=32)


# ----------------------------------------------------------------------------------------------------------- reading


def test_store_row_i_of_every_array_is_the_same_image(store, phantoms):
    assert store.images.shape == (120, 64, 64, 3) and store.masks.shape == store.sketches.shape == (120, 64, 64)
    assert all(getattr(store, name).dtype == np.uint8 for name in ("images", "masks", "sketches"))
    assert set(np.unique(store.masks)) == {0, 1} and set(np.unique(store.sketches)) == {0, 255}
    pd.testing.assert_frame_equal(store.table.drop(columns="content"), read(phantoms).table)
    for i in (0, 50, 119):
        row = store.table.loc[i]
        assert (store.images[i] == read_image(row["path"])).all(), "64 px images are not resized"
        assert (store.masks[i] == read_mask(row["mask_path"])).all()
        assert (store.sketches[i] == contour(store.masks[i])).all()
        assert store.labels[i] == row["label"]


def test_store_arrays_are_mapped_and_read_only(store):
    for name in set(ARRAYS) - {"artifacts"}:  # 7 bytes per image, replaced on disk when a detector fills them
        assert isinstance(getattr(store, name), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 0


def test_store_empty_mask_has_no_sketch(store):
    empty = np.flatnonzero(store.masks.reshape(120, -1).sum(axis=1) == 0)
    assert len(empty) and not store.has_sketch[empty].any()
    assert set(store.rows(needs=["sketch"])) == set(range(120)) - set(empty)


def test_rows_selects_split_classes_and_needs(store):
    table = store.table
    assert store.rows("val").tolist() == table.index[table["split"] == "val"].tolist()
    selected = store.rows("train", needs=["label", "mask"], classes=["MEL", "BCC"])
    assert set(store.labels[selected]) == {0, 2}
    assert len(selected) == ((table["split"] == "train") & table["label"].isin([0, 2])).sum()


def test_batches_contain_every_row_once(store):
    rows = store.rows("train")
    in_order = list(store.batches(rows, 16))
    assert (np.concatenate([b["rows"] for b in in_order]) == rows).all()
    assert {len(b["rows"]) for b in in_order[:-1]} == {16} and len(in_order[-1]["rows"]) == len(rows) % 16
    assert (in_order[1]["images"] == store.images[in_order[1]["rows"]]).all()
    assert (in_order[1]["labels"] == store.labels[in_order[1]["rows"]]).all()
    first, second = (
        np.concatenate([b["rows"] for b in store.batches(rows, 16, np.random.default_rng(0))]) for _ in range(2)
    )
    assert sorted(first) == sorted(rows) and (first != rows).any() and (first == second).all()


def test_batch_of_some_arrays_contains_only_these(store):
    batch = store.batch(np.arange(3), arrays=("images", "labels"))
    assert set(batch) == {"images", "labels", "rows"} and set(to_tensors(batch)) == {"images", "labels"}


def test_to_tensors_gives_shapes_types_and_ranges(store):
    batch = store.batch(np.arange(5))
    tensors = to_tensors(batch)
    assert {k: (tuple(v.shape), v.dtype) for k, v in tensors.items()} == {
        "images": ((5, 3, 64, 64), torch.float32),
        "masks": ((5, 1, 64, 64), torch.float32),
        "sketches": ((5, 1, 64, 64), torch.float32),
        "labels": ((5,), torch.int64),
        "artifacts": ((5, 7), torch.float32),
    }
    assert tensors["images"].min() >= -1 and tensors["images"].max() <= 1
    assert set(tensors["sketches"].unique().tolist()) == {0, 1} == set(tensors["masks"].unique().tolist())
    assert (to_uint8(tensors["images"]) == batch["images"]).all()


# ---------------------------------------------------------------------------------------------------------- building


def test_prepare_writes_again_only_if_config_or_data_change(tmp_path):
    dataset = read(ham10000(tmp_path / "data"))
    first = prepare(dataset, tmp_path / "stores", SMALL, progress=False)
    written = (first.folder / "images.npy").stat().st_mtime_ns
    second = prepare(dataset, tmp_path / "stores", SMALL, progress=False)
    assert second.folder == first.folder and (second.folder / "images.npy").stat().st_mtime_ns == written
    for change in ({"size": 48}, {"style": "structure"}, {"crop": "none"}):
        changed = prepare(dataset, tmp_path / "stores", dataclasses.replace(SMALL, **change), progress=False)
        assert changed.folder != first.folder
    other_splits = dataclasses.replace(dataset, table=dataset.table.assign(split="train"))
    changed = (dataset, 0), (dataset, 1), (dataset.subset(["MEL", "NV"]), 0), (other_splits, 0)
    keys = {key_of(*pair) for pair in changed}
    Path(dataset.table["mask_path"][0]).write_bytes(b"other content")
    keys.add(key_of(dataset, 0))
    assert len(keys) == 5


def test_prepare_of_some_classes_keeps_the_splits_of_the_whole_set(phantoms, tmp_path):
    dataset, chosen = read(phantoms), ["NV", "MEL"]
    dataset.table["split"] = pd.NA  # sampled by lesion
    whole = prepare(dataset, tmp_path / "stores", SMALL, progress=False)
    part = prepare(dataset, tmp_path / "stores", SMALL, progress=False, classes=chosen)
    assert part.classes == chosen and part.folder != whole.folder
    expected = whole.table[whole.table["label"].map(dict(enumerate(whole.classes))).isin(chosen)]
    assert 0 < len(part) < len(whole) and len(set(expected["split"])) == 3
    columns = ["image_id", "lesion_id", "split"]
    assert part.table[columns].equals(expected[columns].reset_index(drop=True))
    assert [chosen[k] for k in part.labels] == [whole.classes[k] for k in expected["label"]]
    alone = prepare(dataset, tmp_path / "alone", SMALL, progress=False, classes=chosen)
    assert alone.fingerprint == part.fingerprint and alone.folder.name == part.folder.name, "without the whole store"
    everything = prepare(dataset, tmp_path / "stores", SMALL, progress=False, classes=dataset.classes)
    assert everything.folder == whole.folder
    with pytest.raises(DataError, match="not WART"):
        prepare(dataset, tmp_path / "stores", SMALL, progress=False, classes=["WART"])


def key_of(dataset: DatasetTable, seed: int = 0) -> str:
    paths = dataset.table[["path", "mask_path", "sketch_path"]].melt()["value"].dropna()
    return data_key(dataset, seed, {path: entry[-1] for path, entry in file_hashes(paths).items()})


def test_data_key_follows_content_not_dates_or_places(tmp_path):
    dataset = read(ham10000(tmp_path / "data"))
    key = key_of(dataset)
    for path in dataset.table["path"]:
        os.utime(path, (1, 1))
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "copy")
    copy = read(tmp_path / "elsewhere" / "copy")
    assert key_of(dataset) == key_of(copy) == key
    path = Path(copy.table["path"][3])
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert key_of(copy) != key


def test_prepare_of_a_copied_set_opens_the_same_store_with_the_paths_of_the_copy(tmp_path):
    first = prepare(read(ham10000(tmp_path / "data")), tmp_path / "stores", SMALL, progress=False)
    (tmp_path / "data").rename(tmp_path / "moved")
    second = prepare(read(tmp_path / "moved"), tmp_path / "stores", SMALL, progress=False)
    assert second.folder == first.folder and second.fingerprint == first.fingerprint
    assert all(Path(path).is_file() for path in second.table["path"])
    larger = prepare(read(tmp_path / "moved"), tmp_path / "stores", StoreConfig(48), progress=False)
    assert larger.fingerprint != first.fingerprint and larger.identities == first.identities


def test_fingerprint_differs_after_a_corrected_label(tmp_path):
    dataset = read(ham10000(tmp_path / "data"))
    labels = dataset.table["label"].where(dataset.table.index > 0, 1 - dataset.table["label"].clip(upper=1))
    relabeled = dataclasses.replace(dataset, table=dataset.table.assign(label=labels))
    stores = [build_store(d, tmp_path / f"{k}", SMALL, progress=False) for k, d in enumerate((dataset, relabeled))]
    assert stores[0].fingerprint != stores[1].fingerprint and stores[0].identities == stores[1].identities


def test_rows_in_finds_renamed_copies_and_other_images_of_their_lesions(tmp_path):
    """Neither the name 0000.jpg at two places nor a new name matters; an id of the ISIC Archive does."""
    for site in ("a", "b"):
        for k in range(4):
            write_image(tmp_path / site / "nevus" / f"{k:04d}.jpg", seed=10 * (site == "b") + k)
            write_image(tmp_path / site / "melanoma" / f"ISIC_000000{k}.jpg", seed=50 + 10 * (site == "b") + k)
    shutil.copyfile(tmp_path / "a/nevus/0002.jpg", tmp_path / "b/nevus/renamed.jpg")
    a, b = (
        prepare(read(tmp_path / site), tmp_path / "stores", StoreConfig(32, "structure"), progress=False)
        for site in ("a", "b")
    )
    known = set().union(*a.identities)
    found = set(b.table["image_id"].iloc[b.rows_in(known)])
    assert found == {"renamed", *(f"ISIC_000000{k}" for k in range(4))}
    unnamed = b.rows_in(known, np.flatnonzero(~b.table["image_id"].str.startswith("ISIC")))
    assert list(b.table["image_id"].iloc[unnamed]) == ["renamed"]


def test_prepare_image_called_na_keeps_its_id_in_the_store(tmp_path):
    (folders(tmp_path) / "Train/nevus/ISIC_0000100.jpg").rename(tmp_path / "Train/nevus/NA.jpg")
    store = prepare(read(tmp_path), tmp_path / "stores", StoreConfig(32, "structure"), progress=False)
    assert "NA" in store.table["image_id"].to_list()


def test_prepare_cleans_and_splits_by_lesion(phantoms, phantom_store, tmp_path):
    dataset = read(phantoms)
    store = prepare(dataset, tmp_path, StoreConfig(64), audit(dataset, progress=False), progress=False)
    assert len(store) < 120 and "left out because a copy" in " ".join(store.problems)
    assert (store.splits >= 0).all() and store.table.groupby("lesion_id")["split"].nunique().max() == 1
    assert phantom_store.folder.name == store.folder.name, "prepared without a report"
    assert (phantom_store.images == store.images).all() and phantom_store.problems == store.problems


@pytest.fixture
def prepared(phantom_store, tmp_path) -> Store:
    """A copy of the audited store, the only one in its folder."""
    return Store(shutil.copytree(phantom_store.folder, tmp_path / "stores" / phantom_store.folder.name))


def test_prepare_with_another_config_skips_the_audit(phantoms, prepared, monkeypatch):
    monkeypatch.setattr(module, "audit", lambda *_: pytest.fail("the data were audited before"))
    config = dataclasses.replace(prepared.config, style="structure")
    store = prepare(read(phantoms), prepared.folder.parent, config, progress=False)
    pd.testing.assert_frame_equal(store.table, prepared.table)
    assert store.problems == prepared.problems and (store.images == prepared.images).all()
    assert (store.sketches != prepared.sketches).any()


def test_prepare_opens_the_store_that_another_process_finished_first(phantoms, prepared, monkeypatch):
    build = module.build_store

    def slower(dataset, folder, *args):
        build(dataset, folder, *args)
        raise OSError("Directory not empty")

    monkeypatch.setattr(module, "build_store", slower)
    assert len(prepare(read(phantoms), prepared.folder.parent, SMALL, progress=False)) == len(prepared)


def test_build_store_crop_center_cuts_off_what_none_keeps(tmp_path):
    root = ham10000(tmp_path / "data")
    path = Path(read(root).table["path"][0])
    image = np.full((30, 90, 3), 200, np.uint8)
    image[:, :20] = 0
    cv2.imwrite(str(path.with_suffix(".png")), image)
    path.unlink()
    write_mask(Path(read(root).table["mask_path"][0]), (90, 30))
    for crop, dark_fraction in (("center", 0), ("none", 20 / 90)):
        store = build_store(read(root), tmp_path / "store", StoreConfig(32, crop=crop), progress=False)
        row = store.table.index[store.table["image_id"] == path.stem][0]
        assert (store.images[row] < 100).mean() == pytest.approx(dark_fraction, abs=0.03)


def test_build_store_crops_masks_like_images(tmp_path):
    dataset = read(isic2016(tmp_path / "data"))
    store = build_store(dataset, tmp_path / "store", SMALL, progress=False)
    mask = center_crop(read_mask(dataset.table["mask_path"][0]))
    assert mask.shape == (32, 32) and (store.masks[0] == mask).all()


def test_build_store_uses_sketch_files(tmp_path):
    store = build_store(read(course(tmp_path / "data")), tmp_path / "store", SMALL, progress=False)
    assert store.has_sketch.all() and not store.has_mask.any() and not store.masks.any()
    assert set(np.unique(store.sketches)) == {0, 255}
    rows, columns = np.nonzero(store.sketches[0])
    assert np.hypot(rows - 15.5, columns - 15.5).max() < 12, "the disc in the file"


def test_build_store_keeps_thin_lines_of_large_sketches(tmp_path):
    root = course(tmp_path / "data")
    path = Path(read(root).table["sketch_path"][0])
    lines = np.zeros((256, 320), np.uint8)
    lines[128, 40:280] = 255
    cv2.imwrite(str(path), lines)
    store = build_store(read(root), tmp_path / "store", SMALL, progress=False)
    row = store.table.index[store.table["sketch_path"] == str(path)][0]
    assert (store.sketches[row].max(axis=0) == 255).sum() > 25


def test_build_store_without_masks_needs_style_structure(tmp_path):
    dataset = read(folders(tmp_path / "data"))
    with pytest.raises(DataError, match="needs masks or sketches, folders has none: use style 'structure'"):
        build_store(dataset, tmp_path / "store", SMALL, progress=False)
    store = build_store(dataset, tmp_path / "store", StoreConfig(32, "structure"), progress=False)
    assert not store.has_mask.any() and store.rows(needs=["mask"]).size == 0


def test_build_store_unknown_label_is_minus_one(tmp_path):
    dataset = read(isic2016(tmp_path / "data"))
    dataset.table.loc[3, "label"] = pd.NA
    store = build_store(dataset, tmp_path / "store", SMALL, progress=False)
    assert store.labels[3] == -1 and 3 not in store.rows(needs=["label"]) and 3 in store.rows()
    assert pd.isna(store.table.loc[3, "label"])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("size", 8, "16 to 1024 pixels"),
        ("size", 4096, "16 to 1024 pixels"),
        ("style", "hand", "one of contour, structure"),
        ("crop", "round", "one of center, none"),
    ],
)
def test_store_config_value_not_allowed_raises(name, value, expected):
    with pytest.raises(ValueError, match=f"{name} must be {expected}, got {value!r}"):
        StoreConfig(**{name: value})


# ------------------------------------------------------------------------------------------------------------ errors


def table_and_rows(count: int, size: int = 16):
    """A table of `count` images in 7 classes, and a generator of its images, masks and sketches."""
    table = pd.DataFrame({"image_id": np.arange(count).astype(str), "label": pd.array(np.arange(count) % 7, "Int64")})
    table = table.assign(split="train", artifacts=pd.array([pd.NA] * count, "string"))
    image, mask = np.zeros((size, size, 3), np.uint8), np.ones((size, size), np.uint8)
    return DatasetTable("test", ROOT, table, list("ABCDEFG")), ((image, mask, 255 * mask) for _ in range(count))


def write_test_store(folder: Path, count: int) -> Path:
    dataset, rows = table_and_rows(count)
    write_store(folder, dataset, StoreConfig(16), rows)
    return folder


def test_build_store_mask_of_another_size_raises_and_leaves_no_files(tmp_path):
    dataset = read(ham10000(tmp_path / "data"))
    write_mask(Path(dataset.table["mask_path"][5]), (50, 50))
    with pytest.raises(DataError, match="50 x 50 pixels but its image is 40 x 32"):
        build_store(dataset, tmp_path / "store", SMALL, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_store_other_folder_raises(tmp_path):
    with pytest.raises(DataError, match=r"is not a store: expected a config\.json"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", ["short", "gone", "config", "labels"])
def test_store_damaged_raises(tmp_path, damage):
    folder = write_test_store(tmp_path / "s", 4)
    images = folder / "images.npy"
    if damage == "short":
        images.write_bytes(images.read_bytes()[:-100])
    elif damage == "gone":
        images.unlink()
    elif damage == "config":
        (folder / "config.json").write_text('{"name": "te')
    else:
        np.save(folder / "labels.npy", np.zeros(3, np.int16))
    with pytest.raises(DataError, match=r"damaged .* delete it"):
        Store(folder)


def test_write_store_interrupted_keeps_the_old_store(tmp_path):
    write_test_store(tmp_path / "s", 4)
    dataset, rows = table_and_rows(9)

    def interrupted():
        yield next(rows)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s", dataset, StoreConfig(16), interrupted())
    assert len(Store(tmp_path / "s")) == 4 and [p.name for p in tmp_path.iterdir()] == ["s"]


def test_write_store_on_a_full_disk_raises_and_keeps_the_old_store(tmp_path):
    """A limit on the size of files stands in for a full disk: writing fails the same way."""
    resource = pytest.importorskip("resource")  # not on Windows
    write_test_store(tmp_path / "s", 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_test_store(tmp_path / "s", 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(Store(tmp_path / "s")) == 4 and [p.name for p in tmp_path.iterdir()] == ["s"]


PRINT_MEMORY = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from helpers.data.store import Store
for folder in sys.argv[2:]:
    store = Store(folder)
    for batch in store.batches(store.rows("train"), 64, np.random.default_rng(0)):
        batch["images"].sum()
    print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc, Linux only")
def test_batches_memory_does_not_grow_with_the_number_of_images(tmp_path):
    stores = [str(write_test_store(tmp_path / str(count), count)) for count in (1_000, 30_000)]
    command = [sys.executable, "-c", PRINT_MEMORY, str(ROOT), *stores]
    few, many = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    # KiB. 30,000 images of 16 px with mask and sketch take 38 MB, their row numbers 0.2 MB.
    assert many - few < 4_000


def testmap_in_chunks_runs_at_most_one_chunk_ahead():
    calls = SimpleNamespace(count=0)

    def count_call(item):
        calls.count += 1
        return item

    with ThreadPoolExecutor(2) as pool:
        for k, item in enumerate(module.map_in_chunks(pool, count_call, iter(range(2000)))):
            assert item == k and calls.count - k <= CHUNK
    assert calls.count == 2000


def test_names_to_flags_known_none_and_unknown_are_distinct_and_round_trip():
    names = pd.array(["hair ruler", "", pd.NA, "patches"], "string")
    flags = names_to_flags(names)
    assert flags.dtype == np.uint8 and flags[0].tolist() == [0, 1, 0, 0, 1, 0, 0] and not flags[1].any()
    assert (flags[2] == UNKNOWN).all() and flags[3].tolist() == [0, 0, 0, 0, 0, 0, 1]
    again = flags_to_names(flags)
    assert again[:2] == ["hair ruler", ""] and again[2] is pd.NA and again[3] == "patches"


def test_names_to_flags_misspelled_name_raises():
    with pytest.raises(ValueError, match="got 'hairs'"):
        names_to_flags(["hair", "hairs ruler"])


def test_store_artifacts_are_those_of_the_table_after_reopening_and_for_another_config(phantoms, tmp_path):
    dataset = read(phantoms)
    expected = dataset.table.set_index("image_id")["artifacts"]
    for config in (SMALL, StoreConfig(40)):  # the second store takes its table from the first
        store = prepare(dataset, tmp_path, config, progress=False)
        table = Store(store.folder).table
        assert table["artifacts"].tolist() == expected.loc[table["image_id"]].tolist()
        assert 0 < store.artifacts.mean() < 0.5 and store.artifacts.max() == 1


def test_store_artifacts_of_a_published_set_are_unknown(tmp_path):
    store = prepare(read(ham10000(tmp_path / "ham")), tmp_path / "stores", SMALL, progress=False)
    assert (store.artifacts == UNKNOWN).all() and store.table["artifacts"].isna().all()
