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
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple

from onnxcam.errors import OutputError
from onnxcam.folders import sync_folder
from onnxcam.monitor import locks
from onnxcam.monitor.ledger import Ledger, count_records, count_records_of

FOLDER = "records"
CLOSED, OPEN, FRESH = ".jsonl", ".jsonl.open", ".jsonl.new"
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(
    r"(?P<start>[0-9]{8}T[0-9]{6}\.[0-9]{6}Z)-(?P<host>.+)-(?P<pid>[0-9]+)-(?P<seq>[0-9]+)\.jsonl[.a-z]*"
)
_APPEND = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
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
    try:
        start = datetime.strptime(match["start"], _STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:  # the 99th of November
        return None
    return Name(start, match["host"], int(match["pid"]), int(match["seq"]))


def final_name(path: Path) -> Path:
    """Return the path that an open segment has once it is closed."""
    return path.with_name(path.name.removesuffix(OPEN).removesuffix(CLOSED) + CLOSED)


def segments(root: Path, *suffixes: str) -> list[Path]:
    """Return the segments of a folder with one of the suffixes (closed and open by default), the oldest first."""
    suffixes = suffixes or (CLOSED, OPEN)
    try:
        names = [path.name for path in (root / FOLDER).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [root / FOLDER / name for name in sorted(names) if name.endswith(suffixes) and _NAME.fullmatch(name)]


def open_regular(path: Path) -> BinaryIO | None:
    """Open a file for reading; None for a pipe, device or folder, which is never waited for.

    Raises:
        OSError: it cannot be opened; FileNotFoundError if it does not exist.
    """
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    except IsADirectoryError:
        return None
    except NotADirectoryError as error:  # a file where its folder was
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    return None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class Writer:
    """Appends lines to this process's segment. Not thread-safe: its owner locks.

    Others may remove, rename or truncate the segment and its folder at any time; `check` notices.

    Arguments:
        root: the folder of `records/`.
        seconds: the age at which a segment is closed, by the next line or `tick`.
        sync: make every line survive a power cut, not only a crash of the process.
        clock: seconds since 1970.
        closed: called with every closed segment.

    Attributes:
        path: the open segment; None if there is none.
        weight: bytes of the segment and of the pictures it names.
        lost: appended records that others have removed since, or moved to where no reader looks.
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
        self._folder: int | None = None  # an open handle: the number of its inode is not given to another one
        self._start = 0.0
        self._size = 0  # bytes up to the end of the last complete line
        self._records = 0  # in the open segment
        self._ledger = Ledger(root)
        self.path: Path | None = None
        self.weight = 0
        self.lost = 0

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
        self._records += 1
        self.weight += weight

    def tick(self) -> None:
        """Close the segment if it is old enough, or begun at a time that the clock has not reached again."""
        if self._handle is not None and not 0 <= self._clock() - self._start < self._seconds:
            self.close()

    def check(self) -> bool:
        """Give the segment up if others changed it, and count the records that were lost with it or with the folder.

        Returns:
            whether something was changed; the next line begins a new segment, in a new folder if need be.
        """
        if self._handle is not None and self._intact():
            return False
        altered = self._handle is not None
        if altered:
            self._give_up()
        if self._folder is not None and not _names(self._root / FOLDER, self._folder):
            self.review()
            os.close(self._folder)
            self._folder = None
            altered = True
        return altered

    def review(self) -> None:
        """Count the records of closed segments that others removed or truncated; retention's removals do not count."""
        self.lost += self._ledger.review()

    def close(self) -> None:
        """Close the segment, if one is open, and give it its final name."""
        if not self.check():
            self._seal(self._size)
        self.review()

    def forget(self) -> None:
        """Release the segment in a forked child without closing it: it belongs to the parent."""
        for handle in (self._handle, self._folder):
            if handle is not None:
                with contextlib.suppress(OSError):
                    os.close(handle)
        self._handle = self._folder = self.path = None
        self.weight = self.lost = 0
        self._ledger = Ledger(self._root)

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
                if self._folder is None:
                    self._folder = _open_folder(folder)
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
        self._records = 0

    def _intact(self) -> bool:
        """Return whether the segment's name still stands for the open file, with all that was written and no more."""
        assert self.path is not None and self._handle is not None
        try:
            state = self.path.stat()
        except OSError:
            return False
        return state.st_size == self._size and os.path.samestat(state, os.fstat(self._handle))

    def _give_up(self) -> None:
        """Close a segment that others changed, under whatever name a reader finds it, and count what it lacks."""
        handle, path = self._handle, self.path
        assert handle is not None and path is not None
        if _names(path, handle):
            self._seal(None)
            return
        self._handle = self.path = None
        self.weight = left = size = 0
        with contextlib.suppress(OSError):
            try:
                other = next((other for other in segments(self._root) if _names(other, handle)), None)
                if other is not None:
                    path, size, left = other, _cut(handle, None), count_records(handle)
                else:
                    left = count_records_of(path)  # an editor has put a copy there
                    size = path.stat().st_size
            finally:
                os.close(handle)
        left = min(left, self._records)
        self.lost += self._records - left
        if left:
            self._ledger.add(final_name(path).name, left, size)
            recover(self._root)

    def _seal(self, size: int | None) -> None:
        """Close the segment, of this size unless others change it meanwhile, and count what it lacks then."""
        if self._handle is None or self.path is None:
            return
        handle, path, records = self._handle, self.path, self._records
        self._handle = self.path = None
        self.weight = 0
        try:
            final, end = _seal(path, handle, size)
        except OSError:
            # it stays open without a writer, and the next `recover` closes it, unless others have just removed it
            self._ledger.add(final_name(path).name, records, 0)
            return
        if final is None:
            self.lost += records
            return
        left = records if end == size else min(records, count_records_of(final))
        self.lost += records - left
        self._ledger.add(final.name, left, end)
        with contextlib.suppress(OSError):
            self._closed(final)

    def _undo_write(self, error: OSError) -> None:
        """Truncate the segment to its last complete line after a failed write, and raise."""
        assert self._handle is not None
        failed = OutputError(
            f"a record could not be written to {str(self.path)!r}: {error.strerror or error}; see that the disk is "
            "writable and has space"
        )
        try:
            _cut(self._handle, self._size)
        except OSError:
            # truncated once more when it is closed; if the line stays, its pictures have to stay too
            self._seal(self._size)
            raise TornError(*failed.args) from error
        raise failed from error


class TornError(OutputError):
    """A line was not written completely, and the part that was could not be removed."""


def _seal(path: Path, handle: int, size: int | None = None) -> tuple[Path | None, int]:
    """Truncate a segment after its last complete line and give it its final name; an empty segment is removed.

    The handle is closed at the end, which releases the lock.

    Returns:
        the final path, None if the segment was removed; and its size.
    """
    final = final_name(path)
    try:
        end = _cut(handle, size)
        os.fsync(handle)
        if locks.AVAILABLE:
            path.replace(final) if end else path.unlink(missing_ok=True)
            end = _cut(handle, end)  # if others have truncated it since
    finally:
        os.close(handle)
    if not locks.AVAILABLE:  # Windows renames no open file
        path.replace(final) if end else path.unlink(missing_ok=True)
    sync_folder(path.parent)
    return final if end else None, end


def _cut(handle: int, size: int | None) -> int:
    """Truncate to a size, or after the last complete line if it is None or others have truncated; never extend.

    Returns:
        the new size.
    """
    present = os.fstat(handle).st_size
    end = size if size is not None and size <= present else _complete_size(handle)
    if present != end:
        os.ftruncate(handle, end)
    return end


def complete_size(path: Path) -> int:
    """Return the number of bytes up to and including the last newline; 0 for what is not a regular file."""
    file = open_regular(path)
    if file is None:
        return 0
    with file:
        return _complete_size(file.fileno())


def _complete_size(handle: int) -> int:
    left = os.lseek(handle, 0, os.SEEK_END)
    while left:
        step = min(left, 1 << 16)
        os.lseek(handle, left - step, os.SEEK_SET)
        newline = os.read(handle, step).rfind(b"\n")
        if newline >= 0:
            return left - step + newline + 1
        left -= step
    return 0


def _names(path: Path, handle: int) -> bool:
    """Return whether a path stands for an open file or folder."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _open_folder(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, where nobody removes the folder of an open file either
        return None


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
            final, _ = _seal(path, handle)  # a segment that never got its name is empty, and removed
            if final is not None:
                closed.append(final)
    return closed


def _claim(path: Path) -> int | None:
    """Open and lock a segment whose writer is dead; None if the writer lives, or another process was quicker."""
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        # the previous holder of the lock may have renamed the segment in the meantime
        regular = stat.S_ISREG(os.fstat(handle).st_mode)
        if regular and locks.lock(handle) and _names(path, handle) and not _is_new(path):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _is_new(path: Path) -> bool:
    """Return whether the segment is so new that its writer may not have locked it yet."""
    return path.name.endswith(FRESH) and time.time() - path.stat().st_mtime < 60
