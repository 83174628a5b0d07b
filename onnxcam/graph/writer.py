"""A writer of a model's nodes anew: some of them replaced by others of the standard domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Writer:
    """The new nodes of a model; constants are added to the model itself.

    Attributes:
        nodes: to put in place of the model's.
        constants: initializers by name.
    """

    def __init__(self, model: onnx.ModelProto, kind: str) -> None:
        """Begin without nodes; `kind` is part of the new names."""
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._kind = kind
        self._count = 0
        self._names = {name for node in model.graph.node for name in node.output} | set(self.constants)
        self._names |= {info.name for info in model.graph.input}

    def free(self, name: str) -> str:
        """Reserve a name that nothing has: this one, or a longer one."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def add(self, op_type: str, inputs: Sequence[str], output: str | None = None, **attrs: Any) -> str:
        """Append a node of the standard domain and return the name of its output."""
        self._count += 1
        name = self.free(f"onnxcam/{op_type}_of_{self._kind}_{self._count}")
        attributes = {key: value for key, value in attrs.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def constant(self, array: np.ndarray) -> str:
        """Add an initializer and return its name."""
        self._count += 1
        name = self.free(f"onnxcam/constant_of_{self._kind}_{self._count}")
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        self.constants[name] = self.model.graph.initializer[-1]
        return name

    def integers(self, *values: int) -> str:
        """Add an int64 vector and return its name."""
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, value: float) -> str:
        """Add a float32 scalar and return its name."""
        return self.constant(np.asarray(value, np.float32))

    def scaled_product(self, a: tuple[str, str, str], b: tuple[str, str, str], bias: str, output: str) -> None:
        """Append the product of two quantized values (each with scale and zero point, "" for 0), plus a bias if any.

        It stays a product of integers: what ONNX Runtime makes of one depends on the processor.
        """
        inputs = [a[0], b[0], a[2], b[2]]
        while not inputs[-1]:
            inputs.pop()
        product = self.add("Cast", [self.add("MatMulInteger", inputs)], to=onnx.TensorProto.FLOAT)
        scaled = self.add("Mul", [product, self.add("Mul", [a[1], b[1]])], None if bias else output)
        if bias:
            self.add("Add", [scaled, bias], output)

    def array(self, name: str) -> np.ndarray | None:
        """A constant's values; None of what is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)
