"""Compares the gradients onnxcam emits with float64 central finite differences of an independent forward pass.

    @covers("Conv")
    def test_conv():
        check("y = Conv<strides=[2, 2]>(x, w)", {"x": normal(1, 2, 5, 5)}, {"w": normal(3, 2, 3, 3)}, wrt=["x", "w"])

The emitted model runs in ONNX Runtime on the CPU in float32, once with the shapes declared and once with a symbolic
batch, and must also pass the full ONNX checker. Finite differences are taken of <cotangent, y> over every element of
every `wrt`, of onnx's ReferenceEvaluator in float64 or of a function on float64 torch tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import onnxcam
from onnxcam.graph.normalize import prepare
from onnxcam.graph.view import FLOATS
from tests.support.runtime import run

Arrays = Mapping[str, np.ndarray]
Reference = Callable[..., Any]
STEP = 1e-5
_NARROW = ("float16", "bfloat16", "float32", "float64")

_declared: set[str] = set()
_checked: set[str] = set()


def covers(*op_types: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare which operators' gradients a test checks; the test fails if it never gave them to `check`."""
    _declared.update(op_types)

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            _checked.clear()
            test(*args, **kwargs)
            missing = set(op_types) - _checked
            assert not missing, f"declared as covered but never checked: {sorted(missing)}"

        return wrapper

    return decorate


