"""Shape inference without a model's large weights, and shapes as text."""

from __future__ import annotations

import onnx
from onnx import shape_inference

from onnxcam.errors import ModelError
from onnxcam.graph.view import Graph

SMALL = 1024  # elements of a weight whose value shape inference may need


def refresh(model: onnx.ModelProto) -> Graph:
    """Infer shapes again after an edit, and index the model again."""
    infer(model)
    return Graph(model)


def infer(model: onnx.ModelProto) -> None:
    """Infer shapes in place, by way of a skeleton: large weights are neither copied nor serialized."""
    bare, _ = skeleton(model)
    try:
        inferred = shape_inference.infer_shapes(bare, data_prop=True)
    except Exception as error:
        raise ModelError(
            f"shape inference failed: {str(error).strip().splitlines()[0]}; is the file damaged? export it again"
        ) from error
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    outputs = {o.name: o for o in inferred.graph.output}
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):
            output.CopyFrom(outputs[output.name])


def skeleton(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Copy a model without its large weights, which become inputs: cheap to check and to infer shapes on.

    Returns:
        The copy, and the names of those weights.
    """
    bare = onnx.ModelProto()
    graph = model.graph
    bare.ir_version, bare.producer_name = model.ir_version, model.producer_name
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = graph.name or "graph"
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    bare.graph.value_info.extend(graph.value_info)
    listed = {i.name for i in graph.input}
    large = []
    for tensor in graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size <= SMALL:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            large.append(tensor.name)
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare, large


def describe(dims: tuple[object, ...] | None) -> str:
    """Format a shape for a message: `[N, 3, 224, 224]`."""
    return "unknown" if dims is None else "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
