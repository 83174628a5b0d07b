"""The part of a detector's head that one box's score is computed by, cut out around the box's own cell.

Between a level of a feature pyramid and a box's score lie a few small convolutions: the score depends on a few cells
around its own, and so does its gradient. Cut out, these cells of many boxes are the rows of one small run: the patch of
the level around each cell, convolved without padding. Beyond the picture's edge each padded convolution reads zeros,
whatever was computed there: so there what it reads is set to zero.

    crops of the values that pass the cut, the cell's row and column, the cotangent of each score
    -> the gradient at the crop of the layer, or the maps of methods that work on each cell alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx

from onnxcam.autodiff.sweep import sweep
from onnxcam.cam import methods as cam
from onnxcam.cam.registry import GRAPH, Method
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import refresh
from onnxcam.graph.view import Graph, attributes
from onnxcam.network.elements import CONSTANT, LEAF, Expression
from onnxcam.network.names import COTANGENT, GRADIENT, MAP
from onnxcam.network.network import Network

ROW, COLUMN = "onnxcam.row", "onnxcam.column"
CROP, CHANNEL, NUMBER = "onnxcam.crop.", "onnxcam.channel.", "onnxcam.number."
_FLOAT = onnx.TensorProto.FLOAT
_ELEMENTWISE = having(Trait.ELEMENTWISE) - having(Trait.JUMPS) - {"QuantizeLinear", "DequantizeLinear", "Dropout"}
_BOXES = "boxes"  # the symbol of the rows
_TOTAL = "onnxcam.total"


class NotLocal(Exception):
    """A box's score depends on more than cells around its own, or by an operator that no patch is cut through."""


class Patch(NamedTuple):
    """Rows and columns of a grid relative to a cell, from the first to the last."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in cells."""
        return self.bottom - self.top + 1, self.right - self.left + 1

    def around(self, other: Patch) -> Patch:
        """The smallest patch that covers both."""
        return Patch(
            min(self.top, other.top),
            max(self.bottom, other.bottom),
            min(self.left, other.left),
            max(self.right, other.right),
        )


CELL = Patch(0, 0, 0, 0)


@dataclass(frozen=True)
class CellGraph:
    """The head cut out around cells.

    Attributes:
        model: per value of `crops` its crop `[boxes, C, kh, kw]` as `CROP` and the value's name; `ROW` and `COLUMN`,
            int64 `[boxes]`; per leaf either `CHANNEL` and its number, a one-hot row of channels `[boxes, C]`, or the
            element itself as `NUMBER`, its value's name and its number; per constant `NUMBER` and its number; per
            result `COTANGENT` and its number, each `[boxes]`, in; `MAP` and a method's name `[boxes, kh, kw]` before
            the ReLU, or `GRADIENT` `[boxes, C, kh, kw]`, out.
        crops: the patch of each value that is cropped, the layer's own among them.
        layer: the layer's value.
        channels: the number of channels of each leaf behind the layer, by its number.
    """

    model: onnx.ModelProto
    crops: Mapping[str, Patch]
    layer: str
    channels: Mapping[int, int]


def local(method: Method) -> bool:
    """Whether a method's map at a cell depends on activations and gradients there alone, and is 0 without gradient."""
    if method.kind != GRAPH or method.terms is None or not method.gradient:
        return False
    op = Builder(Graph(onnx.ModelProto()))
    method.terms(op, "a", "da")
    return all(node.op_type in ("Mul", "Relu") for node in op.nodes)


