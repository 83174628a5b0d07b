"""A calibration as nodes of the graph: outputs `calibrated` and `prediction_set`, computed from the scores.

In float32 and by operators that every runtime has. Where the papers cumulate probabilities up to almost 1, the mass
that is left over is cumulated from the least likely class, which float32 can tell from the quantile's. A class whose
conformity lies within `MARGIN` of the threshold, relative to it, is in the set: the pictures of which the quantile was
taken lie there exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from onnxcam.errors import ModelError
from onnxcam.graph import branch, edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph, uses
from onnxcam.network.calibration.conformal import LAC
from onnxcam.network.calibration.record import CALIBRATED, LEFT_OUT, MARGIN, PREDICTION_SET, SMALLEST, Calibration
from onnxcam.network.manifest import Manifest
from onnxcam.targets.readout import Readout

_LARGEST = float(np.finfo(np.float32).max)


def attach(model: onnx.ModelProto, manifest: Manifest, calibration: Calibration) -> None:
    """Add the two outputs to an explainable model, in place.

    Arguments:
        model: with the scores as an output, and without a calibration.
        manifest: its manifest, to which `calibration` is added; it is not written to the model.
    """
    graph = Graph(model)
    op = Builder(graph, "onnxcam.calibration")
    readout = Readout.from_manifest(manifest["scores"])
    outputs = tuple(_free(op, name) for name in (CALIBRATED, PREDICTION_SET))
    calibration = replace(
        calibration,
        outputs=(outputs[0], outputs[1]),
        scores_sha256=digest(model, readout.value, manifest["input"]["name"]),
    )
    emit(op, readout.value, readout, calibration, outputs)
    edit.add(model, op)
    rows = (graph.shape(readout.value) or ("N",))[0]
    for name, kind in zip(outputs, (onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL), strict=True):
        model.graph.output.append(edit.info(name, kind, [rows, readout.size]))
    manifest["calibration"] = calibration.describe()


def emit(
    op: Builder, scores: str, readout: Readout, calibration: Calibration, names: Sequence[str | None] = (None, None)
) -> tuple[str, str]:
    """Emit `calibrated`, float32, and `prediction_set`, bool, `[N, size]` each; returns their values.

    Arguments:
        scores: `[N, columns]`.
        names: of both values.
    """
    dtype, op.dtype = op.dtype, onnx.TensorProto.FLOAT
    if op.graph.dtype(scores) != onnx.TensorProto.FLOAT:
        scores = op.cast(scores)
    columns = op.Concat(op.Sub(scores, scores), scores, axis=1) if readout.signed else scores
    calibrated = _probabilities(op, columns, scores, readout, calibration.temperature, names[0])
    inside = _sets(op, columns, scores, readout, calibration, calibrated, names[1])
    op.dtype = dtype
    return calibrated, inside


def detach(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Take the two outputs and their nodes out of a model again, in place; nothing is done where there are none."""
    entry = manifest.pop("calibration", None)
    if entry:
        names = set(entry["outputs"].values())
        branch.drop(model.graph.output, lambda output: output.name in names)
        edit.prune(model)


def _free(op: Builder, name: str) -> str:
    """A name, or one that begins with `onnxcam.` where the model has it already."""
    free = op.unique(name)
    return free if free == name else op.unique(f"onnxcam.{name}")


def _probabilities(
    op: Builder, columns: str, scores: str, readout: Readout, temperature: float, name: str | None = None
) -> str:
    """Emit probabilities `[N, size]` at a temperature."""
    if not readout.exclusive:
        scaled = scores if temperature == 1 else op.Mul(scores, 1.0 / temperature)
        # exact for small probabilities too, which runtimes' Sigmoid is not
        lower = op.Add(op.Exp(op.Neg(op.Abs(scaled))), 1.0)
        if not readout.signed:
            return op.Div(op.Exp(op.Min(scaled, 0.0)), lower, name=name)
        return op.Concat(
            op.Div(op.Exp(op.Min(op.Neg(scaled), 0.0)), lower), op.Div(op.Exp(op.Min(scaled, 0.0)), lower),
            axis=1, name=name,
        )  # fmt: skip
    return op.Softmax(_scaled(op, columns, temperature), axis=1, name=name)


def _scaled(op: Builder, columns: str, temperature: float) -> str:
    """Emit scores divided by a temperature; the largest is taken from them first, so that no digits are lost."""
    if temperature == 1:
        return columns
    return op.Mul(op.Sub(columns, op.ReduceMax(columns, [1], keepdims=1)), 1.0 / temperature)


def _sets(
    op: Builder,
    columns: str,
    scores: str,
    readout: Readout,
    calibration: Calibration,
    calibrated: str,
    name: str | None,
) -> str:
    """Emit the prediction sets, bool `[N, size]`."""
    rule, threshold = calibration.rule, calibration.threshold
    if rule.score == LAC:
        if readout.exclusive:
            same = rule.temperature == calibration.temperature
            p = calibrated if same else _probabilities(op, columns, scores, readout, rule.temperature)
            values, limit = p, _below(threshold)
        else:  # compared as scores: a sigmoid is monotonous
            values = op.Concat(op.Neg(scores), scores, axis=1) if readout.signed else scores
            limit = _score_limit(threshold, rule.temperature)
        if not rule.never_empty:
            return op.GreaterOrEqual(values, limit, name=name)
        return op.GreaterOrEqual(values, op.Min(op.ReduceMax(values, [1], keepdims=1), limit), name=name)
    size = readout.size
    ranked, _ = op.call("TopK", [columns, [size]], outputs=2, axis=1, largest=1, sorted=1)
    p = op.Softmax(_scaled_ranks(op, ranked, rule.temperature), axis=1)
    left = op.CumSum(p, 1, exclusive=1, reverse=1)
    limits = np.array([_below(limit) for limit in rule.limits(threshold, size, 0.0)], np.float32)
    if rule.never_empty:
        limits[0] = 0.0
    inside = op.GreaterOrEqual(left, limits[None])
    # of the ranks inside the last one's score: no class beyond the largest number, which no score reaches
    cut = op.ReduceMin(op.Where(inside, ranked, _LARGEST), [1], keepdims=1)
    return op.GreaterOrEqual(columns, cut, name=name)


