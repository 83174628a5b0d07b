"""Questions from the command line: names of methods, flags in messages, and what is a usage error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxcam.cam.methods import Method, find, methods
from onnxcam.errors import InputError
from onnxcam.explain.question import Question, Terms
from onnxcam.targets import labels

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class MethodName(click.ParamType):
    """A method by its name, looked up here once; an unknown one is refused with the nearest names."""

    name = "method"

    def convert(self, value: str | Method, param: click.Parameter | None, ctx: click.Context | None) -> Method:
        """The method.

        Raises:
            MethodError: no such method.
        """
        return find(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Every method whose name begins with what was typed."""
        from click.shell_completion import CompletionItem  # for completion only

        return [CompletionItem(name) for name in methods() if name.startswith(incomplete)]


def flag(name: str, *value: Any) -> str:
    """A parameter as it is typed: `--side-by-side`, `--top 9`, `--contrast 'hen'`."""
    # every command's --output is a file or a folder
    text = f"--{'value' if name == 'output' else name.replace('_', '-')}"
    return f"{text} {value[0]!r}" if value else text


def check_early(labels_file: str | None = None, **values: Any) -> None:
    """Refuse flags that no model can be asked, before one is opened; arguments as of `ask`.

    Raises:
        UsageError: they cannot be used.
        TargetError, MethodError, LabelsError: as their names say.
    """
    if isinstance(values.get("like"), str):  # files, which are read once the model is open
        files = [name for name in ("like", "contrast") if values.get(name) is not None]
        values = values | {name: [1.0] for name in files}
    try:
        Question.check_values(values, None if labels_file is None else labels.read(labels_file), flag)
    except InputError as error:
        raise click.UsageError(f"{error}.") from None


def ask(terms: Terms, **values: Any) -> Question:
    """The question that the values of these flags ask.

    Raises:
        UsageError: they cannot be used.
        TargetError, MethodError: as their names say.
    """
    try:
        return Question.parse(values, terms, spell=flag)
    except InputError as error:
        raise click.UsageError(f"{error}.") from None
