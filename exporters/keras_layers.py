"""Which layer of a Keras model is explained where none is named, and which ones could be: maps, and rows of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from onnxcam.errors import LayerError, ModelError
from onnxcam.exporters import keras_capture, parity
from onnxcam.exporters.keras_module import Call, Target, Watched
from onnxcam.graph import edit
from onnxcam.graph import layers as target_layers
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import input_layout
from onnxcam.graph.load import serialize
from onnxcam.graph.normalize import prepare
from onnxcam.graph.view import Graph
from onnxcam.network import readout as class_scores
from onnxcam.network.input_size import sized
from onnxcam.network.layout import Layout
from onnxcam.network.network import Network
from onnxcam.network.pyramid import levels_of
from onnxcam.runtime import open_session, run

# the layers usually explained in these networks, by the beginning of the model's name
HABITS = {
    "vgg16": "block5_conv3",
    "resnet50": "conv5_block3_out",
    "efficientnetb0": "top_conv",
    "mobilenetv2": "Conv_1",
}
# its outputs of four dimensions are an attention's heads
_HEADS = "EinsumDense"
_POOLING = ("Pooling", "Pool", "Dropout", "ZeroPadding", "Flatten", "Reshape", "InputLayer", "Random", "UpSampling")


def default(
    watched: Watched, calls: Sequence[Call], picture: np.ndarray, names: Sequence[str], place: int, opset: int | None
) -> tuple[list[Target], keras_capture.Captured]:
    """The default layer, and the model captured with it."""
    guess = _last_spatial(calls)
    usual = _habit(watched, calls, guess)
    layer = usual or guess
    if layer is None:
        raise ModelError(
            "the model has no spatial layer: no layer before the scores returns a map [N, h, w, C] with several "
            "positions or tokens [N, T, C], so there is nothing a heatmap could be computed at"
        )
    captured = keras_capture.capture(watched, picture, [target_of(layer)], names, opset)
    if usual is not None:
        return [target_of(usual)], captured
    better = _by_graph(captured, calls, picture, place)
    if better is None or (better.name, better.index) == (layer.name, layer.index):
        return [target_of(layer)], captured
    layer = _habit(watched, calls, better) or better
    return [target_of(layer)], keras_capture.capture(watched, picture, [target_of(layer)], names, opset)


def target_of(call: Call) -> Target:
    assert call.value is not None
    return Target(call.name, call.name, call.index, tuple(call.value.shape), call.layout)


def _last_spatial(calls: Sequence[Call]) -> Call | None:
    """The last layer that returns a map, else tokens; pooling and layers that only move values do not count."""
    leaves = [call for call in reversed(calls) if call.leaf]
    return next(filter(_spatial, leaves), next(filter(_tokens, leaves), None))


def _habit(watched: Watched, calls: Sequence[Call], default: Call | None) -> Call | None:
    """The layer usually explained in the network that the default layer lies in, None for other networks."""
    if default is None:
        return None
    owner, _, _ = default.name.rpartition("/")
    model = watched.layers[owner][0] if owner else watched.root
    for beginning, usual in HABITS.items():
        if str(model.name).startswith(beginning) and str(model.name)[len(beginning) :][:1] in ("", "_"):
            path = f"{owner}/{usual}" if owner else usual
            return next((call for call in reversed(calls) if call.name == path), None)
    return None


def _by_graph(captured: keras_capture.Captured, calls: Sequence[Call], picture: np.ndarray, place: int) -> Call | None:
    """The layer that returns the default layer's value of the graph: the last convolution, followed on.

    Layers are compared with that value by numbers. Of several that return the same, the first is taken, and inner
    layers before the models around them.
    """
    graph = prepare(captured.model)
    scores = class_scores.find(graph, captured.outputs[place]).value
    fitted = sized(graph, scores, likely=Layout(input_layout(graph, keras_capture.INPUT)).size(picture.shape))
    graph, layer = fitted.graph, target_layers.default(fitted.layers or ())
    return _calls_of(graph, [layer], calls, picture)[0]


def of_task(
    watched: Watched,
    calls: Sequence[Call],
    picture: np.ndarray,
    names: Sequence[str],
    opset: int | None,
    *,
    scores: str | None,
    task: str | None,
    boxes_output: str | None,
) -> tuple[list[Target], keras_capture.Captured]:
    """The default layers of a model that is no classifier, and the model captured with them: where the head begins, on
    each level of a feature pyramid, as of an ONNX file.

    Arguments:
        scores, task, boxes_output: as of `onnxcam.augment`.
    """
    captured = keras_capture.capture(watched, picture, [], names, opset)
    network = Network(captured.model, scores=scores, task=task, boxes_output=boxes_output)
    size = Layout(input_layout(network.graph, keras_capture.INPUT)).size(picture.shape)
    fitted = sized(network.graph, network.readout.value, likely=size)
    every = fitted.layers or ()
    levels = levels_of(fitted.graph, keras_capture.INPUT, network.readout, every)
    layers = [level.layer for level in levels] or [target_layers.default(every)]
    matched = [call for call in _calls_of(fitted.graph, layers, calls, picture) if call is not None]
    matched = matched or [call for call in [_last_spatial(calls)] if call is not None]
    if not matched:
        raise ModelError(
            "the model has no spatial layer: no layer returns a map [N, h, w, C] with several positions or tokens "
            "[N, T, C], so there is nothing a heatmap could be computed at"
        )
    targets = list(dict.fromkeys(target_of(call) for call in matched))
    return targets, keras_capture.capture(watched, picture, targets, names, opset)


def _calls_of(graph: Graph, layers: Sequence[Layer], calls: Sequence[Call], picture: np.ndarray) -> list[Call | None]:
    """The layer that returns the value of each layer of the graph; None where none does."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph.model)
    present = {output.name for output in exposed.graph.output}
    exposed.graph.output.extend(
        edit.info(layer.value, graph.dtype(layer.value), layer.shape) for layer in layers if layer.value not in present
    )
    session = open_session(serialize(exposed), ["CPUExecutionProvider"])
    values = run(session, [layer.value for layer in layers], {keras_capture.INPUT: picture})
    return [_nearest(layer, values[layer.value], calls) for layer in layers]


