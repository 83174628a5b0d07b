"""How the first dimension of each value depends on the number of pictures in a batch, where the file leaves it open.

Exporters leave dimensions without a name that they compute in the graph: those of a transformer's tokens, say. With two
and with three pictures they are constants, which tell a row per picture from a size of something else.
"""

from __future__ import annotations

import weakref

from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph

_FEW, _MORE = 2, 3
_cache: weakref.WeakKeyDictionary[Graph, dict[str, RowDimensions]] = weakref.WeakKeyDictionary()


class RowDimensions:
    """First dimensions of values in batches of two and of three pictures.

    Arguments:
        graph: a normalised graph whose number of rows is free.
        picture: its input.
    """

    def __init__(self, graph: Graph, picture: str) -> None:
        self._batches = [StaticShapes(graph, {picture: (rows,)}) for rows in (_FEW, _MORE)]

    def is_rows(self, value: str) -> bool:
        """Whether a value has one row per picture; False if that is not known."""
        return [batch.first(value) for batch in self._batches] == [_FEW, _MORE]

    def is_fixed(self, value: str) -> bool:
        """Whether the first dimension is the same for any number of pictures; False if that is not known."""
        few, more = (batch.first(value) for batch in self._batches)
        return few is not None and few == more


def row_dimensions(graph: Graph, picture: str) -> RowDimensions:
    """The row dimensions of a graph, computed once."""
    by_picture = _cache.setdefault(graph, {})
    if picture not in by_picture:
        by_picture[picture] = RowDimensions(graph, picture)
    return by_picture[picture]
