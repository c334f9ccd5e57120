import numpy as np
import pytest
import torch
from factories import ham10000, isic2016
from scipy.special import softmax

from helpers.data.batches import ImageSource
from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.data.store import StoreConfig, prepare
from helpers.metrics.classification import calibration_error
from helpers.models import classifier as module
from helpers.models.checkpoint import export_weights, training_data
from helpers.models.classifier import (
    Backbone,
    Classifier,
    ClassifierConfig,
    ClassifierTask,
    build_classifier,
    class_weights,
    fit_temperature,
    load_classifier,
    predict_logits,
    predict_proba,
    train_classifier,
    train_task,
)
from helpers.models.trainer import TrainConfig
from helpers.models.weights import IMAGENET_MEAN, IMAGENET_STD

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("arch", "num_features"),
    [("small_cnn", 256), ("resnet18", 512), ("mobilenet_v2", 1280), ("efficientnet_lite1", 1280)],
)
def test_backbone_any_arch_returns_features_of_last_linear(arch, num_features):
    torch.manual_seed(0)
    backbone = Backbone(arch, pretrained=False).eval()
    assert backbone.num_features == num_features and backbone.init == "random init"
    assert backbone(torch.rand(2, 3, 64, 64) * 2 - 1).shape == (2, num_features)


def test_backbone_mobilenet_v2_normalizes_image_and_averages_feature_map():
    torch.manual_seed(0)
    backbone = Backbone("mobilenet_v2", pretrained=False).eval()
    image = torch.rand(1, 3, 96, 96) * 2 - 1
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    feature_map = backbone.network.features(((image + 1) / 2 - mean) / std)
    assert torch.allclose(backbone(image), feature_map.mean(dim=(2, 3)), atol=1e-6)


@pytest.mark.parametrize("arch", ["vit_b_16", "resnet19", "inception_v3"])
def test_backbone_unknown_or_excluded_arch_raises(arch):
    with pytest.raises(ValueError, match=f"arch must be one of small_cnn, .*resnet18, .*got '{arch}'"):
        Backbone(arch)


@pytest.mark.parametrize("arch", ["small_cnn", "resnet18", "efficientnet_b0", "efficientnet_lite1"])
def test_build_classifier_any_arch_returns_logit_per_class(arch):
    classifier = build_classifier(arch, ["MEL", "NV"], 64, pretrained=False).eval()
    assert classifier(torch.zeros(1, 3, 64, 64)).shape == (1, 2) and classifier.backbone.init == "random init"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balance": "both"}, "balance must be one of sampling, loss, none, got 'both'"),
        ({"classes": ("MEL",)}, "at least 2 classes, got 1"),
    ],
)
def test_classifier_config_invalid_value_raises(changes, message):
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**{"size": 64, "classes": CLASSES} | changes)


# ---------------------------------------------------------------------------------------------------------- training


def test_train_classifier_phantoms_beats_chance(phantom_store, tmp_path):
    config = ClassifierConfig(64, CLASSES)
    train_config = TrainConfig(60, 16, save_every=20, log_every=20, ema_nimg=200)
    history = train_classifier(phantom_store, config, tmp_path, train_config)
    assert history["loss"][-1] < history["loss"][0] and history["accuracy"][-1] > 0.4
    assert history["checked_at"] == [20, 40, 60] and max(history["val_balanced_accuracy"]) > 1 / 7
    classifier, saved_config = load_classifier(tmp_path / "checkpoint.pt")
    assert saved_config == config and not classifier.training
    rows = phantom_store.rows("train")
    probs = predict_proba(classifier, phantom_store.images[rows])
    assert probs.shape == (len(rows), 7) and np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    correct = probs.argmax(axis=1) == phantom_store.labels[rows]
    assert np.mean([correct[phantom_store.labels[rows] == k].mean() for k in range(7)]) > 3 / 7
    assert classifier.trained_on == training_data(phantom_store, rows)["trained_on"]


def test_validate_without_improvement_keeps_first_best_and_stops(monkeypatch):
    labels = np.array([0, 1] * 4)
    correct, constant = 8.0 * np.eye(2)[labels], np.tile([8.0, 0.0], (8, 1))
    logits = iter([constant, correct, correct, constant])
    monkeypatch.setattr(ClassifierTask, "patience", 2)
    monkeypatch.setattr(module, "predict_logits", lambda classifier, images: next(logits))
    val = {"images": np.zeros((8, 64, 64, 3), np.uint8), "labels": labels}
    task = ClassifierTask(ClassifierConfig(64, ("a", "b")), 9, val=val)
    classifier, stops = task.networks["classifier"], []
    for step in range(4):
        torch.nn.init.constant_(classifier.head.bias, step)
        stops.append(task.validate({"classifier": classifier}, step))
    assert task.extra_state["val_balanced_accuracy"] == [0.5, 1.0, 1.0, 0.5] and stops == [False, False, False, True]
    assert task.extra_state["best_state_dict"]["head.bias"].tolist() == [1, 1]
    assert task.extra_state["temperature"] == fit_temperature(correct, labels)


