"""`onnxcam.probe`: what a file really says, measured on at most 12 pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError, PreprocessError
from onnxcam.graph.layers import default, resolve
from onnxcam.graph.layout import input_layout
from onnxcam.graph.load import Source
from onnxcam.image import Preprocess
from onnxcam.network.input_size import sized
from onnxcam.network.network import Network, dims
from onnxcam.network.probe.facts import Probe
from onnxcam.network.probe.measurement import measure
from onnxcam.network.probe.stimuli import BACKGROUNDS
from onnxcam.network.pyramid import levels_of


def probe(
    source: Source,
    pictures: Any = None,
    *,
    all_layers: bool = False,
    scores: str | None = None,
    preprocess: Any = None,
    task: str | None = None,
    boxes_output: str | None = None,
) -> Probe:
    """Measure facts about a model: what its scores are, whether rows affect each other, where its layers look.

    The model is loaded once and at most 14 rows pass through it.

    Arguments:
        source: path, bytes or `ModelProto` of a model of pictures; of an explainable one, the model inside.
        pictures: pictures to start from instead of noise, of which the first two are taken: a tensor in the model's own
            layout, or a list of what `Explainer.explain` takes, which needs a preprocessing.
        all_layers: measure every candidate for a target layer too; else the default one, or those that an explainable
            model exposes.
        scores: the output holding the class scores, where the model has several candidates.
        preprocess: how pictures become tensors, where the file does not say: it also tells the range of the input.
        task, boxes_output: of a model that is no classifier, as of `onnxcam.augment`; its columns are no scores of
            classes, which is said in `unmeasured`.

    Returns:
        a `Probe`; what could not be measured is in its `unmeasured`, with the reason.

    Raises:
        ModelError: not an image classifier. LayerError: the model has no spatial layer.
        PreprocessError: pictures, and nothing says how they become tensors.
        InputError: a tensor that is not a batch of pictures.
    """
    network = Network(source, scores=scores, task=task, boxes_output=boxes_output)
    recorded = (network.manifest or {}).get("input", {}).get("preprocess")
    exposed = list(network.layers.values())
    fitted = sized(network.graph, network.readout.value, None if all_layers or not exposed else exposed)
    graph, picture = fitted.graph, network.picture.name
    layers = [resolve(graph, layer, network.readout.value) for layer in exposed]
    if all_layers or not exposed:
        candidates = fitted.layers or []
        levels = [level.layer for level in levels_of(graph, picture, network.readout, candidates)]
        first = levels or [default(candidates)]
        values = {layer.value for layer in layers}
        layers += [layer for layer in candidates if layer.value not in values] if all_layers else first
    shape, layout = dims(graph.shape(picture)), input_layout(graph, picture)
    spec = preprocess if preprocess is not None else recorded
    resolved = image.resolve(spec, shape, layout=layout) if spec else None
    return measure(
        graph,
        picture,
        network.readout,
        layers,
        preprocess=resolved,
        size=None if resolved is None else resolved.output_size,
        pictures=None if pictures is None else _batch(pictures, resolved, layout),
        with_covers=True,
    )


def _batch(pictures: Any, preprocess: Preprocess | None, layout: str) -> np.ndarray:
    """The first pictures as a tensor in the model's own layout."""
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        return np.asarray(pictures[:BACKGROUNDS], np.float32)
    if not isinstance(pictures, (list, tuple)) or not pictures:
        raise InputError("pictures: expected a tensor of rank 4 in the model's own layout, or a list of pictures")
    if preprocess is None:
        raise PreprocessError(
            "the model does not say how pictures become tensors: name the preprocessing (preprocess=), or pass a tensor"
        )
    tensors = [preprocess.apply(image.load(item), layout=layout)[0] for item in pictures[:BACKGROUNDS]]
    return np.concatenate(tensors).astype(np.float32)
