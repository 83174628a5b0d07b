"""Measure one Grad-CAM, of the bare file and by `Explainer.attribute`, against the plain forward pass, and against the
packages people use today.

    python benchmarks/speed.py [--models resnet50 vgg16] [--rounds 12] [--output benchmarks/speed.md]

All figures are ratios taken in one run on one machine, round by round: in every round each contestant runs one block
while the others wait. Every PyTorch package has a process of its own, because ONNX Runtime's waiting threads would slow
it down. Weights are random: speed does not depend on them. Every package gets one picture and the same work.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
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

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "vgg16")
# the module whose output the PyTorch packages are asked to explain: the same place as our default layer
LAYERS = {"resnet50": "layer4", "mobilenet_v2": "features", "efficientnet_b0": "features", "vgg16": "features.29"}
PACKAGES = ("pytorch-grad-cam", "torch-cam", "captum", "torch autograd")
OURS = ("onnxcam", "attribute")  # the bare file, and `Explainer.attribute`, which is what users call
THREADS = min(2, os.cpu_count() or 1)
Calls = dict[str, Callable[[], object]]
BLOCK_S, FEWEST, MOST, PAUSE_S = 0.3, 4, 40, 0.05  # calls per block: as many as fit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=10, help="rounds per model, each a block of every contestant")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "speed.md")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)  # one contestant, in its own process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker, arguments.models[0], arguments.folder)
        return
    rows = []
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append((model, compare(model, folder, arguments.rounds)))
    text = table(rows)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def compare(model: str, folder: str, rounds: int) -> dict[str, float]:
    """Every contestant in turn, round after round; ratios within a round, so that a drifting machine cancels out."""
    print(f"{model}: loading", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in WORKERS:  # one after the other: the first one writes the files it measures
            workers[name] = stack.enter_context(Contestant(__file__, name, "--models", model, "--folder", folder))
            workers[name].ask()
        figures: dict[str, list[float]] = {}
        for turn in range(rounds):
            print(f"\r{model}: round {turn + 1} of {rounds}", end="", file=sys.stderr)
            seconds: dict[str, float] = {}
            for worker in workers.values():
                seconds |= worker.ask()
            for key in ("forward", *OURS):
                figures.setdefault(key, []).append(1e3 * seconds[key])
            for key in OURS:
                figures.setdefault(f"{key} / forward", []).append(seconds[key] / seconds["forward"])
            for name in PACKAGES:
                figures.setdefault(name, []).append(seconds[name] / seconds["onnxcam"])
        print(file=sys.stderr)
    row = {key: statistics.median(values) for key, values in figures.items()}
    for key in OURS:  # of the printed milliseconds, with the ratios of single rounds around it
        ratios = figures[f"{key} / forward"]
        row[f"{key} / forward"] = row[key] / row["forward"]
        row[f"{key} least"], row[f"{key} most"] = min(ratios), max(ratios)
    return row


def serve(name: str, model: str, folder: Path) -> None:
    """Measure a block for every line on standard input."""
    calls = WORKERS[name](model, folder)
    for turn, _ in enumerate(sys.stdin):
        if turn and name == "onnxcam":  # two sessions of one file differ by up to 5 % for as long as they live
            calls.clear()
            gc.collect()
            calls = WORKERS[name](model, folder)
        order = list(calls)[:: 1 if turn % 2 == 0 else -1]
        seconds: dict[str, list[float]] = {}
        for key in [*order, *order[::-1]]:  # on the way there and back: a machine that slows down favours none
            time.sleep(PAUSE_S)  # the threads of the one before stop waiting for work
            seconds.setdefault(key, []).append(block(calls[key]))
        print(json.dumps({key: statistics.fmean(times) for key, times in seconds.items()}), flush=True)


def build(name: str):  # type: ignore[no-untyped-def]
    """A torchvision model with seeded random weights, in eval mode."""
    import torch

    from tests.support.torchvision_stub import import_torchvision

    torch.manual_seed(1234)
    torch.set_num_threads(THREADS)
    return import_torchvision().models.get_model(name, weights=None).eval()


def export(model: str, folder: Path) -> None:
    """The plain file and the explainable file."""
    import torch

    from onnxcam.exporters import pytorch
    from onnxcam.graph import load
    from onnxcam.graph.normalize import prepare
    from onnxcam.network import manifest
    from onnxcam.network.split import head_of

    explainable = pytorch.export(build(model), torch.randn(1, 3, 224, 224), None, verify=False)
    assert not isinstance(explainable, dict)
    load.save(explainable, folder / f"{model}.cam.onnx")
    graph = prepare(explainable)
    header = manifest.read(explainable)
    assert header is not None
    load.save(head_of(graph, header), folder / f"{model}.onnx")


def onnxcam(model: str, folder: Path) -> Calls:
    """The plain forward pass, and scores and heatmap from the explainable file."""
    import numpy as np
    import onnxruntime as ort

    from onnxcam.explain.explainer import Explainer

    if not (folder / f"{model}.onnx").exists():
        separately(export, model, folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    plain = ort.InferenceSession(folder / f"{model}.onnx", options, providers=["CPUExecutionProvider"])
    cam = ort.InferenceSession(folder / f"{model}.cam.onnx", options, providers=["CPUExecutionProvider"])
    header = json.loads(cam.get_modelmeta().custom_metadata_map["onnxcam"])
    x = np.random.default_rng(1234).normal(size=(1, 3, 224, 224)).astype(np.float32)
    outputs = [header["scores"]["name"], header["layers"][0]["heatmaps"]["gradcam"]]
    name = header["input"]["name"]
    top = np.asarray([-1], np.int64)
    explainer = Explainer(folder / f"{model}.cam.onnx", session_options=options, providers=["CPUExecutionProvider"])
    return {
        "forward": lambda: plain.run(outputs[:1], {name: x}),
        "onnxcam": lambda: cam.run(outputs, {name: x, "target": top}),
        "attribute": lambda: explainer.attribute(x),
    }


def pytorch_grad_cam(model: str, folder: Path) -> Calls:
    """pytorch-grad-cam's GradCAM, the object made once."""
    import torch

    net = build(model)
    from pytorch_grad_cam import GradCAM

    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1234))
    cam = GradCAM(model=net, target_layers=[net.get_submodule(LAYERS[model])])
    return {"pytorch-grad-cam": lambda: cam(input_tensor=x, targets=None)}


