"""The gate of an explainable model: a condition as nodes of the graph, and what stands in for maps not computed.

The same tree and the same quantities as `conditions.evaluate` and `conditions.quantities`, in the same precision:
float64, from probabilities rounded to float32. A portable file computes in float32: it decides differently only within
about 1e-6 of a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx

from onnxcam.errors import SettingError
from onnxcam.graph import branch, edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.layers import Layer
from onnxcam.graph.view import Dim, Graph
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration import nodes
from onnxcam.network.calibration.record import Calibration, of_manifest
from onnxcam.network.layout import Layout
from onnxcam.targets import conditions
from onnxcam.targets.conditions import CALIBRATED, LABEL, SET, AllOf, AnyOf, Comparison, Condition, Not, Risk, Top
from onnxcam.targets.readout import Readout

FIRED = "fired"
_BEYOND = np.int64(2**31 - 1)
_DOUBLE = onnx.TensorProto.DOUBLE
_OPERATORS = {"<": "Less", "<=": "LessOrEqual", ">": "Greater", ">=": "GreaterOrEqual", "==": "Equal", "!=": "Equal"}


def parse(
    text: Any, labels: Sequence[str] | None, classes: int | None = None, manifest: Mapping[str, Any] | None = None
) -> Condition | None:
    """Parse a gate's condition, its labels resolved where the model is known; None for an empty text: no gate.

    Arguments:
        manifest: of the model, whose calibration answers `top` and `risk`; None where it is not known yet.

    Raises:
        SettingError, TargetError: as `conditions.parse` and `conditions.bind`.
    """
    if not isinstance(text, str):
        raise SettingError(f"gate={text!r} is a {type(text).__name__}; expected text such as 'confidence < 0.6'")
    if not text.strip():
        return None
    condition = conditions.parse(text, labels, classes)
    return condition if manifest is None else conditions.bind(condition, of_manifest(manifest))


def emit(
    op: Builder,
    condition: Condition,
    scores: str,
    readout: Readout,
    name: str = FIRED,
    calibration: Calibration | None = None,
) -> str:
    """Emit `fired`, bool `[N]`: where the condition holds; and return whether it holds in any row, a bool scalar.

    Arguments:
        condition: labels are indices.
        scores: `[N, columns]`.
        readout: their meaning.
        name: of the output.
        calibration: of the file, for `calibrated` and `set`: as the file's own outputs have them.
    """
    op.dtype = onnx.TensorProto.FLOAT if op.portable else _DOUBLE  # WebGPU has no float64
    names = conditions.names(condition)
    quantities = _quantities(op, scores, readout, names)
    if calibration is not None and names & {CALIBRATED, SET}:
        quantities |= _calibrated(op, scores, readout, calibration)
    fired = _holds(op, condition, quantities)
    op.Identity(fired, name=name)
    # a sum, not a maximum: a batch may be empty
    return op.Greater(op.ReduceSum(op.cast(fired), keepdims=0), 0.0)


def _holds(op: Builder, condition: Condition, quantities: dict[str, str]) -> str:
    """Where a condition holds, bool `[N]`."""
    match condition:
        case Comparison(quantity, sign, value):
            threshold = int(value) if quantity in (LABEL, SET) else float(value)
            if quantity == SET and sign not in ("==", "!="):
                # an empty set is beyond all others
                quantities = {SET: op.Where(op.Equal(quantities[SET], 0), _BEYOND, quantities[SET])}
            (comparison,) = op.call(_OPERATORS[sign], [quantities[quantity], threshold])
            return op.Not(comparison) if sign == "!=" else comparison
        case Not(inner):
            return op.Not(_holds(op, inner, quantities))
        case AllOf(parts):
            return reduce(op.And, [_holds(op, part, quantities) for part in parts])
        case AnyOf(parts):
            return reduce(op.Or, [_holds(op, part, quantities) for part in parts])
        case Top() | Risk():
            raise SettingError("the gate has a condition that no calibration has answered; report this as a bug")


def _quantities(op: Builder, scores: str, readout: Readout, names: set[str]) -> dict[str, str]:
    """The quantities that a condition compares, `[N]` each; a row that is not finite is as uncertain as possible."""
    narrow = op.Cast(emit_probabilities(op, op.cast(scores), readout), to=onnx.TensorProto.FLOAT)
    p = op.cast(narrow)
    # NaN is the only value that is not finite here, and it compares with nothing
    sound = op.GreaterOrEqual(op.ReduceSum(p, [1], keepdims=0), 0.0)
    quantities: dict[str, Callable[[], tuple[str, float | int]]] = {
        "confidence": lambda: (op.ReduceMax(p, [1], keepdims=0), 0.0),
        "margin": lambda: (_margin(op, p, readout.size), 0.0),
        "entropy": lambda: (_entropy(op, p, readout), 1.0),
        LABEL: lambda: (op.ArgMax(narrow, axis=1, keepdims=0), 0),
    }
    return {name: op.Where(sound, *quantity()) for name, quantity in quantities.items() if name in names}


def _calibrated(op: Builder, scores: str, readout: Readout, calibration: Calibration) -> dict[str, str]:
    """The quantities that a calibration answers, `[N]` each; a row that is not finite is as uncertain as possible."""
    probabilities, inside = nodes.emit(op, scores, readout, calibration)
    p = op.cast(probabilities)
    sound = op.GreaterOrEqual(op.ReduceSum(p, [1], keepdims=0), 0.0)  # NaN compares with nothing
    size = op.ReduceSum(op.Cast(inside, to=onnx.TensorProto.INT64), [1], keepdims=0)
    return {CALIBRATED: op.Where(sound, op.ReduceMax(p, [1], keepdims=0), 0.0), SET: op.Where(sound, size, 0)}


def emit_probabilities(op: Builder, logits: str, readout: Readout) -> str:
    """Emit `Readout.probabilities`, before it rounds to float32; of scores of the builder's element type."""
    if readout.logarithmic:
        return op.Exp(logits)
    if readout.exclusive:
        raised = op.Exp(op.Sub(logits, op.ReduceMax(logits, [1], keepdims=1)))
        return op.Div(raised, op.ReduceSum(raised, [1], keepdims=1))
    p = op.Div(op.Exp(op.Min(logits, 0.0)), op.Add(op.Exp(op.Neg(op.Abs(logits))), 1.0))
    return op.Concat(op.Sub(1.0, p), p, axis=1) if readout.signed else p


