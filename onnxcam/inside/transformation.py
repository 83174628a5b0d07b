"""Random transformations of the picture at every step of an ascent: what only shows at one place or size fades.

Each is linear in the picture and has an exact adjoint, which brings the gradient back. The picture continues at its
edges with the opposite side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Warp(Protocol):
    """A linear map from one picture `[C, H, W]` to another."""

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """The transformed picture."""

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient at the picture, from that at the transformed one."""


@dataclass(frozen=True)
class Shift:
    """A circular shift by whole pixels, down and to the right."""

    rows: int
    columns: int

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Every pixel moved."""
        return np.roll(picture, (self.rows, self.columns), (1, 2)) if self.rows or self.columns else picture

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """Every pixel moved back."""
        return np.roll(gradient, (-self.rows, -self.columns), (1, 2)) if self.rows or self.columns else gradient


class Affine:
    """A zoom and a rotation about the middle and a shift, sampled bilinearly.

    Arguments:
        size: height and width of the picture.
        zoom: above 1 enlarges.
        angle: in degrees, counter-clockwise.
        shift: in pixels, down and to the right.
    """

    def __init__(self, size: tuple[int, int], zoom: float, angle: float, shift: tuple[float, float]) -> None:
        height, width = size
        middle = (height - 1) / 2, (width - 1) / 2
        rows = (np.arange(height) - middle[0] - shift[0])[:, None]
        columns = (np.arange(width) - middle[1] - shift[1])[None]
        cosine, sine = np.cos(np.deg2rad(angle)) / zoom, np.sin(np.deg2rad(angle)) / zoom
        y = cosine * rows + sine * columns + middle[0]
        x = -sine * rows + cosine * columns + middle[1]
        top, left = np.floor(y), np.floor(x)
        below, right = y - top, x - left
        first, second = top.astype(np.intp) % height, (top.astype(np.intp) + 1) % height
        before, after = left.astype(np.intp) % width, (left.astype(np.intp) + 1) % width
        places = [first * width + before, first * width + after, second * width + before, second * width + after]
        weights = [(1 - below) * (1 - right), (1 - below) * right, below * (1 - right), below * right]
        self._places = np.stack([place.reshape(-1) for place in places])
        self._weights = np.stack([weight.reshape(-1) for weight in weights]).astype(np.float32)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Σ_k w_k · picture at the k-th of the four pixels around each place."""
        flat = picture.reshape(len(picture), -1)
        result = np.zeros_like(flat)
        for place, weight in zip(self._places, self._weights, strict=True):
            result += np.take(flat, place, axis=1, mode="clip") * weight
        return result.reshape(picture.shape)

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """Every pixel's share of the gradients of the places that it was sampled for."""
        flat = gradient.reshape(len(gradient), -1)
        places, count = self._places.reshape(-1), flat.shape[1]
        rows = [np.bincount(places, (self._weights * row).reshape(-1), count) for row in flat]
        return np.stack(rows).astype(gradient.dtype).reshape(gradient.shape)


@dataclass(frozen=True)
class Transformation:
    """The distribution that each step's transformation is drawn from.

    Attributes:
        jitter: the largest shift, in pixels, up, down and to either side.
        scale: the largest change of size: 0.1 for 0.9 to 1.1.
        rotation: the largest angle, in degrees, either way.
    """

    jitter: int = 0
    scale: float = 0.0
    rotation: float = 0.0

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> Warp:
        """A transformation of pictures of this height and width. Four numbers are drawn, whatever the settings."""
        numbers = rng.random(4)
        rows, columns = (int(number * (2 * self.jitter + 1)) - self.jitter for number in numbers[:2])
        zoom, angle = (2 * numbers[2:] - 1) * (self.scale, self.rotation)
        if not self.scale and not self.rotation:
            return Shift(rows, columns)
        return Affine(size, 1.0 + zoom, angle, (rows, columns))
