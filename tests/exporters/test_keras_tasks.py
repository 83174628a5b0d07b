"""Keras models that are no classifiers: exported, and their files compared with GradientTape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")

from onnxcam.errors import ModelError, VerificationError  # noqa: E402
from onnxcam.exporters import parity, task_scalars  # noqa: E402
from onnxcam.exporters.keras import export, list_layers  # noqa: E402
from onnxcam.graph.load import serialize  # noqa: E402
from onnxcam.runtime import open_session, run  # noqa: E402
from tests.exporters.keras_nets import seeded  # noqa: E402
from tests.support.explainable import manifest_of  # noqa: E402

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("few_collections")]
K, SIDE = keras.layers, 32
PICTURES = np.random.default_rng(5).standard_normal((2, SIDE, SIDE, 3)).astype(np.float32)


def body() -> tuple[Any, Any, Any]:
    """A picture, and maps of it at strides 4 and 8."""
    picture = keras.Input((SIDE, SIDE, 3), name="picture")
    x = K.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="stem")(picture)
    fine = K.Conv2D(8, 3, strides=2, padding="same", activation="swish", name="fine")(x)
    coarse = K.Conv2D(8, 3, strides=2, padding="same", activation="swish", name="coarse")(fine)
    return picture, fine, coarse


def net(form: str) -> Any:
    picture, fine, coarse = body()
    if form == "segment":
        x = K.Conv2D(4, 1, name="classes")(fine)
        outputs: Any = K.Softmax(name="p")(K.UpSampling2D(4, interpolation="bilinear", name="up")(x))
    elif form == "detect":
        boxes, scores = [], []
        for level, (x, stride) in enumerate(((fine, 4), (coarse, 8))):
            side = SIDE // stride
            raw = K.Reshape((side * side, 6), name=f"rows{level}")(K.Conv2D(6, 1, name=f"head{level}")(x))
            y, x = np.mgrid[:side, :side] * float(stride) + stride / 2
            centre = np.stack([x.reshape(-1), y.reshape(-1)], axis=1).astype(np.float32)
            middle = keras.ops.tanh(raw[:, :, :2]) + centre[None]
            half = stride * (1 + 0.3 * keras.ops.tanh(raw[:, :, 2:4]))
            boxes.append(keras.ops.concatenate([middle - half, middle + half], axis=2))
            scores.append(keras.ops.sigmoid(raw[:, :, 4:]))
        outputs = {
            "boxes": K.Concatenate(axis=1, name="boxes")(boxes),
            "scores": K.Concatenate(axis=1, name="scores")(scores),
        }
    else:
        y = K.Dense(6, name="numbers")(K.GlobalAveragePooling2D(name="mean")(coarse))
        if form == "embed":
            y = K.UnitNormalization(name="unit")(y)
        outputs = {"pose": y, "depth": K.Dense(1, name="depth_head")(y)} if form == "values" else y
    return seeded(keras.Model(picture, outputs, name=form), sum(map(ord, form)))


def exported(form: str, **options: Any) -> tuple[Any, dict[str, Any], Any]:
    model = net(form)
    result = export(model, None, **options)
    record = manifest_of(result)
    assert record["parity"]["against"] == "TensorFlow GradientTape" and record["parity"]["samples"] == 4
    assert max(record["parity"][quantity] for quantity in parity.QUANTITIES) <= 1e-3
    return result, record, model


def compared(result: Any, model: Any, layer: str, feeds: dict[str, np.ndarray], scalar: Any) -> float:
    """How far the file's gradient at a layer is from the tape's, of `scalar` of the model's outputs."""
    record = manifest_of(result)
    (entry,) = [one for one in record["layers"] if one["name"] == layer]
    session = open_session(serialize(result), ["CPUExecutionProvider"])
    file = run(session, [entry["gradients"]], {record["input"]["name"]: PICTURES} | feeds)[entry["gradients"]]
    both = keras.Model(model.inputs, [model.get_layer(layer).output, model.output])
    with tf.GradientTape() as tape:
        value, outputs = both(tf.constant(PICTURES), training=False)
        total = scalar(outputs)
    expected = np.asarray(tape.gradient(total, value))
    assert np.abs(expected).max() > 0
    return float(parity.distance(file, expected).max())


