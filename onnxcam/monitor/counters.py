"""A monitor's counts in a file next to its records, so that readers also know what was not explained.

DIR/stats/<host>-<pid>-<token>.json     one per monitor and process, replaced atomically, locked while that is alive
DIR/stats/ended.json                    the sums of the processes that have ended, whose own files are removed
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxcam.documents import DocumentError, parse_json
from onnxcam.errors import OutputError
from onnxcam.monitor import locks
from onnxcam.monitor.segments import open_regular

FOLDER, ENDED = "stats", "ended.json"
_LIMITED = ("rate", "budget", "queue", "bytes", "evicted")
_NESTED, _OTHERS = ("dropped", "failures"), ("pid", "processes", "damaged")  # by reason; not counts of rows
_LARGEST = 1 << 20  # bytes of a file
_NAME = re.compile("[a-z][a-z_]{0,40}")
_MERGED = "merged"  # in `ended.json`: the files of the latest merge, which may still be there after a crash
_LOCK = ".merging"
_PART = ".part"  # the suffix of a file that is not yet complete
_ABANDONED = 3600.0  # seconds after which such a file counts as left behind
_BATCH = 1000  # files in a merge
_READINGS = 5


class CountersFile:
    """The counts file of one monitor; a forked child writes its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pid = 0
        self._path = root
        self._handle: int | None = None  # holds the lock
        self._ended = False

    def write(self, counts: Mapping[str, Any]) -> None:
        """Replace the file; nothing is written before the first row was observed.

        The first time, the files of processes that have ended are merged into one.

        Raises:
            OutputError: it cannot be written; the old one is still there.
        """
        if self._pid != os.getpid():
            if not counts.get("seen"):
                return  # a parent that only forks has nothing to count
            self._pid, self._ended = os.getpid(), False
            # process ids repeat, in containers at every start
            name = f"{socket.gethostname()}-{self._pid}-{secrets.token_hex(4)}.json"
            self._path = self._root / FOLDER / name
            merge(self._root)
        if self._ended and not self._path.exists():
            return  # merged: it would count twice
        handle = _replace(self._path, json.dumps(dict(counts)).encode())
        # the new file is locked before the old one is unlocked
        self._unlock()
        self._handle = handle

    def close(self) -> None:
        """Release the file: from now on it is that of a process that has ended."""
        self._unlock()
        self._ended = True

    def forget(self) -> None:
        """Release the file in a forked child: it belongs to the parent, which keeps its lock."""
        self._unlock()
        self._pid = 0

    def __del__(self) -> None:
        self._unlock()

    def _unlock(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)


@dataclass
class Totals:
    """Counts summed over processes.

    Attributes:
        processes: their number.
        counts: the sums, by name; counts by reason are nested.
        damaged: files that are not counts and were skipped.
        merged: names of files that are in the sums of `ended.json`.
    """

    processes: int = 0
    counts: dict[str, Any] = field(default_factory=dict)
    damaged: int = 0
    merged: frozenset[str] = frozenset()

    def add(self, counts: Mapping[str, Any], processes: int = 1) -> None:
        """Add the counts of some processes."""
        self.processes += processes
        _add(self.counts, counts)


def total(root: Path) -> dict[str, Any]:
    """Return the summed counts of all monitors that wrote into a folder; `processes` is their number.

    Files that are not counts are skipped; `damaged` is their number if there are any.
    """
    totals = Totals()
    for _ in range(_READINGS):
        totals = _ended(root)
        before = totals.merged, totals.processes
        for path in _paths(root):
            if path.name not in totals.merged:
                _read_into(totals, path)
        after = _ended(root)
        if before == (after.merged, after.processes):
            break  # else files were merged while they were read
    result = {"processes": totals.processes, **totals.counts}
    return result | ({"damaged": totals.damaged} if totals.damaged else {})


