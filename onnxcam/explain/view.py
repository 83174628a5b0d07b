"""A layer of a batch on running sessions: the implementation of `onnxcam.cam.view.View`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np

from onnxcam import runtime
from onnxcam.cam.methods import GRAPH, Method, find
from onnxcam.cam.methods import INPUT as ATTRIBUTION
from onnxcam.cam.view import Make
from onnxcam.errors import MethodError, ModelError
from onnxcam.explain import components, dense_tail
from onnxcam.explain.features import Batch, HeadRun, by_run, run_head, values_of
from onnxcam.explain.patches import FEWEST, Window, distinct, patch
from onnxcam.network.layout import Layout
from onnxcam.network.names import (
    ACTIVATIONS,
    BLOCK,
    COTANGENT,
    CURVATURE,
    DIRECTION,
    GRADIENT,
    INPUT,
    MAP,
    SCORES,
    TARGET,
)
from onnxcam.runtime.row_choice import FixedRows, Rows
from onnxcam.runtime.rows import floats, joined, like, portions
from onnxcam.targets.objectives import Logit, Objective

_TAIL_BYTES = 32 << 20  # of changed activations per run
_TAIL_ROWS, _WHOLE_ROWS = 256, 16  # per run at most
_BLOCKS_ROWS = 4  # pictures whose attention in every block is held at once


def view(features: HeadRun, layer: str, objective: Objective) -> LayerView:
    """One of the layers of a head run, or the picture (`INPUT`), under an objective."""
    if layer != INPUT:
        values = {name: features.values[name] for name in features.batch.sessions.cut(layer).values}
        return LayerView(features.batch, layer, objective, values)
    whole = LayerView.whole(features.batch, objective)
    gradient = features.gradient
    if gradient is not None and isinstance(objective, Logit) and bool((gradient.classes == objective.classes).all()):
        whole.reuse(gradient.relu, features.values[GRADIENT])
    return whole


class LayerView:
    """See `onnxcam.cam.view.View`.

    Arguments:
        batch: what all views of the batch share.
        layer: name of the layer, `INPUT` for the picture.
        objective: what is explained.
        values: the cut values by name, N rows each (a value without rows as it is).
    """

    def __init__(self, batch: Batch, layer: str, objective: Objective, values: Mapping[str, np.ndarray]) -> None:
        self.batch = batch
        self.layer = layer
        self.objective = objective
        self.scores = batch.scores
        self.readout = batch.readout
        self._values = values
        self._cut = batch.sessions.cut(layer)
        self.affine = self._cut.affine
        self.shape = batch.sessions.cut(INPUT).layout.size(batch.pictures.shape)
        self.window = self._cut.layout.window
        self._reseed()
        self._gradients_by_rules: dict[str, np.ndarray] = {}

    @classmethod
    def whole(cls, batch: Batch, objective: Objective) -> LayerView:
        """The pictures themselves as the layer."""
        name = batch.sessions.cut(INPUT).layer.value
        return cls(batch, INPUT, objective, {name: floats(batch.pictures)})

    def reuse(self, relu: str, gradient: np.ndarray) -> None:
        """Store a gradient that was computed elsewhere, in the layer's own layout."""
        self._gradients_by_rules[relu] = self._canonical(gradient)

    @cached_property
    def activations(self) -> np.ndarray:
        """float32 `[N, C, h, w]`."""
        return self._canonical(self._values[self._cut.layer.value])

    @property
    def gradients(self) -> np.ndarray:
        """d objective / d activations, float32 `[N, C, h, w]`."""
        return self._gradient("plain")

    @property
    def guided(self) -> np.ndarray:
        """`gradients` by guided backpropagation."""
        return self._gradient("guided")

    def _gradient(self, relu: str) -> np.ndarray:
        if relu not in self._gradients_by_rules:
            rows = np.arange(len(self.scores))
            chunks = self._chunks(rows, relu)
            parts = [self._gradients(self._feeds(None, chunk), chunk, relu, self.scores[chunk]) for chunk in chunks]
            self._gradients_by_rules[relu] = joined(parts)[: len(rows)]
        return self._gradients_by_rules[relu]

    @cached_property
    def input(self) -> LayerView:
        """The pictures themselves as the layer."""
        return self if self.layer == INPUT else LayerView.whole(self.batch, self.objective)

    def contributions(self) -> Iterator[tuple[int, int, list[np.ndarray]]]:
        """Gradient times value of the picture and of every additive constant, a picture at a time."""
        whole = self.input
        session, outputs = self.batch.sessions.contributions()
        total = len(self.scores)
        step = self.batch.size or 1
        for start in range(0, total, step):
            stop = min(total, start + step)
            rows = np.minimum(np.arange(start, start + step), total - 1)
            feeds = whole._feeds(None, rows)
            feeds[COTANGENT] = self.objective.cotangent(self.scores[rows], rows).astype(self._score_type)
            values = runtime.run(session, [name for name, _ in outputs], feeds)
            yield (
                start,
                stop,
                [
                    _on_picture(values[name][: stop - start].astype(np.float32, copy=False), layout, self.shape)
                    for name, layout in outputs
                ],
            )
            self.tell(stop, total)

    def under(self, objective: Objective) -> LayerView:
        """View the same layer and pictures under another objective."""
        return LayerView(self.batch, self.layer, objective, self._values)

    def at(self, pictures: np.ndarray) -> LayerView:
        """View the same layer of changed pictures."""
        native = like(self.input._native(pictures, np.arange(len(pictures))), self.batch.pictures.dtype)
        names = [] if self.layer == INPUT else [self.layer]
        batch = self.batch
        changed = run_head(batch.sessions, native, names, size=batch.size, seed=batch.seed, progress=batch.progress)
        return view(changed, self.layer, self.objective)

    def value(self) -> np.ndarray:
        """The objective of the unchanged pictures, float64 `[N]`."""
        return self.objective.value(self.scores, np.arange(len(self.scores)))

    def values(self, total: int, make: Make) -> np.ndarray:
        """The objective of variants, float64 `[total]`."""
        values = [self.objective.value(scores, rows) for scores, rows in self._scan(total, make)]
        return np.concatenate(values) if values else np.empty(0)

    def occluded(self, windows: Sequence[Window], hidden: np.ndarray) -> np.ndarray | None:
        """The objective with one window replaced, float64 `[windows, N]`; None where the whole graph had better run.

        Only what a window changes is computed: see `onnxcam.explain.patches`.
        """
        if self.layer != INPUT or len(windows) * len(self.scores) < FEWEST or not self._on_processor:
            return None
        native = self._values[self._cut.layer.value]
        spans, places = distinct(windows)
        # rows of a model that fixes them are its own; parts of it take any number
        fixed = None if self._cut.free else self._most_rows()
        patches = self.batch.sessions.patches((1, *native.shape[1:]), spans, fixed)
        if not patches.useful:
            return None
        values = np.empty((len(windows), len(self.scores)))
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            self.tell(done, values.size)

        for row, (x, filling) in enumerate(zip(self.activations, hidden, strict=True)):

            def piece(at: int, x: np.ndarray = x, filling: np.ndarray = filling) -> np.ndarray:
                return patch(x, filling, windows[at], self._cut.layout).astype(native.dtype, copy=False)

            for index, scores in patches.scores(native[row : row + 1], piece, places, tell):
                values[index, row] = self.objective.value(scores, np.full(len(index), row))
        return values

    @property
    def _on_processor(self) -> bool:
        """Whether sessions run on the processor: elsewhere crops would be copied there and back."""
        return bool(self.batch.sessions.head([]).get_providers()[0] == runtime.CPU)

    def variants(self, total: int, make: Make) -> np.ndarray:
        """The scores of variants, `[total, K]`."""
        runs = [scores for scores, _ in self._scan(total, make)]
        return np.concatenate(runs) if runs else np.empty((0, self.scores.shape[1]), np.float32)

    def differentiate(self, total: int, make: Make, *, relu: str = "plain") -> Iterator[tuple[int, int, np.ndarray]]:
        """Gradients of variants, a few at a time."""
        choice = self._row_choice(relu)
        start = 0
        while start < total:
            began = perf_counter()
            stop, activations, rows = self._variants(start, total, make, choice)
            try:
                gradients = self._gradients(self._feeds(activations, rows), rows, relu)
            except ModelError:
                if choice.fail(len(rows)):
                    continue
                raise
            choice.record(len(rows), perf_counter() - began)
            yield start, stop, gradients[: stop - start]
            self.tell(stop, total)
            start = stop

    def curvature(self) -> np.ndarray:
        """The second derivative of the objective times the activations; zero where the tail is piecewise linear."""
        session = self.batch.sessions.curvature(self.layer)
        if session is None:
            return np.zeros_like(self.activations)
        parts = []
        rows = np.arange(len(self.scores))
        for chunk in self._chunks(rows, CURVATURE):
            feeds = self._feeds(None, chunk)
            direction = feeds[self._cut.layer.value]
            cotangent = self.objective.cotangent(self.scores[chunk], chunk).astype(self._score_type)
            feeds |= {COTANGENT: cotangent, DIRECTION: direction}
            parts.append(self._canonical(runtime.run(session, [CURVATURE], feeds)[CURVATURE]))
        return np.concatenate(parts)[: len(rows)]

    def map(self, method: str | Method) -> np.ndarray:
        """The map of a graph method, before its ReLU."""
        return self.maps([method])[0]

    def maps(self, methods: Sequence[str | Method]) -> list[np.ndarray]:
        """The maps of graph methods, float32 `[N, h, w]` before their ReLU, from one backward pass."""
        return self._run_maps([find(method) for method in methods], False)

    def smooth(self, method: str | Method, options: dict[str, Any]) -> np.ndarray:
        """The first principal component of what a method sums over channels, after ReLU, float32 `[N, h, w]`.

        Raises:
            MethodError: its map is not such a sum.
        """
        registered = find(method)
        if registered.terms is None:
            raise MethodError(
                f"method {registered.name!r} is not a sum over channels: smooth='eigen' has no first component to take"
            )
        registered.check(options)
        self._reseed()
        terms = self._run_maps([registered], True)[0] if registered.kind == GRAPH else registered.terms(self, **options)
        return np.asarray(np.maximum(self.first_component(terms), 0))

    def without_channels(self, order: np.ndarray) -> np.ndarray | None:
        """The objective without each of these channels `[N, k]` of each row, float64 `[N, k]`, where that is simple."""
        return dense_tail.without_channels(self, order, self._row_choice("dense")) if self._on_processor else None

    def places_alone(self) -> np.ndarray | None:
        """The objective with each place kept and the others 0, float64 `[N, h·w]`, where that is simple."""
        return dense_tail.places_alone(self, self._row_choice("dense")) if self._on_processor else None

    def first_component(self, values: np.ndarray) -> np.ndarray:
        """The first principal component over the places of `[N, C, h, w]`, float32 `[N, h, w]`."""
        return components.first_component(self.batch.sessions, values)

    def gram(self) -> np.ndarray:
        """Inner products of the places of the activations minus their mean, float64 `[N, h w, h w]`."""
        return components.gram(self.batch.sessions, self.activations)[0]

    def _run_maps(self, methods: Sequence[Method], terms: bool) -> list[np.ndarray]:
        gradient, names = any(method.gradient for method in methods), [method.name for method in methods]
        if gradient and not terms and "plain" not in self._gradients_by_rules and isinstance(self.objective, Logit):
            return self._logit_maps(self.objective.classes, names)
        session = self.batch.sessions.maps(self.layer, tuple(names), terms)
        feeds = {ACTIVATIONS: self.activations}
        if gradient:
            feeds[GRADIENT] = self.gradients
        maps = runtime.run(session, names, feeds)
        return [maps[name] for name in names]

    def _logit_maps(self, classes: np.ndarray, methods: Sequence[str]) -> list[np.ndarray]:
        """The maps of one class per row: backward pass and methods in one session."""
        session = self.batch.sessions.class_maps(self.layer, tuple(methods))
        names, rows = [MAP + name for name in methods], np.arange(len(self.scores))
        chunks = self._chunks(rows, MAP)
        feeds = (self._feeds(None, chunk) | {TARGET: classes[chunk]} for chunk in chunks)
        runs = [runtime.run(session, names, part) for part in feeds]
        return [joined([run[name] for run in runs])[: len(rows)] for name in names]

    def class_maps(self, classes: np.ndarray, methods: Sequence[Method]) -> list[np.ndarray] | None:
        """The maps `[N, k, h, w]` of graph methods, before their ReLU, of several classes `[N, k]` of each row.

        None where rows cannot be repeated, or there are more of them than one run takes.
        """
        repeats = self._cut.free and self.batch.size is None and classes.size <= self._most_rows()
        if not repeats or not any(method.gradient for method in methods):
            return None
        names = [method.name for method in methods]
        session, feeds = self.batch.sessions.class_maps(self.layer, tuple(names), True), {TARGET: classes.reshape(-1)}
        maps = runtime.run(session, [MAP + name for name in names], {**self._values, **feeds})
        return [every.reshape(*classes.shape, *every.shape[1:]) for every in maps.values()]

    def explain(self, method: str | Method, options: dict[str, Any]) -> np.ndarray:
        """The map of any method after its ReLU, float32 `[N, h, w]`; of an input method, of the input's size."""
        registered = find(method)
        registered.check(options)
        self._reseed()
        if registered.kind == ATTRIBUTION:
            return np.asarray(np.abs(registered.function(self, **options)).sum(axis=1), np.float32)
        maps = self.map(registered) if registered.kind == GRAPH else registered.function(self, **options)
        return np.maximum(np.asarray(maps, np.float32), 0)

    def _reseed(self) -> None:
        """Draw the same random numbers for each method, whichever ran before it."""
        self.__dict__.pop("rng", None)

    @cached_property
    def rng(self) -> np.random.Generator:
        """Random numbers for one method."""
        return np.random.default_rng(self.batch.seed)

    def _scan(self, total: int, make: Make) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        session, choice = self.batch.sessions.tail(self.layer), self._row_choice(SCORES)
        start = 0
        while start < total:
            began = perf_counter()
            stop, activations, rows = self._variants(start, total, make, choice)
            try:
                scores = runtime.run(session, [SCORES], self._feeds(activations, rows))[SCORES]
            except ModelError:
                if choice.fail(len(rows)):
                    continue
                raise
            choice.record(len(rows), perf_counter() - began)
            yield scores[: stop - start].astype(np.float32, copy=False), rows[: stop - start]
            self.tell(stop, total)
            start = stop

    def _variants(self, start: int, total: int, make: Make, choice: Rows) -> tuple[int, np.ndarray, np.ndarray]:
        """Make the variants of the next run: the first that it leaves out, activations, and which row each is of.

        The last run is padded where the model fixes its rows.
        """
        count = choice.next(total - start)
        stop = min(total, start + count)
        activations, rows = make(start, stop)
        short = 0 if self._cut.free else count - (stop - start)
        if short:
            activations = np.concatenate([activations, np.repeat(activations[-1:], short, axis=0)])
            rows = np.concatenate([rows, np.repeat(rows[-1:], short)])
        return stop, np.ascontiguousarray(activations, np.float32), rows

    def _chunks(self, rows: np.ndarray, use: str) -> Iterator[np.ndarray]:
        """Split unchanged rows into runs; the last one is padded where the model fixes its rows."""
        choice = self._row_choice(use) if self.layer == INPUT else FixedRows(self._most_rows())
        start = 0
        while start < len(rows):
            count = choice.next(len(rows) - start)
            chunk = rows[start : start + count]
            short = 0 if self._cut.free else count - len(chunk)
            began = perf_counter()
            yield np.concatenate([chunk, np.repeat(chunk[-1:], short)])
            choice.record(count, perf_counter() - began)  # of what the caller did with it
            start += count

    def _row_choice(self, use: str) -> Rows:
        """How many rows the runs of a session have: those that the model or the caller fixes, or the measured ones.

        Arguments:
            use: what the runs are for, beside the layer.
        """
        if self.batch.size is not None:
            return FixedRows(self.batch.size)
        if not self._cut.free:
            return FixedRows(len(self.scores))
        sessions, most = self.batch.sessions, self._most_rows()
        if sessions.rows is not None:
            return FixedRows(sessions.rows)
        shape = self._values[self._cut.layer.value].shape[1:]
        return sessions.row_choice((self.layer, use, shape), most)

    def _most_rows(self) -> int:
        """Rows per run at most."""
        if self.batch.size is not None:
            return self.batch.size
        if not self._cut.free:
            return len(self.scores)
        if self.layer == INPUT:
            return _WHOLE_ROWS
        each = sum(int(self._values[name][0].nbytes) for name in self._cut.values)
        return max(1, min(_TAIL_ROWS, _TAIL_BYTES // max(1, each)))

    def _feeds(self, activations: np.ndarray | None, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Cut values of some rows, with `activations` in place of the layer's own unless they are None."""
        changed = activations is not None
        feeds = values_of(self._cut, self._values, rows, len(self.scores), self.batch.size, changed)
        if activations is not None:
            feeds[self._cut.layer.value] = self._native(activations, rows)
        return feeds

    def _gradients(
        self, feeds: dict[str, np.ndarray], rows: np.ndarray, relu: str, scores: np.ndarray | None = None
    ) -> np.ndarray:
        return self._canonical(self._native_gradients(feeds, rows, relu, scores))

    def _native_gradients(
        self, feeds: dict[str, np.ndarray], rows: np.ndarray, relu: str, scores: np.ndarray | None = None
    ) -> np.ndarray:
        """Gradients in the layer's own layout and type; `scores` where they are known, of unchanged rows."""
        if isinstance(self.objective, Logit):
            session = self.batch.sessions.backward(self.layer, relu, of_class=True)
            return runtime.run(session, [GRADIENT], feeds | {TARGET: self.objective.classes[rows]})[GRADIENT]
        if self.objective.linear:
            scores = self.scores[rows]  # not read: the cotangent is the same everywhere
        elif scores is None:
            session = self.batch.sessions.tail(self.layer)
            scores = runtime.run(session, [SCORES], feeds)[SCORES].astype(np.float32, copy=False)
        cotangent = self.objective.cotangent(scores, rows).astype(self._score_type)
        session = self.batch.sessions.backward(self.layer, relu)
        return runtime.run(session, [GRADIENT], feeds | {COTANGENT: cotangent})[GRADIENT]

    @property
    def _score_type(self) -> np.dtype[Any]:
        return self.batch.sessions.network.score_type

    def _canonical(self, value: np.ndarray) -> np.ndarray:
        """A value in the layer's layout as float32 `[N, C, h, w]`."""
        return np.ascontiguousarray(self._cut.layout.to_canonical(value), np.float32)

    def _native(self, value: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A value `[N, C, h, w]` in the layer's layout and type; prefix tokens are those of the rows."""
        layout, unchanged = self._cut.layout, self._values[self._cut.layer.value]
        prefix = unchanged[rows, : layout.prefix_tokens] if layout.tokens else None
        return np.ascontiguousarray(layout.from_canonical(value, prefix), unchanged.dtype)

    @property
    def tokens(self) -> tuple[tuple[int, int], int]:
        """Height and width of the grid of patches, and the number of tokens before it."""
        self.batch.sessions.attention()
        layer = self.batch.sessions.cut(BLOCK).layer
        return layer.grid or (0, 0), layer.prefix_tokens

    def attentions(self) -> list[np.ndarray]:
        """The attention of each block, float32 `[N, heads, T, T]`."""
        session, blocks = self.batch.sessions.attention()
        names = [block.attention for block in blocks]
        return [value.astype(np.float32, copy=False) for value in self._of_pictures(session, names, [])]

    def attention_gradients(self) -> list[np.ndarray]:
        """The gradient at each block's attention, of the objective read from that block by the classifier's head."""
        sessions = self.batch.sessions
        session, blocks = sessions.attention()
        cut = sessions.cut(BLOCK)
        values = self._of_pictures(session, [*(block.output for block in blocks), *cut.values], [])
        cotangents = []
        for value in values[: len(blocks)]:
            passing = dict(zip(cut.values, values[len(blocks) :], strict=True)) | {cut.layer.value: value}
            batch = self.batch._replace(size=1) if self.batch.size is None and cut.singly else self.batch
            last = LayerView(batch, BLOCK, self.objective, passing)
            chunks = last._chunks(np.arange(len(value)), "plain")
            rows = [last._native_gradients(last._feeds(None, chunk), chunk, "plain") for chunk in chunks]
            cotangents.append(np.concatenate(rows)[: len(value)])
        names = [f"{BLOCK}.gradient.{index}" for index in range(len(blocks))]
        gradients = self._of_pictures(sessions.attention_backward(), names, cotangents)
        return [gradient.astype(np.float32, copy=False) for gradient in gradients]

    def _of_pictures(self, session: Any, names: list[str], cotangents: list[np.ndarray]) -> list[np.ndarray]:
        """Run a session that reads the pictures, and a cotangent per block where there are any."""
        feeds = {f"{BLOCK}.cotangent.{index}": value for index, value in enumerate(cotangents)}
        feeds[self.batch.sessions.network.picture.name] = self.batch.pictures
        cut = self.batch.sessions.cut(BLOCK)
        count = self.batch.size or (self.batch.sessions.rows or _BLOCKS_ROWS if cut.free else len(self.scores))
        count = 1 if self.batch.size is None and cut.singly else count
        whole = {name for name, by_row in cut.flags.items() if not by_row}
        runs: list[dict[str, np.ndarray]] = []
        for start in range(0, len(self.scores), count):
            part = {key: value[start : start + count] for key, value in feeds.items()}
            if self.batch.size is not None:
                part = {key: portions(value, count)[0] for key, value in part.items()}
            runs.append(runtime.run(session, list(dict.fromkeys(names)), part))
        rows, parts = len(self.scores), {name: [run[name] for run in runs] for name in names}
        return [by_run(parts[name], count, rows) if name in whole else joined(parts[name])[:rows] for name in names]

    def tell(self, done: int, total: int) -> None:
        """Report progress."""
        if self.batch.progress is not None:
            self.batch.progress(done, total)


def _on_picture(value: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
    """A value as `[N, C, h, w]`; at the input's size, drawn where it lies, if it covers only a part of the input."""
    maps = layout.to_canonical(value)
    if layout.window is None:
        return maps
    rows, channels = maps.shape[:2]
    drawn = layout.window.place(maps.reshape(rows * channels, *maps.shape[2:]), size, size)
    return drawn.reshape(rows, channels, *size)
