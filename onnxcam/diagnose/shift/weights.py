"""The weights that an operation really applies: dequantized, and with the normalisation that follows it folded in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnxcam import runtime
from onnxcam.diagnose.shift.operations import Operation
from onnxcam.graph import edit
from onnxcam.graph.view import Graph, attributes

_SCALING = {"Mul", "Div", "Add", "Sub", "BatchNormalization"}
_REARRANGING = {"Transpose", "Reshape", "Cast", "Identity", "Sub"}  # Sub: of a zero point
_BITS: dict[int, int] = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}


@dataclass(frozen=True, eq=False)
class Weights:
    """What an operation multiplies by and adds.

    Attributes:
        kernel: float32 `[O, …]`: output channels first.
        bias: float64 `[O]`.
        grid: of quantized weights, None of floats.
    """

    kernel: np.ndarray
    bias: np.ndarray
    grid: Grid | None = None


class Grid(NamedTuple):
    """On what weights are rounded.

    Attributes:
        largest: the largest integer, such as 127.
        by_channel: whether each output channel has a scale of its own, or even smaller blocks have.
    """

    largest: int
    by_channel: bool


def read(graph: Graph, operations: Iterable[Operation], open_session: Callable[[Any], Any]) -> dict[str, Weights]:
    """The weights of operations by their value; of those that have none, or of an unusual form, nothing.

    Arguments:
        graph: that they belong to.
        operations: those whose weights are read.
        open_session: opens a session of a model; constants that are computed are computed by it.
    """
    operations = [operation for operation in operations if operation.weight is not None]
    names = [name for one in operations for name in (one.weight, one.bias) if name is not None]
    for operation in operations:
        names += [name for node in operation.nodes[1:] for name in node.input if name and graph.is_constant(name)]
    constants = _constants(graph, dict.fromkeys(names), open_session)
    result = {}
    for operation in operations:
        weights = _weights(graph, operation, constants)
        if weights is not None:
            result[operation.value] = weights
    return result


def _constants(graph: Graph, names: Iterable[str], open_session: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    """Constants by name; those that nodes compute are computed in one run."""
    constants, computed = {}, []
    for name in names:
        array = graph.constant(name)
        if array is not None:
            constants[name] = array
        elif graph.dtype(name):
            computed.append(name)
    if computed:
        infos = [edit.info(name, graph.dtype(name), graph.shape(name)) for name in computed]
        session = open_session(edit.extract(graph, [], infos))
        constants |= runtime.run(session, computed, {})
    return constants


def _weights(graph: Graph, operation: Operation, constants: Mapping[str, np.ndarray]) -> Weights | None:
    kernel = constants.get(operation.weight or "")
    node = operation.node
    if kernel is None or node is None or kernel.ndim < 2:
        return None
    first = _output_axis(node, operation.weight or "")
    if first is None:
        return None
    kernel = np.moveaxis(kernel.astype(np.float64), first, 0)
    stored = constants.get(operation.bias or "")
    bias = np.zeros(len(kernel)) if stored is None else stored.astype(np.float64).reshape(-1)
    if bias.size != len(kernel):
        bias = np.broadcast_to(bias, len(kernel)) if bias.size == 1 else np.zeros(len(kernel))
    grid = _grid(graph, operation.weight or "")
    for follower in operation.nodes[1:]:
        folded = _fold(graph, follower, kernel, bias, constants)
        if folded is None:
            break
        kernel, bias = folded
    return Weights(kernel.astype(np.float32), bias, grid)


def _output_axis(node: onnx.NodeProto, weight: str) -> int | None:
    """The axis of a constant along which the output's channels lie."""
    attrs = attributes(node)
    match node.op_type:
        case "Conv" | "ConvInteger":
            return 0
        case "ConvTranspose":
            return 1 if attrs.get("group", 1) == 1 else None
        case "Gemm":
            return 0 if attrs.get("transB", 0) and node.input[1] == weight else 1
        case "MatMul" | "MatMulInteger":
            return -1 if node.input[1] == weight else -2
        case _:
            return None


