"""Quantized operators (QLinearConv and its relatives) rewritten with QuantizeLinear and DequantizeLinear (QDQ form).

    QLinearConv(x, ...)  =  QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(b)))

The runtime fuses these nodes back to the original operator, so predictions do not change, and every node is an operator
with a gradient rule. Operators without a QDQ form are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcam.errors import ModelError, UnsupportedOperator
from onnxcam.graph.edit import replace_nodes
from onnxcam.graph.view import attributes
from onnxcam.graph.writer import Writer

_MICROSOFT = "com.microsoft"
_QUANTIZERS = ("DynamicQuantizeLinear", "QuantizeLinear")
_STANDARD = ("ConvInteger", "QLinearConv", "QLinearMatMul")
# written by quantization tools, without a QDQ form
REFUSED = {
    "DynamicQuantizeLSTM": "dynamically quantized",
    "QEmbedLayerNormalization": "a fused quantized operator",
    "QOrderedMatMul": "a fused quantized operator",
    "MatMulBnb4": "quantized block by block",
}
_TO_FIRST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def rewrite(model: onnx.ModelProto) -> bool:
    """Replace quantized operators in place; return whether there were any.

    Raises:
        UnsupportedOperator: an operator has no QDQ form.
        ModelError: an operator lacks inputs or attributes.
    """
    if not any(_quantized(node) for node in model.graph.node):
        return False
    writer = _Writer(model)
    for node in model.graph.node:
        if _quantized(node):
            try:
                FORMS.get(node.op_type, _refuse)(writer, node)
            except (LookupError, TypeError, ValueError) as error:  # onnx's checker skips Microsoft's domain
                raise ModelError(
                    f"{node.op_type} (node {node.name!r}) has missing or invalid inputs or attributes ({error}); "
                    "quantize the model again"
                ) from error
        else:
            writer.nodes.append(node)
    real = {node.output[0] for node in model.graph.node if node.op_type == "ConvInteger"}  # declared as int32
    infos = [info for info in model.graph.value_info if info.name not in real]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
    replace_nodes(model, writer.nodes)
    return True


def _quantized(node: onnx.NodeProto) -> bool:
    if node.domain in ("", "ai.onnx"):
        return node.op_type in _STANDARD or node.op_type in REFUSED
    return node.domain == _MICROSOFT and (node.op_type in FORMS or node.op_type in REFUSED)


def _refuse(writer: _Writer, node: onnx.NodeProto) -> None:
    raise UnsupportedOperator(
        f"operator {node.op_type} (node {node.name!r}) is {REFUSED.get(node.op_type, 'quantized')}: its scales are "
        "computed at run time, or it fuses several operators, so it has no gradient rule. Quantize the model "
        "statically (onnxruntime.quantization.quantize_static, QDQ format), or explain the float model"
    )


class _Writer(Writer):
    """The new nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model, "quantized")
        self._dequantized: dict[tuple[str, ...], str] = {}
        quantizers = (node for node in model.graph.node if node.op_type in _QUANTIZERS)
        self._quantizers = {node.output[0]: node for node in quantizers}

    def dequantized(self, value: str, scale: str, zero: str = "", axis: int | None = None) -> str:
        """Dequantize a value; `axis` for scales per channel."""
        inputs = (value, scale, *([zero] if zero else []))
        if inputs not in self._dequantized:
            name = self.free(f"{value}_dequantized")
            self._dequantized[inputs] = self.add("DequantizeLinear", inputs, name, axis=self._axis(scale, axis))
        return self._dequantized[inputs]

    def quantized(self, value: str, scale: str, zero: str, output: str) -> None:
        """Quantize a value to a node's original output."""
        self.add("QuantizeLinear", [value, scale, *([zero] if zero else [])], output=output)

    def bias(self, value: str, x_scale: str, w_scale: str) -> str:
        """Dequantize an int32 bias: its scale is the product of the input's and the weights'."""
        scales = [self.constants.get(name) for name in (x_scale, w_scale)]
        if scales[0] is None or scales[1] is None:
            return self.dequantized(value, self.add("Mul", [x_scale, w_scale]), axis=0)
        first, second = (numpy_helper.to_array(tensor) for tensor in scales if tensor is not None)
        scale = np.asarray(first.reshape(()) * second, np.float32)
        scale = scale.reshape(()) if scale.size == 1 else scale.reshape(-1)
        constant = self.constant(scale)
        return self.add("DequantizeLinear", [value, constant], axis=0 if scale.ndim else None)

    def of_integers(self, value: str, zero: str) -> tuple[str, str]:
        """The real numbers that quantized ones stand for, and their scale: that of the operator that quantized them."""
        source = self._quantizers.get(value)
        if source is None:
            scale = self.scalar(1.0)
        else:
            scale = source.output[1] if source.op_type == "DynamicQuantizeLinear" else source.input[1]
        return self.dequantized(value, scale, zero), scale

    def centred(self, weight: str, zero: str, axis: int | None = None) -> str:
        """Weights minus their zero points as floats. By DequantizeLinear, ONNX Runtime would round activations too."""
        real = self.add("Cast", [weight], to=onnx.TensorProto.FLOAT)
        if not zero:
            return real
        tensor = self.constants.get(zero)
        if axis == 0 and tensor is not None and len(tensor.dims) == 1 and tensor.dims[0] > 1:
            rank = len(self.constants[weight].dims)
            zero = self.add("Reshape", [zero, self.integers(-1, *[1] * (rank - 1))])
        return self.add("Sub", [real, self.add("Cast", [zero], to=onnx.TensorProto.FLOAT)])

    def _axis(self, scale: str, axis: int | None) -> int | None:
        tensor = self.constants.get(scale)
        return axis if tensor is not None and int(np.prod(tensor.dims, dtype=np.int64)) > 1 else None


