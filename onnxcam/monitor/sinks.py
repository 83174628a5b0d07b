"""Where records go: a folder, standard output, a logger, a function, or several of these."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable
from urllib.parse import unquote, urlsplit

from onnxcam.errors import OutputError, SettingError
from onnxcam.monitor.forks import after_fork
from onnxcam.monitor.record import encode
from onnxcam.monitor.redaction import allowed

Record = dict[str, Any]
Files = Mapping[str, bytes]


@runtime_checkable
class Sink(Protocol):
    """What takes explanations."""

    def write(self, record: Record, files: Files) -> None:
        """Make one explanation durable: pictures first, then the record naming them.

        Arguments:
            record: fills in its `files`.
            files: kind (`heatmap`, `overlay`, `input`) to PNG bytes; those that `redact` forbids are not kept.

        Returns when it is durable (acknowledged).

        Raises:
            OutputError: it is not; nothing half-written is named.
        """

    def close(self, timeout: float) -> None:
        """Give back what is held, in about `timeout` seconds."""


def open_sink(spec: Any, **options: Any) -> Sink:
    """A sink from what a user names.

    Arguments:
        spec: a folder, as a path or `file:///var/log/cam`; `stdout:`; `logging:NAME`; `prometheus:`; a URL that fsspec
            knows (`s3://bucket/cam`, with `spool=` a local folder); a function of (record, files); a `Sink`; or a list
            of these, written to in order.
        options: those of `onnxcam.monitor.folder.Folder`, for folders and URLs alone.

    Raises:
        SettingError: not a sink, or options that it does not take. DependencyError: it needs a package that is missing.
        OutputError: the folder cannot be made.
    """
    if isinstance(spec, (list, tuple)):
        if not spec:
            raise SettingError("sink=[]; expected at least one folder, URL, function or Sink")
        folders = [_takes_options(one) for one in spec]
        return _Several([open_sink(one, **(options if own else {})) for one, own in zip(spec, folders, strict=True)])
    if _takes_options(spec):
        return _folder(os.fspath(spec), options)
    if options:
        raise SettingError(f"{', '.join(sorted(options))}: options of a folder, not of sink={spec!r}")
    if isinstance(spec, str):
        scheme, _, rest = spec.partition(":")
        if scheme == "stdout":
            return _Stdout()
        if scheme == "prometheus":
            from onnxcam.monitor.metrics import RecordMetrics

            return _Guarded(RecordMetrics())
        return _Logger(rest or "onnxcam.monitor")
    if isinstance(spec, _Guarded):
        return spec
    if callable(getattr(spec, "write", None)) and callable(getattr(spec, "close", None)):
        return _Guarded(cast(Sink, spec))
    if callable(spec):
        return _Function(spec)
    raise SettingError(
        f"sink is a {type(spec).__name__}; expected a folder, 'stdout:', 'logging:NAME', 'prometheus:', a URL, a "
        "function of (record, files), an object with write and close, or a list of these"
    )


_OTHERS = ("stdout", "logging", "prometheus")


def _takes_options(spec: Any) -> bool:
    """Is it a folder or a URL?"""
    if isinstance(spec, os.PathLike):
        return True
    return isinstance(spec, str) and spec.partition(":")[0] not in _OTHERS


def _folder(spec: str, options: dict[str, Any]) -> Sink:
    from onnxcam.monitor.folder import Folder

    if not spec.strip():
        raise SettingError("sink=''; expected a folder, 'stdout:', 'logging:NAME', or a URL")
    scheme = urlsplit(spec).scheme if "://" in spec or spec.startswith("file:") else ""
    if scheme in ("", "file"):
        path = _local(spec) if scheme else spec
    else:
        path = options.pop("spool", None)
        if path is None:
            raise SettingError(
                f"sink={spec!r} takes closed segments only: name the local folder where they are written first, "
                "spool='/var/spool/onnxcam'"
            )
        options["upload"] = spec
    try:
        return _Guarded(Folder(path, **options))
    except TypeError as error:
        raise SettingError(f"sink={spec!r}: {str(error).partition('() ')[2] or error}") from error


def _local(url: str) -> str:
    """The path of a `file:` URL."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SettingError(f"sink={url!r} names the host {parts.netloc!r}; a local folder has three slashes: file:///…")
    path = unquote(parts.path)
    return path[1:] if os.name == "nt" and path[2:3] == ":" else path


