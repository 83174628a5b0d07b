"""The folder sink: records in segments and pictures next to them, within limits on size, age and number."""

from __future__ import annotations

import contextlib
import errno
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
from onnxcam.monitor.timestamps import CautiousClock
from onnxcam.monitor.units import parse_bytes, parse_seconds

_SEGMENT = 64 << 20
_LINE = 4096  # a record's line is smaller
_ATTEMPTS = 4  # to write a record while others remove the folder


class Folder:
    """Stores explanations in a folder, for any number of processes and threads at once.

    Arguments:
        root: the folder; created with the first record.
        segment_bytes: a segment is closed before it and the pictures it names grow larger than this; by default 64 MiB,
            or an eighth of `retain_bytes` if that is less.
        segment_age: a segment is closed at this age.
        retain_bytes, retain_age, retain_records: limits on what is retained, over all processes; the oldest segments
            are removed first. None means no limit. A clock that jumps ahead makes nothing older for a day.
        min_free: a record is refused, and counted by the monitor, if less disk space than this would be left.
        sync: every record and picture survives a power cut; without it, only a crash of the process.
        upload: an fsspec URL that closed segments and their pictures are copied to.
        upload_options: keywords for fsspec.
        clock: seconds since 1970.

    Raises:
        SettingError: an invalid size or duration, or a segment larger than half of what is retained.
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
        self._sync, self._clock = sync, CautiousClock(clock)
        self._retention = Retention(self.root, Limits(bound, age, retain_records))
        self._writer = Writer(
            self.root,
            seconds=parse_seconds(segment_age, "segment_age"),
            sync=sync,
            clock=clock,
            closed=self._segment_closed,
        )
        self._counters = CountersFile(self.root)
        self._uploader: Any = None
        if upload is not None:
            from onnxcam.monitor.upload import Uploader

            self._uploader = Uploader(self.root, upload, upload_options)
        self._lock = threading.Lock()
        self._ready = False
        self._counts: Mapping[str, Any] | None = None  # as they were last stored
        self._room = 0  # bytes that may still be written before the limits are checked again
        after_fork(self, Folder._forked)

    @property
    def lost(self) -> int:
        """The number of records written by this process that others than retention have removed or moved away since."""
        return self._writer.lost

    def write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        """Write one explanation, as `Sink.write` does."""
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
        # a thread that is writing closes the segment itself
        if self._lock.acquire(blocking=False):
            try:
                if not self._writer.check():
                    self._writer.tick()
            finally:
                self._lock.release()

    def note(self, counts: Mapping[str, Any]) -> None:
        """Store a monitor's counts next to its records, with the number of records lost."""
        self._counts = counts
        self._write_counts(counts)

    def close(self, timeout: float) -> None:
        """Close the segment, and upload closed segments until the timeout."""
        end = time.monotonic() + timeout
        if self._lock.acquire(timeout=max(0.0, timeout)):
            try:
                self._writer.close()
                if self._counts is not None:
                    with contextlib.suppress(OSError, OutputError):
                        self._write_counts(self._counts)  # with what was lost to the end
                self._counters.close()
            finally:
                self._lock.release()
        if self._uploader is not None:
            self._uploader.close(max(0.0, end - time.monotonic()))

    def _write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                self._write_once(record, files)
                return
            except TornError:
                raise  # the line may be in the file: the pictures it names have to stay
            except (OSError, OutputError) as error:
                # others removed the folder, or a part of it, in the middle
                cause = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(cause, (FileNotFoundError, FileExistsError)) or attempt == _ATTEMPTS - 1:
                    raise
                self._ready = False

    def _write_once(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        size = sum(map(len, files.values())) + _LINE
        if self._writer.check():
            self._ready = False
        if not self._ready:
            self.root.mkdir(parents=True, exist_ok=True)
            recover(self.root)
            remove_unreferenced(self.root)
            if self._counts is not None:
                with contextlib.suppress(OutputError):
                    self._write_counts(self._counts)
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
            self._writer.begin()  # first, so that other processes count this one as a writer when they make room
            self._room = 0
        if size > self._room:
            self._make_room(size)
        start = time.monotonic()
        record["files"] = artefacts.write(self.root, record, files, self._sync)
        try:
            line = encode(record)
            if time.monotonic() - start > GRACE / 2:
                raise OutputError("the disk took so long that the pictures may have been removed again; is it stalled?")
            if self._writer.check() or not all((self.root / entry["name"]).exists() for entry in record["files"]):
                raise FileNotFoundError(errno.ENOENT, "others remove what is written there", str(self.root))
        except BaseException:
            self._remove_pictures(record)
            raise
        weight = len(line) + sum(entry["bytes"] for entry in record["files"])
        try:
            self._writer.append(line, weight)
        except TornError:
            raise
        except OutputError:
            self._remove_pictures(record)
            raise
        self._room -= weight

    def _write_counts(self, counts: Mapping[str, Any]) -> None:
        self._counters.write({**counts, "lost": self.lost})

    def _make_room(self, size: int) -> None:
        """Free a segment's worth of space, shared with the other processes that write now, so that the limit holds.

        Of several concurrent writers, the k-th one to get here counted at least k of them, and may write at most a
        k-th of a segment before it comes again. Together they may write the sum of these shares; where that is more
        than a segment, more has to be removed first.
        """

        def needed(writers: int) -> int:
            return max(round(self._segment * max(1.0, sum(1 / k for k in range(2, writers + 1)))), size)

        self._retention.enforce(self._clock(), needed)
        self._writer.review()
        self._room = max(self._segment // max(1, self._retention.writers), size)

    def _remove_pictures(self, record: dict[str, Any]) -> None:
        artefacts.remove([self.root / entry["name"] for entry in record["files"]])
        record["files"] = []

    def _segment_closed(self, path: Path) -> None:
        recover(self.root)
        remove_unreferenced(self.root)
        if self._uploader is not None:
            self._uploader.wake()

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self._writer.forget()
        self._counters.forget()
        self._room = 0
        self._counts = None
        self._ready = False
