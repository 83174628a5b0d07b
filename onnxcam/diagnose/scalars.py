"""Scalars to check a file of another task than classification with: what to feed, and the number that it stands for.

The numbers are computed from the columns in NumPy, apart from the nodes of the file: a box's score, a class over a
region or over its own cells, a cosine, a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.diagnose.subject import Subject
from onnxcam.network.manifest import SHARED
from onnxcam.targets import detections, regions
from onnxcam.targets.tasks import Detect, Embed, Segment


class Scalars(NamedTuple):
    """One scalar per row of a batch.

    Attributes:
        feeds: of the file, beside the picture.
        value: the scalars, float64 `[N]`, from columns `[N, columns]`.
    """

    feeds: dict[str, np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


def draw(
    subject: Subject, columns: np.ndarray, rng: np.random.Generator, entry: Mapping[str, Any] | None = None
) -> Scalars | None:
    """Draw a scalar for each row, of the first the one that the file takes by itself, if any.

    Arguments:
        columns: `[N, columns]` of the unchanged batch.
        entry: a layer in the manifest: boxes that are not computed from its level are left out.

    Returns:
        None where the model reports nothing on these pictures that could be explained.
    """
    task = subject.readout.task
    if isinstance(task, Detect):
        return _box(subject, task, columns, rng, (entry or {}).get("candidates"))
    if isinstance(task, Segment):
        return _region(subject, task, columns, rng)
    return _reference(subject, task, rng, len(columns)) if isinstance(task, Embed) else _value(subject, columns, rng)


def _box(subject: Subject, task: Detect, columns: np.ndarray, rng: np.random.Generator, ranges: Any) -> Scalars | None:
    rows, count = np.arange(len(columns)), task.count(columns.shape[1])
    if not count:
        return None
    of_level = np.concatenate([np.arange(a, b) for a, b in ranges]) if ranges else np.arange(count)
    places = rng.choice(of_level[of_level < count], len(rows))
    best = int(detections.best_classes(task, columns[0])[1].argmax())
    places[0] = best if best in of_level else places[0]
    if _shared(subject):
        places[:] = places[0]
    classes = [int(detections.best_classes(task, columns[row])[0][places[row]]) for row in rows]
    terms = [task.terms(int(places[row]), classes[row], columns.shape[1]) for row in rows]

    def score(y: np.ndarray) -> np.ndarray:
        return np.array([y[row, terms[row]].astype(np.float64).prod() for row in rows])

    return Scalars(_feed(subject, places), score)


def _region(subject: Subject, task: Segment, columns: np.ndarray, rng: np.random.Generator) -> Scalars:
    rows, size, shared = len(columns), subject.input_size, _shared(subject)
    placement = image.Geometry(size, size, (0, 0), size)
    classes = rng.integers(0, task.channels, rows)
    corners = np.sort(rng.uniform(0, 1, (rows, 2, 2)), axis=1).reshape(rows, 4)
    boxes = (corners * [size[1], size[0], size[1], size[0]]).astype(np.float32)
    boxes[0] = 0  # the cells of the class itself
    if shared:
        boxes[:], classes[:] = boxes[0], classes[0]
    classes[:] = subject.manifest["target"].get("class", classes)
    weights = np.stack([_weights(task, columns[k], int(classes[k]), boxes[k], placement) for k in range(rows)])
    feeds = {subject.manifest["target"]["region"]: boxes[:1] if shared else boxes} | _feed(subject, classes)
    return Scalars(feeds, lambda y: np.asarray((y.astype(np.float64) * weights).sum(axis=1)))


def _reference(subject: Subject, task: Embed, rng: np.random.Generator, rows: int) -> Scalars:
    reference = rng.normal(size=(1 if _shared(subject) else rows, task.size)).astype(np.float32)
    unit = reference.astype(np.float64) / np.linalg.norm(reference.astype(np.float64), axis=1, keepdims=True)

    def cosine(y: np.ndarray) -> np.ndarray:
        z = y.astype(np.float64)
        return np.asarray((z * unit).sum(axis=1) / np.maximum(np.linalg.norm(z, axis=1), 1e-30))

    return Scalars({subject.manifest["target"]["name"]: reference}, cosine)


def _value(subject: Subject, columns: np.ndarray, rng: np.random.Generator) -> Scalars:
    rows = np.arange(len(columns))
    places = np.resize(rng.permutation(columns.shape[1]), len(rows))
    if _shared(subject):
        places[:] = places[0]
    places[:] = subject.manifest["target"].get("class", places)
    return Scalars(_feed(subject, places), lambda y: np.asarray(y[rows, places], np.float64))


def _shared(subject: Subject) -> bool:
    """Whether all rows of a batch have one target."""
    return bool(subject.manifest["target"].get("rows") == SHARED)


def _feed(subject: Subject, places: np.ndarray) -> dict[str, np.ndarray]:
    """The input with an index per row; nothing where the file is bound to one."""
    target = subject.manifest["target"]
    if target["mode"] == "constant":
        return {}
    return {target["name"]: np.asarray(places[:1] if _shared(subject) else places, np.int64)}


def _weights(task: Segment, row: np.ndarray, index: int, box: np.ndarray, placement: image.Geometry) -> np.ndarray:
    """The weights of the columns whose sum is explained."""
    p = task.probabilities(row, placement.input_size)
    if box.any():
        cells = regions.covered(tuple(float(edge) for edge in box), (p.shape[1], p.shape[2]), placement)
    else:
        cells = p[0] > 0.5 if len(p) == 1 else p.argmax(axis=0) == index
    weights = np.zeros(p.shape)
    weights[index][cells] = 1.0
    return task.flatten(weights)
