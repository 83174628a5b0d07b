"""An early, a middle and a deep layer of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxcam.errors import LayerError
from onnxcam.graph import layers as target_layers

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer


def layers_of(explainer: Explainer) -> list[str]:
    """Names of the layers that can be explained, in graph order; those of an explainable file under its own names."""
    network = explainer.sessions.network
    exposed = {layer.value: layer.name for layer in network.layers.values()}
    candidates = target_layers.candidates(network.graph, network.readout.value)
    return [exposed.get(layer.value, layer.name) for layer in candidates]


def depths(explainer: Explainer) -> list[str]:
    """The first layer, one in the middle, and the default one; fewer where the network has no more.

    Raises:
        LayerError: the network has no layer with a height and a width.
    """
    names = layers_of(explainer)
    if not names:
        raise LayerError("the model has no layer with a height and a width to look into")
    deep = explainer.layers[-1] if explainer.layers[-1] in names else names[-1]
    before = names[: names.index(deep)]
    early = [before[0], before[len(before) // 2]] if before else []
    return list(dict.fromkeys([*early, deep]))


def requested(explainer: Explainer, layers: Sequence[str] | str | None) -> list[str]:
    """The layers named, each once; an early, a middle and a deep one where none is."""
    if layers is None:
        return depths(explainer)
    return [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
