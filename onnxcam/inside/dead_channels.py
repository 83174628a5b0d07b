"""Dead channels: those that were never above 0 on some pictures, and those that cannot be on any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxcam import runtime
from onnxcam.errors import PictureError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph
from onnxcam.inside import interval_rules  # noqa: F401  (registers the rules)
from onnxcam.inside.depths import layers_of
from onnxcam.inside.intervals import COARSE_UNIT, UNIT, Bounds, Interval
from onnxcam.network.layout import Layout
from onnxcam.network.names import INPUT
from onnxcam.runtime.rows import portions

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer
    from onnxcam.network.network import Network

Progress = Callable[[int, int], None]
_LOWEST, _HIGHEST = "onnxcam.lowest", "onnxcam.highest"


@dataclass(frozen=True)
class Dead:
    """The dead channels of one layer.

    Attributes:
        layer: its name.
        observed: channels never above 0 on any of the `n` pictures.
        proven: channels that cannot be above 0 for any picture, by bounds from the range of the input's values; a part
            of `observed`.
        n: number of pictures.
        channels: of the layer.
        bounded: whether any bound of the layer is finite: where not, nothing can be proven.
        signed: whether the layer was below 0 anywhere: a channel that is never above 0 may then say something by its
            values below it, as behind a linear layer or a GELU, and is not dead.
        broken: channels with values that are not finite, of which nothing is said.
    """

    layer: str
    observed: tuple[int, ...]
    proven: tuple[int, ...]
    n: int
    channels: int
    bounded: bool
    signed: bool = False
    broken: tuple[int, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        return {
            "layer": self.layer,
            "channels": self.channels,
            "n": self.n,
            "observed": list(self.observed),
            "proven": list(self.proven),
            "bounded": self.bounded,
            "signed": self.signed,
            "broken": list(self.broken),
        }


def dead(
    explainer: Explainer,
    pictures: Iterable[Any],
    layers: Sequence[str] | str | None = None,
    *,
    progress: Progress | None = None,
) -> list[Dead]:
    """Find dead channels.

    Arguments:
        pictures: as of `Explainer.explain`, read one at a time.
        layers: names of layers, of values or of nodes; None for all that can be explained.
        progress: called with (done, total) after each picture, if their number is known.

    Returns:
        one `Dead` for each layer, in order.

    Raises:
        LayerError: no such layer, or one that is neither a map nor tokens on a grid.
        PictureError: there are no pictures, or one cannot be read.
    """
    names = layers_of(explainer) if layers is None else [layers] if isinstance(layers, str) else list(layers)
    names = list(dict.fromkeys(names))
    items = pictures if isinstance(pictures, (list, tuple)) else None

    def prepared() -> Iterator[np.ndarray]:
        for number, picture in enumerate(pictures):
            yield explainer.prepare(picture)[1]
            if progress is not None and items is not None:
                progress(number + 1, len(items))

    return of_tensors(explainer, prepared(), names)


def of_tensors(explainer: Explainer, tensors: Iterable[np.ndarray], names: Sequence[str]) -> list[Dead]:
    """`dead` of prepared pictures `[1, ...]`, one at a time.

    Raises:
        PictureError: there are none.
    """
    ends: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    first: tuple[int, ...] = ()
    span: tuple[np.ndarray, np.ndarray] | None = None
    count, varying = 0, False
    layout = explainer.sessions.cut(INPUT).layout
    for tensor in tensors:
        first = first or tensor.shape
        varying = varying or tensor.shape != first  # bounds hold for one size: convolutions pad everywhere
        values = layout.to_canonical(tensor).astype(np.float64)
        span = _widened(span, values.min(axis=(0, 2, 3)), values.max(axis=(0, 2, 3)))
        for name, (low, high) in _ends(explainer, tensor, names).items():
            ends[name] = _widened(ends.get(name), low, high)
        count += 1
    if span is None:
        raise PictureError("there are no pictures: observing needs at least one")
    uppermost = upper_bounds(explainer, names, first, span)
    return [_dead(name, ends[name], uppermost[name], count, trusted=not varying) for name in names]


def _widened(
    ends: tuple[np.ndarray, np.ndarray] | None, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest of what was there and of what comes; not a number where one is not."""
    return (low, high) if ends is None else (np.minimum(ends[0], low), np.maximum(ends[1], high))


def _dead(layer: str, ends: tuple[np.ndarray, np.ndarray], upper: np.ndarray, count: int, *, trusted: bool) -> Dead:
    lowest, highest = ends
    proven = np.flatnonzero(upper <= 0) if trusted else np.array([], int)
    observed, broken = np.flatnonzero(highest <= 0), np.flatnonzero(np.isnan(highest) | np.isnan(lowest))
    return Dead(
        layer,
        tuple(int(channel) for channel in observed),
        tuple(int(channel) for channel in proven),
        count,
        len(highest),
        bool(np.isfinite(upper).any()) and trusted,
        bool((lowest < 0).any()),
        tuple(int(channel) for channel in broken),
    )


