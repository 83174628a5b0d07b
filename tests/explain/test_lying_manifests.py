"""A manifest that lies is refused in a sentence, or its lie changes no number; generated over every field of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.errors import ModelError
from onnxcam.explain.explainer import Explainer
from onnxcam.network import manifest as manifests
from tests.support import models

RAW = {"color": "RGB", "scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}
PICTURE = np.random.default_rng(7).integers(0, 256, (32, 32, 3), dtype=np.uint8)
# what no graph can contradict: how a picture is prepared and called, where a layer's grid lies, what was measured
FREE = (
    "input.preprocess", "input.normalization", "labels", "layers.0.window", "layers.1.window", "scores.scale",
    "measured", "source.kind", "source.scores", "requires", "scores.kind",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, 1, 2, 3, -1, 7, 0.5, "", "x", "NCHW", "NHWC", "NTC", "input", "logits", "heatmap/relu1", "target",
    "activations/relu2", "gradients/relu1", "probabilities", "logits_", "binary_logit", "multilabel", "regression",
    "required", "optional", "constant", "float16", "uint8", "float32", "shared", "coupled", [], ["x"], [1, 2],
    [16, 16], [32, 32], [4, 64], ["N", 3, 32, 32], ["N", 16, 16, 16], ["N", 32, 32, 3], ["N", 256, 16], {}, {"a": "b"},
    {"gradcam": "logits"}, {"gradcam": "heatmap/relu2"}, {"gradcam": "activations/relu1"},
    {"condition": "confidence < 0.5", "output": "logits"}, {"condition": "no condition", "output": "fired"},
)  # fmt: skip


@cache
def honest() -> onnx.ModelProto:
    model = models.tiny_cnn(ending="Softmax")
    return onnxcam.augment(model, ["relu1", "relu2"], preprocess=RAW, labels=["a", "b", "c", "d", "e"])


def numbers(model: onnx.ModelProto) -> list[np.ndarray]:
    """What a user gets: scores, maps of every layer by the file and beside it, and the picture's explanation."""
    explainer = Explainer(model.SerializeToString())
    _, tensor, _ = explainer.prepare(PICTURE)
    results = [explainer.run(tensor, 1).scores]
    for layer in ("relu1", "relu2"):
        raw = explainer.run(tensor, 1, layer=layer)
        results += [raw.activations, raw.gradients, explainer.attribute(tensor, 1, "gradcam", layer)]
    explanation = explainer.explain(PICTURE, target=1)
    return [*results, explanation.heatmap, np.array([p for _, _, p in explanation.predictions])]


@cache
def truth() -> tuple[np.ndarray, ...]:
    return tuple(numbers(honest()))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field, of dictionaries and of the layers."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if path == ("layers",) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def lying(place: tuple[Any, ...], value: Any) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(honest())
    stored = manifests.read(model)
    assert stored is not None
    at: Any = copy.deepcopy(stored)
    whole = at
    for key in place[:-1]:
        at = at[key]
    if value == "remove":
        del at[place[-1]]
    else:
        at[place[-1]] = value
    manifests.write(model, None)
    model.metadata_props.add(key=manifests.KEY, value=json.dumps(whole))
    return model


STORED = manifests.read(honest())
PLACES = [*places(STORED), ("gate",)]


def check(place: tuple[Any, ...], value: Any) -> str | None:
    """None if the lie is refused in one sentence or changes nothing."""
    at: Any = STORED
    for key in place:
        at = at.get(key) if isinstance(at, dict) else at[key]
    if value == "remove" and at is None:
        return None
    if type(at) is type(value) and at == value:
        return None
    free = ".".join(map(str, place)).startswith(FREE)
    try:
        results = numbers(lying(place, value))
    except onnxcam.OnnxcamError as error:
        text = str(error)
        one = "\n" not in text and text
        # what the file no longer says is the user's to say: no preprocessing, another layer
        fair = isinstance(error, ModelError) or (
            place[0] == "input" and "preprocess" in place and value in (None, {}, "remove")
        )
        return None if one and fair else f"{type(error).__name__}: {text}"
    if free:
        return None
    same = all(a.shape == b.shape and np.allclose(a, b, atol=1e-6) for a, b in zip(results, truth(), strict=True))
    return None if same else "other numbers, silently"


