"""Speed of this tree in pairs with another one, in one run on one machine.

    git worktree add ../before 579ec6f && make -C ../before .venv/.demo
    python benchmarks/two_trees.py ../before [--rounds 30] [--out benchmarks/two_trees.md]

Each tree has a process of its own on its own installation. They take turns in short blocks, and whoever does not run is
stopped (SIGSTOP), so that its threads take no core. A ratio is this tree's median of a block over the other's right
beside it, so that a machine whose speed changes from second to second changes both; a round's is the median over its
turns, and the interval is a bootstrap of the median over rounds. The order alternates from turn to turn. Every round
starts new processes: where the weights happen to lie in memory changes a process's times by a few percent for as long
as it lives. Both trees run from compiled bytecode; install them the same way, as each entry of `sys.path` costs time.

    gradcam     one picture, `Explainer.attribute` of the default layer
    prediction  one picture, `Explainer.predict`
    classes     the five best classes of one picture, `Explainer.explain(top=5)`
    cold        `onnxcam explain` of one picture in a fresh process, processor time
    folder      `onnxcam explain` of a folder in a fresh process, processor and wall time
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
SEED = 1234
PICTURES = 24
CALLS = {"gradcam": 10, "prediction": 10, "classes": 4}  # calls in a block
TURNS = {"gradcam": 10, "prediction": 10, "classes": 6, "cold": 4, "folder": 1}  # pairs in a round
COMMANDS = ("cold", "folder", "folder wall")
BOUND, HIGHEST = 1.02, 1.05


class Tree:
    """One checkout, and a process in it that answers with timings."""

    def __init__(self, root: Path, model: Path | None, pictures: Path) -> None:
        self.root = root.resolve()
        self.python = self.root / ".venv" / "bin" / "python"
        self.model = model or self.root / "models" / "efficientnet_lite0.onnx"
        self.pictures = pictures
        self._process: subprocess.Popen[str] | None = None
        folders = [str(self.root / name) for name in ("onnxcam", "exporters", "models")]
        subprocess.run([str(self.python), "-m", "compileall", "-q", *folders], check=False)

    def start(self) -> None:
        """Start the process that answers, in place of the one before it."""
        self.close()
        command = [str(self.python), str(Path(__file__).resolve()), "--serve", str(self.model), str(self.first)]
        self._process = subprocess.Popen(
            command, cwd=self.root, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()
        self._process.send_signal(signal.SIGSTOP)

    @property
    def first(self) -> Path:
        return sorted(self.pictures.iterdir())[0]

    @property
    def environment(self) -> dict[str, str]:
        variables = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**variables, "PYTHONPATH": str(self.root)}

    def block(self, task: str) -> float:
        """The median seconds of a call over one block."""
        assert self._process is not None and self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(f"{task}\n")
        self._process.stdin.flush()
        seconds = float(self._read())
        self._process.send_signal(signal.SIGSTOP)
        return seconds

    def command(self, picture: Path) -> tuple[float, float]:
        """Processor and wall seconds of `onnxcam explain` in a process of its own."""
        with tempfile.TemporaryDirectory(
            prefix="onnxcam-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
        ) as out:
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [str(self.python), "-m", "onnxcam", "explain", str(self.model), str(picture), "-o", out]
            subprocess.run(command, cwd=self.root, env=self.environment, check=True, capture_output=True)
            wall = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall

    def close(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def _read(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.root} ended")
        return line


def serve(model: str, picture: str) -> None:
    """Answer each task on standard input with the median seconds of a call."""
    import onnxcam

    explainer = onnxcam.Explainer(model)
    batch = explainer.prepare(picture)[1]
    calls: dict[str, Callable[[], Any]] = {
        "gradcam": lambda: explainer.attribute(batch),
        "prediction": lambda: explainer.predict(batch),
        "classes": lambda: explainer.explain(picture, top=5),
    }
    for call in calls.values():
        for _ in range(5):
            call()
    print("ready", flush=True)
    for line in sys.stdin:
        task = line.strip()
        calls[task]()  # caches are cold after the other tree's turn
        seconds = []
        for _ in range(CALLS[task]):
            start = time.perf_counter()
            calls[task]()
            seconds.append(time.perf_counter() - start)
        print(float(np.median(seconds)), flush=True)


def measure(here: Tree, there: Tree, rounds: int) -> dict[str, list[list[tuple[float, float]]]]:
    """Seconds of this tree and of the other one: for each round a pair a turn."""
    pairs: dict[str, list[list[tuple[float, float]]]] = {task: [] for task in (*CALLS, *COMMANDS)}

    def turns(
        task: str, seconds: Callable[[Tree], tuple[float, ...]], first: int
    ) -> list[dict[Tree, tuple[float, ...]]]:
        orders = ((here, there) if (first + turn) % 2 else (there, here) for turn in range(TURNS[task]))
        return [{tree: seconds(tree) for tree in order} for order in orders]

    for number in range(rounds):
        for tree in (here, there) if number % 2 else (there, here):
            tree.start()
        measured = {task: turns(task, lambda tree, task=task: (tree.block(task),), number) for task in CALLS}
        measured["cold"] = turns("cold", lambda tree: tree.command(tree.first), number)
        measured["folder"] = turns("folder", lambda tree: tree.command(tree.pictures), number)
        for task, answers in measured.items():
            pairs[task].append([(answer[here][0], answer[there][0]) for answer in answers])
        pairs["folder wall"].append([(answer[here][1], answer[there][1]) for answer in measured["folder"]])
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return pairs


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % interval by bootstrap."""
    draws = np.random.default_rng(SEED).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def rows(pairs: dict[str, list[list[tuple[float, float]]]]) -> Iterator[dict[str, Any]]:
    for task, seconds in pairs.items():
        table = np.array(seconds)  # [rounds, turns, 2]
        median, low, high = interval(np.median(table[..., 0] / table[..., 1], axis=1))
        here, there = (float(milliseconds) for milliseconds in np.median(table, axis=(0, 1)) * 1e3)
        yield {
            "task": task, "here_ms": here, "there_ms": there,
            "ratio": median, "low": low, "high": high, "holds": median <= BOUND and high < HIGHEST,
        }  # fmt: skip


def pictures(folder: Path) -> None:
    """A folder of pictures of usual sizes, smooth enough to compress as photographs do."""
    import cv2

    rng = np.random.default_rng(SEED)
    for number in range(PICTURES):
        small = rng.integers(0, 256, (30, 40, 3), np.uint8)
        pixels = cv2.resize(small, (640, 480), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"picture_{number:02}.jpg"), pixels)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout, with its own .venv")
    parser.add_argument("--model", type=Path, help="an explainable model; the bundled one by default")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxcam-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        pictures(folder)
        trees = [Tree(root, arguments.model, folder) for root in (ROOT, arguments.before)]
        for tree in trees:
            stack.callback(tree.close)
        table = list(rows(measure(*trees, arguments.rounds)))
    print("| what | this tree, ms | the other, ms | ratio | 95 % interval | |\n|---|---|---|---|---|---|")
    for row in table:
        verdict = "holds" if row["holds"] else "does not hold"
        print(
            f"| {row['task']} | {row['here_ms']:.2f} | {row['there_ms']:.2f} | {row['ratio']:.3f} | "
            f"{row['low']:.3f} to {row['high']:.3f} | {verdict} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1), "utf-8")
    return int(not all(row["holds"] for row in table))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        sys.exit(main())
