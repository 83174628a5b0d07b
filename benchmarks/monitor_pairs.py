"""Promises 2 and 3 of the monitor in pairs with another tree, in one run on one machine.

    git worktree add ../before 579ec6f
    python benchmarks/monitor_pairs.py ../before [--rounds 7] [--calls 400] [--write]

Each measurement is the tree's own (`hook_cost` and `overhead` of `benchmarks/promises.py`, the latter with a thread and
the layer shown) in a fresh process on this interpreter; the trees take turns, and who begins alternates. Printed are
medians of either tree, and the ratio of this tree to the other: the median over rounds with a bootstrap interval of
95 %. --write adds them to rows 2 and 3 of docs/explanation/promises.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
import promises
calls = int(sys.argv[2])
cost = promises.hook_cost(5 * calls)
busy = promises.overhead("thread", rounds=1, calls=calls, block=max(calls // 4, 1))
print(json.dumps({"2 p50": cost["p50"], "2 p99": cost["p99"], "3 p50": busy["p50"], "3 p99": busy["p99"]}))
"""
UNITS = {"2": "µs", "3": "×"}


def measure(tree: Path, calls: int) -> dict[str, float]:
    """The four figures of one tree, from a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(tree), str(calls)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    answer = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(answer.splitlines()[-1])
    return figures


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Median, and the bounds of its bootstrap interval."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--name", help="of the other tree (default: of its folder)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=400, help="predictions in a block of row 3; five times of row 2")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    trees = (ROOT, arguments.other.resolve())
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    for turn in range(arguments.rounds):
        order = trees if turn % 2 == 0 else trees[::-1]
        figures = {tree: measure(tree, arguments.calls) for tree in order}
        rounds.append((figures[trees[0]], figures[trees[1]]))
        print(turn, rounds[-1], file=sys.stderr, flush=True)
    lines_of: dict[str, list[str]] = {"2": [], "3": []}
    for name in rounds[0][0]:
        ours, theirs = (np.array([pair[k][name] for pair in rounds]) for k in (0, 1))
        middle, low, high = interval(ours / theirs)
        row, level = name.split()
        digits = 0 if row == "2" else 3
        lines_of[row].append(
            f"{level} {np.median(ours):.{digits}f} against {np.median(theirs):.{digits}f} {UNITS[row]} "
            f"({middle:.3f}, {low:.3f} to {high:.3f})"
        )
    for row, parts in lines_of.items():
        text = f"in {arguments.rounds} pairs with {arguments.name or arguments.other.name}: {', '.join(parts)}"
        print(f"{row}: {text}")
        if arguments.write:
            append(row, text)


def append(row: str, text: str) -> None:
    """Add a figure to what a row of the page tells already."""
    page = ROOT / "docs" / "explanation" / "promises.md"
    lines = page.read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == row and len(cells) == 5:
            cells[3] = f"{cells[3].partition('; in ')[0]}; {text}"
            lines[number] = "| " + " | ".join(cells) + " |"
    page.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
