"""Damaged files by number, and a child process in which they are read: only from outside can a crash be seen.

    python -m tests.support.fuzz READER FOLDER FIRST COUNT

reads the mutations FIRST, FIRST + 1, ... of the files in FOLDER, and tells of each on standard output. A mutation is
made of the files and its number alone, so that a failing one can be made again: `mutation(READER, FOLDER, number)`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SECONDS = 10.0
MEBIBYTES = 1024
# far above what is allowed, so that what takes too much is told of and takes no more
_ADDRESSES = 6 << 30


def mutation(reader: str, folder: Path, number: int) -> tuple[str, bytes]:
    """The name of the file that is damaged, and its damaged bytes."""
    from tests.support import damage as mutations

    rng = random.Random(f"{reader} {number}")
    seeds = sorted(path for path in folder.iterdir() if path.is_file())
    seed = seeds[number % len(seeds)]
    other = rng.choice(seeds).read_bytes()
    return seed.name, mutations.BY_READER[reader](seed.read_bytes(), other, rng)


def child(reader: str, folder: Path, first: int, count: int) -> None:
    """Read mutations one after the other; `N` before each, a JSON list after it: N, outcome, seconds, MiB."""
    import resource

    from onnxcam.errors import OnnxcamError
    from tests.support import readers

    faulthandler.enable()
    # whatever a library writes to standard output is none of the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    read = readers.BY_NAME[reader]
    with tempfile.TemporaryDirectory() as place:
        read(sorted(folder.iterdir())[0].read_bytes(), Path(place))  # whatever is imported late
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
        for number in range(first, first + count):
            print(number, file=answers, flush=True)
            _, data = mutation(reader, folder, number)
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest memory so far
            start = time.perf_counter()
            try:
                outcome = read(data, Path(place))
            except OnnxcamError as error:
                outcome = type(error).__name__
                if "\n" in str(error) or "failed unexpectedly" in str(error):
                    outcome = f"bad: {error}"
            except BaseException as error:
                outcome = f"bad: {_reason(error)}"
            spent = time.perf_counter() - start
            print(json.dumps([number, outcome, spent, _highest()]), file=answers, flush=True)


def _reason(error: BaseException) -> str:
    """The error and the project's lines that it came through."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if "site-packages" not in file.parts:
            places.append(f"{file.name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {str(error)[:200]!r} at {' '.join(places[-4:])}"


def _highest() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10


class Result:
    """What became of a run of mutations: how many came to which outcome, and the numbers that went wrong."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[int, str] = {}
        self.slowest = 0.0
        self.highest = 0

    @property
    def done(self) -> int:
        return sum(self.outcomes.values()) + len(self.failures)

    def note(self, number: int, outcome: str, seconds: float, mebibytes: int) -> None:
        self.slowest, self.highest = max(self.slowest, seconds), max(self.highest, mebibytes)
        if outcome.startswith("bad"):
            self.failures[number] = outcome
        elif seconds > SECONDS:
            self.failures[number] = f"{outcome} after {seconds:.1f} s"
        elif mebibytes > MEBIBYTES:
            self.failures[number] = f"{outcome} at {mebibytes} MiB"
        else:
            self.outcomes[outcome] += 1


def run(reader: str, folder: Path, count: int, first: int = 0) -> Result:
    """Read mutations in children, a new one behind each that crashes or hangs."""
    result = Result()
    at, end = first, first + count
    while at < end:
        at = _watched(reader, folder, at, end - at, result)
    return result


def run_side_by_side(reader: str, folder: Path, count: int) -> Result:
    """The same in two children at a time."""
    half = count // 2
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda part: run(reader, folder, *part), ((half, 0), (count - half, half))))
    whole = results[0]
    whole.outcomes += results[1].outcomes
    whole.failures |= results[1].failures
    whole.slowest = max(whole.slowest, results[1].slowest)
    whole.highest = max(whole.highest, results[1].highest)
    return whole


def _watched(reader: str, folder: Path, first: int, count: int, result: Result) -> int:
    """One child; the number behind the last one it came to."""
    command = [sys.executable, "-m", "tests.support.fuzz", reader, str(folder), str(first), str(count)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=Path(__file__).parents[2]
        ) as it,
    ):
        assert it.stdout is not None
        # the first line comes when everything is imported
        hung = threading.Event()

        def end() -> None:
            hung.set()
            it.kill()

        at = first
        began = False
        while True:
            timer = threading.Timer(2 * SECONDS if began else 60, end)
            timer.start()
            line = it.stdout.readline()
            timer.cancel()
            if not line:
                break
            document = json.loads(line)
            began = isinstance(document, int)
            if began:
                at = document
            else:
                result.note(*document)
                at = document[0] + 1
        it.wait()
        if it.returncode == 0:
            return first + count
        errors.seek(0)
        text = " ".join(errors.read().split())
        text = text[max(text.rfind("Fatal Python error"), 0) :]  # behind what the runtime logs
        if not began:
            raise RuntimeError(f"the child could not start or was lost at {at}: {text[-2000:]}")
        reason = f"hangs, {2 * SECONDS:.0f} s" if hung.is_set() else f"ends the process ({it.returncode})"
        result.failures[at] = f"{reason}: {text[:600]}"
        return at + 1


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
