"""Files of records: one per process at a time, appended to in single writes, closed by age, mended after a crash.

    DIR/records/<UTC start>-<host>-<pid>-<seq>.jsonl         closed: whole and final
    DIR/records/<UTC start>-<host>-<pid>-<seq>.jsonl.open    being written, and locked by its writer while that lives

A record counts as written when its line ends in a newline: whatever follows the last newline of a segment is the half
line of a writer that was killed, was acknowledged to nobody, and is cut off when the segment is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

from onnxcam.errors import OutputError
from onnxcam.monitor import locks
from onnxcam.monitor.artefacts import sync_folder

FOLDER = "records"
CLOSED, OPEN, FRESH = ".jsonl", ".jsonl.open", ".jsonl.new"
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(
    r"(?P<start>[0-9]{8}T[0-9]{6}\.[0-9]{6}Z)-(?P<host>.+)-(?P<pid>[0-9]+)-(?P<seq>[0-9]+)\.jsonl[.a-z]*"
)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
_sequence = count()


class Name(NamedTuple):
    """What a segment's name says: when it was begun (seconds since 1970), and by whom."""

    start: float
    host: str
    pid: int
    seq: int


def parse_name(name: str) -> Name | None:
    """The parts of a segment's file name; None for a file that is no segment."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    start = datetime.strptime(found["start"], _STAMP).replace(tzinfo=UTC).timestamp()
    return Name(start, found["host"], int(found["pid"]), int(found["seq"]))


def final_name(path: Path) -> Path:
    """The name that an open segment has once it is closed."""
    return path.with_name(path.name.removesuffix(OPEN) + CLOSED)


def segments(root: Path, *suffixes: str) -> list[Path]:
    """The segments of a folder with one of the suffixes (closed and open by default), the oldest first."""
    wanted = suffixes or (CLOSED, OPEN)
    try:
        names = [path.name for path in (root / FOLDER).iterdir()]
    except FileNotFoundError:
        return []
    return [root / FOLDER / name for name in sorted(names) if name.endswith(wanted) and _NAME.fullmatch(name)]


class Writer:
    """Appends lines to this process's own segment. Not thread-safe: its owner locks.

    Arguments:
        root: the folder of `records/`.
        seconds: close a segment that was begun so long ago, at the next line or `tick`.
        sync: make every line survive a power cut too, not only the death of the process.
        clock: seconds since 1970.
        closed: told of every segment closed.
    """

    def __init__(
        self,
        root: Path,
        *,
        seconds: float,
        sync: bool,
        clock: Callable[[], float] = time.time,
        closed: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self._root, self._seconds, self._sync = root, seconds, sync
        self._clock, self._closed = clock, closed
        self._handle: int | None = None
        self._begun = 0.0
        self._size = 0  # bytes up to the end of the last whole line
        self.path: Path | None = None
        self.weight = 0  # bytes of the segment and of the pictures it names

    def append(self, line: bytes, weight: int) -> None:
        """Write one line, in one call to the operating system.

        Arguments:
            weight: bytes that the line stands for, its pictures included.

        Raises:
            OutputError: it is not written.
            TornError: it may be, and could not be taken back; the segment is closed, and nothing follows a half line.
        """
        self.tick()
        if self._handle is None:
            self.begin()
        handle = self._handle
        assert handle is not None
        try:
            done = os.write(handle, line)
            if done != len(line):
                raise OSError(errno.ENOSPC, f"only {done} of {len(line)} bytes fitted")
            if self._sync:
                getattr(os, "fdatasync", os.fsync)(handle)
        except OSError as error:
            self._take_back(error)
        self._size += len(line)
        self.weight += weight

    def tick(self) -> None:
        """Close the segment if it is old enough."""
        if self._handle is not None and self._clock() - self._begun >= self._seconds:
            self.close()

    def close(self) -> None:
        """Close the segment, if one is open: its name says from now on that it is final."""
        if self._handle is None or self.path is None:
            return
        handle, path, size = self._handle, self.path, self._size
        self._handle = self.path = None
        self.weight = 0
        # where that fails, the segment stays open without a writer, and the next `recover` closes it
        with contextlib.suppress(OSError):
            final = _seal(path, handle, size)
            if final is not None:
                self._closed(final)

    def forget(self) -> None:
        """In a forked child: leave the parent's segment alone."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
        self._handle = self.path = None
        self.weight = 0

    def begin(self) -> None:
        """Open a segment that has no line yet; left so, it is removed when it is closed.

        Raises:
            OutputError: the folder cannot be written to.
        """
        now = self._clock()
        host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "host"
        stamp = datetime.fromtimestamp(now, UTC).strftime(_STAMP)
        folder = self._root / FOLDER
        stem = f"{stamp}-{host}-{os.getpid()}-{next(_sequence)}"
        fresh, path = folder / f"{stem}{FRESH}", folder / f"{stem}{OPEN}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # locked before it has the name by which another process would look for the lock
            handle = os.open(fresh if locks.AVAILABLE else path, _APPEND, 0o644)
            try:
                if locks.AVAILABLE:
                    locks.lock(handle)
                    fresh.replace(path)
                if self._sync:
                    sync_folder(folder)
            except BaseException:
                os.close(handle)
                fresh.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OutputError(
                f"no file of records can be begun in {str(folder)!r}: {error.strerror or error}; see that the folder "
                "is writable and the disk has space"
            ) from error
        self._handle, self.path, self._begun, self._size, self.weight = handle, path, now, 0, 0

    def _take_back(self, error: OSError) -> None:
        """After a failed write: cut the segment back to its last whole line, and raise."""
        assert self._handle is not None
        failed = OutputError(
            f"a record could not be written to {str(self.path)!r}: {error.strerror or error}; see that the disk is "
            "writable and has space"
        )
        try:
            os.ftruncate(self._handle, self._size)
        except OSError:
            # `close` tries once more; if the line stays, its pictures have to stay too
            self.close()
            raise TornError(*failed.args) from error
        raise failed from error


