"""Options that several commands share, and JSON on standard output."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from onnxcam.cli import terminal
from onnxcam.documents import finite
from onnxcam.errors import LayerError, ModelError
from onnxcam.targets.readout import KINDS
from onnxcam.targets.tasks import TASKS

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def layer_option(help_text: str) -> Callable[[F], F]:
    """`--layer NAME`, repeatable."""
    return click.option("--layer", "--last-conv", "layers", multiple=True, metavar="NAME", help=help_text)


labels_option: Callable[[F], F] = click.option(
    "--labels",
    metavar="FILE",
    help="Class names: one per line, '0 Cat' or 'Cat 0' lines, JSON (a list, {index: name}, {name: index}, objects "
    "with id and name), CSV with a header, or a data.yaml.",
)
preprocess_option: Callable[[F], F] = click.option(
    "--preprocess",
    metavar="SPEC",
    help="How pictures become tensors: imagenet, caffe, torch, tf or -1..1, 0..1, raw, timm:FILE, hf:FILE or a JSON "
    "file; hf:FOLDER takes the class names in it too.",
)
range_option: Callable[[F], F] = click.option(
    "--range",
    "value_range",
    metavar="LO,HI",
    callback=lambda ctx, param, value: _numbers(value, "--range", 2),
    help="Values of black and of white, of pictures of more than 8 bits and of arrays: 0,4095 or 0,1.  [default: the "
    "whole range of 8 and 16 bits; others have to be stated]",
)
bands_option: Callable[[F], F] = click.option(
    "--bands",
    metavar="R,G,B",
    callback=lambda ctx, param, value: _numbers(value, "--bands", 1, 3, kind=int),
    help="Bands that are shown of pictures of many, counted from 0: 3,2,1, or one.  [default: 0,1,2]",
)
input_size_option: Callable[[F], F] = click.option(
    "--input-size",
    metavar="SIZE",
    callback=lambda ctx, param, value: parse_size(value, 2),
    help="Size of the picture, where MODEL leaves it open: 224 or 240x320 (height x width).",
)
scores_option: Callable[[F], F] = click.option(
    "--scores", metavar="NAME", help="Output with the class scores, where the model has several candidates."
)
kind_option: Callable[[F], F] = click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="What the scores are, where the file does not tell: multilabel (a sigmoid outside the file), regression (one "
    "number that is a quantity), ...",
)


task_option: Callable[[F], F] = click.option(
    "--task",
    type=click.Choice(TASKS),
    help="What a MODEL does that is no classifier: detect, segment, embed, or regress (several values).  [default: "
    "measured]",
)
boxes_output_option: Callable[[F], F] = click.option(
    "--boxes-output", metavar="NAME", help="Output with a detector's boxes, where several could hold them."
)


def readout_options(command: F) -> F:
    """`--scores` and `--kind`."""
    return scores_option(kind_option(command))


def task_options(command: F) -> F:
    """`--task` and `--boxes-output`."""
    return task_option(boxes_output_option(command))


provider_option: Callable[[F], F] = click.option(
    "--provider",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Execution provider: auto, cpu, cuda, cuda:1, tensorrt, openvino, ... A named one must really be in use.",
)
fallback_option: Callable[[F], F] = click.option(
    "--allow-fallback", is_flag=True, help="Go on when the provider named is not in use."
)
json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)
rows_option: Callable[[F], F] = click.option(
    "--rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows in each run of methods that run the model many times.  [default: chosen by timing the first runs]",
)
seed_option: Callable[[F], F] = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=1234, show_default=True, help="Seed of the random numbers."
)


def _numbers(text: str | None, flag: str, *counts: int, kind: Callable[[str], float] = float) -> list[Any] | None:
    """Numbers separated by commas.

    Raises:
        UsageError: something else, or another count of them.
    """
    if text is None:
        return None
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(math.isfinite(n) for n in numbers) or (kind is int and min(numbers) < 0):
        what = "whole numbers from 0" if kind is int else "numbers"
        raise click.UsageError(
            f"{flag} {text!r}: expected {' or '.join(map(str, counts))} {what}, separated by commas."
        )
    if flag == "--range" and numbers[0] == numbers[1]:
        raise click.UsageError(f"--range {text!r}: black and white are the same value.")
    return numbers


def parse_size(text: str | None, most: int = 3) -> list[int] | None:
    """(h, w), or with `most` 3 also (c, h, w), from 224, 240x320 or 3,240,320; a batch dimension in front is dropped.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    parts = re.split(r"[x×,]", text.strip().strip("[]()"))
    numbers = [int(part) for part in parts if re.fullmatch(r"\s*[0-9]{1,6}\s*", part)]
    sizes = numbers * 2 if len(numbers) == 1 else numbers[-3:] if most == 3 else numbers
    if not len(parts) == len(numbers) <= most + 1 or not 2 <= len(sizes) <= most or min(numbers) < 1:
        forms = "224, 240x320 (height x width) or 3x240x320" if most == 3 else "224 or 240x320 (height x width)"
        raise click.UsageError(f"--input-size {text!r}: expected {forms}.")
    return sizes


def not_explainable(error: LayerError, layers: Sequence[object]) -> ModelError:
    """A layer error is the user's only if layers were named; otherwise the model has none."""
    return error if layers else ModelError(str(error))


def print_json(value: Any, err: bool = False) -> None:
    """Print one JSON document; numbers that are not finite become null, as JSON has no NaN."""
    unicode = (getattr(sys.stderr if err else sys.stdout, "encoding", None) or "").lower().startswith("utf")
    terminal.echo_lines(json.dumps(finite(value), ensure_ascii=not unicode, indent=2).split("\n"), err=err)
