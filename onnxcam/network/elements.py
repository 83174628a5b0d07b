"""Elements of a value as expressions of elements of earlier values, through what only moves and maps elements.

The score of one box is one column of thousands. Between it and the convolution that computed it lie nothing but
operators that move elements about (Reshape, Transpose, Concat, Slice, ...) or work on each alone (Sigmoid, Mul, ...):
followed back from that one element they are a handful of scalar operations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, Shape, attributes

_ELEMENTWISE = having(Trait.ELEMENTWISE) - having(Trait.JUMPS) - {"QuantizeLinear", "DequantizeLinear", "Dropout"}
_RESHAPES, _PASSES = having(Trait.RESHAPES), ("Identity", "Dropout")
LEAF, CONSTANT, STEP = "leaf", "constant", "step"
Operand = tuple[str, int]  # what it is, and its number among those
Element = tuple[int, ...]  # along every axis of a value; along that of the rows always 0


class NotElementwise(Exception):
    """The element depends on more than elements that can be told one by one."""


@dataclass(frozen=True)
class Step:
    """A scalar operation: an operator with its attributes, and its operands."""

    op_type: str
    attributes: tuple[tuple[str, Any], ...]
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Leaf:
    """An element that an expression starts from."""

    value: str
    element: Element


@dataclass(frozen=True)
class Expression:
    """Some elements followed back.

    Attributes:
        steps: in order, each reads what stands before it.
        leaves: where they start.
        constants: numbers of the graph that they read.
        results: what computes each of the elements.
    """

    steps: tuple[Step, ...]
    leaves: tuple[Leaf, ...]
    constants: tuple[float, ...]
    results: tuple[Operand, ...]

    @property
    def form(self) -> tuple[Any, ...]:
        """What two expressions share that one graph computes: all but the leaves' places and the constants."""
        return self.steps, tuple(leaf.value for leaf in self.leaves), len(self.constants), self.results


def follow(graph: Graph, value: str, elements: Sequence[Element], stop: Collection[str] = ()) -> Expression:
    """Follow elements of a value back to convolutions, or to `stop`.

    Arguments:
        graph: with inferred shapes.
        value, elements: which elements of which value; along the rows 0.
        stop: values whose elements are leaves, whatever computes them.

    Raises:
        NotElementwise: an operator on the way is neither of the kinds, or a shape is open.
    """
    walk = _Walk(graph, frozenset(stop))
    results = tuple(walk.visit(value, element) for element in elements)
    return Expression(tuple(walk.steps), tuple(walk.leaves), tuple(walk.constants), results)


