"""Copies of closed segments elsewhere, through fsspec: the pictures first, then the segment that names them."""

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

_TURN = ".uploading"
_FIRST, _LONGEST = 5.0, 600.0  # seconds before a failed copy is tried again: doubled each time
_log = logging.getLogger("onnxcam.monitor")


class Uploader:
    """Keeps a copy of a folder's closed segments and their pictures at a URL, from a thread of its own.

    What is there already is known by the segment's name, so that a process may die at any time and any other goes on;
    one process of a folder copies at a time. A segment that retention removes before it was copied is not copied.

    Arguments:
        root: the folder of `records/` and `files/`.
        url: any URL that fsspec knows; the copy has the same two folders.
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
        self._woken, self._last = threading.Event(), threading.Event()
        after_fork(self, Uploader._forked)

    def wake(self) -> None:
        """Copy what is new, soon."""
        self._woken.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name="onnxcam-upload", daemon=True)
            self._thread.start()

    def close(self, timeout: float) -> None:
        """Copy what is new for as long as there is time, then stop."""
        self._last.set()
        self.wake()
        assert self._thread is not None
        self._thread.join(timeout)

    def copy(self) -> list[str]:
        """Copy every closed segment that is not there yet.

        Returns:
            the names of those copied; none where another process is at it.

        Raises:
            Exception: whatever the file system raises; what was copied before is whole, and named by no segment yet.
        """
        done = []
        with locks.turn(self._root / _TURN) as mine:
            if mine is None:
                return []
            present = self._present()
            for path in segments(self._root, CLOSED):
                if path.name not in present and self._copy(path):
                    done.append(path.name)
        return done

    def _present(self) -> set[str]:
        self._system.invalidate_cache()
        try:
            held = self._system.ls(f"{self._base}/{FOLDER}", detail=False)
        except FileNotFoundError:
            return set()
        return {name.rstrip("/").rpartition("/")[2] for name in held}

    def _copy(self, path: Path) -> bool:
        try:
            for name in sorted(pictures(path.read_bytes())):
                self._put(self._root / name, f"{self._base}/{name}")
            final = f"{self._base}/{FOLDER}/{path.name}"
            self._put(path, f"{final}.part")
        except FileNotFoundError:
            if path.exists():
                raise
            return False  # retention was quicker
        self._system.mv(f"{final}.part", final)
        return True

    def _put(self, local: Path, remote: str) -> None:
        self._system.makedirs(remote.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(local), remote)

    def _loop(self) -> None:
        wait = _FIRST
        while True:
            self._woken.wait()
            self._woken.clear()
            try:
                self.copy()
                wait = _FIRST
            except Exception as error:
                # once per spell: the wait doubles until the copy succeeds
                if wait == _FIRST:
                    _log.warning("segments cannot be copied to %s: %s", self._url, type(error).__name__, exc_info=error)
                if not self._last.is_set():
                    self._last.wait(wait)
                    wait = min(2 * wait, _LONGEST)
                    self._woken.set()
                    continue
            if self._last.is_set() and not self._woken.is_set():
                return

    def _forked(self) -> None:
        self._thread = None
        self._woken, self._last = threading.Event(), threading.Event()
