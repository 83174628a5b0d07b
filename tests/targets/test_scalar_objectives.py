"""Objectives of boxes, regions, similarities and values, against finite differences and brute force, in NumPy alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from onnxcam.errors import OnnxcamError, TargetError
from onnxcam.image import Geometry
from onnxcam.targets import scalars
from onnxcam.targets.difference import Difference
from onnxcam.targets.readout import Readout
from onnxcam.targets.resolution import check, expand, resolve
from onnxcam.targets.scalars import PARTS, Box, Region, Several, Similarity, Value
from onnxcam.targets.tasks import Detect, Embed, Segment, Slab, Task, Values

SIZE = (60, 80)
WHOLE = Geometry(SIZE, SIZE, (0, 0), SIZE)
M = 9
DENSE = Detect(Slab(0, 4, 8, 0, True), Slab(5, 3, 8, 0, True), 8, 3, M, Slab(4, 1, 8, 0, True), box_format="cxcywh")
SORTED = Detect(Slab(0, 4, 6), Slab(4, 1, 6), 6, None, M, labels=Slab(5, 1, 6), overlapping=False)
QUERIES = Detect(Slab(0, 4, 4), Slab(0, 4, 4, before=4), 8, 4, M, box_format="cxcywh", unit="relative",
                 activation="softmax", background=3, overlapping=False)  # fmt: skip
LABELS = ["cat", "dog", "hen"]


def row(task: Detect, seed: int = 0) -> np.ndarray:
    """The columns of one picture, a score of the first class at the first candidate that is reported."""
    rng = np.random.default_rng(seed)
    columns = np.zeros(M * task.width)
    corner, side = rng.uniform(0, 40, (M, 2)), rng.uniform(8, 20, (M, 2))
    boxes = np.concatenate([corner, corner + side], 1) if task.box_format == "xyxy" else np.concatenate(
        [corner + side / 2, side], 1)  # fmt: skip
    boxes = boxes / [80, 60, 80, 60] if task.unit == "relative" else boxes
    columns[task.boxes.columns(M)] = boxes
    scores = rng.uniform(0.3, 0.9, (M, task.scores.size)) if task.activation is None else rng.normal(0, 2, (M, 4))
    columns[task.scores.columns(M)] = scores
    if task.objectness is not None:
        columns[task.objectness.columns(M)] = rng.uniform(0.6, 0.9, (M, 1))
    if task.labels is not None:
        columns[task.labels.columns(M)] = rng.integers(0, 3, (M, 1))
    return columns


def objective(task: Task, target: Any, columns: np.ndarray, placement: Geometry = WHOLE) -> Any:
    readout = Readout.of_task("columns", task)
    return resolve(check(target, readout, None), columns[None], readout, None, placements=[placement])


def differences(one: Any, columns: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central finite differences of an objective at the columns of one picture."""
    moved = columns + np.concatenate([np.eye(len(columns)), -np.eye(len(columns))]) * step
    values = one.value(moved, np.zeros(len(moved), np.int64))
    return (values[: len(columns)] - values[len(columns) :]) / (2 * step)


@pytest.mark.parametrize("task", [DENSE, SORTED, QUERIES], ids=["dense", "sorted", "queries"])
@pytest.mark.parametrize("part", PARTS)
def test_the_gradient_of_a_box(task: Detect, part: str) -> None:
    columns = row(task)
    one = objective(task, Box(4, part=part), columns)
    if part == "score*iou":  # a little away from where edges coincide: half of each side's gradient there
        gradient = one.cotangent(columns[None], np.zeros(1, np.int64))[0]
        assert np.abs(gradient - differences(one, columns, 1e-7)).max() < 1e-5 * max(1, np.abs(gradient).max())
        columns = columns + np.where(np.isin(np.arange(len(columns)), task.boxes.columns(M)[4]), 1e-3, 0)
    gradient = one.cotangent(columns[None], np.zeros(1, np.int64))[0]
    places = np.r_[task.boxes.columns(M)[4], task.terms(4, int(one.classes[0]), len(columns))]
    expected = differences(one, columns)
    assert np.abs(gradient - expected)[places].max() < 1e-5 * max(1, np.abs(expected[places]).max())
    assert not np.delete(gradient, places).any()


