"""Measure parity with the frameworks' own gradients over many architectures, and write docs/explanation/coverage.md.

    make matrix                      # measure what is missing or failed last time, then write the page
    make matrix ARGS='--fresh'       # measure everything anew
    make matrix ARGS='resnet18 vgg16'

Every architecture runs in a process of its own, one at a time, so that a crash costs one row. Rows are kept as JSON in
benchmarks/coverage, each with its date and versions, until they are measured anew; the page is written from them once
none is missing, or as far as they go with --table-only.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import rows  # noqa: E402
from benchmarks.architectures import TORCH  # noqa: E402
from tools import coverage  # noqa: E402

LIMIT_S = 1800


def work(task: str) -> None:
    """Measure one architecture or light model in this process and store its rows."""
    began = time.perf_counter()
    try:
        measured = measure(task)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        measured = rows.failed(task, f"{type(error).__name__}: {first}")
    rows.write(task, measured, time.perf_counter() - began)


def measure(task: str) -> dict[str, rows.Row]:
    """The rows of a task, `family:name`."""
    family, _, name = task.partition(":")
    if family == "keras":
        from benchmarks import keras_matrix

        return keras_matrix.measure(name)
    if family == "light":
        from benchmarks import light_matrix

        return {"light": light_matrix.measure(name)}
    from benchmarks import torch_matrix

    return torch_matrix.measure(name)


def spawn(task: str) -> None:
    """Measure in a process of its own; a crash or a timeout becomes the reason."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", task]
    rows.remove(task)
    began = time.perf_counter()
    try:
        # freed memory goes back to the system at once: converters leave holes in the heap
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        process = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, capture_output=True, text=True, env=environment)
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        killed = "; was there too little memory?" if process.returncode == -signal.SIGKILL else f": {last}"
        reason = f"the process ended with {process.returncode}{killed}"
    except subprocess.TimeoutExpired:
        reason = f"not done after {LIMIT_S} s"
    if rows.read(task) is None:
        rows.write(task, rows.failed(task, reason), time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page; 1 when a row fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures or light models, measured anew (default: the missing)")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--table-only", action="store_true", help="write the page from the rows stored so far")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        work(options.one)
        return 0
    tasks = [] if options.table_only else rows.tasks(options.names)
    if options.names and not tasks:
        parser.error(f"no architecture called {', '.join(options.names)}; there are {', '.join(TORCH)}")
    if hasattr(os, "nice"):
        os.nice(10)
    for place, task in enumerate(tasks, 1):
        record = rows.read(task)
        if record is None or not record["passed"] or options.fresh or options.names:
            spawn(task)
            record = rows.read(task)
        assert record is not None
        results = ", ".join(f"{kind} {coverage.result(row)}" for kind, row in record["rows"].items())
        print(f"[{place}/{len(tasks)}] {task}: {results} ({record['seconds']:.0f} s)", flush=True)
    records = {task: rows.read(task) for task in rows.tasks()}
    missing = [task for task, record in records.items() if record is None]
    if missing and not options.table_only:
        print(f"{len(missing)} of {len(records)} are not measured yet; {coverage.PAGE} is left as it is", flush=True)
        return 1
    coverage.PAGE.write_text(coverage.page(), encoding="utf-8")
    return 0 if all(record is not None and record["passed"] for record in records.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
