import numpy as np
import pytest
import torch
from scipy.special import softmax

from helpers.data.files import DataError
from helpers.data.store import ImageSource
from helpers.metrics.classification import calibration_error
from helpers.models import classifier as module
from helpers.models.classifier import (
    Backbone,
    Classifier,
    ClassifierConfig,
    ClassifierTask,
    build_classifier,
    class_weights,
    fit_temperature,
    imagenet_weights,
    load_classifier,
    predict_proba,
    train_classifier,
)
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@pytest.mark.parametrize(("name", "width"), [("small", 256), ("resnet18", 512), ("mobilenet_v2", 1280)])
def test_a_backbone_gives_what_the_last_layer_would_see(name, width):
    torch.manual_seed(0)
    backbone = Backbone(name, pretrained=False).eval()
    assert backbone.num_features == width and backbone.init == "random init"
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    features = backbone(image)
    assert features.shape == (2, width)
    whole = Classifier(ClassifierConfig(64, CLASSES, name), pretrained=False)
    assert whole(image).shape == (2, 7)


def test_features_of_torchvision_networks_are_the_pooled_maps():
    torch.manual_seed(0)
    backbone = Backbone("mobilenet_v2", pretrained=False).eval()
    image = torch.rand(1, 3, 96, 96) * 2 - 1
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (module.IMAGENET_MEAN, module.IMAGENET_STD))
    maps = backbone.network.features(((image + 1) / 2 - mean) / deviation)
    assert torch.allclose(backbone(image), maps.mean(dim=(2, 3)), atol=1e-6)


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="no network 'vit_b_16'"):
        Backbone("vit_b_16")
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
    assert imagenet_weights("resnet18") is None and Backbone("resnet18").init == "random init" and len(tried) == 2
    published = module.torchvision_network("resnet18").state_dict()
    torch.save(published, tmp_path / "resnet18-f37072fd.pth")
    assert torch.equal(imagenet_weights("resnet18")["conv1.weight"], published["conv1.weight"])
    torch.save(published | {"conv1.weight": published["conv1.weight"] + 1}, tmp_path / "resnet18-imagenet.pth")
    backbone = Backbone("resnet18")
    assert backbone.init == "ImageNet" and len(tried) == 2
    assert torch.equal(backbone.network.conv1.weight, published["conv1.weight"] + 1), "our own name goes first"


def test_any_network_is_built_by_its_name():
    for name in ("small", "resnet18", "mobilenet_v2", "efficientnet_b0"):
        network = build_classifier(name, ["MEL", "NV"], 64, pretrained=False).eval()
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 2) and network.backbone.init == "random init"


def test_it_learns_to_tell_phantoms_apart(phantom_store, tmp_path, capsys):
    settings = ClassifierConfig(64, CLASSES)
    run = TrainConfig(60, 16, save_every=20, log_every=20, ema_nimg=200)
    history = train_classifier(phantom_store, settings, tmp_path, run)
    assert history["loss"][-1] < history["loss"][0] and history["accuracy"][-1] > 0.4
    assert history["checked_at"] == [20, 40, 60] and max(history["val_balanced_accuracy"]) <= 1
    classifier, found = load_classifier(tmp_path / "checkpoint.pt")
    assert found == settings and not classifier.training
    rows = phantom_store.rows("train")
    probabilities = predict_proba(classifier, phantom_store.images[rows])
    assert probabilities.shape == (len(rows), 7) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    right = probabilities.argmax(axis=1) == phantom_store.labels[rows]
    assert np.mean([right[phantom_store.labels[rows] == k].mean() for k in range(7)]) > 2 / 7
    table = phantom_store.table.iloc[rows]
    assert {*table["image_id"], *table["lesion_id"].dropna()} == set(classifier.trained_on)


def test_the_best_on_val_is_kept_and_training_ends_when_it_gets_no_better(tmp_path):
    labels = np.array([0, 1] * 4)
    dark_and_light = np.where(labels, 255, 0).astype(np.uint8)[:, None, None, None] * np.ones((8, 64, 64, 3), np.uint8)
    method = ClassifierTask(
        ClassifierConfig(64, ("a", "b")), 9, val={"images": dark_and_light, "labels": labels}, patience=2
    )
    network = method.networks["classifier"].eval()
    answers = iter([[1, 0], [0, 1], [0, 1], [1, 0]])

    def answer_by_light(image):
        return torch.tensor(turn) * (image.mean(dim=(1, 2, 3), keepdim=False)[:, None] > 0) + torch.tensor([0.1, 0.0])

    ended = []
    for number in range(4):
        turn = [8.0 * side for side in next(answers)]
        network.forward = answer_by_light
        torch.nn.init.constant_(network.head.bias, number)
        ended.append(method.on_checkpoint({"classifier": network}, tmp_path, number))
    assert method.extra_state["val_balanced_accuracy"] == [0.5, 1.0, 1.0, 0.5] and ended == [False, False, False, True]
    assert method.extra_state["best_state_dict"]["head.bias"].tolist() == [1, 1], "the first of the best"


