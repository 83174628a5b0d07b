"""Variants of a layer that are told from each other by few columns of the linear layer behind it.

With u = z W + b, a variant z' has u' = u + (z' - z) W, and only the rows of W that z' - z reads are multiplied: of
VGG-16, 49 of 25,088 for a channel that is taken away. The products come before the runs of the rest: the threads of
NumPy and those of ONNX Runtime would take the cores from each other.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import runtime
from onnxcam.network.names import SCORES
from onnxcam.runtime.row_choice import Rows

if TYPE_CHECKING:
    from onnxcam.explain.sessions import Sessions
    from onnxcam.explain.view import LayerView as View
    from onnxcam.network.dense import Dense

_TOGETHER = 8  # channels whose columns are multiplied at once
_FEATURE_ROWS = 8  # variants that pass the pools at once
_LARGEST = 64 << 20  # bytes of the features of all places


def without_channels(view: View, order: np.ndarray, rows: Rows) -> np.ndarray | None:
    """The objective without each of these channels `[N, k]` of each row, float64 `[N, k]`; None without such a tail."""
    tail = view.batch.sessions.dense_tail(view.layer)
    return None if tail is None else _values(view, tail, tail.without_channels(view.activations, order), rows)


def places_alone(view: View, rows: Rows) -> np.ndarray | None:
    """The objective with each place kept and the others 0, float64 `[N, h·w]`; None without such a tail."""
    tail = view.batch.sessions.dense_tail(view.layer)
    u = None if tail is None else tail.places_alone(view.activations)
    return None if tail is None or u is None else _values(view, tail, u, rows)


def _values(view: View, tail: DenseTail, u: np.ndarray, rows: Rows) -> np.ndarray:
    """The objective of variants, by what the first linear layer gives for them, `[N, k, O]`."""
    scores = tail.scores(u.reshape(-1, tail.width), rows, view.tell)
    return view.objective.value(scores, np.repeat(np.arange(len(u)), u.shape[1])).reshape(u.shape[:2])


class DenseTail:
    """What follows a layer, cut at the first linear layer. It holds that layer's weights, and takes the place of the
    session that would run the whole tail. Thread-safe.
    """

    def __init__(self, sessions: Sessions, layer: str, dense: Dense) -> None:
        self._sessions, self._layer, self._dense = sessions, layer, dense
        graph = sessions.network.graph
        self._weights, self._bias = dense.weights(graph), dense.bias(graph)
        self.width = self._weights.shape[1]

    def without_channels(self, activations: np.ndarray, order: np.ndarray) -> np.ndarray:
        """u of each row without each of its channels `order` `[N, k]`, float32 `[N, k, O]`."""
        channels, cells = self._dense.channels, self._dense.cells
        z, empty = self._features(activations), self._features(np.zeros_like(activations[:1]))
        change = (empty - z).reshape(len(z), channels, cells)
        blocks = self._weights.reshape(channels, cells, self.width)
        u = np.repeat((z @ self._weights + self._bias)[:, None], order.shape[1], axis=1)
        for row, picked in enumerate(order):
            for start in range(0, len(picked), _TOGETHER):
                some = picked[start : start + _TOGETHER]
                count, first = len(some), int(some[0])
                apart = np.zeros((count, count, cells), np.float32)
                apart[np.arange(count), np.arange(count)] = change[row, some]
                beside = bool((some == np.arange(first, first + count)).all())
                rows = blocks[first : first + count] if beside else blocks[some]
                u[row, start : start + count] += apart.reshape(count, -1) @ rows.reshape(-1, self.width)
        return u

    def places_alone(self, activations: np.ndarray) -> np.ndarray | None:
        """u of each row with one place kept and the rest 0, float32 `[N, h·w, O]`; None where it is too large."""
        rows, channels, height, width = activations.shape
        cells, places = self._dense.cells, height * width
        if 4 * rows * places * channels * cells > _LARGEST:
            return None
        empty = self._features(np.zeros_like(activations[:1]))
        start = empty @ self._weights if empty.any() else np.zeros((1, self.width), np.float32)
        u = np.repeat((start + self._bias)[None], rows * places, axis=1)[0]
        change = np.empty((rows * places, channels * cells), np.float32)
        room = np.zeros((_FEATURE_ROWS, *activations.shape[1:]), np.float32)
        for first in range(0, len(change), _FEATURE_ROWS):
            row, place = np.divmod(np.arange(first, min(first + _FEATURE_ROWS, len(change))), places)
            y, x = np.divmod(place, width)
            alone, each = room[: len(row)], np.arange(len(row))
            alone[each, :, y, x] = activations[row, :, y, x]
            np.subtract(self._features(alone), empty, out=change[first : first + len(row)])
            alone[each, :, y, x] = 0
        by_cell = change.reshape(-1, channels, cells)
        touched = (by_cell != 0).any(axis=1)
        for cell in range(cells):
            some = np.flatnonzero(touched[:, cell])
            if len(some):
                u[some] += np.ascontiguousarray(by_cell[some, :, cell]) @ self._weights[cell::cells]
        return np.asarray(u.reshape(rows, places, self.width))

    def scores(self, u: np.ndarray, rows: Rows, tell: Any) -> np.ndarray:
        """The scores float32 `[M, K]` of u `[M, O]`, a few rows per run."""
        from onnxcam.network import subgraphs

        network, dense = self._sessions.network, self._dense
        session = self._sessions.session(
            ("dense scores", self._layer), lambda: subgraphs.scores_from(network, dense.result)
        )
        parts, done = [], 0
        while done < len(u):
            began = perf_counter()
            part = u[done : done + rows.next(len(u) - done)]
            parts.append(runtime.run(session, [SCORES], {dense.result: part})[SCORES])
            rows.record(len(part), perf_counter() - began)
            done += len(part)
            tell(done, len(u))
        return np.concatenate(parts).astype(np.float32, copy=False)

    def _features(self, activations: np.ndarray) -> np.ndarray:
        from onnxcam.network import subgraphs

        network, dense = self._sessions.network, self._dense
        session = self._sessions.session(
            ("dense features", self._layer), lambda: subgraphs.value_from(network, self._layer, dense.features)
        )
        value = network.cut(self._layer).layer.value
        feeds = {value: np.ascontiguousarray(activations, np.float32)}
        return runtime.run(session, [dense.features], feeds)[dense.features]
