"""Quantized and half-precision files: predictions stay the plain runtime's, maps stay those of the float model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from models import quantize
from onnxcam import models
from onnxcam.diagnose.gradients import check
from onnxcam.errors import ModelError, UnsupportedOperator
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.normalize import prepare
from tests.autodiff.harness import normal
from tests.support import models as small
from tests.support.batches import imagenet
from tests.support.runtime import run, session

CPU = ["CPUExecutionProvider"]
M = "com.microsoft"


SCALE, ZERO = np.array(0.02, np.float32), np.array(128, np.uint8)
OUT, OUT_ZERO = np.array(0.05, np.float32), np.array(100, np.uint8)
WEIGHT = np.random.default_rng(1).integers(-100, 100, (4, 3, 3, 3)).astype(np.int8)
SIX = np.full(6, 0.01, np.float32)
X, Y = ["q", "s", "z"], ["os", "oz"]

CASES: dict[str, tuple[Sequence[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "QLinearConv": (
        [helper.make_node("QLinearConv", [*X, "w", "ws", "wz", *Y, "b"], ["r"], pads=[1] * 4, strides=[2, 2])],
        {
            "w": WEIGHT,
            "ws": np.array([0.01, 0.02, 0.005, 0.01], np.float32),
            "wz": np.zeros(4, np.int8),
            "b": np.array([100, -50, 3, 0], np.int32),
        },
    ),
    "QLinearConv, one scale, no bias": (
        [helper.make_node("QLinearConv", [*X, "w", "ws", "wz", *Y], ["r"])],
        {"w": WEIGHT, "ws": np.array(0.01, np.float32), "wz": np.array(0, np.int8)},
    ),
    "QLinearMatMul": (
        [helper.make_node("QLinearMatMul", [*X, "w", "ws", "wz", *Y], ["r"])],
        {
            "w": WEIGHT[0, 0].repeat(2, 1)[:, :6].repeat(2, 0),
            "ws": np.array(0.01, np.float32),
            "wz": np.array(3, np.int8),
        },
    ),
    "QGemm": (
        [
            helper.make_node("Flatten", ["q"], ["flat"]),
            helper.make_node("QGemm", ["flat", "s", "z", "w", "ws", "wz", "b", *Y], ["r"], domain=M, transB=1),
        ],
        {
            "w": np.random.default_rng(2).integers(-100, 100, (5, 108)).astype(np.int8),
            "ws": np.full(5, 0.004, np.float32),
            "wz": np.zeros(5, np.int8),
            "b": np.arange(5, dtype=np.int32) * 10,
        },
    ),
    "QGemm to float": (
        [
            helper.make_node("Flatten", ["q"], ["flat"]),
            helper.make_node("QGemm", ["flat", "s", "z", "w", "ws", "wz", "b"], ["r"], domain=M, alpha=0.5),
        ],
        {
            "w": np.random.default_rng(2).integers(-100, 100, (108, 5)).astype(np.int8),
            "ws": np.array(0.004, np.float32),
            "wz": np.array(0, np.int8),
            "b": np.arange(5, dtype=np.int32) * 10,
        },
    ),
    "QLinearAdd": ([helper.make_node("QLinearAdd", [*X, *X, *Y], ["r"], domain=M)], {}),
    "QLinearMul": ([helper.make_node("QLinearMul", [*X, *X, *Y], ["r"], domain=M)], {}),
    "QLinearConcat": ([helper.make_node("QLinearConcat", [*Y, *X, *X], ["r"], domain=M, axis=1)], {}),
    "QLinearGlobalAveragePool": (
        [helper.make_node("QLinearGlobalAveragePool", [*X, *Y], ["r"], domain=M, channels_last=0)],
        {},
    ),
    "QLinearAveragePool": (
        [
            helper.make_node(
                "QLinearAveragePool", [*X, *Y], ["r"], domain=M, kernel_shape=[2, 2], strides=[2, 2], channels_last=0
            )
        ],
        {},
    ),
    "QLinearLeakyRelu": ([helper.make_node("QLinearLeakyRelu", [*X, *Y], ["r"], domain=M, alpha=0.1)], {}),
    "QLinearSigmoid": ([helper.make_node("QLinearSigmoid", [*X, *Y], ["r"], domain=M)], {}),
    "QLinearSoftmax": ([helper.make_node("QLinearSoftmax", [*X, *Y], ["r"], domain=M, axis=-1, opset=13)], {}),
    "QLinearWhere": (
        [helper.make_node("QLinearWhere", ["condition", *X, *X, *Y], ["r"], domain=M)],
        {"condition": np.arange(6) % 2 == 0},
    ),
    "DequantizeLinear of com.microsoft": ([helper.make_node("DequantizeLinear", X, ["r"], domain=M)], {}),
}


def quantized_case(name: str) -> onnx.ModelProto:
    nodes, weights = CASES[name]
    real = name.endswith(("float", "com.microsoft"))
    constants = weights | {"s": SCALE, "z": ZERO, "os": OUT, "oz": OUT_ZERO}
    names = {n for node in nodes for n in node.input} | {"s", "z"} | (set() if real else {"os", "oz"})
    every = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), *nodes]
    every.append(
        helper.make_node("Identity", ["r"], ["y"]) if real else helper.make_node("DequantizeLinear", ["r", *Y], ["y"])
    )
    graph = helper.make_graph(
        every,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, key) for key, value in constants.items() if key in names],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(M, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("name", CASES)
def test_a_quantized_operator_is_spelled_out_and_stays_what_it_was(name: str) -> None:
    model = quantized_case(name)
    x = normal(2, 3, 6, 6)
    (want,) = run(model, x=x).values()
    spelled = prepare(model).model
    assert {node.domain for node in spelled.graph.node} <= {"", "ai.onnx"}
    assert not any(node.op_type.startswith("Q") and node.op_type != "QuantizeLinear" for node in spelled.graph.node)
    assert [o.domain for o in spelled.opset_import] == [""]
    (actual,) = run(spelled, x=x).values()
    # one step of the output where the runtime's kernel rounds a sum of integers and ours one of floats
    assert np.abs(actual - want).max() <= (1e-5 if "float" in name else OUT * 1.001)
    assert np.mean(np.abs(actual - want) > 1e-5) < 0.05
    derived = onnxcam.gradient(model, "y", ["x"])
    cotangent = np.ones_like(actual)
    gradient = run(derived, {"x": x, "cotangent.y": cotangent})["grad.x"]
    assert gradient.shape == x.shape and gradient.any()


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (helper.make_node("DynamicQuantizeLSTM", ["input"] * 8, ["q"], domain=M), "dynamically quantized"),
        (helper.make_node("MatMulBnb4", ["input", "w1", "b1"], ["q"], domain=M, K=32, N=8, block_size=16), "block"),
        (helper.make_node("QEmbedLayerNormalization", ["input"] * 9, ["q"], domain=M), "fused"),
    ],
    ids=["dynamic", "blocks", "embedding"],
)
def test_what_has_no_other_form_is_refused_by_name(node: onnx.NodeProto, sentence: str) -> None:
    model = small.tiny_cnn()
    node.name = "odd"
    model.graph.node.append(node)
    model.opset_import.append(helper.make_opsetid(M, 1))
    with pytest.raises(UnsupportedOperator, match=rf"{node.op_type} \(node 'odd'\) is .*{sentence}.*quantize_static"):
        onnxcam.augment(model)


@pytest.mark.parametrize("name", ["QLinearGlobalAveragePool", "QLinearAveragePool"])
def test_pooling_with_channels_last_is_transposed(name: str) -> None:
    model = quantized_case(name)
    next(a for a in model.graph.node[1].attribute if a.name == "channels_last").i = 1
    x = normal(2, 3, 6, 6)  # read as 6 channels of 3 x 6
    (want,), (actual,) = (run(m, x=x).values() for m in (model, prepare(model).model))
    assert actual.shape == want.shape and np.abs(actual - want).max() <= OUT * 1.001


def test_nodes_out_of_order_are_sorted() -> None:
    """onnxruntime's float16 converter leaves them so, and the runtime does not mind."""
    model = small.tiny_cnn()
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(list(model.graph.node)))
    x = normal(2, 3, 32, 32)
    assert np.array_equal(Explainer(shuffled, providers=CPU).attribute(x), Explainer(model, providers=CPU).attribute(x))


