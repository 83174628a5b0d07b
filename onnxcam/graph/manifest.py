"""The manifest: what an explainable model says about itself, JSON under `metadata_props["onnxcam"]`.

Kept free of onnx so that reading a manifest costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from onnxcam.errors import LayerError, ModelError, listing, nearest

if TYPE_CHECKING:
    import onnx

KEY = "onnxcam"
FORMAT = 1
Manifest = dict[str, Any]

# what no reader can do without: key, then the fields of that entry (of each layer's entry) and their types
_REQUIRED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "input": {"name": str, "layout": str, "dtype": str, "shape": list},
    "scores": {"name": str, "kind": str, "classes": int},
    "target": {"name": str, "mode": str},
    "layers": {"name": str, "heatmaps": dict, "layout": str, "activations": (str, type(None)),
               "gradients": (str, type(None))},
}  # fmt: skip
# what may be missing, but not half there
_OPTIONAL: dict[str, dict[str, type]] = {"gate": {"condition": str, "output": str}}


def parse(text: str | None) -> Manifest | None:
    """The manifest in a model's metadata, None if the model has none.

    Raises:
        ModelError: there is one, but it is damaged or of a newer format.
    """
    if text is None:
        return None
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
    missing = [key for key in _REQUIRED if not held.get(key)] or list(_damaged(held))
    if missing:
        raise ModelError(f"the model's onnxcam manifest lacks {listing(missing)}; export the model again")
    return held


def _damaged(held: Manifest) -> Iterator[str]:
    """The required fields that are not there, or of another type."""
    optional = {key: fields for key, fields in _OPTIONAL.items() if held.get(key) is not None}
    for key, fields in (_REQUIRED | optional).items():
        entries = held[key] if key == "layers" else [held[key]]
        if not isinstance(entries, list):
            yield key
            continue
        for entry in entries:
            for name, kind in fields.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                    yield f"{key}.{name}"


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
