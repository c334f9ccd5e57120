import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from helpers.config import Config
from helpers.data.files import DataError
from helpers.experiments import blind_test as module
from helpers.experiments.blind_test import write_blind_test


@pytest.fixture
def cfg(phantoms, phantom_store, tmp_path, monkeypatch) -> Config:
    """Config of the small sample; "generated" images are black."""

    def generate(batch, seed):
        return np.zeros_like(batch["images"])

    config = SimpleNamespace(size=64, style="contour", classes=tuple(phantom_store.classes))
    monkeypatch.setattr(module, "load_generator", lambda checkpoint: (generate, config))
    folders = {name: tmp_path / name for name in ("outputs", "stores", "released", "features")}
    return Config("smoke", "phantoms", phantoms, workers=1, **folders)


def test_write_blind_test_key_names_the_generated_half(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NUM_IMAGES", 8)
    generated = write_blind_test("checkpoint.pt", tmp_path / "blind", 0, cfg)
    files = sorted((tmp_path / "blind" / "images").iterdir())
    assert [file.name for file in files] == [f"{k:02d}.png" for k in range(8)]
    images = [cv2.imread(str(file)) for file in files]
    assert {image.shape for image in images} == {(384, 384, 3)}
    assert [k for k, image in enumerate(images) if not image.any()] == generated and len(generated) == 4
    assert json.loads((tmp_path / "blind" / "key.json").read_text()) == {"generated": generated}
    assert write_blind_test("checkpoint.pt", tmp_path / "other", 1, cfg) != generated, "another order"


def test_write_blind_test_with_too_few_images_raises(cfg, tmp_path):
    with pytest.raises(DataError, match="needs 32 val images with sketch and label, got 14"):
        write_blind_test("checkpoint.pt", tmp_path, 0, cfg)
