"""Scalars of a model that is no classifier, at which its file's gradients are compared with its framework's.

Computed from the columns that the framework itself returned, apart from the nodes of the file: the class over its own
cells or a region, a box's score, a cosine, a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.errors import ModelError
from onnxcam.network.manifest import SHARED, Manifest
from onnxcam.targets import detections, regions
from onnxcam.targets.tasks import Detect, Embed, Segment, from_entry

_CLEAR = 1e-3  # least distance of a score from 0 and 1


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of the columns by `weights`, float64 `[N, columns]`."""

    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Product:
    """The product of some `columns`, int64 `[N, factors]`."""

    columns: np.ndarray


@dataclass(frozen=True, eq=False)
class Cosine:
    """The cosine of the columns and a `reference`, float32 `[N, columns]`."""

    reference: np.ndarray


Target = Sum | Product | Cosine


class Question(NamedTuple):
    """One number per row.

    Attributes:
        feeds: the file's inputs beside the picture.
        target: what the framework differentiates: classes, int64 `[N]`, or a `Target`.
    """

    feeds: dict[str, np.ndarray]
    target: Any


def draw(manifest: Manifest, columns: np.ndarray, rng: np.random.Generator) -> list[Question]:
    """Two scalars for each row: the one that the file takes by itself, if any, and a random one.

    Arguments:
        columns: `[N, columns]` of the framework.

    Raises:
        ModelError: a detector that reports nothing at all.
    """
    task, target = from_entry(manifest["scores"]["task"]), manifest["target"]
    rows = len(columns)
    every = np.arange(rows)
    shared = target.get("rows") == SHARED

    def one(values: np.ndarray) -> np.ndarray:
        return np.repeat(values[:1], rows, axis=0) if shared else values

    def feed(values: np.ndarray) -> dict[str, np.ndarray]:
        return {} if target["mode"] == "constant" else {target["name"]: values[:1] if shared else values}

    if isinstance(task, Embed):
        references = [one(rng.standard_normal((rows, task.size)).astype(np.float32)) for _ in range(2)]
        return [Question(feed(reference), Cosine(reference)) for reference in references]
    if isinstance(task, Detect):
        return [
            Question(feed(places), _product(task, columns, places)) for places in map(one, _places(task, columns, rng))
        ]
    if isinstance(task, Segment):
        boxes = np.zeros((rows, 4), np.float32)
        size = _input_size(manifest)
        corners = np.sort(rng.uniform(0, 1, (rows, 2, 2)), axis=1).reshape(rows, 4)
        questions = []
        largest = np.array([_members(task, row, size).sum(axis=(1, 2)).argmax() for row in columns])
        others = rng.integers(0, task.channels, rows)
        for classes, region in ((largest, boxes), (others, (corners * [*size[::-1], *size[::-1]]).astype(np.float32))):
            region = one(region)
            classes = np.full(rows, target["class"]) if target["mode"] == "constant" else one(classes)
            feeds = {target["region"]: region[:1] if shared else region} | feed(classes.astype(np.int64))
            weights = [_weights(task, columns[k], int(classes[k]), region[k], size) for k in every]
            questions.append(Question(feeds, Sum(np.stack(weights))))
        return questions
    first = one(rng.integers(0, task.size, rows))
    if target["mode"] == "constant":
        first = np.full(rows, target["class"])
    values = [first] if target["mode"] == "constant" else [first, (first + 1) % task.size]
    return [Question(feed(index.astype(np.int64)), Sum(np.eye(task.size)[index])) for index in values]


def resolution(target: Any, columns: np.ndarray, step: float) -> np.ndarray:
    """The relative change of a gradient where probabilities p are off by a step, float64 `[N]`.

    A sigmoid's derivative p (1 - p) is then off by as much, which counts where p is next to 0 or 1. 0 of columns that
    are no probabilities, of a cosine, and of classes.

    Arguments:
        target: of a `Question`.
        columns: `[N, columns]` of the framework.
        step: absolute.
    """
    p = columns.astype(np.float64)
    if isinstance(target, Sum):
        slopes = target.weights
    elif isinstance(target, Product):
        p = np.take_along_axis(p, target.columns, axis=1)
        slopes = np.stack([np.delete(p, place, axis=1).prod(axis=1) for place in range(p.shape[1])], axis=1)
    else:
        return np.zeros(len(p))
    outside = ((p < 0) | (p > 1)) & (slopes != 0)
    derivative = np.linalg.norm(slopes * p * (1 - p), axis=1)
    change = np.zeros(len(p))
    sound = ~outside.any(axis=1) & (derivative > 0)
    np.divide(step * np.linalg.norm(slopes, axis=1), derivative, out=change, where=sound)
    return change


def _places(task: Detect, columns: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The best candidate of each row, and a random one; where there are such, of those whose score is not next to 0 or
    1, where a gradient says little in float32."""
    count = task.count(columns.shape[1])
    if not count:
        raise ModelError(
            "the detector reports no box on noise pictures, so its gradients cannot be compared; export with "
            "verify=False"
        )
    best, others = [], []
    for row in columns:
        scores = detections.best_classes(task, row)[1]
        clear = np.flatnonzero((scores > _CLEAR) & (scores < 1 - _CLEAR))
        places = clear if len(clear) else np.arange(count)
        best.append(places[scores[places].argmax()])
        others.append(rng.choice(places))
    return [np.array(best, np.int64), np.array(others, np.int64)]


def _product(task: Detect, columns: np.ndarray, places: np.ndarray) -> Product:
    """The score of a candidate's best class, objectness included."""
    terms = []
    for row, place in zip(columns, places, strict=True):
        index = int(detections.best_classes(task, row)[0][place])
        terms.append(task.terms(int(place), index, columns.shape[1]))
    return Product(np.stack(terms))


def _weights(task: Segment, row: np.ndarray, index: int, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The weights of the columns: 1 at a class's own cells, or at all of a region where the box has an area."""
    cells = _members(task, row, size)
    weights = np.zeros(cells.shape)
    if box.any():
        placement = image.Geometry(size, size, (0, 0), size)
        weights[index][regions.covered(tuple(float(edge) for edge in box), cells.shape[1:], placement)] = 1.0
    else:
        weights[index][cells[index]] = 1.0
    return task.flatten(weights)


def _members(task: Segment, row: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The cells where each class is the highest, bool `[K, h, w]`."""
    p = task.probabilities(row, size)
    if len(p) == 1:
        return np.asarray(p > 0.5)
    return np.asarray(p.argmax(axis=0) == np.arange(len(p))[:, None, None])


def _input_size(manifest: Manifest) -> tuple[int, int]:
    """Height and width of the model's input, which exporters fix."""
    shape = manifest["input"]["shape"]
    height, width = shape[1:3] if manifest["input"]["layout"] == "NHWC" else shape[2:4]
    return int(height), int(width)
