"""Files of quantized operators (QLinearConv and its relatives) in the form of QuantizeLinear and DequantizeLinear.

    QLinearConv(x, ...)  =  QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(b)))

The runtime fuses that back into the operator it came from, so predictions stay what they were; and each part is an
operator that can be differentiated. What has no such form is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcam.errors import ModelError, UnsupportedOperator
from onnxcam.graph.edit import replace_nodes
from onnxcam.graph.view import attributes

_MICROSOFT = "com.microsoft"
# what quantization tools write and no arrangement of the two operators stands for
REFUSED = {
    "ConvInteger": "dynamically quantized",
    "MatMulInteger": "dynamically quantized",
    "DynamicQuantizeLinear": "dynamically quantized",
    "DynamicQuantizeMatMul": "dynamically quantized",
    "MatMulIntegerToFloat": "dynamically quantized",
    "DynamicQuantizeLSTM": "dynamically quantized",
    "QAttention": "a fused quantized operator",
    "QEmbedLayerNormalization": "a fused quantized operator",
    "QOrderedMatMul": "a fused quantized operator",
    "MatMulNBits": "quantized block by block",
    "MatMulBnb4": "quantized block by block",
}


def rewrite(model: onnx.ModelProto) -> bool:
    """Replace quantized operators in place; whether there were any.

    Raises:
        UnsupportedOperator: one that has no other form.
    """
    if not any(_quantized(node) for node in model.graph.node):
        return False
    writer = _Writer(model)
    for node in model.graph.node:
        if _quantized(node):
            try:
                FORMS.get(node.op_type, _refuse)(writer, node)
            except (LookupError, TypeError, ValueError) as error:  # nobody checks what is not of the standard's domain
                raise ModelError(
                    f"{node.op_type} (node {node.name!r}) has not the inputs and attributes that it needs ({error}); "
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
        "known only as it runs, or its parts cannot be told apart, so it has no gradient here. Quantize the model "
        "statically (onnxruntime.quantization.quantize_static, QDQ format), or explain the float model"
    )


class _Writer:
    """Collects the new nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._count = 0
        self._real: dict[tuple[str, ...], str] = {}
        self._taken = {name for node in model.graph.node for name in node.output} | set(self.constants)
        self._taken |= {info.name for info in model.graph.input}

    def dequantized(self, value: str, scale: str, zero: str = "", axis: int | None = None) -> str:
        """The real numbers of a quantized value; `axis` where its scales differ along one."""
        inputs = (value, scale, *([zero] if zero else []))
        if inputs not in self._real:
            name = self._free(f"{value}_dequantized")
            self._real[inputs] = self.add("DequantizeLinear", inputs, name, axis=self._axis(scale, axis))
        return self._real[inputs]

    def quantized(self, value: str, scale: str, zero: str, output: str) -> None:
        """The last step of a node: its output as before."""
        self.add("QuantizeLinear", [value, scale, *([zero] if zero else [])], output=output)

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def add(self, op_type: str, inputs: Sequence[str], output: str | None = None, **given: Any) -> str:
        """A node of the standard domain; the name of its output."""
        self._count += 1
        name = f"onnxcam/{op_type}_of_quantized_{self._count}"
        held = {key: value for key, value in given.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), [output or name], name=name, **held))
        return output or name

    def constant(self, array: np.ndarray) -> str:
        """A new initializer."""
        self._count += 1
        name = f"onnxcam/constant_of_quantized_{self._count}"
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def bias(self, value: str, x_scale: str, w_scale: str) -> str:
        """An int32 bias as real numbers: its scale is the product of the others'."""
        known = [self.constants.get(name) for name in (x_scale, w_scale)]
        if known[0] is None or known[1] is None:
            return self.dequantized(value, self.add("Mul", [x_scale, w_scale]), axis=0)
        first, second = (numpy_helper.to_array(tensor) for tensor in known if tensor is not None)
        scale = np.asarray(first.reshape(()) * second, np.float32)
        scale = scale.reshape(()) if scale.size == 1 else scale.reshape(-1)
        made = self.constant(scale)
        return self.add("DequantizeLinear", [value, made], axis=0 if scale.ndim else None)

    def _axis(self, scale: str, axis: int | None) -> int | None:
        held = self.constants.get(scale)
        return axis if held is not None and int(np.prod(held.dims, dtype=np.int64)) > 1 else None


def _convolution(w: _Writer, node: onnx.NodeProto) -> None:
    x, xs, xz, weight, ws, wz, ys, yz, *bias = node.input
    inputs = [w.dequantized(x, xs, xz), w.dequantized(weight, ws, wz, 0)]
    if bias and bias[0]:
        inputs.append(w.bias(bias[0], xs, ws))
    w.quantized(w.add("Conv", inputs, **attributes(node)), ys, yz, node.output[0])


