"""Measure `onnxcam.fleet.Explain` against a bare loop that decodes and predicts, and engines against the plain loop.

    python benchmarks/fleet.py [--pictures 400] [--rounds 5] [--rows 100000] [--engines ray daft] [--write]

Pictures are variations of the bundled ones, JPEG, 448 x 448 pixels; the model is the bundled EfficientNet-Lite0, on one
thread. The bare loop prepares each picture and runs the model with nothing explained. Loops take turns block
by block, in one process; ratios of processor time are medians over rounds. Engines run two workers in environments of
their own, after first batches that open sessions (of Daft a whole query), against two threads of the plain loop, by the
wall clock; for them the pictures are repeated until there are 1,600. Memory is the growth of the resident set of a loop
over one picture again and again, by least squares after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tests' environments
PAGE = ROOT / "benchmarks" / "fleet.md"
BLOCK = 20
WORKERS = 2
ENGINE_ROWS = 1600
ENGINE_SECONDS = 1800  # at most
ENGINE = """
import json, pickle, sys, time
from importlib import import_module
from onnxcam import models
from onnxcam.fleet import Explain
if __name__ == "__main__":
    engine, file, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    pictures = pickle.loads(open(file, "rb").read())
    explain = Explain(models.path(models.MODEL), threads=workers if engine == "local" else 1)
    run = import_module(f"onnxcam.fleet.{engine}").run
    first, marks = [{"bytes": pictures[:8]}] * (4 * workers), []
    if engine == "daft":  # whose rows come query by query: the first one is of none but these
        from onnxcam.fleet.daft import _QUERY_ROWS
        first = [{"bytes": pictures[:32]}] * (workers * _QUERY_ROWS // 32)
    warm, batches = len(first), first + [{"bytes": pictures[k:k + 32]} for k in range(0, len(pictures), 32)]
    for number, table in enumerate(run(explain, iter(batches), workers=workers)):
        marks.append((time.perf_counter(), table.num_rows))
    rows = sum(count for _, count in marks[warm:])
    print(json.dumps(rows / (marks[-1][0] - marks[warm - 1][0])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--engines", nargs="*", default=["ray", "daft"], choices=["ray", "daft", "spark"])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    pictures = photographs(arguments.pictures)
    lines = loops(pictures, arguments.rounds)
    lines += engines(arguments.engines, pictures, arguments.rounds)
    lines += memory(arguments.rows)
    text = page(lines)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


def photographs(count: int) -> list[bytes]:
    """Encoded variations of the bundled pictures."""
    import cv2

    from onnxcam import image, models

    rng = np.random.default_rng(1234)
    names = [name for name in models.names() if name.endswith(".png") and "/" not in name]
    sources = [cv2.resize(image.load(models.path(name)).pixels, (512, 512)) for name in names]
    encoded = []
    for number in range(count):
        y, x = rng.integers(0, 64, 2)
        pixels = sources[number % len(sources)][y : y + 448, x : x + 448, ::-1]
        noisy = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        encoded.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return encoded


def loops(pictures: Sequence[bytes], rounds: int) -> list[str]:
    """The loop with all maps, and with 5 %, against the bare loop."""
    from onnxcam import Explainer, models
    from onnxcam.fleet import Explain
    from onnxcam.runtime import options

    path = models.path(models.MODEL)
    explainer = Explainer(path, session_options=options.one_thread())
    head, name = explainer.sessions.head(()), explainer.manifest["input"]["name"]

    def bare(some: Sequence[bytes]) -> None:
        for data in some:
            head.run(None, {name: explainer.prepare(data)[1]})

    def through(explain: Explain) -> Callable[[Sequence[bytes]], None]:
        return lambda some: explain({"bytes": list(some)}) and None

    confidence = Explain(path, when="never", threads=1)({"bytes": list(pictures)})["confidence"]
    threshold = float(np.quantile(confidence, 0.05))
    programs = {
        "the loop, a map for every row": through(Explain(path, threads=1)),
        f"the loop, `when` true for {(confidence < threshold).mean():.1%}": through(
            Explain(path, threads=1, when=f"confidence < {threshold:.9f}")
        ),
    }
    ratios: dict[str, list[float]] = {title: [] for title in programs}
    for program in (bare, *programs.values()):
        program(pictures[:BLOCK])
    for _ in range(rounds):
        seconds = dict.fromkeys(("bare", *programs), 0.0)
        for start in range(0, len(pictures), BLOCK):
            for title, program in {"bare": bare, **programs}.items():
                began = time.process_time()
                program(pictures[start : start + BLOCK])
                seconds[title] += time.process_time() - began
        for title in programs:
            ratios[title].append(seconds["bare"] / seconds[title])
    return [
        f"| {title} | a bare loop that decodes and predicts | {statistics.median(values):.3f} |"
        for title, values in ratios.items()
    ]


def engines(names: Sequence[str], pictures: Sequence[bytes], rounds: int) -> list[str]:
    """Rows a second of engines against the plain loop on as many cores."""
    from tests.support import environments

    ratios: dict[str, list[float]] = {name: [] for name in names}
    pictures = list(pictures) * -(-ENGINE_ROWS // len(pictures))  # so many that the last batches count for little
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pictures.pickle"
        file.write_bytes(pickle.dumps(pictures))
        program = Path(folder) / "engine.py"
        program.write_text(ENGINE, encoding="utf-8")
        environment = environments.sources(Path(folder) / "sources")
        environment.pop("OMP_NUM_THREADS", None)
        for name in names * rounds:
            python = environments.environment(name)
            environment["PYSPARK_PYTHON"] = str(python)
            rate = {}
            for engine in ("local", name):
                command = [str(python), str(program), engine, str(file), str(WORKERS)]
                printed = environments.run_engine(command, ENGINE_SECONDS, environment, Path(folder))
                rate[engine] = float(json.loads(printed.strip().splitlines()[-1]))
            ratios[name].append(rate[name] / rate["local"])
    return [
        f"| {name}, {WORKERS} workers | the plain loop on {WORKERS} threads | {statistics.median(values):.3f} |"
        for name, values in ratios.items()
    ]


def memory(rows: int) -> list[str]:
    """The growth of the resident set over many rows of a small picture."""
    import psutil

    from onnxcam import models
    from onnxcam.fleet import Explain

    explain = Explain(models.path(models.MODEL), threads=1)
    picture, batch = models.path("cat.png").read_bytes(), 50
    process, points = psutil.Process(os.getpid()), []
    for start in range(0, rows, batch):
        explain({"bytes": [picture] * batch})
        points.append((start + batch, process.memory_info().rss))
    done, resident = np.array(points[len(points) // 10 :], float).T
    slope = float(np.polyfit(done, resident, 1)[0]) * 100_000 / (1 << 20)
    return [f"| memory of a worker after {rows:,} rows | growth in MiB for 100,000 rows | {slope:.2f} |"]


def page(lines: Sequence[str]) -> str:
    """The figures as Markdown."""
    import onnxruntime

    from onnxcam import __version__

    where = (
        f"{os.cpu_count()} cores, {platform.machine()}, onnxcam {__version__}, ONNX Runtime {onnxruntime.__version__}"
    )
    return "\n".join(
        [
            "# Fleets",
            "",
            f"Written by `python benchmarks/fleet.py --write`; {where}. Ratios of throughput; more is better.",
            "",
            "| what | against | ratio |",
            "|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
