"""Whether a manifest agrees with the graph that it describes; kept free of onnx, as manifests are.

A manifest that says something else than its graph would silently give wrong maps: every statement that inputs and
outputs can contradict is compared, and the first that they do is told.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxcam.errors import ModelError, listing
from onnxcam.network.layout import Layout
from onnxcam.network.manifest import SHARED, Manifest
from onnxcam.targets.readout import APPENDED, Readout
from onnxcam.targets.tasks import EMBEDDING

if TYPE_CHECKING:
    from onnxcam.graph.view import Graph

# elements of a batch: 1 GiB in float32
_LARGEST = 1 << 28
_FLOATS = ("float32", "float16", "float64", "bfloat16")
_AGAIN = "export the model again"
# names of element types as ONNX Runtime and as `TensorProto` have them
_OF_RUNTIME = {"float": "float32", "double": "float64"}
_OF_ONNX = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16", 2: "uint8", 7: "int64", 9: "bool"}


class Value(NamedTuple):
    """An input or an output.

    Attributes:
        dtype: NumPy's name of its element type; empty if unknown.
        shape: ints, and anything else where a dimension is dynamic; None if the rank is unknown.
    """

    dtype: str
    shape: tuple[Any, ...] | None


class Interface(NamedTuple):
    """What a model takes and returns.

    Attributes:
        optional: inputs that need not be fed.
    """

    inputs: Mapping[str, Value]
    optional: Mapping[str, Value]
    outputs: Mapping[str, Value]

    @classmethod
    def of_session(cls, session: Any) -> Interface:
        """That of a session of ONNX Runtime."""
        groups = (session.get_inputs(), session.get_overridable_initializers(), session.get_outputs())
        return cls(*({argument.name: _of_argument(argument) for argument in group} for group in groups))

    @classmethod
    def of_graph(cls, graph: Graph) -> Interface:
        """That of a graph."""
        inputs = {info.name: _of_value(graph, info.name) for info in graph.inputs}
        declared = {info.name for info in graph.model.graph.input}
        optional = {name: _of_value(graph, name) for name in graph.initializers if name in declared}
        return cls(inputs, optional, {info.name: _of_value(graph, info.name) for info in graph.outputs})


def _of_argument(argument: Any) -> Value:
    kind = str(argument.type).removeprefix("tensor(").removesuffix(")")
    return Value(_OF_RUNTIME.get(kind, kind), tuple(argument.shape) or None)


def _of_value(graph: Graph, name: str) -> Value:
    return Value(_OF_ONNX.get(graph.dtype(name), ""), graph.shape(name))


def require_agreement(manifest: Manifest, interface: Interface) -> None:
    """Refuse a manifest that does not agree with its graph, or whose input would not fit into memory.

    Raises:
        ModelError: what the manifest says, and what the graph has.
    """
    for sentence in _disagreements(manifest, interface):
        raise ModelError(f"{sentence}; {_AGAIN}")
    shape = manifest["input"]["shape"]
    if math.prod(d for d in shape if isinstance(d, int)) > _LARGEST:
        raise ModelError(
            f"an input of shape {shape} is too large to be fed; export the model for fewer or smaller pictures"
        )


def _disagreements(manifest: Manifest, interface: Interface) -> Iterator[str]:
    yield from _of_input(manifest["input"], interface)
    needed = list(_names(manifest))
    missing = [name for name in needed if name not in interface.outputs]
    if missing:
        yield f"the manifest names {listing(missing)}, which the graph does not output"
    twice = [name for name in dict.fromkeys(needed) if needed.count(name) > 1]
    if twice:
        yield f"the manifest names the output {twice[0]!r} for two things"
    original = (manifest.get("source") or {}).get("outputs") or []
    unknown = [name for name in original if name not in interface.outputs]
    if unknown:
        yield f"the manifest says that the source had the outputs {listing(unknown)}, which the graph does not output"
    scores = (manifest["scores"]["name"], manifest["scores"].get("probabilities"))
    added = [name for name in needed if name in original and name not in scores]
    if added:
        yield f"the manifest says that the output {added[0]!r} was added to the source, and that the source had it"
    appended = APPENDED[manifest["scores"]["kind"]]
    usual = scores[0] == appended or scores[0].startswith(f"onnxcam.{appended}")  # where the model has one of that name
    if original and scores[0] not in original and not usual:
        yield (
            f"the manifest says that the scores {scores[0]!r} are of kind {manifest['scores']['kind']!r}, whose output "
            f"is called {appended!r}"
        )
    yield from _of_scores(manifest["scores"], interface.outputs)
    yield from _of_target(manifest, interface)
    yield from _of_region(manifest["target"], interface)
    for entry in manifest["layers"]:
        yield from _of_layer(entry, interface.outputs)
    gate = manifest.get("gate")
    if gate:
        yield from _differing(f"the gate's output {gate['output']!r}", interface.outputs[gate["output"]], ("bool",), 1)
    calibration = manifest.get("calibration")
    if calibration:
        names, classes = calibration["outputs"], manifest["scores"]["classes"]
        for key, kind in (("calibrated", "float32"), ("prediction_set", "bool")):
            value = interface.outputs[names[key]]
            yield from _differing(f"the output {names[key]!r} ({key})", value, (kind,), 2, ("N", classes))


def _names(manifest: Manifest) -> Iterator[str]:
    """Every output that a manifest names."""
    yield manifest["scores"]["name"]
    if manifest["scores"].get("probabilities"):
        yield manifest["scores"]["probabilities"]
    for entry in manifest["layers"]:
        yield from (entry[key] for key in ("activations", "gradients") if entry[key])
        yield from entry["heatmaps"].values()
    yield from (manifest["target"].get("heatmaps") or {}).values()
    if manifest.get("gate"):
        yield manifest["gate"]["output"]
    if manifest.get("calibration"):
        yield from (manifest["calibration"]["outputs"][key] for key in ("calibrated", "prediction_set"))


def _of_input(entry: Mapping[str, Any], interface: Interface) -> Iterator[str]:
    name, recorded = entry["name"], entry["shape"]
    value = interface.inputs.get(name) or interface.optional.get(name)
    if value is None or value.shape is None or _differs(recorded, value.shape):
        what = "has no such input" if value is None else f"takes {list(value.shape or ())}"
        yield f"the manifest says that the input {name!r} is {recorded}, the graph {what}"
        return
    if value.dtype and value.dtype != entry["dtype"]:
        yield f"the manifest says that the input {name!r} is {entry['dtype']}, the graph takes {value.dtype}"
    channels = {"NCHW": recorded[1] in (1, 3, 4), "NHWC": recorded[3] in (1, 3, 4)}
    if channels["NCHW"] != channels["NHWC"] and not channels[entry["layout"]]:
        yield f"the manifest says that the input {name!r} of shape {recorded} is {entry['layout']}, which it cannot be"


def _of_scores(entry: Mapping[str, Any], outputs: Mapping[str, Value]) -> Iterator[str]:
    columns = Readout.from_manifest(entry).columns or None
    yield from _differing(
        f"the scores {entry['name']!r} of {entry['classes']} classes (kind {entry['kind']!r})",
        outputs[entry["name"]],
        _FLOATS,
        2,
        ("N", columns),
    )
    probabilities = entry.get("probabilities")
    shape = None if probabilities is None else outputs[probabilities].shape
    if shape is not None and all(isinstance(d, int) for d in shape[1:]) and columns not in (*shape, 1):
        yield (
            f"the manifest says that {probabilities!r} holds probabilities of {columns} columns, the graph returns "
            f"{list(shape)}"
        )


def _of_target(manifest: Manifest, interface: Interface) -> Iterator[str]:
    target = manifest["target"]
    name, mode = target["name"], target["mode"]
    required, optional = interface.inputs.get(name), interface.optional.get(name)
    if name == manifest["input"]["name"]:
        yield f"the manifest says that {name!r} is the picture and the target"
    # a constant is what tools such as onnxsim make of an optional target
    if mode != "required" and required is not None:
        yield f"the manifest says that the target {name!r} is {_an(mode)}, the graph needs it as an input"
    if mode == "required" and required is None:
        yield f"the manifest says that the target {name!r} is a required input, the graph has no such input"
    value = required or (optional if mode == "optional" else None)
    if value is not None:
        embedding = manifest["scores"]["kind"] == EMBEDDING
        size = ("N", manifest["scores"]["classes"]) if embedding else None
        kinds, rank = (("float32",), 2) if embedding else (("int64",), 1)
        yield from _differing(f"the target {name!r}", value, kinds, rank, size)
        if (value.shape or ())[:1] == (1,) and mode == "required" and target.get("rows") != SHARED:
            yield f"the manifest says that the target {name!r} has one class for each row, the graph takes one in all"


def _of_region(target: Mapping[str, Any], interface: Interface) -> Iterator[str]:
    name = target.get("region")
    if name is None:
        return
    value = interface.inputs.get(name) or interface.optional.get(name)
    if value is None and target["mode"] == "required":
        yield f"the manifest says that the region {name!r} is an input, the graph has no such input"
    if value is not None:
        yield from _differing(f"the region {name!r}", value, ("float32",), 2, ("N", 4))


def _an(mode: str) -> str:
    return "a constant" if mode == "constant" else "optional"


def _of_layer(entry: Mapping[str, Any], outputs: Mapping[str, Value]) -> Iterator[str]:
    layout = Layout.of(entry)
    what, rank = f"of layer {entry['name']!r}", 3 if layout.tokens else 4
    recorded = entry.get("shape")
    for key in ("activations", "gradients"):
        if entry[key]:
            value = outputs[entry[key]]
            yield from _differing(f"the {key} {what} ({layout.name})", value, _FLOATS, rank, recorded)
            yield from _off_grid(f"the {key} {what} ({layout.name})", layout, value.shape)
    yield from _off_grid(f"the shape {recorded} {what} ({layout.name})", layout, recorded)
    for method, name in entry["heatmaps"].items():
        yield from _differing(
            f"the heatmap {method!r} {what}", outputs[name], ("float32",), 3, ("N", *(layout.grid or (None, None)))
        )


def _off_grid(what: str, layout: Layout, shape: Sequence[Any] | None) -> Iterator[str]:
    """Whether a shape has another number of positions than the layer's grid."""
    if shape is None or layout.grid is None:
        return
    rows, columns = layout.grid
    if layout.tokens:
        count, tokens = layout.prefix_tokens + rows * columns, shape[1] if len(shape) == 3 else None
        if len(shape) != 3 or (isinstance(tokens, int) and tokens != count):
            yield f"the manifest says that {what} have {count} positions, not those of the shape {list(shape)}"
    elif len(shape) != 4 or _differs((rows, columns), layout.size(shape)):
        yield f"the manifest says that {what} lie on a grid of {rows} x {columns}, not on that of {list(shape)}"


def _differing(
    what: str, value: Value, kinds: Collection[str], rank: int, recorded: Sequence[Any] | None = None
) -> Iterator[str]:
    """Whether a value is of another type, rank or shape than the manifest says."""
    if value.dtype and value.dtype not in kinds:
        yield f"the manifest says that {what} are {listing(kinds)}, the graph has {value.dtype}"
    shape = value.shape
    if shape is None:
        return
    if len(shape) != rank:
        yield f"the manifest says that {what} have {rank} axes, the graph has the shape {list(shape)}"
    elif recorded is not None and _differs(recorded, shape):
        yield f"the manifest says that {what} are {list(recorded)}, the graph has {list(shape)}"


def _differs(recorded: Sequence[Any], shape: Sequence[Any]) -> bool:
    """Whether two shapes have other ranks, or sizes where both tell one."""
    if len(recorded) != len(shape):
        return True
    pairs = zip(recorded, shape, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a > 0 and b > 0 and a != b for a, b in pairs)
