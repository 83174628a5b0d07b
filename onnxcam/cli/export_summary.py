"""What `onnxcam export` prints about the file it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxcam.targets.readout import PROBABILITIES, REGRESSION
from onnxcam.targets.tasks import DETECT, EMBED, REGRESS, SEGMENT


def outputs_of(manifest: dict[str, Any]) -> list[str]:
    """Names of the file's outputs in order, as far as the manifest tells."""
    original = list((manifest.get("source") or {}).get("outputs") or [])
    names = [*original, manifest["scores"]["name"]]
    names += [entry[key] for entry in manifest["layers"] for key in ("activations", "gradients") if entry[key]]
    names += [name for entry in manifest["layers"] for name in entry["heatmaps"].values()]
    names += (manifest["target"].get("heatmaps") or {}).values()
    names += [manifest["gate"]["output"]] if manifest.get("gate") else []
    names += (manifest.get("calibration") or {}).get("outputs", {}).values()
    pixels = manifest.get("pixels")
    if pixels:
        names += [pixels["predictions"], pixels["target"]]
        names += [one[key] for one in pixels["maps"] for key in ("picture_heatmap", "overlay")]
    return list(dict.fromkeys(names))


_TARGET_NOTES = {"optional": " (onnxruntime-node ignores it and others refuse it: --target required is for them)"}


def lines(output: str, size: int | None, manifest: dict[str, Any]) -> list[str]:
    """The summary that is printed."""
    entry, scores, parity = manifest["input"], manifest["scores"], manifest.get("parity")
    names = manifest.get("labels")
    labelled = f"labels {names[0]!r} to {names[-1]!r}" if names else "no labels"
    target = manifest["target"]
    fixed = f" {target['class']}" if "class" in target else ""
    pixels, prepared = manifest.get("pixels"), ""
    if pixels:
        prepared = f"{entry['name']} {entry['dtype']} {_shape(entry['shape'])} {entry['layout']}, in the file"
        entry = pixels | {"layout": "RGB"}
    lines = [
        output if size is None else f"{output}  {_size(size)}",
        f"  input    {entry['name']} {entry['dtype']} {_shape(entry['shape'])} {entry['layout']}",
        *([f"  prepared {prepared}"] if prepared else []),
        f"  scores   {_meaning(scores)}, {labelled}",
        f"  {target['name']:<8} {target['mode']}{fixed}{_TARGET_NOTES.get(target['mode'], '')}",
        *(
            [f"  {target['region']:<8} x0, y0, x1, y1 in pixels of the input; all 0 for the class's own cells"]
            if target.get("region")
            else []
        ),
        *(f"  layer    {layer['name']} {_shape(layer['shape'])} {layer['layout']}" for layer in manifest["layers"]),
        *([f"  gate     {manifest['gate']['condition']}"] if manifest.get("gate") else []),
        f"  outputs  {', '.join(outputs_of(manifest))}",
    ]
    if parity:
        figures = ", ".join(
            f"{key} {parity[key]:.1e}" for key in ("scores", "activations", "gradients") if key in parity
        )
        lines.append(f"  parity   {figures} off {parity['against']} on {parity['samples']} samples")
    return lines


def _meaning(scores: dict[str, Any]) -> str:
    """The scores in words."""
    kind, over = scores["kind"], scores.get("stepped_over")
    task = (scores.get("task") or {}).get("task")
    if task is not None:
        size = scores["classes"]
        numbers = f"{size} numbers" if task == EMBED else f"{size} values" if task == REGRESS else f"{size} classes"
        does = {DETECT: "boxes", SEGMENT: "a class per cell", EMBED: "an embedding", REGRESS: "values"}[task]
        return f"{scores['name']}, {does} ({numbers if size else 'classes unknown'})"
    what = {REGRESSION: "a quantity", PROBABILITIES: f"log p of {scores['classes']} classes"}
    text = f"{scores['name']}, {what.get(kind, str(scores['classes']) + ' classes')}"
    if scores.get("scale", 1) != 1:
        text += f", of the model's own in 0..{scores['scale']:g}"
    return text if not over else f"{text}, before {', '.join(over)}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _shape(dims: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
