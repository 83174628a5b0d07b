"""The numbers that a model's outputs take on a few pictures, by which its task is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcam import runtime
from onnxcam.errors import InputError, ModelError
from onnxcam.graph import edit
from onnxcam.graph.layout import input_layout
from onnxcam.graph.load import serialize
from onnxcam.graph.view import Graph
from onnxcam.targets.tasks import Size

# tried in turn where the file leaves height and width open; detectors take multiples of 32
_SIZES: tuple[Size, ...] = ((320, 416), (256, 320), (512, 512), (224, 224), (640, 640))
_SEED, _CELL = 2024, 16


@dataclass(frozen=True)
class Numbers:
    """What was measured.

    Attributes:
        size: height and width of the pictures.
        shape: of the input, one picture.
        batched: the values that have one row per picture.
        rows: of each value its numbers on each picture, without the axis of rows.
    """

    size: Size
    shape: tuple[int, ...]
    batched: frozenset[str]
    rows: dict[str, list[np.ndarray]]

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(next(iter(self.rows.values()), []))


def measure(graph: Graph, picture: str, values: Sequence[str]) -> Numbers:
    """Run a model on a few pictures.

    Arguments:
        values: those to return, outputs or values inside.

    Raises:
        ModelError: the model fails on pictures of every size that was tried. RuntimeUnavailable: no ONNX Runtime.
    """
    dims = graph.shape(picture) or ()
    options = runtime.options.in_turn(single_use=True)
    session: Any = runtime.open_session(_exposing(graph, values), [runtime.CPU], options)
    error: Exception | None = None
    for size in _sizes(graph, picture):
        shape = _shape(graph, picture, size)
        try:
            return _run(session, graph, picture, values, shape, dims[0] if dims else None, size)
        except (ModelError, InputError) as failure:
            error = failure
    raise ModelError(f"the model's outputs could not be measured: {error}") from error


def _run(
    session: Any, graph: Graph, picture: str, values: Sequence[str], shape: tuple[int, ...], batch: Any, size: Size
) -> Numbers:
    count = batch if isinstance(batch, int) else 2
    images = _pictures(count + 1, shape, graph.dtype(picture))

    def run(batch_of: np.ndarray) -> dict[str, np.ndarray]:
        return runtime.run(session, values, {picture: batch_of})

    rows: dict[str, list[np.ndarray]] = {value: [] for value in values}
    if isinstance(batch, int):  # each run takes as many
        runs = [run(images[:count]), run(images[-count:])]
        batched = {v for v in values if all(_has_rows(r[v], count) for r in runs)}
    else:
        single = run(images[-1:])
        try:
            double = run(images[:count])
        except (ModelError, InputError):  # an NMS may take one picture at a time
            double = None
        batched = {v for v in values if single[v].ndim and len(single[v]) == 1 and _has_rows(single[v], 1)}
        if double is not None:
            batched = {v for v in batched if double[v].ndim and len(double[v]) == count}
        runs = [run(images[k : k + 1]) for k in range(count)] if double is None else [double]
        runs.append(single)
    for result in runs:
        for value in values:
            array = result[value]
            rows[value] += list(array) if value in batched else [array]
    return Numbers(size, shape, frozenset(batched), rows)


def _has_rows(array: np.ndarray, count: int) -> bool:
    return array.ndim > 0 and len(array) == count and (count > 1 or array.ndim > 1 or array.size == 1)


def _sizes(graph: Graph, picture: str) -> list[Size]:
    dims = graph.shape(picture) or ()
    height, width = (dims[2:] if input_layout(graph, picture) == "NCHW" else dims[1:3]) or (None, None)
    sizes = [(height if isinstance(height, int) else h, width if isinstance(width, int) else w) for h, w in _SIZES]
    return list(dict.fromkeys(sizes))


def _shape(graph: Graph, picture: str, size: Size) -> tuple[int, ...]:
    """The input's shape for one picture of a size."""
    dims = graph.shape(picture) or ()
    first = input_layout(graph, picture) == "NCHW"
    channels = dims[1] if first else dims[-1]
    depth = channels if isinstance(channels, int) else 3
    return (1, depth, *size) if first else (1, *size, depth)


def _pictures(count: int, shape: tuple[int, ...], dtype: int) -> np.ndarray:
    """Blobs and rectangles of colour, 0..1 (0..255 of whole numbers), in the input's layout."""
    rng = np.random.default_rng(_SEED)
    first = shape[1] <= shape[-1]
    channels, height, width = shape[1:] if first else (shape[3], *shape[1:3])
    grid = (-(-height // _CELL), -(-width // _CELL))
    coarse = rng.uniform(size=(count, channels, *grid))
    images = coarse.repeat(_CELL, axis=2)[:, :, :height].repeat(_CELL, axis=3)[..., :width]
    for image in images:
        for _ in range(3):
            y, x = rng.integers(height), rng.integers(width)
            colour = rng.uniform(size=(channels, 1, 1))
            image[:, y : y + max(height // 3, 1), x : x + max(width // 4, 1)] = colour
    images = images if first else images.transpose(0, 2, 3, 1)
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    return np.ascontiguousarray((images if kind.kind == "f" else images * 255).astype(kind))


def pictures_of(graph: Graph, picture: str, numbers: Numbers) -> np.ndarray:
    """The pictures that were run, `[pictures, C, H, W]` in 0..1 or 0..255, float64."""
    rows = (graph.shape(picture) or (None,))[0]
    count = rows if isinstance(rows, int) else 2
    images = _pictures(count + 1, numbers.shape, graph.dtype(picture)).astype(np.float64)
    order = [*range(count), *range(1, count + 1)] if isinstance(rows, int) else [*range(count), count]
    if len(order) != numbers.count:
        order = [*range(numbers.count)]
    images = images[order]
    return images if input_layout(graph, picture) == "NCHW" else images.transpose(0, 3, 1, 2)


def _exposing(graph: Graph, values: Sequence[str]) -> Any:
    """Serialize a model with further outputs, without a copy of its weights in between."""
    outputs = graph.model.graph.output
    present = {output.name for output in outputs}
    added = [edit.info(value, graph.dtype(value), None) for value in values if value not in present]
    outputs.extend(added)
    try:
        return serialize(graph.model)
    finally:
        del outputs[len(outputs) - len(added) :]
