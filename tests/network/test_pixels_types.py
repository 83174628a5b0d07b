"""Files that take pixels: models whose input is not float32, and maps that are not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.diagnose.pixels import smooth
from onnxcam.errors import ModelError
from onnxcam.network import manifest
from onnxcam.runtime import open_session
from tests.support.models import tiny_cnn

RESIZE = {"mode": "stretch", "size": [32, 32], "interpolation": "bilinear", "antialias": True}
CROP = {"size": [32, 32], "anchor": "center"}


def typed(element: int) -> onnx.ModelProto:
    """The tiny network behind a Cast from another input type."""
    model = tiny_cnn(seed=3)
    for node in model.graph.node:
        node.input[:] = ["float_input" if name == "input" else name for name in node.input]
    values, scale = "float_input", np.array(1 / 64, np.float32)  # pixels as the network was meant to see them
    model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    model.graph.node.insert(0, helper.make_node("Mul", ["cast_input", "scale"], [values]))
    model.graph.node.insert(0, helper.make_node("Cast", ["input"], ["cast_input"], to=TensorProto.FLOAT))
    model.graph.input[0].type.tensor_type.elem_type = element
    return model


def run(model: onnx.ModelProto, pixels: np.ndarray) -> dict[str, Any]:
    session = open_session(model.SerializeToString(), ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))


@pytest.mark.parametrize(("element", "scale"), [(TensorProto.FLOAT16, 1 / 4), (TensorProto.UINT8, 1.0)])
def test_inputs_of_other_types_are_prepared_as_in_python(element: int, scale: float) -> None:
    model = onnxcam.augment(typed(element), preprocess={"scale": scale, "resize": RESIZE}, pixels=True, probe=False)
    entry = manifest.read(model)
    assert entry is not None and entry["input"]["dtype"] == {10: "float16", 2: "uint8"}[element]
    explainer = onnxcam.Explainer(model)
    for size in ((60, 44), (20, 90)):
        pixels = smooth(size, np.random.default_rng(4))
        out, want = run(model, pixels), explainer.explain(pixels)
        assert int(out["target_class"][0]) == want.target
        assert out["predictions"][want.target] == pytest.approx(want.probability, abs=1e-2)
        np.testing.assert_allclose(out["picture_heatmap"], want.heatmap, rtol=0, atol=1e-2)
        assert np.abs(out["overlay"].astype(int) - want.overlay()).max() <= 5


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("factor", [1e38, np.inf, np.nan])
def test_a_map_that_is_not_finite_is_no_number_and_its_overlay_the_picture(factor: float, cropped: bool) -> None:
    source = tiny_cnn(seed=3)
    for tensor in source.graph.initializer:
        if tensor.name == "w1":  # activations overflow
            weights = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), "w1"))
    spec = {"resize": RESIZE | {"size": [40, 40]}, "crop": CROP} if cropped else {"resize": RESIZE}
    model = onnxcam.augment(source, preprocess=spec, pixels=True, probe=False)
    pixels = smooth((50, 60), np.random.default_rng(0))
    out = run(model, pixels)
    assert not np.isfinite(out["heatmap"]).all()
    inside = (slice(8, 42), slice(10, 50)) if cropped else (slice(None), slice(None))
    assert np.isnan(out["picture_heatmap"][inside]).all()
    np.testing.assert_array_equal(out["overlay"][inside], pixels[inside])
    with pytest.raises(ModelError, match="not finite"):
        onnxcam.Explainer(model).explain(pixels)
