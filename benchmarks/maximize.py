"""Measure activation maximisation against a plain ascent in PyTorch: what both reach, and how long they take.

    python benchmarks/maximize.py [--models resnet50 mobilenet_v2] [--steps 256] [--rounds 3] [--output maximize.md]

Both climb the logit of class 7 from the same noise, with the same Fourier parametrisation, jitter, steps and learning
rate, on two threads; PyTorch with `torch.optim.Adam` and weights that need no gradient. In every round each runs one
ascent while the other's process waits; figures are medians of ratios within a round. Then one channel of the first
layer is climbed against one of the last. Weights are random: speed does not depend on them, what is reached does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import speed  # noqa: E402
from benchmarks.contestants import Contestant, separately  # noqa: E402

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "vgg16", "densenet121", "resnet18")
BOUNDS = {"resnet50": 1.4, "mobilenet_v2": 2.5}
CLASS, SEED, SIZE, RATE = 7, 1234, 224, 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Climb = Callable[[], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="rounds per model, each an ascent of either")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "maximize.md")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        climb = WORKERS[arguments.worker](arguments.models[0], arguments.folder, arguments.steps)
        for _ in sys.stdin:
            print(json.dumps(climb()), flush=True)
        return
    rows = []
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append((model, compare(model, folder, arguments.steps, arguments.rounds)))
    text = table(rows, arguments.steps, arguments.rounds)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def compare(model: str, folder: str, steps: int, rounds: int) -> dict[str, float]:
    """Either in turn, round after round."""
    with contextlib.ExitStack() as stack:
        options = ("--models", model, "--folder", folder, "--steps", steps)
        workers = {name: stack.enter_context(Contestant(__file__, name, *options)) for name in WORKERS}
        figures: dict[str, list[float]] = {}
        for turn in range(rounds):
            print(f"\r{model}: round {turn + 1} of {rounds}", end="", file=sys.stderr)
            answers = {name: worker.ask() for name, worker in workers.items()}
            ours, theirs = answers["onnxcam"], answers["torch"]
            figures.setdefault("speed", []).append(theirs["seconds"] / ours["seconds"])
            figures.setdefault("early", []).append(ours["first"] / ours["last"])
            figures.setdefault("step", []).append(1e3 * ours["seconds"] / steps)
            for name in ("reached", "verified"):
                figures.setdefault(name, []).append(ours[name])
            figures.setdefault("theirs", []).append(theirs["reached"])
        print(file=sys.stderr)
    return {key: statistics.median(values) for key, values in figures.items()}


def export(model: str, folder: Path) -> None:
    """The explainable file of a network with random weights."""
    import torch

    from onnxcam.exporters import pytorch

    path = folder / f"{model}.onnx"
    pytorch.export(speed.build(model), torch.randn(1, 3, SIZE, SIZE), path, preprocess="imagenet", verify=False)


def onnxcam(model: str, folder: Path, steps: int) -> Climb:
    """`inside.maximize`, opened once: ascents of the class, of a channel of the first layer and of one of the last."""
    import onnxruntime as ort

    from onnxcam import Explainer, layers
    from onnxcam.inside.maximization import Settings, climb, scalar_of
    from onnxcam.inside.subject import Subject

    separately(export, model, folder)
    path = folder / f"{model}.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads = speed.THREADS
    options.log_severity_level = 3
    subject = Subject(Explainer(path, session_options=options, providers=["CPUExecutionProvider"]))
    settings = Settings.of(subject.size, steps=steps, learning_rate=RATE, seed=SEED)
    names = [layer.name for layer in layers(path)]
    whats: dict[str, tuple[Any, ...]] = {
        "seconds": (None, None, None, CLASS, None),
        "first": (names[0], 1, None, None, None),
        "last": (names[-1], 1, None, None, None),
    }

    def run() -> dict[str, float]:
        answer: dict[str, float] = {}
        for key, what in whats.items():
            scalar = scalar_of(subject, *what)
            session = subject.ascent(scalar)
            began = time.perf_counter()
            result = climb(subject, scalar, session, settings)
            answer[key] = time.perf_counter() - began
            if key == "seconds":
                answer |= {"reached": result.reached, "verified": result.verified}
        return answer

    return run


def torch_ascent(model: str, folder: Path, steps: int) -> Climb:
    """A plain ascent: `torch.fft.irfft2`, `torch.roll`, `torch.optim.Adam`, from the noise and jitter of `inside`."""
    import numpy as np
    import torch

    from onnxcam.inside.maximization import DEVIATION, Settings
    from onnxcam.inside.parametrization import COLORS, Canvas

    network = speed.build(model)
    for weight in network.parameters():
        weight.requires_grad_(False)
    settings = Settings.of((SIZE, SIZE), steps=steps, learning_rate=RATE, seed=SEED)
    canvas = Canvas("fourier", 3, SIZE, SIZE, colors=True)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    amplitude = torch.tensor(SIZE / 4 / np.maximum(frequency, 1 / SIZE)).float()
    matrix = torch.tensor(COLORS)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def picture(parameters: Any) -> Any:
        values = torch.fft.irfft2(torch.view_as_complex(parameters) * amplitude, s=(SIZE, SIZE))
        return torch.sigmoid(torch.einsum("ij,jhw->ihw", matrix, values))

    def run() -> dict[str, float]:
        rng = np.random.default_rng(SEED)
        parameters = torch.tensor(canvas.noise(rng, DEVIATION), requires_grad=True)
        optimiser = torch.optim.Adam([parameters], lr=RATE)
        began = time.perf_counter()
        for _ in range(steps):
            shift: Any = settings.transformation.draw(rng, (SIZE, SIZE))
            moved = torch.roll(picture(parameters), (shift.rows, shift.columns), (1, 2))
            optimiser.zero_grad()
            (-network(((moved - mean) / std)[None])[0, CLASS]).backward()
            optimiser.step()
        seconds = time.perf_counter() - began
        with torch.no_grad():
            reached = network(((picture(parameters) - mean) / std)[None])[0, CLASS].item()
        return {"seconds": seconds, "reached": reached}

    return run


WORKERS: dict[str, Callable[[str, Path, int], Climb]] = {"onnxcam": onnxcam, "torch": torch_ascent}


def table(rows: list[tuple[str, dict[str, float]]], steps: int, rounds: int) -> str:
    """The page, with every figure that is below its bound marked."""
    lines = [
        "# Activation maximisation",
        "",
        "`python benchmarks/maximize.py`: " + " ".join(" ".join((__doc__ or "").split("\n\n")[-1].split()).split()),
        "",
        f"{datetime.date.today()}, {platform.machine()}, {speed.THREADS} threads, {steps} steps, {rounds} rounds.",
        "",
        "| network | reached | PyTorch | ratio | rounding | faster than PyTorch | first / last layer | ms a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows:
        ratio = row["reached"] / row["theirs"]
        rounding = abs(row["verified"] / row["reached"] - 1)
        fast = "" if row["speed"] >= BOUNDS.get(name, 1.0) else " (!)"
        lines.append(
            f"| {name} | {row['reached']:.4g} | {row['theirs']:.4g} | {ratio:.2f}{'' if ratio >= 0.95 else ' (!)'} | "
            f"{rounding:.2%}{'' if rounding <= 0.01 else ' (!)'} | {row['speed']:.2f} x{fast} | "
            f"{row['early']:.2f}{'' if row['early'] <= 0.3 else ' (!)'} | {row['step']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
