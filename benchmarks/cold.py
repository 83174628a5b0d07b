"""Measure a cold start: a process that explains a single picture and ends.

    python benchmarks/cold.py [--rounds 7] [--models efficientnet_lite0 resnet50] [--output benchmarks/cold.md]

Each contestant is a script of its own, run as a process, in turn within every round: the bare ONNX Runtime script that
decodes the picture, prepares it and predicts; onnxcam from Python and as a command, which write their results too; and
pytorch-grad-cam on the same network in PyTorch, which writes its overlay. Ratios are taken within a round. Peak memory
is the process's own (`ru_maxrss`), measured by the parent. Files are in the page cache: the first round is not counted.
Weights are random unless the network is bundled: neither time nor memory depends on them.
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
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("efficientnet_lite0", "resnet50")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

BARE = """
import sys, cv2, numpy as np, onnxruntime as ort
folder, name, picture = sys.argv[1:]
options = ort.SessionOptions()
options.log_severity_level = 3
session = ort.InferenceSession(f"{folder}/{name}.onnx", options, providers=["CPUExecutionProvider"])
x = cv2.cvtColor(cv2.imread(picture), cv2.COLOR_BGR2RGB)
x = cv2.resize(x, (224, 224)).astype(np.float32) / 255
x = (x - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
x = np.ascontiguousarray(x.transpose(2, 0, 1)[None])
scores = session.run(None, {session.get_inputs()[0].name: x})[0]
print(scores[0].argsort()[::-1][:5])
"""
PYTHON = """
import sys, onnxcam
folder, name, picture = sys.argv[1:]
e = onnxcam.Explainer(f"{folder}/{name}.cam.onnx").explain(picture)
print(e.predictions)
e.save(f"{folder}/python")
"""
TORCH = """
import sys
folder, name, picture, root = sys.argv[1:]
sys.path.insert(0, root)
from tests.support.torchvision_stub import import_torchvision
import cv2, numpy as np, torch
torchvision = import_torchvision()
if name == "resnet50":
    model = torchvision.models.resnet50(weights=None)
    layer = model.layer4
else:
    import timm
    model = timm.create_model(name, pretrained=False)
    layer = model.bn2
model.load_state_dict(torch.load(f"{folder}/{name}.pt", weights_only=True))
model.eval()
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import preprocess_image, show_cam_on_image
shown = cv2.resize(cv2.imread(picture), (224, 224))[:, :, ::-1].astype(np.float32) / 255
x = preprocess_image(shown, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
with GradCAM(model=model, target_layers=[layer]) as cam:
    heatmap = cam(input_tensor=x, targets=None)[0]
    print(cam.outputs[0].argsort(descending=True)[:5])
cv2.imwrite(f"{folder}/torch.png", show_cam_on_image(shown, heatmap, use_rgb=True)[:, :, ::-1])
"""
CONTESTANTS = ("bare", "onnxcam in Python", "onnxcam explain", "pytorch-grad-cam")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument(
        "--rounds", type=int, default=7, help="rounds that count, one process of each contestant in each"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "cold.md")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)  # writes the files of a model, in its own process
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.models[0], arguments.make)
        return
    rows = []
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, __file__, "--models", model, "--make", folder], check=True)
            rows.append((model, compare(model, Path(folder), arguments.rounds)))
    text = table(rows, arguments.rounds)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def make(model: str, folder: Path) -> None:
    """The plain file, the explainable file and PyTorch's weights of the same network."""
    import torch

    sys.path.insert(0, str(ROOT))
    from onnxcam import models
    from onnxcam.exporters import pytorch
    from onnxcam.graph import load
    from onnxcam.graph.normalize import prepare
    from onnxcam.network import manifest
    from onnxcam.network.split import head_of
    from tests.support.torchvision_stub import import_torchvision

    torch.manual_seed(1234)
    torchvision = import_torchvision()
    preprocess = {"scale": 1 / 255, "resize": {"mode": "stretch", "size": [224, 224]}, **IMAGENET}
    if model == "resnet50":
        net = torchvision.models.resnet50(weights=None).eval()
        explainable = pytorch.export(net, torch.randn(1, 3, 224, 224), None, preprocess=preprocess, verify=False)
        assert not isinstance(explainable, dict)
    else:
        import timm

        net = timm.create_model(model, pretrained=False)
        explainable = load.load(models.path(models.MODEL))
    torch.save(net.state_dict(), folder / f"{model}.pt")
    header = manifest.read(explainable)
    assert header is not None
    load.save(explainable, folder / f"{model}.cam.onnx")
    load.save(head_of(prepare(explainable), header), folder / f"{model}.onnx")


def compare(model: str, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Per contestant the medians of seconds, MiB and their ratios to the bare script's."""
    from onnxcam import models

    picture = str(models.path("cat.png"))
    where = [str(folder), model, picture]
    commands = {
        "bare": [sys.executable, "-c", BARE, *where],
        "onnxcam in Python": [sys.executable, "-c", PYTHON, *where],
        "onnxcam explain": [
            *(sys.executable, "-m", "onnxcam", "explain", f"{folder}/{model}.cam.onnx", picture),
            *("-o", f"{folder}/command"),
        ],
        "pytorch-grad-cam": [sys.executable, "-c", TORCH, *where, str(ROOT)],
    }
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        print(f"\r{model}: round {turn} of {rounds}", end="", file=sys.stderr)
        order = list(commands.items())
        for name, command in order if turn % 2 == 0 else order[::-1]:
            figures = process(command, folder / "compiled")
            if turn:
                runs[name].append(figures)
    print(file=sys.stderr)
    results = {}
    for name, figures in runs.items():
        ratios = [
            [mine / other for mine, other in zip(*pair, strict=True)]
            for pair in zip(figures, runs["bare"], strict=True)
        ]
        results[name] = {
            key: statistics.median(values)
            for key, values in zip(
                ("s", "cpu", "mib", "s ratio", "cpu ratio", "mib ratio"),
                [*zip(*figures, strict=True), *zip(*ratios, strict=True)],
                strict=True,
            )
        }
    return results


def process(command: list[str], cache: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak MiB of a process."""
    # compiled modules are kept, as in an installed package; here next to the benchmark's own files
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as child:
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command[1:3]} ended with {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 2**20


def table(rows: list[tuple[str, dict[str, dict[str, float]]]], rounds: int) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    names = ("onnxcam", "onnxruntime", "numpy", "torch", "timm", "grad-cam")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        "# One picture from a cold start",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/cold.py` on {os.cpu_count()} CPU cores "
        f"({platform.machine()}, Python {platform.python_version()}): {versions}.",
        "",
        "A process that explains one picture and ends: interpreter, imports, model, picture, prediction, map, files.",
        "*Bare* is a script that decodes the picture and predicts with ONNX Runtime alone, and writes nothing; onnxcam",
        "writes six files, pytorch-grad-cam one. Ratios to *bare* are taken within a round; processor time says what",
        f"is left of them on a busy machine. Medians of {rounds} rounds.",
        "",
        "| network | process | s | s / bare | processor s / bare | peak MiB | MiB / bare |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for model, results in rows:
        for name in CONTESTANTS:
            row = results[name]
            lines.append(
                f"| {model} | {name} | {row['s']:.2f} | {row['s ratio']:.2f} | {row['cpu ratio']:.2f} | "
                f"{row['mib']:.0f} | {row['mib ratio']:.2f} |"
            )
    lines.append("")
    for model, results in rows:
        other, mine = results["pytorch-grad-cam"], results["onnxcam in Python"]
        lines.append(
            f"- {model}: pytorch-grad-cam takes {other['s'] / mine['s']:.1f} times as long as onnxcam in Python, and "
            f"{other['mib'] / mine['mib']:.1f} times its memory."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