@pytest.mark.parametrize("task", [SORTED, QUERIES], ids=["sorted", "queries"])
def test_a_box_that_moved_in_the_order_is_matched(task: Detect) -> None:
    """By the highest score times overlap, whatever its index is: brute force over all candidates."""
    columns = row(task)
    one = objective(task, Box(4), columns)
    class_index, reference = int(one.classes[0]), np.array(one.subject.box)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        changed = columns.copy().reshape(-1)
        order = rng.permutation(M)
        for slab in (task.boxes, task.scores, task.labels):
            if slab is not None:
                block = columns[slab.columns(M)][order]
                noise = 0 if slab is task.labels else rng.uniform(0.9, 1.1, block.shape)
                changed[slab.columns(M)] = block if slab is task.labels else block * noise
        boxes = task.pixels(changed[task.boxes.columns(M)], SIZE)
        p = task.probabilities(changed)
        labels = changed[task.labels.columns(M)][:, 0] if task.labels is not None else None
        likely = np.where(labels == class_index, p[:, 0], 0) if labels is not None else p[:, class_index]
        overlap = np.array([_iou(box, reference) for box in boxes])
        best = int((likely * overlap).argmax())
        raw = changed[task.scores.columns(M)][best, 0 if labels is not None else class_index]
        value = one.value(changed[None], np.zeros(1, np.int64))[0]
        if task.activation is None:
            assert value == pytest.approx(overlap[best] * raw if likely[best] > 0 else 0.0, abs=1e-9)
        else:  # a logit may be negative
            assert value == pytest.approx(raw + np.log(max(overlap[best], 1e-6)), abs=1e-9)


def test_a_box_that_leaves_its_place_scores_less_whatever_the_sign_of_its_logit() -> None:
    columns = row(QUERIES)
    places = QUERIES.boxes.columns(M)[4]
    for logit in (-3.0, 3.0):
        columns[QUERIES.terms(4, 1, len(columns))] = logit
        one = objective(QUERIES, Box(4, part="score*iou"), columns)
        moved = np.repeat(columns[None], 4, axis=0)
        moved[:, places[0]] += [0, 0.01, 0.03, 0.06]
        assert (np.diff(one.value(moved, np.zeros(4, np.int64))) < 0).all()


def test_no_candidate_at_all_has_no_score() -> None:
    task = Detect(Slab(0, 4, 6), Slab(4, 1, 6), 6, None, None, labels=Slab(5, 1, 6), overlapping=False)
    one = objective(task, Box(0), row(SORTED))
    assert one.value(np.zeros((1, 0)), np.zeros(1, np.int64)) == [0.0]
    with pytest.raises(TargetError, match="reports no box on this picture"):
        objective(task, Box(0), np.zeros(0))


def test_a_cosine() -> None:
    rng = np.random.default_rng(1)
    z, v = rng.normal(size=6), rng.normal(size=6)
    one = objective(Embed(6), Similarity(v), z)
    assert one.value(z[None], np.zeros(1, int))[0] == pytest.approx(z @ v / np.linalg.norm(z) / np.linalg.norm(v))
    assert np.allclose(one.cotangent(z[None], np.zeros(1, int))[0], differences(one, z), atol=1e-8)
    with pytest.raises(TargetError, match="no direction"):
        Similarity(np.zeros(6))


def test_padding_around_a_picture_is_of_no_class() -> None:
    """A picture of 60 x 40 in the middle of 60 x 80: a quarter of the cells on each side shows padding."""
    placement = Geometry((60, 40), (60, 40), (0, 20), SIZE)
    scores = np.zeros((3, 6, 8))
    scores[1, :, [0, 1, 6, 7]] = 5  # all of the padding
    scores[2, 1:3, 2:6] = 5  # 8 cells of the picture
    scores[1, 4, 3] = 5  # one of the picture
    task = Segment(3, 6, 8, activation="softmax")
    labels = ["background", "wall", "road"]
    readout = Readout.of_task("columns", task)
    one = resolve(None, scores.reshape(1, -1), readout, labels, placements=[placement])
    assert (one.classes[0], one.columns.size) == (2, 8)
    wall = resolve(check(1, readout, labels), scores.reshape(1, -1), readout, labels, placements=[placement])
    assert wall.columns.tolist() == [48 + 4 * 8 + 3]
    narrow = Geometry((60, 1), (60, 1), (0, 39), SIZE)  # between the centres of two columns of cells
    assert resolve(None, scores.reshape(1, -1), readout, labels, placements=[narrow]).columns.size


