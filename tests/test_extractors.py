import numpy as np
import pytest
import torch
from factories import random_inception
from PIL import Image
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as published
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from helpers.data.files import DataError
from helpers.metrics.extractors import (
    FeatureExtractor,
    ImageSet,
    Inception,
    Resized,
    available_extractors,
    extract_features,
    load_extractor,
    load_extractor_or_random,
    optimize_for_inference,
    tensorflow_resizing,
)
from helpers.models.classifier import Backbone, ClassifierConfig, torchvision_network, train_classifier
from helpers.models.trainer import TrainConfig


class Pooled(nn.Module):
    """A judge whose features are known: the mean colours of a raster of 4 x 4; it counts the pictures it was shown."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain, self.seen = nn.Parameter(torch.tensor(gain)), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.gain * nn.functional.adaptive_avg_pool2d(x / 255, 4).flatten(1)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(20):
        place = tmp_path / "set" / ("MEL" if k < 8 else "NV")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{k:02d}.png")
    return tmp_path / "set"


def test_class_folders_are_read_and_files_equal_arrays(folder):
    pictures = ImageSet.from_folder(folder)
    assert len(pictures) == 20 and pictures.class_names == ["MEL"] * 8 + ["NV"] * 12 and pictures.image_size == 32
    found = extract_features(pictures, FeatureExtractor("pooled", Pooled()), 32)
    images = np.stack([np.asarray(Image.open(path)) for path in pictures.items])
    array = extract_features(ImageSet.from_array(images), FeatureExtractor("pooled", Pooled()), 32)
    assert np.array_equal(found.values, array.values) and np.array_equal(found.pixel_hashes, array.pixel_hashes)
    cells = images.reshape(20, 4, 8, 4, 8, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(20, -1)
    assert np.allclose(found.values, cells / 255, atol=1e-5)
    assert len(found.of_class("MEL")) == 8 and len(found.of_class("MEL", without=True)) == 12


def test_the_cache_goes_by_content_and_weights_never_by_name(folder, tmp_path):
    first, cache = Pooled(), tmp_path / "cache"
    one = extract_features(ImageSet.from_folder(folder), FeatureExtractor("pooled", first), 32, cache)
    again = extract_features(
        ImageSet.from_folder(folder.rename(tmp_path / "renamed")), FeatureExtractor("other", first), 32, cache
    )
    assert first.seen == 20 and np.array_equal(one.values, again.values) and one.key == again.key
    other = Pooled(2.0)
    double = extract_features(ImageSet.from_folder(tmp_path / "renamed"), FeatureExtractor("pooled", other), 32, cache)
    assert other.seen == 20 and np.allclose(double.values, 2 * one.values)
    changed = tmp_path / "renamed" / "MEL" / "00.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(changed)
    assert (
        extract_features(ImageSet.from_folder(tmp_path / "renamed"), FeatureExtractor("pooled", first), 32, cache)
        .values[0]
        .max()
        == 0
    )
    assert first.seen == 40 and len(list(cache.glob("*.npz"))) == 3
    extract_features(ImageSet.from_folder(tmp_path / "renamed"), FeatureExtractor("pooled", first), 16, cache)
    assert first.seen == 60, "another size is another question"


def test_damaged_files_are_named_and_many_of_them_stop(folder):
    whole = extract_features(ImageSet.from_folder(folder), FeatureExtractor("pooled", Pooled()), 32)
    content = (folder / "NV" / "10.png").read_bytes()
    (folder / "NV" / "10.png").write_bytes(content[: len(content) // 2])
    (folder / "NV" / "11.png").write_bytes(b"no picture")
    pictures = ImageSet.from_folder(folder)
    assert len(pictures) == 19 and "11.png" in pictures.problems[0]
    found = extract_features(pictures, FeatureExtractor("pooled", Pooled()), 32)
    assert len(found) == 18 and len(found.class_names) == 18 and any("10.png" in p for p in pictures.problems)
    assert np.array_equal(found.values, np.delete(whole.values, [10, 11], axis=0))
    for k in range(12, 17):
        (folder / "NV" / f"{k}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="6 of 20 pictures of set are damaged"):
        ImageSet.from_folder(folder)


def test_mixed_sizes_and_grey_pictures_are_told(folder):
    Image.fromarray(np.full((40, 50), 100, np.uint8)).save(folder / "MEL" / "00.png")
    pictures = ImageSet.from_folder(folder)
    assert pictures.image_size == 32
    assert [p for p in pictures.problems if "32 to 40 pixels" in p] and [p for p in pictures.problems if "1 of 20" in p]
    assert np.allclose(extract_features(pictures, FeatureExtractor("pooled", Pooled()), 32).values[0], 100 / 255)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        ImageSet.from_folder(tmp_path / "nowhere")
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        ImageSet.from_folder(tmp_path)
    with pytest.raises(ValueError, match="float64"):
        ImageSet.from_array(np.zeros((3, 8, 8, 3)))
    with pytest.raises(ValueError, match="3 pictures, 2 class names"):
        ImageSet.from_array(np.zeros((3, 8, 8, 3), np.uint8), ["NV", "NV"])


def test_a_picture_beside_class_folders_is_asked_about(folder):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "grid.png")
    with pytest.raises(DataError, match=r"holds pictures, grid\.png the first, and folders of pictures"):
        ImageSet.from_folder(folder)


def test_blurred_pictures_keep_their_colour_and_lose_their_detail(folder):
    pictures = ImageSet.from_folder(folder)
    soft = pictures.blurred(np.array([3, 5]), blur=1 / 8)
    assert len(soft) == 2 and soft.key != pictures.blurred(np.array([3, 5])).key
    sharp, blurred = pictures.crop(3, 32).astype(float), soft.crop(0, 32).astype(float)
    assert blurred.mean() == pytest.approx(sharp.mean(), abs=1.5) and blurred.std() < sharp.std() / 4


def test_inception_is_that_of_torch_fidelity():
    theirs = random_inception()
    pictures = torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat(theirs(pictures), dim=1)
    ours = optimize_for_inference(Inception(theirs), 299)
    found = FeatureExtractor("inception", ours, 1008)(pictures.permute(0, 2, 3, 1).numpy())
    assert found.shape == (2, 3056)
    assert np.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules()), "all folded"


def test_resizing_as_tensorflow_did():
    x = torch.rand(1, 2, 37, 50)
    wanted = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    found = tensorflow_resizing(37, 299) @ x @ tensorflow_resizing(50, 299).T
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["small", "resnet18", "mobilenet_v2", "densenet121"])
def test_folding_changes_nothing_but_speed(name):
    torch.manual_seed(0)
    backbone = Backbone(name, pretrained=False)
    for part in backbone.modules():  # as after training: fresh normalisation would hide a fault
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2)
    network = Resized(backbone, 64)
    x = 255 * torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        wanted = network.eval()(x)
        found = optimize_for_inference(network, 64)(x)
    assert torch.allclose(wanted, found, rtol=1e-3, atol=1e-3 * float(wanted.abs().mean()))


def test_a_network_that_cannot_be_folded_is_left_alone():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.uniform_(self.norm.running_var, 2, 3)

        def forward(self, x):
            return self.conv(self.norm(x)).mean(dim=(2, 3))

    network = Backwards().eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(optimize_for_inference(network, 8)(x), network(x), atol=1e-5)


def test_a_judge_without_weights_says_so(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no connection")

    monkeypatch.delenv("LESION_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr(published, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DataError, match="no FID and no IS"):
        load_extractor("inception")
    with pytest.raises(DataError, match=r"no resnet18-imagenet\.pth"):
        load_extractor("resnet18")
    found, missing = available_extractors(tmp_path / "checkpoint.pt")
    assert found == [] and len(missing) == 3 and "Inception" in missing[0] and "mobilenet_v2" in missing[1]


def test_weights_from_a_file(tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = torchvision_network("resnet18").state_dict()
    torch.save(weights, tmp_path / "mine.pth")
    assert load_extractor(f"resnet18={tmp_path / 'mine.pth'}").name == "resnet18"
    with pytest.raises(DataError, match="not those of mobilenet_v2"):
        load_extractor(f"mobilenet_v2={tmp_path / 'mine.pth'}")
    with pytest.raises(DataError, match="another file than the official one"):
        load_extractor(f"inception={tmp_path / 'mine.pth'}")
    monkeypatch.setenv("LESION_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "mobilenet_v2-imagenet.pth").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"mobilenet_v2-imagenet\.pth is missing or holds no weights"):
        load_extractor("mobilenet_v2")
    with pytest.raises(DataError, match="is missing or holds no weights"):
        load_extractor(f"resnet18={tmp_path / 'nowhere.pth'}")


def test_our_classifier_judges(phantom_store, tmp_path):
    settings = ClassifierConfig(64, tuple(phantom_store.classes))
    train_classifier(phantom_store, settings, tmp_path, TrainConfig(2, 4))
    found = load_extractor(str(tmp_path / "checkpoint.pt"))
    assert found.name == "classifier" and found(phantom_store.images[:3].copy()).shape == (3, 256)


def test_keys_of_judges_follow_their_weights():
    assert (
        FeatureExtractor("a", Pooled()).key
        == FeatureExtractor("b", Pooled()).key
        != FeatureExtractor("a", Pooled(1.5)).key
    )


def test_a_network_without_weights_judges_under_its_true_name(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.models.classifier.imagenet_weights", lambda *_: None)
    assert load_extractor_or_random("resnet18").name == "resnet18, random init"
    weights = torchvision_network("resnet18").state_dict()
    monkeypatch.setattr("helpers.models.classifier.imagenet_weights", lambda *_: weights)
    assert load_extractor_or_random("resnet18").name == "resnet18"
