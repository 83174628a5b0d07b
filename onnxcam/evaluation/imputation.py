"""Missing pixels guessed from those around them: ROAD's noisy linear imputation, without its noise.

Each missing pixel is to be the weighted mean of the eight around it, which may be missing too: a sparse system, solved
by conjugate gradients with a multigrid cycle as preconditioner, so that large holes take about as long as small ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcam.image.opencv import import_cv2

# as in the authors' code, https://arxiv.org/abs/2202.00449
_AROUND = np.array([[1 / 12, 1 / 6, 1 / 12], [1 / 6, 0, 1 / 6], [1 / 12, 1 / 6, 1 / 12]], np.float32)
_TOLERANCE = 2e-6  # of the picture's range, for the residual's root mean square
_MOST = 200
_DAMPING = np.float32(0.8)
_COARSEST, _SWEEPS = 6, 8


def impute(picture: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Fill in the missing pixels of a picture.

    Arguments:
        picture: float32 `[C, H, W]`.
        missing: bool `[H, W]`; where all are, the picture's mean is used.

    Returns:
        float32 `[C, H, W]`; the other pixels unchanged.
    """
    if missing.all():
        return np.broadcast_to(picture.mean(axis=(1, 2), keepdims=True), picture.shape).astype(np.float32)
    if not missing.any():
        return picture.astype(np.float32)
    values = np.where(missing, np.float32(0), picture).astype(np.float32).transpose(1, 2, 0)
    levels = _levels(missing, values.shape[2])
    fine = levels[0]
    x = _first(np.ascontiguousarray(values), ~missing)
    residual = -fine.apply(x)
    enough = int(missing.sum()) * (_TOLERANCE * np.maximum(np.ptp(picture, axis=(1, 2)), 1e-6)) ** 2
    direction, product, before = np.zeros_like(x), np.ones(x.shape[2], np.float32), residual
    for number in range(_MOST):
        if (_product(residual, residual) <= enough).all():
            break
        better = _cycle(levels, 0, residual)
        following = _product(residual, better)
        # the flexible form: the cycle is a preconditioner that is only nearly symmetric
        share = (following - _product(before, better)) / _positive(product) if number else product * 0
        direction = better + _scaled(direction, share)
        applied = fine.apply(direction)
        step = _product(residual, direction) / _positive(_product(direction, applied))
        before, product = residual, following
        x = x + _scaled(direction, step)
        residual = residual - _scaled(applied, step)
    return np.ascontiguousarray(np.where(missing[..., None], x, values).transpose(2, 0, 1))


@dataclass(frozen=True)
class _Level:
    """The system on one grid, float32 `[h, w, C]` each.

    All channels are alike: repeating one of them along a last axis of three is several times slower in numpy.

    Attributes:
        hole: 1 where values are unknown, else 0.
        diagonal: of the system's matrix: the sum of the weights around, 0 outside of the hole.
        step: by which a damped Jacobi sweep multiplies.
    """

    hole: np.ndarray
    diagonal: np.ndarray
    step: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The system's matrix times `x`; what `x` has outside of the hole counts as around it."""
        product = _around(x)
        product *= self.hole
        return np.asarray(np.subtract(self.diagonal * x, product, out=product))

    def smooth(self, x: np.ndarray, right: np.ndarray) -> np.ndarray:
        """One damped Jacobi sweep."""
        change = self.apply(x)
        np.subtract(right, change, out=change)
        change *= self.step
        change += x
        return change


def _levels(missing: np.ndarray, channels: int) -> list[_Level]:
    """The grid and coarser ones, a coarse value being unknown where all below it are."""
    levels = []
    while True:
        shape = (*missing.shape, channels)
        weight = _around(np.ones(shape, np.float32))
        hole = np.repeat(missing[..., None], channels, axis=2).astype(np.float32)
        levels.append(_Level(hole, weight * hole, _DAMPING / weight))
        if min(missing.shape) <= _COARSEST or not missing.any():
            return levels
        height, width = missing.shape
        even = np.pad(missing, ((0, height % 2), (0, width % 2)), constant_values=True)
        missing = np.asarray(even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).all(axis=(1, 3)))