def test_nodes_in_a_circle_are_refused() -> None:
    model = small.tiny_cnn()
    next(node for node in model.graph.node if node.name == "first").input[0] = "relu2"
    with pytest.raises(ModelError, match="form a cycle"):
        prepare(model)


@pytest.fixture(scope="module")
def float_model() -> Explainer:
    return Explainer(models.path(models.MODEL), providers=CPU)


@pytest.fixture(scope="module")
def tensors(float_model: Explainer) -> list[np.ndarray]:
    """The bundled photographs, prepared."""
    return [float_model.prepare(models.path(name))[1] for name in ("cat.png", "coffee.png", "cat_and_coffee.png")]


@pytest.fixture(scope="module")
def variant(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[np.ndarray], float_model: Explainer
) -> Callable[[str], tuple[Path, Explainer]]:
    """The bundled model in a form of quantization, each made once."""

    @functools.cache
    def model(form: str) -> tuple[Path, Explainer]:
        path = quantize.make(form, tmp_path_factory.mktemp(form), tensors)
        value = float_model.manifest
        return path, Explainer(path, preprocess=value["input"]["preprocess"], labels=value["labels"], providers=CPU)

    return model


def products_saturate() -> bool:
    """Whether ONNX Runtime adds products of uint8 and int8 up in 16 bits here, as on x86 processors without VNNI.

    255 * 127 + 255 * 127 is 64770 by the standard of MatMulInteger, and 32767 there: int8 files predict less well.
    """
    text = """<ir_version: 8, opset_import: ["" : 18]>
    sum (uint8[N, K] x, int8[K, M] w) => (int32[N, M] y) { y = MatMulInteger(x, w) }"""
    x, w = np.full((16, 2), 255, np.uint8), np.full((2, 32), 127, np.int8)
    return bool(run(onnx.parser.parse_model(text), {"x": x, "w": w})["y"].max() != 64770)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "least"), [("float16", 0.99), ("qdq", 0.95), ("qoperator", 0.95)])
