"""Recognise a detector by its outputs' shapes and by the numbers that they take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcam.errors import ModelError
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import FLOATS, Graph, attributes
from onnxcam.network import levels, task_boxes, task_scores
from onnxcam.network.levels import Origins
from onnxcam.network.task_boxes import Boxes, Declared, settled_by
from onnxcam.network.task_numbers import Numbers, measure
from onnxcam.targets.tasks import Detect, Slab

_QUERIES = 1000  # candidates that are of no grid: fewer are queries, of which each finds an object of its own
_PASSING = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout"})
# nodes that choose among candidates or keep them within the picture, and leave their numbers as they are
_CHOOSING = _PASSING | {
    "Gather", "GatherND", "GatherElements", "Slice", "Clip", "Min", "Max", "Concat", "Pad", "Compress", "Split"
}  # fmt: skip
# orders of the numbers of a detection that an NMS leaves: b stands for the box, s for the score, l for the label, i for
# the picture's place in the batch
_FINAL = ("bbbbsl", "bbbbls", "lsbbbb", "ibbbbls", "ibbbbsl", "ilsbbbb")


@dataclass(frozen=True)
class Recognition:
    """A task, and what carries it.

    Attributes:
        values: of the graph, in the order of the task's columns.
        task: what lies where.
        warnings: sentences about what is doubtful.
    """

    values: tuple[str, ...]
    task: Detect
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Dense:
    """A table of all candidates: `count` probabilities after the box, in `numbers` `[pictures * m, width]`."""

    value: str
    first: bool
    count: int
    width: int
    m: int
    numbers: np.ndarray
    origins: Origins | None
    boxes: Boxes


class Detectors:
    """The readings of a graph's outputs as a detector.

    Arguments:
        numbers: of the outputs, and of the values that the user names.
        names: how many class names the file may have, by its metadata.
        declared: what the user says.
        scores: the value that the user names for the scores.

    Attributes:
        reasons: why what was tried is no detector, as sentences' parts.
    """

    def __init__(
        self,
        graph: Graph,
        picture: str,
        numbers: Numbers,
        names: Collection[int],
        declared: Declared,
        scores: str | None,
    ) -> None:
        self._graph, self._picture, self._numbers = graph, picture, numbers
        self._names, self._declared, self._scores = names, declared, scores
        self.reasons: list[str] = []
        self._doubts: list[str] = []

    def find(self, *, combined: bool = True) -> Recognition | None:
        """The detector, None if the outputs are none.

        Arguments:
            combined: whether one output may carry boxes and scores.

        Raises:
            ModelError: it is one, and something of it cannot be measured; or several readings fit.
        """
        readings = list(self._separate())
        if not readings and combined and self._scores is None:
            readings = list(self._combined())
        if len({reading.values for reading in readings}) > 1 or len(readings) > 1:
            outputs = sorted({reading.values[0] for reading in readings})
            raise ModelError(
                f"several outputs could be the boxes of a detector ({', '.join(map(repr, outputs))}); name one with "
                "`boxes_output=` and its scores with `scores=` (on the command line: --boxes-output NAME, --scores "
                "NAME)"
            )
        if not readings and self._doubts:
            raise ModelError("; ".join(dict.fromkeys(self._doubts)))
        return readings[0] if readings else None

    # ------------------------------------------------------------------------------------------- boxes and scores

    def _separate(self) -> Iterator[Recognition]:
        """Readings of one output as boxes and another as scores."""
        box_values = [self._declared.output] if self._declared.output is not None else list(self._numbers.rows)
        for value in box_values:
            for first in (False, True):
                tables = self._tables(value, first, width=4)
                if tables is None or (first and self._tables(value, False, width=4) is not None):
                    continue
                yield from self._with_scores(value, first, tables)

    def _with_scores(self, value: str, first: bool, tables: list[np.ndarray]) -> Iterator[Recognition]:
        counts = [len(table) for table in tables]
        others = [self._scores] if self._scores is not None else [v for v in self._numbers.rows if v != value]
        singles = {v: rows for v in others if (rows := self._vectors(v, counts)) is not None}
        labels = [v for v in self._numbers.rows if v != value and self._is_labels(v, self._vectors(v, counts))]
        scores = [
            v
            for v, rows in singles.items()
            if v not in labels and task_scores.is_unit(rows) and not task_scores.all_equal(rows)
        ]
        if not sum(counts):
            labels = [v for v in labels if self._graph.dtype(v) not in FLOATS] or labels
            scores = [v for v in singles if v not in labels]
        if labels and scores:
            yield from self._final_outputs(value, first, tables, labels, scores)
            return
        for other in others:
            for turned in (False, True):
                columns = self._tables(other, turned)
                if columns is None and not turned and other in singles:
                    columns = self._of_one_class(value, first, singles[other])
                if columns is None or [len(table) for table in columns] != counts or columns[0].shape[1] < 1:
                    continue
                if turned and counts[0] == columns[0].shape[1]:
                    continue  # a square table says nothing of its axes: rows are candidates
                reading = self._dense_outputs(value, first, tables, other, turned, columns)
                if reading is not None:
                    yield reading

    def _of_one_class(self, value: str, first: bool, vectors: list[np.ndarray]) -> list[np.ndarray] | None:
        """One score per candidate, `[M]`, as `[M, 1]`; None of a classifier with a box for each class: those are of no
        cell, or classes exclude each other."""
        if all(abs(float(vector.sum()) - 1) < 1e-3 for vector in vectors):
            return None
        origins = self._cells(value, Slab(0, 4, 4, 0, first))
        return [vector[:, None] for vector in vectors] if origins is not None and origins.complete() else None

    def _final_outputs(
        self, value: str, first: bool, tables: list[np.ndarray], labels: list[str], scores: list[str]
    ) -> Iterator[Recognition]:
        """Boxes, scores and labels of what an NMS or a TopK left."""
        boxes = self._final_boxes(value, tables)
        if isinstance(boxes, str):
            self.reasons.append(f"{value!r} holds no boxes: {boxes}")
            return
        if len(labels) > 1 or len(scores) > 1:
            raise ModelError(
                f"{value!r} holds boxes, and {', '.join(map(repr, [*scores, *labels]))} could be their scores and "
                "labels; name the scores with `scores=` (on the command line: --scores NAME)"
            )
        task = self._finished(
            Detect(
                Slab(0, 4, 4, 0, first), Slab(0, 1, 1, 4), 6, self._class_count(),
                labels=Slab(0, 1, 1, 5), box_format=boxes.box_format, unit=boxes.unit,
                overlapping=self._declared.nms == task_boxes.NMS,
            ),
            value, [len(table) for table in tables], first,
        )  # fmt: skip
        yield Recognition((value, scores[0], labels[0]), task, () if boxes.doubt is None else (boxes.doubt,))

    def _dense_outputs(
        self, value: str, first: bool, tables: list[np.ndarray], other: str, turned: bool, columns: list[np.ndarray]
    ) -> Recognition | None:
        """Boxes `[M, 4]` and scores `[M, K]` of all candidates."""
        classes = columns[0].shape[1]
        slab = Slab(0, 4, 4, 0, first)
        origins = self._cells(value, slab)
        boxes = task_boxes.read(tables, self._numbers.size, origins, self._declared, dense=len(tables[0]) > _QUERIES)
        if isinstance(boxes, str):
            self.reasons.append(f"{value!r} holds no boxes: {boxes}")
            return None
        if classes == 1 and task_scores.all_integral(columns):
            return None
        doubt = task_scores.doubt(columns, self._declared)
        if doubt is not None:
            self._doubts.append(f"{other!r} holds no scores: {doubt}")
            return None
        meaning = task_scores.read(columns, other, self._names, self._declared)
        of_scores = Slab(0, classes, classes, 4, turned)
        grid = origins if origins is not None else self._cells(other, replace(of_scores, before=0))
        task = self._finished(
            Detect(
                slab, of_scores, 4 + classes, classes, box_format=boxes.box_format, unit=boxes.unit,
                activation=meaning.activation, background=meaning.background,
                overlapping=self._overlapping(grid, len(tables[0])),
            ),
            value, [len(table) for table in tables], first,
        )  # fmt: skip
        doubts = [doubt for doubt in (boxes.doubt, *meaning.warnings) if doubt is not None]
        return Recognition((value, other), task, tuple(doubts))

    # -------------------------------------------------------------------------------------------------- one output

    def _combined(self) -> Iterator[Recognition]:
        """Readings of one output that has everything."""
        named = self._declared.output
        for value in [named] if named is not None else list(self._numbers.rows):
            if named is None and (self._is_grid(value) or self._is_distributions(value)):
                continue
            fitting: list[Recognition | _Dense] = []
            for first in (False, True):
                tables = self._tables(value, first)
                if tables is None or tables[0].shape[1] < 5 or (first and len({len(t) for t in tables}) > 1):
                    continue
                reading = self._final(value, first, tables) or self._dense(value, first, tables)
                if reading is not None:
                    fitting.append(reading)
            if len(fitting) > 1:
                raise ModelError(
                    f"{value!r} could be boxes with scores along either of its axes; name values inside the file that "
                    "hold them with `boxes_output=` and `scores=` (on the command line: --boxes-output NAME, "
                    "--scores NAME)"
                )
            yield from (self._settled(reading) if isinstance(reading, _Dense) else reading for reading in fitting)

    def _final(self, value: str, first: bool, tables: list[np.ndarray]) -> Recognition | None:
        """A table of what an NMS or a TopK left: each row a box, a score and a label."""
        width = tables[0].shape[1]
        numbers = np.concatenate(tables).astype(np.float64)
        if not len(numbers):
            if width in (6, 7) and not first:
                self.reasons.append(f"{value!r} is empty on all pictures")
            return None
        readings = []
        for order in _FINAL:
            if len(order) != width:
                continue
            label, score, box = (order.index(letter) for letter in "lsb")
            others = [k for k, letter in enumerate(order) if letter == "i"]
            if not task_scores.is_label(numbers[:, label]) or not task_scores.in_unit(numbers[:, score]):
                continue
            if task_scores.is_label(numbers[:, score]) and np.unique(numbers[:, score]).size < 2 < len(numbers):
                continue
            if any(not (numbers[:, k] == np.rint(numbers[:, k])).all() for k in others):
                continue
            boxes = self._final_boxes(value, [table[:, box : box + 4] for table in tables])
            if isinstance(boxes, str):
                self.reasons.append(f"{value!r} as {order!r}: {boxes}")
                continue
            task = Detect(
                Slab(box, 4, width, 0, first), Slab(score, 1, width, 0, first), width, self._class_count(),
                labels=Slab(label, 1, width, 0, first), box_format=boxes.box_format, unit=boxes.unit,
                overlapping=self._declared.nms == task_boxes.NMS,
            )  # fmt: skip
            readings.append((order, Recognition((value,), task, () if boxes.doubt is None else (boxes.doubt,))))
        if len(readings) > 1:
            # the score is what varies between 0 and 1; a label of one class is 0 or 1 for all
            varying = [r for order, r in readings if not task_scores.is_label(numbers[:, order.index("s")])]
            if len(varying) != 1:
                raise ModelError(
                    f"{value!r} holds detections in one of the orders {', '.join(order for order, _ in readings)} (b "
                    "box, s score, l label, i picture), which these pictures do not tell apart"
                )
            readings = [(order, r) for order, r in readings if r in varying]
        if not readings:
            return None
        recognition = readings[0][1]
        task = self._finished(recognition.task, value, [len(table) for table in tables], first)
        return replace(recognition, task=task)

    def _dense(self, value: str, first: bool, tables: list[np.ndarray]) -> _Dense | None:
        """A table of all candidates: box, perhaps objectness, scores, perhaps more."""
        width, m = tables[0].shape[1], len(tables[0])
        if len({len(table) for table in tables}) > 1 or not m:
            return None
        numbers = np.concatenate(tables).astype(np.float64)
        finite = np.isfinite(numbers).all(axis=1)
        numbers = numbers[finite]
        if not len(numbers):
            self.reasons.append(f"{value!r} is not finite")
            return None
        inside = (numbers.min(axis=0) >= 0) & (numbers.max(axis=0) <= task_scores.UNIT)
        after = np.flatnonzero(~inside[4:])
        count = int(after[0]) if len(after) else width - 4
        where = f"{value!r} read as {m} candidates of {width} numbers"
        if not count:
            low, high = numbers[:, 4].min(), numbers[:, 4].max()
            self.reasons.append(f"{where}: number 5 takes {low:.3g} to {high:.3g} and is no probability")
            return None
        slab = Slab(0, 4, width, 0, first)
        origins = self._cells(value, slab)
        if origins is not None and (origins.level < 0).all():
            self.reasons.append(f"{where}: the first four numbers of a candidate come from different cells")
            return None
        boxes = task_boxes.read(
            [table[:, :4] for table in tables], self._numbers.size, origins, self._declared, dense=m > _QUERIES
        )
        if isinstance(boxes, str):
            self.reasons.append(f"{where}: {boxes}")
            return None
        return _Dense(value, first, count, width, m, numbers, origins, boxes)

    def _settled(self, dense: _Dense) -> Recognition:
        """A table of all candidates as a task."""
        dense = self._of_named_classes(dense)
        value, first, count, width = dense.value, dense.first, dense.count, dense.width
        objectness, boxes = self._objectness(dense), dense.boxes
        doubts = [boxes.doubt] if boxes.doubt is not None else []
        if width > 4 + count:
            doubts.append(f"{width - 4 - count} further numbers of each candidate in {value!r} are left out")
        task = self._finished(
            Detect(
                Slab(0, 4, width, 0, first), Slab(4 + objectness, count - objectness, width, 0, first), width,
                count - objectness, objectness=Slab(4, 1, width, 0, first) if objectness else None,
                box_format=boxes.box_format, unit=boxes.unit, overlapping=self._overlapping(dense.origins, dense.m),
            ),
            value, [dense.m], first,
        )  # fmt: skip
        return Recognition((value,), task, tuple(doubts))

    def _of_named_classes(self, dense: _Dense) -> _Dense:
        """A table without what follows as many scores as the file has class names, where the graph joins as many to the
        boxes: keypoints in 0..1 of the picture are no scores."""
        for classes in self._names:
            parts = self._parts(dense.value, dense.width)
            for scores in ([classes], [1, classes]):
                if parts[1 : 1 + len(scores)] == scores and parts[0] == 4 and dense.count > classes + 1:
                    return replace(dense, count=sum(scores))
        return dense

    def _objectness(self, dense: _Dense) -> bool:
        """Whether the number after the box multiplies the others, instead of being a class's.

        Raises:
            ModelError: nothing tells.
        """
        value, count, m, numbers = dense.value, dense.count, dense.m, dense.numbers
        if count < 2:
            return False
        if self._declared.objectness is not None:
            return self._declared.objectness == task_boxes.OBJECTNESS
        named = [count - classes for classes in self._names if count - classes in (0, 1)]
        if len(set(named)) == 1:
            return named[0] == 1
        parts = self._parts(value, dense.width)
        if parts[:1] == [4] and len(parts) > 1 and parts[1] >= min(count, 2):
            return parts[1] == 1
        if parts[:2] in ([4, 1], [2, 2]):
            return True
        if dense.origins is not None and dense.origins.complete() and m >= 2 * dense.origins.cells():
            return True
        fifth, others = np.median(numbers[:, 4]), np.median(numbers[:, 5 : 4 + count].max(axis=1))
        if others > 0.02 and others > 20 * fifth:
            return True
        raise ModelError(
            f"{value!r} holds a box and {count} probabilities of each of {m} candidates; whether the first of these is "
            f"an objectness that multiplies {count - 1} classes, or one of {count} classes, cannot be told from "
            f"numbers (medians {fifth:.2g}, and {others:.2g} of the highest other): "
            + settled_by(task_boxes.OBJECTNESS, task_boxes.NO_OBJECTNESS)
        )

    def _parts(self, value: str, width: int) -> list[int]:
        """The sizes of what is joined to the numbers of a candidate, as far as they are joined in the graph."""
        shapes = StaticShapes(self._graph, {self._picture: self._input_shape()})
        node = self._graph.producer.get(value)
        for _ in range(24):
            if node is None:
                return []
            if node.op_type == "Concat":
                sizes = [shapes.shape(name) for name in node.input]
                if any(size is None for size in sizes):
                    return []
                axis = int(attributes(node).get("axis", 0))
                lengths = [size[axis] for size in sizes if size is not None]
                if sum(lengths) == width and lengths[0] in (2, 4):
                    return lengths
                if sum(lengths) == width and lengths[0] > 4:
                    width = lengths[0]  # coefficients of masks follow the scores
            elif node.op_type not in _PASSING:
                return []
            node = self._graph.producer.get(node.input[0])
        return []

    # ------------------------------------------------------------------------------------------------------- parts

    def _tables(self, value: str | None, first: bool, width: int | None = None) -> list[np.ndarray] | None:
        """The numbers of a value as `[M, width]` on each picture, None if it has another form."""
        if value is None or value not in self._numbers.rows:
            return None
        tables = []
        for array in self._numbers.rows[value]:
            table = array if array.ndim <= 2 else array.reshape([size for size in array.shape if size != 1] or [1])
            if table.ndim != 2 or table.dtype.kind not in "fiu":
                return None
            tables.append(table.T if first else table)
        if len({table.shape[1] for table in tables}) != 1 or (width is not None and tables[0].shape[1] != width):
            return None
        return tables

    def _is_grid(self, value: str) -> bool:
        """Whether a value has the picture's proportions, as masks have."""
        height, width = self._numbers.size
        tables = self._tables(value, False) or []
        return any(abs(len(t) * width - t.shape[1] * height) <= max(height, width) for t in tables if t.shape[1] > 7)

    def _is_distributions(self, value: str) -> bool:
        """Whether a table holds probabilities of one class each, in either order."""
        reason = task_scores.distributions(value, [self._tables(value, first) or [] for first in (False, True)])
        self.reasons += [] if reason is None else [reason]
        return reason is not None

    def _vectors(self, value: str | None, counts: Sequence[int]) -> list[np.ndarray] | None:
        """One number per candidate, None if the value has another form."""
        if value is None or value not in self._numbers.rows:
            return None
        rows = self._numbers.rows[value]
        if any(array.ndim < 1 or max(array.shape, default=0) != array.size for array in rows if array.size):
            return None
        return [a.reshape(-1) for a in rows] if [a.size for a in rows] == list(counts) else None

    def _is_labels(self, value: str, rows: list[np.ndarray] | None) -> bool:
        if rows is None:
            return False
        joined = np.concatenate(rows)
        whole = self._graph.dtype(value) not in FLOATS
        return whole or (bool(len(joined)) and task_scores.is_label(joined.astype(np.float64)))

    def _input_shape(self) -> tuple[int, ...]:
        rows = (self._graph.shape(self._picture) or (1,))[0]
        return (rows if isinstance(rows, int) else 1, *self._numbers.shape[1:])

    def _cells(self, value: str, slab: Slab) -> Origins | None:
        """The cell that each candidate's numbers in a slab come from, where it is known."""
        origins = levels.trace(self._graph, self._picture, value, self._input_shape())
        if origins is None or origins.level.size % slab.width:
            return None
        return origins.of(Detect(slab, slab, slab.width, None), slab)

    def _final_boxes(self, value: str, tables: list[np.ndarray]) -> Boxes | str:
        """The meaning of boxes that an NMS or a TopK left, by those that it chose among where that says more."""
        boxes = task_boxes.read(tables, self._numbers.size, None, self._declared)
        if isinstance(boxes, Boxes) and (boxes.doubt is None or self._declared.box_format is not None):
            return boxes
        for source in self._sources(value):
            slab = Slab(0, 4, 4)
            origins = self._cells(source, slab)
            if origins is None or not (origins.level >= 0).all():
                continue
            numbers = measure(self._graph, self._picture, [source])
            rows = [row.reshape(-1, 4) for row in numbers.rows[source]]
            measured = task_boxes.read(rows, numbers.size, origins, self._declared)
            if isinstance(measured, Boxes):
                return measured
        empty = not sum(len(table) for table in tables)
        if isinstance(boxes, str) and empty and self._declared.box_format is None:
            doubt = (
                f"no boxes came out of {len(tables)} pictures that were measured, so that x0, y0, x1, y1 in pixels is "
                "assumed, else " + settled_by("xyxy,relative", "yxyx,relative")
            )
            return Boxes("xyxy", self._declared.unit or "pixels", doubt)
        return boxes

    def _sources(self, value: str) -> Iterator[str]:
        """The values `[…, 4]` before the nodes that choose among candidates, nearest first."""
        shapes = StaticShapes(self._graph, {self._picture: self._input_shape()})
        for _ in range(40):
            node = self._graph.producer.get(value)
            if node is None or node.op_type not in _CHOOSING:
                return
            value = next((name for name in node.input if name and not self._graph.is_constant(name)), "")
            shape = shapes.shape(value) or ()
            if len(shape) > 2 and shape[-1] == 4 and shape[0] == self._input_shape()[0]:
                yield value

    def _class_count(self) -> int | None:
        """Number of classes of a file that gives labels alone: as many as it has names."""
        return next(iter(self._names)) if len(self._names) == 1 else None

    def _finished(self, task: Detect, value: str, counts: Sequence[int], first: bool) -> Detect:
        """The task with its number of candidates, where it is the same for all pictures."""
        shape = self._graph.shape(value) or ()
        fixed = len(set(counts)) == 1 and all(isinstance(dim, int) for dim in shape[1:]) and len(shape) > 1
        alone = value not in self._numbers.batched
        return replace(task, candidates=counts[0] if fixed and not alone else None, one_picture=alone)

    def _overlapping(self, origins: Origins | None, m: int) -> bool:
        if self._declared.nms is not None:
            return self._declared.nms == task_boxes.NMS
        return (origins is not None and bool((origins.level >= 0).mean() > 0.9)) or m > _QUERIES
