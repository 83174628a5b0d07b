"""Conditions on predictions: the grammar of `when=`, and its quantities.

    condition  = clause { "or" clause }
    clause     = factor { "and" factor }
    factor     = "not" factor | "(" condition ")" | comparison | top
    comparison = quantity operator value | value operator quantity
    quantity   = "confidence" | "margin" | "entropy" | "label" | "calibrated" | "set" | "risk"
    operator   = "<" | "<=" | ">" | ">=" | "==" | "!="
    value      = number | number "%" | quoted text
    top        = "top" number "%" [ "by" ( "confidence" | "margin" | "entropy" | "calibrated" ) ]

A label is compared by `==` and `!=` only, with its name in quotes or its index. Text becomes a small tree, never code:
whether it is evaluated over arrays here or emitted as nodes of a graph, it consists of `Comparison`, `Not`, `AllOf` and
`AnyOf`. What a calibration answers, see `bind`:

`calibrated`: the largest calibrated probability.
`set`: the number of classes in the prediction set. An empty set says that no class fits, and counts as larger than
every other: `set > 1` is true for it, and `set == 0` for it alone.
`top 5%`: the 5 % least sure of traffic, by confidence unless another quantity is named.
`risk > 1%`: the rows that are not among those let through, of which at most 1 % are wrong, with the confidence that the
calibration states; `risk <= 1%`: the rows that are.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from onnxcam.errors import SettingError
from onnxcam.targets.condition_parser import parse
from onnxcam.targets.condition_tree import (
    CALIBRATED,
    LABEL,
    QUANTITIES,
    RANKED,
    RISK,
    SET,
    TOP,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Not,
    Risk,
    Top,
)
from onnxcam.targets.readout import Readout

__all__ = [
    "CALIBRATED",
    "LABEL",
    "OPERATORS",
    "QUANTITIES",
    "RANKED",
    "RISK",
    "SET",
    "TOP",
    "AllOf",
    "AnyOf",
    "Calibration",
    "Comparison",
    "Condition",
    "Not",
    "Risk",
    "Top",
    "bind",
    "compare",
    "evaluate",
    "form_of",
    "leaves",
    "names",
    "parse",
    "probabilities",
    "quantities",
    "risks",
    "tops",
]
_LARGE = 1e30  # a score
OPERATORS: dict[str, Callable[[np.ndarray, float], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


class Calibration(Protocol):
    """What conditions ask of a file's calibration."""

    def probabilities(self, scores: np.ndarray, readout: Readout) -> np.ndarray:
        """Calibrated probabilities `[N, classes]`."""

    def sets(self, scores: np.ndarray, readout: Readout) -> np.ndarray:
        """The classes in each row's prediction set, bool `[N, classes]`."""

    def least_sure(self, share: float, by: str) -> float:
        """The threshold beyond which the least sure share of traffic lies.

        Raises:
            SettingError: the calibration does not tell.
        """

    def let_through(self, most: float) -> tuple[str, float]:
        """The quantity and its threshold at or above which at most a share `most` of the rows are wrong.

        Raises:
            SettingError: the calibration guarantees none, or another one.
        """


def names(condition: Condition) -> set[str]:
    """The quantities in a condition."""
    match condition:
        case Comparison():
            return {condition.quantity}
        case Top():
            return {condition.by}
        case Risk():
            return {"confidence"}
    parts = (condition.condition,) if isinstance(condition, Not) else condition.conditions
    return set().union(*(names(part) for part in parts))


def leaves(condition: Condition) -> set[Comparison | Top | Risk]:
    """The parts of a condition that have no parts."""
    match condition:
        case Not(inner):
            return leaves(inner)
        case AllOf(parts) | AnyOf(parts):
            return set().union(*map(leaves, parts))
    return {condition}


def tops(condition: Condition) -> set[Top]:
    """The `top` parts of a condition that is not bound."""
    return {leaf for leaf in leaves(condition) if isinstance(leaf, Top)}


def risks(condition: Condition) -> set[Risk]:
    """The `risk` parts of a condition that is not bound."""
    return {leaf for leaf in leaves(condition) if isinstance(leaf, Risk)}


def bind(condition: Condition, calibration: Calibration | None, *, online: bool = False) -> Condition:
    """Replace `top` and `risk` by comparisons with the thresholds that a file's calibration stores.

    Arguments:
        calibration: None of a file that has none.
        online: leave `top` as it is, for a caller that ranks recent traffic itself.

    Raises:
        SettingError: the condition asks what the file cannot answer.
    """
    match condition:
        case Comparison(quantity) if quantity in (CALIBRATED, SET):
            _require(calibration, quantity)
            return condition
        case Top(share, by):
            if by == CALIBRATED:
                _require(calibration, CALIBRATED)
            if online:
                return condition
            threshold = _require(calibration, TOP).least_sure(share, by)
            return Comparison(by, ">" if by == "entropy" else "<", threshold)
        case Risk(most, beyond):
            quantity, threshold = _require(calibration, RISK).let_through(most)
            return Comparison(quantity, "<" if beyond else ">=", threshold)
        case Not(inner):
            return Not(bind(inner, calibration, online=online))
        case AllOf(parts):
            return AllOf(tuple(bind(part, calibration, online=online) for part in parts))
        case AnyOf(parts):
            return AnyOf(tuple(bind(part, calibration, online=online) for part in parts))
    return condition


