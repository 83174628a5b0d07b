"""Room for the variants of one run, used again by the next: pages that the system has to give anew take longer than
what is computed in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Buffer:
    """An array of as many rows as were needed at once.

    Arguments:
        shape: of a row.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._rows = np.empty((0, *shape), np.float32)

    def rows(self, count: int) -> np.ndarray:
        """float32 `[count, ...]` of any content; it is overwritten by who asks next."""
        if len(self._rows) < count:
            self._rows = np.empty((count, *self._rows.shape[1:]), np.float32)
        return self._rows[:count]
