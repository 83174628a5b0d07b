"""The inputs that say what is explained: a class, a box, a class over a region, a reference embedding, a value.

One place knows for each task which inputs an explainable file has, which of them may be left out, and the cotangent of
the columns that they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcam.autodiff import task_seed
from onnxcam.autodiff.seed import score_cotangent
from onnxcam.errors import ModelError, TargetError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.network import manifest as manifests
from onnxcam.targets import classes as targets
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import Detect, Embed, Segment, Values

TARGET, BOX, REGION, REFERENCE = "target", "box", "region", "reference"
OPTIONAL, REQUIRED, CONSTANT = "optional", "required", "constant"
_BACKGROUND = ("background", "__background__", "unlabeled", "unlabelled")


class OpenSizeError(ModelError):
    """A file cannot tell where a region lies, as its picture may have any size."""


class Seed(NamedTuple):
    """Where the reverse sweep of a file starts.

    Attributes:
        start: the value that is differentiated.
        cotangent: of its shape.
        entry: the manifest's `target`.
        box: the candidate of each row, int64 `[N, 1]`, of a detector; None of others.
    """

    start: str
    cotangent: str
    entry: dict[str, Any]
    box: str | None = None


def names(readout: Readout) -> tuple[str, ...]:
    """The usual names of the inputs beside the picture."""
    if isinstance(readout.task, Detect):
        return (BOX,)
    if isinstance(readout.task, Segment):
        return (TARGET, REGION)
    return (REFERENCE,) if isinstance(readout.task, Embed) else (TARGET,)


def emit(
    op: Builder,
    readout: Readout,
    flat: str,
    mode: str | int,
    labels: Sequence[str] | None,
    input_names: dict[str, str],
    input_size: tuple[int, int] | None,
) -> Seed:
    """Declare the inputs and emit the cotangent.

    Arguments:
        flat: the scores, `[N, columns]`.
        mode: `optional`, `required`, or the one class (index or label) or value that the file explains.
        input_names: under which the inputs are declared, by their usual names.
        input_size: height and width of the model's input, None where they are open.

    Raises:
        TargetError: no such class or value, or nothing that a file can be bound to.
        OpenSizeError: a grid of classes that follows from the picture's size, which is open.
    """
    task, box = readout.task, None
    mode = _possible(mode, readout)
    bound = bound_class(mode, readout.size, labels)
    usual = names(readout)[0]
    entry: dict[str, Any] = {"name": input_names[usual], "mode": CONSTANT if bound is not None else mode}
    if bound is not None:
        entry["class"] = bound
    if op.portable:
        entry["rows"] = manifests.SHARED
    target = input_names[usual] if bound is None else bound
    if task is None:
        _declare(op, mode, input_names[usual], np.asarray([targets.TOP1], np.int64))
        start, cotangent = score_cotangent(op, readout, flat, target)
        return Seed(start, cotangent, entry)
    if isinstance(task, Detect):
        _declare(op, mode, input_names[usual], np.asarray([targets.TOP1], np.int64))
        cotangent, box = task_seed.box_cotangent(op, task, flat, input_names[usual])
    elif isinstance(task, Segment):
        _declare(op, mode, input_names[usual], np.asarray([targets.TOP1], np.int64))
        entry[REGION] = input_names[REGION]
        # a file bound to a class still takes a region of it
        _declare(op, OPTIONAL if bound is not None else mode, input_names[REGION], np.zeros((1, 4), np.float32))
        background = [k for k, name in enumerate(labels or ()) if name.strip().casefold() in _BACKGROUND]
        if input_size is None:
            raise OpenSizeError(
                "the model leaves the size of its picture open, and with it where a region lies; give one with "
                "`input_size=` (on the command line: --input-size)"
            )
        region = input_names[REGION]
        cotangent = task_seed.region_cotangent(op, task, flat, target, region, input_size, background)
    elif isinstance(task, Embed):
        _declare(op, mode, input_names[usual], np.zeros((1, task.size), np.float32))
        cotangent = task_seed.cosine_cotangent(op, task, flat, input_names[usual])
    else:
        _declare(op, mode, input_names[usual], np.asarray([0], np.int64))
        cotangent = task_seed.value_cotangent(op, task, flat, target)
    return Seed(flat, cotangent, entry, box)


def _possible(mode: str | int, readout: Readout) -> str | int:
    """The mode that a file of this task can have: of embeddings and several values none is the first choice.

    Raises:
        TargetError: the mode names what a file cannot be bound to.
    """
    task = readout.task
    if isinstance(task, (Detect, Embed)) and mode not in (OPTIONAL, REQUIRED):
        what = "a box is one of a single picture" if isinstance(task, Detect) else "an embedding is compared with one"
        raise TargetError(
            f"target {mode!r}: {what}, and no file can be bound to it; use 'optional' or 'required', and feed "
            f"{names(readout)[0]!r} with each picture"
        )
    if isinstance(task, Embed) or (isinstance(task, Values) and task.size > 1):
        return REQUIRED if mode == OPTIONAL else mode
    return mode


def _declare(op: Builder, mode: str | int, name: str, default: np.ndarray) -> None:
    """Make an input of a value, with a default where it may be left out; none where the file is bound to one."""
    if mode not in (OPTIONAL, REQUIRED):
        return
    graph = op.graph.model.graph
    kind = onnx.helper.np_dtype_to_tensor_dtype(default.dtype)
    # with a default, the usual name of the rows would clash with the default's one row
    graph.input.append(edit.info(name, kind, [1 if op.portable else "targets", *default.shape[1:]]))
    if mode == OPTIONAL:
        graph.initializer.append(numpy_helper.from_array(default, name))


def bound_class(mode: str | int, classes: int, labels: Sequence[str] | None) -> int | None:
    """The class or value that a file is bound to by its target mode, None where the mode is `optional` or `required`.

    Raises:
        TargetError: no such class.
    """
    if mode in (OPTIONAL, REQUIRED):
        return None
    index = int(targets.resolve(mode, 1, classes, labels)[0])
    if index < 0:
        raise TargetError(
            f"target {mode!r}: a fixed target is a class from 0 to {classes - 1}; use 'optional' for top-1"
        )
    return index
