"""The node builder: what it stores, what it names, and shapes known now or at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxcam.autodiff.passes.blocked_layout import blocked
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.normalize import prepare
from tests.support.runtime import run


def builder(inputs: str, **initializers: np.ndarray) -> Builder:
    """A builder on a model with these inputs and one output, `done`."""
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]>\ng ({inputs}) => (float[1] done) '
        "{ done = Constant<value = float[1] {0.0}>() }"
    )
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in initializers.items())
    return Builder(prepare(proto))


def compute(op: Builder, value: str, dtype: int = TensorProto.FLOAT, **feeds: np.ndarray) -> np.ndarray:
    """What a value is once the model runs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(op.graph.model)
    edit.add(proto, op)
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info(value, dtype, None))
    inputs = {i.name for i in proto.graph.input}
    return run(proto, {name: array for name, array in feeds.items() if name in inputs})[value]


def ops(op: Builder) -> list[str]:
    return [node.op_type for node in op.nodes]


def stored(op: Builder) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in op.initializers}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def test_an_operator_by_its_name() -> None:
    op = builder("float[2, 3] x")
    y = op.Transpose("x", perm=[1, 0])
    x = normal(2, 3)
    np.testing.assert_array_equal(compute(op, y, x=x), x.T)
    node = op.nodes[0]
    assert node.op_type == "Transpose" and list(node.output) == [y] and node.name == y
    assert node.name.startswith("onnxcam/")


def test_only_operator_names_are_operators() -> None:
    op = builder("float[2] x")
    with pytest.raises(AttributeError):
        _ = op.relu
    assert not hasattr(op, "__array__")


def test_a_name_of_ones_own_and_several_outputs() -> None:
    op = builder("float[4] x")
    assert op.Neg("x", name="mine") == "mine"
    assert op.call("Split", ["x"], outputs=["left", "right"], num_outputs=2) == ["left", "right"]
    counted = op.call("Split", ["x"], outputs=2, num_outputs=2)
    assert len(set(counted)) == 2
    np.testing.assert_array_equal(compute(op, counted[1], x=np.arange(4, dtype=np.float32)), [2, 3])


def test_names_are_new_every_time() -> None:
    op = builder("float[2] x")
    names = [op.Relu("x") for _ in range(3)]
    names.append(op.unique(names[0]))
    assert len(set(names)) == 4
    assert op.unique("x") != "x" and op.unique("done") != "done"


