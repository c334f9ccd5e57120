import numpy as np
import pytest
import torch

from helpers.data.files import DataError
from helpers.models import classifier as module
from helpers.models.classifier import (
    Backbone,
    Classifier,
    ClassifierSettings,
    classify,
    imagenet_weights,
    load_classifier,
    train_classifier,
)
from helpers.models.training import Run

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@pytest.mark.parametrize(("name", "width"), [("small", 256), ("resnet18", 512), ("mobilenet_v2", 1280)])
def test_a_backbone_gives_what_the_last_layer_would_see(name, width):
    torch.manual_seed(0)
    backbone = Backbone(name, pretrained=False).eval()
    assert backbone.width == width and backbone.start == "random init"
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    features = backbone(image)
    assert features.shape == (2, width)
    whole = Classifier(ClassifierSettings(64, CLASSES, name), pretrained=False)
    assert whole(image).shape == (2, 7)


def test_features_of_torchvision_networks_are_the_pooled_maps():
    torch.manual_seed(0)
    backbone = Backbone("mobilenet_v2", pretrained=False).eval()
    image = torch.rand(1, 3, 96, 96) * 2 - 1
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (module.MEAN, module.DEVIATION))
    maps = backbone.network.features(((image + 1) / 2 - mean) / deviation)
    assert torch.allclose(backbone(image), maps.mean(dim=(2, 3)), atol=1e-6)


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match=r"no network 'resnet19': there are small, .*resnet18"):
        Backbone("resnet19")
    with pytest.raises(ValueError, match="no network 'inception_v3'"):
        Backbone("inception_v3")


def test_weights_come_from_the_folder_then_from_the_internet_then_not_at_all(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv("LESION_WEIGHTS_DIR", str(tmp_path))
    tried = []

    def offline(url, **_):
        tried.append(url)
        raise OSError("no connection")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    assert imagenet_weights("resnet18") is None and Backbone("resnet18").start == "random init" and len(tried) == 2
    published = module.torchvision_network("resnet18").state_dict()
    torch.save(published, tmp_path / "resnet18-f37072fd.pth")
    assert torch.equal(imagenet_weights("resnet18")["conv1.weight"], published["conv1.weight"])
    torch.save(published | {"conv1.weight": published["conv1.weight"] + 1}, tmp_path / "resnet18-imagenet.pth")
    backbone = Backbone("resnet18")
    assert backbone.start == "ImageNet" and len(tried) == 2
    assert torch.equal(backbone.network.conv1.weight, published["conv1.weight"] + 1), "our own name goes first"


def test_it_learns_to_tell_phantoms_apart(phantom_store, tmp_path):
    settings = ClassifierSettings(64, CLASSES)
    history = train_classifier(phantom_store, settings, tmp_path, Run(60, 16, report_every=20, average_over=200))
    assert history["loss"][-1] < history["loss"][0] and history["accuracy"][-1] > 0.4
    classifier, found = load_classifier(tmp_path / "checkpoint.pt")
    assert found == settings and not classifier.training
    rows = phantom_store.rows("train")
    probabilities = classify(classifier, phantom_store.images[rows])
    assert probabilities.shape == (len(rows), 7) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    right = probabilities.argmax(axis=1) == phantom_store.labels[rows]
    assert np.mean([right[phantom_store.labels[rows] == k].mean() for k in range(7)]) > 2 / 7


def test_images_of_another_size_are_refused():
    classifier = Classifier(ClassifierSettings(64, CLASSES))
    with pytest.raises(ValueError, match=r"\(32, 32\) pixels, the classifier was trained on 64"):
        classify(classifier, np.zeros((2, 32, 32, 3), np.uint8))


def test_old_names_of_densenets_are_understood():
    weights = module.torchvision_network("densenet121").state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor for name, tensor in weights.items()}
    assert list(old) != list(weights) and list(module.renamed(old)) == list(weights)


def test_settings_of_another_store_and_other_files_are_refused(phantom_store, tmp_path):
    with pytest.raises(ValueError, match="the store has 64 px"):
        train_classifier(phantom_store, ClassifierSettings(128, CLASSES), tmp_path, Run(1))
    torch.save({"settings": {"size": 64}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other.pt is not a checkpoint of a classifier"):
        load_classifier(tmp_path / "other.pt")
