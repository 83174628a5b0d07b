"""Gradients of matrix products and softmax with respect to every operand."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

import onnxcam
from onnxcam.errors import UnsupportedOperator
from tests.autodiff.harness import build, check, covers, gradients, normal
from tests.support.examples import examples

FREE = ("static", "batch", "all")
SIZE = st.integers(1, 3)


@covers("Gemm")
@examples(60)
@given(
    sizes=st.tuples(SIZE, SIZE, SIZE),
    trans=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    scale=st.sampled_from([{}, {"alpha": 0.5}, {"beta": -1.5}, {"alpha": 2.0, "beta": 0.3}]),
    bias=st.sampled_from([None, "", "1", "n", "1n", "m1", "mn"]),
    constant=st.booleans(),
)
def test_gemm(
    sizes: tuple[int, int, int], trans: tuple[int, int], scale: dict[str, float], bias: str | None, constant: bool
) -> None:
    m, k, n = sizes
    a = normal(*((k, m) if trans[0] else (m, k)))
    weights = {"b": normal(*((n, k) if trans[1] else (k, n)), seed=1)}
    if bias is not None:
        weights["c"] = np.asarray(normal(*({"m": m, "n": n, "1": 1}[d] for d in bias), seed=2))
    node = helper.make_node("Gemm", ["a", *weights], ["y"], transA=trans[0], transB=trans[1], **scale)
    if constant:
        check([node], {"a": a}, weights, wrt=["a", *weights], free=FREE)
        for name in ("a", *weights):  # nothing is computed for the others
            check([node], {"a": a}, weights, wrt=[name], free=("batch",))
    else:
        check([node], {"a": a, **weights}, free=FREE)


MATMULS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((1, 3), (3, 1)),
    ((2, 3, 4), (4, 5)),
    ((2, 1, 4), (4, 1)),
    ((2, 2, 3, 4), (4, 2)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((3, 4), (2, 4, 3)),
    ((2, 3, 4), (2, 4, 3)),
    ((2, 3, 1), (2, 1, 4)),
    ((2, 1, 3), (1, 3, 1)),
    ((2, 3, 4), (1, 4, 3)),
    ((1, 3, 4), (2, 4, 3)),
    ((2, 3, 4), (3, 1, 4, 2)),
    ((3, 1, 2, 4), (2, 4, 2)),
    ((3, 1, 2, 4), (1, 2, 4, 2)),
    ((2, 1, 4), (4, 1, 4, 1)),
]


@pytest.mark.sample(6)
@covers("MatMul")
@pytest.mark.parametrize(("a", "b"), MATMULS)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, w = normal(*a), normal(*b, seed=1)
    check("y = MatMul(a, b)", {"a": x, "b": w}, free=FREE)
    check("y = MatMul(a, b)", {"a": x}, {"b": w}, wrt=["a"], free=FREE)
    check("y = MatMul(a, b)", {"b": w}, {"a": x}, wrt=["b"], free=FREE)


def test_free_batch_that_turns_out_to_be_one() -> None:
    """Whether a batch axis was broadcast is found at run time."""
    wide = build("y = MatMul(a, b)", {"a": normal(2, 3, 4), "b": normal(2, 4, 5)}, free="all")
    a, b, dy = normal(1, 3, 4), normal(2, 4, 5), normal(2, 3, 5)
    da, db = gradients(wide, {"a": a, "b": b}, dy, ["a", "b"])
    np.testing.assert_allclose(da, (dy @ b.transpose(0, 2, 1)).sum(0, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(db, a.transpose(0, 2, 1) @ dy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rank", "emitted"), [(2, ["Gemm"]), (3, ["Flatten", "Gemm", "Reshape"])])
def test_weights_are_not_copied(rank: int, emitted: list[str]) -> None:
    """A linear layer's backward pass is one Gemm that reads the weights as they lie."""
    model = build("y = MatMul(x, w)", {"x": normal(*[2] * rank)}, {"w": normal(2, 3)})
    derived = onnxcam.gradient(model, of="y", wrt=["x"])
    assert [n.op_type for n in derived.graph.node] == ["MatMul", *emitted, "Identity"]
    assert [t.name for t in derived.graph.initializer if t.data_type == 1] == ["w"]


EQUATIONS = [
    "ij,jk->ik",
    "bij,bjk->bik",
    "bhid,bhjd->bhij",
    "bhwc,hkc->bhwk",
    "bij,jk",
    "i,j->ij",
    "ij,ij->",
    "ij->ji",
    "ij->i",
    "ij->",
    "ijk,jl->li",
    "ij,k->ik",
    "ij,jk,kl->il",
    " b i j , b j -> b i ",
    "ba",
]


@covers("Einsum")
@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    sizes = {letter: 2 + k % 3 for k, letter in enumerate(sorted(set(equation) - set(" ,->")))}
    terms = equation.split("->")[0].replace(" ", "").split(",")
    feeds = {f"x{k}": normal(*(sizes[i] for i in term), seed=k) for k, term in enumerate(terms)}
    node = helper.make_node("Einsum", list(feeds), ["y"], equation=equation)
    reference = functools.partial(_einsum, equation.replace(" ", ""))
    check([node], feeds, free=FREE, reference=reference)
    check([node], feeds, wrt=["x0"], free=FREE, reference=reference)


