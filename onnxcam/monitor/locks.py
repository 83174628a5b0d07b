"""Locks between processes, released by the kernel when their holder dies."""

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
    """Lock an open file until it is closed; False if another process holds the lock, or the system has no locks.

    The kernel releases the lock when the last holder exits: a segment that can be locked has no living writer.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int | None]:
    """Lock a file inside the block: its open handle in the one process that has the lock, None in the others."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield None
        return
    try:
        yield handle if lock(handle) or not AVAILABLE else None
    finally:
        os.close(handle)
