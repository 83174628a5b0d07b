"""Measure occlusion, 32 x 32 by 16 on 224 x 224 (169 windows): ours, ours by whole runs, captum's, and forward passes.

    python benchmarks/occlusion.py [--models resnet50 mobilenet_v2 vgg16] [--rounds 7]

Round by round each contestant computes one map while the others wait; ratios are taken within a round. captum has a
process of its own, torch with as many threads, and the better of one window and eight windows per run. *Possible* is
the share of the multiplications that windows change, exactly, turned over; *reached* is what the same map costs by
whole runs over what it costs. The largest difference from the map by whole runs is relative to that map's maximum.
Weights are random and the picture is noise: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.contestants import Contestant, separately  # noqa: E402
from benchmarks.speed import THREADS, build, export  # noqa: E402

MODELS = ("resnet50", "mobilenet_v2", "vgg16")
SIDE, WINDOW, STRIDE = 224, 32, 16
# what is asked: captum's time over ours, or the time of whole runs over ours
BOUNDS = {"resnet50": ("captum / ours", 2.3), "mobilenet_v2": ("captum / ours", 3.1), "vgg16": ("whole / ours", 3.0)}
Calls = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "occlusion.md")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)  # one contestant, in its own process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker, arguments.models[0], arguments.folder)
        return
    rows = {}
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            rows[model] = compare(model, folder, arguments.rounds)
            print(model, rows[model], file=sys.stderr)
    text = table(rows, arguments.rounds)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def compare(model: str, folder: str, rounds: int) -> dict[str, list[float]]:
    """Figures of every round."""
    figures: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        options = ("--models", model, "--folder", folder)
        workers = [stack.enter_context(Contestant(__file__, name, *options)) for name in WORKERS]
        for worker in workers:
            worker.ask()  # opens sessions and warms up
        for _ in range(rounds):
            seconds: dict[str, float] = {}
            for worker in workers:
                seconds |= worker.ask()
            captum = min(value for name, value in seconds.items() if name.startswith("captum"))
            for name, value in {
                "forward ms": 1e3 * seconds["forward"],
                "ours / forward": seconds["ours"] / seconds["forward"],
                "captum / ours": captum / seconds["ours"],
                "whole / ours": seconds["whole"] / seconds["ours"],
                "possible": seconds["possible"],
                "difference": seconds["difference"],
            }.items():
                figures.setdefault(name, []).append(value)
    return figures


def serve(name: str, model: str, folder: Path) -> None:
    """Measure a round for every line on standard input."""
    measure = WORKERS[name](model, folder)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def timed(call: Callable[[], object], count: int = 1) -> float:
    """Seconds of a call, the median of some."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def onnxcam(model: str, folder: Path) -> Callable[[], dict[str, float]]:
    """The plain forward pass, occlusion as it is, and occlusion by whole runs."""
    import numpy as np
    import onnxruntime as ort

    separately(export, model, folder)
    from onnxcam import Explainer
    from onnxcam.explain import view
    from onnxcam.runtime import options

    settings = options.serving(THREADS)
    plain = ort.InferenceSession(folder / f"{model}.onnx", settings, providers=["CPUExecutionProvider"])
    name = plain.get_inputs()[0].name
    x = np.random.default_rng(1234).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    # an explainer has the sessions of one way only, so that neither way's threads and memory burden the other
    ours, whole = (Explainer(folder / f"{model}.cam.onnx", providers=["CPUExecutionProvider"]) for _ in range(2))
    fewest = view.FEWEST

    def occlude(explainer: Explainer, least: int) -> np.ndarray:
        view.FEWEST = least
        return explainer.attribution(x, 0, "occlusion", window=WINDOW, stride=STRIDE)

    by_whole_runs = occlude(whole, sys.maxsize)
    difference = np.abs(occlude(ours, fewest) - by_whole_runs).max() / np.abs(by_whole_runs).max()
    patches = ours.sessions.latest_patches
    possible = 1.0 if patches is None else 1 / patches.plan.share

    def measure() -> dict[str, float]:
        return {
            "forward": timed(lambda: plain.run(None, {name: x}), 20),
            "ours": timed(lambda: occlude(ours, fewest)),
            "whole": timed(lambda: occlude(whole, sys.maxsize)),
            "possible": possible,
            "difference": float(difference),
        }

    return measure


def captum(model: str, folder: Path) -> Callable[[], dict[str, float]]:
    """captum's Occlusion, one window and eight windows per run."""
    import torch
    from captum.attr import Occlusion

    network = build(model)
    method = Occlusion(network)
    x = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1234))

    def call(rows: int) -> object:
        with torch.no_grad():
            return method.attribute(
                x,
                sliding_window_shapes=(3, WINDOW, WINDOW),
                strides=(3, STRIDE, STRIDE),
                target=0,
                perturbations_per_eval=rows,
            )

    return lambda: {f"captum {rows}": timed(lambda rows=rows: call(rows)) for rows in (1, 8)}  # type: ignore[misc]


WORKERS: dict[str, Callable[[str, Path], Callable[[], dict[str, float]]]] = {"onnxcam": onnxcam, "captum": captum}


def table(rows: dict[str, dict[str, list[float]]], rounds: int) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxcam", "onnxruntime", "torch", "captum"))
    lines = [
        "# What occlusion costs",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/occlusion.py` on {os.cpu_count()} CPU cores "
        f"({platform.machine()}, Python {platform.python_version()}): {versions}.",
        "",
        f"Windows of {WINDOW} x {WINDOW} by {STRIDE} on one picture of 224 x 224: 169. Medians of ratios over {rounds} "
        "rounds, and their least and greatest.",
        "*Whole* is the same method by a run of the whole model for each window, *possible* the multiplications of",
        "that over those of what windows change.",
        "",
        "| model | forward (ms) | ours, forward passes | captum / ours | whole / ours | possible | reached | "
        "asked | difference |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for model, figures in rows.items():
        possible = figures["possible"][0]
        over, least = BOUNDS[model]
        bound = f"{over} >= {least}"
        cells = [
            f"{statistics.median(figures['forward ms']):.1f}",
            spread(figures["ours / forward"], 1),
            spread(figures["captum / ours"], 2),
            spread(figures["whole / ours"], 2),
            f"{possible:.2f}",
            f"{statistics.median(figures['whole / ours']) / possible:.0%}",
            bound,
            f"{figures['difference'][0]:.1e}",
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