def test_temperature_is_found_again():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) > rng.uniform(size=(20_000, 1))).argmax(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.05)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.1), "three times too sure"
    assert calibration_error(softmax(logits, axis=1), labels) < 0.02 < calibration_error(softmax(3 * logits, 1), labels)


def test_probabilities_are_those_of_the_temperature():
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(64, CLASSES)).eval()
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    sharp = predict_proba(classifier, images)
    classifier.temperature = 4.0
    soft = predict_proba(classifier, images)
    assert (sharp.argmax(axis=1) == soft.argmax(axis=1)).all() and (soft.max(axis=1) < sharp.max(axis=1)).all()
    assert soft == pytest.approx(softmax(module.predict_logits(classifier, images) / 4, axis=1))


def test_weights_make_rare_classes_count_alike():
    part = ImageSource(np.zeros((8, 4, 4, 3), np.uint8), np.arange(1, 8), labels=np.array([2, 0, 0, 0, 0, 0, 0, 1]))
    weights = class_weights([part], 3)
    assert weights.tolist() == pytest.approx([7 / 2 / 6, 7 / 2, 0]) and 6 * weights[0] == pytest.approx(
        weights[1].item()
    )


def test_weights_pull_every_picture_to_its_own_class(monkeypatch):
    """With smoothing, PyTorch's own weights would pull a sure picture of the common class to the rare ones."""
    common_and_rare = torch.tensor([0] * 99 + [1])
    settings = ClassifierConfig(64, ("a", "b", "c"), balance="loss")
    part = ImageSource(np.zeros((100, 4, 4, 3), np.uint8), np.arange(100), labels=common_and_rare.numpy())
    method = ClassifierTask(settings, 1, class_weights([part], 3))
    logits = torch.zeros(1, 3, requires_grad=True)
    method.networks["classifier"] = lambda images: logits.expand(len(images), 3)
    monkeypatch.setattr(method.optimizers["classifier"], "step", lambda: None)
    batch = {"images": torch.zeros(1, 3, 64, 64), "labels": torch.tensor([0])}
    for _ in range(300):
        logits.grad = None
        method.training_step(batch, 0, lambda loss: loss.backward())
        logits.data -= 5 * logits.grad
    assert logits.softmax(dim=1)[0].tolist() == pytest.approx([0.933, 0.033, 0.033], abs=0.01)


def test_balance_says_how_rare_classes_are_treated(phantom_store, tmp_path, monkeypatch):
    seen = {}

    def remember(method, draw, out, run):
        seen[method.s.balance] = (method.class_weights, torch.cat([draw(k, 0)["labels"] for k in range(20)]))
        return {}

    monkeypatch.setattr(module, "train", remember)
    for balance in ("sampling", "loss", "none"):
        train_classifier(phantom_store, ClassifierConfig(64, CLASSES, balance=balance), tmp_path, TrainConfig(1, 32))
    nv = {balance: (labels == 1).float().mean().item() for balance, (_, labels) in seen.items()}
    assert nv["sampling"] == pytest.approx(1 / 7, abs=0.06) and nv["loss"] == nv["none"] > 0.3
    assert seen["sampling"][0] is None and seen["none"][0] is None and seen["loss"][0].argmin() == 1
    with pytest.raises(ValueError, match="balance 'both' is not one of sampling, loss, none"):
        ClassifierConfig(64, CLASSES, balance="both")


def test_a_class_with_one_picture_or_none_is_no_obstacle(phantom_store, tmp_path, monkeypatch):
    labels = phantom_store.labels.copy()
    df = phantom_store.rows("train", ["label"], classes=["DF"])
    labels[df[1:]] = -1
    labels[phantom_store.rows("train", ["label"], classes=["VASC"])] = -1
    monkeypatch.setattr(phantom_store, "labels", labels)
    for balance in ("sampling", "loss"):
        settings = ClassifierConfig(64, CLASSES, balance=balance)
        history = train_classifier(phantom_store, settings, tmp_path / balance, TrainConfig(2, 8, log_every=1))
        assert np.isfinite(history["loss"]).all()
    monkeypatch.setattr(phantom_store, "labels", np.where(labels == 1, 1, -1))
    with pytest.raises(DataError, match="fewer than two classes"):
        train_classifier(phantom_store, ClassifierConfig(64, CLASSES), tmp_path, TrainConfig(1))


def test_images_of_another_size_are_refused():
    classifier = Classifier(ClassifierConfig(64, CLASSES))
    with pytest.raises(ValueError, match=r"\(32, 32\) pixels, the classifier was trained on 64"):
        predict_proba(classifier, np.zeros((2, 32, 32, 3), np.uint8))


def test_old_names_of_densenets_are_understood():
    weights = module.torchvision_network("densenet121").state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor for name, tensor in weights.items()}
    assert list(old) != list(weights) and list(module.fix_densenet_keys(old)) == list(weights)


def test_settings_of_another_store_and_other_files_are_refused(phantom_store, tmp_path):
    with pytest.raises(ValueError, match="the store has 64 px"):
        train_classifier(phantom_store, ClassifierConfig(128, CLASSES), tmp_path, TrainConfig(1))
    torch.save({"settings": {"size": 64}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other.pt is not a checkpoint of a classifier"):
        load_classifier(tmp_path / "other.pt")
