"""Gradients of operators that move elements: every attribute and every constant may also be computed at run time."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import onnxcam
from onnxcam.errors import UnsupportedOperator
from onnxcam.runtime import open_session
from tests.autodiff.harness import Arrays, build, check, covers, distinct, gradients, normal
from tests.support.examples import examples
from tests.support.runtime import run

FREE = ("static", "batch", "all")
SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def emitted(body: str, feeds: Arrays, constants: Arrays | None = None, free: str = "static") -> list[str]:
    """The operators that the gradient with respect to x adds."""
    model = build(body, feeds, constants, free=free)
    derived = onnxcam.gradient(model, of="y", wrt=["x"])
    return [n.op_type for n in derived.graph.node][len(model.graph.node) : -1]


@covers("Reshape")
@pytest.mark.parametrize(
    ("target", "allowzero"), [([3, 8], 0), ([-1], 0), ([0, -1], 0), ([2, 0, 2, 2], 0), ([4, 3, -1], 1), ([24], 1)]
)
def test_reshape(target: list[int], allowzero: int) -> None:
    body = f"y = Reshape<allowzero={allowzero}>(x, s)"
    check(body, {"x": normal(2, 3, 4)}, {"s": ints(*target)}, wrt=["x"], free=FREE)
    # y's rank is unknown while its shape is computed
    check(f"r = {body[4:]} y = Exp(r) ", {"x": normal(2, 3, 4)}, {"s": ints(*target)}, wrt=["x"], free=FREE)


def test_reshape_to_a_shape_of_run_time() -> None:
    body = "s = Shape(w) r = Reshape(x, s) e = Exp(r) y = Reshape(e, flat)"
    check(body, {"x": normal(2, 6), "w": normal(3, 4)}, {"flat": ints(-1)}, wrt=["x"], free=FREE)


@covers("Flatten")
@pytest.mark.parametrize("axis", [None, *range(-3, 4)])
def test_flatten(axis: int | None) -> None:
    attribute = "" if axis is None else f"<axis={axis}>"
    check(f"y = Flatten{attribute}(x)", {"x": normal(2, 3, 2)}, free=FREE)


@covers("Squeeze", "Unsqueeze")
@pytest.mark.parametrize("free", ["static", "batch", "all"])
def test_squeeze_and_unsqueeze(free: str) -> None:
    x = normal(2, 1, 3, 1)
    for axes in ([1], [-1], [3, 1]):
        check("y = Squeeze(x, a)", {"x": x}, {"a": ints(*axes)}, wrt=["x"], free=(free,))
    if free != "all":  # how many axes go is known only with their sizes
        check("s = Squeeze(x) y = Reshape(s, flat)", {"x": x}, {"flat": ints(-1)}, wrt=["x"], free=(free,))
    for axes in ([0], [-1], [5, 0], [1, -2]):
        check("y = Unsqueeze(x, a)", {"x": x}, {"a": ints(*axes)}, wrt=["x"], free=(free,))
    for body in ("s = Squeeze(x, a) y = Reshape(s, flat)", "s = Unsqueeze(x, a) y = Reshape(s, flat)"):
        check(body, {"x": x, "a": ints(1)}, {"flat": ints(-1)}, wrt=["x"], free=(free,))


@covers("Transpose")
@pytest.mark.parametrize("perm", [None, *itertools.permutations(range(3))])
def test_transpose(perm: tuple[int, ...] | None) -> None:
    attribute = "" if perm is None else f"<perm={list(perm)}>"
    check(f"y = Transpose{attribute}(x)", {"x": normal(2, 3, 4)}, free=FREE)


@covers("Expand")
@pytest.mark.parametrize("target", [[3], [2, 1], [2, 3], [4, 2, 3], [4, 1, 1], [1, 1, 1, 1]])
def test_expand(target: list[int]) -> None:
    for shape in ((2, 1), (1, 1), (2, 3)):
        if target[-1] not in (1, shape[-1]) and shape[-1] != 1:
            continue
        check("y = Expand(x, s)", {"x": normal(*shape)}, {"s": ints(*target)}, wrt=["x"], free=FREE)
        body = "e = Expand(x, s) y = Reshape(e, flat)"
        check(body, {"x": normal(*shape), "s": ints(*target)}, {"flat": ints(-1)}, wrt=["x"], free=("static", "all"))


@covers("Concat")
@examples(60)
@given(shape=SHAPES, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), data=st.data())
def test_concat(shape: tuple[int, ...], sizes: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    feeds = {}
    for k, size in enumerate(sizes):
        dims = list(shape)
        dims[axis] = size
        feeds[f"x{k}"] = normal(*dims, seed=k)
    wrt = data.draw(st.lists(st.sampled_from(sorted(feeds)), min_size=1, unique=True))
    check(f"y = Concat<axis={axis}>({', '.join(feeds)})", feeds, wrt=wrt, free=FREE)


def test_concat_of_a_value_with_itself() -> None:
    check("z = Exp(x) y = Concat<axis=1>(z, x, z)", {"x": normal(2, 3)}, free=FREE)


@pytest.mark.sample(7)
@covers("Split")
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("reads", [(0,), (1,), (2,), (0, 2), (2, 1), (0, 1, 2)])
def test_split(axis: int, reads: tuple[int, ...]) -> None:
    x = normal(6, 6, 6)
    names = ", ".join(f"e{k}" for k in reads)
    tail = " ".join(f"e{k} = Exp(p{k})" for k in reads) + f" y = Concat<axis={axis}>({names})"
    check(
        f"p0, p1, p2 = Split<axis={axis}>(x, s) {tail}",
        {"x": x[:, :2, :3] if axis == 0 else x[:2]},
        {"s": ints(1, 2, 3)},
        wrt=["x"],
        free=FREE,
    )
    equal = x[:, :2, :2] if axis == 0 else x[:2]
    check(f"p0, p1, p2 = Split<axis={axis}, num_outputs=3>(x) {tail}", {"x": equal}, free=("static", "batch"))
    check(
        f"p0, p1, p2 = Split<axis={axis}>(x, s) {tail}",
        {"x": equal, "s": ints(3, 1, 2)},
        wrt=["x"],
        free=("static", "all"),
    )


def test_split_into_unequal_rest() -> None:
    check("a, b = Split<axis=1, num_outputs=2>(x) e = Exp(a) y = Concat<axis=1>(b, e)", {"x": normal(2, 5)})


@st.composite
def slices(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(SHAPES)
    rank = len(shape)
    axes = draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=1))
    plain = draw(st.booleans())
    cuts = []
    for axis in axes:
        size = shape[axis]
        step = 1 if plain else draw(st.sampled_from([1, 2, 3, -1, -2]))
        start, end = draw(st.integers(-size - 1, size + 1)), draw(st.integers(-size - 1, size + 1))
        if step < 0 and draw(st.booleans()):
            end = -(2**31)
        if step > 0 and draw(st.booleans()):
            end = 2**63 - 1
        if not len(range(*_clamped(start, end, step, size))):
            start, end = (0, size) if step > 0 else (-1, -(2**31))
        cuts.append((start, end, step))
    return {
        "shape": shape,
        "starts": ints(*(c[0] for c in cuts)),
        "ends": ints(*(c[1] for c in cuts)),
        "axes": ints(*(a - rank if draw(st.booleans()) else a for a in axes)),
        "steps": None if plain and draw(st.booleans()) else ints(*(c[2] for c in cuts)),
    }


def _clamped(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    return slice(start, end, step).indices(size)


@covers("Slice")
@examples(150)
@given(slices())
def test_slice(case: dict[str, Any]) -> None:
    x = normal(*case.pop("shape"))
    constants = {name: array for name, array in case.items() if array is not None}
    body = f"y = Slice(x, {', '.join(constants)})"
    check(body, {"x": x}, constants, wrt=["x"], free=FREE)
    feeds = {name: array for name, array in constants.items() if name != "axes"}
    flat = {"flat": ints(-1), "axes": constants["axes"]}
    check(f"c = {body[4:]} y = Reshape(c, flat)", {"x": x, **feeds}, flat, wrt=["x"], free=("static", "all"))


def test_slice_without_axes() -> None:
    constants = {"s": ints(1, -2), "e": ints(2, 100)}
    check("y = Slice(x, s, e)", {"x": normal(2, 3, 2)}, constants, wrt=["x"], free=(*FREE, "static"))
    check("y = Slice(x, s, e)", {"x": normal(2, 3, 2), **constants}, wrt=["x"], free=("static",))


def test_slice_of_int32_bounds() -> None:
    constants = {"s": np.int32([1]), "e": np.int32([3]), "a": np.int32([1])}
    check("y = Slice(x, s, e, a)", {"x": normal(2, 3)}, constants, wrt=["x"], free=FREE)
    check("y = Slice(x, s, e, a)", {"x": normal(2, 3), "s": constants.pop("s")}, constants, wrt=["x"], free=FREE)


def test_slice_along_axes_of_run_time_is_refused() -> None:
    feeds = {"x": normal(2, 3), "s": ints(1), "e": ints(2), "a": ints(1)}
    with pytest.raises(UnsupportedOperator, match="axes are computed at run time"):
        onnxcam.gradient(build("y = Slice(x, s, e, a)", feeds), of="y", wrt=["x"])


def test_static_slices_are_one_pad() -> None:
    constants = {"s": ints(1), "e": ints(3), "a": ints(1), "t": ints(1)}
    for free in ("static", "batch"):
        assert emitted("y = Slice(x, s, e, a, t)", {"x": normal(2, 3)}, constants, free) == ["Pad"]
        assert emitted("y = Slice(x, s, e, a, t)", {"x": normal(2, 3)}, {**constants, "s": ints(0)}, free) == []
        assert emitted("y = Slice(x, s, e, a, t)", {"x": normal(2, 5)}, {**constants, "t": ints(2)}, free) == [
            "Pad",
            "Gather",
        ]


@covers("Gather")
@examples(120)
@given(
    shape=SHAPES,
    indices=st.one_of(
        st.integers(-3, 2),
        st.lists(st.integers(-3, 2), min_size=1, max_size=4),
        st.tuples(st.integers(-3, 1), st.integers(1, 3)).map(lambda at: list(range(at[0], at[0] + at[1]))),
        st.lists(st.lists(st.integers(-3, 2), min_size=2, max_size=2), min_size=1, max_size=3),
    ),
    narrow=st.booleans(),
    data=st.data(),
)
def test_gather(shape: tuple[int, ...], indices: Any, narrow: bool, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    shape = tuple(3 if k == axis % len(shape) else d for k, d in enumerate(shape))
    constants = {"i": np.clip(np.asarray(indices, dtype=np.int32 if narrow else np.int64), -3, 2)}
    body = f"y = Gather<axis={axis}>(x, i)"
    check(body, {"x": normal(*shape)}, constants, wrt=["x"], free=FREE)
    check(body, {"x": normal(*shape), **constants}, free=FREE)


def test_class_token_is_one_pad() -> None:
    """How vision transformers pick it."""
    for index, free in itertools.product((0, 2, -1), ("static", "batch")):
        constants = {"i": np.asarray(index)}
        assert emitted("y = Gather<axis=1>(x, i)", {"x": normal(2, 3, 4)}, constants, free) == ["Unsqueeze", "Pad"]
    assert emitted("y = Gather<axis=1>(x, i)", {"x": normal(2, 3, 4)}, {"i": ints(1, 2)}) == ["Pad"]


@covers("GatherElements")
@examples(40)
@given(rows=st.integers(1, 3), axis=st.sampled_from([None, 0, 1, -1]), constant=st.booleans())
def test_gather_elements(rows: int, axis: int | None, constant: bool) -> None:
    attribute = "" if axis is None else f"<axis={axis}>"
    indices = np.random.default_rng(rows).integers(-3, 3, (rows, 2))
    feeds, constants = {"x": normal(3, 3)}, {"i": indices}
    body = f"y = GatherElements{attribute}(x, i)"
    reference = functools.partial(_gather_elements, axis or 0)
    if constant:
        check(body, feeds, constants, wrt=["x"], free=FREE, reference=reference)
    else:
        check(body, feeds | constants, free=FREE, reference=reference)


def _gather_elements(axis: int, /, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    """Onnx's evaluator refuses indices narrower than the data."""
    return torch.gather(x, axis, i % 3)


