"""How a map answers to small changes of the picture, and whether it foretells what changes do to the prediction."""

from __future__ import annotations

from functools import partial

import numpy as np

from onnxcam.evaluation.registry import LOWER, metric
from onnxcam.evaluation.trial import Trial

RADIUS, REPEATS = 0.02, 10
PATCHES = 64


@metric("sensitivity", title="sensitivity", better=LOWER, usual=False)
def sensitivity(trial: Trial, *, radius: float = RADIUS, repeats: int = REPEATS) -> np.ndarray:
    """max_j ||L(x + u_j) - L(x)||_2 / ||L(x)||_2, with u_j uniform in [-radius, radius].
    https://arxiv.org/abs/1901.09392; divided as in captum.

    The largest relative change of the map over small changes of the picture; the radius is in the units of the
    prepared picture.
    """
    norm = np.sqrt((trial.maps.astype(np.float64) ** 2).sum(axis=(1, 2)))
    norm[norm == 0] = 1
    worst = np.zeros(len(trial))
    rngs = [trial.rng(row, "sensitivity") for row in range(len(trial))]
    drawn = 0

    def changed(repeat: int) -> np.ndarray:
        """The pictures of a repeat; those of earlier ones that another method had are passed over."""
        nonlocal drawn
        while True:
            moved = [rng.uniform(-radius, radius, trial.pictures.shape[1:]) for rng in rngs]
            drawn += 1
            if drawn > repeat:
                return np.asarray(trial.pictures + np.stack(moved).astype(np.float32))

    for repeat in range(repeats):
        again = trial.explain_shared(f"sensitivity {radius} {repeat}", partial(changed, repeat))
        difference = np.sqrt(((again - trial.maps).astype(np.float64) ** 2).sum(axis=(1, 2)))
        worst = np.maximum(worst, difference / norm)
        trial.tell()
    return worst


@metric("infidelity", title="infidelity", better=LOWER, usual=False)
def infidelity(trial: Trial, *, patches: int = PATCHES) -> np.ndarray:
    """min_b mean_j [b sum_I_j L - (p_c(x) - p_c(x without I_j))]^2, with I_j random squares set to zero.
    https://arxiv.org/abs/1901.09392 (its square removal); b is the best factor, as in captum's `normalize`.

    How badly the map predicts what setting random squares to zero does to p.
    """
    height, width = trial.maps.shape[1:]
    squares = np.stack([_squares(trial.rng(row, "infidelity"), patches, height, width) for row in range(len(trial))])

    rows, patch = np.divmod(np.arange(len(trial) * patches), patches)

    def make(places: np.ndarray) -> np.ndarray:
        inside = [_inside(squares[rows[place], patch[place]], height, width) for place in places]
        return np.where(np.stack(inside)[:, None], np.float32(0), trial.pictures[rows[places]])

    # the squares are the same for every method
    keys = [("square", *map(int, squares[row, place])) for row, place in zip(rows, patch, strict=True)]
    after = trial.shared(keys, rows, make).reshape(len(trial), patches)
    lost = trial.whole[:, None] - after
    foretold = np.stack(
        [
            [float(heatmap[_inside(square, height, width)].sum(dtype=np.float64)) for square in its_squares]
            for heatmap, its_squares in zip(trial.maps, squares, strict=True)
        ]
    )
    return unfaithful(foretold, lost)


def unfaithful(foretold: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """mean_j (b foretold_j - lost_j)^2 per row of `[N, J]`, with the factor b that makes it least."""
    square = (foretold**2).mean(axis=1)
    factor = np.zeros(len(foretold))
    np.divide((foretold * lost).mean(axis=1), square, out=factor, where=square > 0)
    return np.asarray(((factor[:, None] * foretold - lost) ** 2).mean(axis=1))


def _squares(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Squares as (top, left, side), their sides from a tenth to a half of the picture's, int64 `[count, 3]`."""
    least = max(1, min(height, width) // 10)
    side = rng.integers(least, max(least, min(height, width) // 2) + 1, count)
    top = rng.integers(0, height - side + 1)
    left = rng.integers(0, width - side + 1)
    return np.stack([top, left, side], axis=1)


def _inside(square: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left, side = square
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask
