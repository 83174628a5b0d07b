"""The normal form of a model, on which all other modules work.

Functions and branches of constant conditions are inlined, composite and quantized operators decomposed, the opset is at
least 18, initializers are not listed as inputs, every node has a name, shapes are inferred, dynamic dimensions are
declared as such, and the picture's size is fixed where only one fits.
"""

from __future__ import annotations

import math
from collections import Counter
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import shape_inference, version_converter

from onnxcam.errors import ModelError, listing
from onnxcam.graph import fused, quantized, validation
from onnxcam.graph.dynamic_size import fix, fix_implied
from onnxcam.graph.edit import replace_nodes
from onnxcam.graph.inline import inline_branches, inline_composites, inline_functions
from onnxcam.graph.load import Source, load
from onnxcam.graph.shape_inference import describe, drop_contradicted, infer, skeleton
from onnxcam.graph.ties import first_of_ties
from onnxcam.graph.view import Graph, Shape, shape_of, uses

LOWEST_OPSET = 18
# above 21 CUDA has no MaxPool kernel (onnxruntime #26065); 18 is the oldest opset with every operator that is emitted
HIGHEST_OPSET = 28
_OPAQUE = "onnxcam.opaque"  # a domain without operators: shape inference skips its nodes
# elements: 256 MiB in float32
LARGEST_CONSTANT = 1 << 26
# IR version of the onnx release each opset came with
_IR = {18: 8, 19: 9, 20: 9, 21: 10}


def prepare(source: Source) -> Graph:
    """Load a model and normalise it; the caller may edit the graph's model, the source stays unchanged.

    Raises:
        ModelError: the model is invalid or cannot be upgraded to opset 18.
    """
    return normalize(load(source))


def normalize(model: onnx.ModelProto) -> Graph:
    """Normalise a model in place and index it.

    Raises:
        ModelError: the model is invalid or cannot be upgraded to opset 18.
    """
    _free_dimensions(model)
    _unlist_initializers(model)
    _distinguish_nodes(model)
    _sort(model)
    _check(model)
    inline_functions(model)
    _require_sizes(model)
    drop_contradicted(model)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    fused.hide_early_normalization(model)
    _upgrade(model)
    rewrites = fused.rewrite(model)
    quantized.rewrite(model)
    first_of_ties(model)
    _lower_ir(model)
    _check(model)
    _name_nodes(model)
    _drop_unused_imports(model)
    infer(model)
    _decompose(model)
    graph = Graph(model)
    if fix_implied(graph):
        graph = at_size(graph)
    _require_small_constants(graph)
    graph.source_opset, graph.rewrites = opset, rewrites
    return graph


def at_size(graph: Graph, size: tuple[int, int] | None = None) -> Graph:
    """Fix the picture's height and width in place and index the model again; None: the input already declares them."""
    if size is not None:
        fix(graph, size)
    infer(graph.model)
    _decompose(graph.model)
    return graph.again()


def _require_sizes(model: onnx.ModelProto) -> None:
    """Refuse negative sizes, as from negative padding: onnx's shape inference of Slice crashes on them."""
    if all(node.op_type != "Slice" for body in validation.bodies([model.graph]) for node in body.node):
        return
    bare, _ = skeleton(model)
    bare.opset_import.add(domain=_OPAQUE, version=1)
    for body in validation.bodies([bare.graph]):
        for node in body.node:
            if node.op_type == "Slice":
                node.domain = _OPAQUE
    try:
        inferred = shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:
        return  # a later check reports what is wrong
    for info in inferred.graph.value_info:
        shape = shape_of(info) or ()
        if any(isinstance(dim, int) and dim < 0 for dim in shape):
            raise ModelError(
                f"the model is not valid ONNX: {info.name!r} has shape {describe(shape)}, with a negative "
                "dimension; is the file damaged? export it again"
            )


def _require_small_constants(graph: Graph) -> None:
    """Refuse huge constants computed from small ones: the runtime would fold them at load and exhaust the memory."""
    for node in graph.nodes:
        for name in node.output:
            if not graph.is_constant(name):
                continue
            size = _elements(graph.shape(name))
            if size <= LARGEST_CONSTANT:
                continue
            if size > 16 * sum(_elements(graph.shape(source)) for source in node.input):
                raise ModelError(
                    f"{node.op_type} (node {node.name!r}) computes a constant of shape {describe(graph.shape(name))}, "
                    "too large for memory; is the file damaged? export it again"
                )


def _elements(shape: Shape | None) -> int:
    """The number of elements of a shape; 0 if it is unknown."""
    sizes = [dim for dim in shape or () if isinstance(dim, int)]
    return math.prod(sizes) if shape is not None and len(sizes) == len(shape) else 0