class TornError(OutputError):
    """A line could not be written, and what there is of it could not be taken back."""


def _seal(path: Path, handle: int, size: int | None = None) -> Path | None:
    """Cut a segment after its last whole line and give it its final name; an empty one is removed.

    The handle, and with it the lock, is given up at the end.

    Returns:
        the final path, None where nothing is left.
    """
    final = final_name(path)
    try:
        whole = _whole(path) if size is None else size
        if os.fstat(handle).st_size != whole:
            os.ftruncate(handle, whole)
        os.fsync(handle)
        if locks.AVAILABLE:
            path.replace(final) if whole else path.unlink(missing_ok=True)
    finally:
        os.close(handle)
    if not locks.AVAILABLE:  # Windows renames no open file
        path.replace(final) if whole else path.unlink(missing_ok=True)
    sync_folder(path.parent)
    return final if whole else None


def _whole(path: Path) -> int:
    """Bytes up to and with the last newline."""
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END)
        while left:
            step = min(left, 1 << 16)
            file.seek(left - step)
            at = file.read(step).rfind(b"\n")
            if at >= 0:
                return left - step + at + 1
            left -= step
    return 0


def recover(root: Path) -> list[Path]:
    """Close the segments of processes that died. Safe at any time, from any process.

    On Windows, and on a file system without locks, they stay open: readers read them all the same.

    Returns:
        the segments closed.
    """
    closed = []
    for path in segments(root, OPEN, FRESH):
        handle = _claim(path)
        if handle is None:
            continue
        with contextlib.suppress(OSError):
            final = _seal(path, handle)  # of a segment that never got its name nothing is left
            if final is not None:
                closed.append(final)
    return closed


def _claim(path: Path) -> int | None:
    """An own, locked handle on a segment whose writer is dead; None where that lives, or somebody else was quicker."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        # whoever held the lock before may have given the segment its final name meanwhile
        if locks.lock(handle) and os.path.samestat(path.stat(), os.fstat(handle)) and not _young(path):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _young(path: Path) -> bool:
    """A file that its writer may just now be about to lock."""
    return path.name.endswith(FRESH) and time.time() - path.stat().st_mtime < 60
