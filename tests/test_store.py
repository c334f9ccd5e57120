import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from factories import course, folders, ham10000, isic2016, paint_mask

from helpers.data.audit import audit
from helpers.data.files import DataError, center_crop, read_image, read_mask
from helpers.data.layouts import DatasetTable, read
from helpers.data.sketches import contour
from helpers.data.store import (
    ARRAYS,
    ImageSource,
    SketchSampling,
    Store,
    StoreConfig,
    balanced_batches,
    build_store,
    data_key,
    labeled_batches,
    prepare,
    to_tensors,
    write_store,
)

ROOT = Path(__file__).parents[1]
SMALL = StoreConfig(size=32)


@pytest.fixture
def store(phantoms, tmp_path) -> Store:
    return build_store(read(phantoms), tmp_path / "store", StoreConfig(size=64), progress=False)


def test_row_i_is_the_same_picture_everywhere(store, phantoms):
    assert store.images.shape == (120, 64, 64, 3) and store.masks.shape == store.sketches.shape == (120, 64, 64)
    assert all(getattr(store, name).dtype == np.uint8 for name in ("images", "masks", "sketches"))
    assert set(np.unique(store.masks)) == {0, 1} and set(np.unique(store.sketches)) == {0, 255}
    pd.testing.assert_frame_equal(store.table, read(phantoms).table)
    for i in (0, 50, 119):
        row = store.table.loc[i]
        assert (store.images[i] == read_image(row["path"])).all(), "64 px stay 64 px"
        assert (store.masks[i] == read_mask(row["mask_path"])).all()
        assert (store.sketches[i] == contour(store.masks[i])).all()
        assert store.labels[i] == row["label"]


