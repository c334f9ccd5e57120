import numpy as np
import pandas as pd
import pytest
import torch

from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.layouts import ARTIFACTS
from helpers.data.store import SPLITS, UNKNOWN, Store
from helpers.models.artifacts import (
    ArtifactConfig,
    ArtifactDetector,
    average_precisions,
    fill_artifacts,
    load_artifacts,
    predict_artifacts,
    read_flags,
    read_ids,
    train_artifacts,
)
from helpers.models.checkpoint import export_weights, training_data
from helpers.models.trainer import TrainConfig
from helpers.models.weights import lite_weights_file

HEADER = ",".join(["image_id", *ARTIFACTS])


def copy_store(store: Store, folder) -> Store:
    """A store whose files a test may change."""
    folder.mkdir()
    for path in store.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return Store(folder)


def hair_flags(store: Store) -> pd.DataFrame:
    """Annotations by which every image with a bright mean is "hair": easy to learn."""
    flags = np.zeros((len(store), 7), np.float32)
    brightness = store.images.mean(axis=(1, 2, 3))
    flags[:, 1] = brightness > np.median(brightness)
    flags[::2, 4] = 1
    return pd.DataFrame(flags, store.table["image_id"].astype(str), list(ARTIFACTS))


def test_detector_gives_one_logit_per_flag_at_any_size():
    detector = ArtifactDetector(ArtifactConfig(64), pretrained=False).eval()
    for size in (64, 96):
        logits = detector(torch.rand(2, 3, size, size) * 2 - 1)
        assert logits.shape == (2, 7) and logits.std() > 0


def test_detector_pretrained_has_the_weights_of_the_package_and_random_has_not():
    weights = torch.load(lite_weights_file("efficientnet_lite0"), weights_only=True)
    first = next(iter(weights.values()))
    for pretrained in (True, False):
        stem = ArtifactDetector(ArtifactConfig(64, pretrained)).features[0]
        assert torch.equal(stem.weight, first) == pretrained


def test_train_artifacts_learns_an_easy_flag_and_the_file_predicts_the_same(phantom_store, tmp_path):
    config, flags = ArtifactConfig(64, color_jitter=0.0), hair_flags(phantom_store)
    history = train_artifacts(phantom_store, config, tmp_path, TrainConfig(30, 16, save_every=10, ema_nimg=100), flags)
    detector, loaded = load_artifacts(tmp_path / "checkpoint.pt")
    assert loaded == config and history["checked_at"] == [10, 20, 30] and not detector.training
    rows = phantom_store.rows("train")
    probs = predict_artifacts(detector, phantom_store.images[rows])
    hair = flags.to_numpy()[rows, 1] > 0.5
    assert average_precisions(probs, flags.to_numpy()[rows] > 0.5)[1] > hair.mean() + 0.2
    released, _ = load_artifacts(export_weights(tmp_path / "checkpoint.pt", tmp_path / "artifacts.safetensors"))
    assert np.abs(predict_artifacts(released, phantom_store.images[rows]) - probs).max() < 0.02
    assert released.trained_on == training_data(phantom_store, rows)["trained_on"]


def test_train_artifacts_excluded_ids_are_not_used_and_init_from_keeps_earlier_ids(phantom_store, tmp_path):
    flags, run = hair_flags(phantom_store), TrainConfig(1, 4)
    rows = phantom_store.rows("train")
    ids = phantom_store.table["image_id"].to_numpy(str)[rows]
    train_artifacts(phantom_store, ArtifactConfig(64), tmp_path / "a", run, flags, exclude=set(ids[5:]))
    first, _ = load_artifacts(tmp_path / "a" / "checkpoint.pt")
    assert first.trained_on == training_data(phantom_store, rows[:5])["trained_on"]
    train_artifacts(phantom_store, ArtifactConfig(64), tmp_path / "b", run, flags, set(ids[6:]) | set(ids[:5]),
                    tmp_path / "a" / "checkpoint.pt")  # fmt: skip
    second, _ = load_artifacts(tmp_path / "b" / "checkpoint.pt")
    assert second.trained_on == training_data(phantom_store, rows[:6])["trained_on"]


def test_train_artifacts_val_without_variation_keeps_the_last_weights(phantom_store, tmp_path):
    flags = hair_flags(phantom_store)
    flags.loc[phantom_store.table["image_id"].to_numpy(str)[phantom_store.rows("val")]] = 0
    history = train_artifacts(phantom_store, ArtifactConfig(64), tmp_path, TrainConfig(1, 4), flags)
    assert history["val_ap"] == [] and load_artifacts(tmp_path / "checkpoint.pt")[1] == ArtifactConfig(64)


def test_train_artifacts_predicted_flags_are_not_annotations(phantom_store, tmp_path):
    store = copy_store(phantom_store, tmp_path / "store")
    np.save(store.folder / "artifacts_known.npy", np.zeros(len(store), bool))
    with pytest.raises(DataError, match="needs training images with artifact flags, got none"):
        train_artifacts(Store(store.folder), ArtifactConfig(64), tmp_path / "out", TrainConfig(1, 4))


def test_train_artifacts_without_annotated_images_or_other_size_raises(phantom_store, tmp_path):
    none = hair_flags(phantom_store).iloc[:0]
    with pytest.raises(DataError, match="needs training images with artifact flags, got none"):
        train_artifacts(phantom_store, ArtifactConfig(64), tmp_path, TrainConfig(1, 4), none)
    with pytest.raises(ValueError, match="the store has size 64, the config 128"):
        train_artifacts(phantom_store, ArtifactConfig(128), tmp_path, TrainConfig(1, 4))


