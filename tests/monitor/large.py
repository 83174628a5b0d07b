"""Reads a simulated folder of any number of records with every command, and measures memory and time.

python -m tests.monitor.large 1000000      # figures of promise 27 in docs/explanation/promises.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.monitor.timestamps import format_time
from tests.monitor import synthetic

PROCESSES, SEGMENT = 4, 20_000  # records in a segment, of four processes that write at once
# VmHWM is of this program alone; ru_maxrss includes what its parent had when it forked
PROGRAM = """
import sys
from pathlib import Path
from onnxcam.__main__ import main
try:
    main()
except SystemExit as end:
    code = end.code or 0
sys.stdout.flush()
status = Path("/proc/self/status").read_text()
print("peak", status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
sys.exit(code)
"""


def folder(root: Path, count: int) -> None:
    """Write `count` records, one a second, of four processes."""
    rng = np.random.default_rng(1)
    templates = []
    for n in range(64):
        record = synthetic.record(n)
        record |= {"id": "@id", "ts": "@ts"}
        record["prediction"] |= {"confidence": "@c", "margin": "@m"}
        text = json.dumps(record, separators=(",", ":"))
        templates.append(
            text.replace('"@c"', "%.6f").replace('"@m"', "%.6f").replace("@id", "%012d").replace("@ts", "%s")
        )
    (root / "records").mkdir(parents=True)
    numbers = np.arange(count)
    for pid in range(PROCESSES):
        mine = numbers[pid::PROCESSES]
        for begin in range(0, len(mine), SEGMENT):
            part = mine[begin : begin + SEGMENT].tolist()
            confidence = rng.random(len(part)).tolist()
            lines = [
                templates[n % 64] % (n, format_time(synthetic.START + timedelta(seconds=n)), c, c / 2)
                for n, c in zip(part, confidence, strict=True)
            ]
            start = format_time(synthetic.START + timedelta(seconds=part[0])).replace("-", "").replace(":", "")
            path = root / "records" / f"{start}-a-{pid}-{begin}.jsonl"
            path.write_text("\n".join(lines) + "\n")


def measured(*arguments: Any) -> dict[str, Any]:
    """Run a command in a process of its own: MiB at most, seconds to its first line and in all, and its lines."""
    start = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    first, lines, digest = None, 0, ""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if first is None:
                first = time.monotonic() - start
            lines += 1
            digest = line.split()[-1] if line.split() else ""
        errors = process.stderr.read()
    peak = [int(line.split()[1]) for line in errors.splitlines() if line.startswith("peak ")]
    assert process.returncode == 0 and peak, errors[-2000:]
    return {
        "MiB": round(peak[0] / 1024, 1),
        "first": first,
        "seconds": time.monotonic() - start,
        "lines": lines,
        "last": digest,
    }


def every_command(root: Path, work: Path, count: int, names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Measure every command that reads records, or some of them."""
    middle = format_time(synthetic.START + timedelta(seconds=count // 2))
    baseline = work / "baseline.json"
    commands: dict[str, tuple[Any, ...]] = {
        "help": ("monitor", "tail", "--help"),
        "tail -n 3": ("monitor", "tail", root, "-n", 3),
        "query --sort newest --limit 1": ("monitor", "query", root, "--sort", "newest", "--limit", 1),
        "stats": ("monitor", "stats", root),
        "baseline": ("monitor", "baseline", root, "-o", baseline, "--until", middle),
        "drift": ("monitor", "drift", root, "--baseline", baseline),
        "drift --window 365d": ("monitor", "drift", root, "--baseline", baseline, "--window", "365d"),
        "report": ("monitor", "report", root, "-o", work / "page.html", "--baseline", baseline),
        "prune": ("monitor", "prune", root),
        "query --sort confidence": ("monitor", "query", root, "--sort", "confidence"),
    }
    results = {}
    for name, arguments in commands.items():
        if names is not None and name not in names:
            continue
        results[name] = measured(*arguments)
        print(name, results[name], file=sys.stderr, flush=True)
    return results


def main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        root, work = Path(name) / "cam", Path(name)
        folder(root, count)
        print(json.dumps(every_command(root, work, count), indent=1))


if __name__ == "__main__":
    main()
