"""Measure a gradient at the picture against the forward pass, torch autograd and onnx-ad.

    python benchmarks/gradient.py [--models resnet50 vgg16] [--rounds 10] [--output benchmarks/gradient.md]

The whole depth of the network is differentiated, as saliency, integrated gradients or guided backpropagation need it.
Every figure is a ratio taken within a round in which each contestant runs one block, the others waiting in processes
of their own (ONNX Runtime's spinning threads slow whatever is timed next to them). Weights are random: speed does not
depend on them. onnx-ad is not a requirement of the project; without it (`pip install --no-deps onnx-ad==0.3.0`) its
column is empty.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import speed  # noqa: E402
from benchmarks.contestants import Contestant, separately  # noqa: E402

PAUSE_S = 0.05
BOUNDS = {"resnet50": 2.3, "vgg16": 2.3, "mobilenet_v2": 2.8, "efficientnet_b0": 2.8}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(BOUNDS), choices=list(BOUNDS))
    parser.add_argument("--rounds", type=int, default=10, help="rounds per model, each a block of every contestant")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "gradient.md")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
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
    """Every contestant in turn, round after round."""
    with contextlib.ExitStack() as stack:
        workers = {}
        failed: dict[str, str] = {}
        for name in WORKERS:
            worker = stack.enter_context(Contestant(__file__, name, "--models", model, "--folder", folder))
            answer = worker.ask()  # loads, and a first block that does not count
            if "failed" in answer:
                failed[name] = str(answer["failed"])
                print(f"{model}, {name}: {failed[name]}", file=sys.stderr)
            else:
                workers[name] = worker
        figures: dict[str, list[float]] = {}
        for turn in range(rounds):
            print(f"\r{model}: round {turn + 1} of {rounds}", end="", file=sys.stderr)
            seconds: dict[str, float] = {}
            for worker in workers.values():
                seconds |= worker.ask()
            for key, value in seconds.items():
                figures.setdefault(key, []).append(1e3 * value)
                if key != "forward":
                    figures.setdefault(f"{key} / forward", []).append(value / seconds["forward"])
        print(file=sys.stderr)
    return {key: statistics.median(values) for key, values in figures.items()}


def serve(name: str, model: str, folder: Path) -> None:
    """Measure a block for every line on standard input; say so where this contestant cannot take the model."""
    try:
        calls = WORKERS[name](model, folder)
        for call in calls.values():
            call()
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        for _ in sys.stdin:
            print(json.dumps({"failed": reason[:200]}), flush=True)
        return
    for turn, _ in enumerate(sys.stdin):
        if name == "onnxcam":  # two plain sessions of one file differ by up to 5 % for as long as they live
            calls.clear()
            gc.collect()
            calls = WORKERS[name](model, folder)
        order = list(calls)[:: 1 if turn % 2 == 0 else -1]
        seconds: dict[str, list[float]] = {}
        for key in [*order, *order[::-1]]:
            time.sleep(PAUSE_S)  # the threads of the one before stop waiting for work
            seconds.setdefault(key, []).append(speed.block(calls[key]))
        print(json.dumps({key: statistics.fmean(times) for key, times in seconds.items()}), flush=True)


def onnxcam(model: str, folder: Path) -> speed.Calls:
    """The plain forward pass, and scores with the gradient of the best class at the picture, by the Explainer."""
    import numpy as np
    import onnxruntime as ort

    from onnxcam.explain.explainer import Explainer

    path = folder / f"{model}.onnx"
    if not path.exists():
        separately(speed.export, model, folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = speed.THREADS
    options.log_severity_level = 3
    plain = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    explainer = Explainer(folder / f"{model}.cam.onnx", session_options=options, providers=["CPUExecutionProvider"])
    x = picture()
    name = plain.get_inputs()[0].name
    signed = explainer.attribution(x, None, "saliency")
    assert signed.shape == x.shape and np.isfinite(signed).all()
    return {
        "forward": lambda: plain.run(None, {name: x}),
        "onnxcam": lambda: explainer.attribution(x, None, "saliency"),
    }


def autograd(model: str, folder: Path) -> speed.Calls:
    """Forward and backward pass in PyTorch; the weights ask for no gradient."""
    import torch

    net = speed.build(model).requires_grad_(False)
    x = torch.from_numpy(picture())

    def call() -> object:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(leaf).max(dim=1).values.sum(), leaf)
        return gradient

    return {"torch autograd": call}


def onnx_ad(model: str, folder: Path) -> speed.Calls:
    """onnx-ad's reverse model of the same file with its batch fixed, given the cotangent of one class."""
    import numpy as np
    import onnx
    import onnx_ad
    import onnxruntime as ort

    source = onnx.load(folder / f"{model}.onnx")
    for value in (*source.graph.input, *source.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del source.graph.value_info[:]
    reverse = onnx_ad.reverse(onnx.shape_inference.infer_shapes(source), layout="onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = speed.THREADS
    options.log_severity_level = 3
    session = ort.InferenceSession(reverse.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        shape = [side if isinstance(side, int) else 1 for side in value.shape]
        feeds[value.name] = picture() if value.name == source.graph.input[0].name else np.zeros(shape, np.float32)
    seed = next(array for name, array in feeds.items() if name != source.graph.input[0].name)
    seed.reshape(-1)[0] = 1
    return {"onnx-ad": lambda: session.run(None, feeds)}


def picture():  # type: ignore[no-untyped-def]
    import numpy as np

    return np.random.default_rng(1234).normal(size=(1, 3, 224, 224)).astype(np.float32)


# measured 2026-11-30 with ONNX Runtime 1.32.0, one thread, processor time of alternating runs
ATTEMPTS = """
## What does not make it faster

MobileNetV2 and EfficientNet-B0 spend 30 and 40 % of both passes on gates (one thread, processor time of alternating
runs, ONNX Runtime 1.32.0): the convolutions of both passes alone are about 2 forward passes, one step and one product
per ReLU6 2.62, the two steps and two products that are needed 3.08.

- The gate of a ReLU6 as one boolean mask (two comparisons and an And, or |y - 3| < 3, with a Where): six pairs of
  convolutions of 96 channels at 56 × 56 take 19.6 and 19.9 instead of 12.3 ms. Comparisons, Where and integers leave
  the blocked layout of the convolutions, and every activation is reordered twice.
- The gate as a step of y (6 - y), one product with the cotangent instead of two: 3.03 instead of 3.08.
- Gates emitted by the forward pass: they are computed once already, and an output more is memory more.
- Checkpoints: the forward pass is whole as it is, each ReLU6 fused into its convolution; what is held are activations.
- Without the blocked layout, as channel-last graphs need: 60.4 instead of 32.7 ms. ONNX Runtime has no channel-last
  float32 convolution on a CPU.
- XNNPACK's provider is not in the wheel (`CPUExecutionProvider` and `AzureExecutionProvider` are).
- ResNet-50's maximum pool takes 0.09 forward passes for the places of its maxima (MaxPool with Indices, then
  ScatterElements): marking each of the nine places by convolutions instead takes 10.4 instead of 8.9 ms, two pools, one
  along each axis, 7.1 instead of 8.3 ms.
- More rows per run: 3.16, 3.18 and 3.50 forward passes per row of MobileNetV2 in runs of 2, 4 and 8 rows (3.04 alone),
  2.33, 2.33 and 2.35 of ResNet-50 (2.22).
""".rstrip().split("\n")
WORKERS: dict[str, Callable[[str, Path], speed.Calls]] = {
    "onnxcam": onnxcam,
    "torch autograd": autograd,
    "onnx-ad": onnx_ad,
}


def table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """The figures as Markdown, with date, machine and versions."""
    versions = []
    for name in ("onnxcam", "onnxruntime", "torch", "torchvision", "onnx-ad"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    lines = [
        "# Speed of a gradient at the picture",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/gradient.py` on {speed.THREADS} CPU threads "
        f"({platform.machine()}, Python {platform.python_version()}): {', '.join(versions)}.",
        "",
        'One picture, 224 × 224. *onnxcam*: `Explainer.attribution(x, None, "saliency")`, which finds the best class,',
        "differentiates its score through the whole network and returns the gradient. All columns but the first are",
        "multiples of the plain forward pass in ONNX Runtime, medians over rounds. An empty field: the package cannot",
        "run the model, or was not asked. Every round has plain and explaining sessions of its own.",
        "",
        "| model | forward (ms) | onnxcam | aim | torch autograd | onnx-ad |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model, row in rows:
        others = [f"{row[key]:.1f}" if (key := f"{name} / forward") in row else "" for name in WORKERS][1:]
        lines.append(
            f"| {model} | {row['forward']:.1f} | {row['onnxcam / forward']:.2f} | ≤ {BOUNDS[model]} | "
            + " | ".join(others)
            + " |"
        )
    return "\n".join([*lines, *ATTEMPTS]) + "\n"


if __name__ == "__main__":
    main()
