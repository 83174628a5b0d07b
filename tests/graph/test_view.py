"""The index over a graph: types, constants, what reaches what."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxcam.errors import ModelError
from onnxcam.graph.view import Graph, attributes, shape_of, uses

HEADER = '<ir_version: 8, opset_import: ["" : 18]>\n'


def graph(text: str, **initializers: np.ndarray) -> Graph:
    model = parser.parse_model(HEADER + text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in initializers.items())
    return Graph(model)


DIAMOND = """g (float[N, 3, 8, W] x) => (float[N, 4] y) {
  a = Relu(x)
  b = Exp(a)
  c = Sin(a)
  y = Sum(b, c)
  unused = Neg(x)
}"""


def test_who_makes_and_who_reads_a_value() -> None:
    g = graph(DIAMOND)
    assert g.producer["c"].op_type == "Sin"
    assert [n.op_type for n in g.consumers["a"]] == ["Exp", "Sin"]
    assert "x" not in g.producer and "y" not in g.consumers
    assert [g.index_of(n) for n in g.nodes] == [0, 1, 2, 3, 4]
    assert all(name in g for name in ("x", "a", "y")) and "z" not in g


def test_a_value_read_twice_by_one_node_has_one_consumer() -> None:
    g = graph("g (float[N] x) => (float[N] y) { y = Mul(x, x) }")
    assert len(g.consumers["x"]) == 1


def test_shapes_and_types() -> None:
    g = graph(DIAMOND, w=np.zeros((2, 5), np.float64), i=np.arange(3))
    assert g.shape("x") == ("N", 3, 8, "W")
    assert g.shape("w") == (2, 5) and g.shape("i") == (3,)
    assert g.shape("a") is None  # nobody inferred shapes
    assert g.dtype("w") == TensorProto.DOUBLE and g.dtype("x") == TensorProto.FLOAT and g.dtype("a") == 0
    assert g.is_float("w") and g.is_float("a") and not g.is_float("i")


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
def test_floating_point_types(kind: str) -> None:
    info = helper.make_tensor_value_info("v", getattr(TensorProto, kind), [1])
    model = helper.make_model(helper.make_graph([], "g", [info], [info]))
    assert Graph(model).is_float("v")


def test_unknown_rank_is_not_rank_zero() -> None:
    free = helper.make_tensor_value_info("v", TensorProto.FLOAT, None)
    scalar = helper.make_tensor_value_info("v", TensorProto.FLOAT, [])
    assert shape_of(free) is None
    assert shape_of(scalar) == ()
    assert shape_of(helper.make_tensor_value_info("v", TensorProto.FLOAT, [None, "N", 0, 3])) == (None, "N", 0, 3)


def test_inputs_leave_overridable_initializers_out() -> None:
    g = graph("g (float[N] x, float[1] w) => (float[N] y) { y = Mul(x, w) }", w=np.ones(1, np.float32))
    assert [i.name for i in g.inputs] == ["x"]
    assert not g.is_constant("w") and g.constant("w") is None


def test_attributes_as_python_values() -> None:
    node = helper.make_node("Pad", ["x"], ["y"], mode="edge", pads=[1, 2], value=0.5)
    assert attributes(node) == {"mode": "edge", "pads": [1, 2], "value": 0.5}


def test_constants_of_every_form() -> None:
    g = graph(
        """g (float[N] x) => (float[N] y) {
          tensor = Constant<value = float[2] {1.5, 2.5}>()
          one = Constant<value_float = 0.25>()
          many = Constant<value_floats = [1.0, 2.0, 3.0]>()
          whole = Constant<value_int = 7>()
          wholes = Constant<value_ints = [7, 8]>()
          same = Identity(w)
          again = Identity(same)
          wide = Cast<to = 11>(w)
          folded = Add(w, w)
          run = Add(x, w)
          of_run = Identity(run)
          y = Identity(run)
        }""",
        w=np.asarray([3.0], np.float32),
    )
    want = {
        "tensor": np.asarray([1.5, 2.5], np.float32),
        "one": np.float32(0.25),
        "many": np.asarray([1, 2, 3], np.float32),
        "whole": np.int64(7),
        "wholes": np.asarray([7, 8]),
        "w": np.asarray([3.0], np.float32),
        "same": np.asarray([3.0], np.float32),
        "again": np.asarray([3.0], np.float32),
        "wide": np.asarray([3.0], np.float64),
    }
    for name, array in want.items():
        value = g.constant(name)
        assert value is not None and g.is_constant(name)
        assert value.dtype == array.dtype and value.shape == array.shape
        np.testing.assert_array_equal(value, array)
    # known before the model runs, but not read
    assert g.is_constant("folded") and g.constant("folded") is None
    for name in ("x", "run", "of_run", "y", "missing"):
        assert not g.is_constant(name) and g.constant(name) is None


@pytest.mark.parametrize(
    "node", ["RandomNormalLike(w)", "RandomUniform<shape = [1]>()", "Bernoulli(w)", "Multinomial(m)"]
)
def test_what_is_drawn_at_random_is_not_constant(node: str) -> None:
    g = graph(
        f"g (float[N] x) => (float[N] y) {{ r = {node}  y = Add(x, r) }}",
        w=np.full(1, 0.5, np.float32),
        m=np.full((1, 2), 0.5, np.float32),
    )
    assert not g.is_constant("r")


def test_downstream_and_upstream() -> None:
    g = graph(DIAMOND)
    assert g.downstream(["a"]) == {"a", "b", "c", "y"}
    assert g.downstream(["unused"]) == {"unused"}
    nodes, outside = g.upstream(["y"])
    assert [n.op_type for n in nodes] == ["Relu", "Exp", "Sin", "Sum"]
    assert outside == {"x"}
    assert [n.op_type for n in g.between(["a"], ["y"])] == ["Exp", "Sin", "Sum"]


def test_upstream_stops_at_what_is_given() -> None:
    g = graph(DIAMOND)
    nodes, outside = g.upstream(["y"], stop=["a"])
    assert [n.op_type for n in nodes] == ["Exp", "Sin", "Sum"] and outside == {"a"}
    nodes, outside = g.upstream(["y"], stop=["b"])  # what is read past the cut is computed
    assert [n.op_type for n in nodes] == ["Relu", "Sin", "Sum"] and outside == {"b", "x"}
    assert g.upstream(["a"], stop=["a"]) == ([], {"a"})


BRANCHES = """g (float[2] x, float[2] z) => (float[2] y) {
  a = Relu(x)
  s = ReduceSum<keepdims = 0>(x)
  yes = Cast<to = 9>(s)
  y = If(yes) <
    then_branch = t () => (float[2] p) { inner = Add(a, z)  p = Neg(inner) },
    else_branch = e () => (float[2] q) { q = Identity(z) }
  >
}"""


def test_values_read_inside_a_branch_are_read() -> None:
    g = graph(BRANCHES)
    node = g.producer["y"]
    assert set(uses(node)) == {"yes", "a", "z"}  # not `inner`, which the branch makes itself
    assert g.downstream(["a"]) == {"a", "y"}
    nodes, outside = g.upstream(["y"])
    assert "Relu" in {n.op_type for n in nodes} and outside == {"x", "z"}


def test_a_value_passed_straight_out_of_a_branch_is_read() -> None:
    outer = helper.make_tensor_value_info("a", TensorProto.FLOAT, [2])
    body = helper.make_graph([], "t", [], [outer])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body)
    assert set(uses(node)) == {"yes", "a"}


def test_finding_by_value_or_node_name() -> None:
    model = parser.parse_model(HEADER + DIAMOND)
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    g = Graph(model)
    assert g.find("c") == "c"
    assert g.find("node_2") == "c"
    with pytest.raises(ModelError, match=r"no value or node 'nodes'.*"):
        g.find("nodes")
    model.graph.node[1].name = "a"  # a value's name wins over a node's
    assert Graph(model).find("a") == "a"


def test_the_opset() -> None:
    model = parser.parse_model('<ir_version: 8, opset_import: ["com.microsoft" : 1, "" : 20]>\n' + DIAMOND)
    assert Graph(model).opset == 20


def test_an_optional_input_left_out_is_no_value() -> None:
    node = onnx.helper.make_node("Clip", ["x", "", "high"], ["y"])
    assert list(uses(node)) == ["x", "high"]
