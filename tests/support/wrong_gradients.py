"""Small classifiers of many architectures, and wrong gradients planted one by one in their explainable files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

import onnxcam
from onnxcam import runtime
from onnxcam.graph.edit import replace_nodes

SIZE = 16
CLASSES = 6

# weights are named after their shapes: w8_3_3_3 is [8, 3, 3, 3]; g, s, m, v stand for those of a normalisation
ARCHITECTURES: dict[str, tuple[str, str]] = {
    "plain": (
        "a",
        """c = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  a = Relu(c)
        d = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a, w6_8_3_3, b6)  e = Relu(d)
        p = GlobalAveragePool(e)  f = Flatten(p)  logits = Gemm(f, w6_6, b6)""",
    ),
    "residual": (
        "a",
        """a = Conv<pads = [1, 1, 1, 1]>(input, w6_3_3_3)
        n = BatchNormalization(a, g6, s6, m6, v6)  r = Relu(n)
        c = Conv<pads = [1, 1, 1, 1]>(r, w6_6_3_3)  x = Add(c, a)
        k = BatchNormalization(x, h6, t6, m6, v6)  q = Relu(k)
        p = ReduceMean<keepdims = 0>(q, axes)  logits = Gemm<transB = 1>(p, w6_6, b6)""",
    ),
    "mobile": (
        "a",
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3)  h = HardSwish(a)
        d = Conv<pads = [1, 1, 1, 1], group = 8>(h, w8_1_3_3, b8)  k = Clip(d, zero, six)
        p = GlobalAveragePool(k)  u = Conv(p, w4_8_1_1)  r = Relu(u)  y = Conv(r, w8_4_1_1)  z = HardSigmoid(y)
        x = Mul(k, z)  l = Conv(x, w6_8_1_1)  q = GlobalAveragePool(l)  logits = Flatten(q)""",
    ),
    "tokens": (
        "a",
        """a = Conv<strides = [4, 4]>(input, w8_3_4_4)  f = Reshape(a, tokens)  t = Transpose<perm = [0, 2, 1]>(f)
        n = LayerNormalization<axis = -1>(t, g8, s8)
        q = MatMul(n, w8_8)  k = MatMul(n, x8_8)  v = MatMul(n, y8_8)  kt = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, kt)  w = Softmax<axis = -1>(s)  o = MatMul(w, v)  r = Add(o, t)
        m = MatMul(r, w8_12)  e = Gelu(m)  y = MatMul(e, w12_8)  z = Add(y, r)
        p = ReduceMean<keepdims = 0>(z, one)  logits = MatMul(p, w8_6)""",
    ),
    "pooling": (
        "a",
        """a = Conv<pads = [1, 1, 1, 1]>(input, w5_3_3_3)  r = LeakyRelu<alpha = 0.2>(a)
        m = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(r)
        v = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(m)
        y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(v)
        f = Flatten(y)  h = Gemm(f, w80_7, b7)  t = Tanh(h)  logits = Gemm(t, w7_6, b6)""",
    ),
    "dense": (
        "a",
        """a = Conv<pads = [1, 1, 1, 1]>(input, w6_3_3_3)  r = Elu(a)  c = Conv<pads = [1, 1, 1, 1]>(r, w4_6_3_3)
        j = Concat<axis = 1>(c, r)  u, d = Split<axis = 1, num_outputs = 2>(j)  s = Sigmoid(u)  g = Mul(d, s)
        w = Pad<mode = "reflect">(g, pads)  l = Slice(w, starts, ends, axes)  x = Sub(l, g)
        p = GlobalMaxPool(x)  f = Flatten(p)  logits = MatMul(f, w5_6)""",
    ),
    "upwards": (
        "a",
        """a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(input, w6_3_3_3)  n = InstanceNormalization(a, g6, s6)
        r = Softplus(n)  u = Resize<mode = "nearest">(r, , twice)  t = ConvTranspose<strides = [2, 2]>(u, w6_5_2_2, b5)
        y = Mish(t)  p = AveragePool<kernel_shape = [8, 8], strides = [8, 8]>(y)  f = Flatten(p)
        logits = Gemm(f, w80_6, b6)""",
    ),
    "arithmetic": (
        "a",
        """a = Conv<pads = [1, 1, 1, 1]>(input, w5_3_3_3)  s = Mul(a, a)  e = Add(s, half)  q = Sqrt(e)  d = Div(a, q)
        x = Exp(d)  i = Sin(x)  l = Erf(i)  n = ReduceL2<keepdims = 1>(l, one)  k = Div(l, n)  w = Pow(k, two)
        c = Where(chosen, w, l)  o = LRN<size = 3, alpha = 0.5, beta = 0.75>(c)
        p = ReduceSum<keepdims = 0>(o, axes)  h = Mul(p, tenth)  logits = MatMul(h, w5_6)""",
    ),
    "channels last": (
        "a",
        """t = Transpose<perm = [0, 2, 3, 1]>(input)  b = Transpose<perm = [0, 3, 1, 2]>(t)
        c = Conv<pads = [1, 1, 1, 1]>(b, w6_3_3_3)  a = Transpose<perm = [0, 2, 3, 1]>(c)  r = Relu(a)
        k = Mul(r, g6)  y = Add(k, s6)  q = Transpose<perm = [0, 3, 1, 2]>(y)
        m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q)  d = Conv(m, w6_6_3_3)
        z = Transpose<perm = [0, 2, 3, 1]>(d)  p = ReduceMean<keepdims = 0>(z, places)  logits = Gemm(p, w6_6, b6)""",
    ),
    "einsum": (
        "a",
        """a = Conv<pads = [1, 1, 1, 1]>(input, w6_3_3_3)  g = Sigmoid(a)
        u = Einsum<equation = "nchw,dc->ndhw">(g, w6_6)  r = PRelu(u, s6_1_1)  t = Celu<alpha = 0.7>(r)
        j = Sum(t, g, u)  x = Max(j, u)  y = Min(x, j)  p = GlobalAveragePool(y)  z = Squeeze(p, axes)
        s = Softmax<axis = 1>(z)  l = Log(s)  logits = MatMul(l, x6_6)""",
    ),
    "jumps": (
        "a",
        """a = Conv<pads = [1, 1, 1, 1]>(input, w6_3_3_3)  c = Conv<pads = [1, 1, 1, 1]>(a, w6_6_3_3)
        t = ThresholdedRelu<alpha = 0.2>(c)  j = Add(t, a)  p = GlobalAveragePool(j)  f = Flatten(p)
        logits = Gemm(f, w6_6, b6)""",
    ),
}
_FIXED = {
    "axes": np.array([2, 3]),
    "one": np.array([1]),
    "places": np.array([1, 2]),
    "zero": np.float32(0),
    "six": np.float32(1.5),
    "half": np.float32(0.5),
    "tenth": np.float32(0.1),
    "two": np.float32(2),
    "tokens": np.array([0, 0, -1]),
    "pads": np.array([0, 0, 1, 2, 0, 0, 1, 2]),
    "starts": np.array([2, 1]),
    "ends": np.array([18, 17]),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "chosen": np.arange(5).reshape(5, 1, 1) % 2 == 0,
}