def covered() -> frozenset[str]:
    """Every operator declared by the test modules imported so far."""
    return frozenset(_declared)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values, the same at every call."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def distinct(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 values of both signs no two of which lie within 0.05 of each other, nor of 0: no ties, no kinks at 0."""
    size = int(np.prod(shape))
    values = (np.arange(size) - size // 2 + 0.5) * 0.1
    return np.random.default_rng([seed, *shape]).permutation(values).reshape(shape).astype(np.float32)


def same(
    sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int], mode: str
) -> tuple[list[int], list[int]]:
    """(begin, end) pads of ONNX's SAME_UPPER and SAME_LOWER."""
    totals = [max(0, (-(-n // s) - 1) * s + e - n) for n, e, s in zip(sizes, extents, strides, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def build(
    body: str | Sequence[onnx.NodeProto],
    feeds: Arrays,
    constants: Arrays | None = None,
    *,
    of: str = "y",
    opset: int = 18,
    free: str = "static",
) -> onnx.ModelProto:
    """A model from nodes in ONNX text; see `check` for the arguments."""
    nodes = parser.parse_graph(f"g () => () {{ {body} }}").node if isinstance(body, str) else body
    inputs = [_declare(name, array, free, next(iter(feeds.values()))) for name, array in feeds.items()]
    output = helper.make_tensor_value_info(of, onnx.TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "case", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    if not inferred.graph.output[0].type.tensor_type.HasField("shape"):  # which the checker insists on
        rank = next(iter(feeds.values())).ndim
        inferred.graph.output[0].CopyFrom(helper.make_tensor_value_info(of, onnx.TensorProto.FLOAT, [None] * rank))
    return inferred


def gradients(
    model: onnx.ModelProto, feeds: Arrays, cotangent: np.ndarray, wrt: Sequence[str], of: str = "y"
) -> list[np.ndarray]:
    """The gradients onnxcam emits, run in ONNX Runtime, after the full ONNX checker passed the model."""
    derived = onnxcam.gradient(model, of=of, wrt=wrt)
    assert not (idle := wasted(model, derived)), f"emitted and never used: {idle}"
    onnx.checker.check_model(derived, full_check=True)
    names = [f"grad.{name}" for name in wrt]
    return list(run(derived, {**feeds, f"cotangent.{of}": cotangent}, outputs=names, threads=1).values())


def wasted(model: onnx.ModelProto, derived: onnx.ModelProto) -> list[str]:
    """The added nodes that compute floating-point values nobody uses; a few integers of a shape cost nothing."""
    names = {name for node in derived.graph.node for name in node.input} | {o.name for o in derived.graph.output}
    node_count = len(prepare(model).nodes)  # composite operators are written out
    idle = [n for n in derived.graph.node[node_count:] if not names.intersection(n.output)]
    inferred = onnx.shape_inference.infer_shapes(derived).graph.value_info if idle else []
    integers = {v.name for v in inferred if v.type.tensor_type.elem_type == onnx.TensorProto.INT64}
    return [node.name for node in idle if not integers.intersection(node.output)]


def check(
    body: str | Sequence[onnx.NodeProto],
    feeds: Arrays,
    constants: Arrays | None = None,
    *,
    wrt: Sequence[str] | None = None,
    of: str = "y",
    opset: int = 18,
    free: Sequence[str] = ("static", "batch"),
    reference: Reference | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Check the gradients of `of` with respect to `wrt`.

    Arguments:
        body: nodes in ONNX text, `"y = Neg(x)"`, or as protos.
        feeds: the graph's inputs.
        constants: its initializers.
        wrt: inputs and initializers to differentiate with respect to; every float feed by default.
        of: the value differentiated.
        opset: opset of the model.
        free: which dimensions are left open, one run each: "static" none; "batch" axis 0 of each feed whose axis 0 has
            the size of the first feed's and whose rank is the first feed's; "spatial" also axes 2 and on; "all" every
            dimension, each with a symbol of its own; "rank" as "all" with constants turned into inputs.
        reference: `f(**tensors) -> y` on float64 torch tensors, where onnx's ReferenceEvaluator is wrong or slow.
        tolerance: bound on |a - b| / |b| in the Euclidean norm.
    """
    feeds = {name: np.asarray(array) for name, array in feeds.items()}
    constants = {name: np.asarray(array) for name, array in (constants or {}).items()}
    every = {**feeds, **constants}
    wrt = [name for name, array in feeds.items() if array.dtype == np.float32] if wrt is None else list(wrt)
    model = build(body, feeds, constants, of=of, opset=opset)
    record(model)
    forward = _torch_forward(reference) if reference else _onnx_forward(model, of)
    y = run(model, feeds, threads=1)[of]
    close(y, forward({name: widen(array) for name, array in every.items()}), 1e-5, "the forward pass")
    cotangent = np.random.default_rng(7).standard_normal(y.shape).astype(np.float32)
    expected = [finite_differences(forward, every, name, cotangent) for name in wrt]
    for openness in free:
        inputs = every if openness == "rank" else feeds
        fixed = {} if openness == "rank" else constants
        opened = build(body, inputs, fixed, of=of, opset=opset, free="all" if openness == "rank" else openness)
        for name, a, b in zip(wrt, gradients(opened, inputs, cotangent, wrt, of), expected, strict=True):
            close(a, b, tolerance, f"the gradient of {name!r} with {openness} shapes")


def record(model: onnx.ModelProto) -> None:
    """Tell `covers` that a model's gradients are checked, where `check` itself cannot."""
    _checked.update(node.op_type for node in model.graph.node)


def finite_differences(
    forward: Callable[[dict[str, np.ndarray]], np.ndarray], values: Arrays, name: str, cotangent: np.ndarray
) -> np.ndarray:
    """Central differences of <cotangent, forward> over every element of `values[name]`, in float64."""
    constants = {key: widen(array) for key, array in values.items()}
    flat = constants[name].reshape(-1)  # a view: writing to it moves the point
    constants[name] = flat.reshape(values[name].shape)
    slopes = np.empty(flat.size)
    for index, at in enumerate(flat.copy()):
        flat[index] = at + STEP
        above = forward(constants)
        flat[index] = at - STEP
        slopes[index] = np.vdot(cotangent.astype(np.float64), above - forward(constants)) / (2 * STEP)
        flat[index] = at
    return slopes.reshape(values[name].shape)


def close(a: np.ndarray, b: np.ndarray, tolerance: float, what: str) -> None:
    """Assert that shapes agree and |a - b| <= tolerance * |b|; below |b| = 1e-3 the bound no longer shrinks."""
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    assert np.isfinite(a).all(), f"{what}: not finite"
    error = float(np.linalg.norm(a.astype(np.float64) - b)) / max(float(np.linalg.norm(b)), 1e-3)
    assert error <= tolerance, f"{what}: relative error {error:.2e}\ngot {a}\nexpected {b}"


def _declare(name: str, array: np.ndarray, free: str, first: np.ndarray) -> onnx.ValueInfoProto:
    dims: list[int | str] = list(array.shape)
    batched = array.ndim == first.ndim and array.ndim > 0 and array.shape[0] == first.shape[0]
    if free == "all":
        dims = [f"{name}_{axis}" for axis in range(array.ndim)]
    elif free in ("batch", "spatial") and batched:
        dims[0] = "N"
        if free == "spatial":
            dims[2:] = [f"{name}_{axis}" for axis in range(2, array.ndim)]
    elif free not in ("static", "batch", "spatial"):
        raise ValueError(f"unknown kind of shapes: {free}")
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims)


def widen(array: np.ndarray) -> np.ndarray:
    """A copy, in float64 if it is of floating point."""
    array = np.asarray(array)
    return np.array(array, dtype=np.float64) if str(array.dtype) in _NARROW else np.array(array)


def _torch_forward(reference: Reference) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    def forward(values: dict[str, np.ndarray]) -> np.ndarray:
        y = reference(**{name: torch.from_numpy(array) for name, array in values.items()})
        return np.asarray(y).copy()  # it may be a view of what is varied

    return forward


def _onnx_forward(model: onnx.ModelProto, of: str) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """The model in onnx's own evaluator, in float64, weights and all fed."""
    wide = widened(model)
    names = [tensor.name for tensor in wide.graph.initializer]
    del wide.graph.initializer[:]
    wide.graph.input.extend(helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in names)
    evaluator = ReferenceEvaluator(wide)

    def forward(values: dict[str, np.ndarray]) -> np.ndarray:
        return np.array(evaluator.run([of], values)[0])  # a copy: it may be a view of what is varied

    return forward


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every floating-point constant, and every element type named, is float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen_graph(wide.graph)
    return wide


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "stash_type", "softmax_precision") and attribute.i in FLOATS:
                attribute.i = onnx.TensorProto.DOUBLE
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            if attribute.type == onnx.AttributeProto.GRAPH:
                _widen_graph(attribute.g)
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                array = np.asarray(helper.get_attribute_value(attribute), dtype=np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
