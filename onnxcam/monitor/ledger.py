"""What a process wrote into segments that are closed, to count what others than retention removed of it.

DIR/.retired     names of the segments that retention removed, the newest last
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

FOLDER, RETIRED = "records", ".retired"
_LARGEST = 1 << 17  # bytes of names, of some thousand segments
_CHUNK = 1 << 20


class Ledger:
    """The closed segments of one process that are in the folder."""

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / FOLDER
        self._segments: dict[str, tuple[int, int]] = {}  # records and bytes by name

    def add(self, name: str, records: int, size: int) -> None:
        """Enter a segment of this size by its final name, which it may get later."""
        self._segments[name] = (records, size)

    def review(self) -> int:
        """Cross out the segments that are gone; returns how many of their records retention did not remove.

        Records that others truncated count too.
        """
        lost = 0
        retired: set[str] | None = None
        for name, (records, size) in list(self._segments.items()):
            path = next((path for path in self._paths(name) if path.exists()), None)
            if path is None:
                del self._segments[name]
                retired = read_retired(self._root) if retired is None else retired
                lost += 0 if name in retired else records
                continue
            try:
                present = path.stat().st_size
            except OSError:
                continue  # being closed or removed: the next time will tell
            if present < size:
                left = min(records, count_records_of(path))
                lost += records - left
                self._segments[name] = (left, present)
        return lost

    def _paths(self, name: str) -> tuple[Path, Path, Path]:
        closed = self._folder / name
        # looked for once more: it may be closed between the first two looks
        return closed, self._folder / f"{name}.open", closed


def retire(root: Path, name: str) -> None:
    """Note that retention removes a segment, before it does; no effect where the note cannot be written."""
    with contextlib.suppress(OSError):
        handle = os.open(root / RETIRED, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.fstat(handle).st_size > _LARGEST:
                # another process may lose its latest note; its segment then counts as lost, which is on the safe side
                os.lseek(handle, -_LARGEST // 2, os.SEEK_END)
                newest = os.read(handle, _LARGEST).partition(b"\n")[2]
                os.ftruncate(handle, 0)
                os.write(handle, newest)
            os.write(handle, name.encode() + b"\n")
        finally:
            os.close(handle)


def read_retired(root: Path) -> set[str]:
    """Return the names of the segments that retention removed lately."""
    try:
        handle = os.open(root / RETIRED, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return set()
    try:
        return set(os.read(handle, 2 * _LARGEST).decode(errors="replace").split("\n"))
    except OSError:
        return set()
    finally:
        os.close(handle)


def count_records(handle: int) -> int:
    """Count the complete lines of an open segment that are records, whatever others left between them."""
    os.lseek(handle, 0, os.SEEK_SET)
    count, rest = 0, b""
    while data := os.read(handle, _CHUNK):
        lines = (rest + data).split(b"\n")
        rest = lines.pop()[-_CHUNK:]
        count += sum(map(_is_record, lines))
    return count


def _is_record(line: bytes) -> bool:
    """Return whether a line is a whole object with an id: one that was torn and written on to is not."""
    try:
        return line.startswith(b"{") and "id" in json.loads(line)
    except (ValueError, RecursionError):
        return False


def count_records_of(path: Path) -> int:
    """Count the records of a segment by its name; 0 if it does not exist."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return 0
    try:
        return count_records(handle)
    finally:
        os.close(handle)
