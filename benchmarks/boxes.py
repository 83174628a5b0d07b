"""Judge the maps of boxes on the trained detector of the bundled scenes, and measure what all boxes of a picture cost.

    python benchmarks/boxes.py boxes [--pictures 60] [--masks 1000] [--write]
    python benchmarks/boxes.py regions [--pictures 60] [--masks 1000] [--write]
    python benchmarks/boxes.py cost [--side 640] [--rounds 15] [--masks 1000] [--write]

*boxes*, *regions*: scenes of a seed that the training did not use, the detector and the segmenter; every drawn object
is explained, one that the detector does not report by its best candidate. *cost*: a detector of the size of a YOLO of
the smallest kind with random weights, and the boxes of 20 candidates of its three levels: the file alone, the maps of
all boxes from their own cells, the same by differentiating the whole head, and D-RISE, on the same picture.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import onnxcam  # noqa: E402
from benchmarks.nano_detector import build  # noqa: E402
from models.draw_scenes import LABELS, Scene, scenes  # noqa: E402
from onnxcam.evaluation import boxes as box_files  # noqa: E402
from onnxcam.evaluation.drise import drise  # noqa: E402
from onnxcam.evaluation.evaluation import Evaluation  # noqa: E402
from onnxcam.evaluation.judge import evaluate  # noqa: E402
from onnxcam.explain import cells, task_answers  # noqa: E402
from onnxcam.image.geometry import Geometry  # noqa: E402
from onnxcam.runtime import open_session  # noqa: E402
from onnxcam.targets.scalars import Box, Several  # noqa: E402

PAGE = Path(__file__).with_suffix(".md")
DETECTOR, SEGMENTER = ROOT / "models/scenes/detector.onnx", ROOT / "models/scenes/segmenter.onnx"
SEED = 4321
METHODS = ("hirescam", "elementwise", "layercam", "gradcam", "gradcam++", "xgradcam", "eigencam", "activationmap")
METRICS = ("pointing_game", "energy_in_box", "own_box", "insertion", "deletion", "drise")
BOXES, COST, FASTER = 20, 2.5, 200
PEAKS, SHARE = 0.95, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("boxes", "regions", "cost"))
    parser.add_argument("--pictures", type=int, default=60, help="scenes of the table")
    parser.add_argument("--masks", type=int, default=1000, help="of D-RISE; 0 for none")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--layers", nargs="+", help="layers of the detector to fuse instead of each box's own level")
    parser.add_argument("--model", type=Path, help="instead of the bundled one")
    parser.add_argument("--side", type=int, default=640, help="pixels of the picture whose cost is measured")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"write its part of {PAGE.name}")
    arguments = parser.parse_args()
    lines = cost(arguments) if arguments.part == "cost" else table(arguments)
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        write(arguments.part, text)


def write(part: str, text: str) -> None:
    """Replace one part of the page."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Maps of boxes\n"
    start, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
    block = f"{start}{text}{end}"
    pattern = re.escape(start) + ".*?" + re.escape(end)
    page = re.sub(pattern, lambda match: block, page, flags=re.S) if start in page else f"{page}\n{block}"
    PAGE.write_text(page, encoding="utf-8")


def judged(path: Path, tests: Sequence[Scene], arguments: argparse.Namespace, layer: Any) -> Evaluation:
    """Every method on every object of some scenes."""
    explainer = onnxcam.Explainer(path, preprocess="0..1", probe=False)
    names = [f"scene{number}.png" for number in range(len(tests))]
    labels = explainer.labels or []
    drawn = {
        name: [
            box_files.Box(*box.tolist(), labels.index(LABELS[label]))
            for box, label in zip(scene.boxes, scene.labels, strict=True)
        ]
        for name, scene in zip(names, tests, strict=True)
    }
    options: dict[str, Any] = {"masks": arguments.masks} if arguments.masks else {}
    return evaluate(
        explainer,
        [scene.picture for scene in tests],
        methods=arguments.methods,
        metrics=METRICS if arguments.masks else METRICS[:-1],
        boxes=box_files.Boxes(drawn),
        names=names,
        layer=layer,
        tolerance=0.0,
        missed=True,
        **options,
    )


