"""Brings any model into the one form the rest works on.

Functions and branches of known conditions inlined, composite and quantized operators written out, opset at least 18,
initializers no longer listed as inputs, every node named, shapes inferred, free dimensions written as such, a picture's
size that only one value is admitted of fixed.
"""

from __future__ import annotations

import math
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import shape_inference, version_converter

from onnxcam.errors import ModelError, listing
from onnxcam.graph import quantized, validation
from onnxcam.graph.dynamic_size import fix, fix_implied
from onnxcam.graph.edit import replace_nodes
from onnxcam.graph.inline import inline_branches, inline_composites, inline_functions
from onnxcam.graph.load import Source, load
from onnxcam.graph.shape_inference import describe, infer, skeleton
from onnxcam.graph.view import Graph, Shape, shape_of, uses

LOWEST_OPSET = 18
# above 21 CUDA has no MaxPool kernel (onnxruntime #26065): 18 is the oldest that has all we emit
HIGHEST_OPSET = 26
_OPAQUE = "onnxcam.opaque"  # a domain of which nothing is known
# elements: 256 MiB in float32
LARGEST_CONSTANT = 1 << 26
# IR version of the onnx release each opset came with
_IR = {18: 8, 19: 9, 20: 9, 21: 10}


def prepare(source: Source) -> Graph:
    """Load a model and normalise it; the returned graph holds a model of the caller's own.

    Raises:
        ModelError: the model is invalid or cannot be brought to opset 18.
    """
    return normalize(load(source))


def normalize(model: onnx.ModelProto) -> Graph:
    """Normalise a model in place and index it.

    Raises:
        ModelError: the model is invalid or cannot be brought to opset 18.
    """
    _free_dimensions(model)
    _unlist_initializers(model)
    _sort(model)
    _check(model)
    inline_functions(model)
    _require_sizes(model)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    _upgrade(model)
    quantized.rewrite(model)
    _lower_ir(model)
    _check(model)
    _name_nodes(model)
    _drop_unused_imports(model)
    infer(model)
    _write_out(model)
    graph = Graph(model)
    if fix_implied(graph):
        graph = at_size(graph)
    _require_small_constants(graph)
    graph.source_opset = opset
    return graph


def at_size(graph: Graph, size: tuple[int, int] | None = None) -> Graph:
    """The same model for pictures of one height and width, None where its input already says them; edited in place."""
    if size is not None:
        fix(graph, size)
    infer(graph.model)
    _write_out(graph.model)
    return graph.again()


def _require_sizes(model: onnx.ModelProto) -> None:
    """Refuse sizes below 0, as negative padding gives: onnx's inference for Slice ends the process on them."""
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
        return  # what is wrong will be said where it matters
    for info in inferred.graph.value_info:
        shape = shape_of(info) or ()
        if any(isinstance(dim, int) and dim < 0 for dim in shape):
            raise ModelError(
                f"the model is not valid ONNX: {info.name!r} has the shape {describe(shape)}; is the file damaged? "
                "export it again"
            )


def _require_small_constants(graph: Graph) -> None:
    """Refuse what the runtime would compute when it loads the model and fill the memory with: much, made of little."""
    for node in graph.nodes:
        for name in node.output:
            size = _elements(graph.shape(name))
            if size <= LARGEST_CONSTANT or not graph.is_constant(name):
                continue
            if size > 16 * sum(_elements(graph.shape(source)) for source in node.input):
                raise ModelError(
                    f"{node.op_type} (node {node.name!r}) makes a constant of shape {describe(graph.shape(name))}, too "
                    "large to be held; is the file damaged? export it again"
                )


def _elements(shape: Shape | None) -> int:
    """How many elements a value has, 0 where that is not known."""
    sizes = [dim for dim in shape or () if isinstance(dim, int)]
    return math.prod(sizes) if shape is not None and len(sizes) == len(shape) else 0


def _free_dimensions(model: onnx.ModelProto) -> None:
    """Dimensions written as -1, or all as `?`, are free, and each is one of its own (PaddlePaddle's exporter)."""
    for body in validation.bodies([model.graph, *model.functions]):
        infos = [*body.value_info]
        if isinstance(body, onnx.GraphProto):
            infos += [*body.input, *body.output]
        _free(infos)


def _free(infos: list[onnx.ValueInfoProto]) -> None:
    for info in infos:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or dim.dim_param == "?":
                dim.Clear()


def _unlist_initializers(model: onnx.ModelProto) -> None:
    """Before IR 4 every weight was also an input, and some exporters keep the habit: if all are, all are constants."""
    names = {tensor.name for tensor in model.graph.initializer}
    if model.ir_version < 4 or sum(i.name in names for i in model.graph.input) == len(names):
        kept = [i for i in model.graph.input if i.name not in names]
        if kept:
            del model.graph.input[:]
            model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 8)


def _sort(model: onnx.ModelProto) -> None:
    """Bring nodes into topological order where they are not: the runtime does without, the standard does not."""
    nodes = list(model.graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in uses(node) if name in maker} for node in nodes]
    if all(source < index for index, sources in enumerate(needs) for source in sources):
        return
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        names = listing(nodes[index].name or nodes[index].op_type for index in error.args[1])
        raise ModelError(f"the model is not valid ONNX: nodes read one another in a circle ({names})") from error
    replace_nodes(model, [nodes[index] for index in order])


def _upgrade(model: onnx.ModelProto) -> None:
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    opset = versions[0] if versions else 1
    if opset > HIGHEST_OPSET:
        raise ModelError(
            f"the model uses opset {opset}; the newest supported is {HIGHEST_OPSET}: export it with opset 20"
        )
    if opset >= LOWEST_OPSET:
        return
    try:
        model.CopyFrom(version_converter.convert_version(model, LOWEST_OPSET))
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model's opset {opset} cannot be upgraded to {LOWEST_OPSET} ({reason}); "
            "export it again with opset 18 or later"
        ) from error


def _lower_ir(model: onnx.ModelProto) -> None:
    """The IR version the opset came with: exporters write newer ones than needed, which older runtimes refuse."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    model.ir_version = _IR.get(opset, model.ir_version)


def _write_out(model: onnx.ModelProto) -> None:
    """Composite operators as what they are made of, and `If` of a known condition as the branch it takes."""
    while inline_branches(model) or inline_composites(model, lambda: skeleton(model)[0]):
        _name_nodes(model)
        infer(model)


def _check(model: onnx.ModelProto) -> None:
    """Refuse what breaks the standard's rules, before and after it is brought into form: C++ takes them for granted."""
    bare, _ = skeleton(model)
    for info in (*bare.graph.input, *bare.graph.output):
        if info.type.HasField("tensor_type"):
            # the checker insists on a shape, the runtime does not; `_infer` finds it later
            info.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(bare, full_check=False)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        if "No Op registered for" in reason or "custom" in reason.lower():
            return
        raise ModelError(f"the model is not valid ONNX: {reason}") from error


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, so that messages can point at it."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name += f"_{index}"
        taken.add(name)
        node.name = name


def _drop_unused_imports(model: onnx.ModelProto) -> None:
    def domains(graph: onnx.GraphProto) -> set[str]:
        found = {node.domain for node in graph.node}
        for node in graph.node:
            for attribute in node.attribute:
                for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    found |= domains(body)
        return found

    used = {"" if d == "ai.onnx" else d for d in domains(model.graph)} | {""}
    kept = [o for o in model.opset_import if ("" if o.domain == "ai.onnx" else o.domain) in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
