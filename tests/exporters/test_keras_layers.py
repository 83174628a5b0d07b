"""Which layers of a Keras model can be explained, by which names, and which is the default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")

from onnxcam.errors import LayerError  # noqa: E402
from onnxcam.exporters.keras import export, list_layers  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from tests.exporters import keras_nets as nets  # noqa: E402
from tests.exporters.keras_numbers import SINGLE_INPUT, close, nested_with, pictures, tape_of  # noqa: E402
from tests.support.runtime import run  # noqa: E402

pytestmark = [
    pytest.mark.keras,
    pytest.mark.usefixtures("few_collections"),
    pytest.mark.filterwarnings(SINGLE_INPUT),
]
K = keras.layers


@pytest.mark.parametrize(
    ("build", "layer", "message"),
    [
        (nets.functional, "conv3", r"'conv2', 'conv1'|'conv1', 'conv2'"),
        (nets.twins, "conv", "left/conv.*right/conv"),
        (nets.functional, "mean", "spatial map"),
        (nets.functional, "head", "spatial map"),
        (nets.shared, "again#3", "again#2 is its last"),
        (nets.functional, K.Conv2D(2, 3), "neither a layer"),
    ],
)
def test_a_layer_that_cannot_be_is_refused_with_candidates(build: Callable[[], Any], layer: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        export(build(), None, layers=[layer])
    with pytest.raises(LayerError, match="empty"):
        export(build(), None, layers=[])


@pytest.mark.slow
def test_a_path_tells_twins_apart() -> None:
    header = manifest.read(export(nets.twins(), None, layers=["left/conv", "right/conv"]))
    assert header is not None
    assert [entry["shape"] for entry in header["layers"]] == [["N", 8, 8, 4], ["N", 6, 6, 4]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("VGG16", "block5_conv3"),
        ("ResNet50", "conv5_block3_out"),
        ("EfficientNetB0", "top_conv"),
        ("MobileNetV2", "Conv_1"),
    ],
)
def test_the_default_layer_is_the_one_of_long_habit(name: str, default: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=4)
    header = manifest.read(export(model, None, verify=False))
    assert header is not None
    assert [entry["name"] for entry in header["layers"]] == [default]


@pytest.mark.slow
@pytest.mark.parametrize(("token", "default"), [(True, "norm_1"), (False, "norm")])
def test_a_transformer_is_explained_where_its_patches_end(token: bool, default: str) -> None:
    model = nets.transformer(token)
    batch, targets = pictures(3, 24, 32, 3), [4, 0, 2]
    explained = export(model, None)
    header = manifest.read(explained)
    assert header is not None
    (entry,) = header["layers"]
    assert (entry["name"], entry["layout"], entry["grid"], entry["prefix_tokens"]) == (default, "NTC", [3, 4], token)
    value, gradient = tape_of(model, model.get_layer(default).output, model.output, batch, targets)
    outputs = run(explained, batch, target=targets)
    close(outputs["activations"], value)
    close(outputs["gradients"], gradient)
    value, gradient = value[:, token:], gradient[:, token:]
    cam = np.maximum((gradient.mean(axis=1, keepdims=True) * value).sum(axis=2), 0).reshape(3, 3, 4)
    np.testing.assert_allclose(outputs["heatmap"], cam, rtol=1e-3, atol=1e-5)
    assert outputs["heatmap"].max(axis=(1, 2)).min() > 0

    listed = list_layers(model)
    assert [layer.name for layer in listed if layer.default] == [default]
    assert {layer.grid for layer in listed} == {(3, 4)}
    # behind the last attention only the class token matters
    assert ("block_1" in [layer.name for layer in listed]) is not token


@pytest.mark.slow
def test_layers_are_listed_as_export_takes_them() -> None:
    listing = list_layers(nets.nested())
    names = [layer.name for layer in listing]
    assert names == [
        "scale", "backbone/normal", "backbone/conv", "backbone/bn", "backbone/act", "backbone/top_conv",
        "backbone/top_bn", "backbone/top_activation",
    ]  # fmt: skip
    assert [layer.name for layer in listing if layer.default] == ["backbone/top_activation"]
    header = manifest.read(nested_with())
    assert header is not None and header["layers"][0]["name"] == "backbone/top_activation"
    assert next(layer for layer in listing if layer.default).shape == tuple(header["layers"][0]["shape"])
