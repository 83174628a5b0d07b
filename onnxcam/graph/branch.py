"""Moving part of a graph into a branch of an If, which is computed only where a condition holds, and back out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from onnxcam.errors import ModelError
from onnxcam.graph import edit
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, copy_of, uses

if TYPE_CHECKING:
    from onnxcam.graph.builder import Builder

_AGAIN, _CAPTURED = "/again", "/captured"
_CHEAP = having(Trait.CHEAP)


def enclose(model: onnx.ModelProto, condition: str, otherwise: Mapping[str, str], op: Builder) -> None:
    """Compute some outputs only where a condition holds: nodes that only those outputs need move into an If.

    Constants that only the branch reads move with it. Other values are captured from the outer graph, except those that
    a runtime fuses with their reader: capturing one would materialize it and prevent the fusion, so the branch
    recomputes it. An output of the graph is captured under another name: OpenVINO refuses it under its own.

    Arguments:
        condition: a bool scalar of the model.
        otherwise: for each of these outputs the value returned in its place, of the same shape and type.
        op: a builder that holds the nodes of those values and no others; they are not in the model yet.
    """
    graph = Graph(model)
    outside, _ = graph.upstream([o.name for o in graph.outputs if o.name not in otherwise] + [condition])
    shared = {name for node in outside for name in node.output if name}
    within, captured = graph.upstream(otherwise, stop=shared)
    copies, recomputed = _recompute(graph, outside, captured & shared)
    read = {name for node in outside for name in uses(node)} | {i.name for i in model.graph.input}
    exclusive = {name for node in within for name in uses(node)} - read
    branch_values = {name for node in within for name in node.output if name}
    names = {name: op.unique(f"{name}/computed") for name in otherwise} | {
        name: f"{name}{_AGAIN}" for name in recomputed
    }
    renamed = sorted({o.name for o in graph.outputs} & captured - recomputed)
    names |= {name: f"{name}{_CAPTURED}" for name in renamed}
    infos = [o for o in graph.outputs if o.name in otherwise]

    then = helper.make_graph(
        [*copies, *within],
        "explained",
        [],
        infos,
        [t for t in model.graph.initializer if t.name in exclusive],
        value_info=[v for v in model.graph.value_info if v.name in branch_values],
    )
    edit.rename_within(then, names)
    blank = helper.make_graph(op.nodes, "blank", [], infos, op.initializers)
    for info in blank.output:
        info.name = otherwise[info.name]
    name = op.unique(f"{op.prefix}/If")
    outputs = [info.name for info in infos]
    branch = helper.make_node("If", [condition], outputs, name=name, then_branch=then, else_branch=blank)
    drop(model.graph.node, lambda node: not branch_values.isdisjoint(node.output))
    drop(model.graph.initializer, lambda tensor: tensor.name in exclusive)
    drop(model.graph.value_info, lambda info: info.name in branch_values)
    model.graph.node.extend(helper.make_node("Identity", [name], [names[name]], name=names[name]) for name in renamed)
    model.graph.node.append(branch)


def _recompute(
    graph: Graph, outside: Sequence[onnx.NodeProto], captured: Collection[str]
) -> tuple[list[Any], set[str]]:
    """Copy nodes for the branch instead of capturing values that a runtime fuses; return the copies and the values.

    Such a value has one reader, an elementwise node, and only elementwise nodes lie between it and values that are
    materialized anyway because several nodes read them.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in outside:
        for name in dict.fromkeys(uses(node)):
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.outputs}

    def materialized(value: str) -> bool:
        return value in outputs or value not in graph.producer or len(readers[value]) > 1 or graph.is_constant(value)

    cheap: set[str] = set()  # values that elementwise nodes alone compute from materialized ones
    for node in outside:
        if node.op_type in _CHEAP and all(materialized(name) or name in cheap for name in node.input if name):
            cheap.update(node.output)

    fused: set[str] = set()
    queue = [
        v for v in captured if not materialized(v) and v in readers and readers[v][0].op_type in _CHEAP and v in cheap
    ]
    while queue:
        value = queue.pop()
        if value not in fused:
            fused.add(value)
            queue += [name for name in graph.producer[value].input if name and not materialized(name)]
    copies = []
    for node in outside:
        if not fused.isdisjoint(node.output):
            copied = copy_of(node)
            copied.name += _AGAIN
            copies.append(copied)
    return copies, fused


def release(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Undo `enclose`: compute these outputs unconditionally, under the same names.

    Raises:
        ModelError: they are not outputs of an If with a complete `then_branch`.
    """
    at = next((i for i, n in enumerate(graph.node) if n.op_type == "If" and not set(n.output).isdisjoint(outputs)), -1)
    if at < 0:
        raise ModelError("the model's manifest names a gate, but no If node computes its maps; export it again")
    branch = graph.node[at]
    then = onnx.GraphProto()
    body = next((attribute.g for attribute in branch.attribute if attribute.name == "then_branch"), None)
    if body is None or len(body.output) != len(branch.output):
        raise ModelError(
            "the If node that computes the model's maps has no then_branch with as many outputs as the node; export it "
            "again"
        )
    then.CopyFrom(body)
    produced = {name for node in then.node for name in node.output}
    names: dict[str, str] = {}
    for info, output in zip(list(then.output), branch.output, strict=True):
        if info.name in produced and info.name not in names:
            names[info.name] = output
        else:  # a captured value, or one value under two names, as other tools may have simplified the branch
            then.node.append(helper.make_node("Identity", [info.name], [output], name=output))
    outside = {name for node in graph.node[:at] for name in node.output}
    repeated = {name: name.removesuffix(_AGAIN) for name in produced if name.endswith(_AGAIN)}
    repeated = {name: first for name, first in repeated.items() if first in outside}
    captured = {
        node.output[0]: node.input[0]
        for node in graph.node[:at]
        if node.op_type == "Identity" and node.output[0] == f"{node.input[0]}{_CAPTURED}"
    }
    drop(then.node, lambda node: not repeated.keys().isdisjoint(node.output))
    edit.rename_within(then, repeated | captured | names)
    del graph.node[at]
    drop(graph.node, lambda node: node.op_type == "Identity" and not captured.keys().isdisjoint(node.output))
    at -= len(captured)
    behind = [copy_of(node) for node in graph.node[at:]]
    del graph.node[at:]
    graph.node.extend(then.node)
    graph.node.extend(behind)
    graph.initializer.extend(then.initializer)
    declared = {output.name for output in graph.output}
    graph.value_info.extend(v for v in then.value_info if v.name not in declared)


def drop(field: Any, doomed: Callable[[Any], bool]) -> None:
    """Remove items of a repeated field in place: weights are not copied."""
    end = None  # behind the run of items to be removed
    for index in reversed(range(-1, len(field))):
        if index >= 0 and doomed(field[index]):
            end = index + 1 if end is None else end
        elif end is not None:
            del field[index + 1 : end]
            end = None
