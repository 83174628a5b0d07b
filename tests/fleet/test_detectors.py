"""Pictures of detectors, whose classes may be unknown and whose boxes may be none."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxcam.explain.explainer import Explainer
from onnxcam.fleet import Explain
from tests.support import detectors


@pytest.mark.parametrize("fill", [None, 0])
def test_a_detector_that_does_not_tell_its_classes(fill: int | None, tmp_path: object) -> None:
    path = f"{tmp_path}/detector.onnx"
    onnx.save(detectors.build("torchvision"), path)
    pixels = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels if fill is None else np.full_like(pixels, fill))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    rows = Explain(path, preprocess="0..1")({"bytes": [stream.getvalue()]})
    boxes = Explainer(path, preprocess="0..1").boxes(picture)
    assert bool(boxes) == (fill is None)
    if boxes:
        assert rows["error"][0] in (None, "")
        assert rows["label"][0] == boxes[0].label
        assert rows["confidence"][0] == pytest.approx(boxes[0].score, abs=1e-6)
    else:
        assert "reports no box on this picture" in rows["error"][0]


@pytest.mark.parametrize("when", ["always", "confidence > 0.01"])
def test_the_best_box_is_explained_at_its_own_level(when: str, tmp_path: object) -> None:
    """At another level of the pyramid its map would be another one, or zero."""
    path = f"{tmp_path}/detector.onnx"
    onnx.save(detectors.build("yolov8"), path)
    pixels = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.tile(pixels, (1, 2, 1))).save(stream, "PNG")
    preprocess = {"scale": 1 / 255, "resize": {"mode": "letterbox", "size": [64, 96]}}
    explainer = Explainer(path, preprocess=preprocess)
    alone = explainer.explain(stream.getvalue(), method="gradcam")
    rows = Explain(path, preprocess=preprocess, when=when, method="gradcam")({"bytes": [stream.getvalue()] * 2})
    assert alone.layer != explainer.layers[-1] and list(rows["layer"]) == [alone.layer] * 2
    assert not rows["attention_zero"].any()
    for row in range(2):
        shape = rows["map_height"][row], rows["map_width"][row]
        raw = np.asarray(alone.raw_map)
        assert shape == raw.shape and rows["map_high"][row] == pytest.approx(raw.max(), rel=1e-5)
        share = (raw - raw.min()) / (raw.max() - raw.min())
        np.testing.assert_allclose(rows["map"][row].reshape(shape), share, atol=1e-5)
