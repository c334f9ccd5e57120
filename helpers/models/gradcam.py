"""Where a classifier looks: Grad-CAM (Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via
Gradient-Based Localization*, 2017)."""

import cv2
import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import nn

from helpers.data.store import to_tensors
from helpers.models.classifier import Classifier


def grad_cam(classifier: Classifier, image: np.ndarray, label: int) -> np.ndarray:
    """What speaks for `label` in `image uint8 (S, S, 3)`: `float32 (S, S)` in [0, 1], the strongest place 1; all 0
    where nothing does. It is as coarse as the network's last map, some 32 pixels a cell."""
    device = next(classifier.parameters()).device
    given = to_tensors({"images": image[None]}, device)["images"].requires_grad_()
    found = LayerGradCam(classifier, last_conv_layer(classifier)).attribute(given, target=label, relu_attributions=True)
    coarse = found[0, 0].detach().float().cpu().numpy()
    heat = cv2.resize(coarse, image.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0)
    return heat / heat.max() if heat.any() else heat


@torch.no_grad()
def last_conv_layer(classifier: Classifier) -> nn.Module:
    """The last layer of the backbone that still tells places apart."""
    maps = []

    def note(module: nn.Module, given: tuple, found: torch.Tensor) -> None:
        if isinstance(found, torch.Tensor) and found.ndim == 4 and found.shape[-1] > 1:
            maps.append(module)

    leaves = [m for m in classifier.backbone.network.modules() if not list(m.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        device = next(classifier.parameters()).device
        classifier(torch.zeros(1, 3, classifier.size, classifier.size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return maps[-1]
