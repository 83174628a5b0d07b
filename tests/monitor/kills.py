"""Kills writers at random moments and at every step, and counts what is lost.

    python -m tests.monitor.kills random 200      # figures of promises 6 and 7 in docs/explanation/promises.md
    python -m tests.monitor.kills steps           # of promise 7; `steps 5`: at every fifth

A child, forked from this process, writes explanations and acknowledges each over a pipe; it dies by SIGKILL, sent from
outside at a random moment, or by its own hand at the n-th call to the operating system that changes something.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxcam.monitor import schema
from onnxcam.monitor.retention import remove_unreferenced
from onnxcam.monitor.segments import recover, segments
from onnxcam.monitor.sinks import Sink, open_sink
from tests.monitor import samples

CHANGES = ("open", "write", "fsync", "fdatasync", "replace", "unlink", "mkdir", "rmdir", "ftruncate")
SOON = 0.06  # seconds after the first acknowledgement


def files(k: int, kinds: tuple[str, ...] = ("heatmap",)) -> dict[str, bytes]:
    """Pictures that say in their first bytes how long they are."""
    return {kind: f"{(size := 900 + 37 * (k % 50)):08d}".encode() + os.urandom(size - 8) for kind in kinds}


def partial(root: Path) -> int:
    """Pictures under their final name that are not whole."""
    contents = [path.read_bytes() for path in (root / "files").rglob("*.png")]
    return sum(data[:8] != f"{len(data):08d}".encode() for data in contents)


def child(act: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """Fork a process that calls `act(acknowledge)`; returns its id and where its acknowledgements are read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        write = os.write
        os.close(reading)
        act(lambda identity: write(writing, identity.encode() + b"\n") and None)
    except BaseException:
        os._exit(3)
    os._exit(0)


def collected(reading: int) -> list[str]:
    data = b""
    while chunk := os.read(reading, 1 << 16):
        data += chunk
    os.close(reading)
    return data.decode().split("\n")[:-1]


def write_on(root: Path, sync: bool) -> Callable[[Callable[[str], None]], None]:
    def act(acknowledge: Callable[[str], None]) -> None:
        sink = open_sink(root, sync=sync, segment_bytes=60_000, retain_bytes=None, min_free=0)
        k = 0
        while True:
            record = samples.make(request=f"{os.getpid()}-{k}")
            sink.write(record, files(k))
            acknowledge(record["id"])
            k += 1

    return act


def checked(root: Path, acknowledged: list[str]) -> dict[str, Any]:
    """What is left after the last death; raises where a record does not read."""
    torn = sum(not path.read_bytes().endswith(b"\n") for path in segments(root) if path.stat().st_size)
    before = [record["id"] for record in samples.records_in(root)]  # an own reader, before anything is mended
    recover(root)
    records = samples.records_in(root)
    counts = Counter(record["id"] for record in records)
    named = {entry["name"] for record in records for entry in record["files"]}
    stored = {path.relative_to(root).as_posix() for path in (root / "files").rglob("*") if path.is_file()}
    return {
        "acknowledged": len(acknowledged),
        "lost": sorted(set(acknowledged) - counts.keys()),
        "lost_by_mending": sorted(set(before) - counts.keys()),
        "twice": [identity for identity, count in counts.items() if count > 1],
        "unacknowledged": len(counts.keys() - set(acknowledged)),
        "invalid": [fault for record in records for fault in schema.problems(record)],
        "files": samples.faults(root),
        "torn_tails": torn,
        "open": [path.name for path in segments(root) if path.name.endswith(".open")],
        "partial": partial(root),
        "unnamed": len(stored - named),
    }


def at_random(root: Path, kills: int, seed: int = 1234) -> dict[str, Any]:
    """Kill `kills` writers, two at a time in one folder, each at a random moment after its first acknowledgement."""
    choose = random.Random(seed)
    acknowledged: list[str] = []
    alive: list[tuple[int, int]] = []
    for k in range(kills):
        alive.append(child(write_on(root, sync=k % 4 == 0)))
        if len(alive) == 2 or k == kills - 1:
            while alive:
                pid, reading = alive.pop(choose.randrange(len(alive)))
                select.select([reading], [], [], 30)
                time.sleep(choose.uniform(0, SOON))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                acknowledged += collected(reading)
    return {"kills": kills} | checked(root, acknowledged)


