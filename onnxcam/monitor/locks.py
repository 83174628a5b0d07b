"""Locks between processes that go with their holder, however it dies."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

AVAILABLE = sys.platform != "win32"


def lock(handle: int) -> bool:
    """Lock an open file for as long as it is open; False where somebody holds the lock, or there are no locks.

    The kernel drops the lock with its last holder: a lock to be had on a segment means that its writer is dead.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def turn(path: Path) -> Iterator[int | None]:
    """An open handle on a file of that name for the one process that has it locked; None for the others."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield None
        return
    try:
        yield handle if lock(handle) or not AVAILABLE else None
    finally:
        os.close(handle)