def build(name: str, seed: int = 0) -> onnx.ModelProto:
    """One of the architectures with random weights; the layer to be explained is `a`."""
    rng = np.random.default_rng(seed)
    shape = f"float[N, 3, {SIZE}, {SIZE}]"
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]>\nsmall ({shape} input) => (float[N, {CLASSES}] logits) '
        f"{{\n{ARCHITECTURES[name][1]}\n}}"
    )
    for value in dict.fromkeys(name for node in model.graph.node for name in node.input if name):
        match = re.fullmatch(r"([a-z])(\d+(?:_\d+)*)", value)
        if value in _FIXED:
            array = np.asarray(_FIXED[value])
        elif match is not None:
            array = _weight(match[1], tuple(int(d) for d in match[2].split("_")), rng)
        else:
            continue
        model.graph.initializer.append(numpy_helper.from_array(array, value))
    onnx.checker.check_model(model)
    return model


def _weight(letter: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if letter in "gh":
        weight = rng.uniform(0.6, 1.6, shape)
    elif letter in "v":
        weight = rng.uniform(0.5, 2.0, shape)
    elif letter in "bstm":
        weight = rng.normal(size=shape) * 0.2
    else:
        weight = rng.normal(size=shape) * 1.4 / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])
    return weight.astype(np.float32)