def dying(operation: int, half: bool = False) -> list[str]:
    """From now on, die when the `operation`-th change to the disk is about to happen, or half way through a write.

    Returns a list that grows by the name of each change.
    """
    steps: list[str] = []

    def around(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return call(*arguments, **keywords)
            steps.append(name)
            if len(steps) - 1 == operation:
                if half:
                    call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            # a killed process loses nothing that the kernel has: syncing would test the disk's patience only
            return None if name in ("fsync", "fdatasync") else call(*arguments, **keywords)

        return wrapped

    for name in CHANGES:
        setattr(os, name, around(getattr(os, name), name))
    return steps


def small(root: Path, sync: bool = True) -> Sink:
    """A folder of a few records a segment and a few segments."""
    return open_sink(root, segment_bytes=10_000, retain_bytes=30_000, min_free=0, sync=sync)


def story(root: Path, acknowledge: Callable[[str], None]) -> None:
    """Writes through everything a writer does: begins, fills, closes and removes segments, with two pictures each."""
    sink = small(root)
    for k in range(9):
        record = samples.make(request=str(k), redact="none")
        sink.write(record, files(k, ("heatmap", "input")))
        acknowledge(record["id"])
    sink.close(1)


def at_every_step(base: Path, every: int) -> dict[str, Any]:
    """Die before every change that `story` makes and within every write; after each, look, go on and look again.

    Where `every` is more than 1, one in `every` of these deaths takes place, from all over the story.

    Before a change is after the one before it: nothing happens to the disk in between.
    """

    def until(operation: int, half: bool) -> tuple[list[str], int]:
        def act(acknowledge: Callable[[str], None]) -> None:
            names = dying(operation, half)
            story(root, acknowledge)
            acknowledge(" ".join(names))

        root = base / f"{operation}-{half}"
        pid, reading = child(act)
        acknowledged = collected(reading)
        return acknowledged, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    step_names, code = until(-1, False)
    if code:
        raise RuntimeError("the writer failed on its own")
    names = step_names[-1].split()
    total: Counter[str] = Counter()
    steps = [(k, half) for k, name in enumerate(names) for half in ((False, True) if name == "write" else (False,))]
    for k, half in steps[::every]:
        acknowledged, code = until(k, half)
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the writer was to die at change {k}, {names[k]}, and ended with {code}")
        total["deaths"] += 1
        total.update(survey(base / f"{k}-{half}", acknowledged))
    return {"changes": dict(Counter(names))} | dict(total)


def survey(root: Path, acknowledged: list[str]) -> Counter[str]:
    """Faults after a death, and after another process has gone on in the folder."""
    counts = Counter(lost=0, faults=0, unsealed=0, unnamed=0, partial=partial(root))
    if (root / "records").exists():
        ids = {record["id"] for record in samples.records_in(root)}
        counts["faults"] += len(samples.faults(root))
    else:
        ids = set()
    # what retention removed is not lost: three records fit for certain
    counts["lost"] += len(set(acknowledged[-3:]) - ids)
    sink = small(root, sync=False)
    record = samples.make(request="after")
    sink.write(record, files(0))
    sink.close(1)
    after = samples.records_in(root)
    counts["lost"] += len({*acknowledged[-1:], record["id"]} - {one["id"] for one in after})
    counts["faults"] += len(samples.faults(root)) + sum(len(schema.problems(one)) for one in after)
    # an hour later nothing is left that no record names
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (0, 0))
    recover(root)
    remove_unreferenced(root)
    counts["unsealed"] += sum(not path.name.endswith(".jsonl") for path in (root / "records").iterdir())
    named = {entry["name"] for one in after for entry in one["files"]}
    stored = {path.relative_to(root).as_posix() for path in (root / "files").rglob("*") if path.is_file()}
    counts["unnamed"] += len(stored - named)
    counts["faults"] += len(samples.faults(root))
    return counts


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1] == "random":
            print(json.dumps(at_random(Path(folder), int(sys.argv[2]))))
        else:
            print(json.dumps(at_every_step(Path(folder), int(sys.argv[2]) if len(sys.argv) > 2 else 1)))


if __name__ == "__main__":
    main()
