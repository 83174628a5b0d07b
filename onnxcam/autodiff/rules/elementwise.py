"""VJP rules: elementwise."""

from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.graph.builder import Builder


@vjp("Relu")
def relu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where Y > 0."""
    return [op.mask(dy, op.Greater(node.output, 0.0))]


@vjp("Add", broadcast=True)
def add(op: Builder, node: Node, dy: str) -> Cotangents:
    """dA = dY, dB = dY."""
    return [dy, dy]
