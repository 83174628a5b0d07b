"""Measure methods of many runs, in forward passes of the same model, side by side with captum and PyTorch.

    python benchmarks/runs.py [--models resnet50 mobilenet_v2 vgg16] [--methods smoothgrad] [--rounds 5]

Every contestant has a process of its own and runs one call of each method while the others wait, round after round;
ratios are taken within a round, and their medians reported with the smallest and largest. One picture, 224 × 224,
random weights: speed does not depend on them. captum and PyTorch take the better of two batch sizes, round by round,
and as many threads as ONNX Runtime. Before the first round each call is made often enough for onnxcam to have chosen
its rows per run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import speed  # noqa: E402
from benchmarks.contestants import Contestant, separately  # noqa: E402

MODELS = ("resnet50", "mobilenet_v2", "vgg16")
PAUSE_S = 0.1
BATCHES = (2, 10)  # of the other packages
FORWARDS = 12


class Line(NamedTuple):
    """A method: its options, by whom else it is computed, and what is asked for, by model.

    Attributes:
        options: of the method.
        other: the contestant it is compared with, None without one.
        most: forward passes at most.
        ratio: the other's time divided by onnxcam's, at least.
        models: those it is measured on, None for all.
    """

    options: dict[str, object]
    other: str | None
    most: dict[str, float]
    ratio: dict[str, float]
    models: tuple[str, ...] | None = None


LINES: dict[str, Line] = {
    "integrated_gradients": Line(
        {"steps": 50}, "captum", {"resnet50": 105, "mobilenet_v2": 155}, {"resnet50": 1.45, "mobilenet_v2": 2.0}
    ),
    "smoothgrad": Line(
        {"samples": 25}, "captum", {"resnet50": 55, "mobilenet_v2": 80}, {"resnet50": 1.3, "mobilenet_v2": 1.9}
    ),
    "occlusion": Line(
        {"window": 32, "stride": 16}, "captum", {}, {"resnet50": 2.3, "mobilenet_v2": 3.1}
    ),
    "guided_backprop": Line({}, "captum", {}, {"resnet50": 1.6, "mobilenet_v2": 3.1}),
    "rise": Line(
        {"masks": 1000}, "torch", {"resnet50": 900, "mobilenet_v2": 900}, {"resnet50": 1.2, "mobilenet_v2": 2.0},
        ("resnet50", "mobilenet_v2"),
    ),
    "scorecam": Line(
        {}, "torch", {"resnet50": 0.9 * 2048, "mobilenet_v2": 0.9 * 1280}, {"resnet50": 1.2, "mobilenet_v2": 2.0},
        ("resnet50", "mobilenet_v2"),
    ),
    "gradcam": Line({}, "captum", {"resnet50": 1.02, "mobilenet_v2": 1.04}, {}),
    "eigencam": Line({}, None, {"resnet50": 1.1, "mobilenet_v2": 1.1, "vgg16": 1.1}, {}),
    "eigengradcam": Line({}, None, {"resnet50": 1.1, "mobilenet_v2": 1.1}, {}),
    "ablationcam": Line({}, None, {"vgg16": 2.0}, {}),
    "reciprocam": Line({}, None, {"vgg16": 1.5}, {}),
}  # fmt: skip
SHORT = ("gradcam", "eigencam", "eigengradcam", "ablationcam", "reciprocam", "guided_backprop")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=list(LINES), choices=list(LINES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shorten", type=int, default=1, help="divide steps, samples and masks by this, to try it")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "runs.md")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments)
        return
    rows = {}
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            rows[model] = compare(model, folder, arguments)
    text = table(rows, arguments.rounds)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def compare(model: str, folder: str, arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Ratios of every method by round: forward passes, and the other's time divided by onnxcam's."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in WORKERS:
            options = ["--models", model, "--folder", folder, "--shorten", arguments.shorten]
            options += ["--methods", *arguments.methods]
            workers[name] = stack.enter_context(Contestant(__file__, name, *options))
            workers[name].ask()  # loads, and calls that do not count
        figures: dict[str, dict[str, list[float]]] = {}
        for turn in range(arguments.rounds):
            print(f"\r{model}: round {turn + 1} of {arguments.rounds}", end="", file=sys.stderr)
            seconds = {name: worker.ask() for name, worker in workers.items()}
            for key, value in seconds["onnxcam"].items():
                method, _, what = key.partition(" / ")
                row = figures.setdefault(method, {})
                if what == "forward":
                    row.setdefault("forward ms", []).append(1e3 * value)
                    continue
                row.setdefault("ms", []).append(1e3 * value)
                row.setdefault("passes", []).append(value / seconds["onnxcam"][f"{method} / forward"])
                other = LINES[method].other
                if other is not None and method in seconds[other]:
                    row.setdefault("ratio", []).append(seconds[other][method] / value)
        print(file=sys.stderr)
    return figures


def serve(arguments: argparse.Namespace) -> None:
    """Measure every method once for every line on standard input."""
    model = arguments.models[0]
    methods = [name for name in arguments.methods if LINES[name].models is None or model in LINES[name].models]
    options = {name: shortened(LINES[name].options, arguments.shorten) for name in methods}
    calls = WORKERS[arguments.worker](model, arguments.folder, options)
    forward = calls.pop("forward", None)
    first = True
    for _ in sys.stdin:
        seconds: dict[str, float] = {}
        for name, variants in calls.items():
            if first:
                for call in variants * (3 if forward is not None else 1):
                    call()
            else:
                seconds |= measured(name, variants, forward)
        first = False
        gc.collect()
        print(json.dumps(seconds), flush=True)


def measured(
    name: str, variants: list[Callable[[], object]], forward: list[Callable[[], object]] | None
) -> dict[str, float]:
    """Seconds of a method, the best of its variants, and of the forward pass, half of it before and half behind."""
    calls = 15 if name in SHORT else 1
    before = [] if forward is None else times(forward[0], FORWARDS)
    seconds = {name: min(statistics.median(times(call, calls)) for call in variants)}
    if forward is not None:
        seconds[f"{name} / forward"] = statistics.median([*before, *times(forward[0], FORWARDS)])
    return seconds


def times(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of some calls, after one that does not count where there are several."""
    time.sleep(PAUSE_S)  # the threads of the one before stop waiting for work
    if count > 1:
        call()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def shortened(options: dict[str, object], by: int) -> dict[str, object]:
    """Options with fewer steps, samples and masks."""
    return {
        name: max(2, value // by) if name in ("steps", "samples", "masks") and isinstance(value, int) else value
        for name, value in options.items()
    }


Calls = dict[str, list[Callable[[], object]]]
Options = dict[str, dict[str, object]]


def onnxcam(model: str, folder: Path, options: Options) -> Calls:
    """The plain forward pass, and every method by the Explainer."""
    import onnxruntime as ort

    from onnxcam.explain.explainer import Explainer

    separately(speed.export, model, folder)
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    plain = ort.InferenceSession(folder / f"{model}.onnx", settings, providers=["CPUExecutionProvider"])
    explainer = Explainer(folder / f"{model}.cam.onnx", providers=["CPUExecutionProvider"])
    x = picture()
    name = plain.get_inputs()[0].name
    calls: Calls = {"forward": [lambda: plain.run(None, {name: x})]}
    for method, keywords in options.items():
        calls[method] = [lambda method=method, keywords=keywords: explainer.attribute(x, method=method, **keywords)]
    return calls


def captum(model: str, folder: Path, options: Options) -> Calls:
    """captum's methods for the best class, which it wants named."""
    import torch
    from captum.attr import (
        GuidedBackprop,
        IntegratedGradients,
        LayerGradCam,
        NoiseTunnel,
        Occlusion,
        Saliency,
    )

    net = module(model)
    x = torch.from_numpy(picture())
    best = int(net(x).argmax())
    integrated, smooth = IntegratedGradients(net), NoiseTunnel(Saliency(net))
    hiding, guided = Occlusion(net), GuidedBackprop(net)
    cam = LayerGradCam(net, net.get_submodule(speed.LAYERS[model]))
    every: dict[str, Callable[[int, dict[str, object]], object]] = {
        "integrated_gradients": lambda rows, o: integrated.attribute(
            x, target=best, n_steps=o["steps"], internal_batch_size=rows
        ),
        "smoothgrad": lambda rows, o: smooth.attribute(
            x, target=best, nt_samples=o["samples"], nt_samples_batch_size=rows, abs=False
        ),
        "occlusion": lambda rows, o: hiding.attribute(
            x, (3, 32, 32), target=best, strides=(3, 16, 16), perturbations_per_eval=rows
        ),
    }
    once: dict[str, Callable[[], object]] = {
        "guided_backprop": lambda: guided.attribute(x, target=best),
        "gradcam": lambda: cam.attribute(x, target=int(net(x).argmax()), relu_attributions=True),
    }
    calls: Calls = {}
    for method, keywords in options.items():
        if method in every:
            calls[method] = [lambda m=method, o=keywords, rows=rows: every[m](rows, o) for rows in BATCHES]
        elif method in once:
            calls[method] = [once[method]]
    return calls


def by_hand(model: str, folder: Path, options: Options) -> Calls:
    """RISE and Score-CAM as they are written in PyTorch: masks enlarged and applied in batches, without gradients."""
    import torch
    from torch.nn import functional

    net = module(model)
    x = torch.from_numpy(picture())
    best = int(net(x).argmax())

    def rise(rows: int, masks: int) -> object:
        total = torch.zeros(224, 224)
        for start in range(0, masks, rows):
            count = min(rows, masks - start)
            grids = (torch.rand(count, 1, 7, 7) < 0.5).float()
            large = functional.interpolate(grids, size=(256, 256), mode="bilinear")
            top, left = torch.randint(0, 32, (2,)).tolist()
            some = large[:, :, top : top + 224, left : left + 224]
            p = net(x * some).softmax(dim=1)[:, best]
            total += (p[:, None, None] * some[:, 0]).sum(dim=0)
        return total

    values = {}
    layer = net.get_submodule(speed.LAYERS[model])

    def score(rows: int) -> object:
        hook = layer.register_forward_hook(lambda module, inputs, output: values.update(a=output))
        net(x)
        hook.remove()
        a = values["a"]
        weights = []
        for start in range(0, a.shape[1], rows):
            some = functional.interpolate(a[0, start : start + rows, None], size=(224, 224), mode="bilinear")
            low, high = some.amin(dim=(2, 3), keepdim=True), some.amax(dim=(2, 3), keepdim=True)
            weights.append(net(x * ((some - low) / (high - low + 1e-8)))[:, best])
        return (torch.cat(weights).softmax(dim=0)[:, None, None] * a[0]).sum(dim=0).relu()

    def without(call: Callable[[], object]) -> Callable[[], object]:
        def inference() -> object:
            with torch.inference_mode():
                return call()

        return inference

    calls: Calls = {}
    if "rise" in options:
        masks = options["rise"]["masks"]
        calls["rise"] = [without(lambda rows=rows: rise(rows, masks)) for rows in BATCHES]
    if "scorecam" in options:
        calls["scorecam"] = [without(lambda rows=rows: score(rows)) for rows in BATCHES]
    return calls


def module(model: str):  # type: ignore[no-untyped-def]
    """The network with ReLUs that are not in place, as captum's hooks need them, and weights without gradients."""
    import torch

    net = speed.build(model).requires_grad_(False)
    for part in net.modules():
        if isinstance(part, (torch.nn.ReLU, torch.nn.ReLU6)):
            part.inplace = False
    return net


def picture():  # type: ignore[no-untyped-def]
    import numpy as np

    return np.random.default_rng(1234).normal(size=(1, 3, 224, 224)).astype(np.float32)


WORKERS: dict[str, Callable[[str, Path, Options], Calls]] = {"onnxcam": onnxcam, "captum": captum, "torch": by_hand}


def table(rows: dict[str, dict[str, dict[str, list[float]]]], rounds: int) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxcam", "onnxruntime", "torch", "captum"))
    lines = [
        "# Methods of many runs",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/runs.py --rounds {rounds}` on {speed.THREADS} CPU "
        f"threads ({platform.machine()}, Python {platform.python_version()}): {versions}.",
        "",
        "One picture, 224 × 224. *Passes*: the time of `Explainer.attribute` in forward passes of the plain model in",
        "the same round. *Other*: the time of captum, or of PyTorch by hand, divided by onnxcam's, each with the",
        f"better of two batch sizes ({BATCHES[0]} and {BATCHES[1]}). Medians over rounds, with the smallest and",
        "largest.",
        "",
        "| model | method | ms | passes | at most | other | time of the other / onnxcam | at least |",
        "|---|---|---:|---:|---:|---|---:|---:|",
    ]
    for model, figures in rows.items():
        for method, row in figures.items():
            line = LINES[method]
            lines.append(
                f"| {model} | {method} | {statistics.median(row['ms']):.1f} | {spread(row['passes'])} | "
                f"{_bound(line.most.get(model))} | {line.other or ''} | {spread(row.get('ratio', []))} | "
                f"{_bound(line.ratio.get(model))} |"
            )
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Median with the smallest and largest."""
    if not values:
        return ""
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


if __name__ == "__main__":
    main()
