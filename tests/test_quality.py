import json

import cv2
import numpy as np
import pytest
import torch
from test_extractors import Pooled

from helpers.data.files import DataError
from helpers.metrics.extractors import (
    FeatureExtractor,
    Features,
    ImageSet,
    Resized,
    extract_features,
    optimize_for_inference,
)
from helpers.metrics.quality import (
    compute_metrics,
    frechet,
    inception_score,
    kid,
    kid_interval,
    mean_and_covariance,
    precision_recall,
    quality,
)
from helpers.models.classifier import Backbone


def normal(n: int, mean: float = 0.0, deviation: float = 1.0, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, deviation, (n, width)).astype(np.float32)


@pytest.fixture(scope="module")
def untrained() -> FeatureExtractor:
    torch.manual_seed(0)
    return FeatureExtractor(
        "untrained", optimize_for_inference(Resized(Backbone("resnet18", pretrained=False), 64), 64)
    )


def test_frechet_distance_of_normal_distributions_is_the_closed_form():
    one, other = normal(40_000, width=6), normal(40_000, mean=0.5, deviation=2.0, width=6, seed=1)
    assert frechet(one, other) == pytest.approx(6 * 0.25 + 6 * (2 - 1) ** 2, rel=0.02)
    assert frechet(one, one) == pytest.approx(0, abs=1e-4)


def test_mean_and_covariance_in_blocks():
    values = normal(1000, mean=3)
    mean, covariance = mean_and_covariance(values, block=64)
    assert np.allclose(mean, values.mean(axis=0)) and np.allclose(covariance, np.cov(values, rowvar=False))


def test_kid_is_about_zero_for_halves_of_one_set_and_not_for_another():
    for n, m in ((200, 200), (150, 300), (1200, 1300)):
        assert abs(kid(normal(n), normal(m, seed=1))) < 0.02
        assert kid(normal(n), normal(m, mean=0.5, seed=1)) > 0.2


def test_kid_interval_holds_the_estimate_and_narrows_with_n():
    widths = []
    for n in (50, 200, 800):
        one, other = normal(n), normal(n, mean=0.3, seed=1)
        low, high = kid_interval(one, other)
        assert low < kid(one, other) < high and low > 0
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]


def test_kid_interval_of_samples_of_one_kind_mostly_holds_zero():
    held = 0
    for seed in range(40):
        low, high = kid_interval(normal(60, seed=2 * seed), normal(60, seed=2 * seed + 1), rounds=200)
        held += low <= 0 <= high
    assert held >= 34


def test_distances_grow_with_blur_and_with_noise(phantom_store, untrained):
    rng = np.random.default_rng(0)
    images = phantom_store.images[:]
    real, other = images[::2], images[1::2]

    def distance(spoilt: np.ndarray) -> tuple[float, float]:
        one, two = (extract_features(ImageSet.from_array(x), untrained, 64).values for x in (spoilt, real))
        return kid(one, two), frechet(one, two)

    blurs = [other] + [np.stack([cv2.GaussianBlur(i, (0, 0), s) for i in other]) for s in (1, 2, 4)]
    noises = [other] + [np.clip(other + rng.normal(0, s, other.shape), 0, 255).astype(np.uint8) for s in (10, 25, 60)]
    for steps in (blurs, noises):
        kids, fds = zip(*(distance(step) for step in steps), strict=True)
        assert list(kids) == sorted(kids) and kids[-1] > kids[0]
        assert list(fds)[1:] == sorted(fds[1:]) and fds[-1] > fds[0]


def test_mode_collapse_is_found_by_recall_and_invention_by_precision():
    real, same = normal(400), normal(400, seed=1)
    precision, recall = precision_recall(same, real)
    assert precision > 0.7 and recall > 0.7
    collapsed = real[:4].repeat(100, axis=0) + normal(400, deviation=0.05, seed=2)
    precision, recall = precision_recall(collapsed, real)
    assert precision > 0.9 and recall < 0.1
    invented = np.concatenate([same[:200], same[200:] + 8])
    assert precision_recall(invented, real)[0] == pytest.approx(precision_recall(same[:200], real)[0] / 2, abs=0.02)


def test_inception_score_of_sure_and_even_guesses_is_the_number_of_classes():
    sure = np.full((1000, 5), -50.0, np.float32)
    sure[np.arange(1000), np.arange(1000) % 5] = 50
    assert inception_score(sure) == pytest.approx(5, rel=0.05)
    assert inception_score(np.zeros((1000, 5), np.float32)) == pytest.approx(1)


def test_inception_alone_has_columns_fid_and_is(phantom_store, monkeypatch):
    monkeypatch.setattr("helpers.metrics.quality.MIN_IMAGES_FOR_IS", 40)

    class WithLogits(Pooled):
        def forward(self, x):
            found = super().forward(x)
            return torch.cat([found, found[:, :5]], dim=1)

    sets = ImageSet.from_array(phantom_store.images[:40]), ImageSet.from_array(phantom_store.images[40:80])
    found = quality(*sets, [FeatureExtractor("inception", WithLogits(), 5)])
    assert {"fid", "is", "kid"} <= set(found.row()) and "fd" not in found.table
    assert found.summary()["fd"] == found.summary()["fid"] and found.summary()["floor_fd"] > 0
    assert "is" not in found.row("floor"), "20 images are too few for it"
    row = quality(*sets, [FeatureExtractor("pooled", Pooled())]).row()
    assert "fd" in row and not {"fid", "is"} & set(row)


