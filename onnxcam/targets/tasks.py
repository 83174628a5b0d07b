"""Tasks other than classification: where in the columns of the scores a box, a class of a pixel or a value lies.

The readout of every task is a table of scores `[N, columns]`: the outputs that carry the task, each flattened and then
joined along the columns. A task says what the columns are, in NumPy alone:

    Detect   candidates, each a box with scores of classes: YOLO, RetinaNet, DETR, or boxes after an NMS in the file
    Segment  a score per class and cell of a grid: semantic segmentation and masks
    Embed    a vector whose direction means something
    Values   one or more quantities

Columns are those of one picture. The number of candidates follows from the number of columns where the file does not
fix it (another size of input, or an NMS that leaves as many as there are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from onnxcam.errors import InputError

DETECT, SEGMENT, EMBED, REGRESS = "detect", "segment", "embed", "regress"
TASKS = (DETECT, SEGMENT, EMBED, REGRESS)
# of a readout whose task it is
DETECTION, SEGMENTATION, EMBEDDING = "detection", "segmentation", "embedding"
PIXELS, RELATIVE = "pixels", "relative"
# from the four numbers of a box to x0, y0, x1, y1: `box @ matrix`
FORMATS: dict[str, np.ndarray] = {
    "xyxy": np.eye(4),
    "yxyx": np.eye(4)[[1, 0, 3, 2]],
    "cxcywh": np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]),
    "xywh": np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
}
SIGMOID, SOFTMAX = "sigmoid", "softmax"
Size = tuple[int, int]


@dataclass(frozen=True)
class Slab:
    """Some numbers of every candidate, within the columns of a picture.

    Attributes:
        first: the first of them among the numbers of a candidate in its output.
        size: how many.
        width: numbers per candidate in that output.
        before: numbers per candidate in the outputs that are joined before it.
        components_first: whether the output is `[N, width, M]` (all candidates of a number after each other) instead of
            `[N, M, width]`.
    """

    first: int
    size: int
    width: int
    before: int = 0
    components_first: bool = False

    def columns(self, candidates: int) -> np.ndarray:
        """The columns of all candidates, int64 `[M, size]`."""
        m, k = np.arange(candidates)[:, None], np.arange(self.size)[None]
        return np.asarray(self._place(m, k, candidates), np.int64)

    def column(self, candidate: int, number: int, candidates: int) -> int:
        """The column of one number of one candidate."""
        return int(self._place(np.int64(candidate), np.int64(number), candidates))

    def _place(self, m: Any, k: Any, candidates: int) -> Any:
        k = self.first + k
        return self.before * candidates + (k * candidates + m if self.components_first else m * self.width + k)

    def read(self, scores: np.ndarray, candidates: int) -> np.ndarray:
        """The numbers `[…, M, size]` from scores `[…, columns]`: a view where the layout allows."""
        start = self.before * candidates
        block = scores[..., start : start + self.width * candidates]
        shape = (self.width, candidates) if self.components_first else (candidates, self.width)
        block = block.reshape(*scores.shape[:-1], *shape)
        block = block.swapaxes(-1, -2) if self.components_first else block
        return block[..., self.first : self.first + self.size]


@dataclass(frozen=True)
class Detect:
    """A detector: M candidates, each a box and scores of classes.

    Attributes:
        boxes: four numbers, in `box_format` and `unit`.
        scores: one per class; a single one where `labels` names the class.
        width: numbers per candidate in all outputs together, so that there are `M * width` columns.
        classes: how many, the one for "no object" included; None where the file does not tell.
        candidates: M; None where it depends on the picture or its size.
        objectness: one number that multiplies all scores of the candidate.
        labels: the index of the class, as a number.
        box_format: `xyxy` (corners), `yxyx`, `cxcywh` (centre and size) or `xywh` (corner and size).
        unit: `pixels` of the model's input, or `relative`: 0..1 of its height and width.
        activation: what makes probabilities of the scores: `sigmoid`, `softmax`, or None where they are that already.
        background: the class that means "no object".
        overlapping: whether several candidates may be of one object, so that an NMS is due.
        one_picture: whether the outputs have no rows, so that each run takes one picture.
    """

    boxes: Slab
    scores: Slab
    width: int
    classes: int | None
    candidates: int | None = None
    objectness: Slab | None = None
    labels: Slab | None = None
    box_format: str = "xyxy"
    unit: str = PIXELS
    activation: str | None = None
    background: int | None = None
    overlapping: bool = True
    one_picture: bool = False

    name = DETECT
    kind = DETECTION

    @property
    def size(self) -> int:
        """Number of classes, 0 where the file does not tell."""
        return self.classes or 0

    @property
    def columns(self) -> int | None:
        """Number of columns, None where it depends on the picture."""
        return None if self.candidates is None else self.candidates * self.width

    def count(self, columns: int) -> int:
        """M of a row with this many columns.

        Raises:
            InputError: not a whole number of candidates.
        """
        if columns % self.width:
            raise InputError(f"got {columns} columns; expected a multiple of {self.width}, the numbers of a candidate")
        return columns // self.width

    def pixels(self, boxes: np.ndarray, input_size: Size) -> np.ndarray:
        """x0, y0, x1, y1 in pixels of the model's input, float64 `[…, 4]`, from the file's four numbers."""
        return np.asarray(np.asarray(boxes, np.float64) @ self.matrix(input_size))

    def matrix(self, input_size: Size) -> np.ndarray:
        """The linear map of `pixels`, float64 `[4, 4]`: `box @ matrix`; its columns are the gradients of x0 … y1."""
        height, width = input_size
        scale = [width, height, width, height] if self.unit == RELATIVE else [1.0] * 4
        return np.asarray(FORMATS[self.box_format] * np.asarray(scale))

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """The score of each class, objectness included, float64 `[…, M, scores.size]` from scores `[…, columns]`."""
        return self._probabilities(scores, slice(None))

    def probabilities_of(self, scores: np.ndarray, candidate: int) -> np.ndarray:
        """`probabilities` of one candidate, float64 `[…, scores.size]`: of thousands they take longer than its map."""
        return self._probabilities(scores, candidate)

    def _probabilities(self, scores: np.ndarray, candidates: Any) -> np.ndarray:
        m = self.count(scores.shape[-1])
        p = activate(self.scores.read(scores, m)[..., candidates, :], self.activation)
        if self.objectness is not None:
            p = p * self.objectness.read(scores, m)[..., candidates, :]
        return p

    def terms(self, candidate: int, class_index: int, columns: int) -> np.ndarray:
        """The columns whose product is the candidate's score of a class as the file computes it, before any
        `activation`: one, or two where there is objectness; int64."""
        m = self.count(columns)
        place = 0 if self.labels is not None else class_index
        terms = [self.scores.column(candidate, place, m)]
        if self.objectness is not None:
            terms.append(self.objectness.column(candidate, 0, m))
        return np.array(terms, np.int64)

    def describe(self) -> dict[str, Any]:
        """The manifest's entry."""
        return _entry(self)


