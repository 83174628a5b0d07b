"""Recognise what a model that is no classifier does: by its outputs' shapes, its graph, and the numbers measured.

Names of outputs decide nothing. What cannot be settled is refused in a sentence that says what was measured and how to
say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxcam.errors import ModelError, OnnxcamError
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import FLOATS, Graph
from onnxcam.network import metadata_labels, task_segment
from onnxcam.network.ending import form_of
from onnxcam.network.task_boxes import Declared
from onnxcam.network.task_detect import Detectors
from onnxcam.network.task_numbers import Numbers, measure
from onnxcam.network.task_segment import Cells
from onnxcam.targets.tasks import DETECT, EMBED, REGRESS, SEGMENT, TASKS, Embed, Task, Values

_NORMALIZES = frozenset({"Div", "Mul", "LpNormalization"})
_PASSING = frozenset({"Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout"})
_WHOLE = frozenset(
    {
        onnx.TensorProto.INT64,
        onnx.TensorProto.INT32,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.INT8,
        onnx.TensorProto.BOOL,
    }
)
# usual numbers of components of a vector that is no list of classes
_WIDTHS = frozenset({128, 192, 256, 384, 512, 640, 768, 1024, 1152, 1280, 1408, 1536, 1792, 2048, 4096})
_LENGTH = 1e-3  # by which the lengths of normalised vectors differ at most


@dataclass(frozen=True)
class Recognition:
    """A task, and what carries it.

    Attributes:
        values: of the graph, in the order of the task's columns.
        task: what lies where in the columns.
        warnings: sentences about what is doubtful.
    """

    values: tuple[str, ...]
    task: Task
    warnings: tuple[str, ...] = ()


def recognise(
    graph: Graph,
    picture: str,
    *,
    task: str | None = None,
    boxes_output: str | None = None,
    scores: str | None = None,
) -> Recognition | None:
    """The task of a model, None of a classifier.

    Arguments:
        graph: a normalised graph.
        picture: its input.
        task: one of `TASKS`, as the user says; None to find out.
        boxes_output: the output that holds the boxes of a detector, and words for what cannot be measured: `NAME`,
            `NAME:cxcywh,relative`, `:objectness`.
        scores: the output that holds the scores, where the task has several candidates.

    Raises:
        ModelError: the task is what the user says, or what the outputs say, and something of it cannot be measured; or
            the outputs are neither scores of classes nor of any task.
    """
    if task is not None and task not in TASKS:
        raise ModelError(f"task={task!r}; expected one of {', '.join(TASKS)}")
    declared = Declared.parse(boxes_output)
    if boxes_output is not None and task not in (None, DETECT):
        raise ModelError(f"boxes_output={boxes_output!r} is of task 'detect', and task={task!r} was named")
    search = _Search(graph, picture, declared, scores)
    if task == DETECT or boxes_output is not None:
        return search.detector()
    if task == SEGMENT:
        return search.segmenter()
    if task == EMBED:
        return search.embedding()
    if task == REGRESS:
        return search.values()
    return search.any()


def doubts_of_classes(graph: Graph, columns: int) -> tuple[str, ...]:
    """What is doubtful about scores of classes `[N, columns]` that have neither a Softmax nor names in the file: where
    they are as many as vectors usually have components, they may be an embedding, which no number tells."""
    properties = {entry.key: entry.value for entry in graph.model.metadata_props}
    if columns not in _WIDTHS or metadata_labels.any_names(properties) is not None:
        return ()
    return (
        f"the model's {columns} numbers per picture have neither a Softmax nor class names, and are taken for the "
        "scores "
        f"of {columns} classes; if they are an embedding, say so with task='embed' (on the command line: --task embed)",
    )


class _Search:
    """The tasks that the outputs of one graph may have."""

    def __init__(self, graph: Graph, picture: str, declared: Declared, scores: str | None) -> None:
        self._graph, self._picture = graph, picture
        self._declared = declared
        if declared.output is not None:
            self._declared = Declared(graph.find(declared.output), *_words(declared))
        self._scores = None if scores is None else graph.find(scores)
        self._rows = (graph.shape(picture) or (None,))[0]
        self._outputs = [output.name for output in graph.outputs]
        properties = {entry.key: entry.value for entry in graph.model.metadata_props}
        names = metadata_labels.any_names(properties)
        self._names = frozenset() if names is None else frozenset({len(names)})
        self._measured: Numbers | None = None
        self._reasons: list[str] = []

    def any(self) -> Recognition | None:
        """The task that the outputs have of themselves, None of a classifier."""
        classes = [name for name in self._outputs if self._is_scores(name)]
        others = [name for name in self._outputs if name not in classes and self._is_numeric(name)]
        if self._scores is not None:
            return self._of_scores(self._scores)
        if not any(self._is_more_than_scores(name) for name in others):
            return self._normalised(classes)
        if classes and not any(self._may_be_boxes(name) for name in others):
            return None  # scores of classes, and maps with them
        try:
            self._numbers()
        except OnnxcamError as error:
            if classes:
                return None
            self._reasons.append(str(error))
            raise self._no_task() from error
        detector = self._detector(combined=not classes)
        if detector is not None or classes:
            return detector
        segmenter = self._segmenter(declared=False)
        if segmenter is not None:
            return segmenter
        raise self._no_task()

    def _of_scores(self, scores: str) -> Recognition | None:
        """The task of the scores that the user names, None where they have the form of scores of classes."""
        if not self._is_more_than_scores(scores) or not self._is_numeric(scores):
            return self._normalised([scores])
        return self._detector(combined=False) or self._segmenter(declared=False)

    def _no_task(self) -> ModelError:
        """The refusal of a model whose outputs are of no task."""
        return ModelError(
            f"the model is not an image classifier: its outputs are {self._shapes()}; expected one of shape [N, "
            f"classes], or boxes with scores, or a score per class and cell. {self._because()}If it is one of these, "
            "say so with `task=` (on the command line: --task detect|segment|embed|regress), and name its outputs with "
            "`boxes_output=` and `scores=` (--boxes-output NAME, --scores NAME)"
        )

    def detector(self) -> Recognition:
        """The detector that the user says the model is."""
        found_detector = self._detector(combined=True)
        if found_detector is not None:
            return found_detector
        raise ModelError(
            f"task='detect': no output holds boxes with scores; the outputs are {self._shapes()}. "
            f"{self._because()}Name the values that do with `boxes_output=` and `scores=` (on the command line: "
            f"--boxes-output NAME, --scores NAME){self._vectors_are()}"
        )

    def segmenter(self) -> Recognition:
        """The segmentation that the user says the model is."""
        segmenter = self._segmenter(declared=True)
        if segmenter is not None:
            return segmenter
        raise ModelError(
            "task='segment': no output holds a score per class and cell of the picture; the outputs are "
            f"{self._shapes()}. {self._because()}Name the value that does with `scores=` (on the command line: "
            f"--scores NAME){self._vectors_are()}"
        )

    def _vectors_are(self) -> str:
        """What a model of vectors alone may be instead, as the end of a refusal."""
        if not self._outputs or not all(self._vector(name) for name in self._outputs):
            return ""
        return (
            "; a vector per picture is an embedding (task='embed', --task embed), one or more quantities (task="
            "'regress', --task regress), or without task= the scores of classes"
        )

    def embedding(self) -> Recognition:
        """The vector that the user says the model computes."""
        vectors = [self._scores] if self._scores is not None else [v for v in self._outputs if self._vector(v)]
        sizes = [size for value in vectors if (size := self._vector(value))]
        if len(sizes) != 1 or sizes[0] < 2:
            raise ModelError(
                f"task='embed': expected one output [N, D] of at least 2 numbers; the outputs are {self._shapes()}"
                + ("; name one with `scores=` (on the command line: --scores NAME)" if len(sizes) > 1 else "")
            )
        lengths = self._lengths(str(vectors[0]))
        return Recognition((str(vectors[0]),), Embed(sizes[0], _constant(lengths)))

    def values(self) -> Recognition:
        """The quantities that the user says the model computes."""
        names = [self._scores] if self._scores is not None else [v for v in self._outputs if self._vector(v)]
        sizes = [self._vector(name) for name in names]
        if not sizes or None in sizes:
            raise ModelError(
                "task='regress': expected outputs of one or more floats per picture, [N], [N, 1] or [N, V]; the "
                f"outputs are {self._shapes()}"
            )
        return Recognition(tuple(names), Values(tuple(names), tuple(size for size in sizes if size is not None)))

    # ------------------------------------------------------------------------------------------------------- parts

    def _detector(self, *, combined: bool) -> Recognition | None:
        detectors = Detectors(self._graph, self._picture, self._numbers(), self._names, self._declared, self._scores)
        recognition = detectors.find(combined=combined)
        self._reasons += detectors.reasons
        if recognition is None:
            return None
        return Recognition(recognition.values, recognition.task, recognition.warnings)

    def _segmenter(self, *, declared: bool) -> Recognition | None:
        numbers, readings = self._numbers(), []
        for value in [self._scores] if self._scores is not None else self._outputs:
            source = task_segment.before_decision(self._graph, value) if value in numbers.rows else None
            reading = task_segment.read(self._graph, self._picture, numbers, value, declared=declared)
            if isinstance(reading, str) and source is not None:
                reading = self._before(value, source)
            if not isinstance(reading, Cells):
                reading = task_segment.before_loop(self._graph, self._picture, value) or reading
            if isinstance(reading, Cells):
                readings.append(reading)
            elif reading is not None:
                self._reasons.append(reading)
        if len({reading.value for reading in readings}) > 1:
            names = ", ".join(repr(reading.value) for reading in readings)
            raise ModelError(
                f"several outputs could be the scores of a segmentation ({names}); name one with `scores=` (on the "
                "command line: --scores NAME)"
            )
        if not readings:
            return None
        return Recognition((readings[0].value,), readings[0].task, readings[0].warnings)

    def _before(self, value: str, source: str) -> Cells | str | None:
        """The scores from which a mask was decided."""
        numbers = measure(self._graph, self._picture, [source])
        reading = task_segment.read(self._graph, self._picture, numbers, source, declared=True)
        if not isinstance(reading, Cells):
            return reading
        sentence = f"{value!r} is a mask of decisions without a gradient: explained are the scores {source!r} before it"
        return Cells(source, reading.task, (*reading.warnings, sentence))

    def _normalised(self, classes: Sequence[str]) -> Recognition | None:
        """An embedding, where the one output is a vector whose length is the same on every picture."""
        if len(classes) != 1 or not self._ends_in_normalisation(classes[0]):
            return None
        size = self._vector(classes[0])
        if size is None or size < 2:
            return None
        lengths = self._lengths(classes[0])
        rows = np.stack(self._numbers().rows[classes[0]]).reshape(len(lengths), -1)
        if not _constant(lengths) or rows.min() >= 0:
            return None
        return Recognition((classes[0],), Embed(size, True))

    def _ends_in_normalisation(self, value: str) -> bool:
        """Whether the last node but those that pass numbers on divides them by something computed."""
        graph, node = self._graph, self._graph.producer.get(value)
        while node is not None and node.op_type in _PASSING:
            node = graph.producer.get(node.input[0])
        if node is None or node.op_type not in _NORMALIZES:
            return False
        return node.op_type == "LpNormalization" or not any(graph.is_constant(name) for name in node.input)

    def _lengths(self, value: str) -> np.ndarray:
        """Length of the vector of each picture."""
        if value not in self._numbers().rows:
            rows = measure(self._graph, self._picture, [value]).rows[value]
        else:
            rows = self._numbers().rows[value]
        return np.array([float(np.linalg.norm(np.asarray(row, np.float64))) for row in rows])

    def _numbers(self) -> Numbers:
        if self._measured is None:
            named = [value for value in (self._declared.output, self._scores) if value is not None]
            values = [v for v in dict.fromkeys([*self._outputs, *named]) if not self._graph.is_constant(v)]
            self._measured = measure(self._graph, self._picture, values)
        return self._measured

    def _is_scores(self, value: str) -> bool:
        """Whether a value has the form of scores of classes, one row per picture."""
        shape = self._graph.shape(value)
        if not shape or self._graph.dtype(value) not in FLOATS or (len(shape) > 1 and self._is_loose(value)):
            return False
        if len(shape) == 1 and self._is_loose(value) and (shape[0] != 1 and self._is_triple()):
            return False
        return form_of(shape, self._rows) is not None

    def _vector(self, value: str) -> int | None:
        """Numbers per picture of a value, None where it has another form."""
        form = form_of(self._graph.shape(value), self._rows) if self._graph.dtype(value) in FLOATS else None
        return None if form is None or form.rows != 0 else form.size

    def _is_numeric(self, value: str) -> bool:
        """Whether a value is a tensor of numbers."""
        return self._graph.dtype(value) in FLOATS or self._graph.dtype(value) in _WHOLE

    def _is_more_than_scores(self, value: str) -> bool:
        """Whether a value has an axis besides the rows and the classes, or rows of its own."""
        shape = self._graph.shape(value)
        if shape is None:
            return True
        return self._is_loose(value) or sum(dim != 1 for dim in shape[1:]) > 1

    def _is_loose(self, value: str) -> bool:
        """Whether a value's first axis is not that of the pictures."""
        shape = self._graph.shape(value)
        if not shape:
            return False
        if shape[0] == self._rows:  # dimensions without a name may be any
            return shape[0] is None and self._is_triple()
        if self._rows in shape[1:]:  # classes first
            return False
        if self._is_triple():
            return True
        if isinstance(shape[0], int):
            return shape[0] != 1 and self._rows is not None
        return not self._has_measured_rows(value)  # another name, which nothing keeps: of rows or of candidates

    def _has_measured_rows(self, value: str) -> bool:
        """Whether a value had one row per picture, or per run, when it was measured; true where it cannot be."""
        try:
            numbers = self._numbers()
        except OnnxcamError:
            return True
        return value in numbers.batched or all(array.shape[:1] == (1,) for array in numbers.rows[value])

    def _is_triple(self) -> bool:
        """Whether the outputs are tables of 4 columns and at least two values of one number per row."""
        shapes = [self._graph.shape(name) or () for name in self._outputs]
        tables = [shape for shape in shapes if len(shape) == 2 and shape[1] == 4]
        return bool(tables) and sum(len(shape) == 1 for shape in shapes) >= 2

    def _may_be_boxes(self, value: str) -> bool:
        shape = self._graph.shape(value)
        return shape is None or any(dim == 4 for dim in shape[1:])

    def _shapes(self) -> str:
        return ", ".join(f"{name!r} {describe(self._graph.shape(name))}" for name in self._outputs)

    def _because(self) -> str:
        reasons = list(dict.fromkeys(self._reasons))
        return f"Measured: {'; '.join(reasons)}. " if reasons else ""


def _words(declared: Declared) -> tuple[str | None, ...]:
    return (
        declared.box_format, declared.unit, declared.objectness, declared.nms, declared.activation, declared.background
    )  # fmt: skip


def _constant(lengths: np.ndarray) -> bool:
    """Whether vectors of different pictures have one length."""
    return bool(len(lengths) > 1 and lengths.min() > 0 and np.ptp(lengths) <= _LENGTH * lengths.max())