@covers("GatherND")
@pytest.mark.parametrize("indices", [[[0], [2], [0]], [[0, 1], [2, -1], [0, 1]], [[[1, 1]], [[-1, 0]]]])
def test_gather_nd(indices: Any) -> None:
    constants = {"i": np.asarray(indices)}
    check("y = GatherND(x, i)", {"x": normal(3, 2, 2)}, constants, wrt=["x"], free=FREE)
    check("y = GatherND(x, i)", {"x": normal(3, 2, 2), **constants}, free=("static",))


def test_gather_nd_sums_repeated_places_in_every_run() -> None:
    """ONNX Runtime's ScatterND adds in several threads without a lock: with many repeated indices sums went missing."""
    rows, picks = 8, 20000
    i = np.random.default_rng(0).integers(0, rows, (picks, 1))
    model = onnxcam.gradient(build("y = GatherND(x, i)", {"x": normal(rows, 64)}, {"i": i}), of="y", wrt=["x"])
    session = open_session(model.SerializeToString(), ["CPUExecutionProvider"])
    feeds = {"x": np.zeros((rows, 64), np.float32), "cotangent.y": np.ones((picks, 64), np.float32)}
    expected = np.repeat(np.bincount(i[:, 0], minlength=rows)[:, None], 64, axis=1)
    for _ in range(10):
        np.testing.assert_array_equal(session.run(["grad.x"], feeds)[0], expected)