@covers("Einsum")
@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ii->i", [(3, 3)]),
        ("ii->", [(3, 3)]),
        ("...ii->...i", [(2, 3, 3)]),
        ("iij,jk->ik", [(3, 3, 2), (2, 4)]),
        ("...ij,jk->...ik", [(2, 3, 4, 2), (2, 3)]),
        ("...ij,...jk->...ik", [(2, 4, 2), (2, 2, 3)]),
        ("...i->...", [(2, 3, 4)]),
    ],
)
def test_einsum_of_diagonals_and_ellipses(equation: str, shapes: list[tuple[int, ...]]) -> None:
    feeds = {f"x{k}": normal(*shape, seed=k) for k, shape in enumerate(shapes)}
    node = helper.make_node("Einsum", list(feeds), ["y"], equation=equation)
    check([node], feeds, free=FREE, reference=functools.partial(_einsum, equation))


def _einsum(equation: str, /, **operands: torch.Tensor) -> torch.Tensor:
    return torch.einsum(equation, *operands.values())


@pytest.mark.parametrize(
    ("equation", "shapes", "why"),
    [
        ("...ij,...jk->...ik", [(4, 3, 2, 2), (3, 2, 3)], "ellipsis"),
        ("ij,ij->ij", [(1, 3), (2, 3)], "broadcasts"),
    ],
)
def test_einsum_refused(equation: str, shapes: list[tuple[int, ...]], why: str) -> None:
    feeds = {f"x{k}": normal(*shape) for k, shape in enumerate(shapes)}
    model = build([helper.make_node("Einsum", list(feeds), ["y"], equation=equation)], feeds)
    with pytest.raises(UnsupportedOperator, match=why):
        onnxcam.gradient(model, of="y", wrt=["x0"])


@covers("Softmax", "LogSoftmax")
@examples(40)
@given(shape=st.lists(SIZE, min_size=1, max_size=4), data=st.data())
def test_softmax(shape: list[int], data: st.DataObject) -> None:
    assume(np.prod(shape) > 1)
    axis: Any = data.draw(st.sampled_from([None, *range(-len(shape), len(shape))]))
    attribute = "" if axis is None else f"<axis={axis}>"
    for op_type in ("Softmax", "LogSoftmax"):
        check(f"y = {op_type}{attribute}(x)", {"x": 2 * normal(*shape)}, free=FREE)


def test_softmax_of_large_logits() -> None:
    """One-hot scores: the gradient is 0, and finite."""
    for op_type, expected in (("Softmax", [0.0, 0.0, 0.0]), ("LogSoftmax", [-2.0, 1.0, 1.0])):
        model = build(f"y = {op_type}(x)", {"x": normal(1, 3)})
        [gradient] = gradients(model, {"x": np.float32([[1e4, 0, -1e4]])}, np.ones((1, 3), np.float32), ["x"])
        np.testing.assert_allclose(gradient, [expected], atol=1e-6)


@pytest.mark.parametrize("through", ["z = Identity(p)", "z = Cast<to=1>(p)"])
def test_softmax_of_a_row_of_minus_infinity(through: str) -> None:
    """Its NaN, which the Where behind it takes out, is taken out of the gradient too."""
    body = f"m = Where(k, zero, low) a = Add(x, m) p = Softmax(a) {through} n = IsNaN(z) y = Where(n, zero, z)"
    keep = np.asarray([[True, False, True], [False, False, False]])
    constants = {"k": keep, "zero": np.float32(0), "low": np.float32(-np.inf)}
    model = build(body, {"x": normal(2, 3)}, constants)
    dy = normal(2, 3, seed=1)
    [gradient] = gradients(model, {"x": normal(2, 3)}, dy, ["x"])
    p = np.exp(normal(2, 3)[0]) * keep[0]
    p /= p.sum()
    np.testing.assert_allclose(gradient, [p * (dy[0] - (p * dy[0]).sum()), [0, 0, 0]], atol=1e-6)


@covers("Det")
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (2, 4, 4), (2, 3, 5, 5)])
def test_det(shape: tuple[int, ...]) -> None:
    check("y = Det(x)", {"x": normal(*shape)}, free=("static", "batch") if len(shape) > 2 else ("static",))


def test_det_of_a_matrix_without_inverse() -> None:
    x = np.float32([[1, 2, 3], [2, 4, 6], [0, 1, 5]])
    check("y = Det(x)", {"x": x}, free=("static",), tolerance=1e-4)


@covers("RotaryEmbedding")
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("partly", [0, 2])
def test_rotary_embedding(interleaved: int, partly: int) -> None:
    how = f"interleaved={interleaved}, rotary_embedding_dim={partly}"
    width = (partly or 4) // 2
    constants = {"c": normal(9, width, seed=1), "s": normal(9, width, seed=2), "p": np.asarray([[0, 1, 5], [8, 3, 3]])}
    body = f"y = RotaryEmbedding<num_heads=2, {how}>(x, c, s, p)"
    check(body, {"x": normal(2, 3, 8)}, constants, wrt=["x"], opset=23)
    apart = {"c": normal(2, 3, width, seed=1), "s": normal(2, 3, width, seed=2)}
    check(f"y = RotaryEmbedding<{how}>(x, c, s)", {"x": normal(2, 5, 3, 4)}, apart, wrt=["x"], opset=23)


def test_rotary_embedding_of_learned_angles_is_refused() -> None:
    feeds = {"x": normal(2, 5, 3, 4), "c": normal(2, 3, 2), "s": normal(2, 3, 2)}
    model = build("y = RotaryEmbedding(x, c, s)", feeds, opset=23)
    with pytest.raises(UnsupportedOperator, match=r"RotaryEmbedding .*cosines or sines"):
        onnxcam.gradient(model, of="y", wrt=["c"])
