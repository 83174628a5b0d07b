"""The local sink: records in segments, pictures beside them, both within bounds."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxcam.errors import OutputError, SettingError
from onnxcam.monitor import artefacts
from onnxcam.monitor.counters import CountersFile
from onnxcam.monitor.forks import after_fork
from onnxcam.monitor.record import encode
from onnxcam.monitor.retention import GRACE, Limits, Retention, remove_unreferenced
from onnxcam.monitor.segments import TornError, Writer, recover
from onnxcam.monitor.units import parse_bytes, parse_seconds

_SEGMENT = 64 << 20
_LINE = 4096  # a record without its pictures is smaller


class Folder:
    """Keeps explanations in a folder, for any number of processes and threads at once.

    Arguments:
        root: the folder; made with the first record.
        segment_bytes: a file of records is closed before it and the pictures it names grow over this; by default
            64 MiB, or an eighth of `retain_bytes` where that is less.
        segment_age: it is closed when it was begun so long ago.
        retain_bytes, retain_age, retain_records: what is kept, of all processes together; the oldest segments go first.
            None is no limit.
        min_free: a record is refused, and counted by the monitor, where the disk has less space than this left.
        sync: every record and picture survives a power cut; without it, the death of the process only.
        upload: an fsspec URL that closed segments and their pictures are copied to.
        upload_options: keywords for fsspec.
        clock: seconds since 1970.

    Raises:
        SettingError: sizes or durations that cannot be, or a segment larger than what is kept.
        DependencyError: `upload` without fsspec.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        segment_bytes: int | str | None = None,
        segment_age: float | str = "1h",
        retain_bytes: int | str | None = "2GiB",
        retain_age: float | str | None = "30d",
        retain_records: int | None = None,
        min_free: int | str = "256MiB",
        sync: bool = True,
        upload: str | None = None,
        upload_options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = Path(root).absolute()
        bound = None if retain_bytes is None else parse_bytes(retain_bytes, "retain_bytes")
        if segment_bytes is None:
            self._segment = _SEGMENT if bound is None else max(1, min(_SEGMENT, bound // 8))
        else:
            self._segment = parse_bytes(segment_bytes, "segment_bytes")
        if bound is not None and self._segment * 2 > bound:
            raise SettingError(
                f"segment_bytes={self._segment:,} and retain_bytes={bound:,}; at least two segments have to fit: whole "
                "segments are what is removed"
            )
        age = None if retain_age is None else parse_seconds(retain_age, "retain_age")
        if retain_records is not None and retain_records < 1:
            raise SettingError(f"retain_records={retain_records!r}; expected at least 1, or None for no limit")
        self._min_free = parse_bytes(min_free, "min_free")
        self._sync, self._clock = sync, clock
        self._keeper = Retention(self.root, Limits(bound, age, retain_records))
        self._writer = Writer(
            self.root,
            seconds=parse_seconds(segment_age, "segment_age"),
            sync=sync,
            clock=clock,
            closed=self._when_closed,
        )
        self._counters = CountersFile(self.root)
        self._uploader: Any = None
        if upload is not None:
            from onnxcam.monitor.upload import Uploader

            self._uploader = Uploader(self.root, upload, upload_options)
        self._lock = threading.Lock()
        self._ready = False
        self._room = 0  # bytes that may still be written before the limits are looked at again
        after_fork(self, Folder._forked)

    def write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        """As `Sink.write`."""
        with self._lock:
            try:
                self._write(record, files)
            except OSError as error:
                raise OutputError(
                    f"{str(self.root)!r} cannot be written: {error.strerror or error}; see that the folder is writable "
                    "and the disk has space"
                ) from error

    def tick(self) -> None:
        """Close the segment if it is old enough. To be called now and then when there is nothing to write."""
        # a writer at work closes it itself
        if self._lock.acquire(blocking=False):
            try:
                self._writer.tick()
            finally:
                self._lock.release()

    def note(self, counts: Mapping[str, Any]) -> None:
        """Keep a monitor's counts beside its records."""
        self._counters.write(counts)

    def close(self, timeout: float) -> None:
        """Close the segment, and upload what is closed for as long as there is time."""
        end = time.monotonic() + timeout
        if self._lock.acquire(timeout=max(0.0, timeout)):
            try:
                self._writer.close()
            finally:
                self._lock.release()
        if self._uploader is not None:
            self._uploader.close(max(0.0, end - time.monotonic()))

    def _write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        size = sum(map(len, files.values())) + _LINE
        if not self._ready:
            self.root.mkdir(parents=True, exist_ok=True)
            recover(self.root)
            remove_unreferenced(self.root)
            self._ready = True
        free = shutil.disk_usage(self.root).free
        if free < self._min_free + size:
            raise OutputError(
                f"the disk of {str(self.root)!r} has {free:,} bytes left, and min_free keeps {self._min_free:,}; free "
                "some space, or lower retain_bytes or min_free"
            )
        self._writer.tick()
        if self._writer.weight and self._writer.weight + size > self._segment:
            self._writer.close()
        if self._writer.path is None:
            self._writer.begin()  # first: others that look meanwhile count this process among those that write
            self._room = 0
        if size > self._room:
            self._clear(size)
        began = time.monotonic()
        record["files"] = artefacts.write(self.root, record, files, self._sync)
        try:
            line = encode(record)
            if time.monotonic() - began > GRACE / 2:
                raise OutputError("the disk took so long that the pictures may be gone again; is it stalled?")
        except BaseException:
            self._drop(record)
            raise
        weight = len(line) + sum(entry["bytes"] for entry in record["files"])
        try:
            self._writer.append(line, weight)
        except TornError:
            raise  # the line may be there: what it names has to stay
        except OutputError:
            self._drop(record)
            raise
        self._room -= weight

    def _clear(self, size: int) -> None:
        """Make room for a segment, shared with the other processes that write now: so the bound holds for all.

        Of those that write at a time, the k-th to look saw k of them at least, and took no more than a k-th of a
        segment: together they may write that sum, which for many is more than the two segments between which it is to
        stay, so that more has to go before.
        """

        def needed(writers: int) -> int:
            return max(round(self._segment * max(1.0, sum(1 / k for k in range(2, writers + 1)))), size)

        self._keeper.clear(self._clock(), needed)
        self._room = max(self._segment // max(1, self._keeper.writers), size)

    def _drop(self, record: dict[str, Any]) -> None:
        artefacts.remove([self.root / entry["name"] for entry in record["files"]])
        record["files"] = []

    def _when_closed(self, path: Path) -> None:
        recover(self.root)
        remove_unreferenced(self.root)
        if self._uploader is not None:
            self._uploader.wake()

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self._writer.forget()
        self._room = 0
        self._ready = False
