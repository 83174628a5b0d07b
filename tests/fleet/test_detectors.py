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
