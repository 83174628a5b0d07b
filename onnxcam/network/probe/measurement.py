"""Measure a network: run it on a few pictures, and read the facts off what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcam.errors import InputError, ModelError, OnnxcamError
from onnxcam.graph.batch_positions import batch_positions
from onnxcam.graph.coverage import covers
from onnxcam.graph.input_normalization import normalization
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import input_layout
from onnxcam.graph.view import Graph
from onnxcam.graph.window import Window
from onnxcam.image import Preprocess
from onnxcam.network.layout import Layout
from onnxcam.network.manifest import COUPLED, INDEPENDENT
from onnxcam.network.probe import places, stimuli
from onnxcam.network.probe.facts import LayerFacts, Probe
from onnxcam.network.probe.places import Place
from onnxcam.network.probe.runner import Runner
from onnxcam.network.probe.stimuli import BACKGROUNDS, PLACES, Stimuli
from onnxcam.network.score_facts import measure as measure_scores
from onnxcam.targets.readout import Readout

OPEN_SIDE = 224  # pixels per side where the model leaves its input size open
_PER_RUN, _PIXELS = 5, 5 * 256**2  # rows per run, fewer where pictures are larger: memory stays bounded
_FEWER = 4  # places where one run more is needed to see that a model takes one row at a time
# relative difference between a row alone and among others that rounding explains
_COUPLING = {"float32": 1e-3, "float16": 3e-2, "quantized": 5e-2}
_COUNTED = 1e-5  # the same where positions in the batch are computed with: further rows differ more than the second
_REPEATED = 1e-6  # relative difference between two equal runs that rounding explains
_AROUND = 1.2  # deviations around the mean of a normalisation inside the graph that the pictures take
_PIXEL = 64.0  # inputs that reach above are pixels, and none of them is negative: of x / 255 the mean is 0
_USUAL = 2.0  # a normalised input lies within this of 0
SCORES, ROWS, DETERMINISTIC, PLACED = "scores", "rows", "deterministic", "places"


@dataclass
class _Layer:
    """What was measured of a layer: how much its cells move, by the layouts it may have."""

    layer: Layer
    moved: dict[Layout, list[list[np.ndarray]]]
    bases: dict[int, np.ndarray] = field(default_factory=dict)
    fault: str | None = None


def measure(
    graph: Graph,
    picture: str,
    readout: Readout,
    layers: Sequence[Layer],
    *,
    preprocess: Preprocess | None = None,
    size: tuple[int, int] | None = None,
    pictures: np.ndarray | None = None,
    with_covers: bool = False,
) -> Probe:
    """Measure a network on 12 pictures at most; what cannot be measured is named with the reason.

    Arguments:
        graph: the normalised model.
        picture: its input. readout: its scores.
        layers: resolved layers to be placed on the picture.
        preprocess: tells the range of the input, where it is known.
        size: height and width of the picture, where the model leaves them open.
        pictures: a batch in the model's own layout, backgrounds instead of drawn ones.
        with_covers: say of each layer whether it `covers` all paths, as the graph tells exactly.
    """
    measurement = _Measurement(graph, picture, readout, layers)
    try:
        drawn = _stimuli(graph, picture, preprocess, size, pictures, layers[-1].window if layers else None)
    except OnnxcamError as error:
        measurement.fail(str(error))
    else:
        measurement.attempt(drawn)
    ways = [covers(graph, layer.value, picture, readout.value) if with_covers else None for layer in layers]
    return measurement.facts(ways)


class _Measurement:
    """The runs of one measurement, and what they have said so far."""

    def __init__(self, graph: Graph, picture: str, readout: Readout, layers: Sequence[Layer]) -> None:
        self._graph, self._picture, self._scores = graph, picture, readout.value
        self._of_task = readout.task is not None
        self._layout = Layout(input_layout(graph, picture))
        self._layers = [_Layer(layer, {layout: [] for layout in _layouts(layer)}) for layer in layers]
        self._runner: Runner | None = None
        self._rows_of_scores: list[np.ndarray] = []
        self._unmeasured: dict[str, str] = {}
        self._boxes, self._size = np.zeros((0, 4)), (1, 1)
        self._probe = Probe(readout.value)

    def take(self, drawn: Stimuli) -> None:
        """Run the model on the stimuli.

        Raises:
            OnnxcamError: there is no runtime, or it refuses the model or fails.
        """
        runner = Runner(self._graph, self._picture, [self._scores, *(entry.layer.value for entry in self._layers)])
        self._runner = runner
        batch = self._layout.from_canonical(drawn.pictures)
        self._boxes, self._size = drawn.boxes, drawn.pictures.shape[2:]
        typed = runner.typed(batch)
        self._probe = replace(self._probe, range=(float(typed.min()), float(typed.max())))
        declared = (self._graph.shape(self._picture) or (None,))[0]
        if isinstance(declared, int) and declared > 1:
            self._in_fixed_batches(runner, batch, drawn, declared)
        elif declared == 1:
            self._unmeasured[ROWS] = "the model takes one picture at a time"
            self._one_by_one(runner, batch, drawn, len(PLACES))
        else:
            self._in_free_batches(runner, batch, drawn)

    def attempt(self, drawn: Stimuli) -> None:
        """Run the model on the stimuli; what cannot be measured is noted, in words of our own."""
        try:
            self.take(drawn)
        except (InputError, ModelError):
            height, width = drawn.pictures.shape[2:]
            self.fail(
                "ONNX Runtime refuses the model with its layers as outputs"
                if self._runner is None
                else f"the model fails on the pictures to be measured, {height} x {width} pixels"
            )
        except OnnxcamError as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        """Note why what has not been measured yet was not."""
        for key, value in (
            (SCORES, self._rows_of_scores),
            (ROWS, self._probe.rows),
            (DETERMINISTIC, self._probe.deterministic),
        ):
            if value is None or (key == SCORES and not value):
                self._unmeasured.setdefault(key, reason)
        self._unmeasured.setdefault(PLACED, reason)

    def facts(self, ways: Sequence[str | None]) -> Probe:
        """All that was measured."""
        reason = self._unmeasured.get(PLACED)
        layers = []
        for entry, way in zip(self._layers, ways, strict=True):
            place = Place("unsettled", 0.0, reason) if reason is not None else self._place(entry)
            layer = entry.layer
            layers.append(LayerFacts(layer.name, layer.value, layer.layout or "NCHW", layer.shape, place, way))
        scores = self._rows_of_scores
        return replace(
            self._probe,
            scores=measure_scores(np.concatenate(scores)) if scores else None,
            layers=tuple(layers),
            unmeasured=self._unmeasured,
            loads=0 if self._runner is None else self._runner.loads,
            passes=0 if self._runner is None else self._runner.passes,
        )

    def _in_free_batches(self, runner: Runner, batch: np.ndarray, drawn: Stimuli) -> None:
        """Rows in runs of several, the first background alone too."""
        second = len(PLACES) + 1
        try:  # behind another row: what counts over the batch is the same in the first row
            among = runner.run(batch[[second, 0]])
        except OnnxcamError:  # whether it runs at all, a single row shows
            self._one_by_one(runner, batch, drawn, _FEWER)
            self._probe = replace(self._probe, batch=1, rows=None)
            self._unmeasured[ROWS] = "the model declares a free batch and takes one picture at a time only"
            return
        alone = runner.run(batch[:1])
        again = runner.run(batch[:1])
        self._repeated(alone, again)
        self._compare(alone, among, 2, 1)
        if self._probe.rows != INDEPENDENT:
            self._remaining(runner, batch, drawn, _FEWER, alone)
            return
        self._take(among, [second, 0], drawn)
        changed = [row for row in range(len(batch)) if drawn.places[row] >= 0]
        rows = min(_PER_RUN, max(1, _PIXELS // max(1, drawn.pictures[0, 0].size)))
        for start in range(0, len(changed), rows):
            part = changed[start : start + rows]
            self._take(runner.run(batch[part]), part, drawn)

    def _one_by_one(self, runner: Runner, batch: np.ndarray, drawn: Stimuli, count: int) -> None:
        """Every row in a run of its own, the first one twice."""
        alone = runner.run(batch[:1])
        self._repeated(alone, runner.run(batch[:1]))
        self._remaining(runner, batch, drawn, count, alone)

    def _remaining(
        self, runner: Runner, batch: np.ndarray, drawn: Stimuli, count: int, first: dict[str, np.ndarray]
    ) -> None:
        """Rows one at a time, at the first `count` places, after the first row."""
        self._boxes = self._boxes[:count]
        self._take(first, [0], drawn)
        for row in range(1, len(batch)):
            if drawn.places[row] < count:
                self._take(runner.run(batch[row : row + 1]), [row], drawn)

    def _in_fixed_batches(self, runner: Runner, batch: np.ndarray, drawn: Stimuli, rows: int) -> None:
        """Rows in runs of the size that the model declares; the first row also in one filled with itself."""
        second = len(PLACES) + 1
        order = [second, 0, *(row for row in range(len(batch)) if drawn.places[row] >= 0)]
        first: dict[str, np.ndarray] = {}
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            outputs = runner.run(batch[part + [part[-1]] * (rows - len(part))])
            first = first or outputs
            self._take({name: _of_rows(value, len(part), rows) for name, value in outputs.items()}, part, drawn)
        alike = runner.run(np.repeat(batch[:1], rows, axis=0))
        one, last = ({name: _row(value, row, rows) for name, value in alike.items()} for row in (0, rows - 1))
        if self._differ(one, last):  # by chance, or by their places in the batch
            again = runner.run(np.repeat(batch[:1], rows, axis=0))
            self._repeated(alike, again)
            if self._probe.deterministic:
                self._probe = replace(self._probe, rows=COUPLED)
                return
        self._repeated(one, last)
        self._compare(one, first, rows, 1)

    def _differ(self, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
        return max(_difference(one[name], other[name]) for name in one) > _REPEATED

    def _repeated(self, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
        """Compare two results for the same picture."""
        self._probe = replace(self._probe, deterministic=not self._differ(one, other))

    def _compare(self, alone: dict[str, np.ndarray], among: dict[str, np.ndarray], rows: int, row: int) -> None:
        """Compare the first picture alone with itself as a row among others."""
        if not self._probe.deterministic:
            self._unmeasured[ROWS] = "the model is not deterministic"
            return
        differences = [
            # several rows of a picture, as crops of it, stand together, or each with those of other pictures
            min(_difference(value, part) for part in (_row(among[name], row, rows), among[name][row::rows]))
            for name, value in alone.items()
            if len(value) * rows == len(among[name]) or len(value) == 1
        ]
        bound = _COUPLING[self._precision()]
        if self._scores in batch_positions(self._graph, self._picture):
            bound = _COUNTED
        coupled = not differences or max(differences) > bound
        self._probe = replace(self._probe, rows=COUPLED if coupled else INDEPENDENT)

    def _precision(self) -> str:
        """The coarsest arithmetic of the model, as far as its operators and types tell."""
        if any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in self._graph.nodes):
            return "quantized"
        kinds = {self._graph.dtype(name) for node in self._graph.nodes for name in node.output[:1]}
        return "float16" if kinds & {10, 16} else "float32"  # FLOAT16, BFLOAT16

    def _take(self, outputs: dict[str, np.ndarray], rows: Sequence[int], drawn: Stimuli) -> None:
        """Take note of the values of some rows: scores, and how far each layer moved from its background."""
        scores = outputs[self._scores]
        if self._of_task:
            self._unmeasured[SCORES] = "its columns are not the scores of classes"
        elif len(scores) == len(rows):
            self._rows_of_scores.append(scores.reshape(len(rows), -1))
        else:
            self._unmeasured[SCORES] = f"the scores have {len(scores)} rows for {len(rows)} pictures"
        for entry in self._layers:
            value = outputs[entry.layer.value]
            if len(value) != len(rows):
                entry.fault = f"it has {len(value) // len(rows)} rows for each picture"
                continue
            for place, row in enumerate(rows):
                _note(entry, value[place : place + 1], row, drawn)

    def _place(self, entry: _Layer) -> Place:
        """The verdict on a layer, in its own layout and in the other one it might have."""
        if entry.fault is not None and entry.layer.crops is not None:
            return Place("unsettled", 0.0, f"{entry.fault}, crops that are drawn where the graph says")
        if entry.fault is not None:
            return Place("none", 0.0, entry.fault)
        if not entry.moved:
            return Place("unsettled", 0.0, "its positions on the picture are unknown")
        layout, *others = entry.moved
        place = self._place_in(entry, layout)
        for layout in () if place.verdict == "direct" or place.drawn else others:
            other = self._place_in(entry, layout)
            if other.verdict == "direct" and other.correlation > place.correlation:
                reason = f"its layout is {layout.name}, not {entry.layer.layout or 'NCHW'}"
                wrong = place if place.misplaced else Place("none", place.correlation)
                return replace(wrong, reason=reason, layout=layout.name, corrected=replace(other, reason=reason))
        return place

    def _place_in(self, entry: _Layer, layout: Layout) -> Place:
        """The verdict on a layer in one of the layouts it might have."""
        bases = [layout.to_canonical(base) for base in entry.bases.values()]
        awake = places.alive(*bases) if len(bases) == BACKGROUNDS else 1.0
        responses = [
            places.response(np.stack(moved)) for moved in entry.moved[layout] if len(moved) == len(self._boxes)
        ]
        return places.judge(responses, self._boxes, _relative(entry.layer.window, self._size), awake)


def _note(entry: _Layer, value: np.ndarray, row: int, drawn: Stimuli) -> None:
    """Note how far one row of a layer moved from its background."""
    background = drawn.background(row)
    if row == background:
        entry.bases[background] = value
        for per_background in entry.moved.values():
            per_background.append([])
        return
    base = entry.bases[background]
    number = sorted(entry.bases).index(background)
    for layout, per_background in entry.moved.items():
        before, after = (layout.to_canonical(part) for part in (base, value))
        moved = places.changes(before[0], after)
        per_background[number].append(places.averaged(moved[0], places.smaller(moved.shape)))


def _layouts(layer: Layer) -> list[Layout]:
    """The layouts that a layer may have, the one that the graph suggests first; none without a grid."""
    layout = Layout.of_layer(layer)
    if layout.tokens:
        return [] if layout.grid is None else [layout]
    other = "NHWC" if layout.name == "NCHW" else "NCHW"
    return [Layout(layout.name), Layout(other)]


def _row(value: np.ndarray, row: int, rows: int) -> np.ndarray:
    """The values of one row of a run of `rows`, also where the value has several for each."""
    each = max(1, len(value) // rows)
    return value[row * each : (row + 1) * each]


def _of_rows(value: np.ndarray, count: int, rows: int) -> np.ndarray:
    """The values of the first `count` rows of a run of `rows`."""
    return value[: count * max(1, len(value) // rows)]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |a| over all finite values; 1 where shapes differ, or which values are finite."""
    if a.shape != b.shape:
        return 1.0
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return 1.0
    a, b = (part[finite].astype(np.float64) for part in (a, b))
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-12))


