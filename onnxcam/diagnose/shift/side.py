"""One model of a comparison: its predictions and maps, each picture prepared as the model's own file says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.errors import ModelError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.maps import fuse, windows_of
from onnxcam.explain.question import Question
from onnxcam.targets.classes import TOP1
from onnxcam.targets.tasks import Detect

if TYPE_CHECKING:
    from onnxcam.graph.window import Window
    from onnxcam.targets.objectives import Objective

OWN_LAYER = "each box's own layer"
FINEST = 64  # cells per side of the plane in which maps of different models are compared


@dataclass(frozen=True, eq=False)
class SideRun:
    """A model's answer for some pictures.

    Attributes:
        targets: the class explained of each, int64 `[N]`.
        best: the class predicted of each, int64 `[N]`.
        probabilities: `[N, classes]`.
        maps: `[N, h, w]` at layer resolution, after ReLU, not normalised.
        input_size: height and width of the model's input.
        geometry: of each picture.
        windows: the part of the input that the maps cover, None for all of it; empty where all maps do.
    """

    targets: np.ndarray
    best: np.ndarray
    probabilities: np.ndarray
    maps: np.ndarray
    input_size: tuple[int, int]
    geometry: Sequence[image.Geometry]
    windows: Sequence[Window | None] = ()

    @classmethod
    def of_map(
        cls,
        raw: np.ndarray,
        objective: Objective,
        input_size: tuple[int, int],
        geometry: image.Geometry,
        windows: Sequence[Window | None],
    ) -> SideRun:
        """The run of a single row whose map `[h, w]` is of a box, a region, a vector or a value."""
        return cls(objective.classes, objective.classes, np.zeros((1, 0)), raw[None], input_size, [geometry], windows)

    def on_picture(self, size: tuple[int, int]) -> np.ndarray:
        """Return the maps on the plane of the pictures, `[N, height, width]` of `size`; 0 outside a crop."""
        drawn = self._on_input(self.maps)
        return np.stack([
            geometry._replace(picture_size=size).to_picture(heatmap)
            for geometry, heatmap in zip(self.geometry, drawn, strict=True)
        ])  # fmt: skip

    def heatmap(self, row: int) -> np.ndarray:
        """Return one map at the size of its picture, not normalised, `[H, W]`."""
        return self.geometry[row].to_picture(self._on_input(self.maps[row : row + 1])[0])

    def _on_input(self, maps: np.ndarray) -> np.ndarray:
        return fuse([maps], "none", self.input_size, windows=self.windows, input_size=self.input_size)


@dataclass(frozen=True, eq=False)
class Side:
    """A model with the layer and the method of its maps.

    Attributes:
        explainer: the model.
        layer, method: of the maps.
        name: OLD, NEW, or that of a training, for messages.
        layer_named: whether the layer was named; else each box has its own.
        target: what a model of embeddings or several values explains; None of others.
    """

    explainer: Explainer
    layer: str
    method: str
    name: str
    layer_named: bool = True
    target: Any = None

    @cached_property
    def subject_question(self) -> Question:
        """The question about one picture of a model that is no classifier, at each box's own layer if none was named.

        Raises:
            TargetError: such a model needs a target, or does not have this one.
        """
        layer = self.layer if self.layer_named else None
        return self.explainer.question(
            target=self.target, method=self.method, layer=layer, normalize="none", size="layer"
        )

    @property
    def layer_name(self) -> str:
        """The layer as reports name it."""
        by_box = not self.layer_named and isinstance(self.explainer.terms.readout.task, Detect)
        return OWN_LAYER if by_box else self.layer

    @cached_property
    def question(self) -> Question:
        """The question about each picture's top-1; `run` sets the classes."""
        return self.explainer.question(target=TOP1, method=self.method, layer=self.layer)

    @cached_property
    def fixed(self) -> bool:
        """Whether every picture is prepared to the same size, so that several share a run."""
        preprocess = self.explainer.preprocess
        alone = self.explainer.terms.readout.task is not None  # what is explained is settled picture by picture
        return not alone and preprocess is not None and preprocess.output_size is not None

    def prepares_like(self, other: Side) -> bool:
        """Whether both models are fed the very same tensors."""
        one, two = self.explainer, other.explainer
        entries = [explainer.manifest["input"] for explainer in (one, two)]
        same = all(entries[0].get(key) == entries[1].get(key) for key in ("layout", "dtype"))
        shapes = [entry["shape"][1:] for entry in entries]
        return same and shapes[0] == shapes[1] and one.preparation[1:] == two.preparation[1:]

    def prepare(self, picture: Any) -> tuple[np.ndarray, image.Geometry]:
        """Return a picture's tensor `[1, ...]` and geometry; errors as of `Explainer.prepare`."""
        return self.explainer.prepare(picture)[1:]

    def run(
        self,
        batch: np.ndarray,
        geometry: Sequence[image.Geometry],
        names: Sequence[str],
        targets: Sequence[int] | None = None,
    ) -> SideRun:
        """Predict and explain some pictures, in one run of the model.

        Arguments:
            batch: prepared, `[N, ...]`.
            geometry: of each picture.
            names: of the pictures.
            targets: the class to explain of each; the model's top-1 if None.

        Raises:
            ModelError: a score or a map is not finite, so that nothing can be compared.
        """
        batch = self.explainer.check_batch(batch)
        question = self.question
        if targets is not None:
            question = self.explainer.question(
                rows=len(batch), target=[int(t) for t in targets], method=self.method, layer=self.layer
            )
        with self.explainer.sessions.fixed_rows(rows_of(self.explainer)):  # the caller's own may leave them to a clock
            answer = self.explainer.batch_maps(question, batch)[0]
        readout = self.explainer.terms.readout
        best = readout.fill_top1(np.full(len(batch), TOP1, np.int64), answer.scores)
        windows = windows_of(question.methods[0], answer.windows)
        maps = answer.maps[0][:, 0]
        self.require_finite("scores", answer.probabilities, names)
        self.require_finite(f"values in the map of layer {self.layer!r}", maps, names)
        return SideRun(answer.classes[:, 0], best, answer.probabilities, maps, answer.input_size, geometry, windows)

    def require_finite(self, what: str, values: np.ndarray, names: Sequence[str]) -> None:
        """Refuse numbers of some pictures, `[N, …]`, that are none.

        Raises:
            ModelError: the message names the first picture.
        """
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise ModelError(
                f"{self.name} gives {what} that are not finite for the picture {names[int(finite.argmin())]!r}, and a "
                "comparison needs numbers; look for a layer that overflows (float16), or for weights that are no "
                "numbers"
            )


def rows_of(explainer: Explainer) -> int:
    """Rows per run in a comparison: what the caller fixed, or what the file says."""
    return explainer.sessions.rows or explainer.batch_size or 1


def on_common_plane(runs: Sequence[SideRun]) -> list[np.ndarray]:
    """Return the maps of several models on one plane, each `[N, h, w]`.

    Where all of them lie alike on the pictures, they are left as they are, at layer resolution. Otherwise each is drawn
    on the picture through its own preprocessing, in as many cells as the finest of them has.
    """
    run = runs[0]
    alike = all(
        other.maps.shape == run.maps.shape
        and list(other.geometry) == list(run.geometry)
        and list(other.windows) == list(run.windows)
        for other in runs[1:]
    )
    if alike:
        return [one.maps for one in runs]
    sizes = [one.maps.shape[1:] for one in runs]
    size = min(FINEST, max(s[0] for s in sizes)), min(FINEST, max(s[1] for s in sizes))
    return [one.on_picture(size) for one in runs]
