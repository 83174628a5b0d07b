"""Conditions on predictions: the grammar of `when=`, and its four quantities.

    condition  = clause { "or" clause }
    clause     = factor { "and" factor }
    factor     = "not" factor | "(" condition ")" | comparison
    comparison = quantity operator value | value operator quantity
    quantity   = "confidence" | "margin" | "entropy" | "label"
    operator   = "<" | "<=" | ">" | ">=" | "==" | "!="
    value      = number | quoted text

A label is compared by `==` and `!=` only, with its name in quotes or its index. Text becomes a small tree, never code:
whether it is evaluated over arrays here or emitted as nodes of a graph, it consists of `Comparison`, `Not`, `AllOf` and
`AnyOf`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from onnxcam.errors import SettingError, listing
from onnxcam.targets.classes import find_label
from onnxcam.targets.readout import Readout

LABEL = "label"
QUANTITIES = ("confidence", "margin", "entropy", LABEL)
OPERATORS: dict[str, Callable[[np.ndarray, float], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_WORDS = {"and", "or", "not", *QUANTITIES}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|(?P<word>[^\W\d]\w*)"
    r"|\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|(?P<sign><=|>=|==|!=|<|>|\(|\)))"
)
_LONGEST, _DEEPEST = 10_000, 100
_EXAMPLE = "for example: confidence < 0.6 or margin < 0.1 and not label == 'tabby'"


@dataclass(frozen=True)
class Comparison:
    """`quantity operator value`; a label's value is its index once `parse` knows the model."""

    quantity: str
    operator: str
    value: float | str


@dataclass(frozen=True)
class Not:
    """True where the condition is not."""

    condition: Condition


@dataclass(frozen=True)
class AllOf:
    """True where every condition is."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """True where at least one condition is."""

    conditions: tuple[Condition, ...]


Condition = Comparison | Not | AllOf | AnyOf


def parse(text: str, labels: Sequence[str] | None = None, classes: int | None = None) -> Condition:
    """The tree of a condition.

    Arguments:
        text: as the grammar above says; words in any case.
        labels: class names, by index, for conditions on `label`.
        classes: how many classes the model has, if indices are to be checked.

    Raises:
        SettingError: it cannot be read, a number is out of a quantity's range, or a label is neither an index nor a
            name.
        TargetError: no label has that name, or several have.
    """
    if not isinstance(text, str):
        raise SettingError(f"when={text!r} is a {type(text).__name__}; expected text, {_EXAMPLE}")
    if len(text) > _LONGEST:
        raise SettingError(f"the condition has {len(text)} characters; at most {_LONGEST} are read")
    reader = _Reader(text, labels, classes)
    condition = reader.condition(0)
    reader.end()
    return condition


def names(condition: Condition) -> set[str]:
    """The quantities in a condition."""
    if isinstance(condition, Comparison):
        return {condition.quantity}
    parts = (condition.condition,) if isinstance(condition, Not) else condition.conditions
    return set().union(*(names(part) for part in parts))


def evaluate(condition: Condition, quantities: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where the condition holds, bool `[N]`, from its quantities `[N]` (`label` as indices)."""
    match condition:
        case Comparison(quantity, sign, value):
            return np.asarray(OPERATORS[sign](quantities[quantity], float(value)))
        case Not(inner):
            return np.asarray(np.logical_not(evaluate(inner, quantities)))
        case AllOf(parts):
            return np.asarray(np.logical_and.reduce([evaluate(part, quantities) for part in parts]))
        case AnyOf(parts):
            return np.asarray(np.logical_or.reduce([evaluate(part, quantities) for part in parts]))


def quantities(
    probabilities: np.ndarray, readout: Readout, names: Sequence[str] | set[str] = QUANTITIES
) -> dict[str, np.ndarray]:
    """The quantities of a condition, from probabilities `[N, classes]`.

    `confidence`: the largest probability. `margin`: its lead over the second. `label`: its index, the lowest on ties.
    `entropy`: -sum p log p / log classes, 0 (certain) to 1 (uniform); of a `multilabel` model the mean over its classes
    of each one's binary entropy, in bits. A row whose probabilities are not finite is as uncertain as possible:
    confidence 0, margin 0, entropy 1.

    Arguments:
        names: which of them to compute.

    Returns:
        float64 `[N]` each, `label` int64.
    """
    p = np.asarray(probabilities, np.float64)
    finite = np.asarray(np.isfinite(p).all(axis=1))
    sound = bool(finite.all())
    p = p if sound else np.where(finite[:, None], p, 0.0)
    values: dict[str, np.ndarray] = {}
    if "confidence" in names:
        values["confidence"] = p.max(axis=1)
    if LABEL in names:
        values[LABEL] = p.argmax(axis=1)
    if "margin" in names:
        best = np.partition(p, -2, axis=1)[:, -2:] if p.shape[1] > 1 else np.concatenate([0 * p, p], axis=1)
        values["margin"] = best[:, 1] - best[:, 0]
    if "entropy" in names:
        entropy = readout.entropy(p)
        values["entropy"] = entropy if sound else np.where(finite, entropy, 1.0)
    return values


