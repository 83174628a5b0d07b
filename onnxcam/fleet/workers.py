"""The processor cores that a worker may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from onnxcam.explain.folder import cores

_MOST = 64
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def share() -> int:
    """Threads for this worker: what its engine, its container and its affinity leave it.

    Ray and Spark set `OMP_NUM_THREADS` to the cores of an actor or a task; a container's quota stands in its control
    group.
    """
    limits = [cores(), _MOST]
    variable = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if variable.isdigit() and int(variable) > 0:
        limits.append(int(variable))
    quota = _quota()
    if quota is not None:
        limits.append(quota)
    return max(1, min(limits))


def _quota() -> int | None:
    """The cores of the control group's quota, rounded up; None without one."""
    try:
        limit, period = _QUOTA.read_text("ascii").split()
        return None if limit == "max" else max(1, math.ceil(int(limit) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None
