"""Operators that ONNX Runtime fuses when it saves an optimised model, written as those of the standard again.

    FusedConv(x, w, b, z)  =  activation(Conv(x, w, b) + z)

Those of its blocked layout (com.microsoft.nchwc) are in `graph.blocked`, quantized ones in `graph.quantized`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from onnxcam.errors import ModelError, UnsupportedOperator
from onnxcam.graph import blocked
from onnxcam.graph.edit import replace_nodes
from onnxcam.graph.form import Form, Unknown, activation, gelu
from onnxcam.graph.shape_inference import NodeShapes, infer
from onnxcam.graph.view import Graph
from onnxcam.graph.writer import Writer

_MICROSOFT = "com.microsoft"
# written by ONNX Runtime under the standard's domain
_STANDARD = {"SimplifiedLayerNormalization"}
# since which opset the standard has a kernel for an operator, but none in ONNX Runtime 1.32 on the CPU
_NO_KERNEL = {"Swish": 25, "SwiGLU": 1}


def rewrite(model: onnx.ModelProto) -> list[str]:
    """Write fused operators as those of the standard, in place.

    Returns:
        a sentence about each kind of them, for the manifest.

    Raises:
        UnsupportedOperator: an operator cannot be written. ModelError: it lacks inputs or attributes.
    """
    counts: Counter[tuple[str, str]] = Counter()
    while True:
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        if not any(_form(node, opset) for node in model.graph.node):
            return _sentences(counts)
        if any(_needs_shapes(node) for node in model.graph.node):
            infer(model)
        if not _round(model, opset, counts):
            names = sorted({node.op_type for node in model.graph.node if _form(node, opset)})
            raise UnsupportedOperator(
                f"{', '.join(names)}, in which ONNX Runtime fused several operators, cannot be written as standard "
                "ones: their inputs' shapes are unknown; explain the model as it was before it was optimised"
            )


def _sentences(counts: Counter[tuple[str, str]]) -> list[str]:
    sentences = []
    for domain in sorted({domain for domain, _ in counts}):
        names = ", ".join(sorted(name for other, name in counts if other == domain))
        where = f" of {domain}" if domain else ""
        sentences.append(f"{names}{where}: written as other operators of the standard")
    return sentences


def hide_early_normalization(model: onnx.ModelProto) -> None:
    """Put LayerNormalization of before opset 17, which ONNX Runtime saves, into Microsoft's domain: `rewrite` brings it
    back once the model is upgraded."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and opset < 17 and node.op_type in ("LayerNormalization", *_STANDARD):
            node.domain = _MICROSOFT
            if all(o.domain != _MICROSOFT for o in model.opset_import):
                model.opset_import.add(domain=_MICROSOFT, version=1)


def _round(model: onnx.ModelProto, opset: int, counts: Counter[tuple[str, str]]) -> bool:
    """Write every node whose shapes are known; return whether there was any."""
    graph = Graph(model)
    w = Writer(model, "fused")
    shapes = NodeShapes(graph, w.constants)
    waiting = any(_needs_shapes(node) for node in graph.nodes)
    written = False
    for node in graph.nodes:
        form = _form(node, opset)
        before = len(w.nodes)
        try:
            if form is None:
                w.nodes.append(node)
            else:
                form(Form(w, graph, node, shapes))
                counts["" if node.domain == "ai.onnx" else node.domain, node.op_type] += 1
                written = True
        except Unknown:
            w.nodes[before:] = [node]
        except (LookupError, TypeError, ValueError) as error:  # onnx's checker skips Microsoft's domain
            raise ModelError(
                f"{node.op_type} (node {node.name!r}) has missing or invalid inputs or attributes ({error}); is the "
                "file damaged? export the model again"
            ) from error
        for added in w.nodes[before:] if waiting else ():
            shapes.add(added)
    replace_nodes(model, w.nodes)
    return written


def _form(node: onnx.NodeProto, opset: int) -> Callable[[Form], None] | None:
    """How to write a node; None to leave it."""
    if node.domain == blocked.DOMAIN:
        return lambda form: blocked.write(form)
    if node.domain in ("", "ai.onnx"):
        if node.op_type in _STANDARD or (node.op_type in _NO_KERNEL and opset >= _NO_KERNEL[node.op_type]):
            return FORMS[node.op_type]
        return None
    return FORMS.get(node.op_type) if node.domain == _MICROSOFT else None


def _needs_shapes(node: onnx.NodeProto) -> bool:
    return node.domain == blocked.DOMAIN or node.op_type in ("FusedMatMul", "TransposeMatMul", "MultiHeadAttention")


