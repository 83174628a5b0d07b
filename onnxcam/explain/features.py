"""Run the head over a batch: scores, and the values from which any class, method and layer is explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.errors import LayerError
from onnxcam.explain.sessions import Sessions
from onnxcam.network.names import GRADIENT, GRAM, INPUT, MEAN, POWER, SCORES, TARGET
from onnxcam.runtime.rows import floats, joined, portions
from onnxcam.targets.readout import Readout

if TYPE_CHECKING:
    from onnxcam.network.cut import Cut

Progress = Callable[[int, int], None]


class Batch(NamedTuple):
    """What all views of a batch share.

    Attributes:
        sessions: of the network.
        pictures: the tensor as the model takes it, N rows.
        scores: logits `[N, K]`.
        readout: the meaning of the scores.
        size: rows per run where the model fixes them, else None.
        seed: of whatever is random.
        progress: called with (done, total) as long methods go; what it raises stops them.
    """

    sessions: Sessions
    pictures: np.ndarray
    scores: np.ndarray
    readout: Readout
    size: int | None
    seed: int
    progress: Progress | None


class InputGradient(NamedTuple):
    """The gradient at the picture, where it is all that a question needs: it is computed along with the scores.

    Attributes:
        relu: the rules, `plain` or `guided`.
        classes: the class of each row, int64 `[N]`; -1 for the row's best.
    """

    relu: str
    classes: np.ndarray


class Component(NamedTuple):
    """A layer of which the first component over the places is all that a question needs: see `Method.component`.

    Attributes:
        layer: its name.
        gradient: whether of its product with the gradient of a class's score.
        classes: the class of each row, int64 `[N]`; -1 for the row's best. Without `gradient` not read.
    """

    layer: str
    gradient: bool
    classes: np.ndarray


class HeadRun:
    """The outputs of the head for one batch, see `run_head`.

    Attributes:
        batch: what all views share.
        scores: logits `[N, K]`, float32.
        values: cut values by name, N rows each (a value without rows as it is; where runs differ in it, an array of
            objects, for each row that of its run), the picture's among them.
        gradient: whose gradient `values` also has as `GRADIENT`, None if it has none.
        component: whose Gram matrices `values` also has, None if it has none.
    """

    def __init__(
        self,
        batch: Batch,
        values: Mapping[str, np.ndarray],
        gradient: InputGradient | None = None,
        component: Component | None = None,
    ) -> None:
        self.component = component
        self.batch = batch
        self.scores = batch.scores
        self.values = values
        self.gradient = gradient

    def repeat(self, count: int, layers: Sequence[str]) -> HeadRun | None:
        """Repeat each row `count` times in a row; None where the model does not let rows be repeated."""
        cuts = [self.batch.sessions.cut(name) for name in layers]
        if self.batch.size is None and not all(cut.free for cut in cuts):
            return None
        if self.batch.size not in (None, 1) and any(cut.singly for cut in cuts):
            return None
        return self.of_rows(np.repeat(np.arange(len(self.scores)), count), layers)

    def of_rows(self, rows: np.ndarray, layers: Sequence[str]) -> HeadRun:
        """The outputs for some of the rows, by their indices, which may repeat."""
        cuts = [self.batch.sessions.cut(name) for name in layers]
        if self.batch.size != 1 and not np.array_equal(rows, np.arange(len(self.scores))):
            for cut in cuts:
                if cut.singly:
                    raise in_place(cut, self.batch.size)
        by_row = {value: flag for cut in cuts for value, flag in cut.flags.items()}
        values = {
            name: value[rows] if by_row.get(name, True) or value.dtype == object else value
            for name, value in self.values.items()
        }
        return HeadRun(self.batch._replace(scores=self.scores[rows], pictures=self.batch.pictures[rows]), values)


def uneven_rows(layer: str, rows: int, pictures: int) -> LayerError:
    """The error for a layer whose rows are not the pictures'."""
    return LayerError(
        f"layer {layer!r} has {rows} rows for {pictures} pictures, as crops have: which is whose is unknown; "
        "choose another layer (`onnxcam layers` lists them) or a method of the input such as saliency"
    )


def in_place(cut: Cut, size: int | None) -> LayerError:
    """The error for rows of a fixed batch that would have to change their places."""
    return LayerError(
        f"what follows layer {cut.layer.name!r} depends on where in the model's batch of {size} a picture stands: its "
        "pictures cannot be repeated or put together otherwise; choose a method that runs each picture once, such as "
        "gradcam, a layer after it (`onnxcam layers` lists them), or export the model with a free batch"
    )


