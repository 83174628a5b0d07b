"""Where in the columns of a task's scores what lies, against the arrays that were flattened."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import special

from onnxcam.errors import InputError
from onnxcam.targets import tasks
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import Detect, Embed, Segment, Slab, Task, Values

RNG = np.random.default_rng(7)
M, K = 5, 3


def yolo(first: bool, objectness: bool) -> tuple[Detect, np.ndarray, np.ndarray]:
    """A detector, the numbers of its candidates `[M, width]`, and its columns."""
    width = 4 + objectness + K
    table = RNG.uniform(size=(M, width))
    task = Detect(
        Slab(0, 4, width, 0, first),
        Slab(4 + objectness, K, width, 0, first),
        width,
        K,
        M,
        Slab(4, 1, width, 0, first) if objectness else None,
        box_format="cxcywh",
    )
    return task, table, (table.T if first else table).reshape(-1)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("objectness", [False, True])
def test_candidates_of_one_output(first: bool, objectness: bool) -> None:
    task, table, row = yolo(first, objectness)
    np.testing.assert_array_equal(task.boxes.read(row, M), table[:, :4])
    np.testing.assert_array_equal(row[task.boxes.columns(M)], table[:, :4])
    expected = table[:, -K:] * (table[:, 4:5] if objectness else 1)
    np.testing.assert_allclose(task.probabilities(row), expected)
    np.testing.assert_allclose(task.probabilities(np.stack([row, row]))[1], expected)
    for m in range(M):
        for c in range(K):
            assert np.prod(row[task.terms(m, c, len(row))]) == pytest.approx(expected[m, c])
    assert task.columns == len(row)


def test_candidates_of_two_outputs_and_an_unknown_number_of_them() -> None:
    logits, boxes = RNG.normal(size=(M, K)), RNG.uniform(size=(M, 4))
    row = np.concatenate([boxes.T.reshape(-1), logits.reshape(-1)])
    task = Detect(
        Slab(0, 4, 4, 0, True), Slab(0, K, K, 4), 4 + K, K, unit="relative", activation="softmax", background=K - 1
    )
    np.testing.assert_allclose(task.probabilities(row), special.softmax(logits, axis=1))
    np.testing.assert_array_equal(row[task.scores.columns(M)], logits)
    pixels = task.pixels(task.boxes.read(row, M), (20, 10))
    np.testing.assert_allclose(pixels, boxes * [10, 20, 10, 20])
    assert task.columns is None
    with pytest.raises(InputError, match="multiple of 7"):
        task.count(36)


@pytest.mark.parametrize(
    ("box_format", "numbers"),
    [("xyxy", [1, 2, 5, 8]), ("yxyx", [2, 1, 8, 5]), ("cxcywh", [3, 5, 4, 6]), ("xywh", [1, 2, 4, 6])],
)
def test_the_formats_of_a_box(box_format: str, numbers: list[float]) -> None:
    task = Detect(Slab(0, 4, 4), Slab(0, 1, 1, 4), 5, 1, box_format=box_format)
    np.testing.assert_allclose(task.pixels(np.array([numbers], float), (9, 9)), [[1, 2, 5, 8]])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_grid_of_classes(last: bool, fixed: bool) -> None:
    array = RNG.normal(size=(2, K, 4, 6))
    scores = (np.moveaxis(array, 1, -1) if last else array).reshape(2, -1)
    task = Segment(K, 4 if fixed else None, 6 if fixed else None, last, "softmax")
    np.testing.assert_array_equal(task.canonical(scores, (32, 48)), array)
    np.testing.assert_array_equal(task.flatten(array), scores)
    np.testing.assert_allclose(task.probabilities(scores, (32, 48)), special.softmax(array, axis=1))
    assert task.columns == (K * 24 if fixed else None)
    if not fixed:
        with pytest.raises(InputError, match="no grid"):
            task.canonical(scores, (48, 50))


def test_several_outputs_of_values() -> None:
    task = Values(("age", "pose"), (1, 3))
    assert [task.column("age"), task.column("pose", 2)] == [0, 3]
    assert Values(("age",), (1,)).column() == 0
    for name, index, message in [
        (None, None, "several outputs"), ("pose", None, r"NAME\[index\]"), ("pose", 3, "expected one of"),
        ("size", 0, "no output"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            task.column(name, index)


@pytest.mark.parametrize(
    "task",
    [yolo(True, True)[0], yolo(False, False)[0], Segment(3, None, None, True), Embed(8, True), Values(("a",), (2,)),
     Detect(Slab(0, 4, 6), Slab(4, 1, 6), 6, None, None, None, Slab(5, 1, 6), one_picture=True, overlapping=False)],
)  # fmt: skip
def test_a_manifests_entry_gives_the_task_back(task: Task) -> None:
    assert tasks.from_entry(json.loads(json.dumps(task.describe()))) == task
    readout = Readout.of_task("y", task, "y", ("doubt",))
    assert Readout.from_manifest(json.loads(json.dumps(readout.describe()))) == readout
    assert (readout.columns or None) == task.columns  # 0 where it depends on the picture
    assert readout.numeric or readout.tabulated


@pytest.mark.parametrize(
    ("task", "names", "expected"),
    [
        (yolo(True, True)[0], ["a", "b", "c"], ["a", "b", "c"]),
        (yolo(True, True)[0], ["a", "b"], None),
        (Detect(Slab(0, 4, 4), Slab(0, 3, 3, 4), 7, 3, background=2), ["a", "b"], ["a", "b", "no object"]),
        (Detect(Slab(0, 4, 4), Slab(0, 3, 3, 4), 7, 3, background=0), ["a", "b"], ["no object", "a", "b"]),
        (Detect(Slab(0, 4, 4), Slab(0, 3, 3, 4), 7, None), ["a", "b"], ["a", "b"]),
        (Segment(2, 3, 3), ["a", "b"], ["a", "b"]),
        (Segment(2, 3, 3), ["a"], None),
        (Segment(2, 3, 3), None, None),
    ],
)
def test_names_fit_the_classes(task: Any, names: list[str] | None, expected: list[str] | None) -> None:
    assert tasks.fit_names(task, names) == expected
