"""Segments, the files of records: one per process at a time, appended in single writes, recovered after a crash.

    DIR/records/<UTC start>-<host>-<pid>-<seq>.jsonl         closed: complete and final
    DIR/records/<UTC start>-<host>-<pid>-<seq>.jsonl.open    being written, and locked by its writer while that is alive

A record counts as written once its line ends in a newline: the bytes after the last newline of a segment are the torn
line of a writer that was killed; it was never acknowledged, and is truncated when the segment is closed.
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
    """The parts of a segment's name: its start (seconds since 1970), and the process that wrote it."""

    start: float
    host: str
    pid: int
    seq: int


def parse_name(name: str) -> Name | None:
    """Parse a segment's file name; None for a file that is not a segment."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    start = datetime.strptime(match["start"], _STAMP).replace(tzinfo=UTC).timestamp()
    return Name(start, match["host"], int(match["pid"]), int(match["seq"]))


def final_name(path: Path) -> Path:
    """Return the path that an open segment has once it is closed."""
    return path.with_name(path.name.removesuffix(OPEN) + CLOSED)


def segments(root: Path, *suffixes: str) -> list[Path]:
    """Return the segments of a folder with one of the suffixes (closed and open by default), the oldest first."""
    suffixes = suffixes or (CLOSED, OPEN)
    try:
        names = [path.name for path in (root / FOLDER).iterdir()]
    except FileNotFoundError:
        return []
    return [root / FOLDER / name for name in sorted(names) if name.endswith(suffixes) and _NAME.fullmatch(name)]


class Writer:
    """Appends lines to this process's segment. Not thread-safe: its owner locks.

    Arguments:
        root: the folder of `records/`.
        seconds: the age at which a segment is closed, by the next line or `tick`.
        sync: make every line survive a power cut, not only a crash of the process.
        clock: seconds since 1970.
        closed: called with every closed segment.
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
        self._start = 0.0
        self._size = 0  # bytes up to the end of the last complete line
        self.path: Path | None = None
        self.weight = 0  # bytes of the segment and of the pictures it names

    def append(self, line: bytes, weight: int) -> None:
        """Write one line, in one call to the operating system.

        Arguments:
            weight: bytes of the line and of the pictures it names.

        Raises:
            OutputError: the line was not written.
            TornError: part of the line may be in the file; the segment is closed, so that nothing follows a torn line.
        """
        self.tick()
        if self._handle is None:
            self.begin()
        handle = self._handle
        assert handle is not None
        try:
            count = os.write(handle, line)
            if count != len(line):
                raise OSError(errno.ENOSPC, f"only {count} of {len(line)} bytes fitted")
            if self._sync:
                getattr(os, "fdatasync", os.fsync)(handle)
        except OSError as error:
            self._undo_write(error)
        self._size += len(line)
        self.weight += weight

    def tick(self) -> None:
        """Close the segment if it is old enough."""
        if self._handle is not None and self._clock() - self._start >= self._seconds:
            self.close()

    def close(self) -> None:
        """Close the segment, if one is open, and give it its final name."""
        if self._handle is None or self.path is None:
            return
        handle, path, size = self._handle, self.path, self._size
        self._handle = self.path = None
        self.weight = 0
        # if that fails, the segment stays open without a writer, and the next `recover` closes it
        with contextlib.suppress(OSError):
            final = _seal(path, handle, size)
            if final is not None:
                self._closed(final)

    def forget(self) -> None:
        """Release the segment in a forked child without closing it: it belongs to the parent."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
        self._handle = self.path = None
        self.weight = 0

    def begin(self) -> None:
        """Open a segment; it is removed when it is closed without a line.

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
            # locked before it gets the name under which another process would check the lock
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
                f"no file of records can be created in {str(folder)!r}: {error.strerror or error}; see that the folder "
                "is writable and the disk has space"
            ) from error
        self._handle, self.path, self._start, self._size, self.weight = handle, path, now, 0, 0

    def _undo_write(self, error: OSError) -> None:
        """Truncate the segment to its last complete line after a failed write, and raise."""
        assert self._handle is not None
        failed = OutputError(
            f"a record could not be written to {str(self.path)!r}: {error.strerror or error}; see that the disk is "
            "writable and has space"
        )
        try:
            os.ftruncate(self._handle, self._size)
        except OSError:
            # `close` tries to truncate once more; if the line stays, its pictures have to stay too
            self.close()
            raise TornError(*failed.args) from error
        raise failed from error


class TornError(OutputError):
    """A line was not written completely, and the part that was could not be removed."""


def _seal(path: Path, handle: int, size: int | None = None) -> Path | None:
    """Truncate a segment after its last complete line and give it its final name; an empty segment is removed.

    The handle is closed at the end, which releases the lock.

    Returns:
        the final path; None if the segment was removed.
    """
    final = final_name(path)
    try:
        end = complete_size(path) if size is None else size
        if os.fstat(handle).st_size != end:
            os.ftruncate(handle, end)
        os.fsync(handle)
        if locks.AVAILABLE:
            path.replace(final) if end else path.unlink(missing_ok=True)
    finally:
        os.close(handle)
    if not locks.AVAILABLE:  # Windows renames no open file
        path.replace(final) if end else path.unlink(missing_ok=True)
    sync_folder(path.parent)
    return final if end else None


def complete_size(path: Path) -> int:
    """Return the number of bytes up to and including the last newline."""
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END)
        while left:
            step = min(left, 1 << 16)
            file.seek(left - step)
            newline = file.read(step).rfind(b"\n")
            if newline >= 0:
                return left - step + newline + 1
            left -= step
    return 0


def recover(root: Path) -> list[Path]:
    """Close the segments of processes that died. Safe at any time, from any process.

    On Windows, and on a file system without locks, they stay open, which readers accept.

    Returns:
        the closed segments.
    """
    closed = []
    for path in segments(root, OPEN, FRESH):
        handle = _claim(path)
        if handle is None:
            continue
        with contextlib.suppress(OSError):
            final = _seal(path, handle)  # a segment that never got its name is empty, and removed
            if final is not None:
                closed.append(final)
    return closed


def _claim(path: Path) -> int | None:
    """Open and lock a segment whose writer is dead; None if the writer lives, or another process was quicker."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        # the previous holder of the lock may have renamed the segment in the meantime
        if locks.lock(handle) and os.path.samestat(path.stat(), os.fstat(handle)) and not _is_new(path):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _is_new(path: Path) -> bool:
    """Return whether the segment is so new that its writer may not have locked it yet."""
    return path.name.endswith(FRESH) and time.time() - path.stat().st_mtime < 60
