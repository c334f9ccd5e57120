"""Networks as ONNX files, for programs without PyTorch. Batches may have any size.

Writing needs the packages onnx and onnxscript, running one such as onnxruntime. The random numbers of a generator, z
and noise maps, are inputs of its file, all from N(0, 1).
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.data.files import DataError, atomic_file
from helpers.models.networks import BaseGenerator
from helpers.models.sampling import NoiseRecorder

NEEDED = ("onnx", "onnxscript")


class GeneratorGraph(nn.Module):
    """A generator whose random numbers are inputs: sketch (B, 1, S, S) in {0, 1} unless it takes none, label (B,)
    int64, z (B, Z), artifacts (B, 7) in {0, 1} if it was conditioned on them, then noise maps (B, c, h, h) from coarse
    to fine, of which the first is its code -> image (B, 3, S, S) in [-1, 1]. `inputs` are examples, B = 2, by name."""

    def __init__(self, generator: BaseGenerator):
        super().__init__()
        self.generator = generator
        values, vectors = torch.linalg.eigh(generator.running_cov.float().nan_to_num())  # see `match_stats`
        self.register_buffer("root", vectors * values.clamp(min=0).sqrt() @ vectors.T)
        self.inputs = {"label": torch.tensor([0, 0]), "z": torch.zeros(2, generator.z_dim)}
        if generator.takes_sketch:
            self.inputs = {"sketch": torch.zeros(2, 1, generator.size, generator.size)} | self.inputs
        if generator.num_artifacts:
            self.inputs["artifacts"] = torch.zeros(2, generator.num_artifacts)
        recorder = NoiseRecorder()
        with torch.random.fork_rng(), torch.no_grad():
            self._generate(self.inputs, recorder)
        self.inputs |= {f"noise_{k}": noise for k, noise in enumerate(recorder.maps)}

    def _generate(self, named: dict[str, Tensor], noise) -> Tensor:
        return self.generator(*map(named.get, ("sketch", "label", "z", "artifacts")), noise=noise)

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.inputs, inputs, strict=True))
        maps = iter([named[name] for name in named if name.startswith("noise_")])
        self.generator.match_stats = lambda z: self.generator.running_mean + z @ self.root  # ONNX has no eigenvectors
        try:
            return self._generate(named, lambda x, channels: next(maps))
        finally:
            del self.generator.match_stats


class PredictorGraph(nn.Module):
    """image (B, 3, S, S) in [-1, 1] -> probability of lesion (B, 1, S, S) by a segmenter, of one view; or calibrated
    probabilities of the classes (B, K) by a classifier."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.inputs = {"image": torch.zeros(2, 3, network.size, network.size)}

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(image)
        return logits.sigmoid() if logits.ndim == 4 else (logits / self.network.temperature).softmax(dim=1)


def export_onnx(network: nn.Module, file: str | Path) -> Path:
    """Write a generator, segmenter or classifier to `file`, with float32 weights; returns its path. Raises `DataError`
    without the packages `NEEDED`."""
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        raise DataError(f"ONNX files need {' and '.join(absent)}: pip install {' '.join(NEEDED)}")
    network = network.cpu().float().eval()
    is_generator, batch = isinstance(network, BaseGenerator), {0: torch.export.Dim("batch")}
    graph = GeneratorGraph(network) if is_generator else PredictorGraph(network)
    with atomic_file(Path(file)) as temporary, _quiet():
        torch.onnx.export(
            graph.eval(),
            tuple(graph.inputs.values()),
            str(temporary),
            input_names=list(graph.inputs),
            output_names=["image" if is_generator else "probability"],
            dynamic_shapes=(tuple(batch for _ in graph.inputs),) if is_generator else (batch,),
            external_data=False,
            dynamo=True,
        )
    return Path(file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and warnings."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
