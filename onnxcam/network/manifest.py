"""The manifest: what an explainable model says about itself, JSON under `metadata_props["onnxcam"]`.

Kept free of onnx so that reading a manifest costs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from onnxcam.errors import LayerError, ModelError, listing, nearest
from onnxcam.network.layout import Layout
from onnxcam.targets.readout import BINARY, KINDS, MULTILABEL, REGRESSION, TASK_KINDS
from onnxcam.targets.tasks import (
    FORMATS,
    PIXELS,
    RELATIVE,
    SIGMOID,
    SOFTMAX,
    Detect,
    Segment,
    Slab,
    Values,
    from_entry,
)

if TYPE_CHECKING:
    import onnx

KEY = "onnxcam"
FORMAT = 1
# `size` of the input: a guess, or none is known for which the grid of tokens would be
ASSUMED, UNKNOWN = "assumed", "unknown"
NONE = "none"  # `mode` of the target: the file has no map
SHARED = "shared"  # `rows` of the target: one class for all rows of a batch
_LONGEST = 8 << 20  # characters; 21,000 labels are one million
_USUAL = 1 << 20
_DEEPEST = 64  # levels of lists and objects
# `measured.rows`: whether a row's results depend on the rows that it shares a batch with
INDEPENDENT, COUPLED = "independent", "coupled"
# `layers[].place.verdict`
VERDICTS = ("direct", "mirrored", "rotated", "transposed", "shifted", "none", "unsettled")
_ACTIVATIONS = (None, SIGMOID, SOFTMAX)
Manifest = dict[str, Any]

Check = Callable[[Any], bool]


def _is(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def _among(*values: str) -> Check:
    return lambda value: isinstance(value, str) and value in values


def _count(lowest: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and lowest <= value < 2**63


def _list(check: Check, *lengths: int) -> Check:
    return lambda value: (
        isinstance(value, list) and (not lengths or len(value) in lengths) and all(check(entry) for entry in value)
    )


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and name for name in value.values())


def _name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _window(value: Any) -> bool:
    """Whether a value describes a window: start and stop per axis, which differ."""
    if not isinstance(value, dict) or not isinstance(value.get("transposed", False), bool):
        return False
    pair = _list(_is(int, float), 2)
    for axis in ("height", "width"):
        span: Any = value.get(axis)
        if not pair(span) or not math.isfinite(span[1] - span[0]) or span[0] == span[1]:
            return False
    return True


def _normalization(value: Any) -> bool:
    """Whether a value describes a normalisation: mean and deviation, one or one per channel."""
    if not isinstance(value, dict):
        return False
    mean: Any = value.get("mean")
    std: Any = value.get("std")
    finite = _list(lambda number: _is(int, float)(number) and math.isfinite(number))
    return bool(finite(mean) and finite(std) and mean and len(mean) == len(std) and all(number > 0 for number in std))


def _place(value: Any) -> bool:
    return isinstance(value, dict) and value.get("verdict") in VERDICTS and _is(int, float)(value.get("correlation"))


def _range(value: Any) -> bool:
    return _list(_is(int, float), 2)(value) and value[0] <= value[1]


def _finite(value: Any) -> bool:
    return _is(int, float)(value) and math.isfinite(value)


def _share(value: Any) -> bool:
    return _positive(value) and value < 1


def _calibrated_outputs(value: Any) -> bool:
    """Whether a value names the two outputs of a calibrated file."""
    return isinstance(value, dict) and all(_name(value.get(key)) for key in ("calibrated", "prediction_set"))


def _pixel_maps(value: Any) -> bool:
    """Whether a value lists the maps of a file of pixels: layer, method and the names of three outputs each."""
    keys = ("layer", "method", "heatmap", "picture_heatmap", "overlay")
    return bool(value) and _list(lambda one: isinstance(one, dict) and all(_name(one.get(key)) for key in keys))(value)


def _task(value: Any) -> bool:
    """Whether a value describes a task, every number of it in its range."""
    try:
        task = from_entry(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    if isinstance(task, Detect):
        slabs = [task.boxes, task.scores, *(one for one in (task.objectness, task.labels) if one is not None)]
        kinds = task.box_format in FORMATS and task.unit in (PIXELS, RELATIVE)
        rest = _or_none(_count(1))(task.classes) and _or_none(_count(0))(task.candidates) and _count(1)(task.width)
        return kinds and rest and task.activation in _ACTIVATIONS and all(map(_slab, slabs))
    if isinstance(task, Segment):
        sides = _or_none(_count(1))(task.height) and _or_none(_count(1))(task.width)
        return sides and _count(1)(task.channels) and task.activation in _ACTIVATIONS
    if isinstance(task, Values):
        return (
            len(task.names) == len(task.sizes) > 0 and all(map(_count(1), task.sizes)) and all(map(_name, task.names))
        )
    return _count(1)(task.size)


def _slab(slab: Any) -> bool:
    """Whether numbers of a candidate lie within those of its output."""
    if not isinstance(slab, Slab):
        return False
    numbers = (slab.first, slab.size, slab.width, slab.before)
    return all(map(_count(0), numbers)) and slab.width > 0 and slab.first + slab.size <= slab.width


_dim = _or_none(lambda value: isinstance(value, str) or _count(1)(value))

# what no reader can do without: key, then the fields of that entry (of each layer's entry)
_REQUIRED: dict[str, dict[str, Check]] = {
    "input": {"name": _name, "layout": _among("NCHW", "NHWC"), "shape": _list(_dim, 4),
              "dtype": _among("float32", "float16", "float64", "uint8")},
    "scores": {"name": _name, "kind": _among(*KINDS, *TASK_KINDS), "classes": _count(0)},
    "target": {"name": _name, "mode": _among("optional", "required", "constant", NONE)},
    "layers": {"name": _name, "heatmaps": _names, "layout": _among("NCHW", "NHWC", "NTC"),
               "activations": _or_none(_name), "gradients": _or_none(_name)},
}  # fmt: skip
# what may be missing, but not half there
_OPTIONAL: dict[str, dict[str, Check]] = {
    "gate": {"condition": _is(str), "output": _name},
    "pixels": {"name": _name, "predictions": _name, "target": _name, "maps": _pixel_maps},
    "parity": {"against": _is(str), "samples": _count(1), "tolerance": _is(int, float)},
}
# what may be missing
_FURTHER: dict[str, dict[str, Check]] = {
    "input": {"preprocess": _or_none(_is(dict)), "normalization": _or_none(_normalization), "size": _or_none(_is(str))},
    "scores": {"probabilities": _or_none(_name), "scale": _positive, "stepped_over": _list(_is(str)),
               "warnings": _list(_is(str)), "task": _or_none(_task)},
    "target": {"class": _or_none(_count(0)), "rows": _among(SHARED), "region": _name, "heatmaps": _names},
    "layers": {"value": _or_none(_name), "shape": _or_none(_list(_dim)), "grid": _or_none(_list(_dim, 2)),
               "prefix_tokens": _count(0), "covers": _or_none(_among("all", "part")), "window": _or_none(_window),
               "crops": _or_none(_list(_window)), "level": _is(bool),
               "candidates": _or_none(_list(_list(_count(0), 2))),
               "place": _or_none(_place), "beside": _or_none(_list(_is(str)))},
    "measured": {"scores": _or_none(_is(dict)), "rows": _among(INDEPENDENT, COUPLED), "deterministic": _is(bool),
                 "range": _range, "unmeasured": _names},
    "source": {"name": _or_none(_is(str)), "outputs": _or_none(_list(_is(str))), "scores": _or_none(_is(str)),
               "kind": _or_none(_among(*KINDS, *TASK_KINDS)), "values": _list(_name), "framework": _or_none(_is(str)),
               "sha256": _or_none(_is(str))},
    "parity": {key: _is(int, float) for key in ("scores", "activations", "gradients")},
    "requires": {"onnxruntime": _is(str)},
    "calibration": {"quantile": _finite, "lambda": _or_none(lambda value: _finite(value) and value >= 0),
                    "k": _or_none(_count(0)), "empty": _among("allowed", "top"), "coverage_level": _share,
                    "scores_sha256": _or_none(_is(str)), "graph_bytes": _or_none(_count(1)),
                    "quantiles": _or_none(_is(dict, list)), "risk": _or_none(_is(dict, list))},
    "pixels": {"resized": _or_none(_name), "shape": _or_none(_list(_dim, 3)), "dtype": _among("uint8")},
}  # fmt: skip
_LISTS: dict[str, Check] = {"labels": _list(_is(str)), "approximations": _list(_is(str)), "rewrites": _list(_is(str))}


def parse(text: str | None) -> Manifest | None:
    """The manifest in a model's metadata, None if the model has none.

    Raises:
        ModelError: there is one, but it is damaged or of a newer format.
    """
    if text is None:
        return None
    if len(text) > _LONGEST:
        raise ModelError(
            f"the model's onnxcam manifest has {len(text):,} characters, more than {_LONGEST:,}; export the model again"
        )
    # of a usual one neither can be too much
    if len(text) > _USUAL or text.count("[") + text.count("{") > _DEEPEST:
        from onnxcam import documents

        try:
            documents.check_json(text.encode("utf-8", "surrogatepass"), deepest=_DEEPEST)
        except documents.DocumentError as error:
            raise ModelError(f"the model's onnxcam manifest {error}; export the model again") from error
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the model's onnxcam manifest is not JSON ({error}); export the model again") from error
    if not isinstance(manifest, dict) or not _count(1)(manifest.get("format")):
        raise ModelError("the model's onnxcam manifest is damaged: no `format`; export the model again")
    if manifest["format"] > FORMAT:
        raise ModelError(
            f"the model's onnxcam manifest has format {manifest['format']}, this version reads up to {FORMAT}; "
            "update onnxcam: pip install -U onnxcam"
        )
    missing = [key for key in _REQUIRED if not manifest.get(key)]
    missing = missing or list(_damaged(manifest)) or list(_contradicting(manifest))
    if missing:
        raise ModelError(
            f"the model's onnxcam manifest lacks {listing(missing)}, or holds something else there; "
            "export the model again"
        )
    return manifest


def _damaged(manifest: Manifest) -> Iterator[str]:
    """The required fields that are missing, and those with a value they cannot have."""
    needed = _REQUIRED | {key: fields for key, fields in _OPTIONAL.items() if manifest.get(key) is not None}
    for key in dict.fromkeys((*needed, *_FURTHER)):
        if manifest.get(key) is None:
            continue
        entries = manifest[key] if key == "layers" else [manifest[key]]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            yield key
            continue
        for entry in entries:
            for name, check in needed.get(key, {}).items():
                if name not in entry or not check(entry[name]):
                    yield f"{key}.{name}"
            for name, check in _FURTHER.get(key, {}).items():
                if name in entry and not check(entry[name]):
                    yield f"{key}.{name}"
    yield from (key for key, check in _LISTS.items() if manifest.get(key) is not None and not check(manifest[key]))


def _contradicting(manifest: Manifest) -> Iterator[str]:
    """The fields that contradict others."""
    classes, target, kind = manifest["scores"]["classes"], manifest["target"], manifest["scores"]["kind"]
    task = None if manifest["scores"].get("task") is None else from_entry(manifest["scores"]["task"])
    if task is None and kind in TASK_KINDS:
        yield f"scores.task (of kind {kind})"
    elif task is not None and (kind, classes) != (task.kind, task.size):
        yield f"scores.classes ({classes} of kind {kind}, whose task has {task.size} and is {task.kind})"
    elif task is None and (classes != {BINARY: 2, REGRESSION: 1}.get(kind, classes) or not classes):
        yield f"scores.classes ({classes} of kind {kind})"
    if target["mode"] != "constant" and target.get("class") is not None:
        yield f"target.class (of mode {target['mode']})"
    names = [entry["name"] for entry in manifest["layers"]]
    if len(set(names)) < len(names):
        yield "layers.name (one is there twice)"
    calibration = manifest.get("calibration")
    if calibration and (
        kind == REGRESSION or task is not None or (kind == MULTILABEL and calibration["score"] != "lac")
    ):
        yield f"calibration.score ({calibration['score']!r} of kind {kind})"
    if calibration and not 0 <= calibration["coverage_interval"][0] <= calibration["coverage_interval"][1] <= 1:
        yield "calibration.coverage_interval"
    unknown = isinstance(task, Detect) and not classes  # how many the detector has
    if manifest.get("labels") is not None and len(manifest["labels"]) != classes and not unknown:
        yield "one of labels per class"
    if target["mode"] == "constant" and target.get("class") not in range(classes):
        yield "target.class"
    if any(Layout.of(entry).tokens and not {"grid", "prefix_tokens"} <= entry.keys() for entry in manifest["layers"]):
        yield "layers.grid"


def measured_warnings(manifest: Manifest) -> list[str]:
    """Sentences about measured facts that make maps or numbers doubtful; none for what was not measured."""
    facts = manifest.get("measured") or {}
    sentences = []
    if facts and not {"scores", "rows", "deterministic"} & facts.keys():  # nothing at all
        reason = next(iter((facts.get("unmeasured") or {}).values()), "no reason is recorded")
        sentences.append(
            f"nothing could be measured of this model ({reason}): what its scores are and where its layers lie on the "
            "picture is read off the graph alone, and may be wrong"
        )
    if facts.get("rows") == COUPLED:
        rows = ((manifest.get("input") or {}).get("shape") or [None])[0]
        sentences.append(
            "a picture's results depend on the others in its batch (as after BatchNormalization in training mode): "
            + (
                f"the model takes {rows} pictures at a time, and each is explained among those that it is run with"
                if isinstance(rows, int) and rows > 1
                else "pictures are explained one by one, and differ from what the model says of them in a batch"
            )
        )
    if facts.get("deterministic") is False:
        sentences.append(
            "the model is not deterministic: two runs on the same picture differ, so maps and scores hold for one run"
        )
    for entry in manifest["layers"]:
        place = entry.get("place") or {}
        verdict = place.get("verdict", "unsettled")
        if verdict not in ("direct", "unsettled") and not place.get("drawn"):
            order = f"{verdict} ({place['reason']})" if place.get("reason") else verdict
            lies = "has no place on the picture" if verdict == "none" else f"lies {order} on the picture"
            reason = f": {place['reason']}" if verdict == "none" and place.get("reason") else ""
            sentences.append(
                f"layer {entry['name']!r} {lies}{reason}, as measured by changing the picture at several places: its "
                "maps are drawn in the wrong place; choose another layer (`onnxcam layers` lists them)"
            )
    return sentences


def read(model: onnx.ModelProto) -> Manifest | None:
    """The manifest of a `ModelProto`, None if it has none."""
    return parse(next((p.value for p in model.metadata_props if p.key == KEY), None))


def write(model: onnx.ModelProto, manifest: Manifest | None) -> None:
    """Set (or with None remove) the manifest; foreign metadata keys are kept."""
    foreign = [(p.key, p.value) for p in model.metadata_props if p.key != KEY]
    del model.metadata_props[:]
    for key, value in foreign:
        model.metadata_props.add(key=key, value=value)
    if manifest is not None:
        text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":"))
        if not _encodes(text):  # half a surrogate pair in a label
            text = json.dumps(manifest, separators=(",", ":"))
        model.metadata_props.add(key=KEY, value=text)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def layer(manifest: Manifest, name: str | None) -> dict[str, Any]:
    """A layer's entry by name, the last one for None.

    Raises:
        LayerError: no such layer in this file.
    """
    entries: list[dict[str, Any]] = manifest["layers"]
    if name is None:
        return entries[-1]
    for entry in entries:
        if entry["name"] == name:
            return entry
    names = [entry["name"] for entry in entries]
    raise LayerError(f"the file exposes no layer {name!r}; it has {listing(nearest(name, names))}")
