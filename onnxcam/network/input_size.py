"""A size for pictures that may be of any, where it is needed: a layer of tokens is a map only if its grid is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from onnxcam.errors import ModelError
from onnxcam.graph import dynamic_size, layers, layout
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
        layers: target layers in graph order, None where they were not asked for.
        doubt: what is doubtful of the size: `ASSUMED` if nobody said it, `UNKNOWN` if no size is known that fits.
    """

    graph: Graph
    layers: list[Layer] | None
    doubt: str | None = None


def sized(
    graph: Graph,
    scores: str,
    wanted: Sequence[str | Layer] | None = None,
    *,
    size: Size | None = None,
    likely: Size | None = None,
) -> Sized:
    """The graph for pictures of one size where layers of tokens need it, and else as it is, with its target layers.

    The model is edited in place. Layers of a graph that stays open are looked for as if it took one size: of shapes
    that are not known nobody could say which are the same.

    Arguments:
        scores: the value that is explained.
        wanted: target layers; None if they are to be looked for, of which the default one counts.
        size: height and width that the user asks for: they are fixed whatever the layers need.
        likely: height and width that pictures are prepared to, if that is known.

    Raises:
        ModelError: `size` is no size, not what the file declares, or does not fit.
    """
    if size is not None and (len(size) != 2 or not all(type(side) is int and side > 0 for side in size)):
        raise ModelError(f"input_size={size!r}; expected height and width of the picture, such as (224, 224)")
    said = dynamic_size.declared_size(graph)
    if size is not None and any(isinstance(a, int) and a != b for a, b in zip(said, size, strict=True)):
        raise ModelError(f"the model takes {_by(said)} pictures and was asked for {_by(size)}; leave the size out")
    if not dynamic_size.is_dynamic(graph):
        return _closed(graph, scores, wanted)
    if size is not None:
        if not dynamic_size.fits(graph, size):
            raise ModelError(
                f"pictures of {_by(size)} do not fit the model: values inside it, such as position embeddings, are of "
                "another size; name the height and width it was trained on"
            )
        return _closed(at_size(graph, size), scores, wanted)
    tokens = layout.has_tokens(graph, graph.nodes)
    if wanted is not None and not tokens:
        return Sized(graph, None)
    rows, columns = (own if isinstance(own, int) else usual for own, usual in zip(said, likely or USUAL, strict=True))
    before = onnx.GraphProto()
    before.input.extend(graph.model.graph.input)
    before.value_info.extend(graph.model.graph.value_info)
    trial = _tried(graph, (rows, columns))
    seen = layers.candidates(trial, scores) if trial is not None and wanted is None else None
    asked = [layer for layer in seen if layer.default] if seen is not None else wanted or ()
    if trial is not None and _in_need(graph, trial, asked):
        return replace(_closed(at_size(graph), scores, wanted), doubt=None if likely is not None else ASSUMED)
    del graph.model.graph.input[:], graph.model.graph.value_info[:]
    graph.model.graph.input.extend(before.input)
    graph.model.graph.value_info.extend(before.value_info)
    made = graph.again()
    if trial is None:
        return replace(_closed(made, scores, wanted), doubt=UNKNOWN if tokens else None)
    if seen is None:
        return Sized(made, None)
    kept = [layer for layer in seen if not _lost(made, layer.value)]
    return Sized(made, [replace(layer, shape=made.shape(layer.value), grid=None) for layer in kept])


def _tried(graph: Graph, size: Size) -> Graph | None:
    """The graph with its picture declared of a size, in place; None where nothing of that size fits."""
    if not dynamic_size.fits(graph, size):
        return None
    dynamic_size.fix(graph, size)
    try:
        return refresh(graph.model)
    except ModelError:
        return None


def _closed(graph: Graph, scores: str, wanted: Sequence[str | Layer] | None) -> Sized:
    return Sized(graph, layers.candidates(graph, scores) if wanted is None else None)


def _in_need(graph: Graph, trial: Graph, wanted: Sequence[str | Layer]) -> bool:
    """Whether one of the layers is tokens, or no map unless the picture's size is known."""
    for layer in wanted:
        try:
            value = graph.find(layer.value if isinstance(layer, Layer) else layer)
        except ModelError:
            continue  # that there is no such layer is said where it is resolved
        if len(shape_of(trial, value) or ()) == 3 or (_lost(graph, value) and not _lost(trial, value)):
            return True
    return False


def _lost(graph: Graph, value: str) -> bool:
    """Whether a value is not known to be a map."""
    return len(graph.shape(value) or ()) != 4


def _by(size: Sequence[int | str | None]) -> str:
    return describe(tuple(size)).strip("[]").replace(", ", " x ")
