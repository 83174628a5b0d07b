"""The place map of a layer: where in it a change at a place of the picture arrives. Pure NumPy.

A change of the picture at place k moves cell c of the layer by D[k, c]. D is compared with what it would be if the
layer lay on the picture directly, mirrored, rotated, transposed, shifted or cropped: the correlation of both, each
without what all places have in common. Cells answer to places far from them as well, the more the deeper they are, but
all of them alike, and that part drops out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxcam.graph.window import Window
from onnxcam.network.probe.stimuli import WHOLE

Verdict = Literal["direct", "mirrored", "rotated", "transposed", "shifted", "none", "unsettled"]
_WIDTHS = (0.06, 0.1, 0.17, 0.28, 0.45)  # of a change's image in the layer, in units of the layer's sides
_LARGEST = 16  # cells per side: larger maps are averaged down
_WEAKEST = 0.2  # share of the strongest change's sum below which a change counts less
_FAINTEST = 0.01  # of a channel's largest change at any place: below, it counts less
_ROUNDING = 1e-5  # of the largest value: changes below are rounding
# correlations: of a direct layer at least, of any other at least, by how much the best beats the others
_DIRECT, _OTHER, _MARGIN = 0.5, 0.65, 0.2
# correlations that chance gives in n dimensions are about 1 / sqrt(n): multiples of it that prove a verdict
_DIRECT_SIGMAS, _OTHER_SIGMAS = 2.2, 3.2
_INDEPENDENT = 36  # cells that answer independently of each other, at most
# agreement of two backgrounds on a layer that nothing fits
_REPEATABLE = 0.6
# shares of the attainable correlation: a direct layer's at least, that of cells in no order at most
_SHARE, _SCRAMBLED = 0.66, 0.62
_FEWEST_TO_ROLL = 9  # cells
# of fewer, convolutions without padding look shifted: Xception at 71 x 71 pixels, 3 x 3 cells
_FEWEST_TO_SHIFT = 16
_FEWEST_ALIVE, _SILENT = 0.6, 0.02  # share of cells; of the strongest cell's change
_NEAR = 1.0  # cells by which a layer's edges may lie off the picture's: strided convolutions centre them so
_FAR = 1e3  # sides of the layer


@dataclass(frozen=True)
class Place:
    """Where a layer's cells lie on the picture.

    Attributes:
        verdict: `direct` where the manifest says; `mirrored`, `rotated`, `transposed`, `shifted` otherwise (a crop is
            shifted); `none`: they answer to places, but in no such order; `unsettled`: the evidence is too weak.
        correlation: of the measured changes with those that the verdict means, -1 to 1; with those of a direct layer
            where no place fits.
        reason: why it is unsettled, or which orientation or layout it is; None where the verdict says all.
        layout: the layout in which the layer does lie on the picture directly, where that is not the one it was
            measured in.
        corrected: the verdict in that layout.
        drawn: whether maps are drawn so, because the manifest's `window` says the same.
    """

    verdict: Verdict
    correlation: float
    reason: str | None = None
    layout: str | None = None
    corrected: Place | None = None
    drawn: bool = False

    def describe(self) -> dict[str, Any]:
        """The manifest's `layers[].place` entry."""
        entry: dict[str, Any] = {"verdict": self.verdict, "correlation": round(self.correlation, 4)}
        if self.drawn:
            entry["drawn"] = True
        return entry if self.reason is None else entry | {"reason": self.reason}

    @property
    def settled(self) -> bool:
        """Whether the measurement came to a verdict."""
        return self.verdict != "unsettled"

    @property
    def misplaced(self) -> bool:
        """Whether a map of the layer would be drawn in the wrong place."""
        return self.verdict not in ("direct", "unsettled") and not self.drawn


ORIENTATIONS: dict[str, tuple[Verdict, bool, bool, bool]] = {  # verdict; swap the axes; then flip y, x
    "as it is": ("direct", False, False, False),
    "left and right swapped": ("mirrored", False, False, True),
    "top and bottom swapped": ("mirrored", False, True, False),
    "rotated by 180 degrees": ("rotated", False, True, True),
    "rotated by 90 degrees": ("rotated", True, False, True),
    "rotated by 270 degrees": ("rotated", True, True, False),
    "rows and columns swapped": ("transposed", True, False, False),
    "rows and columns swapped from the other corner": ("transposed", True, True, True),
}


