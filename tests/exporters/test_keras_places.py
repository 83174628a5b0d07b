"""Keras models whose maps used to lie in the wrong place: crops inside, channels first, branches behind a preset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")

import onnxcam  # noqa: E402
from onnxcam.exporters.keras import export  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from tests.exporters import keras_nets as nets  # noqa: E402
from tests.exporters.keras_numbers import SINGLE_INPUT  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
CASES = ROOT / "tests" / "cases"
pytestmark = [
    pytest.mark.keras,
    pytest.mark.usefixtures("few_collections"),
    pytest.mark.filterwarnings(SINGLE_INPUT),
]
K = keras.layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "window", "places"),
    [
        ("center_crop", {"height": [16, 48], "width": [16, 48]}, [(22, 22), (40, 30), (20, 44)]),
        ("aspect_resize", {"height": [0, 64], "width": [16, 80]}, [(32, 38), (40, 30), (20, 70)]),
    ],
)
def test_crops_inside_the_model(name: str, window: dict[str, list[int]], places: list[tuple[int, int]]) -> None:
    """Where a bright square changes the activations is where they are drawn, within half a cell of 2 or 4 pixels."""
    model = keras.models.load_model(CASES / f"{name}.keras")
    explainer = onnxcam.Explainer(export(model, None, verify=False), providers=["CPUExecutionProvider"])
    (entry,) = explainer.manifest["layers"]
    assert (entry["name"], entry["window"], entry["covers"]) == ("last", window, "all")
    _, height, width, _ = explainer.manifest["input"]["shape"]
    rows, columns = np.mgrid[:height, :width]
    for row, column in places:
        plain = np.full((1, height, width, 3), 120, np.float32)
        bright = plain.copy()
        bright[:, row - 2 : row + 3, column - 2 : column + 3] = 255
        maps = [explainer.attribute(x, 0, "activationmap", normalize="none")[0] for x in (plain, bright)]
        change = np.abs(maps[1] - maps[0])
        centre = (change * rows).sum() / change.sum(), (change * columns).sum() / change.sum()
        assert np.abs(np.subtract(centre, (row, column))).max() <= (1 if name == "center_crop" else 2) + 0.5


def branches() -> Any:
    """Two convolutions of the picture, joined before the mean."""
    picture = keras.Input((16, 24, 3))
    a = K.Conv2D(4, 3, padding="same", strides=2, activation="relu", name="fine")(picture)
    b = K.Conv2D(4, 5, padding="same", strides=2, activation="relu", name="coarse")(picture)
    x = K.Concatenate(name="join")([a, b])
    return nets.seeded(keras.Model(picture, K.Dense(5, name="head")(K.GlobalAveragePooling2D()(x))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "default", "presets"),
    [
        (branches, "join", [None, "imagenet"]),
        (nets.transformer, "norm_1", ["imagenet"]),
    ],
)
def test_the_default_layer_is_the_same_with_any_preset(build: Any, default: str, presets: list[str | None]) -> None:
    model = build()
    for preset in presets:
        header = manifest.read(export(model, None, preprocess=preset, verify=False))
        assert header is not None
        assert [entry["name"] for entry in header["layers"]] == [default]
        assert header["layers"][0]["covers"] == "all"


CHANNELS_FIRST = """
import json, sys
import keras, numpy as np
import onnxcam
from onnxcam.exporters.keras import export, list_layers
K = keras.layers
keras.utils.set_random_seed(0)
picture = keras.Input((3, 32, 24))
first = {"padding": "same", "strides": 2, "data_format": "channels_first"}
x = K.ReLU()(K.Conv2D(8, 3, **first)(picture))
x = K.ReLU(name="last")(K.BatchNormalization(axis=1)(K.Conv2D(32, 3, **first)(x)))
head = K.Dense(5, name="head")
model = keras.Model(picture, head(K.GlobalAveragePooling2D(data_format="channels_first")(x)))
batch = np.random.default_rng(0).normal(size=(2, 3, 32, 24)).astype(np.float32)
values = keras.Model(picture, x)(batch).numpy()
for preset in ("imagenet",):
    explained = export(model, None, preprocess=preset)
    explainer = onnxcam.Explainer(explained, providers=["CPUExecutionProvider"])
    maps = np.stack([explainer.attribute(batch, k, normalize="none", size="layer") for k in range(5)])
    expected = np.maximum(np.einsum("nchw,ck->knhw", values, head.kernel.numpy()) / 48, 0)
    (entry,) = explainer.manifest["layers"]
    print(json.dumps({
        "layer": [entry["name"], entry["layout"], entry["grid"]], "input": explainer.manifest["input"]["layout"],
        "off": float(np.abs(maps - expected).max()), "size": float(expected.max()),
        "parity": explainer.manifest["parity"]["activations"],
    }))
print(json.dumps([[layer.name, layer.layout, layer.grid, layer.default] for layer in list_layers(model)]))
"""


@pytest.mark.slow
def test_channels_first() -> None:
    """In a process of its own: on a CPU only oneDNN's convolutions, chosen when TensorFlow loads, take them."""
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CHANNELS_FIRST], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    if "NCHW" in done.stderr and "NHWC" in done.stderr:
        pytest.skip("this TensorFlow has no convolution with channels first on a CPU")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] in "{["]
    for text in lines[:1]:
        assert text["layer"] == ["last", "NCHW", [8, 6]]
        assert text["input"] == "NCHW"
        assert text["off"] < 1e-5 * text["size"] and text["parity"] < 1e-3
    assert lines[1][-1] == ["last", "NCHW", [8, 6], True]
    assert {layout for _, layout, _, _ in lines[1]} == {"NCHW"}
