"""What a probe says: facts about a file, as an object and as the manifest has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxcam.network.manifest import COUPLED, measured_warnings
from onnxcam.network.probe.places import Place
from onnxcam.network.score_facts import ScoreFacts


@dataclass(frozen=True)
class LayerFacts:
    """Facts about one target layer.

    Attributes:
        name, value: its name for users, and the graph value that is its output.
        layout, shape: as the graph suggests them, and as they were measured.
        place: where its cells lie on the picture.
        covers: `all` where every path from the picture to the scores passes it, else `part`; None where that is not
            known.
    """

    name: str
    value: str
    layout: str
    shape: tuple[int | str | None, ...] | None
    place: Place
    covers: str | None = None

    def describe(self) -> dict[str, Any]:
        """What the manifest's `layers[]` entry says of it."""
        entry: dict[str, Any] = {"place": self.place.describe()}
        return entry if self.covers is None else entry | {"covers": self.covers}


@dataclass(frozen=True)
class Probe:
    """Facts about a file, measured.

    Attributes:
        value: the graph value that is explained.
        scores: of that value; None where the model could not be run.
        rows: `independent` where a row's results are the same alone and among others, else `coupled`; None where that
            could not be measured, see `unmeasured`.
        deterministic: whether two runs on the same pictures agree; None where that could not be measured.
        range: the least and the largest value that the model took as its input meanwhile.
        layers: of the layers that were asked for.
        batch: 1 where the model declares a free batch and takes one row at a time only; else None.
        unmeasured: what could not be measured (`scores`, `rows`, `deterministic`, `places`), and why.
        notes: sentences about the scores that the numbers gave rise to.
        scale: what rows of probabilities sum to, where the numbers told that the scores are probabilities.
        loads, passes: what the measurement cost: sessions opened, and rows passed through the model.
    """

    value: str
    scores: ScoreFacts | None = None
    rows: str | None = None
    deterministic: bool | None = None
    range: tuple[float, float] | None = None
    layers: tuple[LayerFacts, ...] = ()
    batch: int | None = None
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scale: float | None = None
    loads: int = 0
    passes: int = 0

    @property
    def coupled(self) -> bool:
        """Whether a row's results depend on the rows it shares a batch with."""
        return self.rows == COUPLED

    def layer(self, value: str) -> LayerFacts | None:
        """The facts about a layer by its graph value, None if it was not among those measured."""
        return next((layer for layer in self.layers if layer.value == value), None)

    def describe(self) -> dict[str, Any]:
        """The manifest's `measured` entry."""
        entry: dict[str, Any] = {}
        if self.scores is not None:
            entry["scores"] = self.scores.describe()
        for key in ("rows", "deterministic"):
            if getattr(self, key) is not None:
                entry[key] = getattr(self, key)
        if self.range is not None:
            entry["range"] = list(self.range)
        if self.unmeasured:
            entry["unmeasured"] = dict(self.unmeasured)
        return entry

    def to_dict(self) -> dict[str, Any]:
        """The facts ready for JSON, as a manifest has them: `measured` and `layers`."""
        layers = [{"name": layer.name, "layout": layer.layout, **layer.describe()} for layer in self.layers]
        return {"measured": self.describe(), "layers": layers}

    @property
    def warnings(self) -> list[str]:
        """Sentences about what makes maps or numbers doubtful."""
        return measured_warnings(self.to_dict())