def test_regions_of_both_orders_of_axes_are_the_same_cells() -> None:
    scores = np.random.default_rng(2).normal(size=(3, 6, 8))
    first, last = Segment(3, 6, 8, activation="softmax"), Segment(3, 6, 8, True, activation="softmax")
    target = Region(1, (15, 12, 52, 41))
    a = objective(first, target, scores.reshape(-1))
    b = objective(last, target, scores.transpose(1, 2, 0).reshape(-1))
    inside = [(y, x) for y in range(6) for x in range(8) if 12 <= 10 * y + 5 < 41 and 15 <= 10 * x + 5 < 52]
    expected = sum(scores[1, y, x] for y, x in inside)
    for one, columns in ((a, scores.reshape(-1)), (b, scores.transpose(1, 2, 0).reshape(-1))):
        assert one.value(columns[None], np.zeros(1, int))[0] == pytest.approx(expected)
        assert one.cotangent(columns[None], np.zeros(1, int)).sum() == len(inside)


@pytest.mark.parametrize(
    ("region", "placement", "words"),
    [
        ((10, 10, 30, 30), WHOLE, None),
        ((0, 0, 80, 60), WHOLE, None),
        ((50, 10, 99, 30), WHOLE, ["beyond the picture", "80 x 60", "50, 10, 80, 30"]),
        ((-5, -1, 30, 30), WHOLE, ["-5, -1, 30, 30", "0, 0, 30, 30"]),
        # of 100 x 120 pixels the middle is seen, 60 x 80 of them
        ((30, 30, 60, 60), Geometry((100, 120), (100, 120), (-20, -20), SIZE), None),
        ((10, 30, 60, 60), Geometry((100, 120), (100, 120), (-20, -20), SIZE), ["model sees", "20, 30, 60, 60"]),
        (
            (-5, 30, 60, 60),
            Geometry((100, 120), (100, 120), (-20, -20), SIZE),
            ["beyond the picture", "0, 30, 60, 60", "model sees", "20, 30, 60, 60"],
        ),
        # padding around the picture is not in it
        ((0, 0, 40, 60), Geometry((60, 40), (60, 40), (0, 20), SIZE), None),
        ((0, 0, 41, 60), Geometry((60, 40), (60, 40), (0, 20), SIZE), ["beyond the picture", "40 x 60"]),
    ],
)
def test_a_region_partly_outside_is_told(region: Any, placement: Any, words: list[str] | None) -> None:
    task = Segment(3, 6, 8, activation="softmax")
    scores = np.random.default_rng(2).normal(size=(1, 144))
    one = resolve(Region(1, region), scores, Readout.of_task("columns", task), None, placements=[placement])
    if words is None:
        assert one.subject.doubt is None
    else:
        assert all(word in one.subject.doubt for word in words), one.subject.doubt


def test_a_mask_partly_cropped_is_told() -> None:
    placement = Geometry((100, 120), (100, 120), (-20, -20), SIZE)
    task, mask = Segment(3, 6, 8, activation="softmax"), np.zeros((100, 120), bool)
    readout, scores = Readout.of_task("columns", task), np.random.default_rng(2).normal(size=(1, 144))
    mask[30:50, 40:60] = True
    assert resolve(Region(1, mask), scores, readout, None, placements=[placement]).subject.doubt is None
    mask[5, 50] = True
    doubt = resolve(Region(1, mask), scores, readout, None, placements=[placement]).subject.doubt
    assert doubt.startswith("the mask reaches beyond the part of the picture that the model sees")


def test_the_best_boxes_and_the_largest_classes() -> None:
    columns = row(DENSE)
    readout = Readout.of_task("columns", DENSE)
    every = expand(None, 99, columns, readout, LABELS, WHOLE)
    scores = DENSE.probabilities(columns).max(axis=1)
    assert [one.index for one in every] == sorted((one.index for one in every), key=lambda k: -scores[k])
    assert expand(None, 1, columns, readout, LABELS, WHOLE) == every[:1]
    cells = np.zeros((3, 6, 8))
    cells[2, :, :4], cells[1, :2, 4:], cells[0, 2:, 4:] = 1, 1, 1
    segment = Readout.of_task("columns", Segment(3, 6, 8))
    for names, expected in ((None, [2, 0, 1]), (["background", "a", "b"], [2, 1]), (["a", "b", "background"], [0, 1])):
        targets = expand(None, 3, cells.reshape(-1), segment, names, WHOLE)
        assert [one.label for one in targets] == expected


