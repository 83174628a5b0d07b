"""Adding, renaming, pruning and cutting out: the numbers stay those of the whole model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.normalize import prepare
from onnxcam.graph.view import Graph
from tests.graph.text import model
from tests.support.runtime import run

rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def expose(model_proto: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The model with these values as its outputs."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model_proto)
    del copied.graph.output[:]
    copied.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return copied


# `early` is made before the cut at `middle` and read after it
NET = """g (float[N, 4] x) => (float[N, 3] y, float[N, 4] side) {
  early = Tanh(x)
  h = MatMul(early, w1)
  middle = Relu(h)
  skip = Mul(middle, scale)
  joined = Add(skip, early)
  y = MatMul(joined, w2)
  side = Neg(early)
}"""


def net() -> onnx.ModelProto:
    return model(NET, w1=normal(4, 4), scale=normal(4), w2=normal(4, 3), unused=normal(7))


def value(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return edit.info(name, TensorProto.FLOAT, shape)


def test_info() -> None:
    result = edit.info("v", TensorProto.FLOAT, ["N", None, 3])
    assert [(d.dim_param, d.dim_value) for d in result.type.tensor_type.shape.dim] == [("N", 0), ("", 0), ("", 3)]
    assert not edit.info("v", TensorProto.FLOAT, None).type.tensor_type.HasField("shape")


def test_add() -> None:
    graph = net()
    op = Builder(Graph(graph))
    op.Mul(op.Exp("y"), 2.0, name="more")
    edit.add(graph, op)
    graph.graph.output.append(value("more", "N", 3))
    onnx.checker.check_model(graph, full_check=True)
    out = run(graph, x=normal(2, 4))
    np.testing.assert_allclose(out["more"], 2 * np.exp(out["y"]), rtol=1e-5)


def test_prune_drops_what_no_output_needs() -> None:
    graph = prepare(net()).model
    x = normal(2, 4)
    want = run(graph, x=x)["y"]
    del graph.graph.output[1:]
    edit.prune(graph)
    assert [n.op_type for n in graph.graph.node] == ["Tanh", "MatMul", "Relu", "Mul", "Add", "MatMul"]
    assert {t.name for t in graph.graph.initializer} == {"w1", "scale", "w2"}
    assert "side" not in {v.name for v in graph.graph.value_info}
    onnx.checker.check_model(graph, full_check=True)
    np.testing.assert_array_equal(run(graph, x=x)["y"], want)


def test_prune_leaves_a_model_without_waste_as_it_is() -> None:
    graph = prepare(net()).model
    edit.prune(graph)
    once = graph.SerializeToString(deterministic=True)
    edit.prune(graph)
    assert graph.SerializeToString(deterministic=True) == once


def test_prune_keeps_inputs_but_not_overridable_initializers_nobody_reads() -> None:
    graph = model("g (float[2] x, float[2] ignored, float[2] option) => (float[2] y) { y = Neg(x) }", option=normal(2))
    edit.prune(graph)
    assert [i.name for i in graph.graph.input] == ["x", "ignored"]  # a caller feeds it
    assert not graph.graph.initializer


BRANCHED = """g (float[2] x) => (float[2] y) {
  a = Exp(x)
  s = ReduceSum<keepdims = 0>(x)
  yes = Cast<to = 9>(s)
  y = If(yes) <then_branch = t () => (float[2] p) { p = Add(a, w) },
               else_branch = e () => (float[2] q) { q = Neg(a) }>
}"""


def test_prune_keeps_what_a_branch_reads() -> None:
    graph = model(
        BRANCHED,
        w=normal(2),
        unused=normal(3),
    )
    x = np.asarray([1.0, 2.0], np.float32)
    want = run(graph, x=x)["y"]
    edit.prune(graph)
    assert [t.name for t in graph.graph.initializer] == ["w"]
    np.testing.assert_array_equal(run(graph, x=x)["y"], want)


def test_prune_drops_indices_nobody_reads() -> None:
    pooled = "g (float[1, 1, 4, 4] x) => (float[1, 1, 3, 3] y{}) {{ y, i = MaxPool<kernel_shape = [2, 2]>(x) }}"
    for outputs, count in (("", 1), (", int64[1, 1, 3, 3] i", 2)):
        graph = model(pooled.format(outputs))
        edit.prune(graph)
        assert len(graph.graph.node[0].output) == count


def test_rename_reaches_every_place() -> None:
    graph = model(
        BRANCHED,
        w=normal(2),
    )
    graph = prepare(graph).model
    x = np.asarray([1.0, 2.0], np.float32)
    want = run(graph, x=x)["y"]
    edit.rename(graph, {"a": "activations", "w": "weights", "x": "picture", "y": "scores"})
    onnx.checker.check_model(graph, full_check=True)
    np.testing.assert_array_equal(run(graph, picture=x)["scores"], want)
    assert Graph(graph).shape("activations") == (2,)


def test_extract_the_head() -> None:
    graph = prepare(net())
    head = edit.extract(graph, [graph.inputs[0]], [value("middle", "N", 4)])
    onnx.checker.check_model(head, full_check=True)
    assert [n.op_type for n in head.graph.node] == ["Tanh", "MatMul", "Relu"]
    assert [t.name for t in head.graph.initializer] == ["w1"]
    x = normal(3, 4)
    np.testing.assert_array_equal(run(head, x=x)["middle"], run(expose(graph.model, "middle"), x=x)["middle"])


def test_extract_a_tail_that_reads_a_value_made_before_the_cut() -> None:
    graph = prepare(net())
    x = normal(3, 4)
    whole = run(expose(graph.model, "middle", "early", "y"), x=x)
    tail = edit.extract(graph, [value("middle", "N", 4), value("early", "N", 4)], [graph.outputs[0]])
    onnx.checker.check_model(tail, full_check=True)
    assert [i.name for i in tail.graph.input] == ["middle", "early"]
    assert [n.op_type for n in tail.graph.node] == ["Mul", "Add", "MatMul"]
    actual = run(tail, middle=whole["middle"], early=whole["early"])["y"]
    np.testing.assert_allclose(actual, whole["y"], rtol=1e-6)


def test_extract_recomputes_what_was_not_given() -> None:
    graph = prepare(net())
    x, middle = normal(3, 4), normal(3, 4)
    tail = edit.extract(graph, [value("middle", "N", 4)], [graph.outputs[0]])
    onnx.checker.check_model(tail, full_check=True)
    assert [i.name for i in tail.graph.input] == ["middle", "x"]  # the given first, then what is still needed
    assert [n.op_type for n in tail.graph.node] == ["Tanh", "Mul", "Add", "MatMul"]
    weights = {t.name: numpy_helper.to_array(t) for t in graph.model.graph.initializer}
    want = (middle * weights["scale"] + np.tanh(x)) @ weights["w2"]
    np.testing.assert_allclose(run(tail, middle=middle, x=x)["y"], want, rtol=1e-5, atol=1e-6)


def test_extract_takes_an_initializer_as_given() -> None:
    graph = prepare(net())
    part = edit.extract(graph, [graph.inputs[0], value("w1", 4, 4)], [value("middle", "N", 4)])
    assert not part.graph.initializer
    x, w = normal(2, 4), normal(4, 4)
    np.testing.assert_allclose(run(part, x=x, w1=w)["middle"], np.maximum(np.tanh(x) @ w, 0), rtol=1e-5, atol=1e-6)


def test_extract_keeps_an_option_an_option() -> None:
    graph = prepare(model(
        "g (float[N, 2] x, float[2] option) => (float[N, 2] y) { a = Exp(x)  b = Add(a, bias)  y = Mul(b, option) }",
        option=np.full(2, 3, np.float32), bias=np.ones(2, np.float32),
    ))  # fmt: skip
    tail = edit.extract(graph, [value("a", "N", 2)], [graph.outputs[0]])
    assert [i.name for i in tail.graph.input] == ["a", "option"]
    a = normal(2, 2)
    np.testing.assert_allclose(run(tail, a=a)["y"], (a + 1) * 3, rtol=1e-6)
    np.testing.assert_allclose(run(tail, a=a, option=np.ones(2, np.float32))["y"], a + 1, rtol=1e-6)


def test_extract_leaves_the_source_alone() -> None:
    graph = prepare(net())
    before = graph.model.SerializeToString()
    part = edit.extract(graph, [value("middle", "N", 4)], [graph.outputs[0]])
    part.graph.node[0].op_type = "Sub"
    part.graph.initializer[0].name = "other"
    assert graph.model.SerializeToString() == before


@pytest.mark.parametrize("names", [["y"], ["side"], ["y", "side"], ["side", "y"]])
def test_extract_the_outputs_asked_for_in_their_order(names: list[str]) -> None:
    graph = prepare(net())
    infos = {o.name: o for o in graph.outputs}
    part = edit.extract(graph, [graph.inputs[0]], [infos[name] for name in names])
    x = normal(2, 4)
    want, actual = run(graph.model, x=x), run(part, x=x)
    assert list(actual) == names
    for name in names:
        np.testing.assert_array_equal(actual[name], want[name])
