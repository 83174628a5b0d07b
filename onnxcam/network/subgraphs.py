"""The graphs that a network is taken apart into: from one graph to another, no sessions.

    head      picture -> scores, and the values that pass a cut
    tail      cut values -> scores
    backward  cut values, cotangent of the scores -> gradient at the layer

What needs many evaluations at a layer (several classes, several methods, changed channels) runs the head once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx

from onnxcam.autodiff import guided
from onnxcam.autodiff.registry import Entry
from onnxcam.autodiff.seed import chosen_cotangent, score_cotangent, unrounded
from onnxcam.autodiff.sweep import path, sweep
from onnxcam.cam import methods as cam
from onnxcam.graph import edit
from onnxcam.graph.attention import Block, blocks
from onnxcam.graph.biases import biases
from onnxcam.graph.builder import Builder
from onnxcam.graph.shape_inference import refresh
from onnxcam.graph.tokens import window_of
from onnxcam.graph.view import Graph
from onnxcam.network.cut import Cut
from onnxcam.network.gram import LARGEST, emit_gram
from onnxcam.network.layout import Layout
from onnxcam.network.names import (
    ACTIVATIONS,
    BLOCK,
    COTANGENT,
    CURVATURE,
    DIRECTION,
    GRADIENT,
    GRAM,
    INPUT,
    MAP,
    MEAN,
    POWER,
    SCORES,
    TARGET,
)
from onnxcam.network.network import Network


def head(network: Network, layers: Iterable[str] = ()) -> onnx.ModelProto:
    """Picture in; scores `[N, K]` as `SCORES` and the cut values of these layers out."""
    graph, picture = network.graph, network.picture
    values = dict.fromkeys(value for name in layers for value in network.cut(name).values)
    exposed = [_info(graph, value) for value in values if value != picture.name]
    return _scoring(network, graph, [picture], exposed)


def tail(network: Network, layer: str) -> onnx.ModelProto:
    """Cut values in; scores `[N, K]` as `SCORES` out."""
    return _scoring(network, network.graph_from(layer), _inputs(network, network.cut(layer)), [])


def values(network: Network, names: Sequence[str]) -> onnx.ModelProto:
    """Picture in, as numbers that have a gradient; some values of the graph behind it out."""
    graph = network.graph_from(INPUT)
    inputs = _inputs(network, network.cut(INPUT))
    return _part(graph, Builder(graph), inputs, [_info(graph, name) for name in names])


def rest(network: Network, names: Sequence[str]) -> onnx.ModelProto:
    """The values at a cut of the graph behind the picture in; scores `[N, K]` as `SCORES` out."""
    graph = network.graph_from(INPUT)
    return _scoring(network, graph, [_info(graph, name) for name in names], [])


def value_from(network: Network, layer: str, value: str) -> onnx.ModelProto:
    """Cut values in; a value behind them out."""
    graph = network.graph_from(layer)
    return _part(graph, Builder(graph), _inputs(network, network.cut(layer)), [_info(graph, value)], keep=False)


def scores_from(network: Network, value: str) -> onnx.ModelProto:
    """A value from which alone the scores are computed in; scores `[N, K]` as `SCORES` out."""
    return _scoring(network, network.graph, [_info(network.graph, value)], [])


def backward(network: Network, layer: str, *, relu: str = "plain", of_class: bool = False) -> onnx.ModelProto:
    """Cut values and `COTANGENT` `[N, K]` in; `GRADIENT`, in the layer's own shape, out.

    Arguments:
        relu: `plain`, or `guided`: at every ReLU only what is positive flows back
            (guided backpropagation, https://arxiv.org/abs/1412.6806).
        of_class: instead of `COTANGENT` take `TARGET`, a class per row, int64 `[N]`, none negative: of a last
            linear layer only their rows are read.

    Raises:
        UnsupportedOperator: an operator between the layer and the scores has no gradient rule.
    """
    graph, cut = network.graph_from(layer), network.cut(layer)
    value = cut.layer.value
    op, start, seed, cotangent = _start(network, graph, of_class)
    (gradient,) = sweep(op, start, seed, [value], replaced=_rules(relu))
    op.dtype = graph.dtype(value)
    op.Identity(gradient, name=GRADIENT)
    return _part(graph, op, [*_inputs(network, cut), cotangent], [_info(graph, value, GRADIENT)])


def class_maps(network: Network, layer: str, methods: Sequence[str], repeated: bool) -> onnx.ModelProto:
    """Cut values and `TARGET`, int64 `[N]`, in; a map `[N, h, w]` per graph method out, before its ReLU.

    Outputs are called `MAP` and the method's name behind it.

    Arguments:
        repeated: the cut values have N / k rows, each of which serves k classes in a row.
    """
    graph, cut = network.graph_from(layer), network.cut(layer)
    value = cut.layer.value
    op, start, seed, target = _start(network, graph, True)
    (gradient,) = sweep(op, start, seed, [value])
    a, da = (cut.layout.emit_canonical(op, tensor, graph.dtype(value)) for tensor in (value, gradient))
    op.dtype = onnx.TensorProto.FLOAT
    outputs = []
    for method in methods:
        op.Identity(cam.find_graph(method).function(op, a, da), name=MAP + method)
        outputs.append(edit.info(MAP + method, onnx.TensorProto.FLOAT, ["N", "h", "w"]))
    model = _part(graph, op, [*_inputs(network, cut), target], outputs)
    if repeated:
        _repeat_rows(model, cut.values)
    return model


def curvature(network: Network, layer: str) -> onnx.ModelProto | None:
    """Cut values, `COTANGENT` and `DIRECTION` in; `CURVATURE`, the change of the gradient in that direction, out.

    Both are of the layer's own shape. None where the gradient does not vary with the layer.

    Raises:
        UnsupportedOperator: an operator of the backward pass has no gradient rule.
    """
    graph = refresh(backward(network, layer))
    value = network.cut(layer).layer.value
    if value not in path(graph, GRADIENT, [value])[1]:
        return None
    op = Builder(graph, prefix="onnxcam/second")
    (second,) = sweep(op, GRADIENT, DIRECTION, [value])
    op.Identity(second, name=CURVATURE)
    model = graph.model
    model.graph.input.append(_info(graph, value, DIRECTION))
    del model.graph.output[:]
    model.graph.output.append(_info(graph, value, CURVATURE))
    edit.add(model, op)
    edit.prune(model)
    return model


def input_gradient(network: Network, *, relu: str = "plain") -> onnx.ModelProto:
    """Picture and `TARGET`, int64 `[N]`, in; `SCORES` and the `GRADIENT` of one class's score at the picture out.

    The forward values serve both: an input gradient costs one forward and one backward pass. A negative target is
    the row's best class.
    """
    graph, cut = network.graph_from(INPUT), network.cut(INPUT)
    picture = cut.layer.value
    op = Builder(graph)
    start, seed = score_cotangent(op, network.readout, _emit_scores(network, op), TARGET)
    (gradient,) = sweep(op, start, seed, [picture], replaced=_rules(relu))
    op.dtype = graph.dtype(picture)
    op.Identity(gradient, name=GRADIENT)
    target = edit.info(TARGET, onnx.TensorProto.INT64, [(graph.shape(picture) or ("N",))[0]])
    outputs = [_scores_info(network, graph, SCORES), _info(graph, picture, GRADIENT)]
    return _part(graph, op, [*_inputs(network, cut), target], outputs)


def component(network: Network, layer: str, *, gradient: bool) -> onnx.ModelProto | None:
    """Picture in; `SCORES` and of a layer what its first component over the places is computed from out.

    That is `GRAM`, `POWER` (see `onnxcam.network.gram`) and `MEAN`, the mean over channels, float64 `[N, h, w]`.

    Arguments:
        gradient: of the layer times the gradient of a class's score: `TARGET`, int64 `[N]`, is an input too, of which
            a negative one is the row's best class.

    Returns:
        None where there are more places than channels, or many, or how many is not known.
    """
    graph, cut, picture = network.graph, network.cut(layer), network.picture
    value, rows = cut.layer.value, (graph.shape(picture.name) or ("N",))[0]
    sides = [dim for dim in (graph.shape(value) or ())[1:] if isinstance(dim, int)]
    if cut.layout.name != "NCHW" or len(sides) != 3:
        return None
    channels, height, width = sides
    if height * width > min(channels, LARGEST) or graph.dtype(value) != onnx.TensorProto.FLOAT or not cut.flags[value]:
        return None
    op = Builder(graph)
    flat, values, inputs = _emit_scores(network, op), value, [picture]
    if gradient:
        start, seed = score_cotangent(op, network.readout, flat, TARGET)
        (da,) = sweep(op, start, seed, [value])
        values = op.Mul(da, value)
        inputs.append(edit.info(TARGET, onnx.TensorProto.INT64, [rows]))
    op.dtype = onnx.TensorProto.DOUBLE
    op.ReduceMean(op.Cast(values, to=onnx.TensorProto.DOUBLE), [1], keepdims=0, name=MEAN)
    emit_gram(op, values, by_places=True, power=True)
    outputs = [edit.info(MEAN, onnx.TensorProto.DOUBLE, [rows, height, width])]
    outputs += [edit.info(name, onnx.TensorProto.DOUBLE, [rows, "n", "n"]) for name in (GRAM, POWER)]
    return _part(graph, op, inputs, [_scores_info(network, graph, SCORES), *outputs])


def activations(network: Network, layers: Iterable[str], *, scores: bool = True) -> onnx.ModelProto:
    """Picture in; scores `[N, K]` as `SCORES` and the values of these layers themselves out.

    Arguments:
        scores: without, the graph ends at the last of the layers.
    """
    graph, picture = network.graph, network.picture
    exposed = [_info(graph, value) for value in dict.fromkeys(network.cut(name).layer.value for name in layers)]
    if scores:
        return _scoring(network, graph, [picture], exposed)
    return _part(graph, Builder(graph), [picture], exposed)


def value_gradient(network: Network, layer: str) -> onnx.ModelProto:
    """Picture and `COTANGENT`, of the layer's own shape, in; `GRADIENT` at the picture out.

    Raises:
        UnsupportedOperator: an operator between the picture and the layer has no gradient rule.
    """
    graph, cut = network.graph_from(INPUT), network.cut(INPUT)
    picture, value = cut.layer.value, network.cut(layer).layer.value
    op = Builder(graph)
    op.dtype = graph.dtype(value)
    (gradient,) = sweep(op, value, COTANGENT, [picture])
    op.dtype = graph.dtype(picture)
    op.Identity(gradient, name=GRADIENT)
    inputs = [*_inputs(network, cut), _info(graph, value, COTANGENT)]
    return _part(graph, op, inputs, [_info(graph, picture, GRADIENT)])


def contributions(network: Network) -> tuple[onnx.ModelProto, list[tuple[str, Layout]]]:
    """What the picture and every additive constant contribute to the scores, see `onnxcam.graph.biases`.

    Returns:
        a model, picture and `COTANGENT` in, one output per contribution, each the gradient times the value; and of
        every output its name and layout, the picture's first.
    """
    graph, cut = network.graph_from(INPUT), network.cut(INPUT)
    op, seed = _cotangent(network, graph)
    picture, scores = cut.layer.value, network.readout.value
    terms = biases(graph, picture, scores)
    values = [picture, *(term.value for term in terms)]
    gradients = sweep(op, unrounded(graph, scores), seed, values)
    infos = []
    for index, (gradient, value) in enumerate(zip(gradients, values, strict=True)):
        op.dtype = graph.dtype(value)
        factor = picture if index == 0 else terms[index - 1].array
        op.Mul(gradient, factor, name=f"onnxcam.contribution.{index}")
        infos.append(_info(graph, value, f"onnxcam.contribution.{index}"))
    model = _part(graph, op, [*_inputs(network, cut), _scores_info(network, graph, COTANGENT)], infos)
    layouts = [cut.layout, *(Layout(term.layout, window=window_of(graph, term.value)) for term in terms)]
    return model, [(info.name, layout) for info, layout in zip(infos, layouts, strict=True)]


def attention(network: Network) -> tuple[onnx.ModelProto, list[Block]]:
    """Picture in; of each transformer block its attention and its output out, and the cut values of `BLOCK`.

    Raises:
        LayerError: no attention over all tokens was found.
    """
    graph, picture = network.graph, network.picture
    every = blocks(graph, picture.name, network.readout.value)
    values = [value for block in every for value in (block.attention, block.output)]
    outputs = [_info(graph, value) for value in dict.fromkeys([*values, *network.cut(BLOCK).values])]
    return _part(graph, Builder(graph), [picture], outputs), every


def attention_backward(network: Network) -> onnx.ModelProto:
    """Picture and a cotangent per block's output (`BLOCK.cotangent.l`) in; the gradients of its attention out."""
    graph = network.graph
    op = Builder(graph)
    inputs, outputs = [network.picture], []
    for index, block in enumerate(blocks(graph, network.picture.name, network.readout.value)):
        cotangent = _info(graph, block.output, f"{BLOCK}.cotangent.{index}")
        (gradient,) = sweep(op, block.output, cotangent.name, [block.attention])
        op.dtype = graph.dtype(block.attention)
        op.Identity(gradient, name=f"{BLOCK}.gradient.{index}")
        inputs.append(cotangent)
        outputs.append(_info(graph, block.attention, f"{BLOCK}.gradient.{index}"))
    return _part(graph, op, inputs, outputs)


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


def _rules(relu: str) -> dict[str, Entry]:
    """The gradient rules that stand in for the usual ones."""
    return guided.RULES if relu == "guided" else {}


def _start(network: Network, graph: Graph, of_class: bool) -> tuple[Builder, str, str, onnx.ValueInfoProto]:
    """A builder, the value that the sweep starts from, its cotangent, and the input that the cotangent comes from."""
    if not of_class:
        op, seed = _cotangent(network, graph)
        return op, unrounded(graph, network.readout.value), seed, _scores_info(network, graph, COTANGENT)
    readout = network.readout
    op = Builder(graph)
    op.dtype = graph.dtype(readout.value)
    start, seed = chosen_cotangent(op, readout, TARGET)
    rows = (graph.shape(readout.value) or ("N",))[0]
    return op, start, seed, edit.info(TARGET, onnx.TensorProto.INT64, [rows])


def _cotangent(network: Network, graph: Graph) -> tuple[Builder, str]:
    """A builder, and `COTANGENT` in the shape of the scores."""
    scores = network.readout.value
    op = Builder(graph)
    op.dtype = graph.dtype(scores)
    shape = graph.shape(scores) or ("N", None)
    return op, COTANGENT if len(shape) == 2 else op.reshape_like(COTANGENT, scores)


def _emit_scores(network: Network, op: Builder) -> str:
    """Emit `SCORES`, and return them as `[N, K]`."""
    scores = network.readout.value
    op.dtype = op.graph.dtype(scores)
    if len(op.graph.shape(scores) or ("N", None)) == 2:
        op.Identity(scores, name=SCORES)
        return scores
    return op.Flatten(scores, axis=1, name=SCORES)


def _scoring(
    network: Network,
    graph: Graph,
    inputs: Sequence[onnx.ValueInfoProto],
    exposed: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """The part of a graph from inputs to `SCORES`, and to further values."""
    op = Builder(graph)
    _emit_scores(network, op)
    return _part(graph, op, inputs, [_scores_info(network, graph, SCORES), *exposed], keep=False)


def _scores_info(network: Network, graph: Graph, name: str) -> onnx.ValueInfoProto:
    """An input or output of the scores' type, `[N, K]`."""
    readout = network.readout
    rows = (graph.shape(readout.value) or ("N",))[0]
    return edit.info(name, graph.dtype(readout.value), [rows, readout.columns or None])


def _info(graph: Graph, value: str, name: str | None = None) -> onnx.ValueInfoProto:
    """An input or output of a value's type and shape, called as the value or otherwise."""
    return edit.info(name or value, graph.dtype(value), graph.shape(value))


def _inputs(network: Network, cut: Cut) -> list[onnx.ValueInfoProto]:
    graph = network.graph_from(cut.layer.name)
    return [_info(graph, value) for value in cut.values]


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
        count, rest = op.Slice(shape, [0], [1]), op.Slice(shape, [1], [np.iinfo(np.int64).max])
        wide = op.Concat(count, op.Div(rows, count), rest, axis=0)
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