def _grid(graph: Graph, weight: str) -> Grid | None:
    """The integers that a constant is computed from; None of floats."""
    name, scale = weight, None
    while (node := graph.producer.get(name)) is not None:
        if node.op_type == "DequantizeLinear":
            scale = graph.shape(node.input[1])
        elif node.op_type not in _REARRANGING:
            return None
        name = node.input[0]
    try:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(graph.dtype(name)))
        bits = _BITS.get(graph.dtype(name)) or (8 * kind.itemsize if kind.kind in "iu" else None)
    except KeyError:
        return None
    return None if bits is None else Grid(2 ** (bits - 1) - 1, scale is not None and scale not in ((), (1,)))


def _fold(
    graph: Graph, node: onnx.NodeProto, kernel: np.ndarray, bias: np.ndarray, constants: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The weights with a following affine operator; None where it is another one."""
    if node.op_type not in _SCALING:
        return None
    if node.op_type == "BatchNormalization":
        arrays = [constants.get(name) for name in node.input[1:5]]
        if any(array is None or array.size != len(kernel) for array in arrays):
            return None
        gamma, beta, mean, variance = (np.asarray(array, np.float64).reshape(-1) for array in arrays)
        factor = gamma / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        return _times(kernel, factor), (bias - mean) * factor + beta
    factors = {name: constants.get(name) for name in node.input}
    if all(array is None for array in factors.values()):
        factors = {name: _runtime_scale(graph, name) for name in node.input}
    names = [name for name, array in factors.items() if array is not None]
    array = factors[names[0]] if len(names) == 1 else None
    if array is None or array.size not in (1, len(kernel)):
        return None
    constant = array.astype(np.float64).reshape(-1)
    match node.op_type:
        case "Mul":
            return _times(kernel, constant), bias * constant
        case "Div" if node.input[1] == names[0]:
            return _times(kernel, 1 / constant), bias / constant
        case "Add":
            return kernel, bias + constant
        case "Sub" if node.input[1] == names[0]:
            return kernel, bias - constant
        case _:
            return None


def _runtime_scale(graph: Graph, name: str) -> np.ndarray | None:
    """The constant part of a scale: that of the activation, which is found at run time, counts as 1."""
    node = graph.producer.get(name)
    if node is None:
        return graph.constant(name)
    if node.op_type == "DynamicQuantizeLinear":
        return np.ones(1)
    if node.op_type != "Mul":
        return graph.constant(name)
    parts = [_runtime_scale(graph, factor) for factor in node.input]
    if parts[0] is None or parts[1] is None:
        return None
    return np.asarray(parts[0].reshape(-1) * parts[1].reshape(-1))


def _times(kernel: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.asarray(kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)))


def rounding(kernel: np.ndarray, grid: Grid) -> float:
    """The relative error of a float kernel `[O, …]` that is rounded as well as a grid allows."""
    largest = np.abs(kernel).reshape(len(kernel), -1).max(axis=1)
    if not grid.by_channel:
        largest = np.full_like(largest, largest.max())
    variance = (largest / grid.largest) ** 2 / 12
    norm = np.sqrt((kernel**2).mean())
    return float(np.sqrt(variance.mean()) / norm) if norm else 0.0


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative distance of two arrays of one shape: |a - b| / |b|; infinite where a value is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        norm, far = float(np.linalg.norm(b)), float(np.linalg.norm(a - b))
    if not np.isfinite(far):
        return float("inf")
    return far / norm if norm else float(far > 0)


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of the difference of two arrays; infinite where a value is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        far = float(np.sqrt(((a - b) ** 2).mean()))
    return far if np.isfinite(far) else float("inf")


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two kernels of one number of elements and output channels, by what comes first of each."""
    if a.shape[0] != b.shape[0] or a.size != b.size:
        return 0.0
    first, second = a.reshape(len(a), -1)[:64].ravel(), b.reshape(len(b), -1)[:64].ravel()
    with np.errstate(invalid="ignore", over="ignore"):
        norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    if not np.isfinite(norm):
        return 0.0
    return float(first @ second) / norm if norm else 0.0
