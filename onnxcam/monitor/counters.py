"""A monitor's counts as a file beside its records, so that readers know what was not explained, too.

DIR/stats/<host>-<pid>-<token>.json     one per monitor and process, replaced as a whole
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

from onnxcam.image.write import write_bytes

FOLDER = "stats"
_LIMITED = ("rate", "budget", "queue", "bytes", "evicted")


class CountersFile:
    """The file of one monitor; a forked child has its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pid = 0
        self._path = root

    def write(self, counts: Mapping[str, Any]) -> None:
        """Replace the file; nothing is written before something was seen.

        Raises:
            OutputError: it cannot be written; the old one is still there.
            OSError: the folder cannot be made.
        """
        if self._pid != os.getpid():
            if not counts.get("seen"):
                return  # of a parent that only forks there is nothing to tell
            self._pid = os.getpid()
            # process ids come back, in containers with every start
            name = f"{socket.gethostname()}-{self._pid}-{secrets.token_hex(4)}.json"
            self._path = self._root / FOLDER / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path, json.dumps(dict(counts)).encode())


def total(root: Path) -> dict[str, Any]:
    """The counts of all monitors that wrote into a folder, added up; `processes` says how many there are."""
    found: dict[str, Any] = {"processes": 0}
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            held = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue  # taken away, or lost in a crash of the machine: the others still count
        if isinstance(held, dict):
            found["processes"] += 1
            _add(found, held)
    return found


def prune(root: Path, age: float) -> int:
    """Remove the files that no monitor has replaced for `age` seconds; returns how many."""
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
    """The part of the rows worth explaining that bounds kept out: what is estimated from records lacks them."""
    dropped = counts.get("dropped", {})
    out = sum(int(dropped.get(reason, 0)) for reason in _LIMITED)
    kept = int(counts.get("explained", 0))
    return out / (out + kept) if out else 0.0


def notes(counts: Mapping[str, Any]) -> list[str]:
    """A sentence where bounds kept out so much that estimates of the traffic are doubtful."""
    part = limited(counts)
    if part <= 0.05:
        return []
    return [
        f"rate, budget or queue kept out {100 * part:.0f} % of the rows worth explaining, more of the unsure than of "
        "the others: the low-confidence rate is underestimated; raise `rate`, or lower `sample` and `baseline_sample`"
    ]


def _add(found: dict[str, Any], held: Mapping[str, Any]) -> None:
    """Counts added up, level by level; what is no count is left out."""
    for name, value in held.items():
        if isinstance(value, dict):
            below = found.setdefault(name, {})
            if isinstance(below, dict):
                _add(below, value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "pid":
            found[name] = found.get(name, 0) + value
