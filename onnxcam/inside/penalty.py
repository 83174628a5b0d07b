"""Penalties that are subtracted from what an ascent maximises: functions of a picture `[C, H, W]` of values 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMOOTH = 1e-4  # under the root, so that a flat picture has a gradient: the square of 2.6 grey levels


@dataclass(frozen=True)
class Penalty:
    """`l2` · mean (p - 1/2)² + `tv` · mean total variation.

    Total variation is the length of the step to the next row and column, sqrt(dy² + dx² + 1e-4); the picture continues
    at its edges with the opposite side.
    """

    l2: float = 0.0
    tv: float = 0.0

    def value(self, picture: np.ndarray) -> tuple[float, np.ndarray | None]:
        """The penalty and its gradient at the picture, None where both weights are 0."""
        if not self.l2 and not self.tv:
            return 0.0, None
        total, gradient = 0.0, np.zeros(picture.shape, np.float32)
        if self.l2:
            offset = picture - np.float32(0.5)
            total += self.l2 * float(np.mean(np.square(offset, dtype=np.float64)))
            gradient += offset * np.float32(2 * self.l2 / picture.size)
        if self.tv:
            down, right = (np.roll(picture, -1, axis) - picture for axis in (1, 2))
            length = np.sqrt(down * down + right * right + np.float32(SMOOTH))
            total += self.tv * float(np.mean(length, dtype=np.float64))
            down /= length
            right /= length
            change = np.roll(down, 1, 1) - down + np.roll(right, 1, 2) - right
            gradient += change * np.float32(self.tv / picture.size)
        return total, gradient
