import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from helpers.__main__ import checkpoint_of, main
from helpers.config import get_config
from helpers.data.files import DataError
from helpers.models.cgan import CGANConfig, load_cgan, sample, train_cgan
from helpers.models.checkpoint import export_weights
from helpers.models.classifier import ClassifierConfig, load_classifier, predict_proba, train_classifier
from helpers.models.dcgan import DCGANConfig, load_dcgan, sample_dcgan, train_dcgan
from helpers.models.segmenter import SegmenterConfig, load_segmenter, segment, train_segmenter
from helpers.models.trainer import TrainConfig

RUN = TrainConfig(2, 4, save_every=1, log_every=1)


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """Apart by no more than half precision makes."""
    return np.abs(one.astype(float) - other.astype(float)).mean() < 0.5


def test_a_released_generator_draws_the_same_at_half_the_size(phantom_store, tmp_path):
    train_cgan(phantom_store, CGANConfig(64, tuple(phantom_store.classes), base_channels=8), tmp_path, RUN)
    file = export_weights(tmp_path / "checkpoint.pt", tmp_path / "cgan.safetensors")
    (one, settings), (other, loaded) = load_cgan(tmp_path / "checkpoint.pt"), load_cgan(file)
    assert settings == loaded and not list(tmp_path.glob(".*"))
    pictures = [sample(g, phantom_store.sketches[:4], [0, 1, 2, 3]) for g in (one, other)]
    assert near(*pictures) and not np.array_equal(pictures[0], sample(one, phantom_store.sketches[:4], [1, 2, 3, 4]))
    weights = sum(weight.numel() for weight in one.state_dict().values())
    assert file.stat().st_size < 2 * weights + 20_000
    with safe_open(file, "pt") as inside:
        names = list(inside.keys())
        assert {inside.get_tensor(name).dtype for name in names} == {torch.float16}
    assert export_weights(file, tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_classifier_segmenter_and_dcgan_too(phantom_store, tmp_path):
    classes = tuple(phantom_store.classes)
    train_classifier(phantom_store, ClassifierConfig(64, classes), tmp_path / "classifier", RUN)
    train_segmenter(phantom_store, SegmenterConfig(64, pretrained=False), tmp_path / "segmenter", RUN)
    train_dcgan(phantom_store, DCGANConfig(64, classes, base_channels=8), tmp_path / "dcgan", RUN)
    files = {m: export_weights(tmp_path / m / "checkpoint.pt", tmp_path / f"{m}.safetensors")
             for m in ("classifier", "segmenter", "dcgan")}  # fmt: skip
    images = np.array(phantom_store.images[:6])
    one, other = (load_classifier(p)[0] for p in (tmp_path / "classifier/checkpoint.pt", files["classifier"]))
    assert np.allclose(predict_proba(one, images), predict_proba(other, images), atol=0.01)
    assert one.temperature == other.temperature and one.trained_on == other.trained_on
    one, other = (load_segmenter(p)[0] for p in (tmp_path / "segmenter/checkpoint.pt", files["segmenter"]))
    agree = [np.mean(a == b) for a, b in zip(segment(one, images), segment(other, images), strict=True)]
    assert min(agree) > 0.95 and one.trained_on == other.trained_on
    one, other = (load_dcgan(p)[0] for p in (tmp_path / "dcgan/checkpoint.pt", files["dcgan"]))
    assert near(sample_dcgan(one, [0, 1]), sample_dcgan(other, [0, 1]))
    with pytest.raises(DataError, match="is not a checkpoint of a classifier"):
        load_classifier(files["segmenter"])


def test_a_damaged_or_foreign_file_is_told(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="is not a file of released weights"):
        load_cgan(tmp_path / "bad.safetensors")
    torch.save({"settings": {}}, tmp_path / "empty.pt")
    with pytest.raises(DataError, match="holds no weights that could be released"):
        export_weights(tmp_path / "empty.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_which_weights_the_shell_takes(phantom_store, tmp_path, capsys):
    """The named checkpoint, else the own one, else what is released."""
    from types import SimpleNamespace

    cfg = SimpleNamespace(outputs=tmp_path / "outputs", released=tmp_path / "released", dataset="isic2017")
    named, unnamed = SimpleNamespace(checkpoint=tmp_path / "named.pt"), SimpleNamespace(checkpoint=None)
    with pytest.raises(DataError, match="`python -m helpers train cgan` makes one"):
        checkpoint_of("cgan", unnamed, cfg)
    own = tmp_path / "outputs/cgan/checkpoint.pt"
    train_cgan(phantom_store, CGANConfig(64, tuple(phantom_store.classes), base_channels=8), own.parent, RUN)
    released = cfg.released / "cgan.safetensors"
    assert main(["release", "cgan", "--checkpoint", str(own), "--out", str(released)]) == 0
    assert "MB" in capsys.readouterr().out and checkpoint_of("cgan", unnamed, cfg) == own
    assert capsys.readouterr().out == ""
    phantoms = SimpleNamespace(**vars(cfg) | {"dataset": "phantoms"})
    assert checkpoint_of("cgan", unnamed, phantoms) == own
    assert "was taught by phantoms; for photographs: --checkpoint" in capsys.readouterr().out
    own.unlink()
    assert checkpoint_of("cgan", unnamed, cfg) == released
    with pytest.raises(DataError, match=r"there is no .*named"):
        checkpoint_of("cgan", named, cfg)
    assert get_config("cgan").released.name == "released"


# ----------------------------------------------------------------------------------------- what the repository ships

SHIPPED = get_config("cgan").released
SHIPPED_METHODS = ("cgan", "classifier", "dcgan", "segmenter")


def ring(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A round outline as a sketch in {0, 255}, and what is inside in {0, 1}."""
    inside = np.zeros((size, size), np.uint8)
    cv2.circle(inside, (size // 2, size // 2), size // 4, 1, cv2.FILLED)
    sketch = np.zeros_like(inside)
    cv2.circle(sketch, (size // 2, size // 2), size // 4, 255, 1)
    return sketch, inside


def test_shipped_files_are_small_and_each_has_a_card_that_says_what_it_is():
    size = {method: (SHIPPED / f"{method}.safetensors").stat().st_size for method in SHIPPED_METHODS}
    assert max(size["cgan"], size["dcgan"]) < 15e6 and size["segmenter"] + size["classifier"] < 10e6
    for method in SHIPPED_METHODS:
        with safe_open(SHIPPED / f"{method}.safetensors", "pt") as inside:
            settings = json.loads(inside.metadata()["about"])["config"]
        card = (SHIPPED / f"{method}.md").read_text()
        for told in ("ISIC 2017", f"{settings['size']} px", "CC-0", "Not for diagnosis", "## Limits"):
            assert told in card, f"{method}.md does not say {told!r}"


def test_a_fresh_clone_draws_segments_and_classifies_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    shutil.copytree(SHIPPED, tmp_path / "data/released")
    sketch, inside = ring(128)
    (tmp_path / "sketches").mkdir()
    cv2.imwrite(str(tmp_path / "sketches/ring.png"), 255 - sketch)
    about = ["--dataset", "phantoms"]
    assert main(["draw", *about, "--sketches", str(tmp_path / "sketches"), "--out", str(tmp_path / "drawn")]) == 0
    drawn = sorted((tmp_path / "drawn").glob("*/ring.png"))
    assert [path.parent.name for path in drawn] == ["MEL", "NV", "SK"]
    images = drawn[0].parent
    assert main(["segment", *about, "--images", str(images), "--out", str(tmp_path / "masks")]) == 0
    mask = cv2.imread(str(tmp_path / "masks/ring.png"), cv2.IMREAD_GRAYSCALE) > 127
    dice = 2 * (mask & (inside > 0)).sum() / (mask.sum() + inside.sum())
    assert dice > 0.8, "the lesion lies where it was drawn"
    assert main(["classify", *about, "--images", str(images), "--out", str(tmp_path / "p.csv")]) == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert table[["MEL", "SK", "NV"]].sum(axis=1).iloc[0] == pytest.approx(1, abs=1e-4)
    assert "not for diagnosis" in capsys.readouterr().out
