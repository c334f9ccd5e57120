"""Settings of every method and experiment for each profile: instances of their dataclasses, nothing else.

A method has its config and the length of its training; the classes come from the data set. `*_notebook` are the
experiments of notebooks 4, 6 and 7, which train less than the commands of the same name in the `demo` profile.
"""

from dataclasses import replace

from helpers.data.store import StoreConfig
from helpers.experiments.ablation import AblationExperiment, SmallDataExperiment
from helpers.experiments.balancing import BalancingExperiment
from helpers.experiments.features import FeatureComparison
from helpers.experiments.networks_compared import BackboneExperiment, SegmenterExperiment
from helpers.experiments.real_vs_generated import RealVsGeneratedExperiment
from helpers.experiments.real_vs_synthetic import RealVsSyntheticExperiment
from helpers.experiments.segmentation import SegmentationExperiment
from helpers.models.artifacts import ArtifactConfig
from helpers.models.classifier import ClassifierConfig
from helpers.models.gan import GANConfig, dcgan_config
from helpers.models.segmenter import SegmenterConfig
from helpers.models.simclr import SkinConfig
from helpers.models.trainer import TrainConfig

SMALL_CGAN = GANConfig(64, base_channels=8)
SMOKE = {
    "store": StoreConfig(64),
    "cgan": (replace(SMALL_CGAN, projected=True), TrainConfig(6, 4)),
    "dcgan": (dcgan_config(64, base_channels=8), TrainConfig(6, 4)),
    "segmenter": (SegmenterConfig(64), TrainConfig(6, 4, ema_nimg=500)),
    "classifier": (ClassifierConfig(64), TrainConfig(6, 16, ema_nimg=2_000)),
    "artifacts": (ArtifactConfig(64), TrainConfig(6, 4)),
    "skin": (SkinConfig(64, base_channels=8), TrainConfig(6, 8, ema_nimg=100)),
    "segmentation": SegmentationExperiment(
        SegmenterConfig(64), SMALL_CGAN, TrainConfig(4, 4), TrainConfig(4, 4), 8, (1.0,), (0, 1)
    ),
    "real_vs_synthetic": RealVsSyntheticExperiment(
        ClassifierConfig(64), SMALL_CGAN, TrainConfig(4, 8), TrainConfig(4, 4), 14, (1.0,), (0, 1)
    ),
    "real_vs_generated": RealVsGeneratedExperiment(TrainConfig(4, 8, ema_nimg=500)),
    "backbones": BackboneExperiment(
        ClassifierConfig(64), TrainConfig(4, 8, ema_nimg=500), ("small_cnn", "mobilenet_v2")
    ),
    "segmenters": SegmenterExperiment(SegmenterConfig(64), TrainConfig(4, 4, ema_nimg=500)),
    "balancing": BalancingExperiment(
        ClassifierConfig(64),
        SMALL_CGAN,
        dcgan_config(64, base_channels=8),
        TrainConfig(2, 8),
        TrainConfig(2, 4),
        TrainConfig(2, 4),
        num_synthetic=6,
        folds=2,
        seeds=(0, 1),
    ),
    "features": FeatureComparison(("mobilenet_v2",), 24),
    "ablation": AblationExperiment(replace(SMALL_CGAN, projected=True), TrainConfig(2, 4), 12),
    "small_data": SmallDataExperiment(replace(SMALL_CGAN, projected=True), TrainConfig(2, 4), 12, fractions=(0.5, 1.0)),
}
SMOKE |= {f"{name}_notebook": SMOKE[name] for name in ("segmentation", "real_vs_synthetic", "balancing")}

