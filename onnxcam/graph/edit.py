"""Edits on a model: add what a builder made, expose values, cut out a part, drop what nothing needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from onnxcam.graph.view import Dim, Graph, copy_of, uses

if TYPE_CHECKING:
    from onnxcam.graph.builder import Builder


def info(name: str, dtype: int, shape: Sequence[Dim] | None) -> onnx.ValueInfoProto:
    """A declaration of a value; None dimensions stay free."""
    return helper.make_tensor_value_info(name, dtype, None if shape is None else list(shape))


def add(model: onnx.ModelProto, op: Builder) -> None:
    """Append what the builder made; its nodes may read any value of the model."""
    model.graph.node.extend(op.nodes)
    model.graph.initializer.extend(op.initializers)
    declared = {o.name for o in model.graph.output}
    made = {name for node in op.nodes for name in node.output} - declared
    model.graph.value_info.extend(info for name, info in op.infos.items() if name in made)


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename values everywhere they are made, read or declared."""
    rename_within(model.graph, names)


def rename_within(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values in one graph and the graphs within."""
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name in names:
                    field[index] = names[name]
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                rename_within(body, names)
    for held in (graph.input, graph.output, graph.value_info, graph.initializer):
        for item in held:
            if item.name in names:
                item.name = names[item.name]


def prune(model: onnx.ModelProto) -> None:
    """Drop nodes, constants and declarations that no output needs."""
    graph = Graph(model)
    nodes, outside = graph.upstream([o.name for o in model.graph.output])
    _keep(model, nodes, outside)
    _drop_second_outputs(model)


def _drop_second_outputs(model: onnx.ModelProto) -> None:
    """A MaxPool that returns Indices to nobody runs a slower kernel than one that does not."""
    read = {name for node in model.graph.node for name in uses(node)} | {o.name for o in model.graph.output}
    for node in model.graph.node:
        while node.op_type == "MaxPool" and len(node.output) > 1 and node.output[-1] not in read:
            del node.output[-1]


def extract(
    graph: Graph, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """The part of a graph between `inputs` (taken as given) and `outputs`, as a model of its own.

    Original inputs and overridable initializers that are still needed stay inputs, after the given ones.
    """
    given = [i.name for i in inputs]
    nodes, outside = graph.upstream([o.name for o in outputs], stop=given)
    source = graph.model
    model = onnx.ModelProto()
    model.ir_version = source.ir_version
    model.producer_name = source.producer_name
    model.opset_import.extend(source.opset_import)
    model.graph.name = source.graph.name
    model.graph.input.extend(inputs)
    model.graph.input.extend(i for i in source.graph.input if i.name in outside and i.name not in given)
    model.graph.output.extend(outputs)
    made = {name for node in nodes for name in node.output} | outside
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(t for t in source.graph.initializer if t.name in outside and t.name not in given)
    declared = {i.name for i in model.graph.input} | {o.name for o in outputs}
    model.graph.value_info.extend(v for v in source.graph.value_info if v.name in made and v.name not in declared)
    return model


def _keep(model: onnx.ModelProto, nodes: list[onnx.NodeProto], outside: Iterable[str]) -> None:
    needed = set(outside)
    made = {name for node in nodes for name in node.output}
    kept_nodes = [copy_of(node) for node in nodes]
    kept_tensors = [t for t in model.graph.initializer if t.name in needed]
    kept_infos = [v for v in model.graph.value_info if v.name in made]
    dropped = {t.name for t in model.graph.initializer} - needed
    kept_inputs = [i for i in model.graph.input if i.name not in dropped]
    for field, kept in (
        (model.graph.node, kept_nodes),
        (model.graph.initializer, kept_tensors),
        (model.graph.value_info, kept_infos),
        (model.graph.input, kept_inputs),
    ):
        if len(kept) != len(field):
            del field[:]
            field.extend(kept)


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a model these nodes instead of its own, some of which may be among them."""
    kept = [copy_of(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
