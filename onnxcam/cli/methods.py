"""`onnxcam methods`: list the methods of explaining."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from onnxcam.cam.methods import GRAPH, INPUT, Method, find, methods as names  # isort: skip
from onnxcam.cli import options, question, terminal
from onnxcam.explain.texts import spelled

_WHAT = {GRAPH: "layer, in a file too", INPUT: "input"}

EPILOG = """\
\b
Examples:
  onnxcam methods
  onnxcam methods scorecam
  onnxcam methods --json | jq -r '.methods[] | select(.kind == "graph") | .name'
"""


@click.command("methods", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("named", nargs=-1, metavar="[NAME...]", type=question.MethodName())
@options.json_option
def methods(named: tuple[str, ...], as_json: bool) -> None:
    """List the methods of explaining.

    For each method (or those named): its name for --method, where its map is made (at a layer or at the input; some
    layer methods can be stored in a file), what it costs beyond the prediction, its options with their defaults for
    --option, and its formula and paper.
    """
    entries = [describe(find(name)) for name in named or names()]
    if as_json:
        options.print_json({"methods": entries})
        return
    for method in entries:
        settings = "".join(f" {key}={spelled(value)}" for key, value in method["options"].items())
        terminal.echo(f"{method['name']}{settings}")
        terminal.echo(f"  {_WHAT.get(method['kind'], 'layer')}; {method['cost']}")
        terminal.echo_lines(textwrap.wrap(method["formula"], 96, initial_indent="  ", subsequent_indent="  "))


def describe(method: Method) -> dict[str, Any]:
    """Describe a method ready for JSON."""
    return {
        "name": method.name,
        "kind": method.kind,
        "cost": cost(method),
        "gradient": method.gradient,
        "long": method.long,
        "options": method.options,
        "formula": method.formula,
    }


def cost(method: Method) -> str:
    """Say what a method costs beyond the prediction."""
    if method.long:
        return "many runs of the whole model"
    if method.kind == INPUT:
        return "a backward pass through the whole model" if method.gradient else "runs of the whole model"
    if method.gradient:
        return "a backward pass from the scores to the layer"
    return "next to nothing" if method.kind == GRAPH else "runs from the layer to the scores at most"
