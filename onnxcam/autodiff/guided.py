"""Guided backpropagation: the ReLU's rule replaced, https://arxiv.org/abs/1412.6806 (eq. in section 3.4)."""

from __future__ import annotations

from onnxcam.autodiff.passes.blocked_layout import above
from onnxcam.autodiff.registry import Cotangents, Entry, Node
from onnxcam.graph.builder import Builder


def relu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = ReLU(dY) where Y > 0."""
    return [op.Mul(op.Relu(dy), above(op, node.output, 0.0))]


# what a sweep takes in place of the registered rules
RULES = {"Relu": Entry(relu, broadcast=False, multiple=False)}