def test_the_table_has_classes_floor_and_ceilings(phantom_store, tmp_path):
    kinds = [phantom_store.classes[k] for k in phantom_store.labels]
    real = ImageSet.from_array(phantom_store.images[::2], kinds[::2], "real")
    synthetic = ImageSet.from_array(phantom_store.images[1::2], kinds[1::2], "drawn")
    network = Pooled()
    found = quality(real, synthetic, [FeatureExtractor("pooled", network)], cache=tmp_path)
    table, half = found.table, len(phantom_store) // 2
    assert found.row()["n"] == len(synthetic) and found.row()["n_real"] == len(real)
    assert found.row("floor")["n"] == half // 2 and found.row("floor")["n_real"] == len(real) - half // 2
    assert found.row("floor", "NV")["n"] + found.row("floor", "NV")["n_real"] == kinds[::2].count("NV")
    assert found.row("synthetic", "NV")["n"] == kinds[1::2].count("NV")
    assert found.row("other classes", "NV") and found.row("blurred real")["n"] == half // 2
    assert any(f"the floor has {half // 2} images for {len(synthetic)}" in note for note in found.notes)
    assert not table[["kid", "fd", "precision", "recall", "n", "n_real"]].isna().any().any()
    counts = {kind: (kinds[::2].count(kind), kinds[1::2].count(kind)) for kind in set(kinds)}
    few = [kind for kind, both in counts.items() if 0 < min(both) < 10]
    assert few and all(any(f"{kind}: " in note and "too few" in note for note in found.notes) for kind in few)
    alone = [kind for kind, both in counts.items() if 0 in both]
    assert all(any("not in both sets" in note and kind in note for note in found.notes) for kind in alone)
    seen = network.seen
    again = quality(real, synthetic, [FeatureExtractor("pooled", network)], cache=tmp_path)
    assert network.seen == seen and again.table.equals(table)
    assert "pooled" in str(found) and "NaN" not in str(found)


def test_another_class_is_further_away_than_the_floor(phantom_store):
    grey = phantom_store.images[:80].mean(axis=(1, 2, 3))
    kinds = np.where(grey > np.median(grey), "light", "dark").tolist()
    found = quality(
        *(ImageSet.from_array(phantom_store.images[:80], kinds) for _ in range(2)),
        [FeatureExtractor("pooled", Pooled())],
    )
    assert found.row("other classes", "dark")["kid_low"] > abs(found.row("floor")["kid"])


def test_summary_is_flat_json(phantom_store):
    real, synthetic, floor = (ImageSet.from_array(phantom_store.images[k::3], name=f"set {k}") for k in range(3))
    summary = json.loads(json.dumps(quality(real, synthetic, [FeatureExtractor("pooled", Pooled())], floor).summary()))
    assert {"extractor", "n_real", "n_synthetic", "kid", "fd", "floor_kid", "floor_fd", "rows"} <= set(summary)
    assert summary["floor_n"] == len(synthetic) and summary["extractor"] == "pooled"
    halves = quality(ImageSet.from_array(real.items[:15]), synthetic, [FeatureExtractor("pooled", Pooled())])
    assert halves.summary()["floor_kid"] is None and any("floor, all: 7 images are too few" in n for n in halves.notes)


def test_the_floor_has_as_many_images_as_are_judged(phantom_store):
    real, synthetic = ImageSet.from_array(phantom_store.images[:80]), ImageSet.from_array(phantom_store.images[80:95])
    found = quality(real, synthetic, [FeatureExtractor("pooled", Pooled())])
    assert found.row("floor")["n"] == 15 and found.row("floor")["n_real"] == 65 and not found.notes
    assert found.row("blurred real")["n"] == 15


def test_identical_sets_have_no_distance():
    values = normal(300)
    assert kid(values, values) < 0 < 0.05 + kid(values, values)
    assert precision_recall(values, values) == (1, 1)


def test_numbers_of_another_version_are_not_taken(tmp_path, monkeypatch):
    one, other = (Features(name, normal(20, seed=k), np.empty((20, 0)), [], np.arange(20), np.arange(20))
                  for k, name in enumerate("ab"))  # fmt: skip
    first = compute_metrics(one, other, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text().replace(str(first["kid"]), "7"))
    assert compute_metrics(one, other, tmp_path)["kid"] == 7
    monkeypatch.setattr("helpers.metrics.quality.VERSION", 2)
    assert compute_metrics(one, other, tmp_path) == first


def test_sets_that_overlap_are_told(phantom_store):
    real, synthetic = ImageSet.from_array(phantom_store.images[:40], name="real"), phantom_store.images[35:75]
    found = quality(real, ImageSet.from_array(synthetic, name="drawn"), [FeatureExtractor("pooled", Pooled())])
    assert any("5 images of real are also in drawn" in note for note in found.notes)


def test_unequal_sizes_are_compared_at_the_smaller(phantom_store):
    large = np.stack([cv2.resize(i, (128, 128), interpolation=cv2.INTER_NEAREST) for i in phantom_store.images[40:80]])
    real, synthetic = (
        ImageSet.from_array(large, name="large"),
        ImageSet.from_array(phantom_store.images[:40], name="small"),
    )
    found = quality(real, synthetic, [FeatureExtractor("pooled", Pooled())])
    same = quality(ImageSet.from_array(phantom_store.images[40:80]), synthetic, [FeatureExtractor("pooled", Pooled())])
    assert "compared at 64" in found.notes[0] and found.row()["kid"] == pytest.approx(same.row()["kid"])


def test_too_few_images_get_a_sentence(phantom_store):
    one, many = ImageSet.from_array(phantom_store.images[:1]), ImageSet.from_array(phantom_store.images[1:50])
    with pytest.raises(DataError, match="1 images are too few to measure, 10 are the least"):
        quality(many, one, [FeatureExtractor("pooled", Pooled())])
    with pytest.raises(DataError, match="too few"):
        compute_metrics(*(extract_features(p, FeatureExtractor("pooled", Pooled()), 64) for p in (many, one)))
