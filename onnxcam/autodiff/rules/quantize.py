"""VJP rules: quantization, straight through.

Rounding has no derivative, so it is treated as the identity it approximates, and saturation as the clipping it is
(https://arxiv.org/abs/1308.3432). The cotangent of a quantized value is in the real numbers it stands for, so that
reshaping, transposing or pooling between the two operators is differentiated like that of any other value.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.graph.builder import Builder
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import FLOATS

_MOVES = having(Trait.MOVES)
_RANGES: dict[int, tuple[int, int]] = {
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT16: (-(2**15), 2**15 - 1),
    onnx.TensorProto.UINT16: (0, 2**16 - 1),
    onnx.TensorProto.INT4: (-8, 7),
    onnx.TensorProto.UINT4: (0, 15),
}


@vjp("QuantizeLinear")
def quantize_linear(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where lowest < X / scale + zero point < highest: what saturates does not vary."""
    x, kind = node.inputs[0], node.graph.dtype(node.output)
    if kind not in _RANGES:
        raise node.refuse(f"{onnx.TensorProto.DataType.Name(kind)} is not an integer type with a range")
    op.dtype = node.graph.dtype(x) if node.graph.dtype(x) in FLOATS else onnx.TensorProto.FLOAT
    low, high = (_bound(op, node, float(limit)) for limit in _RANGES[kind])
    return [op.mask(dy, op.And(op.Greater(x, low), op.Less(x, high))), None, None]


@vjp("DynamicQuantizeLinear")
def dynamic_quantize_linear(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY: the range is that of X, which nothing exceeds; the scale is no way for a gradient."""
    return [dy]


@vjp("MatMulInteger")
def matmul_integer(op: Builder, node: Node, dy: str) -> Cotangents:
    """dA = dY·(B - b)ᵀ / s_A, dB = (A - a)ᵀ·dY / s_B: in the real numbers, s the scale of what quantized an operand."""
    ranks = [node.rank(name) for name in node.inputs[:2]]
    if (ranks[0] != ranks[1] and (ranks[1] != 2 or node.wants(1))) or min(ranks) < 2:
        raise node.refuse("its operands are broadcast against each other")
    da = db = None
    if node.wants(0):
        da = op.Div(op.MatMul(dy, _turned(op, node, 1)), _scale(node, 0))
    if node.wants(1):
        db = op.Div(op.MatMul(_turned(op, node, 0), dy), _scale(node, 1))
    return [da, db, None, None]


def _turned(op: Builder, node: Node, index: int) -> str:
    """An operand minus its zero point, its last two axes swapped."""
    real, zero = op.cast(node.inputs[index]), node.input(2 + index)
    if zero is not None:
        if index == 0 and node.shape(zero) not in ((), (1,)):
            raise node.refuse("its rows have zero points of their own")
        real = op.Sub(real, op.cast(zero))
    rank = node.rank(node.inputs[index])
    return str(op.Transpose(real, perm=[*range(rank - 2), rank - 1, rank - 2]))


def _scale(node: Node, index: int) -> str:
    """The scale with which an operand was quantized."""
    value = node.inputs[index]
    source = node.graph.producer.get(value)
    while source is not None and source.op_type in _MOVES:
        source = node.graph.producer.get(source.input[0])
    if source is not None and source.op_type == "DynamicQuantizeLinear":
        return str(source.output[1])
    if source is None or source.op_type != "QuantizeLinear" or node.shape(source.input[1]) not in ((), (1,)):
        raise node.refuse(f"with what scale {value!r} was quantized is unknown, or it differs along the tensor")
    return str(source.input[1])


@vjp("DequantizeLinear")
def dequantize_linear(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY, in the real numbers that X stands for."""
    return [dy, None, None]


def _bound(op: Builder, node: Node, limit: float) -> str:
    """(limit - zero point) * scale, in the shape in which it meets x."""
    scale, zero = node.constant(1), node.constant(2)
    if scale is not None and (zero is not None or node.input(2) is None):
        bound = (limit - (0 if zero is None else zero.astype(np.float64))) * scale.astype(np.float64)
        return op.constant(_spread(node, bound).astype(onnx.helper.tensor_dtype_to_np_dtype(op.dtype)))
    if node.attr("block_size", 0) or node.rank(node.inputs[1]):
        raise node.refuse("its scale is not a constant and differs along the tensor")
    offset = op.scalar(limit) if node.input(2) is None else op.Sub(limit, op.cast(node.inputs[2]))
    return op.Mul(offset, op.cast(node.inputs[1]))


def _spread(node: Node, bound: np.ndarray) -> np.ndarray:
    """A bound per slice along `axis` in a shape that broadcasts against x."""
    if bound.ndim == 0 or bound.size == 1:
        return bound.reshape(())
    if node.attr("block_size", 0):
        raise node.refuse("its scale is blockwise, which is not covered")
    rank = node.rank(node.inputs[0])
    shape = [1] * rank
    shape[node.attr("axis", 1) % rank] = bound.size
    return bound.reshape(shape)
