"""Run the head over a batch: scores, and the values from which any class, method and layer is explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.errors import LayerError
from onnxcam.explain.sessions import Sessions
from onnxcam.network.names import GRADIENT, SCORES, TARGET
from onnxcam.runtime.rows import floats, joined, portions
from onnxcam.targets.readout import Readout

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


class HeadRun:
    """The outputs of the head for one batch, see `run_head`.

    Attributes:
        batch: what all views share.
        scores: logits `[N, K]`, float32.
        values: cut values by name, N rows each (a value without rows as it is), the picture's among them.
        gradient: whose gradient `values` also has as `GRADIENT`, None if it has none.
    """

    def __init__(self, batch: Batch, values: Mapping[str, np.ndarray], gradient: InputGradient | None = None) -> None:
        self.batch = batch
        self.scores = batch.scores
        self.values = values
        self.gradient = gradient

    def repeat(self, count: int, layers: Sequence[str]) -> HeadRun | None:
        """Repeat each row `count` times in a row; None where the model does not let rows be repeated."""
        if self.batch.size is None and not all(self.batch.sessions.cut(name).free for name in layers):
            return None
        return self.of_rows(np.repeat(np.arange(len(self.scores)), count), layers)

    def of_rows(self, rows: np.ndarray, layers: Sequence[str]) -> HeadRun:
        """The outputs for some of the rows, by their indices, which may repeat."""
        cuts = [self.batch.sessions.cut(name) for name in layers]
        by_row = {value: flag for cut in cuts for value, flag in cut.flags.items()}
        values = {name: value[rows] if by_row.get(name, True) else value for name, value in self.values.items()}
        return HeadRun(self.batch._replace(scores=self.scores[rows], pictures=self.batch.pictures[rows]), values)


def uneven_rows(layer: str, rows: int, pictures: int) -> LayerError:
    """The error for a layer whose rows are not the pictures'."""
    return LayerError(
        f"layer {layer!r} has {rows} rows for {pictures} pictures, as crops have: which is whose is unknown; "
        "choose another layer (`onnxcam layers` lists them) or a method of the input such as saliency"
    )


def run_head(
    sessions: Sessions,
    pictures: np.ndarray,
    layers: Sequence[str],
    *,
    size: int | None,
    seed: int = 1234,
    progress: Progress | None = None,
    gradient: InputGradient | None = None,
) -> HeadRun:
    """Run the head over a batch once: the scores, and the cut values of some layers.

    Arguments:
        size: rows per run where the model fixes them, else None.
        seed, progress: of the views, see `Batch`.
        gradient: computed by the same run; there are no layers then.
    """
    network = sessions.network
    picture, readout = network.picture.name, network.readout
    cuts = [sessions.cut(name) for name in layers]
    by_row = {value: flag for cut in cuts for value, flag in cut.flags.items() if value != picture}
    if gradient is None:
        session, native, classes = sessions.head(layers), pictures, np.arange(len(pictures))
    else:
        session, native, classes = sessions.input_gradient(gradient.relu), floats(pictures), gradient.classes
        by_row[GRADIENT] = True
    by_row = {SCORES: True, **by_row}
    runs = []
    for part, targets_of in zip(portions(native, size), portions(classes, size), strict=True):
        feeds = {picture: part} | ({} if gradient is None else {TARGET: targets_of})
        runs.append(runtime.run(session, list(by_row), feeds))
    for cut in cuts:  # before rows of padding are cut off: a layer may have five for each picture
        rows = [sum(len(run[name]) for run in runs) for name in (cut.layer.value, SCORES) if name != picture]
        if len(rows) == 2 and rows[0] != rows[1]:
            raise uneven_rows(cut.layer.name, rows[0], rows[1])
    values = {
        name: joined([run[name] for run in runs])[: len(pictures)] if rowwise else runs[0][name]
        for name, rowwise in by_row.items()
    }
    values[picture] = pictures
    scores = values[SCORES].astype(np.float32, copy=False)
    batch = Batch(sessions, pictures, scores, readout, size, seed, progress)
    if gradient is not None:
        gradient = gradient._replace(classes=readout.fill_top1(gradient.classes, scores))
    return HeadRun(batch, values, gradient)
