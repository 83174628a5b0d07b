"""Directional derivatives by central finite differences, compared with a gradient.

Score and gradient are computed in the model's own precision. For each direction the step is chosen at which two
neighbouring step sizes agree best: the choice never looks at the gradient under test, and the disagreement says how far
the comparison can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcam.diagnose.report import Finding
from onnxcam.errors import listing

# relative to the norm of the activations; a kink between two steps shows as their disagreement
STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
TOLERANCE = 0.02
# where an operator between layer and scores jumps: differences across the jump contain it, gradients do not
TOLERANCE_JUMPS = 0.2
# with more uncertainty than this the finite differences prove nothing
TRUSTED = 0.1
# median of |x| for x ~ N(0, 1)
_MEDIAN = 0.6745
# rounding error of the activations, in units of the precision's epsilon
_ROUNDING = 2.5
_ROUNDING_RUNS = 8

Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Errors:
    """Relative errors of directional derivatives, and their uncertainties, by kind of direction."""

    errors: dict[str, list[float]] = field(default_factory=dict)
    uncertainties: dict[str, list[float]] = field(default_factory=dict)

    def finding(self, title: str, jumps: Sequence[str]) -> Finding:
        """Judge the medians; `jumps` are discontinuous operators between the layer and the scores."""
        figures = {kind: float(np.median(values)) for kind, values in self.errors.items()}
        uncertainty = {kind: float(np.median(values)) for kind, values in self.uncertainties.items()}
        beyond = {kind: figures[kind] - 3 * uncertainty[kind] for kind in figures}
        if not all(np.isfinite(value) for value in beyond.values()):
            detail = "the scores are not finite along them: nothing was compared with finite differences"
            return Finding(title, "unsure", detail, figures)
        worst = max(beyond, key=lambda kind: beyond[kind])
        errors = ", ".join(f"{kind} {value:.1e}" for kind, value in figures.items())
        count = len(self.errors[worst])
        text = f"relative error against finite differences: {errors} (median of {count} directions of each kind"
        if beyond[worst] > (TOLERANCE_JUMPS if jumps else TOLERANCE):
            return Finding(title, "failed", f"{text}; float32 explains at most {TOLERANCE:g})", figures)
        if beyond[worst] > TOLERANCE:
            detail = f"{text}; {listing(jumps)} is discontinuous, and differences include its jumps)"
            return Finding(title, "unsure", detail, figures)
        if any(value > TRUSTED for value in uncertainty.values()):
            return Finding(title, "unsure", f"{text}; finite differences are too noisy here to prove more)", figures)
        return Finding(title, "ok", f"{text})", figures)


def compare(
    score: Score, a: np.ndarray, gradient: np.ndarray, count: int, precision: str, rng: np.random.Generator
) -> Errors:
    """Compare a gradient with finite differences along random directions.

    Arguments:
        score: the score of each row, float64 `[rows]`, at activations `[rows, n]`.
        a, gradient: activations and the score's gradient there, float64 `[rows, n]`.
        count: directions of each kind.
        precision: the floating-point type that `score` computes in.
    """
    size = np.linalg.norm(a, axis=1) + 1e-12
    # the directional derivative along a random unit vector is about this large
    typical = (np.linalg.norm(gradient, axis=1) + 1e-30) / np.sqrt(gradient.shape[1])
    rounding = _rounding(score, a, precision, rng)
    result = Errors()
    for _ in range(count):
        for kind, direction in _directions(gradient, a, rng):
            unit = direction / (np.linalg.norm(direction, axis=1, keepdims=True) + 1e-30)
            predicted = (gradient * unit).sum(axis=1)
            measured, uncertainty = _slope(score, a, unit, size, rounding)
            scale = np.abs(predicted) + typical
            if kind == "anywhere":  # the median derivative along such directions: errors show at their full size
                weight = np.square(_weight(a))
                scale = np.sqrt((np.square(gradient) * weight).sum(axis=1) / weight.sum(axis=1)) * _MEDIAN + 1e-30
            result.errors.setdefault(kind, []).extend(np.abs(measured - predicted) / scale)
            result.uncertainties.setdefault(kind, []).extend(uncertainty / scale)
    return result


def off_kinks(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move activations slightly: after a ReLU whole channels are 0, where it and a maximum have no derivative.

    None moves by less than 3 % of their root mean square, and the amounts beyond that are exponentially distributed:
    the largest of many then exceeds the second by about as much as that of few.
    """
    amount = 0.03 + rng.exponential(0.04, a.shape)
    noise = amount * rng.choice((-1.0, 1.0), a.shape) * np.sqrt(np.mean(np.square(a, dtype=np.float64)))
    return np.asarray(a + noise, dtype=a.dtype)


def _rounding(score: Score, a: np.ndarray, precision: str, rng: np.random.Generator) -> np.ndarray:
    """Measure how far rounding alone moves the scores; a smaller difference of scores says nothing."""
    relative = _ROUNDING * float(np.finfo(precision).eps)
    runs = [score(a * (1 + relative * rng.uniform(-1, 1, a.shape))) for _ in range(_ROUNDING_RUNS)]
    return np.asarray(np.std(runs, axis=0) + np.spacing(np.abs(runs[0]).astype(precision)).astype(np.float64))


def _directions(g: np.ndarray, a: np.ndarray, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Draw one direction of each kind: along the gradient, along a random half of it, and anywhere.

    A term missing from the gradient shows only along the last.
    """
    return [
        ("along", g * rng.uniform(0.5, 1.5, (len(g), 1))),
        ("halves", g * rng.integers(0, 2, g.shape)),
        ("anywhere", rng.normal(size=g.shape) * _weight(a)),
    ]


def _weight(a: np.ndarray) -> np.ndarray:
    """The scale of each activation in a direction anywhere."""
    return np.asarray(np.abs(a) + np.abs(a).mean(axis=1, keepdims=True))


def _slope(
    score: Score, a: np.ndarray, unit: np.ndarray, size: np.ndarray, rounding: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's slope along `unit` and its uncertainty, both `[rows]`.

    The slope is taken at the step that agrees best with its larger neighbour, and where the slopes on both sides agree:
    across a kink their mean is off by up to half their difference, at every step alike.
    """
    slopes, bends, noise = [], [], []
    middle = score(a)
    for step in STEPS:
        h = step * size
        up, down = score(a + h[:, None] * unit), score(a - h[:, None] * unit)
        slopes.append((up - down) / (2 * h))
        bends.append(np.abs(up + down - 2 * middle) / (2 * h))
        noise.append(2 * rounding / h)
    spread = np.abs(np.diff(slopes, axis=0)) + np.stack(noise)[1:]
    best, rows = (spread + np.stack(bends)[1:]).argmin(axis=0), np.arange(len(a))
    return np.stack(slopes)[best, rows], spread[best, rows]