@pytest.mark.parametrize(
    "entry",
    [
        {"box": 3}, {"box": {"label": "cat", "at": [4, 5], "part": "x0"}}, {"box": {"rank": 2}},
        {"region": [1, 2, 3, 4], "label": 1}, {"like": [1.0, 2.0]}, {"output": "depth", "index": 2, "sign": -1},
        {"minus": [{"box": 3}, {"box": 4}]},
    ],
)  # fmt: skip
def test_targets_of_json(entry: dict[str, Any]) -> None:
    target = scalars.from_json(json.loads(json.dumps(entry)))
    assert scalars.is_scalar(target)
    if "like" not in entry:
        again = scalars.from_json(json.loads(json.dumps(scalars.describe(target))))
        assert scalars.describe(again) == scalars.describe(target)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"box": {"name": "cat"}}, "a box has no 'name'"), ({"box": -1}, "whole number from 0"), ({}, "is no target"),
        ({"box": 1, "like": [1]}, "is no target"), ({"region": [1, 2, 1, 4]}, "no area"), ({"like": "/etc/passwd"},
        "could be any file"), ({"minus": [1]}, "list of two"), ({"box": 1, "sign": 1}, "has no 'sign'"),
        ({"region": [1, 2, float("nan"), 4]}, "finite"), ({"output": "y", "sign": 2}, "expected 1 or -1"),
        ({"box": {"index": 1, "label": 2}}, "leave label, at and rank out"),
        ({"box": {"part": "area"}}, "expected one"),
    ],
)  # fmt: skip
def test_json_that_is_no_target(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        scalars.from_json(entry)


def test_differences_of_differences_end() -> None:
    entry: Any = {"box": 1}
    for _ in range(20):
        entry = {"minus": [entry, {"box": 2}]}
    with pytest.raises(TargetError, match="list of two"):
        scalars.from_json(entry)


@pytest.mark.parametrize(
    ("text", "box"),
    [("3", Box(3)), ("rank:0", Box(rank=0)), ("label:cat", Box(label="cat")), ("at:120,80.5", Box(at=(120, 80.5))),
     ("label:cat;at:1,2", Box(label="cat", at=(1, 2)))],
)  # fmt: skip
def test_boxes_of_texts(text: str, box: Box) -> None:
    assert scalars.box_of_text(text) == box


@pytest.mark.parametrize("text", ["", "cat", "-1", "at:1", "at:x,y", "rank:", "99999999999999"])
def test_texts_that_are_no_box(text: str) -> None:
    with pytest.raises(OnnxcamError):
        scalars.box_of_text(text)


def test_values_of_texts() -> None:
    assert scalars.value_of_text("depth[2]") == Value("depth", 2)
    assert scalars.value_of_text("-depth[2]") == Value("depth", 2, -1)
    assert scalars.value_of_text("depth") == Value("depth")
    task = Readout.of_task("columns", Values(("a", "b"), (1, 2)))
    assert check(Value("b[1]"[:1], 1), task) == Value(None, 2)
    assert isinstance(Value("a") - Value("b", 0), Difference)
    assert isinstance(check(Several([Value("a"), Value("b", 0)]), task), Several)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = [max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
    inside = sides[0] * sides[1]
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return inside / (area[0] + area[1] - inside)


@pytest.mark.parametrize("area", [(0, 12), (12, 0), (0, 0)])
def test_a_box_without_area_is_itself(area: tuple[int, int]) -> None:
    """FCOS reports such boxes; their overlap is 0 with anything, and the score has its gradient all the same."""
    columns = row(SORTED)
    boxes = SORTED.boxes.columns(M)
    columns[boxes[2, 2:]] = columns[boxes[2, :2]] + area
    one = objective(SORTED, Box(2), columns)
    assert one.value(columns[None], np.zeros(1, np.int64))[0] == columns[SORTED.scores.columns(M)[2, 0]]
    assert one.cotangent(columns[None], np.zeros(1, np.int64))[0].nonzero()[0].tolist() == [
        SORTED.scores.columns(M)[2, 0]
    ]
