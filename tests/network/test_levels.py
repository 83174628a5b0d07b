"""The cells that candidates come from, against what changes when one cell of a head's map is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.graph.normalize import normalize
from onnxcam.graph.view import Graph
from onnxcam.network import levels
from onnxcam.targets.tasks import Detect, Slab
from tests.network.test_detector_nets import run
from tests.support import detectors

SHAPE = (1, 3, detectors.HEIGHT, detectors.WIDTH)
DENSE = [
    ("yolov8", "output0", 2), ("yolov8-transposed", "output0", 2), ("yolov8-3-levels", "output0", 3),
    ("yolov8-seg", "output0", 2), ("yolov5", "output", 2), ("yolox", "output", 2), ("retinanet", "boxes", 2),
    ("retinanet-first", "scores", 2), ("ssd-raw", "scores", 2), ("segment-last", "out", 1),
]  # fmt: skip


def changed(graph: Graph, level: levels.Level, cell: tuple[int, int], output: str) -> np.ndarray:
    """Whether each number of an output changes with a cell of a map."""
    results = []
    channels = int(str((graph.shape(level.value) or ())[1]))
    for push in (np.zeros(channels), np.random.default_rng(1).normal(size=channels)):  # a softmax ignores a constant
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        pushed = np.zeros((1, channels, level.height, level.width), np.float32)
        pushed[0, :, cell[0], cell[1]] = push
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name == level.value:
                    node.input[place] = "pushed"
        at = next(k for k, node in enumerate(model.graph.node) if level.value in node.output)
        model.graph.initializer.append(onnx.numpy_helper.from_array(pushed, "push"))
        model.graph.node.insert(at + 1, onnx.helper.make_node("Add", [level.value, "push"], ["pushed"]))
        place = [o.name for o in model.graph.output].index(output)
        results.append(run(model, detectors.pictures(1))[place][0])
    return np.asarray(results[0] != results[1])


@pytest.mark.parametrize(("name", "output", "count"), DENSE)
def test_numbers_come_from_the_cells_that_change_them(name: str, output: str, count: int) -> None:
    model = detectors.build(name)
    graph = normalize(model)
    origins = levels.trace(graph, "picture", output, SHAPE)
    assert origins is not None
    strides = sorted({detectors.HEIGHT // level.height for level in origins.levels})
    if name.startswith("segment"):  # a Resize makes the map that the output is
        assert strides == [1]
        np.testing.assert_array_equal(origins.row[..., 0], np.mgrid[: SHAPE[2], : SHAPE[3]][0])
        np.testing.assert_array_equal(origins.column[..., 1], np.mgrid[: SHAPE[2], : SHAPE[3]][1])
        return
    assert strides == [8 << k for k in range(count)]
    assert origins.complete()
    rng = np.random.default_rng(3)
    for index, level in enumerate(origins.levels):
        assert graph.producer[level.value].input[0] == level.features
        cell = int(rng.integers(level.height)), int(rng.integers(level.width))
        expected = (origins.level == index) & (origins.row == cell[0]) & (origins.column == cell[1])
        differs = changed(graph, level, cell, output)
        assert differs.any()
        assert not (differs & ~expected).any()
        assert differs.sum() > 0.9 * expected.sum()


@pytest.mark.parametrize("name", ["detr", "torchvision", "embed"])
def test_what_comes_from_no_cell(name: str) -> None:
    model = detectors.build(name)
    graph = normalize(model)
    assert levels.trace(graph, "picture", model.graph.output[0].name, SHAPE) is None


def test_candidates_and_the_centres_of_their_cells() -> None:
    model = detectors.build("yolov5")
    origins = levels.trace(normalize(model), "picture", "output", SHAPE)
    assert origins is not None
    width, m = 5 + detectors.CLASSES, detectors.M2
    task = Detect(Slab(0, 4, width), Slab(5, 3, width), width, 3, m, Slab(4, 1, width), box_format="cxcywh")
    of_candidates = origins.of(task, task.scores)
    assert (of_candidates.level == np.repeat([0, 1], [2 * 8 * 12, 2 * 4 * 6])).all()
    (table,) = run(model, detectors.pictures(1))
    x, y = (of_candidates.centres() * [detectors.WIDTH, detectors.HEIGHT]).T
    stride = np.where(of_candidates.level == 0, 8, 16)
    assert np.abs(table[0, :, 0] - x).max() <= stride.max() * 1.5  # at most one and a half cells away, by its formula
    assert (np.abs(table[0, :, 1] - y) <= stride * 1.5).all()


def split(op: Any, x: Any) -> dict[str, Any]:
    """A head of one convolution per level whose channels a Split takes apart, after one in the branch before it."""
    boxes, scores = [], []
    for level, a in enumerate(detectors.backbone(op, x)):
        stride, h, w = detectors.cells(level)
        some, others = op.emit("Split", a, op.constant([8, 4], np.int64), outputs=2, axis=1)
        a = op.relu(op.conv(op.concat([others, some], 1), op.weight(12, 12, 3, 3), op.weight(12, scale=0.1)))
        raw = detectors.head(op, a, 4 + detectors.CLASSES, [0.0] * 4 + [-2.0] * detectors.CLASSES)
        parts = op.emit("Split", raw, op.constant([2, 2, detectors.CLASSES], np.int64), outputs=3, axis=1)
        xy, wh, logits = (op.reshape(part, 0, -1, h * w) for part in parts)
        centre = op.mul(op.add(xy, detectors.centres(level)[None]), np.float32(stride))
        boxes.append(op.concat([centre, op.mul(op.exp(wh), np.float32(2 * stride))], 1))
        scores.append(op.sigmoid(logits))
    return {"y": op.concat([op.concat(boxes, 2), op.concat(scores, 2)], 1)}


SPLIT = detectors.Net(split, {"y": ["N", 4 + detectors.CLASSES, detectors.M1]})


def test_levels_through_a_split_of_channels() -> None:
    graph = normalize(detectors.build(SPLIT))
    origins = levels.trace(graph, "picture", "y", SHAPE)
    assert origins is not None and origins.complete()
    assert [(level.height, level.width) for level in origins.levels] == [(8, 12), (4, 6)]
    for index, (level, cell) in enumerate(zip(origins.levels, ((5, 11), (3, 2)), strict=True)):
        expected = (origins.level == index) & (origins.row == cell[0]) & (origins.column == cell[1])
        differs = changed(graph, level, cell, "y")
        assert expected.sum() == 4 + detectors.CLASSES
        assert not (differs & ~expected).any() and differs.sum() > 0.9 * expected.sum()


def test_boxes_behind_a_split_are_explained_at_their_levels() -> None:
    """The layers are those in front of the Split, and the gradient there is not zero at a box's own cell alone."""
    opened = onnxcam.Explainer(detectors.build(SPLIT), task="detect", preprocess="0..1")
    entries = opened.manifest["layers"]
    assert [entry["candidates"] for entry in entries] == [[[0, 96]], [[96, 120]]]
    assert [entry["grid"] for entry in entries] == [[8, 12], [4, 6]]
    picture = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    explanation = opened.explain(picture, target=[onnxcam.targets.Box(100), onnxcam.targets.Box(30)], method="layercam")
    assert [one.scalar.layer for one in explanation.maps] == [entry["name"] for entry in entries][::-1]
    assert all(one.raw_map.any() for one in explanation.maps) and not explanation.warnings


