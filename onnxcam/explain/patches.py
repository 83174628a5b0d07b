"""Windows of a picture hidden one at a time: only what each changes is computed, and pasted into the rest.

The maps of the unchanged picture are computed once. A window changes a part of each map; stages (see
`onnxcam.graph.stages`) compute that part from crops, windows with crops of one size as the rows of one run. Behind the
last stage, where hardly anything is left unchanged or an operator reads whole maps, the rest of the graph runs on
whole maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.network.layout import Layout
from onnxcam.network.names import INPUT, SCORES

if TYPE_CHECKING:
    from onnxcam.explain.sessions import Sessions
    from onnxcam.graph.locality import Locality
    from onnxcam.graph.stages import Plan, Stage

Spans = tuple[np.ndarray, np.ndarray]  # along rows and along columns, int64 `[n, 2]`: from, and to before
Window = tuple[slice, slice, slice]  # channels, rows and columns of a picture
Tell = Callable[[int], None]

FEWEST = 64  # windows: fewer do not repay the stages' sessions
_DEAREST = 0.85  # of the whole graph's cost: stages that save less are not worth their sessions
_PATCH_BYTES = 64 << 20  # of changed parts that wait for the next stage
_RUN_BYTES = 4 << 20  # of the inputs of one run of a stage
_ROWS = 16  # of one run at most, where none are fixed


class _Part(NamedTuple):
    """A stage with its session, and where its crops lie.

    Attributes:
        stage, session: what runs.
        crops: along rows and columns, by span of the picture: what `stage_crops` gives.
        inner: by result, where its changed part lies in what the stage computes, by span of rows and of columns.
    """

    stage: Stage
    session: Any
    crops: Spans
    inner: dict[str, Spans]


class Patches:
    """Sessions that compute what windows of a picture change.

    Arguments:
        sessions: of the network.
        shape: of the picture, one row, in the model's layout.
        spans: the rows and the columns of windows, int64 `[n, 2]` each.
        rows: per run where the model fixes them, else None.

    Attributes:
        plan: what runs.
        useful: whether that costs less than the whole graph; else no session is open.
        count: of windows.
        opened: every session that is open.
    """

    def __init__(self, sessions: Sessions, shape: tuple[int, ...], spans: Spans, rows: int | None) -> None:
        from onnxcam.graph.locality import changes, locality
        from onnxcam.graph.stages import Planner, stage_model
        from onnxcam.network import subgraphs

        network = sessions.network
        graph, picture = network.graph_from(INPUT), network.picture.name
        layout = sessions.cut(INPUT).layout
        self._sessions = sessions
        self._picture = picture
        self._rows, self._most = rows, sessions.rows or _ROWS
        self._local: Locality = locality(graph, picture, (layout.height, layout.width), shape)
        self.plan: Plan = Planner(graph, self._local, picture, network.readout.value).plan(spans)
        self.useful = bool(self.plan.stages) and self.plan.cost <= _DEAREST
        self._changed = [changes(self._local, picture, spans[axis], axis) for axis in (0, 1)]
        self.count = len(spans[0]) * len(spans[1])
        self.opened: list[Any] = []
        if self.useful:
            self._parts = [
                self._part(stage, self._open(stage_model(graph, self._local, stage))) for stage in self.plan.stages
            ]
            self._cache = self._open(subgraphs.values(network, self.plan.cached))
            self._rest = self._open(subgraphs.rest(network, self.plan.values))

    def _part(self, stage: Stage, session: Any) -> _Part:
        from onnxcam.graph.stages import stage_crops, steps

        crops = (
            stage_crops(stage, self._local, self._changed[0], 0),
            stage_crops(stage, self._local, self._changed[1], 1),
        )
        inner = {}
        for value in stage.results:
            step = (1, 1) if stage.exact else steps(stage, value)
            rows, columns = (self._changed[axis][value] - crops[axis][:, :1] // step[axis] for axis in (0, 1))
            inner[value] = rows, columns
        return _Part(stage, session, crops, inner)

    def _open(self, model: Any) -> Any:
        session = self._sessions.open(model)
        self.opened.append(session)
        return session

    def scores(
        self, picture: np.ndarray, patches: Callable[[int], np.ndarray], places: np.ndarray, tell: Tell
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices of windows and their scores `[m, K]`, some windows at a time.

        Arguments:
            picture: one row, in the model's layout and the type that the graph behind it takes.
            patches: what the picture holds in a window, by the window's index, in the same layout.
            places: int64 `[windows, 2]`: which span of rows and which of columns each window has.
            tell: called with how many windows are done, as they are.
        """
        feeds = {self._picture: picture if self._rows is None else np.repeat(picture, self._rows, axis=0)}
        maps = {self._picture: picture}
        if self.plan.cached:
            maps |= runtime.run(self._cache, self.plan.cached, feeds)
        for part in self._portions(places):
            changed: dict[str, dict[int, np.ndarray]] = {self._picture: {int(at): patches(int(at)) for at in part}}
            for one, live in zip(self._parts, self._live, strict=True):
                changed |= self._run(one, maps, changed, places, part)
                changed = {value: rows for value, rows in changed.items() if value in live}
            yield from self._finish(maps, changed, places, part, tell)

    @cached_property
    def _live(self) -> list[set[str]]:
        """Behind each stage, the maps whose changed parts are still to be read."""
        live = [set(self.plan.values)]
        for one in reversed(self._parts[1:]):
            live.append((live[-1] - set(one.stage.results)) | {read.value for read in one.stage.reads})
        return live[::-1]

    def _portions(self, places: np.ndarray) -> Iterator[np.ndarray]:
        """Windows whose changed parts fit in memory together, those with crops of equal sizes beside each other."""
        sizes = [
            one.crops[axis][places[:, axis], 1] - one.crops[axis][places[:, axis], 0]
            for one in self._parts
            for axis in (0, 1)
        ]
        order = np.lexsort(sizes)
        read: set[str] = {self._picture}
        most = 1
        for one, live in zip(self._parts, self._live, strict=True):
            most = max(most, sum(map(self._largest, read | set(one.stage.results))))
            read = live
        count = max(1, _PATCH_BYTES // most)
        for start in range(0, len(order), count):
            yield order[start : start + count]

    def _largest(self, value: str) -> int:
        """Bytes of the largest changed part of a map, of numbers of four bytes."""
        return 4 * self._local.depth(value) * self._longest(value, 0) * self._longest(value, 1)

    def _longest(self, value: str, axis: int) -> int:
        span = self._changed[axis][value]
        return int((span[:, 1] - span[:, 0]).max())

    def _run(
        self,
        part: _Part,
        maps: dict[str, np.ndarray],
        changed: dict[str, dict[int, np.ndarray]],
        places: np.ndarray,
        windows: np.ndarray,
    ) -> dict[str, dict[int, np.ndarray]]:
        """The changed parts of a stage's results, by map and window."""
        from onnxcam.graph.stages import windowed

        stage = part.stage
        groups: dict[tuple[int, int], list[int]] = {}
        for at in windows.tolist():
            extent = [part.crops[axis][places[at, axis]] for axis in (0, 1)]
            groups.setdefault((int(np.diff(extent[0])[0]), int(np.diff(extent[1])[0])), []).append(at)
        results: dict[str, dict[int, np.ndarray]] = {value: {} for value in stage.results}
        spans = {
            read.name: [windowed(read, part.crops[axis], axis) if stage.exact else part.crops[axis] for axis in (0, 1)]
            for read in stage.reads
        }
        for size, group in groups.items():
            if min(size) < 1:
                continue
            floats = sum(self._local.depth(value) for value in {read.value for read in stage.reads}) * size[0] * size[1]
            count = max(1, min(self._most, _RUN_BYTES // (4 * floats)))
            for start in range(0, len(group), count):
                rows = group[start : start + count]
                feeds = {
                    read.name: self._crops(
                        read.value,
                        [spans[read.name][axis][places[rows, axis]] for axis in (0, 1)],
                        maps[read.value],
                        changed.get(read.value, {}),
                        read.filling,
                        places,
                        rows,
                    )
                    for read in stage.reads
                }
                outputs = runtime.run(part.session, stage.results, feeds)
                for value, output in outputs.items():
                    for row, at in enumerate(rows):
                        inner = [part.inner[value][axis][places[at, axis]] for axis in (0, 1)]
                        results[value][at] = output[row : row + 1][self._at(value, inner)].copy()  # not with the rest
        return results

    def _at(self, value: str, spans: Sequence[Sequence[int]]) -> tuple[slice, ...]:
        """An index of rows and columns of a map."""
        index = [slice(None)] * 4
        for axis, (first, last) in zip(self._local.axes[value], spans, strict=True):
            index[axis] = slice(first, last)
        return tuple(index)

    def _crops(
        self,
        value: str,
        spans: Sequence[np.ndarray],
        whole: np.ndarray,
        changed: dict[int, np.ndarray],
        filling: float,
        places: np.ndarray,
        rows: Sequence[int],
    ) -> np.ndarray:
        """Crops of a map, a row each, with the changed parts pasted in; outside of the map the filling."""
        size = self._local.size(value)
        shape = list(self._local.shapes[value])
        shape[0] = len(rows)
        for axis, span in zip(self._local.axes[value], spans, strict=True):
            shape[axis] = int(span[0, 1] - span[0, 0])
        crops = np.empty(shape, whole.dtype)
        if any(span.min() < 0 or span.max() > length for span, length in zip(spans, size, strict=True)):
            crops[...] = filling if whole.dtype.kind == "f" else max(filling, np.iinfo(whole.dtype).min)
        for row, at in enumerate(rows):
            extent = [(int(span[row, 0]), int(span[row, 1])) for span in spans]
            inside = [(max(first, 0), min(last, length)) for (first, last), length in zip(extent, size, strict=True)]
            if any(first >= last for first, last in inside):
                continue
            self._paste(crops[row : row + 1], value, extent, whole[:1], [(0, length) for length in size], inside)
            if at in changed:
                patch = self._patch(value, places[at])
                both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(inside, patch, strict=True)]
                if all(first < last for first, last in both):
                    self._paste(crops[row : row + 1], value, extent, changed[at], patch, both)
        return crops

    def _paste(
        self,
        target: np.ndarray,
        value: str,
        extent: Sequence[tuple[int, int]],
        source: np.ndarray,
        origin: Sequence[tuple[int, int]],
        part: Sequence[tuple[int, int]],
    ) -> None:
        """Copy a part of a map, as its rows and columns, from one piece of it to another."""
        to, of = (
            self._at(value, [(a - start, b - start) for (a, b), (start, _) in zip(part, piece, strict=True)])
            for piece in (extent, origin)
        )
        target[to] = source[of]

    def _patch(self, value: str, place: np.ndarray) -> list[tuple[int, int]]:
        """Rows and columns of a map that a window changes."""
        spans = [self._changed[axis][value][int(place[axis])] for axis in (0, 1)]
        return [(int(first), int(last)) for first, last in spans]

    def _finish(
        self,
        maps: dict[str, np.ndarray],
        changed: dict[str, dict[int, np.ndarray]],
        places: np.ndarray,
        windows: np.ndarray,
        tell: Tell,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Run the rest of the graph on whole maps."""
        each = sum(int(maps[value][:1].nbytes) for value in self.plan.values)
        count = self._rows or max(1, min(self._most, 2 * _RUN_BYTES // max(each, 1)))
        for start in range(0, len(windows), count):
            rows = windows[start : start + count].tolist()
            padded = rows if self._rows is None else rows + rows[-1:] * (count - len(rows))
            feeds = {}
            for value in self.plan.values:
                spans = [np.tile([0, size], (len(padded), 1)) for size in self._local.size(value)]
                feeds[value] = self._crops(value, spans, maps[value], changed.get(value, {}), 0.0, places, padded)
            scores = runtime.run(self._rest, [SCORES], feeds)[SCORES]
            yield np.asarray(rows), scores[: len(rows)].astype(np.float32, copy=False)
            tell(len(rows))


def distinct(windows: Sequence[Window]) -> tuple[Spans, np.ndarray]:
    """The spans of rows and of columns of some windows, and which of them each window has."""
    spans, places = [], []
    for axis in (1, 2):
        ends = np.array([(window[axis].start, window[axis].stop) for window in windows], np.int64)
        unique, inverse = np.unique(ends, axis=0, return_inverse=True)
        spans.append(unique)
        places.append(inverse.reshape(-1))
    return (spans[0], spans[1]), np.stack(places, axis=1)


def patch(picture: np.ndarray, hidden: np.ndarray, window: Window, layout: Layout) -> np.ndarray:
    """The rows and columns of a window, all channels, with what is put there; in the model's layout.

    Arguments:
        picture, hidden: float32 `[C, H, W]`.
    """
    piece = picture[(slice(None), *window[1:])].copy()
    piece[window[0]] = hidden[window]
    return np.ascontiguousarray(layout.from_canonical(piece[None]))