def _convolution(form: Form) -> None:
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    options = {key: value for key, value in form.attrs.items() if key in names}
    inputs = [name for name in (form.input(k) for k in range(3)) if name]
    added, active = form.input(3), form.attrs.get("activation", "")
    value = form.w.add("Conv", inputs, None if added or active else form.output, **options)
    if added:
        value = form.w.add("Add", [value, added], None if active else form.output)
    if active:
        activation(form, value, form.output)


def _linear(form: Form) -> None:
    options = {key: value for key, value in form.attrs.items() if key in ("alpha", "beta", "transA", "transB")}
    inputs = [name for name in form.node.input if name]
    value = form.w.add("Gemm", inputs, **options)
    keys = ("activation_alpha", "activation_beta", "activation_gamma")
    form.attrs["activation_params"] = [form.attrs[key] for key in keys if key in form.attrs]
    activation(form, value, form.output)


def _product(form: Form) -> None:
    a, b = (_turned(form, form.input(k), "AB"[k]) for k in (0, 1))
    alpha = float(form.attrs.get("alpha", 1.0))
    value = form.w.add("MatMul", [a, b], form.output if alpha == 1 else None)
    if alpha != 1:
        form.w.add("Mul", [value, form.w.scalar(alpha)], form.output)


def _turned(form: Form, value: str, letter: str) -> str:
    """An operand of a product as `transA` and `transBatchA` mean it."""
    swap, batch = bool(form.attrs.get(f"trans{letter}", 0)), bool(form.attrs.get(f"transBatch{letter}", 0))
    if not swap and not batch:
        return value
    order = list(range(len(form.shape(value))))
    if batch:  # the first axis of the batch goes next to the matrix's rows
        order = [*order[1:-1], order[0], order[-1]]
    if swap:
        order[-2:] = order[-1], order[-2]
    return form.w.add("Transpose", [value], perm=order)


def _gelu(form: Form) -> None:
    gelu(form, _biased(form), form.output)


def _fast_gelu(form: Form) -> None:
    gelu(form, _biased(form), form.output, approximate=True)


def _biased(form: Form) -> str:
    return form.w.add("Add", [form.input(0), form.input(1)]) if form.input(1) else form.input(0)


def _swish(form: Form) -> None:
    """x sigmoid(alpha x): QuickGelu, Swish, and with a second factor SwiGLU."""
    x, alpha = form.input(0), float(form.attrs.get("alpha", 1.702 if form.node.op_type == "QuickGelu" else 1.0))
    scaled = x if alpha == 1 else form.w.add("Mul", [x, form.w.scalar(alpha)])
    factor = form.input(1)
    value = form.w.add("Mul", [x, form.w.add("Sigmoid", [scaled])], None if factor else form.output)
    if factor:
        form.w.add("Mul", [value, factor], form.output)


def _sum(form: Form) -> None:
    """BiasAdd, BiasDropout: the sum of the first inputs; nothing is dropped in inference."""
    if form.node.op_type == "BiasDropout" and (form.further(1) or form.input(4)):
        raise form.refuse("returns its mask, or may be in training mode")
    names = [name for name in (form.input(k) for k in range(3)) if name]
    value = form.w.add("Add", names[:2], form.output if len(names) == 2 else None)
    if len(names) == 3:
        form.w.add("Add", [value, names[2]], form.output)


def _skip_normalization(form: Form) -> None:
    """LayerNormalization, or without a mean, of a sum that further layers may read too."""
    plain = form.node.op_type.startswith("SkipSimplified")
    beta, bias = ("", form.input(3)) if plain else (form.input(3), form.input(4))
    if form.further(1) or form.further(2):
        raise form.refuse("returns mean or deviation")
    total = form.w.add("Add", [form.input(0), form.input(1)], None if bias else form.further(3) or None)
    if bias:
        total = form.w.add("Add", [total, bias], form.further(3) or None)
    epsilon = float(form.attrs.get("epsilon", 1e-12))
    if plain:
        _mean_square(form, total, form.input(2), epsilon)
    else:
        inputs = [total, form.input(2), *([beta] if beta else [])]
        form.w.add("LayerNormalization", inputs, form.output, axis=-1, epsilon=epsilon)


def _simplified_normalization(form: Form) -> None:
    if form.attrs.get("axis", -1) != -1 or form.further(1):
        raise form.refuse("normalises along other axes than the last, or returns the deviation")
    _mean_square(form, form.input(0), form.input(1), float(form.attrs.get("epsilon", 1e-5)))


def _mean_square(form: Form, x: str, scale: str, epsilon: float) -> None:
    w = form.w
    squares = w.add("ReduceMean", [w.add("Mul", [x, x]), w.integers(-1)], keepdims=1)
    root = w.add("Sqrt", [w.add("Add", [squares, w.scalar(epsilon)])])
    w.add("Mul", [w.add("Div", [x, root]), scale], form.output)


def _layer_normalization(form: Form) -> None:
    form.w.add("LayerNormalization", list(form.node.input), form.output, **form.attrs)


