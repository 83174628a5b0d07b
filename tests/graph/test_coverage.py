"""Coverage: the values that every path from the picture to the scores passes, against paths that are walked."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcam.graph.coverage import ALL, PART, covering, covers
from onnxcam.graph.normalize import prepare
from onnxcam.graph.view import Graph
from tests.graph.text import model
from tests.graph.transformers import CLASS, FIRST, PATCHES, block
from tests.graph.transformers import model as transformer


def coverage(text: str, value: str) -> str:
    source = model(f"g (float[N,3,8,8] x, float[3] w) => (float[N,3] y) {{ {text} y = Mul(p, w) }}")
    return covers(Graph(source), value, "x", "y")


POOLED = "p = ReduceMean<keepdims=0>({0}, axes) "
AXES = "axes = Constant<value_ints=[2,3]>() "


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("a = Relu(x) b = Sin(a)" + POOLED.format("b"), "b", ALL),
        # an identity shortcut around the value
        ("a = Relu(x) b = Sin(a) c = Add(a, b)" + POOLED.format("c"), "b", PART),
        ("a = Relu(x) b = Sin(a) c = Add(a, b)" + POOLED.format("c"), "c", ALL),
        # squeeze-and-excitation leaves before the value and joins before it, or joins behind it
        ("a = Relu(x) s = GlobalAveragePool(a) t = Sigmoid(s) b = Mul(a, t)" + POOLED.format("b"), "b", ALL),
        ("s = GlobalAveragePool(x) t = Sigmoid(s) a = Relu(x) b = Mul(a, t)" + POOLED.format("b"), "a", PART),
        # a size is not data
        ("a = Relu(x) n = Shape(x) b = Reshape(a, n)" + POOLED.format("b"), "a", ALL),
        ("a = Relu(x) n = Size(x) m = CastLike(n, a) b = Mul(a, m)" + POOLED.format("b"), "a", ALL),
        # nor is what no score is computed from
        ("a = Relu(x) u = Sin(x)" + POOLED.format("a"), "a", ALL),
        ("a, u = Split<axis=1>(x, cut) " + POOLED.format("a"), "a", ALL),
        ("a = Relu(x) u = Sin(x)" + POOLED.format("a"), "u", PART),
        ("a = Relu(x)" + POOLED.format("a"), "w", PART),
        ("a = Relu(x)" + POOLED.format("a"), "x", ALL),
        ("a = Relu(x)" + POOLED.format("a"), "y", ALL),
    ],
)
def test_paths(text: str, value: str, expected: str) -> None:
    assert coverage(AXES + "cut = Constant<value_ints=[2,1]>() " + text, value) == expected


def test_the_class_token_has_no_place_on_the_picture() -> None:
    graph = prepare(transformer(PATCHES, CLASS, block("t", "1"), block("b1", "2"), FIRST.format("b2")))
    # behind `n2` patches end; the class token passes by on the residual path
    assert covers(graph, "n2", graph.inputs[0].name, "logits") == ALL
    assert covers(graph, "b1", graph.inputs[0].name, "logits") == ALL
    assert covers(graph, "n1", graph.inputs[0].name, "logits") == PART


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed: int) -> None:
    """A value is passed by all paths exactly if none is left without it."""
    rng = np.random.default_rng(seed)
    nodes, values = [], ["x"]
    for index in range(14):
        kind = rng.choice(["Relu", "Add", "Shape", "Split"], p=[0.35, 0.4, 0.1, 0.15])
        reads = [str(rng.choice(values[-4:])) for _ in range(2 if kind == "Add" else 1)]
        outputs = [f"v{index}", f"u{index}"] if kind == "Split" else [f"v{index}"]
        nodes.append(helper.make_node(str(kind), reads, outputs))
        values += outputs if kind != "Shape" else []
    info = helper.make_tensor_value_info
    graph = Graph(
        helper.make_model(
            helper.make_graph(nodes, "g", [info("x", 1, None)], [info(values[-1], 1, None)]),
        )
    )

    def reaches(without: str) -> bool:
        reached = {"x"} - {without}
        for node in nodes:
            if node.op_type != "Shape" and reached & set(node.input):
                reached |= set(node.output) - {without}
        return values[-1] in reached

    if reaches(""):
        assert covering(graph, "x", values[-1]) == {value for value in values if not reaches(value)}


def test_a_subgraph_reads_values_of_the_graph_around_it() -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    nodes = [
        helper.make_node("Sin", ["x"], ["a"]),
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
        helper.make_node("Add", ["a", "z"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, None), info("c", onnx.TensorProto.BOOL, [])], [info("y", 1, None)]
    )
    assert covering(Graph(helper.make_model(graph)), "x", "y") == {"x", "y"}
