"""What the passes do to the emitted nodes; that gradients stay what they are is for the tests of rules and sweep."""

from __future__ import annotations

import numpy as np
import onnx

from onnxcam.autodiff.passes import silu
from onnxcam.autodiff.passes.expansions import remove_expansions
from onnxcam.autodiff.registry import Node
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph

SILU = """
    <ir_version: 9, opset_import: ["" : 20]>
    silu (float[N, 3] x) => (float[N, 3] y) { s = Sigmoid(x)  y = Mul(s, x) }
"""


def builder(text: str) -> Builder:
    return Builder(Graph(onnx.parser.parse_model(text)))


def inputs(op: Builder, name: str) -> list[str]:
    return next(list(node.input) for node in op.nodes if name in node.output)


def test_what_was_expanded_to_be_added_is_added_as_it_was() -> None:
    op = builder(SILU)
    wide, full = op.Expand("x", [4, 3]), op.Neg("s")
    total = op.Add(wide, full)
    remove_expansions(op, 0, {total}, [total])
    assert inputs(op, total) == [full, "x"]
    assert [node.op_type for node in op.nodes] == ["Neg", "Add"]


def test_an_expansion_stays_where_something_needs_its_size() -> None:
    op = builder(SILU)
    wide, other = op.Expand("x", [4, 3]), op.Expand("s", [4, 3])
    total = op.Add(wide, other)  # neither summand has the full size but for them
    product = op.Mul(op.Expand("y", [4, 3]), total)
    alone = op.Expand("y", [5, 3])
    before = [node.SerializeToString() for node in op.nodes]
    remove_expansions(op, 0, {total}, [product, alone])
    assert [node.SerializeToString() for node in op.nodes] == before


def test_what_was_emitted_before_the_sweep_stays() -> None:
    op = builder(SILU)
    op.Expand("x", [4, 3])
    remove_expansions(op, 1, set(), [])
    assert [node.op_type for node in op.nodes] == ["Expand"]


def test_silu_is_seen_unless_the_sigmoid_has_a_gradient_of_its_own() -> None:
    graph = Graph(onnx.parser.parse_model(SILU))
    product = graph.producer["y"]
    assert silu.entry(Node(product, graph, frozenset({0, 1}))) is not None
    assert silu.entry(Node(product, graph, frozenset({1}))) is None  # the sigmoid is a constant to this sweep
    assert silu.entry(Node(product, graph, frozenset({0, 1}), frozenset({"s"}))) is None
    assert silu.entry(Node(graph.producer["s"], graph, frozenset({0}))) is None
    op = Builder(graph)
    ds, dx = silu.silu(op, Node(product, graph, frozenset({0, 1})), "dy")
    assert ds is None and dx is not None
    np.testing.assert_equal([node.op_type for node in op.nodes], ["HardSigmoid", "Mul", "Add", "Mul"])