def _product(w: _Writer, node: onnx.NodeProto) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, ys, yz = node.input
    made = w.add("MatMul", [w.dequantized(a, a_scale, a_zero), w.dequantized(b, b_scale, b_zero, 1)])
    w.quantized(made, ys, yz, node.output[0])


def _linear(w: _Writer, node: onnx.NodeProto) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, *rest = node.input
    held = attributes(node)
    inputs = [w.dequantized(a, a_scale, a_zero), w.dequantized(b, b_scale, b_zero, 0 if held.get("transB", 0) else 1)]
    if rest and rest[0]:
        inputs.append(w.bias(rest[0], a_scale, b_scale))
        held["beta"] = held.get("alpha", 1.0)  # the operator scales the sum of both
    if len(rest) > 1 and rest[1]:
        w.quantized(w.add("Gemm", inputs, **held), rest[1], rest[2] if len(rest) > 2 else "", node.output[0])
    else:
        w.add("Gemm", inputs, node.output[0], **held)


def _of_two(op_type: str) -> Callable[[_Writer, onnx.NodeProto], None]:
    def write(w: _Writer, node: onnx.NodeProto) -> None:
        a, a_scale, a_zero, b, b_scale, b_zero, ys, *yz = node.input
        made = w.add(op_type, [w.dequantized(a, a_scale, a_zero), w.dequantized(b, b_scale, b_zero)])
        w.quantized(made, ys, yz[0] if yz else "", node.output[0])

    return write


def _of_one(op_type: str, *kept: str) -> Callable[[_Writer, onnx.NodeProto], None]:
    def write(w: _Writer, node: onnx.NodeProto) -> None:
        x, xs, xz, ys, *yz = node.input
        held = attributes(node)
        if held.get("channels_last", 0):
            raise UnsupportedOperator(
                f"operator {node.op_type} (node {node.name!r}) pools with channels last, which the standard operator "
                "does not; quantize the model in channels-first layout, or in the QDQ format"
            )
        given = {key: value for key, value in held.items() if key in kept}
        made = w.add(op_type, [w.dequantized(x, xs, xz)], **given)
        w.quantized(made, ys, yz[0] if yz else "", node.output[0])

    return write


def _concatenation(w: _Writer, node: onnx.NodeProto) -> None:
    ys, yz, *rest = node.input
    parts = [w.dequantized(*rest[start : start + 3]) for start in range(0, len(rest), 3)]
    w.quantized(w.add("Concat", parts, axis=attributes(node)["axis"]), ys, yz, node.output[0])


def _choice(w: _Writer, node: onnx.NodeProto) -> None:
    condition, x, xs, xz, y, y_scale, y_zero, zs, zz = node.input
    made = w.add("Where", [condition, w.dequantized(x, xs, xz), w.dequantized(y, y_scale, y_zero)])
    w.quantized(made, zs, zz, node.output[0])


def _standard(w: _Writer, node: onnx.NodeProto) -> None:
    """The same operator of the standard domain, from before that had 16 and 4 bits."""
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
    """Take rounding away, in place: what quantization leaves of the given values is the clipping it does.

    Finite differences see stairs where there is rounding; of what is left they see what the gradient is of.

    Arguments:
        values: quantized values, and what is moved about of them, that vary. Their types change to float.
        free: those of them that are not clipped either.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = []
    for node in model.graph.node:
        if node.output[0] in free:
            made.append(helper.make_node("Identity", node.input[:1], list(node.output)))
        elif node.op_type == "QuantizeLinear" and node.output[0] in values:
            low, high = limits(node, constants)
            bounds = []
            for suffix, bound in (("low", low), ("high", high)):
                name = f"{node.output[0]}/{suffix}"
                model.graph.initializer.append(numpy_helper.from_array(bound.astype(np.float32), name))
                bounds.append(name)
            above = f"{node.output[0]}/above"
            made.append(helper.make_node("Max", [node.input[0], bounds[0]], [above]))
            made.append(helper.make_node("Min", [above, bounds[1]], list(node.output)))
        elif node.op_type == "DequantizeLinear" and node.input[0] in values:
            made.append(helper.make_node("Identity", node.input[:1], list(node.output)))
        else:
            made.append(node)
    replace_nodes(model, made)
    kept = [info for info in model.graph.value_info if info.name not in values]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def limits(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Between which real numbers a QuantizeLinear with constant, whole-tensor scale does not saturate."""
    zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
    scale = constants[node.input[1]].astype(np.float64)
    kind, offset = np.iinfo(zero.dtype), zero.astype(np.float64)
    return (kind.min - offset) * scale, (kind.max - offset) * scale
