"""Means of curves of which some points are not computed, with a bound on the error that assumes nothing about these.

The values of a curve lie between 0 and 1. Some of its points, the anchors, are always computed, and of each group of
the others one point is drawn at random. Between anchors the curve is taken for a straight line, and the difference x of
a drawn point from that line stands for all points of its group. The mean of the curve, and its mean over pictures, are
then unbiased whatever the curve is like.

The error of a mean over pictures is a sum of independent terms w (x - mu): mu is the mean difference of the group and w
its share of the mean. As exp(l x - psi(l) x^2) <= 1 + l x for x >= -1 and 0 <= l < 1 with psi(l) = -ln(1 - l) - l
(Fan, Grama and Liu 2015, https://doi.org/10.1214/EJP.v20-3496), and |x| <= 1,

    |sum w (x - mu)| <= W / l (ln(2 / a) + sum psi(l w / W) x^2),    W the largest w,

except with probability a, for any l that does not depend on what was drawn: here it comes from the anchors. The bound
holds for any number of pictures; with more of them it falls, as far as one group's share of one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95  # of each bound
TOLERANCE = 0.02  # of a mean over all pictures: that many points are left out
FEWEST = 32  # pictures: of fewer every point is computed
_SPACING = 4  # points from one anchor to the next
_EXPECTED = 5.5  # what the bound comes to, in the largest share of a mean that one drawn point has
_RATES = np.linspace(0.05, 0.95, 19)


@dataclass(frozen=True)
class Sample:
    """What the drawn points of some curves say of the error of their means.

    Attributes:
        differences: of the drawn points from the line between the anchors, float64 `[N, groups]`.
        shares: of the curve's mean that each drawn point stands for, float64 `[groups]`.
        expected: the sum of squared differences that the anchors let expect, float64 `[N]`.
        points: of a curve.
        computed: those of them that were computed.
    """

    differences: np.ndarray
    shares: np.ndarray
    expected: np.ndarray
    points: int
    computed: int

    def rows(self, rows: np.ndarray) -> Sample:
        """The sample of some of the curves."""
        return Sample(self.differences[rows], self.shares, self.expected[rows], self.points, self.computed)


@dataclass(frozen=True)
class Design:
    """Which points of a curve are computed.

    Attributes:
        points: of a curve.
        anchors: points that are always computed, rising, the first and the last among them.
        groups: the other points, one of each group is drawn.
        share: of the curve's mean that an inner point has.
    """

    points: int
    anchors: np.ndarray
    groups: tuple[np.ndarray, ...]
    share: float

    @property
    def computed(self) -> int:
        """The number of points that are computed."""
        return len(self.anchors) + len(self.groups)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One point of each group, int64 `[groups]`."""
        return np.array([group[int(rng.integers(len(group)))] for group in self.groups], np.int64)

    def estimate(self, anchored: np.ndarray, draws: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, Sample]:
        """Curves whose mean is an unbiased estimate, float64 `[N, points]`, and what the drawn points say.

        A curve goes through the anchors; at a drawn point it is as far from the line as the whole group is expected to
        be, so that single points may lie outside of 0..1.

        Arguments:
            anchored: values at the anchors, `[N, anchors]`.
            draws: points, `[N, groups]`.
            values: at these, `[N, groups]`.
        """
        after = np.clip(np.searchsorted(self.anchors, np.arange(self.points)), 1, len(self.anchors) - 1)
        first, last = self.anchors[after - 1], self.anchors[after]
        part = (np.arange(self.points) - first) / (last - first)
        start, end = anchored[:, after - 1], anchored[:, after]
        curves = start + part * (end - start)
        curves[:, self.anchors] = anchored
        differences = values - np.take_along_axis(curves, draws, axis=1)
        sizes = np.array([len(group) for group in self.groups], np.float64)
        estimates = np.take_along_axis(curves, draws, axis=1) + sizes * differences
        np.put_along_axis(curves, draws, estimates, axis=1)
        # of a step somewhere between two anchors the mean square is a twelfth of its height's
        squares = (end - start) ** 2 / 12
        expected = np.stack([squares[:, group].mean(axis=1) for group in self.groups], axis=1).sum(axis=1)
        return curves, Sample(differences, self.share * sizes, expected, self.points, self.computed)


@dataclass(frozen=True)
class Sampling:
    """How far means over pictures may be from those of whole curves.

    Attributes:
        pictures: over which means are taken.
        tolerance: of a mean; 0 computes every point.
    """

    pictures: int
    tolerance: float = TOLERANCE

    def design(self, points: int, share: float) -> Design | None:
        """Which points of curves are computed; None for all.

        Arguments:
            points: of a curve.
            share: of the curve's mean that an inner point has.
        """
        if self.pictures < FEWEST or self.tolerance <= 0 or points < 3:
            return None
        anchors = np.unique(np.rint(np.linspace(0, points - 1, round((points - 1) / _SPACING) + 1)).astype(np.int64))
        if len(anchors) < 2:
            anchors = np.array([0, points - 1])
        others = np.setdiff1d(np.arange(points), anchors)
        largest = int(self.tolerance * self.pictures / (_EXPECTED * share))
        if largest < 2 or len(others) < 2:
            return None
        groups = np.array_split(others, -(-len(others) // largest))
        single = [group for group in groups if len(group) == 1]
        anchors = np.sort(np.concatenate([anchors, *single]))
        return Design(points, anchors, tuple(group for group in groups if len(group) > 1), share)


def sampled(
    design: Design, rngs: Sequence[np.random.Generator], compute: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, Sample]:
    """Curves of as many rows as there are random numbers, `Design.estimate`.

    Arguments:
        compute: values float64 `[N, k]` at points int64 `[N, k]`.
    """
    draws = np.stack([design.draw(rng) for rng in rngs])
    anchors = np.broadcast_to(design.anchors, (len(rngs), len(design.anchors)))
    values = compute(np.concatenate([anchors, draws], axis=1))
    count = len(design.anchors)
    return design.estimate(values[:, :count], draws, values[:, count:])


def bound(samples: Sequence[Sample], confidence: float = CONFIDENCE) -> float:
    """How far the mean of all curves may be from that of whole ones, with a confidence: see the module."""
    count = sum(len(sample.differences) for sample in samples)
    if not count:
        return 0.0
    largest = max(float(sample.shares.max()) for sample in samples)
    expected = sum(float(sample.expected.sum()) for sample in samples)
    level = float(np.log(2 / (1 - confidence)))
    rate = float(_RATES[np.argmin((level + _psi(_RATES) * expected) / _RATES)])
    spread = sum(float((_psi(rate * sample.shares / largest) * sample.differences**2).sum()) for sample in samples)
    return largest * (level + spread) / (rate * count)


def _psi(rate: np.ndarray) -> np.ndarray:
    return np.asarray(-np.log1p(-rate) - rate)