def _cycle(levels: list[_Level], number: int, right: np.ndarray) -> np.ndarray:
    """An approximate solution of a level's system, from this and the coarser levels (a V-cycle)."""
    level = levels[number]
    x = np.asarray(right * level.step)
    if number + 1 == len(levels):
        for _ in range(_SWEEPS):
            x = level.smooth(x, right)
        return x
    coarse = levels[number + 1]
    x = level.smooth(x, right)
    left = _restrict(right - level.apply(x)) * coarse.hole
    correction = _prolong(_cycle(levels, number + 1, left), right.shape[0], right.shape[1]) * level.hole
    return level.smooth(level.smooth(x + correction, right), right)


def _around(values: np.ndarray) -> np.ndarray:
    """The weighted sum of the eight pixels around each, those outside the picture left out, `[h, w, C]`."""
    sums = import_cv2().filter2D(values, -1, _AROUND, borderType=import_cv2().BORDER_CONSTANT)
    return np.asarray(sums, np.float32).reshape(values.shape)


def _prolong(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Twice as fine, bilinear with half-pixel centres, cut to a size."""
    cv2 = import_cv2()
    finer = cv2.resize(values, (2 * values.shape[1], 2 * values.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(finer, np.float32).reshape(2 * values.shape[0], 2 * values.shape[1], -1)[:height, :width]


def _restrict(values: np.ndarray) -> np.ndarray:
    """The transpose of `_prolong`."""
    padded = np.pad(values, ((0, values.shape[0] % 2), (0, values.shape[1] % 2), (0, 0)))
    return _halve(_halve(padded).swapaxes(0, 1)).swapaxes(0, 1)


def _halve(values: np.ndarray) -> np.ndarray:
    even, odd = values[0::2], values[1::2]
    half: np.ndarray = np.float32(0.75) * (even + odd)
    half[1:] += np.float32(0.25) * odd[:-1]
    half[:-1] += np.float32(0.25) * even[1:]
    half[0] += np.float32(0.25) * even[0]
    half[-1] += np.float32(0.25) * odd[-1]
    return half


def _first(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """A smooth filling from coarser and coarser pictures, `[h, w, C]`."""
    height, width = present.shape
    if present.all():
        return values
    every = np.repeat(present[..., None], values.shape[2], axis=2)
    if min(height, width) < 2:
        mean = (values * every).sum(axis=(0, 1)) / max(1, int(present.sum()))
        return np.where(every, values, mean).astype(np.float32)
    pad = ((0, height % 2), (0, width % 2))
    weights = np.pad(present.astype(np.float32), pad)
    sums = np.pad(values * every, (*pad, (0, 0)))
    shape = (weights.shape[0] // 2, 2, weights.shape[1] // 2, 2)
    count = weights.reshape(shape).sum(axis=(1, 3))
    total = sums.reshape(*shape, -1).sum(axis=(1, 3))
    coarse = _first((total / np.maximum(count, 1)[..., None]).astype(np.float32), count > 0)
    return np.where(every, values, _prolong(coarse, height, width)).astype(np.float32)


def _scaled(values: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Values `[h, w, C]` times a factor per channel, a row at a time: see `_Level`."""
    rows = values.reshape(len(values), -1) * np.tile(factors, values.shape[1])
    return np.asarray(rows.reshape(values.shape))


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The inner product of each channel, `[C]`; numpy's sums over the outer axes are several times slower."""
    channels = first.shape[2]
    return np.asarray((first.reshape(-1, channels).T @ second.reshape(-1, channels)).diagonal())


def _positive(values: np.ndarray) -> np.ndarray:
    """Never 0 to divide by: a channel that is done stays as it is."""
    return np.asarray(np.maximum(values, 1e-30))
