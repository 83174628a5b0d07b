"""The values of layers for pictures, in the canonical layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.explain.features import uneven_rows
from onnxcam.network import subgraphs
from onnxcam.network.names import SCORES
from onnxcam.runtime.rows import joined, portions

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer


class Activations(NamedTuple):
    """What a run over a batch gives.

    Attributes:
        scores: as `Explainer.run` has them, `[N, K]`.
        values: by layer, float32 `[N, C, h, w]`: tokens on their grid, without those before it.
    """

    scores: np.ndarray
    values: Mapping[str, np.ndarray]


def activations(explainer: Explainer, batch: np.ndarray, layers: Sequence[str]) -> Activations:
    """Run the network over a batch: the scores, and each layer's value.

    Arguments:
        batch: tensor in the model's own layout and dtype.
        layers: names of layers, of values or of nodes.

    Raises:
        LayerError: no such layer, or one that is neither a map nor tokens on a grid.
        InputError: a batch that the model refuses.
    """
    sessions = explainer.sessions
    network = sessions.network
    cuts = {name: sessions.cut(name) for name in dict.fromkeys(layers)}
    session = sessions.session(("activations", *cuts), lambda: subgraphs.activations(network, cuts))
    names = list(dict.fromkeys([SCORES, *(cut.layer.value for cut in cuts.values())]))
    picture = network.picture.name
    runs = [runtime.run(session, names, {picture: part}) for part in portions(batch, explainer.batch_size)]
    outputs = {name: joined([run[name] for run in runs]) for name in names}
    for name, cut in cuts.items():  # before rows of padding are cut off
        if len(outputs[cut.layer.value]) != len(outputs[SCORES]):
            raise uneven_rows(name, len(outputs[cut.layer.value]), len(outputs[SCORES]))
    outputs = {name: value[: len(batch)] for name, value in outputs.items()}
    values = {}
    for name, cut in cuts.items():
        value = outputs[cut.layer.value]
        values[name] = np.asarray(cut.layout.to_canonical(value), np.float32)
    return Activations(outputs[SCORES], values)
