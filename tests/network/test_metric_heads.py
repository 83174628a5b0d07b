"""Heads that compare vectors: what is doubtful about their numbers is told, and nothing of others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcam.errors import ModelError
from onnxcam.network.network import Network
from tests.support import heads
from tests.support.heads import TABLE, Recipe
from tests.support.runtime import run

CLASSES = 5
SHAPED = "p = Unsqueeze(pooled, a1) d = Sub(p, centres) "
NORMED = "l = ReduceL2<keepdims=1>(pooled, a1) n = Clip(l, tiny) v = Div(pooled, n) "
UNIT = "wl = ReduceL2<keepdims=1>(kernel, a0) wn = Div(kernel, wl) "

DISTANCES = {
    "squares": SHAPED + "q = Mul(d, d) y = ReduceSum<keepdims=0>(q, a2)",
    "powers": SHAPED + "q = Pow(d, two) y = ReduceSum<keepdims=0>(q, a2)",
    "means of squares, halved": SHAPED + "q = Mul(d, d) r = ReduceMean<keepdims=0>(q, a2) y = Mul(r, half)",
    "length": SHAPED + "y = ReduceL2<keepdims=0>(d, a2)",
    "sum of absolute values": SHAPED + "q = Abs(d) y = ReduceSum<keepdims=0>(q, a2)",
    "root of a product": "q = MatMul(pooled, kernel) m = Max(q, tiny) y = Sqrt(m)",
}
COSINES = {
    "normalised in the file": NORMED + UNIT + "y = MatMul(v, wn)",
    "weights of length 1": NORMED + "y = MatMul(v, unit)",
    "transposed": NORMED + "y = Gemm<transB=1>(v, turned)",
    "by LpNormalization": "v = LpNormalization<axis=1>(pooled) y = MatMul(v, unit)",
}
OTHERS = {
    "negated": SHAPED + "q = Mul(d, d) r = ReduceSum<keepdims=0>(q, a2) y = Neg(r)",
    "times a negative number": SHAPED + "q = Mul(d, d) r = ReduceSum<keepdims=0>(q, a2) y = Mul(r, minus)",
    "scaled": NORMED + "q = MatMul(v, unit) y = Mul(q, hundred)",
    "scaled by Gemm": NORMED + "y = Gemm<transB=1,alpha=30.0>(v, turned)",
    "longer weights": NORMED + "y = MatMul(v, kernel)",
    "a vector of any length": "y = MatMul(pooled, unit)",
    "followed by a softmax": NORMED + "q = MatMul(v, unit) y = Softmax(q)",
}


def build(body: str) -> onnx.ModelProto:
    model = heads.build(Recipe(body, TABLE, ("logits",), None), CLASSES)
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(6, CLASSES))
    unit = kernel / np.linalg.norm(kernel, axis=0)
    tensors = {"centres": rng.normal(size=(1, CLASSES, 6)), "kernel": 3 * kernel, "unit": unit, "turned": unit.T}
    read = {name for node in model.graph.node for name in node.input}
    for name, array in tensors.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_doubted(name: str) -> None:
    model = build(DISTANCES[name])
    assert run(model, np.random.default_rng(1).normal(size=(3, 3, 12, 12)).astype(np.float32))["y"].min() >= 0
    (warning,) = Network(model).readout.warnings
    assert "are distances, of which the lowest" in warning and "negate them" in warning


@pytest.mark.parametrize("name", COSINES)
def test_cosines_are_doubted(name: str) -> None:
    model = build(COSINES[name])
    values = run(model, np.random.default_rng(1).normal(size=(9, 3, 12, 12)).astype(np.float32))["y"]
    assert np.abs(values).max() <= 1 + 1e-6
    (warning,) = Network(model).readout.warnings
    assert "are cosines" in warning and "nearly even" in warning


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_not(name: str) -> None:
    assert not Network(build(OTHERS[name])).readout.warnings


@pytest.mark.parametrize("axis", [1, 2])
def test_distributions_of_members_are_no_boxes(axis: int) -> None:
    """Seven numbers in 0..1 have the form of a relative box, an objectness and two scores."""
    body = "".join(
        f"m{k} = Mul(z, {name}) s{k} = Softmax(m{k}) u{k} = Unsqueeze(s{k}, a{axis}) "
        for k, name in enumerate(("half", "one", "two"))
    )
    shape = "float[N,3,7]" if axis == 1 else "float[N,7,3]"
    model = heads.build(Recipe(f"{body} y = Concat<axis={axis}>(u0, u1, u2)", f"{shape} y", (), None), 7)
    with pytest.raises(ModelError, match=r"3 distributions over 7 classes, and no boxes.*--scores"):
        Network(model)


def test_scores_of_a_whole_batch_are_refused() -> None:
    body = "s = Softmax(z) y = ReduceMean<keepdims=1>(s, a0)"
    with pytest.raises(ModelError, match="without an axis for the pictures of a batch"):
        Network(heads.build(Recipe(body, "float[1,K] y", (), None), CLASSES))
