"""The boxes of a detector against an NMS by brute force and against OpenCV's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from onnxcam.targets.detections import best_class, best_classes, detections, iou, suppress
from onnxcam.targets.tasks import Detect, Slab


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU in scalars."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return float(width * height / union) if union > 0 else 0.0


def brute_force(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, limit: float) -> list[int]:
    """Candidates in order of score; each stays unless a better one of its class that stayed overlaps it."""
    stay: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(classes[i] != classes[j] or overlap(boxes[i], boxes[j]) <= limit for j in stay):
            stay.append(i)
    return stay


def scene(seed: int, n: int = 60, k: int = 3) -> tuple[Detect, np.ndarray, np.ndarray]:
    """A dense detector, the table of its candidates `[n, 4 + k]` and its row."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(10, 90, (8, 2))[rng.integers(8, size=n)] + rng.normal(scale=3, size=(n, 2))
    table = np.concatenate([centres, rng.uniform(8, 30, (n, 2)), rng.uniform(size=(n, k))], axis=1)
    task = Detect(Slab(0, 4, 4 + k, 0, True), Slab(4, k, 4 + k, 0, True), 4 + k, k, n, box_format="cxcywh")
    return task, table, table.T.reshape(-1).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("limit", [0.2, 0.45, 0.7])
def test_nms_against_brute_force_and_opencv(seed: int, limit: float) -> None:
    task, table, row = scene(seed)
    table = task.scores.read(row, 60).astype(np.float64)
    best, classes = table.max(axis=1), table.argmax(axis=1)
    boxes = task.pixels(task.boxes.read(row, 60), (100, 100))
    result = detections(task, row, (100, 100), ["a", "b", "c"], confidence=0.4, overlap=limit)
    candidates = np.flatnonzero(best >= 0.4)
    expected = [
        int(candidates[i]) for i in brute_force(boxes[candidates], best[candidates], classes[candidates], limit)
    ]
    assert [d.index for d in result] == expected
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    opencv = cv2.dnn.NMSBoxesBatched(corners.tolist(), best.tolist(), classes.tolist(), 0.4, limit)
    assert set(map(int, np.ravel(opencv))) == set(expected)
    for detection in result:
        assert detection.label == "abc"[classes[detection.index]]
        assert detection.score == pytest.approx(best[detection.index])
        np.testing.assert_allclose(detection.box, boxes[detection.index])
    assert detections(task, row, (100, 100), confidence=0.4, overlap=limit, most=3) == [
        type(d)(d.index, str(d.class_index), d.class_index, d.score, d.box) for d in result[:3]
    ]


def test_candidates_of_a_file_that_ends_in_an_nms_are_all_reported() -> None:
    rows = np.array([[0, 0, 10, 10, 0.9, 2], [0, 0, 10, 10, 0.8, 2], [1, 1, 5, 5, 0.1, 0], [0, 0, 0, 0, 0, 0]])
    task = Detect(Slab(0, 4, 6), Slab(4, 1, 6), 6, None, labels=Slab(5, 1, 6), overlapping=False)
    result = detections(task, rows.reshape(-1), (20, 20), confidence=0.0)
    assert [(d.index, d.class_index, d.label) for d in result] == [(0, 2, "2"), (1, 2, "2"), (2, 0, "0")]
    assert detections(task, np.empty(0), (20, 20)) == []


def test_no_object_is_not_a_class() -> None:
    logits = np.array([[0.0, 3.0, 9.0], [5.0, 0.0, 0.0]])
    row = np.concatenate([np.tile([0.5, 0.5, 0.2, 0.2], 2), logits.reshape(-1)])
    task = Detect(
        Slab(0, 4, 4), Slab(0, 3, 3, 4), 7, 3, 2, box_format="cxcywh", unit="relative", activation="softmax",
        background=2, overlapping=False,
    )  # fmt: skip
    (only,) = detections(task, row, (100, 200))
    assert (only.index, only.class_index) == (1, 0)
    np.testing.assert_allclose(only.box, [80, 40, 120, 60])


def test_boxes_without_an_area() -> None:
    boxes = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [5, 5, 4, 4.0]])
    np.testing.assert_array_equal(iou(boxes[0], boxes), [0, 0, 0])
    np.testing.assert_array_equal(suppress(boxes, np.zeros(3), 0.5, 10), [0, 1, 2])
    assert len(suppress(boxes, np.zeros(3), 0.5, 2)) == 2


@pytest.mark.parametrize("components_first", [False, True])
@pytest.mark.parametrize(
    ("objectness", "activation", "background", "labels"),
    [
        (False, None, None, False),
        (True, "sigmoid", None, False),
        (False, "softmax", 2, False),
        (False, None, None, True),
    ],
)
def test_one_candidate_is_read_as_all_of_them_are(
    components_first: bool, objectness: bool, activation: str | None, background: int | None, labels: bool
) -> None:
    """Its columns by where distinct numbers stand in the row, its scores and best class by those of all."""
    count, classes = 7, 1 if labels else 4
    width = 4 + objectness + classes + labels
    first = 4 + objectness
    task = Detect(
        Slab(0, 4, width, 0, components_first), Slab(first, classes, width, 0, components_first), width, classes, count,
        objectness=Slab(4, 1, width, 0, components_first) if objectness else None,
        labels=Slab(first + 1, 1, width, 0, components_first) if labels else None,
        activation=activation, background=background,
    )  # fmt: skip
    table = np.random.default_rng(width).permutation(count * width).reshape(count, width).astype(np.float32) / 8
    row = (table.T if components_first else table).reshape(-1)
    every, (best, _) = task.probabilities(row), best_classes(task, row)
    for candidate in range(count):
        np.testing.assert_allclose(task.probabilities_of(row, candidate), every[candidate], rtol=1e-14)
        assert best_class(task, row, candidate) == best[candidate]
        for index in range(classes):
            expected = [table[candidate, first + index], *([table[candidate, 4]] if objectness else [])]
            assert row[task.terms(candidate, index, len(row))].tolist() == expected