@pytest.mark.parametrize(
    ("operand", "dtype", "shape"),
    [
        (2, np.int64, ()),
        (np.int32(2), np.int64, ()),
        (True, np.bool_, ()),
        (np.bool_(False), np.bool_, ()),
        (0.5, np.float32, ()),
        (np.float64(0.5), np.float32, ()),
        ([1, 2, 3], np.int64, (3,)),
        ((1, 2), np.int64, (2,)),
        ([], np.int64, (0,)),
        (np.zeros((2, 1), np.float16), np.float16, (2, 1)),
        (np.asarray(1.5, np.float64), np.float64, ()),
    ],
)
def test_what_an_operand_becomes(operand: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    op = builder("float[2] x")
    value = stored_after(op, operand)
    assert value.dtype == dtype and value.shape == shape
    np.testing.assert_array_equal(value, np.asarray(operand))


def stored_after(op: Builder, operand: Any) -> np.ndarray:
    name = op.operand(operand)
    return stored(op)[name]


def test_a_name_is_a_name_and_none_is_left_out() -> None:
    op = builder("float[2] x")
    assert op.operand("x") == "x" and op.operand(None) == ""
    y = op.Clip("x", None, 0.5)
    assert list(op.nodes[0].input) == ["x", "", op.operand(0.5)]
    np.testing.assert_array_equal(compute(op, y, x=np.asarray([-1, 1], np.float32)), [-1, 0.5])
    op.Clip("x", None, None)
    assert list(op.nodes[1].input) == ["x"]  # nothing after the last one given


def test_an_attribute_that_is_none_is_left_out() -> None:
    op = builder("float[2, 3] x")
    op.ReduceSum("x", [1], keepdims=0, noop_with_empty_axes=None)
    assert [a.name for a in op.nodes[0].attribute] == ["keepdims"]


def test_equal_constants_are_stored_once_and_different_ones_are_not() -> None:
    op = builder("float[2] x")
    same = {op.operand(1), op.operand(np.asarray(1)), op.operand(np.int64(1))}
    assert len(same) == 1
    others = {op.operand(1.0), op.operand([1]), op.operand(True), op.operand(np.asarray(1, np.int32)), *same}
    assert len(others) == 5
    assert op.operand(np.asarray([[1, 2]])) != op.operand(np.asarray([1, 2]))
    assert op.operand(0.0) != op.operand(-0.0)  # 1 / x tells them apart


def test_scalars_follow_the_element_type() -> None:
    op = builder("float[2] x")
    op.dtype = TensorProto.DOUBLE
    assert stored_after(op, 0.5).dtype == np.float64
    op.dtype = TensorProto.FLOAT16
    assert stored_after(op, 0.5).dtype == np.float16
    filled = op.filled(0.25, [2, 2])
    x = normal(2)
    np.testing.assert_array_equal(compute(op, filled, TensorProto.FLOAT16, x=x), np.full((2, 2), 0.25, np.float16))


def test_a_non_contiguous_array_is_stored_in_its_order() -> None:
    op = builder("float[2] x")
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(stored_after(op, array), array)


def test_mask() -> None:
    op = builder("float[3] x")
    y = op.mask("x", op.Greater("x", 0.0))
    np.testing.assert_array_equal(compute(op, y, x=np.asarray([-1, 0, 2], np.float32)), [0, 0, 2])


def test_shapes_known_now_are_constants() -> None:
    op = builder("float[2, 3] x")
    assert op.static("x") == (2, 3) and op.dim("x", -1) == 3 and op.dim("x", 2) is None
    shape = op.shape("x")
    np.testing.assert_array_equal(stored(op)[shape], [2, 3])
    op.size("x", 1)
    op.count("x", [0, 1])
    assert op.nodes == []


def test_shapes_known_later_are_read_once() -> None:
    op = builder("float[N, 3] x")
    assert op.static("x") is None and op.dim("x", 0) is None and op.dim("x", 1) == 3
    x = normal(5, 3)
    assert op.shape("x") == op.shape("x") and ops(op) == ["Shape"]
    np.testing.assert_array_equal(compute(op, op.shape("x"), TensorProto.INT64, x=x), [5, 3])
    np.testing.assert_array_equal(compute(op, op.size("x", 0), TensorProto.INT64, x=x), [5])
    assert compute(op, op.count("x", [0, 1]), x=x) == 15.0
    assert ops(op).count("Shape") == 1


def test_vector() -> None:
    op = builder("float[N, 3] x")
    assert op.vector(1, 2) == op.operand([1, 2])
    rows = op.size("x", 0)
    assert op.vector(rows) == rows
    np.testing.assert_array_equal(compute(op, op.vector(-1, rows, 7), TensorProto.INT64, x=normal(4, 3)), [-1, 4, 7])


@pytest.mark.parametrize("declared", ["2, 3, 4", "N, 3, 4", "N, M, 4", "N, 3, 0"])
def test_reshape_like(declared: str) -> None:
    op = builder(f"float[{declared}] x, float[K] flat")
    shape = (2, 3, 0 if declared.endswith("0") else 4)
    x = np.zeros(shape, np.float32)
    flat = np.arange(x.size, dtype=np.float32)
    actual = compute(op, op.reshape_like("flat", "x"), x=x, flat=flat)
    np.testing.assert_array_equal(actual, flat.reshape(shape))
    assert ("Shape" in ops(op)) == (declared in ("N, M, 4", "N, 3, 0"))


# shapes of x against y, declared and real: static, symbolic, of unknown rank
@pytest.mark.parametrize(
    ("have", "want", "y_shape", "x_shape"),
    [
        ("[2, 3]", "[2, 3]", (2, 3), (2, 3)),
        ("[2, 3]", "[3]", (2, 3), (3,)),
        ("[2, 3]", "[1, 3]", (2, 3), (1, 3)),
        ("[2, 3]", "[2, 1]", (2, 3), (2, 1)),
        ("[4, 2, 3]", "[2, 1]", (4, 2, 3), (2, 1)),
        ("[2, 3]", "[]", (2, 3), ()),
        ("[1, 3]", "[1, 3]", (1, 3), (1, 3)),
        ("[N, 3]", "[N, 3]", (2, 3), (2, 3)),
        ("[N, 3]", "[3]", (2, 3), (3,)),
        ("[N, 3]", "[1, 3]", (2, 3), (1, 3)),
        ("[N, 3]", "[M, 3]", (2, 3), (1, 3)),
        ("[N, 3]", "[M, 3]", (2, 3), (2, 3)),
        ("[N, M]", "[K]", (2, 3), (1,)),
        ("[N, M]", "[K]", (2, 3), (3,)),
        ("[N, M, 4]", "[K, 1]", (2, 3, 4), (3, 1)),
        ("", "[3]", (2, 3), (3,)),
        ("[2, 3]", "", (2, 3), (1, 1)),
        ("", "", (2, 3), ()),
        ("", "", (2, 1, 3), (1, 3)),
        ("", "", (2, 3), (2, 3)),
    ],
)
def test_sum_to(have: str, want: str, y_shape: tuple[int, ...], x_shape: tuple[int, ...]) -> None:
    op = builder(f"float{have} y, float{want} x".replace("float[]", "float"))
    for info in op.graph.model.graph.input:
        if not (have if info.name == "y" else want):
            info.type.tensor_type.ClearField("shape")
        elif not x_shape and info.name == "x" and want == "[]":
            info.type.tensor_type.shape.SetInParent()
    op = Builder(type(op.graph)(op.graph.model))
    dy = np.arange(np.prod(y_shape), dtype=np.float32).reshape(y_shape)
    actual = compute(op, op.Identity(op.sum_to("y", "y", "x")), y=dy, x=np.zeros(x_shape, np.float32))
    lead = dy.sum(axis=tuple(range(len(y_shape) - len(x_shape))))
    ones = tuple(axis for axis, d in enumerate(x_shape) if d == 1)
    np.testing.assert_array_equal(actual, lead.sum(axis=ones, keepdims=True).reshape(x_shape))


def test_sum_to_where_nothing_was_broadcast_adds_nothing() -> None:
    op = builder("float[N, 3] y, float[N, 3] x")
    assert op.sum_to("y", "y", "x") == "y" and op.nodes == []


def test_sum_to_of_known_shapes_is_one_reduction() -> None:
    op = builder("float[5, N, 3] y, float[N, 1] x")
    op.sum_to("y", "y", "x")
    assert ops(op) == ["ReduceSum", "Squeeze"]


@pytest.mark.parametrize("unknown", [False, True])
def test_sum_to_keeps_the_last_axes_of_a_matrix_product(unknown: bool) -> None:
    """dX of X [1, 4, 2] in a product of shape [5, 4, 3] has the shape [5, 4, 2] before it is summed to X's."""
    op = builder("float[B, 4, 3] y, float[C, 4, 2] x, float[B, 4, 2] d" if unknown
                 else "float[5, 4, 3] y, float[1, 4, 2] x, float[5, 4, 2] d")  # fmt: skip
    d = normal(5, 4, 2)
    actual = compute(op, op.sum_to("d", "y", "x", keep=2), y=normal(5, 4, 3), x=normal(1, 4, 2), d=d)
    np.testing.assert_allclose(actual, d.sum(0, keepdims=True), rtol=1e-5, atol=1e-6)


def test_the_mean_of_what_was_spread_is_what_was_spread() -> None:
    op = builder("float[2, 3, 4, 5] x, float[2, 3, 1, 1] v")
    x, v = normal(2, 3, 4, 5), normal(2, 3, 1, 1)
    wide = op.spread("v", "x", [2, 3])
    assert op.mean(wide, [2, 3]) == "v" and op.mean(wide, [3]) == "v"
    across = op.mean(wide, [1, 2, 3])  # it differs from channel to channel
    np.testing.assert_allclose(
        compute(op, across, x=x, v=v), np.broadcast_to(v, x.shape).mean((1, 2, 3), keepdims=True), rtol=1e-6
    )
    np.testing.assert_array_equal(compute(op, wide, x=x, v=v), np.broadcast_to(v, x.shape))
    np.testing.assert_allclose(
        compute(op, op.mean("x", [2, 3]), x=x, v=v), x.mean((2, 3), keepdims=True), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("arguments, pooled", [("float[N, 16, 4, 5] x", True), ("float[N, 16, h, w] x", False)])
def test_numbers_come_through_a_pool_of_single_pixels_as_they_are(arguments: str, pooled: bool) -> None:
    op = builder(arguments)
    reshaped = blocked(op, "x", "x")
    assert (ops(op) == ["AveragePool"]) == pooled and (reshaped == "x") != pooled
    x = normal(2, 16, 4, 5)
    x[0, 0, 0, 0], x[0, 0, 0, 1], x[0, 0, 0, 2] = -np.inf, np.inf, np.nan
    np.testing.assert_array_equal(compute(op, op.Mul(reshaped, 1.0), x=x), x)