def _free_dimensions(model: onnx.ModelProto) -> None:
    """Clear dimensions declared as -1 or `?`: dynamic and independent of each other (PaddlePaddle's exporter)."""
    for body in validation.bodies([model.graph, *model.functions]):
        infos = [*body.value_info]
        if isinstance(body, onnx.GraphProto):
            infos += [*body.input, *body.output]
        for info in infos:
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_value < 0 or dim.dim_param == "?":
                    dim.Clear()


def _unlist_initializers(model: onnx.ModelProto) -> None:
    """Remove initializers from the inputs if all are listed, as before IR 4 and still by some exporters."""
    names = {tensor.name for tensor in model.graph.initializer}
    if model.ir_version < 4 or sum(i.name in names for i in model.graph.input) == len(names):
        inputs = [i for i in model.graph.input if i.name not in names]
        if inputs:
            del model.graph.input[:]
            model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)


def _distinguish_nodes(model: onnx.ModelProto) -> None:
    """Rename nodes that share a name, all of them: a layer of that name would be the first, whichever was meant.

    ONNX Runtime refuses such files, other runtimes take them.
    """
    counts = Counter(node.name for node in model.graph.node)
    if len(counts) == len(model.graph.node):
        return
    for index, node in enumerate(model.graph.node):
        if node.name and counts[node.name] > 1:
            name = f"{node.name}_{index}"
            while name in counts:
                name += f"_{index}"
            counts[name] = 1
            node.name = name


def _sort(model: onnx.ModelProto) -> None:
    """Sort nodes topologically if they are not: the standard requires the order, the runtime does not."""
    nodes = list(model.graph.node)
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    reads = [uses(node) for node in nodes]
    if all(producer.get(name, -1) < index for index, names in enumerate(reads) for name in names):
        return
    sources = [{producer[name] for name in names if name in producer} for names in reads]
    try:
        order = list(TopologicalSorter(dict(enumerate(sources))).static_order())
    except CycleError as error:
        names = listing(nodes[index].name or nodes[index].op_type for index in error.args[1])
        raise ModelError(
            f"the model is not valid ONNX: its nodes form a cycle ({names}); is the file damaged? export it again"
        ) from error
    replace_nodes(model, [nodes[index] for index in order])


def _upgrade(model: onnx.ModelProto) -> None:
    """Upgrade a model below opset 18 to it."""
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    opset = versions[0] if versions else 1
    if opset > HIGHEST_OPSET:
        raise ModelError(
            f"the model uses opset {opset}; the newest supported is {HIGHEST_OPSET}: export it with opset 20"
        )
    if opset >= LOWEST_OPSET:
        return
    declared = {info.name for info in model.graph.value_info}
    try:
        model.CopyFrom(version_converter.convert_version(model, LOWEST_OPSET))
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model's opset {opset} cannot be upgraded to {LOWEST_OPSET} ({reason}); "
            "export it again with opset 18 or later"
        ) from error
    infos = [info for info in model.graph.value_info if info.name in declared]
    del model.graph.value_info[:]  # the shapes that the converter has inferred would count as declared
    model.graph.value_info.extend(infos)


def _lower_ir(model: onnx.ModelProto) -> None:
    """Set the IR version that came with the opset: exporters write newer ones, which older runtimes refuse."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    model.ir_version = _IR.get(opset, model.ir_version)


def _decompose(model: onnx.ModelProto) -> None:
    """Replace composite operators by simpler ones, and each `If` of a constant condition by its branch."""
    while inline_branches(model) or inline_composites(model, lambda: skeleton(model)[0]):
        _name_nodes(model)
        infer(model)


def _check(model: onnx.ModelProto) -> None:
    """Refuse a model that violates the standard: onnx's C++ code assumes valid ones."""
    bare, _ = skeleton(model)
    for info in (*bare.graph.input, *bare.graph.output):
        if info.type.HasField("tensor_type"):
            # the checker requires a shape, the runtime does not; `infer` sets it later
            info.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(bare, full_check=False)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        if "No Op registered for" in reason or "custom" in reason.lower():
            return
        raise ModelError(f"the model is not valid ONNX: {reason}") from error


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name for use in messages."""
    names: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in names:
            name += f"_{index}"
        names.add(name)
        node.name = name


def _drop_unused_imports(model: onnx.ModelProto) -> None:
    """Remove opset imports of domains without nodes."""

    def domains(graph: onnx.GraphProto) -> set[str]:
        names = {node.domain for node in graph.node}
        for node in graph.node:
            for attribute in node.attribute:
                for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    names |= domains(body)
        return names

    needed = {"" if d == "ai.onnx" else d for d in domains(model.graph)} | {""}
    imports = [o for o in model.opset_import if ("" if o.domain == "ai.onnx" else o.domain) in needed]
    del model.opset_import[:]
    model.opset_import.extend(imports)