def values_of(
    cut: Cut, values: Mapping[str, np.ndarray], rows: np.ndarray, count: int, size: int | None, changed: bool
) -> dict[str, np.ndarray]:
    """The cut values of some rows, for one run.

    Arguments:
        values: as a `HeadRun` has them.
        rows: indices of pictures, int64 `[k]`.
        count: of pictures.
        size: rows per run where the model fixes them, else None.
        changed: whether the layer's own value is left out, which is replaced by variants.

    Raises:
        LayerError: rows that have to stay at their places do not.
    """
    whole = len(rows) == count and bool((rows == np.arange(count)).all())
    if cut.singly and not whole and size != 1:
        first, last = int(rows[0]), int(rows.max())
        padded = not changed and np.array_equal(rows, np.minimum(first + np.arange(len(rows)), last))
        if size is None or first % size or not (padded or np.array_equal(rows, first + np.arange(len(rows)))):
            raise in_place(cut, size)
    feeds = {}
    for name, by_row in cut.flags.items():
        value = values[name]
        if changed and name == cut.layer.value:
            continue
        if value.dtype == object:
            feeds[name] = value[rows[0]]
        else:
            feeds[name] = value if whole or not by_row else value[rows]
    return feeds


def run_head(
    sessions: Sessions,
    pictures: np.ndarray,
    layers: Sequence[str],
    *,
    size: int | None,
    seed: int = 1234,
    progress: Progress | None = None,
    gradient: InputGradient | None = None,
    component: Component | None = None,
) -> HeadRun:
    """Run the head over a batch once: the scores, and the cut values of some layers.

    Arguments:
        size: rows per run where the model fixes them, else None: 1 then where rows have to be run singly.
        seed, progress: of the views, see `Batch`.
        gradient, component: one of them computed by the same run; there are no layers then.
    """
    network = sessions.network
    picture, readout = network.picture.name, network.readout
    cuts = [sessions.cut(name) for name in layers]
    whose = cuts if component is None else [sessions.cut(component.layer)]
    if size is None and any(cut.singly for cut in (sessions.cut(INPUT), *whose)):
        size = 1
    by_row = {value: flag for cut in cuts for value, flag in cut.flags.items() if value != picture}
    classes: np.ndarray | None = None
    if component is not None:
        session, native = sessions.component(component.layer, component.gradient), pictures
        classes = component.classes if component.gradient else None
        by_row |= dict.fromkeys((GRAM, POWER, MEAN), True)
    elif gradient is None:
        session, native = sessions.head(layers), pictures
    else:
        session, native, classes = sessions.input_gradient(gradient.relu), floats(pictures), gradient.classes
        by_row[GRADIENT] = True
    by_row = {SCORES: True, **by_row}
    runs = []
    parts = portions(native, size)
    for part, targets_of in zip(
        parts, [None] * len(parts) if classes is None else portions(classes, size), strict=True
    ):
        feeds = {picture: part} | ({} if targets_of is None else {TARGET: targets_of})
        runs.append(runtime.run(session, list(by_row), feeds))
    if component is not None and any(len(run[GRAM]) != len(run[SCORES]) for run in runs):
        raise uneven_rows(component.layer, *(sum(len(run[name]) for run in runs) for name in (GRAM, SCORES)))
    for cut in cuts:  # before rows of padding are cut off: a layer may have five for each picture
        rows = [sum(len(run[name]) for run in runs) for name in (cut.layer.value, SCORES) if name != picture]
        if len(rows) == 2 and rows[0] != rows[1]:
            raise uneven_rows(cut.layer.name, rows[0], rows[1])
    values = {
        name: joined([run[name] for run in runs])[: len(pictures)]
        if rowwise
        else by_run([run[name] for run in runs], size, len(pictures))
        for name, rowwise in by_row.items()
    }
    values[picture] = pictures
    scores = values[SCORES].astype(np.float32, copy=False)
    batch = Batch(sessions, pictures, scores, readout, size, seed, progress)
    if gradient is not None:
        gradient = gradient._replace(classes=readout.fill_top1(gradient.classes, scores))
    if component is not None:
        component = component._replace(classes=readout.fill_top1(component.classes, scores))
    return HeadRun(batch, values, gradient, component)


def by_run(values: list[np.ndarray], size: int | None, count: int) -> np.ndarray:
    """A value without rows of several runs, as an array of objects `[count]`: for each picture that of its run."""
    if len(values) == 1:
        return values[0]
    of_rows = np.empty(count, object)
    for row in range(count):
        of_rows[row] = values[row // (size or count)]
    return of_rows
