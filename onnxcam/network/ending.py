"""The last nodes of a graph, run in NumPy on random values: what they make of the numbers that reach them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcam.graph import edit
from onnxcam.graph.ends import is_dynamic_scale
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import FLOATS, Graph, Shape, uses

ROWS = 23  # random rows: a prime, so that the axis of rows is seldom as long as another
_FEWEST_ROWS = 8  # that have to be finite
_UNKNOWN = 3  # the size of a dynamic dimension other than the rows
_MOST_NODES, _MOST_ELEMENTS = 400, 1 << 24
_SEED = 1234
# standard deviation of the random values, of the largest a softmax is all but 0 and 1; and whether sources agree
_DRAWS = ((1.0, False), (4.0, False), (10.0, True))
_PROBABILITY = having(Trait.PROBABILITY)
_MIXING, _MIXED_NODES = frozenset({"Concat", "Add", "Sum", "Mean"}), 24
# nodes whose output may be of any sign and size, whatever comes before, and nodes that are not run
_BOUNDARY = having(Trait.WEIGHTED | Trait.NORMALIZES | Trait.CONTROL | Trait.RANDOM) | {
    "Attention", "GRU", "LSTM", "RNN", "MaxPool", "Resize",
}  # fmt: skip
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_LAYERS = ("Conv", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Form:
    """How the axes of a value are rows and classes.

    Attributes:
        rows: the axis of rows; None where the one row has no axis.
        classes: the axis of classes; None where each row is a single number without one.
        rank: number of axes; all others are of size 1.
        size: number of classes.
    """

    rows: int | None
    classes: int | None
    rank: int
    size: int

    @property
    def standard(self) -> bool:
        """Whether the value is `[N, K]`, or `[N, K, 1, 1]`."""
        return self.rows == 0 and self.classes == 1 and self.rank in (2, 4)

    def table(self, array: np.ndarray) -> np.ndarray:
        """The value as float64 `[N, K]`."""
        axes = [axis for axis in (self.rows, self.classes) if axis is not None]
        rest = [axis for axis in range(self.rank) if axis not in axes]
        return np.asarray(array, np.float64).transpose(*axes, *rest).reshape(-1, self.size)


def form_of(shape: Shape | None, rows: Any) -> Form | None:
    """The form of a value, None if it is not one score per class and picture.

    Arguments:
        rows: the batch dimension of the picture.
    """
    if shape is None:
        return None
    long = [axis for axis, dim in enumerate(shape) if dim != 1]
    if isinstance(rows, int) and rows == 1:
        if len(long) > 1 or not all(isinstance(shape[axis], int) for axis in long):
            return None
        if len(shape) < 2:
            # `[1]` is one number; `[K]` are the classes of the only picture, where the batch axis was squeezed out
            return Form(None, 0, 1, int(str(shape[0]))) if long else Form(0, None, 1, 1) if shape else None
        axis = long[0] if long else 1
        return Form(1 if axis == 0 else 0, axis, len(shape), int(str(shape[axis])))
    dynamic = [axis for axis in long if not isinstance(shape[axis], int)]
    batch = [axis for axis in long if shape[axis] == rows] if isinstance(rows, int) else dynamic
    if not batch or (not isinstance(rows, int) and len(dynamic) != 1):
        return None
    rest = [axis for axis in long if axis != batch[0]]
    if len(rest) > 1:
        return None
    if rest:
        return Form(batch[0], rest[0], len(shape), int(str(shape[rest[0]])))
    ones = [axis for axis in range(len(shape)) if axis != batch[0]]
    return Form(batch[0], ones[0] if ones else None, len(shape), 1)


class Ending:
    """The nodes from a value back to the last layer with weights, run on random values.

    Arguments:
        graph: a normalised graph.
        picture: its picture's name.
        value: the value that they end in.
        rounded: whether numbers are rounded and cut off where the nodes quantize them; without, they are as those of
            the graph before it was quantized.

    Attributes:
        chain: the values that all of `value` passes through, from it back, with a form of scores each.
        tables: of each value in `chain`, its numbers, float64 `[rows, K]`; rows that are not finite
            are left out.
        operators: of all nodes.
        rounds: whether the nodes quantize anything.

    Raises:
        ValueError: the nodes cannot be run, or their values have unknown types.
    """

    def __init__(self, graph: Graph, picture: str, value: str, *, rounded: bool = True) -> None:
        self._graph, self._value = graph, value
        self._rows = (graph.shape(picture) or (None,))[0]
        self._sources, self._nodes = self._boundary()
        self.operators = frozenset(node.op_type for node in self._nodes)
        chain = [name for name in self._passages() if graph.dtype(name) and self.form(name) is not None]
        self.chain: list[str] = chain
        self._model = self._extract(chain)
        self.rounds = "QuantizeLinear" in self.operators
        if not rounded:
            _keep_fractions(self._model, graph)
        self._evaluator: Any = None
        self._draws = list(self._draw(np.random.default_rng(_SEED)))
        self.tables = _finite(self._run(self._draws))

    def form(self, value: str) -> Form | None:
        """The form of a value of the graph."""
        return form_of(self._graph.shape(value), self._rows)

    def not_a_number(self) -> str | None:
        """A constant that the nodes read and that has NaN in it, None if there is none."""
        for name in dict.fromkeys(name for node in self._nodes for name in node.input if name):
            if self._graph.is_constant(name) and self._graph.is_float(name):
                array = self._graph.constant(name)
                if array is not None and np.isnan(np.asarray(array, np.float64)).any():
                    return str(name)
        return None

    def independent(self) -> bool:
        """Whether each number that comes in from outside reaches one class of a row alone."""
        generator = np.random.default_rng(_SEED)
        for _ in range(-(-ROWS // self._height)):
            same = {name: self._repeat_first(name, array) for name, array in self._draws[0].items()}
            changed = {name: array.copy() for name, array in same.items()}
            for row in range(self._height):
                name = str(generator.choice(self._sources))
                axis = self._axis(name)
                one = changed[name] if axis is None else np.moveaxis(changed[name], axis, 0)[row]
                one[tuple(generator.integers(size) for size in one.shape)] += 3
            differs = self._run([same])[self._value] != self._run([changed])[self._value]
            if (differs.sum(axis=1) > 1).any():
                return False
        return True

    def _repeat_first(self, name: str, array: np.ndarray) -> np.ndarray:
        axis = self._axis(name)
        return array if axis is None else np.repeat(array.take([0], axis), array.shape[axis], axis)

    @property
    def _height(self) -> int:
        """Rows per run."""
        return self._rows if isinstance(self._rows, int) else ROWS

    def _boundary(self) -> tuple[list[str], list[onnx.NodeProto]]:
        """The values that come in from outside, and the nodes from them to the value."""
        graph, queue = self._graph, [self._value]
        sources: dict[str, None] = {}
        nodes: dict[int, onnx.NodeProto] = {}
        visited: set[str] = set()
        while queue:
            name = queue.pop()
            if name in visited or graph.is_constant(name):
                continue
            visited.add(name)
            node = graph.producer.get(name)
            if node is None or self._bounds(node):
                sources[name] = None
                continue
            nodes[graph.index_of(node)] = node
            if len(nodes) > _MOST_NODES:
                raise ValueError("too many nodes")
            queue += uses(node)
        if not nodes:
            raise ValueError("the value is not computed")
        if any(graph.dtype(name) not in FLOATS - {onnx.TensorProto.BFLOAT16} for name in sources):
            raise ValueError("whole numbers come in")
        return sorted(sources, key=lambda name: graph.position.get(name, -1)), [nodes[index] for index in sorted(nodes)]

    def _bounds(self, node: onnx.NodeProto) -> bool:
        """Whether what a node makes may be anything, so that what is before it need not be run."""
        if node.domain not in _DOMAINS:
            return True
        if node.op_type in ("MatMul", "MatMulInteger", "Gemm", "Conv"):
            return any(self._graph.is_constant(name) for name in node.input[:2]) and not mixes(self._graph, node)
        if node.op_type == "Mul":
            layer = self._rescaled(node)
            return layer is not None and not mixes(self._graph, layer)
        return node.op_type in _BOUNDARY

    def _rescaled(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The layer, quantized dynamically, whose whole numbers a Mul turns into real ones; None of any other Mul."""
        graph = self._graph
        for name, scale in (tuple(node.input), tuple(node.input)[::-1]):
            cast = graph.producer.get(name)
            layer = graph.producer.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
            if layer is not None and layer.op_type == "Div" and is_dynamic_scale(graph, layer.input[1]):
                layer = graph.producer.get(layer.input[0])  # a ConvInteger as a convolution of real numbers
            if layer is not None and layer.op_type in _LAYERS and is_dynamic_scale(graph, scale):
                return layer
        return None

    def _passages(self) -> Iterator[str]:
        """The values that everything passes on its way to the end, from the end back."""
        graph, sources = self._graph, set(self._sources)
        for name in [*(name for node in reversed(self._nodes) for name in node.output if name), *self._sources]:
            if name == self._value:
                yield name
                continue
            if graph.is_constant(name):
                continue
            queue, visited, through = [self._value], set(), False
            while queue and not through:
                at = queue.pop()
                if at in visited or at == name or graph.is_constant(at):
                    continue
                visited.add(at)
                through = at in sources
                if not through:
                    queue += uses(graph.producer[at])
            if not through:
                yield name

    def _extract(self, outputs: list[str]) -> onnx.ModelProto:
        graph = self._graph
        infos = [edit.info(name, graph.dtype(name), None) for name in self._sources]
        declared = [edit.info(name, graph.dtype(name), None) for name in outputs if name not in self._sources]
        model = edit.extract(graph, infos, declared)
        del model.graph.value_info[:]
        for opset in model.opset_import:
            if opset.domain in (
                "",
                "ai.onnx",
            ):  # onnx's evaluator has no QuantizeLinear below 19; none changed its sense
                opset.version = max(opset.version, 21)
        return model

    def _draw(self, generator: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
        """Random values of all sources; some are the same in sources of one shape, as members of an ensemble agree."""
        for deviation, agree in _DRAWS:
            for _ in range(-(-ROWS // self._height)):
                yield self._values(generator, deviation, agree)

    def _axis(self, name: str) -> int | None:
        """The axis of rows of a source."""
        shape = self._graph.shape(name) or ()
        if self._rows in shape:
            return shape.index(self._rows)
        return next((axis for axis, dim in enumerate(shape) if not isinstance(dim, int)), None)

    def _values(self, generator: np.random.Generator, deviation: float, agree: bool) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        by_shape: dict[tuple[int, ...], np.ndarray] = {}
        for name in self._sources:
            shape, axis = self._graph.shape(name), self._axis(name)
            if shape is None:
                raise ValueError(f"the shape of {name!r} is unknown")
            sizes = tuple(
                self._height if place == axis else dim if isinstance(dim, int) else _UNKNOWN
                for place, dim in enumerate(shape)
            )
            if math.prod(sizes) > _MOST_ELEMENTS:
                raise ValueError("too many elements")
            if not agree or sizes not in by_shape:
                by_shape[sizes] = deviation * generator.standard_normal(sizes)
            kind = onnx.helper.tensor_dtype_to_np_dtype(self._graph.dtype(name))
            values[name] = by_shape[sizes].astype(kind)
        return values

    def _run(self, draws: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        from onnx.reference import ReferenceEvaluator

        names = [output.name for output in self._model.graph.output]
        tables: dict[str, list[np.ndarray]] = {name: [] for name in self.chain}
        try:
            if self._evaluator is None:
                self._evaluator = ReferenceEvaluator(self._model)
            for feeds in draws:
                with np.errstate(all="ignore"):
                    arrays = dict(zip(names, self._evaluator.run(names, feeds), strict=True))
                for name in self.chain:
                    form, array = self.form(name), arrays.get(name, feeds.get(name))
                    if form is None or array is None:
                        raise ValueError(f"{name!r} was not computed")
                    tables[name].append(form.table(np.asarray(array)))
        except Exception as error:
            raise ValueError(f"the end of the graph does not run: {error}") from error
        joined = {name: np.concatenate(parts) for name, parts in tables.items()}
        if len({len(table) for table in joined.values()}) != 1:
            raise ValueError("rows are not kept apart")
        return joined


def _keep_fractions(model: onnx.ModelProto, graph: Graph) -> None:
    """Compute x / scale + zero where a node quantizes x, and its inverse where one dequantizes, in place."""
    op, nodes = onnx.helper.make_node, []
    for node in model.graph.node:
        quantizes = node.op_type == "QuantizeLinear"
        computed = node.op_type == "DequantizeLinear" and not graph.is_constant(node.input[0])
        scale = graph.constant(node.input[1]) if quantizes or computed else None
        if scale is None or np.size(scale) != 1:
            nodes.append(node)
            continue
        value, output = node.input[0], node.output[0]
        zero = f"{output}/zero"
        if len(node.input) > 2 and node.input[2]:
            nodes.append(op("CastLike", [node.input[2], node.input[1]], [zero]))
        else:
            nodes.append(op("Sub", [node.input[1], node.input[1]], [zero]))
        first, second = (
            (("Div", node.input[1]), ("Add", zero)) if quantizes else (("Sub", zero), ("Mul", node.input[1]))
        )
        nodes.append(op(first[0], [value, first[1]], [f"{output}/step"]))
        nodes.append(op(second[0], [f"{output}/step", second[1]], [output]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _finite(tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of tables that are finite in all of them, where there are enough: exponentials of large numbers may
    not be."""
    sound = np.logical_and.reduce([np.isfinite(table).all(axis=1) for table in tables.values()])
    return {name: table[sound] for name, table in tables.items()} if sound.sum() >= _FEWEST_ROWS else tables


def mixes(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a linear layer may read probabilities, as one that adds up or averages them does.

    What it reads is followed back to the next layer with weights, through products with constants alone.
    """
    queue = [name for name in node.input[:2] if not graph.is_constant(name)]
    for _ in range(_MIXED_NODES):
        producer = graph.producer.get(queue.pop()) if queue else None
        if producer is None or producer.domain not in ("", "ai.onnx"):
            continue
        if producer.op_type in _PROBABILITY or producer.op_type == "Exp":
            return True
        varying = [name for name in producer.input if name and not graph.is_constant(name)]
        if producer.op_type in _MIXING or (len(varying) == 1 and producer.op_type not in _BOUNDARY):
            queue += varying
    return False
