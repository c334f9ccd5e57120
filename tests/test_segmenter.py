from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import mobilenet_v2

from helpers.data.files import DataError
from helpers.data.store import ImageSource
from helpers.models import segmenter as module
from helpers.models.segmenter import (
    Segmenter,
    SegmenterConfig,
    SegmenterTask,
    baseline_config,
    clean_mask,
    fit_segmenter,
    jaccard,
    jaccard_loss,
    load_segmenter,
    probabilities,
    segment,
    train_segmenter,
    val_jaccard,
)
from helpers.models.trainer import TrainConfig

SETTINGS = SegmenterConfig(64, encoder_name="mobilenet_v2", pretrained=False)


@pytest.fixture(scope="module")
def trained(phantom_store, tmp_path_factory):
    """Long enough to find phantoms."""
    folder = tmp_path_factory.mktemp("segmenter")
    history = train_segmenter(phantom_store, SETTINGS, folder, TrainConfig(120, 8, save_every=40, ema_nimg=80))
    return folder, history


@pytest.mark.parametrize("network", module.ARCHS)
def test_every_network_gives_a_logit_per_pixel(network):
    torch.manual_seed(0)
    segmenter = Segmenter(SegmenterConfig(64, network, "resnet18", pretrained=False)).eval()
    assert segmenter(torch.rand(2, 3, 64, 64) * 2 - 1).shape == (2, 1, 64, 64) and segmenter.init == "random init"


def test_an_encoder_starts_from_the_weights_in_the_folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = mobilenet_v2().state_dict()
    torch.save(weights, tmp_path / "mobilenet_v2-imagenet.pth")
    monkeypatch.setenv("LESION_WEIGHTS_DIR", str(tmp_path))
    segmenter = Segmenter(SegmenterConfig(64))
    assert segmenter.init == "ImageNet"
    assert torch.equal(segmenter.network.encoder.state_dict()["features.0.0.weight"], weights["features.0.0.weight"])
    assert Segmenter(SegmenterConfig(64, pretrained=False)).init == "random init"


def test_no_weights_no_error(monkeypatch):
    def offline(*_, **__):
        raise LookupError("some client's own way to say: no connection")

    monkeypatch.setattr(module, "imagenet_weights", lambda name: None)
    monkeypatch.setattr(module.smp.encoders, "get_encoder", offline)
    assert Segmenter(SegmenterConfig(64)).init == "random init"
    encoder = torch.nn.Identity()
    assert not module.load_encoder_weights(encoder, "efficientnet-b0"), "not torchvision's name: the library is asked"


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match="network 'UNet' is not one of Unet"):
        SegmenterConfig(64, "UNet")
    with pytest.raises(ValueError, match="no encoder 'resnet19'"):
        Segmenter(SegmenterConfig(64, encoder_name="resnet19", pretrained=False))
    with pytest.raises(ValueError, match="width 16 is below 32"):
        SegmenterConfig(64, decoder_channels=16)
    for size in (32, 100):
        with pytest.raises(ValueError, match=f"size {size} is not a multiple of 32 from 64 up"):
            SegmenterConfig(size)


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """Left half and upper half of a square: they share a quarter, together they cover three."""
    left, upper = torch.zeros(2, 1, 1, 8, 8)
    left[..., :4], upper[..., :4, :] = 1, 1
    return left, upper


def test_jaccard_of_regions_that_are_known():
    left, upper = halves()
    empty = torch.zeros_like(left)
    found = jaccard(torch.cat([left, left, empty, empty]), torch.cat([left, upper, left, empty]))
    assert found.tolist() == pytest.approx([1, 1 / 3, 0, 1])


def test_jaccard_loss_is_one_minus_the_overlap():
    left, upper = halves()
    sure = 100 * (2 * left - 1)
    assert jaccard_loss(sure, left).item() == pytest.approx(0, abs=1e-6)
    assert jaccard_loss(sure, upper).item() == pytest.approx(1 - (16 + 1) / (48 + 1))
    both = jaccard_loss(torch.cat([sure, sure]), torch.cat([left, upper]))
    assert both.item() == pytest.approx((1 - 17 / 49) / 2), "the mean over images, however large their lesions"