def test_arrays_are_mapped_and_read_only(store):
    for name in ARRAYS:
        assert isinstance(getattr(store, name), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 0


def test_empty_masks_have_no_sketch(store):
    empty = np.flatnonzero(store.masks.reshape(120, -1).sum(axis=1) == 0)
    assert len(empty) and not store.has_sketch[empty].any()
    assert set(store.rows(needs=["sketch"])) == set(range(120)) - set(empty)


def test_rows_choose_split_class_and_needs(store):
    table = store.table
    assert store.rows("val").tolist() == table.index[table["split"] == "val"].tolist()
    chosen = store.rows("train", needs=["label", "mask"], classes=["MEL", "BCC"])
    assert set(store.labels[chosen]) == {0, 2}
    assert len(chosen) == ((table["split"] == "train") & table["label"].isin([0, 2])).sum()


def test_batches_bring_every_row_once(store):
    rows = store.rows("train")
    seen = np.concatenate([b["rows"] for b in store.batches(rows, 16, np.random.default_rng(0))])
    assert sorted(seen) == sorted(rows) and (seen != rows).any()
    again = np.concatenate([b["rows"] for b in store.batches(rows, 16, np.random.default_rng(0))])
    assert (seen == again).all()
    in_order = list(store.batches(rows, 16))
    assert (np.concatenate([b["rows"] for b in in_order]) == rows).all()
    assert {len(b["rows"]) for b in store.batches(rows, 16, drop_last=True)} == {16}
    batch = in_order[1]
    assert (batch["images"] == store.images[batch["rows"]]).all()
    assert (batch["labels"] == store.labels[batch["rows"]]).all()
    fewer = store.batch(rows[:3], arrays=("images", "labels"))
    assert set(fewer) == {"images", "labels", "rows"} and set(to_tensors(fewer)) == {"images", "labels"}


def test_tensors_keep_the_contract(store):
    torch = pytest.importorskip("torch")
    batch = store.batch(np.arange(5))
    tensors = to_tensors(batch)
    assert {k: (tuple(v.shape), v.dtype) for k, v in tensors.items()} == {
        "images": ((5, 3, 64, 64), torch.float32),
        "masks": ((5, 1, 64, 64), torch.float32),
        "sketches": ((5, 1, 64, 64), torch.float32),
        "labels": ((5,), torch.int64),
    }
    assert tensors["images"].min() >= -1 and tensors["images"].max() <= 1
    assert set(tensors["sketches"].unique().tolist()) == {0, 1} == set(tensors["masks"].unique().tolist())
    back = ((tensors["images"].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert (back == batch["images"]).all()


# ---------------------------------------------------------------------------------------------------------- building


def test_prepared_once_and_again_when_anything_changes(tmp_path):
    dataset = read(ham10000(tmp_path / "data"))
    first = prepare(dataset, tmp_path / "stores", SMALL, progress=False)
    written = (first.folder / "images.npy").stat().st_mtime_ns
    second = prepare(dataset, tmp_path / "stores", SMALL, progress=False)
    assert second.folder == first.folder and (second.folder / "images.npy").stat().st_mtime_ns == written
    for other in ({"size": 48}, {"style": "structure"}, {"geometry": "whole"}):
        assert (
            prepare(dataset, tmp_path / "stores", dataclasses.replace(SMALL, **other), progress=False).folder
            != first.folder
        )
    keys = {data_key(dataset, 0), data_key(dataset, 1), data_key(dataset.subset(["MEL", "NV"]), 0)}
    keys.add(data_key(dataclasses.replace(dataset, table=dataset.table.assign(split="train")), 0))
    paint_mask(Path(dataset.table["mask_path"][0]), (40, 32)).write_bytes(b"other content")
    keys.add(data_key(dataset, 0))
    assert len(keys) == 5


def test_other_settings_spare_the_audit(phantoms, tmp_path, monkeypatch):
    dataset = read(phantoms)
    first = prepare(dataset, tmp_path, SMALL, progress=False)
    monkeypatch.setattr("helpers.data.store.audit", lambda *_: pytest.fail("the data was audited before"))
    other = prepare(dataset, tmp_path, dataclasses.replace(SMALL, style="structure"), progress=False)
    pd.testing.assert_frame_equal(first.table, other.table)
    assert other.problems == first.problems and (other.images == first.images).all()
    assert (other.sketches != first.sketches).any()


def test_prepare_puts_right_and_splits(phantoms, tmp_path):
    dataset = read(phantoms)
    store = prepare(dataset, tmp_path, SMALL, progress=False)
    assert len(store) < 120 and "left out because a copy" in " ".join(store.problems)
    assert (store.splits >= 0).all() and store.table.groupby("lesion_id")["split"].nunique().max() == 1
    given = prepare(dataset, tmp_path / "again", SMALL, report=audit(dataset, progress=False), progress=False)
    assert given.folder.name == store.folder.name and (given.images == store.images).all()


def test_geometry(tmp_path):
    """An off-centre mark: the central square cuts it off, the whole picture keeps it."""
    root = ham10000(tmp_path / "data")
    path = Path(read(root).table["path"][0])
    picture = np.full((30, 90, 3), 200, np.uint8)
    picture[:, :20] = 0
    cv2.imwrite(str(path.with_suffix(".png")), picture)
    path.unlink()
    paint_mask(Path(read(root).table["mask_path"][0]), (90, 30))
    for geometry, dark in (("square", 0), ("whole", 20 / 90)):
        settings = StoreConfig(32, crop=geometry)
        store = build_store(read(root), tmp_path / "store", settings, progress=False)
        row = store.table.index[store.table["image_id"] == path.stem][0]
        assert (store.images[row] < 100).mean() == pytest.approx(dark, abs=0.03)


def test_masks_of_a_crop_stay_aligned(tmp_path):
    dataset = read(isic2016(tmp_path / "data"))
    store = build_store(dataset, tmp_path / "store", SMALL, progress=False)
    mask = center_crop(read_mask(dataset.table["mask_path"][0]))
    assert mask.shape == (32, 32) and (store.masks[0] == mask).all()


def test_given_sketches_are_used(tmp_path):
    store = build_store(read(course(tmp_path / "data")), tmp_path / "store", SMALL, progress=False)
    assert store.has_sketch.all() and not store.has_mask.any() and not store.masks.any()
    assert set(np.unique(store.sketches)) == {0, 255}
    rows, columns = np.nonzero(store.sketches[0])
    assert np.hypot(rows - 15.5, columns - 15.5).max() < 12, "the disc that was painted as a sketch"


def test_thin_lines_survive_being_made_smaller(tmp_path):
    root = course(tmp_path / "data")
    path = Path(read(root).table["sketch_path"][0])
    line = np.zeros((256, 320), np.uint8)
    line[128, 40:280] = 255
    cv2.imwrite(str(path), line)
    store = build_store(read(root), tmp_path / "store", SMALL, progress=False)
    row = store.table.index[store.table["sketch_path"] == str(path)][0]
    assert (store.sketches[row].max(axis=0) == 255).sum() > 25


def test_no_masks_no_contours(tmp_path):
    dataset = read(folders(tmp_path / "data"))
    with pytest.raises(DataError, match="style 'structure'"):
        build_store(dataset, tmp_path / "store", SMALL, progress=False)
    store = build_store(dataset, tmp_path / "store", StoreConfig(32, "structure"), progress=False)
    assert not store.has_mask.any() and store.rows(needs=["mask"]).size == 0


def test_unknown_labels_are_minus_one(tmp_path):
    dataset = read(isic2016(tmp_path / "data"))
    dataset.table.loc[3, "label"] = pd.NA
    store = build_store(dataset, tmp_path / "store", SMALL, progress=False)
    assert store.labels[3] == -1 and 3 not in store.rows(needs=["label"]) and 3 in store.rows()
    assert pd.isna(store.table.loc[3, "label"])


@pytest.mark.parametrize(
    "wrong", [{"size": 8}, {"size": 4096}, {"style": "hand"}, {"style": "ink"}, {"geometry": "round"}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="is not"):
        StoreConfig(**wrong)


# ------------------------------------------------------------------------------------------------------- what breaks


def test_mask_of_another_size_stops_with_both_sizes_and_leaves_nothing(tmp_path):
    dataset = read(ham10000(tmp_path / "data"))
    paint_mask(Path(dataset.table["mask_path"][5]), (50, 50))
    with pytest.raises(DataError, match="50 x 50 pixels but its image is 40 x 32"):
        build_store(dataset, tmp_path / "store", SMALL, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(DataError, match="is not a store"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", ["short", "gone", "settings", "labels"])
def test_a_damaged_store_says_so(tmp_path, damage):
    write_store(tmp_path / "s", rows_of(4)[0], StoreConfig(16), rows_of(4)[1])
    images = tmp_path / "s/images.npy"
    if damage == "short":
        images.write_bytes(images.read_bytes()[:-100])
    elif damage == "gone":
        images.unlink()
    elif damage == "settings":
        (tmp_path / "s/settings.json").write_text('{"name": "ma')
    else:
        np.save(tmp_path / "s/labels.npy", np.zeros(3, np.int16))
    with pytest.raises(DataError, match="damaged"):
        Store(tmp_path / "s")


def test_two_at_once_make_one_store(phantoms, tmp_path, monkeypatch):
    """Another process finishes the same store while this one writes it."""
    from helpers.data import store as module

    dataset, build = read(phantoms), module.build_store

    def slower(clean, folder, *rest):
        build(clean, folder, *rest)
        raise OSError("Directory not empty")

    monkeypatch.setattr(module, "build_store", slower)
    assert len(prepare(dataset, tmp_path, SMALL, progress=False)) == 118


def rows_of(count: int, size: int = 16):
    """A stand-in data set of `count` rows and the arrays for it, made one at a time."""
    table = pd.DataFrame({"image_id": np.arange(count).astype(str), "label": pd.array(np.arange(count) % 7, "Int64")})
    table["split"] = "train"
    image, mask = np.zeros((size, size, 3), np.uint8), np.ones((size, size), np.uint8)
    dataset = DatasetTable("made", ROOT, table, list("ABCDEFG"))
    return dataset, ((image, mask, 255 * mask) for _ in range(count))


def test_a_kill_while_writing_keeps_the_old_store(tmp_path):
    settings = StoreConfig(16)
    write_store(tmp_path / "s", rows_of(4)[0], settings, rows_of(4)[1])

    def killed():
        yield from list(rows_of(2)[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s", rows_of(9)[0], settings, killed())
    assert len(Store(tmp_path / "s")) == 4 and [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_is_an_error_and_keeps_the_old_store(tmp_path):
    """The operating system's limit on a file's size stands in for a full disk: writing fails the same way."""
    write_store(tmp_path / "s", rows_of(4)[0], StoreConfig(16), rows_of(4)[1])
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_store import rows_of, write_store, StoreConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    write_store(Path({str(tmp_path / "s")!r}), rows_of(5000)[0], StoreConfig(16), rows_of(5000)[1])
except OSError as error:
    print("refused:", error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("refused:")
    assert len(Store(tmp_path / "s")) == 4 and [p.name for p in tmp_path.iterdir()] == ["s"]


READ_ALL = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from helpers.data.store import Store
store = Store(sys.argv[1])
for batch in store.batches(store.rows("train"), 64, np.random.default_rng(0)):
    batch["images"].sum()
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc, Linux only")
def test_anonymous_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    kilobytes = {}
    for count in (1_000, 100_000):
        write_store(tmp_path / str(count), rows_of(count)[0], StoreConfig(16), rows_of(count)[1])
        command = [sys.executable, "-c", READ_ALL, str(tmp_path / str(count)), str(ROOT)]
        kilobytes[count] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # 100,000 pictures at 16 px are 125 MB; the numbers of the rows themselves are 0.8 MB.
    assert kilobytes[100_000] - kilobytes[1_000] < 8_000


def test_writing_looks_only_a_block_ahead(tmp_path):
    """A list of a million pictures is never in memory: what is loaded and not yet written stays under two blocks."""
    from concurrent.futures import ThreadPoolExecutor

    from helpers.data.store import CHUNK, _in_blocks

    made = SimpleNamespace(count=0)

    def make(item):
        made.count += 1
        return item

    with ThreadPoolExecutor(2) as pool:
        for taken, item in enumerate(_in_blocks(pool, make, iter(range(2000)))):
            assert item == taken and made.count - taken <= CHUNK
    assert made.count == 2000


def test_batches_are_balanced_reproducible_and_of_the_training_split(store):
    draw = balanced_batches(store, 200, seed=0)
    batch, again, other = draw(3, 0), draw(3, 0), draw(4, 0)
    assert torch.equal(batch["images"], again["images"]) and not torch.equal(batch["images"], other["images"])
    assert not torch.equal(batch["images"], draw(3, 1)["images"]), "another process sees other pictures"
    counts = torch.bincount(torch.cat([draw(k, 0)["labels"] for k in range(10)]), minlength=7) / 2000
    assert (counts - 1 / 7).abs().max() < 0.03
    train = store.batch(store.rows("train"))["images"].reshape(len(store.rows("train")), -1)
    known = {row.tobytes() for row in train}
    back = ((batch["images"][:20].permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    assert all(picture.tobytes() in known for picture in back)


def test_named_rows_are_taken_from_any_split(store):
    rows = store.rows("test", needs=["sketch", "label"])
    batch = balanced_batches(store, 50, seed=0, rows=rows)(0, 0)
    known = {store.images[row].tobytes() for row in rows}
    back = ((batch["images"].permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    assert len(rows) and all(picture.tobytes() in known for picture in back)


def test_a_share_of_the_sketches_is_redrawn_by_hand(store):
    plain, some = (
        balanced_batches(store, 200, seed=0, sketch_sampling=SketchSampling(hand_drawn_prob=share))(0, 0)
        for share in (0.0, 0.3)
    )
    changed = (plain["sketches"] != some["sketches"]).flatten(1).any(dim=1).float().mean()
    assert torch.equal(plain["images"], some["images"]) and 0.2 < changed < 0.4


def flat(value: int, count: int, labels) -> ImageSource:
    """Pictures of one grey, labelled; their first is not among the rows."""
    images = np.full((count, 8, 8, 3), value, np.uint8)
    return ImageSource(images, np.arange(1, count), labels=np.array(labels))


def test_labelled_batches_take_classes_alike_then_parts_alike():
    real, made = flat(10, 7, [2, 0, 0, 0, 0, 0, 1]), flat(200, 4, [0, 1, 1, 1])
    batch = labeled_batches([real, made], 4000, 0)(0, 0)
    drawn = batch["images"][:, 0, 0, 0] > 0
    assert set(batch) == {"images", "labels"} and batch["labels"].unique().tolist() == [0, 1], "2 is not among the rows"
    assert (batch["labels"] == 1).float().mean() == pytest.approx(0.5, abs=0.03)
    assert drawn[batch["labels"] == 1].float().mean() == pytest.approx(0.5, abs=0.03), "half of the rare class"
    assert not drawn[batch["labels"] == 0].any(), "none of a class that was not made"
    natural = labeled_batches([real], 4000, 0, balanced=False)(0, 0)
    assert (natural["labels"] == 1).float().mean() == pytest.approx(1 / 6, abs=0.03), "as they come"


def test_labelled_batches_are_the_same_again():
    draw = labeled_batches([flat(10, 30, np.arange(30) % 3)], 16, 5)
    assert torch.equal(draw(3, 0)["labels"], draw(3, 0)["labels"])
    assert not torch.equal(draw(3, 0)["labels"], draw(4, 0)["labels"])
    assert not torch.equal(draw(3, 0)["labels"], draw(3, 1)["labels"]), "another process sees other pictures"


def test_unpaired_batches_come_with_sketches_of_others(phantom_store):
    store, rows = phantom_store, phantom_store.rows("train", needs=["sketch", "label"])
    batch = balanced_batches(store, 64, 0, sketch_sampling=SketchSampling(paired=False))(0, 0)
    own = [any(np.array_equal(255 * s[0].numpy(), store.sketches[row]) for row in rows) for s in batch["sketches"]]
    assert all(own), "of the training split"
    paired = balanced_batches(store, 64, 0)(0, 0)
    assert torch.equal(paired["images"], batch["images"])
    assert (paired["sketches"] != batch["sketches"]).flatten(1).any(dim=1).float().mean() > 0.8
    others = np.zeros((2, 64, 64), np.uint8)
    others[:, 5] = 255
    given = balanced_batches(store, 8, 0, sketch_sampling=SketchSampling(paired=False, unpaired_sketches=others))(0, 0)[
        "sketches"
    ]
    assert torch.equal(given, torch.from_numpy(others[:1, None] / 255).float().expand(8, 1, 64, 64))
