"""Measure `onnxcam evaluate` in pairs with another tree, and how far its estimates are from the full computation.

    git worktree add ../before 579ec6f && make -C ../before .venv/.demo
    python benchmarks/evaluate.py ../before [--pictures 100] [--rounds 3] [--output benchmarks/evaluate.md]

The bundled EfficientNet-Lite0 judges four methods by four metrics on crops of photographs (those of this project, of
scikit-image and of scikit-learn). The two trees take turns, each run a process of its own, and the order within a round
alternates. A ratio is this tree's processor time over the other's of the same round: user and system time of the whole
process, start included. Forward passes are counted in both trees in the same way: rows of every run of a session that
reads whole pictures. The other tree computes every point of every curve; `worst` is the largest difference of a mean
from its, over the bound that this tree states for that mean, and has to be below 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BOUND = 0.4  # of the other tree's processor time
SIDE = 224
SEED = 1234

UNLIKE = ("gradcam", "gradcam++", "layercam", "eigencam")
USUAL = ("gradcam", "gradcam++", "layercam", "hirescam")  # on this network the last has the first one's maps
CURVES = ("average_drop", "average_increase", "insertion", "deletion")
CASES = {
    "drop, increase, insertion, deletion": (UNLIKE, CURVES),
    "the same, hirescam for eigencam": (USUAL, CURVES),
    "insertion, deletion, ROAD, ADCC": (UNLIKE, ("insertion", "deletion", "road", "adcc")),
    "insertion, deletion, sensitivity, infidelity": (UNLIKE, ("insertion", "deletion", "sensitivity", "infidelity")),
}


class Figures(NamedTuple):
    """One run: processor and wall seconds, rows that the model was run on, and the results."""

    processor: float
    wall: float
    passes: int
    record: dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout, with its own .venv")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))), help="numbers, from 0")
    parser.add_argument("--output", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    cases = [list(CASES.items())[number] for number in arguments.cases]
    trees = {"here": ROOT, "there": arguments.before.resolve()}
    table = []
    with tempfile.TemporaryDirectory(prefix="onnxcam-") as name:
        folder = Path(name)
        photographs(folder, arguments.pictures)
        for case, (methods, metrics) in cases:
            runs: dict[str, list[Figures]] = {tree: [] for tree in trees}
            for number in range(arguments.rounds):
                for tree in list(trees) if number % 2 else list(trees)[::-1]:
                    runs[tree].append(run(trees[tree], folder, methods, metrics))
                    print(f"{case}, {tree}: {runs[tree][-1][:3]}", file=sys.stderr, flush=True)
            table.append(row(case, runs))
    text = page(table, arguments.pictures, arguments.rounds)
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")
    print(text)
    return int(not all(entry["worst"] < 1 for entry in table))


def photographs(folder: Path, count: int) -> None:
    """A folder of crops of photographs, as JPEG."""
    import cv2
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from benchmarks.drift_story import crops, load

    source = crops(load(), np.random.default_rng(SEED))
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:04}.jpg"), next(source)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def run(tree: Path, folder: Path, methods: tuple[str, ...], metrics: tuple[str, ...]) -> Figures:
    """Judge the pictures in a process of a tree."""
    arguments = [str(tree / "models" / "efficientnet_lite0.onnx"), str(folder), "--json"]
    for name in methods:
        arguments += ["--method", name]
    for name in metrics:
        arguments += ["--metric", name]
    command = [str(tree / ".venv" / "bin" / "python"), str(Path(__file__).resolve()), "--serve", *arguments]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    passes = int(process.stderr.strip().splitlines()[-1].removeprefix("passes "))
    return Figures(processor, wall, passes, json.loads(process.stdout))


def serve(arguments: list[str]) -> None:
    """Run the command in this process, and print the rows of all runs on whole pictures."""
    from onnxcam import runtime
    from onnxcam.cli import main as command

    plain, passes = runtime.run, 0

    def counting(session: Any, outputs: Any, feeds: Any) -> Any:
        nonlocal passes
        passes += max((len(one) for one in feeds.values() if one.shape[1:] == (3, SIDE, SIDE)), default=0)
        return plain(session, outputs, feeds)

    runtime.run = counting
    try:
        command(["evaluate", *arguments], standalone_mode=False)
    finally:
        sys.stdout.flush()
        print(f"passes {passes}", file=sys.stderr)


def row(case: str, runs: dict[str, list[Figures]]) -> dict[str, Any]:
    """Ratios of a case, and the largest error over its bound."""
    here, there = runs["here"], runs["there"]
    ratios = [a.processor / b.processor for a, b in zip(here, there, strict=True)]
    errors, shares = [], []
    for method, by_metric in there[0].record["methods"].items():
        for metric, full in by_metric.items():
            estimate = here[0].record["methods"][method][metric]
            if estimate["bound"]:
                errors.append(abs(estimate["mean"] - full["mean"]))
                shares.append(errors[-1] / estimate["bound"])
    bounds = [one["bound"] for by_metric in here[0].record["methods"].values() for one in by_metric.values()]
    return {
        "case": case,
        "processor": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "wall": statistics.median([a.wall / b.wall for a, b in zip(here, there, strict=True)]),
        "here": statistics.median([one.processor for one in here]),
        "there": statistics.median([one.processor for one in there]),
        "passes here": here[0].passes,
        "passes there": there[0].passes,
        "error": max(errors, default=0.0),
        "bound": max(bounds),
        "worst": max(shares, default=0.0),
    }


def page(table: list[dict[str, Any]], pictures: int, rounds: int) -> str:
    """The figures as Markdown."""
    lines = [
        "# The cost of `onnxcam evaluate`",
        "",
        f"`python benchmarks/evaluate.py ../before --pictures {pictures} --rounds {rounds}`, "
        f"{datetime.datetime.now(tz=datetime.UTC).date()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        "the other tree is 579ec6f, which computes every point.",
        "",
        f"EfficientNet-Lite0, {pictures} crops of photographs, 4 methods by 4 metrics. Asked: at most {BOUND} × its "
        "processor time, each mean within its bound.",
        "",
        "| metrics | processor time, s (before) | ratio, least to largest | by the clock | forward passes (before) | "
        "ratio | largest error | largest bound | error / its bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in table:
        lines.append(
            f"| {entry['case']} | {entry['here']:.1f} ({entry['there']:.1f}) | {entry['processor']:.3f}, "
            f"{entry['low']:.3f} to {entry['high']:.3f} | {entry['wall']:.3f} | {entry['passes here']:,} "
            f"({entry['passes there']:,}) | {entry['passes here'] / entry['passes there']:.3f} | "
            f"{entry['error']:.4f} | {entry['bound']:.4f} | {entry['worst']:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
    else:
        sys.exit(main())
