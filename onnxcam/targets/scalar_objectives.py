"""Objectives of outputs that are not classes: functions of the columns of one picture, and their gradients.

A scalar of `onnxcam.targets.scalars` is resolved on the columns of one unchanged picture: a box to its candidate and
class, a region to weights of cells. Indices are constants of the picture from then on. Where a file sorts or suppresses
its candidates, a changed picture has others at the same index: the candidate explained is then matched by its score of
the class times its overlap with the reference box, the similarity of D-RISE (https://arxiv.org/abs/2006.03204).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcam.targets.objectives import Objective
from onnxcam.targets.scalars import EDGES, SCORE, SCORE_IOU
from onnxcam.targets.tasks import Detect

# kinds of objective
BOX_SCORE, BOX_EDGE, BOX_OVERLAP = "box_score", "box_edge", "box_score_times_iou"
REGION, SIMILARITY, OUTPUT, DIFFERENCE = "region", "similarity", "output", "difference"
# of a candidate that is the same one: least overlap with the reference box, and relative difference of scores
_SAME_PLACE, _SAME_SCORE = 0.999, 1e-3
_SAME_PIXELS = 0.01  # by which the edges of a box may differ that has not moved, whatever its area
_LEAST_OVERLAP = 1e-6  # whose logarithm is taken


@dataclass(frozen=True)
class Subject:
    """What a scalar of one picture is about.

    Attributes:
        index: of the class, or of the value among the columns; 0 where there are none.
        label: what it is called; None for the name of the class.
        number: its score, probability or value, as it is shown.
        box: x0, y0, x1, y1 in pixels of the model's input; None where it is no box.
        candidate: its index in the file's own output, None where it is no box.
        target: the scalar ready for JSON, with every index resolved.
        doubt: a sentence about what is doubtful in the choice, None without.
        cells: of a grid over which a class is summed, bool `[h, w]`; None where that is a box in the picture, or none.
    """

    index: int
    label: str | None
    number: float
    box: tuple[float, float, float, float] | None = None
    candidate: int | None = None
    target: Any = None
    doubt: str | None = None
    cells: np.ndarray | None = field(default=None, repr=False, compare=False)


class OfOnePicture(ABC):
    """A scalar of one picture's columns.

    Attributes:
        subject: what it is about.
        classes: the index of its class, int64 `[1]`.
    """

    linear = False
    kind = OUTPUT

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.classes = np.array([subject.index], np.int64)

    @abstractmethod
    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The numbers of changed rows, float64 `[M]`, from their scores `[M, columns]`."""

    @abstractmethod
    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """d value / d scores, float64 `[M, columns]`."""

    def describe(self, row: int) -> tuple[str, int | None]:
        """The kind of the objective; it is contrasted with no class."""
        return self.kind, None


class Combination(OfOnePicture):
    """A weighted sum of some columns."""

    linear = True

    def __init__(self, subject: Subject, columns: np.ndarray, weights: np.ndarray, kind: str) -> None:
        super().__init__(subject)
        self.columns, self.weights = columns, weights
        self.kind = kind

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """sum_k w_k y_k."""
        return np.asarray(scores[:, self.columns].astype(np.float64) @ self.weights)

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """w."""
        dy = np.zeros(scores.shape)
        dy[:, self.columns] = self.weights
        return dy