@pytest.mark.soak
@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_every_lie_about_every_field(place: tuple[Any, ...]) -> None:
    wrong = {repr(value): result for value in (*VALUES, "remove") if (result := check(place, value)) is not None}
    assert wrong == {}


LIES: list[tuple[tuple[Any, ...], Any, str]] = [
    (("format",), 2, "has format 2, this version reads up to 1"),
    (("format",), 0, "no `format`"),
    (("layers", 0, "layout"), "NTC", "lacks 'layers.grid'|have 3 axes|positions"),
    (("layers", 0, "layout"), "NHWC", "lie on a grid of 32 x 32, not on that of"),
    (("layers", 0, "heatmaps"), {"gradcam": "logits"}, "names the output 'logits' for two things"),
    (("layers", 0, "heatmaps"), {"gradcam": "activations/relu2"}, "for two things"),
    (("layers", 0, "activations"), "none", "names 'none', which the graph does not output"),
    (("layers", 0, "grid"), [16, 64], "grid of 16 x 64"),
    (("layers", 0, "shape"), ["N", 8, 16, 32], "are ['N', 8, 16, 32], the graph has"),
    (("layers", 0, "name"), "relu2", "layers.name"),
    (("scores", "kind"), "binary_logit", r"scores.classes \(5 of kind binary_logit\)"),
    (("scores", "kind"), "regression", r"scores.classes \(5 of kind regression\)"),
    (("scores", "kind"), "probabilities", "whose output is called 'log_probabilities'"),
    (("scores", "probabilities"), "", "scores.probabilities"),
    (("layers", 0, "activations"), "", "layers.activations"),
    (("labels",), [], "one of labels per class"),
    (("scores", "classes"), 3, "one of labels per class"),
    (("scores", "name"), "heatmap/relu1", "for two things"),
    (("scores", "probabilities"), "none", "names 'none'"),
    (("input", "dtype"), "uint8", "is uint8, the graph takes float32"),
    (("input", "layout"), "NHWC", "is NHWC, which it cannot be"),
    (("input", "shape"), ["N", 3, 64, 64], "the graph takes"),
    (("input", "normalization"), {"std": [1.0]}, "input.normalization"),
    (("input", "normalization"), {"mean": [0.0], "std": [0.0]}, "input.normalization"),
    (("input", "preprocess"), {"scale": "x"}, "preprocessing in the model's manifest cannot be used"),
    (("input", "preprocess"), {"color": "L"}, "preprocessing in the model's manifest cannot be used"),
    (("target", "mode"), "required", "is a required input, the graph has no such input"),
    (("target", "class"), 2, "target.class"),
    (("target", "name"), "input", "the picture and the target"),
    (("labels",), ["a"], "one of labels per class"),
    (("source", "outputs"), ["none"], "had the outputs 'none'"),
    (("source", "outputs"), ["probabilities", "heatmap/relu1"], "was added to the source, and that the source had it"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), LIES, ids=[f"{'.'.join(map(str, p))}={v}" for p, v, _ in LIES])
def test_a_lie_is_told(place: tuple[Any, ...], value: Any, sentence: str) -> None:
    pattern = sentence if "|" in sentence or "\\" in sentence else re.escape(sentence)
    with pytest.raises(ModelError, match=pattern):
        Explainer(lying(place, value).SerializeToString())


def test_a_sample_of_lies() -> None:
    rng = np.random.default_rng(19)
    for _ in range(30):
        place, value = PLACES[rng.integers(len(PLACES))], VALUES[rng.integers(len(VALUES))]
        assert check(place, value) is None, (place, value)