def cut_cells(network: Network, layer: str, expression: Expression, methods: Sequence[str]) -> CellGraph:
    """Cut the head between a layer and the scores of boxes whose expressions have one form.

    Arguments:
        layer: a layer of the network.
        expression: of the score of one of the boxes, followed back to convolutions or to values that pass the cut.
        methods: names of methods that are `local`; none for the gradient.

    Raises:
        NotLocal: it cannot be cut.
    """
    graph, value = network.graph_from(layer), network.cut(layer).layer.value
    below = graph.downstream([value])
    ends = list(dict.fromkeys(leaf.value for leaf in expression.leaves if leaf.value in below))
    if not ends or graph.dtype(value) != _FLOAT:
        raise NotLocal(layer)
    model = onnx.ModelProto()
    model.ir_version = graph.model.ir_version
    model.opset_import.add(domain="", version=graph.opset)
    model.graph.name = "cells"
    patches = _Patches(graph, value, ends)
    model.graph.input.extend(
        edit.info(CROP + name, _FLOAT, [_BOXES, _grid(graph, name)[0], *patch.size])
        for name, patch in patches.crops.items()
    )
    model.graph.input.extend(edit.info(name, onnx.TensorProto.INT64, [_BOXES]) for name in (ROW, COLUMN))
    op = Builder(Graph(model))
    convolved = patches.emit(op)
    channels, numbers = {}, [f"{NUMBER}{index}" for index in range(len(expression.constants))]
    leaves = []
    for index, leaf in enumerate(expression.leaves):
        if leaf.value in below:
            channels[index] = _grid(graph, leaf.value)[0]
            model.graph.input.append(edit.info(f"{CHANNEL}{index}", _FLOAT, [_BOXES, channels[index]]))
            cells = op.Reshape(convolved(leaf.value, CELL), [0, -1])
            leaves.append(op.ReduceSum(op.Mul(cells, f"{CHANNEL}{index}"), [1], keepdims=0))
        else:
            leaves.append(f"{NUMBER}{leaf.value}.{index}")
            numbers.append(leaves[-1])
    weights = [f"{COTANGENT}{index}" for index in range(len(expression.results))]
    model.graph.input.extend(edit.info(name, _FLOAT, [_BOXES]) for name in [*numbers, *weights])
    values: list[str] = []

    def operand(kind: str, number: int) -> str:
        return leaves[number] if kind == LEAF else numbers[number] if kind == CONSTANT else values[number]

    for step in expression.steps:
        settings = {key: list(item) if isinstance(item, tuple) else item for key, item in step.attributes}
        values += op.call(step.op_type, [operand(*one) for one in step.operands], **settings)
    parts = [op.Mul(operand(*one), weight) for one, weight in zip(expression.results, weights, strict=True)]
    op.Identity(op.Sum(*parts), name=_TOTAL)
    edit.add(model, op)
    model.graph.output.append(edit.info(_TOTAL, _FLOAT, [_BOXES]))
    op = Builder(refresh(model), prefix="onnxcam/cells")
    crop = CROP + value
    (gradient,) = sweep(op, _TOTAL, op.filled(1.0, op.Shape(_TOTAL)), [crop])
    del model.graph.output[:]
    size = patches.crops[value].size
    for name in methods:
        op.Identity(cam.find_graph(name).function(op, crop, gradient), name=MAP + name)
        model.graph.output.append(edit.info(MAP + name, _FLOAT, [_BOXES, *size]))
    if not methods:
        op.Identity(gradient, name=GRADIENT)
        model.graph.output.append(edit.info(GRADIENT, _FLOAT, [_BOXES, _grid(graph, value)[0], *size]))
    edit.add(model, op)
    inputs = list(model.graph.input)
    edit.prune(model)
    present = {info.name for info in model.graph.input}
    model.graph.input.extend(info for info in inputs if info.name not in present)
    return CellGraph(model, patches.crops, value, channels)


def _grid(graph: Graph, value: str) -> tuple[int, int, int]:
    """Channels, rows and columns of `[N, C, h, w]`.

    Raises:
        NotLocal: another shape, or an open one.
    """
    shape = graph.shape(value) or ()
    if len(shape) != 4 or not all(isinstance(dim, int) for dim in shape[1:]):
        raise NotLocal(value)
    return tuple(int(dim) for dim in shape[1:])  # type: ignore[return-value, arg-type]


