"""Files that ONNX Runtime saved optimised: the same predictions and maps as of the file before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxcam
from onnxcam import models, runtime
from onnxcam.diagnose.gradients import check
from onnxcam.errors import UnsupportedOperator
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.blocked import plain_weights
from onnxcam.graph.fused import rewrite
from onnxcam.graph.normalize import prepare
from onnxcam.network import manifest
from tests.network.test_linear import MOST, steps
from tests.support import wrong_gradients
from tests.support.runtime import run

CPU = ["CPUExecutionProvider"]
M = "com.microsoft"
LEVELS = ("basic", "extended", "all")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def optimised(model: onnx.ModelProto, level: str, folder: Path) -> onnx.ModelProto:
    """The model as ONNX Runtime saves it."""
    ort = runtime.import_onnxruntime()
    options = runtime.options.serving(1)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath = str(folder / f"{level}.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=CPU)
    return onnx.load(folder / f"{level}.onnx")


# operator -> its inputs by name, attributes; the first input is the model's
FORMS: dict[str, tuple[str, dict[str, np.ndarray], dict[str, Any]]] = {
    "Gelu": ("Gelu", {"x": normal(2, 5, 8)}, {}),
    "BiasGelu": ("BiasGelu", {"x": normal(2, 5, 8), "b": normal(8)}, {}),
    "FastGelu": ("FastGelu", {"x": normal(2, 5, 8)}, {}),
    "FastGelu, bias": ("FastGelu", {"x": normal(2, 5, 8), "b": normal(8)}, {}),
    "QuickGelu": ("QuickGelu", {"x": normal(2, 5, 8)}, {"alpha": 1.702}),
    "FusedConv": (
        "FusedConv",
        {"x": normal(2, 3, 8, 8), "w": normal(4, 3, 3, 3), "b": normal(4)},
        {"activation": "LeakyRelu", "activation_params": [0.2], "pads": [1] * 4, "strides": [2, 2]},
    ),
    "FusedConv, sum": (
        "FusedConv",
        {"x": normal(2, 3, 8, 8), "w": normal(4, 3, 3, 3), "b": normal(4), "z": normal(2, 4, 6, 6)},
        {"activation": "Relu"},
    ),
    "FusedConv, Clip": (
        "FusedConv",
        {"x": normal(2, 3, 8, 8), "w": normal(4, 3, 3, 3)},
        {"activation": "Clip", "activation_params": [-0.5, 2.0]},
    ),
    "FusedGemm": (
        "FusedGemm",
        {"x": normal(5, 8), "w": normal(6, 8), "b": normal(6)},
        {"transB": 1, "alpha": 0.5, "activation": "LeakyRelu", "activation_alpha": 0.1},
    ),
    "FusedMatMul": ("FusedMatMul", {"x": normal(2, 3, 5, 8), "w": normal(2, 3, 6, 8)}, {"alpha": 0.3, "transB": 1}),
    "FusedMatMul, transA": ("FusedMatMul", {"x": normal(2, 5, 8), "w": normal(2, 5, 6)}, {"transA": 1}),
    "TransposeMatMul": ("TransposeMatMul", {"x": normal(2, 5, 8), "w": normal(2, 6, 8)}, {"transB": 1, "alpha": 2.0}),
    "FusedMatMul, transBatchA": ("FusedMatMul", {"x": normal(4, 2, 3, 8), "w": normal(2, 3, 8, 6)}, {"transBatchA": 1}),
    "SkipLayerNormalization": (
        "SkipLayerNormalization",
        {"x": normal(2, 5, 8), "s": normal(2, 5, 8, seed=1), "g": normal(8), "b": normal(8, seed=2)},
        {"epsilon": 1e-5},
    ),
    "SkipLayerNormalization, bias": (
        "SkipLayerNormalization",
        {
            "x": normal(2, 5, 8),
            "s": normal(2, 5, 8, seed=1),
            "g": normal(8),
            "b": normal(8, seed=2),
            "c": normal(8, seed=3),
        },
        {"epsilon": 1e-3},
    ),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization",
        {"x": normal(2, 5, 8), "s": normal(2, 5, 8, seed=1), "g": normal(8)},
        {"epsilon": 1e-5},
    ),
    "SimplifiedLayerNormalization": (
        "SimplifiedLayerNormalization",
        {"x": normal(2, 5, 8), "g": normal(8)},
        {"epsilon": 1e-5, "axis": -1},
    ),
    "Attention": ("Attention", {"x": normal(2, 5, 8), "w": normal(8, 24), "b": normal(24)}, {"num_heads": 2}),
    "Attention, sizes": (
        "Attention",
        {"x": normal(2, 5, 8), "w": normal(8, 20), "b": normal(20)},
        {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 4], "scale": 0.7},
    ),
    "MultiHeadAttention": (
        "MultiHeadAttention",
        {"x": normal(2, 5, 8), "k": normal(2, 6, 8, seed=1), "v": normal(2, 6, 8, seed=2), "b": normal(24)},
        {"num_heads": 4},
    ),
}


def form(name: str, opset: int = 18) -> onnx.ModelProto:
    op_type, inputs, attrs = FORMS[name]
    domain = "" if op_type == "SimplifiedLayerNormalization" else M
    node = helper.make_node(op_type, list(inputs), ["y"], domain=domain, **attrs)
    x, *rest = inputs
    graph = helper.make_graph(
        [node],
        "case",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, list(inputs[x].shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(inputs[key], key) for key in rest],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(M, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("name", FORMS)
def test_a_fused_operator_is_its_parts(name: str) -> None:
    model, x = form(name), next(iter(FORMS[name][1].values()))
    (expected,) = run(model, x=x).values()
    graph = prepare(model)
    assert {node.domain for node in graph.nodes} <= {"", "ai.onnx"}
    assert [o.domain for o in graph.model.opset_import] == [""] and len(graph.rewrites) == 1
    (actual,) = run(graph.model, x=x).values()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 2e-5 * np.abs(expected).max()
    gradient = run(onnxcam.gradient(model, "y", ["x"]), {"x": x, "cotangent.y": np.ones_like(actual)})["grad.x"]
    assert gradient.any() or name.startswith("Skip")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", [*wrong_gradients.ARCHITECTURES])
def test_an_optimised_file_is_explained_like_the_original(name: str, level: str, tmp_path: Path) -> None:
    model = wrong_gradients.build(name)
    saved = optimised(model, level, tmp_path)
    batch = normal(3, 3, wrong_gradients.SIZE, wrong_gradients.SIZE)
    source = prepare(saved)
    assert {node.domain for node in source.nodes} <= {"", "ai.onnx"}
    (expected,), (actual,) = (run(m, input=batch).values() for m in (model, source.model))
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    fused = {node.op_type for node in saved.graph.node if node.domain.startswith(M)}
    assert bool(source.rewrites) == bool(fused)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_the_bundled_model_saved_optimised_has_the_same_maps(level: str, tmp_path: Path) -> None:
    plain = models.path("efficientnet_lite0.onnx")
    saved = optimised(onnx.load(plain), level, tmp_path)
    one, other = Explainer(plain, providers=CPU), Explainer(saved, providers=CPU)
    batch = normal(2, *(int(d) for d in one.manifest["input"]["shape"][1:]))
    assert np.abs(one.run(batch).scores - other.run(batch).scores).max() < 1e-4
    a, b = (explainer.attribute(batch, [3, 7], size=(7, 7)) for explainer in (one, other))
    assert np.abs(a - b).max() < 1e-4


def test_rewrites_are_in_the_manifest(tmp_path: Path) -> None:
    saved = optimised(wrong_gradients.build("plain"), "extended", tmp_path)
    record = manifest.read(onnxcam.augment(saved))
    assert record is not None
    assert record["rewrites"] == ["FusedConv of com.microsoft: written as other operators of the standard"]
    again = manifest.read(onnxcam.augment(onnxcam.augment(saved)))
    assert again is not None and again["rewrites"] == record["rewrites"]
    plain = manifest.read(onnxcam.augment(wrong_gradients.build("plain")))
    assert plain is not None and "rewrites" not in plain


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("inputs", [False, True])
def test_weights_come_back_from_blocks(size: int, inputs: bool) -> None:
    weights = normal(32, 16, 3, 2)
    blocks = np.zeros(weights.size, np.float32)
    place = 0
    for o in range(0, 32, size):
        for i in range(0, 16, size if inputs else 1):
            for h in range(3):
                for w in range(2):
                    for inner in range(size if inputs else 1):
                        blocks[place : place + size] = weights[o : o + size, i + inner, h, w]
                        place += size
    assert np.array_equal(plain_weights(blocks.reshape(weights.shape), size, inputs=inputs), weights)


@pytest.mark.parametrize("opset", [25, 28])
def test_swish_is_written_as_sigmoid_and_mul(opset: int) -> None:
    gate = "g = SwiGLU(s, t)" if opset == 28 else "g = Mul(s, t)"
    model = parser.parse_model(
        f'<ir_version: {13 if opset < 28 else 14}, opset_import: ["" : {opset}]>\n'
        "small (float[N, 3, 8, 8] input) => (float[N, 4] logits) <float[4, 3, 1, 1] w = "
        "{1, 2, -1, 0.5, 0.2, 1, -2, 0.3, 1, 1, -1, 0.4}> {\n"
        f"c = Conv(input, w)  s = Swish<alpha = 1.5>(c)  t = Swish(c)  {gate}\n"
        "p = GlobalAveragePool(g)  logits = Flatten(p) }"
    )
    graph = prepare(model)
    assert not {node.op_type for node in graph.nodes} & {"Swish", "SwiGLU"} and graph.opset == opset
    assert "Swish" in graph.rewrites[0]
    x = normal(2, 3, 8, 8)
    c = np.einsum("oc,nchw->nohw", numpy_helper.to_array(model.graph.initializer[0])[:, :, 0, 0], x)
    s, t = c / (1 + np.exp(-1.5 * c)), c / (1 + np.exp(-c))
    if opset == 28:
        s = s / (1 + np.exp(-s))
    (actual,) = run(graph.model, input=x).values()
    assert np.abs(actual - (s * t).mean(axis=(2, 3))).max() < 1e-5
    report = check(model, providers=CPU)
    assert report.passed and any(finding.name == "rewritten" for finding in report.findings), report.lines()
    record = manifest.read(onnxcam.augment(model))
    assert record is not None and record["requires"]["onnxruntime"] == ("1.24.4" if opset == 25 else "1.32.0")


def test_a_bias_and_dropout_are_a_sum() -> None:  # it has no kernel on the CPU
    node = helper.make_node("BiasDropout", ["x", "b", "r"], ["y"], domain=M)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xbr"]
    graph = helper.make_graph([node], "case", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(M, 1)]
    written = prepare(helper.make_model(graph, opset_imports=imports, ir_version=8))
    x, b, r = (normal(2, 3, seed=k) for k in range(3))
    (actual,) = run(written.model, x=x, b=b, r=r).values()
    assert np.allclose(actual, x + b + r)


def test_what_cannot_be_written_is_refused_by_name() -> None:
    model = form("Attention")
    model.graph.node[0].attribute.append(helper.make_attribute("unidirectional", 1))
    with pytest.raises(UnsupportedOperator, match=r"Attention .* attends to earlier tokens only"):
        prepare(model)


def products(count: int) -> onnx.ModelProto:
    """Products of transposed operands, each of which needs the shape that the one before gives."""
    nodes, value = [], "x"
    for k in range(count):
        nodes.append(helper.make_node("FusedMatMul", [value, "w"], [f"p{k}"], domain="com.microsoft", transA=1))
        nodes.append(helper.make_node("Relu", [f"p{k}"], [f"r{k}"]))
        value = f"r{k}"
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 4]) for name in ("x", value)]
    weights = [numpy_helper.from_array(normal(4, 4) / 2, "w")]
    graph = helper.make_graph(nodes, "products", infos[:1], infos[1:], weights)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_the_cost_grows_with_the_operators() -> None:
    few, many = (steps(rewrite, products(count)) for count in (20, 80))
    assert many < MOST * few
    model = products(30)
    x, before = normal(2, 4, 4), model.SerializeToString()
    assert rewrite(model)
    first, second = (
        runtime.open_session(source, ["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for source in (before, model.SerializeToString())
    )
    np.testing.assert_allclose(second, first, rtol=1e-5)
