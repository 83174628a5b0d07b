"""What torch's older exporter computes of shapes in the graph: attention and embeddings, against torch itself."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam.network.network import Network

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
EMBEDDED = 24


class Attending(torch.nn.Module):
    """Patches, multi-head attention as `torch.nn.MultiheadAttention` has it, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 16, 8, 8)
        self.attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x: Any, patches: Any = None) -> Any:
        patches = self.patches(x) if patches is None else patches
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.norm(tokens).mean(1))


class Embedding(torch.nn.Module):
    """A vector of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.head = torch.nn.Linear(8, EMBEDDED)

    def forward(self, x: Any) -> Any:
        vector = self.head(torch.relu(self.features(x)).mean((2, 3)))
        return torch.nn.functional.normalize(vector, dim=1)


def exported(network: Any) -> bytes:
    """The file, its batch dynamic, in evaluation mode but with the graph of training: no fused attention."""
    buffer, axes = io.BytesIO(), {"x": {0: "N"}, "y": {0: "N"}}
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network.eval(), (torch.zeros(2, 3, 32, 32),), buffer, dynamo=False, **names)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return buffer.getvalue()


def made(kind: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def test_attention_of_the_older_exporter_has_the_gradients_of_autograd() -> None:
    network = made(Attending)
    file = exported(network)
    batch = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    graph = Network(file).graph
    unknown = [name for node in graph.nodes for name in node.output if name and graph.shape(name) is None]
    assert not unknown and any(node.op_type == "Softmax" for node in graph.nodes)
    raw = onnxcam.Explainer(file).run(batch, [0, 3, 4], layer="/patches/Conv_output_0")
    with torch.no_grad():
        patches = network.patches(torch.from_numpy(batch))
    patches.requires_grad_(True)
    scores = network(None, patches)
    (gradient,) = torch.autograd.grad(scores[[0, 1, 2], [0, 3, 4]].sum(), patches)
    np.testing.assert_allclose(raw.scores, scores.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(gradient.numpy()).max() > 1e-3
    np.testing.assert_allclose(raw.gradients, gradient.numpy(), rtol=1e-3, atol=1e-6)


def test_a_normalised_embedding_whose_width_the_older_exporter_names_is_one() -> None:
    network = made(Embedding)
    file = exported(network)
    assert Network(file).graph.shape("y") == ("N", EMBEDDED)
    explainer = onnxcam.Explainer(file)
    assert explainer.manifest["scores"]["kind"] == "embedding"
    batch = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        vectors = network(torch.from_numpy(batch)).numpy()
    maps = explainer.attribute(batch, onnxcam.targets.Similarity(vectors[0]))
    assert maps.shape == (2, 32, 32) and maps.any()