def _attention(form: Form) -> None:
    """Projection to queries, keys and values in one, then attention."""
    if form.input(3) or form.input(4) or form.further(1):
        raise form.refuse("has a mask or a past")
    w = form.w
    projected = w.add("MatMul", [form.input(0), form.input(1)])
    if form.input(2):
        projected = w.add("Add", [projected, form.input(2)])
    attend(form, split(form, projected), form.input(5))


def split(form: Form, projected: str) -> list[str]:
    """Queries, keys and values of what one product projects to, `[N, T, 3 D]`."""
    sizes, w = [int(size) for size in form.attrs.get("qkv_hidden_sizes", [])], form.w
    names = [w.free(f"{form.output}/{part}") for part in ("query", "key", "value")]
    sections: dict[str, Any] = {} if sizes else {"num_outputs": 3}
    inputs = [projected, *([w.integers(*sizes)] if sizes else [])]
    w.nodes.append(onnx.helper.make_node("Split", inputs, names, w.free(f"{form.output}/split"), axis=-1, **sections))
    return names


def _several_heads(form: Form) -> None:
    if any(form.input(k) for k in (4, 6, 7, 8, 9)) or form.further(1) or not form.input(2):
        raise form.refuse("has packed inputs, a mask or a past")
    parts, bias, w = [form.input(k) for k in range(3)], form.input(3), form.w
    if bias:
        biases = [w.free(f"{form.output}/bias_{part}") for part in ("query", "key", "value")]
        array = w.array(bias)
        if array is None:
            raise form.refuse("has a computed bias")
        widths = [_width(form, name) for name in parts]
        for name, values in zip(biases, np.split(array, np.cumsum(widths)[:-1]), strict=True):
            w.model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        parts = [w.add("Add", [part, name]) for part, name in zip(parts, biases, strict=True)]
    for name in (form.input(k) for k in range(3)):
        if len(form.shape(name)) != 3:
            raise form.refuse("has packed inputs")
    attend(form, parts, form.input(5))


def _width(form: Form, name: str) -> int:
    width = form.shape(name)[-1]
    if not isinstance(width, int):
        raise Unknown
    return width


def attend(form: Form, parts: list[str], bias: str) -> None:
    """Write attention over heads of queries, keys and values `[N, T, D]`, to `[N, T, D]`."""
    if form.attrs.get("unidirectional", 0):
        raise form.refuse("attends to earlier tokens only")
    w, heads = form.w, int(form.attrs["num_heads"])
    query, key, value = (w.add("Reshape", [part, w.integers(0, 0, heads, -1)]) for part in parts)
    query, value = (w.add("Transpose", [part], perm=[0, 2, 1, 3]) for part in (query, value))
    key = w.add("Transpose", [key], perm=[0, 2, 3, 1])
    scale = float(form.attrs.get("scale", 0.0))
    product = w.add("MatMul", [query, key])
    if scale:
        product = w.add("Mul", [product, w.scalar(scale)])
    else:  # 1 / sqrt of a head's width
        width = w.add("Cast", [w.add("Shape", [query], start=3, end=4)], to=onnx.TensorProto.FLOAT)
        product = w.add("Div", [product, w.add("Sqrt", [width])])
    if bias:
        product = w.add("Add", [product, bias])
    weighted = w.add("MatMul", [w.add("Softmax", [product], axis=-1), value])
    w.add("Reshape", [w.add("Transpose", [weighted], perm=[0, 2, 1, 3]), w.integers(0, 0, -1)], form.output)


def _quantized_attention(form: Form) -> None:
    """QAttention: the projection in integers, which stand for what they are dequantized to."""
    if form.input(5) or form.input(8) or form.further(1):
        raise form.refuse("has a mask or a past")
    projected = form.w.free(f"{form.output}/projected")
    x, weights = (form.input(0), form.input(3), form.input(6)), (form.input(1), form.input(4), form.input(7))
    form.w.scaled_product(x, weights, form.input(2), projected)
    attend(form, split(form, projected), "")


FORMS: dict[str, Callable[[Any], None]] = {
    "Attention": _attention,
    "BiasAdd": _sum,
    "BiasDropout": _sum,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _convolution,
    "FusedGemm": _linear,
    "FusedMatMul": _product,
    "Gelu": _gelu,
    "LayerNormalization": _layer_normalization,
    "MultiHeadAttention": _several_heads,
    "QAttention": _quantized_attention,
    "QuickGelu": _swish,
    "SimplifiedLayerNormalization": _simplified_normalization,
    "SkipLayerNormalization": _skip_normalization,
    "SkipSimplifiedLayerNormalization": _skip_normalization,
    "SwiGLU": _swish,
    "Swish": _swish,
    "TransposeMatMul": _product,
}
