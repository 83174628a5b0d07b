"""A segmentation whose pictures may have any size: its regions are resolved picture by picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.targets.scalars import Box, Region

RNG = np.random.default_rng(0)
WEIGHTS = {name: (RNG.normal(size=shape) * 0.3).astype(np.float32) for name, shape in (
    ("w0", (8, 3, 3, 3)), ("w1", (8, 8, 3, 3)), ("w2", (4, 8, 1, 1)))}  # fmt: skip
SPEC: dict[str, Any] = {"scale": 1 / 255, "resize": {"mode": "stretch", "size": [40, 52]}}


def model() -> onnx.ModelProto:
    """Scores of four classes at half the height and width."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, "h", "w"])],
        [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def forward(x: torch.Tensor) -> torch.Tensor:
    w = {name: torch.tensor(array.astype(np.float64)) for name, array in WEIGHTS.items()}
    y = torch.nn.functional.conv2d(x, w["w0"], padding=1, stride=2).relu()
    return torch.nn.functional.conv2d(torch.nn.functional.conv2d(y, w["w1"], padding=1).relu(), w["w2"])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 52), (64, 32)])
def test_regions_of_pictures_of_any_size(size: tuple[int, int]) -> None:
    explainer = onnxcam.Explainer(model(), task="segment", preprocess=SPEC)
    assert explainer.manifest["target"]["mode"] == "none"
    assert explainer.layers == ["d"]
    batch = np.random.default_rng(1).uniform(size=(1, 3, *size)).astype(np.float32)
    x = torch.tensor(batch.astype(np.float64), requires_grad=True)
    (expected,) = torch.autograd.grad(forward(x)[0, 1, 2:10, 3:8].sum(), x)
    for one in (explainer, onnxcam.Explainer(explainer.source)):
        actual = one.attribution(batch, Region(1, (6, 4, 16, 20)), method="saliency")[0]
        assert np.linalg.norm(actual - np.asarray(expected[0])) < 1e-5 * np.linalg.norm(np.asarray(expected))
        assert one.attribute(batch, Region(1, (6, 4, 16, 20))).shape == (1, *size)


def test_what_a_file_of_any_size_cannot_hold_is_said() -> None:
    with pytest.raises(onnxcam.OnnxcamError, match="input_size="):
        onnxcam.augment(model(), task="segment")


@pytest.mark.sample(1)
@pytest.mark.parametrize("call", [lambda e: e.run(np.zeros((1, 3, 40, 52), np.float32)), lambda e: e.explain(
    np.zeros((9, 9, 3), np.uint8), target=Box(0))])  # fmt: skip
def test_what_is_of_another_kind_of_model(call: Any) -> None:
    with pytest.raises(onnxcam.OnnxcamError, match=r"kind is 'segmentation'|name a region"):
        call(onnxcam.Explainer(model(), task="segment", preprocess=SPEC))
