"""What analysing a large graph costs, relative to what ONNX Runtime's own session for it costs.

    python benchmarks/analysis.py [--write] [NODES]

Prints a table of ratios of processor time; --write also writes benchmarks/analysis.md. Run it alone on a machine.
NODES is that of the chains, 100,000 by default. Of the other patterns a fifth is taken: sessions for them take a time
that grows with the square of the number.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnxcam.network.network import survey
from tests.support import large_graphs

CHAINS = (large_graphs.chain, large_graphs.constant_steps)
OTHERS = (large_graphs.diamonds, large_graphs.gates)
ROUNDS = 3


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
    nodes = next((int(text) for text in arguments if text.isdigit()), 100_000)
    survey(large_graphs.chain(100).SerializeToString())  # imports
    rows = []
    for pattern, count in [*((one, nodes) for one in CHAINS), *((one, nodes // 5) for one in OTHERS)]:
        data = pattern(count).SerializeToString()
        rounds = [(seconds(partial(survey, data)), seconds(partial(session, data))) for _ in range(ROUNDS)]
        ratios = sorted(ours / theirs for ours, theirs in rounds)
        per_node = sorted(ours for ours, _ in rounds)[ROUNDS // 2] / count * 1e6
        spread = f"{ratios[ROUNDS // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        rows.append(f"| {pattern.__name__.replace('_', ' ')} | {count:,} | {spread} | {per_node:.0f} µs |")
        print(rows[-1], flush=True)
    if "--write" in arguments:
        text = (
            "# What analysing a large graph costs\n\n`onnxcam layers`: processor time relative to that of ONNX Runtime "
            f"{onnxruntime.__version__} opening a session for the same file on one thread, in turns, median and range "
            f"of {ROUNDS} rounds, and per node. The session's time grows with the square of the number of nodes for "
            "the last two patterns, which therefore have fewer.\n\n"
            "| pattern | nodes | ratio | per node |\n|---|---:|---|---:|\n" + "\n".join(rows) + "\n"
        )
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
