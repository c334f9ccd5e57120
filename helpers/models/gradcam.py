"""Grad-CAM: which image regions support a class (Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks
via Gradient-Based Localization*, arXiv 1610.02391)."""

from functools import lru_cache

import cv2
import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import nn

from helpers.data.batches import to_tensors
from helpers.models.classifier import Classifier


def grad_cam(classifier: Classifier, image: np.ndarray, label: int) -> np.ndarray:
    """Heatmap `float32 (S, S)` in [0, 1] of the evidence for `label` in `image uint8 (S, S, 3)`; the maximum is 1, or 0
    if nothing supports the label. Its resolution is that of the last feature map, about 32 pixels per cell."""
    device = next(classifier.parameters()).device
    inputs = to_tensors({"images": image[None]}, device)["images"].requires_grad_()
    layer = last_conv_layer(classifier)
    attribution = LayerGradCam(classifier, layer).attribute(inputs, target=label, relu_attributions=True)
    coarse = attribution[0, 0].detach().float().cpu().numpy()
    heatmap = cv2.resize(coarse, image.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0)
    return heatmap / heatmap.max() if heatmap.any() else heatmap


@lru_cache(maxsize=1)  # of the classifier in use
@torch.no_grad()
def last_conv_layer(classifier: Classifier) -> nn.Module:
    """The last layer of the backbone whose output is a feature map (B, C, H, W) with W > 1."""
    layers = []

    def record(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            layers.append(module)

    leaves = [m for m in classifier.backbone.network.modules() if not list(m.children())]
    hooks = [leaf.register_forward_hook(record) for leaf in leaves]
    try:
        device = next(classifier.parameters()).device
        classifier(torch.zeros(1, 3, classifier.size, classifier.size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return layers[-1]