def test_training_finds_phantoms(trained, phantom_store):
    folder, history = trained
    segmenter, settings = load_segmenter(folder / "checkpoint.pt")
    assert settings == SETTINGS and not segmenter.training
    assert history["checked_at"] == [40, 80, 120] and len(history["val_jaccard"]) == 3
    rows = phantom_store.rows("test", needs=["mask"])
    test = phantom_store.batch(rows, ("images", "masks"))
    assert val_jaccard(segmenter, test) > 0.6
    rows = phantom_store.rows("val", needs=["mask"])
    best = val_jaccard(segmenter, phantom_store.batch(rows, ("images", "masks")))
    assert best == pytest.approx(max(history["val_jaccard"])), "what is loaded is the best of the checks"


def test_masks_come_at_the_images_own_sizes(trained):
    segmenter, _ = load_segmenter(trained[0] / "checkpoint.pt")
    images = [np.full((h, w, 3), 120, np.uint8) for h, w in ((50, 70), (64, 64), (300, 200))]
    masks = segment(segmenter, images, batch_size=2)
    assert [m.shape for m in masks] == [(50, 70), (64, 64), (300, 200)]
    assert all(m.dtype == np.uint8 and set(np.unique(m)) <= {0, 1} for m in masks)
    assert segment(segmenter, images[:1], [(1000, 1400)])[0].shape == (1000, 1400)


def test_a_mask_does_not_depend_on_the_size_of_the_image(trained, phantom_store):
    segmenter, _ = load_segmenter(trained[0] / "checkpoint.pt")
    image = phantom_store.images[phantom_store.rows("test")[0]]
    large = image.repeat(4, axis=0).repeat(4, axis=1)
    small, large = segment(segmenter, [image, large])
    assert small.any() and np.mean(small == large[2::4, 2::4]) > 0.98


def test_mirror_images_are_averaged(trained):
    segmenter, _ = load_segmenter(trained[0] / "checkpoint.pt")
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    mirrored = probabilities(segmenter, image.flip(3)).flip(3)
    assert torch.allclose(probabilities(segmenter, image), mirrored, atol=1e-5)
    segmenter.tta = False
    assert torch.allclose(probabilities(segmenter, image), segmenter(image).sigmoid())


