"""Measure what the monitor promises, and write the figures into docs/explanation/promises.md.

    python benchmarks/promises.py [ROW...] [--write]

Each row's measurement is a function here; the tests call the same functions with fewer calls. Ratios are taken within
one run, round by round, so that a drifting machine cancels out.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxcam.monitor.hook import Monitor  # noqa: E402
from onnxcam.network.explainable import augment  # noqa: E402
from tests.support.models import tiny_cnn  # noqa: E402

MODEL = ROOT / "models" / "efficientnet_lite0.onnx"
PAGE = ROOT / "docs" / "explanation" / "promises.md"
UNLIMITED: dict[str, Any] = {"rate": None, "daily_budget": None, "duplicates": 0}
ALWAYS = "confidence <= 1"


class Gate:
    """A sink that hangs until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        self.open.wait()

    def close(self, timeout: float) -> None: ...


def discard(record: dict[str, Any], files: Mapping[str, bytes]) -> None:
    """A sink that costs nothing."""


def hook_cost(calls: int = 5000, rows: int = 256) -> dict[str, float]:
    """Row 2: one call with the queue full, 1×3×224×224 and 1,000 classes, in microseconds."""
    plain = tiny_cnn(classes=1000, size=224, width=2)
    rng = np.random.default_rng(0)
    tensor = rng.normal(size=(1, 3, 224, 224)).astype(np.float32)
    scores = rng.normal(size=(1, 1000)).astype(np.float32)
    gate = Gate()
    when = "confidence < 0.6 or margin < 0.1 or entropy > 0.9"
    monitor = Monitor(augment(plain), sink=gate, when=when, queue=rows, **UNLIMITED)
    while monitor.observe(scores, tensor=tensor):
        time.sleep(0)
    microseconds = []
    for _ in range(calls):
        start = time.perf_counter()
        monitor.observe(scores, tensor=tensor)
        microseconds.append((time.perf_counter() - start) * 1e6)
    gate.open.set()
    monitor.close(0.0)
    return {"p50": float(np.percentile(microseconds, 50)), "p99": float(np.percentile(microseconds, 99))}


def serving(with_layer: bool) -> ort.InferenceSession:
    """The bundled EfficientNet-Lite0, its outputs `with_layer` the target layer's value or the scores alone."""
    model = onnx.load(MODEL)
    if not with_layer:
        (scores,) = (output for output in model.graph.output if output.name == "logits")
        del model.graph.output[:]
        model.graph.output.append(scores)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # the runtime warns that `target` has a default: that is meant
    return ort.InferenceSession(model.SerializeToString(), options)


