"""Boxes, regions, similarities and values: maps and attributions against torch's autograd on the same small nets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import onnxcam
from onnxcam.targets.scalars import Box
from onnxcam.targets.tasks import Detect, Slab
from tests.support import detectors

M = detectors.count(2)
YOLO = Detect(Slab(0, 4, 7, 0, True), Slab(4, 3, 7, 0, True), 7, 3, M, box_format="cxcywh")


def gradient(net: str, scalar: Any, row: int = 0) -> np.ndarray:
    """By torch, of a function of the outputs at the picture, `[3, H, W]`."""
    x = torch.tensor(detectors.pictures(2).astype(np.float64), requires_grad=True)
    (dx,) = torch.autograd.grad(scalar(detectors.forward(net, x)), x)
    return np.asarray(dx[row])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def yolo() -> onnxcam.Explainer:
    return onnxcam.Explainer(detectors.build("yolov8"), task=(("output0",), YOLO), preprocess="0..1")


@pytest.mark.parametrize("candidate", [17, 100])
def test_the_score_of_a_box(yolo: onnxcam.Explainer, candidate: int) -> None:
    x = detectors.pictures(2)
    best = int(detectors.forward("yolov8", torch.tensor(x.astype(float)))["output0"][0, 4:, candidate].argmax())
    expected = gradient("yolov8", lambda out: out["output0"][0, 4 + best, candidate])
    assert distance(yolo.attribution(x, Box(candidate), method="saliency")[0], expected) < 1e-5


def test_an_edge_of_a_box(yolo: onnxcam.Explainer) -> None:
    expected = gradient("yolov8", lambda out: out["output0"][0, 0, 17] - out["output0"][0, 2, 17] / 2)
    actual = yolo.attribution(detectors.pictures(2), Box(17, part="x0"), method="saliency")[0]
    assert distance(actual, expected) < 1e-5


def test_several_boxes_have_a_map_each(yolo: onnxcam.Explainer) -> None:
    picture = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    best = yolo.boxes(picture)
    explanation = yolo.explain(picture, target=[Box(best[0].index), Box(best[1].index)])
    assert [one.box for one in explanation.maps] == best[:2]
    assert explanation.boxes == best
    for one, box in zip(explanation.maps, best, strict=False):
        alone = yolo.explain(picture, target=Box(box.index))
        assert np.abs(alone.heatmap - one.heatmap).max() < 1e-6
