"""A monitor's counts in a file next to its records, so that readers also know what was not explained.

DIR/stats/<host>-<pid>-<token>.json     one per monitor and process, replaced atomically
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxcam.files import write_bytes

FOLDER = "stats"
_LIMITED = ("rate", "budget", "queue", "bytes", "evicted")


class CountersFile:
    """The counts file of one monitor; a forked child writes its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pid = 0
        self._path = root

    def write(self, counts: Mapping[str, Any]) -> None:
        """Replace the file; nothing is written before the first row was observed.

        Raises:
            OutputError: it cannot be written; the old one is still there.
            OSError: the folder cannot be created.
        """
        if self._pid != os.getpid():
            if not counts.get("seen"):
                return  # a parent that only forks has nothing to count
            self._pid = os.getpid()
            # process ids repeat, in containers at every start
            name = f"{socket.gethostname()}-{self._pid}-{secrets.token_hex(4)}.json"
            self._path = self._root / FOLDER / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path, json.dumps(dict(counts)).encode())


def total(root: Path) -> dict[str, Any]:
    """Return the summed counts of all monitors that wrote into a folder; `processes` is their number."""
    total: dict[str, Any] = {"processes": 0}
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            counts = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue  # removed, or lost in a crash of the machine: the other files still count
        if isinstance(counts, dict):
            total["processes"] += 1
            _add(total, counts)
    return total


def prune(root: Path, age: float) -> int:
    """Remove the counts files that no monitor has replaced for `age` seconds; returns how many."""
    removed = 0
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            if time.time() - path.stat().st_mtime > age:
                path.unlink()
                removed += 1
        except OSError:
            continue
    return removed


def limited(counts: Mapping[str, Any]) -> float:
    """Return the share of rows worth explaining that limits dropped: estimates from the records lack them."""
    dropped = counts.get("dropped", {})
    lost = sum(int(dropped.get(reason, 0)) for reason in _LIMITED)
    explained = int(counts.get("explained", 0))
    return lost / (lost + explained) if lost else 0.0


def notes(counts: Mapping[str, Any]) -> list[str]:
    """Return a warning if limits dropped so many rows that estimates of the traffic are unreliable."""
    share = limited(counts)
    if share <= 0.05:
        return []
    return [
        f"rate, budget or queue dropped {100 * share:.0f} % of the rows worth explaining, most of them uncertain: the "
        "low-confidence rate is underestimated; raise `rate`, or lower `sample` and `baseline_sample`"
    ]


def _add(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    """Add counts to the total, level by level; values that are not counts are ignored."""
    for name, value in counts.items():
        if isinstance(value, dict):
            subtotal = total.setdefault(name, {})
            if isinstance(subtotal, dict):
                _add(subtotal, value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "pid":
            total[name] = total.get(name, 0) + value
