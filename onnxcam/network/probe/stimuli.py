"""Pictures that a model is measured on: backgrounds, each alone and with its content changed at one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcam.graph.window import Window

# centres of the changed squares, (y, x) in units of the picture's sides: one per quadrant, none on an axis of symmetry
PLACES = ((0.18, 0.24), (0.23, 0.79), (0.56, 0.47), (0.78, 0.17), (0.83, 0.77))
SIDE = 0.24  # of the changed square, in units of the picture's sides
BACKGROUNDS = 2
ROWS = BACKGROUNDS * (1 + len(PLACES))
_FAINT = 0.15  # contrast of the first background, in units of the range
_SEED = 0
WHOLE = Window((0.0, 1.0), (0.0, 1.0))  # in units of the picture's sides
_BLOCKS = 16  # blocks of equal noise along the shorter side


@dataclass(frozen=True)
class Stimuli:
    """Pictures in the order in which they are run: each background, followed by its changed copies.

    Attributes:
        pictures: float32 `[12, C, H, W]`.
        places: of each picture the index of `PLACES` at which it was changed, -1 for a background.
        boxes: the changed squares, `[K, 4]`: top, bottom, left, right in units of the picture's sides.
    """

    pictures: np.ndarray
    places: tuple[int, ...]
    boxes: np.ndarray

    def background(self, row: int) -> int:
        """The row of the background that a row is a changed copy of."""
        return row - row % (1 + len(PLACES))


def draw(
    shape: tuple[int, int, int],
    low: np.ndarray,
    high: np.ndarray,
    pictures: Sequence[np.ndarray] = (),
    window: Window = WHOLE,
) -> Stimuli:
    """Draw the stimuli of a model.

    The first background is faint and its changes add texture, the second is textured and its changes take it away: a
    network in which the one says little answers to the other.

    Arguments:
        shape: channels, height and width.
        low, high: range of the input, one number or one per channel.
        pictures: `[C, H, W]` each, backgrounds instead of the drawn ones.
        window: the part of the picture that is changed.
    """
    rng = np.random.default_rng(_SEED)
    channels = shape[0]
    low, high = (np.broadcast_to(np.asarray(limit, np.float64), (channels,))[:, None, None] for limit in (low, high))
    middle, half = (low + high) / 2, (high - low) / 2
    texture = _noise(rng, shape)
    backgrounds = [middle + _FAINT * half * _noise(rng, shape), middle + half * _noise(rng, shape)]
    backgrounds[: len(pictures)] = [np.asarray(picture, np.float64) for picture in pictures[:BACKGROUNDS]]
    flat = middle + 0.7 * half * rng.choice([-1.0, 1.0], (channels, 1, 1))
    changes = [np.broadcast_to(content, shape) for content in (middle + half * texture, flat)]
    rows: list[np.ndarray] = []
    boxes = [box(place, shape[1:], window) for place in PLACES]
    for background, change in zip(backgrounds, changes, strict=True):
        rows.append(background)
        for top, bottom, left, right in boxes:
            changed = background.copy()
            changed[:, top:bottom, left:right] = change[:, top:bottom, left:right]
            rows.append(changed)
    places = (-1, *range(len(PLACES))) * BACKGROUNDS
    _, height, width = shape
    return Stimuli(np.stack(rows).astype(np.float32), places, np.asarray(boxes) / [height, height, width, width])


def box(place: tuple[float, float], size: tuple[int, ...], window: Window = WHOLE) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the square around a place of a window, in pixels."""
    edges: list[int] = []
    for centre, side, span in zip(place, size, (window.height, window.width), strict=True):
        start, end = max(0.0, min(span)) * side, min(1.0, max(span)) * side
        length = max(1, round(SIDE * (end - start)))
        first = round(start + centre * (end - start) - length / 2)
        edges += [min(max(0, first), side - length), min(max(0, first), side - length) + length]
    return edges[0], edges[1], edges[2], edges[3]


def _noise(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Noise of two scales, from -1 to 1: of pixels alone little would pass the strides of a deep network."""
    channels, height, width = shape
    block = max(1, min(height, width) // _BLOCKS)
    coarse = rng.uniform(-1, 1, (channels, -(-height // block), -(-width // block)))
    coarse = coarse.repeat(block, axis=1).repeat(block, axis=2)[:, :height, :width]
    return np.asarray(0.75 * coarse + 0.25 * rng.uniform(-1, 1, shape))
