"""Finds the attention of transformer blocks: who looks at whom, as a Softmax over all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from onnxcam.errors import LayerError
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import Graph, attributes

_PASSING = having(Trait.PASSES)


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        attention: the value `[N, heads, T, T]` behind its Softmax.
        output: the value `[N, T, D]` that the block ends with.
        heads, tokens: how many.
    """

    attention: str
    output: str
    heads: int
    tokens: int


def blocks(graph: Graph, picture: str, scores: str) -> list[Block]:
    """The blocks between picture and scores, in order, all over the same tokens.

    Raises:
        LayerError: there are none, or their attention is not over the same tokens all along (as in windows).
    """
    reached = graph.downstream([picture])
    between = [n for n in graph.upstream([scores])[0] if any(name in reached for name in n.input)]
    found = [node for node in between if _attends(graph, node)]
    if not found:
        raise LayerError(
            "no attention was found: between picture and scores there is no Softmax of shape [N, heads, T, T] whose "
            "rows weigh T tokens; this method is for transformers such as ViT and DeiT"
        )
    shapes = [(graph.shape(node.output[0]) or ())[1:] for node in found]
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        text = ", ".join(describe(shape) for shape in dict.fromkeys(shapes))
        raise LayerError(
            f"the attention of this model is over other tokens from block to block ({text}), as where it is taken "
            "within windows or after pooling; this method needs all tokens in every block"
        )
    ends = [graph.index_of(node) for node in found[1:]] + [len(graph.nodes)]
    made = []
    for node, end, shape in zip(found, ends, shapes, strict=True):
        heads, tokens = shape[0], shape[1]
        assert isinstance(heads, int) and isinstance(tokens, int)
        made.append(Block(node.output[0], _output(graph, node, end, tokens, between), heads, tokens))
    return made


def _attends(graph: Graph, node: onnx.NodeProto) -> bool:
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


def _output(graph: Graph, node: onnx.NodeProto, end: int, tokens: int, between: Sequence[onnx.NodeProto]) -> str:
    """The last residual sum over the tokens behind an attention and before the next one."""
    behind = graph.downstream([node.output[0]])
    start = graph.index_of(node)
    for candidate in reversed(between):
        place = graph.index_of(candidate)
        shape = graph.shape(candidate.output[0])
        if not start < place < end or candidate.op_type != "Add" or shape is None or len(shape) != 3:
            continue
        varying = [name for name in candidate.input if not graph.is_constant(name) and graph.shape(name) == shape]
        if shape[1] == tokens and len(varying) == 2 and candidate.output[0] in behind:
            return str(candidate.output[0])
    raise LayerError(f"no residual sum over the {tokens} tokens was found behind the attention {node.output[0]!r}")