DEMO_CGAN = GANConfig(64, base_channels=32)
DEMO = {
    "store": StoreConfig(128),
    "cgan": (replace(DEMO_CGAN, projected=True), TrainConfig(500, 4)),
    "dcgan": (dcgan_config(64, base_channels=32), TrainConfig(500, 8)),
    "segmenter": (SegmenterConfig(128), TrainConfig(120, 16, ema_nimg=500)),
    "classifier": (ClassifierConfig(64), TrainConfig(300, 32, ema_nimg=2_000)),
    "artifacts": (ArtifactConfig(128), TrainConfig(300, 16)),
    "skin": (SkinConfig(64), TrainConfig(200, 128, ema_nimg=2_000)),
    "segmentation_notebook": SegmentationExperiment(
        SegmenterConfig(64), DEMO_CGAN, TrainConfig(24, 12), TrainConfig(150, 8), 300, (0.1,)
    ),
    "segmentation": SegmentationExperiment(
        SegmenterConfig(64), DEMO_CGAN, TrainConfig(300, 16), TrainConfig(3_000, 4), 2_000
    ),
    "real_vs_synthetic_notebook": RealVsSyntheticExperiment(
        ClassifierConfig(64), DEMO_CGAN, TrainConfig(40, 32), TrainConfig(300, 4), 700, (0.1,)
    ),
    "real_vs_synthetic": RealVsSyntheticExperiment(
        ClassifierConfig(64, arch="mobilenet_v2"), DEMO_CGAN, TrainConfig(400, 32), TrainConfig(4_000, 4), 3_500
    ),
    "real_vs_generated": RealVsGeneratedExperiment(TrainConfig(200, 32, ema_nimg=2_000)),
    "backbones": BackboneExperiment(
        ClassifierConfig(64), TrainConfig(40, 32, ema_nimg=500), ("small_cnn", "resnet18", "mobilenet_v2")
    ),
    "segmenters": SegmenterExperiment(SegmenterConfig(64), TrainConfig(40, 16, ema_nimg=500)),
    "balancing_notebook": BalancingExperiment(
        ClassifierConfig(64),
        GANConfig(64, base_channels=16),
        dcgan_config(64, base_channels=16),
        TrainConfig(80, 32),  # after 30 the classifiers name most lesions as one class
        TrainConfig(150, 4),
        TrainConfig(100, 8),
        num_synthetic=300,
        folds=2,
        seeds=(0, 1),
    ),
    "balancing": BalancingExperiment(
        ClassifierConfig(64, arch="mobilenet_v2"),
        DEMO_CGAN,
        dcgan_config(64, base_channels=32),
        TrainConfig(250, 32),
        TrainConfig(4_000, 4),
        TrainConfig(3_000, 8),
    ),
    "features": FeatureComparison(("mobilenet_v2",), 300),
    "ablation": AblationExperiment(replace(DEMO_CGAN, projected=True), TrainConfig(1_500, 4)),
    "small_data": SmallDataExperiment(replace(DEMO_CGAN, projected=True), TrainConfig(1_500, 4)),
}

# Real data at 128 pixels on one T4. Times are budgets, `minutes` replaces `steps`; steps are estimates, not measured.
COLAB_CGAN = GANConfig(128)
COLAB = {
    "store": StoreConfig(128),
    "cgan": (replace(COLAB_CGAN, projected=True), TrainConfig(25_000, minutes=20)),
    "dcgan": (dcgan_config(64), TrainConfig(25_000, minutes=6)),
    "segmenter": (SegmenterConfig(128), TrainConfig(3_000, minutes=4)),
    "classifier": (ClassifierConfig(128, arch="resnet18"), TrainConfig(3_000, 32, minutes=4)),
    "artifacts": (ArtifactConfig(128), TrainConfig(1_500, 32, minutes=4)),
    "skin": (SkinConfig(64), TrainConfig(5_000, 256, minutes=10)),
    "real_vs_generated": RealVsGeneratedExperiment(TrainConfig(1_000, 32)),
    "segmenters": SegmenterExperiment(SegmenterConfig(128), TrainConfig(300, 16, ema_nimg=2_000)),
    "segmentation": SegmentationExperiment(
        SegmenterConfig(128), COLAB_CGAN, TrainConfig(1_000), TrainConfig(10_000, minutes=20), 2_000, seeds=(0, 1)
    ),
    "segmentation_notebook": SegmentationExperiment(
        SegmenterConfig(128), COLAB_CGAN, TrainConfig(200), TrainConfig(2_000, minutes=4), 1_000, (0.1,), (0, 1)
    ),
    "real_vs_synthetic": RealVsSyntheticExperiment(
        ClassifierConfig(128, arch="resnet18"),
        COLAB_CGAN,
        TrainConfig(1_000, 32),
        TrainConfig(10_000, minutes=20),
        seeds=(0, 1),
    ),
    "real_vs_synthetic_notebook": RealVsSyntheticExperiment(
        ClassifierConfig(128, arch="resnet18"),
        COLAB_CGAN,
        TrainConfig(200, 32),
        TrainConfig(2_000, minutes=4),
        1_000,
        (0.1,),
        (0, 1),
    ),
    "backbones": BackboneExperiment(ClassifierConfig(128), TrainConfig(300, 32)),
    "balancing": BalancingExperiment(
        ClassifierConfig(64, arch="resnet18"),
        GANConfig(64),
        dcgan_config(64),
        TrainConfig(500, 32),
        TrainConfig(5_000, minutes=10),
        TrainConfig(5_000, minutes=10),
    ),
    "balancing_notebook": BalancingExperiment(
        ClassifierConfig(64, arch="resnet18"),
        GANConfig(64, base_channels=16),
        dcgan_config(64, base_channels=16),
        TrainConfig(100, 32),
        TrainConfig(1_000, minutes=1.5),
        TrainConfig(1_000, minutes=1.5),
        num_synthetic=600,
        folds=2,
        seeds=(0,),
    ),
    "features": FeatureComparison(("resnet18",), 1_000),
    "ablation": AblationExperiment(GANConfig(64, projected=True), TrainConfig(3_000)),
    "small_data": SmallDataExperiment(GANConfig(64, projected=True), TrainConfig(3_000)),
}

