"""A classifier taken apart at a layer: the head up to it, the tail behind it, and the tail's backward pass.

    head      picture -> scores, and the values that pass the cut
    tail      cut values -> scores
    backward  cut values, cotangent of the scores -> gradient at the layer

What needs many evaluations at a layer (several classes, several methods, changed channels) runs the head once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcam.autodiff import guided
from onnxcam.autodiff.seed import chosen_cotangent, score_cotangent, unrounded
from onnxcam.autodiff.sweep import path, sweep
from onnxcam.cam import methods as cam
from onnxcam.errors import LayerError, ModelError
from onnxcam.graph import attention, edit, layers
from onnxcam.graph.biases import biases
from onnxcam.graph.builder import Builder
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import input_layout
from onnxcam.graph.load import Source
from onnxcam.graph.shape_inference import refresh
from onnxcam.graph.view import Graph
from onnxcam.network import manifest
from onnxcam.network import readout as scores
from onnxcam.network.explainable import canonical, held_scores, layer_of, picture_input, restore
from onnxcam.network.names import (
    ACTIVATIONS,
    BLOCK,
    COTANGENT,
    CURVATURE,
    DIRECTION,
    GRADIENT,
    INPUT,
    MAP,
    SCORES,
    TARGET,
)
from onnxcam.network.network import prepare
from onnxcam.network.split import cut_at

_AFFINE = {
    "Add", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Dropout", "Flatten", "Gemm",
    "GlobalAveragePool", "Identity", "MatMul", "Mul", "Neg", "Pad", "ReduceMean", "ReduceSum", "Reshape", "Slice",
    "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze", "Concat", "Split", "Gather", "Expand",
}  # fmt: skip
# operators that leave whole numbers what they are, up to the Cast that makes floats of them
_MOVING = {"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
           "Transpose", "Unsqueeze"}  # fmt: skip
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
# affine in all of their inputs together
_JOINTLY = {"Add", "Sub", "Sum", "Concat"}


@dataclass(frozen=True)
class Cut:
    """What passes from head to tail.

    Attributes:
        layer: the target layer.
        values: graph values, the layer's own among them, in graph order.
        by_row: for each of them, whether it has one row per picture.
        free: whether all have and a batch may be of any size, so that rows can be repeated and put together freely.
        affine: whether the scores are an affine function of the layer: its gradient then says everything.
    """

    layer: Layer
    values: tuple[str, ...]
    by_row: tuple[bool, ...]
    free: bool
    affine: bool

    @property
    def flags(self) -> dict[str, bool]:
        """`by_row` by value."""
        return dict(zip(self.values, self.by_row, strict=True))


class Anatomy:
    """One classifier, from which the parts are made.

    Arguments:
        source: a classifier or an explainable model, path, bytes or `ModelProto`.

    Raises:
        ModelError: not an image classifier.
    """

    def __init__(self, source: Source) -> None:
        graph = prepare(source)
        held = manifest.read(graph.model)
        known: dict[str, Layer] = {}
        asked = None
        if held is not None:
            graph = restore(graph, held)
            asked = held_scores(graph, held)
            known = {entry["name"]: layer_of(entry) for entry in held["layers"] if entry.get("value")}
        self._graph = graph
        self._known = known
        self.picture = picture_input(graph)
        self.scores = scores.find(graph, asked)
        self._cuts: dict[str, Cut] = {}
        self._floating: Graph | None = None

    @property
    def score_type(self) -> np.dtype[Any]:
        """The element type of the scores."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self._graph.dtype(self.scores.value)))

    def cut(self, name: str) -> Cut:
        """Where the model is cut for a layer, `INPUT` for the picture itself.

        Raises:
            LayerError: no such layer.
        """
        if name not in self._cuts:
            self._cuts[name] = self._cut(name)
        return self._cuts[name]

    def head(self, names: Iterable[str] = ()) -> onnx.ModelProto:
        """Picture in; scores `[N, K]` as `SCORES` and the cut values of these layers out."""
        graph = self._graph
        values = list(dict.fromkeys(value for name in names for value in self.cut(name).values))
        values = [value for value in values if value != self.picture.name]
        outputs = [edit.info(value, graph.dtype(value), graph.shape(value)) for value in values]
        return self._scoring([self.picture], outputs)

    def tail(self, name: str) -> onnx.ModelProto:
        """Cut values in; scores `[N, K]` as `SCORES` out."""
        return self._scoring(self._inputs(self.cut(name)), [], self._graph_at(name))

    def backward(self, name: str, *, relu: str = "plain", of_class: bool = False) -> onnx.ModelProto:
        """Cut values and `COTANGENT` `[N, K]` in; `GRADIENT`, in the layer's own shape, out.

        Arguments:
            relu: `plain`, or `guided`: at every ReLU only what is positive flows back
                (guided backpropagation, https://arxiv.org/abs/1412.6806).
            of_class: instead of `COTANGENT` take `TARGET`, a class per row, int64 `[N]`, none negative: of a last
                linear layer only their rows are read.

        Raises:
            UnsupportedOperator: an operator between the layer and the scores has no gradient rule.
        """
        graph, cut = self._graph_at(name), self.cut(name)
        op, start, seed, given = self._start(graph, of_class)
        replaced = guided.RULES if relu == "guided" else {}
        (gradient,) = sweep(op, start, seed, [cut.layer.value], replaced=replaced)
        op.dtype = graph.dtype(cut.layer.value)
        op.Identity(gradient, name=GRADIENT)
        output = edit.info(GRADIENT, graph.dtype(cut.layer.value), graph.shape(cut.layer.value))
        return _part(graph, op, [*self._inputs(cut), given], [output])

    def class_maps(self, name: str, methods: Sequence[str], repeated: bool) -> onnx.ModelProto:
        """Cut values and `TARGET`, int64 `[N]`, in; a map `[N, h, w]` per graph method out, before its ReLU.

        Outputs are called `MAP` and the method's name behind it.

        Arguments:
            repeated: the cut values have N / k rows, each of which serves k classes in a row.
        """
        graph, cut = self._graph_at(name), self.cut(name)
        op, start, seed, given = self._start(graph, True)
        (gradient,) = sweep(op, start, seed, [cut.layer.value])
        a, da = (canonical(op, cut.layer, value) for value in (cut.layer.value, gradient))
        op.dtype = onnx.TensorProto.FLOAT
        outputs = []
        for method in methods:
            op.Identity(cam.find_graph(method).function(op, a, da), name=MAP + method)
            outputs.append(edit.info(MAP + method, onnx.TensorProto.FLOAT, ["N", "h", "w"]))
        model = _part(graph, op, [*self._inputs(cut), given], outputs)
        if repeated:
            _repeat_rows(model, cut.values)
        return model

    def curvature(self, name: str) -> onnx.ModelProto | None:
        """Cut values, `COTANGENT` and `DIRECTION` in; `CURVATURE`, the change of the gradient that way, out.

        Both are of the layer's own shape. None where the gradient does not vary with the layer.

        Raises:
            UnsupportedOperator: an operator of the backward pass has no gradient rule.
        """
        graph = refresh(self.backward(name))
        value = self.cut(name).layer.value
        if value not in path(graph, GRADIENT, [value])[1]:
            return None
        op = Builder(graph, prefix="onnxcam/second")
        (found,) = sweep(op, GRADIENT, DIRECTION, [value])
        op.Identity(found, name=CURVATURE)
        model = graph.model
        kind, shape = graph.dtype(value), graph.shape(value)
        model.graph.input.append(edit.info(DIRECTION, kind, shape))
        del model.graph.output[:]
        model.graph.output.append(edit.info(CURVATURE, kind, shape))
        edit.add(model, op)
        edit.prune(model)
        return model

    def aimed(self, *, relu: str = "plain") -> onnx.ModelProto:
        """Picture and `TARGET`, int64 `[N]`, in; `SCORES` and the `GRADIENT` of one class's score at the picture out.

        The forward values serve both: an input gradient costs one forward and one backward pass. A negative target is
        the row's best class.
        """
        graph, cut = self._graph_at(INPUT), self.cut(INPUT)
        op = Builder(graph)
        start, seed = score_cotangent(op, self.scores, self._flat_scores(op), TARGET)
        replaced = guided.RULES if relu == "guided" else {}
        (gradient,) = sweep(op, start, seed, [cut.layer.value], replaced=replaced)
        op.dtype = graph.dtype(cut.layer.value)
        op.Identity(gradient, name=GRADIENT)
        shape = graph.shape(cut.layer.value)
        target = edit.info(TARGET, onnx.TensorProto.INT64, [(shape or ("N",))[0]])
        output = edit.info(GRADIENT, graph.dtype(cut.layer.value), shape)
        return _part(graph, op, [*self._inputs(cut), target], [self._scores_info(graph), output])

    def constants(self) -> tuple[onnx.ModelProto, list[tuple[str, str]]]:
        """What the picture and every additive constant contribute to the scores, see `onnxcam.graph.biases`.

        Returns:
            a model, picture and `COTANGENT` in, one output per contribution, each the gradient times the value; and of
            every output its name and layout (`NCHW` or `NHWC`), the picture's first.
        """
        graph, cut = self._graph_at(INPUT), self.cut(INPUT)
        op, seed = self._cotangent(graph)
        picture = cut.layer.value
        held = biases(graph, picture, self.scores.value)
        gradients = sweep(op, unrounded(graph, self.scores.value), seed, [picture, *(term.value for term in held)])
        values = [picture, *(term.array for term in held)]
        outputs = []
        for index, (gradient, value) in enumerate(zip(gradients, values, strict=True)):
            of = picture if index == 0 else held[index - 1].value
            op.dtype = graph.dtype(of)
            op.Mul(gradient, value, name=f"onnxcam.contribution.{index}")
            outputs.append(edit.info(f"onnxcam.contribution.{index}", graph.dtype(of), graph.shape(of)))
        model = _part(graph, op, [*self._inputs(cut), self._cotangent_info(graph)], outputs)
        layouts = [cut.layer.layout or "NCHW", *(term.layout for term in held)]
        return model, [(output.name, layout) for output, layout in zip(outputs, layouts, strict=True)]

    def attention(self) -> tuple[onnx.ModelProto, list[attention.Block]]:
        """Picture in; of each transformer block its attention and its output out, and the cut values of `BLOCK`.

        Raises:
            LayerError: no attention over all tokens was found.
        """
        graph = self._graph
        held = attention.blocks(graph, self.picture.name, self.scores.value)
        names = [name for block in held for name in (block.attention, block.output)]
        wanted = dict.fromkeys([*names, *self.cut(BLOCK).values])
        outputs = [edit.info(name, graph.dtype(name), graph.shape(name)) for name in wanted]
        return _part(graph, Builder(graph), [self.picture], outputs), held

    def attention_backward(self) -> onnx.ModelProto:
        """Picture and a cotangent per block's output (`BLOCK.cotangent.l`) in; the gradients of its attention out."""
        graph = self._graph
        op = Builder(graph)
        inputs, outputs = [self.picture], []
        for index, block in enumerate(attention.blocks(graph, self.picture.name, self.scores.value)):
            kind = graph.dtype(block.output)
            given = edit.info(f"{BLOCK}.cotangent.{index}", kind, graph.shape(block.output))
            (gradient,) = sweep(op, block.output, given.name, [block.attention])
            op.dtype = graph.dtype(block.attention)
            op.Identity(gradient, name=f"{BLOCK}.gradient.{index}")
            inputs.append(given)
            shape = graph.shape(block.attention)
            outputs.append(edit.info(f"{BLOCK}.gradient.{index}", graph.dtype(block.attention), shape))
        return _part(graph, op, inputs, outputs)

    def _start(self, graph: Graph, of_class: bool) -> tuple[Builder, str, str, onnx.ValueInfoProto]:
        """A builder, the value to go back from, its cotangent, and the input that gives it."""
        if not of_class:
            op, seed = self._cotangent(graph)
            return op, unrounded(graph, self.scores.value), seed, self._cotangent_info(graph)
        op = Builder(graph)
        op.dtype = graph.dtype(self.scores.value)
        start, seed = chosen_cotangent(op, self.scores, TARGET)
        rows = (graph.shape(self.scores.value) or ("N",))[0]
        return op, start, seed, edit.info(TARGET, onnx.TensorProto.INT64, [rows])

    def _cotangent(self, graph: Graph) -> tuple[Builder, str]:
        """A builder, and `COTANGENT` in the shape of the scores."""
        op = Builder(graph)
        op.dtype = graph.dtype(self.scores.value)
        shape = graph.shape(self.scores.value) or ("N", None)
        return op, COTANGENT if len(shape) == 2 else op.reshape_like(COTANGENT, self.scores.value)

    def _flat_scores(self, op: Builder) -> str:
        """`SCORES`, `[N, K]`."""
        op.dtype = op.graph.dtype(self.scores.value)
        if len(op.graph.shape(self.scores.value) or ("N", None)) == 2:
            op.Identity(self.scores.value, name=SCORES)
            return self.scores.value
        return op.Flatten(self.scores.value, axis=1, name=SCORES)

    def _scoring(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        further: Sequence[onnx.ValueInfoProto],
        graph: Graph | None = None,
    ) -> onnx.ModelProto:
        graph = graph or self._graph
        op = Builder(graph)
        self._flat_scores(op)
        return _part(graph, op, inputs, [self._scores_info(graph), *further], keep=False)

    def _scores_info(self, graph: Graph) -> onnx.ValueInfoProto:
        value = self.scores.value
        return edit.info(SCORES, graph.dtype(value), [(graph.shape(value) or ("N",))[0], self.scores.columns])

    def _cotangent_info(self, graph: Graph) -> onnx.ValueInfoProto:
        value = self.scores.value
        return edit.info(COTANGENT, graph.dtype(value), [(graph.shape(value) or ("N",))[0], self.scores.columns])

    def _inputs(self, cut: Cut) -> list[onnx.ValueInfoProto]:
        graph = self._graph_at(cut.layer.name)
        return [edit.info(value, graph.dtype(value), graph.shape(value)) for value in cut.values]

    def _graph_at(self, name: str) -> Graph:
        """The graph behind a cut. Whole numbers have no gradient: behind the picture they are taken as floats."""
        if name != INPUT or self._graph.dtype(self.picture.name) in _FLOATS:
            return self._graph
        if self._floating is None:
            self._floating = self._float_picture()
        return self._floating

    def _float_picture(self) -> Graph:
        """The same model fed with floats, where nothing but a Cast asks for the integers."""
        graph = self._graph
        waiting = [self.picture.name]
        while waiting:
            for node in graph.consumers.get(waiting.pop(), []):
                if node.op_type in _MOVING:
                    waiting += node.output
                elif node.op_type not in ("Cast", "CastLike", "Shape", "Size"):
                    raise ModelError(
                        f"the model computes {node.op_type} ({node.name!r}) with the whole numbers of its input "
                        f"{self.picture.name!r}: there is no gradient at the input; use a method of a layer"
                    )
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        for held in model.graph.input:
            if held.name == self.picture.name:
                held.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        del model.graph.value_info[:]
        return refresh(model)

    def _cut(self, name: str) -> Cut:
        graph = self._graph
        rows = (graph.shape(self.picture.name) or (None,))[0]
        if name == INPUT:
            layout = input_layout(graph, self.picture.name)
            layer = Layer(INPUT, self.picture.name, layout=layout, shape=graph.shape(self.picture.name))
            return Cut(layer, (self.picture.name,), (True,), not isinstance(rows, int), False)
        layer = self._last_block() if name == BLOCK else self._layer(name)
        values = cut_at(graph, self.picture.name, layer.value, [self.scores.value])
        by_row = [rows is not None and (graph.shape(value) or (None,))[:1] == (rows,) for value in values]
        free = not isinstance(rows, int) and all(by_row)
        return Cut(layer, values, tuple(by_row), free, self._affine(layer.value))

    def _layer(self, name: str) -> Layer:
        try:
            return layers.resolve(self._graph, self._known.get(name, name), self.scores.value)
        except LayerError as error:
            exposed = f"; the file itself exposes {list(self._known)}" if self._known else ""
            raise LayerError(f"{error}{exposed}") from error

    def _last_block(self) -> Layer:
        """The last block's output as a layer, whose tail reads every block's."""
        last = attention.blocks(self._graph, self.picture.name, self.scores.value)[-1]
        layer = Layer(BLOCK, last.output, layout="NTC")
        for known in self._known.values():  # how the file says that as many tokens lie
            grid, prefix = known.grid, known.prefix_tokens
            if known.layout == "NTC" and grid is not None and grid[0] * grid[1] + prefix == last.tokens:
                layer = Layer(BLOCK, last.output, layout="NTC", grid=grid, prefix_tokens=prefix)
        return layers.resolve(self._graph, layer, self.scores.value)

    def _affine(self, value: str) -> bool:
        """Whether only operators that are affine in their data lie between a value and the scores."""
        graph = self._graph
        nodes, _ = path(graph, self.scores.value, [value])
        reached = graph.downstream([value])
        for node in nodes:
            if node.op_type not in _AFFINE or node.domain not in ("", "ai.onnx"):
                return False
            places = [index for index, name in enumerate(node.input) if name in reached]
            if node.op_type in _JOINTLY:
                continue
            if places not in ([0], [1]) or (places == [1] and node.op_type not in ("Mul", "MatMul")):
                return False
            if node.op_type in ("Mul", "Div", "MatMul", "Gemm", "Conv", "ConvTranspose") and any(
                not graph.is_constant(other) for index, other in enumerate(node.input) if other and index not in places
            ):
                return False
        return True