def test_training_ends_when_val_gets_no_better_and_stays_ended(phantom_store, tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    monkeypatch.setattr(module, "val_jaccard", lambda *_: next(scores))
    run = TrainConfig(10, 2, save_every=1)
    history = train_segmenter(phantom_store, SETTINGS, tmp_path, run, patience=2)
    assert history["checked_at"] == [1, 2, 3, 4] and history["val_jaccard"] == [0.5, 0.7, 0.6, 0.65]
    assert train_segmenter(phantom_store, SETTINGS, tmp_path, run, patience=2) == history
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 4 and saved["stopped"]


def test_resumed_is_uninterrupted(phantom_store, tmp_path):
    whole = TrainConfig(6, 4, save_every=2)
    train_segmenter(phantom_store, SETTINGS, tmp_path / "one", whole)
    draw = module.pair_batches(
        [ImageSource(phantom_store.images, phantom_store.rows("train", ["mask"]), phantom_store.masks)], 4, 0
    )
    torch.manual_seed(0)
    val = phantom_store.batch(np.sort(np.random.default_rng(0).permutation(phantom_store.rows("val", ["mask"]))))
    stopped = SegmenterTask(SETTINGS, 6, val, 8)
    module.train(stopped, draw, tmp_path / "two", TrainConfig(4, 4, save_every=2))  # as if killed after step 4
    train_segmenter(phantom_store, SETTINGS, tmp_path / "two", whole)
    one, two = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two"))
    assert (
        one["extra_state"]["val_jaccard"] == two["extra_state"]["val_jaccard"]
        and len(one["extra_state"]["checked_at"]) == 3
    )
    for a, b in (
        (one["networks"], two["networks"]),
        ({"": one["extra_state"]["best_state_dict"]}, {"": two["extra_state"]["best_state_dict"]}),
    ):
        for network, weights in a.items():
            assert all(torch.equal(value, b[network][name]) for name, value in weights.items())


def test_training_on_pairs_sees_all_parts_and_nothing_else(tmp_path, monkeypatch):
    black, white = (ImageSource(np.full((3, 64, 64, 3), v, np.uint8), np.arange(1, 3), np.full((3, 64, 64), v > 0, np.uint8))
                    for v in (0, 255))  # fmt: skip
    seen = []
    monkeypatch.setattr(module, "augment", lambda images, masks, *_: seen.append((images, masks)) or (images, masks))
    history = fit_segmenter([black, white], SETTINGS, tmp_path, TrainConfig(4, 8, log_every=1))
    images, masks = (torch.cat(part) for part in zip(*seen, strict=True))
    assert len(history["pixels"]) == 4 and set(images.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(images[:, :1] > 0, masks > 0) and 0.2 < masks.mean() < 0.8
    segmenter, _ = load_segmenter(tmp_path / "checkpoint.pt")
    assert segmenter.init == "random init" and segmenter.trained_on == []


def test_pictures_of_one_colour_have_no_lesion(trained):
    segmenter, _ = load_segmenter(trained[0] / "checkpoint.pt")
    skin = np.full((50, 60, 3), (200, 150, 140), np.uint8)
    assert not any(mask.any() for mask in segment(segmenter, [skin, np.zeros_like(skin), skin + 4]))


def test_settings_of_another_store_and_files_of_another_kind_are_refused(phantom_store, tmp_path):
    with pytest.raises(ValueError, match="the store has 64 px, the settings say 128"):
        train_segmenter(phantom_store, SegmenterConfig(128, pretrained=False), tmp_path, TrainConfig(1))
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(DataError, match=r"text.pt is not a checkpoint of a segmenter"):
        load_segmenter(tmp_path / "text.pt")


def test_training_may_begin_with_other_weights(trained, phantom_store, tmp_path):
    checkpoint = trained[0] / "checkpoint.pt"
    method = SegmenterTask(SETTINGS, 1, None, 1)
    method.init_from(checkpoint)
    begun, there = method.networks["segmenter"].state_dict(), load_segmenter(checkpoint)[0].state_dict()
    assert all(torch.equal(value, there[name]) for name, value in begun.items())
    gentle = replace(SETTINGS, rate=1e-5)
    assert method.extra_state["start"].endswith("checkpoint.pt")
    history = train_segmenter(phantom_store, gentle, tmp_path, TrainConfig(2, 4, save_every=1), init_from=checkpoint)
    assert min(history["val_jaccard"]) > 0.6, "what was learnt is still there"
    rows = phantom_store.rows("train", needs=["mask"])
    assert set(load_segmenter(tmp_path / "checkpoint.pt")[0].trained_on) == set(
        phantom_store.table["image_id"].iloc[rows]
    )
    with pytest.raises(ValueError, match="has width 128, the settings say 64"):
        SegmenterTask(replace(SETTINGS, width=64), 1, None, 1).init_from(checkpoint)


def test_a_start_that_saw_what_is_held_out_is_refused(trained, phantom_store, tmp_path):
    saved = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
    saved["extra_state"]["trained_on"] = list(phantom_store.table["image_id"])
    torch.save(saved, tmp_path / "other.pt")
    held_out = int((phantom_store.table["split"] != "train").sum())
    with pytest.raises(DataError, match=f"other.pt was trained on {held_out} pictures that are held out in phantoms"):
        train_segmenter(phantom_store, SETTINGS, tmp_path / "out", TrainConfig(1, 4), init_from=tmp_path / "other.pt")


def test_a_store_without_masks_says_so(phantom_store, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match="no training picture with a mask"):
        train_segmenter(phantom_store, SETTINGS, tmp_path, TrainConfig(1))


def test_the_plain_recipe_leaves_everything_out(phantom_store, tmp_path):
    settings = baseline_config(SegmenterConfig(64))
    history = train_segmenter(phantom_store, settings, tmp_path, TrainConfig(3, 4, ema_nimg=1, log_every=1))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    weights = saved["networks"]["segmenter"]
    apart = [
        (v - weights[k]).abs().max()
        for k, v in saved["extra_state"]["best_state_dict"].items()
        if v.is_floating_point()
    ]
    assert max(apart) < settings.lr / 8, "the average is little more than the last weights"
    assert settings.decoder_channels == 256 and not settings.pretrained and len(history["pixels"]) == 3


def test_masks_are_tidied():
    mask = np.zeros((60, 60), np.uint8)
    mask[5:35, 5:35] = 1  # 900 pixels
    true = mask.copy()
    mask[15:20, 15:20] = 0  # a hole
    mask[40:50, 40:50] = 1  # 100 pixels: a shadow
    assert np.array_equal(clean_mask(mask), true)
    mask[40:55, 40:55] = 1  # 225 pixels: a second piece
    true[40:55, 40:55] = 1
    assert np.array_equal(clean_mask(mask), true)
    assert not clean_mask(np.zeros((9, 9), np.uint8)).any() and clean_mask(np.ones((9, 9), np.uint8)).all()
