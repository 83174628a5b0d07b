"""Measure what the methods cost: every figure is a multiple of the plain forward pass of the same model, in one run.

    python benchmarks/methods.py [--models resnet50 vgg16] [--rounds 9] [--scorecam mobilenet_v2]

Each contestant runs a block while the others wait, round after round, each round with sessions of its own; ratios are
taken within a round and their medians reported. Weights are random, the picture is noise: speed does not depend on
them. Score-CAM runs the model once per channel, so it is measured three times, on the models named. "Forward" is a
plain session of ONNX Runtime on the same model without anything added.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.contestants import separately  # noqa: E402
from benchmarks.speed import export  # noqa: E402

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "vgg16")
BLOCK_S, FEWEST, MOST, PAUSE_S = 0.3, 3, 40, 0.05
# what is asked of each, as (name, over what, at most, for which models another bound)
SERIES = (
    ("prediction", "forward", 1.02, {}),
    ("one map", "forward", None, {}),
    ("five classes", "one map", 1.10, {"vgg16": 1.3}),
    ("all gradient CAMs", "one map", 1.25, {}),
    ("ablationcam", "forward", 1.5, {}),
    ("ablationcam, every channel run", "forward", None, {}),
    ("reciprocam", "forward", 1.2, {"vgg16": None}),
    ("finercam", "forward", None, {}),
    ("eigencam", "forward", None, {}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scorecam", nargs="*", default=["mobilenet_v2"], choices=MODELS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "methods.md")
    arguments = parser.parse_args()
    rows, scorecam = {}, {}
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            separately(export, model, Path(folder))
            rows[model] = compare(lambda folder=Path(folder), model=model: prepare(model, folder)[0], arguments.rounds)
            print(model, rows[model], file=sys.stderr)
            if model in arguments.scorecam:
                contestants, explainer, x = prepare(model, Path(folder))
                scorecam[model] = score(explainer, x, contestants["forward"])
                print(model, scorecam[model], file=sys.stderr)
    text = table(rows, scorecam, arguments.rounds)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def prepare(model: str, folder: Path) -> tuple[dict[str, Callable[[], object]], Any, np.ndarray]:
    """What is timed, by name."""
    import onnxruntime as ort

    from onnxcam import Explainer, Probability
    from onnxcam.cam.methods import find, methods

    options = ort.SessionOptions()
    options.log_severity_level = 3
    plain = ort.InferenceSession(str(folder / f"{model}.onnx"), options, providers=["CPUExecutionProvider"])
    explainer = Explainer(folder / f"{model}.cam.onnx", providers=["CPUExecutionProvider"])
    layer = explainer.layers[-1]
    name = plain.get_inputs()[0].name
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    gradient = [method for method in methods("graph") if find(method).gradient]
    raw: dict[str, Any] = {"normalize": "none", "size": "layer"}

    def five() -> object:
        examination = explainer.examine(x)
        best = examination.readout.best(examination.scores, 5)
        return examination.class_maps(examination.question(layer=layer), best)

    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: plain.run(None, {name: x}),
        "prediction": lambda: explainer.predict(x),
        "one map": lambda: explainer.attribute(x, **raw),
        "five classes": five,
        "all gradient CAMs": lambda: explainer.attribute(x, method=gradient, **raw),
        "ablationcam": lambda: explainer.attribute(x, method="ablationcam", **raw),
        "reciprocam": lambda: explainer.attribute(x, method="reciprocam", **raw),
        "finercam": lambda: explainer.attribute(x, method="finercam", **raw),
        "eigencam": lambda: explainer.attribute(x, method="eigencam", **raw),
    }
    if model != "vgg16":  # a probability is not affine in the layer: every channel is taken away and the tail run
        calls["ablationcam, every channel run"] = lambda: explainer.attribute(
            x, Probability(), method="ablationcam", **raw
        )
    return calls, explainer, x


def compare(make: Callable[[], dict[str, Callable[[], object]]], rounds: int) -> dict[str, float]:
    """Ratios within rounds, their medians.

    Every round has sessions of its own: two plain sessions of one file in one process differ by up to 5 %, for as long
    as they live. In a round each contestant has a block on the way there and one on the way back, so that a machine
    that becomes slower or faster in between favours none.
    """
    ratios: dict[str, list[float]] = {}
    forward: list[float] = []
    for turn in range(rounds):
        calls = make()
        for call in calls.values():
            call()
        order = list(calls)[:: 1 if turn % 2 == 0 else -1]
        seconds: dict[str, list[float]] = {}
        for name in [*order, "forward", *order[::-1]]:
            time.sleep(PAUSE_S)  # the threads of the one before stop waiting for work
            seconds.setdefault(name, []).append(block(calls[name]))
        means = {name: statistics.fmean(values) for name, values in seconds.items()}
        forward.append(means["forward"])
        for name, over, _, _ in SERIES:
            if name in means:
                ratios.setdefault(name, []).append(means[name] / means[over])
        calls.clear()
        gc.collect()  # a large model's sessions are gone before the next ones come
    return {"forward ms": 1e3 * statistics.median(forward)} | {n: statistics.median(r) for n, r in ratios.items()}


def block(call: Callable[[], object]) -> float:
    """Median seconds of a call over a block."""
    call()
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < BLOCK_S and len(times) < MOST):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def score(explainer: Any, x: np.ndarray, forward: Callable[[], object]) -> dict[str, float]:
    """Score-CAM over all channels, and over those of most energy, three times, forward passes between them."""
    channels = int(explainer.manifest["layers"][-1]["shape"][1])
    maps: dict[str, Any] = {}
    ratios: dict[str, list[float]] = {"all / C forward": [], "all / few": []}
    for _ in range(3):
        before, timed = block(forward), {}
        for name, count in (("all", 0), ("few", channels // 12)):
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            maps[name] = explainer.attribute(x, method="scorecam", size="layer", channels=count)
            timed[name] = time.perf_counter() - start
        time.sleep(PAUSE_S)
        ratios["all / C forward"].append(timed["all"] / (channels * (before + block(forward)) / 2))
        ratios["all / few"].append(timed["all"] / timed["few"])
    return {
        "channels": channels,
        **{name: statistics.median(values) for name, values in ratios.items()},
        "correlation": float(np.corrcoef(maps["all"].ravel(), maps["few"].ravel())[0, 1]),
    }


def table(rows: dict[str, dict[str, float]], scorecam: dict[str, dict[str, float]], rounds: int) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxcam", "onnxruntime", "numpy"))
    lines = [
        "# What the methods cost",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/methods.py` on {os.cpu_count()} CPU cores "
        f"({platform.machine()}, Python {platform.python_version()}): {versions}.",
        "",
        f"One picture, 224 x 224, default layer; medians of ratios over {rounds} rounds in one run. *One map* is",
        "Grad-CAM from the explainable file. *Every channel run* is Ablation-CAM of a probability, for which the graph",
        "behind the layer runs once per channel; of a logit one pass back says it exactly where that graph is affine.",
        "",
        "| | over | at most | " + " | ".join(rows) + " |",
        "|---|---|---:|" + "---:|" * len(rows),
        "| forward (ms) | | | " + " | ".join(f"{row['forward ms']:.1f}" for row in rows.values()) + " |",
    ]
    for name, over, most, others in SERIES:
        cells = []
        for model, row in rows.items():
            bound = others.get(model, most)
            value = row.get(name)
            cells.append("" if value is None else f"{value:.3f}" + ("" if bound in (None, most) else f" (of {bound})"))
        lines.append(f"| {name} | {over} | {'' if most is None else most} | " + " | ".join(cells) + " |")
    if scorecam:
        lines += [
            "",
            "Score-CAM runs the model once per channel of the layer; `channels=` looks through those of most energy.",
            "",
            "| | channels | all / that many forward passes | all / a twelfth of them | correlation of the maps |",
            "|---|---:|---:|---:|---:|",
        ]
        for model, figures in scorecam.items():
            lines.append(
                f"| {model} | {figures['channels']:.0f} | {figures['all / C forward']:.2f} | "
                f"{figures['all / few']:.1f} | {figures['correlation']:.4f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