class Product(OfOnePicture):
    """The product of a few columns: a class's score and the objectness."""

    kind = BOX_SCORE

    def __init__(self, subject: Subject, columns: np.ndarray) -> None:
        super().__init__(subject)
        self.columns = columns

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """prod_k y_k."""
        return np.asarray(scores[:, self.columns].astype(np.float64).prod(axis=1))

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of each column the product of the others."""
        dy = np.zeros(scores.shape)
        factors = scores[:, self.columns].astype(np.float64)
        for place, column in enumerate(self.columns):
            dy[:, column] = np.delete(factors, place, axis=1).prod(axis=1)
        return dy


class BoxNumber(OfOnePicture):
    """The score of a candidate, an edge of its box, or its score times its overlap with a reference box.

    Arguments:
        task: the detector.
        candidate, class_index: what is explained, on the unchanged picture.
        part: one of `onnxcam.targets.scalars.PARTS`.
        input_size: height and width of the model's input.
        reference: x0, y0, x1, y1 in its pixels, of the unchanged picture.
    """

    def __init__(
        self, subject: Subject, task: Detect, candidate: int, class_index: int, part: str,
        input_size: tuple[int, int], reference: np.ndarray, columns: int,
    ) -> None:  # fmt: skip
        super().__init__(subject)
        self.task, self.candidate, self.class_index, self.part = task, candidate, class_index, part
        self.matrix = task.matrix(input_size)
        self.reference = reference
        self.score = subject.number
        self.kind = {SCORE: BOX_SCORE, SCORE_IOU: BOX_OVERLAP}.get(part, BOX_EDGE)

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The number; where the candidate was matched, or the overlap is asked for, its score times the overlap, of a
        logit plus the logarithm of the overlap."""
        return np.array([self._at(row.astype(np.float64), None) for row in scores])

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The gradient of the number of the candidate that was matched."""
        dy = np.zeros(scores.shape)
        for row, gradient in zip(scores, dy, strict=True):
            self._at(row.astype(np.float64), gradient)
        return dy

    def _at(self, row: np.ndarray, gradient: np.ndarray | None) -> float:
        """The number of one row, its gradient written into zeros."""
        candidate, weight = match(self.task, row, self)
        if candidate is None:
            return 0.0
        count = self.task.count(len(row))
        terms = self.task.terms(candidate, self.class_index, len(row))
        places = self.task.boxes.columns(count)[candidate] if self.part != SCORE else terms[:0]
        factors = row[terms]
        score = float(factors.prod())
        if self.part in EDGES:
            edge = self.matrix[:, EDGES.index(self.part)]
            if gradient is not None:
                gradient[places] = edge
            return float(row[places] @ edge)
        overlap, slope = 1.0, np.zeros(4)
        if self.part == SCORE_IOU:
            overlap, slope = iou_gradient(row[places] @ self.matrix, self.reference)
            weight = 1.0
        if self.task.activation is not None:  # of logits, which may be negative, the logarithm of the overlap
            least = max(weight * overlap, _LEAST_OVERLAP)
            if gradient is not None:
                gradient[terms] = 1.0
                if least > _LEAST_OVERLAP:
                    gradient[places] = (self.matrix @ slope)[: len(places)] / least
            return score + float(np.log(least))
        if gradient is not None:
            gradient[places] = score * (self.matrix @ slope)[: len(places)]
            for place, column in enumerate(terms):
                gradient[column] += weight * overlap * float(np.delete(factors, place).prod())
        return weight * overlap * score


def moves(task: Detect) -> bool:
    """Whether the candidates of a changed picture are others at the same index: they are sorted, or suppressed."""
    return task.candidates is None or not task.overlapping


def match(task: Detect, row: np.ndarray, box: BoxNumber) -> tuple[int | None, float]:
    """The candidate of a changed picture that is the one explained, and its overlap with the reference box.

    None where the file reports no candidate at all.
    """
    if not moves(task):
        return box.candidate, 1.0
    count = task.count(len(row))
    if not count:
        return None, 0.0
    boxes = task.boxes.read(row, count) @ box.matrix
    overlaps = iou(boxes, box.reference)
    overlaps[np.abs(boxes - box.reference).max(axis=1) <= _SAME_PIXELS] = 1.0  # a box without area overlaps nothing
    p = task.probabilities(row)
    if task.labels is not None:
        of_class = task.labels.read(row, count)[:, 0].round() == box.class_index
        likely = np.where(of_class, p[:, 0], 0.0)
    else:
        likely = p[:, box.class_index]
    same = box.candidate
    if same < count and overlaps[same] >= _SAME_PLACE and abs(likely[same] - box.score) <= _SAME_SCORE * box.score:
        return same, 1.0
    best = int((likely * overlaps).argmax())
    return best, float(overlaps[best]) if likely[best] > 0 else 0.0


class Cosine(OfOnePicture):
    """The cosine of the embedding and a vector of length 1."""

    kind = SIMILARITY

    def __init__(self, subject: Subject, vector: np.ndarray) -> None:
        super().__init__(subject)
        self.vector = vector

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """z v / |z|; 0 of an embedding that is zero."""
        unit, _ = _units(scores)
        return np.asarray(unit @ self.vector)

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(v - (z v / |z|) z / |z|) / |z|."""
        unit, length = _units(scores)
        return np.asarray((self.vector - (unit @ self.vector)[:, None] * unit) / length)


class Subtraction:
    """The difference of two objectives of the same rows."""

    def __init__(self, first: Objective, second: Objective, subject: Subject | None = None) -> None:
        self.first, self.second = first, second
        self.classes = first.classes
        self.linear = first.linear and second.linear
        self.subject = subject

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """a - b."""
        return np.asarray(self.first.value(scores, rows) - self.second.value(scores, rows))

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """da - db."""
        return np.asarray(self.first.cotangent(scores, rows) - self.second.cotangent(scores, rows))

    def describe(self, row: int) -> tuple[str, int | None]:
        """A difference."""
        return DIFFERENCE, None


def iou(boxes: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The overlap of boxes `[M, 4]` (x0, y0, x1, y1) with one: intersection over union, float64 `[M]`."""
    corner = np.maximum(boxes[:, :2], reference[:2]), np.minimum(boxes[:, 2:], reference[2:])
    inside = np.maximum(corner[1] - corner[0], 0).prod(axis=1)
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    union = areas + np.maximum(reference[2:] - reference[:2], 0).prod() - inside
    return np.asarray(np.divide(inside, union, out=np.zeros(len(boxes)), where=union > 0))


def iou_gradient(box: np.ndarray, reference: np.ndarray) -> tuple[float, np.ndarray]:
    """The overlap of a box with a reference, and its gradient at x0, y0, x1, y1: half of it where edges coincide."""
    low, high = np.maximum(box[:2], reference[:2]), np.minimum(box[2:], reference[2:])
    side = high - low
    sizes = box[2:] - box[:2]
    if (side <= 0).any() or (sizes <= 0).any():
        return 0.0, np.zeros(4)
    inside, area = float(side.prod()), float(sizes.prod())
    union = area + float((reference[2:] - reference[:2]).prod()) - inside
    counts = np.concatenate([-_share(box[:2] - reference[:2]), _share(reference[2:] - box[2:])])
    d_inside = counts * np.tile(side[::-1], 2)
    d_area = np.array([-1, -1, 1, 1]) * np.tile(sizes[::-1], 2)
    overlap = inside / union
    return overlap, (d_inside - overlap * (d_area - d_inside)) / union


def _share(lead: np.ndarray) -> np.ndarray:
    """1 where an edge bounds the intersection, 1/2 where both do."""
    return np.where(lead > 0, 1.0, np.where(lead == 0, 0.5, 0.0))


def _units(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings at length 1, and their lengths `[M, 1]`."""
    z = embeddings.astype(np.float64)
    length = np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-30)
    return z / length, length