def _stimuli(
    graph: Graph,
    picture: str,
    preprocess: Preprocess | None,
    size: tuple[int, int] | None,
    pictures: np.ndarray | None,
    window: Window | None,
) -> Stimuli:
    """Draw the stimuli in the range that the model's input has."""
    shape = graph.shape(picture) or (None,) * 4
    layout = Layout(input_layout(graph, picture))
    canonical = [] if pictures is None else list(layout.to_canonical(np.asarray(pictures, np.float32)))
    sides = canonical[0].shape[1:] if canonical else size or (OPEN_SIDE, OPEN_SIDE)
    height, width = (a if isinstance(a, int) else b for a, b in zip(layout.size(shape), sides, strict=True))
    channels = shape[layout.channels]
    channels = channels if isinstance(channels, int) else 3
    if canonical and canonical[0].shape != (channels, height, width):
        raise ModelError(f"pictures of shape {list(canonical[0].shape)} do not fit the model's input {list(shape)}")
    low, high = _range(graph, picture, layout, channels, preprocess)
    return stimuli.draw(
        (channels, height, width), low, high, canonical[:BACKGROUNDS], _relative(window, (height, width))
    )


def _relative(window: Window | None, size: tuple[int, ...]) -> Window:
    """A window in units of the picture's sides."""
    if window is None:
        return stimuli.WHOLE
    (top, bottom), (left, right) = window.height, window.width
    return Window((top / size[0], bottom / size[0]), (left / size[1], right / size[1]), window.transposed)


def _range(
    graph: Graph, picture: str, layout: Layout, channels: int, preprocess: Preprocess | None
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value of the input, per channel or for all."""
    inside = normalization(graph, picture, layout.channels == 3)
    if inside is not None and len(inside["mean"]) in (1, channels):
        mean, std = np.asarray(inside["mean"]), np.asarray(inside["std"])
        if preprocess is None or not np.allclose(std, 1):  # what the graph does itself is no matter of opinion
            low, high = mean - _AROUND * std, mean + _AROUND * std
            return np.where(high > _PIXEL, np.maximum(low, 0.0), low), high
    if preprocess is not None:
        low, high = preprocess.range
        if low.size in (1, channels):
            return low, high
    if not graph.is_float(picture):
        return np.asarray(0.0), np.asarray(255.0)
    return np.asarray(-_USUAL), np.asarray(_USUAL)
