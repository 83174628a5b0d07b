"""Boxes, points, regions and masks are in pixels of the picture, however the preprocessing places it on the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam.targets.scalars import Box, Region
from tests.support import detectors
from tests.support.detectors import HEIGHT, WIDTH

PLACEMENTS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "stretch": ({"resize": {"mode": "stretch", "size": [HEIGHT, WIDTH]}}, (96, 120)),
    "letterbox": ({"resize": {"mode": "letterbox", "size": [HEIGHT, WIDTH], "pad_value": 114}}, (128, 128)),
    "crop": ({"resize": {"mode": "shortest", "size": 96}, "crop": {"size": [HEIGHT, WIDTH]}}, (120, 180)),
}
# by the rules in the reference: input = picture * scale + offset, x and y
MAPS = {
    "stretch": ((96 / 120, 64 / 96), (0.0, 0.0)),
    "letterbox": ((0.5, 0.5), (16.0, 0.0)),
    "crop": ((96 / 120, 96 / 120), (-24.0, -16.0)),
}


def picture(size: tuple[int, int]) -> np.ndarray:
    coarse = np.random.default_rng(3).uniform(size=(size[0] // 8 + 1, size[1] // 8 + 1, 3)) * 255
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]].astype(np.uint8)


def opened(net: str, spec: dict[str, Any]) -> onnxcam.Explainer:
    return onnxcam.Explainer(detectors.build(net), preprocess={"scale": 1 / 255, **spec})


@pytest.mark.parametrize("name", PLACEMENTS)
def test_boxes_and_points(name: str) -> None:
    spec, size = PLACEMENTS[name]
    explainer, pixels = opened("yolov8", spec), picture(size)
    (sx, sy), (left, top) = MAPS[name]
    _, tensor, _ = explainer.prepare(pixels)
    table = explainer.batch_scores(tensor)[0].reshape(7, -1)
    boxes = explainer.boxes(pixels)
    assert boxes
    for box in boxes:
        cx, cy, w, h = table[:4, box.index]
        edges = [(cx - w / 2 - left) / sx, (cy - h / 2 - top) / sy, (cx + w / 2 - left) / sx, (cy + h / 2 - top) / sy]
        limits = np.array([size[1], size[0], size[1], size[0]])
        assert np.allclose(box.box, np.clip(edges, 0, limits), atol=1e-2)
    best = explainer.explain(pixels).maps[0].box
    x, y = (best.box[0] + best.box[2]) / 2, (best.box[1] + best.box[3]) / 2
    assert explainer.explain(pixels, target=Box(at=(x, y))).maps[0].box == best


@pytest.mark.parametrize("name", PLACEMENTS)
def test_regions_and_masks(name: str) -> None:
    """The same region in pixels of the input gives the same numbers."""
    spec, size = PLACEMENTS[name]
    explainer, pixels = opened("segment", spec), picture(size)
    (sx, sy), (left, top) = MAPS[name]
    region = (40, 40, 100, 88)
    mask = np.zeros(size, bool)
    mask[40:88, 40:100] = True
    _, tensor, _ = explainer.prepare(pixels)
    x0, y0, x1, y1 = 40 * sx + left, 40 * sy + top, 100 * sx + left, 88 * sy + top
    raw = explainer.attribute(tensor, Region(2, (x0, y0, x1, y1)), normalize="none", size="layer")[0]
    for target in (Region(2, region), Region(2, mask)):
        explanation = explainer.explain(pixels, target=target, normalize="none")
        assert np.abs(explanation.raw_map - raw).max() <= 1e-5 * np.abs(raw).max()
        assert explanation.heatmap.shape == size


def test_a_region_that_was_cropped_away() -> None:
    spec, size = PLACEMENTS["crop"]
    with pytest.raises(onnxcam.OnnxcamError, match="outside the part of the picture that the model sees"):
        opened("segment", spec).explain(picture(size), target=Region(1, (0, 0, 10, 10)))


def test_a_region_smaller_than_a_cell() -> None:
    """Takes the cell around its middle."""
    explainer = opened("segment", {"resize": {"mode": "stretch", "size": [HEIGHT, WIDTH]}})
    pixels = picture((640, 960))
    small = explainer.explain(pixels, target=Region(1, (401, 301, 402, 302)), normalize="none")
    _, tensor, _ = explainer.prepare(pixels)
    cell = explainer.attribute(tensor, Region(1, (40, 30, 41, 31)), normalize="none", size="layer")[0]
    assert np.abs(small.raw_map - cell).max() <= 1e-6 * np.abs(cell).max()