_MEANINGS = {
    CALIBRATED: "`calibrated` is the largest calibrated probability",
    SET: "`set` is the size of the prediction set",
    TOP: "`top` is a share of traffic, whose threshold comes from the calibration",
    RISK: "`risk` is a bound on the share of wrong predictions, which a calibration certifies",
}


def _require(calibration: Calibration | None, quantity: str) -> Calibration:
    if calibration is None:
        more = " --max-risk 1%" if quantity == RISK else ""
        raise SettingError(
            f"{_MEANINGS[quantity]}, and this file has no calibration; make one from labelled pictures: "
            f"`onnxcam calibrate MODEL PICTURES --truth by-folder{more} -o OUT.onnx`"
        )
    return calibration


def compare(quantity: str, sign: str, values: np.ndarray, value: float) -> np.ndarray:
    """Where `quantity operator value` holds, bool; an empty set is in order beyond all others."""
    if quantity == SET and sign not in ("==", "!="):
        values = np.where(values == 0, np.inf, values)
    return np.asarray(OPERATORS[sign](values, value))


def evaluate(condition: Condition, quantities: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where the condition holds, bool `[N]`, from its quantities `[N]` (`label` as indices).

    A `top` that is not bound is looked up by its `key`, bool `[N]`.
    """
    match condition:
        case Comparison(quantity, sign, value):
            return compare(quantity, sign, quantities[quantity], float(value))
        case Top():
            return np.asarray(quantities[condition.key], bool)
        case Risk():
            raise SettingError("the condition has a `risk` that no calibration has answered; report this as a bug")
        case Not(inner):
            return np.asarray(np.logical_not(evaluate(inner, quantities)))
        case AllOf(parts):  # pair by pair: an array of all parts would be made first, next to a small model that counts
            return np.asarray(functools.reduce(np.logical_and, [evaluate(part, quantities) for part in parts]))
        case AnyOf(parts):
            return np.asarray(functools.reduce(np.logical_or, [evaluate(part, quantities) for part in parts]))


def quantities(
    probabilities: np.ndarray,
    readout: Readout,
    names: Sequence[str] | set[str] = QUANTITIES,
    calibration: Calibration | None = None,
    scores: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The quantities of a condition, from probabilities `[N, classes]`.

    `confidence`: the largest probability. `margin`: its lead over the second. `label`: its index, the lowest on ties.
    `entropy`: -sum p log p / log classes, 0 (certain) to 1 (uniform); of a `multilabel` model the mean over its classes
    of each one's binary entropy, in bits. `calibrated`: the largest calibrated probability. `set`: the number of
    classes in the prediction set, 0 for an empty one. A row whose probabilities are not finite is as uncertain as
    possible: confidence 0, margin 0, entropy 1, calibrated 0, an empty set.

    Arguments:
        names: which of them to compute.
        calibration: of the file, for `calibrated` and `set`.
        scores: `[N, columns]` as the calibration reads them; log p where only probabilities are at hand.

    Returns:
        float64 `[N]` each, `label` and `set` int64.
    """
    p = np.asarray(probabilities, np.float64)
    highest = np.maximum.reduce(p, axis=1)
    finite = np.isfinite(highest) & np.isfinite(np.minimum.reduce(p, axis=1))
    sound = bool(finite.all())
    if not sound:
        p = np.where(finite[:, None], p, 0.0)
        highest = np.maximum.reduce(p, axis=1)
    values: dict[str, np.ndarray] = {}
    if "confidence" in names:
        values["confidence"] = highest
    if LABEL in names:
        values[LABEL] = p.argmax(axis=1)
    if "margin" in names:
        best = np.partition(p, -2, axis=1)[:, -2:] if p.shape[1] > 1 else np.concatenate([0 * p, p], axis=1)
        values["margin"] = best[:, 1] - best[:, 0]
    if "entropy" in names:
        entropy = readout.entropy(p)
        values["entropy"] = entropy if sound else np.where(finite, entropy, 1.0)
    if calibration is not None and (CALIBRATED in names or SET in names):
        if scores is None:
            scores = readout.scores_of(p)
        if not sound:
            scores = np.where(finite[:, None], scores, 0.0)
        if readout.signed:  # an infinite one is a probability of 1
            scores = np.clip(scores, -_LARGE, _LARGE)
        if CALIBRATED in names:
            best_calibrated = np.asarray(calibration.probabilities(scores, readout), np.float64).max(axis=1)
            values[CALIBRATED] = best_calibrated if sound else np.where(finite, best_calibrated, 0.0)
        if SET in names:
            size = np.asarray(calibration.sets(scores, readout)).sum(axis=1, dtype=np.int64)
            values[SET] = size if sound else np.where(finite, size, 0)
    return values


def probabilities(outputs: np.ndarray, readout: Readout, form: str = "auto") -> np.ndarray:
    """Probabilities `[N, classes]`, float64, from logits or probabilities `[N, columns]`, whichever a model emits.

    Arguments:
        form: as of `form_of`.
    """
    values = np.asarray(outputs, np.float64)
    if form_of(values, readout, form) == "logits":
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(readout.probabilities(values), np.float64)
    return readout.complete(values)


def form_of(outputs: np.ndarray, readout: Readout, form: str = "auto") -> str:
    """Whether outputs `[N, columns]` are `logits` or `probabilities`.

    Arguments:
        form: either of them, or `auto`: probabilities where every value lies in 0..1 and (but for sigmoids) every row
            sums to 1 within 1e-2, else logits.
    """
    if form != "auto":
        return form
    return "probabilities" if readout.are_probabilities(np.asarray(outputs, np.float64)) else "logits"
