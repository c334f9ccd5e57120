import numpy as np
import pytest
import torch
from torch import nn

from helpers.models.classifier import Classifier, ClassifierConfig, build_classifier
from helpers.models.gradcam import grad_cam, last_conv_layer


def sees_red_and_green() -> Classifier:
    """Label 0 is how red the picture is, label 1 how green; nothing speaks for label 2."""
    classifier = Classifier(ClassifierConfig(64, ("red", "green", "none")), pretrained=False)
    colours = nn.Conv2d(3, 2, 1, bias=False)
    colours.weight.data = torch.eye(3)[:2, :, None, None].clone()
    classifier.backbone.network = nn.Sequential(
        nn.AvgPool2d(8), colours, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    classifier.head = nn.Linear(2, 3, bias=False)
    classifier.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    return classifier.eval().requires_grad_(False)


def test_heat_is_where_the_colour_is():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:16, :16, 0] = 255  # red above left
    image[48:, 48:, 1] = 255  # green below right
    red, green, none = (grad_cam(sees_red_and_green(), image, label) for label in range(3))
    assert red.shape == (64, 64) and red.dtype == np.float32 and red.max() == 1 and red.min() >= 0
    assert red[:16, :16].mean() > 0.6 and red[:, 32:].max() < 0.1 and red[32:].max() < 0.1
    assert green[48:, 48:].mean() > 0.6 and green[:32].max() < 0.1
    assert none.max() == 0


@pytest.mark.parametrize("name", ["small", "mobilenet_v2", "vgg11", "densenet121", "convnext_tiny", "swin_t"])
def test_the_last_map_of_any_network_still_has_places(name):
    torch.manual_seed(0)
    classifier = build_classifier(name, ["a", "b"], 64, pretrained=False).eval()
    heat = grad_cam(classifier, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), 1)
    assert isinstance(last_conv_layer(classifier), nn.Module)
    assert heat.shape == (64, 64) and heat.min() >= 0 and heat.max() in (0, 1)
    assert all(parameter.grad is None for parameter in classifier.parameters())
