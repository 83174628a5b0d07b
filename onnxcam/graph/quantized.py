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
# written by quantization tools, without a QDQ form
REFUSED = {
    "ConvInteger": "dynamically quantized",
    "MatMulInteger": "dynamically quantized",
    "DynamicQuantizeLinear": "dynamically quantized",
    "DynamicQuantizeMatMul": "dynamically quantized",
    "MatMulIntegerToFloat": "dynamically quantized",
    "DynamicQuantizeLSTM": "dynamically quantized",
    "QEmbedLayerNormalization": "a fused quantized operator",
    "QOrderedMatMul": "a fused quantized operator",
    "MatMulNBits": "quantized block by block",
    "MatMulBnb4": "quantized block by block",
}


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
    replace_nodes(model, writer.nodes)
    return True


def _quantized(node: onnx.NodeProto) -> bool:
    if node.domain in ("", "ai.onnx"):
        return node.op_type in ("QLinearConv", "QLinearMatMul") or node.op_type in REFUSED
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

    def _axis(self, scale: str, axis: int | None) -> int | None:
        tensor = self.constants.get(scale)
        return axis if tensor is not None and int(np.prod(tensor.dims, dtype=np.int64)) > 1 else None


def _convolution(w: _Writer, node: onnx.NodeProto) -> None:
    x, xs, xz, weight, ws, wz, ys, yz, *bias = node.input
    inputs = [w.dequantized(x, xs, xz), w.dequantized(weight, ws, wz, 0)]
    if bias and bias[0]:
        inputs.append(w.bias(bias[0], xs, ws))
    w.quantized(w.add("Conv", inputs, **attributes(node)), ys, yz, node.output[0])


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
        if attrs.get("channels_last", 0):
            raise UnsupportedOperator(
                f"operator {node.op_type} (node {node.name!r}) pools with channels last, which the standard operator "
                "does not support; quantize the model in channels-first layout, or in the QDQ format"
            )
        options = {key: value for key, value in attrs.items() if key in names}
        real = w.add(op_type, [w.dequantized(x, xs, xz)], **options)
        w.quantized(real, ys, yz[0] if yz else "", node.output[0])

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
    nodes = []
    for node in model.graph.node:
        if node.output[0] in free:
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
