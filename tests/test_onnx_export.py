import sys

import numpy as np
import pytest
import torch

from helpers.data.files import DataError
from helpers.models import onnx_export
from helpers.models.classifier import build_classifier
from helpers.models.gan import GANConfig, dcgan_config
from helpers.models.onnx_export import GeneratorGraph, PredictorGraph, export_onnx
from helpers.models.sampling import NoiseRecorder
from helpers.models.segmenter import Segmenter, SegmenterConfig

CLASSES = ("MEL", "NV")


def networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    classifier = build_classifier("small_cnn", CLASSES, 64, pretrained=False)
    classifier.temperature = 1.7
    made = {
        "generator": GANConfig(64, CLASSES, "contour", base_channels=8).generator(),
        "generator without sketch": dcgan_config(64, classes=CLASSES, base_channels=8).generator(),
        "segmenter": Segmenter(SegmenterConfig(64, decoder_channels=32, pretrained=False), pretrained=False),
        "classifier": classifier,
    }
    return {name: network.eval() for name, network in made.items()}


def random_inputs(graph: GeneratorGraph | PredictorGraph, count: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    inputs = {name: torch.randn(count, *x.shape[1:], generator=rng) for name, x in graph.inputs.items()}
    return inputs | ({"label": torch.arange(count) % 2} if "label" in inputs else {})


def test_generator_graph_gives_the_generators_images():
    generator = networks()["generator"]
    generator.update_stats(torch.randn(500, generator.z_dim) @ torch.randn(generator.z_dim, generator.z_dim))
    graph, recorder = GeneratorGraph(generator), NoiseRecorder()
    sketch, label, z = torch.rand(2, 1, 64, 64).round(), torch.tensor([0, 1]), torch.randn(2, generator.z_dim)
    artifacts = torch.tensor([[0.0] * 7, [1.0] * 7])
    with torch.no_grad():
        expected = generator(sketch, label, z, artifacts, noise=recorder)
        actual = graph(sketch, label, z, artifacts, *recorder.maps)
    assert list(graph.inputs)[:4] == ["sketch", "label", "z", "artifacts"]
    assert torch.allclose(actual, expected, atol=1e-5)
    assert "match_stats" not in vars(generator), "the generator is as before"


@pytest.mark.parametrize("name", list(networks()))
def test_onnxruntime_gives_the_same_output(tmp_path, name):
    for package in onnx_export.NEEDED:
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    network = networks()[name]
    file = export_onnx(network, tmp_path / "network.onnx")
    graph = GeneratorGraph(network) if name.startswith("generator") else PredictorGraph(network)
    session = runtime.InferenceSession(str(file))
    for count in (1, 3):
        inputs = random_inputs(graph, count)
        with torch.no_grad():
            expected = graph(*inputs.values()).numpy()
        (actual,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        assert expected.std() > 1e-3 and np.abs(actual - expected).max() < 1e-3
    assert list(tmp_path.iterdir()) == [file], "weights are inside the file"


def test_classifier_graph_is_calibrated():
    classifier = networks()["classifier"]
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        probs = PredictorGraph(classifier)(image)
        assert torch.allclose(probs, (classifier(image) / 1.7).softmax(dim=1)) and torch.allclose(
            probs.sum(1), torch.ones(2)
        )


def test_export_onnx_without_the_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install onnx onnxscript"):
        export_onnx(networks()["classifier"], tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
