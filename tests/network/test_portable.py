"""Files for other runtimes: the same numbers by other operators, and files that other tools have rewritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcam
from onnxcam.network import manifest as manifests
from tests.support import wrong_gradients
from tests.support.batches import distance
from tests.support.runtime import run

POOLS = {
    "overlapping": "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]",
    "side by side": "kernel_shape = [2, 2], strides = [2, 2]",
    "dilated": "kernel_shape = [2, 3], dilations = [2, 1], strides = [1, 2], pads = [0, 1, 1, 0]",
    "rounded up": "kernel_shape = [3, 2], strides = [3, 3], ceil_mode = 1",
    "same padding": 'kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"',
    "gaps": "kernel_shape = [2, 2], strides = [3, 3]",
}


@pytest.fixture(scope="module", params=POOLS.values(), ids=POOLS)
def pooled(request: pytest.FixtureRequest) -> onnx.ModelProto:
    text = f"""a = Conv<pads = [1, 1, 1, 1]>(input, w6_3_3_3)  s = Mul(a, two)  r = Floor(s)  b = Identity(r)
        m = MaxPool<{request.param}>(b)  e = Tanh(m)  c = Conv(e, w5_6_2_2)  p = GlobalAveragePool(c)  f = Flatten(p)
        logits = Gemm(f, w5_6, b6)"""
    wrong_gradients.ARCHITECTURES["pooled"] = ("b", text)
    return wrong_gradients.build("pooled")


def test_a_pool_by_convolutions_gives_ties_to_the_first(pooled: onnx.ModelProto) -> None:
    batch = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    plain = onnxcam.augment(pooled, "b", target=1)
    portable = onnxcam.augment(pooled, "b", target=1, portable=True)
    kinds = {node.op_type for node in portable.graph.node}
    assert "ScatterElements" not in kinds and not any(
        len(n.output) > 1 for n in portable.graph.node if n.op_type == "MaxPool"
    )
    expected, actual = (run(model, batch, outputs=["gradients", "heatmap"]) for model in (plain, portable))
    assert np.abs(expected["gradients"]).max() > 0
    assert distance(actual["gradients"], expected["gradients"]) < 1e-6
    assert distance(actual["heatmap"], expected["heatmap"]) < 1e-5


def test_a_target_for_all_rows_still_explains_a_class_for_each() -> None:
    source = wrong_gradients.build("plain")
    batch = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    portable = onnxcam.augment(source, "a", portable=True, target="required")
    assert [d.dim_value for d in portable.graph.input[-1].type.tensor_type.shape.dim] == [1]
    plain, explainer = onnxcam.Explainer(onnxcam.augment(source, "a")), onnxcam.Explainer(portable)
    for target in (None, 3, [0, 4, 0, -1, 2]):
        expected, actual = plain.run(batch, target), explainer.run(batch, target)
        assert np.array_equal(actual.target, expected.target)
        assert distance(actual.gradients, expected.gradients) < 1e-6
        assert np.allclose(explainer.attribute(batch, target), plain.attribute(batch, target), atol=1e-5)


def test_a_portable_file_stays_one() -> None:
    portable = onnxcam.augment(wrong_gradients.build("plain"), portable=True)
    again = onnxcam.augment(portable, "a")
    assert (manifests.read(again) or {})["target"]["rows"] == manifests.SHARED
    assert "rows" not in (manifests.read(onnxcam.augment(portable, portable=False)) or {})["target"]


@pytest.mark.parametrize("quantity", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("network", ["plain", "mobile"])
def test_a_gate_in_float32_decides_the_same(network: str, quantity: str) -> None:
    source = wrong_gradients.build(network)
    batch = np.random.default_rng(1).normal(size=(64, 3, 16, 16)).astype(np.float32) * 2
    p = onnxcam.Explainer(source).predict(batch).astype(np.float64)
    best = np.sort(p, axis=1)
    values = {
        "confidence": best[:, -1],
        "margin": best[:, -1] - best[:, -2],
        "entropy": -(p * np.log(p)).sum(axis=1) / np.log(p.shape[1]),
    }[quantity]
    threshold = float(np.median(values))  # of an even number of rows: between two of them
    condition = f"{quantity} < {threshold:.9f}"
    gates = [onnxcam.augment(source, gate=condition, portable=portable, target=1) for portable in (False, True)]
    exact, narrow = (run(model, batch, outputs=["fired"])["fired"] for model in gates)
    assert exact.sum() == 32 and np.array_equal(exact, narrow)
    double = onnx.TensorProto.DOUBLE
    casts = {a.i for node in gates[1].graph.node for a in node.attribute if a.name == "to"}
    assert double not in casts | {tensor.data_type for tensor in gates[1].graph.initializer}


def test_check_and_the_exporter_take_portable_files(tmp_path: Any) -> None:
    from onnxcam.diagnose import gradients

    model = onnxcam.augment(wrong_gradients.build("pooling"), "r", portable=True, target="required")
    report = gradients.check(model, samples=3)
    assert not report.failed


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as onnxsim 0.8.1 and onnxslim 0.1.98 leave it: no optional input, values named after outputs."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for place, info in enumerate(changed.graph.input):
        if info.name == "target":
            del changed.graph.input[place]
            break
    emitter = next(node for node in changed.graph.node if node.output[0] == "activations")
    value = emitter.input[0]
    changed.graph.node.remove(emitter)
    for node in changed.graph.node:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                if name == value:
                    field[place] = "activations"
    del changed.graph.value_info[:]
    return changed


@pytest.mark.parametrize("network", ["plain", "residual", "tokens"])
def test_a_file_rewritten_by_a_simplifier_explains_any_class(network: str) -> None:
    model = onnxcam.augment(wrong_gradients.build(network), methods=["gradcam", "hirescam"])
    batch = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    plain, explainer = onnxcam.Explainer(model), onnxcam.Explainer(rewritten(model))
    for target in (None, -1, 2, [1, 0, -1]):
        assert np.allclose(explainer.attribute(batch, target), plain.attribute(batch, target), atol=1e-5)
        expected, actual = plain.run(batch, target), explainer.run(batch, target)
        assert np.array_equal(actual.target, expected.target)
        assert distance(actual.gradients, expected.gradients) < 1e-6


def test_a_gated_file_captures_no_output_by_its_own_name() -> None:
    model = onnxcam.augment(wrong_gradients.build("plain"), gate="confidence < 0.5", target="required")
    branch = next(node for node in model.graph.node if node.op_type == "If")
    body = next(helper.get_attribute_value(a) for a in branch.attribute if a.name == "then_branch")
    inner = {name for node in body.node for name in node.output} | {t.name for t in body.initializer}
    captured = {name for node in body.node for name in node.input if name} - inner
    assert captured and not captured & {output.name for output in model.graph.output}
