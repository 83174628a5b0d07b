"""Blame by depth: faults planted in one layer are blamed on that layer and part, and nothing else is."""

from __future__ import annotations

import functools

import onnx
import pytest

from onnxcam.diagnose.shift.blame import Blame, blame_tensors
from onnxcam.explain.explainer import Explainer
from tests.diagnose.shift import planted

LAYERS = ("stem", "wide", "depthwise", "narrow", "last", "dense")  # with weights
# value that a pair quantizes, and the layer of the float network that it belongs to
ACTIVATIONS = {
    "picture": "picture",
    "fstem.relu": "stem",
    "fwide.relu": "wide",
    "fdepthwise.relu": "depthwise",
    "fnarrow": "narrow",
    "fsum": "sum",
    "flast.relu": "last",
    "fpool": "pool",
    "logits": "dense",
}


def explainer(model: onnx.ModelProto) -> Explainer:
    return Explainer(model.SerializeToString(), probe=False)


@functools.cache
def old() -> Explainer:
    """The float network before its normalisation is folded: other operators and names than the int8 files'."""
    return explainer(planted.network())


def blamed(model: onnx.ModelProto, count: int = 4) -> Blame:
    return blame_tensors(old(), explainer(model), [(tensor, tensor) for tensor in planted.pictures(count)])


def test_a_folded_normalisation_is_not_blamed() -> None:
    result = blamed(planted.network(fused=True))
    assert (result.verdict, result.first) == ("agree", None)
    assert result.matched == (6, 6)
    assert max(layer.local_error for layer in result.layers) < 1e-5
    assert result.score_error is not None and result.score_error < 1e-5


@pytest.mark.parametrize("form", ["qdq", "per channel", "qoperator", "dynamic", "signed"])
def test_an_ordinary_int8_file_is_not_blamed(form: str) -> None:
    result = blamed(planted.quantized(form))
    assert (result.verdict, result.blamed) == ("spread", ()), result.sentence
    assert result.matched == (6, 6)
    assert result.score_error is not None and 0.001 < result.score_error < 0.1
    for layer in result.layers:  # the oracle of what rounding gives is independent of the file's scales
        if layer.weight_error is not None and layer.weight_expected is not None:
            assert 0.7 < layer.weight_error / layer.weight_expected < 1.4
