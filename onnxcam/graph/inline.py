"""Inlining: local functions, the bodies of composite operators, and branches of an `If` of constant condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
from onnx import inliner

from onnxcam.errors import ModelError, listing
from onnxcam.graph.constant_folding import ConstantFolder
from onnxcam.graph.edit import rename_within, replace_nodes
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph

# operators that the specification defines by a graph of others, and that have no gradient rule
COMPOSITE = frozenset(
    {"Attention", "CausalConvWithState", "CenterCropPad", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"}
)
_BODY_DOMAIN = "onnxcam.composite"  # the domain of their bodies until they are inlined
_CONTROL = having(Trait.CONTROL)


def inline_functions(model: onnx.ModelProto) -> None:
    """Inline the model's local functions.

    Raises:
        ModelError: a function's body does not fit its calls.
    """
    if model.functions:
        try:
            model.CopyFrom(inliner.inline_local_functions(model))
        except Exception as error:
            raise ModelError(
                f"the model's local functions cannot be inlined: {error}; export it again without functions"
            ) from error


def inline_composites(model: onnx.ModelProto, bare: Callable[[], onnx.ModelProto]) -> bool:
    """Decompose a model's composite operators in place; return whether it had any.

    Arguments:
        model: with inferred shapes, on which some bodies depend.
        bare: returns the same model without its large weights, which need not be copied.

    Raises:
        ModelError: an operator has no body for its inputs.
    """
    present = {node.op_type for node in model.graph.node if _is_composite(node)}
    if not present:
        return False
    typed = bare()
    infos = (*typed.graph.input, *typed.graph.output, *typed.graph.value_info)
    types = {info.name: info.type for info in infos}
    for tensor in typed.graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    opset = next(o.version for o in typed.opset_import if o.domain in ("", "ai.onnx"))
    try:
        for index, node in enumerate(typed.graph.node):
            if _is_composite(node):
                body = _body(node, opset, types)
                body.name, body.domain = f"{node.op_type}_{index}", _BODY_DOMAIN
                typed.functions.append(body)
                node.op_type, node.domain = body.name, body.domain
        typed.opset_import.append(onnx.helper.make_opsetid(_BODY_DOMAIN, 1))
        inlined = inliner.inline_local_functions(typed)
    except Exception as error:
        raise ModelError(
            f"{listing(sorted(present))} cannot be decomposed into simpler operators: {error}; export the model "
            "without them, for example with another opset"
        ) from error
    del model.graph.node[:]
    model.graph.node.extend(inlined.graph.node)
    return True


def _is_composite(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in COMPOSITE


def _body(node: onnx.NodeProto, opset: int, types: Mapping[str, onnx.TypeProto]) -> onnx.FunctionProto:
    """The specification's body for a node; the node's missing attributes are set to their defaults."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset)  # the type stub lacks function bodies
    present = {attribute.name for attribute in node.attribute}
    defaults = [attribute.default_value for name, attribute in schema.attributes.items() if name not in present]
    node.attribute.extend(attribute for attribute in defaults if attribute.name)
    unknown = [name for name in node.input if name and name not in types]
    if unknown:
        raise ValueError(f"the type of {unknown[0]!r} is unknown")
    types_of_inputs = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
    version = max(v for v in schema.context_dependent_function_opset_versions if v <= opset)
    written = schema.get_context_dependent_function_with_opset_version(
        version, node.SerializeToString(), types_of_inputs
    )
    body = onnx.FunctionProto()
    body.ParseFromString(written)
    del body.attribute[:], body.attribute_proto[:], body.opset_import[:]
    body.attribute.extend(schema.attributes)
    body.opset_import.append(onnx.helper.make_opsetid("", opset))  # a body for an older opset is valid for this one
    return body


def inline_branches(model: onnx.ModelProto) -> bool:
    """Replace each `If` of constant condition by its branch, in place; return whether there was any."""
    if not any(node.op_type == "If" for node in model.graph.node):
        return False
    graph = Graph(model)
    folder = ConstantFolder(graph)
    names = set(graph.producer) | set(graph.initializers) | {i.name for i in model.graph.input}
    names.update(name for node in graph.nodes for name in _inner_names(node))
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.nodes:
        condition = folder.value(node.input[0]) if node.op_type == "If" else None
        if condition is None or condition.size != 1 or condition.dtype != bool:
            nodes.append(node)
            continue
        name = "then_branch" if bool(condition.item()) else "else_branch"
        body = next((attribute.g for attribute in node.attribute if attribute.name == name), None)
        if body is None:
            raise ModelError(f"the model is not valid ONNX: If {node.name!r} has no {name}; export it again")
        nodes.extend(_spliced(model, node, body, names))
        changed = True
    if changed:
        replace_nodes(model, nodes)
    return changed


def _spliced(
    model: onnx.ModelProto, node: onnx.NodeProto, branch: onnx.GraphProto, names_in_use: set[str]
) -> Iterator[onnx.NodeProto]:
    """Yield a branch's nodes under unique names; its weights are added to the model's."""
    body = onnx.GraphProto()
    body.CopyFrom(branch)
    produced = [name for inner in body.node for name in inner.output if name]
    results: dict[str, str] = {}
    copies: list[tuple[str, str]] = []
    for output, result in zip(body.output, node.output, strict=False):
        if not result:
            continue
        if output.name in produced and output.name not in results:
            results[output.name] = result
        else:  # a captured value, a weight, or one result twice
            copies.append((output.name, result))
    names = dict(results)
    for name in (*produced, *(tensor.name for tensor in body.initializer)):
        if name not in names:
            fresh = name
            while fresh in names_in_use:
                fresh = f"{name}_inlined" if fresh == name else f"{name}_inlined_{len(names_in_use)}"
            names_in_use.add(fresh)
            names[name] = fresh
    rename_within(body, names)
    model.graph.initializer.extend(body.initializer)
    for inner in body.node:
        inner.name = ""  # `normalize` names it again
        yield inner
    for source, result in copies:
        yield onnx.helper.make_node("Identity", [names.get(source, source)], [result])


def _inner_names(node: onnx.NodeProto) -> Iterator[str]:
    """Names of values inside the subgraphs of a Loop, Scan or SequenceMap."""
    if node.op_type not in _CONTROL or node.op_type == "If":
        return
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from inner.output
                yield from _inner_names(inner)
