"""Measure the facts of many architectures at their usual input size, and write benchmarks/probe.md.

    python benchmarks/probe.py                     # what is missing, then the page
    python benchmarks/probe.py resnet18 vgg11      # these anew

The architectures are those of the coverage matrix and the onnx package's light models, with random weights
(`benchmarks.torch_matrix.build`). What counts is the default layer: whether the place map settles it, and that it
raises no alarm, for all of these networks are right. Each runs in a process of its own; rows are kept as JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.architectures import TORCH  # noqa: E402
from tests.support.onnx_models import NAMES  # noqa: E402

LIGHT = tuple(f"light_{name}" for name in NAMES)

FOLDER, PAGE = (
    Path(os.environ.get("ONNXCAM_PROBE_ROWS") or ROOT / "benchmarks" / "probe"),
    ROOT / "benchmarks" / "probe.md",
)
SIDE, LIMIT_S = 224, 1200
# those whose usual picture is larger, or that take one size only
SIDES = {"inception_v3": 299}


def source(name: str) -> Any:
    """A plain ONNX file of an architecture."""
    if name in LIGHT:
        from tests.support.onnx_models import light

        return light(name.removeprefix("light_"))
    import torch

    from benchmarks import torch_matrix

    side = SIDES.get(name, SIDE)
    entry = TORCH[name]
    options = tuple((key, side if key == "image_size" else value) for key, value in entry.options)
    TORCH[name] = replace(entry, size=side, options=options)
    model, picture = torch_matrix.build(name)
    buffer = io.BytesIO()
    axes = {"input": {0: "N"}, "scores": {0: "N"}}
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["scores"], "dynamic_axes": axes}
    torch.onnx.export(model, (picture.repeat(2, 1, 1, 1),), buffer, dynamo=False, opset_version=18, **names)
    return buffer.getvalue()


def measure(name: str) -> dict[str, Any]:
    """The facts of one architecture."""
    import onnxcam

    facts = onnxcam.probe(source(name))
    (layer,) = facts.layers
    return {
        "name": name, "layer": layer.name, "shape": list(layer.shape or ()), "verdict": layer.place.verdict,
        "misplaced": layer.place.misplaced, "correlation": layer.place.correlation, "reason": layer.place.reason,
        "covers": layer.covers, "rows": facts.rows, "deterministic": facts.deterministic, "loads": facts.loads,
        "passes": facts.passes, "unmeasured": dict(facts.unmeasured), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def spawn(name: str) -> None:
    """Measure in a process of its own; a crash or a timeout becomes the reason."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name]
    reason = None
    try:
        process = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, capture_output=True, text=True)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or [f"ended with {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"not done after {LIMIT_S} s"
    if reason is not None:
        (FOLDER / f"{name}.json").write_text(json.dumps({"name": name, "failed": reason}), "utf-8")


def page() -> str:
    """The page, from the rows stored so far."""
    rows = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    measured = [row for row in rows if "failed" not in row]
    direct = [row for row in measured if row["verdict"] == "direct"]
    alarms = [row for row in measured if row["misplaced"]]
    other = len(measured) - len(direct) - len(alarms)
    lines = [
        "# Facts of many architectures, measured",
        "",
        "Written by `python benchmarks/probe.py`: `onnxcam.probe` on networks with random weights, at 224 pixels a "
        "side unless they take another. All of them are right, so that any verdict but *direct* and *unsettled* "
        "would be a false alarm.",
        "",
        f"{len(measured)} of {len(TORCH) + len(LIGHT)} measured: {len(direct)} direct, {other} unsettled, "
        f"{len(alarms)} false alarms; {len(rows) - len(measured)} could not be exported or run here.",
        "",
        "Of the 54 plain files of `python tools/graphs.py sources` (2026-11-30), most of them at 64 pixels a side, "
        "where the last map has 2 x 2 cells: 41 direct, 13 unsettled, 0 false alarms. Unsettled: seven whose map of "
        "2 x 2 or 3 x 3 cells hardly depends on the place, five whose default layer no change of the picture moves, or "
        "every place alike, and one that does not run (Keras's EfficientNetB0 by tf2onnx has inputs without values).",
        "",
        "| architecture | default layer | shape | verdict | correlation | rows | passes |",
        "|---|---|---|---|---:|---|---:|",
    ]
    for row in measured:
        shape = "[" + ", ".join(map(str, row["shape"])) + "]"
        lines.append(
            f"| {row['name']} | `{row['layer']}` | {shape} | {row['verdict']} | {row['correlation']:.2f} | "
            f"{row['rows'] or 'not measured'} | {row['passes']} |"
        )
    failed = [f"- {row['name']}: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join([*lines, *(["", "Not measured:", "", *failed] if failed else [])]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page; 1 where a right network raises an alarm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures, measured anew (default: those missing)")
    parser.add_argument("--page-only", action="store_true", help="write the page from the rows stored so far")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    if options.one:
        (FOLDER / f"{options.one}.json").write_text(json.dumps(measure(options.one)), "utf-8")
        return 0
    if hasattr(os, "nice"):
        os.nice(10)
    missing = [name for name in (*LIGHT, *TORCH) if not (FOLDER / f"{name}.json").is_file()]
    for name in [] if options.page_only else options.names or missing:
        spawn(name)
        print(name, (FOLDER / f"{name}.json").read_text("utf-8"), flush=True)
    PAGE.write_text(page(), "utf-8")
    rows = [json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")]
    return int(any(row.get("misplaced") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
