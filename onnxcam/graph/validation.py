"""Validation of a parsed model: names are UTF-8, attributes have a known type, tensors have the declared size.

The protobuf parser checks none of this, and the code that reads the model later, in Python and C++, assumes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto, TensorProto, helper

from onnxcam.errors import ModelError

Body = onnx.GraphProto | onnx.FunctionProto

# bits per element of the types smaller than a byte; an older onnx lacks some
_BITS = {
    TensorProto.DataType.Value(name): bits
    for name, bits in (
        ("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2), ("FLOAT6E2M3", 6), ("FLOAT6E3M2", 6)
    )
    if name in TensorProto.DataType.keys()  # noqa: SIM118 (an enum's wrapper is not a mapping)
}  # fmt: skip
_COMPLEX = {TensorProto.COMPLEX64, TensorProto.COMPLEX128}
_HINT = "is the file damaged? export it again"
_ELEMENTS = frozenset(TensorProto.DataType.values())
_KINDS = frozenset(AttributeProto.AttributeType.values()) - {AttributeProto.UNDEFINED}


def validate(model: onnx.ModelProto) -> None:
    """Refuse a malformed model.

    Raises:
        ModelError: what is wrong with it, and where.
    """
    every = list(bodies([model.graph, *model.functions]))
    texts = list(_texts(model, every))
    for body in every:
        for node in body.node:
            texts += node.input
            texts += node.output
            texts += (node.name, node.op_type, node.domain)
            for attribute in node.attribute:
                texts += (attribute.name, attribute.ref_attr_name)
                if attribute.type not in _KINDS:
                    raise ModelError(
                        f"the model is not valid ONNX: attribute {attribute.name!r} of {node.op_type} {node.name!r} "
                        f"has the unknown type {attribute.type}; {_HINT}"
                    )
    weights = list(tensors_of(every))
    texts += (tensor.name for tensor in weights)
    # protobuf returns bytes for text that is not UTF-8
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise ModelError(f"the model is not valid ONNX: the name {wrong[:60]!r} is not UTF-8 text; {_HINT}")
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        kind = info.type.tensor_type.elem_type
        if kind not in _ELEMENTS:
            raise ModelError(f"the model is not valid ONNX: {info.name!r} has the unknown element type {kind}; {_HINT}")
    for tensor in weights:
        reason = _fault(tensor)
        if reason:
            raise ModelError(f"the model is not valid ONNX: tensor {tensor.name!r} {reason}; {_HINT}")


def tensors(graphs: Iterable[Body]) -> Iterator[TensorProto]:
    """Every tensor of graphs and functions and their subgraphs."""
    return tensors_of(bodies(graphs))


def tensors_of(alone: Iterable[Body]) -> Iterator[TensorProto]:
    """Every tensor of graphs and functions, those of their subgraphs left out."""
    for body in alone:
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
            for sparse in body.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def bodies(graphs: Iterable[Body]) -> Iterator[Body]:
    """Graphs and functions and their subgraphs."""
    for body in graphs:
        yield body
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from bodies([attribute.g])
                if attribute.graphs:
                    yield from bodies(attribute.graphs)


def _texts(model: onnx.ModelProto, every: Iterable[Body]) -> Iterator[str]:
    """Every text field that is read anywhere, but for those of nodes and tensors."""
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (model.producer_name, *(opset.domain for opset in model.opset_import))
    for function in model.functions:
        yield from (function.domain, *function.input, *function.output, *function.attribute)
        yield from (opset.domain for opset in function.opset_import)
    for body in every:
        yield body.name
        infos = list(body.value_info)
        if isinstance(body, onnx.GraphProto):
            infos += [*body.input, *body.output]
        for info in infos:
            yield from (info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim))


def _fault(tensor: TensorProto) -> str | None:
    """What is wrong with a tensor; None if it has the number of elements of its shape."""
    kind = tensor.data_type
    if kind == TensorProto.UNDEFINED or kind not in _ELEMENTS:
        return f"has the unknown element type {kind}"
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims):
        return f"has shape {dims}, with a negative dimension"
    if len(dims) > 64:
        return f"has {len(dims)} dimensions"
    count = math.prod(dims)
    shape = f"{dims if len(dims) < 9 else [*dims[:8], '...']}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return None  # checked when it is loaded
    if tensor.HasField("raw_data"):
        if kind == TensorProto.STRING:
            return "stores strings as raw bytes"
        size, expected = len(tensor.raw_data), _bytes(kind, count)
        return None if size == expected else f"of shape {shape} has {size:,} bytes, not {expected:,}"
    per_entry = 8 // _BITS.get(kind, 8)
    expected = -(-count // per_entry) * (2 if kind in _COMPLEX else 1)
    size = len(getattr(tensor, helper.tensor_dtype_to_field(kind)))
    return None if size == expected else f"of shape {shape} has {size:,} elements, not {expected:,}"


def _bytes(kind: int, count: int) -> int:
    if kind in _BITS:
        return -(-count * _BITS[kind] // 8)
    return count * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