def _convolution(w: _Writer, node: onnx.NodeProto) -> None:
    x, xs, xz, weight, ws, wz, ys, yz, *bias = node.input
    attrs = attributes(node)
    last = bool(attrs.pop("channels_last", 0))  # Microsoft's
    real = w.dequantized(x, xs, xz)
    inputs = [w.add("Transpose", [real], perm=_TO_FIRST) if last else real, w.dequantized(weight, ws, wz, 0)]
    if bias and bias[0]:
        inputs.append(w.bias(bias[0], xs, ws))
    y = w.add("Conv", inputs, **attrs)
    w.quantized(w.add("Transpose", [y], perm=_TO_LAST) if last else y, ys, yz, node.output[0])


def _pool_channels_last(w: _Writer, node: onnx.NodeProto) -> None:
    first = w.add("Transpose", [node.input[0]], perm=_TO_FIRST)
    w.add("Transpose", [w.add("MaxPool", [first], **attributes(node))], node.output[0], perm=_TO_LAST)


def _integer_convolution(w: _Writer, node: onnx.NodeProto) -> None:
    x, weight, *zeros = node.input
    xz, wz = [*zeros, "", ""][:2]
    real, scale = w.of_integers(x, xz)
    y = w.add("Conv", [real, w.centred(weight, wz, 0)], **attributes(node))
    w.add("Div", [y, scale], node.output[0])


def _dynamic_product(w: _Writer, node: onnx.NodeProto) -> None:
    a, b, b_scale, b_zero, bias = [*node.input, "", ""][:5]
    names = [w.free(f"{node.output[0]}/{part}") for part in ("quantized", "scale", "zero")]
    w.nodes.append(helper.make_node("DynamicQuantizeLinear", [a], names, w.free(f"{node.output[0]}/quantize")))
    w.scaled_product((names[0], names[1], names[2]), (b, b_scale, b_zero), bias, node.output[0])


def _product_of_integers(w: _Writer, node: onnx.NodeProto) -> None:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = [*node.input, "", "", ""][:7]
    w.scaled_product((a, a_scale, a_zero), (b, b_scale, b_zero), bias, node.output[0])