def _scaled_ranks(op: Builder, ranked: str, temperature: float) -> str:
    """As `_scaled`, of scores in descending order."""
    return ranked if temperature == 1 else op.Mul(op.Sub(ranked, op.Slice(ranked, [0], [1], [1])), 1.0 / temperature)


def _below(limit: float) -> float:
    """A threshold as the graph compares with it: lower by the margin, in float32."""
    if limit <= SMALLEST:
        return 0.0
    return float(np.float32(limit * (1 - MARGIN)))


def _score_limit(threshold: float, temperature: float) -> float:
    """The score whose sigmoid at a temperature is the threshold, lower by the margin."""
    limit = _below(threshold)
    if limit <= 0:
        return -_LARGEST
    if limit >= 1:
        return _LARGEST
    score = temperature * (math.log(limit) - math.log1p(-limit))
    return float(np.nextafter(np.float32(score), np.float32(-np.inf)))


def digest(model: onnx.ModelProto, scores: str, picture: str) -> str:
    """SHA-256 of the graph from the picture to the scores: operators, attributes and weights, whatever their names.

    Raises:
        ModelError: the graph does not compute the scores.
    """
    nodes, weights = _upstream(model, scores, picture)
    if not nodes:
        raise ModelError(f"the graph does not compute the scores {scores!r}; export the model again")
    numbers = {picture: 0}
    sha = hashlib.sha256()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def number(name: str) -> int:
        if name and name not in numbers:
            numbers[name] = len(numbers)
            tensor = tensors.get(name)
            if tensor is not None and name in weights:
                _hash_tensor(sha, tensor)
        return numbers.get(name, -1)

    for node in nodes:
        read = [number(name) for name in (*node.input, *(name for name in uses(node) if name not in node.input))]
        sha.update(f"{node.domain.replace('ai.onnx', '')} {node.op_type} {read}\n".encode())
        for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
            if attribute.type == onnx.AttributeProto.TENSOR:
                sha.update(attribute.name.encode())
                _hash_tensor(sha, attribute.t)
            else:
                sha.update(attribute.SerializeToString(deterministic=True))
        sha.update(repr([number(name) for name in node.output]).encode())
    return sha.hexdigest()


def _upstream(model: onnx.ModelProto, scores: str, picture: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes between the picture and the scores, in order, and the values that they read from outside."""
    needed: set[str] = {scores}
    nodes: list[onnx.NodeProto] = []
    outside: set[str] = {scores}
    for node in reversed(model.graph.node):
        if picture in node.output or not any(name in needed for name in node.output if name):
            continue
        nodes.append(node)
        reads: Iterable[str] = list(uses(node))
        needed.update(reads)
        outside.update(reads)
        outside.difference_update(node.output)
    return nodes[::-1], outside - {picture}


def _hash_tensor(sha: hashlib._Hash, tensor: onnx.TensorProto) -> None:
    sha.update(f"{tensor.data_type} {list(tensor.dims)} ".encode())
    if tensor.raw_data:
        sha.update(tensor.raw_data)
        return
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    bare.ClearField("name")
    bare.ClearField("doc_string")
    sha.update(bare.SerializeToString(deterministic=True))


def seal(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Note in a manifest how many bytes the finished graph has: what tells a reader without onnx that it was changed.

    A graph over protobuf's limit is not noted, as it is written in two files.
    """
    entry = manifest.get("calibration")
    if entry:
        try:
            entry["graph_bytes"] = model.graph.ByteSize()
        except (ValueError, EncodeError):
            entry["graph_bytes"] = None


def changed(model: onnx.ModelProto, manifest: Manifest) -> str | None:
    """What has become of a calibrated file's scores: a sentence if their graph is another one now, else None."""
    entry = manifest.get("calibration") or {}
    recorded = entry.get("scores_sha256")
    if recorded is None or digest(model, manifest["scores"]["name"], manifest["input"]["name"]) == recorded:
        return None
    return (
        "the file's calibration was made for other scores: the graph from the picture to the scores, or its weights, "
        "have changed since, as quantising or simplifying changes them; calibrate the file again (onnxcam calibrate)"
    )


def renew(
    previous: Manifest, stale: str | None, model: onnx.ModelProto, manifest: Manifest, named_scores: str | None
) -> list[str]:
    """Write the calibration of an explainable model into what it became, unless its scores are others now.

    Arguments:
        previous: the manifest of the model as it was.
        stale: of `changed`, of the model as it was.
        model, manifest: as it is now.
        named_scores: the value whose scores the caller named, None for those as before.

    Returns:
        sentences about a calibration that is left out.
    """
    if not previous.get("calibration"):
        return []
    before, after = previous["scores"], manifest["scores"]
    names = {before["name"], before.get("probabilities"), (previous.get("source") or {}).get("scores"), None}
    if any(before.get(key) != after.get(key) for key in ("kind", "classes", "scale")) or named_scores not in names:
        return [f"{LEFT_OUT}: it was made for other scores; calibrate the new file (onnxcam calibrate)"]
    if stale is not None:
        return [f"{LEFT_OUT}: {stale}"]
    attach(model, manifest, Calibration.from_manifest(previous["calibration"]))
    return []