@covers("GatherND")
def test_gather_nd_of_batches() -> None:
    for indices in ([[1], [0]], [[[2], [2]], [[0], [-1]]]):
        constants = {"i": np.asarray(indices)}
        check("y = GatherND<batch_dims=1>(x, i)", {"x": normal(2, 3, 2)}, constants, wrt=["x"], free=FREE)


@covers("ScatterND", "ScatterElements")
@pytest.mark.parametrize("reduction", ["max", "min"])
def test_scatter_of_extrema(reduction: str) -> None:
    """Also where indices repeat: whoever holds the extremum has the gradient."""
    feeds = {"x": distinct(3, 2), "u": distinct(4, 2, seed=1) * np.float32(1.03)}
    rows = {"i": np.asarray([[0], [-1], [0], [2]])}
    check(f'y = ScatterND<reduction="{reduction}">(x, i, u)', feeds, rows, free=FREE)
    cells = {"i": np.asarray([[0, 1], [2, 1], [-3, 0], [2, -1]])}
    check(f'y = ScatterElements<reduction="{reduction}">(x, i, u)', feeds, cells, free=FREE)


@covers("TopK")
@pytest.mark.parametrize("attributes", ["", "<axis=0>", "<axis=1, largest=0>"])
def test_top_k(attributes: str) -> None:
    check(f"y, i = TopK{attributes}(x, k)", {"x": distinct(3, 4)}, {"k": ints(2)}, wrt=["x"], free=FREE)


