"""Sessions of the graphs that a network is taken apart into, each opened when it is first needed."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from onnxcam.runtime import options
from onnxcam.runtime.row_choice import RowChoice

if TYPE_CHECKING:
    import numpy as np

    from onnxcam.explain.dense_tail import DenseTail
    from onnxcam.explain.patches import Patches
    from onnxcam.graph.attention import Block
    from onnxcam.graph.large_model import Serialized
    from onnxcam.network.cells import CellGraph
    from onnxcam.network.cut import Cut
    from onnxcam.network.elements import Expression
    from onnxcam.network.layout import Layout
    from onnxcam.network.network import Network

_CHOICES = 64  # numbers of rows that are remembered, of pictures of as many sizes
MakeOptions = Callable[..., Any]  # one of `runtime.options`
# rows per run that hold for a time, by the sessions' id
_FIXED: ContextVar[Mapping[int, int] | None] = ContextVar("onnxcam.fixed_rows", default=None)


class Sessions:
    """Sessions of a network's head, tails and backward passes. Thread-safe.

    Where the scores are affine in a layer, what follows the head is so little that it runs on one thread while the
    head's threads wait for the next picture. Elsewhere sessions run in turn on all cores.

    Arguments:
        source: a classifier or an explainable model.
        open_session: opens a session of a serialized model, with options made by one of `runtime.options`.
        rows: in each run of methods that run a session many times; None to choose them by the times of the first runs.
    """

    def __init__(
        self, source: Any, open_session: Callable[[Serialized, MakeOptions], Any], rows: int | None = None
    ) -> None:
        self._rows = rows
        self._row_choices: dict[tuple[Hashable, ...], RowChoice] = {}
        self._source = source
        self._open_session = open_session
        self._lock = threading.RLock()
        self._network: Network | None = None
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._head: Any = None
        self._exposed: tuple[str, ...] = ()
        self._curved: dict[str, bool] = {}
        self._dense: dict[str, DenseTail | None] = {}
        self._contributions: tuple[Any, list[tuple[str, Layout]]] | None = None
        self._attention: tuple[Any, list[Block]] | None = None
        self._patches: tuple[object, Patches] | None = None
        self._cells: dict[Any, tuple[Any, CellGraph] | Exception] = {}

    @property
    def rows(self) -> int | None:
        """Rows in each run of methods that run a session many times; None to choose them by the times of the runs."""
        return (_FIXED.get() or {}).get(id(self), self._rows)

    @rows.setter
    def rows(self, rows: int | None) -> None:
        self._rows = rows

    @contextmanager
    def fixed_rows(self, rows: int) -> Iterator[None]:
        """Fix the rows for this thread and for a time: others that use the same sessions do not notice."""
        token = _FIXED.set({**(_FIXED.get() or {}), id(self): rows})
        try:
            yield
        finally:
            _FIXED.reset(token)

    def forked(self) -> None:
        """Leave all sessions to the parent, in a forked child: they are opened again when they are needed."""
        for session in (
            *(*self._sessions.values(), *self._cells.values()),
            *(self._head, self._contributions, self._attention),
        ):
            inherit(session)
        self._lock = threading.RLock()
        self._sessions, self._curved = {}, {}
        self._head, self._exposed = None, ()
        if self._patches is not None:
            for session in self._patches[1].opened:
                inherit(session)
        self._contributions = self._attention = self._patches = None
        self._cells = {}

    @property
    def network(self) -> Network:
        """The network, ready to be taken apart; onnx is imported here and not before."""
        with self._lock:
            if self._network is None:
                from onnxcam.network.network import Network

                self._network = Network(self._source)
            return self._network

    def cut(self, layer: str) -> Cut:
        """Where the network is cut for a layer."""
        with self._lock:
            return self.network.cut(layer)

    def row_choice(self, key: tuple[Hashable, ...], most: int) -> RowChoice:
        """How many rows the runs of a session have, from the times of those that were made.

        Arguments:
            key: layer, use and size of a row.
            most: rows per run at most.
        """
        choice = self._row_choices.get(key)
        if choice is None:
            with self._lock:
                while len(self._row_choices) >= _CHOICES:
                    del self._row_choices[next(iter(self._row_choices))]
                choice = self._row_choices.setdefault(key, RowChoice(most))
        return choice

    def head(self, layers: Sequence[str]) -> Any:
        """A session from pictures to the scores and at least the cut values of these layers."""
        from onnxcam.network import subgraphs

        with self._lock:
            lacking = [name for name in layers if name not in self._exposed]
            if self._head is None or lacking:
                exposed = (*self._exposed, *dict.fromkeys(lacking))
                affine = all(self.network.cut(name).affine for name in exposed)
                purpose = options.serving if affine else options.in_turn
                self._head = self.open(subgraphs.head(self.network, exposed), purpose)
                self._exposed = exposed
            return self._head

    def tail(self, layer: str) -> Any:
        """A session from the cut values to the scores."""
        from onnxcam.network import subgraphs

        return self.session(("tail", layer), lambda: subgraphs.tail(self.network, layer))

    def dense_tail(self, layer: str) -> DenseTail | None:
        """What follows a layer, cut at its first linear layer; None where the network does not end so."""
        with self._lock:
            if layer not in self._dense:
                from onnxcam.explain.dense_tail import DenseTail
                from onnxcam.network.dense import dense_after

                dense = dense_after(self.network, layer)
                self._dense[layer] = None if dense is None else DenseTail(self, layer, dense)
            return self._dense[layer]

    def backward(self, layer: str, relu: str, of_class: bool = False) -> Any:
        """A session from the cut values and a cotangent of the scores, or a class, to the gradient at the layer."""
        from onnxcam.network import subgraphs

        def make() -> Any:
            return subgraphs.backward(self.network, layer, relu=relu, of_class=of_class)

        key = ("backward", layer, relu, *["of class"] * of_class)
        return self.session(key, make, self._behind(layer))

    def class_maps(self, layer: str, names: Sequence[str], repeated: bool = False) -> Any:
        """A session from the cut values and classes to maps of graph methods, with a class per row or several."""
        from onnxcam.network import subgraphs

        key = ("class maps", layer, *["repeated"] * repeated, *names)
        return self.session(
            key, lambda: subgraphs.class_maps(self.network, layer, names, repeated), self._behind(layer)
        )

    def curvature(self, layer: str) -> Any:
        """A session from cut values, cotangent and direction to the curvature; None where the tail has none."""
        from onnxcam.network import subgraphs

        with self._lock:
            if layer not in self._curved:
                model = subgraphs.curvature(self.network, layer)
                self._curved[layer] = model is not None
                if model is not None:
                    self._sessions["curvature", layer] = self.open(model)
            return self._sessions["curvature", layer] if self._curved[layer] else None

    def input_gradient(self, relu: str) -> Any:
        """A session from pictures and classes to the scores and the gradient at the picture."""
        from onnxcam.network import subgraphs

        return self.session(("input gradient", relu), lambda: subgraphs.input_gradient(self.network, relu=relu))

    def component(self, layer: str, gradient: bool) -> Any:
        """A session from pictures to the scores and what a layer's first component is computed from.

        None where that is left to the layer's values, see `onnxcam.network.subgraphs.component`.
        """
        from onnxcam.network import subgraphs

        key = ("component", layer, *["gradient"] * gradient)
        with self._lock:
            if key not in self._sessions:
                model = subgraphs.component(self.network, layer, gradient=gradient)
                self._sessions[key] = None if model is None else self.open(model, options.serving)
            return self._sessions[key]

    def contributions(self) -> tuple[Any, list[tuple[str, Layout]]]:
        """A session for what the picture and every additive constant contribute; its outputs with their layouts."""
        from onnxcam.network import subgraphs

        with self._lock:
            if self._contributions is None:
                model, outputs = subgraphs.contributions(self.network)
                self._contributions = self.open(model), outputs
            return self._contributions

    def attention(self) -> tuple[Any, list[Block]]:
        """A session from pictures to each transformer block's attention and output, and the blocks."""
        from onnxcam.network import subgraphs

        with self._lock:
            if self._attention is None:
                model, blocks = subgraphs.attention(self.network)
                self._attention = self.open(model), blocks
            return self._attention

    def attention_backward(self) -> Any:
        """A session from pictures and a cotangent per block to the gradients of the attention."""
        from onnxcam.network import subgraphs

        return self.session(("attention backward",), lambda: subgraphs.attention_backward(self.network))

    def patches(self, shape: tuple[int, ...], spans: tuple[np.ndarray, np.ndarray], rows: int | None) -> Patches:
        """Sessions that compute what windows of a picture change; those for the windows before are dropped.

        Arguments:
            shape: of one picture, in the model's layout.
            spans: the rows and the columns of the windows, int64 `[n, 2]` each.
            rows: per run where the model fixes them, else None.
        """
        from onnxcam.explain.patches import Patches

        key = shape, rows, *(span.tobytes() for span in spans)
        with self._lock:
            if self._patches is None or self._patches[0] != key:
                self._patches = key, Patches(self, shape, spans, rows)
            return self._patches[1]

    def cells(self, layer: str, expression: Expression, names: Sequence[str]) -> tuple[Any, CellGraph]:
        """A session from cells around boxes to their maps, or without names to the gradient; and what it reads.

        Arguments:
            expression: of the score of one of the boxes, see `onnxcam.network.cells`.

        Raises:
            NotLocal: the head cannot be cut.
        """
        from onnxcam.network import cells

        key = (layer, expression.form, tuple(names))
        with self._lock:
            if key not in self._cells:
                try:
                    graph = cells.cut_cells(self.network, layer, expression, names)
                    self._cells[key] = self.open(graph.model, options.one_thread), graph
                except cells.NotLocal as error:
                    self._cells[key] = error
            opened = self._cells[key]
        if isinstance(opened, Exception):
            raise opened
        return opened

    @property
    def latest_patches(self) -> Patches | None:
        """Those for the windows of the last occlusion; None where the whole graph ran."""
        return self._patches[1] if self._patches is not None and self._patches[1].useful else None

    def maps(self, layer: str, names: Sequence[str], terms: bool = False) -> Any:
        """A session from a layer's activations and gradients to maps of graph methods, or to what they are sums of."""
        from onnxcam.network import subgraphs

        purpose = self._behind(layer)
        key = ("terms" if terms else "maps", purpose.__name__, *names)
        return self.session(key, lambda: subgraphs.maps(names, terms), purpose)

    def _behind(self, layer: str) -> MakeOptions:
        """How what follows the head runs."""
        return options.one_thread if self.cut(layer).affine else options.in_turn

    def session(self, key: tuple[str, ...], make: Callable[[], Any], purpose: MakeOptions = options.in_turn) -> Any:
        """A session of another graph made of the network: `make` returns its model the first time."""
        session = self._sessions.get(key)
        if session is None:
            with self._lock:
                session = self._sessions.get(key)
                if session is None:
                    session = self._sessions[key] = self.open(make(), purpose)
        return session

    def open(self, model: Any, purpose: MakeOptions = options.in_turn) -> Any:
        """Open a session of a part of the network, which is not kept."""
        from onnxcam.graph.load import serialize

        return self._open_session(serialize(model), purpose)


def inherit(session: Any) -> None:
    """Keep a session of the parent for ever, in a forked child: deleting it waits for threads that are not there."""
    if session is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
