"""Decide whether an error above the tolerance is rounding noise, before the matrix fails a row.

A gradient jumps where a ReLU is fed a value next to 0, so in a deep network a framework disagrees with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

TOLERANCE, SLACK = 1e-3, 3.0
# relative to the picture, how often it is moved by that at most, and at how many places the noise floor is measured
ROUNDING, DRAWS, PLACES = 1e-6, 64, 8
SEED = 1234
QUANTITIES = ("scores", "activations", "gradients")
Figures = dict[str, dict[str, float | None]]
# pictures [N, ...] and the class of each -> scores, activations and gradients, [N, ...]
Ask = Callable[[Any, Any], Sequence[Any]]


def distance(a: Any, b: Any) -> Any:
    """Per sample |a - b| / max(|b|, 1e-12), `[N]`; infinite where it is NaN."""
    if a.shape != b.shape:
        raise ValueError(f"shape {a.shape} where the framework has {b.shape}")
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    far = np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)
    return np.where(np.isfinite(far), far, np.inf)


def judge(
    mine: Sequence[Any], theirs: Sequence[Any], batch: Any, classes: Any, file: Ask, framework: Ask, exact: Ask
) -> tuple[Figures, bool]:
    """Compare the numbers of a file and of its framework on a batch.

    Errors above 1e-3 pass below three times the framework's own float32 against its float64 on that sample (`floor`).
    Where that is smaller than the error, both are evaluated again next to the picture, a rounding error away: a
    gradient that is wrong is wrong there too, one that only fell on the other side of a ReLU agrees at one of the
    places (`beside`). Where the ReLUs are so numerous that every place is near a jump, the floor is measured at
    several places, and the median error must be below three times the median floor.

    Arguments:
        mine, theirs: scores, activations and gradients of the file and of the framework.
        batch: `[N, ...]`, float32.
        classes: whose score is differentiated, int64 `[N]`.
        file, framework, exact: how to ask the file, the framework in float32 and in float64 for these again.

    Returns:
        per quantity `error`, and where they were needed `floor`, `beside`, `median_error`, `median_floor`, each the
        worst sample's; and whether every sample passed.
    """
    far = _apart(mine, theirs)
    figures: Figures = {
        name: {"error": float(far[k].max()), "floor": None, "beside": None} for k, name in enumerate(QUANTITIES)
    }
    above = far > TOLERANCE
    if not above.any():
        return figures, True
    floor = _apart(theirs, exact(batch, classes))
    _note(figures, "floor", floor, above)
    above = far > np.maximum(TOLERANCE, SLACK * floor)
    if not above.any():
        return figures, True
    places, errors, least = [batch], [far], np.where(above, np.inf, 0.0)
    for moved in _beside(batch):
        places = places if len(places) == PLACES else [*places, moved]
        errors.append(_apart(file(moved, classes), framework(moved, classes)))
        least = np.minimum(least, errors[-1])
        if least.max() <= TOLERANCE:
            break
    _note(figures, "beside", least, above)
    above = least > TOLERANCE
    if not above.any():
        return figures, True
    floors = [floor, *(_apart(framework(moved, classes), exact(moved, classes)) for moved in places[1:])]
    error, floor = np.median(errors[:PLACES], axis=0), np.median(floors, axis=0)
    _note(figures, "median_error", error, above)
    _note(figures, "median_floor", floor, above)
    return figures, not (above & (error > np.maximum(TOLERANCE, SLACK * floor))).any()


def _beside(batch: Any) -> Iterator[Any]:
    generator = np.random.default_rng(SEED)
    for _ in range(DRAWS):
        yield (batch * (1 + ROUNDING * generator.standard_normal(batch.shape))).astype(batch.dtype)


def _apart(actual: Sequence[Any], expected: Sequence[Any]) -> Any:
    """`[quantity, sample]`"""
    return np.stack([distance(*pair) for pair in zip(actual, expected, strict=True)])


def _note(figures: Figures, kind: str, values: Any, needed: Any) -> None:
    """Keep the worst value of each quantity that needed it."""
    for k, name in enumerate(QUANTITIES):
        if needed[k].any():
            figures[name][kind] = float(values[k].max())
