import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from factories import MeanPoolExtractor

from helpers.data.files import DataError
from helpers.metrics import quality as quality_module
from helpers.metrics.extractors import FeatureExtractor, Features, Resized, extract_features, optimize_for_inference
from helpers.metrics.image_set import ImageSet
from helpers.metrics.quality import (
    Quality,
    compute_metrics,
    density_coverage,
    frechet,
    frechet_infinity,
    inception_score,
    kid,
    kid_interval,
    mean_and_covariance,
    precision_recall,
    quality,
)
from helpers.models.classifier import Backbone


def normal(n: int, mean: float = 0.0, std: float = 1.0, dim: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, (n, dim)).astype(np.float32)


def class_row(result: Quality, compared: str, class_name: str) -> pd.Series:
    """The one row of a comparison of one class."""
    (row,) = (r for _, r in result.table.iterrows() if (r["compared"], r["class"]) == (compared, class_name))
    return row


# ------------------------------------------------------------------------------------------- measures of feature sets


def test_frechet_normal_distributions_equals_closed_form():
    features1, features2 = normal(40_000, dim=6), normal(40_000, mean=0.5, std=2.0, dim=6, seed=1)
    assert frechet(features1, features2) == pytest.approx(6 * 0.25 + 6 * (2 - 1) ** 2, rel=0.02)
    assert frechet(features1, features1) == pytest.approx(0, abs=1e-4)


def test_mean_and_covariance_in_chunks_equal_numpy(monkeypatch):
    monkeypatch.setattr(quality_module, "COVARIANCE_CHUNK", 64)
    features = normal(1000, mean=3)
    mean, covariance = mean_and_covariance(features)
    assert np.allclose(mean, features.mean(axis=0)) and np.allclose(covariance, np.cov(features, rowvar=False))


@pytest.mark.parametrize(("n", "m"), [(200, 200), (150, 300), (250, 300)])  # all at once; subsets of 150; of 200
def test_kid_same_distribution_is_zero_and_other_is_not(n, m, monkeypatch):
    monkeypatch.setattr(quality_module, "KID_SUBSET_SIZE", 200)
    assert abs(kid(normal(n), normal(m, seed=1))) < 0.02
    assert kid(normal(n), normal(m, mean=0.5, seed=1)) > 0.2


def test_kid_and_precision_recall_identical_sets_are_ideal():
    features = normal(300)
    assert kid(features, features) < 0, "unbiased, so below 0 when both samples are the same"
    assert kid(features, features) > -0.05
    assert precision_recall(features, features) == (1, 1)


def test_kid_interval_contains_the_estimate_and_narrows_with_n():
    widths = []
    for n in (50, 200, 800):
        features1, features2 = normal(n), normal(n, mean=0.3, seed=1)
        low, high = kid_interval(features1, features2)
        assert low < kid(features1, features2) < high and low > 0
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]


def test_kid_interval_same_distribution_mostly_contains_zero(monkeypatch):
    monkeypatch.setattr(quality_module, "KID_CI_ROUNDS", 200)
    intervals = [kid_interval(normal(60, seed=2 * k), normal(60, seed=2 * k + 1)) for k in range(40)]
    assert sum(low <= 0 <= high for low, high in intervals) >= 34


def test_distances_blurred_and_noisy_images_grow_with_strength(phantom_store):
    torch.manual_seed(0)
    network = optimize_for_inference(Resized(Backbone("small_cnn", pretrained=False), 64), 64)
    random_cnn, rng = FeatureExtractor("random", network), np.random.default_rng(0)

    def features(images: np.ndarray) -> np.ndarray:
        return extract_features(ImageSet.from_array(images), random_cnn, 64).values

    real, images = features(phantom_store.images[::2]), phantom_store.images[1::2]
    blurred = [np.stack([cv2.GaussianBlur(i, (0, 0), sigma) for i in images]) for sigma in (2, 4)]
    noisy = [np.clip(images + rng.normal(0, std, images.shape), 0, 255).astype(np.uint8) for std in (25, 60)]
    for levels in (blurred, noisy):
        sets = [features(level) for level in (images, *levels)]
        for distance in (kid, frechet):
            unchanged, weak, strong = (distance(values, real) for values in sets)
            assert unchanged < weak < strong


def test_precision_recall_mode_collapse_lowers_recall_and_outliers_lower_precision():
    real, same = normal(400), normal(400, seed=1)
    precision, recall = precision_recall(same, real)
    assert precision > 0.7 and recall > 0.7
    collapsed = real[:4].repeat(100, axis=0) + normal(400, std=0.05, seed=2)
    precision, recall = precision_recall(collapsed, real)
    assert precision > 0.9 and recall < 0.1
    half_outliers = np.concatenate([same[:200], same[200:] + 8])
    expected = precision_recall(same[:200], real)[0] / 2
    assert precision_recall(half_outliers, real)[0] == pytest.approx(expected, abs=0.02)


def test_density_coverage_two_clusters_is_known_values():
    cluster = np.linspace(0, 1, 20)[:, None].astype(np.float32)
    real = np.concatenate([cluster, cluster + 100])
    assert density_coverage(cluster, real)[1] == pytest.approx(0.5), "one of two modes"
    assert density_coverage(cluster + 50, real) == (0, 0)
    density, coverage = density_coverage(np.array([[0.5]], np.float32), real)
    assert density == pytest.approx(5 / 5, abs=0.3) and 3 / 40 <= coverage <= 7 / 40


def test_density_coverage_same_distribution_is_one_and_outliers_do_not_raise_coverage():
    real, same = normal(500), normal(500, seed=1)
    density, coverage = density_coverage(same, real)
    assert density == pytest.approx(1, abs=0.15) and coverage > 0.9
    collapsed = real[:4].repeat(100, axis=0) + normal(400, std=0.05, seed=2)
    with_outliers = np.concatenate([collapsed, normal(100, std=30, seed=3)])
    assert density_coverage(collapsed, real)[1] < 0.2
    assert density_coverage(with_outliers, real)[1] <= density_coverage(collapsed, real)[1] + 0.01


def test_density_coverage_in_chunks_is_the_same(monkeypatch):
    expected = density_coverage(normal(90), normal(100, seed=1))
    monkeypatch.setattr(quality_module, "DC_CHUNK", 7)
    assert density_coverage(normal(90), normal(100, seed=1)) == pytest.approx(expected)


def test_density_coverage_five_real_images_raises():
    with pytest.raises(ValueError, match="more than 5 real images, got 5"):
        density_coverage(normal(9), normal(5))


def test_inception_score_certain_uniform_predictions_is_number_of_classes():
    logits = np.full((1000, 5), -50.0, np.float32)
    logits[np.arange(1000), np.arange(1000) % 5] = 50
    assert inception_score(logits) == pytest.approx(5, rel=0.05)
    assert inception_score(np.zeros((1000, 5), np.float32)) == pytest.approx(1)


