"""Thresholds that a calibration stores for conditions: quantiles of the calibration pictures, and a risk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcam.errors import SettingError
from onnxcam.network.calibration.intervals import beta_quantile
from onnxcam.targets.condition_tree import RANKED
from onnxcam.targets.readout import Readout

# shares of traffic whose thresholds are stored; between them the threshold is interpolated
LEVELS = tuple(
    round(level / 1000, 4) for level in (*range(1, 10), *range(10, 100, 5), *range(100, 500, 10), *range(500, 1000, 50))
)


def quantiles(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The manifest's `calibration.quantiles`: for each of `LEVELS` the value beyond which that share is less sure.

    With n pictures the threshold of a share is the k-th least sure value, k = floor(share (n + 1)), and rows beyond it
    are less sure than that: of further pictures of one continuous distribution a share of k / (n + 1), Beta(k, n + 1 -
    k) over draws of the n. Shares with k = 0 are left out.

    Arguments:
        values: by quantity of `RANKED`, `[n]`.
    """
    n = len(next(iter(values.values())))
    ranks = {level: rank for level in LEVELS if (rank := _rank(level, n)) >= 1}
    entry: dict[str, Any] = {"n": n, "levels": list(ranks)}
    for name in RANKED:
        if name in values:
            ordered = np.sort(np.asarray(values[name], np.float64))
            ordered = ordered[::-1] if name == "entropy" else ordered
            entry[name] = [float(ordered[rank - 1]) for rank in ranks.values()]
    return entry


def least_sure(facts: Mapping[str, Any] | None, share: float, by: str) -> float:
    """The threshold beyond which the least sure share of traffic lies: below it, of an entropy above.

    Arguments:
        facts: of a calibration, with `quantiles`.

    Raises:
        SettingError: there are no quantiles, or not of so small a share.
    """
    entry = (facts or {}).get("quantiles") or {}
    levels, thresholds = entry.get("levels") or [], entry.get(by) or []
    if not levels or not thresholds:
        raise SettingError(
            f"`top {100 * share:.10g}% by {by}` needs quantiles of {by}, which this file's calibration has not; "
            "calibrate it anew with this version"
        )
    if not levels[0] - 1e-12 <= share <= levels[-1] + 1e-12:
        raise SettingError(
            f"`top {100 * share:.10g}%`: the {entry.get('n')} pictures of this file's calibration tell of shares from "
            f"{100 * levels[0]:g} % to {100 * levels[-1]:g} %; calibrate it with more pictures"
        )
    return float(np.interp(share, levels, thresholds))


def opened_interval(n: int, share: float, level: float = 0.95) -> tuple[float, float]:
    """The interval of the share of traffic that `top` opens on with the threshold of n pictures, over draws of them."""
    rank = _rank(share, n)
    if rank < 1:
        raise SettingError(f"{n} pictures are too few for a share of {share:g}: at least {math.ceil(1 / share) - 1}")
    tail = (1 - level) / 2
    return beta_quantile(tail, rank, n + 1 - rank), beta_quantile(1 - tail, rank, n + 1 - rank)


def let_through(facts: Mapping[str, Any] | None, most: float) -> tuple[str, float]:
    """The quantity, and the threshold at or above which at most a share `most` of predictions is wrong.

    Arguments:
        facts: of a calibration, with `risk`.

    Raises:
        SettingError: no risk was shown, or another one.
    """
    entry = (facts or {}).get("risk")
    percent = f"{100 * most:.10g}%"
    if not entry:
        raise SettingError(
            f"`risk` at {percent}: this file's calibration shows no bound on the share of wrong predictions; "
            f"calibrate it with --max-risk {percent}"
        )
    if not math.isclose(float(entry["max"]), most, rel_tol=1e-9):
        stored = f"{100 * float(entry['max']):.10g}%"
        raise SettingError(
            f"`risk` at {percent}: this file's calibration shows at most {stored} wrong; write `risk > {stored}`, or "
            f"calibrate it with --max-risk {percent}"
        )
    return str(entry["by"]), float(entry["threshold"])


def measured(probabilities: np.ndarray, readout: Readout, calibrated: np.ndarray) -> dict[str, np.ndarray]:
    """The quantities that `top` ranks by, of the calibration pictures.

    Arguments:
        probabilities: the file's own, `[n, classes]`; calibrated: the same after the temperature.
    """
    from onnxcam.targets import conditions

    values = conditions.quantities(probabilities, readout, RANKED[:3])
    return values | {RANKED[3]: np.asarray(calibrated, np.float64).max(axis=1)}


def _rank(share: float, n: int) -> int:
    return math.floor(share * (n + 1) + 1e-9)