FULL_CGAN = GANConfig(128, base_channels=64)
FULL = {
    "store": StoreConfig(128),
    "cgan": (GANConfig(256, base_channels=64, projected=True), TrainConfig(60_000, 16)),
    "dcgan": (dcgan_config(128, base_channels=64), TrainConfig(40_000, 16)),
    "segmenter": (SegmenterConfig(256, encoder_name="resnet34"), TrainConfig(8_000, 32)),
    "classifier": (ClassifierConfig(256, arch="resnet18"), TrainConfig(6_000, 64)),
    "artifacts": (ArtifactConfig(128), TrainConfig(1_500, 64)),
    "skin": (SkinConfig(64), TrainConfig(20_000, 256)),
    "segmentation": SegmentationExperiment(
        SegmenterConfig(256, encoder_name="resnet34"),
        GANConfig(256, base_channels=64),
        TrainConfig(4_000, 32),
        TrainConfig(40_000, 16),
        4_000,
    ),
    "real_vs_synthetic": RealVsSyntheticExperiment(
        ClassifierConfig(128, arch="resnet18"), FULL_CGAN, TrainConfig(4_000, 64), TrainConfig(40_000, 16), 14_000
    ),
    "real_vs_generated": RealVsGeneratedExperiment(TrainConfig(4_000, 64)),
    "backbones": BackboneExperiment(
        ClassifierConfig(128),
        TrainConfig(500, 32, ema_nimg=2_000),  # few: the same on a large GPU and on two cores
        ("resnet18", "resnet50", "vgg19", "mobilenet_v2", "efficientnet_lite1", "small_cnn"),
    ),
    "segmenters": SegmenterExperiment(SegmenterConfig(128), TrainConfig(300, 16, ema_nimg=2_000)),
    "balancing": BalancingExperiment(
        ClassifierConfig(128, arch="resnet18"),
        FULL_CGAN,
        dcgan_config(128, base_channels=64),
        TrainConfig(4_000, 64),
        TrainConfig(40_000, 16),
        TrainConfig(40_000, 16),
        num_synthetic=6_000,
        real_per_synthetic=(1, 4),
    ),
    "features": FeatureComparison(("resnet18",), 2_000),
    "ablation": AblationExperiment(replace(FULL_CGAN, projected=True), TrainConfig(20_000, 16)),
    "small_data": SmallDataExperiment(replace(FULL_CGAN, projected=True), TrainConfig(20_000, 16)),
}
FULL |= {f"{name}_notebook": FULL[name] for name in ("segmentation", "real_vs_synthetic", "balancing")}

PRESETS = {"smoke": SMOKE, "demo": DEMO, "colab": COLAB, "full": FULL}