def test_fill_artifacts_replaces_unknown_flags_once_and_keeps_known_ones(phantom_store, tmp_path):
    train_artifacts(phantom_store, ArtifactConfig(64), tmp_path, TrainConfig(1, 4), hair_flags(phantom_store))
    store = copy_store(phantom_store, tmp_path / "store")
    flags = np.zeros((len(store), 7), np.uint8)
    flags[3:] = UNKNOWN
    flags[0, 6] = 1
    np.save(store.folder / "artifacts.npy", flags)
    store = Store(store.folder)
    assert fill_artifacts(store, tmp_path / "checkpoint.pt") == len(store) - 3
    detector, _ = load_artifacts(tmp_path / "checkpoint.pt")
    expected = predict_artifacts(detector, store.images[3:]) > 0.5
    for opened in (store, Store(store.folder)):
        assert np.array_equal(opened.artifacts[:3], flags[:3]) and np.array_equal(opened.artifacts[3:], expected)
    assert fill_artifacts(store, tmp_path / "missing.pt") == 0, "nothing is unknown, so no file is read"


def test_average_precisions_perfect_random_and_constant_flags_are_known_values():
    flags = np.zeros((4, 7), bool)
    flags[:2, 0] = flags[[0, 2], 1] = flags[:, 2] = True
    probs = np.tile(np.array([0.9, 0.8, 0.2, 0.1])[:, None], 7)
    ap = average_precisions(probs, flags)
    assert ap[0] == 1 and ap[1] == pytest.approx((1 + 2 / 3) / 2) and np.isnan(ap[2:]).all()


def test_read_flags_reads_separators_and_endings_and_the_first_of_repeated_ids(tmp_path):
    rows = ["a.png;0;1;0;0;0.25;0;0", "b.JPG;1;0;0;0;0;0;0", "a;1;1;1;1;1;1;1"]
    (tmp_path / "flags.csv").write_text("\n".join([HEADER.replace(",", ";").replace("image_id", "image"), *rows]))
    flags = read_flags(tmp_path / "flags.csv")
    assert list(flags.index) == ["a", "b"] and list(flags.columns) == list(ARTIFACTS)
    assert flags.loc["a"].tolist() == [0, 1, 0, 0, 0.25, 0, 0] and flags.loc["b", "dark_corner"] == 1


def test_read_flags_ids_are_text(tmp_path):
    ids = ["NA", "null", "007", "1e5"]
    (tmp_path / "flags.csv").write_text("\n".join([HEADER, *(f"{image_id},0,0,0,0,0,0,1" for image_id in ids)]))
    assert list(read_flags(tmp_path / "flags.csv").index) == ids


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,hair\na,1\n", "has no column dark_corner, gel_border, .*, got image_id, hair"),
        (f"{HEADER}\na,0,2,0,0,0,0,0\n", "must be numbers in"),
        (f"{HEADER}\na,0,yes,0,0,0,0,0\n", "must be numbers in"),
        (f"{HEADER}\na,0,,0,0,0,0,0\n", "must be numbers in"),
    ],
)
def test_read_flags_wrong_content_raises(tmp_path, text, words):
    (tmp_path / "flags.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_flags(tmp_path / "flags.csv")


def test_read_flags_missing_file_raises(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        read_flags(tmp_path / "none.csv")


def test_read_ids_with_and_without_header_and_endings(tmp_path):
    (tmp_path / "ids.csv").write_text("image_id,label\nISIC_1.jpg,0\nISIC_2,1\n")
    assert {"ISIC_1", "ISIC_2"} <= read_ids(tmp_path / "ids.csv")
    (tmp_path / "ids.csv").write_text("ISIC_3,benign\n")
    assert read_ids(tmp_path / "ids.csv") == {"ISIC_3"}
    (tmp_path / "ids.csv").write_text('ISIC_4_downsampled.JPG;1;0\n"ISIC_5"\t0\n\n')
    assert read_ids(tmp_path / "ids.csv") == {"ISIC_4", "ISIC_5"}


def test_load_artifacts_other_file_raises(tmp_path):
    torch.save({"config": {"size": 64}, "extra_state": {}, "ema_models": {}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="is not an artifact detector"):
        load_artifacts(tmp_path / "other.pt")


def test_released_detector_is_small_has_a_card_and_separates_phantoms_with_a_ruler(phantom_store):
    released = get_config().released
    file, card = released / "artifacts.safetensors", (released / "artifacts.md").read_text()
    assert file.stat().st_size < 4e6
    assert (
        all(f"| {name} |" in card for name in ARTIFACTS) and "Not for diagnosis" in card and "## Known faults" in card
    )
    detector, config = load_artifacts(file)
    assert f"{config.size} px" in card and "ISIC_0000000" not in card
    rows = phantom_store.rows()
    ruler = phantom_store.artifacts[rows, ARTIFACTS.index("ruler")] == 1
    probs = predict_artifacts(detector, phantom_store.images[rows])[:, ARTIFACTS.index("ruler")]
    assert ruler.any() and probs[ruler].mean() > probs[~ruler].mean()


def test_train_artifacts_from_weights_that_saw_held_out_images_raises(phantom_store, tmp_path):
    store, flags = copy_store(phantom_store, tmp_path / "store"), hair_flags(phantom_store)
    train_artifacts(store, ArtifactConfig(64), tmp_path / "first", TrainConfig(1, 4), flags)
    store.splits = np.where(np.arange(len(store)) % 2, store.splits, SPLITS.index("val"))  # half of them move to val
    with pytest.raises(DataError, match=r"was trained on .* images that are held out in phantoms"):
        train_artifacts(
            store, ArtifactConfig(64), tmp_path / "second", TrainConfig(1, 4), flags,
            init_from=tmp_path / "first" / "checkpoint.pt",
        )  # fmt: skip