@covers("Compress")
def test_compress() -> None:
    x = {"x": normal(3, 4, 2)}
    for axis, mask in ((0, [0, 1, 1]), (1, [1, 0, 1]), (-2, [0, 1, 0, 1])):
        constants = {"c": np.asarray(mask, dtype=bool)}
        check(f"y = Compress<axis={axis}>(x, c)", x, constants, wrt=["x"], free=FREE)
    check("y = Compress(x, c)", x, {"c": np.arange(20) % 3 == 1}, wrt=["x"], free=FREE)


@covers("ReverseSequence")
@pytest.mark.parametrize("attributes", ["", "<batch_axis=0, time_axis=1>"])
def test_reverse_sequence(attributes: str) -> None:
    check(f"y = ReverseSequence{attributes}(x, n)", {"x": normal(3, 3, 2)}, {"n": ints(1, 3, 2)}, wrt=["x"], free=FREE)


@covers("ScatterND", "ScatterElements")
@pytest.mark.parametrize("reduction", ["", 'reduction="none"', 'reduction="add"'])
def test_scatter(reduction: str) -> None:
    x = normal(3, 2, 2)
    for indices in ([[0], [-1]], [[0, 1], [2, 0]]):
        constants = {"i": np.asarray(indices)}
        feeds = {"x": x, "u": normal(*((2, 2, 2) if len(indices[0]) == 1 else (2, 2)))}
        check(f"y = ScatterND<{reduction}>(x, i, u)".replace("<>", ""), feeds, constants, free=FREE)
        check(f"y = ScatterND<{reduction}>(x, i, u)".replace("<>", ""), feeds, constants, wrt=["u"], free=FREE)
    for axis in (0, 1, -1):
        constants = {"i": np.asarray([[[0, 1]], [[1, 0]]] if axis else [[[0, 2], [2, 1]]])}
        feeds = {"x": x, "u": normal(*constants["i"].shape)}
        body = f"y = ScatterElements<axis={axis}, {reduction}>(x, i, u)".replace(", >", ">")
        check(body, feeds, constants, free=FREE)
        check(body, feeds, constants, wrt=["x"], free=FREE)