def test_maps_that_are_turned_to_channels_last_between_convolutions() -> None:
    """As tf2onnx writes channels last: the head's map is a map of its own, not the cells of the one before."""

    def turned(op: Any, x: Any) -> dict[str, Any]:
        tables = []
        for level, a in enumerate(detectors.backbone(op, x)):
            last = op.transpose(a, 0, 2, 3, 1)
            a = op.transpose(op.mul(last, op.sigmoid(last)), 0, 3, 1, 2)
            _, h, w = detectors.cells(level)
            tables.append(op.reshape(op.transpose(detectors.head(op, a, 6), 0, 2, 3, 1), 0, h * w, 6))
        return {"y": op.concat(tables, 1)}

    graph = normalize(detectors.build(detectors.Net(turned, {"y": ["N", detectors.M1, 6]})))
    origins = levels.trace(graph, "picture", "y", SHAPE)
    assert origins is not None and origins.complete()
    heads = [node for node in graph.nodes if node.op_type == "Conv" and (graph.shape(node.output[0]) or ())[1] == 6]
    assert [level.value for level in origins.levels] == [node.output[0] for node in heads]
    for index, (level, cell) in enumerate(zip(origins.levels, ((5, 11), (3, 2)), strict=True)):
        expected = (origins.level == index) & (origins.row == cell[0]) & (origins.column == cell[1])
        differs = changed(graph, level, cell, "y")
        assert not (differs & ~expected).any() and differs.sum() > 0.9 * expected.sum()


def test_a_picture_whose_pixels_are_regrouped_first() -> None:
    def focus(op: Any, x: Any) -> dict[str, Any]:
        corners = [(a, b) for a in (0, 1) for b in (0, 1)]
        bounds = [[op.constant(v, np.int64) for v in (corner, [64, 96], [2, 3], [2, 2])] for corner in corners]
        parts = [op.emit("Slice", x, *bound) for bound in bounds]
        a = op.relu(op.conv(op.concat(parts, 1), op.weight(12, 12, 3, 3), op.weight(12, scale=0.1), 4))
        return {"y": op.reshape(detectors.head(op, a, 6), 0, 6, 8 * 12)}

    graph = normalize(detectors.build(detectors.Net(focus, {"y": ["N", 6, 96]})))
    origins = levels.trace(graph, "picture", "y", SHAPE)
    assert origins is not None
    assert [(level.height, level.width) for level in origins.levels] == [(8, 12)]
    np.testing.assert_array_equal(origins.row, np.tile(np.repeat(np.arange(8), 12), (6, 1)))
    np.testing.assert_array_equal(origins.column, np.tile(np.tile(np.arange(12), 8), (6, 1)))