def _nearest(layer: Layer, value: np.ndarray, calls: Sequence[Call]) -> Call | None:
    """The layer that returns a value of the graph, told by the numbers."""
    if value.ndim == 4:
        value = Layout.of_layer(layer).to_canonical(value)
    near = []
    for order, call in enumerate(calls):
        returned = call.value
        if returned is not None and returned.ndim == 4:
            returned = call.layout.to_canonical(returned)
        if returned is not None and returned.shape == value.shape and call.name:
            far = float(parity.distance(np.asarray(returned), value).max())
            if far < parity.TOLERANCE:
                near.append((not call.leaf, order, call))
    return min(near, key=lambda match: match[:2])[2] if near else None


def candidates(calls: Sequence[Call], default: Target) -> list[Call]:
    """The last call of every inner layer, pooling excepted, that returns a map with several positions.

    Layers of as many tokens as the default layer's count up to that layer: after it tokens no longer reach the scores.
    """
    layers: dict[str, Call] = {}
    passed = False
    for call in calls:
        alike = call.value is not None and len(default.shape) == 3 and call.value.shape[1:2] == default.shape[1:2]
        tokens = alike and _tokens(call) and not passed
        if call.leaf and (_spatial(call) or tokens):
            layers.pop(call.name, None)
            layers[call.name] = call
        passed = passed or (call.name, call.index) == (default.path, default.index)
    return list(layers.values())


def grid(captured: keras_capture.Captured, target: Target, value: str) -> tuple[tuple[int, int] | None, int]:
    """How the tokens of a captured layer lie on the picture, and how many come before them."""
    layer = Layer(target.name, value, layout="NTC", shape=(keras_capture.BATCH, *target.shape[1:]))
    try:
        layer = target_layers.describe_layer(prepare(captured.model), layer)
    except LayerError:
        return None, 0
    return layer.grid, layer.prefix_tokens


def _tokens(call: Call) -> bool:
    shape = () if call.value is None else call.value.shape
    return len(shape) == 3 and shape[1] >= 4 and not any(word in type(call.layer).__name__ for word in _POOLING)


def _spatial(call: Call) -> bool:
    shape = () if call.value is None else call.value.shape
    kind = type(call.layer).__name__
    several = len(shape) == 4 and math.prod(call.layout.size(shape)) > 1
    return several and kind != _HEADS and not any(word in kind for word in _POOLING)
