"""Gradients of Resize and Pad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import onnxcam
from onnxcam.errors import UnsupportedOperator
from tests.autodiff.harness import build, check, covers, gradients, normal
from tests.support.examples import examples
from tests.support.runtime import run

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@st.composite
def resizes(draw: st.DrawFn) -> dict[str, Any]:
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    opset = draw(st.sampled_from([18, 20, 21]))
    coordinates = draw(st.sampled_from([c for c in COORDINATES if opset >= 19 or c != "half_pixel_symmetric"]))
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = draw(st.sampled_from(ROUNDINGS))
    if mode == "cubic":
        attributes["cubic_coeff_a"] = draw(st.sampled_from([-0.75, -0.5]))
        attributes["exclude_outside"] = draw(st.integers(0, 1))
    sizes = [draw(st.integers(1, 4)), draw(st.integers(2, 4))]
    subset = draw(st.booleans())
    if subset:
        attributes["axes"] = [2, 3]
    lead: list[Any] = [] if subset else [1, 1]
    shape = [draw(st.integers(1, 2)), 2, *sizes]
    if draw(st.booleans()):
        scales = [draw(st.sampled_from([0.5, 1.0, 1.6, 2.0, 3.0])) for _ in sizes]
        scales = [max(s, 1 / n) for s, n in zip(scales, sizes, strict=True)]
        constants = {"scales": np.asarray([*lead, *scales], np.float32)}
    else:
        lead = [] if subset else shape[:2]
        constants = {"sizes": np.asarray([*lead, *(draw(st.integers(1, 6)) for _ in sizes)], np.int64)}
    return {"shape": shape, "attributes": attributes, "constants": constants, "opset": opset}


def linear(model: onnx.ModelProto, x: np.ndarray) -> Callable[..., torch.Tensor]:
    """The linear function ONNX Runtime computes, from what it makes of every unit vector."""
    rows = [run(model, x=unit.reshape(x.shape), threads=1)["y"] for unit in np.eye(x.size, dtype=np.float32)]
    matrix = torch.from_numpy(np.stack(rows).astype(np.float64))
    return lambda x, **_: torch.tensordot(x.flatten(), matrix, 1)


def check_resize(case: dict[str, Any], shapes: Sequence[str]) -> None:
    constants = case["constants"]
    names = ["x", "", "scales"] if "scales" in constants else ["x", "", "", "sizes"]
    nodes = [helper.make_node("Resize", names, ["y"], **case["attributes"])]
    feeds = {"x": normal(*case["shape"])}
    # not onnx's evaluator: it differs in align_corners with scales and in pytorch_half_pixel to one pixel
    reference = linear(build(nodes, feeds, constants, opset=case["opset"]), feeds["x"])
    check(nodes, feeds, constants, wrt=["x"], opset=case["opset"], free=shapes, reference=reference)


@covers("Resize")
@given(resizes())
@examples(120)
def test_resize(case: dict[str, Any]) -> None:
    check_resize(case, ("static", "batch", "spatial"))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("sizes", [(3, 2), (2, 7), (9, 6)])
def test_antialiased_resize(mode: str, sizes: tuple[int, int]) -> None:
    case = {
        "shape": [2, 1, 6, 5],
        "attributes": {"mode": mode, "antialias": 1},
        "constants": {"sizes": np.asarray([2, 1, *sizes], np.int64)},
        "opset": 18,
    }
    check_resize(case, ("static", "spatial"))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_against_the_specification(mode: str) -> None:
    """onnx's own evaluator, in float64."""
    check(
        f'y = Resize<mode="{mode}">(x, , scales)',
        {"x": normal(1, 1, 3, 4)},
        {"scales": np.asarray([1, 1, 1.7, 2.5], np.float32)},
        wrt=["x"],
    )


@pytest.mark.parametrize(("shape", "scales"), [((2, 2, 3), (1, 1, 2.5)), ((1, 1, 2, 3, 2), (1, 1, 2, 1.5, 2))])
def test_resize_of_other_ranks(shape: tuple[int, ...], scales: tuple[float, ...]) -> None:
    for mode in ("nearest", "linear"):
        case = {
            "shape": shape,
            "attributes": {"mode": mode},
            "constants": {"scales": np.asarray(scales, np.float32)},
            "opset": 20,
        }
        check_resize(case, ("static", "batch", "spatial"))


@pytest.mark.parametrize("arguments", ["scales", "sizes"])
def test_resize_with_scales_known_at_run_time_only(arguments: str) -> None:
    """Every axis counts as resized, the batch too."""
    values: dict[str, np.ndarray] = {
        "scales": np.asarray([1, 1, 2, 1.5], np.float32),
        "sizes": np.asarray([2, 2, 6, 3], np.int64),
    }
    names = ["x", "", arguments] if arguments == "scales" else ["x", "", "", arguments]
    nodes = [helper.make_node("Resize", names, ["y"], mode="linear")]
    feeds = {"x": normal(2, 2, 3, 2), arguments: values[arguments]}
    model = build(nodes, {"x": feeds["x"]}, {arguments: values[arguments]})
    check(nodes, feeds, wrt=["x"], free=("static", "spatial"), reference=linear(model, feeds["x"]))


@pytest.mark.sample(6)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_nearest_resize_by_whole_factors(coordinates: str, rounding: str) -> None:
    """Only some combinations repeat each element; the others must not take the pool for it."""
    for factors in ((1, 2, 3), (2, 1, 4)):
        case = {
            "shape": [1, 2, 3, 2],
            "attributes": {
                "mode": "nearest",
                "coordinate_transformation_mode": coordinates,
                "nearest_mode": rounding,
                "axes": [1, 2, 3],
            },
            "constants": {"scales": np.asarray(factors, np.float32)},
            "opset": 20,
        }
        check_resize(case, ("static", "spatial"))


