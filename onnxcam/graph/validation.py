"""Whether a parsed model can be looked at: names are text, attributes of a known kind, tensors as large as they say.

The protobuf parser takes all of it as it comes; what reads it afterwards, in Python or in C++, takes it for granted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto, TensorProto, helper

from onnxcam.errors import ModelError

Body = onnx.GraphProto | onnx.FunctionProto

# bits of the types smaller than a byte; an older onnx lacks some
_BITS = {
    TensorProto.DataType.Value(name): bits
    for name, bits in (
        ("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2), ("FLOAT6E2M3", 6), ("FLOAT6E3M2", 6)
    )
    if name in TensorProto.DataType.keys()  # noqa: SIM118 (an enum's wrapper is no mapping)
}  # fmt: skip
_COMPLEX = {TensorProto.COMPLEX64, TensorProto.COMPLEX128}
_HINT = "is the file damaged? export it again"
_ELEMENTS = frozenset(TensorProto.DataType.values())
_KINDS = frozenset(AttributeProto.AttributeType.values()) - {AttributeProto.UNDEFINED}


def validate(model: onnx.ModelProto) -> None:
    """Refuse a model that cannot be looked at.

    Raises:
        ModelError: what is wrong with it, and where.
    """
    # what is no UTF-8 comes as bytes
    wrong = next((text for text in _texts(model) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ModelError(f"the model is not valid ONNX: its name {wrong[:60]!r} is no UTF-8 text; {_HINT}")
    for body in bodies([model.graph, *model.functions]):
        for node in body.node:
            for attribute in node.attribute:
                if attribute.type not in _KINDS:
                    raise ModelError(
                        f"the model is not valid ONNX: attribute {attribute.name!r} of {node.op_type} {node.name!r} is "
                        f"of the unknown kind {attribute.type}; {_HINT}"
                    )
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        kind = info.type.tensor_type.elem_type
        if kind not in _ELEMENTS:
            raise ModelError(
                f"the model is not valid ONNX: {info.name!r} is of the unknown element type {kind}; {_HINT}"
            )
    for tensor in tensors([model.graph, *model.functions]):
        reason = _fault(tensor)
        if reason:
            raise ModelError(f"the model is not valid ONNX: tensor {tensor.name!r} {reason}; {_HINT}")


def tensors(held: Iterable[Body]) -> Iterator[TensorProto]:
    """Every tensor of graphs and functions, and of the graphs within."""
    for body in bodies(held):
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
            for sparse in body.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def bodies(held: Iterable[Body]) -> Iterator[Body]:
    """Graphs and functions, and the graphs within."""
    for body in held:
        yield body
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from bodies([attribute.g])
                if attribute.graphs:
                    yield from bodies(attribute.graphs)


def _texts(model: onnx.ModelProto) -> Iterator[str]:
    """Every text that is ever looked at."""
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (model.producer_name, *(opset.domain for opset in model.opset_import))
    for function in model.functions:
        yield from (function.domain, *function.input, *function.output, *function.attribute)
        yield from (opset.domain for opset in function.opset_import)
    for body in bodies([model.graph, *model.functions]):
        yield body.name
        for node in body.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield from (attribute.name, attribute.ref_attr_name)
        infos = list(body.value_info)
        if isinstance(body, onnx.GraphProto):
            infos += [*body.input, *body.output]
        for info in infos:
            yield from (info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim))
    for tensor in tensors([model.graph, *model.functions]):
        yield tensor.name


def _fault(tensor: TensorProto) -> str | None:
    """What is wrong with a tensor, None where it holds as many elements as its shape says."""
    kind = tensor.data_type
    if kind == TensorProto.UNDEFINED or kind not in _ELEMENTS:
        return f"is of the unknown element type {kind}"
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims):
        return f"has the shape {dims}"
    if len(dims) > 64:
        return f"has {len(dims)} dimensions"
    count = math.prod(dims)
    shown = f"{dims if len(dims) < 9 else [*dims[:8], '...']}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return None  # whoever loads it compares
    if tensor.HasField("raw_data"):
        if kind == TensorProto.STRING:
            return "keeps texts as raw bytes"
        held, wanted = len(tensor.raw_data), _bytes(kind, count)
        return None if held == wanted else f"of shape {shown} has {held:,} bytes, not {wanted:,}"
    each = 8 // _BITS.get(kind, 8)  # elements to an entry
    wanted = -(-count // each) * (2 if kind in _COMPLEX else 1)
    held = len(getattr(tensor, helper.tensor_dtype_to_field(kind)))
    return None if held == wanted else f"of shape {shown} has {held:,} elements, not {wanted:,}"


def _bytes(kind: int, count: int) -> int:
    if kind in _BITS:
        return -(-count * _BITS[kind] // 8)
    return count * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
