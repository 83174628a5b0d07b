"""`BatchMaps`: scores and maps of a batch, from which the explanation of each row is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.cam.registry import Method
from onnxcam.explain.explanation import Calibrated, Explanation, LazyMap, Map, name_of
from onnxcam.explain.maps import LAYER_SIZE, check_finite, fuse, map_size, visible_parts, windows_of
from onnxcam.explain.question import Question
from onnxcam.explain.scalar_maps import name_subject, scalar_of, subject_of
from onnxcam.explain.statistics import cells_of
from onnxcam.explain.warnings import map_warnings, reversed_warnings
from onnxcam.targets.classes import best_classes
from onnxcam.targets.objectives import LOG_PROBABILITY, LOGIT, VALUE, Objective, logit
from onnxcam.targets.tasks import Detection, Embed, Values

if TYPE_CHECKING:
    from onnxcam.explain.examination import Examination
    from onnxcam.graph.window import Window

_PREDICTIONS = 5  # stored in an explanation
_TOGETHER = 16 << 20  # pixels of heatmaps that an explanation holds; of more classes they are drawn when asked for
_COARSE = 64  # cells a side of a layer's map whose sums are computed from these cells alone
_REASONS = 5  # maps that are zero everywhere for whose reason the model is run
# a row and layers -> the examination of this row alone
Examine = Callable[[int, Sequence[str]], "Examination"]


class BatchMaps(NamedTuple):
    """Scores and maps of a batch by one method, from which the explanation of each row is made.

    Attributes:
        question: the question answered.
        method: the method.
        scores, probabilities: `[N, K]`, `[N, classes]`.
        classes: the classes explained, `[N, k]`.
        maps: per layer `[N, k, h, w]`, after ReLU, not normalised.
        input_size: height and width of the model's input.
        warnings: those about every picture.
        model: `source` and `parity` of the manifest, and `rows` of each run where they are fixed.
        objective: of the rows; the logits of the classes if None.
        windows: per layer the part of the model's input that its map covers, None for all of it; empty where all maps
            cover it.
        examine: called where a map is zero everywhere, for the reason.
        objectives: of the only row, of a model of another task: one for each of its maps; empty for a classifier.
        boxes: that a detector reports on the only row, in pixels of the picture.
    """

    question: Question
    method: Method
    scores: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray
    maps: list[np.ndarray]
    input_size: tuple[int, int]
    warnings: list[str]
    model: dict[str, Any]
    objective: Objective | None = None
    windows: Sequence[Window | None] = ()
    examine: Examine | None = None
    objectives: Sequence[Objective] = ()
    boxes: Sequence[Detection] = ()

    def explanation(
        self,
        row: int,
        picture: image.Picture,
        geometry: image.Geometry,
        place: int | None = None,
        of: int | None = None,
    ) -> Explanation:
        """The explanation of one row, by the maps of all layers or by that of the layer at one place.

        Arguments:
            of: take the map of this one of its objectives alone.
        """
        question = self.question
        layer: Any = question.layer if place is None else question.layers[place]
        maps, visible = self.picture_maps(row, geometry, place, of)
        readout, labels = question.terms.readout, question.terms.labels
        kind, other = (LOGIT, None) if self.objective is None else self.objective.describe(row)
        if self.objectives:
            kind, other = self.objectives[of or 0].describe(0)
        if kind == LOGIT:
            kind = LOG_PROBABILITY if readout.logarithmic else VALUE if readout.numeric else LOGIT
        return Explanation(
            picture.pixels,
            self._predictions(row),
            maps,
            self.method.name,
            layer,
            self.doubts(row, picture, maps, of),
            picture.name,
            self.model,
            kind=kind,
            scores=readout.meaning(),
            other=None if other is None else (other, name_of(other, labels)),
            visible=visible,
            calibration=self._calibrated(row),
            task=None if readout.task is None else readout.task.name,
            boxes=list(self.boxes),
        )

    def picture_maps(
        self, row: int, geometry: image.Geometry, place: int | None = None, of: int | None = None
    ) -> tuple[list[Map], list[image.Rectangle] | None]:
        """The maps of one row, and the parts of the picture that they cover (None for all of it), see `explanation`."""
        question, labels = self.question, self.question.terms.labels
        layer: Any = question.layer if place is None else question.layers[place]
        normalize = "none" if question.augment else question.normalize  # done before the mean was taken
        windows = windows_of(self.method, self.windows)
        windows = windows if place is None else windows[place : place + 1]
        visible = visible_parts(geometry, windows, mirrored=question.augment)
        drawn = () if question.augment else windows  # then the maps cover the whole input already
        maps: list[Map] = []
        lazy = self.classes.shape[1] * math.prod(geometry.picture_size) > _TOGETHER
        examined = _REASONS
        for k, index in enumerate(self.classes[row].tolist()):
            if of not in (None, k):
                continue
            by_layer = self.maps if place is None else self.maps[place : place + 1]
            raw = [np.ascontiguousarray(layer_maps[row, k]) for layer_maps in by_layer]
            draw = PictureMap(
                raw,
                normalize,
                self.input_size,
                question.fusion,
                drawn,
                geometry,
                visible if any(window is not None for window in windows) else None,
            )
            keep = not (lazy and maps)
            cells = draw.cells(keep)
            heatmap, blank = None if cells is not None and cells.any() else draw(), None
            if heatmap is not None and not (heatmap.max() or heatmap.min()):
                blank = self._blank(row, k, raw, place, examined > 0)
                examined -= 1
            raw_map = raw if isinstance(layer, list) else raw[0]
            if self.objectives:
                named = name_subject(subject_of(self.objectives[k]), labels)
            else:
                named = (index, name_of(index, labels), float(self.probabilities[row, index]))
            scalar = scalar_of(self.objectives[k], labels, geometry, layer) if self.objectives else None
            if keep and heatmap is not None:
                maps.append(Map(*named, heatmap, raw_map, blank, scalar))
            else:
                maps.append(LazyMap(*named, draw, raw_map, blank, scalar, keep=keep, cells=cells))
        return maps, visible

    def doubts(self, row: int, picture: image.Picture, maps: Sequence[Map], of: int | None = None) -> list[str]:
        """Sentences about anything doubtful in the explanation of one row, from its maps."""
        return [
            *self.warnings,
            *picture.doubts,
            *map_warnings([(one.label, one.blank) for one in maps], self.scores[row]),
            *self._negative(row, maps, of),
        ]

    def _calibrated(self, row: int) -> Calibrated | None:
        """What the file's calibration makes of a row, None without one."""
        calibration, labels = self.question.terms.calibration, self.question.terms.labels
        if calibration is None:
            return None
        scores, readout = self.scores[row : row + 1], self.question.terms.readout
        p, inside = calibration.probabilities(scores, readout)[0], calibration.sets(scores, readout)[0]
        members = [int(index) for index in np.argsort(-p, kind="stable") if inside[index]]
        best = best_classes(p, _PREDICTIONS).tolist()
        return Calibrated(
            [(index, name_of(index, labels), float(p[index])) for index in best],
            [(index, name_of(index, labels)) for index in members],
            {
                "score": calibration.rule.score,
                "alpha": calibration.alpha,
                "n": calibration.n,
                "coverage_interval": list(calibration.coverage_interval),
                "coverage_level": calibration.coverage_level,
            },
        )

    def layer_map(self, row: int, geometry: image.Geometry) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """The map of one row's first class at the layer's own size, and the rectangle of the picture that it covers.

        Returns:
            float32 `[h, w]` as `Explainer.attribute(size="layer")` gives it; x0, y0, x1, y1 in the picture's pixels,
            beyond its edges where padding is covered, x1 < x0 where the map is mirrored.
        """
        question, maps = self.question, [layer_maps[row : row + 1, 0] for layer_maps in self.maps]
        windows = windows_of(self.method, self.windows, LAYER_SIZE)
        window = self.windows[0] if len(self.windows) == 1 and not windows else None
        if window is not None and window.transposed:
            windows, window = [window], None  # drawn upright, on the whole input
        size = map_size(LAYER_SIZE, self.input_size, maps)
        normalize = "none" if question.augment else question.normalize
        fused = fuse(maps, normalize, size, question.fusion, windows=windows, input_size=self.input_size)[0]
        height, width = self.input_size
        spans = ((0.0, float(height)), (0.0, float(width)))
        if window is not None:
            spans = (window.height, window.width)
        (y0, y1), (x0, x1) = (
            [(edge - geometry.offset[axis]) / geometry.scale[axis] for edge in span] for axis, span in enumerate(spans)
        )
        return fused, (x0, y0, x1, y1)

    def _blank(self, row: int, k: int, raw: Sequence[np.ndarray], place: int | None, examine: bool) -> str:
        """The reason for a heatmap that is zero everywhere; with `examine` the model is run for it."""
        from onnxcam.explain import evidence  # most maps are not

        layers = self.question.layers if place is None else self.question.layers[place : place + 1]
        why = ""
        if examine and self.examine is not None and not any(one.any() for one in raw):
            question, examination = self.question.of_rows(row, row + 1), partial(self.examine, row, layers)
            objective = self.objectives[k] if self.objectives else None
            index = int(self.classes[row, k])
            why = evidence.reason(examination, question, index, self.method, layers, objective)
        return evidence.describe(self.method, raw, why)

    def _negative(self, row: int, maps: Sequence[Map], of: int | None = None) -> list[str]:
        """Warnings about maps that a negative score turns round."""
        if not self.method.divides:
            return []
        objective, rows = self.objective, np.arange(len(self.scores))
        if self.objectives:
            objectives = self.objectives if of is None else [self.objectives[of]]
            numbers = [float(one.value(self.scores, rows)[0]) for one in objectives]
            return reversed_warnings(
                self.method.name, [(one.label, number) for one, number in zip(maps, numbers, strict=True)]
            )
        values = []
        for k, one in enumerate(maps):
            of_class = logit(self.classes[:, k], self.question.terms.readout) if objective is None else objective
            values.append((one.label, float(of_class.value(self.scores, rows)[row])))
        return reversed_warnings(self.method.name, values)

    def _predictions(self, row: int) -> list[tuple[int, str, float]]:
        probabilities, labels = self.probabilities[row], self.question.terms.labels
        task = self.question.terms.readout.task
        if isinstance(task, Embed):
            return []
        if isinstance(task, Values):  # in the model's order: none of them is a better prediction than another
            return [(k, name_of(k, labels), float(value)) for k, value in enumerate(probabilities[:_PREDICTIONS])]
        best = best_classes(probabilities, _PREDICTIONS).tolist()
        return [(index, name_of(index, labels), float(probabilities[index])) for index in best]