def merge(root: Path) -> int:
    """Merge the files of processes that have ended into one; returns how many.

    Safe at any time and from any process; the sums are in place before a file is removed. On a system without locks no
    file is merged.
    """
    with locks.exclusive(root / FOLDER / _LOCK) as lock:
        if lock is None or not locks.AVAILABLE:
            return 0
        totals = _ended(root)
        for name in totals.merged:  # of a merge that was interrupted
            _remove(root / FOLDER / name)
        ended: list[tuple[Path, int]] = []
        try:
            for path in _paths(root):
                handle = _claim(path) if len(ended) < _BATCH else None
                if handle is not None:
                    ended.append((path, handle))
                    _read_into(totals, path)
            if ended:
                document = {"processes": totals.processes, "counts": totals.counts}
                document[_MERGED] = sorted(path.name for path, _ in ended)
                with contextlib.suppress(OutputError):
                    os.close(_replace(root / FOLDER / ENDED, json.dumps(document).encode()))
                    for path, _ in ended:
                        _remove(path)
        finally:
            for _, handle in ended:
                os.close(handle)
        for path in (root / FOLDER).glob(f".*{_PART}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        return len(ended)


def prune(root: Path, age: float) -> int:
    """Remove the counts files that no monitor has replaced for `age` seconds; returns how many.

    The sums of ended processes go when none was added for as long.
    """
    removed = 0
    for path in [*_paths(root), root / FOLDER / ENDED]:
        try:
            if time.time() - path.stat().st_mtime > age:
                path.unlink()
                removed += 1
        except OSError:
            continue
    return removed


def limited(counts: Mapping[str, Any]) -> float:
    """Return the share of rows worth explaining that limits dropped: estimates from the records lack them."""
    dropped = counts.get("dropped", {})
    lost = sum(int(dropped.get(reason, 0)) for reason in _LIMITED)
    explained = int(counts.get("explained", 0))
    return lost / (lost + explained) if lost else 0.0


def notes(counts: Mapping[str, Any]) -> list[str]:
    """Return sentences: of limits that make estimates of the traffic unreliable, of records lost, of damaged files."""
    sentences = []
    share = limited(counts)
    if share > 0.05:
        sentences.append(
            f"rate, budget or queue dropped {100 * share:.0f} % of the rows worth explaining, most of them uncertain: "
            "the low-confidence rate is underestimated; raise `rate`, or lower `sample` and `baseline_sample`"
        )
    if counts.get("lost"):
        sentences.append(
            f"{counts['lost']:,} records are gone that were written: something else than retention removed, moved or "
            "truncated their files"
        )
    if counts.get("damaged"):
        sentences.append(f"{counts['damaged']} files of counters are damaged and were skipped")
    return sentences


def _paths(root: Path) -> list[Path]:
    """Return the counts files of processes."""
    try:
        names = sorted(entry.name for entry in os.scandir(root / FOLDER))
    except OSError:
        return []
    return [root / FOLDER / name for name in names if name.endswith(".json") and name != ENDED]


def _ended(root: Path) -> Totals:
    """Read the sums of the processes that have ended."""
    totals = Totals()
    with contextlib.suppress(DocumentError):
        document = _document(root / FOLDER / ENDED)
        if document is not None:
            processes, counts, merged = document.get("processes"), document.get("counts"), document.get(_MERGED)
            if type(processes) is int and isinstance(counts, dict) and isinstance(merged, list):
                totals.add(_counts(counts), max(0, processes))
                totals.merged = frozenset(name for name in merged if isinstance(name, str) and "/" not in name)
    return totals


def _read_into(totals: Totals, path: Path) -> None:
    try:
        document = _document(path)
    except DocumentError:
        totals.damaged += 1
        return
    if document is not None:
        totals.add(_counts(document))


def _document(path: Path) -> dict[str, Any] | None:
    """Read an object from a file; None for one that was removed.

    Raises:
        DocumentError: it is something else.
    """
    try:
        file = open_regular(path)
        if file is None:
            raise DocumentError("is not a regular file")
        with file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DocumentError(f"cannot be read ({error.strerror})") from error
    document = parse_json(data, memory=8 * _LARGEST) if len(data) <= _LARGEST else None
    if not isinstance(document, dict):
        raise DocumentError("is not an object")
    return document


def _counts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of a document, without what only looks like some."""

    def valid(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in entries.items()
            if _NAME.fullmatch(name) and type(value) in (int, float) and value >= 0
        }

    counts = {name: value for name, value in valid(document).items() if name not in (*_NESTED, *_OTHERS)}
    return counts | {name: valid(document[name]) for name in _NESTED if isinstance(document.get(name), dict)}


def _add(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    """Add counts to the total, level by level."""
    for name, value in counts.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def _replace(path: Path, data: bytes) -> int:
    """Write a file atomically, locked before it has its name; returns its open handle.

    Raises:
        OutputError: it cannot be written; the old one is still there.
    """
    part = path.parent / f".{secrets.token_hex(8)}{_PART}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(handle, left) :]
            if not locks.AVAILABLE:  # Windows renames no open file
                os.close(handle)
                handle = os.open(os.devnull, os.O_RDONLY)
            locks.lock(handle)
            part.replace(path)
        except BaseException:
            os.close(handle)
            raise
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"{str(path)!r} could not be written ({error.strerror or error})") from error
        raise
    return handle


def _claim(path: Path) -> int | None:
    """Open and lock a file whose writer has ended; None if it lives, or has replaced the file meanwhile."""
    try:
        file = open_regular(path)
    except OSError:
        return None
    if file is None:
        return None
    with file:
        try:
            if locks.lock(file.fileno()) and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return os.dup(file.fileno())  # with the lock
        except OSError:
            pass
    return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
