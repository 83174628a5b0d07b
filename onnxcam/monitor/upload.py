"""Uploads closed segments through fsspec: the pictures first, then the segment that names them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxcam.errors import DependencyError
from onnxcam.monitor import locks
from onnxcam.monitor.forks import after_fork
from onnxcam.monitor.retention import pictures
from onnxcam.monitor.segments import CLOSED, FOLDER, segments

_LOCK = ".uploading"
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 600.0  # seconds before a failed copy is retried, doubled each time
_log = logging.getLogger("onnxcam.monitor")


class Uploader:
    """Maintains a copy of a folder's closed segments and their pictures at a URL, in a thread of its own.

    A segment whose name is at the URL has been copied, so a process may die at any time and another one continues; only
    one process per folder copies at a time. A segment that retention removes before it was copied is not copied.

    Arguments:
        root: the folder of `records/` and `files/`.
        url: any URL that fsspec supports; the copy has the same two folders.
        options: keywords for the file system.

    Raises:
        DependencyError: fsspec, or the package for this kind of URL, is missing.
    """

    def __init__(self, root: Path, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._root, self._url = root, url
        try:
            import fsspec

            self._system, self._base = fsspec.core.url_to_fs(url, **(options or {}))
        except (ImportError, ValueError) as error:
            raise DependencyError(
                f'{url!r} cannot be written to ({error}): pip install "onnxcam[upload]" and the package that fsspec '
                "asks for"
            ) from error
        self._thread: threading.Thread | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        after_fork(self, Uploader._forked)

    def wake(self) -> None:
        """Copy new segments soon, in the thread."""
        self._wake.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name="onnxcam-upload", daemon=True)
            self._thread.start()

    def close(self, timeout: float) -> None:
        """Copy new segments until the timeout, then stop."""
        self._closing.set()
        self.wake()
        assert self._thread is not None
        self._thread.join(timeout)

    def copy(self) -> list[str]:
        """Copy every closed segment that is not at the URL yet.

        Returns:
            the names of the copied segments; none if another process is copying.

        Raises:
            Exception: whatever the file system raises; no segment at the URL names a picture that is missing there.
        """
        names = []
        with locks.exclusive(self._root / _LOCK) as handle:
            if handle is None:
                return []
            uploaded = self._uploaded()
            for path in segments(self._root, CLOSED):
                if path.name not in uploaded and self._copy(path):
                    names.append(path.name)
        return names

    def _uploaded(self) -> set[str]:
        self._system.invalidate_cache()
        try:
            names = self._system.ls(f"{self._base}/{FOLDER}", detail=False)
        except FileNotFoundError:
            return set()
        return {name.rstrip("/").rpartition("/")[2] for name in names}

    def _copy(self, path: Path) -> bool:
        try:
            for name in sorted(pictures(path)):
                self._upload(self._root / name, f"{self._base}/{name}")
            final = f"{self._base}/{FOLDER}/{path.name}"
            self._upload(path, f"{final}.part")
        except FileNotFoundError:
            if path.exists():
                raise
            return False  # retention has removed it
        self._system.mv(f"{final}.part", final)
        return True

    def _upload(self, local: Path, remote: str) -> None:
        self._system.makedirs(remote.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(local), remote)

    def _loop(self) -> None:
        wait = _FIRST_WAIT
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                self.copy()
                wait = _FIRST_WAIT
            except Exception as error:
                # logged once per series of failures: the wait doubles until a copy succeeds
                if wait == _FIRST_WAIT:
                    _log.warning("segments cannot be copied to %s: %s", self._url, type(error).__name__, exc_info=error)
                if not self._closing.is_set():
                    self._closing.wait(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
                    self._wake.set()
                    continue
            if self._closing.is_set() and not self._wake.is_set():
                return

    def _forked(self) -> None:
        self._thread = None
        self._wake, self._closing = threading.Event(), threading.Event()