@pytest.mark.parametrize("op_type", ["ScatterND", "ScatterElements"])
def test_scatter_of_products_is_refused(op_type: str) -> None:
    feeds = {"x": normal(3, 2), "i": np.asarray([[0, 1]]), "u": normal(1) if op_type == "ScatterND" else normal(1, 2)}
    with pytest.raises(UnsupportedOperator, match="mul"):
        onnxcam.gradient(build(f'y = {op_type}<reduction="mul">(x, i, u)', feeds), of="y", wrt=["x"])


@covers("Tile")
@examples(30)
@given(shape=SHAPES, data=st.data())
def test_tile(shape: tuple[int, ...], data: st.DataObject) -> None:
    repeats = ints(*(data.draw(st.integers(1, 3)) for _ in shape))
    check("y = Tile(x, r)", {"x": normal(*shape)}, {"r": repeats}, wrt=["x"], free=FREE)
    check("y = Tile(x, r)", {"x": normal(*shape), "r": repeats}, free=FREE)


@covers("CumSum")
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumsum(exclusive: int, reverse: int) -> None:
    body = f"y = CumSum<exclusive={exclusive}, reverse={reverse}>(x, a)"
    for axis in (0, 1, -1):
        check(body, {"x": normal(2, 3, 4)}, {"a": np.asarray(axis)}, wrt=["x"], free=FREE)
        check(body, {"x": normal(2, 3, 4), "a": np.asarray(axis)}, free=FREE)


@covers("DepthToSpace", "SpaceToDepth")
@pytest.mark.parametrize("block", [1, 2, 3])
def test_depth_to_space(block: int) -> None:
    x = normal(2, 2 * block * block, 2, 1)
    for attributes in (f"blocksize={block}", f'blocksize={block}, mode="DCR"', f'blocksize={block}, mode="CRD"'):
        # without a known number of channels mode CRD is refused
        free = ("static", "batch") if "CRD" in attributes else FREE
        check(f"y = DepthToSpace<{attributes}>(x)", {"x": x}, free=free)
    check(f"y = SpaceToDepth<blocksize={block}>(x)", {"x": normal(2, 3, 2 * block, block)}, free=FREE)


def test_depth_to_space_of_unknown_channels_is_refused() -> None:
    model = build('y = DepthToSpace<blocksize=2, mode="CRD">(x)', {"x": normal(1, 4, 1, 1)}, free="all")
    with pytest.raises(UnsupportedOperator, match="channels"):
        onnxcam.gradient(model, of="y", wrt=["x"])


@covers("Trilu")
@pytest.mark.parametrize("upper", ["", "<upper=0>", "<upper=1>"])
@pytest.mark.parametrize("k", [None, -1, 0, 2])
def test_trilu(upper: str, k: int | None) -> None:
    constants = {} if k is None else {"k": np.asarray(k)}
    body = f"y = Trilu{upper}(x{', k' * bool(constants)})"
    check(body, {"x": normal(2, 3, 4)}, constants, wrt=["x"], free=FREE)


