"""Rows of answers about pictures: runs of a fixed number of rows, on as many threads as a worker has cores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from onnxcam import __version__, image
from onnxcam.errors import InputError, ModelError, OnnxcamError, PreprocessError, RuntimeUnavailable
from onnxcam.explain import task_answers
from onnxcam.explain.batch_maps import BatchMaps
from onnxcam.explain.conditional import Answer, answer
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.explanation import name_of
from onnxcam.explain.folder import ahead, reason
from onnxcam.explain.preparation import Prepared
from onnxcam.explain.question import Question
from onnxcam.fleet.cells import picture
from onnxcam.fleet.columns import STATISTICS, Row, columns
from onnxcam.targets.classes import best_classes
from onnxcam.targets.conditions import Condition
from onnxcam.targets.tasks import Detect

# errors that are not a picture's, and would be every row's
FATAL = (PreprocessError, RuntimeUnavailable)
# pictures that are prepared, run and described together: after a run nothing of the other steps is in the cache, and
# they take three times as long (two where threads share the pictures, so that all of them end together)
_TOGETHER, _SIDE_BY_SIDE = 8, 2
_PIXELS = 12 << 20  # bytes of pictures that wait for their run


# pictures of a run by their places, and the answer about them, or what failed
_Run = tuple[Sequence[tuple[int, Prepared]], Answer | Exception]


class _Part(NamedTuple):
    """The pictures of one run: the rows, None until they are there, and those that could be prepared, with places."""

    rows: list[Row | None]
    prepared: list[tuple[int, Prepared]]


@dataclass(frozen=True)
class Job:
    """What is asked about every picture.

    Attributes:
        explainer: of the model.
        question: of one method and one target.
        condition: which rows are explained.
        rows: in each run.
        top_k: classes in `top`.
        overlay: whether the overlay is drawn, with `alpha` and `colormap`.
        color: channel order of arrays.
        max_pixels: of encoded pictures.
        model: SHA-256 of the file.
    """

    explainer: Explainer
    question: Question
    condition: Condition | bool
    rows: int
    top_k: int
    overlay: bool
    alpha: float | None
    colormap: str | None
    color: str
    max_pixels: int | None
    model: str

    def answers(self, cells: Iterable[Any], threads: int) -> Iterator[Row]:
        """A row for each picture, in order; few pictures are in memory at a time.

        Raises:
            PreprocessError, RuntimeUnavailable, ModelError: what is wrong with every picture.
        """
        together = max(1, (_TOGETHER if threads == 1 else _SIDE_BY_SIDE) // self.rows)
        chunks = _chunks(cells, self.rows * together)
        if threads == 1:
            for chunk in chunks:
                yield from self._chunk(chunk)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="onnxcam-fleet") as pool:
            for rows in ahead(pool, self._chunk, chunks, threads + 1):
                yield from rows

    def _chunk(self, cells: Sequence[Any]) -> list[Row]:
        """Rows of some pictures: all are prepared, then run, then described, each by code that is in the cache."""
        rows: list[Row] = []
        waiting: list[_Part] = []
        for start in range(0, len(cells), self.rows):
            waiting.append(self._prepare(cells[start : start + self.rows]))
            pixels = sum(ready[0].pixels.size for part in waiting for _, ready in part.prepared)
            if pixels > _PIXELS or start + self.rows >= len(cells):
                for part, runs in [(part, self._runs(part)) for part in waiting]:
                    rows += self._describe(part, runs)
                waiting.clear()
        return rows

    def _prepare(self, cells: Sequence[Any]) -> _Part:
        """The pictures of one run, and the rows of those that fail."""
        part = _Part([None] * len(cells), [])
        for place, cell in enumerate(cells):
            try:
                ready = self.explainer.preparation.prepare(picture(cell), color=self.color, max_pixels=self.max_pixels)
                tensor = self.explainer.check_batch(ready[1])
            except (*FATAL,):
                raise
            except Exception as error:
                part.rows[place] = self._failed(error)
            else:
                part.prepared.append((place, (ready[0], tensor, ready[2])))
        return part

    def _runs(self, part: _Part) -> list[_Run]:
        """The runs of a part, one for each shape of tensors."""
        shapes: defaultdict[tuple[int, ...], list[tuple[int, Prepared]]] = defaultdict(list)
        for pair in part.prepared:
            shapes[pair[1][1].shape[1:]].append(pair)
        return [run for same in shapes.values() for run in self._run(same)]

    def _describe(self, part: _Part, runs: Sequence[_Run]) -> list[Row]:
        """The rows of a part, in order."""
        for some, result in runs:
            explained = iter(() if isinstance(result, Exception) else result.explained)
            for number, (place, ready) in enumerate(some):
                try:
                    if isinstance(result, Exception):
                        raise result
                    maps = next(explained) if result.fired[number] else None
                    part.rows[place] = self._row(result, number, ready, maps)
                except Exception as error:
                    part.rows[place] = self._failed(error, ready)
        return [row for row in part.rows if row is not None]

    def _run(self, some: Sequence[tuple[int, Prepared]]) -> Iterator[_Run]:
        """The answer about pictures whose tensors have one shape, in one run; where it fails, each in a run alone."""
        tensors = [tensor for _, (_, tensor, _) in some]
        tensors += tensors[-1:] * (self.rows - len(tensors))
        batch = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        try:
            geometries = [geometry for _, (_, _, geometry) in some]
            yield some, answer(self.explainer, self.question, self.condition, batch, len(some), geometries)
        except FATAL:
            raise
        except Exception as error:
            if len(some) > 1:
                for one in some:
                    yield from self._run([one])
                return
            self._check_model(batch, error)
            yield some, error

    def _check_model(self, batch: np.ndarray, error: Exception) -> None:
        """Raise the error if the model fails on a blank picture of the same size too, as it then does on every one."""
        if isinstance(error, (ModelError, InputError, MemoryError)) and self.explainer.preprocess is not None:
            if self.explainer.preprocess.output_size is None:
                return
            try:
                answer(self.explainer, self.question, self.condition is not False, np.full_like(batch, 0.5))
            except OnnxcamError:
                raise error from None

    def _row(
        self,
        answered: Answer,
        place: int,
        ready: Prepared,
        explained: tuple[BatchMaps, int] | None,
    ) -> Row:
        row, labels = dict(self._empty), self.question.terms.labels
        loaded, _, geometry = ready
        probabilities = answered.probabilities[place]
        row["fired"] = bool(answered.fired[place])
        row["height"], row["width"] = map(int, geometry.picture_size)
        numeric = self.question.terms.readout.numeric
        boxes = self._boxes(answered.scores[place], geometry)
        row |= boxes
        if boxes and not (probabilities > 0).any():
            row["top"], row["top_confidence"] = np.zeros(0, np.int64), np.zeros(0)  # nothing is predicted
        elif numeric:
            row |= {"prediction": 0, "label": name_of(0, labels), "value": float(probabilities[0])}
        else:
            best = best_classes(probabilities, self.top_k)
            row |= {"prediction": int(best[0]), "label": name_of(int(best[0]), labels)}
            # best scores of classes and shares of cells are no distribution
            names = ("confidence",) if self.question.terms.readout.tabulated else ("confidence", "margin", "entropy")
            row |= {name: float(answered.quantities[name][place]) for name in names}
            row |= self._calibrated(answered.scores[place : place + 1])
            row |= {"top": best.astype(np.int64), "top_confidence": probabilities[best].astype(np.float64)}
        warnings = [*self.explainer.warnings, *loaded.doubts]
        warnings += [answered.absent[place]] if place in answered.absent else []
        if explained is not None:
            maps, at = explained
            if self.overlay:
                explanation = maps.explanation(at, loaded, geometry)
                row["overlay"] = image.encode_png(explanation.overlay(self.alpha, self.colormap))
                drawings, warnings = explanation.maps, explanation.warnings
            else:
                drawings, _ = maps.picture_maps(at, geometry)
                warnings = maps.doubts(at, loaded, drawings)
            first = drawings[0]
            heat, box = maps.layer_map(at, geometry)
            row |= {"target": first.target, "target_label": first.label}
            row["target_confidence"] = None if numeric else first.probability
            row |= {"method": maps.method.name, "layer": ", ".join(maps.question.layers)}
            row |= _statistics(first.statistics)
            row |= {"map": np.ascontiguousarray(heat, np.float32).ravel(), "map_box": np.array(box, np.float64)}
            row["map_height"], row["map_width"] = heat.shape
            if isinstance(first.raw_map, np.ndarray):
                row |= {"map_low": float(first.raw_map.min()), "map_high": float(first.raw_map.max())}
        row["warnings"] = "\n".join(warnings)
        return row

    def _boxes(self, scores: np.ndarray, geometry: image.Geometry) -> Row:
        """The columns of what a detector reports on one picture, nothing of another model."""
        if not isinstance(self.question.terms.readout.task, Detect):
            return {}
        reported = task_answers.reported_boxes(self.explainer, scores, geometry)
        return {
            "boxes": np.array([one.box for one in reported], np.float64).reshape(-1),
            "box_classes": np.array([one.class_index for one in reported], np.int64),
            "box_scores": np.array([one.score for one in reported], np.float64),
        }

    def _calibrated(self, scores: np.ndarray) -> Row:
        """The columns of a calibrated file, from one row's scores."""
        calibration, readout = self.question.terms.calibration, self.question.terms.readout
        if calibration is None:
            return {}
        p, inside = calibration.probabilities(scores, readout)[0], calibration.sets(scores, readout)[0]
        ranked = np.argsort(-p, kind="stable")
        return {"calibrated": float(p.max()), "prediction_set": ranked[inside[ranked]].astype(np.int64)}

    def _failed(self, error: Exception, ready: Prepared | None = None) -> Row:
        """The row of a picture without an answer."""
        row = self._empty | {"error": reason(error)}
        if ready is not None:
            row["height"], row["width"] = map(int, ready[2].picture_size)
        return row

    @cached_property
    def _empty(self) -> Row:
        """A row in which nothing but what holds for every row is set."""
        row: Row = dict.fromkeys(column.name for column in columns(overlay=self.overlay))
        return row | {
            "prediction": -1,
            "fired": False,
            "warnings": "",
            "error": "",
            "onnxcam": __version__,
            "onnxruntime": _runtime_version(),
            "model": self.model,
            "rows": self.rows,
        }


def _chunks(cells: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for cell in cells:
        chunk.append(cell)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _statistics(statistics: dict[str, Any]) -> Row:
    row: Row = {}
    for name, (key, place) in STATISTICS.items():
        value = statistics[key]
        row[name] = value if place is None or value is None else value[place]
    return row


def _runtime_version() -> str:
    from onnxcam.runtime.library import import_onnxruntime

    return str(import_onnxruntime().__version__)