def _ends(explainer: Explainer, tensor: np.ndarray, names: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The lowest and the highest value of each channel over places and rows, by layer."""
    sessions = explainer.sessions
    network = sessions.network
    session = sessions.session(("ends", *names), lambda: _extremes(network, names))
    outputs = [f"{end}.{index}" for index in range(len(names)) for end in (_LOWEST, _HIGHEST)]
    runs = [
        runtime.run(session, outputs, {network.picture.name: part}) for part in portions(tensor, explainer.batch_size)
    ]
    joined = {output: np.concatenate([run[output] for run in runs]) for output in outputs}
    return {
        name: (joined[f"{_LOWEST}.{index}"].min(axis=0), joined[f"{_HIGHEST}.{index}"].max(axis=0))
        for index, name in enumerate(names)
    }


def _extremes(network: Network, names: Sequence[str]) -> onnx.ModelProto:
    """Picture in; per layer the lowest and the highest value of each channel, float32 `[N, C]`, out; not a number where
    a value is not finite.
    """
    graph = network.graph
    op = Builder(graph)
    infos = []
    for index, name in enumerate(names):
        cut = network.cut(name)
        canonical = cut.layout.emit_canonical(op, cut.layer.value, graph.dtype(cut.layer.value))
        # 0, or not a number: ONNX Runtime's ReduceMin and ReduceMax skip what is not one
        sound = op.ReduceSum(op.Mul(canonical, op.constant(np.zeros((), np.float32))), [2, 3], keepdims=0)
        op.Add(op.ReduceMin(canonical, [2, 3], keepdims=0), sound, name=f"{_LOWEST}.{index}")
        op.Add(op.ReduceMax(canonical, [2, 3], keepdims=0), sound, name=f"{_HIGHEST}.{index}")
        outputs = (f"{_LOWEST}.{index}", f"{_HIGHEST}.{index}")
        infos += [edit.info(output, onnx.TensorProto.FLOAT, ["N", None]) for output in outputs]
    whole = onnx.ModelProto()
    whole.CopyFrom(graph.model)
    edit.add(whole, op)
    model = edit.extract(Graph(whole), [network.picture], infos)
    edit.prune(model)
    return model


def upper_bounds(
    explainer: Explainer,
    names: Sequence[str],
    shape: tuple[int, ...],
    span: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The highest value that each channel of some layers can have for any picture, float64 `[C]`; or infinite.

    Arguments:
        shape: of a prepared picture.
        span: lowest and highest value per channel of pictures that count too, wherever they lie.
    """
    network = explainer.sessions.network
    graph, picture = network.graph, network.picture.name
    static = StaticShapes(graph, {picture: tuple(shape)})
    values = {name: explainer.sessions.cut(name).layer.value for name in names}
    unit = UNIT if explainer.providers[0] == "CPUExecutionProvider" else COARSE_UNIT
    bounds = Bounds(graph, static, (picture, _input(explainer, span)), values.values(), unit)
    by_name = {}
    for name, value in values.items():
        layout, dims = explainer.sessions.cut(name).layout, static.shape(value)
        interval = bounds.interval(value)
        if dims is None:
            raise PictureError(f"the shape of layer {name!r} is not known for pictures of {list(shape)}")
        wide = np.broadcast_to(interval.aligned(len(dims)).high, _thin(dims, interval, layout))
        by_name[name] = layout.to_canonical(wide)[0].max(axis=(1, 2)) if layout.tokens else _by_channel(wide, layout)
    return by_name


def _thin(dims: tuple[int, ...], interval: Interval, layout: Layout) -> tuple[int, ...]:
    """The dimensions that matter for a bound per channel: all of tokens, else the channels alone where it varies."""
    if layout.tokens:
        return (1, *dims[1:])
    have = interval.aligned(len(dims)).high.shape
    return tuple(
        size if axis == layout.channels else side for axis, (size, side) in enumerate(zip(dims, have, strict=True))
    )


def _by_channel(bound: np.ndarray, layout: Layout) -> np.ndarray:
    return np.asarray(bound.max(axis=tuple(axis for axis in range(bound.ndim) if axis != layout.channels)))


def _input(explainer: Explainer, span: tuple[np.ndarray, np.ndarray] | None) -> Interval:
    """The range of the input's values by its preprocessing or its element type, and of the pictures themselves."""
    entry, preprocess = explainer.manifest["input"], explainer.preprocess
    layout = Layout.of(entry)
    if preprocess is not None:
        low, high = (np.asarray(end, np.float64).reshape(-1) for end in preprocess.range)
        if preprocess.resize is not None and preprocess.resize.mode == "letterbox":
            padding = (np.asarray(preprocess.resize.pad_value) * preprocess.scale - preprocess.mean) / preprocess.std
            low, high = np.minimum(low, padding), np.maximum(high, padding)
    elif entry["dtype"] == "uint8":
        low, high = np.zeros(1), np.full(1, 255.0)
    else:
        return Interval.of(np.full((1, 1, 1, 1), -np.inf), np.full((1, 1, 1, 1), np.inf))
    if span is not None:
        low, high = np.minimum(low, span[0]), np.maximum(high, span[1])
    dims = [-1 if axis == layout.channels else 1 for axis in range(4)]
    interval = Interval.of(low.reshape(dims), high.reshape(dims))
    # the tensor itself is rounded to the input's type
    unit = 2.0**-10 if entry["dtype"] == "float16" else 2.0**-22
    return interval.widened(unit * interval.magnitude)
