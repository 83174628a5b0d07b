"""Maps of boxes and regions of torchvision's own networks, exported, against autograd: their NMS and regions inside."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.targets.scalars import Box, Region
from tests.support import torchvision_detectors as networks
from tests.support.runtime import session

pytestmark = [pytest.mark.torch, pytest.mark.slow]
SAMPLE = ("retinanet", "lraspp")
EVERY = [
    pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.soak)
    for name in (*networks.DETECTORS, *networks.SEGMENTERS)
]


@functools.cache
def eager(name: str) -> networks.Eager:
    return networks.Eager(name)


@pytest.mark.parametrize("name", EVERY)
def test_maps_are_those_of_autograd(name: str) -> None:
    """Grad-CAM and HiResCAM at a layer of the backbone, of files opened without a word about what they are."""
    oracle, model = eager(name), networks.exported(name)
    picture = networks.network(name)[1].numpy()
    feed = {model.graph.input[0].name: picture[0 if name in networks.DETECTORS else ...]}
    activations = [layer.detach().numpy() for layer in oracle.layers[:-1]]
    single = [layer.detach().numpy() for layer in networks.Eager(name, double=False).layers[:-1]]
    layers = networks.matching(model, feed, single)
    explainer = onnxcam.Explainer(model, layers=layers, preprocess="0..1")
    targets: list[tuple[object, str, np.ndarray]] = []
    if name in networks.SEGMENTERS:
        region = np.zeros(oracle.outputs["out"].shape, np.float32)
        region[0, 1, 16:64, 32:96] = 1
        targets.append((Region(1, (32, 16, 96, 64)), "out", region))
    else:
        rows = len(oracle.outputs["scores"])
        boxes = oracle.outputs["boxes"].detach().numpy()
        detections = explainer.boxes(np.round(255 * picture[0].transpose(1, 2, 0)).astype(np.uint8))
        assert len(detections) == rows
        inside = int(np.flatnonzero((boxes > 0.5).all(1) & (boxes < picture.shape[-1] - 0.5).all(1))[0])
        for place, target in ((0, Box(0)), (rows - 1, Box(rows - 1))):
            cotangent = np.zeros(rows, np.float32)
            cotangent[place] = 1
            targets.append((target, "scores", cotangent))
        edge = np.zeros((rows, 4), np.float32)
        edge[inside, 2] = 1
        targets.append((Box(inside, part="x1"), "boxes", edge))
    compared = 0
    for target, output, cotangent in targets:
        for layer, a, g in zip(layers, activations, oracle.gradients(output, cotangent), strict=False):
            if not g.any():
                continue
            expected = {
                "gradcam": np.maximum((g.mean((2, 3), keepdims=True) * a).sum(1), 0),
                "hirescam": np.maximum((g * a).sum(1), 0),
            }
            maps = explainer.attribute(picture, target, list(expected), layer, normalize="none", size="layer")
            for (method, values), actual in zip(expected.items(), maps, strict=True):
                difference = np.linalg.norm(actual - values) / max(np.linalg.norm(values), 1e-12)
                assert difference < 1e-3 or np.abs(actual - values).max() < 1e-6, (target, layer, method, difference)
                compared += bool(values.any())
    assert compared >= 2


def test_the_file_takes_a_box(tmp_path: Path) -> None:
    """Maps that the file is made for: its picture has a batch axis, which the network's has not."""
    name = "retinanet"
    oracle, model = eager(name), networks.exported(name)
    picture = networks.network(name)[1].numpy()
    single = [layer.detach().numpy() for layer in networks.Eager(name, double=False).layers[:-1]]
    layers = networks.matching(model, {model.graph.input[0].name: picture[0]}, single)
    onnx.save(onnxcam.augment(model, layers, preprocess="0..1"), tmp_path / "file.onnx")
    explainer = onnxcam.Explainer(tmp_path / "file.onnx")
    cotangent = np.zeros(len(oracle.outputs["scores"]), np.float32)
    cotangent[1] = 1
    grads = oracle.gradients("scores", cotangent)
    place = next(k for k, grad in enumerate(grads) if grad.any())
    a, g = oracle.layers[place].detach().numpy(), grads[place]
    actual = explainer.attribute(picture, Box(1), "hirescam", layers[place], normalize="none", size="layer")
    expected = np.maximum((g * a).sum(1), 0)
    assert np.linalg.norm(actual - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", [pytest.param("faster_rcnn_of_levels", marks=pytest.mark.soak), "fcos_of_levels"])
def test_a_box_is_explained_at_the_level_its_score_comes_from(name: str) -> None:
    """The file says no size of a level, and which box comes from which depends on the picture."""
    oracle, model = eager(name), networks.exported(name)
    picture = networks.network(name)[1].numpy()
    single = [layer.detach().numpy() for layer in networks.Eager(name, double=False).layers[:-1]]
    names = networks.matching(model, {model.graph.input[0].name: picture[0]}, single)
    explainer = onnxcam.Explainer(model, preprocess="0..1")
    pixels = np.round(255 * picture[0].transpose(1, 2, 0)).astype(np.uint8)
    exact = pixels.transpose(2, 0, 1).astype(np.float32) / 255
    (of,) = networks.matching(
        model, {model.graph.input[0].name: picture[0]}, [oracle.outputs["scores"].detach().numpy()]
    )
    names = [layer for layer in names if "MaxPool" not in layer]  # no layer: its boxes are explained where it is pooled
    derived = session(onnxcam.gradient(model, of, names))  # which is autograd's: tests/autodiff/test_detectors.py
    rows = len(oracle.outputs["scores"])
    selected = [entry.scalar.layer for entry in explainer.explain(pixels, [Box(k) for k in range(rows)]).maps]
    # regions of a picture of 128 pixels are all pooled from the finest level
    assert len(set(selected)) >= (2 if name == "fcos_of_levels" else 1)
    for row, layer in enumerate(selected):
        cotangent = np.zeros(rows, np.float32)
        cotangent[row] = 1
        feeds = {model.graph.input[0].name: exact, f"cotangent.{of}": cotangent}
        grads = derived.run([f"grad.{value}" for value in names], feeds)
        assert layer in [value for value, grad in zip(names, grads, strict=True) if grad.any()]
