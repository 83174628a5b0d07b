"""What a Grad-CAM costs: against the plain forward pass, and against the packages people use today.

    python benchmarks/speed.py [--models resnet50 vgg16] [--rounds 12] [--output benchmarks/speed.md]

All figures are ratios taken in one run on one machine. The plain model and the explainable one run in alternating
blocks of one process; every PyTorch package has a process of its own, because ONNX Runtime's waiting threads would slow
it down. Weights are random: speed does not depend on them. Every package gets the same tensor and one picture.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "vgg16")
# the module whose output the PyTorch packages are asked to explain: the same place as our default layer
LAYERS = {"resnet50": "layer4", "mobilenet_v2": "features", "efficientnet_b0": "features", "vgg16": "features.29"}
PACKAGES = ("pytorch-grad-cam", "torch-cam")
THREADS = min(2, os.cpu_count() or 1)
BLOCK_S, FEWEST, MOST = 0.3, 4, 40  # calls per block: as many as fit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=12, help="alternating blocks per model")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "speed.md")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        model = arguments.models[0]
        print(json.dumps(PARTS[arguments.part](model, arguments.folder, arguments.rounds)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            print(f"{model}: exporting", file=sys.stderr)
            measure(model, "export", folder, arguments.rounds)
            row: dict[str, float] = {}
            for part in ("onnx", *PACKAGES):
                print(f"{model}: {part}", file=sys.stderr)
                row |= measure(model, part, folder, arguments.rounds)
            rows.append((model, row))
    text = table(rows)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def measure(model: str, part: str, folder: str, rounds: int) -> dict[str, float]:
    """Run one part in a fresh process and read its figures."""
    command = [sys.executable, __file__, "--models", model, "--part", part, "--folder", folder]
    done = subprocess.run([*command, "--rounds", str(rounds)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{model}, {part}: failed\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def build(name: str):  # type: ignore[no-untyped-def]
    """A torchvision model with seeded random weights, in eval mode."""
    sys.path.insert(0, str(ROOT))
    import torch

    from tests.torchvision_stub import import_torchvision

    torch.manual_seed(1234)
    torch.set_num_threads(THREADS)
    return import_torchvision().models.get_model(name, weights=None).eval()


def export(model: str, folder: Path, rounds: int) -> dict[str, float]:
    """The plain file and the explainable file."""
    import torch
    from onnxcam.exporters import pytorch

    from onnxcam.graph import load, manifest
    from onnxcam.graph.normalize import prepare
    from onnxcam.graph.split import head_of

    net = build(model)
    example = torch.randn(1, 3, 224, 224)
    made = pytorch.export(net, example, None, verify=False)
    load.save(made, folder / f"{model}.cam.onnx")
    graph = prepare(made)
    held = manifest.read(made)
    assert held is not None
    load.save(head_of(graph, held), folder / f"{model}.onnx")
    return {}


def onnx(model: str, folder: Path, rounds: int) -> dict[str, float]:
    """Plain forward pass against Grad-CAM, in alternating blocks; ratio of medians, block by block."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    plain = ort.InferenceSession(folder / f"{model}.onnx", options, providers=["CPUExecutionProvider"])
    cam = ort.InferenceSession(folder / f"{model}.cam.onnx", options, providers=["CPUExecutionProvider"])
    held = json.loads(cam.get_modelmeta().custom_metadata_map["onnxcam"])
    x = np.random.default_rng(1234).normal(size=(1, 3, 224, 224)).astype(np.float32)
    wanted = [held["scores"]["name"], held["layers"][0]["heatmaps"]["gradcam"]]
    name = held["input"]["name"]
    top = np.asarray([-1], np.int64)
    forward, explain = [], []
    for turn in range(rounds):
        order = [
            (forward, lambda: plain.run(wanted[:1], {name: x})),
            (explain, lambda: cam.run(wanted, {name: x, "target": top})),
        ]
        for times, call in order if turn % 2 == 0 else order[::-1]:
            times.append(block(call))
    return {
        "forward": 1e3 * statistics.median(forward),
        "onnxcam": 1e3 * statistics.median(explain),
        "onnxcam / forward": statistics.median(b / a for a, b in zip(forward, explain, strict=True)),
    }


def pytorch_grad_cam(model: str, folder: Path, rounds: int) -> dict[str, float]:
    """pytorch-grad-cam's GradCAM, the object made once."""
    import torch

    net = build(model)
    from pytorch_grad_cam import GradCAM

    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1234))
    cam = GradCAM(model=net, target_layers=[net.get_submodule(LAYERS[model])])
    return {
        "pytorch-grad-cam": 1e3
        * statistics.median(block(lambda: cam(input_tensor=x, targets=None)) for _ in range(rounds))
    }


def torch_cam(model: str, folder: Path, rounds: int) -> dict[str, float]:
    """torch-cam's GradCAM, the object made once."""
    import torch

    net = build(model)
    from torchcam.methods import GradCAM

    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1234))
    extractor = GradCAM(net, target_layer=LAYERS[model])

    def call() -> None:
        scores = net(x)
        extractor(scores.argmax(dim=1).tolist(), scores)

    return {"torch-cam": 1e3 * statistics.median(block(call) for _ in range(rounds))}


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


PARTS = {"export": export, "onnx": onnx, "pytorch-grad-cam": pytorch_grad_cam, "torch-cam": torch_cam}


def table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    names = ("onnxcam", "onnxruntime", "torch", "torchvision", "grad-cam", "torchcam")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        "# Speed of one Grad-CAM",
        "",
        f"Measured {datetime.date.today()} with `make bench` on {THREADS} CPU threads ({platform.machine()}, Python "
        f"{platform.python_version()}): {versions}.",
        "",
        "One picture, 224 × 224, at the last convolution. Milliseconds are medians and belong to that machine; the",
        "ratios are what to compare. *onnxcam / forward*: the whole explanation (scores and heatmap) over the plain",
        "model's forward pass in the same runtime, median over alternating blocks. The other two columns: how many",
        "times longer the package takes than onnxcam for the same map of the same tensor.",
        "",
        "| model | forward (ms) | onnxcam (ms) | onnxcam / forward | "
        + " | ".join(f"{name} / onnxcam" for name in PACKAGES)
        + " |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model, row in rows:
        others = " | ".join(f"{row[name] / row['onnxcam']:.1f}" for name in PACKAGES)
        lines.append(
            f"| {model} | {row['forward']:.1f} | {row['onnxcam']:.1f} | {row['onnxcam / forward']:.3f} | {others} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
