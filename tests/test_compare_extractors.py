import numpy as np
import pandas as pd
import pytest
from factories import MeanPoolExtractor

from helpers.config import Config
from helpers.data.files import DataError
from helpers.experiments import extractors as module
from helpers.experiments.extractors import (
    above_floor,
    compare_extractors,
    summary_table,
    to_page,
    verdict,
)
from helpers.experiments.results import publish
from helpers.metrics.extractors import FeatureExtractor
from helpers.models.gan import GANConfig, train_gan
from helpers.models.trainer import TrainConfig


def kid_row(extractor: str, low: float, floor_high: float) -> dict:
    return {"extractor": extractor, "measure": "kid", "value": low + 0.1, "low": low, "floor_high": floor_high}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("a", 0.2, 0.1), ("b", 0.3, 0.1)], "All 2 extractors agree: KID lies above"),
        ([("a", 0.0, 0.1), ("b", 0.1, 0.1)], "All 2 extractors agree: KID does not lie above"),
        ([("a", 0.2, 0.1), ("b", 0.0, 0.1)], "The extractors disagree: by a KID lies above .* by b it does not"),
        ([("a", 0.2, 0.1)], "Only a was run: KID lies above"),
    ],
)
def test_verdict_follows_from_the_intervals(rows, sentence):
    table = pd.DataFrame([kid_row(*row) for row in rows] + [{"extractor": "c", "measure": "kid", "note": "missing"}])
    (text,) = verdict(table)
    assert pd.Series(text).str.match(sentence)[0], text
    assert "c" not in above_floor(table)


def test_compare_extractors_has_floors_and_a_reason_for_what_is_missing(phantoms, phantom_store, tmp_path, monkeypatch):
    def load(names: list[str]) -> tuple[list[FeatureExtractor], dict[str, str]]:
        (name,) = names
        found = {"mobilenet_v2": 1.0, "skin": 0.5}
        if name not in found:
            return [], {name: f"no weights of {name}"}
        return [FeatureExtractor(name, MeanPoolExtractor(found[name]))], {}

    monkeypatch.setattr(module, "load_extractors", load)
    config = GANConfig(64, tuple(phantom_store.classes), base_channels=8)
    train_gan(phantom_store, config, tmp_path / "cgan", TrainConfig(1, 4))
    folders = {name: tmp_path / name for name in ("stores", "features", "outputs", "released")}
    cfg, checkpoint = Config("smoke", "phantoms", phantoms, workers=1, **folders), tmp_path / "cgan/checkpoint.pt"
    table = compare_extractors(checkpoint, "val", cfg)
    assert table["extractor"].unique().tolist() == [
        "inception",
        "mobilenet_v2",
        "resnet18",
        "efficientnet_lite2",
        "skin",
    ]
    rows = table[table["extractor"] == "mobilenet_v2"].set_index("measure")
    assert list(rows.index) == ["kid", "fd", "precision", "recall"] and (rows["n"] == rows["n_real"]).all()
    kid = rows.loc["kid"]
    assert kid["low"] < kid["value"] < kid["high"] and kid["floor_low"] < kid["floor"] < kid["floor_high"]
    assert kid["value"] > kid["floor"], "one training step"
    assert rows["n"].iloc[0] == len(phantom_store.rows("val", ["sketch", "label"]))
    page = to_page(table, checkpoint, "phantoms")
    lines = page.table
    assert lines.loc["inception", "note"] == "not run: no weights of inception" and pd.isna(
        lines.loc["inception", "kid"]
    )
    assert lines.loc["mobilenet_v2", "fd / floor"] == f"{rows.loc['fd', 'value'] / rows.loc['fd', 'floor']:.2f}"
    assert page.verdict == verdict(table) and set(above_floor(table)) == {"mobilenet_v2", "skin"}
    (csv, md) = publish("extractors-phantoms-64", table, page, tmp_path)
    text = md.read_text(encoding="utf-8")
    assert "converted from a quantized release" in text and "held-out split that is not evaluated" in text
    assert len(pd.read_csv(csv)) == 2 * 4 + 3 and not np.isinf(table["value"].astype(float)).any()


def test_compare_extractors_of_another_file_raises(phantoms, tmp_path):
    folders = {name: tmp_path / name for name in ("stores", "features", "outputs", "released")}
    with pytest.raises(DataError, match=r"none\.pt"):
        compare_extractors(tmp_path / "none.pt", "val", Config("smoke", "phantoms", phantoms, workers=1, **folders))


def test_summary_table_keeps_the_order_of_extractors():
    rows = [{"extractor": name, "measure": "kid", "note": "absent"} for name in ("z", "a")]
    assert list(summary_table(pd.DataFrame(rows).reindex(columns=["extractor", "measure", "value", "note"])).index) == [
        "z",
        "a",
    ]