@pytest.mark.slow
def test_a_segmentation_is_exported_and_compared_with_the_tape() -> None:
    result, record, model = exported("segment")
    assert record["scores"]["kind"] == "segmentation"
    assert (record["scores"]["task"]["channels"], record["scores"]["task"]["channels_last"]) == (4, True)
    assert [entry["name"] for entry in record["layers"]] == ["fine"]
    feeds = {"target": np.array([1, 3]), "region": np.array([[2, 4, 21, 13], [0, 0, 32, 9]], np.float32)}
    far = compared(
        result, model, "fine", feeds,
        lambda p: tf.reduce_sum(p[0, 4:13, 2:21, 1]) + tf.reduce_sum(p[1, :9, :, 3]),
    )  # fmt: skip
    assert far < 1e-4


@pytest.mark.slow
def test_a_detector_has_a_layer_per_level_and_is_compared_with_the_tape() -> None:
    result, record, model = exported("detect", task="detect", boxes_output="boxes:xyxy,pixels", scores="scores")
    task = record["scores"]["task"]
    assert (task["task"], task["candidates"], task["classes"]) == ("detect", 80, 2)
    assert [(e["name"], e["candidates"]) for e in record["layers"]] == [("fine", [[0, 64]]), ("coarse", [[64, 80]])]
    for layer, boxes in (("fine", (3, 40)), ("coarse", (66, 79))):
        far = compared(
            result, model, layer, {"box": np.array(boxes)},
            lambda out, boxes=boxes: sum(tf.reduce_max(out["scores"][row, box]) for row, box in enumerate(boxes)),
        )  # fmt: skip
        assert far < 1e-4


@pytest.mark.slow
def test_an_embedding_is_exported_and_compared_with_the_tape() -> None:
    result, record, model = exported("embed", layers="coarse")
    assert record["scores"]["task"] == {"task": "embed", "size": 6, "unit_norm": True}
    vectors = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    far = compared(
        result, model, "coarse", {"reference": vectors}, lambda e: tf.reduce_sum(tf.math.l2_normalize(e, 1) * unit)
    )
    assert far < 1e-4


@pytest.mark.slow
def test_several_values_are_exported_and_compared_with_the_tape() -> None:
    result, record, model = exported("values", task="regress")
    assert sorted(record["scores"]["task"]["names"]) == ["depth", "pose"]
    index = 0
    for name, size in zip(record["scores"]["task"]["names"], record["scores"]["task"]["sizes"], strict=True):
        far = compared(
            result, model, record["layers"][0]["name"], {"target": np.array([index, index + size - 1])},
            lambda out, name=name, size=size: out[name][0, 0] + out[name][1, size - 1],
        )  # fmt: skip
        assert far < 1e-4
        index += size


@pytest.mark.slow
def test_a_wrong_scalar_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tape of another value than the file's."""
    original = task_scalars.draw

    def draw(*arguments: Any) -> list[task_scalars.Question]:
        return [q._replace(target=task_scalars.Sum(np.roll(q.target.weights, 1, axis=1))) for q in original(*arguments)]

    monkeypatch.setattr(task_scalars, "draw", draw)
    with pytest.raises(VerificationError, match="gradients"):
        export(net("values"), tmp_path / "m.onnx", layers="coarse", task="regress")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_is_no_task_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError, match="task='detect': no output holds boxes with scores"):
        export(net("values"), None, layers="coarse", task="detect")


@pytest.mark.slow
def test_layers_of_a_model_of_another_task_are_listed() -> None:
    layers = list_layers(net("segment"))
    assert {"stem", "fine"} <= {layer.name for layer in layers}
    assert [layer.name for layer in layers if layer.default] == ["fine"]
