"""Edits on a model: add a builder's nodes, rename values, extract a part, remove unused nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from onnxcam.graph.view import Dim, Graph, copy_of, uses

if TYPE_CHECKING:
    from onnxcam.graph.builder import Builder


def info(name: str, dtype: int, shape: Sequence[Dim] | None) -> onnx.ValueInfoProto:
    """Declare a value; a dimension of None is dynamic."""
    return helper.make_tensor_value_info(name, dtype, None if shape is None else list(shape))


def add(model: onnx.ModelProto, op: Builder) -> None:
    """Append a builder's nodes and constants; its nodes may read any value of the model."""
    model.graph.node.extend(op.nodes)
    model.graph.initializer.extend(op.initializers)
    declared = {o.name for o in model.graph.output}
    produced = {name for node in op.nodes for name in node.output} - declared
    model.graph.value_info.extend(info for name, info in op.infos.items() if name in produced)


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename values wherever they are produced, read or declared."""
    rename_within(model.graph, names)


def rename_within(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values in a graph and its subgraphs."""
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name in names:
                    field[index] = names[name]
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                rename_within(body, names)
    for field in (graph.input, graph.output, graph.value_info, graph.initializer):
        for item in field:
            if item.name in names:
                item.name = names[item.name]


def prune(model: onnx.ModelProto) -> None:
    """Remove nodes, constants and declarations that no output needs."""
    graph = Graph(model)
    nodes, outside = graph.upstream([o.name for o in model.graph.output])
    _keep(model, nodes, outside)
    _drop_second_outputs(model)


def _drop_second_outputs(model: onnx.ModelProto) -> None:
    """Remove unread Indices of MaxPool: with that output a slower kernel runs."""
    read = {name for node in model.graph.node for name in uses(node)} | {o.name for o in model.graph.output}
    for node in model.graph.node:
        while node.op_type == "MaxPool" and len(node.output) > 1 and node.output[-1] not in read:
            del node.output[-1]


def extract(
    graph: Graph, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """Extract the part of a graph between `inputs` and `outputs` as a model.

    Original inputs and overridable initializers that are still needed stay inputs, after `inputs`.
    """
    boundary = [i.name for i in inputs]
    nodes, outside = graph.upstream([o.name for o in outputs], stop=boundary)
    source = graph.model
    model = onnx.ModelProto()
    model.ir_version = source.ir_version
    model.producer_name = source.producer_name
    model.opset_import.extend(source.opset_import)
    model.graph.name = source.graph.name
    model.graph.input.extend(inputs)
    model.graph.input.extend(i for i in source.graph.input if i.name in outside and i.name not in boundary)
    model.graph.output.extend(outputs)
    values = {name for node in nodes for name in node.output} | outside
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(t for t in source.graph.initializer if t.name in outside and t.name not in boundary)
    declared = {i.name for i in model.graph.input} | {o.name for o in outputs}
    model.graph.value_info.extend(v for v in source.graph.value_info if v.name in values and v.name not in declared)
    return model


def _keep(model: onnx.ModelProto, nodes: list[onnx.NodeProto], outside: Iterable[str]) -> None:
    needed = set(outside)
    produced = {name for node in nodes for name in node.output}
    kept_nodes = [copy_of(node) for node in nodes]
    kept_tensors = [t for t in model.graph.initializer if t.name in needed]
    kept_infos = [v for v in model.graph.value_info if v.name in produced]
    dropped = {t.name for t in model.graph.initializer} - needed
    kept_inputs = [i for i in model.graph.input if i.name not in dropped]
    for field, remaining in (
        (model.graph.node, kept_nodes),
        (model.graph.initializer, kept_tensors),
        (model.graph.value_info, kept_infos),
        (model.graph.input, kept_inputs),
    ):
        if len(remaining) != len(field):
            del field[:]
            field.extend(remaining)


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace all nodes of a model; `nodes` may contain some of its present ones."""
    copies = [copy_of(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def write_out_windows(model: onnx.ModelProto) -> None:
    """Write strides and dilations of convolutions where they are left out: WebGPU's convolutions take them amiss."""
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    for graph in (model.graph, *bodies):
        ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        ranks |= {info.name: len(info.type.tensor_type.shape.dim) for info in graph.value_info}
        for node in graph.node:
            if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in ("", "ai.onnx"):
                continue
            names = {attribute.name for attribute in node.attribute}
            rank = ranks.get(node.input[1], 0) - 2
            for name in ("strides", "dilations"):
                if name not in names and rank > 0:
                    node.attribute.append(onnx.helper.make_attribute(name, [1] * rank))
