"""Gradients of the pooling operators; at ties, the first maximum in memory order gets everything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

import onnxcam
from tests.autodiff.harness import build, check, covers, distinct, gradients, normal, same
from tests.support.examples import examples

SHAPES = ("static", "batch", "spatial")
Axis = tuple[list[list[int]], int, int]


def taps(size: int, kernel: int, stride: int, dilation: int, begin: int, end: int, ceil: int) -> list[list[int]]:
    """For each output the positions its taps look at, which may lie outside the input."""
    extent = dilation * (kernel - 1) + 1
    whole = (size + begin + end - extent) / stride
    steps = (math.ceil(whole) if ceil else math.floor(whole)) + 1
    if ceil and (steps - 1) * stride >= size + begin:  # the last window must not start in the padding
        steps -= 1
    return [[o * stride + t * dilation - begin for t in range(kernel)] for o in range(steps)]


def unfold(x: torch.Tensor, axes: list[list[list[int]]], fill: float) -> torch.Tensor:
    """[N, C, *out, taps]: what each window sees, `fill` where it looks outside."""
    rank = len(axes)
    for number, rows in enumerate(axes):
        axis = 2 + 2 * number
        size = x.shape[axis]
        outside = torch.full_like(x.narrow(axis, 0, 1), fill)
        index = [p if 0 <= p < size else size for row in rows for p in row]
        x = torch.cat([x, outside], axis).index_select(axis, torch.tensor(index)).unflatten(axis, (len(rows), -1))
    return x.permute(0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2)).flatten(2 + rank)


def pool(op_type: str, sizes: list[int], attributes: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """The pool with its windows written out."""
    kernel, rank = attributes["kernel_shape"], len(sizes)
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    pads, mode, ceil = attributes.get("pads", [0] * 2 * rank), attributes.get("auto_pad", ""), attributes["ceil_mode"]
    begin, end = pads[:rank], pads[rank:]
    if mode.startswith("SAME"):
        begin, end = same(sizes, [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)], strides, mode)
    axes = [taps(*axis, ceil) for axis in zip(sizes, kernel, strides, dilations, begin, end, strict=True)]
    counts = torch.ones(())  # of the elements averaged: with count_include_pad the padding, but nothing beyond it
    for rows, size, b, e in zip(axes, sizes, begin, end, strict=True):
        low, high = (-b, size + e) if attributes.get("count_include_pad") else (0, size)
        counts = counts.unsqueeze(-1) * torch.tensor([float(sum(low <= p < high for p in row)) for row in rows])

    def forward(x: torch.Tensor) -> torch.Tensor:
        if op_type == "MaxPool":
            return unfold(x, axes, -math.inf).amax(-1)
        if op_type == "LpPool":
            return torch.linalg.vector_norm(unfold(x, axes, 0.0), attributes["p"], dim=-1)
        return unfold(x, axes, 0.0).sum(-1) / counts

    return forward


@st.composite
def pools(draw: st.DrawFn, op_type: str) -> dict[str, Any]:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    axes = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, strides = draw(axes), draw(axes)
    likeness = draw(st.sampled_from(["free", "free", "beside", "dense"]))
    if likeness == "beside":
        strides = list(kernel)
    elif likeness == "dense":
        strides = [1] * rank
    opset = draw(st.sampled_from([18, 20, 21]))
    dilated = draw(st.booleans()) and (op_type != "AveragePool" or opset >= 19)
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)] if dilated else [1] * rank
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "none", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode.startswith("SAME"):
        dilations = [1] * rank
        strides = [min(s, k) for s, k in zip(strides, kernel, strict=True)]  # else ONNX Runtime may find negative pads
    sizes = [
        d * (k - 1) + 1 + draw(st.integers(0, 3 if rank < 3 else 1)) for k, d in zip(kernel, dilations, strict=True)
    ]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    attributes["ceil_mode"] = draw(st.integers(0, 1)) if mode in ("NOTSET", "none") else 0
    if mode == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    elif mode != "none":
        attributes["auto_pad"] = mode
    if op_type != "AveragePool" or opset >= 19:
        attributes["dilations"] = dilations
    if op_type == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    if op_type == "LpPool":
        attributes["p"] = draw(st.integers(1, 3))
    return {
        "shape": [draw(st.integers(1, 2)), draw(st.integers(1, 2)), *sizes],
        "attributes": attributes,
        "opset": opset,
    }


def check_pool(op_type: str, case: dict[str, Any]) -> None:
    nodes = [helper.make_node(op_type, ["x"], ["y"], **case["attributes"])]
    feeds = {"x": distinct(*case["shape"])}
    forward = pool(op_type, case["shape"][2:], case["attributes"])
    model = build(nodes, feeds, opset=case["opset"])
    declared = [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    # with ceil_mode, onnx 1.23 may infer one window more than there is
    assume(declared == list(forward(torch.from_numpy(feeds["x"])).shape))
    check(nodes, feeds, opset=case["opset"], free=SHAPES, reference=forward)


@covers("MaxPool")
@given(pools("MaxPool"))
@examples(150)
def test_max_pool(case: dict[str, Any]) -> None:
    check_pool("MaxPool", case)


@covers("AveragePool")
@given(pools("AveragePool"))
@examples(250)
def test_average_pool(case: dict[str, Any]) -> None:
    check_pool("AveragePool", case)


@covers("LpPool")
@given(pools("LpPool"))
@examples(100)
def test_lp_pool(case: dict[str, Any]) -> None:
    check_pool("LpPool", case)


@covers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def test_global_pools() -> None:
    for body in (
        "GlobalAveragePool(x)",
        "GlobalMaxPool(x)",
        "GlobalLpPool(x)",
        "GlobalLpPool<p=1>(x)",
        "GlobalLpPool<p=3>(x)",
    ):
        for shape in ((2, 3, 4), (2, 3, 4, 3), (1, 2, 2, 3, 2)):
            check(f"y = {body}", {"x": distinct(*shape)}, free=(*SHAPES, "all"), reference=GLOBAL[body])


GLOBAL: dict[str, Callable[..., torch.Tensor]] = {
    "GlobalAveragePool(x)": lambda x: x.flatten(2).mean(-1).reshape(*x.shape[:2], *[1] * (x.ndim - 2)),
    "GlobalMaxPool(x)": lambda x: x.flatten(2).amax(-1).reshape(*x.shape[:2], *[1] * (x.ndim - 2)),
    "GlobalLpPool(x)": lambda x: torch.linalg.vector_norm(x, 2, dim=tuple(range(2, x.ndim)), keepdim=True),
    "GlobalLpPool<p=1>(x)": lambda x: torch.linalg.vector_norm(x, 1, dim=tuple(range(2, x.ndim)), keepdim=True),
    "GlobalLpPool<p=3>(x)": lambda x: torch.linalg.vector_norm(x, 3, dim=tuple(range(2, x.ndim)), keepdim=True),
}


@pytest.mark.parametrize("storage_order", [0, 1])
def test_ties_go_to_the_first_maximum_as_in_torch(storage_order: int) -> None:
    x = np.random.default_rng(0).integers(0, 2, (2, 3, 7, 7)).astype(np.float32)
    cotangent = normal(2, 3, 4, 4)
    text = f"y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], storage_order={storage_order}>(x)"
    [dx] = gradients(build(text, {"x": x}), {"x": x}, cotangent, ["x"])
    leaf = torch.from_numpy(x).requires_grad_()
    torch.nn.functional.max_pool2d(leaf, 3, 2, 1).backward(torch.from_numpy(cotangent))
    assert leaf.grad is not None
    np.testing.assert_allclose(dx, leaf.grad.numpy(), atol=1e-6)


def test_ties_of_a_global_maximum_go_to_the_first() -> None:
    x = np.ones((1, 2, 2, 2), np.float32)
    [dx] = gradients(build("y = GlobalMaxPool(x)", {"x": x}), {"x": x}, np.full((1, 2, 1, 1), 3, np.float32), ["x"])
    np.testing.assert_array_equal(dx, [[[[3, 0], [0, 0]]] * 2])


@pytest.mark.parametrize(
    "body", ["GlobalLpPool(x)", "LpPool<kernel_shape=[2, 2]>(x)", "LpPool<kernel_shape=[2, 2], p=3>(x)"]
)
def test_norms_of_nothing_but_zeros_pass_nothing_back(body: str) -> None:
    x = np.zeros((1, 1, 2, 2), np.float32)
    [dx] = gradients(build(f"y = {body}", {"x": x}), {"x": x}, np.ones((1, 1, 1, 1), np.float32), ["x"])
    np.testing.assert_array_equal(dx, x)


def test_the_forward_max_pool_stays_without_indices() -> None:
    model = build("y = MaxPool<kernel_shape=[2, 2]>(x)", {"x": distinct(1, 1, 4, 4)})
    emitted = onnxcam.gradient(model, of="y", wrt=["x"])
    assert list(emitted.graph.node[0].output) == ["y"]


@pytest.mark.parametrize(
    ("attributes", "form"),
    [
        ("kernel_shape=[4, 6]", "Expand"),
        ("kernel_shape=[2, 2], strides=[2, 2]", "Resize"),
        ("kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1", "Resize"),
        ("kernel_shape=[3, 3], pads=[1, 1, 1, 1]", "AveragePool"),
        ("kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]", "MatMul"),
        ("kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1", "MatMul"),
    ],
)
def test_average_pool_takes_the_fast_form(attributes: str, form: str) -> None:
    model = build(f"y = AveragePool<{attributes}>(x)", {"x": normal(1, 2, 4, 6)})
    emitted = {node.op_type for node in onnxcam.gradient(model, of="y", wrt=["x"]).graph.node[1:]}
    assert form in emitted
    assert not emitted & ({"Expand", "Resize", "MatMul"} - {form})


@covers("MaxUnpool")
def test_max_unpool() -> None:
    constants = {"i": np.asarray([[[[5, 7], [13, 8]]]])}
    body = "y = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(x, i)"
    check(body, {"x": normal(1, 1, 2, 2)}, constants, wrt=["x"], free=("static", "batch"))
