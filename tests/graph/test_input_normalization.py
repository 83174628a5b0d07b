"""The normalisation a graph begins with, from graphs as Keras and PyTorch models come out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcam.network import manifest
from onnxcam.network.explainable import augment
from tests.support import models

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def beginning_with(steps: list[tuple], nhwc: bool = False, channels: int = 3) -> onnx.ModelProto:
    """A tiny CNN whose picture passes through the steps first: (operator, constant); Reversed is constant - picture."""
    model = models.tiny_cnn(nhwc=nhwc, channels=channels)
    first = model.graph.node[0]
    value, nodes = "input", []
    for number, (op_type, *constants) in enumerate(steps):
        names = []
        for place, constant in enumerate(constants):
            names.append(f"c{number}_{place}")
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant, np.float32), names[-1]))
        inputs = [*names, value] if op_type == "Reversed" else [value, *names]
        nodes.append(onnx.helper.make_node("Sub" if op_type == "Reversed" else op_type, inputs, [f"step{number}"]))
        value = f"step{number}"
    first.input[0] = value
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.checker.check_model(model)
    return model


def preprocess_of(model: onnx.ModelProto) -> dict | None:
    header = manifest.read(augment(model))
    assert header is not None
    return header["input"].get("normalization")


@pytest.mark.parametrize(
    ("steps", "mean", "std"),
    [
        ([("Mul", 1 / 255)], [0], [255]),
        ([("Div", [255.0])], [0], [255]),
        ([("Mul", 1 / 127.5), ("Add", -1.0)], [127.5], [127.5]),
        ([("Mul", 1 / 127.5), ("Sub", 1.0)], [127.5], [127.5]),
        ([("Sub", 0.5), ("Identity",), ("Mul", 2.0)], [0.5], [0.5]),
        ([("Reversed", 255.0), ("Mul", 1 / 255)], [255], [255]),
    ],
)
@pytest.mark.parametrize("nhwc", [False, True])
def test_scaling_by_one_number(steps: list, mean: list, std: list, nhwc: bool) -> None:
    value = preprocess_of(beginning_with(steps, nhwc))
    assert value is not None
    np.testing.assert_allclose(value["mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value["std"], std, rtol=1e-5)


@pytest.mark.parametrize("nhwc", [False, True])
def test_scaling_by_channel_as_keras_efficientnet_does(nhwc: bool) -> None:
    shape = (1, 1, 1, 3) if nhwc else (1, 3, 1, 1)
    steps = [("Mul", 1 / 255), ("Sub", np.reshape(MEAN, shape)), ("Div", np.reshape(STD, shape))]
    value = preprocess_of(beginning_with(steps, nhwc))
    assert value is not None
    np.testing.assert_allclose(value["mean"], 255 * np.array(MEAN), rtol=1e-5)
    np.testing.assert_allclose(value["std"], 255 * np.array(STD), rtol=1e-5)


@pytest.mark.parametrize("nhwc", [False, True])
def test_batch_normalisation_first_tells_by_its_statistics(nhwc: bool) -> None:
    model = beginning_with([], nhwc)
    conv = next(node for node in model.graph.node if node.name == "first")
    for name, value in {"g": [9, 9, 9], "b": [5, 5, 5], "m": MEAN, "v": np.square(STD)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    node = onnx.helper.make_node("BatchNormalization", [conv.input[0], "g", "b", "m", "v"], ["bn"], epsilon=0.0)
    conv.input[0] = "bn"
    model.graph.node.insert(list(model.graph.node).index(conv), node)
    entry = preprocess_of(model)
    assert entry is not None
    np.testing.assert_allclose(entry["mean"], MEAN, rtol=1e-5)
    np.testing.assert_allclose(entry["std"], STD, rtol=1e-5)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [("Identity",)],
        [("Relu",)],
        [("Mul", 0.0)],
        [("Add", np.zeros((1, 3, 32, 32)))],
    ],
)
def test_anything_else_is_not_taken_for_one(steps: list) -> None:
    assert preprocess_of(beginning_with(steps)) is None


def test_a_reciprocal_is_not_taken_for_one() -> None:
    model = beginning_with([("Div", 1.0)])
    node = model.graph.node[0]
    node.input[0], node.input[1] = node.input[1], node.input[0]
    assert preprocess_of(model) is None


def test_an_input_used_twice_is_left_alone() -> None:
    model = beginning_with([("Mul", 1 / 255)])
    model.graph.node.insert(1, onnx.helper.make_node("Add", ["step0", "input"], ["both"]))
    model.graph.node[2].input[0] = "both"
    assert preprocess_of(model) is None
