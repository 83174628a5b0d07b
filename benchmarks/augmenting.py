"""Measure what making a file explainable costs: seconds, memory relative to the model's size, growth of the file.

    python benchmarks/augmenting.py [--models vit_b_16 convnext_base] [--write]

Each model is made explainable at its default layer and at one in its first stage, in a process that has imported all it
needs. Memory is the highest resident size of that process less what it held before. Weights are random.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PAGE = Path(__file__).with_suffix(".md")
# model -> a module in its first stage
MODELS = {"vit_b_16": "encoder.layers.encoder_layer_1", "convnext_base": "features.1", "resnet50": "layer1"}
SECONDS, TIMES, GROWTH = 5.0, 3.0, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--step", choices=("export", "augment"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--layer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "export":
        export(arguments.models[0], arguments.folder)
        return
    if arguments.step == "augment":
        print(json.dumps(augmented(arguments.folder, arguments.layer)))
        return
    rows = []
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            alone("export", model, folder)
            inner = (Path(folder) / "layer").read_text(encoding="utf-8")
            for layer in (None, inner):
                rows.append((model, json.loads(alone("augment", model, folder, layer))))
                print(rows[-1], file=sys.stderr)
    text = table(rows)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


def alone(step: str, model: str, folder: str, layer: str | None = None) -> str:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--models", model, "--folder", folder]
    command += ["--layer", layer] if layer else []
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def export(model: str, folder: Path) -> None:
    """The plain file, and the name of the value that the module in the first stage returns."""
    import torch

    from benchmarks.speed import build
    from onnxcam.exporters import pytorch
    from onnxcam.graph import load
    from onnxcam.graph.normalize import prepare
    from onnxcam.network import manifest
    from onnxcam.network.split import head_of

    explainable = pytorch.export(build(model), torch.randn(1, 3, 224, 224), None, layers=[MODELS[model]], verify=False)
    assert not isinstance(explainable, dict)
    header = manifest.read(explainable)
    assert header is not None
    load.save(head_of(prepare(explainable), header), folder / "plain.onnx")
    (folder / "layer").write_text(header["layers"][0]["value"], encoding="utf-8")


def augmented(folder: Path, layer: str | None) -> dict[str, Any]:
    """Seconds and bytes of one file made explainable."""
    from onnxcam.graph import load
    from onnxcam.network import manifest
    from onnxcam.network.explainable import augment
    from tests.support.models import tiny_cnn

    augment(tiny_cnn())  # imports, and whatever is worked out once
    size = (folder / "plain.onnx").stat().st_size
    before = _resident()
    began = time.perf_counter()
    explainable = augment(folder / "plain.onnx", layer and [layer])
    seconds = time.perf_counter() - began
    peak = _highest() - before
    load.save(explainable, folder / "cam.onnx")
    saved = time.perf_counter() - began
    header = manifest.read(explainable)
    assert header is not None
    return {
        "layer": header["layers"][0]["name"],
        "size": size,
        "seconds": seconds,
        "saved": saved,
        "times": peak / size,
        "saving": (_highest() - before) / size,
        "growth": (folder / "cam.onnx").stat().st_size / size - 1,
    }


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """The page as Markdown."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        "# Making a file explainable",
        "",
        f"Measured {today} with `python benchmarks/augmenting.py` on {platform.machine()}, Python "
        f"{platform.python_version()}: onnxcam {version('onnxcam')}, onnx {version('onnx')}.",
        "",
        f"Asked for: at most {SECONDS:g} s, {TIMES:g} times the model's size in memory, and a file that grows by at "
        f"most {GROWTH:.0%}. *Memory*: the process's highest resident size less what it held before.",
        "",
        "| model | layer | size (MB) | augment (s) | and save (s) | memory / size | and save | file grows by |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {model} | `{figures['layer']}` | {figures['size'] / 1e6:.0f} | {figures['seconds']:.2f} "
        f"| {figures['saved']:.2f} | {figures['times']:.2f} | {figures['saving']:.2f} | {figures['growth']:.2%} |"
        for model, figures in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