class _Walk:
    def __init__(self, graph: Graph, stop: frozenset[str]) -> None:
        self.graph = graph
        self.stop = stop
        self.steps: list[Step] = []
        self.leaves: list[Leaf] = []
        self.constants: list[float] = []
        self._operands: dict[tuple[str, Element], Operand] = {}

    def visit(self, value: str, element: Element) -> Operand:
        key = (value, element)
        if key not in self._operands:
            self._operands[key] = self._operand(value, element)
        return self._operands[key]

    def _operand(self, value: str, element: Element) -> Operand:
        graph = self.graph
        if graph.is_constant(value):
            array = graph.constant(value)
            if array is None or not np.issubdtype(array.dtype, np.floating):
                raise NotElementwise(value)
            self.constants.append(float(array[element]))
            return CONSTANT, len(self.constants) - 1
        node = graph.producer.get(value)
        if node is None or value in self.stop or (node.op_type == "Conv" and node.domain in ("", "ai.onnx")):
            self.leaves.append(Leaf(value, element))
            return LEAF, len(self.leaves) - 1
        if node.domain not in ("", "ai.onnx"):
            raise NotElementwise(value)
        if node.op_type in _PASSES and value == node.output[0]:
            return self.visit(node.input[0], element)
        if node.op_type in _RESHAPES:
            return self.visit(node.input[0], self._reshaped(node, value, element))
        if node.op_type in _MOVES:
            return self.visit(*_MOVES[node.op_type](graph, node, value, element))
        if node.op_type not in _ELEMENTWISE or graph.dtype(value) != onnx.TensorProto.FLOAT:
            raise NotElementwise(value)
        operands = tuple(self.visit(name, self._broadcast(name, element)) for name in node.input if name)
        if len(operands) < len(node.input):
            raise NotElementwise(value)
        named = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes(node).items()))
        self.steps.append(Step(node.op_type, named, operands))
        return STEP, len(self.steps) - 1

    def _broadcast(self, name: str, element: Element) -> Element:
        """The element of an operand that an element of the result is computed from."""
        shape = self.graph.shape(name)
        if shape is None or len(shape) > len(element):
            raise NotElementwise(name)
        return tuple(
            0 if dim == 1 else place for dim, place in zip(shape, element[len(element) - len(shape) :], strict=True)
        )

    def _reshaped(self, node: onnx.NodeProto, value: str, element: Element) -> Element:
        """The element of the data: rows stay rows, and the other elements stay in their order."""
        before, after = self.graph.shape(node.input[0]), self.graph.shape(value)
        if not before or not after or element[0] != 0:
            raise NotElementwise(value)
        sizes = [_product(shape) for shape in (before, after)]
        if sizes[0] != sizes[1] if None not in sizes else before[0] != after[0]:
            raise NotElementwise(value)  # rows do not stay rows
        place = int(np.dot(element[1:], _steps(after, value))) if len(after) > 1 else 0
        places = [0]
        for step in _steps(before, value):
            places.append(place // step)
            place -= places[-1] * step
        return tuple(places)


def _product(shape: Shape) -> int | None:
    """Number of elements of a row, None where it is open."""
    sizes = [dim for dim in shape[1:] if isinstance(dim, int)]
    return math.prod(sizes) if len(sizes) == len(shape) - 1 else None


def _steps(shape: Shape, value: str) -> list[int]:
    """How far apart neighbours along each axis but the rows are in the order of the elements."""
    inner = [dim for dim in shape[2:] if isinstance(dim, int)]
    if len(inner) < len(shape) - 2:
        raise NotElementwise(value)
    return [math.prod(inner[axis:]) for axis in range(len(shape) - 1)]


def _transposed(graph: Graph, node: onnx.NodeProto, value: str, element: Element) -> tuple[str, Element]:
    order = attributes(node).get("perm") or list(range(len(element)))[::-1]
    places = [0] * len(element)
    for axis, source in enumerate(order):
        places[source] = element[axis]
    return _of_rows(node.input[0], places, order[0] == 0)


def _joined(graph: Graph, node: onnx.NodeProto, value: str, element: Element) -> tuple[str, Element]:
    axis = attributes(node)["axis"] % len(element)
    place = element[axis]
    for name in node.input:
        size = _size(graph, name, axis)
        if place < size:
            return _of_rows(name, [*element[:axis], place, *element[axis + 1 :]], axis != 0)
        place -= size
    raise NotElementwise(value)


def _split(graph: Graph, node: onnx.NodeProto, value: str, element: Element) -> tuple[str, Element]:
    axis = attributes(node).get("axis", 0) % len(element)
    before = sum(_size(graph, name, axis) for name in node.output[: list(node.output).index(value)])
    return _of_rows(node.input[0], [*element[:axis], before + element[axis], *element[axis + 1 :]], axis != 0)


def _sliced(graph: Graph, node: onnx.NodeProto, value: str, element: Element) -> tuple[str, Element]:
    parts = [None if not name else graph.constant(name) for name in node.input[1:]]
    if len(parts) < 2 or any(part is None and name for part, name in zip(parts, node.input[1:], strict=True)):
        raise NotElementwise(value)
    starts = np.asarray(parts[0]).tolist()
    axes = list(range(len(starts))) if len(parts) < 3 or parts[2] is None else np.asarray(parts[2]).tolist()
    steps = [1] * len(starts) if len(parts) < 4 or parts[3] is None else np.asarray(parts[3]).tolist()
    places = list(element)
    for start, axis, step in zip(starts, axes, steps, strict=True):
        if (axis := axis % len(element)) == 0:
            raise NotElementwise(value)
        size = _size(graph, node.input[0], axis)
        first = min(max(start + size if start < 0 else start, 0), size if step > 0 else size - 1)
        places[axis] = first + step * element[axis]
    return node.input[0], tuple(places)


def _gathered(graph: Graph, node: onnx.NodeProto, value: str, element: Element) -> tuple[str, Element]:
    indices, data = graph.constant(node.input[1]), graph.shape(node.input[0])
    if indices is None or data is None or indices.ndim > 1:
        raise NotElementwise(value)
    axis = attributes(node).get("axis", 0) % len(data)
    index = int(indices[element[axis]] if indices.ndim else indices)
    index = index + _size(graph, node.input[0], axis) if index < 0 else index
    return _of_rows(node.input[0], [*element[:axis], index, *element[axis + indices.ndim :]], axis != 0)


def _of_rows(value: str, places: list[int], rows_stay: bool) -> tuple[str, Element]:
    if not rows_stay or places[0] != 0:
        raise NotElementwise(value)
    return value, tuple(places)


def _size(graph: Graph, value: str, axis: int) -> int:
    shape = graph.shape(value)
    size = shape[axis] if shape is not None and axis < len(shape) else None
    if size is None or isinstance(size, str):
        node = graph.producer.get(value)
        if node is None or node.op_type not in ("Reshape", "Flatten") or len(shape or ()) != 2 or axis != 1:
            raise NotElementwise(value)
        size = _product(graph.shape(node.input[0]) or (None,))  # a row as one vector
    if size is None:
        raise NotElementwise(value)
    return size


_MOVES = {"Transpose": _transposed, "Concat": _joined, "Split": _split, "Slice": _sliced, "Gather": _gathered}
