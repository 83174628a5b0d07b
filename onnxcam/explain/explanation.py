"""`Explanation`, the result of `Explainer.explain`: predictions, maps, and the pictures drawn of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError
from onnxcam.explain import panels, saving
from onnxcam.explain.outlines import box_part
from onnxcam.explain.saving import Drawing
from onnxcam.explain.statistics import describe, of_cells
from onnxcam.targets.objectives import LOG_PROBABILITY
from onnxcam.targets.readout import LOGITS, REGRESSION
from onnxcam.targets.scalar_objectives import DIFFERENCE
from onnxcam.targets.tasks import EMBEDDING, Detection

_MEMBERS = 4  # classes of a prediction set that a panel names


@dataclass(frozen=True)
class Scalar:
    """What a map of a model of another task than classification explains.

    Attributes:
        kind: of the objective, such as `box_score`, `region` or `similarity`.
        target: what was resolved on the picture, ready for JSON: a box by the index of its candidate.
        layer: at which it is explained, which may be another one for each box.
        box: the box explained, in pixels of the picture; None of what is no box.
        mask: the picture's pixels over which a class is summed, bool `[H, W]`; None where that is a box or nothing.
    """

    kind: str
    target: Any
    layer: Any
    box: Detection | None = None
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Map:
    """The map of one class, or of one scalar.

    Attributes:
        target, label, probability: index, name and predicted probability of the class explained.
        heatmap: float32 `[H, W]` of the original picture. Of many classes, more than 64 MiB of heatmaps, all but the
            first are drawn each time they are asked for.
        raw_map: float32 `[h, w]` at layer resolution, after ReLU, not normalised (a list for several layers).
        blank: the reason if the heatmap is zero everywhere, such as `no evidence at this layer: all gradients are
            zero`; else None.
        scalar: what is explained, of a model of another task than classification; else None.
    """

    target: int
    label: str
    probability: float
    heatmap: np.ndarray = field(repr=False)
    raw_map: Any = field(repr=False)
    blank: str | None = None
    scalar: Scalar | None = None

    @property
    def box(self) -> Detection | None:
        """The box explained, in pixels of the picture; None of what is no box."""
        return None if self.scalar is None else self.scalar.box

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Position and concentration of the heatmap's energy, see `onnxcam.explain.statistics.describe`."""
        return describe(self.heatmap)


class LazyMap(Map):
    """A map whose heatmap is drawn when it is asked for.

    Arguments:
        draw: returns the heatmap.
        keep: whether to draw it once. The heatmaps of many classes do not fit into memory together.
        heatmap: it, where it is drawn already; in place of `draw`.
        cells: sums of the heatmap over the cells of its statistics, as of `onnxcam.explain.statistics.of_cells`; None
            to draw it for them.
    """

    def __init__(
        self,
        target: int,
        label: str,
        probability: float,
        draw: Callable[[], np.ndarray] | None = None,
        raw_map: Any = None,
        blank: str | None = None,
        scalar: Scalar | None = None,
        *,
        keep: bool = False,
        cells: np.ndarray | None = None,
        heatmap: np.ndarray | None = None,
    ) -> None:
        self.__dict__.update(target=target, label=label, probability=probability, raw_map=raw_map, blank=blank)
        self.__dict__.update(_draw=draw, _keep=keep, _cells=cells, scalar=scalar)
        if heatmap is not None:  # of `dataclasses.replace`
            self.__dict__["heatmap"] = heatmap

    @property
    def heatmap(self) -> np.ndarray:
        """float32 `[H, W]` of the original picture."""
        heatmap: np.ndarray | None = self.__dict__.get("heatmap")
        if heatmap is None:
            heatmap = self.__dict__["_draw"]()
            if self.__dict__["_keep"]:
                self.__dict__["heatmap"] = heatmap
        return heatmap

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """As of `Map`, within 1e-6; the heatmap is not drawn for them."""
        cells: np.ndarray | None = self.__dict__["_cells"]
        return describe(self.heatmap) if cells is None else of_cells(cells)


@dataclass(frozen=True)
class Calibrated:
    """What a calibrated file says of a picture.

    Attributes:
        predictions: `(index, label, probability)`, best first, for the five best classes.
        members: `(index, label)` of the classes in the prediction set, best first.
        terms: `score`, `alpha`, `n` and `coverage_interval` of the manifest's calibration.
    """

    predictions: list[tuple[int, str, float]]
    members: list[tuple[int, str]]
    terms: dict[str, Any]

    @property
    def note(self) -> str:
        """A line below the heading of the panel."""
        _, label, probability = self.predictions[0]
        names = [name.split(",")[0] for _, name in self.members]
        text = ", ".join(names[:_MEMBERS]) + (f" and {len(names) - _MEMBERS} more" if len(names) > _MEMBERS else "")
        share = image.percentage(1 - self.terms["alpha"])
        number = image.percentage(probability)
        return f"calibrated: {label.split(',')[0]}, {number}; {share} set: {text or 'empty (unsure)'}"


