"""Where records go: a folder, standard output, a logger, a function, or several of these."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable
from urllib.parse import unquote, urlsplit

from onnxcam.errors import OutputError, SettingError, escaped
from onnxcam.monitor.forks import after_fork
from onnxcam.monitor.record import encode
from onnxcam.monitor.redaction import allowed
from onnxcam.monitor.schema import Record

Files = Mapping[str, bytes]


@runtime_checkable
class Sink(Protocol):
    """A destination of explanations."""

    def write(self, record: Record, files: Files) -> None:
        """Make one explanation durable: the pictures first, then the record that names them.

        Arguments:
            record: the sink fills in its `files`.
            files: kind (`heatmap`, `overlay`, `input`) to PNG bytes, without those that `redact` forbids.

        Returns once the explanation is durable (acknowledged).

        Raises:
            OutputError: it is not durable; no record names an incomplete file.
        """

    def close(self, timeout: float) -> None:
        """Release all resources, in about `timeout` seconds."""


def open_sink(spec: Any, **options: Any) -> Sink:
    """Open the sink that a user specified.

    Arguments:
        spec: a folder, as a path or `file:///var/log/cam`; `stdout:`; `logging:NAME`; `prometheus:`; a URL that fsspec
            supports (`s3://bucket/cam`, with `spool=` a local folder); a function of (record, files); a `Sink`; or a
            list of these, written to in order.
        options: those of `onnxcam.monitor.folder.Folder`, for folders and URLs only.

    Raises:
        SettingError: not a sink, or unknown options. DependencyError: a package that the sink needs is missing.
        OutputError: the folder cannot be created.
    """
    if isinstance(spec, (list, tuple)):
        if not spec:
            raise SettingError("sink=[]; expected at least one folder, URL, function or Sink")
        return _MultiSink([open_sink(one, **(options if _takes_options(one) else {})) for one in spec])
    if _takes_options(spec):
        return _folder(os.fspath(spec), options)
    if options:
        raise SettingError(f"{', '.join(sorted(options))}: options of a folder, not of sink={spec!r}")
    if isinstance(spec, str):
        scheme, _, rest = spec.partition(":")
        if scheme == "stdout":
            return _StdoutSink()
        if scheme == "prometheus":
            from onnxcam.monitor.metrics import RecordMetrics

            return _RedactingSink(RecordMetrics())
        return _LoggerSink(rest or "onnxcam.monitor")
    if isinstance(spec, _RedactingSink):
        return spec
    if callable(getattr(spec, "write", None)) and callable(getattr(spec, "close", None)):
        return _RedactingSink(cast(Sink, spec))
    if callable(spec):
        return _FunctionSink(spec)
    raise SettingError(
        f"sink is a {type(spec).__name__}; expected a folder, 'stdout:', 'logging:NAME', 'prometheus:', a URL, a "
        "function of (record, files), an object with write and close, or a list of these"
    )


_SCHEMES_WITHOUT_OPTIONS = ("stdout", "logging", "prometheus")


def _takes_options(spec: Any) -> bool:
    """Return whether a sink is a folder or a URL."""
    if isinstance(spec, os.PathLike):
        return True
    return isinstance(spec, str) and spec.partition(":")[0] not in _SCHEMES_WITHOUT_OPTIONS


def _folder(spec: str, options: dict[str, Any]) -> Sink:
    from onnxcam.monitor.folder import Folder

    if not spec.strip():
        raise SettingError("sink=''; expected a folder, 'stdout:', 'logging:NAME', or a URL")
    scheme = urlsplit(spec).scheme if "://" in spec or spec.startswith("file:") else ""
    if scheme in ("", "file"):
        path = _local_path(spec) if scheme else spec
    else:
        path = options.pop("spool", None)
        if path is None:
            raise SettingError(
                f"sink={spec!r} only stores closed segments: name the local folder where they are written first, "
                "spool='/var/spool/onnxcam'"
            )
        options["upload"] = spec
    try:
        return _RedactingSink(Folder(path, **options))
    except TypeError as error:
        raise SettingError(f"sink={spec!r}: {str(error).partition('() ')[2] or error}") from error


def _local_path(url: str) -> str:
    """Return the path of a `file:` URL."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SettingError(f"sink={url!r} names the host {parts.netloc!r}; a local folder has three slashes: file:///…")
    path = unquote(parts.path)
    return path[1:] if os.name == "nt" and path[2:3] == ":" else path


