"""Options that several commands share, and JSON on standard output."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from onnxcam.errors import LayerError, ModelError

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
seed_option: Callable[[F], F] = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=1234, show_default=True, help="Seed of the random numbers."
)


def not_explainable(error: LayerError, layers: Sequence[object]) -> ModelError:
    """A layer error is the user's only if layers were named; otherwise the model has none."""
    return error if layers else ModelError(str(error))


def print_json(value: Any) -> None:
    """Print one JSON document; numbers that are not finite become null, as JSON has no NaN."""
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    click.echo(json.dumps(finite(value), ensure_ascii=not unicode, indent=2))


def finite(value: Any) -> Any:
    """The value with numbers that are not finite replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
