"""Recognise a segmentation by its outputs' shapes and by the numbers that they take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import FLOATS, Graph, attributes, uses
from onnxcam.network.task_numbers import Numbers
from onnxcam.targets.tasks import SIGMOID, SOFTMAX, Segment

_SUM = 1e-2  # of the classes of a cell, relative
_COARSEST = 8  # pixels per cell of a segmentation; features are coarser, or are no larger than their layer makes them
_ENLARGES = frozenset({"Resize", "Upsample", "ConvTranspose", "DepthToSpace", "GridSample"})
_PASSING = having(Trait.PASSES | Trait.RESHAPES) | {"Transpose", "Cast", "Unsqueeze", "Squeeze"}
_DECIDES = frozenset({"ArgMax", "Greater", "GreaterOrEqual", "Round"})
_COPY = 0.9  # correlation with the picture, above which an output is a picture itself


@dataclass(frozen=True)
class Cells:
    """A reading of one value as scores of classes per cell.

    Attributes:
        value: of the graph.
        certain: whether the numbers or the graph say so, and not the user.
    """

    value: str
    task: Segment
    warnings: tuple[str, ...] = ()


def read(graph: Graph, picture: str, numbers: Numbers, value: str, *, declared: bool) -> Cells | str | None:
    """A value as a segmentation; why it is none, or None where its form says nothing of one.

    Arguments:
        declared: whether the user says that it is.
    """
    arrays = numbers.rows[value]
    if any(array.ndim not in (2, 3) or not array.size for array in arrays) or value not in numbers.batched:
        return None
    array = np.stack(arrays).astype(np.float64)
    if array.ndim == 3:
        array = array[:, None]
        last = False
    else:
        orders = [order for order in (False, True) if _proportional(array.shape[1:], order, numbers.size)]
        if not orders:
            return f"{value!r} is no grid over a picture of {describe(numbers.size)}: {describe(array.shape[1:])}"
        if len(orders) > 1:
            return f"{value!r} could have its classes along its first or its last axis: {describe(array.shape[1:])}"
        last = orders[0]
        array = np.moveaxis(array, -1, 1) if last else array
    if not _proportional(array.shape[1:], False, numbers.size) or array.shape[2] * array.shape[3] < 4:
        return None
    if not np.isfinite(array).all():
        return f"{value!r} is not finite"
    whole = bool((array == np.rint(array)).all())
    if graph.dtype(value) not in FLOATS or (whole and np.unique(array).size > 1):
        return f"{value!r} holds indices of classes"
    return _meaning(graph, picture, numbers, value, array, last, declared)


def _meaning(
    graph: Graph, picture: str, numbers: Numbers, value: str, array: np.ndarray, last: bool, declared: bool
) -> Cells | str:
    """What the numbers `[pictures, K, h, w]` are."""
    channels, height, width = array.shape[1:]
    low, high = float(array.min()), float(array.max())
    warnings: tuple[str, ...] = ()
    activation: str | None = None
    stride = numbers.size[0] / height
    inside = low >= 0 and high <= 1 + 1e-5
    if inside and not declared and stride == 1 and channels in (1, 3) and _copies(graph, picture, numbers, array):
        return f"{value!r} has {channels} channels of 0 to 1 that follow the picture: an image"
    if not inside:
        total = float(array.sum(axis=1).mean())
        if channels > 1 and low >= 0 and float(np.ptp(array.sum(axis=1))) <= _SUM * total:
            return (
                f"{value!r} holds probabilities of {channels} classes in each cell that sum to {total:.3g} instead of "
                "1: divide them in the file, or name the scores before the Softmax with `scores=` (on the command "
                "line: --scores NAME)"
            )
        activation = SOFTMAX if channels > 1 else SIGMOID
        signs = low < 0 < high
        if not declared:
            what = f"{value!r} has {channels} channels of {height} × {width} cells that take {low:.3g} to {high:.3g}"
            if not signs:
                return f"{what}: of one sign, as features or quantities are"
            if stride > _COARSEST or (stride > 1 and not _enlarged(graph, value)):
                return f"{what}: no larger than their layer makes them, as features are"
            if stride == 1 and channels in (1, 3) and _copies(graph, picture, numbers, array):
                return f"{what} and follow the picture: an image"
        if channels == 1:
            warnings = (
                f"{value!r} takes {low:.3g} to {high:.3g} without a Sigmoid and is taken for the logit of one class; "
                "if it is a quantity, such as a depth, regions sum that quantity and its probabilities mean nothing",
            )
    dims = graph.shape(value) or ()
    fixed = all(isinstance(dim, int) for dim in dims[1:])
    task = Segment(channels, height if fixed else None, width if fixed else None, last, activation)
    return Cells(value, task, warnings)


def before_decision(graph: Graph, value: str) -> str | None:
    """The scores that a mask of indices was made of by an ArgMax or a threshold, None if there are none."""
    node = graph.producer.get(value)
    while node is not None and node.op_type in _PASSING:
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type not in _DECIDES:
        return None
    source = str(node.input[0])
    if graph.dtype(source) not in FLOATS:
        return None
    if node.op_type == "ArgMax":
        shape = graph.shape(source)
        axis = int(attributes(node).get("axis", 0))
        return source if shape is not None and len(shape) == 4 and axis % 4 in (1, 3) else None
    return source


def before_loop(graph: Graph, picture: str, value: str) -> str | None:
    """A sentence about masks that a Loop pastes into a picture, with the value that it pastes; None of other values.

    As torchvision's Mask R-CNN is exported: a mask for each box, which is of no class per cell.
    """
    node = graph.producer.get(value)
    while node is not None and node.op_type in _PASSING:
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type not in ("Loop", "Scan"):
        return None
    varying = graph.downstream([picture])
    source = next((name for name in uses(node) if name in varying and graph.dtype(name) in FLOATS), None)
    before = "" if source is None else f"; the value before it is {source!r}"
    return (
        f"{value!r} is pasted together by a {node.op_type}, which has no gradient{before}; masks of single boxes are "
        "no segmentation: explain the boxes (task='detect', --task detect)"
    )


def _proportional(shape: tuple[int, ...], last: bool, size: tuple[int, int]) -> bool:
    """Whether a grid of `[K, h, w]`, or of `[h, w, K]`, has a picture's proportions."""
    h, w = shape[:2] if last else shape[1:]
    return 0 < h <= size[0] and 0 < w <= size[1] and abs(h * size[1] - w * size[0]) <= max(size)


def _enlarged(graph: Graph, value: str) -> bool:
    """Whether one of the last nodes makes the grid finer: scores are brought nearer to the picture's size."""
    node = graph.producer.get(value)
    for _ in range(40):
        if node is None:
            return False
        if node.op_type in _ENLARGES:
            return True
        node = graph.producer.get(node.input[0]) if node.input else None
    return False


def _copies(graph: Graph, picture: str, numbers: Numbers, array: np.ndarray) -> bool:
    """Whether an output follows the picture, as that of a filter or an autoencoder does."""
    from onnxcam.network.task_numbers import pictures_of

    images = pictures_of(graph, picture, numbers)
    if images.shape != array.shape:
        images = images.mean(axis=1, keepdims=True)
        array = array.mean(axis=1, keepdims=True)
    if images.shape != array.shape:
        return False
    with np.errstate(invalid="ignore"):
        correlations = [abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(images, array, strict=True)]
    return bool(np.min(correlations) > _COPY)
