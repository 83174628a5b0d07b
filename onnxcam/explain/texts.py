"""Values as they are typed, on a command line or in a form: options of methods and truth values."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxcam.cam.methods import Method
from onnxcam.errors import InputError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

# how messages spell a parameter and its value, if one is given: `top=9`, `--top 9`
Spelling = Callable[..., str]


def keyword(name: str, *value: Any) -> str:
    """A parameter as Python spells it."""
    return f"{name}={value[0]!r}" if value else name


def parse_options(texts: Any, methods: Sequence[Method], spell: Spelling = keyword) -> dict[str, Any]:
    """KEY=VALUE texts, or a mapping, as the options of methods, each value of its default's type.

    Raises:
        InputError: no such option, with those there are; or a value of another type.
    """
    if isinstance(texts, Mapping):
        entries = [(f"{key}={value}", str(key), value) for key, value in texts.items()]
    else:
        listed = list(texts) if isinstance(texts, (list, tuple)) else [texts]
        if not all(isinstance(text, str) for text in listed):
            raise InputError(f"{spell('option', texts)}: expected KEY=VALUE, a list of these, or a mapping")
        split = [(text, *text.partition("=")) for text in listed]
        for text, key, equals, _ in split:
            if not equals or not key.strip():
                raise InputError(f"{spell('option', text)}: expected KEY=VALUE; {_available(methods)}")
        entries = [(text, key, value.strip()) for text, key, _, value in split]
    options: dict[str, Any] = {}
    for text, key, value in entries:
        name = key.strip().replace("-", "_")
        having = [method for method in methods if name in method.options]
        if not having:
            raise InputError(f"{spell('option', text)}: there is no option {name!r} here; {_available(methods)}")
        for method in having:
            default = method.options[name]
            try:
                options[name] = typed(value, default) if isinstance(value, str) else value
            except ValueError as error:
                raise InputError(
                    f"{spell('option', text)}: expected {error}; {method.name}'s own is {name}={spelled(default)}"
                ) from None
    return options


def typed(text: str, default: Any) -> Any:
    """A text as a value of the default's type.

    Raises:
        ValueError: it is not one; the message says what was expected.
    """
    if isinstance(default, bool):
        if text.casefold() not in (*_TRUE, *_FALSE):
            raise ValueError("yes or no")
        return text.casefold() in _TRUE
    if isinstance(default, int):
        return _number(int, text, "a whole number")
    if isinstance(default, float):
        return _number(float, text, "a number")
    if isinstance(default, (tuple, list)):
        parts = [part for part in text.strip("()[]").split(",") if part.strip()]
        return type(default)(typed(part.strip(), default[0] if default else None) for part in parts)
    if default is None:
        if text.casefold() == "none":
            return None
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    return text


def spelled(value: Any) -> str:
    """An option's value as it is typed on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ",".join(spelled(item) for item in value)
    return "none" if value is None else str(value)


def truth(value: Any, name: str) -> bool:
    """A truth value, or a text such as `yes`.

    Raises:
        InputError: neither.
    """
    if isinstance(value, bool):
        return value
    try:
        return bool(typed(str(value), False))
    except ValueError as error:
        raise InputError(f"{name}: got {value!r}, expected {error}") from None


def _number(kind: type, text: str, expected: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(expected) from None


def _available(methods: Sequence[Method]) -> str:
    """The options there are, method by method."""
    return "; ".join(
        f"{method.name} has {', '.join(f'{key}={spelled(value)}' for key, value in method.options.items()) or 'none'}"
        for method in methods
    )
