"""SiLU as exporters write it, X · sigmoid(X): one gradient for both of its nodes."""

from __future__ import annotations

from onnxcam.autodiff.passes.blocked_layout import complement
from onnxcam.autodiff.registry import Cotangents, Entry, Node
from onnxcam.graph.builder import Builder


def entry(node: Node) -> Entry | None:
    """The rule for a Mul of X and sigmoid(X), None for any other node."""
    return _ENTRY if node.op_type == "Mul" and _gate(node) is not None else None


def silu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (S + Y (1 - S)) dY with S = sigmoid(X), whose own node then gets no gradient."""
    gate = _gate(node)
    s = node.inputs[gate or 0]
    dx = op.Mul(dy, op.Add(s, op.Mul(node.output, complement(op, s))))
    return [None, dx] if gate == 0 else [dx, None]


_ENTRY = Entry(silu, broadcast=True, multiple=False)


def _gate(node: Node) -> int | None:
    """Which factor is the sigmoid of the other one, unless its own gradient is asked for."""
    for gate in (0, 1):
        s, x = node.inputs[gate], node.inputs[1 - gate]
        producer = node.graph.producer.get(s)
        if producer is None or producer.op_type != "Sigmoid" or producer.domain not in ("", "ai.onnx"):
            continue
        if producer.input[0] == x and s not in node.ends and node.wants(0) and node.wants(1):
            return gate
    return None
