"""Exporting a Keras model: what is refused, what options change, and that the model is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")

from onnxcam.errors import InputError, LayerError, ModelError, OutputError, SettingError  # noqa: E402
from onnxcam.exporters import keras_capture  # noqa: E402
from onnxcam.exporters.keras import export  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from tests.exporters import keras_nets as nets  # noqa: E402
from tests.exporters.keras_numbers import SINGLE_INPUT, pictures  # noqa: E402
from tests.support.runtime import run  # noqa: E402

pytestmark = [
    pytest.mark.keras,
    pytest.mark.usefixtures("few_collections"),
    pytest.mark.filterwarnings(SINGLE_INPUT),
]
K = keras.layers


@pytest.mark.slow
def test_models_that_cannot_be(tmp_path: Path) -> None:
    one, two = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    x = K.GlobalAveragePooling2D()(K.Conv2D(4, 3)(K.Add()([one, two])))
    with pytest.raises(ModelError, match=r"2 inputs.*'left'.*'right'"):
        export(keras.Model([one, two], K.Dense(2)(x)), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="expected a Keras model"):
        export(K.Dense(2), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=r"\[N, 5\].*pictures"):
        export(keras.Sequential([keras.Input((5,)), K.Dense(2)]), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="not an image classifier"):
        export(keras.Sequential([keras.Input((8, 8, 3)), K.Conv2D(4, 3)]), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="no spatial layer"):
        export(keras.Sequential([keras.Input((8, 8, 3)), K.Flatten(), K.Dense(2)]), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="input size"):
        export(nets.functional(), tmp_path / "a.onnx", input_size=32)
    with pytest.raises(ModelError, match="opset 17"):
        export(nets.functional(), tmp_path / "a.onnx", opset=17)
    with pytest.raises(InputError, match="verify"):
        export(nets.functional(), tmp_path / "a.onnx", verify="yes")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="no folder"):
        export(nets.functional(), tmp_path / "missing" / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_another_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelError, match="KERAS_BACKEND=tensorflow"):
        export(nets.functional(), None)


@pytest.mark.slow
def test_several_outputs_and_which_are_the_scores() -> None:
    base = nets.functional()
    both = keras.Model(base.inputs, [base.output, base.get_layer("mean").output])
    explained = export(both, None)
    header = manifest.read(explained)
    assert header is not None and header["scores"]["classes"] == 5
    assert header["source"]["outputs"] == ["head", "mean"]
    with pytest.raises(ModelError, match="no output 'other'"):
        export(both, None, scores="other")
    named = keras.Model(base.inputs, {"features": base.get_layer("relu2").output, "classes": base.output})
    header = manifest.read(export(named, None))
    assert header is not None and header["source"]["outputs"] == ["features", "classes"]


@pytest.mark.slow
def test_the_model_is_left_as_it_was() -> None:
    model = nets.nested()
    weights = [np.array(w) for w in model.get_weights()]
    call = keras.layers.Layer.__call__
    model.trainable = True
    with pytest.raises(LayerError):
        export(model, None, layers=["nothing"])
    export(model, None)
    assert keras.layers.Layer.__call__ is call
    assert model.trainable
    assert all((a == b).all() for a, b in zip(weights, model.get_weights(), strict=True))


@pytest.mark.slow
def test_outputs_heatmap_keeps_the_record() -> None:
    header = manifest.read(export(nets.functional(), None, outputs="heatmap", target="required", methods=["hirescam"]))
    assert header is not None
    assert header["layers"][0]["activations"] is None and header["parity"]["gradients"] < 1e-4
    assert header["target"]["mode"] == "required" and list(header["layers"][0]["heatmaps"]) == ["hirescam"]


@pytest.mark.slow
def test_a_gate_is_put_in_after_the_proof() -> None:
    model = nets.functional()
    plain, always, never = (export(model, None, gate=g) for g in (None, "margin <= 1", "margin < 0"))
    header, plain_header = manifest.read(never), manifest.read(plain)
    assert header is not None and plain_header is not None
    assert (
        header["gate"] == {"condition": "margin < 0", "output": "fired"} and header["parity"] == plain_header["parity"]
    )
    x = pictures(3, *plain_header["input"]["shape"][1:])
    want, fired, blank = (run(source, x) for source in (plain, always, never))
    assert fired["fired"].all() and not blank["fired"].any()
    for name in ("gradients", "heatmap"):
        np.testing.assert_allclose(fired[name], want[name], rtol=1e-5, atol=1e-7)
        assert not blank[name].any() and blank[name].shape == want[name].shape
    assert want["gradients"].any()
    with pytest.raises(SettingError, match="expected one of"):
        export(model, None, gate="margin")


@pytest.mark.slow
def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    export(nets.functional(), None)
    assert capfd.readouterr() == ("", "")
    assert keras_capture.DEFAULT_OPSET == 18
