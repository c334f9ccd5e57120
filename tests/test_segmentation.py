from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories import isic2016

from helpers.data.files import DataError
from helpers.data.layouts import read
from helpers.experiments import arms, generators
from helpers.experiments import segmentation as module
from helpers.experiments.generators import ALL_ARMS
from helpers.experiments.runner import comparisons, fraction_of_rows, summary
from helpers.experiments.segmentation import SegmentationExperiment, segmentation_experiment
from helpers.metrics import segmentation_scores as metrics
from helpers.metrics.segmentation_scores import score_images
from helpers.models.gan import GANConfig
from helpers.models.segmenter import Segmenter, SegmenterConfig
from helpers.models.trainer import TrainConfig

ENCODER = "tu-test_efficientnet"  # timm's smallest: 0.1 million parameters


@pytest.fixture
def isic_table(tmp_path):
    """Six images of 40 x 32 pixels with their masks."""
    return read(isic2016(tmp_path, 6)).table.iloc[:6]


def settings_for(store) -> SegmentationExperiment:
    return SegmentationExperiment(
        segmenter=SegmenterConfig(64, "Unet", ENCODER, decoder_channels=32, pretrained=False, tta=False),
        generator=GANConfig(64, tuple(store.classes), base_channels=8),
        train=TrainConfig(2, 2),
        gan_train=TrainConfig(1, 2),
        num_pairs=8,
        fractions=(0.5,),
        seeds=(0, 1),
    )


def test_score_images_of_the_original_masks_is_perfect(isic_table, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 4)  # 6 images: a full chunk and a partial one
    masks = [metrics.read_mask(path) for path in isic_table["mask_path"]]
    areas = [mask.mean() for mask in masks]
    monkeypatch.setattr(metrics, "segment", lambda _, images, shapes: [masks.pop(0) for _ in images])
    table = score_images(SimpleNamespace(size=64), isic_table)
    assert (table["jaccard"] == 1).all() and (table["hd95"] == 0).all()
    assert list(table["image_id"]) == list(isic_table["image_id"]) and list(table["area"]) == pytest.approx(areas)


def test_score_images_compares_masks_at_the_images_own_size(isic_table):
    """A network that segments the left half scores like the left half of the image, which is not square."""
    shapes = []

    class LeftHalf(torch.nn.Module):
        size, tta = 64, False

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image):
            shapes.append(image.shape[2:])
            left = torch.arange(image.shape[3]) < image.shape[3] // 2
            return (20.0 * left - 10).expand(len(image), 1, *image.shape[2:])

    table = score_images(LeftHalf(), isic_table)
    assert set(shapes) == {(64, 64)}
    for row, path in zip(table.itertuples(), isic_table["mask_path"], strict=True):
        target = metrics.read_mask(path)
        left = np.zeros_like(target)
        left[:, : target.shape[1] // 2] = 1
        assert row.jaccard == pytest.approx(metrics.scores(left, target)["jaccard"], abs=0.05)


def test_score_images_of_an_untrained_segmenter_is_low(phantom_store):
    table = phantom_store.table.iloc[phantom_store.rows("test", needs=["mask"])]
    torch.manual_seed(0)
    segmenter = Segmenter(SegmenterConfig(64, pretrained=False)).eval()
    assert score_images(segmenter, table)["jaccard"].mean() < 0.5


def test_segmentation_experiment_tests_every_arm_on_every_test_image(phantom_store, tmp_path):
    results = segmentation_experiment(phantom_store, settings_for(phantom_store), tmp_path, ALL_ARMS)
    test = phantom_store.table.iloc[phantom_store.rows("test", needs=["mask"])]
    assert set(results["image_id"]) == set(test["image_id"])
    counts = results.groupby(["arm", "seed"]).size()
    assert len(counts) == 14 and (counts == len(test)).all()
    assert (tmp_path / "generator-0.5" / "checkpoint.pt").is_file() and not list(tmp_path.glob("work-*"))
    table = summary(results, "jaccard")
    means = results.groupby("arm")["jaccard"].mean()
    assert table.loc[0.5]["jaccard"].to_dict() == pytest.approx(means.to_dict())
    pairs = comparisons(results, "jaccard", module.COMPARISON_PAIRS).loc[0.5]["difference"]
    assert list(pairs.index) == module.COMPARISON_PAIRS
    assert list(pairs) == pytest.approx([means[arm] - means[reference] for arm, reference in pairs.index])


def test_segmentation_experiment_arms_differ_in_data_and_augmentation_only(phantom_store, tmp_path, monkeypatch):
    trained_with, gan_rows, rows = {}, [], fraction_of_rows(phantom_store, 0.5)

    def fit_segmenter(sources, config, out, train_config, init_from):
        trained_with[out.name] = (sources, config, train_config)
        raise StopIteration

    def run_arms(arms, *_):
        for name, arm in arms.items():
            with pytest.raises(StopIteration):
                arm(0.5, 1, tmp_path / name)

    def train_gan(*args, **kwargs):
        gan_rows.append(args[4])
        return train(*args, **kwargs)

    train = generators.train_gan
    monkeypatch.setattr(generators, "train_gan", train_gan)
    monkeypatch.setattr(module, "fit_segmenter", fit_segmenter)
    monkeypatch.setattr(arms, "run_grid", run_arms)
    experiment = replace(settings_for(phantom_store), seeds=(1,))
    segmentation_experiment(phantom_store, experiment, tmp_path, ALL_ARMS)
    names = ["real", "real + augmentation", "real + synthetic", "real + synthetic + augmentation", "synthetic only"]
    names += ["pretraining", "filtered"]
    assert list(trained_with) == names
    augmentation = {name: config.scale > 0 for name, (_, config, _) in trained_with.items()}
    augmented = [name for name in names if "augmentation" in name] + ["pretraining", "filtered"]
    assert [name for name, on in augmentation.items() if on] == augmented
    for name, (sources, config, train_config) in trained_with.items():
        assert train_config == replace(experiment.train, seed=1, steps=1 if name == "pretraining" else 2)
        assert (
            replace(config, **{k: getattr(experiment.segmenter, k) for k in arms.NO_AUGMENTATION})
            == experiment.segmenter
        )
        real = "real" in name or name == "filtered"
        synthetic = "synthetic" in name or name in ("pretraining", "filtered")
        assert len(sources) == real + synthetic
        if real:
            assert sources[0].images is phantom_store.images and np.array_equal(sources[0].rows, rows)
        if synthetic:
            assert len(sources[-1].images) == 8, "no real images"
    assert len(gan_rows) == 1 and np.array_equal(gan_rows[0], rows), "arms share the synthetic pairs"


def test_segmentation_experiment_without_masks_or_with_wrong_fractions_raises(phantom_store, tmp_path, monkeypatch):
    experiment = settings_for(phantom_store)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got \[1.5\]"):
        segmentation_experiment(phantom_store, replace(experiment, fractions=(0.5, 1.5)), tmp_path)
    monkeypatch.setattr(phantom_store, "has_mask", np.zeros(len(phantom_store), bool))
    with pytest.raises(DataError, match="phantoms has no masks: segmentation needs them"):
        segmentation_experiment(phantom_store, experiment, tmp_path)
