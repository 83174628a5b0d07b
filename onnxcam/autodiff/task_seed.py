"""Where the reverse sweep starts in a file of another task than classification.

The cotangent `[N, columns]` of one scalar per row, by nodes of the file itself, so that any client can name it:

    Detect   `box`, a candidate's index in the file's own output: its score of its best class, objectness included
    Segment  `target`, a class, and `region`: the sum of the class's output over it
    Embed    `reference`, an embedding: the cosine of both
    Values   `target`, the index of a value

Equal to the objectives of `onnxcam.targets.scalar_objectives`, whose indices are constants of the picture too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxcam.errors import ModelError
from onnxcam.graph.builder import Builder
from onnxcam.targets.tasks import SIGMOID, SOFTMAX, Detect, Embed, Segment, Slab, Values

INT64 = onnx.TensorProto.INT64


def box_cotangent(op: Builder, task: Detect, flat: str, box: str) -> tuple[str, str]:
    """d (score of a candidate's best class) / d columns, `[N, columns]`; and the candidate of each row, int64 `[N, 1]`.

    Arguments:
        flat: the columns, `[N, columns]`.
        box: the candidate of each row, int64 `[N]` or `[1]`; a negative one means the candidate with the highest score.
            ONNX Runtime refuses one beyond the last. Where a picture has no candidate at all, the cotangent of a
            negative one is zero.
    """
    read = _Candidates(op, task, flat)
    score = read.slab(task.scores)
    if task.activation == SOFTMAX:
        score = op.Softmax(score, axis=2)
    elif task.activation == SIGMOID:
        score = op.Sigmoid(score)
    if task.objectness is not None:
        score = op.Mul(score, read.slab(task.objectness))
    if task.background is not None and task.labels is None:
        nothing = np.arange(task.scores.size) == task.background
        score = op.Where(nothing[None, None], float("-inf"), score)
    classes, best = op.ArgMax(score, axis=2, keepdims=0), op.ReduceMax(score, [2], keepdims=0)
    if not read.fixed:  # one more, of no object, so that there is a best one of none
        one = op.vector(op.size(flat, 0), 1)
        best = op.Concat(best, op.filled(-1.0, one), axis=1)
        classes = op.Concat(classes, op.Cast(op.filled(0.0, one), to=INT64), axis=1)
        # an index of it was not meant by who asks for it: pushed beyond the end, where it is refused
        box = op.Add(box, op.Cast(op.GreaterOrEqual(box, read.count), to=INT64))
    top = op.ArgMax(best, axis=1, keepdims=0)
    place = op.Unsqueeze(op.Where(op.Less(box, 0), top, box), [1])
    terms = [read.column(task.scores, place, op.GatherElements(classes, place, axis=1))]
    if task.objectness is not None:
        terms.append(read.column(task.objectness, place, op.operand(np.zeros((1, 1), np.int64))))
    return read.scatter(terms, place), place


class _Candidates:
    """Reads and writes numbers of candidates.

    Attributes:
        count: M, int64 `[1]`.
        fixed: whether M is one for all pictures.
    """

    def __init__(self, op: Builder, task: Detect, flat: str) -> None:
        self.op, self.flat = op, flat
        columns = op.dim(flat, 1)
        candidates = task.candidates if columns is None else columns // task.width
        self.fixed = candidates is not None and candidates > 0
        self.count: str = op.operand([candidates or 0]) if self.fixed else op.Div(op.size(flat, 1), [task.width])

    def slab(self, slab: Slab) -> str:
        """Numbers of all candidates, `[N, M, size]`."""
        op = self.op
        start = op.Mul(self.count, [slab.before])
        stop = op.Mul(self.count, [slab.before + slab.width])
        block = op.Slice(self.flat, start, stop, [1])
        block = op.Reshape(block, [0, slab.width, -1] if slab.components_first else [0, -1, slab.width])
        axis = 1 if slab.components_first else 2
        block = op.Slice(block, [slab.first], [slab.first + slab.size], [axis])
        return op.Transpose(block, perm=[0, 2, 1]) if slab.components_first else block

    def column(self, slab: Slab, place: str, number: str) -> str:
        """The column of one number of a candidate, int64 `[N, 1]`, from both indices `[N, 1]`."""
        op = self.op
        start = op.Mul(self.count, [slab.before])
        number = op.Add(number, [slab.first])
        if slab.components_first:
            return op.Add(start, op.Add(op.Mul(number, self.count), place))
        return op.Add(start, op.Add(op.Mul(place, [slab.width]), number))

    def scatter(self, terms: list[str], place: str) -> str:
        """The cotangent of the product of these columns: at each of them the product of the others."""
        op, flat = self.op, self.flat
        columns = op.size(flat, 1)
        if not self.fixed:
            flat = op.Concat(flat, op.filled(1.0, op.vector(op.size(flat, 0), 1)), axis=1)
            beyond = op.Equal(place, self.count)
            terms = [op.Where(beyond, columns, term) for term in terms]
        factors = [op.GatherElements(flat, term, axis=1) for term in terms]
        others = factors[::-1] if len(terms) > 1 else [op.Expand(1.0, op.Shape(terms[0]))]
        zeros = op.filled(0.0, op.shape(flat) if self.fixed else op.Shape(flat))
        if len(terms) > 1:
            place_of, values = op.Concat(*terms, axis=1), op.Concat(*others, axis=1)
        else:
            place_of, values = terms[0], others[0]
        scattered = op.ScatterElements(zeros, place_of, values, axis=1)
        return scattered if self.fixed else op.Slice(scattered, [0], columns, [1])


def region_cotangent(
    op: Builder,
    task: Segment,
    flat: str,
    target: str | int,
    region: str,
    input_size: tuple[int, int],
    background: Sequence[int] = (),
) -> str:
    """d (sum of a class's scores over a region) / d columns, `[N, columns]`.

    Arguments:
        flat: the columns, `[N, columns]`.
        target: one class for all rows, or a value, int64 `[N]` or `[1]`, whose negatives mean the class that is largest
            in the region. One beyond the last is refused by the runtime.
        region: x0, y0, x1, y1 in pixels of the model's input, float32 `[N, 4]` or `[1, 4]`; cells whose centres lie in
            it count, the one around its middle if none does. One without an area means the cells where the class is the
            highest.
        input_size: height and width of the model's input.
        background: classes that are the largest only where there is no other.
    """
    columns = op.dim(flat, 1) or task.columns
    if columns is None:
        raise ModelError(
            "the model leaves the size of its picture open, and with it the grid of its classes; give one with "
            "`input_size=` (on the command line: --input-size)"
        )
    h, w = task.grid(columns, input_size)
    order = [-1, h, w, task.channels] if task.channels_last else [-1, task.channels, h, w]
    p = op.Reshape(flat, order)
    p = op.Transpose(p, perm=[0, 3, 1, 2]) if task.channels_last else p
    p = op.Softmax(p, axis=1) if task.activation == SOFTMAX else op.Sigmoid(p) if task.activation == SIGMOID else p
    numbers = np.arange(task.channels)[None, :, None, None]
    single = task.channels == 1
    members = op.Greater(p, 0.5) if single else op.Equal(op.ArgMax(p, axis=1, keepdims=1), numbers)
    x0, y0, x1, y1 = (op.Slice(region, [k], [k + 1], [1]) for k in range(4))
    rows, row = _along(op, 2, h, input_size[0], y0, y1)
    across, column = _along(op, 3, w, input_size[1], x0, x1)
    inside, middle = op.And(rows, across), op.And(row, column)
    some = op.ReduceMax(op.Cast(inside, to=onnx.TensorProto.FLOAT), [2, 3], keepdims=1)
    inside = _either(op, op.Greater(some, np.asarray(0, np.float32)), inside, middle)
    area = op.Unsqueeze(op.And(op.Less(x0, x1), op.Less(y0, y1)), [2, 3])
    cells = _either(op, area, inside, members)
    if isinstance(target, int):
        classes = op.operand(np.array([[target]]))
    else:
        sizes = op.ReduceSum(op.cast(members), [2, 3], keepdims=1)
        if background:
            demoted = np.isin(numbers, list(background))
            sizes = op.Where(demoted, op.Mul(sizes, 1e-4), sizes)  # in float16 too above 0
        there = op.ReduceSum(op.mask(p, inside), [2, 3], keepdims=1)
        top = op.ArgMax(op.Squeeze(op.Where(area, there, sizes), [2, 3]), axis=1, keepdims=0)
        classes = op.Where(op.Less(target, 0), top, target)
        # a table of all classes, which has no further one
        classes = op.Unsqueeze(op.Gather(np.arange(task.channels), classes, axis=0), [1])
    weights = op.cast(op.And(cells, op.Equal(op.Unsqueeze(classes, [2, 3]), numbers)))
    weights = op.Transpose(weights, perm=[0, 2, 3, 1]) if task.channels_last else weights
    # a bound class and a region for all rows have one row
    return op.Expand(op.Reshape(weights, [-1, columns]), op.Shape(flat))


def _along(op: Builder, axis: int, cells: int, pixels: int, start: str, stop: str) -> tuple[str, str]:
    """Along one axis, the cells whose centres lie in `[start, stop)`, and the cell around the middle: bool, of rank 4.

    Arguments:
        axis: 2 for rows, 3 for columns.
        start, stop: float32 `[N, 1]`, pixels of the model's input.
    """
    shape = [1, 1, 1, 1]
    shape[axis] = cells
    pitch = pixels / cells
    edges = (np.arange(cells) * pitch).astype(np.float32).reshape(shape)
    centres = ((np.arange(cells) + 0.5) * pitch).astype(np.float32).reshape(shape)
    start, stop = op.Unsqueeze(start, [2, 3]), op.Unsqueeze(stop, [2, 3])
    inside = op.And(op.GreaterOrEqual(centres, start), op.Less(centres, stop))
    zero, end = np.float32(0), np.float32(pixels)
    clipped = op.Add(op.Max(start, np.asarray(zero)), op.Min(stop, np.asarray(end)))
    middle = op.Mul(clipped, np.asarray(0.5, np.float32))
    around = op.And(op.LessOrEqual(edges, middle), op.Less(middle, (edges + np.float32(pitch)).astype(np.float32)))
    return inside, around


def _either(op: Builder, condition: str, a: str, b: str) -> str:
    """Where of bool values, which ONNX Runtime lacks."""
    return op.Or(op.And(condition, a), op.And(op.Not(condition), b))


def cosine_cotangent(op: Builder, task: Embed, flat: str, reference: str) -> str:
    """d (cosine of the embedding and a reference) / d columns, `[N, columns]`: (v - (z v) z) / |z| of both at length 1.

    Arguments:
        flat: the embedding, `[N, D]`.
        reference: another one, float32 `[N, D]` or `[1, D]`, of any length but 0.
    """

    def unit(vector: str) -> tuple[str, str]:
        length = op.Max(op.Sqrt(op.ReduceSum(op.Mul(vector, vector), [1], keepdims=1)), 1e-6)
        return op.Div(vector, length), length

    (z, length), (v, _) = unit(flat), unit(op.cast(reference))
    cosine = op.ReduceSum(op.Mul(z, v), [1], keepdims=1)
    return op.Div(op.Sub(v, op.Mul(cosine, z)), length)


def value_cotangent(op: Builder, task: Values, flat: str, target: str | int) -> str:
    """d (one of the values) / d columns, `[N, columns]`.

    Arguments:
        flat: the values, `[N, columns]`.
        target: one column for all rows, or a value, int64 `[N]` or `[1]`; one that is none is refused by the runtime.
    """
    if isinstance(target, int):
        hot = np.arange(task.size)[None] == target
        return op.Expand(op.cast(op.operand(hot)), op.Shape(flat))
    index = op.Where(op.Less(target, 0), task.size, target)
    rows = op.Gather(np.eye(task.size, dtype=np.float32), index, axis=0)
    return op.Expand(op.cast(rows), op.Shape(flat))
