"""Gradients of exported detectors and segmenters against torch's autograd, non-maximum suppression included.

`make test` runs one of each kind; `make soak` every one.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam.errors import UnsupportedOperator
from onnxcam.graph.view import uses
from tests.support import torchvision_detectors as detectors
from tests.support.runtime import session

pytestmark = [pytest.mark.torch, pytest.mark.slow]
TOLERANCE = 1e-3
SAMPLE = ("faster_rcnn", "lraspp")
EVERY = [
    pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.soak)
    for name in (*detectors.DETECTORS, *detectors.SEGMENTERS)
]


@functools.cache
def eager(name: str, double: bool = True) -> detectors.Eager:
    return detectors.Eager(name, double=double)


def scalars(name: str) -> list[tuple[str, np.ndarray]]:
    """Outputs and cotangents: scores of boxes, coordinates of boxes inside the picture, a region of a class."""
    outputs = eager(name).outputs
    if name in detectors.SEGMENTERS:
        region = np.zeros(outputs["out"].shape, np.float32)
        region[0, 1, 30:60, 40:70] = 1
        return [("out", region)]
    cotangents: list[tuple[str, np.ndarray]] = []
    boxes = outputs["boxes"].detach().numpy()
    size = eager(name).layers[-1].shape[-1]
    inside = [int(k) for k in np.flatnonzero((boxes > 0.5).all(1) & (boxes < size - 0.5).all(1))]
    assert inside, "every box is clipped"
    for row in (0, len(boxes) // 2):
        cotangents.append(("scores", _one(outputs["scores"].shape, (row,))))
    cotangents += [("boxes", _one(boxes.shape, (inside[0], side))) for side in range(4)]
    cotangents.append(("boxes", _one(boxes.shape, (inside[-1], 3))))
    if "mask_logits" in outputs:
        mask = np.zeros(outputs["mask_logits"].shape, np.float32)
        mask[0, 1:3, 5:20, 8:25] = 1
        cotangents.append(("mask_logits", mask))
    return cotangents


def _one(shape: Any, place: tuple[int, ...]) -> np.ndarray:
    cotangent = np.zeros(shape, np.float32)
    cotangent[place] = 1
    return cotangent


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_autograd(name: str) -> None:
    oracle, single = eager(name), eager(name, double=False)
    model, (_, picture) = detectors.exported(name), detectors.network(name)
    feed = {model.graph.input[0].name: picture.detach().numpy()[0 if name in detectors.DETECTORS else ...]}
    values = [layer.detach().numpy() for layer in single.layers[:-1]]
    outputs = list(dict.fromkeys(output for output, _ in scalars(name)))
    values += [single.outputs[output].detach().numpy() for output in outputs]
    matches = detectors.matching(model, feed, values)
    names = [*matches[: len(matches) - len(outputs)], *feed]
    for output, of in zip(outputs, matches[-len(outputs) :], strict=True):
        cotangents = [cotangent for key, cotangent in scalars(name) if key == output]
        expected = [oracle.gradients(output, cotangent) for cotangent in cotangents]
        reached = [k for k in range(len(names)) if any(grads[k].any() for grads in expected)]
        assert len(reached) >= 2, "neither a layer nor the picture"
        file = session(onnxcam.gradient(model, of=of, wrt=[names[k] for k in reached]))
        for cotangent, grads in zip(cotangents, expected, strict=True):
            gradient = file.run([f"grad.{names[k]}" for k in reached], {**feed, f"cotangent.{of}": cotangent})
            rounded = single.gradients(output, cotangent)
            for k, grad in zip(reached, gradient, strict=True):
                if not grads[k].any():  # a level may have no part in a box
                    assert not grad.any(), (output, cotangent.nonzero(), names[k])
                    continue
                limit = max(TOLERANCE, 3 * _error(rounded[k], grads[k]))
                assert _error(grad.reshape(grads[k].shape), grads[k]) < limit, (output, cotangent.nonzero(), names[k])


@pytest.mark.soak
def test_a_mask_pasted_by_a_loop_is_refused_with_the_value_before_it() -> None:
    """Exporters paste masks of boxes into the picture in a Loop; the mask head before it has a gradient."""
    model = detectors.exported("mask_rcnn")
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    (picture,) = (value.name for value in model.graph.input)
    message = r"operator Loop .* repeats a subgraph .*or explain a value before it \(scores='.*'; .*--scores "
    with pytest.raises(UnsupportedOperator, match=message) as refusal:
        onnxcam.gradient(model, of=model.graph.output[-1].name, wrt=[picture])
    before = str(refusal.value).split("scores='")[1].split("'")[0]
    assert before in set(uses(loop))


def _error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b)) / max(float(np.linalg.norm(b)), 1e-12)
