"""Where a network is cut for a layer: the values that pass from its head to its tail."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from onnxcam.autodiff.sweep import path
from onnxcam.errors import LayerError
from onnxcam.graph import attention, layers
from onnxcam.graph.batch_positions import contents
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import input_layout
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.row_dimensions import row_dimensions
from onnxcam.graph.view import Graph
from onnxcam.network.layout import Layout
from onnxcam.network.names import BLOCK, INPUT

_AFFINE, _JOINTLY, _PRODUCTS = having(Trait.AFFINE), having(Trait.JOINTLY_AFFINE), having(Trait.PRODUCT)


@dataclass(frozen=True)
class Cut:
    """What passes from head to tail.

    Attributes:
        layer: the target layer.
        values: graph values, the layer's own among them, in graph order.
        by_row: for each of them, whether it has one row per picture.
        free: whether all have and a batch may be of any size, so that rows can be repeated and put together freely.
        singly: whether what follows depends on where in the batch a row stands, or on values of several rows together:
            each picture is to be run by itself, or where the model fixes its rows at its place.
        affine: whether the scores are an affine function of the layer: its gradient then says everything.
    """

    layer: Layer
    values: tuple[str, ...]
    by_row: tuple[bool, ...]
    free: bool
    affine: bool
    singly: bool = False

    @property
    def flags(self) -> dict[str, bool]:
        """`by_row` by value."""
        return dict(zip(self.values, self.by_row, strict=True))

    @cached_property
    def layout(self) -> Layout:
        """The axes of the layer."""
        return Layout.of_layer(self.layer)


def cut(
    graph: Graph, picture: str, scores: str, exposed: Mapping[str, Layer], name: str, positions: Collection[str]
) -> Cut:
    """Cut a network at a layer, at its picture (`INPUT`), or at the last block of a transformer (`BLOCK`).

    Arguments:
        graph: the normalised graph.
        picture, scores: the values it is computed from and to.
        exposed: layers that an explainable model exposes, by name.
        name: of the layer.
        positions: the values that count over the whole batch, see `onnxcam.graph.batch_positions`.

    Raises:
        LayerError: no such layer.
    """
    rows = (graph.shape(picture) or (None,))[0]
    if name == INPUT:
        layer = Layer(INPUT, picture, layout=input_layout(graph, picture), shape=graph.shape(picture))
        singly = scores in positions
        return Cut(layer, (picture,), (True,), not isinstance(rows, int) and not singly, False, singly)
    layer = _last_block(graph, picture, scores, exposed) if name == BLOCK else _resolve(graph, scores, exposed, name)
    values = crossing(graph, picture, layer.value, [scores])
    by_row = [rows is not None and (graph.shape(value) or (None,))[:1] == (rows,) for value in values]
    open_rows = not isinstance(rows, int)
    if open_rows and not all(by_row):
        dimensions = row_dimensions(graph, picture)
        by_row = [flag or dimensions.is_rows(value) for value, flag in zip(values, by_row, strict=True)]
    free = open_rows and all(by_row)
    # that a layer has a row per picture is checked when it has been computed
    flags = tuple(flag or value == layer.value for value, flag in zip(values, by_row, strict=True))
    singly = not {scores, *values}.isdisjoint(positions)
    if rows != 1 and not all(flags):
        content = contents(graph, picture)
        singly |= any(value in content and not flag for value, flag in zip(values, flags, strict=True))
    return Cut(layer, values, flags, free and not singly, _affine(graph, layer.value, scores), singly)


def crossing(graph: Graph, picture: str, value: str, outputs: Iterable[str]) -> tuple[str, ...]:
    """The values that pass from before a value to the outputs, in graph order: itself, and what else is read there."""
    before = (graph.downstream([picture]) - graph.downstream([value])) | {value}
    _, outside = graph.upstream(outputs, stop=before)
    return tuple(sorted((outside & before) | {value}, key=lambda name: graph.position.get(name, -1)))


def _resolve(graph: Graph, scores: str, exposed: Mapping[str, Layer], name: str) -> Layer:
    """A layer by the name that the file gives it, or by a value's or node's name."""
    try:
        layer = layers.resolve(graph, exposed.get(name, name), scores)
        return layer if name in exposed else layers.placed_in(graph, layer, scores)
    except LayerError as error:
        names = f"; the file itself exposes {list(exposed)}" if exposed else ""
        raise LayerError(f"{error}{names}") from error


def _last_block(graph: Graph, picture: str, scores: str, exposed: Mapping[str, Layer]) -> Layer:
    """The last block's output as a layer, whose tail reads every block's."""
    last = attention.blocks(graph, picture, scores)[-1]
    layer = Layer(BLOCK, last.output, layout="NTC")
    for recorded in exposed.values():  # the file may say how as many tokens lie
        grid, prefix = recorded.grid, recorded.prefix_tokens
        if Layout.of_layer(recorded).tokens and grid is not None and grid[0] * grid[1] + prefix == last.tokens:
            layer = Layer(BLOCK, last.output, layout="NTC", grid=grid, prefix_tokens=prefix)
    return layers.resolve(graph, layer, scores)


def _affine(graph: Graph, value: str, scores: str) -> bool:
    """Whether only operators that are affine in their data lie between a value and the scores."""
    nodes, _ = path(graph, scores, [value])
    reached = graph.downstream([value])
    for node in nodes:
        if node.op_type not in _AFFINE or node.domain not in ("", "ai.onnx"):
            return False
        places = [index for index, name in enumerate(node.input) if name in reached]
        if node.op_type in _JOINTLY:
            continue
        if places not in ([0], [1]) or (places == [1] and node.op_type not in ("Mul", "MatMul")):
            return False
        if node.op_type in _PRODUCTS and any(
            not graph.is_constant(other) for index, other in enumerate(node.input) if other and index not in places
        ):
            return False
    return True