def test_class_weights_common_and_absent_class_are_inverse_frequencies():
    labels = np.array([2, 0, 0, 0, 0, 0, 0, 1])  # row 0 is not in the source
    weights = class_weights([ImageSource(np.zeros((8, 4, 4, 3), np.uint8), np.arange(1, 8), labels=labels)], 3)
    assert weights.tolist() == pytest.approx([7 / 2 / 6, 7 / 2, 0])


def test_training_step_class_weights_keep_smoothed_optimum(monkeypatch):
    """The weights of `cross_entropy` itself would shift the prediction for a common class towards the rare one."""
    labels = np.array([0] * 99 + [1])
    source = ImageSource(np.zeros((100, 4, 4, 3), np.uint8), np.arange(100), labels=labels)
    task = ClassifierTask(ClassifierConfig(64, ("a", "b", "c"), balance="loss"), 1, class_weights([source], 3))
    logits = torch.zeros(1, 3, requires_grad=True)
    task.networks["classifier"] = lambda images: logits.expand(len(images), 3)
    monkeypatch.setattr(task.optimizers["classifier"], "step", lambda: None)
    batch = {"images": torch.zeros(1, 3, 64, 64), "labels": torch.tensor([0])}
    for _ in range(300):
        logits.grad = None
        task.training_step(batch, 0, lambda loss: loss.backward())
        logits.data -= 5 * logits.grad
    assert logits.softmax(dim=1)[0].tolist() == pytest.approx([0.933, 0.033, 0.033], abs=0.01)


def test_train_classifier_balance_sets_sampling_and_class_weights(phantom_store, tmp_path, monkeypatch):
    weights, labels = {}, {}

    def record(task, get_batch, out, train_config):
        weights[task.config.balance] = task.class_weights
        labels[task.config.balance] = torch.cat([get_batch(step, 0)["labels"] for step in range(20)])
        return {}

    monkeypatch.setattr(module, "train", record)
    for balance in ("sampling", "loss", "none"):
        train_classifier(phantom_store, ClassifierConfig(64, CLASSES, balance=balance), tmp_path, TrainConfig(1, 32))
    nv = {balance: (sampled == 1).float().mean().item() for balance, sampled in labels.items()}
    assert nv["sampling"] == pytest.approx(1 / 7, abs=0.06) and nv["loss"] == nv["none"] > 0.3
    assert weights["sampling"] is None and weights["none"] is None and weights["loss"].argmin() == 1


@pytest.mark.parametrize("balance", ["sampling", "loss"])
def test_train_classifier_class_with_one_or_no_image_has_finite_loss(balance, phantom_store, tmp_path, monkeypatch):
    labels = phantom_store.labels.copy()
    labels[phantom_store.rows("train", ["label"], classes=["DF"])[1:]] = -1
    labels[phantom_store.rows("train", ["label"], classes=["VASC"])] = -1
    monkeypatch.setattr(phantom_store, "labels", labels)
    config = ClassifierConfig(64, CLASSES, balance=balance)
    history = train_classifier(phantom_store, config, tmp_path, TrainConfig(2, 8, log_every=1))
    assert len(history["loss"]) == 2 and np.isfinite(history["loss"]).all()


def test_train_classifier_one_labeled_class_raises(phantom_store, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_store, "labels", np.where(phantom_store.labels == 1, 1, -1))
    with pytest.raises(DataError, match="phantoms needs training images of at least 2 classes, got 1"):
        train_classifier(phantom_store, ClassifierConfig(64, CLASSES), tmp_path, TrainConfig(1))