def _product_by_blocks(w: _Writer, node: onnx.NodeProto) -> None:
    """MatMulNBits: weights `[N, blocks of K, bytes]` of 2, 4 or 8 bits, a scale and a zero point for each block."""
    a, b, scales, zeros, order, bias = [*node.input, "", "", ""][:6]
    attrs = attributes(node)
    bits, block, width, columns = (int(attrs[key]) for key in ("bits", "block_size", "K", "N"))
    packed, scale = w.array(b), w.array(scales)
    if order or packed is None or scale is None or bits not in (2, 4, 8):
        raise UnsupportedOperator(
            f"operator MatMulNBits (node {node.name!r}) has reordered or computed weights, or {bits} bits, which is "
            "not covered; explain the float model"
        )
    blocks = -(-width // block)
    values = _unpacked(packed.reshape(columns, blocks, -1), bits)[..., :block].reshape(columns * blocks, block)
    zero = w.array(zeros) if zeros else np.full(columns * blocks, 1 << (bits - 1), np.uint8)
    if zero is None or zero.dtype != np.uint8:
        raise UnsupportedOperator(
            f"operator MatMulNBits (node {node.name!r}) has computed or floating-point zero points, which is not "
            "covered; explain the float model"
        )
    if zeros:
        zero = _unpacked(zero.reshape(columns, -1), bits)[:, :blocks].reshape(-1)
    inputs = [w.constant(values), w.constant(np.asarray(scale, np.float32).reshape(-1)), w.constant(zero)]
    rows = w.add("Reshape", [w.add("DequantizeLinear", inputs, axis=0), w.integers(columns, blocks * block)])
    if blocks * block > width:
        rows = w.add("Slice", [rows, w.integers(0), w.integers(width), w.integers(1)])
    y = w.add("MatMul", [a, w.add("Transpose", [rows], perm=[1, 0])], None if bias else node.output[0])
    if bias:
        w.add("Add", [y, bias], node.output[0])


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """The numbers in bytes, the lowest bits first, along the last axis."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(values.reshape(*packed.shape[:-1], -1))


def _product(w: _Writer, node: onnx.NodeProto) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, ys, yz = node.input
    matmul = w.add("MatMul", [w.dequantized(a, a_scale, a_zero), w.dequantized(b, b_scale, b_zero, 1)])
    w.quantized(matmul, ys, yz, node.output[0])


def _linear(w: _Writer, node: onnx.NodeProto) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, *rest = node.input
    attrs = attributes(node)
    inputs = [w.dequantized(a, a_scale, a_zero), w.dequantized(b, b_scale, b_zero, 0 if attrs.get("transB", 0) else 1)]
    if rest and rest[0]:
        inputs.append(w.bias(rest[0], a_scale, b_scale))
        attrs["beta"] = attrs.get("alpha", 1.0)  # the operator scales the sum of both
    if len(rest) > 1 and rest[1]:
        w.quantized(w.add("Gemm", inputs, **attrs), rest[1], rest[2] if len(rest) > 2 else "", node.output[0])
    else:
        w.add("Gemm", inputs, node.output[0], **attrs)


def _of_two(op_type: str) -> Callable[[_Writer, onnx.NodeProto], None]:
    def write(w: _Writer, node: onnx.NodeProto) -> None:
        a, a_scale, a_zero, b, b_scale, b_zero, ys, *yz = node.input
        real = w.add(op_type, [w.dequantized(a, a_scale, a_zero), w.dequantized(b, b_scale, b_zero)])
        w.quantized(real, ys, yz[0] if yz else "", node.output[0])

    return write


def _of_one(op_type: str, *names: str) -> Callable[[_Writer, onnx.NodeProto], None]:
    def write(w: _Writer, node: onnx.NodeProto) -> None:
        x, xs, xz, ys, *yz = node.input
        attrs = attributes(node)
        options = {key: value for key, value in attrs.items() if key in names}
        real, last = w.dequantized(x, xs, xz), bool(attrs.get("channels_last", 0))
        real = w.add(op_type, [w.add("Transpose", [real], perm=_TO_FIRST) if last else real], **options)
        w.quantized(
            w.add("Transpose", [real], perm=_TO_LAST) if last else real, ys, yz[0] if yz else "", node.output[0]
        )

    return write


def _concatenation(w: _Writer, node: onnx.NodeProto) -> None:
    ys, yz, *rest = node.input
    parts = [w.dequantized(*rest[start : start + 3]) for start in range(0, len(rest), 3)]
    w.quantized(w.add("Concat", parts, axis=attributes(node)["axis"]), ys, yz, node.output[0])


def _choice(w: _Writer, node: onnx.NodeProto) -> None:
    condition, x, xs, xz, y, y_scale, y_zero, zs, zz = node.input
    real = w.add("Where", [condition, w.dequantized(x, xs, xz), w.dequantized(y, y_scale, y_zero)])
    w.quantized(real, zs, zz, node.output[0])


def _standard(w: _Writer, node: onnx.NodeProto) -> None:
    """The same operator of the standard domain; Microsoft's dates from before the standard had 16 and 4 bits."""
    w.add(node.op_type, list(node.input), node.output[0], **attributes(node))


FORMS: dict[str, Callable[[_Writer, onnx.NodeProto], None]] = {
    "ConvInteger": _integer_convolution,
    "DynamicQuantizeMatMul": _dynamic_product,
    "MatMulIntegerToFloat": _product_of_integers,
    "MatMulNBits": _product_by_blocks,
    "NhwcMaxPool": _pool_channels_last,
    "QLinearConv": _convolution,
    "QLinearMatMul": _product,
    "QGemm": _linear,
    "QLinearAdd": _of_two("Add"),
    "QLinearMul": _of_two("Mul"),
    "QLinearConcat": _concatenation,
    "QLinearWhere": _choice,
    "QLinearGlobalAveragePool": _of_one("GlobalAveragePool"),
    "QLinearAveragePool": _of_one(
        "AveragePool", "auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"
    ),
    "QLinearLeakyRelu": _of_one("LeakyRelu", "alpha"),
    "QLinearSigmoid": _of_one("Sigmoid"),
    "QLinearSoftmax": _of_one("Softmax", "axis"),
    "QuantizeLinear": _standard,
    "DequantizeLinear": _standard,
}


def relax(model: onnx.ModelProto, values: set[str], free: set[str]) -> None:
    """Remove the rounding of quantized values in place; their clipping stays.

    Rounding is a step function, which finite differences cannot measure; without it they measure the function that the
    gradient belongs to.

    Arguments:
        values: quantized values that vary with the input, and rearrangements of them. Their types change to float.
        free: those of them that lose their clipping too.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantizers = {node.output[0]: node for node in model.graph.node if node.op_type in _QUANTIZERS}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear" and node.output[0] in values:
            scales = onnx.NodeProto()
            scales.CopyFrom(node)
            scales.output[0] = f"{node.output[0]}/rounded"
            nodes += [scales, helper.make_node("Identity", node.input[:1], node.output[:1])]
        elif node.op_type == "MatMulInteger" and node.output[0] in values:
            nodes += _float_product(node, quantizers)
        elif node.output[0] in free:
            nodes.append(helper.make_node("Identity", node.input[:1], list(node.output)))
        elif node.op_type == "QuantizeLinear" and node.output[0] in values:
            low, high = limits(node, constants)
            bounds = []
            for suffix, bound in (("low", low), ("high", high)):
                name = f"{node.output[0]}/{suffix}"
                model.graph.initializer.append(numpy_helper.from_array(bound.astype(np.float32), name))
                bounds.append(name)
            above = f"{node.output[0]}/above"
            nodes.append(helper.make_node("Max", [node.input[0], bounds[0]], [above]))
            nodes.append(helper.make_node("Min", [above, bounds[1]], list(node.output)))
        elif node.op_type == "DequantizeLinear" and node.input[0] in values:
            nodes.append(helper.make_node("Identity", node.input[:1], list(node.output)))
        else:
            nodes.append(node)
    replace_nodes(model, nodes)
    infos = [info for info in model.graph.value_info if info.name not in values]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)


def _float_product(node: onnx.NodeProto, quantizers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """A MatMulInteger without rounding: an operand that was quantized is a real number, to be divided by its scale."""
    nodes, operands, y = [], [], node.output[0]
    for place, name in enumerate(node.input[:2]):
        quantizer, operand = quantizers.get(name), f"{y}/operand_{place}"
        zero = node.input[2 + place] if len(node.input) > 2 + place else ""
        if quantizer is not None:
            scale = quantizer.output[1] if quantizer.op_type == "DynamicQuantizeLinear" else quantizer.input[1]
            nodes.append(helper.make_node("Div", [name, scale], [operand]))
        else:
            real = [f"{operand}/real", f"{operand}/zero"]
            nodes.append(helper.make_node("Cast", [name], [real[0] if zero else operand], to=onnx.TensorProto.FLOAT))
            if zero:
                nodes.append(helper.make_node("Cast", [zero], [real[1]], to=onnx.TensorProto.FLOAT))
                nodes.append(helper.make_node("Sub", real, [operand]))
        operands.append(operand)
    return [*nodes, helper.make_node("MatMul", operands, [y])]


def freeze_selections(model: onnx.ModelProto, pools: Sequence[str], types: Mapping[str, int]) -> dict[str, str]:
    """Let MaxPool nodes select by other values than those they pool, in place.

    Arguments:
        pools: outputs of the nodes.
        types: element type of each input that they pool, as it is in the unchanged model.

    Returns:
        new inputs of the model by the pooled value: each selects where its own maximum lies.
    """
    names = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MaxPool" or node.output[0] not in pools:
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        if x not in names:
            names[x] = f"{x}/selecting"
            model.graph.input.append(helper.make_tensor_value_info(names[x], types[x], None))
        selecting = onnx.NodeProto()
        selecting.CopyFrom(node)
        selecting.name, selecting.input[0] = f"{node.name}/selecting", names[x]
        selecting.output[:] = [f"{y}/largest", f"{y}/places"]
        flat = f"{y}/flat"
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), f"{y}/all"))
        nodes.append(selecting)
        nodes.append(helper.make_node("Reshape", [x, f"{y}/all"], [flat]))
        nodes.append(helper.make_node("Gather", [flat, f"{y}/places"], [y], axis=0))
    replace_nodes(model, nodes)
    return names


def limits(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The range in which a QuantizeLinear with constant scale per tensor does not saturate."""
    zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
    scale = constants[node.input[1]].astype(np.float64)
    integers, zero_point = np.iinfo(zero.dtype), zero.astype(np.float64)
    return (integers.min - zero_point) * scale, (integers.max - zero_point) * scale