class _Patches:
    """Which patch around a cell each value between a layer and the last convolutions is needed on.

    Attributes:
        crops: those of the values that pass the cut.
    """

    def __init__(self, graph: Graph, layer: str, ends: Sequence[str]) -> None:
        self._graph = graph
        self._nodes = graph.between([layer], ends)
        self._needed: dict[str, Patch] = dict.fromkeys(ends, CELL)
        produced = {name for node in self._nodes for name in node.output}
        for node in reversed(self._nodes):
            outputs = [self._needed[name] for name in node.output if name in self._needed]
            if not outputs or node.domain not in ("", "ai.onnx"):
                raise NotLocal(node.name)
            whole = outputs[0]
            for patch in outputs[1:]:
                whole = whole.around(patch)
            if node.op_type in ("Split",):
                self._needed.update(dict.fromkeys(node.output, whole))
            reads = self._reads(node, whole)
            for name in self._data(node):
                self._needed[name] = reads.around(self._needed[name]) if name in self._needed else reads
        self.crops = {name: patch for name, patch in self._needed.items() if name not in produced}
        self.crops = {layer: self.crops.pop(layer), **self.crops}

    def _data(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that are maps; of the others the numbers must be known.

        Raises:
            NotLocal: an input is neither.
        """
        names = [name for name in node.input if name and not self._graph.is_constant(name)]
        if not names or not all(self._graph.dtype(name) == _FLOAT for name in names):
            raise NotLocal(node.name)
        grid = _grid(self._graph, names[0])
        if any(_grid(self._graph, name)[1:] != grid[1:] for name in names):
            raise NotLocal(node.name)
        return names

    def _reads(self, node: onnx.NodeProto, patch: Patch) -> Patch:
        """The patch of its data that a node computes a patch from.

        Raises:
            NotLocal: the node works on more than cells around.
        """
        if node.op_type in ("Conv", "MaxPool"):
            before, reach = _window(self._graph, node)
            return Patch(
                patch.top - before[0],
                patch.bottom + reach[0] - before[0],
                patch.left - before[1],
                patch.right + reach[1] - before[1],
            )
        if node.op_type in _ELEMENTWISE:
            for name in node.input:
                constant = self._graph.constant(name) if name and self._graph.is_constant(name) else None
                if constant is not None and any(size != 1 for size in constant.shape[-2:]):
                    raise NotLocal(node.name)
            return patch
        if node.op_type == "BatchNormalization" and len([name for name in node.output if name]) == 1:
            return patch
        axis = attributes(node).get("axis", 0)
        if node.op_type in ("Concat", "Split") and axis % 4 == 1:
            return patch
        if node.op_type == "Slice" and len(node.input) > 3:
            axes = self._graph.constant(node.input[3])
            if axes is not None and [int(axis) % 4 for axis in axes.ravel()] == [1]:
                return patch
        raise NotLocal(node.name)

    def emit(self, op: Builder) -> Callable[[str, Patch], str]:
        """Emit the nodes on patches; return what gives a value of the graph on a patch of the one it is needed on."""
        graph, emitted = self._graph, {name: CROP + name for name in self.crops}
        masks: dict[tuple[Patch, tuple[int, ...]], str] = {}

        def on(name: str, patch: Patch) -> str:
            whole = self._needed[name]
            if patch == whole:
                return emitted[name]
            starts = [patch.top - whole.top, patch.left - whole.left]
            stops = [start + size for start, size in zip(starts, patch.size, strict=True)]
            return str(op.Slice(emitted[name], starts, stops, [2, 3]))

        def inside(patch: Patch, grid: tuple[int, ...]) -> str:
            """Whether each cell of a patch lies in the picture, bool `[boxes, 1, kh, kw]`."""
            if (patch, grid) not in masks:
                sides = []
                for name, first, last, size, axes in (
                    (ROW, patch.top, patch.bottom, grid[0], [1, 3]),
                    (COLUMN, patch.left, patch.right, grid[1], [1, 2]),
                ):
                    place = op.Add(op.Unsqueeze(name, [1]), np.arange(first, last + 1))
                    within = op.And(op.GreaterOrEqual(place, 0), op.Less(place, size))
                    sides.append(op.Unsqueeze(within, axes))
                masks[patch, grid] = op.And(*sides)
            return masks[patch, grid]

        for node in self._nodes:
            out = next(self._needed[name] for name in node.output if name in self._needed)
            patch, settings = self._reads(node, out), attributes(node)
            data = {name: on(name, patch) for name in self._data(node)}
            if node.op_type in ("Conv", "MaxPool"):
                before, _ = _window(graph, node)
                if any(before) or any(settings.get("pads", [0])) or settings.get("auto_pad", "NOTSET") != "NOTSET":
                    outside = 0.0 if node.op_type == "Conv" else float(np.finfo(np.float32).min)
                    name = node.input[0]
                    data[name] = op.Where(inside(patch, _grid(graph, name)[1:]), data[name], outside)
                settings = {key: item for key, item in settings.items() if key not in ("pads", "auto_pad")}
            inputs = [data[name] if name in data else self._copied(op, name) for name in node.input]
            outputs = op.call(node.op_type, inputs, outputs=len(node.output), **settings)
            emitted.update(zip(node.output, outputs, strict=True))
        return on

    def _copied(self, op: Builder, name: str) -> str | None:
        if not name:
            return None
        constant = self._graph.constant(name)
        if constant is None:
            raise NotLocal(name)
        return op.constant(constant)


def _window(graph: Graph, node: onnx.NodeProto) -> tuple[tuple[int, int], tuple[int, int]]:
    """How far before a cell the window of a convolution or a pooling begins, and how far it reaches from there.

    Raises:
        NotLocal: it steps by more than a cell, or its window is not known.
    """
    settings = attributes(node)
    outputs = len([name for name in node.output if name])
    if any(step != 1 for step in settings.get("strides", [1])) or settings.get("ceil_mode", 0) or outputs > 1:
        raise NotLocal(node.name)
    sides = settings.get("kernel_shape")
    if sides is None:
        weight = graph.shape(node.input[1]) or ()
        sides = [dim for dim in weight[2:] if isinstance(dim, int)]
    if len(sides) != 2 or (node.op_type == "Conv" and not graph.is_constant(node.input[1])):
        raise NotLocal(node.name)
    reach = [(side - 1) * step for side, step in zip(sides, settings.get("dilations", [1, 1]), strict=True)]
    padding = settings.get("auto_pad", "NOTSET")
    if padding in ("SAME_UPPER", "SAME_LOWER"):
        before = [(whole + (padding == "SAME_LOWER")) // 2 for whole in reach]
    else:
        before = [0, 0] if padding == "VALID" else list(settings.get("pads", [0, 0, 0, 0]))[:2]
    return (before[0], before[1]), (reach[0], reach[1])
