"""What small values of a graph are before it runs: constants, shapes, and arithmetic on both."""

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
_MOVES = having(Trait.MOVES)  # a free dimension among the elements does no harm
_NEVER = having(Trait.RANDOM | Trait.CONTROL)


class ConstantFolder:
    """Finds values of one graph; each is computed once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._found: dict[str, np.ndarray | None] = {}

    def value(self, name: str) -> np.ndarray | None:
        """The value as an array, None where it depends on what the model is fed (or is large)."""
        found = self._partly(name)
        return None if found is None or found.dtype == object else found

    def _partly(self, name: str, depth: int = 0) -> np.ndarray | None:
        """The same, or an object array with None for the dimensions that are free."""
        if name not in self._found:
            self._found[name] = None  # also for what asks for itself
            self._found[name] = self._compute(name, depth)
        return self._found[name]

    def _compute(self, name: str, depth: int) -> np.ndarray | None:
        held = self._graph.constant(name)
        if held is not None:
            return held if held.size <= LARGEST else None
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
            return self._moved(node, inputs, name)
        return self._evaluated(node, inputs, name)

    def _shape(self, node: onnx.NodeProto) -> np.ndarray | None:
        shape = self._graph.shape(node.input[0])
        if shape is None:
            return None
        held = attributes(node)
        return _settled(
            [dim if isinstance(dim, int) else None for dim in shape][held.get("start", 0) : held.get("end")]
        )

    def _moved(self, node: onnx.NodeProto, inputs: list[np.ndarray | None], name: str) -> np.ndarray | None:
        """Moves the places of elements instead of the elements, some of which are not known."""
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
        moved = self._evaluated(node, [*places, *inputs[count:]], name)
        return None if moved is None else _settled([elements[int(k)] for k in moved.ravel()], moved.shape)

    def _evaluated(self, node: onnx.NodeProto, inputs: list[np.ndarray | None], name: str) -> np.ndarray | None:
        alone = copy_of(node)
        feeds: dict[str, np.ndarray] = {}
        for index, value in enumerate(inputs):  # one value read twice may stand for two
            if value is not None:
                given = f"input_{index}"
                alone.input[index] = given
                feeds[given] = value
        if sum(value.size for value in feeds.values()) > LARGEST:
            return None
        infos = [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), None)
            for key, value in feeds.items()
        ]
        graph = helper.make_graph([alone], "one", infos, [helper.make_empty_tensor_value_info(name)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._graph.opset)])
        try:
            found = np.asarray(next(iter(ReferenceEvaluator(model).run([name], feeds))))
        except Exception:
            return None  # then it stays as it is, for the runtime to judge
        return found if found.size <= LARGEST else None


def _settled(elements: Sequence[object], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """int64 where every element is known, else objects."""
    known = all(element is not None for element in elements)
    found = np.empty(len(elements), dtype=np.int64 if known else object)
    found[:] = elements
    return found if shape is None else found.reshape(shape)
