"""What the numbers of class scores say about themselves: sums, signs, ranges, order. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_SUM_TOLERANCE = 1e-2  # of rows of probabilities, relative: 8 bits round each of them
_TOTALS = (1.0, 100.0, 255.0)  # of probabilities, percentages, and bytes
_FEWEST_ROWS = 3  # of which columns differ by constants
_FEWEST_RANKS = 5  # columns: in fewer, the classes of a few rows are in order by chance


@dataclass(frozen=True)
class ScoreFacts:
    """Facts about scores `[N, K]`.

    Attributes:
        rows, columns: N and K.
        finite: whether no value is NaN or infinite, masked classes aside; the other facts are of the rows that are.
        lowest, highest: the range of the values.
        lowest_sum, highest_sum: the range of the sums of rows.
        descending, ascending: whether the values of every row are in order, and not all equal.
        constant: whether every row is the same, where there are several.
        parallel: whether all columns are one number and a constant each, so that their order never changes.
        masked: number of classes whose score is -inf in every row: the model rules them out. The other facts are of
            the rest.
    """

    rows: int
    columns: int
    finite: bool
    lowest: float
    highest: float
    lowest_sum: float
    highest_sum: float
    descending: bool
    ascending: bool
    constant: bool
    masked: int = 0
    parallel: bool = False

    @property
    def total(self) -> float | None:
        """What every row sums to, within 1 %: 1 of probabilities, 100 of percentages; None if rows differ, or the sum
        is not positive."""
        middle = (self.lowest_sum + self.highest_sum) / 2
        if not middle > 0 or self.highest_sum - self.lowest_sum > 2 * _SUM_TOLERANCE * middle:
            return None
        for usual in _TOTALS:
            if abs(middle - usual) <= _SUM_TOLERANCE * usual:
                return usual
        return middle

    @property
    def distribution(self) -> bool:
        """Whether every row is a distribution over several classes: no negative value, and a sum of 1, 100 or
        255."""
        return self.rows > 0 and self.columns > 1 and self.lowest >= 0 and self.total in _TOTALS

    @property
    def within_unit(self) -> bool:
        """Whether every value lies in 0..1."""
        return self.rows > 0 and self.lowest >= 0 and self.highest <= 1 + 1e-6

    @property
    def ranked(self) -> bool:
        """Whether columns are ranks rather than classes: every row runs from its highest value down."""
        return self.rows > 1 and self.columns - self.masked >= _FEWEST_RANKS and self.descending and not self.constant

    def describe(self) -> dict[str, Any]:
        """The manifest's `measured.scores` entry."""
        entry: dict[str, Any] = {"rows": self.rows, "finite": self.finite}
        if self.masked:
            entry["masked"] = self.masked
        if self.rows:
            entry["range"] = [self.lowest, self.highest]
            entry["sums"] = [self.lowest_sum, self.highest_sum]
            entry["sorted"] = "descending" if self.descending else "ascending" if self.ascending else None
            entry["constant"] = self.constant
        return entry


def distribution(values: np.ndarray) -> bool:
    """Whether rows `[N, K]` are probabilities: distributions, or numbers in 0..1."""
    facts = measure(values)
    return facts.distribution or (facts.within_unit and facts.highest > facts.lowest)


def measure(values: np.ndarray) -> ScoreFacts:
    """Measure scores.

    Arguments:
        values: numbers of any real type, `[N, K]`; what follows the class axis is of size 1.
    """
    array = np.asarray(values, np.float64)
    array = array.reshape(len(array), -1)
    columns, masked = array.shape[1], np.isneginf(array).all(axis=0) & (len(array) > 0)
    if masked.any() and not masked.all():
        array = array[:, ~masked]
    sound = np.isfinite(array).all(axis=1)
    rows = array[sound]
    if not rows.size:
        return ScoreFacts(0, columns, bool(sound.all()), 0.0, 0.0, 0.0, 0.0, False, False, False)
    sums, steps = rows.sum(axis=1), np.diff(rows, axis=1)
    moving = bool(steps.any(axis=1).all())
    return ScoreFacts(
        rows=len(rows),
        columns=columns,
        finite=bool(sound.all()),
        lowest=float(rows.min()),
        highest=float(rows.max()),
        lowest_sum=float(sums.min()),
        highest_sum=float(sums.max()),
        descending=moving and bool((steps <= 0).all()),
        ascending=moving and bool((steps >= 0).all()),
        constant=len(rows) > 1 and bool((rows == rows[0]).all()),
        masked=columns - rows.shape[1],
        parallel=_parallel(rows),
    )


def _parallel(rows: np.ndarray) -> bool:
    """Whether the columns of rows `[N, K]` differ from each other by constants, and rows differ."""
    moved = float(np.ptp(rows[:, 0]))
    if len(rows) < _FEWEST_ROWS or rows.shape[1] < 2 or not moved > 0:
        return False
    return bool(np.ptp(rows - rows[:, :1], axis=0).max() <= 1e-3 * moved)


def without_masked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape with 0 wherever both are -inf, as the scores of masked classes are: they agree there."""
    both = np.isneginf(a) & np.isneginf(b)
    return (np.where(both, 0, a), np.where(both, 0, b)) if both.any() else (a, b)
