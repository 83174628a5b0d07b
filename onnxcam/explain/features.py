"""A layer of a batch on running sessions: `onnxcam.cam.view.View` made real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.cam.methods import GRAPH, find
from onnxcam.cam.methods import INPUT as ATTRIBUTION
from onnxcam.cam.methods.eigen import first_component
from onnxcam.cam.view import Make
from onnxcam.errors import MethodError
from onnxcam.explain.sessions import Parts
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
from onnxcam.runtime.rows import floats, joined, like, portions
from onnxcam.targets.objectives import Logit, Objective, resolve
from onnxcam.targets.readout import Readout

_TAIL_BYTES = 32 << 20  # of changed activations per run
_TAIL_ROWS, _WHOLE_ROWS = 256, 4

Progress = Callable[[int, int], None]


class Batch(NamedTuple):
    """What all views of a batch share.

    Attributes:
        parts: the model's sessions.
        pictures: the tensor as the model takes it, N rows.
        scores: logits `[N, K]`.
        readout: the meaning of the scores.
        size: rows per run where the model fixes them, else None.
        seed: of whatever is random.
        progress: called with (done, total) as long methods go; what it raises stops them.
    """

    parts: Parts
    pictures: np.ndarray
    scores: np.ndarray
    readout: Readout
    size: int | None
    seed: int
    progress: Progress | None


class Aim(NamedTuple):
    """The one gradient that is wanted: at the picture, of each row's class (-1: its best), under these rules."""

    relu: str
    classes: np.ndarray


class Features:
    """What the head made of a batch: scores, and the cut values of some layers. The head has run once.

    With an `aim` the scores and that gradient come from one run, and there are no layers.
    """

    def __init__(
        self,
        parts: Parts,
        pictures: np.ndarray,
        layers: Sequence[str],
        *,
        size: int | None,
        seed: int = 1234,
        progress: Progress | None = None,
        aim: Aim | None = None,
    ) -> None:
        anatomy = parts.anatomy
        head = parts.aimed(aim.relu) if aim is not None else parts.head(layers)
        wanted = list(dict.fromkeys(v for name in layers for v in parts.cut(name).values if v != anatomy.picture.name))
        wanted += [GRADIENT] * (aim is not None)
        found: dict[str, list[np.ndarray]] = {name: [] for name in (SCORES, *wanted)}
        native = pictures if aim is None else floats(pictures)
        rows = np.arange(len(pictures)) if aim is None else aim.classes
        for part, classes in zip(portions(native, size), portions(rows, size), strict=True):
            feeds = {anatomy.picture.name: part} | ({} if aim is None else {TARGET: classes})
            for name, value in runtime.run(head, [SCORES, *wanted], feeds).items():
                found[name].append(value)
        by_row = {value: flag for name in layers for value, flag in parts.cut(name).flags.items()}
        by_row |= {SCORES: True, GRADIENT: True}
        self._values = {
            name: joined(rows)[: len(pictures)] if by_row[name] else rows[0] for name, rows in found.items()
        }
        self._values[anatomy.picture.name] = pictures
        self.scores = self._values[SCORES].astype(np.float32, copy=False)
        self.batch = Batch(parts, pictures, self.scores, anatomy.scores, size, seed, progress)
        self._aim = None
        if aim is not None:
            self._aim = aim._replace(classes=self.batch.readout.fill_top1(aim.classes, self.scores))

    def repeat(self, count: int, layers: Sequence[str]) -> Features | None:
        """The same with each row `count` times in a row; None where the model does not let rows be repeated."""
        if any(not self.batch.parts.cut(name).free for name in layers) and self.batch.size is None:
            return None
        repeated = object.__new__(Features)
        by_row = {value: flag for name in layers for value, flag in self.batch.parts.cut(name).flags.items()}
        repeated._values = {
            name: np.repeat(value, count, axis=0) if by_row.get(name, True) else value
            for name, value in self._values.items()
        }
        repeated.scores = np.repeat(self.scores, count, axis=0)
        pictures = np.repeat(self.batch.pictures, count, axis=0)
        repeated.batch = self.batch._replace(scores=repeated.scores, pictures=pictures)
        repeated._aim = None
        return repeated

    def objective(self, target: Any, labels: Sequence[str] | None) -> Objective:
        """What a target means for these rows."""
        return resolve(target, self.scores, self.batch.readout, labels)

    def view(self, layer: str, objective: Objective) -> LiveView:
        """One of the layers under an objective."""
        if layer == INPUT:
            view = LiveView.whole(self.batch, objective)
            aim = self._aim
            if aim is not None and isinstance(objective, Logit) and bool((aim.classes == objective.classes).all()):
                view.know(aim.relu, self._values[GRADIENT])
            return view
        cut = self.batch.parts.cut(layer)
        return LiveView(self.batch, layer, objective, {name: self._values[name] for name in cut.values})


