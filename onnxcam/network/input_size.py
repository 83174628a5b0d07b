"""The input size of a model with dynamic height and width: a layer of tokens is a map only where its grid is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from onnxcam.errors import ModelError
from onnxcam.graph import dynamic_size, layout
from onnxcam.graph import layers as target_layers
from onnxcam.graph.dynamic_size import Size
from onnxcam.graph.layers import Layer
from onnxcam.graph.normalize import at_size
from onnxcam.graph.shape_inference import describe, refresh
from onnxcam.graph.tokens import shape_of
from onnxcam.graph.view import Graph
from onnxcam.network.manifest import ASSUMED, UNKNOWN

USUAL: Size = (224, 224)  # what most image classifiers were trained on


@dataclass(frozen=True)
class Sized:
    """A graph whose picture has the size that its layers need.

    Attributes:
        graph: the graph.
        layers: the candidates for target layers in graph order, None where the caller named the layers.
        doubt: `ASSUMED` if the size is a guess, `UNKNOWN` if no size is known that fits, None if there is no doubt.
    """

    graph: Graph
    layers: list[Layer] | None
    doubt: str | None = None


def sized(
    graph: Graph,
    scores: str,
    layers: Sequence[str | Layer] | None = None,
    *,
    size: Size | None = None,
    likely: Size | None = None,
) -> Sized:
    """Fix the size of the picture where layers of tokens need it, and list the target layers.

    The model is edited in place. Layers of a graph that stays dynamic are looked for as if it took one size: of unknown
    shapes it cannot be told which are equal.

    Arguments:
        scores: the value that is explained.
        layers: target layers; None for the default one of the candidates.
        size: height and width set by the user, fixed whatever the layers need.
        likely: height and width that the preprocessing makes, where that is known.

    Raises:
        ModelError: `size` is not a size, not what the file declares, or does not fit.
    """
    if size is not None and (len(size) != 2 or not all(type(side) is int and side > 0 for side in size)):
        raise ModelError(f"input_size={size!r}; expected height and width of the picture, such as (224, 224)")
    declared = dynamic_size.declared_size(graph)
    if size is not None and any(isinstance(a, int) and a != b for a, b in zip(declared, size, strict=True)):
        raise ModelError(f"the model takes {_by(declared)} pictures and was asked for {_by(size)}; leave the size out")
    if not dynamic_size.is_dynamic(graph):
        return _static(graph, scores, layers)
    if size is not None:
        if not dynamic_size.fits(graph, size):
            raise ModelError(
                f"pictures of {_by(size)} do not fit the model: values inside it, such as weights or position "
                "embeddings, are of another size; name the height and width it was trained on"
            )
        return _static(at_size(graph, size), scores, layers)
    tokens = layout.has_tokens(graph, graph.nodes)
    if layers is not None and not tokens:
        return Sized(graph, None)
    usual = likely or USUAL
    rows, columns = (a if isinstance(a, int) else b for a, b in zip(declared, usual, strict=True))
    before = onnx.GraphProto()
    before.input.extend(graph.model.graph.input)
    before.output.extend(graph.model.graph.output)
    before.value_info.extend(graph.model.graph.value_info)
    trial = _at_trial_size(graph, (rows, columns))
    candidates = target_layers.candidates(trial, scores) if trial is not None and layers is None else None
    targets = [layer for layer in candidates if layer.default] if candidates is not None else layers or ()
    if trial is not None and _need_size(graph, trial, targets):
        return replace(_static(at_size(graph), scores, layers), doubt=None if likely is not None else ASSUMED)
    del graph.model.graph.input[:], graph.model.graph.output[:], graph.model.graph.value_info[:]
    graph.model.graph.input.extend(before.input)
    graph.model.graph.output.extend(before.output)
    graph.model.graph.value_info.extend(before.value_info)
    restored = graph.again()
    if trial is None:
        return replace(_static(restored, scores, layers), doubt=UNKNOWN if tokens else None)
    if candidates is None:
        return Sized(restored, None)
    maps = [layer for layer in candidates if _is_map(restored, layer.value)]
    return Sized(
        restored, [replace(layer, shape=restored.shape(layer.value), grid=None, window=None) for layer in maps]
    )


def _at_trial_size(graph: Graph, size: Size) -> Graph | None:
    """Declare the picture to be of a size, in place; None where nothing of that size fits."""
    if not dynamic_size.fits(graph, size):
        return None
    dynamic_size.fix(graph, size)
    try:
        return refresh(graph.model)
    except ModelError:
        return None


def _static(graph: Graph, scores: str, layers: Sequence[str | Layer] | None) -> Sized:
    return Sized(graph, target_layers.candidates(graph, scores) if layers is None else None)


def _need_size(graph: Graph, trial: Graph, layers: Sequence[str | Layer]) -> bool:
    """Whether one of the layers is tokens, or a map only where the picture's size is known."""
    for layer in layers:
        try:
            value = graph.find(layer.value if isinstance(layer, Layer) else layer)
        except ModelError:
            continue  # `layers.resolve` reports a layer that does not exist
        if len(shape_of(trial, value) or ()) == 3 or (_is_map(trial, value) and not _is_map(graph, value)):
            return True
    return False


def _is_map(graph: Graph, value: str) -> bool:
    """Whether a value is known to be a map."""
    return len(graph.shape(value) or ()) == 4


def _by(size: Sequence[int | str | None]) -> str:
    return describe(tuple(size)).strip("[]").replace(", ", " x ")