@dataclass(frozen=True, eq=False)
class Explanation:
    """One explained picture.

    Attributes:
        picture: uint8 `[H, W, 3]` RGB, as it was read (upright).
        predictions: `(index, label, probability)`, best first, for the five best classes.
        maps: one `Map` per class explained, the first one also as `heatmap`, `target`, `label`, `raw_map`.
        method: name of the method.
        layer: name of the target layer, a list of names where the maps of several layers were fused.
        warnings: sentences about anything doubtful, such as a map that is zero everywhere.
        name: name of the picture, for messages and folders.
        model: `source` and `parity` of the model's manifest.
        kind: the objective: `logit` (`log_probability` where the model has no logit that can be reached, `value` of a
            regression), `contrast` with another class, `probability`, or `weights` over several classes.
        scores: what the model's scores are: `kind` of its manifest, what was `stepped_over` to reach them, and the
            `scale` of the model's own probabilities where they do not end at 1.
        other: `(index, label)` of the class it is contrasted with, or None.
        visible: the parts of the picture that the heatmaps cover, as `Rectangle(x0, y0, x1, y1)` in its pixels: what a
            crop cut off the model never saw, and the heatmaps are 0 there. None for all of it.
        per_layer: an explanation for each layer alone, with `side_by_side=True`; else empty.
        per_method: an explanation by each method, this one first, with several methods; else empty.
        calibration: what a calibrated file says of the picture, None of any other.
        task: `detect`, `segment`, `embed` or `regress`; None of a classifier.
        boxes: that a detector reports, best first, in pixels of the picture; empty for other models.
    """

    picture: np.ndarray = field(repr=False)
    predictions: list[tuple[int, str, float]]
    maps: list[Map] = field(repr=False)
    method: str
    layer: Any
    warnings: list[str]
    name: str = "picture"
    model: dict[str, Any] = field(default_factory=dict, repr=False)
    kind: str = "logit"
    other: tuple[int, str] | None = None
    scores: dict[str, Any] = field(default_factory=lambda: {"kind": LOGITS}, repr=False)
    visible: list[image.Rectangle] | None = None
    per_layer: list[Explanation] = field(default_factory=list, repr=False)
    per_method: list[Explanation] = field(default_factory=list, repr=False)
    calibration: Calibrated | None = field(default=None, repr=False)
    task: str | None = None
    boxes: list[Detection] = field(default_factory=list, repr=False)

    @property
    def calibrated(self) -> list[tuple[int, str, float]] | None:
        """Predictions as in `predictions`, at the temperature of a calibrated file; None of any other file."""
        return None if self.calibration is None else self.calibration.predictions

    @property
    def prediction_set(self) -> list[str] | None:
        """Labels of the classes in the prediction set of a calibrated file, best first; None of any other file.

        It contains the true class for a share 1 - alpha of pictures like those of the calibration. An empty one means
        that no class is likely enough.
        """
        return None if self.calibration is None else [label for _, label in self.calibration.members]

    @property
    def heatmap(self) -> np.ndarray:
        """float32 `[H, W]` of the original picture."""
        return self.maps[0].heatmap

    @property
    def raw_map(self) -> Any:
        """float32 `[h, w]` at layer resolution, after ReLU, not normalised."""
        return self.maps[0].raw_map

    @property
    def target(self) -> int:
        """The class explained."""
        return self.maps[0].target

    @property
    def label(self) -> str:
        """The name of the class explained."""
        return self.maps[0].label

    @property
    def probability(self) -> float:
        """The predicted probability of the class explained."""
        return self.maps[0].probability

    @property
    def numeric(self) -> bool:
        """Whether the model's score is a quantity: `probability` and `predictions` hold its value then."""
        return self.scores["kind"] in (REGRESSION, EMBEDDING)

    @property
    def statistics(self) -> dict[str, Any]:
        """Position and concentration of the energy of `heatmap`, see `onnxcam.explain.statistics.describe`."""
        return self.maps[0].statistics

    @property
    def title(self) -> str:
        """Heading of panels with the class and what it is compared with."""
        if self.maps[0].box is not None and self.maps[0].scalar is not None:
            return self.label if self.kind == DIFFERENCE else f"{self.label} ({box_part(self.maps[0])})"
        if self.other is not None:
            return f"{self.label} rather than {self.other[1]}"
        if self.kind == LOG_PROBABILITY:
            return f"{self.label} (by log p)"
        if self.numeric:
            return f"{self.label} = {self.probability:.5g}"
        return f"several classes, {self.label} foremost" if self.kind == "weights" else self.label

    @property
    def notes(self) -> list[str]:
        """Sentences below the heading of the panel: the reason for a heatmap that is zero everywhere, and the model's
        own first choice if another class is explained; of a calibrated file its probability and set.
        """
        calibrated = [] if self.calibration is None else [self.calibration.note]
        return [*([] if self.maps[0].blank is None else [self.maps[0].blank]), *self._first_choice, *calibrated]

    @property
    def _first_choice(self) -> list[str]:
        if self.task is not None:
            return []
        index, label, probability = self.predictions[0]
        if self.target == index or self.kind == "weights" or self.numeric:
            return []
        return [f"the model's own first choice: {label}, {image.percentage(probability)}"]

    def overlay(self, alpha: float | None = None, colormap: str | None = None) -> np.ndarray:
        """Draw the heatmap over the picture.

        Arguments:
            alpha: opacity of the heatmap, 0 (the picture alone) to 1 (the heatmap alone); None for 0.6 min(1, 2 v)
                where the heatmap has the value v, so that the picture stays as it is where the heatmap is 0.
            colormap: a name of `onnxcam.image.COLORMAPS`; None for `viridis`.

        Returns:
            uint8 `[H, W, 3]` RGB; what lies outside `visible` is dimmed, hatched and framed; the box or region that is
            explained is outlined.
        """
        return panels.overlay(self, Drawing.of(alpha, colormap))

    def panel(
        self, colormap: str | None = None, alpha: float | None = None, *, levels: np.ndarray | None = None
    ) -> np.ndarray:
        """Draw picture, heatmap and overlay side by side with label, probability and colour bar, uint8 RGB.

        Arguments:
            colormap, alpha: as in `overlay`.
            levels: grey levels of the heatmap, uint8 `[H, W]`, where they are computed already.
        """
        return panels.panel(self, Drawing.of(alpha, colormap), levels)

    def boxes_panel(self, colormap: str | None = None, alpha: float | None = None) -> np.ndarray:
        """Draw the picture and the overlay of each box, or of each region, side by side, uint8 RGB.

        Raises:
            InputError: there is one map only.
        """
        if len(self.maps) < 2:
            raise InputError(
                "this explanation has one map; ask for several with explain(..., top=3) or a list of boxes"
            )
        return panels.several(self, Drawing.of(alpha, colormap), f"{len(self.maps)} maps by {self.method}")

    def layers_panel(self, colormap: str | None = None, alpha: float | None = None) -> np.ndarray:
        """Draw the picture and the overlay of each layer side by side, uint8 RGB.

        Raises:
            InputError: explained without `side_by_side=True`.
        """
        if not self.per_layer:
            raise InputError(
                "this explanation has no maps of single layers; ask for them with explain(..., layer=[...], "
                "side_by_side=True)"
            )
        return self._gallery([(str(one.layer), one) for one in self.per_layer], Drawing.of(alpha, colormap))

    def methods_panel(self, colormap: str | None = None, alpha: float | None = None) -> np.ndarray:
        """Draw the picture and the overlay of each method side by side, uint8 RGB.

        Raises:
            InputError: there is one method only.
        """
        if not self.per_method:
            raise InputError(
                "this explanation has the map of one method; ask for several with explain(..., method=[...])"
            )
        return self._gallery([(one.method, one) for one in self.per_method], Drawing.of(alpha, colormap))

    def _gallery(self, named: Sequence[tuple[str, Explanation]], style: Drawing) -> np.ndarray:
        return panels.gallery(self, named, style, self._first_choice)

    @property
    def marks(self) -> image.Marks:
        """The marks on what the heatmaps do not cover."""
        return image.Marks.of(self.heatmap.shape, self.visible)

    def of_map(self, one: Map) -> Explanation:
        """The same explanation with one of its maps alone, as if nothing else had been explained."""
        kind = self.kind if one.scalar is None else one.scalar.kind
        return replace(self, maps=[one], kind=kind, per_layer=[], per_method=[])

    def to_dict(self) -> dict[str, Any]:
        """The explanation without its arrays, ready for JSON: a probability that is not finite is None.

        Of a regression every probability is None, and the number is the `value` next to it.
        """
        return {
            "name": self.name,
            "size": [int(self.picture.shape[0]), int(self.picture.shape[1])],
            "visible": boxes(self.visible, self.picture),
            "predictions": [
                {"index": index, "label": label, **_number(probability, self.numeric)}
                for index, label, probability in self.predictions
            ],
            **_calibrated(self.calibration),
            "target": {"index": self.target, "label": self.label, **_number(self.probability, self.numeric)},
            "scores": self.scores,
            "objective": {
                "kind": self.kind,
                "other": self.other and {"index": self.other[0], "label": self.other[1]},
            },
            "method": self.method,
            "layer": self.layer,
            "maps": [_record(one, self.numeric) for one in self.maps],
            "layers": [
                {"layer": one.layer, "raw_map": _shapes(one.raw_map), "attention": one.statistics}
                | {"visible": boxes(one.visible, one.picture)}
                for one in self.per_layer
            ],
            "methods": [
                {
                    "method": one.method,
                    "maps": [_record(single, self.numeric) for single in one.maps],
                    "attention": one.statistics,
                }
                | {"visible": boxes(one.visible, one.picture)}
                | {"warnings": [text for text in one.warnings if one is self or text not in self.warnings]}
                for one in self.per_method
            ],
            "warnings": list(self.warnings),
            "model": self.model,
        } | ({} if self.task is None else {"task": self.task, "boxes": [box_entry(one) for one in self.boxes]})

    def save(
        self,
        directory: str | Path,
        *,
        alpha: float | None = None,
        colormap: str | None = None,
        compress: bool = True,
        files: str | Iterable[str] | None = None,
        format: str = "png",
    ) -> dict[str, str]:
        """Write the pictures and `explanation.json` into a folder, which is made if need be.

        Arguments:
            directory: where to; files of the same names are replaced, see `onnxcam.files`.
            alpha, colormap: of overlays, as in `overlay`.
            compress: False stores the colours of PNG files as they are: ten times faster, and about twice as large.
            files: which to write: some of `input`, `grayscale`, `heatmap`, `overlay`, `panel` (and the panels of
                methods and layers) and `json`, in a sequence or separated by commas; None for all.
            format: of colour pictures: `png`, `jpeg` (quality 85) or `webp` (quality 90), which is also the ending of
                their names; the grey map is always a PNG.

        Returns:
            file names by what they show, relative to the folder. All are written or, after an error, none of them.

        Raises:
            InputError: no such file or format.
            OutputError: the folder cannot be made or written to.
        """
        return self.write(directory, Drawing.of(alpha, colormap, compress, files, format))[1]

    def write(
        self, directory: str | Path, style: Drawing, *, encoded: bytes | None = None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Write as `save` does; return what `explanation.json` says without its `files`, and what `save` returns.

        Arguments:
            encoded: `encoded` of the `Picture` that was explained, see `onnxcam.explain.saving.save`.
        """
        return saving.save(self, Path(directory), style, encoded)

    def _repr_png_(self) -> bytes:
        """The picture in a notebook: several methods side by side, or the panel of one."""
        return image.encode_png(self.methods_panel() if self.per_method else self.panel())


def name_of(index: int, labels: Sequence[str] | None) -> str:
    """The name of a class; its index as text without labels."""
    return labels[index] if labels is not None and index < len(labels) else str(index)


def _record(one: Map, numeric: bool) -> dict[str, Any]:
    return {
        "index": one.target,
        "label": one.label,
        **_number(one.probability, numeric),
        "raw_map": _shapes(one.raw_map),
        "attention": one.statistics,
        "blank": one.blank,
    } | ({} if one.scalar is None else _scalar(one.scalar))


def _scalar(scalar: Scalar) -> dict[str, Any]:
    """What a map explains, in JSON."""
    box = None if scalar.box is None else box_entry(scalar.box)
    return {"objective": scalar.kind, "scalar": scalar.target, "layer": scalar.layer, "box": box}


def box_entry(one: Detection) -> dict[str, Any]:
    """A box in JSON: its candidate's index, its class, its score and its edges in pixels of the picture."""
    edges = [_finite(edge) for edge in one.box]
    return {
        "index": one.index, "label": one.label, "class_index": one.class_index, "score": _finite(one.score),
        "box": edges,
    }  # fmt: skip


def boxes(visible: Sequence[image.Rectangle] | None, picture: np.ndarray) -> list[dict[str, int]]:
    """The parts of the picture that heatmaps cover, in its pixels."""
    parts = [image.whole((picture.shape[0], picture.shape[1]))] if visible is None else visible
    return [part._asdict() for part in parts]


def _number(number: float, numeric: bool) -> dict[str, float | None]:
    """A predicted number in JSON."""
    return {"probability": None, "value": _finite(number)} if numeric else {"probability": _finite(number)}


def _calibrated(one: Calibrated | None) -> dict[str, Any]:
    """Predictions and set of a calibrated file in JSON; nothing of any other file."""
    if one is None:
        return {}
    return {
        "calibrated": [{"index": i, "label": label, "probability": _finite(p)} for i, label, p in one.predictions],
        "prediction_set": [{"index": index, "label": label} for index, label in one.members],
        "calibration": one.terms,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _shapes(raw: Any) -> Any:
    return [list(r.shape) for r in raw] if isinstance(raw, list) else list(raw.shape)
