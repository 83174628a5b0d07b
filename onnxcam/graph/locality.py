"""The part of a graph in which every cell of a map depends on a window of the picture, and how far a change spreads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph, attributes, uses

_POINTWISE = having(Trait.ELEMENTWISE) - having(Trait.RANDOM) - {"Dropout"}
_WINDOWS = frozenset({"Conv", "MaxPool", "AveragePool", "LpPool"})


@dataclass(frozen=True)
class Taps:
    """What a cell reads along one axis: cell o reads `o * step - before + k * dilation` for k < `size`.

    Cells that are read outside of the map are padding, which is the same whatever the map holds.
    """

    size: int
    dilation: int
    step: int
    before: int
    inside: int  # cells of the map that is read
    outside: int  # cells of the result

    @property
    def spread(self) -> int:
        """Cells from the first that is read to the last."""
        return (self.size - 1) * self.dilation

    def forward(self, span: np.ndarray) -> np.ndarray:
        """Which cells `[n, 2]` of the result change with cells of the map, from and to before; `(0, 0)` for none."""
        first = -((self.spread - self.before - span[:, 0]) // self.step)
        last = (span[:, 1] - 1 + self.before) // self.step + 1
        return _clipped(first, last, self.outside, span)

    def backward(self, span: np.ndarray) -> np.ndarray:
        """Which cells are read for cells `[n, 2]` of the result; padding included."""
        first = span[:, 0] * self.step - self.before
        last = (span[:, 1] - 1) * self.step - self.before + self.spread + 1
        return np.where((span[:, 0] < span[:, 1])[:, None], np.stack([first, last], axis=1), 0)

    def length(self, inside: int, after: int, ceil: bool) -> int:
        """Cells of the result of a piece of the map, padded as the map is."""
        free = inside + self.before + after - self.spread - 1
        count = (-(-free // self.step) if ceil else free // self.step) + 1
        # a window that begins behind the map is none
        return count - 1 if ceil and (count - 1) * self.step >= inside + self.before else count


def _clipped(first: np.ndarray, last: np.ndarray, size: int, span: np.ndarray) -> np.ndarray:
    first, last = np.clip(first, 0, size), np.clip(last, 0, size)
    empty = (first >= last) | (span[:, 0] >= span[:, 1])
    return np.where(empty[:, None], 0, np.stack([first, last], axis=1))


def hull(spans: Sequence[np.ndarray]) -> np.ndarray:
    """The smallest spans `[n, 2]` that contain some others; empty ones count for nothing."""
    if len(spans) == 1:
        return spans[0]
    every = np.stack(spans)
    empty = every[..., 0] >= every[..., 1]
    first = np.where(empty, np.iinfo(np.int64).max, every[..., 0]).min(axis=0)
    last = np.where(empty, np.iinfo(np.int64).min, every[..., 1]).max(axis=0)
    return np.where((first < last)[:, None], np.stack([first, last], axis=1), 0)


@dataclass(frozen=True)
class LocalNode:
    """A node whose outputs are maps, each cell of which depends on a window of the maps that it reads.

    Attributes:
        node: of the graph.
        reads: the maps among its inputs.
        taps: along rows and columns, None for a node that reads the cell at its place alone.
        after: padding behind the map, along rows and columns.
    """

    node: onnx.NodeProto
    reads: tuple[str, ...]
    taps: tuple[Taps, Taps] | None = None
    after: tuple[int, int] = (0, 0)

    @property
    def ceil(self) -> bool:
        """Whether the number of cells is rounded up."""
        return bool(self.taps is not None and attributes(self.node).get("ceil_mode", 0))


@dataclass
class Locality:
    """The maps that depend on the picture by windows, and the nodes that compute them, in graph order.

    Attributes:
        nodes: of the local part.
        axes: by map, which of its axes are rows and columns.
        shapes: by map, its shape for one picture.
        operations: by node, by the name of its first output, its multiplications for one picture; of the whole graph.
    """

    nodes: list[LocalNode] = field(default_factory=list)
    axes: dict[str, tuple[int, int]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    operations: dict[str, float] = field(default_factory=dict)

    def size(self, value: str) -> tuple[int, int]:
        """Rows and columns of a map."""
        rows, columns = self.axes[value]
        return self.shapes[value][rows], self.shapes[value][columns]

    def depth(self, value: str) -> int:
        """Numbers per cell of a map."""
        rows, columns = self.size(value)
        return int(np.prod(self.shapes[value])) // max(rows * columns, 1)


def locality(graph: Graph, picture: str, axes: tuple[int, int], shape: tuple[int, ...]) -> Locality:
    """Follow the picture through the graph as far as cells depend on windows.

    Convolutions and pooling with strides, padding and dilation, element-wise operators, residual sums, channels joined
    and split, normalisation over channels, and moves of axes are followed. Where another operator reads a map, that
    branch ends: its result is not local.

    Arguments:
        graph: a normalised graph.
        picture: its input.
        axes: rows and columns of the picture.
        shape: of the picture, one row.
    """
    static = StaticShapes(graph, {picture: shape})
    local = Locality(axes={picture: axes}, shapes={picture: shape})
    reached = graph.downstream([picture])
    for node in graph.nodes:
        if node.output[0] in reached:
            local.operations[node.output[0]] = operations(static.shape, node)
        maps = [name for name in dict.fromkeys(node.input) if name in local.axes]
        if not maps or any(name in reached and name not in local.axes for name in uses(node)):
            continue
        shapes = {name: static.shape(name) for name in node.output if name}
        entry = _entry(graph, static, local, node, maps)
        mapped = all(one is not None and len(one) == 4 and one[0] == 1 for one in shapes.values())
        if entry is None or not mapped:
            continue
        of_output = _moved_axes(node, local.axes[maps[0]])
        sizes = {tuple(dims[axis] for axis in of_output) for dims in shapes.values() if dims is not None}
        expected = local.size(maps[0]) if entry.taps is None else tuple(one.outside for one in entry.taps)
        if sizes != {expected}:
            continue
        local.nodes.append(entry)
        for name, dims in shapes.items():
            local.axes[name], local.shapes[name] = of_output, dims or ()
    return local


def _moved_axes(node: onnx.NodeProto, axes: tuple[int, int]) -> tuple[int, int]:
    if node.op_type != "Transpose":
        return axes
    order = list(attributes(node)["perm"])
    return order.index(axes[0]), order.index(axes[1])


def _entry(
    graph: Graph, static: StaticShapes, local: Locality, node: onnx.NodeProto, maps: list[str]
) -> LocalNode | None:
    """The node as a local one; None if it is not."""
    if node.domain not in ("", "ai.onnx"):
        return None
    axes, op = local.axes[maps[0]], node.op_type
    attrs = attributes(node)
    others = [(place, name) for place, name in enumerate(node.input) if name and name not in local.axes]
    if not all(graph.is_constant(name) for _, name in others):
        return None
    entry = LocalNode(node, tuple(maps))
    same_grid = all(local.axes[name] == axes and local.size(name) == local.size(maps[0]) for name in maps)
    if op in _WINDOWS:
        return _sliding(static, local, node, maps[0]) if maps == [node.input[0]] and len(node.output) == 1 else None
    if not same_grid:
        return None
    if op in ("QuantizeLinear", "DequantizeLinear"):
        scale = static.shape(node.input[1])
        flat = scale is not None and int(np.prod(scale)) == 1
        return entry if flat or (not attrs.get("block_size") and attrs.get("axis", 1) % 4 not in axes) else None
    if op == "CastLike":
        return entry if maps == [node.input[0]] else None
    if op in _POINTWISE:
        return entry if all(_even(static.shape(name), axes) for _, name in others) else None
    match op:
        case "BatchNormalization":
            plain = maps == [node.input[0]] and not attrs.get("training_mode", 0) and len(node.output) == 1
            return entry if plain and 1 not in axes else None
        case "Transpose":
            order = attrs.get("perm")
            return entry if order is not None and len(order) == 4 and order[0] == 0 else None
        case "Concat":
            axis = int(attrs["axis"]) % 4
            return entry if not others and axis != 0 and axis not in axes else None
        case "Split":
            axis = int(attrs.get("axis", 0)) % 4
            return entry if axis != 0 and axis not in axes and maps == [node.input[0]] else None
        case "Slice":
            along = static.integers(node.input[3]) if len(node.input) > 3 and node.input[3] else None
            inner = along is not None and all(axis % 4 not in (0, *axes) for axis in along)
            return entry if inner and maps == [node.input[0]] else None
        case "Pad":
            return _padding(static, local, node, maps[0]) if maps == [node.input[0]] else None
        case "MatMul":
            weights = static.shape(node.input[1])
            ranks = weights is not None and len(weights) == 2
            return entry if ranks and maps == [node.input[0]] and 3 not in axes else None
        case "LRN":
            return entry if 1 not in axes else None
        case "LayerNormalization":
            first = int(attrs.get("axis", -1)) % 4
            return entry if first == 3 and 3 not in axes and maps == [node.input[0]] else None
        case _:
            return None


def _even(shape: tuple[int, ...] | None, axes: tuple[int, int]) -> bool:
    """Whether a constant operand is the same for all rows and columns, and of one picture."""
    if shape is None or len(shape) > 4:
        return False
    wide = (1,) * (4 - len(shape)) + shape
    return wide[0] == 1 and all(wide[axis] == 1 for axis in axes)


def _sliding(static: StaticShapes, local: Locality, node: onnx.NodeProto, data: str) -> LocalNode | None:
    """A convolution or pooling over the two axes."""
    axes, attrs = local.axes[data], attributes(node)
    weights = static.shape(node.input[1]) if node.op_type == "Conv" else None
    kernel = attrs.get("kernel_shape") or (weights or ())[2:]
    result = static.shape(node.output[0])
    if set(axes) != {2, 3} or len(kernel) != 2 or result is None or len(result) != 4:
        return None
    taps, after = [], []
    for axis in axes:
        place = axis - 2
        step, dilation = (int((attrs.get(name) or [1, 1])[place]) for name in ("strides", "dilations"))
        inside, outside = local.shapes[data][axis], result[axis]
        pads = attrs.get("pads") or [0, 0, 0, 0]
        begin, end = int(pads[place]), int(pads[place + 2])
        match attrs.get("auto_pad", "NOTSET"):
            case "SAME_UPPER" | "SAME_LOWER" as how:
                total = max((outside - 1) * step + (kernel[place] - 1) * dilation + 1 - inside, 0)
                begin = total // 2 if how == "SAME_UPPER" else total - total // 2
                end = total - begin
            case "VALID":
                begin = end = 0
            case _:
                pass
        if begin < 0 or end < 0:
            return None
        one = Taps(int(kernel[place]), dilation, step, begin, inside, outside)
        if one.length(inside, end, bool(attrs.get("ceil_mode", 0))) != outside:
            return None  # the inferred shape is not what runtimes compute
        taps.append(one)
        after.append(end)
    return LocalNode(node, (data,), (taps[0], taps[1]), (after[0], after[1]))


def _padding(static: StaticShapes, local: Locality, node: onnx.NodeProto, data: str) -> LocalNode | None:
    """A Pad by a constant."""
    axes, attrs = local.axes[data], attributes(node)
    pads = static.integers(node.input[1])
    along = static.integers(node.input[3]) if len(node.input) > 3 and node.input[3] else list(range(4))
    if attrs.get("mode", "constant") != "constant" or pads is None or along is None or min(pads, default=0) < 0:
        return None
    by_axis = {axis % 4: (pads[place], pads[place + len(along)]) for place, axis in enumerate(along)}
    if any(any(amounts) for axis, amounts in by_axis.items() if axis not in axes):
        return None
    taps, after = [], []
    for axis in axes:
        begin, end = by_axis.get(axis, (0, 0))
        inside = local.shapes[data][axis]
        taps.append(Taps(1, 1, 1, begin, inside, inside + begin + end))
        after.append(end)
    return LocalNode(node, (data,), (taps[0], taps[1]), (after[0], after[1]))


def changes(local: Locality, picture: str, spans: np.ndarray, axis: int) -> dict[str, np.ndarray]:
    """Which cells of every map change with the picture's, along rows (0) or columns (1).

    Arguments:
        spans: int64 `[n, 2]`, of the picture: from and to before.

    Returns:
        by map int64 `[n, 2]`, `(0, 0)` where none changes.
    """
    changed = {picture: spans}
    for entry in local.nodes:
        span = hull([changed[name] for name in entry.reads])
        if entry.taps is not None:
            span = entry.taps[axis].forward(span)
        for name in entry.node.output:
            if name:
                changed[name] = span
    return changed


def required(nodes: Iterable[LocalNode], need: dict[str, np.ndarray], axis: int) -> None:
    """Add to what is needed of some maps what the nodes that compute them read, along one axis.

    Arguments:
        nodes: the last one first.
        need: by map, int64 `[n, 2]`; padding included.
    """
    for entry in nodes:
        outputs = [need[name] for name in entry.node.output if name in need]
        if not outputs:
            continue
        span = hull(outputs)
        span = span if entry.taps is None else entry.taps[axis].backward(span)
        for name in entry.reads:
            need[name] = hull([need[name], span]) if name in need else span


def operations(shapes: Callable[[str], tuple[int, ...] | None], node: onnx.NodeProto) -> float:
    """Multiplications of a convolution or a matrix product; 0 for any other node, or where shapes are unknown.

    Arguments:
        shapes: the shape of a value, for one picture.
    """
    result, inner = shapes(node.output[0]), 0.0
    operands = [shapes(name) or () for name in node.input[:2]]
    match node.op_type:
        case "Conv" if len(operands[1]) > 2:
            inner = float(np.prod(operands[1][1:]))
        case "MatMul" if operands[0]:
            inner = float(operands[0][-1])
        case "Gemm" if len(operands[0]) == 2:
            inner = float(operands[0][0 if attributes(node).get("transA") else 1])
        case _:
            pass
    return inner * float(np.prod(result)) if result is not None else 0.0
