"""The input of a metric: pictures, one method's maps of them, and the model to run on changed pictures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam.network.layout import Layout
from onnxcam.runtime.rows import like

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

# (start, stop) of the changed pictures to make -> float32 [m, C, H, W], and int64 [m], which picture each was
Make = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
Show = Callable[[np.ndarray], np.ndarray]
_ROWS = 16  # changed pictures per run
_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class Trial:
    """Pictures and the maps that are judged on them.

    Attributes:
        predict: probabilities of prepared pictures `[M, C, H, W]`, float32 `[M, classes]`.
        explain: the maps of as many changed pictures, for the same classes, as `maps` are.
        pictures: as the model takes them, but float32 `[N, C, H, W]` whatever its layout.
        maps: float32 `[N, H, W]`, each from 0 to 1.
        classes: the class explained per picture, int64 `[N]`.
        whole: its probability in the unchanged picture, float64 `[N]`.
        places: the pictures' numbers in the whole evaluation: what is random depends on them alone.
        seed: fixes whatever is random.
        boxes: per picture which pixels lie in a box, bool `[H, W]` of the original picture, or None.
        others: per picture the same of each other object of its class, where objects are judged.
        originals: per picture the map brought back onto the original picture, float32 `[H, W]`.
        redrawn: the maps of the model whose weights were redrawn, where a metric compares with them.
        measure: where objects are judged, the number of changed pictures `[M, C, H, W]` that were rows `[M]` of
            `pictures`, float64 `[M]`: the score of the box, or the class's mean probability in its region. `predict` is
            not called then.
        masking: where objects are judged, the maps of D-RISE with so many masks, float32 `[N, H, W]`.
        tell: called as the work proceeds; an exception it raises ends the work.
        curves: curves for the report, by name.
        cache: intermediate results that metrics share.
    """

    predict: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    explain: Show = field(repr=False)
    pictures: np.ndarray = field(repr=False)
    maps: np.ndarray = field(repr=False)
    classes: np.ndarray
    whole: np.ndarray
    places: Sequence[int]
    seed: int = 1234
    boxes: Sequence[np.ndarray | None] = ()
    others: Sequence[Sequence[np.ndarray]] = ()
    originals: Sequence[np.ndarray] = field(default=(), repr=False)
    redrawn: np.ndarray | None = field(default=None, repr=False)
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = field(default=None, repr=False)
    masking: Callable[[int], np.ndarray] | None = field(default=None, repr=False)
    tell: Callable[[], None] = field(default=lambda: None, repr=False)
    curves: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    cache: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.maps)

    def rng(self, row: int, purpose: str) -> np.random.Generator:
        """Return random numbers for one picture and purpose: the same for every method, whatever else is judged."""
        return np.random.default_rng([self.seed, self.places[row], zlib.crc32(purpose.encode())])

    def probabilities(self, total: int, make: Make) -> np.ndarray:
        """The probability of each changed picture's class, float64 `[total]`; made and run a few at a time."""
        each = max(1, int(self.pictures[0].nbytes))
        count = max(1, min(_ROWS, _BYTES // each))
        probabilities = np.empty(total)
        for start in range(0, total, count):
            stop = min(total, start + count)
            changed, rows = make(start, stop)
            if self.measure is not None:
                probabilities[start:stop] = self.measure(changed, rows)
            else:
                probabilities[start:stop] = self.predict(changed)[np.arange(stop - start), self.classes[rows]]
            self.tell()
        return probabilities

    @cached_property
    def order(self) -> np.ndarray:
        """Pixels by importance, the most important first, int64 `[N, H * W]`; among equals the order is random."""
        orders = []
        for row, heatmap in enumerate(self.maps):
            ties = self.rng(row, "ties").permutation(heatmap.size)
            orders.append(np.lexsort((ties, -heatmap.ravel())))
        return np.stack(orders)

    @cached_property
    def masked(self) -> np.ndarray:
        """The probability of each picture times its map, p_c(x * L), float64 `[N]`."""

        def make(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            rows = np.arange(start, stop)
            return self.pictures[rows] * self.maps[rows, None], rows

        return self.probabilities(len(self), make)

    def curve(self, name: str, values: np.ndarray) -> None:
        """Add a curve `[N, points]` with equally spaced points to the report."""
        self.curves[name] = values

    def against(self, maps: np.ndarray) -> Trial:
        """Return the trial with the maps of a model whose weights were redrawn."""
        return replace(self, redrawn=maps, curves={}, cache={})


def to_input(pictures: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """Pictures `[N, C, H, W]` as the model takes them: in its layout and element type, integers rounded.

    Arguments:
        entry: the manifest's `input`.
    """
    dtype = np.dtype(entry["dtype"])
    return np.ascontiguousarray(like(Layout.of(entry).from_canonical(pictures), dtype), dtype)


def predictor(explainer: Explainer) -> Callable[[np.ndarray], np.ndarray]:
    """`Trial.predict` of an explainer."""
    entry = explainer.manifest["input"]
    return lambda pictures: explainer.predict(to_input(pictures, entry))