def _margin(op: Builder, p: str, classes: int) -> str:
    if classes < 2:
        return op.ReduceMax(p, [1], keepdims=0)
    best, _ = op.call("TopK", [p, [2]], outputs=2, axis=1)
    first, second = op.call("Split", [best], outputs=2, axis=1, num_outputs=2)
    return op.Squeeze(op.Sub(first, second), [1])


def _entropy(op: Builder, p: str, readout: Readout) -> str:
    def plogp(values: str) -> str:
        return op.Mul(values, op.Log(op.Max(values, 1e-300 if op.dtype == _DOUBLE else 1e-37)))

    if readout.independent:
        both = op.Add(plogp(p), plogp(op.Sub(1.0, p)))
        return op.Div(op.ReduceMean(both, [1], keepdims=0), -math.log(2))
    return op.Div(op.ReduceSum(plogp(p), [1], keepdims=0), -math.log(max(readout.size, 2)))


def enclose(
    model: onnx.ModelProto,
    fires: str,
    rows: Dim,
    layers: Sequence[Layer],
    entries: Sequence[dict[str, Any]],
    name: str = FIRED,
) -> None:
    """Make `fired` an output, and compute gradients and heatmaps only where a row of the batch fires.

    Arguments:
        fires: whether any row does, a bool scalar of the model.
        rows: the batch dimension.
        entries: the layers' entries of the manifest.
        name: of the output.
    """
    model.graph.output.append(edit.info(name, onnx.TensorProto.BOOL, [rows]))
    op = Builder(Graph(model))
    branch.enclose(model, fires, _blanks(op, layers, entries), op)


def _blanks(op: Builder, layers: Sequence[Layer], entries: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Zeros in the shape and type of each layer's gradients and heatmaps, by the names of those outputs.

    Arguments:
        entries: the layers' entries of the manifest.
    """
    values = {}
    for layer, entry in zip(layers, entries, strict=True):
        if entry["gradients"]:
            op.dtype = op.graph.dtype(layer.value)
            values[entry["gradients"]] = op.filled(0.0, op.shape(layer.value))
        op.dtype = onnx.TensorProto.FLOAT
        layout = Layout.of_layer(layer)
        axes = () if layout.tokens else (layout.height, layout.width)
        place = [_size(op, layer.value, axis) for axis in axes] or layer.grid or ()
        sizes: list[int | str] = [_size(op, layer.value, 0), *place]
        values |= {output: op.filled(0.0, op.vector(*sizes)) for output in entry["heatmaps"].values()}
    return values


def _size(op: Builder, value: str, axis: int) -> int | str:
    static = op.dim(value, axis)
    return op.size(value, axis) if static is None else static


def ungate(model: onnx.ModelProto) -> str | None:
    """Take the gate out of an explainable model: its maps are computed always then, under the same names.

    Returns:
        the condition of the gate, None where there was none.

    Raises:
        ModelError: the manifest names a gate that the graph has not got.
    """
    manifest = manifests.read(model)
    if manifest is None or not manifest.get("gate"):
        return None
    gate = manifest.pop("gate")
    gated = {entry["gradients"] for entry in manifest["layers"]} - {None}
    gated |= {name for entry in manifest["layers"] for name in entry["heatmaps"].values()}
    branch.release(model.graph, gated)
    branch.drop(model.graph.output, lambda output: output.name == gate["output"])
    manifests.write(model, manifest)
    edit.prune(model)
    return str(gate["condition"])
