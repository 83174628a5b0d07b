"""Retention: the oldest segments and the pictures they name are removed before a limit is exceeded.

Several processes may write to and clean up one folder at once: only closed segments are removed, the oldest first, so
that the second process finds nothing left to remove.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxcam.monitor import artefacts, locks
from onnxcam.monitor.ledger import retire
from onnxcam.monitor.lines import Scan, forwards
from onnxcam.monitor.segments import CLOSED, OPEN, final_name, open_regular, segments
from onnxcam.monitor.timestamps import seconds

REMOVING = CLOSED + ".gone"  # a segment whose pictures are being removed: readers ignore it
_PICTURE_BYTES = re.compile(rb'"bytes":\s*([0-9]{1,15})(?![0-9])')
_PICTURE_NAME = re.compile(rb'"name":\s*"(' + artefacts.NAME.encode() + b')"')
_TS = re.compile(rb'"ts":\s*"([^"]+)"')
_SWEEP_MARK = ".swept"  # its modification time is that of the last search for unreferenced pictures
GRACE = 3600.0  # seconds after which a picture without a record counts as left behind by a dead process


@dataclass(frozen=True)
class Limits:
    """What a folder may contain; None means no limit.

    Attributes:
        bytes: of segments and pictures together.
        age: seconds since a segment's last record.
        records: explanations.
    """

    bytes: int | None = None
    age: float | None = None
    records: int | None = None


@dataclass(frozen=True)
class SegmentInfo:
    """A segment's size: its bytes and those of its pictures, its records, and the time of the newest one."""

    path: Path
    bytes: int
    records: int
    newest: float


@dataclass
class Retention:
    """Enforces the limits of one folder.

    Attributes:
        root: the folder of `records/` and `files/`.
        limits: what it may contain.
        bytes, records, writers: its contents after the last `enforce`, and how many segments were open then.
    """

    root: Path
    limits: Limits
    bytes: int = 0
    records: int = 0
    writers: int = 0
    _closed: dict[str, SegmentInfo] = field(default_factory=dict, repr=False)

    def enforce(self, now: float, needed: Callable[[int], int] = lambda writers: 0) -> list[Path]:
        """Remove the oldest closed segments until the limits hold, with `needed` bytes to spare.

        Arguments:
            now: seconds since 1970.
            needed: how many bytes to spare, given the number of open segments.

        Returns:
            the segments removed.
        """
        infos = self._inspect()
        # after the inspection, which does not count segments that another process has hidden: finish their removal
        self._remove(segments(self.root, REMOVING))
        closed = [info for info in infos if info.path.name.endswith(CLOSED)]
        self.bytes, self.records = sum(info.bytes for info in infos), sum(info.records for info in infos)
        self.writers = len(infos) - len(closed)
        room = needed(self.writers)
        removed = []
        for info in closed:
            if not self._exceeds(info, now, room):
                # ages need not follow the names: a slow process may begin a segment early and end it late
                continue
            self.bytes -= info.bytes
            self.records -= info.records
            self._closed.pop(info.path.name, None)
            hidden = info.path.with_name(info.path.name.removesuffix(CLOSED) + REMOVING)
            with contextlib.suppress(OSError):
                retire(self.root, info.path.name)
                info.path.replace(hidden)
                removed.append(info.path)
            self._remove([hidden])
        return removed

    def _exceeds(self, info: SegmentInfo, now: float, room: int) -> bool:
        limits = self.limits
        return (
            (limits.bytes is not None and self.bytes + room > limits.bytes)
            or (limits.records is not None and self.records > limits.records)
            or (limits.age is not None and now - info.newest > limits.age)
        )

    def _inspect(self) -> list[SegmentInfo]:
        infos = []
        paths = segments(self.root)
        names = {path.name for path in paths}
        self._closed = {name: info for name, info in self._closed.items() if name in names}
        for path in paths:
            info = self._closed.get(path.name) or inspect_segment(path)
            if info is None and path.name.endswith(OPEN):  # closed since it was listed
                info = inspect_segment(final_name(path))
            if info is None:
                continue
            if info.path.name.endswith(CLOSED):
                self._closed[info.path.name] = info
            infos.append(info)
        return infos

    def _remove(self, hidden: Iterable[Path]) -> None:
        """Remove the pictures of hidden segments, then the segments: no visible record names a missing file."""
        for path in hidden:
            with contextlib.suppress(OSError):
                names = pictures(path)
                artefacts.remove([self.root / name for name in names])
                for folder in {(self.root / name).parent for name in names}:
                    _remove_if_empty(folder)
                path.unlink(missing_ok=True)