def torch_cam(model: str, folder: Path) -> Calls:
    """torch-cam's GradCAM, the object made once."""
    import torch

    net = build(model)
    from torchcam.methods import GradCAM

    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1234))
    extractor = GradCAM(net, target_layer=LAYERS[model])

    def call() -> object:
        scores = net(x)
        return extractor(scores.argmax(dim=1).tolist(), scores)

    return {"torch-cam": call}


def captum(model: str, folder: Path) -> Calls:
    """captum's LayerGradCam for the best class, which captum wants named: a forward pass to find it comes first."""
    import torch

    net = build(model)
    from captum.attr import LayerGradCam

    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1234))
    cam = LayerGradCam(net, net.get_submodule(LAYERS[model]))

    def call() -> object:
        with torch.no_grad():
            best = int(net(x).argmax())
        return cam.attribute(x, target=best, relu_attributions=True)

    return {"captum": call}


def torch_autograd(model: str, folder: Path) -> Calls:
    """No package: a hook that keeps the layer's output, autograd from the best score to it, eight lines by hand."""
    import torch

    net = build(model).requires_grad_(False)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1234))
    hooked = {}

    def hook(module: object, inputs: object, output):  # type: ignore[no-untyped-def]
        # the pass back ends here, as far as autograd is concerned
        hooked["a"] = output.detach().clone().requires_grad_()
        return hooked["a"].clone()

    net.get_submodule(LAYERS[model]).register_forward_hook(hook)

    def call() -> object:
        scores = net(x)
        (gradient,) = torch.autograd.grad(scores[0, scores[0].argmax()], hooked["a"])
        return (gradient.mean(dim=(2, 3), keepdim=True) * hooked["a"]).sum(dim=1).relu()

    return {"torch autograd": call}


def block(call: Callable[[], object]) -> float:
    """Seconds per call, median of a block; its first calls, which meet cold caches, are not counted."""
    call()
    start = time.perf_counter()
    call()
    count = int(BLOCK_S / (time.perf_counter() - start))
    times = []
    for _ in range(min(max(count, FEWEST), MOST)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


WORKERS: dict[str, Callable[[str, Path], Calls]] = {
    "onnxcam": onnxcam,
    "pytorch-grad-cam": pytorch_grad_cam,
    "torch-cam": torch_cam,
    "captum": captum,
    "torch autograd": torch_autograd,
}


def table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    names = ("onnxcam", "onnxruntime", "torch", "torchvision", "grad-cam", "torchcam", "captum")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        "# Speed of one Grad-CAM",
        "",
        f"Measured {datetime.date.today()} with `make bench` on {THREADS} CPU threads ({platform.machine()}, Python "
        f"{platform.python_version()}): {versions}.",
        "",
        "One picture, 224 × 224, at the last convolution. Milliseconds are medians over rounds and belong to that",
        "machine; the ratios are what to compare. *File*: the whole explanation (scores and heatmap of the",
        "layer's size) from the explainable file; *attribute*: `Explainer.attribute`, normalised and of the",
        "picture's size; each over the plain model's forward pass in the same runtime: the quotient of the",
        "milliseconds, with the smallest and largest of single rounds. The other columns: how many times longer the",
        "package takes than the file for the same map, the median of ratios within rounds in which every contestant",
        "ran a block.",
        "",
        "| model | forward (ms) | file (ms) | file / forward | attribute (ms) | attribute / forward | "
        + " | ".join(f"{name} / file" for name in PACKAGES)
        + " |",
        "|---|---:|---:|---:|---:|---:" + "|---:" * len(PACKAGES) + "|",
    ]
    for model, row in rows:
        others = " | ".join(f"{row[name]:.1f}" for name in PACKAGES)
        ours = " | ".join(
            f"{row[key]:.2f} | {row[f'{key} / forward']:.3f} ({row[f'{key} least']:.3f}–{row[f'{key} most']:.3f})"
            for key in OURS
        )
        lines.append(f"| {model} | {row['forward']:.2f} | {ours} | {others} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