@pytest.mark.parametrize(
    ("size", "classes", "message"),
    [
        (128, CLASSES, "the store has size 64, the config 128"),
        (64, CLASSES[:2], "the store has classes .*, the config"),
    ],
)
def test_train_classifier_config_of_other_store_raises(size, classes, message, phantom_store, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_classifier(phantom_store, ClassifierConfig(size, classes), tmp_path, TrainConfig(1))


def test_train_classifier_without_classes_takes_those_of_the_store(phantom_store, tmp_path):
    train_classifier(phantom_store, ClassifierConfig(64), tmp_path, TrainConfig(1, 4))
    assert load_classifier(tmp_path / "checkpoint.pt")[1].classes == tuple(phantom_store.classes)


def classifier_of(folder, classes=CLASSES, arch="small_cnn", trained_on=()):
    """Checkpoint of an untrained classifier; `trained_on`: identities of its training images."""
    torch.manual_seed(1)
    task = ClassifierTask(ClassifierConfig(64, tuple(classes), arch, pretrained=False), 1)
    source = ImageSource(np.zeros((4, 64, 64, 3), np.uint8), np.arange(4), labels=np.arange(4) % 2)
    task.extra_state["trained_on"] = list(trained_on)
    train_task(task, [source], folder, TrainConfig(1, 4))
    return folder / "checkpoint.pt"


def store_of(root, tmp_path):
    return prepare(read(root), tmp_path / "stores", StoreConfig(64), progress=False)


def test_task_init_from_keeps_the_backbone_and_the_head_of_equal_classes(tmp_path):
    file = classifier_of(tmp_path)
    saved = load_classifier(file)[0].state_dict()
    for classes in (CLASSES, ("benign", "malignant")):
        task = ClassifierTask(ClassifierConfig(64, classes), 1)
        task.init_from(file)
        weights = task.networks["classifier"].state_dict()
        assert all(torch.equal(weights[name], saved[name]) for name in saved if name.startswith("backbone."))
        assert torch.equal(weights["head.weight"], saved["head.weight"]) == (classes == CLASSES)
    with pytest.raises(ValueError, match=r"checkpoint.pt has arch 'small_cnn', the config says 'resnet18'"):
        ClassifierTask(ClassifierConfig(64, CLASSES, "resnet18", pretrained=False), 1).init_from(file)


def test_train_classifier_init_from_records_file_and_training_images(tmp_path, capsys):
    store = store_of(isic2016(tmp_path / "isic2016"), tmp_path)
    file = classifier_of(tmp_path / "first", trained_on=["ISIC_0024306"])
    config = ClassifierConfig(64, ("benign", "malignant"))
    train_classifier(store, config, tmp_path / "second", TrainConfig(1, 4), init_from=file)
    assert "small_cnn starts from" in capsys.readouterr().out
    classifier, _ = load_classifier(tmp_path / "second" / "checkpoint.pt")
    assert classifier.backbone.init.endswith("first/checkpoint.pt")
    assert (
        classifier.trained_on
        == training_data(store, store.rows("train"), {"trained_on": ["ISIC_0024306"]})["trained_on"]
    )


def test_train_classifier_init_from_trained_on_a_test_image_of_isic_2016_raises(tmp_path):
    store = store_of(isic2016(tmp_path / "isic2016"), tmp_path)
    test_id = store.table["image_id"].iloc[store.rows("test")[0]]
    file = classifier_of(tmp_path / "first", trained_on=["ISIC_0024306", test_id])
    config = ClassifierConfig(64, ("benign", "malignant"))
    with pytest.raises(DataError, match=r"trained on the lesions of 1 images that are held out in isic2016"):
        train_classifier(store, config, tmp_path / "second", TrainConfig(1, 4), init_from=file)


def test_train_classifier_init_from_trained_on_another_image_of_a_test_lesion_raises(tmp_path):
    store = store_of(ham10000(tmp_path / "ham10000", 70), tmp_path)
    lesion = store.table["lesion_id"].iloc[store.rows("test")[0]]
    file = classifier_of(tmp_path / "first", trained_on=["ISIC_0000001", lesion])
    with pytest.raises(DataError, match=r"trained on the lesions of 2 images that are held out in ham10000"):
        train_classifier(store, ClassifierConfig(64), tmp_path / "second", TrainConfig(1, 4), init_from=file)


# --------------------------------------------------------------------------------------------------------- inference


def test_exported_efficientnet_lite_keeps_its_logits(phantom_store, tmp_path):
    config = ClassifierConfig(64, CLASSES, "efficientnet_lite1")
    train_classifier(phantom_store, config, tmp_path, TrainConfig(1, 4))
    classifier, _ = load_classifier(tmp_path / "checkpoint.pt")
    released, released_config = load_classifier(
        export_weights(tmp_path / "checkpoint.pt", tmp_path / "classifier.safetensors")
    )
    assert released_config == config and released.backbone.init == classifier.backbone.init == "ImageNet"
    images = phantom_store.images[:4]
    assert predict_logits(released, images) == pytest.approx(predict_logits(classifier, images), abs=0.05)


def test_load_classifier_other_file_raises(tmp_path):
    torch.save({"config": {"size": 64}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other.pt is not a checkpoint of this version"):
        load_classifier(tmp_path / "other.pt")


def test_fit_temperature_scaled_logits_returns_scale():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    probs = softmax(logits, axis=1)
    labels = (probs.cumsum(axis=1) > rng.uniform(size=(20_000, 1))).argmax(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.05)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.1)
    assert calibration_error(probs, labels) < 0.02 < calibration_error(softmax(3 * logits, axis=1), labels)


def test_predict_proba_temperature_divides_logits():
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(64, CLASSES)).eval()
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    sharp = predict_proba(classifier, images)
    classifier.temperature = 4.0
    soft = predict_proba(classifier, images)
    assert (sharp.argmax(axis=1) == soft.argmax(axis=1)).all() and (soft.max(axis=1) < sharp.max(axis=1)).all()
    assert soft == pytest.approx(softmax(predict_logits(classifier, images) / 4, axis=1))


def test_predict_logits_several_batches_equal_one(monkeypatch):
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(64, CLASSES)).eval()
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    logits = predict_logits(classifier, images)
    monkeypatch.setattr(module, "INFERENCE_BATCH_SIZE", 2)
    assert predict_logits(classifier, images) == pytest.approx(logits, abs=1e-5)
    assert predict_logits(classifier, images[:0]).shape == (0, 7)


def test_predict_proba_images_of_other_size_raises():
    classifier = Classifier(ClassifierConfig(64, CLASSES))
    with pytest.raises(ValueError, match=r"needs images of \(64, 64\) pixels, got \(32, 32\)"):
        predict_proba(classifier, np.zeros((2, 32, 32, 3), np.uint8))