def test_unnamed_free_sizes_count_as_resized() -> None:
    feeds = {"x": normal(1, 1, 3, 2), "sizes": np.asarray([1, 1, 6, 3], np.int64)}
    model = build('y = Resize<mode="nearest">(x, , , sizes)', feeds)
    for value in (model.graph.input[0], model.graph.output[0]):
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("value")
    reference = linear(build(model.graph.node, {"x": feeds["x"]}, {"sizes": feeds["sizes"]}), feeds["x"])
    cotangent = normal(1, 1, 6, 3)
    [dx] = gradients(model, feeds, cotangent, ["x"])
    leaf = torch.from_numpy(feeds["x"]).double().requires_grad_()
    reference(leaf).backward(torch.from_numpy(cotangent).double())
    assert leaf.grad is not None
    np.testing.assert_allclose(dx, leaf.grad.numpy(), atol=1e-6)


def test_nearest_repeats_are_summed_by_a_pool() -> None:
    text = 'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)'
    model = build(text, {"x": normal(1, 2, 3, 3)}, {"s": np.asarray([1, 1, 2, 3], np.float32)}, free="spatial")
    emitted = [node.op_type for node in onnxcam.gradient(model, of="y", wrt=["x"]).graph.node]
    assert emitted == ["Resize", "AveragePool", "Mul", "Identity"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('y = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(x, roi, s)', "tf_crop_and"),
        ('y = Resize<keep_aspect_ratio_policy="not_larger">(x, , , n)', "keep_aspect_ratio_policy"),
    ],
)
def test_refused_resizes(text: str, why: str) -> None:
    constants = {
        "roi": np.asarray([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8], np.float32),
        "s": np.asarray([1, 1, 2, 2], np.float32),
        "n": np.asarray([1, 1, 6, 9], np.int64),
    }
    model = build(text, {"x": normal(1, 1, 4, 4)}, constants)
    with pytest.raises(UnsupportedOperator, match=why):
        onnxcam.gradient(model, of="y", wrt=["x"])


@st.composite
def pads(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 4))
    opset = draw(st.sampled_from([18, 20, 21]))
    mode = draw(st.sampled_from(["constant", "constant", "reflect", "edge"] + (["wrap"] if opset >= 19 else [])))
    shape = [draw(st.integers(2, 3)) for _ in range(rank)]
    low = -1 if mode == "constant" and draw(st.booleans()) else 0
    high = 1 if mode == "reflect" else 2
    some_axes = draw(st.permutations(range(rank)))[: draw(st.integers(1, rank))] if draw(st.booleans()) else None
    axes = list(range(rank)) if some_axes is None else some_axes
    values = [draw(st.integers(low, high)) for _ in range(2 * len(axes))]
    for place, axis in enumerate(axes):  # something must be left
        if shape[axis] + min(0, values[place]) + min(0, values[len(axes) + place]) < 1:
            values[place] = 0
    if some_axes is not None:
        axes = [axis - rank if draw(st.booleans()) else axis for axis in axes]
    return {
        "shape": shape,
        "mode": mode,
        "opset": opset,
        "pads": np.asarray(values, np.int64),
        "axes": None if some_axes is None else np.asarray(axes, np.int64),
        "value": mode == "constant" and draw(st.booleans()),
        "known": draw(st.booleans()),
    }


@covers("Pad")
@given(pads())
@examples(150)
def test_pad(case: dict[str, Any]) -> None:
    feeds, constants = {"x": normal(*case["shape"])}, {}
    names = ["x", "p", "", ""]
    (constants if case["known"] else feeds)["p"] = case["pads"]
    if case["value"]:
        feeds["v"], names[2] = np.asarray(0.7, np.float32), "v"
    if case["axes"] is not None:
        constants["a"], names[3] = case["axes"], "a"
    while not names[-1]:
        names.pop()
    node = helper.make_node("Pad", names, ["y"], mode=case["mode"])
    check([node], feeds, constants, opset=case["opset"], free=("static", "batch", "all"), reference=padded(case))


def padded(case: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """What each element of the output copies, by index; -1 is the constant."""
    shape, values, count = case["shape"], case["pads"], len(case["pads"]) // 2
    axes = range(count) if case["axes"] is None else case["axes"]
    rows = [np.arange(size) for size in shape]
    for place, axis in enumerate(axes):
        size = shape[axis]
        at = np.arange(-values[place], size + values[count + place])
        if case["mode"] == "constant":
            at = np.where((at >= 0) & (at < size), at, size)
        elif case["mode"] == "edge":
            at = at.clip(0, size - 1)
        elif case["mode"] == "wrap":
            at = at % size
        else:
            at = np.abs(at)
            at = np.where(at >= size, 2 * (size - 1) - at, at)
        rows[axis] = at

    def forward(x: torch.Tensor, v: torch.Tensor | None = None, **_: torch.Tensor) -> torch.Tensor:
        y = x
        for axis, at in enumerate(rows):
            outside = torch.zeros_like(y.narrow(axis, 0, 1)) + (0.0 if v is None else v)
            y = torch.cat([y, outside], axis).index_select(axis, torch.from_numpy(at))
        return y

    return forward


def test_pads_of_axes_known_at_run_time_only_are_refused() -> None:
    feeds = {"x": normal(2, 3), "a": np.asarray([1], np.int64)}
    model = build("y = Pad(x, p, , a)", feeds, {"p": np.asarray([1, 1], np.int64)})
    with pytest.raises(UnsupportedOperator, match="axes"):
        onnxcam.gradient(model, of="y", wrt=["x"])