def explainable(name: str, seed: int = 0) -> onnx.ModelProto:
    return onnxcam.augment(build(name, seed), [ARCHITECTURES[name][0]])


# ---- wrong gradients


class Plant(NamedTuple):
    """A model with one mistake in how its gradients are computed."""

    kind: str
    node: str
    model: onnx.ModelProto


Change = Callable[[onnx.ModelProto, onnx.NodeProto], Iterator[str]]


def plants(model: onnx.ModelProto) -> Iterator[Plant]:
    """Every mistake of every kind at every node that the gradients come through; some change no number."""
    for kind, change in CHANGES.items():
        for position, node in _emitted(model):
            proto = onnx.ModelProto()
            proto.CopyFrom(model)
            note = next(change(proto, proto.graph.node[position]), None)
            if note is not None:
                yield Plant(kind, f"{node.name}{note}", proto)


def some(candidates: Iterable[Plant], each: int) -> list[Plant]:
    """At most `each` of every kind, from all over the model."""
    by_kind: dict[str, list[Plant]] = {}
    for plant in candidates:
        by_kind.setdefault(plant.kind, []).append(plant)
    selection = []
    for group in by_kind.values():
        count = min(each, len(group))
        selection += [group[(2 * k + 1) * len(group) // (2 * count)] for k in range(count)]
    return selection


def gradients(model: onnx.ModelProto) -> np.ndarray | None:
    """What a file gives for every class and for its own best ones; None where it does not run, or not to the end."""
    batch = np.random.default_rng(0).normal(size=(CLASSES, 3, SIZE, SIZE)).astype(np.float32)
    try:
        session = runtime.open_session(model.SerializeToString(), ["CPUExecutionProvider"])
        parts = [
            runtime.run(session, ["gradients"], {"input": batch, "target": target})["gradients"]
            for target in (np.arange(CLASSES), np.full(CLASSES, -1))
        ]
    except onnxcam.OnnxcamError:
        return None
    values = np.stack(parts).astype(np.float64)
    return values if np.isfinite(values).all() else None


def change(right: np.ndarray, wrong: np.ndarray) -> float:
    """How far gradients are off, relative to the right ones: for named classes or for the best ones, the larger."""
    if right.shape != wrong.shape:
        return np.inf
    return max(float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in zip(right, wrong, strict=True))


def _emitted(model: onnx.ModelProto) -> Iterator[tuple[int, onnx.NodeProto]]:
    """The nodes that onnxcam added and the gradients come through."""
    needed = {"gradients"}
    result = []
    for position, node in reversed(list(enumerate(model.graph.node))):
        if needed & set(node.output) and node.name.startswith("onnxcam/"):
            needed.update(node.input)
            result.append((position, node))
    return iter(result[::-1])


def _behind(model: onnx.ModelProto, node: onnx.NodeProto, op_type: str, *constants: Any, **attrs: Any) -> None:
    """Put a node behind another one's first output."""
    name = node.output[0]
    node.output[0] = f"{name} right"
    inputs = [node.output[0]]
    for k, constant in enumerate(constants):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant), f"planted {k}"))
        inputs.append(f"planted {k}")
    nodes = list(model.graph.node)
    at = nodes.index(node)
    nodes.insert(at + 1, helper.make_node(op_type, inputs, [name], name="planted", **attrs))
    replace_nodes(model, nodes)