class _RedactingSink:
    """Passes on only the pictures that a record's `redact` allows, and turns every failure into an `OutputError`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def write(self, record: Record, files: Files) -> None:
        """Write one explanation, as `Sink.write` does."""
        try:
            self._write(record, allowed(record, files))
        except OutputError:
            raise
        except Exception as error:
            raise OutputError(f"the sink failed: {type(error).__name__}; see its own log") from error

    def _write(self, record: Record, files: Files) -> None:
        self.inner.write(record, files)

    def close(self, timeout: float) -> None:
        """Close the sink, as `Sink.close` does."""
        self.inner.close(timeout)

    def tick(self) -> None:
        """Do maintenance while there is nothing to write, such as closing old segments."""
        if hasattr(self.inner, "tick"):
            self.inner.tick()

    @property
    def lost(self) -> int:
        """The number of records that the sink acknowledged and that others have removed since."""
        return int(getattr(self.inner, "lost", 0))

    def note(self, counts: Mapping[str, Any]) -> None:
        """Receive the monitor's counts, every few seconds and when it closes; a folder stores them."""
        if hasattr(self.inner, "note"):
            self.inner.note(counts)


class _FunctionSink(_RedactingSink):
    def _write(self, record: Record, files: Files) -> None:
        self.inner(record, files)

    def close(self, timeout: float) -> None:
        """Do nothing: there is nothing to release."""


class _LoggerSink(_RedactingSink):
    """Logs one line of JSON per record, at level INFO."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    def _write(self, record: Record, files: Files) -> None:
        self.inner.info("%s", escaped(encode(record).decode().rstrip("\n")))

    def close(self, timeout: float) -> None:
        """Do nothing: there is nothing to release."""


class _StdoutSink(_RedactingSink):
    """Prints one line of JSON per record to standard output, in single writes if that is a file."""

    def __init__(self) -> None:
        super().__init__(None)
        self._lock = threading.RLock()  # a signal handler may write in the middle of a write
        after_fork(self, _StdoutSink._forked)

    def _forked(self) -> None:
        self._lock = threading.RLock()

    def _write(self, record: Record, files: Files) -> None:
        line = escaped(encode(record).decode().rstrip("\n")).encode() + b"\n"  # it may be a terminal
        with self._lock:
            try:
                sys.stdout.flush()
                handle = sys.stdout.fileno()
            except (AttributeError, ValueError, OSError):  # replaced by an object without a file
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
        """Do nothing: there is nothing to release."""


class _MultiSink(_RedactingSink):
    """Writes to several sinks, each whether or not another fails; fails if one fails.

    Each gets a copy of the record: what it changes is not passed on, but for the `files` that it filled in.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        super().__init__(None)
        self.sinks = list(sinks)

    def _write(self, record: Record, files: Files) -> None:
        errors: list[OutputError] = []
        names = record.get("files", [])
        for sink in self.sinks:
            copy = deepcopy(record) | {"files": deepcopy(names)}
            try:
                sink.write(copy, dict(files))
            except OutputError as error:
                errors.append(error)
            names = _names(copy, files) or names
        if errors:
            raise OutputError("; ".join(map(str, errors))) from errors[0]

    def close(self, timeout: float) -> None:
        """Close the sinks one after the other, within `timeout` in total."""
        end = time.monotonic() + timeout
        for sink in self.sinks:
            with contextlib.suppress(Exception):
                sink.close(max(0.0, end - time.monotonic()))

    def tick(self) -> None:
        """Let every sink do maintenance."""
        for sink in self.sinks:
            if hasattr(sink, "tick"):
                sink.tick()

    @property
    def lost(self) -> int:
        """The number of records lost, over all sinks."""
        return sum(int(getattr(sink, "lost", 0)) for sink in self.sinks)

    def note(self, counts: Mapping[str, Any]) -> None:
        """Pass the counts to every sink."""
        for sink in self.sinks:
            if hasattr(sink, "note"):
                sink.note(counts)


def folder_of(sink: Any) -> Path | None:
    """Return the folder that a sink stores records in, the first of several; None if there is none."""
    root = getattr(sink, "root", None)
    if isinstance(root, Path):
        return root
    inner = getattr(sink, "sinks", None) or [getattr(sink, "inner", None)]
    return next((root for one in inner if one is not None and (root := folder_of(one)) is not None), None)


def _names(record: Mapping[str, Any], files: Files) -> list[dict[str, Any]]:
    """Return the names of files that a sink has filled in, empty if they are none."""
    entries = record.get("files")
    fits = isinstance(entries, list) and all(isinstance(e, dict) and e.get("kind") in files for e in entries)
    return cast(list[dict[str, Any]], entries) if fits else []
