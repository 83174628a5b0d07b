"""Reads the text of a condition: the grammar that `onnxcam.targets.conditions` describes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from onnxcam.errors import SettingError, listing
from onnxcam.targets.classes import find_label
from onnxcam.targets.condition_tree import (
    COMPARED,
    LABEL,
    OPERATORS,
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

_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_WORDS = {"and", "or", "not", "by", TOP, *COMPARED}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:\s*%)?)(?![\w.])|(?P<word>[^\W\d]\w*)"
    r"|\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|(?P<sign><=|>=|==|!=|<|>|\(|\)))"
)
_LONGEST, _DEEPEST = 10_000, 100
_EXAMPLE = "for example: confidence < 0.6 or margin < 0.1 and not label == 'tabby'"


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


def _number(text: str) -> float:
    """The number of a token, which may be in percent."""
    return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)


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
        if self._take("word", TOP):
            return self._top()
        return self._comparison()

    def _top(self) -> Top:
        token = self._pop()
        share = _number(token.text) if token.kind == "number" and token.text.endswith("%") else 0.0
        if not 0 < share < 1:
            raise self._error(token, "expected a share of traffic above 0 % and below 100 %, as in `top 5%`")
        by = RANKED[0]
        if self._take("word", "by"):
            name = self._pop()
            if name.kind != "word" or name.text not in RANKED:
                raise self._error(name, f"`top` ranks by one of {', '.join(RANKED)}")
            by = name.text
        return Top(share, by)

    def _comparison(self) -> Comparison | Risk:
        left, sign, right = self._operand(), self._pop(), self._pop
        if sign.kind != "sign" or sign.text not in OPERATORS:
            raise self._error(sign, f"expected one of {' '.join(OPERATORS)}")
        right_token = right()
        if left.kind == "word" and right_token.kind in ("number", "text"):
            return self._compare(left, sign, sign.text, right_token)
        if left.kind in ("number", "text") and right_token.kind == "word" and right_token.text in COMPARED:
            return self._compare(right_token, sign, _MIRRORED[sign.text], left)
        raise self._error(right_token, "a quantity is compared with a number, a label with a quoted name or an index")

    def _operand(self) -> _Token:
        token = self._pop()
        if token.kind in ("number", "text") or (token.kind == "word" and token.text in COMPARED):
            return token
        raise self._error(token, f"expected one of {', '.join(COMPARED)}, `{TOP}`, `not` or `(`")

    def _compare(self, quantity: _Token, sign: _Token, symbol: str, value: _Token) -> Comparison | Risk:
        if quantity.text == SET:
            return self._compare_set(symbol, value)
        if quantity.text == RISK:
            return self._compare_risk(sign, symbol, value)
        if quantity.text != LABEL:
            if value.kind != "number" or not 0 <= _number(value.text) <= 1:
                raise self._error(value, f"{quantity.text} is a number from 0 to 1")
            return Comparison(quantity.text, symbol, _number(value.text))
        if symbol not in ("==", "!="):
            raise self._error(sign, "labels are compared by == or !=")
        if value.kind == "text":
            if self._labels is None and self._classes is None:
                return Comparison(LABEL, symbol, value.text)
            return Comparison(LABEL, symbol, find_label(value.text, self._labels))
        index = _number(value.text)
        if (
            index < 0
            or "%" in value.text
            or index != int(index)
            or (self._classes is not None and index >= self._classes)
        ):
            last = "" if self._classes is None else f" from 0 to {self._classes - 1}"
            raise self._error(value, f"a label is a quoted name or an index{last}")
        return Comparison(LABEL, symbol, int(index))

    def _compare_set(self, symbol: str, value: _Token) -> Comparison:
        size = _number(value.text) if value.kind == "number" and "%" not in value.text else -1.0
        most = self._classes if self._classes is not None else np.inf
        if not 0 <= size <= most or size != int(size):
            last = "0" if self._classes is None else f"0 to {self._classes}"
            raise self._error(value, f"set is a number of classes, a whole number from {last}")
        if symbol in ("<", "<=", ">", ">=") and size < (1 if symbol in ("<=", ">") else 2):
            raise self._error(
                value,
                "every set counts as larger, as an empty one says that no class fits and is beyond all others; "
                "`set == 0` finds the empty sets, `set > 1` all that leave a doubt",
            )
        return Comparison(SET, symbol, int(size))

    def _compare_risk(self, sign: _Token, symbol: str, value: _Token) -> Risk:
        if value.kind != "number" or not 0 < _number(value.text) < 1:
            raise self._error(value, "risk is a share of wrong predictions above 0 and below 1, as in `risk > 1%`")
        if symbol not in (">", "<="):
            raise self._error(sign, "a risk is bounded from above: write `risk > 1%`, or `risk <= 1%` for the others")
        return Risk(_number(value.text), symbol == ">")

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
                    raise self._error(_Token(kind, text, start), f"expected one of {listing((*COMPARED, TOP), 9)}")
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
