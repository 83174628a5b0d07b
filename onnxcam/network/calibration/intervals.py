"""Intervals of a coverage, from the beta distribution; pure Python, so that reading a manifest needs no SciPy."""

from __future__ import annotations

import math
from fractions import Fraction

from onnxcam.errors import SettingError

LEVEL = 0.95
_SMALLEST = 1e-300
_STEPS = 10_000  # of the continued fraction; about sqrt(a + b) are needed


def miscovered(n: int, alpha: float) -> int:
    """l = floor((n + 1) alpha), in exact arithmetic: how many of n pictures may lie beyond the quantile."""
    return math.floor((n + 1) * Fraction(repr(float(alpha))))


def smallest(alpha: float) -> int:
    """The fewest pictures that a quantile at this alpha can be taken of: ceil(1 / alpha) - 1."""
    return math.ceil(1 / Fraction(repr(float(alpha)))) - 1


def check_alpha(alpha: float) -> None:
    """Refuse an alpha that is not a share.

    Raises:
        SettingError: it is not strictly between 0 and 1.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1:
        raise SettingError(
            f"alpha={alpha!r}; expected a number between 0 and 1: the share of pictures whose set may miss the true "
            "class, such as 0.1"
        )


def coverage_interval(n: int, alpha: float, level: float = LEVEL) -> tuple[float, float]:
    """The interval in which the coverage of sets lies, over draws of the calibration pictures.

    With continuous scores the coverage given n calibration pictures is distributed as Beta(n + 1 - l, l), l as of
    `miscovered` (Vovk 2012, https://arxiv.org/abs/1209.2673).

    Arguments:
        n: number of calibration pictures.
        level: probability of the interval, cut off equally on both sides.

    Raises:
        SettingError: fewer pictures than `smallest(alpha)`.
    """
    check_alpha(alpha)
    short = miscovered(n, alpha)
    if short < 1:
        raise SettingError(
            f"{n} calibration pictures are too few for alpha={alpha:g}: at least {smallest(alpha):,} are needed, or a "
            "larger alpha"
        )
    a, b = n + 1 - short, short
    return beta_quantile((1 - level) / 2, a, b), beta_quantile((1 + level) / 2, a, b)


def observed_coverage_interval(n: int, alpha: float, pictures: int, level: float = LEVEL) -> tuple[float, float]:
    """The interval of the share of covered pictures among further ones: beta-binomial, as both samples vary.

    Arguments:
        n: number of calibration pictures.
        pictures: number of further pictures on which the coverage is observed.

    Returns:
        the smallest and the largest share inside; less than (1 - level) / 2 of the probability lies beyond each.
    """
    short = miscovered(n, alpha)
    a, b = n + 1 - short, short
    low, high, total = 0, pictures, 0.0
    tail = (1 - level) / 2
    for covered in range(pictures + 1):
        log_mass = _log_choose(pictures, covered) + _log_beta(covered + a, pictures - covered + b) - _log_beta(a, b)
        before, total = total, total + math.exp(log_mass)
        if before <= tail < total:
            low = covered
        if before < 1 - tail <= total:
            high = covered
            break
    return low / pictures, high / pictures


def share_interval(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share of which `count` of n were observed."""
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else beta_quantile(tail, count, n - count + 1)
    high = 1.0 if count == n else beta_quantile(1 - tail, count + 1, n - count)
    return low, high


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1.0 - front * _fraction(1 - x, b, a) / b


def beta_quantile(q: float, a: float, b: float) -> float:
    """The x at which I_x(a, b) is q, by bisection to the last bits."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if beta_cdf(middle, a, b) < q:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _fraction(x: float, a: float, b: float) -> float:
    """Lentz's evaluation of the continued fraction of I_x(a, b) (DLMF 8.17.22)."""
    c, d = 1.0, _inverse(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = _inverse(1 + term * d)
            c = 1 + term / c
            c = c if abs(c) > _SMALLEST else _SMALLEST
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _inverse(value: float) -> float:
    return 1 / (value if abs(value) > _SMALLEST else _SMALLEST)