@dataclass(frozen=True)
class Segment:
    """Scores per class and cell: `[N, K, h, w]`, or `[N, h, w, K]`.

    Attributes:
        channels: K; 1 of a mask of a single class.
        height, width: of the grid; None where they follow from the picture's size.
        channels_last: whether the order is `[h, w, K]`.
        activation: what makes probabilities of the scores: `softmax`, `sigmoid`, or None where they are that already.
    """

    channels: int
    height: int | None
    width: int | None
    channels_last: bool = False
    activation: str | None = None

    name = SEGMENT
    kind = SEGMENTATION

    @property
    def size(self) -> int:
        """Number of classes; of a mask of a single class 1."""
        return self.channels

    @property
    def columns(self) -> int | None:
        """Number of columns, None where it depends on the picture."""
        return None if self.height is None or self.width is None else self.channels * self.height * self.width

    def grid(self, columns: int, input_size: Size) -> Size:
        """Height and width of the grid of a row with this many columns.

        Raises:
            InputError: no grid of the input's proportions has as many.
        """
        if self.height is not None and self.width is not None:
            return self.height, self.width
        cells = columns // self.channels
        near = round((cells * input_size[0] / input_size[1]) ** 0.5)
        heights = [self.height or (cells // self.width if self.width else 0)]
        heights = heights if heights[0] else [near, near - 1, near + 1]  # a grid may be rounded up along one axis
        for height in heights:
            width = cells // height if height > 0 else 0
            skew = abs(height * input_size[1] - width * input_size[0])
            if height * width * self.channels == columns > 0 and skew <= max(input_size):  # within one cell
                return height, width
        raise InputError(
            f"got {columns} columns of {self.channels} classes; no grid of the proportions of an input of "
            f"{input_size[0]} × {input_size[1]} has as many"
        )

    def canonical(self, scores: np.ndarray, input_size: Size) -> np.ndarray:
        """Scores `[…, K, h, w]` from scores `[…, columns]`."""
        h, w = self.grid(scores.shape[-1], input_size)
        shape = (h, w, self.channels) if self.channels_last else (self.channels, h, w)
        array = scores.reshape(*scores.shape[:-1], *shape)
        return np.moveaxis(array, -1, -3) if self.channels_last else array

    def flatten(self, array: np.ndarray) -> np.ndarray:
        """Columns `[…, columns]` from `[…, K, h, w]`: the inverse of `canonical`."""
        array = np.moveaxis(array, -3, -1) if self.channels_last else array
        return np.ascontiguousarray(array).reshape(*array.shape[:-3], -1)

    def probabilities(self, scores: np.ndarray, input_size: Size) -> np.ndarray:
        """Probabilities, float64 `[…, K, h, w]`, from scores `[…, columns]`."""
        return activate(self.canonical(scores, input_size), self.activation, axis=-3)

    def describe(self) -> dict[str, Any]:
        """The manifest's entry."""
        return _entry(self)


@dataclass(frozen=True)
class Embed:
    """A vector `[N, D]`.

    Attributes:
        size: D.
        unit_norm: whether its length is 1 on every picture that was measured.
    """

    size: int
    unit_norm: bool = False

    name = EMBED
    kind = EMBEDDING

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.size

    def describe(self) -> dict[str, Any]:
        """The manifest's entry."""
        return _entry(self)


@dataclass(frozen=True)
class Values:
    """One or more quantities, from one or several outputs.

    Attributes:
        names: of the outputs, in the order of the columns.
        sizes: numbers of each.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    name = REGRESS
    kind = "regression"

    @property
    def size(self) -> int:
        """How many quantities."""
        return sum(self.sizes)

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.size

    def column(self, name: str | None = None, index: int | None = None) -> int:
        """The column of one value.

        Arguments:
            name: of its output; the only one if None.
            index: within the output; the only one if None.

        Raises:
            InputError: there is no such value, or several.
        """
        listed = ", ".join(f"{n}[0..{s - 1}]" if s > 1 else n for n, s in zip(self.names, self.sizes, strict=True))
        if name is None and len(self.names) > 1:
            raise InputError(f"the model has several outputs of values; name one of {listed}")
        place = self.names.index(name) if name in self.names else 0 if name is None else -1
        if place < 0:
            raise InputError(f"no output of values is called {name!r}; expected one of {listed}")
        if index is None and self.sizes[place] > 1:
            raise InputError(
                f"{self.names[place]!r} has {self.sizes[place]} values; say which, as NAME[index]: {listed}"
            )
        if not 0 <= (index or 0) < self.sizes[place]:
            raise InputError(f"got {self.names[place]}[{index}]; expected one of {listed}")
        return sum(self.sizes[:place]) + (index or 0)

    def describe(self) -> dict[str, Any]:
        """The manifest's entry."""
        return _entry(self)


Task = Detect | Segment | Embed | Values
_CLASSES: dict[str, type[Any]] = {task.name: task for task in (Detect, Segment, Embed, Values)}


@dataclass(frozen=True)
class Detection:
    """One object that a detector reports.

    Attributes:
        index: of its candidate in the file's own output.
        label: name of its class, or the index as text where no names are known.
        class_index: index of its class in the file's own output.
        score: 0..1, objectness included.
        box: x0, y0, x1, y1 in pixels; of the model's input or of the picture, as the function that makes it says.
    """

    index: int
    label: str
    class_index: int
    score: float
    box: tuple[float, float, float, float]


def from_entry(entry: Mapping[str, Any]) -> Task:
    """The task that a manifest's entry describes: the inverse of `describe`.

    Raises:
        KeyError, TypeError: it is none.
    """
    fields = {key: value for key, value in entry.items() if key != "task"}
    if entry["task"] == DETECT:
        slabs = {key: Slab(**value) for key, value in fields.items() if isinstance(value, Mapping)}
        return Detect(**fields | slabs)
    if entry["task"] == REGRESS:
        return Values(tuple(fields["names"]), tuple(fields["sizes"]))
    task: Task = _CLASSES[entry["task"]](**fields)
    return task


def fit_names(task: Task, names: Sequence[str] | None) -> list[str] | None:
    """Class names with one per index of the task's classes.

    A class that means "no object" may be left out of the names; it is called "no object" then.

    Returns:
        None where the names do not fit, or where it is unknown how many classes there are and none are given.
    """
    if names is None or not isinstance(task, (Detect, Segment)):
        return None if names is None or len(names) != task.size else list(names)
    listed = list(names)
    if isinstance(task, Segment):
        return listed if len(listed) == task.channels else None
    if task.classes is None or len(listed) == task.classes:
        return listed
    if task.background is not None and len(listed) == task.classes - 1:
        return [*listed[: task.background], "no object", *listed[task.background :]]
    return None


def with_candidates(task: Detect, candidates: int | None) -> Detect:
    """The same detector with another number of candidates."""
    return replace(task, candidates=candidates)


def activate(values: np.ndarray, activation: str | None, axis: int = -1) -> np.ndarray:
    """Probabilities of scores, float64."""
    y = np.asarray(values, np.float64)
    if activation == SOFTMAX:
        y = np.exp(y - y.max(axis=axis, keepdims=True, initial=-np.inf))
        return np.asarray(y / y.sum(axis=axis, keepdims=True))
    if activation == SIGMOID:
        return np.where(y >= 0, 1.0, np.exp(np.minimum(y, 0))) / (1.0 + np.exp(-np.abs(y)))
    return y


def _entry(task: Task) -> dict[str, Any]:
    entry = {"task": task.name, **asdict(task)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in entry.items()}
