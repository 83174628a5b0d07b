"""The reverse sweep: what it visits, adds up, undoes and refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcam
from onnxcam.autodiff import registry
from onnxcam.errors import ModelError, UnsupportedOperator
from tests.autodiff.harness import build, check, gradients, normal
from tests.support.runtime import run

FREE = ("static", "batch", "all")


def added(model: onnx.ModelProto, wrt: list[str], of: str = "y") -> list[onnx.NodeProto]:
    """The nodes the gradient adds, without the Identity that names each output."""
    derived = onnxcam.gradient(model, of=of, wrt=wrt)
    return list(derived.graph.node)[len(model.graph.node) : -len(wrt)]


@pytest.fixture
def scratch() -> Iterator[None]:
    """A registry without Asinh, which forgets what a test registers."""
    rules, constant = {k: list(v) for k, v in registry._rules.items()}, set(registry._constant)
    del registry._rules["Asinh"]
    yield
    registry._rules.clear()
    registry._rules.update(rules)
    registry._constant.clear()
    registry._constant.update(constant)


def test_fan_out_is_added_up() -> None:
    check("y = Mul(x, x)", {"x": normal(2, 3)}, free=FREE)
    check("a = Exp(x) b = Sin(x) y = Mul(a, b)", {"x": normal(2, 3)}, free=FREE)
    check("a = Exp(x) b = Sin(x) c = Tanh(x) d = Add(a, b) e = Add(d, c) y = Mul(e, x)", {"x": normal(2, 3)}, free=FREE)


def test_contributions_are_added_once() -> None:
    two = added(build("a = Exp(x) b = Exp(x) y = Add(a, b)", {"x": normal(2)}), ["x"])
    assert [n.op_type for n in two] == ["Mul", "Mul", "Add"]
    four = added(build("a = Exp(x) b = Exp(x) c = Exp(x) d = Exp(x) y = Sum(a, b, c, d)", {"x": normal(2)}), ["x"])
    assert [n.op_type for n in four] == ["Mul"] * 4 + ["Sum"]


def test_residual_chain_costs_one_addition_per_branch() -> None:
    body = " ".join(f"b{k} = Tanh(r{k}) r{k + 1} = Add(r{k}, b{k})" for k in range(4)) + " y = Exp(r4)"
    model = build("r0 = Identity(x) " + body, {"x": normal(2, 3)})
    assert [n.op_type for n in added(model, ["x"])].count("Add") == 4
    check("r0 = Identity(x) " + body, {"x": normal(2, 3)}, free=FREE)


def test_only_nodes_between_are_touched() -> None:
    body = "h = Exp(x) a = Tanh(h) s = Unique(m) side = ReduceMax(s) b = Mul(a, side)"
    body += " y = Sigmoid(b) z = Exp(y) u = Unique(y)"
    model = build(body, {"x": normal(2, 3), "m": normal(2, 2)})
    # Sigmoid 3, Mul 1; neither Tanh and Exp before, nor Unique to the side, nor Exp and Unique after
    assert [n.op_type for n in added(model, ["a"])] == ["HardSigmoid", "Mul", "Mul", "Mul"]
    assert len(added(model, ["b"])) == 3
    assert len(added(model, ["y"])) == 0


def test_only_wanted_inputs_are_computed() -> None:
    model = build("a = Mul(x, w) y = MatMul(a, v)", {"x": normal(2, 3)}, {"w": normal(3), "v": normal(3, 4)})
    assert [n.op_type for n in added(model, ["x"])] == ["Gemm", "Mul"]
    assert [n.op_type for n in added(model, ["v"])] == ["Gemm"]
    assert [n.op_type for n in added(model, ["w"])] == ["Gemm", "Mul", "ReduceSum", "Squeeze"]


def test_of_itself_is_the_cotangent() -> None:
    x, dy = normal(2, 3), normal(2, 3, seed=1)
    [gradient] = gradients(build("y = Exp(x)", {"x": x}), {"x": x}, dy, ["y"])
    np.testing.assert_array_equal(gradient, dy)


def test_intermediate_values_one_behind_the_other() -> None:
    x, dy = normal(2, 3), normal(2, 3, seed=1)
    model = build("a = Exp(x) b = Mul(a, a) y = Sin(b)", {"x": x})
    db = dy * np.cos(np.exp(2 * x))
    da = db * 2 * np.exp(x)
    expected = {"a": da, "b": db, "x": da * np.exp(x)}
    for wrt in (["a", "b", "x"], ["x", "a", "b"], ["b", "a"], ["a"]):
        for name, gradient in zip(wrt, gradients(model, {"x": x}, dy, wrt), strict=True):
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_the_same_wrt_twice_is_one_output() -> None:
    derived = onnxcam.gradient(build("a = Exp(x) y = Sin(a)", {"x": normal(2)}), of="y", wrt=["a", "x", "a"])
    onnx.checker.check_model(derived, full_check=True)
    assert [o.name for o in derived.graph.output] == ["y", "grad.a", "grad.x"]


def test_of_an_intermediate_value() -> None:
    check("h = Exp(x) y = Mul(h, x) z = Sin(y) u = Unique(z)", {"x": normal(2, 3)}, free=FREE)


def test_weights_and_nodes_by_name() -> None:
    w = normal(3, 4, seed=1)
    check("a = MatMul(x, w) b = Add(a, c) y = Relu(b)", {"x": normal(2, 3)}, {"w": w, "c": normal(4)}, wrt=["w", "c"])
    node = helper.make_node("Exp", ["x"], ["y"], name="final")
    derived = onnxcam.gradient(build([node], {"x": normal(2)}), of="final", wrt=["x"])
    assert [i.name for i in derived.graph.input] == ["x", "cotangent.final"]


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Sub"])
def test_broadcasting_is_undone(op_type: str) -> None:
    for a, b in (((2, 3), (3,)), ((2, 3), (2, 1)), ((1,), (2, 3)), ((), (2, 2)), ((2, 1, 3), (4, 1)), ((1, 1), (1, 1))):
        check(f"y = {op_type}(a, b)", {"a": np.asarray(normal(*a)), "b": np.asarray(normal(*b, seed=1))}, free=FREE)


@pytest.mark.parametrize(
    ("a", "b"), [((1, 3), (2, 3)), ((2, 3), (1, 1)), ((2, 1), (1, 3)), ((2, 3), (2, 3)), ((1, 1), (1, 1))]
)
def test_free_dimensions_that_turn_out_to_be_one(a: tuple[int, int], b: tuple[int, int]) -> None:
    """One model for every way its free dimensions may broadcast."""
    model = build("y = Mul(a, b)", {"a": normal(2, 3), "b": normal(2, 3)}, free="all")
    feeds = {"a": normal(*a), "b": normal(*b, seed=1)}
    dy = normal(*np.broadcast_shapes(a, b), seed=2)
    da, db = gradients(model, feeds, dy, ["a", "b"])
    for actual, other, shape in ((da, feeds["b"], a), (db, feeds["a"], b)):
        axes = tuple(k for k in range(2) if shape[k] == 1)
        np.testing.assert_allclose(actual, (dy * other).sum(axes, keepdims=True), rtol=1e-5, atol=1e-6)


def test_equal_symbols_need_no_summing() -> None:
    model = build("h = Exp(x) y = Mul(h, x)", {"x": normal(2, 3)}, free="all")
    assert not {"ReduceSum", "NonZero"} & {n.op_type for n in added(model, ["x"])}


@pytest.mark.parametrize("free", ["static", "batch"])
def test_added_nodes_are_standard_and_valid(free: str) -> None:
    body = "a = Gemm<transB=1>(x, w, c) b = Relu(a) s = Softmax(b) m = ReduceMean(s, axes) y = Mul(m, s)"
    constants = {"w": normal(4, 3), "c": normal(4), "axes": np.asarray([1])}
    for opset in (18, 20, 21, 23):
        derived = onnxcam.gradient(build(body, {"x": normal(2, 3)}, constants, opset=opset, free=free), "y", ["x", "w"])
        onnx.checker.check_model(derived, full_check=True)
        assert {n.domain for n in derived.graph.node} == {""}
        assert [(o.domain, o.version) for o in derived.opset_import] == [("", opset)]


def test_the_model_itself_is_left_as_it_was() -> None:
    model = build("h = Exp(x) y = Mul(h, x)", {"x": normal(2, 3)})
    before = model.SerializeToString(deterministic=True)
    derived = onnxcam.gradient(model, of="y", wrt=["x"])
    assert model.SerializeToString(deterministic=True) == before
    x = normal(2, 3)
    y, again = run(model, x=x)["y"], run(derived, {"x": x, "cotangent.y": x})["y"]
    np.testing.assert_array_equal(y, again)


def test_names_already_taken() -> None:
    names = ["onnxcam/Mul", "onnxcam/constant", "onnxcam/Mul_1"]
    nodes = [
        helper.make_node("Exp", ["x"], [names[0]], name=names[1]),
        helper.make_node("Mul", [names[0], "x"], [names[2]], name="onnxcam/Sub"),
        helper.make_node("Sigmoid", [names[2]], ["y"]),
    ]
    check(nodes, {"x": normal(2, 3)}, free=FREE)


def test_missing_rule_names_operator_node_opset_and_way() -> None:
    body = "[enter] a = Exp(x) [middle] b = Sin(a) [odd] c = Unique(b) [exit] d = Tanh(c) [last] y = Sigmoid(d)"
    with pytest.raises(UnsupportedOperator) as raised:
        onnxcam.gradient(build(body, {"x": normal(2, 3)}, opset=19), of="y", wrt=["x"])
    message = str(raised.value)
    for part in ("Unique", "'odd'", "opset 19", "'enter'", "'middle'", "'exit'", "'last'"):
        assert part in message
    assert re.search(r"'enter'.*'middle'.*'odd'.*'exit'.*'last'", message[message.index(": ") :])


def test_missing_rule_off_the_way_does_not_matter() -> None:
    check("u = Unique(w) a = ReduceMax(u) y = Mul(x, a)", {"x": normal(2, 3)}, {"w": np.float32([2, 3, 4])}, wrt=["x"])


def test_foreign_operator_is_named_with_its_domain() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], domain="com.example", name="theirs"),
        helper.make_node("Exp", ["a"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in ("x", "y", "a")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:2], value_info=infos[2:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(UnsupportedOperator, match=r"com\.example::Relu \(node 'theirs'"):
        onnxcam.gradient(model, of="y", wrt=["x"])


def test_integer_wrt_is_refused() -> None:
    model = build("y = Gather(x, i)", {"x": normal(3), "i": np.asarray([0, 2])})
    with pytest.raises(ModelError, match="'i' has element type INT64"):
        onnxcam.gradient(model, of="y", wrt=["i"])
    with pytest.raises(ModelError, match="'s' has element type INT64"):
        onnxcam.gradient(build("s = Shape(x) y = Exp(x)", {"x": normal(3)}), of="s", wrt=["x"])


def test_wrt_that_does_not_reach_is_refused() -> None:
    model = build("a = Exp(x) y = Mul(x, w) z = Exp(a)", {"x": normal(3), "w": normal(3)})
    for name in ("a", "z"):
        with pytest.raises(ModelError, match=f"'{name}' does not reach 'y'"):
            onnxcam.gradient(model, of="y", wrt=["x", name])


def test_empty_and_unknown_wrt_are_refused() -> None:
    model = build("activation = Exp(x) y = Sin(activation)", {"x": normal(3)})
    with pytest.raises(ModelError, match="empty"):
        onnxcam.gradient(model, of="y", wrt=[])
    with pytest.raises(ModelError, match=r"activatoin.*'activation'"):
        onnxcam.gradient(model, of="y", wrt=["activatoin"])


def test_nothing_flows_through_a_boolean_output() -> None:
    model = build("v, m = Dropout(x) c = Cast<to=1>(m) y = Mul(v, c)", {"x": normal(3)})
    assert [n.op_type for n in added(model, ["x"])] == ["Mul"]


@pytest.mark.usefixtures("scratch")
def test_gradient_through_a_further_output_is_refused() -> None:
    registry._rules["Split"] = [(1, None, registry.Entry(lambda op, node, dy: [dy], broadcast=False, multiple=False))]
    model = build("[parts] a, b = Split<num_outputs=2>(x) y = Mul(a, b)", {"x": normal(4)})
    with pytest.raises(UnsupportedOperator, match=r"'parts'.*further outputs"):
        onnxcam.gradient(model, of="y", wrt=["x"])


@pytest.mark.usefixtures("scratch")
def test_a_rule_of_ones_own() -> None:
    @registry.vjp("Asinh")
    def asinh(op: onnxcam.graph.builder.Builder, node: registry.Node, dy: str) -> registry.Cotangents:
        """dX = dY / sqrt(1 + X²)."""
        x = node.inputs[0]
        return [op.Div(dy, op.Sqrt(op.Add(op.Mul(x, x), 1.0)))]

    check("y = Asinh(x)", {"x": normal(2, 3)}, free=FREE)


@pytest.mark.usefixtures("scratch")
def test_a_second_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="Relu already has a rule"):
        registry.vjp("Relu")(lambda op, node, dy: [dy])
    with pytest.raises(ValueError, match="Shape is already registered as having no gradient"):
        registry.vjp("Shape")(lambda op, node, dy: [dy])
    with pytest.raises(ValueError, match="Relu is already registered"):
        registry.no_gradient("Relu")
    with pytest.raises(ValueError, match="Shape is already registered"):
        registry.no_gradient("Shape")


@pytest.mark.usefixtures("scratch")
def test_rules_of_different_opsets_live_next_to_each_other() -> None:
    def rule(op: object, node: object, dy: str) -> list[str]:
        return [dy]

    registry.vjp("Asinh", until=19)(rule)
    registry.vjp("Asinh", since=20, until=21)(rule)
    for overlap in ({"since": 19}, {"until": 3}, {"since": 21, "until": 30}, {}):
        with pytest.raises(ValueError, match="already has a rule"):
            registry.vjp("Asinh", **overlap)(rule)
    assert [registry.find("Asinh", opset) is not None for opset in (18, 19, 20, 21, 22)] == [True] * 4 + [False]
    registry.vjp("Asinh", since=22)(rule)
    assert registry.find("Asinh", 30) is not None


@pytest.mark.usefixtures("scratch")
def test_a_rule_is_called_once_whatever_waits_for_it() -> None:
    calls = []

    @registry.vjp("Asinh")
    def counted(op: object, node: registry.Node, dy: str) -> list[str]:
        calls.append(sorted(node.needed))
        return [dy]

    added(build("a = Asinh(x) b = Exp(a) c = Sin(a) y = Mul(b, c)", {"x": normal(2)}), ["x", "a"])
    assert calls == [[0]]
