"""Options that the commands of `onnxcam inside` share, and the explainer that they describe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxcam import image
from onnxcam.cli import options, terminal
from onnxcam.cli.opening import open_explainer
from onnxcam.documents import render
from onnxcam.errors import OutputError
from onnxcam.explain.explainer import Explainer

F = Callable[..., Any]
_READOUT = ("scores", "kind", "task", "boxes_output")
_MODEL = ("labels", "preprocess", "input_size", "value_range", "bands", *_READOUT, "provider", "allow_fallback")


def model_options(command: F) -> F:
    """The options of a model and its pictures, passed on together as `opening`."""

    @functools.wraps(command)
    def collected(**values: Any) -> Any:
        opening = {name: values.pop(name) for name in _MODEL}
        return command(opening=opening, **values)

    collected.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    for option in reversed(
        [
            options.labels_option,
            options.preprocess_option,
            options.input_size_option,
            options.range_option,
            options.bands_option,
            options.readout_options,
            options.task_options,
            options.provider_option,
            options.fallback_option,
        ]
    ):
        collected = option(collected)
    return collected


def opened(model: str, opening: dict[str, Any], sources: Sequence[Any] = (), many: bool = False) -> Explainer:
    """The explainer of a model on the terms of `model_options`, its warnings printed.

    Raises:
        PreprocessError: neither the model nor the caller says how pictures become tensors.
        ModelError, LabelsError, RuntimeUnavailable: as their names say.
    """
    explainer = open_explainer(
        model,
        (),
        opening["labels"],
        opening["preprocess"],
        provider=opening["provider"],
        allow_fallback=opening["allow_fallback"],
        many=many,
        input_size=opening["input_size"],
        value_range=opening["value_range"],
        bands=opening["bands"],
        sources=sources,
        **readout(opening),
    )
    for warning in explainer.warnings:
        terminal.echo(f"Warning: {warning}", err=True)
    return explainer


def readout(opening: dict[str, Any]) -> dict[str, Any]:
    """What the user says of the model's output: `scores`, `kind`, `task` and `boxes_output`."""
    return {name: opening[name] for name in _READOUT}


def folder_of(output: str) -> Path:
    """The output folder, made before any work is done.

    Raises:
        OutputError: it cannot be made or written to.
    """
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {output!r} cannot be made ({error.strerror}); choose another with -o") from error
    image.write_bytes(folder / ".writable", b"")
    (folder / ".writable").unlink(missing_ok=True)
    return folder


def write_json(path: Path, record: Any) -> None:
    """Write a document atomically; numbers that are not finite become null."""
    image.write_bytes(path, render(record))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
