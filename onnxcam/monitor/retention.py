"""How much is kept: the oldest segments go, with the pictures they name, before the bound is passed.

Several processes may write and clear one folder at once: only closed segments are removed, the oldest first, so that
whoever comes second finds the work done.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from onnxcam.monitor import artefacts, locks
from onnxcam.monitor.record import seconds
from onnxcam.monitor.segments import CLOSED, OPEN, final_name, segments

REMOVING = CLOSED + ".gone"  # a segment whose pictures are being removed: no reader looks at it any more
_PICTURE_BYTES = re.compile(rb'"bytes":([0-9]+)')
_PICTURE_NAME = re.compile(b'"name":"(' + artefacts.NAME.encode() + b')"')
_TS = re.compile(rb'"ts":"([^"]+)"')
_SWEPT = ".swept"  # its time of change says when unnamed pictures were last looked for
GRACE = 3600.0  # seconds after which a picture that no record names is taken for a dead process's


@dataclass(frozen=True)
class Limits:
    """What a folder may hold; None is no limit.

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
    """What one segment stands for."""

    path: Path
    bytes: int
    records: int
    newest: float


@dataclass
class Retention:
    """Holds one folder within its limits.

    Attributes:
        root: the folder of `records/` and `files/`.
        limits: what it may hold.
        bytes, records, writers: what it did hold after the last `clear`, and how many segments were open then.
    """

    root: Path
    limits: Limits
    bytes: int = 0
    records: int = 0
    writers: int = 0
    _known: dict[str, SegmentInfo] = field(default_factory=dict, repr=False)

    def clear(self, now: float, needed: Callable[[int], int] = lambda writers: 0) -> list[Path]:
        """Remove the oldest closed segments until what is held fits the limits, with more to come.

        Arguments:
            now: seconds since 1970.
            needed: how many bytes more, given the number of segments that are open.

        Returns:
            the segments removed.
        """
        held = self._look()
        # after it: what another process took out of sight before is really gone then
        self._finish(segments(self.root, REMOVING))
        final = [one for one in held if one.path.name.endswith(CLOSED)]
        self.bytes, self.records = sum(one.bytes for one in held), sum(one.records for one in held)
        self.writers = len(held) - len(final)
        room = needed(self.writers)
        removed = []
        for one in final:
            if not self._over(one, now, room):
                # ages need not rise with the names: a segment of a slow process may be begun early and end late
                continue
            self.bytes -= one.bytes
            self.records -= one.records
            self._known.pop(one.path.name, None)
            gone = one.path.with_name(one.path.name.removesuffix(CLOSED) + REMOVING)
            with contextlib.suppress(OSError):
                one.path.replace(gone)
                removed.append(one.path)
            self._finish([gone])
        return removed

    def _over(self, one: SegmentInfo, now: float, room: int) -> bool:
        bound = self.limits
        return (
            (bound.bytes is not None and self.bytes + room > bound.bytes)
            or (bound.records is not None and self.records > bound.records)
            or (bound.age is not None and now - one.newest > bound.age)
        )

    def _look(self) -> list[SegmentInfo]:
        found = []
        for path in segments(self.root):
            one = self._known.get(path.name) or inspect_segment(path)
            if one is None and path.name.endswith(OPEN):  # closed since it was listed
                one = inspect_segment(final_name(path))
            if one is None:
                continue
            if one.path.name.endswith(CLOSED):
                self._known[one.path.name] = one
            found.append(one)
        return found

    def _finish(self, gone: Iterable[Path]) -> None:
        """Remove the pictures of segments taken out of sight, then the segments: no record names a missing file."""
        for path in gone:
            with contextlib.suppress(OSError):
                names = pictures(path.read_bytes())
                artefacts.remove([self.root / name for name in names])
                for folder in {(self.root / name).parent for name in names}:
                    _prune(folder)
                path.unlink(missing_ok=True)


def inspect_segment(path: Path) -> SegmentInfo | None:
    """What a segment stands for, from its bytes; None where it is gone."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    whole = data[: data.rfind(b"\n") + 1]
    last = _TS.search(whole, whole.rfind(b"\n", 0, -1) + 1)
    try:
        newest = seconds(last[1].decode()) if last else path.stat().st_mtime
    except (OSError, ValueError):
        newest = time.time()
    total = len(data) + sum(int(size) for size in _PICTURE_BYTES.findall(whole))
    return SegmentInfo(path, total, whole.count(b"\n"), newest)


def pictures(data: bytes) -> set[str]:
    """Names of the pictures that a segment's records name, relative to the folder."""
    return {name.decode() for name in _PICTURE_NAME.findall(data)}


def remove_unreferenced(root: Path) -> int:
    """Remove pictures that no record names: what processes left behind that died before they wrote the record.

    At most once an hour over all processes, and nothing younger than an hour: its record may be on its way.

    Returns:
        how many were removed.
    """
    with locks.turn(root / _SWEPT) as handle:
        if handle is None:
            return 0
        state = os.fstat(handle)
        if state.st_size and time.time() - state.st_mtime < GRACE:
            return 0
        os.ftruncate(handle, 0)
        os.write(handle, b"1\n")
        try:
            named = _named(root)
        except OSError:
            return 0  # a segment that cannot be read may name any of them
        removed = 0
        for path in sorted((root / artefacts.FOLDER).glob("*/*/*")):
            name = path.relative_to(root).as_posix()
            ours = path.name.endswith(artefacts.PART) or re.fullmatch(artefacts.NAME, name)
            with contextlib.suppress(OSError):
                if ours and name not in named and time.time() - path.stat().st_mtime > GRACE:
                    path.unlink()
                    _prune(path.parent)
                    removed += 1
        return removed


def _named(root: Path) -> set[str]:
    """Every picture that a record names. A segment closed after the first round is met in the second."""
    found: set[str] = set()
    for suffix in (OPEN, CLOSED):
        for path in segments(root, suffix):
            with contextlib.suppress(FileNotFoundError):
                found |= pictures(path.read_bytes())
    return found


def _prune(folder: Path) -> None:
    """Remove an hour's folder, and its day's, once they are empty; who is about to write there makes them again."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
