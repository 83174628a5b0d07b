"""Gradients of Conv and ConvTranspose with respect to input, weight and bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, parser

import onnxcam
from onnxcam.errors import UnsupportedOperator
from tests.autodiff.harness import build, check, covers, normal, same
from tests.support.examples import examples

CONV = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
TRANSPOSED = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}


def interleave(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """ONNX pads in the order of `torch.nn.functional.pad`: last axis first."""
    return [p for pair in reversed(list(zip(begin, end, strict=True))) for p in pair]


def convolution(
    begin: Sequence[int], end: Sequence[int], strides: Sequence[int], dilations: Sequence[int], group: int
) -> Callable[..., torch.Tensor]:
    def reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        padded = torch.nn.functional.pad(x, interleave(begin, end))
        return CONV[x.ndim - 2](padded, w, b, stride=tuple(strides), dilation=tuple(dilations), groups=group)

    return reference


def transposed(
    begin: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int], group: int
) -> Callable[..., torch.Tensor]:
    """The whole transposed convolution, then the `sizes` elements from `begin` on, zeros where there are no more."""

    def reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        z = TRANSPOSED[x.ndim - 2](x, w, stride=tuple(strides), dilation=tuple(dilations), groups=group)
        more = [n + p - have for n, p, have in zip(sizes, begin, z.shape[2:], strict=True)]
        y = torch.nn.functional.pad(z, interleave([-p for p in begin], more))
        return y if b is None else y + b.reshape(-1, *[1] * len(sizes))

    return reference


SHAPES = ("static", "batch", "spatial")


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    axes = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, strides, dilations = draw(axes), draw(axes), [min(d, 2) for d in draw(axes)]
    if draw(st.booleans()):
        strides = [1] * rank
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode.startswith("SAME"):  # ONNX Runtime has no SAME padding with dilation
        dilations = [1] * rank
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [e + draw(st.integers(0, 3 if rank < 3 else 1)) for e in extents]
    begin, end = [0] * rank, [0] * rank
    if mode == "NOTSET":
        begin, end = [draw(st.integers(0, 2)) for _ in range(rank)], [draw(st.integers(0, 2)) for _ in range(rank)]
    elif mode != "VALID":
        begin, end = same(sizes, extents, strides, mode)
    group, inputs, outputs = draw(st.sampled_from([(1, 1, 2), (1, 2, 1), (2, 1, 1), (2, 1, 2), (2, 2, 1), (2, 2, 2)]))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group, "auto_pad": mode}
    if mode == "NOTSET":
        attributes["pads"] = begin + end
    return {
        "x": [draw(st.integers(1, 2)), inputs * group, *sizes],
        "w": [outputs * group, inputs, *kernel],
        "bias": draw(st.booleans()),
        "attributes": attributes,
        "reference": convolution(begin, end, strides, dilations, group),
        "opset": draw(st.sampled_from([18, 20, 21])),
    }


@covers("Conv")
@given(convolutions())
@examples(150)
def test_conv(case: dict[str, Any]) -> None:
    constants = {"w": normal(*case["w"], seed=1)} | ({"b": normal(case["w"][0], seed=2)} if case["bias"] else {})
    node = helper.make_node("Conv", ["x", *constants], ["y"], **case["attributes"])
    check(
        [node],
        {"x": normal(*case["x"])},
        constants,
        wrt=["x", *constants],
        opset=case["opset"],
        free=SHAPES,
        reference=case["reference"],
    )


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [5, 6, 7])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_same_padding_of_free_sizes(mode: str, size: int, kernel: int) -> None:
    begin, end = same([size, size + 1], [kernel, 3], [2, 3], mode)
    check(
        f'y = Conv<strides=[2, 3], auto_pad="{mode}">(x, w)',
        {"x": normal(1, 2, size, size + 1)},
        {"w": normal(2, 2, kernel, 3)},
        wrt=["x", "w"],
        free=SHAPES,
        reference=convolution(begin, end, [2, 3], [1, 1], 1),
    )


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(multiplier: int, stride: int) -> None:
    check(
        f"y = Conv<strides=[{stride}, {stride}], pads=[1, 1, 1, 1], group=3>(x, w, b)",
        {"x": normal(1, 3, 4, 5)},
        {"w": normal(3 * multiplier, 1, 3, 3), "b": normal(3 * multiplier)},
        wrt=["x", "w", "b"],
        free=SHAPES,
        reference=convolution([1, 1], [1, 1], [stride, stride], [1, 1], 3),
    )


@pytest.mark.parametrize("pads", [[3, 0, 2, 4], [0, 3, 4, 0]])
@pytest.mark.parametrize("stride", [1, 2])
def test_pads_beyond_the_kernel(pads: list[int], stride: int) -> None:
    """Windows that lie in the padding altogether pass nothing back."""
    check(
        f"y = Conv<strides=[{stride}, {stride}], pads=[{', '.join(map(str, pads))}]>(x, w)",
        {"x": normal(1, 2, 4, 4)},
        {"w": normal(2, 2, 2, 2)},
        wrt=["x", "w"],
        free=SHAPES,
        reference=convolution(pads[:2], pads[2:], [stride, stride], [1, 1], 1),
    )


def test_weight_as_an_input() -> None:
    check(
        "y = Conv<kernel_shape=[3, 2], pads=[1, 0, 1, 0]>(x, w)",
        {"x": normal(2, 2, 4, 4)},
        {"w": normal(3, 2, 3, 2)},
        wrt=["x", "w"],
        free=("rank",),
    )


def test_refused_without_a_kernel_shape() -> None:
    model = build("y = Conv(x, w)", {"x": normal(2, 2, 4, 4), "w": normal(3, 2, 3, 2)}, free="all")
    with pytest.raises(UnsupportedOperator, match="kernel_shape"):
        onnxcam.gradient(model, of="y", wrt=["x"])


def test_strided_form_has_symmetric_pads() -> None:
    """CUDA has no ConvTranspose with other pads."""
    text = "y = Conv<strides=[2, 2], pads=[0, 2, 1, 1]>(x, w)"
    model = build(text, {"x": normal(1, 2, 6, 6)}, {"w": normal(2, 2, 3, 3)}, free="spatial")
    emitted = onnxcam.gradient(model, of="y", wrt=["x"])
    [pads] = [
        helper.get_attribute_value(attribute)
        for node in emitted.graph.node
        for attribute in node.attribute
        if node.op_type == "ConvTranspose" and attribute.name == "pads"
    ]
    assert pads[:2] == pads[2:]


def test_emits_nothing_for_gradients_nobody_wants() -> None:
    model = build("y = Conv(x, w, b)", {"x": normal(1, 2, 4, 4)}, {"w": normal(2, 2, 3, 3), "b": normal(2)})
    emitted = {name: _ops(onnxcam.gradient(model, of="y", wrt=[name])) for name in ("x", "b")}
    assert emitted["x"] == ["Transpose", "Slice", "Conv", "Identity"]
    assert emitted["b"] == ["ReduceSum", "Identity"]


def _ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node][1:]


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    axes = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, strides, dilations = draw(axes), draw(axes), [min(d, 2) for d in draw(axes)]
    sizes = [draw(st.integers(2, 4 if rank < 3 else 2)) for _ in range(rank)]
    extra = [draw(st.integers(0, s - 1)) for s in strides]
    whole = [s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(strides, sizes, dilations, kernel, strict=True)]
    mode = draw(st.sampled_from(["NOTSET", "VALID", "output_shape", "SAME_UPPER", "SAME_LOWER"]))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations}
    shapes = SHAPES
    begin = [0] * rank
    if mode == "NOTSET":
        room = [min(2, (n + o - 1) // 2) for n, o in zip(whole, extra, strict=True)]
        begin, end = [draw(st.integers(0, r)) for r in room], [draw(st.integers(0, r)) for r in room]
        out = [n + o - b - e for n, o, b, e in zip(whole, extra, begin, end, strict=True)]
        attributes |= {"pads": begin + end, "output_padding": extra}
    elif mode == "VALID":
        out = [n + o for n, o in zip(whole, extra, strict=True)]
        attributes |= {"auto_pad": mode, "output_padding": extra}
    elif mode == "output_shape":
        out = [draw(st.integers(i, n)) for i, n in zip(sizes, whole, strict=True)]
        begin = [n - o - (n - o) // 2 for n, o in zip(whole, out, strict=True)]
        attributes |= {"output_shape": out}
        shapes = ("static", "batch")
    else:
        totals = [max(0, n - s * i) for n, s, i in zip(whole, strides, sizes, strict=True)]
        begin = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals]
        out = [n - t for n, t in zip(whole, totals, strict=True)]
        attributes |= {"auto_pad": mode}
    group, inputs, outputs = draw(st.sampled_from([(1, 1, 2), (1, 2, 1), (2, 1, 1), (2, 1, 2), (2, 2, 1)]))
    return {
        "x": [draw(st.integers(1, 2)), inputs * group, *sizes],
        "w": [inputs * group, outputs, *kernel],
        "b": outputs * group,
        "attributes": attributes | {"group": group},
        "reference": transposed(begin, out, strides, dilations, group),
        "shapes": shapes,
        "opset": draw(st.sampled_from([18, 20, 21])),
    }


@covers("ConvTranspose")
@given(transposed_convolutions())
@examples(150)
def test_conv_transpose(case: dict[str, Any]) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **case["attributes"])
    check(
        [node],
        {"x": normal(*case["x"])},
        {"w": normal(*case["w"], seed=1), "b": normal(case["b"], seed=2)},
        wrt=["x", "w", "b"],
        opset=case["opset"],
        free=case["shapes"],
        reference=case["reference"],
    )


def test_output_shape_of_free_sizes_is_refused() -> None:
    text = "y = ConvTranspose<strides=[2, 2], output_shape=[5, 5]>(x, w)"
    model = build(text, {"x": normal(1, 2, 3, 3)}, {"w": normal(2, 2, 3, 3)}, free="spatial")
    with pytest.raises(UnsupportedOperator, match="output_shape"):
        onnxcam.gradient(model, of="y", wrt=["x"])


@covers("Col2Im")
@pytest.mark.parametrize(
    ("picture", "block", "how"),
    [
        ((5, 6), (2, 3), ""),
        ((5, 5), (1, 5), ""),
        ((6, 7), (3, 2), "<strides=[2, 1], pads=[0, 1, 1, 2]>"),
        ((6, 6), (2, 2), "<dilations=[1, 3], pads=[1, 1, 1, 1]>"),
        ((9,), (3,), "<strides=[2]>"),
        ((4, 3, 3), (1, 2, 2), "<pads=[0, 1, 0, 0, 1, 0]>"),
    ],
)
def test_col2im(picture: tuple[int, ...], block: tuple[int, ...], how: str) -> None:
    constants = {"i": np.asarray(picture), "b": np.asarray(block)}
    node = parser.parse_graph(f"g () => () {{ y = Col2Im{how}(x, i, b) }}").node[0]
    attributes = {a.name: list(a.ints) for a in node.attribute}
    rank, size = len(picture), int(np.prod(block))
    pads = attributes.get("pads", [0] * 2 * rank)
    image = torch.nn.functional.pad(torch.zeros(1, 1, *picture), interleave(pads[:rank], pads[rank:]))
    unit = torch.zeros(1, 1, *block)
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    grid = CONV[rank](image, unit, stride=strides, dilation=dilations).shape[2:]
    # a transposed convolution whose weights are 0 and 1; onnx's evaluator takes 10 ms for a picture of 36 pixels
    ones = torch.eye(2 * size, dtype=torch.float64).reshape(2 * size, 2, *block)
    add_up = transposed(pads[:rank], picture, strides, dilations, 1)
    check(
        [node],
        {"x": normal(2, 2 * size, grid.numel())},
        constants,
        wrt=["x"],
        free=("static", "batch"),
        reference=lambda x, **_: add_up(x.reshape(2, 2 * size, *grid), ones),
    )


def test_col2im_of_blocks_known_at_run_time_only_is_refused() -> None:
    feeds = {"x": normal(1, 8, 9), "b": np.asarray([2, 2])}
    model = build("y = Col2Im(x, i, b)", feeds, {"i": np.asarray([4, 4])})
    with pytest.raises(UnsupportedOperator, match=r"Col2Im .*block_shape is computed at run time"):
        onnxcam.gradient(model, of="y", wrt=["x"])
