import json
import shutil
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from helpers.__main__ import main
from helpers.config import get_config
from helpers.data.files import DataError
from helpers.models.checkpoint import export_weights, pack_ids, read_checkpoint, unpack_ids
from helpers.models.classifier import ClassifierConfig, load_classifier, predict_proba, train_classifier
from helpers.models.gan import GANConfig, dcgan_config, load_gan, train_gan
from helpers.models.sampling import sample
from helpers.models.segmenter import SegmenterConfig, load_segmenter, segment, train_segmenter
from helpers.models.trainer import TrainConfig
from helpers.shell.base import find_checkpoint

ONE_STEP = TrainConfig(1, 4)


def nearly_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Mean difference of gray levels below what half precision causes."""
    return np.abs(a.astype(float) - b.astype(float)).mean() < 0.5


def test_export_weights_cgan_samples_nearly_equal_at_half_the_size(phantom_store, tmp_path):
    train_gan(phantom_store, GANConfig(64, tuple(phantom_store.classes), base_channels=8), tmp_path, ONE_STEP)
    file = export_weights(tmp_path / "checkpoint.pt", tmp_path / "cgan.safetensors")
    (generator, config), (released, released_config) = load_gan(tmp_path / "checkpoint.pt"), load_gan(file)
    assert config == released_config and not list(tmp_path.glob(".*"))
    sketches = phantom_store.sketches[:4]
    images = sample(generator, sketches, [0, 1, 2, 3])
    assert nearly_equal(images, sample(released, sketches, [0, 1, 2, 3]))
    assert not np.array_equal(images, sample(generator, sketches, [1, 2, 3, 4]))
    num_weights = sum(weight.numel() for weight in generator.state_dict().values())
    assert file.stat().st_size < 2 * num_weights + 20_000
    again = export_weights(file, tmp_path / "again.safetensors")
    assert again.read_bytes() == file.read_bytes()


def test_export_weights_other_methods_predict_nearly_equal(phantom_store, tmp_path):
    classes = tuple(phantom_store.classes)
    train_classifier(phantom_store, ClassifierConfig(64, classes), tmp_path / "classifier", ONE_STEP)
    train_segmenter(phantom_store, SegmenterConfig(64, pretrained=False), tmp_path / "segmenter", ONE_STEP)
    train_gan(phantom_store, dcgan_config(64, base_channels=8), tmp_path / "dcgan", ONE_STEP)

    def load_both(method: str, load) -> list:
        checkpoint = tmp_path / method / "checkpoint.pt"
        return [load(path)[0] for path in (checkpoint, export_weights(checkpoint, tmp_path / f"{method}.safetensors"))]

    images = np.array(phantom_store.images[:6])
    a, b = load_both("classifier", load_classifier)
    assert np.allclose(predict_proba(a, images), predict_proba(b, images), atol=0.01)
    assert a.temperature == b.temperature and a.trained_on == b.trained_on != []
    a, b = load_both("segmenter", load_segmenter)
    agreement = [np.mean(x == y) for x, y in zip(segment(a, images), segment(b, images), strict=True)]
    assert min(agreement) > 0.95 and a.trained_on == b.trained_on != []
    a, b = load_both("dcgan", partial(load_gan, sketch=False))
    assert nearly_equal(sample(a, None, [0, 1]), sample(b, None, [0, 1]))
    with pytest.raises(DataError, match="is not a checkpoint of a classifier"):
        load_classifier(tmp_path / "segmenter.safetensors")


def test_export_weights_without_or_with_infinite_weights_raises(tmp_path):
    contents = {
        "has no weights to export": {},
        "w is not finite in half precision": {"generator": {"w": torch.tensor([1e6])}},
    }
    for message, ema_models in contents.items():
        torch.save({"config": {}, "extra_state": {}, "ema_models": ema_models}, tmp_path / "checkpoint.pt")
        with pytest.raises(DataError, match=message):
            export_weights(tmp_path / "checkpoint.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_read_checkpoint_damaged_file_raises(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(DataError, match="is not a file of released weights"):
        read_checkpoint(tmp_path / "bad.safetensors")


def test_pack_ids_thousands_are_restored_from_less_text():
    ids = [f"ISIC_{24306 + 3 * k:07d}" for k in range(5_000)]
    assert unpack_ids(pack_ids(ids)) == ids and unpack_ids(pack_ids([])) == []
    assert len(pack_ids(ids)) < 0.25 * len("\n".join(ids))


def test_find_checkpoint_prefers_given_then_own_then_released(phantom_store, tmp_path, capsys):
    cfg = SimpleNamespace(outputs=tmp_path / "outputs", released=tmp_path / "released", dataset="isic2017")
    given = tmp_path / "given.pt"
    with pytest.raises(DataError, match="train one with `python -m helpers train cgan`"):
        find_checkpoint("cgan", None, cfg)
    own = tmp_path / "outputs/cgan/checkpoint.pt"
    train_gan(phantom_store, GANConfig(64, tuple(phantom_store.classes), base_channels=8), own.parent, ONE_STEP)
    released = cfg.released / "cgan.safetensors"
    assert main(["export", "cgan", "--checkpoint", str(own), "--out", str(released)]) == 0
    assert "MB" in capsys.readouterr().out and find_checkpoint("cgan", None, cfg) == own
    assert capsys.readouterr().out == ""
    phantoms = SimpleNamespace(**vars(cfg) | {"dataset": "phantoms"})
    assert find_checkpoint("cgan", None, phantoms) == own
    assert "was trained on synthetic phantoms; for real images use --checkpoint" in capsys.readouterr().out
    own.unlink()
    assert find_checkpoint("cgan", None, cfg) == released
    with pytest.raises(DataError, match=r"given.pt does not exist"):
        find_checkpoint("cgan", given, cfg)
    given.touch()
    assert find_checkpoint("cgan", given, cfg) == given


# ----------------------------------------------------------------------------------------------------- released files

RELEASED = get_config().released
METHODS = ("cgan", "classifier", "dcgan", "segmenter")


def circle_sketch_and_mask(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A circular outline as a sketch in {0, 255}, and its inside in {0, 1}."""
    center = (size // 2, size // 2)
    sketch, mask = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    cv2.circle(mask, center, size // 4, 1, cv2.FILLED)
    cv2.circle(sketch, center, size // 4, 255, 1)
    return sketch, mask


SECTIONS = [f"## {name}" for name in ("Use it", "Sample", "Figures", "Data and licence", "How trained", "Known faults")]


def test_released_files_are_small_and_have_a_model_card():
    sizes = {method: (RELEASED / f"{method}.safetensors").stat().st_size for method in METHODS}
    assert max(sizes["cgan"], sizes["dcgan"]) < 15e6 and sizes["segmenter"] + sizes["classifier"] < 11e6
    for method in METHODS:
        with safe_open(RELEASED / f"{method}.safetensors", "pt") as file:
            config = json.loads(file.metadata()["checkpoint"])["config"]
        card = (RELEASED / f"{method}.md").read_text()
        for required in (f"{config['size']} px", "Not for diagnosis", *SECTIONS):
            assert required in card, f"{method}.md lacks {required!r}"


def test_released_folder_stays_below_its_limit():
    assert sum(path.stat().st_size for path in RELEASED.iterdir()) < 24e6


@pytest.mark.parametrize("name", ["released/cgan", "training/cgan-ham10000", "training/cgan-isic2016"])
def test_generator_card_has_license_attribution_and_the_classes_of_its_config(name):
    folder = RELEASED.parent
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        header = json.loads(file.metadata()["checkpoint"])
    card = (folder / f"{name}.md").read_text()
    assert card.startswith(f"# {name.split('/')[1]}.safetensors\n") and "Not for diagnosis" in card
    if name.endswith("isic2016"):
        assert header["config"]["classes"] == ["benign", "malignant"] and "CC BY-NC 4.0" in card
        return
    assert header["config"]["classes"] == ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    assert header["config"]["artifacts"] and header["extra_state"]["trained_on"]
    for required in ("CC BY-NC 4.0", "Tschandl", "Rosendahl", "Kittler", "HAM10000"):
        assert required in header["license"] and required in card, required


def test_released_generator_samples_with_and_without_artifacts_differ():
    generator, config = load_gan(RELEASED / "cgan.safetensors")
    sketches = circle_sketch_and_mask(config.size)[0][None].repeat(7, 0)
    without, asked = (sample(generator, sketches, range(7), 0, artifacts=flags) for flags in (None, np.eye(7)))
    assert (np.abs(without.astype(float) - asked).mean(axis=(1, 2, 3)) > 1).all(), "every flag changes the image"
    assert len({image.tobytes() for image in without}) == 7


def test_main_released_weights_generate_segment_and_classify(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    shutil.copytree(RELEASED, tmp_path / "data/released")
    sketch, mask = circle_sketch_and_mask(128)
    (tmp_path / "sketches").mkdir()
    cv2.imwrite(str(tmp_path / "sketches/circle.png"), 255 - sketch)

    def run(command: str, source: str, out: str) -> None:
        option = "--sketches" if command == "generate" else "--images"
        arguments = ["--dataset", "phantoms", option, str(tmp_path / source), "--out", str(tmp_path / out)]
        assert main([command, *arguments]) == 0

    run("generate", "sketches", "generated")
    classes = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    generated = sorted((tmp_path / "generated").glob("*/circle.png"))
    assert [path.parent.name for path in generated] == sorted(classes)
    run("segment", "generated/MEL", "masks")
    segmented = cv2.imread(str(tmp_path / "masks/circle.png"), cv2.IMREAD_GRAYSCALE) > 127
    dice = 2 * (segmented & (mask > 0)).sum() / (segmented.sum() + mask.sum())
    assert dice > 0.8, "the lesion fills the sketch"
    run("classify", "generated/MEL", "classified.csv")
    table = pd.read_csv(tmp_path / "classified.csv")
    assert table[classes].sum(axis=1).iloc[0] == pytest.approx(1, abs=1e-4)
    assert "not for diagnosis" in capsys.readouterr().out