def changes(base: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """How much each channel of each cell changes, without what is rounding.

    Arguments:
        base: a background's values, `[C, h, w]`. changed: of its changed copies, `[K, C, h, w]`.

    Returns:
        float32 `[K, C, h, w]`.
    """
    moved = np.abs(changed.astype(np.float32) - base.astype(np.float32))
    scale = max(float(np.abs(base).max(initial=0.0)), float(np.abs(changed).max(initial=0.0)))
    moved[moved < _ROUNDING * scale] = 0
    return moved


def response(moved: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Sum changes over channels, each in units of its largest change at that place: D, float64 `[K, h, w]`.

    In units of the mean, the channels that are alive at the border alone would count most. In units of the largest
    change at any place, one place whose change tips the whole network over (gates of squeeze and excitation, say, move
    every cell by 50 times as much as other places do) would leave nothing of the others.

    Arguments:
        moved: of `changes`.
        size: to which D is averaged down.
    """
    scale = moved.max(axis=(2, 3)).astype(np.float64)
    scale = np.maximum(scale, _FAINTEST * scale.max(axis=0))
    weights = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    total = np.einsum("kchw,kc->khw", moved.astype(np.float64), weights)
    return averaged(total, size or smaller(total.shape[1:]))


def smaller(size: tuple[int, ...]) -> tuple[int, int]:
    """The size to which a map is averaged down before it is compared."""
    return min(size[-2], _LARGEST), min(size[-1], _LARGEST)


def alive(first: np.ndarray, second: np.ndarray) -> float:
    """The share of the cells that differ between two backgrounds, `[1, C, h, w]` each."""
    moved = changes(first[0], second)[0].sum(axis=0)
    return float((moved > _SILENT * moved.max(initial=0.0)).mean())


def judge(responses: list[np.ndarray], boxes: np.ndarray, window: Window = WHOLE, awake: float = 1.0) -> Place:
    """Give the verdict on a layer.

    Arguments:
        responses: D of each background, `[K, h, w]`, not averaged down differently.
        boxes: the changed places, `[K, 4]`: top, bottom, left, right in units of the picture's sides.
        window: where the layer lies on the picture according to the graph, in units of its sides.
        awake: share of its cells that differ between the backgrounds, see `alive`: of a layer that is silent for the
            most part (its border alone answers, say, to pictures out of its range) only a direct place is believed.
    """
    alive = [d for d in responses if np.isfinite(d).all() and d.any()]
    if not alive:
        return Place("unsettled", 0.0, "no change of the picture changes the layer")
    size = alive[0].shape[1:]
    if min(size) < 1 or max(size) < 2:
        return Place("unsettled", 0.0, "the layer has one cell")
    r = np.stack([_centred(d) for d in alive])
    norm = float(np.sqrt((r * r).sum() * len(r)))
    if norm < 1e-9:
        return Place("unsettled", 0.0, "every place of the picture changes the layer alike")
    within = _within(boxes, window)
    fit = _Fit(r.sum(axis=0), norm, (size[0], size[1]))
    by_orientation = fit.orientations(within)
    direct = by_orientation.pop("as it is")
    name, turned = max(by_orientation.items(), key=lambda item: item[1])
    chance = 1 / np.sqrt((len(boxes) - 1) * (min(size[0] * size[1], _INDEPENDENT) - 1))
    enough, proof = max(_DIRECT, _DIRECT_SIGMAS * chance), max(_OTHER, _OTHER_SIGMAS * chance)
    repeatability = _agreement(r)
    attainable = np.sqrt((1 + max(repeatability, 0.0)) / 2)  # the correlation of what both backgrounds share with all
    lies = direct >= max(enough, _SHARE * attainable) and direct >= turned + _MARGIN
    if lies and direct >= 1 - _shift_margin(direct):  # no shift fits better than perfectly
        return _as_drawn(window, direct, (size[0], size[1]))
    shifted, near = fit.shifted(within)
    if lies and direct >= shifted - _shift_margin(direct):
        return _as_drawn(window, direct, (size[0], size[1]))
    if awake < _FEWEST_ALIVE:
        return Place("unsettled", direct, "most cells of the layer are silent on the pictures measured")
    if turned >= max(proof, direct + _MARGIN, shifted - 0.02):
        return Place(ORIENTATIONS[name][0], turned, name)
    enough_cells = size[0] * size[1] >= _FEWEST_TO_SHIFT
    if enough_cells and shifted > near and shifted >= max(proof, direct + _shift_margin(direct)):
        return Place("shifted", shifted)
    best = max(direct, turned, shifted)
    if repeatability >= max(_REPEATABLE, _OTHER_SIGMAS * chance) and best < _SCRAMBLED * attainable:
        return Place("none", direct, "its cells answer to places of the picture in no order that a picture has")
    return Place("unsettled", direct, "too little of the layer depends on the place in the picture")


def _as_drawn(window: Window, correlation: float, size: tuple[int, int]) -> Place:
    """The verdict on a layer that lies where its window says."""
    spans, sides = [window.height, window.width], list(size)
    if window.transposed:
        sides = sides[::-1]
    flips = [stop < start for start, stop in spans]
    if window.transposed:
        return Place("rotated" if flips[0] != flips[1] else "transposed", correlation, drawn=True)
    if any(flips):
        return Place("rotated" if all(flips) else "mirrored", correlation, drawn=True)
    away = [max(abs(start), abs(stop - 1)) * side for (start, stop), side in zip(spans, sides, strict=True)]
    if max(away) > _NEAR:
        return Place("shifted", correlation, drawn=True)
    return Place("direct", correlation)


def _within(boxes: np.ndarray, window: Window) -> np.ndarray:
    """The centres of what a window shows of the changed places, (y, x) in units of the layer's sides; infinitely far
    where it shows nothing."""
    centres = []
    for (start, stop), (first, last) in zip((window.height, window.width), ((0, 1), (2, 3)), strict=True):
        low, high = np.maximum(boxes[:, first], min(start, stop)), np.minimum(boxes[:, last], max(start, stop))
        centres.append(np.where(low < high, ((low + high) / 2 - start) / (stop - start), _FAR))
    return np.stack(centres[::-1] if window.transposed else centres, axis=1)


def _shift_margin(direct: float) -> float:
    """By how much a shift or a crop, which have many ways to fit, has to fit better than no shift."""
    return 0.12 if direct < 0.7 else 0.2


class _Fit:
    """Correlations of measured changes, centred and summed over the backgrounds, with those of a place."""

    def __init__(self, total: np.ndarray, norm: float, size: tuple[int, int]) -> None:
        self._total, self._norm, self._size = total, norm, size
        self._axes = tuple((np.arange(n) + 0.5) / n for n in size)

    def orientations(self, places: np.ndarray) -> dict[str, float]:
        """The best correlation over widths with the layer turned, for each of `ORIENTATIONS`."""
        turned = np.stack(
            [
                np.where(
                    (flip_y, flip_x), 1 - (places[:, ::-1] if swap else places), places[:, ::-1] if swap else places
                )
                for _, swap, flip_y, flip_x in ORIENTATIONS.values()
            ]
        )
        fits = [np.diagonal(self._correlations(turned[..., 0], turned[..., 1], width)) for width in _WIDTHS]
        return dict(zip(ORIENTATIONS, np.max(fits, axis=0).tolist(), strict=True))

    def shifted(self, places: np.ndarray) -> tuple[float, float]:
        """The best correlation with the layer rolled by whole cells, or showing a crop of the picture; that of crops
        whose edges lie within a cell of the picture's."""
        y, x = (np.stack([(axis - start) / extent for start, extent in _crops()]) for axis in places.T)
        edges = np.array([(start, start + extent - 1) for start, extent in _crops()])
        near = [np.abs(edges).max(axis=1) * side <= _NEAR for side in self._size]
        within = near[0][:, None] & near[1]
        fits = np.max([self._correlations(y, x, width) for width in _WIDTHS[:4]], axis=0)
        best, by_less = (float(fits[among].max(initial=-1.0)) for among in (~within, within))
        height, width = self._size
        if height * width < _FEWEST_TO_ROLL:  # rolled by half of two cells is mirrored
            return best, by_less
        twice = np.tile(self._total, (1, 2, 2))
        views = np.lib.stride_tricks.sliding_window_view(twice, self._size, axis=(1, 2))[:, height:0:-1, width:0:-1]
        rolled = views.transpose(1, 2, 0, 3, 4).reshape(height * width, -1)[1:]  # the first one is not rolled
        for wide in _WIDTHS[:4]:
            template = _centred(self._bump(places, wide)).ravel()
            norm = max(self._norm * float(np.linalg.norm(template)), 1e-18)
            best = max(best, float((rolled @ template).max()) / norm)
        return best, by_less

    def _bump(self, places: np.ndarray, width: float) -> np.ndarray:
        """A bump around each place, `[K, h, w]`."""
        gy, gx = (
            _bumps(q, axis, np.hypot(width, 0.3 / len(axis))) for q, axis in zip(places.T, self._axes, strict=True)
        )
        return np.asarray(gy[:, :, None] * gx[:, None, :])

    def _correlations(self, y: np.ndarray, x: np.ndarray, width: float) -> np.ndarray:
        """Correlations `[a, b]` with candidates: places `[a, K]` along y and `[b, K]` along x, all pairs of them."""
        gy, gx = (_bumps(q, axis, np.hypot(width, 0.3 / len(axis))) for q, axis in zip((y, x), self._axes, strict=True))
        products = np.einsum("akj,bkj->abk", np.einsum("kij,aki->akj", self._total, gy), gx)
        totals = gy.sum(axis=2)[:, None] * gx.sum(axis=2)[None]
        floor = _WEAKEST * totals.max(axis=2, keepdims=True)
        scale = 1 / np.maximum(np.maximum(totals, floor), 1e-12)
        gram = np.einsum("aki,ali->akl", gy, gy)[:, None] * np.einsum("bkj,blj->bkl", gx, gx)[None]
        gram = gram * scale[..., :, None] * scale[..., None, :]
        square = np.einsum("abkk->ab", gram) - gram.sum(axis=(2, 3)) / gram.shape[-1]
        return np.asarray((products * scale).sum(axis=2) / (self._norm * np.sqrt(np.maximum(square, 1e-18))))


def _bumps(places: np.ndarray, axis: np.ndarray, width: float) -> np.ndarray:
    """A bump around each place on an axis, `[…, K, cells]`."""
    return np.asarray(np.exp(-(((axis - places[..., None]) / width) ** 2) / 2))


def _crops() -> Iterator[tuple[float, float]]:
    """Start and extent of the parts of a picture's side that a layer may show; also wider than the picture."""
    for extent in (0.33, 0.5, 0.65, 0.8, 1.0, 1.3, 1.7):
        for step in range(5):
            yield (1 - extent) * step / 4, extent
        if extent == 1.0:
            yield from ((offset, extent) for offset in (-0.5, -0.33, -0.2, 0.2, 0.33, 0.5))


def _centred(d: np.ndarray) -> np.ndarray:
    """D with a sum of 1 per place, minus the mean over places."""
    totals = d.sum(axis=(1, 2), keepdims=True)
    share = d / np.maximum(totals, max(_WEAKEST * float(totals.max()), 1e-30))
    return np.asarray(share - share.mean(axis=0))


def _agreement(r: np.ndarray) -> float:
    """The lowest correlation between two backgrounds; 0 where only one says anything."""
    if len(r) < 2:
        return 0.0
    norms = np.sqrt((r * r).sum(axis=(1, 2, 3)))
    return min(float((r[i] * r[j]).sum() / max(norms[i] * norms[j], 1e-30)) for i in range(len(r)) for j in range(i))


def averaged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps `[K, h, w]` averaged down to a size, cells that lie on an edge shared."""
    for axis, n in zip((1, 2), size, strict=True):
        if values.shape[axis] != n:
            values = np.moveaxis(np.tensordot(_shares(values.shape[axis], n), values, (1, axis)), 0, axis)
    return values


def _shares(cells: int, n: int) -> np.ndarray:
    """How much of each of `cells` cells lies in each of `n` larger ones, `[n, cells]`, rows of sum 1."""
    edges = np.arange(n + 1) * cells / n
    cell = np.arange(cells)
    overlap = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
    return np.asarray(np.maximum(overlap, 0) * n / cells)
