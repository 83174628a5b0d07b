"""Servers beside monitors that share a folder, under signals, rotation, clock jumps and a full disk; then an audit.

    python -m tests.monitor.soak --seconds 600             # promise 30 in docs/explanation/promises.md
    python -m tests.monitor.soak --seconds 20 --seed 7 -o summary.json

What happens when, and to whom, follows from the seed alone (`schedule`); how it meets the servers' threads does not.
Each life of a server (`tests.monitor.soak_server`) is a process of its own that tells which records were acknowledged
and, at its end, its books. Whoever removes, truncates or moves files here first reads or keeps them, as nobody does in
production, so that the audit can tell a record that was destroyed from one that was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnxcam.errors import InputError
from onnxcam.monitor import reading, schema
from tests.monitor.monitoring import SMALL, SMALL_PLAIN
from tests.monitor.soak_files import Files, Life
from tests.monitor.soak_schedule import Event, schedule
from tests.monitor.soak_server import CLOSE

ROOT = Path(__file__).parent.parent.parent
DISK = 512  # MiB of the small file system, where one may be mounted
# seconds without a prediction, and from SIGTERM to the end, stretched where threads wait for a processor
HUNG, EXIT = 30.0, 30.0
START = 300.0  # seconds that a life may take to begin
SLACK = 3.0  # seconds that a busy machine may add to what a handler may take
DAY = 86400.0
CLOCKS = (0.0, 0.0, 3600.0, -3600.0, DAY, -DAY, 400 * DAY, -400 * DAY, 3650 * DAY, 240_000_000_000.0, 1e13)

# what the four servers do differently; more of them begin again with the first
ROLES: tuple[dict[str, Any], ...] = (
    {"serves": "explainable", "monitor": {"worker": "thread"}, "folder": {"sync": False}},
    {"serves": "plain", "monitor": {"worker": "inline", "rate": "10/s"}, "folder": {"segment_bytes": "40KB"}},
    {"serves": "plain", "monitor": {"worker": "process", "timeout": 20.0}, "folder": {"min_free": "1MiB"}},
    {
        "serves": "plain",
        "monitor": {"worker": "thread", "redact": "none", "on_full": "drop_oldest", "queue": 16, "daily_budget": 10**6},
        "folder": {"segment_age": "2s"},
    },
)
MONITOR: dict[str, Any] = {
    "when": "confidence < 0.7",
    "baseline_sample": 0.05,
    "rate": "40/s",
    "daily_budget": None,
    "duplicates": 0.1,
    "queue": 64,
}
FOLDER: dict[str, Any] = {"min_free": 0, "retain_bytes": None, "retain_age": None, "segment_bytes": "200KB"}


class Soak:
    """Starts the servers, carries out the schedule, watches for hangs and audits what is left."""

    def __init__(self, base: Path, disk: Path, *, seconds: float, seed: int, servers: int, threads: int) -> None:
        self.base, self.disk = base, disk
        self.seconds, self.seed, self.servers, self.threads = seconds, seed, servers, threads
        self.mounted = os.path.ismount(disk)
        self.root = disk / "cam"
        self.faults: list[str] = []
        self.done: Counter[str] = Counter()
        self.lives: list[Life] = []
        self.current: dict[int, Life] = {}
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.progress: dict[int, list[tuple[int, float]]] = {}
        self.reads: Counter[str] = Counter()
        self.over = threading.Event()
        self.ending = False
        for name, data in (("model", SMALL), ("plain", SMALL_PLAIN)):
            (base / f"{name}.onnx").write_bytes(data)
        (base / "archive").mkdir()
        self.files = Files(self.root, base / "archive")

    def run(self) -> dict[str, Any]:
        """Run everything and return the summary."""
        reader = threading.Thread(target=self._read)
        try:
            for number in range(self.servers):
                self._start(number)
            self._wait(lambda: all(life.ready for life in self.current.values()), START, "the servers began")
            reader.start()
            begin = time.monotonic()
            for event in schedule(self.seed, self.seconds, self.servers):
                self._until(begin + event.at)
                self._do(event)
            self._until(begin + self.seconds)
            self._settle()
            for life in list(self.current.values()):
                self._end(life)
            self._wait(lambda: not self.current, EXIT + START, "the servers ended")
        finally:
            self.over.set()
            for life in self.lives:
                if life.process.poll() is None:
                    life.process.kill()
                life.process.wait()
            if reader.is_alive():
                reader.join()
        for life in self.lives:
            assert life.reader is not None
            life.reader.join()
        return self._audit(time.monotonic() - begin)

    def _start(self, number: int) -> None:
        role = ROLES[number % len(ROLES)]
        base = self.base / f"{number}-{len(self.lives)}"
        base.mkdir()
        beats = base / "beats"
        beats.write_bytes(bytes(8 * (self.threads + 1)))
        settings = {
            "root": str(self.root),
            "model": str(self.base / "model.onnx"),
            "plain": str(self.base / "plain.onnx"),
            "beats": str(beats),
            "stacks": str(base / "stacks"),
            "serves": role["serves"],
            "threads": self.threads,
            "seed": self.seed * 1000 + len(self.lives),
            "monitor": MONITOR | role["monitor"],
            "folder": FOLDER | role["folder"],
        }
        command = [sys.executable, "-m", "tests.monitor.soak_server", json.dumps(settings)]
        with (base / "stderr").open("wb") as stderr, beats.open("r+b") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
            )
            life = Life(number, process, mmap.mmap(file.fileno(), 0), base)
        life.reader = threading.Thread(target=life.read_lines)
        life.reader.start()
        self.lives.append(life)
        self.current[number] = life
        self.progress[number] = [(0, time.monotonic())] * self.threads

    # ---- what happens

    def _do(self, event: Event) -> None:
        if event.server is None:
            done = self._to_all(event)
        else:
            life = self.current.get(event.server)
            done = life is not None and life.ready and life.ending is None and self._to_one(life, event)
        self.done[event.kind] += bool(done)

    def _to_one(self, life: Life, event: Event) -> bool:
        match event.kind:
            case "look":
                life.signal(signal.SIGUSR1)
            case "predict":
                life.signal(signal.SIGUSR2)
            case "close":
                self._end(life)
            case "clock":
                life.command(clock=CLOCKS[int(event.value * 997) % len(CLOCKS)])
            case "raise" | "stall":
                life.command(sink=event.kind)
                self._after(event.value, lambda: life.command(sink=None))
            case "limit":
                life.command(limit=int(event.value * 20_000))
                self._after(event.value, lambda: life.command(limit=None))
            case "stop":
                if life.stopped:
                    return False
                life.stopped, since = True, time.monotonic()
                life.signal(signal.SIGSTOP)
                self._after(event.value, lambda: self._resume(life, since))
        return True

    def _resume(self, life: Life, since: float) -> None:
        life.signal(signal.SIGCONT)
        life.stops.append((since, time.monotonic()))
        life.stopped = False
        self.progress[life.number] = [(-1, time.monotonic())] * self.threads

    def _end(self, life: Life) -> None:
        if life.ending is None:
            life.ending = time.monotonic()
            life.signal(signal.SIGTERM)

    def _to_all(self, event: Event) -> bool:
        if event.kind == "full":
            return self.mounted and self._fill(event.value)
        if event.kind == "in the way":
            return self._in_the_way(event.value)
        return self.files.disturb(event.kind, event.value)

    def _fill(self, seconds: float) -> bool:
        """Leave no byte on the disk, for a while."""
        ballast = self.disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1 << 6):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        self._after(seconds, lambda: ballast.unlink(missing_ok=True))
        return True

    def _in_the_way(self, seconds: float) -> bool:
        """Put a file where the folder was, for a while."""
        if not self.root.is_dir():
            return False
        self.files.disturb("rename", 0.0)
        try:
            with self.root.open("x"):
                pass
        except FileExistsError:  # a server was quicker
            return True
        self._after(seconds, lambda: self.root.unlink(missing_ok=True) if self.root.is_file() else None)
        return True

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self.later.append((time.monotonic() + seconds, action))

    # ---- watching

    def _until(self, moment: float) -> None:
        while True:
            self._watch()
            left = moment - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.02))

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self._watch()
            if time.monotonic() > end:
                self.faults.append(f"not within {seconds:g} s: {what}")
                return
            time.sleep(0.02)

    def _watch(self) -> None:
        """Do what is due, note which servers ended, start others in their place, and find those that hang."""
        now = time.monotonic()
        for entry in [entry for entry in self.later if entry[0] <= now]:
            self.later.remove(entry)
            entry[1]()
        for number, life in list(self.current.items()):
            code = life.process.poll()
            if code is not None:
                life.code = code
                del self.current[number]
                if code or life.ending is None:
                    self.faults.append(f"server {number} ended with {code}: {self._errors_of(life)}")
                if not life.ready:
                    raise RuntimeError(f"server {number} did not begin: {self._errors_of(life)}")
                if not self.ending:
                    self._start(number)
            elif life.stopped:
                continue
            elif life.ending is not None and now - life.ending > EXIT + self._stopped_since(life, life.ending):
                if now - life.ending > life.patience(EXIT) + self._stopped_since(life, life.ending):
                    self._hang(life, f"did not end within {EXIT:g} s of SIGTERM")
            elif life.ready and life.ending is None:
                self._watch_beats(life, now)
            elif not life.ready and now - life.begin > START:
                self._hang(life, f"did not begin within {START:g} s")

    def _stopped_since(self, life: Life, moment: float) -> float:
        return sum(to - since for since, to in life.stops if to > moment)

    def _watch_beats(self, life: Life, now: float) -> None:
        counts, progress = life.counts(self.threads), self.progress[life.number]
        for thread, count in enumerate(counts):
            if count != progress[thread][0]:
                progress[thread] = (count, now)
            elif now - progress[thread][1] > HUNG and now - progress[thread][1] > life.patience(HUNG):
                self._hang(life, f"made no prediction in thread {thread} for {HUNG:g} s")
                return

    def _hang(self, life: Life, what: str) -> None:
        """Ask a hung server where its threads stand, then kill it."""
        self.done["hang"] += 1
        life.signal(signal.SIGQUIT)
        time.sleep(1.0)
        life.ending = life.ending or time.monotonic()
        life.process.kill()
        life.process.wait()
        stacks = (life.base / "stacks").read_text()
        self.faults.append(f"server {life.number} {what}; {life.base / 'stacks'}:\n{stacks[-4000:]}")

    def _errors_of(self, life: Life) -> str:
        return (life.base / "stderr").read_text(errors="replace")[-1500:]

    def _settle(self) -> None:
        """Set everything right again; then every server has to write records as before."""
        for _, action in sorted(self.later, key=lambda entry: entry[0]):
            action()
        self.later.clear()
        self.ending = True
        self._wait(lambda: all(life.ready for life in self.current.values()), START, "the last servers began")
        for life in self.current.values():
            life.command(clock=0.0, sink=None, limit=None)
        time.sleep(0.5)
        before = {number: len(life.acknowledged) for number, life in self.current.items()}
        self._wait(
            lambda: all(len(life.acknowledged) > before[number] + 1 for number, life in self.current.items()),
            START,
            "every server wrote records again once everything was right again",
        )

    def _read(self) -> None:
        """Read the folder again and again, as people and reports do."""
        while not self.over.wait(0.05):
            try:
                scan = reading.Scan()
                for record in reading.records(self.root, scan=scan):
                    self.reads["records"] += 1
                    self.reads["invalid"] += bool(schema.problems(record))
                self.reads["passes"] += 1
                self.reads["damaged lines"] += scan.damaged
            except InputError:
                self.reads["no folder"] += 1
            except Exception as error:
                self.reads["errors"] += 1
                self.faults.append(f"reading ended with {type(error).__name__}: {error}")

    # ---- afterwards

    def _audit(self, seconds: float) -> dict[str, Any]:
        written, live, late = self.files.identities(), self.files.live(), self.files.after_removal()
        totals: Counter[str] = Counter()
        longest: dict[str, float] = defaultdict(float)
        for life in self.lives:
            self._audit_life(life, written, live, totals, longest)
        scan = reading.Scan()
        try:
            list(reading.records(self.root, scan=scan))
        except InputError as error:
            self.faults.append(f"at the end {error}")
        if scan.damaged or self.reads["damaged lines"]:
            self.faults.append(f"{scan.damaged} damaged lines at the end, {self.reads['damaged lines']} while reading")
        if self.reads["invalid"]:
            self.faults.append(f"{self.reads['invalid']} records read that are not of the schema")
        return {
            "seconds": round(seconds, 1),
            "seed": self.seed,
            "servers": self.servers,
            "threads": self.threads,
            "disk": f"{DISK} MiB" if self.mounted else "not a file system of its own: no full disk but by RLIMIT_FSIZE",
            "lives": len(self.lives),
            "hangs": self.done.pop("hang", 0),
            "done": dict(sorted(self.done.items())),
            "rows": dict(totals),
            "written into removed files": late,
            "longest": {kind: round(value, 3) for kind, value in sorted(longest.items())},
            "read": dict(self.reads),
            "faults": self.faults,
        }

    def _audit_life(
        self, life: Life, written: set[str], live: set[str], totals: Counter[str], longest: dict[str, float]
    ) -> None:
        name = f"server {life.number} (process {life.process.pid}, {life.base.name})"
        for handler in life.handlers:
            kind, seconds = handler["kind"], life.seconds_of(handler)
            longest[kind] = max(longest[kind], seconds)
            if seconds > (CLOSE + 0.5 if kind == "close" else 0.5) + SLACK:
                self.faults.append(f"{name}: {kind} from a signal handler took {seconds:.1f} s")
            if not handler.get("balanced", True):
                self.faults.append(f"{name}: a handler saw books that do not balance")
        acknowledged = set(life.acknowledged)
        missing = acknowledged - written - self.files.destroyed
        closes = [handler for handler in life.handlers if handler["kind"] == "close"]
        closed = min((handler["begin"] for handler in closes), default=0.0)
        removed = missing | {one for one in acknowledged if self.files.removed.get(one, closed) < closed}
        if not all(handler["done"] for handler in closes):  # it may count what is gone after its time
            removed = set()
        absent = acknowledged - live
        totals.update(acknowledged=len(acknowledged), missing=len(missing), gone=len(removed), lost=life.lost())
        if len(acknowledged) != len(life.acknowledged):
            self.faults.append(f"{name}: an id was given twice")
        if life.book is None:
            if life.code == 0:
                self.faults.append(f"{name}: ended without its books")
            return
        book, stats = life.book, life.book["stats"]
        totals.update({key: book[key] for key in ("predictions", "rows", "changed", "raised")})
        totals.update({key: stats[key] for key in ("seen", "confident", "explained", "failed")})
        totals.update(dropped=sum(stats["dropped"].values()))
        for wrong, what in (
            (book["changed"], f"{book['changed']} predictions were not those of the plain session"),
            (book["errors"], f"predictions raised: {book['errors']}"),
            (not book["balanced"], f"the books do not balance: {stats}"),
            (
                not book["rows"] <= stats["seen"] <= book["rows"] + book["interrupted"],
                f"{stats['seen']} rows seen, {book['rows']} predicted and {book['interrupted']} interrupted",
            ),
            (book["raised"] != book["caught"], f"{book['raised']} alarms raised, {book['caught']} reached the caller"),
            (
                not stats["explained"] <= len(acknowledged) <= stats["explained"] + stats["failed"] + stats["running"],
                f"{len(acknowledged)} records acknowledged, counted are {stats}",
            ),
            (
                not len(removed) <= life.lost() <= len(absent),
                f"{life.lost()} records counted as lost; {len(removed)} were gone when it was closed, {len(missing)} "
                f"are in no file, {len(absent)} are absent now; close: {closes}",
            ),
        ):
            if wrong:
                self.faults.append(f"{name}: {what}")


@contextlib.contextmanager
def small_disk(base: Path) -> Iterator[Path]:
    """A small file system of its own where that is allowed, a folder elsewhere."""
    folder = base / "disk"
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        subprocess.run(command, capture_output=True, check=False)
    try:
        yield folder
    finally:
        if os.path.ismount(folder):
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--keep", type=Path, help="where stacks and messages of the servers stay")
    parser.add_argument("-o", "--output", type=Path, help="where the summary is written, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the blocks that end servers and unmount
    with contextlib.ExitStack() as stack:
        base = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base.mkdir(parents=True, exist_ok=True)
        disk = stack.enter_context(small_disk(base))
        numbers = {name: getattr(options, name) for name in ("seconds", "seed", "servers", "threads")}
        summary = json.dumps(Soak(base, disk, **numbers).run(), indent=1)
    if options.output:
        options.output.write_text(summary + "\n")
    print(summary)


if __name__ == "__main__":
    main()