def inspect_segment(path: Path) -> SegmentInfo | None:
    """Read a segment's size; None if it no longer exists or is not a regular file."""
    try:
        file = open_regular(path)
        if file is None:
            return None
        with file:
            state = os.fstat(file.fileno())
            total, records, line = state.st_size, 0, b""
            for _, line in forwards(file, Scan()):
                total += sum(int(size) for size in _PICTURE_BYTES.findall(line))
                records += 1
    except OSError:
        return None
    last = _TS.search(line)
    try:
        newest = seconds(last[1].decode()) if last else state.st_mtime
    except (ValueError, OverflowError):  # not a time of the calendar
        newest = state.st_mtime
    return SegmentInfo(path, total, records, newest)


def pictures(path: Path) -> set[str]:
    """Return the pictures that a segment's records name, relative to the folder.

    Raises:
        OSError: it cannot be read; FileNotFoundError if it does not exist.
    """
    file = open_regular(path)
    if file is None:
        return set()
    with file:
        return {name.decode() for _, line in forwards(file, Scan()) for name in _PICTURE_NAME.findall(line)}


def remove_unreferenced(root: Path) -> int:
    """Remove pictures that no record names, left behind by processes that died before they wrote the record.

    Runs at most once per hour over all processes, and skips pictures younger than an hour, whose record may still be
    written.

    Returns:
        how many were removed.
    """
    with locks.exclusive(root / _SWEEP_MARK) as handle:
        if handle is None:
            return 0
        state = os.fstat(handle)
        if state.st_size and time.time() - state.st_mtime < GRACE:
            return 0
        os.ftruncate(handle, 0)
        os.write(handle, b"1\n")
        try:
            references = _referenced(root)
            left_behind = [path for path in _files(root) if _is_left_behind(path, root, references)]
            # a clock that jumped ahead makes a picture old whose record was written since
            references = _referenced(root) if left_behind else references
        except OSError:
            return 0  # a segment that cannot be read may reference any picture
        removed = 0
        for path in left_behind:
            if path.relative_to(root).as_posix() not in references:
                with contextlib.suppress(OSError):
                    path.unlink()
                    _remove_if_empty(path.parent)
                    removed += 1
        return removed


def _is_left_behind(path: Path, root: Path, references: _Names) -> bool:
    """Return whether a picture is more than an hour old and no record names it."""
    name = path.relative_to(root).as_posix()
    is_picture = path.name.endswith(artefacts.PART) or re.fullmatch(artefacts.NAME, name)
    try:
        return bool(is_picture) and name not in references and time.time() - path.stat().st_mtime > GRACE
    except OSError:  # removed since it was listed
        return False


class _Names:
    """A set of names in 8 bytes each; it may contain another name by a collision of 64 bits."""

    def __init__(self, names: Iterable[str]) -> None:
        hashes = np.frombuffer(array("q", map(hash, names)), np.int64)
        self._hashes = np.unique(hashes)

    def __contains__(self, name: str) -> bool:
        place = int(np.searchsorted(self._hashes, hash(name)))
        return place < len(self._hashes) and int(self._hashes[place]) == hash(name)


def _referenced(root: Path) -> _Names:
    """Return every picture that a record names. The second pass sees segments that were closed during the first."""

    def names() -> Iterator[str]:
        for suffix in (OPEN, CLOSED):
            for path in segments(root, suffix):
                with contextlib.suppress(FileNotFoundError):
                    yield from pictures(path)

    return _Names(names())


def _files(root: Path) -> Iterator[Path]:
    """Yield the files of every hour, those of one hour at a time."""
    for day in _listed(root / artefacts.FOLDER):
        for hour in _listed(day):
            yield from _listed(hour)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # removed, or not a folder
        return []


def _remove_if_empty(folder: Path) -> None:
    """Remove an empty folder of an hour, and that of its day; a process about to write there creates them again."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
