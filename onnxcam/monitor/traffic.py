"""Ranks each prediction among the recent ones, for `top 5%`: an exact sliding window, moved by rows, not by a clock.

A row is among the top share if its quantity lies beyond the k-th least sure of the n rows before it, with
k = floor(share (n + 1)). For rows of one distribution, whatever it is, that has the probability k / (n + 1): the share
itself in a full window, as 1 / share divides `WINDOW` + 1 for whole and half percents. Ties open less, never more.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcam.errors import SettingError
from onnxcam.monitor.atomic import Cell
from onnxcam.targets.conditions import Top

WINDOW = 9_999  # predictions


@dataclass(frozen=True)
class _Window:
    """The recent values: `order` as they came, the oldest at `oldest` once it is full; `ranks` sorted."""

    order: array[float]
    ranks: array[float]
    oldest: int = 0


class Ranking:
    """Decides a `Top` for rows in the order in which they come; safe in threads and signal handlers.

    Arguments:
        top: the share, and the quantity that rows are ranked by.
        threshold: decides until enough rows were observed (`warm_up`); None to open none until then.

    Raises:
        SettingError: a share of less than one row in the window.
    """

    def __init__(self, top: Top, threshold: float | None = None) -> None:
        if math.floor(top.share * (WINDOW + 1) + 1e-9) < 1:
            raise SettingError(
                f"`{top.key}` is less than one of the last {WINDOW:,} predictions, which are what it is ranked among; "
                f"give at least {100 / (WINDOW + 1):g} %"
            )
        self.top = top
        self._sign = -1.0 if top.by == "entropy" else 1.0  # so that less is less sure
        self._initial = None if threshold is None else self._sign * threshold
        self._window: Cell[_Window] = Cell(_Window(array("d"), array("d")))

    @property
    def warm_up(self) -> int:
        """The number of rows that have to be observed first: with fewer, the share is less than one of them."""
        return math.ceil(1 / self.top.share - 1e-9) - 1

    @property
    def undecided(self) -> int:
        """How many of the next rows are neither among the top share nor outside it: too few came before them."""
        return 0 if self._initial is not None else max(0, self.warm_up - len(self._window.value.ranks))

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Whether each row is among the top share of the rows before it, bool `[N]`; then it is one of them."""
        signed = (self._sign * np.asarray(values, np.float64)).tolist()
        decisions: list[bool] = []

        def change(window: _Window) -> _Window:
            decisions.clear()
            order, ranks, oldest = window.order[:], window.ranks[:], window.oldest
            for value in signed:
                threshold = self._threshold(ranks)
                decisions.append(threshold is not None and value < threshold)
                if len(order) < WINDOW:
                    order.append(value)
                else:
                    del ranks[bisect_left(ranks, order[oldest])]
                    order[oldest] = value
                    oldest = (oldest + 1) % WINDOW
                insort(ranks, value)
            return _Window(order, ranks, oldest)

        self._window.update(change)
        return np.array(decisions, bool)

    def describe(self) -> dict[str, Any]:
        """The number of rows ranked, and the present threshold; None while none opens."""
        ranks = self._window.value.ranks
        threshold = self._threshold(ranks)
        return {
            "rows": len(ranks),
            "warm_up": self.warm_up,
            "threshold": None if threshold is None else self._sign * threshold,
        }

    def _threshold(self, ranks: Sequence[float]) -> float | None:
        rank = math.floor(self.top.share * (len(ranks) + 1) + 1e-9)
        return self._initial if rank < 1 else ranks[rank - 1]
