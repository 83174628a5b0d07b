"""Ablation-CAM and Recipro-CAM before linear layers: what a change reaches against running the whole tail."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxcam import Probability
from onnxcam.explain.explainer import Explainer
from onnxcam.network import dense
from onnxcam.network.network import Network

LAYER = "a"
HEAD = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[N, 3, 12, 10] x) => (float[N, 7] y) {
  c = Conv<pads = [1, 1, 1, 1]>(x, W0, B0)
  a = Relu(c)
"""
TAILS = {
    "VGG": "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)\n"
    " q = Reshape(p, flat)\n u = Gemm<transB = 1>(q, W1, B1)",
    "overlapping pools": "r = MaxPool<kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 0]>(a)\n"
    " p = AveragePool<kernel_shape = [1, 1]>(r)\n q = Flatten(p)\n u = Gemm(q, W1, B1)",
    "not zero at zero": "r = LeakyRelu(a)\n l = Clip(r, low)\n p = MaxPool<kernel_shape = [2, 2], strides = [2, "
    "2]>(l)\n q = Flatten(p)\n m = MatMul(q, W1)\n u = Add(m, B1)",
}
END = """
  h = Relu(u)
  y = Gemm(h, W2)
}
"""


def model(tail: str) -> onnx.ModelProto:
    """A convolution, ReLU and pooling to 6 × 6 × 5 columns, two linear layers."""
    net = parser.parse_model(HEAD + TAILS[tail] + END)
    rng = np.random.default_rng(len(tail))
    first = (20, 180) if "transB" in TAILS[tail] else (180, 20)
    arrays = {
        "W0": rng.normal(size=(6, 3, 3, 3)), "B0": rng.normal(size=6), "W1": 0.05 * rng.normal(size=first),
        "B1": rng.normal(size=20), "W2": 0.5 * rng.normal(size=(20, 7)), "low": np.asarray(0.3),
    }  # fmt: skip
    read = {name for node in net.graph.node for name in node.input}
    for name, array in arrays.items():
        if name in read:
            net.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    if "flat" in read:
        net.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 180]), "flat"))
    return net


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_FEWEST", 1)


def both(monkeypatch: pytest.MonkeyPatch, net: onnx.ModelProto, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The map by the columns that change, and by running the tail on every variant."""
    x = np.random.default_rng(5).normal(size=(2, 3, 12, 10)).astype(np.float32)
    explainer = Explainer(net, layers=[LAYER], providers=["CPUExecutionProvider"], kind="logits")
    assert explainer.sessions.dense_tail(LAYER) is not None
    fast = explainer.attribute(x, normalize="none", size="layer", **settings)
    monkeypatch.setattr(explainer.sessions, "dense_tail", lambda layer: None)
    return fast, explainer.attribute(x, normalize="none", size="layer", **settings)


@pytest.mark.parametrize("settings", [
    {"method": "ablationcam"}, {"method": "ablationcam", "channels": 4}, {"method": "reciprocam"},
    {"method": "ablationcam", "target": Probability(2)}, {"method": "reciprocam", "target": [Probability(), 3]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("tail", TAILS)
def test_equal_to_running_the_tail(monkeypatch: pytest.MonkeyPatch, tail: str, settings: dict[str, Any]) -> None:
    fast, slow = both(monkeypatch, model(tail), **settings)
    assert np.abs(slow).max() > 0
    assert np.abs(fast - slow).max() <= 1e-4 * np.abs(slow).max()


@pytest.mark.parametrize(("old", "new"), [
    ("q = Flatten(p)", "t = Transpose<perm = [0, 2, 3, 1]>(p)\n q = Flatten(t)"),
    ("q = Flatten(p)", "s = Add(p, p)\n q = Flatten(s)"),
    ("q = Flatten(p)", "s = ReduceMax<keepdims = 1>(p, one)\n q = Flatten(s)"),
    ("u = Gemm(q, W1, B1)", "u = Gemm<alpha = 0.5>(q, W1, B1)"),
    ("p = AveragePool<kernel_shape = [1, 1]>(r)", "p = Softmax<axis = 1>(r)"),
])  # fmt: skip
def test_a_tail_in_which_channels_meet_is_run_whole(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TAILS, "changed", TAILS["overlapping pools"].replace(old, new))
    net = model("changed")
    if "one" in new:
        net.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
        weights = next(one for one in net.graph.initializer if one.name == "W1")
        weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights)[:30], "W1"))
    assert dense.dense_after(Network(net), LAYER) is None
    explainer = Explainer(net, layers=[LAYER], providers=["CPUExecutionProvider"], kind="logits")
    x = np.random.default_rng(5).normal(size=(1, 3, 12, 10)).astype(np.float32)
    assert explainer.attribute(x, method="ablationcam", normalize="none").max() > 0


def test_a_small_layer_or_an_affine_tail_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_FEWEST", 1 << 20)
    assert dense.dense_after(Network(model("VGG")), LAYER) is None
    assert dense.dense_after(Network(model("VGG")), "") is None


def test_many_places_are_run_as_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcam.explain import dense_tail

    monkeypatch.setattr(dense_tail, "_LARGEST", 1 << 10)
    fast, slow = both(monkeypatch, model("VGG"), method="reciprocam")
    assert np.abs(fast - slow).max() <= 1e-6 * np.abs(slow).max()