def probabilities(outputs: np.ndarray, readout: Readout, form: str = "auto") -> np.ndarray:
    """Probabilities `[N, classes]`, float64, from logits or probabilities `[N, columns]`, whichever a model emits.

    Arguments:
        form: `logits`, `probabilities`, or `auto`: probabilities where every value lies in 0..1 and (but for sigmoids)
            every row sums to 1 within 1e-2, else logits.
    """
    values = np.asarray(outputs, np.float64)
    if form == "auto":
        form = "probabilities" if readout.are_probabilities(values) else "logits"
    if form == "logits":
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(readout.probabilities(values), np.float64)
    return readout.complete(values)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Reader:
    """Recursive descent over the tokens of one condition."""

    def __init__(self, text: str, labels: Sequence[str] | None, classes: int | None) -> None:
        self._text = text
        self._labels = labels
        self._classes = classes
        self._tokens = list(self._split())
        self._next = 0

    def condition(self, depth: int) -> Condition:
        parts = [self._clause(depth)]
        while self._take("word", "or"):
            parts.append(self._clause(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def end(self) -> None:
        token = self._peek()
        if token.kind == "sign" and token.text in OPERATORS:
            raise self._error(token, "one comparison at a time: write `0.2 < confidence and confidence < 0.6`")
        if token.kind != "end":
            raise self._error(token, "expected `and`, `or` or the end")

    def _clause(self, depth: int) -> Condition:
        parts = [self._factor(depth)]
        while self._take("word", "and"):
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _factor(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            raise SettingError(f"the condition is nested more than {_DEEPEST} deep; write it flatter")
        if self._take("word", "not"):
            return Not(self._factor(depth + 1))
        if self._take("sign", "("):
            inner = self.condition(depth + 1)
            if not self._take("sign", ")"):
                raise self._error(self._peek(), "expected `)`")
            return inner
        return self._comparison()

    def _comparison(self) -> Comparison:
        left, sign, right = self._operand(), self._pop(), self._pop
        if sign.kind != "sign" or sign.text not in OPERATORS:
            raise self._error(sign, f"expected one of {' '.join(OPERATORS)}")
        right_token = right()
        if left.kind == "word" and right_token.kind in ("number", "text"):
            return self._compare(left, sign, sign.text, right_token)
        if left.kind in ("number", "text") and right_token.kind == "word" and right_token.text in QUANTITIES:
            return self._compare(right_token, sign, _MIRRORED[sign.text], left)
        raise self._error(right_token, "a quantity is compared with a number, a label with a quoted name or an index")

    def _operand(self) -> _Token:
        token = self._pop()
        if token.kind in ("number", "text") or (token.kind == "word" and token.text in QUANTITIES):
            return token
        raise self._error(token, f"expected one of {', '.join(QUANTITIES)}, `not` or `(`")

    def _compare(self, quantity: _Token, sign: _Token, symbol: str, value: _Token) -> Comparison:
        if quantity.text != LABEL:
            if value.kind != "number" or not 0 <= float(value.text) <= 1:
                raise self._error(value, f"{quantity.text} is a number from 0 to 1")
            return Comparison(quantity.text, symbol, float(value.text))
        if symbol not in ("==", "!="):
            raise self._error(sign, "labels are compared by == or !=")
        if value.kind == "text":
            if self._labels is None and self._classes is None:
                return Comparison(LABEL, symbol, value.text)
            return Comparison(LABEL, symbol, find_label(value.text, self._labels))
        index = float(value.text)
        if index < 0 or index != int(index) or (self._classes is not None and index >= self._classes):
            last = "" if self._classes is None else f" from 0 to {self._classes - 1}"
            raise self._error(value, f"a label is a quoted name or an index{last}")
        return Comparison(LABEL, symbol, int(index))

    def _split(self) -> Iterator[_Token]:
        at = 0
        while self._text[at:].strip():
            match = _TOKEN.match(self._text, at)
            if match is None:
                start = at + len(self._text[at:]) - len(self._text[at:].lstrip())
                raise self._error(_Token("odd", self._text[start : start + 12], start), "not part of a condition")
            kind = str(match.lastgroup)
            text = match.group(kind)
            start = match.start(kind)
            if kind == "word":
                text = text.lower()
                if text not in _WORDS:
                    raise self._error(_Token(kind, text, start), f"expected one of {listing(QUANTITIES)}")
            yield _Token("text" if kind in ("double", "single") else kind, text, start)
            at = match.end()
        yield _Token("end", "the end", len(self._text))

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _pop(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _take(self, kind: str, text: str) -> bool:
        token = self._peek()
        if token.kind == kind and token.text == text:
            self._next += 1
            return True
        return False

    def _error(self, token: _Token, hint: str) -> SettingError:
        what = token.text if token.kind == "end" else repr(token.text)
        return SettingError(f"condition {self._text!r}: got {what} at position {token.at + 1}; {hint} ({_EXAMPLE})")
