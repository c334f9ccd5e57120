import socket

import pytest
import torch
from torch import nn

from helpers.models.classifier import Backbone, torchvision_network
from helpers.models.weights import (
    DOWNLOAD_TIMEOUT,
    download_timeout,
    fix_densenet_keys,
    fuse_batchnorm,
    imagenet_weights,
)


def test_imagenet_weights_prefers_folder_and_is_none_offline(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv("LESION_WEIGHTS_DIR", str(tmp_path))
    downloads = []

    def offline(url, **_):
        downloads.append(url)
        raise OSError("no connection")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    arch, key = "mobilenet_v3_small", "features.0.0.weight"
    assert imagenet_weights(arch) is None and Backbone(arch).init == "random init" and len(downloads) == 2
    published = torchvision_network(arch).state_dict()
    torch.save(published, tmp_path / "mobilenet_v3_small-047dcff4.pth")  # torchvision's file name
    assert torch.equal(imagenet_weights(arch)[key], published[key])
    torch.save(published | {key: published[key] + 1}, tmp_path / "mobilenet_v3_small-imagenet.pth")  # takes precedence
    backbone = Backbone(arch)
    assert backbone.init == "ImageNet" and len(downloads) == 2
    assert torch.equal(backbone.network.state_dict()[key], published[key] + 1)


def test_fix_densenet_keys_published_names_match_modules():
    weights = torchvision_network("densenet121").state_dict()
    published = {k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): w for k, w in weights.items()}
    assert list(published) != list(weights) and list(fix_densenet_keys(published)) == list(weights)


def test_download_timeout_error_inside_restores_default_and_prints_nothing(capsys):
    before = socket.getdefaulttimeout()
    with pytest.raises(OSError, match="no connection"), download_timeout():
        assert socket.getdefaulttimeout() == DOWNLOAD_TIMEOUT
        print("/home/someone/.cache")
        raise OSError("no connection")
    assert socket.getdefaulttimeout() == before and capsys.readouterr().out == ""


def test_fuse_batchnorm_nested_network_keeps_its_output():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)), nn.ReLU())
    network(5 + 3 * torch.randn(64, 3, 8, 8))  # running statistics other than 0 and 1
    x = torch.randn(2, 3, 8, 8)
    expected = network.eval()(x)
    fused = fuse_batchnorm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert torch.allclose(fused(x), expected, atol=1e-5)
