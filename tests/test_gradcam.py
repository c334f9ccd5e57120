import numpy as np
import pytest
import torch
from torch import nn

from helpers.models.classifier import Classifier, ClassifierConfig, build_classifier
from helpers.models.gradcam import grad_cam, last_conv_layer


def color_classifier() -> Classifier:
    """Logit 0 is the mean of red, logit 1 that of green; no pixel raises logit 2."""
    classifier = Classifier(ClassifierConfig(64, ("red", "green", "neither")), pretrained=False)
    select_color = nn.Conv2d(3, 2, 1, bias=False)
    select_color.weight.data = torch.eye(3)[:2, :, None, None].clone()
    classifier.backbone.network = nn.Sequential(
        nn.AvgPool2d(8), select_color, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    classifier.head = nn.Linear(2, 3, bias=False)
    classifier.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    return classifier.eval().requires_grad_(False)


def test_grad_cam_color_classifier_highlights_colored_corner():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:16, :16, 0] = 255  # red, top left
    image[48:, 48:, 1] = 255  # green, bottom right
    red, green, neither = (grad_cam(color_classifier(), image, label) for label in range(3))
    assert red.shape == (64, 64) and red.dtype == np.float32 and red.max() == 1 and red.min() >= 0
    assert red[:16, :16].mean() > 0.6 and red[:, 32:].max() < 0.1 and red[32:].max() < 0.1
    assert green[48:, 48:].mean() > 0.6 and green[:32].max() < 0.1
    assert neither.max() == 0


# AlexNet pools to 6 x 6 before its linear layers; Swin computes in channels-last order.
@pytest.mark.parametrize(
    ("arch", "cells"),
    [
        ("small_cnn", 2),
        ("mobilenet_v2", 2),
        ("efficientnet_lite1", 2),
        ("alexnet", 6),
        ("densenet121", 2),
        ("convnext_tiny", 2),
        ("swin_t", 2),
    ],
)
def test_last_conv_layer_any_arch_outputs_square_feature_map(arch, cells):
    torch.manual_seed(0)
    classifier = build_classifier(arch, ["a", "b"], 64, pretrained=False).eval()
    shapes = []
    hook = last_conv_layer(classifier).register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    classifier(torch.zeros(1, 3, 64, 64))
    hook.remove()
    assert len(shapes) == 1 and shapes[0][2:] == (cells, cells) and shapes[0][1] > cells
    heatmap = grad_cam(classifier, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), 1)
    assert heatmap.shape == (64, 64) and heatmap.min() >= 0 and heatmap.max() in (0, 1)
    assert all(param.grad is None for param in classifier.parameters()), "no gradients of the weights"