def test_maps_of_twenty_photographs_are_those_of_the_float_model(
    form: str, least: float, float_model: Explainer, variant: Callable[[str], tuple[Path, Explainer]]
) -> None:
    photographs, _ = imagenet()
    path, explainer = variant(form)
    file = session(path)
    correlations = []
    for photograph in photographs:
        tensor = float_model.prepare(photograph)[1]
        (plain,) = file.run(None, {float_model.manifest["input"]["name"]: tensor})
        raw = explainer.run(tensor)
        if form == "float16":  # exposing a layer rounds it, where the runtime would have kept it in float32
            assert np.abs(raw.scores - plain).max() <= 2e-3 * np.abs(plain).max()
            assert raw.scores.argmax() == plain.argmax()
        else:
            assert np.array_equal(raw.scores, plain)
        assert np.isfinite(raw.scores).all()
        target = int(float_model.predict(tensor).argmax())
        maps = [either.attribute(tensor, target, normalize="none", size="layer") for either in (float_model, explainer)]
        assert np.isfinite(maps[1]).all()
        correlations.append(float(np.corrcoef(*(map_.ravel() for map_ in maps))[0, 1]))
    print(
        f"{form}: correlation {min(correlations):.4f} to {max(correlations):.4f}, median {np.median(correlations):.4f}"
    )
    if form != "float16" and products_saturate():
        least = 0.85  # the runtime's predictions are off by as much
    assert min(correlations) >= least


@pytest.mark.slow
@pytest.mark.parametrize("form", quantize.FORMS)
def test_check_neither_accuses_nor_hides_the_approximation(
    form: str, variant: Callable[[str], tuple[Path, Explainer]]
) -> None:
    path, explainer = variant(form)
    report = check(path, providers=CPU)
    assert report.passed, report.lines()
    gradients = next(f for f in report.findings if f.name.startswith("gradients"))
    quantized = form != "float16"
    assert ("straight through" in gradients.detail) == quantized
    assert gradients.status == ("ok" if quantized else "unsure")
    assert any("quantization" in text for text in explainer.manifest.get("approximations", [])) == quantized


@pytest.mark.slow
def test_check_finds_a_wrong_gradient_of_a_quantized_model(
    variant: Callable[[str], tuple[Path, Explainer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcam.autodiff import registry

    path, _ = variant("qdq")
    ((low, high, entry),) = registry._rules["ReduceMean"]

    def wrong(op: Any, node: Any, dy: Any) -> Any:
        return [dx if dx is None else op.Mul(dx, -1.0) for dx in entry.rule(op, node, dy)]

    monkeypatch.setitem(
        registry._rules, "ReduceMean", [(low, high, registry.Entry(wrong, entry.broadcast, entry.multiple))]
    )
    assert not check(path, providers=CPU).passed
