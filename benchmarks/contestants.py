"""Contestants of a measurement: each in a process of its own, which runs its share of a round while the others wait.

ONNX Runtime's waiting threads and PyTorch's memory would slow down whatever is timed next to them.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType


class Contestant:
    """A process that runs a script with `--worker NAME` and answers each line on its standard input with JSON.

    Use it in a `with` block, which ends the process.

    Arguments:
        script: the file of the benchmark.
        name: the contestant's.
        options: of the script, in front of `--worker`.
    """

    def __init__(self, script: str, name: str, *options: object) -> None:
        self.name = name
        command = [sys.executable, script, *map(str, options), "--worker", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self) -> dict[str, float]:
        """Run one round; return its figures. What else the process prints is passed over."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        sys.exit(f"{self.name}: the measuring process ended")

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


def separately(work: Callable[..., None], *arguments: object) -> None:
    """Run a function in a process of its own, so that its memory and threads are gone before anything is timed."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{work.__name__} failed with status {process.exitcode}")
