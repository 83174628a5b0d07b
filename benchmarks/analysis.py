"""What analysing a large graph costs, relative to what ONNX Runtime's own session for it costs.

    python benchmarks/analysis.py [--write] [NODES]

Prints a table of ratios of processor time; --write also writes benchmarks/analysis.md. Run it alone on a machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnxcam.network.network import survey
from tests.support import large_graphs

PATTERNS = (large_graphs.chain, large_graphs.diamonds, large_graphs.gates)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def session(data: bytes) -> object:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # constants that a pattern does not use
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def main(arguments: list[str]) -> None:
    count = next((int(text) for text in arguments if text.isdigit()), 100_000)
    rows = []
    for pattern in PATTERNS:
        data = pattern(count).SerializeToString()
        ours, theirs = seconds(lambda data=data: survey(data)), seconds(lambda data=data: session(data))
        rows.append(f"| {pattern.__name__} | {ours / theirs:.2f} | {ours / count * 1e6:.0f} µs |")
        print(rows[-1], flush=True)
    if "--write" in arguments:
        text = (
            f"# What analysing a large graph costs\n\n`onnxcam layers` of {count:,} nodes: processor time relative to "
            f"that of ONNX Runtime {onnxruntime.__version__} opening a session for the same file, on one thread, and "
            "per node.\n\n| pattern | ratio | per node |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        )
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
