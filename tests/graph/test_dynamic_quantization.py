"""Models whose quantization is done at run time or block by block: predictions as in the plain file, gradients straight
through."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxcam
from onnxcam.diagnose.gradients import check
from onnxcam.errors import UnsupportedOperator
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.normalize import prepare
from onnxcam.network import manifest
from tests.graph.test_fused import normal, optimised
from tests.support.runtime import run

CPU = ["CPUExecutionProvider"]
M = "com.microsoft"


def network() -> onnx.ModelProto:
    """Convolutions, a ReLU between two products, logits."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[N, 3, 12, 12] input) => (float[N, 6] logits) {\n'
        "c = Conv<pads = [1, 1, 1, 1]>(input, w1, b1)  r = Relu(c)\n"
        "d = Conv<strides = [2, 2]>(r, w2, b2)  a = Relu(d)\n"
        "f = Flatten(a)  h = MatMul(f, w3)  i = Add(h, b3)  k = Relu(i)  l = MatMul(k, w4)  logits = Add(l, b4) }"
    )
    shapes = {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (8, 8, 3, 3),
        "b2": (8,),
        "w3": (200, 32),
        "b3": (32,),
        "w4": (32, 6),
    }
    for name, shape in (shapes | {"b4": (6,)}).items():
        fan = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        model.graph.initializer.append(
            numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32), name)
        )
    return model


@pytest.fixture(scope="module", params=["QUInt8", "QInt8"])
def dynamic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    quantization = pytest.importorskip("onnxruntime.quantization")
    folder = tmp_path_factory.mktemp("dynamic")
    onnx.save(network(), folder / "float.onnx")
    logging.disable(logging.WARNING)
    quantization.quantize_dynamic(
        folder / "float.onnx",
        folder / "dynamic.onnx",
        weight_type=quantization.QuantType[request.param],
        op_types_to_quantize=["MatMul"] if request.param == "QInt8" else ["Conv", "MatMul"],
        per_channel=request.param == "QInt8",
    )
    logging.disable(logging.NOTSET)
    return onnx.load(folder / "dynamic.onnx")


def test_a_dynamically_quantized_model_is_explained(dynamic: onnx.ModelProto) -> None:
    assert "DynamicQuantizeLinear" in {node.op_type for node in dynamic.graph.node}
    batch = normal(3, 3, 12, 12)
    (expected,) = run(dynamic, input=batch).values()
    explainable = onnxcam.augment(dynamic, ["a"])
    assert {node.domain for node in explainable.graph.node} <= {"", "ai.onnx"}
    actual = run(explainable, input=batch)
    assert np.abs(actual["logits"] - expected).max() <= 1e-5 * np.abs(expected).max()
    report = check(explainable, providers=CPU)
    assert report.passed, report.lines()
    record = manifest.read(explainable)
    assert record is not None and "quantization" in record["approximations"][0]
    plain = Explainer(network(), layers=["a"], providers=CPU).run(batch, [1, 2, 3])
    raw = Explainer(explainable, providers=CPU).run(batch, [1, 2, 3])
    error = np.linalg.norm(raw.gradients - plain.gradients) / np.linalg.norm(plain.gradients)
    assert error < 0.1  # the float model's gradient, but for gates that rounding turns


