import numpy as np
import pytest
import torch
from torch import nn

from helpers.data.files import DataError
from helpers.metrics.generator_eval import GeneratorEval


class CopyingGenerator(nn.Module):
    """Returns the stored image whose sketch it gets, or the image `shift` positions further in `rows`."""

    z_dim, size, num_artifacts, takes_sketch = 1, 64, 0, True

    def __init__(self, store, rows, shift: int = 0):
        super().__init__()
        self.store, self.rows, self.shift, self.unused = store, rows, shift, nn.Parameter(torch.zeros(1))

    def forward(self, sketch, label, z):
        copied = []
        for lines in (255 * sketch[:, 0]).round().byte().numpy():
            matches = [k for k, row in enumerate(self.rows) if np.array_equal(self.store.sketches[row], lines)]
            copied.append(self.rows[((matches or [0])[0] + self.shift) % len(self.rows)])
        images = torch.from_numpy(self.store.images[np.array(copied)]).permute(0, 3, 1, 2)
        return images / 127.5 - 1


def test_evaluate_of_copied_val_images_is_perfect_except_for_diversity(phantom_store, extractor, tmp_path, few_latents):
    evaluation = GeneratorEval(phantom_store, extractor, 12, tmp_path)
    assert len(evaluation.rows) == 12 and (phantom_store.splits[evaluation.rows] == 1).all()
    own, others = (
        evaluation.evaluate(CopyingGenerator(phantom_store, evaluation.rows, shift).eval()).iloc[0] for shift in (0, 1)
    )
    for row in (own, others):
        assert row["fd"] == pytest.approx(0, abs=1e-4) and row["kid"] < 0.01
        assert row["precision"] == row["recall"] == 1 and row["diversity"] == 0
    assert np.isnan(own["position"]) and own["structure"] == pytest.approx(1), "12 images; equal for all latents"
    assert own["sketch_sep"] == pytest.approx(evaluation.floor(0)["sketch_sep"].item(), abs=1e-4)
    assert others["sketch_sep"] < 0.7 * own["sketch_sep"], "no other score shows that sketches do not match"


def test_conditioning_scores_drop_with_wrong_labels(phantom_store, extractor, tmp_path):
    evaluation = GeneratorEval(phantom_store, extractor, 12, tmp_path)
    rows = phantom_store.rows("train", needs=["label"])[:21]
    images, evaluation.labels, evaluation.sketches = (
        np.array(array[rows]) for array in (phantom_store.images, phantom_store.labels, phantom_store.sketches)
    )
    evaluation.hand_sketches, features = evaluation.sketches, evaluation.features(images)
    assert evaluation.conditioning_scores(images, features, images)["label_acc"] > 0.7
    evaluation.labels = (evaluation.labels + 1) % 7
    assert evaluation.conditioning_scores(images, features, images)["label_acc"] < 0.2


def test_generator_eval_with_too_few_val_sketches_raises(phantom_store, extractor, tmp_path):
    with pytest.raises(DataError, match="phantoms needs at least 10 val images with sketch and label, got 5"):
        GeneratorEval(phantom_store, extractor, 5, tmp_path)
