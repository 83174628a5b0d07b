"""Moves a part of a graph into the branch of an If, where it costs nothing until it is wanted, and back out."""

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

_AGAIN = "/again"
_CHEAP = having(Trait.CHEAP)


def enclose(model: onnx.ModelProto, condition: str, otherwise: Mapping[str, str], op: Builder) -> None:
    """Compute some outputs only where a condition holds: what nothing else needs moves into an If.

    Constants that only the branch reads move with it; what the rest of the graph makes is read from there, but for what
    a runtime fuses with its neighbours and would no longer fuse if it had to be kept: that is made again in the branch.

    Arguments:
        condition: a bool scalar of the model.
        otherwise: for each of these outputs the value that stands in for it, of its shape and type.
        op: made these values and nothing else; the model has not got its nodes.
    """
    graph = Graph(model)
    outside, _ = graph.upstream([o.name for o in graph.outputs if o.name not in otherwise] + [condition])
    made = {name for node in outside for name in node.output if name}
    within, captured = graph.upstream(otherwise, stop=made)
    copies, again = _again(graph, outside, captured & made)
    read = {name for node in outside for name in uses(node)} | {i.name for i in model.graph.input}
    wanted = {name for node in within for name in uses(node)} - read
    inner = {name for node in within for name in node.output if name}
    names = {name: op.unique(f"{name}/computed") for name in otherwise} | {name: f"{name}{_AGAIN}" for name in again}
    infos = [o for o in graph.outputs if o.name in otherwise]

    then = helper.make_graph(
        [*copies, *within],
        "explained",
        [],
        infos,
        [t for t in model.graph.initializer if t.name in wanted],
        value_info=[v for v in model.graph.value_info if v.name in inner],
    )
    edit.rename_within(then, names)
    blank = helper.make_graph(op.nodes, "blank", [], infos, op.initializers)
    for info in blank.output:
        info.name = otherwise[info.name]
    name = op.unique(f"{op.prefix}/If")
    outputs = [info.name for info in infos]
    branch = helper.make_node("If", [condition], outputs, name=name, then_branch=then, else_branch=blank)
    drop(model.graph.node, lambda node: not inner.isdisjoint(node.output))
    drop(model.graph.initializer, lambda tensor: tensor.name in wanted)
    drop(model.graph.value_info, lambda info: info.name in inner)
    model.graph.node.append(branch)


def _again(graph: Graph, outside: Sequence[onnx.NodeProto], captured: Collection[str]) -> tuple[list[Any], set[str]]:
    """Copies of nodes for the branch, in place of captured values that a runtime fuses into their reader; those values.

    One elementwise node reads such a value, and only elementwise nodes lie between it and values that are kept anyway,
    because several nodes read them.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in outside:
        for name in dict.fromkeys(uses(node)):
            readers.setdefault(name, []).append(node)
    exposed = {o.name for o in graph.outputs}

    def kept(value: str) -> bool:
        return value in exposed or value not in graph.producer or len(readers[value]) > 1 or graph.is_constant(value)

    def cheap(value: str) -> bool:
        node = graph.producer[value]
        return node.op_type in _CHEAP and all(kept(name) or cheap(name) for name in node.input if name)

    found: set[str] = set()
    queue = [v for v in captured if not kept(v) and v in readers and readers[v][0].op_type in _CHEAP and cheap(v)]
    while queue:
        value = queue.pop()
        if value not in found:
            found.add(value)
            queue += [name for name in graph.producer[value].input if name and not kept(name)]
    copies = []
    for node in outside:
        if not found.isdisjoint(node.output):
            copied = copy_of(node)
            copied.name += _AGAIN
            copies.append(copied)
    return copies, found


def release(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Undo `enclose`: compute these outputs always, under the same names.

    Raises:
        ModelError: no If makes them.
    """
    at = next((i for i, n in enumerate(graph.node) if n.op_type == "If" and not set(n.output).isdisjoint(outputs)), -1)
    if at < 0:
        raise ModelError("the model's manifest names a gate, but no If makes its maps; export it again")
    branch = graph.node[at]
    then = onnx.GraphProto()
    body = next((attribute.g for attribute in branch.attribute if attribute.name == "then_branch"), None)
    if body is None or len(body.output) != len(branch.output):
        raise ModelError("the If that makes the model's maps has no branch with as many outputs; export it again")
    then.CopyFrom(body)
    made = {name for node in then.node for name in node.output}
    names: dict[str, str] = {}
    for info, output in zip(list(then.output), branch.output, strict=True):
        if info.name in made and info.name not in names:
            names[info.name] = output
        else:  # a value from outside, or one value under two names: other tools may have shortened the branch
            then.node.append(helper.make_node("Identity", [info.name], [output], name=output))
    outside = {name for node in graph.node[:at] for name in node.output}
    repeated = {name: name.removesuffix(_AGAIN) for name in made if name.endswith(_AGAIN)}
    repeated = {name: first for name, first in repeated.items() if first in outside}
    drop(then.node, lambda node: not repeated.keys().isdisjoint(node.output))
    edit.rename_within(then, repeated | names)
    del graph.node[at]
    for index, node in enumerate(then.node, start=at):
        graph.node.insert(index, node)
    graph.initializer.extend(then.initializer)
    declared = {output.name for output in graph.output}
    graph.value_info.extend(v for v in then.value_info if v.name not in declared)


def drop(field: Any, doomed: Callable[[Any], bool]) -> None:
    """Remove items of a repeated field in place: weights are not copied."""
    for index in reversed(range(len(field))):
        if doomed(field[index]):
            del field[index]