def test_inception_score_with_one_split_is_the_exponential_of_the_mutual_information():
    certain = 50 * np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    assert inception_score(certain, splits=1) == pytest.approx(3)
    assert inception_score(np.zeros((30, 3), np.float32), splits=1) == pytest.approx(1), "never certain"
    assert inception_score(certain[:1].repeat(30, axis=0), splits=1) == pytest.approx(1), "never varied"
    p = np.array([[0.8, 0.2], [0.4, 0.6]])
    divergence = (p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()
    logits = np.log(p).repeat(10, axis=0).astype(np.float32)
    assert inception_score(logits, splits=1) == pytest.approx(np.exp(divergence), rel=1e-4)


def test_frechet_infinity_is_nearer_to_the_closed_form_than_the_distance():
    real, synthetic = normal(50_000, dim=24), normal(300, dim=24, seed=1)
    extrapolated, plain = frechet_infinity(synthetic, real), frechet(synthetic, real)
    assert plain > 0.4, "biased upwards: the distributions are equal"
    assert abs(extrapolated) < 0.3 * plain


def test_frechet_infinity_is_the_intercept_over_one_by_n(monkeypatch):
    monkeypatch.setattr(quality_module, "frechet", lambda synthetic, real: 5 + 30 / len(synthetic))
    assert frechet_infinity(normal(400), normal(10)) == pytest.approx(5)
    with pytest.raises(DataError, match="needs 100 images, got 99"):
        frechet_infinity(normal(99), normal(10))


def test_quality_infinity_has_columns_of_the_generated_images_and_the_floor_or_says_why_not(phantom_store, extractor):
    images = np.array(phantom_store.images)
    real = ImageSet.from_array(images.repeat(2, axis=0)[:210], name="real")
    many = ImageSet.from_array(images[:105], name="many")
    result = quality(real, many, [extractor], many, infinity=True)
    assert result.table["fd_infinity"].notna().tolist() == [True, True, False], "not of the blurred images"
    few = quality(real, ImageSet.from_array(images[:60], name="few"), [extractor], infinity=True)
    assert "synthetic: no fd_infinity: the extrapolation needs 100 images, got 60" in few.notes
    assert "fd_infinity" not in quality(real, many, [extractor]).table


def test_quality_classifier_has_a_classifier_score_instead_of_an_inception_score(phantom_store):
    classifier = FeatureExtractor("classifier", MeanPoolExtractor(8.0), num_logits=4)
    images = ImageSet.from_array(np.array(phantom_store.images[:40]))
    table = quality(images, images, [classifier]).table
    assert "is" not in table and (table["classifier_score"].between(1, 4)).all()
    logits = extract_features(images, classifier, 64).logits
    assert table["classifier_score"][0] == inception_score(logits, splits=1)


def test_compute_metrics_cache_of_other_version_is_ignored(tmp_path, monkeypatch):
    synthetic, real = (Features(name, normal(20, seed=k), np.empty((20, 0)), [], np.arange(20), np.arange(20))
                       for k, name in enumerate("ab"))  # fmt: skip
    metrics = compute_metrics(synthetic, real, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace(str(metrics["kid"]), "7"))
    assert compute_metrics(synthetic, real, tmp_path)["kid"] == 7
    monkeypatch.setattr(quality_module, "VERSION", quality_module.VERSION + 1)
    assert compute_metrics(synthetic, real, tmp_path) == metrics


def test_compute_metrics_too_few_images_raises():
    few, many = (Features("", normal(n), np.empty((n, 0)), [], np.arange(n), np.arange(n)) for n in (9, 10))
    with pytest.raises(DataError, match="need at least 10 images, got 9"):
        compute_metrics(many, few)


# ------------------------------------------------------------------------------------------------------------- tables


def test_quality_inception_only_has_columns_fid_and_is(phantom_store, extractor, monkeypatch):
    monkeypatch.setattr(quality_module, "MIN_IMAGES_FOR_IS", 40)

    class WithLogits(MeanPoolExtractor):
        def forward(self, x):
            features = super().forward(x)
            return torch.cat([features, features[:, :5]], dim=1)

    sets = ImageSet.from_array(phantom_store.images[:40]), ImageSet.from_array(phantom_store.images[40:80])
    result = quality(*sets, [FeatureExtractor("inception", WithLogits(), num_logits=5)])
    assert {"fid", "is", "kid"} <= set(result.row()) and "fd" not in result.table
    assert result.summary()["fd"] == result.summary()["fid"] and result.summary()["floor_fd"] > 0
    assert "is" not in result.row("floor"), "20 images are too few for an Inception Score"
    row = quality(*sets, [extractor]).row()
    assert "fd" in row and not {"fid", "is"} & set(row)


def test_quality_sets_with_classes_has_rows_per_class_floor_and_ceilings(phantom_store, extractor, tmp_path):
    class_names = [phantom_store.classes[k] for k in phantom_store.labels]
    real_names, synthetic_names = class_names[::2], class_names[1::2]
    real = ImageSet.from_array(phantom_store.images[::2], real_names, "real")
    synthetic = ImageSet.from_array(phantom_store.images[1::2], synthetic_names, "synthetic")
    result = quality(real, synthetic, [extractor], cache=tmp_path)
    half = len(real) // 2
    assert result.row()["n"] == len(synthetic) and result.row()["n_real"] == len(real)
    assert result.row("floor")["n"] == half and result.row("floor")["n_real"] == len(real) - half
    assert result.row("blurred real")["n"] == half
    assert class_row(result, "floor", "NV")[["n", "n_real"]].sum() == real_names.count("NV")
    assert class_row(result, "synthetic", "NV")["n"] == synthetic_names.count("NV")
    assert class_row(result, "other classes", "NV")["n_real"] == real_names.count("NV")
    assert any(f"only {half} images for {len(synthetic)} synthetic ones" in note for note in result.notes)
    assert not result.table[["kid", "fd", "precision", "recall", "n", "n_real"]].isna().any().any()
    assert "mean-pool" in str(result) and "NaN" not in str(result)


def test_quality_small_or_unmatched_classes_have_notes_instead_of_rows(phantom_store, extractor):
    class_names = ["MEL"] * 15 + ["NV"] * 20 + ["BCC"] * 5, ["MEL"] * 3 + ["NV"] * 37
    sets = (ImageSet.from_array(phantom_store.images[40 * k :][:40], class_names[k]) for k in range(2))
    result = quality(*sets, [extractor])
    assert "synthetic, MEL: need at least 10 images, got 3" in result.notes
    assert "not in both sets, so without a row: BCC" in result.notes
    rows = result.table[result.table["compared"] == "synthetic"]
    assert list(rows["class"]) == ["all", "NV"]


def test_quality_second_call_uses_the_cache(phantom_store, extractor, tmp_path):
    sets = ImageSet.from_array(phantom_store.images[:40]), ImageSet.from_array(phantom_store.images[40:80])
    result = quality(*sets, [extractor], cache=tmp_path)
    num_images = extractor.network.num_images
    assert quality(*sets, [extractor], cache=tmp_path).table.equals(result.table)
    assert extractor.network.num_images == num_images > 0


def test_quality_other_class_is_farther_than_the_floor(phantom_store, extractor):
    images = phantom_store.images[:80]
    brightness = images.mean(axis=(1, 2, 3))
    class_names = np.where(brightness > np.median(brightness), "light", "dark").tolist()
    result = quality(*(ImageSet.from_array(images, class_names) for _ in range(2)), [extractor])
    assert class_row(result, "other classes", "dark")["kid_low"] > abs(result.row("floor")["kid"])


def test_quality_small_synthetic_set_has_floor_of_equal_size(phantom_store, extractor):
    real, synthetic = ImageSet.from_array(phantom_store.images[:80]), ImageSet.from_array(phantom_store.images[80:95])
    result = quality(real, synthetic, [extractor])
    assert result.row("floor")["n"] == 15 and result.row("floor")["n_real"] == 65 and not result.notes
    assert result.row("blurred real")["n"] == 15


def test_quality_shared_images_are_reported(phantom_store, extractor):
    real = ImageSet.from_array(phantom_store.images[:40], name="real")
    synthetic = ImageSet.from_array(phantom_store.images[35:75], name="synthetic")
    result = quality(real, synthetic, [extractor])
    assert any("5 images of real are also in synthetic" in note for note in result.notes)


def test_quality_different_sizes_are_compared_at_the_smaller(phantom_store, extractor):
    images = phantom_store.images[40:80]
    large = np.stack([cv2.resize(i, (128, 128), interpolation=cv2.INTER_NEAREST) for i in images])
    synthetic = ImageSet.from_array(phantom_store.images[:40], name="small")
    result = quality(ImageSet.from_array(large, name="large"), synthetic, [extractor])
    expected = quality(ImageSet.from_array(images), synthetic, [extractor])
    assert "compared at 64" in result.notes[0]
    assert result.row()["kid"] == pytest.approx(expected.row()["kid"])


def test_quality_too_few_images_raises(phantom_store, extractor):
    few = ImageSet.from_array(phantom_store.images[:1], name="few")
    with pytest.raises(DataError, match="few: need at least 10 images, got 1"):
        quality(ImageSet.from_array(phantom_store.images[1:50]), few, [extractor])


def test_summary_with_floor_set_is_flat_json(phantom_store, extractor):
    real, synthetic, floor = (ImageSet.from_array(phantom_store.images[k::3], name=f"set {k}") for k in range(3))
    summary = json.loads(json.dumps(quality(real, synthetic, [extractor], floor).summary()))
    assert {"extractor", "n_real", "n_synthetic", "kid", "fd", "floor_kid", "floor_fd", "rows"} <= set(summary)
    assert summary["floor_n"] == len(synthetic) and summary["extractor"] == "mean-pool"


def test_summary_floor_too_small_is_none_and_noted(phantom_store, extractor):
    real, synthetic = ImageSet.from_array(phantom_store.images[:15]), ImageSet.from_array(phantom_store.images[40:80])
    result = quality(real, synthetic, [extractor])
    assert result.summary()["floor_kid"] is None
    assert "floor, all: need at least 10 images, got 7" in result.notes