class LiveView:
    """See `onnxcam.cam.view.View`.

    Arguments:
        batch: what all views of the batch share.
        layer: name of the layer, `INPUT` for the picture.
        objective: what is explained.
        held: the cut values by name, N rows each (a value without rows as it is).
    """

    def __init__(self, batch: Batch, layer: str, objective: Objective, held: dict[str, np.ndarray]) -> None:
        self.batch = batch
        self.layer = layer
        self.objective = objective
        self.scores = batch.scores
        self.readout = batch.readout
        self._held = held
        self._cut = batch.parts.cut(layer)
        self.affine = self._cut.affine
        axes = (2, 3) if batch.parts.cut(INPUT).layer.layout == "NCHW" else (1, 2)
        self.shape = (batch.pictures.shape[axes[0]], batch.pictures.shape[axes[1]])
        self._reseed()
        self._known: dict[str, np.ndarray] = {}

    @classmethod
    def whole(cls, batch: Batch, objective: Objective) -> LiveView:
        """The pictures themselves as the layer."""
        name = batch.parts.cut(INPUT).layer.value
        return cls(batch, INPUT, objective, {name: floats(batch.pictures)})

    def know(self, relu: str, gradient: np.ndarray) -> None:
        """Take a gradient in the layer's own layout as computed."""
        self._known[relu] = self._canonical(gradient)

    @cached_property
    def activations(self) -> np.ndarray:
        """float32 `[N, C, h, w]`."""
        return self._canonical(self._held[self._cut.layer.value])

    @property
    def gradients(self) -> np.ndarray:
        """d objective / d activations, float32 `[N, C, h, w]`."""
        return self._gradient("plain")

    @property
    def guided(self) -> np.ndarray:
        """The same with guided ReLUs."""
        return self._gradient("guided")

    def _gradient(self, relu: str) -> np.ndarray:
        if relu not in self._known:
            rows = np.arange(len(self.scores))
            parts = [self._gradients(self._feeds(None, chunk), chunk, relu) for chunk in self._chunks(rows)]
            self._known[relu] = joined(parts)[: len(rows)]
        return self._known[relu]

    @cached_property
    def input(self) -> LiveView:
        """The pictures themselves as the layer."""
        return self if self.layer == INPUT else LiveView.whole(self.batch, self.objective)

    def contributions(self) -> Iterator[tuple[int, int, list[np.ndarray]]]:
        """Gradient times value of the picture and of every additive constant, a picture at a time."""
        whole = self.input
        session, outputs = self.batch.parts.constants()
        total = len(self.scores)
        step = self.batch.size or 1
        for start in range(0, total, step):
            stop = min(total, start + step)
            rows = np.minimum(np.arange(start, start + step), total - 1)
            feeds = whole._feeds(None, rows)
            feeds[COTANGENT] = self.objective.cotangent(self.scores[rows], rows).astype(self._score_type)
            found = runtime.run(session, [name for name, _ in outputs], feeds)
            values = [found[name][: stop - start].astype(np.float32, copy=False) for name, _ in outputs]
            yield (
                start,
                stop,
                [
                    value.transpose(0, 3, 1, 2) if layout == "NHWC" else value
                    for value, (_, layout) in zip(values, outputs, strict=True)
                ],
            )
            self.tell(stop, total)

    def under(self, objective: Objective) -> LiveView:
        """The same under another objective."""
        return LiveView(self.batch, self.layer, objective, self._held)

    def at(self, pictures: np.ndarray) -> LiveView:
        """The same layer of changed pictures."""
        native = like(self.input._native(pictures, np.arange(len(pictures))), self.batch.pictures.dtype)
        names = [] if self.layer == INPUT else [self.layer]
        moved = Features(
            self.batch.parts,
            native,
            names,
            size=self.batch.size,
            seed=self.batch.seed,
            progress=self.batch.progress,
        )
        return moved.view(self.layer, self.objective)

    def value(self) -> np.ndarray:
        """The objective of the unchanged pictures, float64 `[N]`."""
        return self.objective.value(self.scores, np.arange(len(self.scores)))

    def values(self, total: int, make: Make) -> np.ndarray:
        """The objective of variants, float64 `[total]`."""
        found = [self.objective.value(scores, rows) for scores, rows in self._scan(total, make)]
        return np.concatenate(found) if found else np.empty(0)

    def variants(self, total: int, make: Make) -> np.ndarray:
        """The scores of variants, `[total, K]`."""
        found = [scores for scores, _ in self._scan(total, make)]
        return np.concatenate(found) if found else np.empty((0, self.scores.shape[1]), np.float32)

    def differentiate(self, total: int, make: Make, *, relu: str = "plain") -> Iterator[tuple[int, int, np.ndarray]]:
        """Gradients of variants, a few at a time."""
        for start, stop, activations, rows in self._made(total, make):
            gradients = self._gradients(self._feeds(activations, rows), rows, relu)
            yield start, stop, gradients[: stop - start]
            self.tell(stop, total)

    def curvature(self) -> np.ndarray:
        """The second derivative of the objective times the activations; zero where the tail is piecewise linear."""
        session = self.batch.parts.curvature(self.layer)
        if session is None:
            return np.zeros_like(self.activations)
        parts = []
        rows = np.arange(len(self.scores))
        for chunk in self._chunks(rows):
            feeds = self._feeds(None, chunk)
            direction = feeds[self._cut.layer.value]
            cotangent = self.objective.cotangent(self.scores[chunk], chunk).astype(self._score_type)
            given = feeds | {COTANGENT: cotangent, DIRECTION: direction}
            parts.append(self._canonical(runtime.run(session, [CURVATURE], given)[CURVATURE]))
        return np.concatenate(parts)[: len(rows)]

    def map(self, method: str) -> np.ndarray:
        """The map of a graph method, before its ReLU."""
        return self.maps([method])[0]

    def maps(self, methods: Sequence[str]) -> list[np.ndarray]:
        """The maps of graph methods, float32 `[N, h, w]` before their ReLU, from one pass back."""
        return self._computed(methods, False)

    def smooth(self, method: str, options: dict[str, Any]) -> np.ndarray:
        """The first principal component of what a method sums over channels, after ReLU, float32 `[N, h, w]`.

        Raises:
            MethodError: its map is no such sum.
        """
        held = find(method)
        if held.terms is None:
            raise MethodError(
                f"method {method!r} adds nothing up over channels that smooth='eigen' could take the first component of"
            )
        held.check(options)
        self._reseed()
        terms = self._computed([method], True)[0] if held.kind == GRAPH else held.terms(self, **options)
        return np.asarray(np.maximum(first_component(terms), 0))

    def _computed(self, methods: Sequence[str], terms: bool) -> list[np.ndarray]:
        gradient = any(find(name).gradient for name in methods)
        if gradient and not terms and "plain" not in self._known and isinstance(self.objective, Logit):
            return self._from_class(self.objective.classes, methods)
        session = self.batch.parts.maps(self.layer, tuple(methods), terms)
        feeds = {ACTIVATIONS: self.activations}
        if gradient:
            feeds[GRADIENT] = self.gradients
        found = runtime.run(session, list(methods), feeds)
        return [found[name] for name in methods]

    def _from_class(self, classes: np.ndarray, methods: Sequence[str]) -> list[np.ndarray]:
        """The same of a class per row, in one session with the pass back."""
        session = self.batch.parts.class_maps(self.layer, tuple(methods))
        names, rows = [MAP + name for name in methods], np.arange(len(self.scores))
        feeds = (self._feeds(None, chunk) | {TARGET: classes[chunk]} for chunk in self._chunks(rows))
        found = [runtime.run(session, names, fed) for fed in feeds]
        return [joined([one[name] for one in found])[: len(rows)] for name in names]

    def of_classes(self, classes: np.ndarray, methods: Sequence[str]) -> list[np.ndarray] | None:
        """The maps `[N, k, h, w]` of graph methods, before their ReLU, of several classes `[N, k]` of each row.

        None where rows cannot be repeated, or there are more of them than one run takes.
        """
        repeats = self._cut.free and self.batch.size is None and classes.size <= self._rows_per_run()
        if not repeats or not any(find(name).gradient for name in methods):
            return None
        session, feeds = self.batch.parts.class_maps(self.layer, tuple(methods), True), {TARGET: classes.reshape(-1)}
        maps = runtime.run(session, [MAP + name for name in methods], self._held | feeds)
        return [found.reshape(*classes.shape, *found.shape[1:]) for found in maps.values()]

    def explain(self, method: str, options: dict[str, Any]) -> np.ndarray:
        """The map of any method after its ReLU, float32 `[N, h, w]`; of an input method, of the input's size."""
        held = find(method)
        held.check(options)
        self._reseed()
        if held.kind == ATTRIBUTION:
            return np.asarray(np.abs(held.function(self, **options)).sum(axis=1), np.float32)
        found = self.map(method) if held.kind == GRAPH else held.function(self, **options)
        return np.maximum(np.asarray(found, np.float32), 0)

    def _reseed(self) -> None:
        """A method draws the same numbers whatever was asked for before it."""
        self.__dict__.pop("rng", None)

    @cached_property
    def rng(self) -> np.random.Generator:
        """Random numbers for one method."""
        return np.random.default_rng(self.batch.seed)

    def _scan(self, total: int, make: Make) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        session = self.batch.parts.tail(self.layer)
        for start, stop, activations, rows in self._made(total, make):
            scores = runtime.run(session, [SCORES], self._feeds(activations, rows))[SCORES]
            yield scores[: stop - start].astype(np.float32, copy=False), rows[: stop - start]
            self.tell(stop, total)

    def _made(self, total: int, make: Make) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Variants a run at a time, the last run filled up where the model fixes its rows."""
        count = self._rows_per_run()
        for start in range(0, total, count):
            stop = min(total, start + count)
            activations, rows = make(start, stop)
            short = 0 if self._cut.free else count - (stop - start)
            if short:
                activations = np.concatenate([activations, np.repeat(activations[-1:], short, axis=0)])
                rows = np.concatenate([rows, np.repeat(rows[-1:], short)])
            yield start, stop, np.ascontiguousarray(activations, np.float32), rows

    def _chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Unchanged rows a run at a time, the last run filled up where the model fixes its rows."""
        count = self._rows_per_run()
        for start in range(0, len(rows), count):
            chunk = rows[start : start + count]
            short = 0 if self._cut.free else count - len(chunk)
            yield np.concatenate([chunk, np.repeat(chunk[-1:], short)])

    def _rows_per_run(self) -> int:
        if self.batch.size is not None:
            return self.batch.size
        if not self._cut.free:
            return len(self.scores)
        if self.layer == INPUT:
            return _WHOLE_ROWS
        each = sum(int(self._held[name][0].nbytes) for name in self._cut.values)
        return max(1, min(_TAIL_ROWS, _TAIL_BYTES // max(1, each)))

    def _feeds(self, activations: np.ndarray | None, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Cut values of some rows, the layer's own replaced by `activations` if given."""
        feeds = {}
        whole = len(rows) == len(self.scores) and bool((rows == np.arange(len(rows))).all())
        for name, by_row in self._cut.flags.items():
            if activations is not None and name == self._cut.layer.value:
                feeds[name] = self._native(activations, rows)
            else:
                feeds[name] = self._held[name] if whole or not by_row else self._held[name][rows]
        return feeds

    def _gradients(self, feeds: dict[str, np.ndarray], rows: np.ndarray, relu: str) -> np.ndarray:
        return self._canonical(self._native_gradients(feeds, rows, relu))

    def _native_gradients(self, feeds: dict[str, np.ndarray], rows: np.ndarray, relu: str) -> np.ndarray:
        """In the layer's own shape and type."""
        if isinstance(self.objective, Logit):
            session = self.batch.parts.backward(self.layer, relu, of_class=True)
            return runtime.run(session, [GRADIENT], feeds | {TARGET: self.objective.classes[rows]})[GRADIENT]
        if self.objective.linear:
            scores = self.scores[rows]  # not read: the cotangent is the same everywhere
        else:
            session = self.batch.parts.tail(self.layer)
            scores = runtime.run(session, [SCORES], feeds)[SCORES].astype(np.float32, copy=False)
        cotangent = self.objective.cotangent(scores, rows).astype(self._score_type)
        session = self.batch.parts.backward(self.layer, relu)
        return runtime.run(session, [GRADIENT], feeds | {COTANGENT: cotangent})[GRADIENT]

    @property
    def _score_type(self) -> np.dtype[Any]:
        return self.batch.parts.anatomy.score_type

    def _canonical(self, value: np.ndarray) -> np.ndarray:
        """A value in the layer's layout as float32 `[N, C, h, w]`."""
        layer = self._cut.layer
        value = value.astype(np.float32, copy=False)
        if layer.layout == "NHWC":
            return np.ascontiguousarray(value.transpose(0, 3, 1, 2))
        if layer.layout == "NTC":
            height, width = layer.grid or (0, 0)
            tokens = value[:, layer.prefix_tokens :].transpose(0, 2, 1)
            return np.ascontiguousarray(tokens.reshape(*tokens.shape[:2], height, width))
        return value

    def _native(self, value: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The other way; tokens before the grid stay those of their rows."""
        layer = self._cut.layer
        own = self._held[layer.value]
        if layer.layout == "NHWC":
            value = value.transpose(0, 2, 3, 1)
        elif layer.layout == "NTC":
            tokens = value.reshape(*value.shape[:2], -1).transpose(0, 2, 1).astype(own.dtype)
            value = np.concatenate([own[rows][:, : layer.prefix_tokens], tokens], axis=1)
        return np.ascontiguousarray(value, own.dtype)

    @property
    def tokens(self) -> tuple[tuple[int, int], int]:
        """Height and width of the grid of patches, and how many tokens lie before it."""
        self.batch.parts.attention()
        layer = self.batch.parts.cut(BLOCK).layer
        return layer.grid or (0, 0), layer.prefix_tokens

    def attentions(self) -> list[np.ndarray]:
        """Who looks at whom in each block, float32 `[N, heads, T, T]`."""
        session, blocks = self.batch.parts.attention()
        names = [block.attention for block in blocks]
        return [found.astype(np.float32, copy=False) for found in self._of_pictures(session, names, [])]

    def attention_gradients(self) -> list[np.ndarray]:
        """Of each block's attention, the gradient of the objective as the head reads it at that block."""
        parts = self.batch.parts
        session, blocks = parts.attention()
        cut = parts.cut(BLOCK)
        held = self._of_pictures(session, [*(block.output for block in blocks), *cut.values], [])
        cotangents = []
        for value in held[: len(blocks)]:
            passed = dict(zip(cut.values, held[len(blocks) :], strict=True)) | {cut.layer.value: value}
            view = LiveView(self.batch, BLOCK, self.objective, passed)
            chunks = view._chunks(np.arange(len(value)))
            rows = [view._native_gradients(view._feeds(None, chunk), chunk, "plain") for chunk in chunks]
            cotangents.append(np.concatenate(rows)[: len(value)])
        names = [f"{BLOCK}.gradient.{index}" for index in range(len(blocks))]
        found = self._of_pictures(parts.attention_backward(), names, cotangents)
        return [gradient.astype(np.float32, copy=False) for gradient in found]

    def _of_pictures(self, session: Any, names: list[str], cotangents: list[np.ndarray]) -> list[np.ndarray]:
        """Outputs of a session that reads the pictures, and with them a cotangent per block."""
        fed = {f"{BLOCK}.cotangent.{index}": value for index, value in enumerate(cotangents)}
        fed[self.batch.parts.anatomy.picture.name] = self.batch.pictures
        cut = self.batch.parts.cut(BLOCK)
        count = self.batch.size or (_WHOLE_ROWS if cut.free else len(self.scores))
        whole = {name for name, by_row in cut.flags.items() if not by_row}
        found: list[dict[str, np.ndarray]] = []
        for start in range(0, len(self.scores), count):
            part = {key: value[start : start + count] for key, value in fed.items()}
            if self.batch.size is not None:
                part = {key: portions(value, count)[0] for key, value in part.items()}
            found.append(runtime.run(session, list(dict.fromkeys(names)), part))
        return [
            found[0][name] if name in whole else joined([one[name] for one in found])[: len(self.scores)]
            for name in names
        ]

    def tell(self, done: int, total: int) -> None:
        """Report progress."""
        if self.batch.progress is not None:
            self.batch.progress(done, total)
