"""The input of a metric: pictures, one method's maps of them, and the model to run on changed pictures."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam.evaluation.sampling import Sample, Sampling, sampled
from onnxcam.network.layout import Layout
from onnxcam.runtime.rows import like

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

# (start, stop) of the changed pictures to make -> float32 [m, C, H, W], and int64 [m], which picture each was
Make = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
# indices of changed pictures -> these, float32 [m, C, H, W]
Pick = Callable[[np.ndarray], np.ndarray]
Show = Callable[[np.ndarray], np.ndarray]
ROWS = 16  # changed pictures per run
_BYTES = 32 << 20


@dataclass(eq=False)
class Runs:
    """What was run on some pictures, for all methods and metrics: a changed picture is run once.

    Attributes:
        rows: changed pictures per run at most.
        values: the probabilities of changed pictures, by what they are: see `Trial.shared`.
        backgrounds: what stands for absent pixels, by its name.
        count: changed pictures that were run.
        repeated: changed pictures that had been run before.
    """

    rows: int = ROWS
    values: dict[Hashable, float] = field(default_factory=dict, repr=False)
    backgrounds: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    count: int = 0
    repeated: int = 0


@dataclass(frozen=True, eq=False)
class Trial:
    """Pictures and the maps that are judged on them.

    Attributes:
        predict: probabilities of prepared pictures `[M, C, H, W]`, float32 `[M, classes]`.
        explain: the maps of as many changed pictures, for the same classes, as `maps` are.
        explain_same: the same of changed pictures that are those of every method, by a name for them; None where
            methods do not share them.
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
        runs: what was run on these pictures for other methods.
        sampling: how many points of curves may be left out; None computes all.
        curves: curves for the report, by name.
        samples: by metric what drawn points say of the error of its mean, where points were left out.
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
    explain_same: Callable[[str, Callable[[], np.ndarray]], np.ndarray] | None = field(default=None, repr=False)
    tell: Callable[[], None] = field(default=lambda: None, repr=False)
    runs: Runs = field(default_factory=Runs, repr=False)
    sampling: Sampling | None = None
    curves: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    samples: dict[str, Sample] = field(default_factory=dict, repr=False)
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.maps)

    def rng(self, row: int, purpose: str) -> np.random.Generator:
        """Return random numbers for one picture and purpose: the same for every method, whatever else is judged."""
        return np.random.default_rng([self.seed, self.places[row], zlib.crc32(purpose.encode())])

    def probabilities(self, total: int, make: Make) -> np.ndarray:
        """The probability of each changed picture's class, float64 `[total]`; made and run a few at a time."""
        each = max(1, int(self.pictures[0].nbytes))
        count = max(1, min(self.runs.rows, _BYTES // each))
        probabilities = np.empty(total)
        for start in range(0, total, count):
            stop = min(total, start + count)
            changed, rows = make(start, stop)
            if self.measure is not None:
                probabilities[start:stop] = self.measure(changed, rows)
            else:
                probabilities[start:stop] = self.predict(changed)[np.arange(stop - start), self.classes[rows]]
            self.runs.count += stop - start
            self.tell()
        return probabilities

    def shared(self, keys: Sequence[Hashable], rows: np.ndarray, make: Pick) -> np.ndarray:
        """The same of changed pictures that other methods and metrics may have too: each is run once.

        Arguments:
            keys: what each changed picture is; equal keys are equal pictures.
            rows: the picture that each was, int64 `[len(keys)]`.
            make: changed pictures by their indices in `keys`.
        """
        names = [(int(self.classes[row]), int(row), key) for row, key in zip(rows, keys, strict=True)]
        first: dict[Hashable, int] = {}
        for place, name in enumerate(names):
            if name not in self.runs.values:
                first.setdefault(name, place)
        places = np.array(list(first.values()), np.int64)

        def some(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            return make(places[start:stop]), rows[places[start:stop]]

        values = self.probabilities(len(places), some)
        self.runs.values.update(zip(first, values.tolist(), strict=True))
        self.runs.repeated += len(names) - len(places)
        return np.array([self.runs.values[name] for name in names])

    def points(self, purpose: str, count: int, share: float, compute: Pick) -> tuple[np.ndarray, Sample | None]:
        """Curves `[N, count]`, of which some points may be estimated: see `onnxcam.evaluation.sampling`.

        Arguments:
            purpose: the same points are drawn for the same purpose, whatever the method.
            share: of a curve's mean that an inner point has.
            compute: values float64 `[N, k]` at points int64 `[N, k]`.

        Returns:
            these, and what the drawn points say of the error of their means; None where every point is computed.
        """
        design = None if self.sampling is None else self.sampling.design(count, share)
        if design is None:
            return compute(np.broadcast_to(np.arange(count), (len(self), count))), None
        rngs = [self.rng(row, f"points {purpose}") for row in range(len(self))]
        return sampled(design, rngs, compute)

    def explain_shared(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The maps of changed pictures that are the same for every method.

        Arguments:
            name: what the changed pictures are.
            make: these, `[N, C, H, W]`; not called where another method had them explained.
        """
        return self.explain(make()) if self.explain_same is None else self.explain_same(name, make)

    @cached_property
    def order(self) -> np.ndarray:
        """Pixels by importance, the most important first, int64 `[N, H * W]`; among equals the order is random."""
        return np.stack([_order(heatmap, self.rng(row, "ties")) for row, heatmap in enumerate(self.maps)])

    @cached_property
    def rank(self) -> np.ndarray:
        """The place of each pixel in the order, int32 `[N, H, W]`."""
        pixels = np.arange(self.maps[0].size, dtype=np.int32)
        rank = np.empty((len(self), len(pixels)), np.int32)
        np.put_along_axis(rank, self.order, pixels[None], axis=1)
        return rank.reshape(self.maps.shape)

    @cached_property
    def masked(self) -> np.ndarray:
        """The probability of each picture times its map, p_c(x * L), float64 `[N]`."""
        keys = [("masked", digest(heatmap)) for heatmap in self.maps]
        return self.shared(keys, np.arange(len(self)), lambda places: self.pictures[places] * self.maps[places, None])

    def curve(self, name: str, values: np.ndarray) -> None:
        """Add a curve `[N, points]` with equally spaced points to the report."""
        self.curves[name] = values

    def against(self, maps: np.ndarray) -> Trial:
        """Return the trial with the maps of a model whose weights were redrawn."""
        return replace(self, redrawn=maps, curves={}, samples={}, cache={})


def digest(values: np.ndarray) -> bytes:
    """A hash of an array's numbers; of a mask of its bits."""
    array = np.packbits(values) if values.dtype == bool else np.ascontiguousarray(values)
    return hashlib.blake2b(array.tobytes(), digest_size=16).digest()


def _order(heatmap: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices by value, the largest first, those of equal values as a permutation has them."""
    ties = rng.permutation(heatmap.size)
    if heatmap.dtype != np.float32:
        return np.lexsort((ties, -heatmap.ravel()))
    # the bits of a negative float rise as it falls; sorting one integer is several times faster than two keys
    bits = np.ascontiguousarray(-heatmap.ravel() + np.float32(0)).view(np.uint32)
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    keys = rising.astype(np.uint64) << np.uint64(32) | ties.astype(np.uint64)
    keys.sort()
    index = np.empty(heatmap.size, np.int64)
    index[ties] = np.arange(heatmap.size)
    return np.asarray(index[(keys & np.uint64(0xFFFFFFFF)).astype(np.int64)])


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
