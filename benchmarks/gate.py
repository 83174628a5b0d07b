"""Measure a gated file: not triggered against the plain model, triggered against the file without a gate.

    python benchmarks/gate.py [--models resnet50 vgg16] [--rounds 20] [--write]

Ratios, taken in one run on one machine, round by round: in every round both contestants run one block of calls, in
turn, the first one alternating. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import MODELS, THREADS, block, build  # noqa: E402

PAGE = Path(__file__).with_suffix(".md")
PROMISED = 1.05
# a file with a condition that never holds, and one with a condition that always does
NEVER, ALWAYS = "confidence < 0", "confidence <= 1"
PAIRS = {"not triggered / plain": ("never", "plain"), "triggered / ungated": ("always", "ungated")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=20, help="rounds per pair, each a block of both contestants")
    parser.add_argument("--layer", help="target layer, the default one if none is named")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.export:
        export(arguments.models[0], arguments.layer, arguments.export)
        return
    rows, load = [], os.getloadavg()[0]
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            # torch's memory and threads are gone before anything is timed
            command = [sys.executable, __file__, "--models", model, "--export", folder]
            subprocess.run(command + (["--layer", arguments.layer] if arguments.layer else []), check=True)
            rows.append((model, measure(Path(folder), arguments.rounds)))
        print(
            f"{model}: " + ", ".join(f"{key} {spread(ratios)}" for key, ratios in rows[-1][1].items()), file=sys.stderr
        )
    text = table(rows, arguments.rounds, load)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


def export(model: str, layer: str | None, folder: Path) -> None:
    """The plain file, the explainable one, and two gated ones."""
    import torch

    from onnxcam.exporters import pytorch
    from onnxcam.graph import load
    from onnxcam.graph.normalize import prepare
    from onnxcam.network import manifest
    from onnxcam.network.explainable import augment
    from onnxcam.network.split import head_of

    explainable = pytorch.export(build(model), torch.randn(1, 3, 224, 224), None, layers=layer, verify=False)
    assert not isinstance(explainable, dict)
    header = manifest.read(explainable)
    assert header is not None
    load.save(head_of(prepare(explainable), header), folder / "plain.onnx")
    load.save(explainable, folder / "ungated.onnx")
    for name, condition in (("never", NEVER), ("always", ALWAYS)):
        load.save(augment(explainable, gate=condition), folder / f"{name}.onnx")


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """The ratios of every round; two sessions at a time, new ones each round, for two sessions of one file differ."""
    ratios: dict[str, list[float]] = {}
    for key, pair in PAIRS.items():
        for turn in range(rounds):
            calls = {name: prepared(folder / f"{name}.onnx") for name in pair}
            order = list(calls.items())
            seconds = {name: block(call) for name, call in (order if turn % 2 == 0 else order[::-1])}
            ratios.setdefault(key, []).append(seconds[pair[0]] / seconds[pair[1]])
    return ratios


def prepared(path: Path) -> Callable[[], object]:
    """A call that computes every output of a file for one picture."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1234).normal(size=(1, 3, 224, 224)).astype(np.float32)
    return lambda: session.run(None, {"input": x})


def spread(ratios: list[float]) -> str:
    """The median, and between what half of the rounds lie."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def table(rows: list[tuple[str, dict[str, list[float]]]], rounds: int, load: float) -> str:
    """The figures as Markdown, with date, machine and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxcam", "onnxruntime", "torch", "torchvision"))
    lines = [
        "# What a gate costs",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/gate.py --write` on {THREADS} CPU threads "
        f"({platform.machine()}, Python {platform.python_version()}): {versions}.",
        "",
        "One picture, 224 × 224, the default layer, every output fetched. *Not triggered / plain*: a file whose gate",
        f"does not fire over the same classifier without explanations; promised is at most {PROMISED}. *Triggered /",
        "ungated*: a file whose gate fires over the one without a gate. Each figure is the median of the ratios of",
        f"{rounds} rounds, in each of which both ran a block; in brackets what half of the ratios lie between.",
        *([f"Other work kept the machine busy: load average {load:.1f} before the start."] if load > 0.5 else []),
        "",
        "| model | " + " | ".join(PAIRS) + " |",
        "|---|---:|---:|",
    ]
    lines += [f"| {model} | " + " | ".join(spread(ratios[key]) for key in PAIRS) + " |" for model, ratios in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
