"""Constant folding of small values: constants, shapes, and arithmetic on both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes, copy_of

LARGEST = 1024  # elements; shapes and conditions are smaller
_DEEPEST = 64
_MOVES = having(Trait.MOVES)  # a dynamic dimension among the elements stays one unknown element
_NEVER = having(Trait.RANDOM | Trait.CONTROL)


class ConstantFolder:
    """Folds values of one graph; each is computed once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._values: dict[str, np.ndarray | None] = {}

    def value(self, name: str) -> np.ndarray | None:
        """The value as an array; None if it depends on the model's inputs or is large."""
        array = self._partly(name)
        return None if array is None or array.dtype == object else array

    def _partly(self, name: str, depth: int = 0) -> np.ndarray | None:
        """The value as an array; an object array with None for elements that are dynamic dimensions."""
        if name not in self._values:
            self._values[name] = None  # ends a cycle
            self._values[name] = self._compute(name, depth)
        return self._values[name]

    def _compute(self, name: str, depth: int) -> np.ndarray | None:
        constant = self._graph.constant(name)
        if constant is not None:
            return constant if constant.size <= LARGEST else None
        node = self._graph.producer.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or depth > _DEEPEST:
            return None
        if node.op_type == "Shape":
            return self._shape(node)
        if node.op_type in _NEVER:
            return None
        inputs: list[np.ndarray | None] = []
        for source in node.input:
            value = self._partly(source, depth + 1) if source else None
            if source and value is None:
                return None
            inputs.append(value)
        if any(value is not None and value.dtype == object for value in inputs):
            return self._rearrange(node, inputs, name)
        return self._evaluate(node, inputs, name)

    def _shape(self, node: onnx.NodeProto) -> np.ndarray | None:
        shape = self._graph.shape(node.input[0])
        if shape is None:
            return None
        options = attributes(node)
        return _as_array(
            [dim if isinstance(dim, int) else None for dim in shape][options.get("start", 0) : options.get("end")]
        )

    def _rearrange(self, node: onnx.NodeProto, inputs: list[np.ndarray | None], name: str) -> np.ndarray | None:
        """Fold an operator that only rearranges elements, some of them unknown, by folding it on their indices."""
        if node.op_type == "Cast":
            return inputs[0] if attributes(node)["to"] == onnx.TensorProto.INT64 else None
        if node.op_type not in _MOVES:
            return None
        count = len(inputs) if node.op_type == "Concat" else 1
        if any(value is not None and value.dtype == object for value in inputs[count:]):
            return None
        elements: list[object] = []
        places: list[np.ndarray | None] = []
        for value in inputs[:count]:
            if value is not None:
                places.append(np.arange(len(elements), len(elements) + value.size).reshape(value.shape))
                elements.extend(value.ravel().tolist())
        moved = self._evaluate(node, [*places, *inputs[count:]], name)
        return None if moved is None else _as_array([elements[int(k)] for k in moved.ravel()], moved.shape)

    def _evaluate(self, node: onnx.NodeProto, inputs: list[np.ndarray | None], name: str) -> np.ndarray | None:
        alone = copy_of(node)
        feeds: dict[str, np.ndarray] = {}
        for index, value in enumerate(inputs):  # by index: a value read twice may have two arrays
            if value is not None:
                input_name = f"input_{index}"
                alone.input[index] = input_name
                feeds[input_name] = value
        if sum(value.size for value in feeds.values()) > LARGEST:
            return None
        infos = [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), None)
            for key, value in feeds.items()
        ]
        graph = helper.make_graph([alone], "one", infos, [helper.make_empty_tensor_value_info(name)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._graph.opset)])
        try:
            array = np.asarray(next(iter(ReferenceEvaluator(model).run([name], feeds))))
        except Exception:
            return None  # not folded: the runtime reports what is wrong
        return array if array.size <= LARGEST else None


def _as_array(elements: Sequence[object], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array of int64 if every element is known, else of objects."""
    complete = all(element is not None for element in elements)
    array = np.empty(len(elements), dtype=np.int64 if complete else object)
    array[:] = elements
    return array if shape is None else array.reshape(shape)