def overhead(
    worker: str = "thread",
    rounds: int = 5,
    calls: int = 1500,
    block: int = 500,
    when: str = ALWAYS,
    with_layer: bool = True,
) -> dict[str, float]:
    """Row 3: the bundled EfficientNet-Lite0, every request low-confidence; plain and watched blocks in turn.

    A worker that wakes gets a tick of the processor at once, whatever its niceness, and one prediction waits for it:
    with a rest after every hundred calls that would be their hundredth.

    Arguments:
        with_layer: the serving model outputs its target layer's value, and the worker runs the tail alone; else the
            worker runs the whole explainable model.

    Returns:
        the medians over the rounds of the ratios of p50 and of p99, and how many rows a round explained.
    """
    plain = serving(with_layer)
    source = plain.get_inputs()[0]
    shape = [d if isinstance(d, int) else 1 for d in source.shape]
    feed = {source.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    monitor = Monitor(MODEL, sink=discard, when=when, worker=worker, queue=8, **UNLIMITED)
    watched = monitor.wrap(plain)
    watched.run(None, feed)
    monitor.flush(120)
    ratios: dict[str, list[float]] = {"p50": [], "p99": []}
    before = monitor.stats()["explained"]
    for _ in range(rounds):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(2 * calls // block):
            busy = turn % 2 == 1
            session = watched if busy else plain
            for _ in range(block):
                start = time.perf_counter()
                session.run(None, feed)
                seconds[busy].append(time.perf_counter() - start)
            monitor.flush(5)
        for name, level in (("p50", 50), ("p99", 99)):
            ratios[name].append(float(np.percentile(seconds[True], level) / np.percentile(seconds[False], level)))
    explained = (monitor.stats()["explained"] - before) / rounds
    monitor.close(5)
    return {name: statistics.median(values) for name, values in ratios.items()} | {"explained": explained}


def memory(calls: int = 100_000, queue_bytes: int = 64 << 20) -> dict[str, float]:
    """Row 5: growth of resident memory with a stuck worker and a queue that is bounded by bytes alone, in MiB."""
    gate = Gate()
    monitor = Monitor(
        augment(tiny_cnn(size=64, width=2)),
        sink=gate,
        when=ALWAYS,
        queue=10**9,
        queue_bytes=queue_bytes,
        on_full="drop_oldest",
        **UNLIMITED,
    )
    tensor = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    scores = np.zeros((1, 5), np.float32)
    monitor.observe(scores, tensor=tensor)
    time.sleep(1.0)  # the worker has its session, and is stuck
    gc.collect()
    start = most = _resident()
    for call in range(calls):
        monitor.observe(scores, tensor=tensor)
        if call % 1000 == 0:
            most = max(most, _resident())
    queued = monitor.stats()["queue_bytes"]
    gate.open.set()
    monitor.close(0.0)
    return {"growth": (max(most, _resident()) - start) / 2**20, "queued": queued / 2**20, "bound": queue_bytes / 2**20}


def leak(calls: int = 100_000) -> dict[str, float]:
    """Row 20: slope of resident memory over calls, explained or dropped, in MiB per 100,000; descriptors lost."""
    model = augment(tiny_cnn(size=16, width=2))
    tensor = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    scores = np.zeros((1, 5), np.float32)
    monitor = Monitor(model, sink=discard, when=ALWAYS, redact="none", queue=16, **UNLIMITED)
    process = psutil.Process()

    def some(count: int) -> None:
        for call in range(count):
            monitor.observe(scores, tensor=tensor)
            if call % 50 == 0:
                monitor.flush(10)

    some(max(8000, calls // 5))  # until every cache is full and the allocator has its pieces
    open_before = _descriptors(process)
    points = []
    for part in range(20):
        some(calls // 20)
        gc.collect()
        points.append((part * (calls // 20), _resident() / 2**20))
    slope = np.polyfit(*np.array(points).T, 1)[0] * 100_000
    lost = _descriptors(process) - open_before
    explained = monitor.stats()["explained"]
    monitor.close(5)
    return {"slope": float(slope), "descriptors": float(lost), "explained": float(explained)}


def _descriptors(process: psutil.Process) -> int:
    """Those that stay open: the worker opens and closes one after every explanation."""
    counts = []
    for _ in range(20):
        counts.append(process.num_fds())
        time.sleep(0.005)
    return min(counts)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def row_2() -> str:
    figures = hook_cost()
    return f"p50 {figures['p50']:.0f} µs, p99 {figures['p99']:.0f} µs"


def row_3() -> str:
    parts = []
    for worker in ("thread", "process"):
        for with_layer, name in ((True, "layer shown"), (False, "scores alone")):
            figures = overhead(worker, with_layer=with_layer)
            parts.append(
                f"{worker}, {name}: p50 × {figures['p50']:.3f}, p99 × {figures['p99']:.3f} "
                f"({figures['explained']:.0f} explained a round)"
            )
    return "; ".join(parts)


def row_5() -> str:
    figures = memory()
    return (
        f"{figures['growth']:.0f} MiB with queue_bytes = {figures['bound']:.0f} MiB, {figures['queued']:.0f} MiB queued"
    )


def row_20() -> str:
    calls = 600_000  # the allocator takes and gives back pieces of 2 MiB, which fewer would turn into a slope
    figures = leak(calls)
    return (
        f"{calls:,} calls: {figures['slope']:+.2f} MiB per 100,000 ({figures['explained']:.0f} explained), "
        f"{figures['descriptors']:.0f} descriptors lost"
    )


ROWS: dict[int, Callable[[], str]] = {2: row_2, 3: row_3, 5: row_5, 20: row_20}


def write(row: int, measured: str, load: float) -> None:
    """Put a figure into its row of the page: `| # | promise | rerun | measured | when |`."""
    lines = PAGE.read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == str(row) and len(cells) == 5:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            when = today if load / (os.cpu_count() or 1) < 0.6 else f"{today}, on a busy machine"
            lines[number] = "| " + " | ".join([*cells[:3], measured, when]) + " |"
    PAGE.write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", type=int, help=f"of {', '.join(map(str, ROWS))}; all by default")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/explanation/promises.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]  # before this adds to it
    for row in arguments.rows or ROWS:
        measured = ROWS[row]()
        print(f"{row}: {measured}", flush=True)
        if arguments.write:
            write(row, measured, load)


if __name__ == "__main__":
    main()
