"""What the command line asks: methods with their options, and the target they explain."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from onnxcam.cam.methods import Method, find, methods
from onnxcam.cli import options
from onnxcam.errors import TargetError
from onnxcam.targets import classes as targets
from onnxcam.targets.objectives import Contrast, Probability

RUNNER_UP = "runner-up"
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class MethodName(click.ParamType):
    """A method by name; what is none is refused with the nearest names."""

    name = "method"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself.

        Raises:
            MethodError: no such method.
        """
        return find(value).name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Every method that begins so."""
        return [CompletionItem(name) for name in methods() if name.startswith(incomplete)]


def parse_options(texts: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE texts as the options of methods, each value of its default's type.

    Raises:
        UsageError: no such option, with those there are; or a value of another type.
    """
    asked = [find(name) for name in names]
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        having = [method for method in asked if key in method.options]
        if not equals or not key:
            raise click.UsageError(f"--option {text!r}: expected KEY=VALUE; {_known(asked)}.")
        if not having:
            raise click.UsageError(f"--option {text!r}: there is no option {key!r} here; {_known(asked)}.")
        for method in having:
            try:
                found[key] = _typed(value.strip(), method.options[key])
            except ValueError as error:
                raise click.UsageError(
                    f"--option {text!r}: expected {error}; {method.name}'s own is {key}={shown(method.options[key])}."
                ) from None
    return found


def parse_target(
    target: str | None, contrast: str | None, probability: bool, labels: Sequence[str] | None, classes: int
) -> tuple[Any, int]:
    """The target that the options mean, and the class they name, -1 for each picture's own first choice.

    Raises:
        TargetError: no such class, or a class to be contrasted with itself.
    """
    index = _index(target, labels, classes)
    named = None if index < 0 else index
    if contrast is not None:
        other = -1 if contrast.strip().casefold() == RUNNER_UP else _index(contrast, labels, classes)
        if other >= 0 and other == index:
            raise TargetError(f"--contrast {contrast!r} is the target itself; name the class it is to be compared with")
        return Contrast(named, None if other < 0 else other), index
    return (Probability(named) if probability else named), index


def record(target: Any) -> Any:
    """A target as `analysis_summary.json` has it."""
    if isinstance(target, Contrast):
        return {"kind": "contrast", "target": target.target, "other": target.other}
    return {"kind": "probability", "target": target.target} if isinstance(target, Probability) else target


def shown(default: Any) -> str:
    """An option's default as it is typed on the command line."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, (tuple, list)):
        return ",".join(shown(item) for item in default)
    return "none" if default is None else str(default)


def _index(text: str | None, labels: Sequence[str] | None, classes: int) -> int:
    return int(targets.resolve(options.parse_class(text, labels), 1, classes, labels)[0])


def _known(asked: Sequence[Method]) -> str:
    told = [
        f"{method.name} has {', '.join(f'{key}={shown(value)}' for key, value in method.options.items()) or 'none'}"
        for method in asked
    ]
    return "; ".join(told)


def _typed(text: str, default: Any) -> Any:
    """A value of the default's type; a ValueError says what was expected."""
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
        return type(default)(_typed(part.strip(), default[0] if default else None) for part in parts)
    if default is None:
        if text.casefold() == "none":
            return None
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    return text


def _number(kind: type, text: str, expected: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(expected) from None
