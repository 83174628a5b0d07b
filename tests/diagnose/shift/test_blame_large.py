"""Blame by depth on the bundled EfficientNet-Lite0 and its int8 file: a fault in one of fifty layers, a sample."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from models import quantize
from onnxcam import models
from onnxcam.diagnose.shift.blame import blame
from onnxcam.explain.explainer import Explainer
from tests.diagnose.shift import planted

PICTURES = ("cat.png", "coffee.png", "cat_and_coffee.png")
# 50 layers with weights: one of each fifth, weights and activations in turn
SAMPLE = tuple(np.random.default_rng(22).integers(10 * k, 10 * k + 10) for k in range(5))


@functools.cache
def old() -> Explainer:
    return Explainer(models.path(models.MODEL))


@functools.cache
def int8() -> onnx.ModelProto:
    tensors = [old().prepare(models.path(name))[1] for name in PICTURES]
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(quantize.make("qdq", Path(folder), tensors))


@pytest.mark.soak
@pytest.mark.parametrize("place", range(5))
def test_one_bad_layer_of_fifty_is_blamed(place: int) -> None:
    model = int8()
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convolutions) == 50
    layer = convolutions[SAMPLE[place]]
    dequantize = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    if place % 2:
        (quantizer,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == layer.output[0])
        bad, part = planted.changed(model, quantizer.input[1], lambda scale: scale / 6), "activation pair"
    else:
        quantizer = dequantize[layer.input[1]]
        bad, part = planted.changed(model, quantizer.input[1], lambda scale: scale * 1.2), "weights"
    new = Explainer(bad.SerializeToString(), preprocess=old().preprocess, labels=old().labels, probe=False)
    result = blame(old(), new, [models.path(name) for name in PICTURES])
    assert result.verdict == "layer" and result.first is not None, result.sentence
    assert (result.first.new_name, result.first.part) == (layer.name, part), result.sentence
    assert result.first.node == quantizer.name and len(result.blamed) == 1
