"""Redaction: which picture files a sink may store. Every sink receives only files that pass here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# a heatmap contains only the map's values; overlay and input show the picture itself
MODES: dict[str, frozenset[str]] = {
    "none": frozenset({"heatmap", "overlay", "input"}),
    "heatmap_only": frozenset({"heatmap"}),
    "hash": frozenset(),
}


def allowed(record: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files that the record's `redact` allows; an unknown mode allows none."""
    kinds = MODES.get(str(record.get("redact")), frozenset())
    return {kind: data for kind, data in files.items() if kind in kinds}
