"""The manifest: what an explainable model says about itself, JSON under `metadata_props["onnxcam"]`.

Kept free of onnx so that reading a manifest costs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onnxcam.errors import LayerError, ModelError, listing, nearest
from onnxcam.network.layout import Layout
from onnxcam.targets.readout import KINDS

if TYPE_CHECKING:
    import onnx

KEY = "onnxcam"
FORMAT = 1
# `size` of the input: nobody said it, or none is known that layers of tokens could be laid out for
ASSUMED, UNKNOWN = "assumed", "unknown"
_LONGEST = 8 << 20  # characters; 21,000 labels are one million
# elements of a batch: 1 GiB in float32
_LARGEST = 1 << 28
Manifest = dict[str, Any]

Check = Callable[[Any], bool]


def _is(*kinds: type) -> Check:
    return lambda held: isinstance(held, kinds) and not (isinstance(held, bool) and bool not in kinds)


def _among(*values: str) -> Check:
    return lambda held: isinstance(held, str) and held in values


def _count(lowest: int) -> Check:
    return lambda held: isinstance(held, int) and not isinstance(held, bool) and lowest <= held < 2**63


def _list(check: Check, *lengths: int) -> Check:
    return lambda held: (
        isinstance(held, list) and (not lengths or len(held) in lengths) and all(check(entry) for entry in held)
    )


def _or_none(check: Check) -> Check:
    return lambda held: held is None or check(held)


def _names(held: Any) -> bool:
    return isinstance(held, dict) and all(isinstance(name, str) for name in held.values())


_dim = _or_none(lambda held: isinstance(held, str) or _count(1)(held))

# what no reader can do without: key, then the fields of that entry (of each layer's entry)
_REQUIRED: dict[str, dict[str, Check]] = {
    "input": {"name": _is(str), "layout": _among("NCHW", "NHWC"), "shape": _list(_dim, 4),
              "dtype": _among("float32", "float16", "float64", "uint8")},
    "scores": {"name": _is(str), "kind": _among(*KINDS), "classes": _count(1)},
    "target": {"name": _is(str), "mode": _among("optional", "required", "constant")},
    "layers": {"name": _is(str), "heatmaps": _names, "layout": _among("NCHW", "NHWC", "NTC"),
               "activations": _or_none(_is(str)), "gradients": _or_none(_is(str))},
}  # fmt: skip
# what may be missing, but not half there
_OPTIONAL: dict[str, dict[str, Check]] = {
    "gate": {"condition": _is(str), "output": _is(str)},
    "parity": {"against": _is(str), "samples": _count(1), "tolerance": _is(int, float)},
}
# what may be missing
_FURTHER: dict[str, dict[str, Check]] = {
    "input": {"preprocess": _or_none(_is(dict)), "normalization": _or_none(_is(dict)), "size": _or_none(_is(str))},
    "scores": {"probabilities": _or_none(_is(str))},
    "target": {"class": _or_none(_count(0))},
    "layers": {"value": _or_none(_is(str)), "shape": _or_none(_list(_dim)), "grid": _or_none(_list(_dim, 2)),
               "prefix_tokens": _count(0)},
    "source": {"name": _or_none(_is(str)), "outputs": _or_none(_list(_is(str))), "scores": _or_none(_is(str)),
               "framework": _or_none(_is(str)), "sha256": _or_none(_is(str))},
    "parity": {key: _is(int, float) for key in ("scores", "activations", "gradients")},
    "requires": {"onnxruntime": _is(str)},
}  # fmt: skip
_LISTS: dict[str, Check] = {"labels": _list(_is(str)), "approximations": _list(_is(str))}


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
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the model's onnxcam manifest is not JSON ({error}); export the model again") from error
    if not isinstance(held, dict) or not isinstance(held.get("format"), int):
        raise ModelError("the model's onnxcam manifest is damaged: no `format`; export the model again")
    if held["format"] > FORMAT:
        raise ModelError(
            f"the model's onnxcam manifest has format {held['format']}, this version reads up to {FORMAT}; "
            "update onnxcam: pip install -U onnxcam"
        )
    missing = [key for key in _REQUIRED if not held.get(key)] or list(_damaged(held)) or list(_contradicting(held))
    if missing:
        raise ModelError(
            f"the model's onnxcam manifest lacks {listing(missing)}, or holds something else there; "
            "export the model again"
        )
    return held


def _damaged(held: Manifest) -> Iterator[str]:
    """The fields that are not there and should be, or hold what they cannot."""
    needed = _REQUIRED | {key: fields for key, fields in _OPTIONAL.items() if held.get(key) is not None}
    for key in dict.fromkeys((*needed, *_FURTHER)):
        if held.get(key) is None:
            continue
        entries = held[key] if key == "layers" else [held[key]]
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
    yield from (key for key, check in _LISTS.items() if held.get(key) is not None and not check(held[key]))


def _contradicting(held: Manifest) -> Iterator[str]:
    """The fields that do not go with others."""
    if held.get("labels") and len(held["labels"]) != held["scores"]["classes"]:
        yield "one of labels per class"
    if held["target"]["mode"] == "constant" and held["target"].get("class") not in range(held["scores"]["classes"]):
        yield "target.class"
    if any(Layout.of(entry).tokens and not {"grid", "prefix_tokens"} <= entry.keys() for entry in held["layers"]):
        yield "layers.grid"


def require_fit(held: Manifest, taken: Sequence[Any] | None, outputs: Collection[str]) -> None:
    """Refuse a manifest that does not go with its graph: what is fed by it would not fit, or not into memory.

    Arguments:
        held: the manifest.
        taken: the shape of the graph's input of that name, None if it has none.
        outputs: what the graph puts out.

    Raises:
        ModelError: another shape, one too large to be fed, or outputs that are not there.
    """
    name, told = held["input"]["name"], held["input"]["shape"]
    pairs = zip(told, taken or [], strict=False)
    if taken is None or len(taken) != len(told) or any(_count(1)(a) and _count(1)(b) and a != b for a, b in pairs):
        what = "has no such input" if taken is None else f"takes {list(taken)}"
        raise ModelError(
            f"the manifest says that the input {name!r} is {told}, the graph {what}; export the model again"
        )
    if math.prod(d for d in told if isinstance(d, int)) > _LARGEST:
        raise ModelError(
            f"an input of shape {told} is too large to be fed; export the model for fewer or smaller pictures"
        )
    needed = [held["scores"]["name"], *(name for entry in held["layers"] for name in entry["heatmaps"].values())]
    needed += [entry[key] for entry in held["layers"] for key in ("activations", "gradients") if entry[key]]
    needed += [held["gate"]["output"]] if held.get("gate") else []
    gone = [name for name in needed if name not in outputs]
    if gone:
        raise ModelError(
            f"the manifest names {listing(gone)}, which the graph does not put out; export the model again"
        )


def read(model: onnx.ModelProto) -> Manifest | None:
    """The manifest of a `ModelProto`, None if it has none."""
    return parse(next((p.value for p in model.metadata_props if p.key == KEY), None))


def write(model: onnx.ModelProto, held: Manifest | None) -> None:
    """Set (or with None remove) the manifest; foreign metadata keys are kept."""
    kept = [(p.key, p.value) for p in model.metadata_props if p.key != KEY]
    del model.metadata_props[:]
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)
    if held is not None:
        text = json.dumps(held, ensure_ascii=False, separators=(",", ":"))
        model.metadata_props.add(key=KEY, value=text)


def layer(held: Manifest, name: str | None) -> dict[str, Any]:
    """A layer's entry by name, the last one for None.

    Raises:
        LayerError: no such layer in this file.
    """
    entries: list[dict[str, Any]] = held["layers"]
    if name is None:
        return entries[-1]
    for entry in entries:
        if entry["name"] == name:
            return entry
    names = [entry["name"] for entry in entries]
    raise LayerError(f"the file exposes no layer {name!r}; it has {listing(nearest(name, names))}")
