"""Gradients of reductions over axes given, absent, empty, negative or computed; ties and zeros as in torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import onnxcam
from onnxcam.errors import UnsupportedOperator
from tests.autodiff.harness import build, check, covers, distinct, gradients, normal
from tests.support.examples import examples

FORMS: dict[str, Callable[..., torch.Tensor]] = {
    "ReduceSum": torch.sum,
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": lambda x, **how: x.abs().sum(**how),
    "ReduceL2": lambda x, **how: (x * x).sum(**how).sqrt(),
    "ReduceSumSquare": lambda x, **how: (x * x).sum(**how),
    "ReduceLogSum": lambda x, **how: x.sum(**how).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceProd": lambda x, dim, keepdim: functools.reduce(
        lambda y, axis: y.prod(dim=axis, keepdim=True), dim, x
    ).reshape(torch.amax(x, dim=dim, keepdim=keepdim).shape),
}


def values(op_type: str, shape: tuple[int, ...]) -> np.ndarray:
    x = distinct(*shape)
    if op_type == "ReduceLogSum":
        return np.abs(x) + np.float32(0.5)
    if op_type == "ReduceProd":
        return np.sign(x) * (np.float32(0.8) + np.abs(x) / np.float32(8))
    return x + np.float32(0.013)  # sums are not 0


@covers(*FORMS)
@examples(80)
@given(shape=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), data=st.data())
def test_reductions(shape: tuple[int, ...], data: st.DataObject) -> None:
    rank = len(shape)
    axes = data.draw(st.one_of(st.none(), st.lists(st.integers(0, rank - 1), unique=True, max_size=rank)), "axes")
    listed = None if axes is None else [a - rank if data.draw(st.booleans()) else a for a in axes]
    keep = data.draw(st.booleans(), "keepdims")
    how = {"dim": tuple(axes or range(rank)), "keepdim": keep}
    constants = {} if listed is None else {"axes": np.asarray(listed, dtype=np.int64)}
    for op_type, form in FORMS.items():
        x = values(op_type, shape)
        node = helper.make_node(op_type, ["x", *constants], ["y"], keepdims=int(keep))
        free = ("static", "batch", "all", "rank") if axes and keep else ("static", "batch", "all")
        check([node], {"x": x}, constants, wrt=["x"], free=free, reference=lambda x, f=form, **_: f(x, **how))


@pytest.mark.parametrize("axes", [None, []])
@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"])
def test_no_axes_and_noop(op_type: str, axes: list[int] | None) -> None:
    constants = {} if axes is None else {"axes": np.asarray(axes, dtype=np.int64)}
    node = helper.make_node(op_type, ["x", *constants], ["y"], noop_with_empty_axes=1)
    check([node], {"x": normal(2, 3)}, constants, wrt=["x"], reference=lambda x, **_: x)
    noop = helper.make_node(op_type, ["x", "axes"], ["y"], noop_with_empty_axes=1)
    how = {"dim": (1,), "keepdim": True}
    reference: Any = lambda x, **_: FORMS[op_type](x, **how)  # noqa: E731
    check([noop], {"x": normal(2, 3)}, {"axes": np.asarray([1])}, wrt=["x"], reference=reference)


@pytest.mark.parametrize("op_type", ["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"])
def test_no_axes_and_noop_refused_where_it_means_more(op_type: str) -> None:
    model = build(f"y = {op_type}<noop_with_empty_axes=1>(x)", {"x": normal(2, 3)})
    with pytest.raises(UnsupportedOperator, match="noop_with_empty_axes"):
        onnxcam.gradient(model, of="y", wrt=["x"])


def test_noop_with_axes_of_run_time_is_refused() -> None:
    model = build("y = ReduceSum<noop_with_empty_axes=1>(x, a)", {"x": normal(2, 3), "a": np.asarray([1])})
    with pytest.raises(UnsupportedOperator, match="run time"):
        onnxcam.gradient(model, of="y", wrt=["x"])


@pytest.mark.parametrize("axes", [[1], [-1, 0], [2, 0, 1]])
def test_lost_axes_of_run_time(axes: list[int]) -> None:
    """Y's rank is unknown then."""
    for op_type, form in FORMS.items():
        body = f"r = {op_type}<keepdims=0>(x, axes) y = Reshape(r, flat)"
        check(
            body,
            {"x": values(op_type, (2, 3, 2)), "axes": np.asarray(axes)},
            {"flat": np.asarray([-1])},
            wrt=["x"],
            free=("static", "all"),
            reference=lambda x, f=form, **_: f(x, dim=tuple(axes), keepdim=False).reshape(-1),
        )


def at(op_type: str, x: Any, keepdims: int = 1, axis: int = 1) -> np.ndarray:
    x = np.asarray(x, dtype=np.float32)
    model = build(f"y = {op_type}<keepdims={keepdims}>(x, a)", {"x": x}, {"a": np.asarray([axis])})
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    return gradients(model, {"x": x}, normal(*shape), ["x"])[0]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(
    ("op_type", "form"),
    [
        ("ReduceMax", torch.amax),
        ("ReduceMin", torch.amin),
        ("ReduceL1", functools.partial(torch.linalg.vector_norm, ord=1)),
        ("ReduceL2", torch.linalg.vector_norm),
        ("ReduceProd", torch.prod),
        ("ReduceLogSumExp", torch.logsumexp),
    ],
)
def test_ties_and_zeros_as_in_torch(op_type: str, form: Callable[..., torch.Tensor], keepdims: int) -> None:
    rows = [[1, 1, 1], [0, 0, 0], [0, 2, 3], [0, 0, 3], [2, -2, 2], [-1, -1, 5], [90, 90, -90]]
    x = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    y = form(x, dim=1, keepdim=bool(keepdims))
    [expected] = torch.autograd.grad(y, x, torch.from_numpy(normal(*y.shape)))
    np.testing.assert_allclose(at(op_type, rows, keepdims), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_global_pooling_is_one_product_and_one_copy() -> None:
    """Exporters write global average pooling as ReduceMean: only small tensors are computed with."""
    for free in ("static", "batch"):
        model = build(
            "y = ReduceMean<keepdims=0>(x, a)", {"x": normal(2, 3, 4, 4)}, {"a": np.asarray([-2, -1])}, free=free
        )
        emitted = [n.op_type for n in onnxcam.gradient(model, of="y", wrt=["x"]).graph.node][1:-1]
        assert sorted(set(emitted) - {"Shape"}) == ["Expand", "Mul", "Unsqueeze"]