@covers("Range")
def test_range() -> None:
    feeds = {"a": np.float32(0.5), "b": np.float32(3.9), "c": np.float32(0.7)}
    check("y = Range(a, b, c)", feeds, wrt=["a", "c"], free=("static",))


@covers("OneHot")
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    constants = {"i": np.asarray([[0, 2], [-1, 5]]), "d": np.asarray(3)}
    check(f"y = OneHot<axis={axis}>(i, d, v)", {"v": normal(2)}, constants, wrt=["v"], free=("static",))


@covers("TensorScatter")
@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1, 3])
def test_tensor_scatter(axis: int, mode: str) -> None:
    shape = [2, 5, 5, 5]
    shape[axis] = 3
    at = {"w": np.asarray([1, 4 if mode == "circular" else 2])}
    body = f'y = TensorScatter<mode="{mode}", axis={axis}>(x, u, w)'
    check(body, {"x": normal(2, 5, 5, 5), "u": normal(*shape, seed=1)}, at, opset=24, free=("static", "batch"))


def test_tensor_scatter_to_the_start() -> None:
    check("y = TensorScatter(x, u)", {"x": normal(2, 4, 3), "u": normal(2, 2, 3)}, opset=24, free=("static", "batch"))


def test_shapes_and_positions_pass_nothing_back() -> None:
    """Their outputs are computed from float values, but do not vary with them."""
    body = "s = Shape(x) n = Size(x) z = ConstantOfShape(s) f = Cast<to=1>(n) g = Add(z, f) y = Mul(x, g)"
    check(body, {"x": distinct(2, 3)}, free=FREE, reference=lambda x: 6 * x)
    assert emitted(body, {"x": normal(2, 3)}) == ["Mul"]


def test_rolled_windows() -> None:
    """Swin's cyclic shift: two slices and a concatenation."""
    body = "a = Slice(x, one, end, axis) b = Slice(x, zero, one, axis) y = Concat<axis=1>(a, b)"
    constants = {"one": ints(1), "zero": ints(0), "end": ints(2**63 - 1), "axis": ints(1)}
    check(body, {"x": normal(2, 4, 3)}, constants, wrt=["x"], free=FREE)


def test_patches_merged_by_strided_slices() -> None:
    """Swin's patch merging: every second row and column."""
    constants = {"s": ints(1, 0), "e": ints(9, 9), "a": ints(1, 2), "t": ints(2, 2)}
    model = build("y = Slice(x, s, e, a, t)", {"x": normal(1, 4, 4, 2)}, constants, free="all")
    x, dy = normal(1, 5, 4, 2), normal(1, 2, 2, 2)
    [gradient] = gradients(model, {"x": x}, dy, ["x"])
    expected = torch.zeros(1, 5, 4, 2)
    expected[:, 1::2, 0::2] = torch.from_numpy(dy)
    np.testing.assert_array_equal(gradient, expected.numpy())


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_blocks_go_back_in_the_order_of_their_mode(mode: str) -> None:
    """SpaceToDepth has modes from opset 28 on."""
    model = onnx.parser.parse_model(
        '<ir_version: 14, opset_import: ["" : 28]>\nsmall (float[1, 3, 4, 6] x) => (float[1, 12, 2, 3] y) '
        f'{{ y = SpaceToDepth<blocksize = 2, mode = "{mode}">(x) }}'
    )
    x = np.arange(72, dtype=np.float32).reshape(1, 3, 4, 6)
    blocks = x.reshape(1, 3, 2, 2, 3, 2)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    y = blocks.transpose(order).reshape(1, 12, 2, 3)
    derived = onnxcam.gradient(model, "y", ["x"])
    node = next(node for node in derived.graph.node if node.op_type == "SpaceToDepth")
    derived.graph.node.remove(node)  # the linear operator itself: ONNX Runtime 1.32 has no kernel of opset 28 for it
    outputs = [output for output in derived.graph.output if output.name != "y"]
    del derived.graph.output[:]
    derived.graph.output.extend(outputs)
    assert np.array_equal(run(derived, {"x": x, "cotangent.y": y})["grad.x"], x)
