"""What a Keras model computes, by its own tape."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")

from onnxcam.exporters import parity  # noqa: E402
from onnxcam.exporters.keras import export  # noqa: E402
from tests.exporters import keras_nets as nets  # noqa: E402

K = keras.layers
# Keras warns that a functional model made from a list of one input is called with that input alone
SINGLE_INPUT = "ignore:The structure of `inputs`:UserWarning"


@functools.cache
def nested_with(*layers: str) -> onnx.ModelProto:
    """The nested model exported, verified; nobody changes it."""
    return export(nets.nested(), None, layers=layers or None)


def pictures(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def tape_of(model: Any, value: Any, logits: Any, batch: np.ndarray, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """The way a Keras Grad-CAM script does it: a functional model of the inner value and the logits, and a tape."""
    both = keras.Model(model.inputs, [value, logits])
    with tf.GradientTape() as tape:
        activations, scores = both(tf.constant(batch), training=False)
        total = tf.reduce_sum(tf.gather(scores, targets, axis=1, batch_dims=1))
    return np.asarray(activations), np.asarray(tape.gradient(total, activations))


def without_softmax(model: Any) -> Any:
    """The same network's logits, from a Dense layer of its own with the head's weights."""
    head = model.get_layer("head")
    plain = K.Dense(head.units)
    logits = plain(head.input)
    plain.set_weights(head.get_weights())
    return logits


def close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert parity.distance(a, b).max() < 1e-5