def _sign(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    if node.op_type in _REAL:
        _behind(model, node, "Neg")
        yield ""


def _factor(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    if node.op_type in _REAL:
        _behind(model, node, "Mul", np.float32(1.2))
        yield ""


def _term(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    """A sum without one of its terms."""
    if node.op_type in ("Add", "Sum", "Sub"):
        for name in list(node.input):
            others = [other for other in node.input if other != name]
            if others:
                rest = helper.make_node("Identity" if len(others) == 1 else "Sum", others, node.output, name=node.name)
                node.CopyFrom(rest)
                yield f" without {name}"
                return


def _product(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    """A product without its second factor, and a quotient turned round."""
    if node.op_type == "Mul":
        node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output, name=node.name))
        yield " without a factor"
    elif node.op_type == "Div":
        node.op_type = "Mul"
        yield " multiplied"


def _weights(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    """A constant of the gradient turned round, its first two axes swapped, or one off."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for place, name in enumerate(node.input):
        if name not in tensors or node.op_type in ("Reshape", "Expand", "Squeeze", "Unsqueeze"):
            continue
        array = numpy_helper.to_array(tensors[name])
        if array.dtype == np.float32 and array.size > 1:
            wrong = np.flip(array, axis=tuple(range(2, array.ndim)) if array.ndim > 2 else None)
        elif array.dtype == np.int64 and array.size:
            wrong = array + 1
        else:
            continue
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(wrong), "planted"))
        node.input[place] = "planted"
        yield f" with {name} turned"
        return


def _swapped(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    """The first two axes of square weights swapped; the operands of what is not commutative."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") and node.input[1] in tensors:
        array = numpy_helper.to_array(tensors[node.input[1]])
        if array.shape[0] == array.shape[1]:
            model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(array.swapaxes(0, 1)), "planted")
            )
            node.input[1] = "planted"
            yield " with its weights transposed"
    elif node.op_type in ("Sub", "Div", "Greater", "Less", "MatMul"):
        node.input[0], node.input[1] = node.input[1], node.input[0]
        yield " with its operands swapped"
    elif node.op_type == "Where":
        node.input[1], node.input[2] = node.input[2], node.input[1]
        yield " the other way round"


def _axis(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute.i += 1 if attribute.i != -1 else -1
            yield f" along axis {attribute.i}"
        elif attribute.name == "perm":
            perm = list(attribute.ints)
            attribute.ints[-2:] = perm[-1], perm[-2]
            yield f" to {list(attribute.ints)}"


def _operator(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    """Another operator of the same form."""
    other = _ALIKE.get(node.op_type)
    if other is not None:
        node.op_type = other
        yield f" as {other}"


def _geometry(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    """One pixel aside."""
    for attribute in node.attribute:
        if attribute.name == "pads" and len(attribute.ints) == 4 and any(attribute.ints):
            half = len(attribute.ints) // 2
            total = [attribute.ints[k] + attribute.ints[k + half] for k in range(half)]
            begin = 0 if attribute.ints[0] else 1
            attribute.ints[:] = [begin] * half + [t - begin for t in total]
            if min(attribute.ints) >= 0:
                yield f" with pads {list(attribute.ints)}"
        elif attribute.name == "reduction":
            attribute.s = b"none"
            yield " without adding up"
        elif attribute.name == "count_include_pad":
            attribute.i = 1 - attribute.i
            yield " counting otherwise"


def _half(model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[str]:
    """Rounded to whole tenths, as a lossy cast would."""
    if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        _behind(model, node, "Abs")
        yield ""


_REAL = {
    *("Mul", "Add", "Sum", "Sub", "Div", "Conv", "ConvTranspose", "MatMul", "Gemm", "Where", "Expand", "Reshape"),
    *("ReduceSum", "ReduceMean", "Transpose", "Resize", "AveragePool", "ScatterElements", "Pad", "Slice", "Concat"),
    *("Exp", "Sqrt", "Reciprocal", "Cos", "Identity", "Squeeze", "Unsqueeze", "Sigmoid", "Tanh", "Pow", "Softmax"),
}
_ALIKE = {
    "Greater": "Less",
    "Less": "Greater",
    "GreaterOrEqual": "Less",
    "ReduceSum": "ReduceMean",
    "ReduceMean": "ReduceSum",
    "Add": "Mul",
    "Mul": "Add",
    "Sub": "Add",
    "Exp": "Sigmoid",
    "Cos": "Sin",
    "Sin": "Cos",
    "Sqrt": "Exp",
    "Equal": "Greater",
    "And": "Or",
    "Sigmoid": "Tanh",
    "Tanh": "Sigmoid",
    "ArgMax": "ArgMin",
    "Reciprocal": "Neg",
}
CHANGES: dict[str, Change] = {
    "sign": _sign,
    "factor": _factor,
    "dropped term": _term,
    "dropped factor": _product,
    "turned weights": _weights,
    "swapped": _swapped,
    "axis": _axis,
    "operator": _operator,
    "geometry": _geometry,
    "magnitudes": _half,
}
