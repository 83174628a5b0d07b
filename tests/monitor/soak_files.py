"""The servers and the files of the soak, and what is remembered of them for the audit."""

import contextlib
import json
import mmap
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxcam.monitor.segments import segments


@dataclass
class Life:
    """One process of a server, as the supervisor sees it."""

    number: int
    process: subprocess.Popen[bytes]
    beats: mmap.mmap
    base: Path
    begin: float = field(default_factory=time.monotonic)
    ready: bool = False
    ending: float | None = None  # when it was told to end
    acknowledged: list[str] = field(default_factory=list)
    handlers: list[dict[str, Any]] = field(default_factory=list)
    book: dict[str, Any] | None = None
    stops: list[tuple[float, float]] = field(default_factory=list)
    stopped: bool = False
    reader: threading.Thread | None = None
    code: int | None = None

    def read_lines(self) -> None:
        """Read the server's events until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            match event.pop("event"):
                case "ack":
                    self.acknowledged.append(event["id"])
                case "ready":
                    self.ready = True
                case "book":
                    self.book = event
                case kind:
                    self.handlers.append(event | {"kind": kind})

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def command(self, **values: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            os.write(self.process.stdin.fileno(), json.dumps(values).encode() + b"\n")

    def counts(self, threads: int) -> tuple[int, ...]:
        return struct.unpack(f"<{threads}Q", self.beats[: 8 * threads])

    def seconds_of(self, handler: Mapping[str, Any]) -> float:
        """Seconds that a handler took, without those in which the process was stopped, the thread waited for a
        processor, or other handlers interrupted it.
        """
        begin, end = handler["begin"], handler["end"]
        others = [(other["begin"], other["end"]) for other in self.handlers]
        inner = [(since, to) for since, to in others if begin < since and to < end]
        place = busy = begin
        for since, to in sorted([*inner, *self.stops]):
            since, to = max(since, place), min(to, end)
            if to > since:
                busy, place = busy + to - since, to
        return max(0.0, float(end - busy - handler["waited"]))

    def patience(self, seconds: float) -> float:
        """Stretch a time by as much longer as the threads took because they waited for a processor."""
        ran = waited = 0
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError):
                times = path.read_text().split()
                ran, waited = ran + int(times[0]), waited + int(times[1])
        return seconds * (1 + min(waited / ran, 10.0)) if ran else seconds

    def lost(self) -> int:
        """Records that the monitor wrote and noticed to be gone, as its books say."""
        return int((self.book or {"stats": {}})["stats"].get("lost", 0))


class Files:
    """Removes, moves and truncates what is in the folder, and remembers the records that were there.

    Attributes:
        destroyed: records that were removed or cut off, to be found in no file any more.
        gone: when (`time.monotonic`) a record had left the folder, destroyed or moved.
    """

    def __init__(self, root: Path, archive: Path) -> None:
        self.root, self.archive = root, archive
        self.destroyed: set[str] = set()
        self.removed: dict[str, float] = {}
        self._handles: list[int] = []  # of removed files
        self._number = 0

    def disturb(self, kind: str, value: float) -> bool:
        """Do what an operator or a cleaner does; False if there was nothing to do it to."""
        records = self.root / "records"
        try:
            match kind:
                case "remove" | "remove records":
                    return self._remove(self.root if kind == "remove" else records)
                case "rename" | "rename records":
                    return self._move(self.root if kind == "rename" else records)
            paths = sorted(records.glob("*.open"))
            if not paths:
                return False
            path = paths[int(value * 997) % len(paths)]
            match kind:
                case "unlink a segment":
                    return self._unlink(path)
                case "rename a segment":
                    return self._move(path)
                case "replace a segment":  # as logrotate's `create`
                    return self._move(path) and path.touch() is None
                case "copytruncate":  # what is written between the two is destroyed
                    self._number += 1
                    shutil.copyfile(path, self.archive / f"{self._number}.jsonl")
            return self._truncate(path, value if kind == "cut a segment" else 0.0)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False  # closed, removed or made anew by a server in the meantime

    def identities(self) -> set[str]:
        """Return every record that is in a file with a name."""
        paths = [*self.archive.iterdir(), *self.root.parent.rglob("*.jsonl*")]
        return set().union(*(identities(path.read_bytes()) for path in paths if path.is_file()))

    def live(self) -> set[str]:
        """Return every record that is where readers look."""
        return set().union(*(identities(path.read_bytes()) for path in segments(self.root)))

    def after_removal(self) -> int:
        """Return how many records were written into files that nobody can open any more."""
        late = set().union(*(self._content(handle) for handle in self._handles)) - self.destroyed
        while self._handles:
            os.close(self._handles.pop())
        return len(late)

    def _remove(self, folder: Path) -> bool:
        if not folder.is_dir():
            return False
        handles = []
        for path in folder.rglob("*.jsonl*"):
            with contextlib.suppress(FileNotFoundError):
                handles.append(os.open(path, os.O_RDONLY))
        while folder.exists():  # a server may write into it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        self._handles += handles
        for handle in handles:
            self._destroy(self._content(handle))
        return True

    def _unlink(self, path: Path) -> bool:
        handle = os.open(path, os.O_RDONLY)
        self._handles.append(handle)
        path.unlink()
        self._destroy(self._content(handle))
        return True

    def _truncate(self, path: Path, share: float) -> bool:
        handle = os.open(path, os.O_RDWR)
        try:
            before = self._content(handle)
            os.ftruncate(handle, int(os.fstat(handle).st_size * share))
            self._destroy(before - self._content(handle))
        finally:
            os.close(handle)
        return True

    def _move(self, path: Path) -> bool:
        paths = list(path.rglob("*.jsonl*")) if path.is_dir() else [path]
        moved: set[str] = set()
        for segment in paths:
            with contextlib.suppress(FileNotFoundError):
                moved |= identities(segment.read_bytes())
        self._number += 1
        path.rename(path.with_name(f"{path.name}.{self._number}"))
        self.removed |= dict.fromkeys(moved - self.removed.keys(), time.monotonic())
        return True

    def _destroy(self, records: set[str]) -> None:
        self.destroyed |= records
        self.removed |= dict.fromkeys(records - self.removed.keys(), time.monotonic())

    def _content(self, handle: int) -> set[str]:
        return identities(os.pread(handle, os.fstat(handle).st_size, 0))


def identities(data: bytes) -> set[str]:
    """Return the ids of the whole records among the lines."""
    ids = set()
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            ids.add(json.loads(line)["id"])
    return ids
