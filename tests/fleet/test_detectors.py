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


def encoded(fill: int | None = None) -> bytes:
    """A picture, of one colour if one is named."""
    pixels = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels if fill is None else np.full_like(pixels, fill)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector that does not tell its classes, and reports no box on a black picture."""
    path = str(tmp_path_factory.mktemp("sparse") / "detector.onnx")
    onnx.save(detectors.build("torchvision"), path)
    return path


@pytest.mark.parametrize("when", ["always", "confidence < 0.99", "never"])
def test_a_picture_without_a_box_is_a_row_like_others(sparse: str, when: str) -> None:
    pictures = [encoded(), encoded(0)]
    rows = Explain(sparse, preprocess="0..1", when=when)({"bytes": pictures})
    explainer = Explainer(sparse, preprocess="0..1")
    boxes = explainer.boxes(pictures[0])
    assert boxes and not explainer.boxes(pictures[1]) and list(rows["error"]) == ["", ""]
    assert (rows["label"][0], rows["prediction"][0]) == (boxes[0].label, boxes[0].class_index)
    assert rows["confidence"][0] == pytest.approx(boxes[0].score, abs=1e-6) and np.isnan(rows["margin"][0])
    np.testing.assert_allclose(rows["boxes"][0].reshape(-1, 4), [one.box for one in boxes], atol=1e-3)
    assert list(rows["box_classes"][0]) == [one.class_index for one in boxes]
    np.testing.assert_allclose(rows["box_scores"][0], [one.score for one in boxes], atol=1e-6)
    assert (rows["prediction"][1], rows["label"][1], bool(rows["fired"][1])) == (-1, None, False)
    assert all(len(rows[name][1]) == 0 for name in ("boxes", "box_classes", "box_scores", "top", "map"))
    assert np.isnan(rows["confidence"][1]) and rows["target"][1] == -1
    assert ("no box" in rows["warnings"][1]) == (when != "never"), rows["warnings"]
    assert bool(rows["fired"][0]) == (when == "always" or (when != "never" and boxes[0].score < 0.99))


def test_a_class_that_is_not_there_is_no_failure(sparse: str) -> None:
    """Of a class that was named a picture has no map, and still its boxes."""
    (first, *_) = Explainer(sparse, preprocess="0..1").boxes(encoded())
    other = 7 if first.class_index != 7 else 8
    rows = Explain(sparse, preprocess="0..1", target=other)({"bytes": [encoded()]})
    assert rows["error"][0] == "" and not rows["fired"][0] and f"no box of {other}" in rows["warnings"][0]
    assert rows["prediction"][0] == first.class_index and len(rows["box_scores"][0])


def test_labels_of_a_detector(sparse: str) -> None:
    names = [f"name {k}" for k in range(20)]
    rows = Explain(sparse, preprocess="0..1", labels=names)({"bytes": [encoded()]})
    assert rows["label"][0] == names[rows["prediction"][0]]


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
