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
from onnxcam.graph import blocked, fused, quantized
from onnxcam.graph.inline import COMPOSITE
from onnxcam.graph.normalize import HIGHEST_OPSET, LOWEST_OPSET

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "operators.md"
TOP = f"""# Operators

Written by `make pages` from the gradient rules themselves; do not edit.

Every operator between a target layer and the scores has to be differentiated; operators before the layer may be
anything that the runtime runs. Models of opset {LOWEST_OPSET} to {HIGHEST_OPSET} are taken as they are, older ones
are converted to {LOWEST_OPSET} first. An operator that is not covered is refused before anything runs, by name, with
the path from the layer to the scores that needs it.

X, W, … are inputs, Y the output, dY the gradient of the score with respect to Y. The rules emit operators of this same
list, so the result is a plain ONNX file.

Each rule is compared with finite differences in float64 over its attributes, and so is every case that onnx tests its
operators with: of those 1,884, all that compute floating-point numbers from floating-point numbers agree (2,500 pairs
of an output and an input), or are listed as left out, with the reason, in `tests/autodiff/test_backend_cases.py`.
"""
ZERO = """## Operators that pass nothing back

Their outputs are integers, booleans, shapes or random numbers, or piecewise constant: no gradient flows through them,
and gradients by other paths are unaffected.

"""
DECOMPOSED = """## Operators that are decomposed

The specification defines these as functions of other operators, which replace them: {}.

Those in which ONNX Runtime fuses several when it saves an optimised model are written as their parts: {} of
`com.microsoft`, and {} of its blocked layout, `com.microsoft.nchwc`. So are Swish and SwiGLU from opset 25 on, for
which ONNX Runtime 1.32 has no kernel on the CPU.

Local functions of a model are inlined too, and an `If` with a constant condition becomes the branch that it takes.
"""
QUANTIZED = """## Quantized operators

`QuantizeLinear` and `DequantizeLinear`, also those of the `com.microsoft` domain, are differentiated straight through
the rounding; their scales are constants. Operators that compute on quantized numbers, standard and of that domain,
are replaced by the operator on real numbers between those two: {}.

Refused, because their scales are computed at run time or their parts cannot be separated: {}.
"""
REST = """## The rest

No gradient can reach these, because none of their inputs, or none of their outputs, is a floating-point tensor: {}.
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
    parts.append(
        DECOMPOSED.format(_listed(COMPOSITE), _listed(fused.FORMS.keys() - {"Swish", "SwiGLU"}), _listed(blocked.FORMS))
    )
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
    """A module's title, from its docstring."""
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
    """The first opset a rule covers, where that is not all."""
    first = next(opset for opset in range(1, HIGHEST_OPSET + 1) if registry.find(name, opset) is not None)
    return f" (opset {first})" if first > LOWEST_OPSET else ""


def _refusals(module: ModuleType, name: str) -> list[str]:
    """The cases a rule refuses, itself or in the functions of its module that it calls, as its messages state them."""
    functions = {
        node.name: node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.FunctionDef)
    }
    refusals: list[str] = []
    reached = [name]
    for reach in reached:
        for node in ast.walk(functions[reach]):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in reached:
                reached.append(node.id)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "node.refuse":
                refusals.append(_text(node.args[0]))
    return list(dict.fromkeys(refusals))


def _text(message: ast.expr) -> str:
    """A message with … for each value that is filled in."""
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in message.values)
    return str(ast.literal_eval(message))


def _rest() -> set[str]:
    """The standard operators that are on none of the lists, since no floating-point number passes through them."""
    listed = registry.registered() | registry.without_gradient() | registry.refused().keys() | COMPOSITE
    listed |= {"SwiGLU"} | quantized.FORMS.keys() | quantized.REFUSED.keys()
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    left = set()
    for name in names - listed:
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
    allowed = {constraint.type_param_str: set(constraint.allowed_type_strs) for constraint in schema.type_constraints}

    def floats(sides: list[onnx.defs.OpSchema.FormalParameter]) -> bool:
        kinds = set().union(*(allowed.get(side.type_str, {side.type_str}) for side in sides))
        return any("tensor(float)" in kind for kind in kinds)

    return floats(list(schema.inputs)) and floats(list(schema.outputs))


def _listed(names: object) -> str:
    assert isinstance(names, (list, set, frozenset, dict))
    return ", ".join(f"`{name}`" for name in sorted(names))