def _part(
    graph: Graph,
    op: Builder,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    keep: bool = True,
) -> onnx.ModelProto:
    """What lies between inputs and outputs, with what the builder made; `keep` leaves inputs that nothing reads."""
    whole = onnx.ModelProto()
    whole.CopyFrom(graph.model)
    edit.add(whole, op)
    model = edit.extract(Graph(whole), inputs, outputs)
    if keep:
        present = {i.name for i in model.graph.input}
        model.graph.input.extend(i for i in inputs if i.name not in present)
    edit.prune(model)
    return model


def _repeat_rows(model: onnx.ModelProto, values: Sequence[str]) -> None:
    """Let inputs have a row for every k of `TARGET`: the model starts by repeating it k times in a row."""
    op = Builder(Graph(model), prefix="onnxcam/repeat")
    rows = op.Shape(TARGET)
    each = {}
    for name in values:
        shape = op.Shape(name)
        own, rest = op.Slice(shape, [0], [1]), op.Slice(shape, [1], [np.iinfo(np.int64).max])
        wide = op.Concat(own, op.Div(rows, own), rest, axis=0)
        each[name] = op.Reshape(op.Expand(op.Unsqueeze(name, [1]), wide), op.Concat([-1], rest, axis=0))
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = each.get(name, name)
    nodes = [*op.nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(op.initializers)
    for info in model.graph.input:
        if info.name in each and info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[0].dim_param = f"{TARGET}/once"
    del model.graph.value_info[:]


def maps(names: Sequence[str], terms: bool = False) -> onnx.ModelProto:
    """The maps of graph methods: `ACTIVATIONS` and `GRADIENT`, float32 `[N, C, h, w]`, in; one map per method out.

    Outputs are called after their methods, `[N, h, w]` before the ReLU; with `terms` what is summed over channels,
    `[N, C, h, w]`.
    """
    model = onnx.ModelProto()
    model.ir_version = 8
    model.opset_import.add(domain="", version=18)
    model.graph.name = "maps"
    shape = ["N", "C", "h", "w"]
    float32 = onnx.TensorProto.FLOAT
    reads = [ACTIVATIONS] + [GRADIENT] * any(cam.find_graph(name).gradient for name in names)
    model.graph.input.extend(edit.info(value, float32, shape) for value in reads)
    op = Builder(Graph(model))
    for name in names:
        method = cam.find_graph(name)
        emit = method.terms if terms and method.terms is not None else method.function
        op.Identity(emit(op, ACTIVATIONS, GRADIENT), name=name)
        model.graph.output.append(edit.info(name, float32, shape if terms else ["N", "h", "w"]))
    edit.add(model, op)
    return model