def table(arguments: argparse.Namespace) -> list[str]:
    """The table of methods, on boxes of the detector or on regions of the segmenter."""
    tests = list(scenes(SEED, arguments.pictures))
    of_boxes = arguments.part == "boxes"
    evaluation = judged(arguments.model or (DETECTOR if of_boxes else SEGMENTER), tests, arguments, arguments.layers)
    drawn = (evaluation.objects or {}).get("drawn", 0)
    title = "## Boxes of the detector" if of_boxes else "## Regions of the segmenter: each object's box"
    where = ", ".join(arguments.layers or ()) or ("its own level" if of_boxes else "the default layer")
    lines = [
        title,
        "",
        f"Measured with `python benchmarks/boxes.py {arguments.part} --pictures {arguments.pictures} --masks "
        f"{arguments.masks}`: onnxcam {version('onnxcam')}, onnxruntime {version('onnxruntime')}. "
        f"{len(evaluation.places)} of {drawn} drawn objects of {len(tests)} scenes, each explained at {where}. "
        f"Promised of boxes: {100 * PEAKS:.0f} % of the maps peak in their box, and have at least {SHARE:.0f} times "
        "the energy in it that they have in the box of another object of the class.",
        "",
        "| method | peaks in its box | energy in its box | / in another's of its class, median | at least 3 × | "
        "insertion ↑ | deletion ↓ | correlation with D-RISE |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in evaluation.methods:
        share = evaluation.of(method, "own_box")
        ratio = float(np.median(share / np.maximum(1 - share, 1e-9))) if len(share) else float("nan")
        cells_of_row = [
            f"{100 * evaluation.mean(method, 'pointing_game'):.1f} %",
            f"{100 * evaluation.mean(method, 'energy_in_box'):.1f} %",
            f"{ratio:.1f}" if ratio < 1000 else "> 1000",
            f"{100 * (share >= SHARE / (1 + SHARE)).mean():.1f} %" if len(share) else "-",
            f"{evaluation.mean(method, 'insertion'):.3f}",
            f"{evaluation.mean(method, 'deletion'):.3f}",
            f"{evaluation.mean(method, 'drise'):.2f}" if arguments.masks else "-",
        ]
        lines.append(f"| {method} | {' | '.join(cells_of_row)} |")
    return lines


def cost(arguments: argparse.Namespace) -> list[str]:
    """What the maps of all boxes of a picture cost."""
    load = os.getloadavg()[0]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nano.onnx"
        path.write_bytes(build(arguments.side).SerializeToString())
        plain = open_session(str(path), ["CPUExecutionProvider"])
        explainer = onnxcam.Explainer(path, preprocess="0..1", probe=False)
        side = arguments.side
        geometry = Geometry((side, side), (side, side), (0, 0), (side, side))
        tensor = rng.uniform(size=(1, 3, side, side)).astype(np.float32)
        count = explainer.batch_scores(tensor).shape[1] // 84
        candidates = sorted(int(index) for index in rng.choice(count, BOXES, replace=False))
        targets = Several([Box(index) for index in candidates])
        question = explainer.question(rows=1, target=[targets], method="hirescam")

        def maps() -> list[np.ndarray]:
            examination = task_answers.examine(explainer, question, tensor, geometry)
            groups = task_answers.groups_of(explainer, question, examination, geometry)
            parts = [(group.places, examination.several(group.question, group.objectives)[0][0][0]) for group in groups]
            by_place = {place: one for places, of_group in parts for place, one in zip(places, of_group, strict=True)}
            return [by_place[place] for place in range(BOXES)]

        def whole_head() -> list[np.ndarray]:
            usual, cells.several = cells.several, lambda *values: None
            try:
                return maps()
            finally:
                cells.several = usual

        pixels = (255 * tensor[0].transpose(1, 2, 0)).astype(np.uint8)
        runs: dict[str, Callable[[], Any]] = {
            "the file alone": lambda: plain.run(None, {"images": tensor}),
            f"maps of {BOXES} boxes, each from its own cells": maps,
            "`Explainer.explain`, heatmaps of the picture's size drawn": lambda: [
                one.heatmap.max()
                for one in explainer.explain([pixels], target=[list(targets)], method="hirescam")[0].maps
            ],
        }
        usual, dense = maps(), whole_head()
        worst = max(
            float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30)) for a, b in zip(usual, dense, strict=True)
        )
        times = measure(runs, arguments.rounds)
        start = time.perf_counter()
        whole_head()
        dense_time = time.perf_counter() - start
        masked = 0.0
        if arguments.masks:
            start = time.perf_counter()
            drise(explainer, tensor, candidates, masks=arguments.masks)
            masked = time.perf_counter() - start
    alone = times["the file alone"]
    lines = [
        "## What all boxes of a picture cost",
        "",
        f"Measured with `python benchmarks/boxes.py cost --side {side} --rounds {arguments.rounds} --masks "
        f"{arguments.masks}` on {os.cpu_count()} cores, load {load:.1f} at the start: onnxcam {version('onnxcam')}, "
        f"onnxruntime {version('onnxruntime')}. A detector of 3.2 million weights on a picture of {side} x {side}, "
        f"{count} candidates; medians over rounds in turns. Promised of the maps of {BOXES} boxes: at most {COST} "
        f"times the file alone, and at least {FASTER} times faster than D-RISE with 1,000 masks.",
        "",
        "| | time | × the file alone |",
        "|---|---:|---:|",
    ]
    for name, seconds in times.items():
        ratio = statistics.median(b / a for a, b in zip(alone, seconds, strict=True))
        lines.append(f"| {name} | {1e3 * statistics.median(seconds):.1f} ms | {ratio:.2f} |")
    typical = statistics.median(alone)
    name = "the same maps by differentiating the whole head, once"
    lines.append(f"| {name} | {1e3 * dense_time:.0f} ms | {dense_time / typical:.1f} |")
    if masked:
        name = f"D-RISE with {arguments.masks} masks, all boxes together, once"
        lines.append(f"| {name} | {masked:.1f} s | {masked / typical:.0f} |")
        apart = statistics.median(times[f"maps of {BOXES} boxes, each from its own cells"])
        lines += ["", f"The maps are {masked / apart:.0f} times faster than D-RISE."]
    lines += ["", f"Largest difference of a map from that of the whole head, of its maximum: {worst:.1e}."]
    return lines


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, in turns, so that none always follows the same other."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(-2, rounds):
        for name in np.roll(names, number).tolist():
            start = time.perf_counter()
            runs[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
