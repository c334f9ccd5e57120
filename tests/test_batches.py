import numpy as np
import pytest
import torch
from factories import to_uint8

from helpers.data.batches import (
    ImageSource,
    SketchSampling,
    balanced_batches,
    source_batches,
    to_tensors,
)
from helpers.data.files import DataError


def test_balanced_batches_are_balanced_reproducible_and_of_the_training_split(store):
    get_batch = balanced_batches(store, 200, seed=0)
    batch = get_batch(3, 0)
    assert torch.equal(batch["images"], get_batch(3, 0)["images"])
    assert not torch.equal(batch["images"], get_batch(4, 0)["images"])
    assert not torch.equal(batch["images"], get_batch(3, 1)["images"]), "every process gets other images"
    counts = torch.bincount(torch.cat([get_batch(step, 0)["labels"] for step in range(10)]), minlength=7) / 2000
    assert (counts - 1 / 7).abs().max() < 0.03
    train = {store.images[row].tobytes() for row in store.rows("train")}
    assert all(image.tobytes() in train for image in to_uint8(batch["images"][:20]))


def test_balanced_batches_of_given_rows_may_come_from_any_split(store):
    rows = store.rows("test", needs=["sketch", "label"])
    batch = balanced_batches(store, 50, seed=0, rows=rows)(0, 0)
    test = {store.images[row].tobytes() for row in rows}
    assert len(rows) and all(image.tobytes() in test for image in to_uint8(batch["images"]))


def test_balanced_batches_change_a_fraction_of_the_sketches_to_hand_drawn(store):
    original, changed = (
        balanced_batches(store, 200, seed=0, sketch_sampling=SketchSampling(hand_drawn_prob=prob))(0, 0)
        for prob in (0.0, 0.3)
    )
    differs = (original["sketches"] != changed["sketches"]).flatten(1).any(dim=1)
    assert torch.equal(original["images"], changed["images"]) and 0.2 < differs.float().mean() < 0.4


def test_balanced_batches_unpaired_take_sketches_of_other_images(phantom_store):
    store, rows = phantom_store, phantom_store.rows("train", needs=["sketch", "label"])
    batch = balanced_batches(store, 64, 0, sketch_sampling=SketchSampling(paired=False))(0, 0)
    train = {store.sketches[row].tobytes() for row in rows}
    assert all((255 * s[0].numpy()).astype(np.uint8).tobytes() in train for s in batch["sketches"])
    paired = balanced_batches(store, 64, 0)(0, 0)
    assert torch.equal(paired["images"], batch["images"])
    assert (paired["sketches"] != batch["sketches"]).flatten(1).any(dim=1).float().mean() > 0.8


def test_balanced_batches_unpaired_take_given_sketches(phantom_store):
    sketches = np.zeros((2, 64, 64), np.uint8)
    sketches[:, 5] = 255
    sketch_sampling = SketchSampling(paired=False, unpaired_sketches=sketches)
    batch = balanced_batches(phantom_store, 8, 0, sketch_sampling=sketch_sampling)(0, 0)
    assert torch.equal(batch["sketches"], torch.from_numpy(sketches[:1, None] / 255).float().expand(8, 1, 64, 64))


IMAGES_LABELS = ("images", "labels")


def gray_source(value: int, labels) -> ImageSource:
    """Labeled images of one gray value and masks of ones; the first is not among the rows."""
    count = len(labels)
    images, masks = np.full((count, 8, 8, 3), value, np.uint8), np.ones((count, 8, 8), np.uint8)
    return ImageSource(images, np.arange(1, count), masks, np.array(labels))


def test_source_batches_balance_classes_then_sources():
    real, synthetic = gray_source(10, [2, 0, 0, 0, 0, 0, 1]), gray_source(200, [0, 1, 1, 1])
    batch = source_batches([real, synthetic], 4000, 0, IMAGES_LABELS, balanced=True)(0, 0)
    is_synthetic = batch["images"][:, 0, 0, 0] > 0
    assert set(batch) == {"images", "labels"} and batch["labels"].unique().tolist() == [0, 1], "2 is not among the rows"
    assert (batch["labels"] == 1).float().mean() == pytest.approx(0.5, abs=0.03)
    assert is_synthetic[batch["labels"] == 1].float().mean() == pytest.approx(0.5, abs=0.03), "half of the rare class"
    assert not is_synthetic[batch["labels"] == 0].any(), "there are no synthetic images of class 0"


def test_source_batches_unbalanced_keep_the_class_frequencies():
    batch = source_batches([gray_source(10, [2, 0, 0, 0, 0, 0, 1])], 4000, 0, IMAGES_LABELS)(0, 0)
    assert (batch["labels"] == 1).float().mean() == pytest.approx(1 / 6, abs=0.03)


def test_source_batches_depend_on_step_and_rank_only():
    get_batch = source_batches([gray_source(10, np.arange(30) % 3)], 16, 5, IMAGES_LABELS, balanced=True)
    assert torch.equal(get_batch(3, 0)["labels"], get_batch(3, 0)["labels"])
    assert not torch.equal(get_batch(3, 0)["labels"], get_batch(4, 0)["labels"])
    assert not torch.equal(get_batch(3, 0)["labels"], get_batch(3, 1)["labels"]), "every process gets other images"


def test_source_batches_balance_sources_and_keep_images_with_their_masks():
    real, synthetic = gray_source(10, np.zeros(20)), gray_source(200, np.zeros(3))
    real.masks[:] = 0
    get_batch = source_batches([real, synthetic], 400, 0, ("images", "masks"))
    batch = get_batch(0, 0)
    is_synthetic = batch["images"][:, 0, 0, 0] > 0
    assert set(batch) == {"images", "masks"} and is_synthetic.float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(batch["masks"][:, 0, 0, 0] > 0, is_synthetic)
    assert torch.equal(batch["images"], get_batch(0, 0)["images"])
    assert not torch.equal(batch["images"], get_batch(1, 0)["images"])


def test_to_tensors_artifacts_are_floats():
    tensors = to_tensors({"artifacts": np.array([[0, 1, 0, 0, 1, 0, 0]], np.uint8)})
    assert tensors["artifacts"].dtype == torch.float32 and tensors["artifacts"].sum() == 2


def test_balanced_batches_without_required_sketches_use_every_labeled_image(phantom_store, monkeypatch):
    monkeypatch.setattr(phantom_store, "has_sketch", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match="needs at least one training image with a sketch and a label, got none"):
        balanced_batches(phantom_store, 4, 0)
    sampling = SketchSampling(required=False)
    assert np.array_equal(sampling.rows(phantom_store), phantom_store.rows("train", needs=["label"]))
    assert balanced_batches(phantom_store, 4, 0, sketch_sampling=sampling)(0, 0)["images"].shape == (4, 3, 64, 64)
