"""One fused operator that is written as others: what its node says, and the activations that operators end in."""

from __future__ import annotations

import math

import onnx

from onnxcam.errors import UnsupportedOperator
from onnxcam.graph.shape_inference import NodeShapes
from onnxcam.graph.view import Graph, attributes
from onnxcam.graph.writer import Writer


class Unknown(Exception):
    """The shape of a value is not known yet: it lies behind an operator that has to be written first."""


class Form:
    """One node to be written as others.

    Attributes:
        node, attrs: the node and its attributes.
        w: the writer.
        opset: of the standard operators.
    """

    def __init__(self, w: Writer, graph: Graph, node: onnx.NodeProto, shapes: NodeShapes) -> None:
        self.w, self.node, self.attrs, self._shapes = w, node, attributes(node), shapes
        self.opset = graph.opset
        self.output = str(node.output[0])

    def input(self, index: int) -> str:
        """The name of an input, "" where it is left out."""
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def further(self, index: int) -> str:
        """The name of an output, "" where nothing takes it."""
        return str(self.node.output[index]) if index < len(self.node.output) else ""

    def shape(self, name: str) -> tuple[int | str | None, ...]:
        """The shape of a value."""
        shape = self._shapes.shape(name)
        if shape is None:
            raise Unknown
        return shape

    def refuse(self, why: str) -> UnsupportedOperator:
        """The error to raise where a node cannot be written."""
        return UnsupportedOperator(
            f"operator {self.node.op_type} (node {self.node.name!r}), in which ONNX Runtime fused several, {why}; "
            "explain the model as it was before ONNX Runtime optimised it"
        )


def activation(form: Form, value: str, output: str) -> None:
    """Write the activation that `activation` and `activation_params` name, to a node's output."""
    name = str(form.attrs.get("activation", ""))
    parameters = [float(number) for number in form.attrs.get("activation_params", [])]
    if name == "Clip":
        form.w.add("Clip", [value, *(form.w.scalar(bound) for bound in parameters)], output)
    elif name in ("LeakyRelu", "HardSigmoid", "Elu", "ThresholdedRelu"):
        keys = ["alpha", "beta"] if name == "HardSigmoid" else ["alpha"]
        form.w.add(name, [value], output, **dict(zip(keys, parameters, strict=False)))
    elif name in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Softsign"):
        form.w.add(name, [value], output)
    elif name in ("Silu", "Swish"):
        form.w.add("Mul", [value, form.w.add("Sigmoid", [value])], output)
    elif name == "Gelu":
        gelu(form, value, output)
    else:
        raise form.refuse(f"ends in the activation {name!r}, which is not known")


def gelu(form: Form, x: str, output: str, approximate: bool = False) -> None:
    """Write a Gelu: one operator from opset 20 on."""
    w = form.w
    if form.opset >= 20:
        w.add("Gelu", [x], output, approximate="tanh" if approximate else None)
        return
    if approximate:
        cubed = w.add("Mul", [w.add("Mul", [x, x]), x])
        inner = w.add("Add", [x, w.add("Mul", [cubed, w.scalar(0.044715)])])
        s = w.add("Tanh", [w.add("Mul", [inner, w.scalar(math.sqrt(2 / math.pi))])])
    else:
        s = w.add("Erf", [w.add("Mul", [x, w.scalar(1 / math.sqrt(2))])])
    half = w.add("Mul", [x, w.scalar(0.5)])
    w.add("Mul", [half, w.add("Add", [s, w.scalar(1.0)])], output)
