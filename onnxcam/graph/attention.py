"""Transformer blocks of a graph, recognised by their attention: a Softmax over all tokens."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from onnxcam.errors import LayerError
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import Graph, attributes, uses

_PASSING = having(Trait.PASSES)


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        attention: the value `[N, heads, T, T]`, the output of a Softmax.
        output: the value `[N, T, D]` that the block ends with.
        heads, tokens: their numbers.
    """

    attention: str
    output: str
    heads: int
    tokens: int


def blocks(graph: Graph, picture: str, scores: str) -> list[Block]:
    """Find the blocks between picture and scores, in graph order; all of them attend to the same tokens.

    Raises:
        LayerError: there are none, or the number of tokens or heads differs between blocks (windowed attention).
    """
    between = graph.between([picture], [scores])
    softmaxes = [node for node in between if _is_attention(graph, node)]
    if not softmaxes:
        raise LayerError(
            "no attention was found: between picture and scores there is no Softmax of shape [N, heads, T, T] over T "
            "tokens; this method is for transformers such as ViT and DeiT"
        )
    shapes = [(graph.shape(node.output[0]) or ())[1:] for node in softmaxes]
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        text = ", ".join(describe(shape) for shape in dict.fromkeys(shapes))
        raise LayerError(
            f"the shape of the attention differs between the model's blocks ({text}), as with windowed attention or "
            "pooling; this method needs attention over all tokens in every block"
        )
    ends = [graph.index_of(node) for node in softmaxes[1:]] + [len(graph.nodes)]
    outputs = {node.output[0] for node in between}
    result = []
    for node, end, shape in zip(softmaxes, ends, shapes, strict=True):
        heads, tokens = shape[0], shape[1]
        assert isinstance(heads, int) and isinstance(tokens, int)
        result.append(Block(node.output[0], _output(graph, node, end, tokens, outputs), heads, tokens))
    return result


def _is_attention(graph: Graph, node: onnx.NodeProto) -> bool:
    shape = graph.shape(node.output[0])
    if node.op_type != "Softmax" or shape is None or len(shape) != 4:
        return False
    heads, rows, columns = shape[1:]
    if not isinstance(heads, int) or not isinstance(rows, int) or rows != columns or rows < 4:
        return False
    if int(attributes(node).get("axis", -1)) % 4 != 3:
        return False
    readers = graph.consumers.get(node.output[0], [])
    while len(readers) == 1 and readers[0].op_type in _PASSING:
        readers = graph.consumers.get(readers[0].output[0], [])
    return any(reader.op_type == "MatMul" for reader in readers)


def _output(graph: Graph, node: onnx.NodeProto, end: int, tokens: int, between: Collection[str]) -> str:
    """Find the last residual Add over the tokens between one attention and the next."""
    start = graph.index_of(node)
    downstream = set(node.output)
    for reader in graph.nodes[start + 1 : end]:
        if any(name in downstream for name in uses(reader)):
            downstream.update(reader.output)
    for candidate in reversed(graph.nodes[start + 1 : end]):
        if candidate.op_type != "Add" or candidate.output[0] not in between:
            continue
        shape = graph.shape(candidate.output[0])
        if shape is None or len(shape) != 3:
            continue
        varying = [name for name in candidate.input if not graph.is_constant(name) and graph.shape(name) == shape]
        if shape[1] == tokens and len(varying) == 2 and candidate.output[0] in downstream:
            return str(candidate.output[0])
    raise LayerError(
        f"no residual Add over the {tokens} tokens follows the attention {node.output[0]!r}; this method needs "
        "transformer blocks with residual connections"
    )