@dataclass(eq=False)
class PictureMap:
    """One class's heatmap of the original picture, from its maps of layers."""

    raw: Sequence[np.ndarray]
    normalize: str
    input_size: tuple[int, int]
    fusion: str
    windows: Sequence[Window | None]
    geometry: image.Geometry
    visible: Sequence[image.Rectangle] | None

    def __call__(self) -> np.ndarray:
        """The heatmap, float32 of the picture's size."""
        fused = self.__dict__.pop("_fused", None)
        heatmap = self.geometry.to_picture(self._fuse() if fused is None else fused)
        for part in image.hidden(heatmap.shape, self.visible) if self.visible is not None else ():
            heatmap[part.y0 : part.y1, part.x0 : part.x1] = 0  # where interpolation reaches across the edge
        return heatmap

    def cells(self, keep: bool) -> np.ndarray | None:
        """Sums over the cells of the heatmap's statistics; None where only the heatmap itself tells them.

        Arguments:
            keep: whether the map on the input is kept until the heatmap is drawn.
        """
        if self.visible is not None:
            return None
        cells = cells_of(self.geometry.picture_size)
        if len(self.raw) == 1 and set(self.windows) <= {None} and max(self.raw[0].shape) <= _COARSE:
            (layer_map,) = self.raw
            check_finite(self.raw)
            if layer_map.min() >= 0:
                return self.geometry.sum_layer_map(layer_map, self.normalize, cells)
        if math.prod(self.geometry.picture_size) <= math.prod(self.input_size):
            return None
        fused = self._fuse()
        if keep:
            self.__dict__["_fused"] = fused
        if not (fused.min() >= 0 and np.isfinite(fused.max())):  # what does not count is taken out pixel by pixel
            return None
        return self.geometry.to_cells(fused, cells)

    def _fuse(self) -> np.ndarray:
        maps, size = [one[None] for one in self.raw], self.input_size
        return np.asarray(fuse(maps, self.normalize, size, self.fusion, windows=self.windows, input_size=size)[0])