def test_shapes_that_the_quantizer_declared_hide_no_convolution(dynamic: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(dynamic)
    sums = [node.output[0] for node in dynamic.graph.node if node.op_type in ("ConvInteger", "MatMulInteger")]
    assert {info.name: info for info in inferred.graph.value_info}.keys() >= set(sums)
    batch = normal(2, 3, 12, 12)
    raw = [Explainer(model, layers=["r"], providers=CPU).run(batch, [1, 2]) for model in (dynamic, inferred)]
    assert raw[0].gradients.any()
    np.testing.assert_array_equal(raw[0].gradients, raw[1].gradients)


def test_scales_are_no_paths_and_end_no_layer(dynamic: onnx.ModelProto) -> None:
    assert [layer.name for layer in onnxcam.layers(dynamic)] == [layer.name for layer in onnxcam.layers(network())]
    (default,) = [layer for layer in onnxcam.layers(dynamic) if layer.default]
    assert default.name == "a"
    record = manifest.read(onnxcam.augment(dynamic))
    assert record is not None and record["layers"][0]["covers"] == "all"


@pytest.mark.parametrize("level", ["extended", "all"])
def test_so_is_what_the_runtime_saves_of_it(dynamic: onnx.ModelProto, level: str, tmp_path: Path) -> None:
    saved = optimised(dynamic, level, tmp_path)
    assert {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"} & {node.op_type for node in saved.graph.node}
    batch = normal(3, 3, 12, 12)
    (expected,) = run(saved, input=batch).values()
    explainable = onnxcam.augment(saved)
    assert np.abs(run(explainable, input=batch)["logits"] - expected).max() <= 1e-5 * np.abs(expected).max()
    report = check(explainable, providers=CPU)
    assert report.passed, report.lines()


def by_blocks(
    bits: int, block: int, *, zeros: bool, bias: bool = False, width: int = 40, columns: int = 6
) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    blocks = -(-width // block)
    weights = {
        "b": rng.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.05, columns * blocks).astype(np.float32),
    }
    names = ["x", "b", "s"]
    if zeros:
        weights["z"] = rng.integers(0, 256, columns * -(-blocks * bits // 8)).astype(np.uint8)
        names.append("z")
    if bias:
        weights["c"] = normal(columns)
        names = [*names, *[""] * (5 - len(names)), "c"]
    node = helper.make_node("MatMulNBits", names, ["y"], domain=M, K=width, N=columns, bits=bits, block_size=block)
    graph = helper.make_graph(
        [node],
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(M, 1)], ir_version=8
    )


@pytest.mark.parametrize("case", [(4, 16, False), (4, 16, True), (4, 32, True), (8, 32, False), (8, 32, True)])
def test_weights_of_few_bits_are_dequantized(case: tuple[int, int, bool]) -> None:
    bits, block, zeros = case
    model, x = by_blocks(bits, block, zeros=zeros), normal(5, 40)
    (expected,), (actual,) = (run(m, x=x).values() for m in (model, prepare(model).model))
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    gradient = run(onnxcam.gradient(model, "y", ["x"]), {"x": x, "cotangent.y": np.eye(6, dtype=np.float32)[:5]})[
        "grad.x"
    ]
    rows = run(model, x=np.eye(40, dtype=np.float32))["y"].T[:5]
    assert np.abs(gradient - rows).max() < 1e-5


def test_a_bias_of_weights_of_few_bits() -> None:
    model, x = by_blocks(4, 16, zeros=False, bias=True), normal(5, 40)
    (expected,), (actual,) = (run(m, x=x).values() for m in (model, prepare(model).model))
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_reordered_weights_are_refused_by_name() -> None:
    model = by_blocks(4, 16, zeros=True)
    model.graph.node[0].input.append("order")
    model.graph.initializer.append(numpy_helper.from_array(np.arange(40, dtype=np.int32), "order"))
    with pytest.raises(UnsupportedOperator, match=r"MatMulNBits .* has reordered"):
        prepare(model)


def test_quantized_attention_is_its_parts() -> None:
    rng = np.random.default_rng(3)
    weights: dict[str, Any] = {
        "w": rng.integers(-100, 100, (8, 24)).astype(np.int8),
        "b": normal(24),
        "ws": np.array(0.01, np.float32),
        "wz": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("QAttention", ["q", "w", "b", "s", "ws", "", "z", "wz"], ["y"], domain=M, num_heads=2),
    ]
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5, 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(M, 1)], ir_version=8
    )
    x = normal(2, 5, 8)
    (expected,), (actual,) = (run(m, x=x).values() for m in (model, prepare(model).model))
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    derived = onnxcam.gradient(model, "y", ["x"])
    assert run(derived, {"x": x, "cotangent.y": np.ones_like(actual)})["grad.x"].any()
