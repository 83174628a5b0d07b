"""Blame by depth: faults planted in one layer are blamed on that layer and part, and nothing else is."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
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
    saturates = "products of 8-bit integers saturate" in result.sentence  # on processors without VNNI
    assert (result.verdict, result.blamed) == ("runtime" if saturates else "spread", ()), result.sentence
    assert result.matched == (6, 6)
    assert result.score_error is not None and 0.001 < result.score_error < 0.1
    for layer in result.layers:  # the oracle of what rounding gives is independent of the file's scales
        if layer.weight_error is not None and layer.weight_expected is not None:
            assert 0.7 < layer.weight_error / layer.weight_expected < 1.4


def plant(name: str, change: Callable[[Any], Any], form: str = "qdq") -> Blame:
    return blamed(planted.changed(planted.quantized(form), name, change))


def shifted(zero: Any) -> Any:
    """A zero point that is off by a quarter of the range."""
    return zero.astype(int) + np.where(zero.astype(int) < 64, 64, -64)


@pytest.mark.sample(6)
@pytest.mark.parametrize("factor", [8.0, 0.125], ids=["coarse", "clipped"])
@pytest.mark.parametrize("value", ACTIVATIONS)
def test_a_bad_scale_of_an_activation_is_blamed_on_its_pair(value: str, factor: float) -> None:
    result = plant(f"{value}_scale", lambda scale: scale * factor)
    first = result.first
    assert first is not None and (first.name, first.part) == (ACTIVATIONS[value], "activation pair"), result.sentence
    assert first.node == f"{value}_QuantizeLinear"
    assert len(result.blamed) == 1  # what follows only carries it on
    assert f"{value}_QuantizeLinear" in result.sentence


@pytest.mark.parametrize("value", [value for value in ACTIVATIONS if value not in ("fsum", "fpool", "fnarrow")])
def test_a_bad_zero_point_of_an_activation_is_blamed_on_its_pair(value: str) -> None:
    result = plant(f"{value}_zero_point", shifted)
    first = result.first
    assert first is not None and (first.name, first.part) == (ACTIVATIONS[value], "activation pair"), result.sentence
    assert first.node == f"{value}_QuantizeLinear" and len(result.blamed) == 1


@pytest.mark.sample(6)
@pytest.mark.parametrize("part", ["scale", "zero_point", "quantized"])
@pytest.mark.parametrize("layer", LAYERS)
def test_bad_weights_are_blamed_on_their_layer(layer: str, part: str) -> None:
    value = f"{'' if layer == 'dense' else 'f'}{layer}.weight"
    changes: dict[str, Callable[[Any], Any]] = {
        "scale": lambda scale: scale * 1.25,
        "zero_point": lambda zero: zero + 20,
        "quantized": lambda weights: np.clip(weights, -40, 40),
    }
    result = plant(f"{value}_{part}", changes[part])
    first = result.first
    assert first is not None and (first.name, first.part) == (layer, "weights"), result.sentence
    assert first.node == f"{value}_DequantizeLinear" and len(result.blamed) == 1


@pytest.mark.parametrize("layer", LAYERS)
def test_a_saturated_bias_is_blamed_on_its_layer(layer: str) -> None:
    value = f"{'' if layer == 'dense' else 'f'}{layer}.bias"
    result = plant(f"{value}_quantized", lambda bias: np.clip(bias, -127, 127))
    first = result.first
    assert first is not None and (first.name, first.part) == (layer, "bias"), result.sentence
    assert first.node == f"{value}_DequantizeLinear" and len(result.blamed) == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["per channel", "qoperator", "signed", "dynamic"])
def test_every_form_of_quantization_is_taken_apart(form: str) -> None:
    for layer in ("stem", "depthwise", "last"):
        result = plant(f"f{layer}.weight_scale", lambda scale: scale * 2, form)
        first = result.first
        assert first is not None and (first.name, first.part) == (layer, "weights"), result.sentence
        assert len(result.blamed) == 1
    if form != "dynamic":
        result = plant("fsum_scale", lambda scale: scale / 8, form)
        assert result.first is not None and (result.first.name, result.first.part) == ("sum", "activation pair")


def test_the_layer_that_changes_the_scores_most_is_named_beside_the_first() -> None:
    model = planted.changed(planted.quantized(), "fstem.weight_scale", lambda scale: scale * 1.06)
    model = planted.changed(model, "flast.weight_scale", lambda scale: scale * 3)
    result = blamed(model)
    assert [layer.name for layer in result.blamed] == ["stem", "last"]
    assert result.first is not None and result.largest is not None
    assert (result.first.name, result.largest.name) == ("stem", "last")
    assert result.largest.score_effect is not None and result.first.score_effect is not None
    assert result.largest.score_effect > 5 * result.first.score_effect > 0


@pytest.mark.parametrize("layer", ["stem", "depthwise", "last", "dense"])
def test_a_fine_tuned_network_is_blamed_from_the_first_layer_that_was_trained(layer: str) -> None:
    model = planted.network()
    for name in LAYERS[LAYERS.index(layer) :]:
        rng = np.random.default_rng(len(name))
        model = planted.changed(model, f"{name}.weight", lambda w, rng=rng: w + 0.1 * rng.normal(size=w.shape))
    result = blamed(model)
    assert result.first is not None and (result.first.name, result.first.part) == (layer, "weights"), result.sentence
    assert [one.name for one in result.blamed] == list(LAYERS[LAYERS.index(layer) :])
    assert "training" in result.sentence or layer == "dense"


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda x: x[:, ::-1].copy(), "other order"),
        (lambda x: x * 2 - np.float32(0.5), "times 2 plus -0.5"),
        (lambda x: x[:, :, ::-1].copy(), "resizing, crop or rotation"),
    ],
    ids=["BGR", "scale", "flipped"],
)
@pytest.mark.parametrize("form", ["float", "qdq"])
def test_a_preprocessing_mistake_is_blamed_on_the_input(
    form: str, mistake: Callable[[Any], Any], sentence: str
) -> None:
    new = planted.network(fused=True) if form == "float" else planted.quantized()
    rows = [(tensor, mistake(tensor)) for tensor in planted.pictures(4)]
    result = blame_tensors(old(), explainer(new), rows)
    assert result.verdict == "input" and len(result.blamed) == 1, result.sentence
    assert result.first is not None and result.first.part == "input"
    assert "the pictures the two are given differ before the first layer" in result.sentence.lower()
    assert sentence in result.sentence


def test_normalisation_that_the_first_layer_takes_over_is_not_blamed() -> None:
    model = planted.changed(planted.network(), "stem.weight", lambda w: w / 2)
    rows = [(tensor, tensor * 2) for tensor in planted.pictures(4)]
    result = blame_tensors(old(), explainer(model), rows)
    assert result.verdict == "agree" and "first layer makes up for it" in result.notes[0]


def test_a_wrongly_converted_operator_is_blamed() -> None:
    model = copy.deepcopy(planted.network(fused=True))
    (relu,) = (node for node in model.graph.node if node.name == "fwide.relu")
    relu.op_type = "LeakyRelu"
    result = blamed(model)
    assert result.first is not None and (result.first.name, result.first.part) == ("wide", "operator")
    assert len(result.blamed) == 1
    (conv,) = (node for node in model.graph.node if node.name == "flast")
    del conv.attribute[:]
    conv.attribute.extend([onnx.helper.make_attribute("pads", [2, 2, 0, 0]), onnx.helper.make_attribute("group", 1)])
    result = blamed(model)
    assert [(layer.name, layer.part) for layer in result.blamed] == [("wide", "operator"), ("last", "operator")]


def test_what_cannot_be_compared_is_undecided_and_said() -> None:
    assert blame_tensors(old(), old(), []).verdict == "undecided"
    other = planted.changed(planted.network(), "stem.weight", lambda w: np.full(w.shape, np.nan))
    result = blamed(other)
    assert result.verdict == "layer" and result.first is not None and result.first.name == "stem"
    assert "beyond all numbers" in result.sentence


def test_blame_is_written_as_json() -> None:
    result = plant("fwide.relu_scale", lambda scale: scale / 8)
    written = json.loads(json.dumps(result.describe(), allow_nan=False))
    assert written["first"]["node"] == "fwide.relu_QuantizeLinear" and written["matched"] == {"layers": 6, "of": 6}
    assert len(written["layers"]) == 10


def test_channels_last_and_other_operators_are_matched() -> None:
    """What tf2onnx makes of a Keras model: another layout, biases as sums, other names and operators."""
    new = explainer(planted.channels_last())
    rows = [(tensor, tensor.transpose(0, 2, 3, 1).copy()) for tensor in planted.pictures(4)]
    result = blame_tensors(old(), new, rows)
    assert (result.verdict, result.matched) == ("agree", (6, 6)), result.sentence
    for layer in ("wide", "last"):
        wrong = planted.changed(planted.channels_last(), f"f{layer}.weight", lambda w: w[:, :, ::-1])
        if layer == "wide":  # of 1 x 1
            wrong = planted.changed(planted.channels_last(), f"f{layer}.bias", lambda b: b + 0.5)
        result = blame_tensors(old(), explainer(wrong), rows)
        assert result.first is not None and result.first.name == layer, result.sentence
        assert result.first.part == ("bias" if layer == "wide" else "weights") and len(result.blamed) == 1


def test_what_the_runtime_alone_does_is_blamed_on_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose optimised form gives other scores than its graph: as where products of 8-bit integers saturate."""
    new = explainer(planted.quantized())
    plain = new.batch_scores
    monkeypatch.setattr(new, "batch_scores", lambda batch: plain(batch) * 1.5)
    result = blame_tensors(old(), new, [(tensor, tensor) for tensor in planted.pictures(4)])
    assert (result.verdict, result.blamed) == ("runtime", ())
    assert "No layer is to blame" in result.sentence and "reduce_range" in result.sentence
    assert result.score_error is not None and result.score_error < 0.1
