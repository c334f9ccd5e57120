"""FID, KID and IS of the same folders equal torch-fidelity's own."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from factories import inception_weights
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from helpers.config import find_weights_file
from helpers.metrics.extractors import (
    INCEPTION_WEIGHTS,
    FeatureExtractor,
    ImageSet,
    Inception,
    extract_features,
    load_extractor,
    optimize_for_inference,
)
from helpers.metrics.quality import frechet, inception_score, kid

N, SIZE = 12, 48


def write_folder(folder: Path, noise: float, seed: int) -> Path:
    """Smooth random images with `noise`, of 255."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for k in range(N):
        smooth = cv2.resize(rng.uniform(0, 255, (4, 4, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        image = (smooth + rng.normal(0, noise, smooth.shape)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{k:02d}.png"), image)
    return folder


def assert_equals_torch_fidelity(extractor: FeatureExtractor, weights: Path, tmp_path: Path) -> None:
    """Compare with `calculate_metrics` on two folders; all images in one KID subset, as ours are."""
    folders = [write_folder(tmp_path / "real", 0, seed=0), write_folder(tmp_path / "synthetic", 40, seed=1)]
    expected = calculate_metrics(
        input1=str(folders[1]), input2=str(folders[0]), cuda=False, isc=True, fid=True, kid=True, kid_subsets=1,
        kid_subset_size=N, feature_extractor_weights_path=str(weights), cache=False, verbose=False,
    )  # fmt: skip
    real, synthetic = (extract_features(ImageSet.from_folder(folder), extractor, SIZE) for folder in folders)
    fid = frechet(synthetic.values, real.values)
    assert fid > 1 and fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    distance = kid(synthetic.values, real.values)
    assert distance == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    score = inception_score(synthetic.logits)
    assert score > 1.001 and score - 1 == pytest.approx(expected["inception_score_mean"] - 1, rel=1e-3)


def test_fid_kid_and_is_with_rescaled_random_weights_equal_torch_fidelity(tmp_path):
    weights = inception_weights(tmp_path / "weights.pth")
    published = FeatureExtractorInceptionV3("rescaled", ["2048"], feature_extractor_weights_path=str(weights))
    network = optimize_for_inference(Inception(published), 299)
    assert_equals_torch_fidelity(FeatureExtractor("inception", network, num_logits=1008), weights, tmp_path)


def test_fid_kid_and_is_with_the_official_weights_equal_torch_fidelity(tmp_path):
    if (weights := find_weights_file(INCEPTION_WEIGHTS)) is None:
        pytest.skip(f"LESION_WEIGHTS_DIR has no {INCEPTION_WEIGHTS}")
    assert_equals_torch_fidelity(load_extractor("inception"), weights, tmp_path)
