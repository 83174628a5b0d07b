"""The first principal component over the places of a layer, from the Gram matrix that a session computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcam import runtime
from onnxcam.cam.components import signed, with_sign
from onnxcam.network.names import ACTIVATIONS, GRAM, MEAN, POWER
from onnxcam.runtime import options

if TYPE_CHECKING:
    from onnxcam.explain.features import HeadRun
    from onnxcam.explain.sessions import Sessions

_REST = 1e-7  # of a power's trace: what may be left of other eigenvectors


def gram(sessions: Sessions, values: np.ndarray, *, by_places: bool = True, power: bool = False) -> list[np.ndarray]:
    """Inner products of places, or of channels, of `[N, C, h, w]`, each channel minus its mean over the places.

    Returns:
        float64 `[N, n, n]`; with `power` also a power of it, see `onnxcam.network.gram`.
    """

    def make() -> object:
        from onnxcam.network.gram import gram as model

        return model(by_places=by_places, power=power)

    key = ("gram", *["places"] * by_places, *["power"] * power)
    session = sessions.session(key, make, options.one_thread)
    names = [GRAM, POWER] if power else [GRAM]
    feed = np.ascontiguousarray(values, np.float32)
    runs = [runtime.run(session, names, {ACTIVATIONS: feed[row : row + 1]}) for row in range(len(feed))]
    return [np.concatenate([run[name] for run in runs]) for name in names]


def first_component(sessions: Sessions, values: np.ndarray) -> np.ndarray:
    """float32 `[N, C, h, w]` to `[N, h, w]`: each place's coordinate along the direction in which they differ most.

    The smaller one of both Gram matrices, of the places and of the channels, has the same first eigenvalue.
    """
    from onnxcam.network.gram import LARGEST

    channels, places = values.shape[1], values.shape[2] * values.shape[3]
    by_places = places <= channels
    power = min(places, channels) <= LARGEST
    matrices = gram(sessions, values, by_places=by_places, power=power)
    maps = []
    for row, one in enumerate(values):
        matrix = matrices[0][row]
        vector = _first_vector(matrix, matrices[1][row] if power else None)
        if by_places:
            coordinates = _coordinates(matrix, vector)
        else:
            coordinates = np.einsum("c,cp->p", vector, one.reshape(channels, -1), optimize=False)
            coordinates -= coordinates.mean()
        maps.append(signed(coordinates, one))
    return np.stack(maps)


def first_component_of(features: HeadRun) -> np.ndarray:
    """The first component of the layer whose Gram matrices a head run has, float32 `[N, h, w]`."""
    values = features.values
    return np.stack([
        with_sign(_coordinates(matrix, _first_vector(matrix, power)), mean)
        for matrix, power, mean in zip(values[GRAM], values[POWER], values[MEAN], strict=True)
    ])  # fmt: skip


def _coordinates(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Each place's coordinate along the first direction, from the Gram matrix of the places and its eigenvector."""
    value = float((vector * (matrix * vector).sum(axis=1)).sum())
    return np.asarray(vector * np.sqrt(max(value, 0.0)))


def _first_vector(matrix: np.ndarray, power: np.ndarray | None) -> np.ndarray:
    """The eigenvector of the largest eigenvalue: a column of the power, where nothing else is left in that.

    NaN of a matrix that is not finite, which has none.
    """
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan)
    if power is not None and np.trace(power) >= 1 - _REST:
        column = power[:, int(np.argmax(power.diagonal()))]
        return np.asarray(column / np.sqrt((column * column).sum()))
    return np.asarray(np.linalg.eigh(matrix)[1][:, -1])