class _Guarded:
    """Lets through the pictures that a record's `redact` allows, and makes every failure an `OutputError`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def write(self, record: Record, files: Files) -> None:
        """As `Sink.write`."""
        try:
            self._write(record, allowed(record, files))
        except OutputError:
            raise
        except Exception as error:
            raise OutputError(f"the sink failed: {type(error).__name__}; its own log says more") from error

    def _write(self, record: Record, files: Files) -> None:
        self.inner.write(record, files)

    def close(self, timeout: float) -> None:
        """As `Sink.close`."""
        self.inner.close(timeout)

    def tick(self) -> None:
        """Called now and then while nothing is to be written: time to close what is old enough."""
        if hasattr(self.inner, "tick"):
            self.inner.tick()

    def note(self, counts: Mapping[str, Any]) -> None:
        """The monitor's counts, every few seconds and at its end; a folder keeps them."""
        if hasattr(self.inner, "note"):
            self.inner.note(counts)


class _Function(_Guarded):
    def _write(self, record: Record, files: Files) -> None:
        self.inner(record, files)

    def close(self, timeout: float) -> None:
        """Nothing is held."""


class _Logger(_Guarded):
    """One line of JSON for each record, at level INFO."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    def _write(self, record: Record, files: Files) -> None:
        self.inner.info("%s", encode(record).decode().rstrip("\n"))

    def close(self, timeout: float) -> None:
        """Nothing is held."""


class _Stdout(_Guarded):
    """One line of JSON for each record on standard output, in single writes where it has a file."""

    def __init__(self) -> None:
        super().__init__(None)
        self._lock = threading.Lock()
        after_fork(self, _Stdout._forked)

    def _forked(self) -> None:
        self._lock = threading.Lock()

    def _write(self, record: Record, files: Files) -> None:
        line = encode(record)
        with self._lock:
            try:
                sys.stdout.flush()
                handle = sys.stdout.fileno()
            except (AttributeError, ValueError, OSError):  # replaced by something without a file
                sys.stdout.write(line.decode())
                sys.stdout.flush()
                return
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(handle, left) :]
            except OSError as error:
                raise OutputError(
                    f"standard output cannot be written ({error.strerror}); is its reader gone?"
                ) from error

    def close(self, timeout: float) -> None:
        """Nothing is held."""


class _Several(_Guarded):
    """Writes to all, whatever becomes of the others; fails where one fails."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        super().__init__(None)
        self.sinks = list(sinks)

    def _write(self, record: Record, files: Files) -> None:
        failed: list[OutputError] = []
        for sink in self.sinks:
            try:
                sink.write(record, files)
            except OutputError as error:
                failed.append(error)
        if failed:
            raise OutputError("; ".join(map(str, failed))) from failed[0]

    def close(self, timeout: float) -> None:
        """Close them one after the other, all within the time."""
        end = time.monotonic() + timeout
        for sink in self.sinks:
            with contextlib.suppress(Exception):
                sink.close(max(0.0, end - time.monotonic()))

    def tick(self) -> None:
        """As `_Guarded.tick`."""
        for sink in self.sinks:
            if hasattr(sink, "tick"):
                sink.tick()

    def note(self, counts: Mapping[str, Any]) -> None:
        """As `_Guarded.note`."""
        for sink in self.sinks:
            if hasattr(sink, "note"):
                sink.note(counts)
