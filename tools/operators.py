"""The page docs/reference/operators.md, from the registry of gradient rules."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import onnx

import onnxcam.autodiff.rules
from onnxcam.autodiff import registry
from onnxcam.graph import quantized
from onnxcam.graph.inline import COMPOSITE
from onnxcam.graph.normalize import HIGHEST_OPSET, LOWEST_OPSET

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "operators.md"
TOP = f"""# Operators

Written by `make pages` from the gradient rules themselves; do not edit.

What stands between a target layer and the scores has to be differentiated; what stands before the layer may be anything
that the runtime runs. Models of opset {LOWEST_OPSET} to {HIGHEST_OPSET} are taken as they are, older ones are brought
to {LOWEST_OPSET} first. An operator that is not covered is refused before anything runs, by name, with the way from the
layer to the scores that needs it.

X, W, … are inputs, Y the output, dY the gradient of the score with respect to Y. The rules emit operators of this same
list, so the result is a plain ONNX file.

Each rule is compared with finite differences in float64 over its attributes, and so is every case that onnx tests its
operators with: of those 1,884, all that compute floating-point numbers from floating-point numbers agree (2,500 pairs
of an output and an input), or are on the list of what is left out, and why, in `tests/autodiff/test_backend_cases.py`.
"""
ZERO = """## Operators that pass nothing back

Their outputs are whole numbers, truth values, shapes or chance, or steps that are level almost everywhere: a gradient
ends there, and what comes by other ways is right.

"""
WRITTEN_OUT = """## Operators that are written out

The specification defines these by other operators, which take their place: {}.

Local functions of a model are written out too, and an `If` whose condition is known before the model runs as the branch
it takes.
"""
QUANTIZED = """## Quantized operators

`QuantizeLinear` and `DequantizeLinear`, also those of the `com.microsoft` domain, are differentiated straight through
the rounding; their scales are taken as given. Operators that compute on quantized numbers, standard and of that domain,
are written as the operator on real numbers between those two: {}.

Refused, for their scales are known only as they run, or their parts cannot be told apart: {}.
"""
REST = """## The rest

No gradient can reach these, for nothing in them, or nothing out of them, is a floating-point number: {}.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [TOP, "## Operators with a gradient\n"]
    for module in _modules():
        rows = list(_rows(module))
        if rows:
            head = [f"### {_title(module)}", "", "| operator | gradient | but not |", "|---|---|---|"]
            parts.append("\n".join([*head, *rows]) + "\n")
    parts.append(ZERO + _listed(registry.without_gradient()) + ".\n")
    parts.append(WRITTEN_OUT.format(_listed(COMPOSITE)))
    forms = quantized.FORMS.keys() - registry.registered()
    parts.append(QUANTIZED.format(_listed(forms), _listed(quantized.REFUSED)))
    reasons: dict[str, list[str]] = {}
    for name, why in registry.refused().items():
        reasons.setdefault(why, []).append(name)
    lines = [f"| {_listed(names)} | {why} |" for why, names in reasons.items()]
    parts.append("\n".join(["## Refused by name", "", "| operator | why |", "|---|---|", *lines]) + "\n")
    parts.append(REST.format(_listed(_rest())))
    return "\n".join(parts)


def _modules() -> Iterator[ModuleType]:
    for name in onnxcam.autodiff.rules.__all__:
        yield sys.modules[f"onnxcam.autodiff.rules.{name}"]


def _title(module: ModuleType) -> str:
    """What a module says of itself, in short."""
    first = re.split(r"\. | \(|\.$", (module.__doc__ or "").splitlines()[0])[0]
    title = re.sub(r"^VJP rules(:| of) ", "", first)
    return title[:1].upper() + title[1:]


def _rows(module: ModuleType) -> Iterator[str]:
    """One line per rule of a module, in the order of the file."""
    grouped: dict[registry.Rule, list[str]] = {}
    for name in sorted(registry.registered()):
        entry = registry.find(name, HIGHEST_OPSET)
        if entry is not None and entry.rule.__module__ == module.__name__:
            grouped.setdefault(entry.rule, []).append(name)
    for rule, names in sorted(grouped.items(), key=lambda pair: inspect.getsourcelines(pair[0])[1]):
        formula = " ".join((inspect.getdoc(rule) or "").split("\n\n")[0].split())
        cells = [_listed(names) + _since(names[0]), formula, "; ".join(_refusals(module, rule.__name__))]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _since(name: str) -> str:
    """The first opset a rule holds for, where it is not all."""
    first = next(opset for opset in range(1, HIGHEST_OPSET + 1) if registry.find(name, opset) is not None)
    return f" (opset {first})" if first > LOWEST_OPSET else ""


def _refusals(module: ModuleType, name: str) -> list[str]:
    """What a rule refuses, itself or by the functions of its module that it calls, in the words of its messages."""
    functions = {
        node.name: node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.FunctionDef)
    }
    found: list[str] = []
    reached = [name]
    for reach in reached:
        for node in ast.walk(functions[reach]):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in reached:
                reached.append(node.id)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "node.refuse":
                found.append(_text(node.args[0]))
    return list(dict.fromkeys(found))


def _text(message: ast.expr) -> str:
    """A message with … for what is filled in."""
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in message.values)
    return str(ast.literal_eval(message))


def _rest() -> set[str]:
    """The operators of the standard that are on none of the lists, since no floating-point number goes through them."""
    told = registry.registered() | registry.without_gradient() | registry.refused().keys() | COMPOSITE
    told |= quantized.FORMS.keys() | quantized.REFUSED.keys()
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    left = set()
    for name in names - told:
        try:
            schema = onnx.defs.get_schema(name, HIGHEST_OPSET)
        except onnx.defs.SchemaError:  # of a later opset
            continue
        if not schema.deprecated:
            assert not _carries(schema), f"{name} is on none of the lists"
            left.add(name)
    return left


def _carries(schema: onnx.defs.OpSchema) -> bool:
    """Whether floating-point numbers, or sequences of them, go in and out."""
    allowed = {held.type_param_str: set(held.allowed_type_strs) for held in schema.type_constraints}

    def floats(sides: list[onnx.defs.OpSchema.FormalParameter]) -> bool:
        kinds = set().union(*(allowed.get(side.type_str, {side.type_str}) for side in sides))
        return any("tensor(float)" in kind for kind in kinds)

    return floats(list(schema.inputs)) and floats(list(schema.outputs))


def _listed(names: object) -> str:
    assert isinstance(names, (list, set, frozenset, dict))
    return ", ".join(f"`{name}`" for name in sorted(names))
